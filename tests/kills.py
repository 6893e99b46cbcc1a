"""Kill a script at random moments of its work, again and again, each time going on from where the last one was killed.

    python tests/kills.py SCRIPT NUMBER OUTPUT SEED ARGUMENT…

Every run is a fork of this process, which has imported all that the scripts do: so the kills fall into the work, not
into start-up. Whenever a run comes to its end, OUTPUT is removed and the next begins anew. The last run is left to
finish. Prints how often a run was killed and how often one came to its end before.
"""

from __future__ import annotations

import importlib
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)


def main() -> None:
    script, number, output, seed, *arguments = sys.argv[1:]
    import torch  # noqa: F401
    from transformers import AutoModelForCausalLM, LlamaForCausalLM  # noqa: F401

    from cepe_data import mds

    mds.import_streaming()
    start = time.monotonic()
    finish(start_run(script, arguments))
    seconds = time.monotonic() - start
    shutil.rmtree(output)
    draw = random.Random(int(seed))
    num_killed, num_ended = 0, 0
    while num_killed < int(number):
        run = start_run(script, arguments)
        time.sleep(draw.uniform(0, seconds))
        os.kill(run, signal.SIGKILL)
        _, status = os.waitpid(run, 0)
        if os.WIFSIGNALED(status):
            num_killed += 1
        else:
            assert os.waitstatus_to_exitcode(status) == 0
            num_ended += 1
            shutil.rmtree(output)
    finish(start_run(script, arguments))
    print(f"{num_killed} killed, {num_ended} ended")


def start_run(script: str, arguments: list[str]) -> int:
    run = os.fork()
    if run == 0:
        sys.argv = [script, *arguments]
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
        module.cli.run(module.main)
    return run


def finish(run: int) -> None:
    _, status = os.waitpid(run, 0)
    assert os.waitstatus_to_exitcode(status) == 0


if __name__ == "__main__":
    main()
