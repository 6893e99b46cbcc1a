"""What the scripts of the CEPE data pipeline must agree on: one module per format or rule, and nothing else."""

import importlib.util
import signal
import sys
from pathlib import Path

if importlib.util.find_spec("xxhash") is None:
    sys.exit(
        f"{sys.executable} has not the libraries of this project: `make install`, then `source .venv/bin/activate`"
    )


def end_silently_on_ctrl_c() -> None:
    """For a script that still makes its imports: Ctrl-C ends it without a traceback, until `cli.run` takes over."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


_main_file = getattr(sys.modules["__main__"], "__file__", None)
if _main_file and Path(_main_file).resolve().parent == Path(__file__).resolve().parents[1]:
    end_silently_on_ctrl_c()
