"""What an annotation is: which rows of which input, by which teacher, go where. Nothing here loads a model."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cepe_data import cli, workers
from cepe_data.errors import ArgumentError
from cepe_data.storage import mds, provenance, verify
from cepe_data.storage.inputs import SetInput
from cepe_data.storage.parts import PartedSet, PartedSetOptions
from cepe_data.teacher import devices, vocabulary
from cepe_data.teacher import model as teacher_model
from cepe_data.teacher.checkpoint import Checkpoint, transformers_version
from cepe_data.teacher.targets import Sampled, Targets, TopK

SHARD_BYTES = 128 << 20


@dataclass(frozen=True)
class AnnotationOptions(PartedSetOptions):
    """The arguments of calculate_logits.py."""

    input_dir: Path
    model_dir: str
    domain: str
    num_encoder_tokens: int
    num_decoder_tokens: int
    target: str
    topk: int
    num_samples: int
    seed: int
    output_dir: Path | None
    retrieval_input_dir: Path | None
    retrieval_k: int
    dtype: str
    device: str | None
    num_gpus: int
    batch_size: int | None
    attn_implementation: str | None
    compile: bool
    num_words: int | str | None
    allow_other_tokenizer: bool


@dataclass(frozen=True)
class Annotation:
    """The set that a run makes of a domain, from which rows, by which teacher."""

    of_set: PartedSet
    input_folder: Path
    retrieval_folder: Path | None
    model: teacher_model.Model
    settings: teacher_model.Settings

    @property
    def metadata(self) -> dict[str, object]:
        """The metadata of the joined set; the input is named where it stands beside the set."""
        input_name = None if self.retrieval_folder else name_beside(self.input_folder.parent, self.of_set.folder.parent)
        metas = verify.readable_metas(self.of_set.parts.paths)
        versions = {meta.get("transformers") for meta in metas.values()}
        return {
            "input_name": input_name,
            "vocab_size": self.settings.num_words or self.model.vocab_size,
            "transformers": sorted(filter(None, versions)),
        }


def plan_annotations(args: AnnotationOptions) -> list[Annotation]:
    """The annotation of every domain in `--domain`. Arguments are checked against its input; no model is loaded.

    Raises:
        ArgumentError: if an input is missing, its rows are too short, or the vocabulary has fewer ids than asked for.
    """
    find_model = functools.cache(lambda: teacher_model.find_model(args.model_dir))

    @functools.cache
    def fingerprint() -> str:  # reads all weights
        return find_model().checkpoint.fingerprint()

    domains = mds.find_domains(args.input_dir, args.domain)
    return [_plan_annotation(args, domain, find_model, fingerprint) for domain in domains]


def _plan_annotation(
    args: AnnotationOptions, domain: str, find_model: Callable[[], teacher_model.Model], fingerprint: Callable[[], str]
) -> Annotation:
    inputs = find_inputs(args, domain)
    input_folder = args.input_dir / domain
    retrieval_folder = args.retrieval_input_dir / domain if args.retrieval_input_dir else None
    num_rows = mds.num_rows(input_folder)
    require_column(input_folder, "token_ids", 1, args.num_decoder_tokens, "--num_decoder_tokens")
    num_tokens = check_context(args, input_folder, retrieval_folder) + args.num_decoder_tokens
    folders, model = [one.folder for one in inputs.values()], find_model()
    vocabulary.check_tokenizer(folders, model.checkpoint.folder, model.vocab_size, args.allow_other_tokenizer)
    num_words = vocabulary.resolve_num_words(args.num_words, input_folder, model.vocab_size)
    vocab_size, targets = num_words or model.vocab_size, choose_targets(args)
    if targets.width > vocab_size:
        flag = "--topk" if args.target == "topk" else "--num_samples"
        raise ArgumentError(f"{flag} {targets.width} is more than the {vocab_size} words of {args.model_dir}")
    check_positions(args, model, num_tokens)
    folder = output_folder(args, domain)
    dtype = choose_dtype(args, args.dtype, args.device, folder, "bfloat16")
    is_same_model = args.merge or args.recorded(folder, "model") == fingerprint()
    attention = choose_attention(args, folder if is_same_model else None, model, dtype, num_tokens)
    made_with = {
        **provenance_of_request(args, domain),
        **({"num_words": num_words} if num_words else {}),
        "dtype": dtype,
        "attn_implementation": attention,
        **({"compile": True} if args.compile else {}),
        "model": fingerprint(),
    }
    columns = target_columns(args, vocab_size)
    part_rows = args.part_rows(folder, mds.rows_per_shard(columns, SHARD_BYTES))
    settings = teacher_model.Settings(
        num_tokens=num_tokens,
        num_positions=args.num_decoder_tokens,
        targets=targets,
        dtype=dtype,
        run_length=min(part_rows, num_rows),
        batch_size=args.batch_size,
        attn_implementation=attention,
        compile=args.compile,
        num_words=num_words,
    )
    of_set = PartedSet(folder, columns, num_rows, part_rows, made_with, args, inputs)
    return Annotation(of_set, input_folder, retrieval_folder, model, settings)


def target_columns(args: AnnotationOptions, vocab_size: int) -> mds.Columns:
    """The columns of an annotated set whose ids are below `vocab_size`."""
    num_positions, width = args.num_decoder_tokens, choose_targets(args).width
    return {
        "target_prob": mds.array_column(np.dtype(np.float16), num_positions, width + 1),
        "target_index": mds.array_column(mds.token_dtype(vocab_size), num_positions, width),
    }


def check_positions(args: AnnotationOptions, model: teacher_model.Model, num_tokens: int) -> None:
    """Warn of sequences that are longer than the rotary positions of a model allow for.

    Raises:
        ArgumentError: if the positions are not rotary: they end there; or if attention has a window that transformers
            ignores.
    """
    window = model.checkpoint.text_config.get("attention_window_size", num_tokens)
    if num_tokens > window and transformers_version().startswith("4."):
        raise ArgumentError(
            f"{num_tokens} tokens are more than the attention_window_size {window} of {args.model_dir}, which "
            f"transformers {transformers_version()} ignores: run this with transformers 5"
        )
    if model.max_positions is None or num_tokens <= model.max_positions:
        return
    what = (
        f"{num_tokens - args.num_decoder_tokens} tokens of context and {args.num_decoder_tokens} to annotate are more "
        f"than the {model.max_positions} positions of {args.model_dir}"
    )
    if not model.checkpoint.has_rotary_positions():
        raise ArgumentError(what)
    cli.warn(f"{what}: what it expects beyond them may be poor")


def choose_dtype(options: PartedSetOptions, dtype: str, device: str | None, folder: Path, half: str) -> str:
    """`--dtype`; for auto, the dtype of the parts or the set that exist (a join may run on a machine without the GPU
    that made them), else `half` on a GPU and float32 on a CPU."""
    if dtype == "auto" and (made := options.recorded(folder, "dtype")):
        return str(made)
    return devices.resolve_dtype(dtype, device, half)


def choose_attention(
    args: AnnotationOptions, folder: Path | None, model: teacher_model.Model, dtype: str, num_tokens: int
) -> str:
    """`--attn_implementation`; without it, that of the parts or the set in `folder`, which this model made, else one
    whose probabilities are checked on the device.

    Raises:
        ArgumentError: if the device does not exist, or the model cannot be loaded.
    """
    made = args.recorded(folder, "attn_implementation") if folder else None
    if made is not None or args.merge:
        return args.attn_implementation or str(made or "eager")
    [device, *_] = devices.choose_devices(args.device, args.num_gpus)
    return _probe_attention(model.checkpoint, dtype, device, num_tokens, args.attn_implementation)


@functools.cache
def _probe_attention(checkpoint: Checkpoint, dtype: str, device: str, num_tokens: int, asked: str | None) -> str:
    """`teacher_model.choose_attention`, once for all domains of a run."""
    arguments = (checkpoint, dtype, device, num_tokens, asked)
    if device == "cpu":
        return teacher_model.choose_attention(*arguments)
    return workers.run_in_child(teacher_model.choose_attention, *arguments)  # which leaves nothing on the GPU


def choose_targets(args: AnnotationOptions) -> Targets:
    """The targets that `--target` names."""
    return TopK(args.topk) if args.target == "topk" else Sampled(args.num_samples, args.seed)


def provenance_of_request(args: AnnotationOptions, domain: str) -> provenance.Provenance:
    """The provenance of a set and its parts without that of the model: as far as the arguments say it."""
    context = "num_encoder_tokens" if args.retrieval_input_dir is None else "retrieval_k"
    numbers = {name: getattr(args, name) for name in (context, "num_decoder_tokens")}
    return {"domain": domain, **numbers, **choose_targets(args).made_with}


def find_inputs(args: AnnotationOptions, domain: str) -> dict[str, SetInput]:
    """The inputs of a set by their names in the provenance: `input`, and with retrieved passages `retrieval_input`."""
    folders = {"input": args.input_dir, "retrieval_input": args.retrieval_input_dir}
    return {name: SetInput(folder / domain) for name, folder in folders.items() if folder is not None}


def check_context(args: AnnotationOptions, input_folder: Path, retrieval_folder: Path | None) -> int:
    """The length of the context in tokens.

    Raises:
        ArgumentError: if it is shorter than asked for, or the retrieved rows are not those of the input.
    """
    if retrieval_folder is None:
        require_column(input_folder, "prev_token_ids", 1, args.num_encoder_tokens, "--num_encoder_tokens")
        return int(args.num_encoder_tokens)
    require_column(retrieval_folder, "retrieved_token_ids", 2, args.retrieval_k, "--retrieval_k")
    numbers = [mds.num_rows(folder) for folder in (retrieval_folder, input_folder)]
    if numbers[0] != numbers[1]:
        raise ArgumentError(f"{retrieval_folder} has {numbers[0]} rows, {input_folder} has {numbers[1]}: no pair")
    found_for = provenance.read_meta(retrieval_folder).made_with.get("input")
    if found_for is not None and found_for != mds.fingerprint(input_folder):
        raise ArgumentError(f"the passages in {retrieval_folder} were found for other rows than {input_folder}'s")
    _, (_, chunk) = mds.column_array(mds.read_columns(retrieval_folder)["retrieved_token_ids"])
    return int(args.retrieval_k * chunk)


def require_column(folder: Path, name: str, num_axes: int, expected: int, flag: str) -> None:
    """Raise ArgumentError unless the column is there, integers of so many axes, at least `expected` along the first."""
    columns = mds.read_columns(folder)
    if name not in columns:
        raise ArgumentError(f"{folder} has no column {name}, only {', '.join(columns)}")
    dtype, shape = mds.column_array(columns[name]) if columns[name].startswith("ndarray:") else (np.dtype(object), ())
    if dtype.kind not in "iu" or len(shape) != num_axes:
        raise ArgumentError(f"the column {name} of {folder} is {columns[name]}, not ids in {num_axes} axes")
    if shape[0] < expected:
        raise ArgumentError(f"{flag} {expected} is more than the {shape[0]} that {name} has in {folder}")


def output_folder(args: AnnotationOptions, domain: str) -> Path:
    """Where the annotated rows of a domain go."""
    if args.output_dir is not None:
        return args.output_dir / domain
    model = named(Path(args.model_dir.rstrip("/"))).name
    if args.retrieval_input_dir:
        base, context = named(args.retrieval_input_dir), f"ret_k{args.retrieval_k}"
    else:
        base, context = named(args.input_dir), f"logits-enc{args.num_encoder_tokens}"
    return base.with_name(f"{base.name}-{context}-dec{args.num_decoder_tokens}-{model}") / domain


def named(folder: Path) -> Path:
    """The same folder, under a path that ends in its name: not in `.` or `..`."""
    return folder if folder.name not in {"", ".."} else folder.resolve()


def name_beside(input_dir: Path, output_dir: Path) -> str | None:
    """The name of `input_dir` where it stands beside `output_dir`; None where it stands elsewhere."""
    input_dir = named(input_dir)
    return input_dir.name if input_dir.parent.resolve() == named(output_dir).parent.resolve() else None
