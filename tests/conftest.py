"""What the tests share: running a script as a user does; a small corpus with tokenizer, token files and teacher; what
every step reads and writes."""

from __future__ import annotations

import atexit
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

os.environ["HF_HUB_OFFLINE"] = "1"  # a hub name that is not a folder must fail at once, here and in the scripts
os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads of several processes that wait for each other take forever

PROJECT = Path(__file__).resolve().parent.parent
VOCAB_SIZE = 800
HARD_TEXTS = (
    "",
    " ",
    "   leading and trailing   ",
    "<s>literal</s> <unk> <|endoftext|>",
    "nul \0 bell \a",
    "e\u0301 日本語 😀👩‍👩‍👧 \u2581 \u2581\u2581x \ufffd",
    "tabs\tand\r\nlines\n\n\n",
    "x" * 3000,
)

# The command of every step that writes, in its folder of the fixture `stages`.
SAMPLED = ("--test_fraction", 0.2, "--allow_shortage", "--rows_per_part", 6)
CONCAT = ("sample_mds_concat.py", "CONCAT", 96, 32, 12, 48, 80)
PASSAGES = ("--domains", "book=0.5,cc=0.5", *SAMPLED, "--retrieval_shards", 2, "--retrieval_chunk_size", 32)
STEPS: dict[str, tuple[Any, ...]] = {
    "tokenize": ("tokenize_jsonl.py", "--data_dir", "redpajama"),
    "duplicates": ("sanity_check.py", "duplicates"),
    "sample_ab": ("sample_mds_ab.py", "AB", 128, 64, 8, 24, "--domains", "book=1", *SAMPLED),
    "sample_concat": (*CONCAT, 0, *PASSAGES),
    "sample_passages": (*CONCAT, 1, *PASSAGES),
    "annotate": ("calculate_logits.py", "--input_dir", "AB/train", "--domain", "book", "--model_dir", "teacher",
                 "--num_encoder_tokens", 40, "--num_decoder_tokens", 24, "--topk", 5, "--rows_per_part", 2),
    "embed": ("retrieval.embed_passages", "--corpus", "CONCAT/retrieval", "--output", "EMB", "--model_dir", "encoder",
              "--part_bytes", 8000),
    "search": ("retrieval.search", "--queries", "CONCAT/test", "--embeddings", "EMB", "--output", "HITS",
               "--model_dir", "encoder", "--topk", 5, "--query_tokens", 20),
    "write_mds": ("retrieval.write_mds", "--hits", "HITS", "--embeddings", "EMB", "--queries", "CONCAT/test",
                  "--output", "RET/test", "--rows_per_part", 4),
}  # fmt: skip

Run = Callable[..., subprocess.CompletedProcess[str]]
MODULES = ("cepe_data.", "retrieval.")
PRELOADED = ("calculate_logits.py", "examples/", "pipeline.py", "sample_mds_", "sanity_check.py", "tokenize_jsonl.py",
             *MODULES)  # fmt: skip
_preloaded: list[subprocess.Popen[str]] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests that mostly wait for slurm, beside which others run."""
    items.sort(key=lambda item: item.path.name != "test_slurm.py")


def run_script(
    script: str | Path,
    *arguments: object,
    cwd: Path,
    status: int | None = 0,
    environment: dict[str, str] | None = None,
    shell: str = sys.executable,
) -> subprocess.CompletedProcess[str]:
    """Run a script of the project, or a module such as `retrieval.search`, as a process; `status` None allows any."""
    inherited = environment_of_scripts() | (environment or {})
    command = command_of(script, *arguments)
    own_processes = {*(environment or {})} - {"SLURM_ARRAY_TASK_ID"} or {"--num_workers", "--num_gpus"} & {*command}
    if str(script).startswith(PRELOADED) and not own_processes:
        [done] = run_preloaded([command], cwd, inherited)
    else:
        module = ["-m"] if str(script).startswith(MODULES) else []
        inherited |= {"PYTHONPATH": str(PROJECT)} if module else {}
        done = subprocess.run(
            [shell, *module, *command], cwd=cwd, env=inherited, capture_output=True, text=True, check=False, timeout=300
        )
    if status is not None:
        assert done.returncode == status, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def run_at_once(
    commands: Sequence[Sequence[object]], cwd: Path, delay: float = 0.0
) -> list[subprocess.CompletedProcess[str]]:
    """Run scripts at the same time, each `delay` seconds after the one before."""
    return run_preloaded([command_of(*command) for command in commands], cwd, environment_of_scripts(), delay)


def environment_of_scripts() -> dict[str, str]:
    """This environment without the variables that scripts read. With one worker a script starts no processes, which
    would take most of the tests' time."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith("SLURM_") and name != "REDPAJAMA_DIR"
    }
    return inherited | {"PYTHON": sys.executable, "SLURM_CPUS_PER_TASK": "1"}


def command_of(script: object, *arguments: object) -> list[str]:
    what = str(script) if str(script).startswith(MODULES) else str(PROJECT / str(script))
    return [what, *map(str, arguments)]


def run_preloaded(
    commands: Sequence[list[str]], cwd: Path, environment: dict[str, str], delay: float = 0.0
) -> list[subprocess.CompletedProcess[str]]:
    """Run commands at the same time, as forks of a process that has made the long imports (tests/preloaded.py)."""
    if not _preloaded:
        server = [sys.executable, str(PROJECT / "tests/preloaded.py")]
        _preloaded.append(subprocess.Popen(server, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        atexit.register(_preloaded[0].kill)
    [process] = _preloaded
    assert process.stdin and process.stdout
    with tempfile.TemporaryDirectory() as folder:
        place = {"cwd": str(cwd), "environment": environment, "output": folder}
        requests = [{**place, "command": one, "delay": number * delay} for number, one in enumerate(commands)]
        process.stdin.write(json.dumps(requests) + "\n")
        process.stdin.flush()
        done = []
        for number, status in enumerate(json.loads(process.stdout.readline())):
            texts = [Path(folder, f"{number}.{name}").read_text("utf-8", "replace") for name in ("stdout", "stderr")]
            done.append(subprocess.CompletedProcess(commands[number], status, *texts))
    return done


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of an MDS set, by mosaicml-streaming where it is installed."""
    from cepe_data.storage import mds

    try:
        rows: Any = mds.import_streaming().LocalDataset(str(folder))
    except ModuleNotFoundError:
        rows = mds.Rows(folder)
    return [rows[number] for number in range(len(rows))]


@pytest.fixture(scope="session")
def streaming() -> Any:
    """mosaicml-streaming; where it is not installed, a test that needs it is skipped."""
    from cepe_data.storage import mds

    try:
        return mds.import_streaming()
    except ModuleNotFoundError:
        pytest.skip("needs mosaicml-streaming")


@pytest.fixture(scope="session", params=["cpu", "cuda:0"])
def device(request: pytest.FixtureRequest) -> str:
    """A device of torch, and a GPU where there is one."""
    import torch

    if request.param != "cpu" and not torch.cuda.is_available():
        pytest.skip("no GPU here")
    return str(request.param)


@pytest.fixture(scope="session")
def run() -> Run:
    return run_script


@dataclass(frozen=True)
class World:
    """A folder with a corpus of all seven domains, its token files, a tokenizer and two teachers."""

    folder: Path

    @property
    def data(self) -> Path:
        return self.folder / "redpajama"

    @property
    def tokenizer(self) -> Path:
        return self.folder / "tokenizer.model"

    @property
    def tokenized(self) -> Path:
        return self.folder / "tokenized"

    @property
    def source_flags(self) -> list[str]:
        return ["--file_list", str(self.folder / "all_jsonl.txt"), "--tokenized_dir", str(self.tokenized)]

    def listed(self) -> list[dict[str, Any]]:
        return json.loads((self.folder / "all_jsonl.json").read_text())["files"]


def make_texts(seed: int, number: int, mean_words: int) -> list[str]:
    """Random texts of words with Zipf-like frequencies; lengths vary by a factor of ten."""
    draw = random.Random(seed)
    words = ["".join(draw.choices("aeioubdgklmnprst", k=draw.randint(1, 9))) for _ in range(500)]
    weights = [1 / rank for rank in range(1, len(words) + 1)]
    texts = []
    for _ in range(number):
        length = max(3, int(mean_words * draw.lognormvariate(0, 0.8)))
        separators = draw.choices([" ", ", ", ".\n", "  "], [20, 3, 2, 1], k=length)
        texts.append("".join(w + s for w, s in zip(draw.choices(words, weights, k=length), separators, strict=True)))
    return texts


def write_jsonl(path: Path, texts: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text, "meta": {}}) + "\n" for text in texts), encoding="utf-8")


def write_corpus(folder: Path) -> None:
    """All seven domains; a document of arxiv stands again in a second file, and hard texts stand in c4."""
    arxiv = make_texts(1, 50, 400)
    write_jsonl(folder / "arxiv/arxiv_0.jsonl", arxiv[:30])
    write_jsonl(folder / "arxiv/arxiv_1.jsonl", [*arxiv[30:], *arxiv[:5]])
    write_jsonl(folder / "book/book.jsonl", make_texts(2, 40, 900))
    write_jsonl(folder / "c4/c4-train.00000-of-01024.jsonl", [*HARD_TEXTS, *make_texts(3, 120, 60)])
    write_jsonl(folder / "c4/c4-train.00001-of-01024.jsonl", make_texts(4, 120, 60))
    write_jsonl(folder / "common_crawl/2019-30/en_head_0000.json.gz.dedup.classifier.jsonl", make_texts(5, 80, 200))
    write_jsonl(folder / "common_crawl/2023-06/en_head_0000.json.gz.dedup.classifier.jsonl", make_texts(6, 80, 200))
    write_jsonl(folder / "github/filtered_0.sampled.jsonl", make_texts(7, 80, 150))
    write_jsonl(folder / "stackexchange/stackexchange.jsonl", make_texts(8, 100, 90))
    write_jsonl(folder / "wikipedia/wiki.jsonl", make_texts(9, 80, 150))


def folder_of_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of a run share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def make_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """A folder that `make` makes once for all workers of a run. Tests must not write into it."""
    with FileLock(folder.with_suffix(".lock")):
        if not (folder / "complete").exists():
            make(folder)
            (folder / "complete").touch()
    return folder


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(make_once(folder_of_run(tmp_path_factory) / "world", make_world))


def training_texts() -> list[str]:
    """What the tokenizers are trained on."""
    return [text for seed in range(1, 10) for text in make_texts(seed, 20, 300)]


def make_world(folder: Path) -> None:
    from demo import models

    write_corpus(folder / "redpajama")
    models.train_tokenizer(training_texts(), folder / "tokenizer.model", VOCAB_SIZE)
    models.make_teacher(folder / "teacher", VOCAB_SIZE)
    models.make_teacher(folder / "other_teacher", VOCAB_SIZE, seed=1)
    run_script("get_all_jsonl.py", "redpajama", cwd=folder)
    run_script("tokenize_jsonl.py", "--tokenizer", "tokenizer.model", cwd=folder)


def make_encoder(folder: Path, seed: int = 0) -> None:
    """A BERT with two small layers and random weights, and a word piece tokenizer."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer.train_from_iterator(training_texts(), trainers.WordPieceTrainer(vocab_size=600, special_tokens=special))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]").save_pretrained(folder)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=600, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=128, initializer_range=0.3,
    )  # fmt: skip
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)


def make_wide_teacher(folder: Path) -> None:
    """A teacher of a shape whose products depend on the number of threads in the matrix library."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCAB_SIZE, hidden_size=256, intermediate_size=688, num_hidden_layers=3, num_attention_heads=4,
        initializer_range=0.1,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)


@pytest.fixture(scope="session")
def stages(run: Run, world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """By step: the folder in which it has everything that it reads, and the same after an undisturbed run."""
    base = folder_of_run(tmp_path_factory) / "stages"
    folders = [base / f"{number}" for number in range(len(STEPS) + 1)]
    stages = dict(zip(STEPS, pairwise(folders), strict=True))

    def make_stages(_: Path) -> None:
        make_inputs(folders[0], world)
        for step, (before, after) in stages.items():
            shutil.copytree(before, after)
            run(*STEPS[step], cwd=after)

    make_once(base, make_stages)
    return stages


def make_inputs(folder: Path, world: World) -> None:
    for name in ("redpajama", "tokenized/tokenizer"):
        shutil.copytree(world.folder / name, folder / name)
    for name in ("all_jsonl.txt", "all_jsonl.json", "tokenizer.model"):
        shutil.copy(world.folder / name, folder / name)
    make_wide_teacher(folder / "teacher")
    make_encoder(folder / "encoder")


def add_stale_temporaries(folder: Path) -> None:
    """Put a temporary file of a dead process into a folder, and into every folder below it."""
    from cepe_data.storage import outputs

    for path in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        (path / f".tmp-stale-{outputs._HOST}-999999").write_text("of a dead process")


def require_folder(folder: Path, what: str) -> Path:
    """A folder; a test that needs it is skipped without it, and fails in CI."""
    if not folder.is_dir():
        if os.environ.get("CI"):
            pytest.fail(f"{folder} is missing, and CI is set")
        pytest.skip(f"needs {folder}, {what}")
    return folder


@pytest.fixture(scope="session")
def shared() -> Path:
    return require_folder(PROJECT.parent / "shared", "the real corpus and tokenizer")
