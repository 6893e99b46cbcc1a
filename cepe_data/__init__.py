"""What the scripts of the CEPE data pipeline must agree on: one module per format or rule, and nothing else."""

import importlib.util
import sys

if importlib.util.find_spec("xxhash") is None:
    sys.exit(
        f"{sys.executable} has not the libraries of this project: `make install`, then `source .venv/bin/activate`"
    )
