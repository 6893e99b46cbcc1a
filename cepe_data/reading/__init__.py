"""What a trainer imports to read the pipeline's outputs: docs/python.md shows each with an example.

Documents    the documents of a token file, by number
PairedRows   rows of windows with their teacher's targets and their retrieved passages, as a map-style torch Dataset
collate      rows, of PairedRows or of streaming, as a padded batch
"""

from cepe_data.errors import PipelineError
from cepe_data.reading.documents import Documents
from cepe_data.reading.paired_rows import PairedRows, collate

__all__ = ["Documents", "PairedRows", "PipelineError", "collate"]
