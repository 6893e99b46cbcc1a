"""A model's folder: which files determine its outputs, and whether the installed transformers reads them as meant.
Teachers and encoders are found, fingerprinted and loaded here; torch and transformers are imported to load.

Folders are rejected that transformers would load as another model, without an error: with an adapter, whose weights
count or not depending on what is installed; with a configuration of a later version of transformers, whose keys are
ignored. So are folders with their own code.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from cepe_data import hub
from cepe_data.corpus import sniff
from cepe_data.errors import ArgumentError
from cepe_data.storage import provenance

# By major version of transformers: keys that it does not read, the version that does, and values that change nothing.
_UNREAD: dict[int, dict[str, tuple[int, list[str | None]]]] = {
    4: {"rope_parameters": (5, [None])},
    5: {"position_embedding_type": (4, [None, "absolute"])},
}


@functools.cache
def transformers_version() -> str:
    """The installed version of transformers. Does not import it, which takes seconds."""
    return importlib.metadata.version("transformers")


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk: its folder, and the content of its config.json."""

    folder: Path
    config: dict[str, Any] = field(compare=False)

    @classmethod
    def find(cls, name: str, what: str) -> Checkpoint:
        """The model called `name`, a folder or a hub name; messages call it `what`.

        Raises:
            ArgumentError: if there is none, or transformers alone would not load it as it was meant.
        """
        folder = hub.find_folder(name, what)
        if (folder / "adapter_config.json").exists():
            raise ArgumentError(
                f"{folder} holds an adapter (adapter_config.json): merge the adapter first (merge_and_unload of peft), "
                f"and pass the folder of the merged model"
            )
        config_path = folder / "config.json"
        if not config_path.exists():
            _check_not_gguf(folder)
            raise ArgumentError(f"no {what} {name!r}: {folder} has no config.json")
        _check_not_pointer(config_path)
        try:
            config = json.loads(config_path.read_text(encoding="utf-8"))
            if not isinstance(config, dict):
                raise ValueError("it is not an object")
        except (OSError, ValueError) as error:
            raise ArgumentError(f"no {what} {name!r}: its config.json is not that of one ({error})") from None
        found = cls(folder, config)
        found._check_version()
        found._check_code()
        return found

    @cached_property
    def text_config(self) -> dict[str, Any]:
        """The configuration of the text model, which is nested in that of a multimodal model."""
        nested = self.config.get("text_config")
        return nested if "vocab_size" not in self.config and isinstance(nested, dict) else self.config

    @cached_property
    def weights(self) -> list[Path]:
        """The files of weights, sorted.

        Raises:
            ArgumentError: if there are none, or one is a git-lfs pointer.
        """
        found = {*self.folder.glob("*.safetensors"), *self.folder.glob("*.bin")}
        for index in self.folder.glob("*.index.json"):  # which may name files in a folder below, or of another format
            named = [self.folder / name for name in _read_weight_map(index)]
            found |= {path for path in named if path.suffix in {".safetensors", ".bin"} and path.exists()}
        if not found:
            _check_not_gguf(self.folder)
            raise ArgumentError(f"{self.folder} holds no *.safetensors and no *.bin: no weights of a model")
        for path in sorted(found):
            _check_not_pointer(path)
        return sorted(found)

    def fingerprint(self, names: Sequence[str] = ()) -> str:
        """A hash of the configuration, all weights, and the files with these names that exist. (Reading the weights
        takes no longer than loading them will.)

        Raises:
            ArgumentError: as `weights`.
        """
        versioned = self.config.get("configuration_files", ())  # transformers may read one of these instead
        others = [self.folder / name for name in (*versioned, *names) if (self.folder / name).exists()]
        files = [self.folder / "config.json", *self.weights, *others]
        return provenance.fingerprint({
            path.relative_to(self.folder).as_posix(): provenance.file_metadata(path) for path in files
        })  # fmt: skip

    def load(self, auto_class: str, what: str, unused: str = "\0", **options: Any) -> Any:
        """The model for inference, as a class of transformers loads it; messages call it `what`.

        Args:
            auto_class: such as `AutoModelForCausalLM`.
            unused: weights whose names begin so may be missing.
            options: of `from_pretrained`.

        Raises:
            ArgumentError: if it cannot be loaded, or lacks weights.
        """
        import transformers

        hub.silence_transformers()
        try:
            loaded: Any = getattr(transformers, auto_class).from_pretrained(
                str(self.folder), output_loading_info=True, trust_remote_code=False, **options
            )
            model, loading = loaded
        except Exception as error:  # every library that reads weights has its own exceptions
            if "trust_remote_code" in str(error):
                raise self._code_error() from None
            raise ArgumentError(f"the {what} in {self.folder} cannot be loaded: {error}") from None
        missing = [key for key in loading["missing_keys"] if not key.startswith(unused)]
        if lacking := [*missing, *loading["mismatched_keys"]]:
            raise ArgumentError(
                f"the {what} in {self.folder} lacks {len(lacking)} weights, such as {lacking[0]}: it would guess"
            )
        for config in (model.config, model.config.get_text_config()):
            config.return_dict = True
            # These would be kept in memory, and collecting them is not safe in several threads.
            config.output_hidden_states = config.output_attentions = False
        return model.eval().requires_grad_(False)

    def full_config(self) -> Any:
        """The configuration as transformers reads it, with the defaults of its kind.

        Raises:
            ArgumentError: if it cannot be read.
        """
        from transformers import AutoConfig

        try:
            return AutoConfig.from_pretrained(str(self.folder), trust_remote_code=False)
        except Exception as error:  # as above
            raise ArgumentError(f"the config.json in {self.folder} cannot be read: {error}") from None

    def has_rotary_positions(self) -> bool:
        """Whether positions are rotary (RoPE), which work for any position, not looked up in a table. Makes the model
        without its weights."""
        import torch
        from transformers import AutoModelForCausalLM

        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(self.full_config(), trust_remote_code=False)
        return any(name.endswith("inv_freq") for name, _ in model.named_buffers())

    def _check_version(self) -> None:
        """Raise ArgumentError if the installed transformers would ignore a part of the configuration. It would do so
        without an error: the base frequency of a LLaMA falls back to 10,000, say."""
        installed = int(transformers_version().partition(".")[0])
        saved = str(self.config.get("transformers_version", ""))
        major = saved.partition(".")[0]
        path = self.folder / "config.json"
        for config in (self.config, *filter(lambda value: isinstance(value, dict), self.config.values())):
            for key, (reader, harmless) in _UNREAD.get(installed, {}).items():
                if key in config and config[key] not in harmless:
                    remedy = _rope_of_version_4(config[key]) if key == "rope_parameters" else ""
                    raise ArgumentError(
                        f'{path} has "{key}", which transformers {transformers_version()} ignores: run this with '
                        f"transformers {reader}{remedy}"
                    )
        if major.isdecimal() and int(major) > installed:
            raise ArgumentError(
                f"{path} was saved by transformers {saved}, and {transformers_version()} is installed, which may "
                f"ignore what it says: run this with transformers {major}, or save the model with version {installed}"
            )

    def _check_code(self) -> None:
        if "auto_map" in self.config:
            from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

            if self.config.get("model_type") not in CONFIG_MAPPING_NAMES:
                raise self._code_error()

    def _code_error(self) -> ArgumentError:
        return ArgumentError(
            f"the model in {self.folder} has code of its own (auto_map in its config.json), which is not run: only "
            f"models that transformers itself implements can be used"
        )


def position_limit(text_config: dict[str, Any]) -> int | None:
    """The longest sequence that a configuration allows for, with the scaling of rotary positions; None where it names
    no limit.

    >>> position_limit({"max_position_embeddings": 4096, "rope_scaling": {"rope_type": "linear", "factor": 4.0}})
    16384
    >>> position_limit({"max_position_embeddings": 131072, "rope_scaling": {
    ...     "rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}})
    131072
    """
    limits = [text_config.get(name) for name in ("max_position_embeddings", "n_positions", "max_seq_len")]
    limit: int | None = next(filter(None, limits), None)
    if limit is None:
        return None
    rope = text_config.get("rope_parameters") or text_config.get("rope_scaling") or {}
    scalings = [value for value in rope.values() if isinstance(value, dict)] or [rope]  # one, or one per kind of layer
    outer = text_config.get("original_max_position_embeddings") or limit
    scaled = [(one.get("factor") or 1) * (one.get("original_max_position_embeddings") or outer) for one in scalings]
    return max(limit, *map(int, scaled))


def _rope_of_version_4(rope: Any) -> str:
    """A hint how a configuration of version 4 says the same; empty where it cannot."""
    if not isinstance(rope, dict) or "rope_theta" not in rope or any(isinstance(one, dict) for one in rope.values()):
        return ""
    rest = {key: value for key, value in rope.items() if key != "rope_theta"}
    scaling = {} if rest.get("rope_type", "default") == "default" else {"rope_scaling": rest}
    keys = json.dumps({"rope_theta": rope["rope_theta"], **scaling})[1:-1]
    return f", or replace it by {keys}, and transformers_version by the installed one"


def _read_weight_map(index: Path) -> set[str]:
    _check_not_pointer(index)
    try:
        return set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArgumentError(f"{index} is not the index of weights ({error}): download it again") from None


def _check_not_pointer(path: Path) -> None:
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise ArgumentError(f"{path} cannot be read ({error.strerror}): download it again") from None
    if sniff.is_lfs_pointer(head):
        raise ArgumentError(f"{path} is a git-lfs pointer, not the file itself: run `git lfs pull` in its folder")


def _check_not_gguf(folder: Path) -> None:
    if any(folder.glob("*.gguf")):
        raise ArgumentError(f"{folder} holds only .gguf files, which llama.cpp reads: pass the original *.safetensors")
