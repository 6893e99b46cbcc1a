"""Run the README's tour of the pipeline on data made on the spot.

reads   README.md: the commands between its two demo marks
writes  demo_output/, and nothing else

    python -m demo.run
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from cepe_data import cli
from cepe_data.storage import outputs

PROJECT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- demo commands -->", "<!-- end of demo commands -->"
TREE_DEPTH = 3


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    parser.add_argument("--output", type=Path, default=PROJECT / "demo_output", help="the folder to write")
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    start = time.monotonic()
    args.output.mkdir(exist_ok=True)
    prepare(args.output)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for command in tour_commands((PROJECT / "README.md").read_text(encoding="utf-8")):
        cli.say(f"\n$ {command}")
        status = subprocess.run(["bash", "-ec", command], cwd=args.output, env=environment, check=False).returncode
        if status:
            cli.say(f"the command above ended with exit status {status}")
            return cli.EXIT_FAILED
    cli.say(f"\nWhat was made in {args.output} (a set and its .parts are links to the same bytes):")
    for line in tree(args.output):
        cli.say(line)
    cli.say(
        "\nLook next at\n"
        "  demo_output/report.html             all of it on one page, in a browser\n"
        "  demo_output/tokens.png, teacher.png how long the documents are, and how sure the teacher is\n"
        "  demo_output/1k_ab/manifest.json     where the rows come from, and how many there could have been\n"
        "  docs/formats.md                     every file above, byte by byte\n"
        "  README.md                           the same steps on RedPajama, by hand and on slurm"
    )
    cli.say(f"\nThe demo took {cli.seconds_since(start)}; a second run skips what is there. → {args.output}")
    return cli.EXIT_OK


def prepare(output: Path) -> None:
    """Make corpus, tokenizer and teacher, each unless it is there; and put the scripts where the README has them."""
    from demo import corpus, models

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

    make("redpajama", corpus.build)
    make("tokenizer.model", lambda path: models.train_tokenizer(training_texts(output / "redpajama"), path))
    make("teacher", lambda path: models.make_teacher(path, tokenizer=output / "tokenizer.model"))
    make("encoder", lambda path: path.symlink_to(models.find_encoder()))
    for script in [*PROJECT.glob("*.py"), *PROJECT.glob("*.sh")]:
        link = output / script.name
        if not link.is_symlink():
            link.symlink_to(os.path.relpath(script, output))


def training_texts(folder: Path) -> Iterator[str]:
    """The texts of the uncompressed files of the corpus."""
    for path in sorted(folder.rglob("*.jsonl")):
        with path.open(encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)["text"]


def tour_commands(readme: str) -> list[str]:
    """The commands between the marks; a line that ends in a backslash goes on."""
    block = readme.partition(BEGIN)[2].partition(END)[0]
    lines = [line for line in block.splitlines() if line and not line.startswith(("```", "#"))]
    return re.sub(r" *\\\n *", " ", "\n".join(lines)).splitlines()


def tree(folder: Path, depth: int = 0) -> Iterator[str]:
    """Folders and files, a few levels deep, with sizes."""
    for path in sorted(folder.iterdir()):
        if path.is_symlink() or path.name.startswith("."):
            continue
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        size = sum(file.stat().st_size for file in files)
        what = f"{size:>12,} bytes" + (f" in {len(files)} files" if path.is_dir() else "")
        yield f"  {'  ' * depth + path.name + '/' * path.is_dir():<52}{what}"
        if path.is_dir() and depth + 1 < TREE_DEPTH:
            yield from tree(path, depth + 1)


if __name__ == "__main__":
    cli.run(main)
