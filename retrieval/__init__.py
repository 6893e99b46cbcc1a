"""From the retrieval corpus to retrieved passages for every row of a set: embed, search, write. See README.md here."""

import sys

import cepe_data

if sys.argv[0] == "-m":  # as `python -m retrieval.search` has it until that module runs
    cepe_data.end_silently_on_ctrl_c()
