"""The scripts as commands on the PATH, after an installation: `tokenize_jsonl.py …` is `python tokenize_jsonl.py …`,
and `retrieval.search …` is `python -m retrieval.search …`.

The scripts are no modules of an installation, because names such as `retrieval` belong to everybody. They are in the
folder `scripts` of this package, or, in an editable installation, where the checkout has them.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import cepe_data
from cepe_data import cli


def main() -> None:
    """Run the script that this process is called after."""
    cepe_data.end_silently_on_ctrl_c()
    cli.command_name = Path(sys.argv[0]).name
    scripts = cli.LIBRARY / "scripts"
    sys.path.insert(0, str(scripts if scripts.is_dir() else cli.LIBRARY.parent))
    runpy.run_module(cli.command_name.removesuffix(".py"), run_name="__main__", alter_sys=True)
