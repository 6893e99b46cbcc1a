"""Check annotated sets: that their rows are those of the input, and that probabilities and ids can be right.

Quick by default: files, sizes, indexes, columns, the input they were made from, and a seeded sample of rows. `--deep`
checks every row, and compares the hashes of all files. With `--model_dir` some rows are computed once more, with
transformers' own forward pass of the whole sequence. `--plot` draws, over the positions of the checked rows, the
probability of the top-k, and bounds of the entropy.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cepe_data import cli
from cepe_data.errors import ArgumentError, DamagedFileError
from cepe_data.storage import mds, provenance, verify
from cepe_data.storage.report import Report, add_plot_argument, check_plot_path
from cepe_data.teacher.checkpoint import Checkpoint
from cepe_data.teacher.inputs import context_and_tokens

HELP = "check what a teacher wrote"
SUM_TOLERANCE = 1e-3  # numbers of float16, each off by at most 2⁻¹¹ of itself
LOG_TOLERANCE = 0.01  # median difference of a position's log probabilities, for a float32 model
HALF_LOG_TOLERANCE = 0.25
RIGHT_POSITIONS = 0.95  # in some, a mixture of experts chooses another expert after rounding
MAX_GROUPS = 64  # of positions: a line of 2,048 positions would be noise
NUM_BINS = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="such as 8k_ab/train-logits-…, or one domain in it")
    parser.add_argument("--input_dir", type=Path, default=None, help="what was annotated (default: beside DIR)")
    parser.add_argument("--model_dir", default=None, help="the teacher, to compute some rows once more")
    parser.add_argument("--retrieval_input_dir", type=Path, default=None, help="with --model_dir, as it was given then")
    parser.add_argument(
        "--recomputed_rows", type=cli.count, default=TeacherCheck.recomputed_rows, help="with --model_dir, of every set"
    )
    add_plot_argument(parser)
    verify.add_arguments(parser)


def check(report: Report, options: TeacherCheck, draw: Callable[..., None] | None = None) -> int:
    """Check every set of DIR. `draw` makes the file of `--plot`."""
    check_plot_path(options.plot)
    folders = verify.find_sets(options.folder)
    positions: dict[str, Positions] = {}

    def collect(folder: Path, result: verify.Result) -> None:
        if isinstance(result, TeacherResult) and result.positions is not None:
            of_set = positions.setdefault(folder.name, result.positions)
            if of_set is not result.positions:
                of_set.add(result.positions)

    verify.check_sets(report, options, folders, collect)
    num_rows = verify.count_rows(folders)
    num_recomputed = recompute_all(report, options, options.model_dir, folders) if options.model_dir else 0
    if options.plot and draw:
        report.results["positions"] = {name: one.as_json() for name, one in positions.items()}
        draw(report, options.plot, positions)
    report.results |= {"sets": len(folders), "rows": num_rows, "rows_recomputed": num_recomputed}
    return report.finish(
        f"{len(folders)} sets, {num_rows:,} rows, {num_recomputed} computed once more: {len(report.findings)} findings",
        options.folder,
    )


def input_folder(folder: Path, input_dir: Path | None) -> Path:
    """The set that was annotated: in `input_dir`, or else where it was beside the annotated one."""
    name = provenance.read_meta(folder).get("input_name") or ""
    return (input_dir or verify.with_parents(folder, 2).parent.parent / name) / folder.name


class Positions:
    """Statistics of a teacher's distributions over the positions of rows, in at most MAX_GROUPS groups of `width`
    neighbouring positions (the last may have fewer): sums and histograms, so that any number of rows takes the same
    memory. `first_positions`, int64 [groups], are those of each group, from 0.

    `topk_mass`: 1 − the mass of the rest. `entropy_lower`, `entropy_upper`: see `entropy_bounds`.
    """

    def __init__(self, num_positions: int, topk: int, vocab_size: int) -> None:
        self.num_positions, self.topk, self.vocab_size, self.num_rows = num_positions, topk, vocab_size, 0
        self.width = -(-num_positions // MAX_GROUPS)
        self.first_positions = np.arange(0, num_positions, self.width)
        num_groups, max_entropy = len(self.first_positions), math.log(vocab_size)
        self.spreads = {
            "topk_mass": Spread(num_groups, 1.0),
            "entropy_lower_nats": Spread(num_groups, max_entropy),
            "entropy_upper_nats": Spread(num_groups, max_entropy),
        }
        self.topk_mass, self.entropy_lower, self.entropy_upper = self.spreads.values()

    def add_row(self, prob: np.ndarray) -> None:
        """Count a row, float [positions, topk + 1]."""
        groups = np.arange(self.num_positions) // self.width
        values = (1.0 - prob[:, -1].astype(np.float64), *entropy_bounds(prob, self.vocab_size))
        for spread, of_row in zip(self.spreads.values(), values, strict=True):
            spread.add_values(groups, of_row)
        self.num_rows += 1

    def add(self, other: Positions) -> None:
        """Count the rows of `other`, too."""
        for name, spread in self.spreads.items():
            spread.add(other.spreads[name])
        self.num_rows += other.num_rows

    def as_json(self) -> dict[str, object]:
        """Lists over the groups, as `--json` prints them."""
        spreads = {name: spread.as_json() for name, spread in self.spreads.items()}
        return {"rows": self.num_rows, "first_positions": self.first_positions.tolist(), **spreads}


def entropy_bounds(prob: np.ndarray, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """The least and the greatest entropy, in nats, of distributions over `vocab_size` words with these top-k
    probabilities and mass of the rest, float [positions, topk + 1]; float64 [positions] both.

    It is greatest where the other words share the rest evenly, and least where as few of them as possible have it: none
    has more than the k-th word. With 1 % in the top 2 of 1,000 words, all others must be as rare:

    >>> entropy_bounds(np.array([[0.005, 0.005, 0.99]]), 1000)
    (array([5.29831737]), array([6.89962875]))
    """
    exact = prob.astype(np.float64)
    top, rest, smallest = exact[:, :-1], exact[:, -1], exact[:, -2]
    of_top = _entropy_terms(top).sum(axis=1)
    num_full = np.floor(np.divide(rest, smallest, where=smallest > 0, out=np.zeros_like(rest)))
    of_rest = num_full * _entropy_terms(smallest) + _entropy_terms(np.maximum(rest - num_full * smallest, 0))
    num_others = max(1, vocab_size - top.shape[1])
    upper = of_top + num_others * _entropy_terms(rest / num_others)
    return np.minimum(of_top + of_rest, upper), upper  # rounded probabilities may contradict each other


def _entropy_terms(prob: np.ndarray) -> np.ndarray:
    """−p ln p, 0 where p is 0."""
    return -prob * np.log(prob, where=prob > 0, out=np.zeros_like(prob))


class Spread:
    """Mean and quantiles of numbers from 0 to `limit`, in groups; quantiles to the width of a bin, limit / NUM_BINS."""

    def __init__(self, num_groups: int, limit: float) -> None:
        self.limit = limit
        self._sums = np.zeros(num_groups)
        self._counts = np.zeros((num_groups, NUM_BINS), np.int64)

    def add_values(self, groups: np.ndarray, values: np.ndarray) -> None:
        """Count values, float64 [n], of groups, int64 [n]."""
        num_groups = len(self._sums)
        # Rounding may put a value outside.
        bins = np.clip((values * (NUM_BINS / self.limit)).astype(np.int64), 0, NUM_BINS - 1)
        counts = np.bincount(groups * NUM_BINS + bins, minlength=self._counts.size)
        self._counts += counts.reshape(num_groups, NUM_BINS)
        self._sums += np.bincount(groups, values, minlength=num_groups)

    def add(self, other: Spread) -> None:
        """Count the numbers of `other`, too."""
        self._counts += other._counts
        self._sums += other._sums

    def mean(self) -> np.ndarray:
        """float64 [groups]. No group may be empty, here and below."""
        return self._sums / self._counts.sum(axis=1)

    def quantile(self, share: float) -> np.ndarray:
        """float64 [groups]: the number that `share` of a group do not exceed, interpolated inside its bin."""
        below = self._counts.cumsum(axis=1)
        target = share * below[:, -1:]
        places = (below >= target).argmax(axis=1)[:, None]
        in_bin = np.take_along_axis(self._counts, places, axis=1)
        before = np.take_along_axis(below, places, axis=1) - in_bin
        return ((places + (target - before) / in_bin) * (self.limit / NUM_BINS))[:, 0]

    def total_mean(self) -> float:
        """The mean over all groups."""
        return float(self._sums.sum() / self._counts.sum())

    def as_json(self) -> dict[str, list[float]]:
        """Lists over the groups, as `--json` prints them."""
        lines = {"mean": self.mean(), "quantile_10": self.quantile(0.1), "quantile_90": self.quantile(0.9)}
        return {name: values.round(6).tolist() for name, values in lines.items()}


@dataclass
class TeacherResult(verify.Result):
    """With statistics of the positions, for `--plot`."""

    positions: Positions | None = None


@dataclass(frozen=True)
class TeacherCheck(verify.SetCheck):
    """The options, and the check of a set and its rows; `recomputed_rows` of every set are computed once more."""

    folder: Path
    input_dir: Path | None = None
    model_dir: str | None = None
    retrieval_input_dir: Path | None = None
    recomputed_rows: int = 2
    plot: Path | None = None

    def check_set(self, report: Report, folder: Path) -> bool:
        """Check columns and input."""
        columns = mds.read_columns(folder)
        try:
            prob_dtype, prob_shape = mds.column_array(columns["target_prob"])
            index_dtype, index_shape = mds.column_array(columns["target_index"])
            is_right = prob_dtype == np.float16 and index_dtype.kind == "i"
            is_right &= prob_shape[:1] == index_shape[:1] and prob_shape[1] == index_shape[1] + 1
        except (KeyError, ValueError, IndexError):
            is_right = False
        if not is_right:
            report.found(folder, f"has not the columns of a teacher, but {columns}")
            return False
        source = input_folder(folder, self.input_dir)
        if verify.has_set(source):
            verify.compare_with_source(report, folder, source, "made from")
        else:
            cli.warn(f"{source} is not there: that the rows of {folder} are its rows is not checked (--input_dir)")
        if self.plot is not None and num_samples_of(folder):
            cli.warn(f"{folder} has samples, whose mass and entropy are not the teacher's: it is not drawn")
        return True

    def check_rows(self, folder: Path, rows: np.ndarray) -> verify.Result:
        """Check that probabilities descend, add up to 1, and of samples are shares of the draws; that ids are distinct
        words of the model."""
        known = provenance.read_meta(folder).get("vocab_size")
        result, num_samples = TeacherResult(), num_samples_of(folder)
        for number, row in verify.read_ids(verify.open_rows(folder), rows.tolist(), result):
            vocab_size = known or int(np.iinfo(row["target_index"].dtype).max) + 1
            prob = row["target_prob"].astype(np.float32)
            if what := describe_wrong(prob, row["target_index"], vocab_size, num_samples):
                result.findings.append((number, what))
            elif self.plot is not None and not num_samples:
                num_positions, topk = row["target_index"].shape
                result.positions = result.positions or Positions(num_positions, topk, vocab_size)
                result.positions.add_row(row["target_prob"])
        return result


def num_samples_of(folder: Path) -> int:
    """The draws per position of a set; 0 where its targets are not samples."""
    return int(provenance.read_meta(folder).made_with.get("num_samples", 0))


def describe_wrong(prob: np.ndarray, index: np.ndarray, vocab_size: int, num_samples: int) -> str:
    """The first thing that is wrong in a row, float32 [positions, width + 1] and int [positions, width]; empty if
    nothing. `num_samples` is 0 for top-k."""
    ordered = np.sort(index, axis=1)
    top = prob[:, :-1]
    wrongs = {
        "has probabilities that are not numbers from 0 to 1": ~((prob >= 0) & (prob <= 1)).all(axis=1),
        "has probabilities that do not descend": (top[:, 1:] > top[:, :-1]).any(axis=1),
        "has probabilities that do not add up to 1": ~(np.abs(prob.sum(axis=1) - 1) <= SUM_TOLERANCE),
        f"has ids outside of 0 … {vocab_size - 1}": ((index < 0) | (index >= vocab_size)).any(axis=1),
        "has the same id twice": (ordered[:, 1:] == ordered[:, :-1]).any(axis=1),
    }
    if num_samples:
        counts = np.rint(top * num_samples)
        expected = (counts / num_samples).astype(np.float16).astype(np.float32)
        is_share = (expected == top).all(axis=1) & (counts.sum(axis=1) == num_samples) & (prob[:, -1] == 0)
        wrongs[f"has probabilities that are not the shares of {num_samples} draws"] = ~is_share
    for what, is_wrong in wrongs.items():
        if is_wrong.any():
            return f"{what}, at position {int(np.argmax(is_wrong))}"
    return ""


def recompute_all(report: Report, options: TeacherCheck, model_dir: str, folders: Sequence[Path]) -> int:
    """Compute some rows of every set without a finding once more; returns how many. The teacher is loaded once.

    Raises:
        ArgumentError: if the input of a set is not there, or the teacher cannot be loaded.
    """
    damaged = [Path(finding["path"]) for finding in report.findings]
    whole = [folder for folder in folders if not any(path.is_relative_to(folder) for path in damaged)]
    for folder in whole:
        needs_passages = "retrieval_k" in provenance.read_meta(folder).made_with
        has_passages = options.retrieval_input_dir is not None
        if not verify.has_set(input_folder(folder, options.input_dir)) or (needs_passages and not has_passages):
            raise ArgumentError(
                f"the rows of {folder} cannot be computed without their input: pass --input_dir"
                + (" and --retrieval_input_dir" if needs_passages else "")
            )
    whole = [folder for folder in whole if input_folder(folder, options.input_dir) not in damaged]
    if not whole:
        return 0
    checkpoint, teacher, num_recomputed = Checkpoint.find(model_dir, "model"), None, 0
    fingerprint = checkpoint.fingerprint()
    for folder in whole:
        if provenance.read_meta(folder).made_with.get("model") != fingerprint:
            report.found(folder, f"was made with another model than {model_dir}")
            continue
        # eager writes out the formula of the model, which other implementations may only come close to.
        eager = {"dtype": "float32", "attn_implementation": "eager"}
        teacher = teacher or checkpoint.load("AutoModelForCausalLM", "model", **eager)
        try:
            num_recomputed += recompute(report, options, teacher, folder)
        except DamagedFileError as error:
            report.found(folder, f"cannot be computed once more: {error}")
    return num_recomputed


def recompute(report: Report, options: TeacherCheck, teacher: Any, folder: Path) -> int:
    """Compute some rows of a set once more, with a model of transformers; returns how many."""
    import torch

    made_with = provenance.read_meta(folder).made_with
    windows, passages = mds.Rows(input_folder(folder, options.input_dir)), None
    if options.retrieval_input_dir is not None and "retrieval_k" in made_with:
        passages = mds.Rows(options.retrieval_input_dir / folder.name)
    rows, tolerance = mds.Rows(folder), LOG_TOLERANCE if made_with["dtype"] == "float32" else HALF_LOG_TOLERANCE
    numbers = np.random.default_rng(options.seed).permutation(len(rows))[: options.recomputed_rows]
    for number in sorted(numbers.tolist()):
        row, retrieved = rows[number], passages[number] if passages is not None else None
        context, tokens = context_and_tokens(made_with, windows[number], retrieved)
        ids = torch.from_numpy(np.concatenate([context, tokens]).astype(np.int64))
        with torch.inference_mode():
            logits = teacher(ids[None]).logits[0, -len(tokens) :, : made_with.get("num_words")].float()
            log_prob = logits.log_softmax(-1).numpy()
        stored = row["target_prob"][:, :-1].astype(np.float32)
        expected = np.take_along_axis(log_prob, row["target_index"].astype(np.int64), axis=1)
        if "num_samples" in made_with:
            difference, error = sampling_difference(log_prob, stored, expected)
            is_right = difference <= tolerance + 6 * error
        else:
            difference = topk_difference(log_prob, row["target_index"].astype(np.int64), stored)
            is_right = difference <= tolerance
        if not is_right:
            factor = np.exp(difference)
            report.found(
                folder, f"is not what the model gives: probabilities differ by a factor of {factor:.3g}", number
            )
    return len(numbers)


def topk_difference(log_prob: np.ndarray, ids: np.ndarray, stored: np.ndarray) -> float:
    """How far stored probabilities, float32 [positions, k], are from `log_prob`, float32 [positions, vocabulary], as a
    difference of logarithms that RIGHT_POSITIONS of the positions are below: the median over its ids, int64
    [positions, k], or by how much a larger one is missing among them."""
    expected = np.take_along_axis(log_prob, ids, axis=1)
    is_large = stored > 1e-4  # below, steps of float16 are coarser than the tolerance
    is_exact = np.where(is_large.any(axis=1, keepdims=True), is_large, stored > 0)
    with np.errstate(divide="ignore"):
        differences = np.where(is_exact, np.abs(np.log(stored) - expected), np.nan)
    others = log_prob.copy()
    np.put_along_axis(others, ids, -np.inf, axis=1)
    missing = others.max(axis=1) - expected.min(axis=1)
    return float(np.quantile(np.maximum(np.nanmedian(differences, axis=1), missing), RIGHT_POSITIONS))


def sampling_difference(log_prob: np.ndarray, shares: np.ndarray, log_of_shares: np.ndarray) -> tuple[float, float]:
    """How far the mean log probability of the samples is from its expected value, −H of the distribution; and the
    standard error of that difference.

    Args:
        log_prob: float32 [positions, vocabulary].
        shares: float32 [positions, width], and the log probabilities of their ids.
    """
    positions = (shares * log_of_shares).sum(axis=1) - (np.exp(log_prob) * np.maximum(log_prob, -1e3)).sum(axis=1)
    return abs(float(positions.mean())), float(positions.std() / np.sqrt(len(positions)))
