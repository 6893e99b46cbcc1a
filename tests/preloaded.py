"""Run scripts as processes that are forks of one that has imported torch, transformers and streaming: most of what the
tests would wait for is these imports.

    python tests/preloaded.py        # reads a request a line from stdin, answers with an exit status a line on stdout
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent


def main() -> None:
    sys.path[0] = str(PROJECT)
    import torch  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer, BertModel, LlamaForCausalLM  # noqa: F401

    from cepe_data import mds

    mds.import_streaming()
    answers = os.dup(1)
    os.dup2(2, 1)  # nothing else may write there
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            os.close(answers)
            become(request)
            return
        _, status = os.waitpid(child, 0)
        os.write(answers, f"{os.waitstatus_to_exitcode(status)}\n".encode())


def become(request: dict) -> None:
    """Run a script as if this process had been started for it."""
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT), descriptor)
    script = request["script"]
    sys.argv = [script, *request["arguments"]]
    if script.startswith("retrieval."):
        runpy.run_module(script, run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = str(Path(script).parent)
        runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
