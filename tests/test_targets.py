"""Sampled targets against brute force and against the whole distribution.    pytest tests/test_targets.py"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter

import numpy as np
import pytest
import torch

from cepe_data.teacher.targets import Sampled, TopK
from tests import reference

NUM_SEEDS = 6000


def uniforms(name: str, num_positions: int, num_samples: int) -> np.ndarray:
    """The formula of docs/formats.md, one number at a time."""
    found = np.empty((num_positions, num_samples))
    for i in range(num_positions):
        of_position = reference.mix((reference.key(name) + i) & reference.MASK)
        for j in range(num_samples):
            found[i, j] = (reference.mix((of_position + j) & reference.MASK) >> 11) * 2.0**-53
    return found


def test_random_numbers_are_those_of_the_formula() -> None:
    ours = Sampled(5, 42).uniforms("arxiv/17", 3)
    assert (ours == uniforms("42/arxiv/17", 3, 5)).all()
    assert ours[0, :3].tolist() == [0.16613849355591526, 0.9240671894271798, 0.546382595443821]
    assert TopK(5).uniforms("arxiv/17", 3).shape == (3, 0)


@pytest.mark.parametrize(("vocab_size", "num_samples"), [(300, 16), (40, 33), (16, 16), (3, 1)])
def test_samples_are_the_counts_of_inverse_cumulative_draws(vocab_size: int, num_samples: int) -> None:
    draw = np.random.default_rng(0)
    logits = draw.normal(0, 3, (200, vocab_size)).astype(np.float32)
    numbers = draw.random((200, num_samples))
    prob, index = Sampled(num_samples, 0).of_logits(torch.from_numpy(logits.copy()), torch.from_numpy(numbers))
    assert prob.shape == (200, num_samples + 1) and index.shape == (200, num_samples)
    assert (prob[:, -1] == 0).all() and (prob.diff(dim=-1) <= 0).all()
    weights = np.exp(logits - logits.max(-1, keepdims=True)).astype(np.float64)
    boundaries = np.cumsum(weights / weights.sum(-1, keepdims=True), -1)
    for row in range(200):
        drawn = Counter(bisect_right(boundaries[row].tolist(), number) for number in numbers[row])
        expected = {number: count / num_samples for number, count in drawn.items()}
        stored = dict(zip(index[row].tolist(), prob[row, :-1].tolist(), strict=True))
        assert len(stored) == num_samples and set(stored) <= set(range(vocab_size))
        assert {number: share for number, share in stored.items() if share} == pytest.approx(expected)


def test_what_is_not_a_distribution_gives_no_samples() -> None:
    logits = torch.zeros(3, 20)
    logits[1, 5] = torch.nan
    logits[2, 5] = torch.inf
    prob, _ = Sampled(4, 0).of_logits(logits, torch.rand(3, 4, dtype=torch.float64))
    assert prob[:, :-1].isnan().all(dim=1).tolist() == [False, True, True]


def test_the_mean_is_the_softmax_and_the_students_gradient_is_unbiased_where_that_of_top_k_is_not() -> None:
    """Over many seeds, within five standard errors. The loss is the trainer's: KL over the ids, and over the rest as
    1 − Σ q."""
    draw = np.random.default_rng(1)
    logits, student = (torch.from_numpy(draw.normal(0, scale, 60)).float() for scale in (1.5, 1.0))
    truth = torch.softmax(logits.double(), -1)
    numbers = np.concatenate([Sampled(8, seed).uniforms("book/3", 1) for seed in range(NUM_SEEDS)])
    prob, index = Sampled(8, 0).of_logits(logits.repeat(NUM_SEEDS, 1), torch.from_numpy(numbers))
    shares = torch.zeros(NUM_SEEDS, 60, dtype=torch.float64).scatter_(-1, index, prob[:, :-1].double())
    errors = (truth * (1 - truth) / 8 / NUM_SEEDS).sqrt()
    assert ((shares.mean(0) - truth).abs() / errors).max() < 5

    def gradients(prob: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        own = student.double().repeat(len(prob), 1).requires_grad_()
        q = torch.softmax(own, -1).gather(-1, index)
        q = torch.cat([q, 1 - q.sum(-1, keepdim=True)], -1)
        assert (q > 0).all(), "no id stands twice"
        torch.nn.functional.kl_div(q.log(), prob.double(), reduction="sum").backward()
        assert own.grad is not None
        return own.grad

    whole = torch.softmax(student.double(), -1) - truth
    of_samples = gradients(prob, index)
    errors = of_samples.std(0) / NUM_SEEDS**0.5
    assert ((of_samples.mean(0) - whole).abs() / errors).max() < 5
    of_topk = gradients(*TopK(8).of_logits(logits[None].clone(), torch.empty(1, 0)))[0]
    assert ((of_topk - whole).abs() / errors).max() > 20
