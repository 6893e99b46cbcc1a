"""Train a tiny language model on the pipeline's sets, on a CPU: that the losses fall shows that the data is right.

reads   a set of windows; with --teacher its teacher's targets, with --passages its retrieved passages
writes  nothing; prints losses and a plot of them

    python examples/train_tiny.py demo_output/1k_ab/train                                        # next-token loss
    python examples/train_tiny.py demo_output/1k_ab/train --domains arxiv \\
        --teacher demo_output/1k_ab/train-logits-enc256-dec256-teacher                           # KL to the teacher
    python examples/train_tiny.py demo_output/1k_concat/test --passages demo_output/retrieved/test   # passages first
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

from cepe_data.reading import PairedRows, PipelineError, collate

STEPS_PER_LINE = 10
PLOT_HEIGHT, PLOT_WIDTH = 10, 60


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path, help="the folder of the domain folders, such as 8k_ab/train")
    parser.add_argument("--domains", default=None, help="such as arxiv,book (default: all that are there)")
    parser.add_argument("--teacher", type=Path, default=None, help="what calculate_logits.py wrote for these rows")
    parser.add_argument("--passages", type=Path, default=None, help="what retrieval.write_mds wrote for these rows")
    parser.add_argument("--num_contexts", type=int, default=2, help="contexts, or with --passages passages, of a row")
    parser.add_argument(
        "--context_size", type=int, default=64, help="tokens of a context; passages have their own size"
    )
    parser.add_argument("--num_decoder_tokens", type=int, default=128, help="tokens that the loss is taken over")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--learning_rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    torch.manual_seed(args.seed)
    try:
        rows = open_rows(args)
    except PipelineError as error:
        sys.exit(f"train_tiny.py: error: {error}")
    model = make_model(rows)
    how = "KL to the teacher" if args.teacher else "next token"
    context = "retrieved passages" if args.passages else "previous tokens"
    print(f"{len(rows)} rows of {', '.join(rows.domains)}; loss: {how}; context: {context}")
    losses = train(model, rows, args.steps, args.batch_size, args.learning_rate)
    print(plot(losses))
    first, last = mean(losses[:STEPS_PER_LINE]), mean(losses[-STEPS_PER_LINE:])
    print(f"loss of the first steps {first:.4f}, of the last {last:.4f}")


def open_rows(args: argparse.Namespace) -> PairedRows:
    """The rows that the arguments ask for. Raises PipelineError if sets do not belong together."""
    domains = args.domains.split(",") if args.domains else None
    context: dict[str, Any] = {"num_contexts": args.num_contexts, "context_size": args.context_size}
    if args.passages:
        context = {"num_contexts": 0, "passages_dir": args.passages, "num_passages": args.num_contexts}
    return PairedRows(
        args.rows, domains, teacher_dir=args.teacher, num_decoder_tokens=args.num_decoder_tokens, **context
    )


def make_model(rows: PairedRows) -> LlamaForCausalLM:
    """A LLaMA with two small layers and random weights."""
    config = LlamaConfig(
        vocab_size=rows.vocab_size or 1 << 15,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    return LlamaForCausalLM(config)


def train(
    model: LlamaForCausalLM, rows: PairedRows, num_steps: int, batch_size: int, learning_rate: float
) -> list[float]:
    """Train, printing every few steps; returns the loss of every step."""
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate)
    losses: list[float] = []
    for step, batch in enumerate(itertools.islice(batches(rows, batch_size), num_steps), 1):
        loss = loss_of(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if step % STEPS_PER_LINE == 0:
            print(f"step {step:>5}  loss {mean(losses[-STEPS_PER_LINE:]):.4f}", flush=True)
    return losses


def batches(rows: PairedRows, batch_size: int) -> Iterator[dict[str, torch.Tensor]]:
    """Batches of shuffled rows, over and over."""
    loader = DataLoader(rows, batch_size, shuffle=True, collate_fn=collate)
    while True:
        yield from loader


def loss_of(model: LlamaForCausalLM, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The loss over the decoder's tokens: KL where there are targets, else that of the next token.

    Targets are not shifted: those at position i are the distribution after token i, as the logits at i are.
    """
    contexts = batch["retrieved_token_ids"] if "retrieved_token_ids" in batch else batch["prev_token_ids"]
    context, tokens = contexts.flatten(1), batch["token_ids"]
    logits = model(input_ids=torch.cat([context, tokens], 1)).logits.float()
    after_tokens = logits[:, context.shape[1] :]
    if "target_index" in batch:
        return kl_to_topk(after_tokens, batch["target_index"], batch["target_prob"])
    before_tokens = logits[:, context.shape[1] - 1 : -1]
    return functional.cross_entropy(before_tokens.flatten(0, 1), tokens.flatten())


def kl_to_topk(logits: torch.Tensor, index: torch.Tensor, prob: torch.Tensor) -> torch.Tensor:
    """KL(teacher ‖ model) in nats, over the teacher's K best words and the mass of all others as one more.

    Args:
        logits: [batch, tokens, vocabulary].
        index: [batch, tokens, K], the teacher's best words.
        prob: [batch, tokens, K + 1], their probabilities, then the mass of all others.
    """
    norm = logits.logsumexp(-1, keepdim=True)
    of_best = logits.gather(-1, index) - norm
    of_others = logits.scatter(-1, index, -torch.inf).logsumexp(-1, keepdim=True) - norm
    log_model = torch.cat([of_best, of_others], -1)
    return (torch.xlogy(prob, prob) - prob * log_model).sum(-1).mean()


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def plot(losses: Sequence[float]) -> str:
    """The losses over the steps, as text."""
    width = min(PLOT_WIDTH, len(losses))
    columns = [mean(losses[len(losses) * x // width : len(losses) * (x + 1) // width]) for x in range(width)]
    low, high = min(columns), max(columns)
    heights = [round((value - low) / ((high - low) or 1) * (PLOT_HEIGHT - 1)) for value in columns]
    lines = []
    for height in range(PLOT_HEIGHT - 1, -1, -1):
        label = f"{low + (high - low) * height / (PLOT_HEIGHT - 1):8.3f} |"
        lines.append(label + "".join("*" if one == height else " " for one in heights).rstrip())
    return "\n".join([*lines, f"{'step':>8} +{'-' * width} {len(losses)}"])


if __name__ == "__main__":
    main()
