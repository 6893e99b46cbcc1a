"""The jobs of a run: which scripts with which arguments, in how many tasks, after which others, and what is there."""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from cepe_data import cli
from cepe_data.pipeline import settings
from cepe_data.pipeline.settings import Table, as_flags, as_word
from cepe_data.retrieval.steps import EMBED, SEARCH, WRITE
from cepe_data.samples.steps import CONCAT, INSIDE
from cepe_data.storage.steps import DAMAGED, DONE, MISSING, PART_DONE, OutputStatus, Script, Step
from cepe_data.teacher.steps import ANNOTATE
from cepe_data.tokens.steps import TOKENIZE

VALUES: Mapping[str, type] = {"work_dir": str, "python": str, "gpu_tflops": float, "slurm": list}
TABLES: Mapping[str, type] = {
    **dict.fromkeys(("corpus", "tokenize", "samplers", "concat", "embed"), dict),
    **dict.fromkeys(("ab", "teacher", "search"), list),
}
CORPUS = {"data_dir": str, "num_bytes": float, "domain_map": str, "domain_key": str}
OWN: Mapping[str, type] = {"shards": int, "cores": int, "gpus": int, "slurm": list}
# Arguments that join the steps, or that another key says; `output` joins only some.
JOINED = {"file_list", "tokenized_dir", "output_dir", "shard_id", "num_shards", "retrieval_shards", "merge"}
JOINED |= {"delete_parts", "dry_run", "overwrite", "ignore_disk_space", "num_workers", "num_gpus"}
JOINED_OF = {TOKENIZE: {"data_dir"}, EMBED: {"corpus", "output"},
             SEARCH: {"queries", "embeddings", "model_dir", "output"}}  # fmt: skip
TEXTS = {"output", "input_dir", "retrieval_input_dir", "model_dir"}
GPU_MEMORY = {ANNOTATE: "64G", EMBED: "64G", SEARCH: "64G"}  # of the host: models are loaded through it
CORES = 4  # of a task, as in slurm/step.sh
GPU_TFLOPS = 400  # an H100 reached 350 in the encoder, 460 in the teacher
NOTHING = Step(Path(), "", "", [])
Parse = Callable[[Script, Sequence[str]], argparse.Namespace]  # a script's own parser of its arguments


@dataclass(eq=False)
class Job:
    """A command, or an array of `num_tasks` of them (0: a single one), and the jobs that it waits for. `positionals`
    come before the id of a task. `step` is what there is of its output, NOTHING of a check; `readers` are the jobs that
    read what of it is there for later steps only."""

    name: str
    script: str
    positionals: Sequence[str]
    flags: Sequence[str]
    after: Sequence[Job]
    slurm: Sequence[str]
    num_tasks: int = 0
    cores: int = CORES
    gpus: int = 1  # that it uses
    id_flag: Sequence[str] = ("--shard_id",)
    step: Step = NOTHING
    readers: list[Job] = field(default_factory=list, repr=False)

    def words(self, task: int | None = None) -> list[str]:
        """Script and arguments, with the id of a task if it is not for slurm to say."""
        own = [] if task is None else [*self.id_flag, str(task)]
        return [self.script, *self.positionals, *own, *self.flags]

    def dry_run(self) -> Job:
        """The job that says what all of its tasks would do."""
        task = [] if self.id_flag or not self.num_tasks else ["0"]
        return Job("count", self.script, [*self.positionals, *task], [*self.flags, "--dry_run"], self.after, self.slurm)

    @property
    def tasks(self) -> Sequence[int | None]:
        """The ids of its tasks; None of a single command."""
        return range(self.num_tasks) if self.num_tasks else [None]

    @property
    def outputs(self) -> list[OutputStatus]:
        """What is there, and is to come: nothing of what no later step needs any more."""
        return [output for output in self.step.outputs if self.is_needed or output.state == DONE]

    @cached_property
    def is_needed(self) -> bool:
        """Whether anything of it is to be made: not what was there for later steps only, when these are done and all of
        it is deleted."""
        if self.step.is_done:
            return False
        lacks_results = any(output.is_result and output.state != DONE for output in self.step.outputs)
        is_there = any(path.exists() for path in self.step.intermediates)
        return lacks_results or is_there or not self.readers or any(job.is_needed for job in self.readers)

    @property
    def waits_for(self) -> list[Job]:
        """The jobs that must have succeeded before this one can: those that are not done, and needed; of a check, which
        has no output, those that it waits for."""
        return self.before(lambda job: job.is_needed)

    def before(self, is_one: Callable[[Job], bool]) -> list[Job]:
        """The nearest of the jobs that it comes after of which this is true, looking behind those without output."""
        found: list[Job] = []
        for job in self.after:
            if is_one(job):
                found.append(job)
            elif not job.step.tasks:
                found += job.before(is_one)
        return list(dict.fromkeys(found))

    @property
    def marks_duplicates(self) -> bool:
        """Whether samplers need what it writes beside token files, which is no output of a step."""
        return "duplicates" in self.positionals

    @property
    def has_inputs(self) -> bool:
        """Whether it can say what it would do. What marks duplicates is not asked whether it is done."""
        return not self.waits_for and not any(before.marks_duplicates for before in self.after)

    def reads(self, other: Job) -> bool:
        """Whether it reads what of the other is there for later steps only."""
        pairs = ((a, b) for a in other.step.intermediates for b in self.step.reads)
        return any(a.is_relative_to(b) or b.is_relative_to(a) for a, b in pairs)

    @property
    def left(self) -> list[int]:
        """The tasks that are to be run. Those with outputs that are damaged need --overwrite and are not among them;
        nor are those with outputs that other arguments made: what is to become of them is for a person to say."""
        # Where ranges move, a task that is done may have other outputs once all inputs are there.
        states = {PART_DONE, MISSING, *([DONE] if self.waits_for and self.step.ranges_move else [])}
        return [number for number, task in enumerate(self.step.tasks) if self.is_needed and task.state in states]

    @property
    def damaged(self) -> list[int]:
        """The tasks that are to be run with --overwrite."""
        return [number for number, task in enumerate(self.step.tasks) if self.is_needed and task.state == DAMAGED]


class Pipeline:
    """The jobs of a settings file, in an order in which they may run, and what there is of the output of each.

    Args:
        file: the settings.
        parse: parses the arguments of a script as the script does.

    Raises:
        ArgumentError: if the file is not settings, or a script does not take its arguments.
        PipelineError: if the list of files is not right.
    """

    def __init__(self, file: Path, parse: Parse) -> None:
        self._parse = parse
        self._whole, self._tables = settings.read(file, VALUES, TABLES)
        self._whole.require("work_dir", "corpus", "tokenize")
        values, [corpus] = self._whole.values, self._tables["corpus"]
        corpus.check(CORPUS)
        corpus.require("data_dir")
        self.folder = (file.parent / values["work_dir"]).resolve()
        self.python, self.gpu_tflops = values.get("python", "python3"), float(values.get("gpu_tflops", GPU_TFLOPS))
        data_dir = (file.parent / corpus.values["data_dir"]).resolve()
        if self.folder.is_relative_to(data_dir):
            raise self._whole.error("work_dir", "work_dir is inside data_dir: what is written would be listed")
        self.list_words = ["get_all_jsonl.py", str(data_dir), *as_flags(corpus.values, ("domain_map", "domain_key"))]
        self.corpus = OutputStatus(data_dir, num_bytes=float(corpus.values.get("num_bytes", 0)))
        self.jobs: list[Job] = []
        checked = self._add_tokens(data_dir)
        if num_bytes := self.jobs[0].step.counts.total:  # the corpus is listed
            self.corpus = replace(self.corpus, num_bytes=num_bytes)
        self._add_samplers(checked)
        if self._tables["embed"] or self._tables["search"]:
            self._add_retrieval()
        for table in self._tables["teacher"]:
            self._add_teacher(table)
        for job in self.jobs:
            job.readers += [other for other in self.jobs if other is not job and other.reads(job)]

    @property
    def steps(self) -> list[Job]:
        """The jobs that have an output."""
        return [job for job in self.jobs if job.step.tasks]

    def shown(self, path: Path) -> Path:
        """A path as it is in the folder that the jobs run in."""
        return path.relative_to(self.folder) if path.is_relative_to(self.folder) else path

    def label(self, job: Job) -> str:
        """The name of a job, and where its output is."""
        return f"{job.name} {self.shown(job.step.folder)}" if job.step.tasks else job.name

    @property
    def environment(self) -> dict[str, str]:
        """What the batch file takes from the environment."""
        return {"CEPE_DATA_HOME": str(cli.SCRIPTS), "PYTHON": self.python}

    def plain(self, words: Sequence[str]) -> str:
        """A line of bash that runs a script, or a module, where the jobs run."""
        script, *arguments = words
        command = [self.python, str(cli.SCRIPTS / script)]
        if not script.endswith(".py"):
            command = ["env", f"PYTHONPATH={cli.SCRIPTS}", self.python, "-m", script]
        return f"cd {shlex.quote(str(self.folder))} && {shlex.join([*command, *arguments])}"

    def list_lines(self) -> list[str]:
        """What lists the corpus, where it is not listed."""
        return [] if (self.folder / "all_jsonl.txt").exists() else [self.plain(self.list_words)]

    def _add_tokens(self, data_dir: Path) -> list[Job]:
        """Tokenizing, the check behind it, and what marks duplicates behind that; returns what samplers wait for."""
        [table] = self._tables["tokenize"]
        table.check(keys(TOKENIZE, "shards", "cores", "slurm"))
        tokens = self._add("tokenize", TOKENIZE, table, {"data_dir": data_dir}, [], "num_shards")
        flags = ["--deep", "--num_shards", str(tokens.num_tasks)]
        self.jobs.append(Job("check", "sanity_check.py", [], flags, [tokens], self._flags(table)))
        samplers = [one for name in ("samplers", "ab", "concat") for one in self._tables[name]]
        if any(one.values.get("drop_duplicates") for one in samplers):
            check = self.jobs[-1]
            self.jobs.append(Job("mark_duplicates", "sanity_check.py", ["duplicates"], [], [check], self._flags(table)))
        return self.jobs[-1:]

    def _add_samplers(self, checked: Sequence[Job]) -> None:
        """The samplers, and for each a job before them that counts its windows."""
        own = {INSIDE: keys(INSIDE, "cores", "slurm"), CONCAT: keys(CONCAT, "shards", "cores", "slurm")}
        [shared] = self._tables["samplers"] or [Table(self._whole.file, "samplers", 0, {})]
        shared.check({name: object for name in {*own[INSIDE]} - {"output", "slurm", *INSIDE.positionals}})
        first, samplers = len(self.jobs), []
        for name, script in (("ab", INSIDE), ("concat", CONCAT)):
            for table in self._tables[name]:
                table.check(own[script])
                merged = replace(table, values={**shared.values, **table.values}, shared=shared.name)
                shards = "retrieval_shards" if script is CONCAT else ""
                samplers.append(self._add(f"sample_{name}", script, merged, {}, checked, shards))
        counts = [job.dry_run() for job in samplers]
        for job in samplers:
            job.after = [*checked, *counts]
        self.jobs[first:first] = counts

    def _add_teacher(self, table: Table) -> None:
        table.check(keys(ANNOTATE, *OWN))
        given = {"domain": table.values.get("domain", "all")}
        given |= {"num_gpus": table.values["gpus"]} if "gpus" in table.values else {}
        before = [self._maker(table, key) for key in ("input_dir", "retrieval_input_dir") if key in table.values]
        of_parts = self._add("annotate", ANNOTATE, table, given, before, "num_shards")
        self._add("annotate_merge", ANNOTATE, table, {**given, "merge": True}, [of_parts], "num_shards")

    def _maker(self, table: Table, key: str) -> Job:
        """The job that makes the sets in the folder that a key names."""
        for job in reversed(self.jobs):
            if job.step.tasks and (self.folder / table.values[key]).is_relative_to(job.step.folder):
                return job
        raise table.error(key, f"nothing in these settings makes {table.values[key]}")

    def _add_retrieval(self) -> None:
        self._whole.require("concat", "embed")
        [concat], [embed] = self._tables["concat"], self._tables["embed"]
        embed.check(keys(EMBED, *OWN))
        given = {"corpus": f"{concat.values['output']}/retrieval", "output": "embeddings"}
        embedded = self._add("embed", EMBED, embed, given, [self._maker(concat, "output")], "num_shards")
        encoder = {"model_dir": embed.values["model_dir"]} if "model_dir" in embed.values else {}
        for table in self._tables["search"]:
            table.check({**keys(SEARCH, *OWN), "split": str})
            split = table.values.get("split", "test")
            queries = {"queries": f"{concat.values['output']}/{split}", "embeddings": "embeddings"}
            given = {**queries, **encoder, "output": f"hits/{split}"}
            searched = self._add("search", SEARCH, table, given, [embedded], "num_shards")
            merged = self._add("search_merge", SEARCH, table, {**given, "merge": True}, [searched], "num_shards")
            shared = {name: value for name, value in table.values.items() if name in {"domain", "slurm"}}
            given = {**queries, "hits": f"hits/{split}", "output": f"retrieved/{split}"}
            self._add("write_mds", WRITE, replace(table, values=shared), given, [merged])

    def _flags(self, table: Table) -> list[str]:
        """The flags of sbatch that the settings have, of a job that computes little."""
        return [*self._whole.values.get("slurm", []), *table.values.get("slurm", [])]

    def _add(
        self, name: str, script: Script, table: Table, given: dict[str, Any], after: Sequence[Job], shards: str = ""
    ) -> Job:
        """Add a job, and look at its output, for which its arguments are parsed by its own script.

        Args:
            given: the arguments that join the steps; those of the table come beside them.
            shards: the argument that says the number of shards, if there is one.
        """
        own, is_merge = table.values, "merge" in given
        values = {**own, **given}
        table.require(*(name for name in script.positionals if name not in {"shard_id", *given}))
        if own.get("gpus", 1) > 1 and "num_gpus" not in script.arguments:
            raise table.error("gpus", f"a task of {script.name} uses one GPU: take more shards")
        if shards:
            values[shards] = own.get("shards", 100 if script is CONCAT else 1)
        if "num_workers" in script.arguments and "cores" in own:
            values["num_workers"] = own["cores"]
        if (model := self.folder / str(values.get("model_dir", ""))).is_dir() and model != self.folder:
            values["model_dir"] = model
        positionals = [as_word(values[name]) for name in script.positionals if name in values]
        flags = as_flags(values, [name for name in script.arguments if name not in script.positionals])
        before = [self.corpus, *(output for job in self.jobs for output in job.step.outputs)]
        step = script.look(self._options(script, table, [*positionals, *flags]), before)
        slurm = self._flags(table)
        if not is_merge:
            for other in self.steps:
                shared = {step.folder, *step.intermediates} & {other.step.folder, *other.step.intermediates}
                if shared and "--merge" not in other.flags:
                    raise table.error("output", f"{name} and {other.name} would both write {self.shown(min(shared))}")
            if script in GPU_MEMORY:
                slurm.insert(0, f"--mem={GPU_MEMORY[script]}")
            slurm += [f"--{flag}={own[key]}" for key, flag in (("gpus", "gpus"), ("cores", "cpus-per-task"))
                      if key in own]  # fmt: skip
        num_tasks = values[shards] if shards and not is_merge else 0
        id_flag = () if "shard_id" in script.positionals else ("--shard_id",)
        cores, gpus = own.get("cores", CORES), own.get("gpus", 1)
        job = Job(name, script.name, positionals, flags, after, slurm, num_tasks, cores, gpus, id_flag, step)
        self.jobs.append(job)
        return job

    def _options(self, script: Script, table: Table, words: Sequence[str]) -> Any:
        """The options of a script for these words, its paths below the folder of the run."""
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                taken: Any = cli.typed(script.options, self._parse(script, words))
        except SystemExit:
            what = said.getvalue().strip().splitlines()[-1].partition("error: ")[2]
            key = re.match(r"argument (?:--)?(\w+)", what)
            raise table.error(key[1].lower() if key else "", f"{script.name} does not take this: {what}") from None
        paths = {name: self.folder / value for name, value in vars(taken).items() if isinstance(value, Path)}
        return replace(taken, **paths)


def keys(script: Script, *own: str) -> dict[str, type]:
    """The keys that the table of a script may have, with their types: its arguments, but for those that join it to
    others, and some of OWN."""
    names = {*script.arguments} - JOINED - JOINED_OF.get(script, set())
    return {**dict.fromkeys(names, object), **dict.fromkeys(names & TEXTS, str), **{name: OWN[name] for name in own}}
