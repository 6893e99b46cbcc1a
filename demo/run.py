"""Run the tour of the pipeline in docs/demo.md on data made on the spot, or on a real text with a real teacher.

reads   docs/demo.md: the commands between its marks
writes  demo_output/, or with --real demo_real_output/, and nothing else

    python -m demo.run
"""

from __future__ import annotations

import argparse
import json
import os
import re
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from cepe_data import cli
from cepe_data.storage import outputs

PROJECT = Path(__file__).resolve().parent.parent
TOUR = PROJECT / "docs/demo.md"
BEGIN, BEGIN_REAL, END = "<!-- demo commands -->", "<!-- demo-real commands -->", "<!-- end of commands -->"
MADE = {
    "redpajama": "the corpus, in RedPajama's folders",
    "bible": "the corpus, in RedPajama's folders",
    "tokenized": "token files, one per file of the corpus, and the tokenizer",
    "1k_ab": "rows of long documents for test and train, and the teacher's probabilities",
    "1k_concat": "rows of all domains, and the retrieval corpus",
    "embedded": "a vector for every passage",
    "hits": "the best passages for every test row",
    "retrieved": "their tokens, row by row",
    "report.html": "all of this on one page, for a browser",
    "*.png": "figures: documents' lengths, domains' shares, how sure the teacher is",
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    parser.add_argument(
        "--real", action="store_true", help="the King James Bible, SmolLM2-135M and MiniLM: see `make demo-real`"
    )
    parser.add_argument(
        "--output", type=Path, default=None, help="the folder to write (default: demo_output or demo_real_output)"
    )
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    start = time.monotonic()
    output = args.output or PROJECT / ("demo_real_output" if args.real else "demo_output")
    output.mkdir(exist_ok=True)
    prepare(output, args.real)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHON": sys.executable}  # as in an activated environment
    for command in tour_commands(TOUR.read_text(encoding="utf-8"), BEGIN_REAL if args.real else BEGIN):
        cli.say(f"\n$ {command}")
        status = subprocess.run(["bash", "-ec", command], cwd=output, env=environment, check=False).returncode
        if status:
            cli.say(f"the command above ended with exit status {status}")
            return cli.EXIT_FAILED
    for line in ["", *what_was_made(output)]:
        cli.say(line)
    cli.say(f"\nThe demo took {cli.seconds_since(start)}; a second run skips what is there. → {output}")
    return cli.EXIT_OK


def prepare(output: Path, is_real: bool) -> None:
    """Make corpus, tokenizer and teacher, each unless it is there; and put links to the scripts beside them."""
    from demo import bible, corpus, models

    def make(name: str, maker: Callable[[Path], None]) -> None:
        final = output / name
        if final.exists():
            cli.say(f"{final}: skipped, it is there")
            return
        temporary = outputs.temporary_path(final)
        outputs.remove(temporary)
        maker(temporary)
        temporary.rename(final)
        cli.say(f"{final}: made")

    if is_real:
        make("bible", bible.build)
        make("teacher", models.convert_smollm)
    else:
        make("redpajama", corpus.build)
        make("tokenizer.model", lambda path: models.train_tokenizer(training_texts(output / "redpajama"), path))
        make("teacher", lambda path: models.make_teacher(path, tokenizer=output / "tokenizer.model"))
    make("encoder", lambda path: path.symlink_to(models.find_encoder()))
    for target in [*PROJECT.glob("*.py"), *PROJECT.glob("*.sh"), PROJECT / "cepe_data", PROJECT / "retrieval"]:
        link = output / target.name
        if not link.is_symlink():
            link.symlink_to(os.path.relpath(target, output))


def training_texts(folder: Path) -> Iterator[str]:
    """The texts of the uncompressed files of the corpus."""
    for path in sorted(folder.rglob("*.jsonl")):
        with path.open(encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)["text"]


def tour_commands(page: str, begin: str = BEGIN) -> list[str]:
    """The commands between the marks; a line that ends in a backslash goes on."""
    block = page.partition(begin)[2].partition(END)[0]
    lines = [line for line in block.splitlines() if line and not line.startswith(("```", "#"))]
    return re.sub(r" *\\\n *", " ", "\n".join(lines)).splitlines()


def what_was_made(output: Path) -> Iterator[str]:
    """A line for every output, with its size on the disk, and one that says where to look next."""
    yield f"What was made in {output}:"
    for name, what in MADE.items():
        statuses = [path.lstat() for found in output.glob(name) for path in (found, *found.rglob("*"))]
        if not statuses:
            continue
        num_bytes = sum({status.st_ino: status.st_size for status in statuses if stat.S_ISREG(status.st_mode)}.values())
        yield f"  {name:<14}{num_bytes / 1e6:>6,.1f} MB   {what}"
    yield "Paste any command above there. docs/formats.md describes every file; README.md has the steps for RedPajama."


if __name__ == "__main__":
    cli.run(main)
