"""Exact search: a running top-k of inner products over blocks of passages.

Every pair is ranked by a fast matrix product whose error is bounded. Only pairs that may belong to the top-k are scored
exactly: float32(Σ q_i p_i), summed in float64. So hits do not depend on blocks, shards, threads or device; ties go to
the smallest key.

The bound: let u be the unit roundoff of queries and scores (2⁻¹¹ in float16; 0 where the product is in float32). With
float32 sums over d numbers, |fl(q·p) − q·p| ≤ (2u + d 2⁻²³) |q| |p| (Higham, Accuracy and Stability of Numerical
Algorithms, section 3.1, with room to spare).
"""

from __future__ import annotations

import itertools
from concurrent.futures import Future
from typing import TYPE_CHECKING

import numpy as np

from cepe_data import workers
from cepe_data.retrieval.embeddings import NO_KEY
from cepe_data.teacher import devices

if TYPE_CHECKING:
    import torch

BLOCK_BYTES = 16 << 20
BLOCK_ROWS_CUDA = 1 << 16
QUERIES_AT_ONCE = 8192
SCORE_BYTES = 2 << 20  # of the scores in memory at a time: what the cache of a core holds
SCORE_BYTES_CUDA = 2 << 30
GROUP = 1024  # scores, of which the largest is found first; for 128, a GPU takes three times as long
LONGEST_IN_HALF = 2.0**14  # a query of length 2 and such a passage have a score that float16 holds
EXACT_AT_ONCE = 256
EXACT_AT_ONCE_CUDA = 1 << 17


def block_rows(dimension: int, device: str) -> int:
    """How many passages to add to TopK at a time."""
    return BLOCK_ROWS_CUDA if device.startswith("cuda") else max(1, BLOCK_BYTES // (2 * dimension))


class TopK:
    """The best passages of every query among those added so far. On a CPU, the queries are partitioned over the cores.

    Args:
        queries: float32 [queries, dimension].
        topk: how many are kept.
        in_half: rank in float16; the default on a GPU.

    Raises:
        PipelineError: if the memory of the device is not enough.
    """

    def __init__(self, queries: np.ndarray, topk: int, device: str, in_half: bool | None = None) -> None:
        import torch

        self._device = device
        in_half = device.startswith("cuda") if in_half is None else in_half
        if in_half:  # else partial sums would be rounded to float16
            torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
        num_shares = 1
        if device == "cpu":
            num_shares = max(1, min(workers.default_num_workers(), len(queries) // 16))
        with devices.memory_errors(device):
            self._shares = [_Share(share, topk, device, in_half) for share in np.array_split(queries, num_shares)]
        self._pool = devices.thread_pool(num_shares)
        self._running: list[Future[None]] = []
        self._copies = torch.cuda.Stream(device) if device.startswith("cuda") else None

    def add(self, embeddings: np.ndarray, first_key: int) -> None:
        """Add passages, float16 [passages, dimension], with consecutive keys. No key may be added twice. The array must
        not change: it is searched while the caller reads the next one."""
        import torch

        with devices.memory_errors(self._device):
            block = torch.from_numpy(embeddings)
            if self._copies is not None:
                with torch.cuda.stream(self._copies):
                    block = block.pin_memory().to(self._device, non_blocking=True)
            self._wait()
            self._running = [self._pool.submit(share.add, block, first_key, self._copies) for share in self._shares]

    def _wait(self) -> None:
        for running in self._running:
            running.result()

    def best(self) -> tuple[np.ndarray, np.ndarray]:
        """int64 [queries, topk] keys and float32 [queries, topk] scores, the best first, padded with −1 and −inf."""
        with devices.memory_errors(self._device):
            self._wait()
            keys, scores = zip(*(share.best() for share in self._shares), strict=True)
        return np.concatenate(keys), np.concatenate(scores)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(cancel_futures=True)


class _Share:
    """The top-k of some of the queries."""

    def __init__(self, queries: np.ndarray, topk: int, device: str, in_half: bool) -> None:
        import torch

        self._topk, self._on_gpu, self._in_half = topk, device.startswith("cuda"), in_half
        self._queries = torch.from_numpy(queries).to(device)
        # Ranked by queries of length 1 to 2, so that float16 holds their scores: scaled by a power of two, exactly.
        _, exponent = torch.frexp(self._queries.norm(dim=1))
        self._scale = torch.ldexp(torch.ones(len(queries), device=device), 1 - exponent)
        self._scaled = self._queries * self._scale[:, None]
        self._ranking = self._scaled.half() if in_half else self._scaled
        roundoff = 2.0**-11 if in_half else 0.0
        # A number of a query is off by half of float16's least step, 2⁻²⁴, as well.
        relative = 2 * roundoff + queries.shape[1] * 2.0**-23
        self._error = relative * self._scaled.norm(dim=1) + roundoff * queries.shape[1] ** 0.5 * 2.0**-13
        self._scores = torch.full((len(queries), topk), -torch.inf, device=device)
        self._keys = torch.full((len(queries), topk), NO_KEY, dtype=torch.int64, device=device)
        self._pending: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        self._num_pending = 0
        self._num_added = self._num_merged = 0  # passages; those that the best take into account

    @devices.inference_mode
    def add(self, block: torch.Tensor, first_key: int, copies: torch.cuda.Stream | None) -> None:
        import torch

        if copies is not None:
            compute = torch.cuda.current_stream(block.device)
            compute.wait_stream(copies)
            block.record_stream(compute)
        score_bytes = SCORE_BYTES_CUDA if self._on_gpu else SCORE_BYTES
        rows_at_once = max(self._topk, score_bytes // (4 * min(len(self._queries), QUERIES_AT_ONCE)))
        for number, rows in enumerate(block.split(rows_at_once)):
            self._add_rows(rows, first_key + number * rows_at_once)

    def _add_rows(self, rows: torch.Tensor, first_key: int) -> None:
        import torch

        exact_rows = rows.float()
        longest = exact_rows.norm(dim=1).max()
        in_half = self._in_half and bool(longest < LONGEST_IN_HALF)
        ranking, queries = (rows.T, self._ranking) if in_half else (exact_rows.T, self._scaled)
        for first in range(0, len(self._queries), QUERIES_AT_ONCE):
            of_chunk = slice(first, first + QUERIES_AT_ONCE)
            scores = queries[of_chunk] @ ranking
            error = self._error[of_chunk] * longest
            threshold = self._scores[of_chunk, -1] * self._scale[of_chunk] - error
            if self._num_merged < self._topk <= len(rows):
                # While fewer than top-k are known: at least top-k of these rows have an exact score of this or more.
                least = scores.topk(self._topk).values[:, -1].float() - 2 * error
                threshold = torch.maximum(threshold, least)
            if in_half:  # so that rounding to float16 loses nothing
                threshold = (threshold - threshold.abs() * 2.0**-10 - 2.0**-24).half()
            query, row = _at_least(scores, threshold)
            if len(query):
                self._score_exactly(query + first, row, exact_rows, first_key)
        self._num_added += len(rows)
        if 2 * self._num_pending >= self._scores.numel():
            self._merge()

    def _score_exactly(self, query: torch.Tensor, row: torch.Tensor, rows: torch.Tensor, first_key: int) -> None:
        import torch

        at_once = EXACT_AT_ONCE_CUDA if self._on_gpu else EXACT_AT_ONCE
        exact = [
            self._queries.index_select(0, some).double().mul_(rows.index_select(0, others)).sum(-1)
            for some, others in zip(query.split(at_once), row.split(at_once), strict=True)
        ]
        self._pending.append((query, torch.cat(exact).float(), row + first_key))
        self._num_pending += len(query)

    def _merge(self) -> None:
        """Merge the pending candidates into the best."""
        import torch

        self._num_merged = self._num_added
        if not self._pending:
            return
        columns = (torch.cat(column) for column in zip(*self._pending, strict=True))
        self._pending, self._num_pending = [], 0
        query, score, key = columns
        order = query.argsort()
        query, score, key = query[order], score[order], key[order]
        # In ranges of queries: sorting takes several times the memory of what is sorted.
        boundaries = torch.arange(0, len(self._queries) + QUERIES_AT_ONCE, QUERIES_AT_ONCE, device=query.device)
        places = torch.searchsorted(query, boundaries).tolist()
        for number, (start, stop) in enumerate(itertools.pairwise(places)):
            if start < stop:
                of_range = slice(start, stop)
                self._merge_range(number * QUERIES_AT_ONCE, query[of_range], score[of_range], key[of_range])

    def _merge_range(self, first: int, query: torch.Tensor, score: torch.Tensor, key: torch.Tensor) -> None:
        import torch

        scores, keys = (best[first : first + QUERIES_AT_ONCE] for best in (self._scores, self._keys))
        known_query, known_place = (keys != NO_KEY).nonzero(as_tuple=True)
        query = torch.cat([known_query, query - first])
        score = torch.cat([scores[known_query, known_place], score])
        key = torch.cat([keys[known_query, known_place], key])
        order = key.argsort(stable=True)
        order = order[score[order].argsort(descending=True, stable=True)]
        order = order[query[order].argsort(stable=True)]
        query, score, key = query[order], score[order], key[order]
        num_of_query = torch.bincount(query, minlength=len(scores))
        place = torch.arange(len(query), device=query.device) - (num_of_query.cumsum(0) - num_of_query)[query]
        kept = place < self._topk
        scores[query[kept], place[kept]] = score[kept]
        keys[query[kept], place[kept]] = key[kept]

    @devices.inference_mode
    def best(self) -> tuple[np.ndarray, np.ndarray]:
        self._merge()
        return self._keys.cpu().numpy(), self._scores.cpu().numpy()


def _at_least(scores: torch.Tensor, threshold: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and rows, int64 [pairs], of the scores [queries, rows] of at least the threshold, [queries], of their
    query. Few groups have one, which their largest score tells: the others are read once."""
    import torch

    num_groups = max(1, scores.shape[1] // GROUP)
    padded = torch.nn.functional.pad(scores, (0, -scores.shape[1] % num_groups), value=-torch.inf)
    groups = padded.unflatten(1, (num_groups, -1))
    threshold = threshold.clamp(min=torch.finfo(threshold.dtype).min)[:, None]  # which padding does not reach
    query, group = (groups.amax(2) >= threshold).nonzero(as_tuple=True)
    found, place = (groups[query, group] >= threshold[query]).nonzero(as_tuple=True)
    return query[found], group[found] * groups.shape[2] + place
