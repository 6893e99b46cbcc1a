"""The figures of sanity_check.py, and the numbers that they show.    pytest tests/test_plots.py"""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cepe_data.inspect import plots
from cepe_data.storage import mds, outputs, provenance
from cepe_data.tokens.check_file import DomainCounts
from tests import reference
from tests.conftest import Run

LONG = (8192, 32768, 131072)
LENGTHS = {
    "arxiv/one.npy": [8191, 8192, 12287, 12288, 32767, 32768, 36864, 131072, 150000, 181020],
    "arxiv/two.npy": [23170, 23171, 46341, 2896, 2897],
    "c4/short.npy": [1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 0],
    "wikipedia/many.npy": [*range(9, 700)],
    "$own_1$/own.npy": [16384],
}
POSITIONS, TOPK = 131, 5  # in groups of 3, the last one of 2
VOCAB_SIZE = 1 << 15  # of a set that does not say it: what its ids can be


def lay_out_tokens(folder: Path, lengths: dict[str, list[int]]) -> None:
    """Token files from elsewhere, as the samplers take them: without meta files."""
    names = {"c4": "c4-rp", "wikipedia": "wiki"}
    listed = []
    for name, of_file in lengths.items():
        path, domain = folder / "tokenized" / name, name.split("/")[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.concatenate([[len(of_file)], of_file, np.ones(sum(of_file))]).astype(np.int32))
        listed.append({"path": name.replace(".npy", ".jsonl"), "domain": names.get(domain, domain), "bytes": 1})
    (folder / "all_jsonl.txt").write_text("".join(f"{file['path']}\n" for file in listed))
    (folder / "all_jsonl.json").write_text(json.dumps(provenance.signed({"files": listed})))


def check_figure(path: Path) -> None:
    with Image.open(path) as image:
        colours = np.asarray(image.convert("RGB"))
    grey = colours[..., 0]
    assert (colours == grey[..., None]).all(), "nothing is told by colour alone"
    assert grey.shape[1] == 1350 and 300 < grey.shape[0] < 2000
    assert 0.5 < (grey == 255).mean() < 0.99, "white paper with something on it"
    for edge in (grey[0], grey[-1], grey[:, 0], grey[:, -1]):
        assert edge.min() == 255, "nothing is cut off"


def test_lengths_and_windows_are_those_of_the_token_files(run: Run, tmp_path: Path) -> None:
    lay_out_tokens(tmp_path, LENGTHS)
    flags = ("--json", "--documents", 2, "--plot")
    content = json.loads(run("sanity_check.py", *flags, "out.png", cwd=tmp_path).stdout)
    assert content["ok"] and content["plot"] == "out.png" and content["plot_of_shares"] == "out.shares.png"
    edges = [2 ** (half_octave / 2) for half_octave in range(60)]
    for domain, folder in (("arxiv", "arxiv"), ("c4-rp", "c4"), ("wiki", "wikipedia"), ("$own_1$", "$own_1$")):
        paths = sorted((tmp_path / "tokenized" / folder).glob("*.npy"))
        flat = [len(document) for path in paths for document in reference.documents_of(path)]
        below = (max((edge for edge in edges if edge <= length), default=1) for length in flat)
        by_length = Counter(str(int(np.ceil(edge - 1e-9))) for edge in below)
        found = content["domains"][domain]
        assert found["documents by length"] == by_length
        for total in LONG:
            assert found[f"documents ≥ {total}"] == sum(length >= total for length in flat)
            windows = sum(len(range(0, length - total + 1, 4096)) for length in flat)
            assert found[f"windows of {total}"] == windows
    assert content["domains"]["arxiv"]["windows of 131072"] > 10
    for name in ("out.png", "out.shares.png"):
        check_figure(tmp_path / name)


def test_headlines_are_true() -> None:
    def counts(**tokens: int) -> dict[str, DomainCounts]:
        return {domain: DomainCounts(1, 1, one, windows=np.array([one, 0, 0])) for domain, one in tokens.items()}

    assert plots.windows_title(counts(arxiv=1000, law=1)) == "arxiv holds the most windows of 8k (> 99 %)"
    assert plots.windows_title(counts(arxiv=5, law=5, cc=2)) == "arxiv and law hold the most windows of 8k (42 % each)"
    assert plots.windows_title(counts(arxiv=0)) == "No document is long enough for a window of 8k tokens"
    own = plots.shares_of_tokens(counts(law=3, med=1))
    assert own == {"law": (0.75, 0), "med": (0.25, 0)}
    assert plots.proportions_title(own) == "law holds 75 % of the tokens"
    mixed = plots.shares_of_tokens(counts(law=50, arxiv=50))
    assert mixed["law"] == (0.5, 0) and mixed["arxiv"] == (0.5, 28 / 1210) and mixed["cc"] == (0, 878 / 1210)
    assert plots.proportions_title(mixed) == "Against RedPajama, the share of arxiv is 22 times as large"


def test_the_same_numbers_give_the_same_figure(run: Run, tmp_path: Path) -> None:
    lay_out_tokens(tmp_path, {"arxiv/one.npy": [300, 9000], "book/one.npy": [40000]})
    (tmp_path / "matplotlibrc").write_text("axes.facecolor: black\nfont.size: 30\nbackend: svg\n")
    (tmp_path / "out.PNG").write_text("to be replaced")
    for ending in ("PNG", "pdf", "svg"):
        plain = run("sanity_check.py", "tokens", "--plot", f"out.{ending}", cwd=tmp_path)
        assert f"figure → out.{ending}" in plain.stdout
        first = (tmp_path / f"out.{ending}").read_bytes()
        (tmp_path / f"out.{ending}").unlink()
        styled = {"MATPLOTLIBRC": str(tmp_path / "matplotlibrc"), "PYTHONPROFILEIMPORTTIME": "1"}
        done = run("sanity_check.py", "--plot", f"out.{ending}", cwd=tmp_path, environment=styled)
        assert (tmp_path / f"out.{ending}").read_bytes() == first
        assert " matplotlib.figure\n" in done.stderr and " matplotlib.pyplot\n" not in done.stderr
    assert first.startswith(b"<?xml") and not list(tmp_path.glob(".tmp-*"))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no/out.png", "there is no folder no"),
        ("out.xyz", r"ends in .png, .pdf, .svg"),
        ("out", "ends in .png"),
        ("folder.png", "no file can be written there"),
    ],
)
def test_an_impossible_path_of_a_figure_is_reported_before_the_check(
    run: Run, tmp_path: Path, path: str, message: str
) -> None:
    (tmp_path / "folder.png").mkdir()
    for command in ((), ("tokens", "--json"), ("teacher", "DIR")):
        # There is neither a list nor a set: these would be the next errors.
        done = run("sanity_check.py", *command, "--plot", path, cwd=tmp_path, status=2)
        assert f"--plot {path}: " in done.stderr and message in done.stderr and not done.stdout
    assert [one.name for one in tmp_path.rglob("*")] == ["folder.png"]


def test_figures_of_few_documents_or_rows(run: Run, tmp_path: Path) -> None:
    lay_out_tokens(tmp_path, {"arxiv/one.npy": [30]})
    run("sanity_check.py", "--plot", "one.png", cwd=tmp_path)
    check_figure(tmp_path / "one.png")
    (tmp_path / "tokenized/arxiv/one.npy").unlink()
    done = run("sanity_check.py", "--plot", "none.png", cwd=tmp_path, status=1)
    assert "no token file could be read: none.png is not written" in done.stderr
    assert not (tmp_path / "none.png").exists()
    write_teacher(tmp_path / "TEACHER", {"book": 3})
    done = run("sanity_check.py", "teacher", "TEACHER", "--rows", 0, "--json", "--plot", "none.png", cwd=tmp_path)
    assert "no row could be read" in done.stderr and "plot" not in json.loads(done.stdout)
    assert not (tmp_path / "none.png").exists()


def entropy_bounds_of(prob: np.ndarray) -> tuple[float, float]:
    """The least and the greatest entropy with these probabilities of the top and mass of the rest, word by word."""
    *top, rest = prob.tolist()
    lower, upper = top.copy(), -rest * math.log(rest / (VOCAB_SIZE - TOPK)) if rest else 0.0
    while rest >= top[-1] > 0:
        lower.append(top[-1])
        rest -= top[-1]
    of_top, of_lower = (-sum(p * math.log(p) for p in words if p > 0) for words in (top, [*lower, rest]))
    return of_lower, of_top + upper


def write_teacher(folder: Path, num_rows: dict[str, int]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Sets of a teacher that becomes surer from position to position; by domain, float16 [rows, POSITIONS, TOPK + 1],
    and the entropy of the whole distributions, float64 [rows, POSITIONS]."""
    columns = {
        "target_prob": mds.array_column(np.dtype(np.float16), POSITIONS, TOPK + 1),
        "target_index": mds.array_column(np.dtype(np.int16), POSITIONS, TOPK),
    }
    probs, entropies = {}, {}
    for seed, (domain, number) in enumerate(num_rows.items()):
        draw = np.random.default_rng(seed)
        logits = draw.normal(0, 1 + np.arange(POSITIONS)[:, None] / 30, (number, POSITIONS, 40))
        exact = np.sort(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True))[..., ::-1]
        entropies[domain] = -(exact * np.log(exact)).sum(-1)
        rest = exact[..., TOPK:].sum(-1, keepdims=True)
        probs[domain] = np.concatenate([exact[..., :TOPK], rest], axis=-1).astype(np.float16)
        index = np.tile(np.arange(TOPK, dtype=np.int16), (POSITIONS, 1))
        rows = ({"target_prob": row, "target_index": index} for row in probs[domain])
        mds.write_shard(outputs.Output(folder / domain, {"rows": number}), columns, number, rows)
    return probs, entropies


@pytest.mark.parametrize("num_workers", [1, 2])
def test_mass_and_entropy_are_those_of_the_rows(run: Run, tmp_path: Path, num_workers: int) -> None:
    probs, entropies = write_teacher(tmp_path / "TEACHER", {"book": 12, "arxiv": 7})
    flags = ("TEACHER", "--deep", "--json", "--num_workers", num_workers, "--plot", "out.png")
    content = json.loads(run("sanity_check.py", "teacher", *flags, cwd=tmp_path).stdout)
    assert content["ok"] and content["plot"] == "out.png" and sorted(content["positions"]) == sorted(probs)
    for domain, stored in probs.items():
        found = content["positions"][domain]
        assert found["rows"] == len(stored) and found["first_positions"] == list(range(0, POSITIONS, 3))
        prob = stored.astype(np.float64)
        bounds = np.array([[entropy_bounds_of(row) for row in rows] for rows in prob])
        names = ("entropy_lower_nats", "entropy_upper_nats")
        expected = {"topk_mass": 1 - prob[..., TOPK], **dict(zip(names, np.moveaxis(bounds, -1, 0), strict=True))}
        for name, limit in (("topk_mass", 1.0), *((name, np.log(VOCAB_SIZE)) for name in names)):
            for group, first in enumerate(found["first_positions"]):
                values = expected[name][:, first : first + 3].ravel()
                assert found[name]["mean"][group] == pytest.approx(values.mean(), abs=1e-5)
                for percent in (10, 90):
                    quantile = np.quantile(values, percent / 100, method="inverted_cdf")
                    assert found[name][f"quantile_{percent}"][group] == pytest.approx(quantile, abs=limit / 999)
        lower, upper = (found[name]["mean"] for name in names)
        assert lower[0] > lower[-1] + 0.2 and upper[0] > upper[-1] + 0.2
        groups = [slice(first, first + 3) for first in found["first_positions"]]
        true = [entropies[domain][:, group].mean() for group in groups]
        assert all(low - 1e-3 <= truth <= high + 1e-3 for low, truth, high in zip(lower, true, upper, strict=True))
    check_figure(tmp_path / "out.png")
    first = (tmp_path / "out.png").read_bytes()
    run("sanity_check.py", "teacher", "TEACHER", "--deep", "--plot", "out.png", cwd=tmp_path)
    assert (tmp_path / "out.png").read_bytes() == first


def test_only_the_rows_that_are_looked_at_are_drawn(run: Run, tmp_path: Path) -> None:
    write_teacher(tmp_path / "TEACHER", {"book": 300})
    flags = ("teacher", "TEACHER/book", "--rows", 9, "--json")
    assert "positions" not in json.loads(run("sanity_check.py", *flags, cwd=tmp_path).stdout)
    content = json.loads(run("sanity_check.py", *flags, "--plot", "out.png", cwd=tmp_path).stdout)
    assert 3 <= content["positions"]["book"]["rows"] <= 11
