"""Names on the model hub: what a tokenizer or a model that is no folder here is taken for."""

from __future__ import annotations

import logging

from cepe_data import cli


def announce(name: str) -> None:
    """Say that `name` is looked for on the hub, and silence the many lines that its library prints on every retry."""
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)
    cli.warn(f"{name} is no folder here: looking for it on the Hugging Face hub")
