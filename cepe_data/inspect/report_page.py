"""One HTML page that shows a run: numbers and provenance, figures, and some rows of every set as text.

The page is one file without links to others, to be mailed and opened anywhere. What there is below OUT … is found by
provenance, as `all` finds it. Only metadata and samples are read. This is quick, and does not replace the checks;
`--checks` shows what they found. What is damaged is named on the page, and the exit status is 1 then.

    python sanity_check.py all --json 8k_ab > checks.json
    python sanity_check.py report 8k_ab --checks checks.json --output report.html
"""

from __future__ import annotations

import argparse
import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cepe_data import cli
from cepe_data.errors import ArgumentError
from cepe_data.inspect.page import figures, summary
from cepe_data.inspect.page.rows import Rows
from cepe_data.storage import outputs
from cepe_data.storage.report import Report, add_source_arguments

HELP = "write one HTML page that shows a run: numbers, figures, and rows as text"
FILES = Path(__file__).parent / "page"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folders", type=Path, nargs="+", metavar="OUT", help="where sets are, in these folders or below them"
    )
    parser.add_argument("--output", type=Path, default=Path("report.html"), help="the file to write or replace")
    parser.add_argument(
        "--checks", type=Path, default=None, metavar="FILE", help="what a check, such as `all`, printed with --json"
    )
    parser.add_argument("--rows", type=cli.count, default=8, help="shown of every set, fewer if there are many sets")
    parser.add_argument("--passages", type=cli.positive_count, default=3, help="shown of a row of retrieved passages")
    parser.add_argument("--seed", type=cli.count, default=0, help="another seed shows other rows")
    parser.add_argument("--tokenizer", default=None, help="hub name, folder or .model file (default: the saved one)")
    add_source_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Write the page."""
    if not args.output.parent.is_dir() or args.output.is_dir():
        raise ArgumentError(f"--output {args.output}: no file can be written there")
    for folder in args.folders:
        if not folder.is_dir():
            raise ArgumentError(f"{folder} is not there, or is not a folder")
    checks = summary.read_checks(args.checks) if args.checks else None
    report = Report("report", False)
    of_run = summary.Run.read(report, args.folders, args.file_list, args.tokenized_dir)
    drawn = figures.draw_all(report, of_run, args.seed)
    rows = Rows(args.tokenized_dir, args.tokenizer, args.rows, args.passages, args.seed)
    rows.read(report, of_run.sets)
    page = render(of_run, drawn, rows, report.findings, checks)
    outputs.remove_stale_temporaries(args.output.parent)
    # What has no UTF-8, such as half of a name of a file, is shown as an escape.
    outputs.write_bytes(args.output, page.encode("utf-8", "backslashreplace"))
    what = f"{len(of_run.sets)} sets, {len(drawn)} figures, {len(rows.shown)} rows, {len(report.findings)} findings"
    return report.finish(what, args.output)


def render(
    of_run: summary.Run,
    drawn: Sequence[figures.Figure],
    rows: Rows,
    findings: Sequence[Mapping[str, Any]],
    checks: Mapping[str, Any] | None,
) -> str:
    """The page. Everything but the files and figures of this package is escaped; and a policy lets no other script run,
    and nothing be loaded."""
    import jinja2

    script, style = ((FILES / name).read_text(encoding="utf-8") for name in ("page.js", "page.css"))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FILES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":")}
    environment.filters["cell"] = lambda value: f"{value:,}" if isinstance(value, int) else value
    sets = [{"name": str(one.folder), "group": one.group, "domain": one.domain} for one in of_run.sets]
    return environment.get_template("template.html").render(
        run=of_run,
        figures=drawn,
        rows=rows,
        findings=findings,
        checks=checks,
        max_findings=summary.MAX_FINDINGS,
        content={"sets": sets, "rows": rows.shown},
        style=style,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
