"""The Hugging Face hub: a tokenizer or model name that is not a local folder is looked up there."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from cepe_data import cli
from cepe_data.errors import ArgumentError

_SMALL_FILES = ["*.json", "*.txt", "*.model"]


def silence_transformers() -> None:
    """Turn off the progress bars and loading reports of transformers: a process has its own bar, and raises an error if
    weights are missing."""
    from transformers.utils import logging as of_transformers

    of_transformers.disable_progress_bar()
    of_transformers.set_verbosity_error()


def find_folder(name: str, what: str) -> Path:
    """The folder of a model: `name` itself, or its download from the hub. Raises ArgumentError, calling it `what`, if
    there is none."""
    name = name.rstrip("/")
    try:
        if Path(name).is_dir():
            return Path(name)
        folder = download(name, [*_SMALL_FILES, "*.safetensors"])
        return folder if any(folder.glob("*.safetensors")) else download(name, [*_SMALL_FILES, "*.bin"])
    except (OSError, ValueError) as error:
        raise ArgumentError(
            f"no {what} {name!r}: {str(error).splitlines()[0]} Pass a folder that save_pretrained wrote, or a hub name"
        ) from None


def num_parameters(name: str, usual: float) -> float:
    """Parameters of a model in a local folder, from the bytes of its weights; else `usual`."""
    folder = Path(name)
    files = [*folder.glob("*.safetensors")] or [*folder.glob("*.bin")]
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        is_half = "16" in str(config.get("torch_dtype") or config.get("dtype"))
    except (OSError, ValueError, AttributeError):
        return usual
    return sum(file.stat().st_size for file in files) / (2 if is_half else 4) or usual


def download(name: str, patterns: Sequence[str]) -> Path:
    """The folder with the files of a hub repository that match `patterns`, from the cache if they are there. Warns that
    it looks for them, and silences the many lines that the hub's library prints on every retry."""
    from huggingface_hub import snapshot_download

    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)
    cli.warn(f"{name} is not a folder here: looking for it on the Hugging Face hub")
    return Path(snapshot_download(name, allow_patterns=list(patterns)))
