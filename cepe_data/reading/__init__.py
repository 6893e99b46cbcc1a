"""The interface for training code that reads the pipeline's outputs: docs/python.md shows each with an example.

Documents    the documents of a token file, by number
PairedRows   windows with their teacher's targets and their retrieved passages, as a map-style torch Dataset
collate      makes a padded batch of rows, of PairedRows or of streaming
"""

from cepe_data.errors import PipelineError
from cepe_data.reading.paired_rows import PairedRows, collate
from cepe_data.tokens.token_file import TokenFile as Documents

__all__ = ["Documents", "PairedRows", "PipelineError", "collate"]
