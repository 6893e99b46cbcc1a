"""What is kept of a teacher's distribution at a position: its top-k probabilities, or samples from it.

Both are `width` ids with their probabilities, and the mass of all other ids: a reader takes them alike. Top-k are the
teacher's own probabilities. A student that learns from them is biased: it learns nothing of how the rest is
distributed. Samples (Anshumann et al., "Sparse Logit Sampling: Accelerating Knowledge Distillation in LLMs", ACL 2025)
are the share of N independent draws that each id got. The mean of a share is the probability of the id, so
cross-entropy to the samples has the mean gradient of cross-entropy to the whole distribution, from a third of the
bytes.

Torch is imported when it is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cepe_data import hashing
from cepe_data.storage import provenance

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class TopK:
    """The `topk` largest probabilities.

    p_i = exp(l_i − m) / Σ exp(l_j − m) with m the largest logit; the rest is a sum of its own over the others, not
    1 − Σ p, which is 0 where the truth is 1e-7.
    """

    topk: int

    @property
    def width(self) -> int:
        """The number of ids of a position."""
        return self.topk

    @property
    def made_with(self) -> provenance.Provenance:
        """The arguments that determine the targets."""
        return {"topk": self.topk}

    def uniforms(self, row: str, num_positions: int) -> np.ndarray:
        """float64 [positions, n]: the random numbers in [0, 1) of a row with the name `{domain}/{number}`; none for
        top-k."""
        return np.empty((num_positions, 0))

    def of_logits(self, logits: torch.Tensor, uniforms: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The targets of some positions.

        Args:
            logits: float32 [positions, vocabulary]; overwritten.
            uniforms: float64 [positions, n], on the same device.

        Returns:
            float32 [positions, width + 1], descending, then the mass of the rest; int64 [positions, width], distinct.
        """
        import torch

        top, index = logits.topk(self.topk, dim=-1)
        largest = top[:, :1].clone()
        rest = logits.sub_(largest).exp_().scatter_(-1, index, 0).sum(-1, keepdim=True)
        top = top.sub_(largest).exp_()
        return torch.cat([top, rest], dim=-1) / (top.sum(-1, keepdim=True) + rest), index


@dataclass(frozen=True)
class Sampled:
    """The shares of `num_samples` independent draws from the distribution. The methods are those of `TopK`.

    Draw j at position i of row r is the first id with a cumulative probability above u(r, i, j). The random numbers
    belong to their place, so the targets depend on neither batches nor parts:

        u(r, i, j) = (mix(mix(key("{seed}/{domain}/{r}") + i) + j) >> 11) · 2⁻⁵³     (sums modulo 2⁶⁴)

    The smallest ids that were not sampled fill up the width with the probability 0: no id occurs twice, and the mass of
    the rest is 0.
    """

    num_samples: int
    seed: int

    @property
    def width(self) -> int:
        return self.num_samples

    @property
    def made_with(self) -> provenance.Provenance:
        return {"target": "sampled", "num_samples": self.num_samples, "seed": self.seed}

    def uniforms(self, row: str, num_positions: int) -> np.ndarray:
        of_row = np.atleast_1d(hashing.key(f"{self.seed}/{row}"))
        of_positions = hashing.mix(of_row + np.arange(num_positions, dtype=np.uint64))
        mixed = hashing.mix(of_positions[:, None] + np.arange(self.num_samples, dtype=np.uint64))
        return (mixed >> np.uint64(11)) * 2.0**-53

    def of_logits(self, logits: torch.Tensor, uniforms: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        probabilities = logits.sub_(logits.amax(-1, keepdim=True)).exp_()
        # In float64: a float32 sum over the vocabulary would move the boundary of an id by more than a rare one has.
        cumulative = probabilities.cumsum(-1, dtype=torch.float64)
        sampled = torch.searchsorted(cumulative, uniforms * cumulative[:, -1:], right=True)
        sampled = sampled.clamp_(max=logits.shape[-1] - 1).sort(-1).values
        # Equal ids are neighbours now: count them, and give each id the place of its first draw.
        is_first = torch.ones_like(sampled, dtype=torch.bool)
        is_first[:, 1:] = sampled[:, 1:] != sampled[:, :-1]
        places = is_first.cumsum(-1) - 1
        counts = torch.zeros_like(sampled).scatter_add_(-1, places, torch.ones_like(sampled))
        ids = torch.zeros_like(sampled).scatter_(-1, places, sampled)
        # Of twice as many ids, or all there are, enough were not sampled.
        candidates = min(2 * self.num_samples, logits.shape[-1])
        is_sampled = torch.zeros(len(sampled), candidates + 1, dtype=torch.bool, device=sampled.device)
        is_sampled = is_sampled.scatter_(-1, sampled.clamp(max=candidates), True)[:, :candidates]
        others = is_sampled.int().argsort(dim=-1, stable=True)[:, : self.num_samples]
        number = places[:, -1:] + 1
        rank = torch.arange(self.num_samples, device=sampled.device) - number
        ids = torch.where(rank < 0, ids, others.gather(-1, rank.clamp(min=0)))
        order = counts.argsort(dim=-1, descending=True, stable=True)
        shares = counts.gather(-1, order).float() / self.num_samples
        # Draws from what is not a distribution would look like any others.
        shares = shares.where(cumulative[:, -1:].isfinite(), torch.nan)
        return torch.nn.functional.pad(shares, (0, 1)), ids.gather(-1, order)


Targets = TopK | Sampled
