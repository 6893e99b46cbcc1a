"""Names on the model hub: what a tokenizer or a model that is no folder here is taken for."""

from __future__ import annotations

import logging
from pathlib import Path

from cepe_data import cli
from cepe_data.errors import ArgumentError

_SMALL_FILES = ["*.json", "*.txt", "*.model"]


def announce(name: str) -> None:
    """Say that `name` is looked for on the hub, and silence the many lines that its library prints on every retry."""
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)
    cli.warn(f"{name} is no folder here: looking for it on the Hugging Face hub")


def find_folder(name: str, what: str) -> Path:
    """The folder of a model: `name` itself, or what the hub has under that name.

    Args:
        what: what is looked for, for the message: `model`.

    Raises:
        ArgumentError: if there is none.
    """
    name = name.rstrip("/")
    try:
        folder = Path(name) if Path(name).is_dir() else _download(name)
    except (OSError, ValueError) as error:
        raise ArgumentError(
            f"no {what} {name!r}: {str(error).splitlines()[0]} Pass a folder that save_pretrained wrote, or a hub name"
        ) from None
    if not (folder / "config.json").exists():
        raise ArgumentError(f"no {what} {name!r}: {folder} has no config.json")
    return folder


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    announce(name)
    folder = Path(snapshot_download(name, allow_patterns=[*_SMALL_FILES, "*.safetensors"]))
    if not any(folder.glob("*.safetensors")):
        folder = Path(snapshot_download(name, allow_patterns=[*_SMALL_FILES, "*.bin"]))
    return folder
