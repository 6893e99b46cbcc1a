"""Run scripts as processes that are forks of one that has imported torch, transformers and streaming: most of what the
tests would wait for is these imports. What scripts do in a child to be rid of its imports, is done in the fork itself.

    python tests/preloaded.py        # reads requests from stdin, a list a line, that are run at once; answers on stdout
                                     # with the list of their exit statuses
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import sys
import time
import traceback
import types
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent


def main() -> None:
    sys.path[0] = str(PROJECT)
    import_all()
    answers = os.dup(1)
    os.dup2(2, 1)  # nothing else may write there
    for line in sys.stdin:
        children = []
        for request in json.loads(line):
            children.append(os.fork())
            if children[-1] == 0:
                os.close(answers)
                time.sleep(request["delay"])
                os._exit(become(request))  # to take all these modules down takes a second
        statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        os.write(answers, f"{json.dumps(statuses)}\n".encode())


def import_all() -> None:
    """Make the imports that take long."""
    import torch  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer, BertModel, LlamaForCausalLM  # noqa: F401

    from cepe_data.storage import mds

    with contextlib.suppress(ModuleNotFoundError):  # scripts do without it
        mds.import_streaming()


def become(request: dict) -> int:
    """Run a script as if this process had been started for it. Returns its exit status."""
    from cepe_data import workers

    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT), descriptor)
    # What workers send back is of `__mp_main__`, as multiprocessing calls the main module; it knows another one here.
    main_module: Any = types.ModuleType("__mp_main__")
    main_module.__getattr__ = lambda name: getattr(sys.modules["__main__"], name)
    sys.modules["__mp_main__"] = main_module
    workers.run_in_child = lambda function, *arguments: function(*arguments)
    script = request["script"]
    sys.argv = [script, *request["arguments"]]
    status = 1
    try:
        if script.startswith(("cepe_data.", "retrieval.")):
            runpy.run_module(script, run_name="__main__", alter_sys=True)
        else:
            sys.path[0] = str(Path(script).parent)
            runpy.run_path(script, run_name="__main__")
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    return status


if __name__ == "__main__":
    main()
