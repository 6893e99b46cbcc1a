"""The library of the CEPE data pipeline, a folder for each stage: corpus, tokens, samples, teacher, retrieval.

storage     below the stages: outputs and their provenance, parts, MDS, what all checks share
reading     for training code: rows and documents in Python
inspect     tools that look at finished data: checks of all stages, figures, a page
pipeline    a whole run from one settings file
"""

import importlib.util
import signal
import sys
from pathlib import Path

if importlib.util.find_spec("xxhash") is None:
    sys.exit(
        f"{sys.executable} has not the libraries of this project: `make install`, then `source .venv/bin/activate`"
    )


def end_silently_on_ctrl_c() -> None:
    """Let Ctrl-C end a script during its imports without a traceback; then `cli.run` handles it."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


_main_file = getattr(sys.modules["__main__"], "__file__", None)
if _main_file and Path(_main_file).resolve().parent == Path(__file__).resolve().parents[1]:
    end_silently_on_ctrl_c()
