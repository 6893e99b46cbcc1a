"""The figures of `sanity_check.py --plot`: one page each, a row per domain, in greys that print.

Places are in inches from the upper left corner, so that texts never overlap, whatever the number of domains. The same
numbers give the same bytes: the style is matplotlib's default, not the user's, and the files have no dates.
"""

from __future__ import annotations

import contextlib
import io
import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cepe_data import cli
from cepe_data.storage import outputs
from cepe_data.storage.report import Report
from cepe_data.tokens.check_file import LONG_DOCUMENT_TOKENS, WINDOW_STEP, DomainCounts

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from cepe_data.teacher.check import Positions

# The metadata of each format that leaves its date out.
DATELESS: dict[str, dict[str, None]] = {".png": {}, ".pdf": {"CreationDate": None}, ".svg": {"Date": None}}
# Billions of tokens, the table of https://github.com/togethercomputer/RedPajama-Data/tree/rp_v1
REDPAJAMA_TOKENS = {"arxiv": 28, "book": 26, "c4-rp": 175, "cc": 878, "github": 59, "stackexchange": 20, "wiki": 24}
DPI = 150
PAGE_WIDTH, MARGIN, NAME_WIDTH = 9.0, 0.2, 1.5  # inches, as everywhere below
TITLE_CHARACTERS, NAME_CHARACTERS = 92, 15
LINE_HEIGHT = 0.21
LENGTHS_PITCH, SHARES_PITCH, POSITIONS_PITCH = 0.82, 0.5, 1.3  # a domain's height in each figure
FILLED: dict[str, Any] = {"facecolor": "0.25", "edgecolor": "0.25", "linewidth": 0.6}
HATCHED: dict[str, Any] = {"facecolor": "white", "edgecolor": "0.25", "linewidth": 0.6, "hatch": "/////"}
SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
STYLE: dict[str, Any] = {
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 9,
    "hatch.linewidth": 0.6,
    "svg.hashsalt": "cepe_data",
    "text.parse_math": False,  # a domain may be called $x$
}


@contextlib.contextmanager
def figure_style() -> Iterator[None]:
    """matplotlib's default style, with the settings that all figures here share."""
    from matplotlib import style

    with style.context(["default", STYLE]):
        yield


@figure_style()
def draw_tokens(report: Report, path: Path, counts: Mapping[str, DomainCounts], num_listed: int) -> None:
    """Draw the lengths of documents and the windows in them into `path`, and the domains' shares of the tokens into
    `X.shares.png` beside it. `num_listed` files should be there."""
    counts = {domain: one for domain, one in sorted(counts.items()) if one.files}
    if not counts:
        cli.warn(f"no token file could be read: {path} is not written")
        return
    rows = with_total(counts)
    num_files, num_documents, num_tokens = (
        sum(getattr(one, name) for one in counts.values()) for name in ("files", "documents", "tokens")
    )
    files = (
        f"{num_files:,} of {num_listed:,} token files" if num_files < num_listed else _count(num_files, "token file")
    )
    note = f"{_count(num_documents, 'document')} of {files}, all splits together"
    page, top = _titled_page(windows_title(counts), note, LENGTHS_PITCH * len(rows) + 0.85)
    draw_lengths(page, top + 0.3, rows)
    page.publish(report, path, "plot")
    shares = shares_of_tokens(counts)
    note = f"{_count(num_tokens, 'token')} of {files}"
    page, top = _titled_page(proportions_title(shares), note, SHARES_PITCH * len(shares) + 0.6)
    draw_shares(page, top, counts, shares)
    page.publish(report, path.with_suffix(f".shares{path.suffix}"), "plot_of_shares")


def with_total(counts: Mapping[str, DomainCounts]) -> dict[str, DomainCounts]:
    """The same with the sum of all domains at the end, if there are several."""
    total = DomainCounts()
    for one in counts.values():
        total.add(one)
    return {**counts, **({"total": total} if len(counts) > 1 else {})}


def _titled_page(title: str, subtitle: str, height: float) -> tuple[Page, float]:
    """A page with a title and a subtitle; and where the `height` below them begins."""
    title = textwrap.fill(title, TITLE_CHARACTERS, break_long_words=False)
    title_height = LINE_HEIGHT * (title.count("\n") + 1)
    top = MARGIN + title_height + 0.55
    page = Page(top + height)
    page.text(MARGIN, MARGIN, title, fontsize=11, fontweight="bold", linespacing=1.15)
    page.text(MARGIN, MARGIN + title_height + 0.04, subtitle, color="0.3")
    return page, top


def windows_title(counts: Mapping[str, DomainCounts]) -> str:
    """Which domains have the most windows of each length."""
    leaders: dict[str, list[str]] = {}
    for index, threshold in enumerate(LONG_DOCUMENT_TOKENS):
        windows = {domain: one.windows[index] for domain, one in counts.items()}
        if most := max(windows.values()):
            first = [short_name(domain) for domain, number in windows.items() if number == most]
            each = " each" if len(first) > 1 else ""
            share = f"{_short(threshold)} ({percent_text(most / sum(windows.values()))}{each})"
            leaders.setdefault(f"{enumerate_words(first)} {'hold' if each else 'holds'}", []).append(share)
    if not leaders:
        return f"No document is long enough for a window of {_short(LONG_DOCUMENT_TOKENS[0])} tokens"
    return ", ".join(f"{leader} the most windows of {enumerate_words(what)}" for leader, what in leaders.items())


def shares_of_tokens(counts: Mapping[str, DomainCounts]) -> dict[str, tuple[float, float]]:
    """Each domain's share of all tokens here, and of all tokens of RedPajama; 0 where there is no such domain. Domains
    of RedPajama that are missing here are included, unless all of them are missing."""
    here, there = max(1, sum(one.tokens for one in counts.values())), sum(REDPAJAMA_TOKENS.values())
    domains = {*counts, *REDPAJAMA_TOKENS} if REDPAJAMA_TOKENS.keys() & counts.keys() else {*counts}
    num_tokens = {domain: one.tokens for domain, one in counts.items()}
    return {
        domain: (num_tokens.get(domain, 0) / here, REDPAJAMA_TOKENS.get(domain, 0) / there)
        for domain in sorted(domains)
    }


def proportions_title(shares: Mapping[str, tuple[float, float]]) -> str:
    """Which domains have another share of the tokens than in RedPajama; without its domains, which has the largest."""
    ratios = {domain: here / redpajama for domain, (here, redpajama) in shares.items() if here and redpajama}
    if not ratios:
        largest = max(shares, key=lambda domain: shares[domain][0])
        return f"{short_name(largest)} holds {percent_text(shares[largest][0])} of the tokens"
    extremes = (max(ratios, key=ratios.__getitem__), min(ratios, key=ratios.__getitem__))
    other = [domain for domain in dict.fromkeys(extremes) if not 1 / 1.1 < ratios[domain] < 1.1]
    if not other:
        return "The share of each domain is within a tenth of that in RedPajama, as far as it is in both"
    parts = [f"{short_name(domain)} is {_factor(ratios[domain])} times as large" for domain in other]
    return f"Against RedPajama, the share of {', that of '.join(parts)}"


def draw_lengths(page: Page, top: float, counts: Mapping[str, DomainCounts]) -> None:
    """A histogram per domain over one axis of lengths, and beside it how many windows the domain holds."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

    thresholds = LONG_DOCUMENT_TOKENS
    column_width, pitch, height = 0.9, LENGTHS_PITCH, LENGTHS_PITCH - 0.18
    left, width = NAME_WIDTH, PAGE_WIDTH - NAME_WIDTH - 0.15 - column_width * len(thresholds) - MARGIN
    columns = [left + width + 0.1 + column_width * (index + 1) for index in range(len(thresholds))]
    histograms = np.array([one.lengths for one in counts.values()])
    edges = 2.0 ** (np.arange(histograms.shape[1] + 1) / 2)
    used = edges[:-1][histograms.any(axis=0)]
    lowest, highest = min([*used / 1.2, 64.0]), max([*used * 2, thresholds[-1] * 2.0])
    boundaries = [0.0, *thresholds, np.inf]
    highest_power = max(1, int(np.ceil(np.log10(max(2, histograms.max())))))
    for row, (domain, one) in enumerate(counts.items()):
        axes = page.axes(left, top + row * pitch, width, height)
        for place, (boundary, next_boundary) in enumerate(pairwise(boundaries)):
            inside = np.flatnonzero((edges[:-1] >= boundary) & (edges[:-1] < next_boundary))
            heights = np.maximum(one.lengths[inside], 0.5)  # a logarithmic axis has no 0
            grey = str(0.78 - 0.26 * place)
            axes.stairs(heights, edges[[*inside, inside[-1] + 1]], baseline=0.5, fill=True, color=grey)
        for threshold in thresholds:
            axes.axvline(threshold, color="black", linewidth=0.8, linestyle=(0, (4, 2)))
        axes.set(xscale="log", yscale="log", xlim=(lowest, highest), ylim=(0.5, 10.0**highest_power))
        powers = range(0, highest_power + 1, max(1, round(highest_power / 3)))
        axes.yaxis.set(major_locator=FixedLocator([10.0**power for power in powers]), minor_locator=NullLocator())
        axes.grid(axis="y", color="0.88", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _axis_amount(value)))
        axes.xaxis.set(major_locator=LogLocator(numticks=20), minor_formatter=NullFormatter())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.tick_params(axis="y", labelsize=8, length=2)
        axes.tick_params(axis="x", which="both", labelbottom=row == len(counts) - 1)
        middle = top + row * pitch + height / 2
        page.text(MARGIN, middle, short_name(domain), va="center")
        for column, number in zip(columns, one.windows, strict=True):
            page.text(column, middle, f"{number:,}" if number < 1e7 else _amount(number), va="center", ha="right")
        if row == 0:
            for threshold, column in zip(thresholds, columns, strict=True):
                axes.text(
                    threshold, 1.04, _short(threshold), ha="center", va="bottom", transform=axes.get_xaxis_transform()
                )
                page.text(column, top - 0.05, _short(threshold), va="bottom", ha="right")
    header = {"va": "bottom", "color": "0.3"}
    page.text(left, top - 0.28, "number of documents by length", **header)
    page.text(columns[-1], top - 0.28, f"windows in them (step {WINDOW_STEP:,}) of", ha="right", **header)
    label = "tokens of a document, in bars of half an octave (× √2); both axes logarithmic"
    page.text(left + width / 2, top + len(counts) * pitch + 0.16, label, ha="center")


def draw_shares(
    page: Page, top: float, counts: Mapping[str, DomainCounts], shares: Mapping[str, tuple[float, float]]
) -> None:
    """Two bars per domain: its share of the tokens here, and in RedPajama."""
    from matplotlib.patches import Patch
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    height = SHARES_PITCH * len(shares)
    axes = page.axes(NAME_WIDTH, top, PAGE_WIDTH - NAME_WIDTH - MARGIN, height)
    name_bars(page, top, height, shares)
    for row, (domain, (here, redpajama)) in enumerate(shares.items()):
        axes.barh(row - 0.19, here, 0.36, **FILLED)
        axes.barh(row + 0.19, redpajama, 0.36, **HATCHED)
        what = f"{percent_text(here)}, {_count(counts[domain].tokens, 'token')}" if domain in counts else "not here"
        of_redpajama = percent_text(redpajama) if redpajama else "not in RedPajama"
        axes.text(here, row - 0.19, f" {what}", va="center", fontsize=8)
        axes.text(redpajama, row + 0.19, f" {of_redpajama}", va="center", fontsize=8)
    largest = max(max(pair) for pair in shares.values()) or 1.0
    axes.set(xlim=(0, largest * 1.32), ylim=(len(shares) - 0.5, -0.5), yticks=[], xlabel="share of the tokens")
    axes.set_xticks([tick for tick in MaxNLocator(6, steps=[1, 2, 5, 10]).tick_values(0, largest) if tick <= 1])
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    patches = [Patch(**FILLED, label="here"), Patch(**HATCHED, label="RedPajama")]
    axes.legend(handles=patches, loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False, borderaxespad=0.3)


def name_bars(page: Page, top: float, height: float, domains: Collection[str]) -> None:
    """The names of domains beside axes with a row of bars for each."""
    for row, domain in enumerate(domains):
        page.text(MARGIN, top + height * (row + 0.5) / len(domains), short_name(domain), va="center")


@figure_style()
def draw_teacher(report: Report, path: Path, positions: Mapping[str, Positions]) -> None:
    """Draw top-k mass and entropy over the positions of every set."""
    if not positions:
        cli.warn(f"no row could be read: {path} is not written")
        return
    height = 0.3 + POSITIONS_PITCH * len(positions) + 0.4
    page, top = _titled_page(teacher_title(positions), positions_note(positions), height)
    draw_positions(page, top + 0.3, positions)
    page.publish(report, path, "plot")


def positions_note(positions: Mapping[str, Positions]) -> str:
    """What the lines of `draw_positions` are."""
    widths = enumerate_words(sorted({f"{one.width:,}" for one in positions.values()}))
    return (
        f"lines: means, grey: from the 10 % to the 90 % quantile, of {widths} neighbouring positions in the rows seen"
    )


def draw_positions(page: Page, top: float, positions: Mapping[str, Positions]) -> None:
    """Top-k mass on the left, entropy on the right, a line of axes for every set."""
    from matplotlib.ticker import FuncFormatter, PercentFormatter

    pitch, height, gap = POSITIONS_PITCH, 1.05, 0.75
    width = (PAGE_WIDTH - NAME_WIDTH - MARGIN - 0.4 - gap) / 2
    lefts = (NAME_WIDTH + 0.4, NAME_WIDTH + 0.4 + width + gap)
    highest = max(
        max(one.entropy_upper.mean().max(), one.entropy_upper.quantile(0.9).max()) for one in positions.values()
    )
    limits = ((0.0, 1.04), (0.0, highest * 1.06 or 1.0))
    for row, (domain, one) in enumerate(positions.items()):
        page.text(MARGIN, top + row * pitch + height / 2, f"{short_name(domain)}\n{one.num_rows:,} rows", va="center")
        spreads = ((one.topk_mass,), (one.entropy_lower, one.entropy_upper))
        for left, bounds, limit in zip(lefts, spreads, limits, strict=True):
            axes = page.axes(left, top + row * pitch, width, height)
            edges = np.append(one.first_positions, one.num_positions)
            axes.stairs(bounds[-1].quantile(0.9), edges, baseline=bounds[0].quantile(0.1), fill=True, color="0.8")
            for spread in bounds:
                axes.stairs(spread.mean(), edges, baseline=None, color="black", linewidth=1.2)
            axes.set(xlim=(0, max(other.num_positions for other in positions.values())), ylim=limit)
            axes.tick_params(axis="x", labelbottom=row == len(positions) - 1)
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
            if bounds[0] is one.topk_mass:
                axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
            if row == len(positions) - 1:
                axes.set_xlabel("annotated position of a row")
    page.text(lefts[0], top - 0.1, f"probability of the top {_topks(positions)}", va="bottom")
    what = "entropy in nats, its lower and its upper bound:\nof words beyond the top, only the mass is known"
    page.text(lefts[1], top - 0.1, what, va="bottom")


def teacher_title(positions: Mapping[str, Positions]) -> str:
    """The mean mass of the top-k, and the mean entropy in the first and in the last positions of all rows."""
    rows = [one.num_rows for one in positions.values()]
    mass = np.average([one.topk_mass.total_mean() for one in positions.values()], weights=rows)

    def entropy(group: int) -> str:
        bounds = [(one.entropy_lower.mean()[group], one.entropy_upper.mean()[group]) for one in positions.values()]
        lower, upper = (f"{mean:.2f}" for mean in np.average(bounds, axis=0, weights=rows))
        return lower if lower == upper else f"between {lower} and {upper}"

    what = f"The top {_topks(positions)} hold {100 * mass:.1f} % of the probability"
    return f"{what}; entropy is {entropy(0)} nats where rows begin, {entropy(-1)} where they end"


def _topks(positions: Mapping[str, Positions]) -> str:
    return enumerate_words(sorted({str(one.topk) for one in positions.values()}, key=int))


class Page:
    """A figure of PAGE_WIDTH × `height` inches; places are inches from its upper left corner."""

    def __init__(self, height: float) -> None:
        from matplotlib.figure import Figure

        self._height = height
        self._figure = Figure(figsize=(PAGE_WIDTH, height), dpi=DPI)

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Axes whose upper left corner is there."""
        whole = self._height
        return self._figure.add_axes(
            (left / PAGE_WIDTH, 1 - (top + height) / whole, width / PAGE_WIDTH, height / whole)
        )

    def text(self, left: float, top: float, text: str, **style: Any) -> None:
        """Text whose upper left corner is there, if its alignment is not said."""
        self._figure.text(left / PAGE_WIDTH, 1 - top / self._height, text, **{"va": "top", **style})

    def render(self, ending: str, **options: Any) -> bytes:
        """The figure in the format of a name that ends in `ending`, one of DATELESS."""
        image = io.BytesIO()
        self._figure.savefig(image, format=ending[1:], metadata=DATELESS[ending], **options)
        return image.getvalue()

    def publish(self, report: Report, path: Path, name: str) -> None:
        """Write or replace the file, and say so in the report under that name."""
        outputs.remove_stale_temporaries(path.parent)
        outputs.write_bytes(path, self.render(path.suffix.lower()))
        report.results[name] = str(path)
        report.say(f"figure → {path}")


def short_name(domain: str) -> str:
    return domain if len(domain) <= NAME_CHARACTERS else f"{domain[: NAME_CHARACTERS - 1]}…"


def enumerate_words(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _count(number: int, noun: str) -> str:
    return f"{_amount(number)} {noun}{'s' * (number != 1)}"


def _short(num_tokens: int) -> str:
    return f"{num_tokens >> 10}k"


def _amount(number: int) -> str:
    for unit, name in ((10**12, "trillion"), (10**9, "billion"), (10**6, "million")):
        if number >= unit:
            return f"{number / unit:.3g} {name}" if number < 1000 * unit else f"{number / unit:,.0f} {name}"
    return f"{number:,}"


def _axis_amount(value: float) -> str:
    return f"{value:,.0f}" if value < 1e4 else "10" + f"{np.log10(value):.0f}".translate(SUPERSCRIPTS)


def percent_text(share: float) -> str:
    percent = 100 * share
    if 0 < percent < 0.01:
        return "< 0.01 %"
    if 99.5 <= percent < 100:
        return "> 99 %"
    return f"{percent:.{0 if percent >= 10 or not percent else 1 if percent >= 1 else 2}f} %"


def _factor(ratio: float) -> str:
    return f"{ratio:,.0f}" if ratio >= 9.95 else f"{ratio:.2g}"
