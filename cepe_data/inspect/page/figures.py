"""The figures of the page, as SVG in the colours of the page: black becomes its text colour, white its background, and
a grey a mix of both, so that figures can be read in print and in dark mode.

The sentence above a figure is made from the numbers that it shows.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cepe_data.corpus import listing
from cepe_data.inspect import overlap, plots
from cepe_data.inspect.check_all import ANNOTATED, RETRIEVED, WINDOWS
from cepe_data.inspect.page.summary import Corpus, Run, ShownSet, failure_found
from cepe_data.inspect.plots import MARGIN, NAME_WIDTH, PAGE_WIDTH, Page
from cepe_data.samples.writer import rows_path
from cepe_data.storage import mds, verify
from cepe_data.storage.npy import NpyRows
from cepe_data.storage.report import Report
from cepe_data.teacher.check import Positions
from cepe_data.tokens.check_file import DomainCounts, lengths_by_domain
from cepe_data.tokens.token_file import TokenFile

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_DOCUMENTS = 20_000_000  # whose lengths are read
MAX_DOMAINS = 24  # of a figure
MAX_FOLDERS = 6  # that have a figure of a kind
ROWS_OF_SET = 32  # of a teacher, or of retrieved passages, that a figure shows
MAX_POSITIONS = 4096  # of rows that are looked for in token files
MAX_TOKEN_FILES = 128  # in which they are looked for
NUM_BINS = 20
PITCH, HEIGHT = 0.62, 0.48  # inches of a domain in the figures of this module
_GREY = re.compile(r"#([0-9a-f]{2})\1\1\b")
_NAME = re.compile(r'(\bid="|href="#|url\(#)')


@dataclass(frozen=True)
class Figure:
    """A figure: its name in the page, what it shows, the sentence that it supports, what its lines are, and the SVG."""

    name: str
    title: str
    sentence: str
    note: str
    svg: str


@plots.figure_style()
def draw_all(report: Report, run: Run, seed: int) -> list[Figure]:
    """All figures that there is something for."""
    from matplotlib import rcParams

    rcParams["svg.fonttype"] = "none"  # text that can be read aloud, searched and coloured
    figures = [*of_tokens(report, run.corpus, seed), *of_places(report, run, seed)]
    return [*figures, *of_teachers(report, run, seed), *of_scores(report, run, seed), *of_overlap(report, run)]


def as_svg(page: Page, name: str) -> str:
    """A page as an SVG element, whose ids begin with `name`."""
    whole = page.render(".svg", transparent=True).decode()
    svg = re.sub(r"<metadata>.*?</metadata>|<style type=\"text/css\">.*?</style>", "", whole, flags=re.DOTALL)
    svg = _NAME.sub(rf"\1{name}-", svg[svg.index("<svg") :])
    svg = re.sub(r' (width|height)="[^"]*"', "", svg, count=2)  # of the whole, which are its first two
    return _GREY.sub(_page_colour, svg)


def _page_colour(grey: re.Match[str]) -> str:
    ink = round(100 * (1 - int(grey[1], 16) / 255))
    return {100: "currentColor", 0: "var(--paper)"}.get(ink, f"color-mix(in srgb, currentColor {ink}%, var(--paper))")


# -- token files -------------------------------------------------------------------------------------------------------


def of_tokens(report: Report, corpus: Corpus, seed: int) -> Iterator[Figure]:
    """Lengths of documents, and the shares of domains."""
    if not corpus.files:
        return
    counts = _largest(sample_lengths(report, corpus, seed), lambda one: one.tokens)
    if not counts:
        return
    lines = plots.with_total(counts)
    page = Page(0.55 + plots.LENGTHS_PITCH * len(lines) + 0.5)
    plots.draw_lengths(page, 0.55, lines)
    seen, all_of_them = (sum(one.documents for one in of.values()) for of in (counts, corpus.totals))
    note = f"{seen:,} of {all_of_them:,} documents, all splits together; dashed: thresholds"
    yield Figure("lengths", "Lengths of documents", plots.windows_title(counts), note, as_svg(page, "lengths"))
    totals = _largest(corpus.totals, lambda one: one.tokens)
    shares = plots.shares_of_tokens(totals)
    page = Page(0.35 + plots.SHARES_PITCH * len(shares) + 0.55)
    plots.draw_shares(page, 0.35, totals, shares)
    note = f"{sum(one.tokens for one in totals.values()):,} tokens of {len(corpus.files):,} token files"
    yield Figure("shares", "Shares of domains", plots.proportions_title(shares), note, as_svg(page, "shares"))


def sample_lengths(report: Report, corpus: Corpus, seed: int) -> dict[str, DomainCounts]:
    """The lengths of all documents, or of a range of them in every file where there are too many; by domain. A file
    that cannot be read is a finding."""
    counts: dict[str, DomainCounts] = defaultdict(DomainCounts)
    of_file = max(1, MAX_DOCUMENTS // len(corpus.files))
    for file in corpus.files:
        path = corpus.tokenized_dir / file.token_file
        with failure_found(report, path), TokenFile(path) as tokens:
            start = random.Random(f"{seed} {file.path}").randint(0, max(0, tokens.num_documents - of_file))
            lengths = tokens.lengths(start, start + of_file)
            for domain, of_domain in lengths_by_domain(tokens, file.domain, start, lengths):
                if len(of_domain):
                    counts[domain].add_lengths(of_domain)
                    counts[domain].files += 1
    return dict(sorted(counts.items()))


# -- rows --------------------------------------------------------------------------------------------------------------


def of_places(report: Report, run: Run, seed: int) -> Iterator[Figure]:
    """Where in their documents sampled rows begin, of every output."""
    from matplotlib.ticker import PercentFormatter

    groups = _by_folder(run.of_kind(WINDOWS), lambda one: one.folder.parent.parent)
    windows = [one for _, of_output in groups for one in of_output]
    places = find_places(report, run.corpus.tokenized_dir, windows, seed)
    for number, (out, of_output) in enumerate(groups):
        shares: dict[str, list[float]] = defaultdict(list)
        for one in of_output:
            if one.folder in places:
                shares[one.domain] += places[one.folder]
        if not shares:
            continue
        rows = _largest(dict(sorted(shares.items())), len)
        everything = np.concatenate(list(rows.values()))
        page, lines = _page_of_lines(rows, "where in its document a row begins: from the first token to the last")
        for axes, of_domain in zip(lines, rows.values(), strict=True):
            counts, edges = np.histogram(of_domain, NUM_BINS, (0, 1))
            axes.stairs(counts / max(1, counts.sum()), edges, fill=True, color="0.4")
            axes.axhline(1 / NUM_BINS, color="black", linewidth=0.8, linestyle=(0, (4, 2)))
            axes.set(xlim=(0, 1), ylim=(0, None))
            axes.xaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
        first = float((everything < 0.5).mean())
        sentence = f"{100 * first:.0f} % of the sampled rows begin in the first half of their document"
        note = f"share of {len(everything):,} sampled rows by twentieths of the document; dashed: the same everywhere"
        name = f"places{number}"
        yield Figure(name, f"Positions of rows inside documents: {out}", sentence, note, as_svg(page, name))


def find_places(report: Report, tokenized_dir: Path, windows: Sequence[ShownSet], seed: int) -> dict[Path, list[float]]:
    """By set: where in their documents, from 0 to 1, some of its rows begin. Token files that are not there, or that
    are too many, are left out."""
    of_set = max(4, MAX_POSITIONS // max(1, len(windows)))
    positions: dict[str, list[tuple[int, Path]]] = defaultdict(list)
    for one in windows:
        with failure_found(report, rows_path(one.folder)), NpyRows(rows_path(one.folder), num_axes=2) as rows:
            for number in verify.sample(min(rows.size, one.num_rows), of_set, seed, str(one.folder)).tolist():
                file, position = rows.read(number, number + 1)[0].tolist()
                positions[one.meta["source_files"][file]].append((position, one.folder))
    sources = sorted(positions)
    sources = random.Random(f"{seed} places").sample(sources, min(len(sources), MAX_TOKEN_FILES))
    places: dict[Path, list[float]] = defaultdict(list)
    for source in sources:
        path, ascending = tokenized_dir / listing.token_path(source), sorted(positions[source])
        if not path.exists():
            continue
        with failure_found(report, path), TokenFile(path) as tokens:
            found = tokens.find(np.array([position for position, _ in ascending]))
            for place, (position, folder) in zip(found, ascending, strict=True):
                if place.document is not None:
                    places[folder].append((position - place.start) / (place.stop - place.start))
    return places


def of_teachers(report: Report, run: Run, seed: int) -> Iterator[Figure]:
    """Top-k mass and entropy by position, of every folder of a teacher's sets. Sets of samples are left out: their mass
    and entropy are not the teacher's."""
    of_topk = [one for one in run.of_kind(ANNOTATED) if not one.num_samples]
    for number, (folder, sets) in enumerate(_by_folder(of_topk)):
        positions: dict[str, Positions] = {}
        for one in sets[:MAX_DOMAINS]:
            if rows := _sampled(report, one, seed, "target_prob"):
                num_positions, width = rows[0].shape
                dtype, _ = mds.column_array(one.columns["target_index"])
                vocab_size = one.meta.get("vocab_size") or int(np.iinfo(dtype).max) + 1
                positions[one.domain] = Positions(num_positions, width - 1, vocab_size)
                for row in rows:
                    positions[one.domain].add_row(row)
        if positions:
            page = Page(0.65 + plots.POSITIONS_PITCH * len(positions) + 0.4)
            plots.draw_positions(page, 0.65, positions)
            name, title = f"teacher{number}", f"What the teacher expects: {folder}"
            sentence, note = plots.teacher_title(positions), plots.positions_note(positions)
            yield Figure(name, title, sentence, note, as_svg(page, name))


def of_scores(report: Report, run: Run, seed: int) -> Iterator[Figure]:
    """Scores of passages by rank, of every folder of retrieved passages."""
    from matplotlib.ticker import MaxNLocator

    for number, (folder, sets) in enumerate(_by_folder(run.of_kind(RETRIEVED))):
        sampled = {one.domain: _sampled(report, one, seed, "retrieval_scores") for one in sets[:MAX_DOMAINS]}
        scores = {
            domain: np.stack(rows).astype(np.float64) for domain, rows in sampled.items() if rows and len(rows[0])
        }
        if not scores:
            continue
        page, lines = _page_of_lines(scores, "rank of the passage")
        lowest, highest = (limit([limit(one) for one in scores.values()]) for limit in (np.min, np.max))
        margin = 0.06 * (highest - lowest) or 1.0
        for axes, of_domain in zip(lines, scores.values(), strict=True):
            edges = np.arange(of_domain.shape[1] + 1) + 0.5
            low, high = np.quantile(of_domain, (0.1, 0.9), axis=0)
            axes.stairs(high, edges, baseline=low, fill=True, color="0.8")
            axes.stairs(of_domain.mean(axis=0), edges, baseline=None, color="black", linewidth=1.2)
            axes.set(xlim=(0.5, max(one.shape[1] for one in scores.values()) + 0.5))
            axes.set(ylim=(lowest - margin, highest + margin))
            axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
        of_all = [np.concatenate([one[:, rank] for one in scores.values()]).mean() for rank in (0, -1)]
        sentence = f"The mean score falls from {of_all[0]:.3g} for the best passage to {of_all[1]:.3g} for the last"
        if of_all[0] - of_all[1] < 5e-4 * abs(of_all[0]):
            sentence = f"The mean score stays near {of_all[0]:.3g} from the best passage to the last"
        num_rows = sum(map(len, scores.values()))
        note = f"line: mean, grey: from the 10 % to the 90 % quantile, of {num_rows:,} sampled rows"
        name = f"scores{number}"
        yield Figure(name, f"Scores by rank: {folder}", sentence, note, as_svg(page, name))


def of_overlap(report: Report, run: Run) -> Iterator[Figure]:
    """The test windows that share something, of every output that `sanity_check.py overlap` looked at."""
    known = [out for out in run.outputs if overlap.report_path(out).exists()][:MAX_FOLDERS]
    for number, out in enumerate(known):
        with failure_found(report, overlap.report_path(out)):
            found = overlap.read_report(out)
            domains = _largest(found["domains"], lambda one: one["windows"])
            yield _overlap_figure(f"overlap{number}", out, found, domains)


def _overlap_figure(name: str, out: Path, found: Mapping[str, Any], domains: Mapping[str, Any]) -> Figure:
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    sides = list(found["compared_with"])
    height = plots.SHARES_PITCH * len(domains)
    page = Page(0.35 + height + 0.55)
    axes = page.axes(NAME_WIDTH, 0.35, PAGE_WIDTH - NAME_WIDTH - MARGIN, height)
    bar, largest = 0.72 / len(sides), 0.0
    for place, (side, style) in enumerate(zip(sides, (plots.FILLED, plots.HATCHED), strict=False)):
        shares = [one[side]["rows"] / max(1, one["windows"]) for one in domains.values()]
        middles = np.arange(len(domains)) + (place - (len(sides) - 1) / 2) * bar
        axes.barh(middles, shares, bar, label=f"share with {side}", **style)
        for middle, share, one in zip(middles, shares, domains.values(), strict=True):
            axes.text(share, middle, f" {one[side]['rows']:,} of {one['windows']:,}", va="center", fontsize=8)
        largest = max([largest, *shares])
    plots.name_bars(page, 0.35, height, domains)
    largest = largest or 0.01
    axes.set(xlim=(0, largest * 1.25), ylim=(len(domains) - 0.5, -0.5), yticks=[], xlabel="share of test windows")
    axes.set_xticks([tick for tick in MaxNLocator(6).tick_values(0, largest) if tick <= 1])
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False, borderaxespad=0.3)
    num_windows = sum(one["windows"] for one in domains.values())
    counts = [f"{sum(one[side]['rows'] for one in domains.values()):,} with {side}" for side in sides]
    sentence = (
        f"Of {num_windows:,} test windows, these share a span of {found['span_tokens']} tokens: "
        f"{plots.enumerate_words(counts)}"
    )
    note = f"one of {found['sampling']} spans compared"
    return Figure(name, f"Overlap with other splits: {out}", sentence, note, as_svg(page, name))


def _by_folder(
    sets: Sequence[ShownSet], folder_of: Callable[[ShownSet], Path] = lambda one: one.folder.parent
) -> list[tuple[Path, list[ShownSet]]]:
    """The sets of each folder of domain folders, or of other folders; of as many as can be drawn."""
    groups = groupby(sorted(sets, key=folder_of), folder_of)
    return [(folder, list(of_folder)) for folder, of_folder in groups][:MAX_FOLDERS]


def _sampled(report: Report, one: ShownSet, seed: int, column: str) -> list[np.ndarray]:
    """A column of some rows of a set."""
    with failure_found(report, one.folder), mds.Rows(one.folder, columns=[column]) as rows:
        return [rows[number][column] for number in verify.sample(len(rows), ROWS_OF_SET, seed, "figure").tolist()]
    return []


def _largest(by_domain: Mapping[str, Any], size: Any) -> dict[str, Any]:
    """The largest domains, as many as a figure has room for, in the order that they had."""
    kept = sorted(by_domain, key=lambda domain: -size(by_domain[domain]))[:MAX_DOMAINS]
    return {domain: one for domain, one in by_domain.items() if domain in kept}


def _page_of_lines(rows: Mapping[str, Sized], label: str) -> tuple[Page, list[Axes]]:
    """A page with axes one below the other for every domain, its name and number of rows, and a label below all."""
    from matplotlib.ticker import MaxNLocator

    top, left = 0.25, NAME_WIDTH + 0.4
    width = PAGE_WIDTH - left - MARGIN
    page, lines = Page(top + PITCH * len(rows) + 0.45), []
    for line, (domain, of_domain) in enumerate(rows.items()):
        name = f"{plots.short_name(domain)}\n{len(of_domain):,} rows"
        page.text(MARGIN, top + line * PITCH + HEIGHT / 2, name, va="center")
        axes = page.axes(left, top + line * PITCH, width, HEIGHT)
        axes.tick_params(axis="x", labelbottom=line == len(rows) - 1)
        axes.tick_params(axis="y", labelsize=7, length=2)
        axes.yaxis.set_major_locator(MaxNLocator(2))
        lines.append(axes)
    page.text(left + width / 2, top + len(rows) * PITCH + 0.12, label, ha="center")
    return page, lines
