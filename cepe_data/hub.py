"""Names on the model hub: what a tokenizer or a model that is not a folder here is taken for."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from cepe_data import cli
from cepe_data.errors import ArgumentError

_SMALL_FILES = ["*.json", "*.txt", "*.model"]


def silence_transformers() -> None:
    """Let transformers draw no progress bars, and not report what it loaded: a process has a bar of its own, and what
    is missing in a model is an error."""
    from transformers.utils import logging as of_transformers

    of_transformers.disable_progress_bar()
    of_transformers.set_verbosity_error()


def find_folder(name: str, what: str) -> Path:
    """The folder of a model: `name` itself, or what the hub has under that name.

    Args:
        what: what is looked for, for the message: `model`.

    Raises:
        ArgumentError: if there is none.
    """
    name = name.rstrip("/")
    try:
        return Path(name) if Path(name).is_dir() else _download(name)
    except (OSError, ValueError) as error:
        raise ArgumentError(
            f"no {what} {name!r}: {str(error).splitlines()[0]} Pass a folder that save_pretrained wrote, or a hub name"
        ) from None


def _download(name: str) -> Path:
    folder = download(name, [*_SMALL_FILES, "*.safetensors"])
    if not any(folder.glob("*.safetensors")):
        folder = download(name, [*_SMALL_FILES, "*.bin"])
    return folder


def download(name: str, patterns: Sequence[str]) -> Path:
    """The folder with the files of these names of a hub repository, from its cache where they are there. Says that it
    looks for them, and silences the many lines that the hub's library prints on every retry."""
    from huggingface_hub import snapshot_download

    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)
    cli.warn(f"{name} is not a folder here: looking for it on the Hugging Face hub")
    return Path(snapshot_download(name, allow_patterns=list(patterns)))
