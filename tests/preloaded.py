"""Run scripts as forks of a process that has imported the modules and the large libraries, since these imports would
take most of the tests' time. What a script does in a child process to keep imports out of its own, a fork does itself.

    python tests/preloaded.py        # each line of stdin is a list of requests, which are run at the same time; each
                                     # line of stdout is the list of their exit statuses
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pkgutil
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
        for number, request in enumerate(json.loads(line)):
            children.append(os.fork())
            if children[-1] == 0:
                os.close(answers)
                time.sleep(request["delay"])
                files = (f"{request['output']}/{number}.{name}" for name in ("stdout", "stderr"))
                status = become(request["command"], request["cwd"], request["environment"], *files)
                os._exit(status)  # a usual exit frees all these modules, which takes a second
        statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        os.write(answers, f"{json.dumps(statuses)}\n".encode())


def import_all() -> None:
    """Import what scripts import: the large libraries, as far as they are installed, and all modules."""
    import torch  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer, BertModel, LlamaForCausalLM  # noqa: F401

    import cepe_data
    from cepe_data.storage import mds

    with contextlib.suppress(ModuleNotFoundError):
        mds.import_streaming()
    modules = [module.name for module in pkgutil.walk_packages(cepe_data.__path__, "cepe_data.")]
    for name in (*modules, "jinja2", "matplotlib.figure", "orjson"):
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(name)


def become(command: list[str], cwd: str, environment: dict[str, str], stdout: str, stderr: str) -> int:
    """Run a script, or a module, as if this process had been started for it. Returns its exit status."""
    from cepe_data import workers

    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for descriptor, path in ((1, stdout), (2, stderr)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    # Results of workers belong to `__mp_main__`, which is multiprocessing's name of the main module: here the script.
    main_module: Any = types.ModuleType("__mp_main__")
    main_module.__getattr__ = lambda name: getattr(sys.modules["__main__"], name)
    sys.modules["__mp_main__"] = main_module
    workers.run_in_child = lambda function, *arguments: function(*arguments)
    script, status = command[0], 1
    sys.argv = command
    try:
        if script.startswith(("cepe_data.", "retrieval.")):
            sys.modules.pop(script, None)  # else runpy warns
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
