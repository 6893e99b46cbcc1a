"""The jobs of a run: which scripts with which arguments, in how many tasks, after which others, and what is there."""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from cepe_data import cli
from cepe_data.corpus import listing
from cepe_data.errors import ArgumentError
from cepe_data.pipeline import settings
from cepe_data.pipeline.settings import Table
from cepe_data.retrieval.steps import EMBED, SEARCH, WRITE
from cepe_data.samples.plan import CONCAT, INSIDE
from cepe_data.storage.steps import DAMAGED, DONE, MISSING, PART_DONE, OutputStatus, Script, Step
from cepe_data.teacher.step import ANNOTATE
from cepe_data.tokens.plan import TOKENIZE

VALUES: Mapping[str, type] = {"work_dir": str, "python": str, "gpu_tflops": object, "slurm": list}
TABLES: Mapping[str, type] = dict.fromkeys(("corpus", "tokenize", "samplers", "concat", "embed"), dict)
TABLES = {**TABLES, **dict.fromkeys(("ab", "teacher", "search"), list)}
CORPUS = {"data_dir": str, "num_bytes": object, "domain_map": str, "domain_key": str}
GPU_TFLOPS = 395  # half of what an H200 was measured to reach in bfloat16
Parsers = Mapping[str, Callable[[Sequence[str]], argparse.Namespace]]  # by script: what parses its arguments


@dataclass
class Job:
    """A command, or an array of `num_tasks` of them (0: a single one), and the jobs that it waits for. `positionals`
    come before the id of a task. `step` is what there is of its output, where it has one; `readers` are the jobs that
    read what of it is there for later steps only."""

    name: str
    script: str
    positionals: Sequence[str]
    flags: Sequence[str]
    after: Sequence[Job]
    num_tasks: int = 0
    cores: int = 1
    slurm: Sequence[str] = ()
    id_flag: Sequence[str] = ("--shard_id",)
    step: Step | None = None
    readers: list[Job] = field(default_factory=list, repr=False)

    def words(self, task: int | None = None) -> list[str]:
        """Script and arguments; with the id of a task, as nothing but them says it."""
        own = [] if task is None else [*self.id_flag, str(task)]
        return [self.script, *self.positionals, *own, *self.flags]

    @property
    def tasks(self) -> Sequence[int | None]:
        """The ids of its tasks; None of a single command."""
        return range(self.num_tasks) if self.num_tasks else [None]

    @property
    def outputs(self) -> list[OutputStatus]:
        """What is there, and is to come: nothing of what no later step needs any more."""
        outputs = self.step.outputs if self.step else []
        return outputs if self.is_needed else [output for output in outputs if output.state == DONE]

    @property
    def is_done(self) -> bool:
        return self.step is not None and self.step.is_done

    @cached_property
    def is_needed(self) -> bool:
        """Whether anything of it is to be made: not what was there for later steps only, when these are done and all of
        it is deleted."""
        if self.step is None or self.is_done:
            return False
        lacks_results = any(output.is_result and output.state != DONE for output in self.step.outputs)
        is_there = any(path.exists() for path in self.step.intermediates)
        return lacks_results or is_there or not self.readers or any(job.is_needed for job in self.readers)

    @property
    def waits_for(self) -> list[Job]:
        """The jobs that must have succeeded before this one can: those that are not done, and needed, nearest first."""
        found: dict[int, Job] = {}
        for before in self.after:
            for job in [before] if before.is_needed else before.waits_for:
                found[id(job)] = job
        return list(found.values())

    def left(self) -> list[tuple[list[int], bool]]:
        """The tasks that are to be run; and the damaged ones, which need --overwrite. Tasks that have outputs which
        other arguments made are in neither: what is to become of those is for a person to say."""
        if self.step is None or not self.is_needed:
            return []
        states = [task.state for task in self.step.tasks]
        expected = {PART_DONE, MISSING, *([DONE] if self.waits_for and self.step.ranges_move else [])}
        tasks = [[number for number, state in enumerate(states) if state in of] for of in (expected, {DAMAGED})]
        return [(numbers, overwrite) for numbers, overwrite in zip(tasks, (False, True), strict=True) if numbers]


@dataclass(frozen=True)
class Pipeline:
    """The jobs of a settings file, in an order in which they may run."""

    file: Path
    folder: Path
    python: str
    gpu_tflops: float
    list_words: Sequence[str]
    corpus: OutputStatus
    jobs: Sequence[Job]

    @property
    def steps(self) -> Iterator[tuple[Job, Step]]:
        """The jobs that have an output, and what there is of it."""
        return ((job, job.step) for job in self.jobs if job.step)

    def shown(self, path: Path) -> Path:
        """A path as it is in the folder that the jobs run in."""
        return path.relative_to(self.folder) if path.is_relative_to(self.folder) else path

    def label(self, job: Job) -> str:
        """The name of a job, and where its output is."""
        return f"{job.name} {self.shown(job.step.folder)}" if job.step else job.name

    def command(self, words: Sequence[str]) -> list[str]:
        """What runs a script, or a module, in any folder."""
        script, *arguments = words
        if script.endswith(".py"):
            return [self.python, str(cli.SCRIPTS / script), *arguments]
        return ["env", f"PYTHONPATH={cli.SCRIPTS}", self.python, "-m", script, *arguments]

    def plain(self, words: Sequence[str]) -> str:
        """A line of bash that runs a script where the jobs run."""
        return f"cd {shlex.quote(str(self.folder))} && {shlex.join(self.command(words))}"


class Builder:
    """Makes the jobs of a settings file, in order, and looks at the output of each.

    Raises:
        ArgumentError: if the file is not settings, or a script does not take its arguments.
        PipelineError: if the list of files is not right.
    """

    def __init__(self, file: Path, parsers: Parsers) -> None:
        self._file, self._parsers = file, parsers
        whole, self._tables = settings.read(file, VALUES, TABLES)
        self._values = whole.values
        for name in ("work_dir", "corpus", "tokenize"):
            if name not in whole.values:
                raise ArgumentError(f"{file} has no {name}: copy settings.example.toml, and change it")
        self._folder = (file.parent / whole.values["work_dir"]).resolve()
        self._jobs: list[Job] = []
        self._outputs: list[OutputStatus] = []

    def pipeline(self) -> Pipeline:
        """All of it."""
        [corpus], whole = self._tables["corpus"], Table(self._file, "", 0, self._values)
        corpus.check(CORPUS)
        if "data_dir" not in corpus.values:
            raise corpus.error("data_dir", "[corpus] has no data_dir")
        data_dir = (self._file.parent / corpus.values["data_dir"]).resolve()
        file_list, num_bytes = self._folder / "all_jsonl.txt", float(corpus.values.get("num_bytes", 0))
        if file_list.exists():
            num_bytes = sum(file.num_bytes or 0 for file in listing.read_file_list(file_list).files)
        self._outputs.append(OutputStatus(data_dir, num_bytes=num_bytes))
        listed = [settings.as_flag(name, corpus.values[name]) for name in ("domain_map", "domain_key")
                  if name in corpus.values]  # fmt: skip
        self._add_samplers(self._add_tokens(data_dir))
        if self._tables["embed"] or self._tables["search"]:
            self._add_retrieval(whole)
        for table in self._tables["teacher"]:
            self._add_teacher(table)
        for job in self._jobs:
            paths = job.step.intermediates if job.step else []
            job.readers += [
                other
                for other in self._jobs
                if other.step
                and other is not job
                and any(a.is_relative_to(b) or b.is_relative_to(a) for a in paths for b in other.step.reads)
            ]
        return Pipeline(
            self._file,
            self._folder,
            self._values.get("python", "python3"),
            float(self._values.get("gpu_tflops", GPU_TFLOPS)),
            ["get_all_jsonl.py", str(data_dir), *(word for flags in listed for word in flags)],
            self._outputs[0],
            self._jobs,
        )

    def _add_tokens(self, data_dir: Path) -> list[Job]:
        """Tokenizing, the check behind it, and what counts windows behind that; returns what samplers wait for."""
        [table] = self._tables["tokenize"]
        num_shards = {"num_shards": table.values.get("shards", 1)}
        table.check(table.keys(TOKENIZE, ["data_dir"], ["shards", "cores", "slurm"]))
        tokens = self._add("tokenize", TOKENIZE, table, {"data_dir": data_dir, **num_shards}, [])
        check = Job("check", "sanity_check.py", [], ["--deep", *settings.as_flag(*num_shards.popitem())], [tokens])
        self._jobs.append(replace(check, slurm=self._flags(table)))
        if any(shared.values.get("drop_duplicates") for shared in self._tables["samplers"]):
            mark = Job("mark_duplicates", "sanity_check.py", ["duplicates"], [], self._jobs[-1:])
            self._jobs.append(replace(mark, slurm=self._flags(table)))
        return self._jobs[-1:]

    def _add_samplers(self, checked: Sequence[Job]) -> None:
        sets: list[tuple[str, Script, Table, dict[str, object]]] = []
        for script, name in ((INSIDE, "sample_ab"), (CONCAT, "sample_concat")):
            for table in self._tables[name.removeprefix("sample_")]:
                own = ["shards", "cores", "slurm"] if script is CONCAT else ["cores", "slurm"]
                keys = {**table.keys(script, [], own), "output": str}
                table.check(keys)
                for shared in self._tables["samplers"]:
                    shared.check(
                        {name: object for name in keys if name not in {"output", "slurm", *script.positionals}}
                    )
                given = {**self._tables["samplers"][0].values} if self._tables["samplers"] else {}
                given = {name: value for name, value in given.items() if name not in table.values}
                if script is CONCAT:
                    given |= {"retrieval_shards": table.values.get("shards", 100)}
                sets.append((name, script, table, given))
        counts = []
        for _, script, table, given in sets:
            positionals, flags = table.arguments(script, {**given, "dry_run": True})
            ids = ["0"] if script is CONCAT else []
            counts.append(Job("count", script.name, [*positionals, *ids], flags, checked, slurm=self._flags(table)))
        self._jobs += counts
        for name, script, table, given in sets:
            self._add(name, script, table, given, [*checked, *counts])

    def _add_teacher(self, table: Table) -> None:
        table.check(table.keys(ANNOTATE, [], [*settings.OWN]))
        given = {"num_shards": table.values.get("shards", 1), "domain": table.values.get("domain", "all")}
        given |= {"num_gpus": table.values["gpus"]} if "gpus" in table.values else {}
        keys = [name for name in ("input_dir", "retrieval_input_dir") if name in table.values]
        before = [self._makes(table, name, str(table.values[name])) for name in keys]
        of_parts = self._add("annotate", ANNOTATE, table, given, before)
        self._add("annotate_merge", ANNOTATE, table, {**given, "merge": True}, [of_parts])

    def _makes(self, table: Table, key: str, folder: str) -> Job:
        """The job that makes the sets in a folder."""
        for job in reversed(self._jobs):
            if job.step and (self._folder / folder).is_relative_to(job.step.folder):
                return job
        raise table.error(key, f"nothing in these settings makes {folder}")

    def _add_retrieval(self, whole: Table) -> None:
        if not (self._tables["concat"] and self._tables["embed"]):
            raise whole.error("search", "passages are retrieved from what [concat] and [embed] make: one is missing")
        [concat], [embed] = self._tables["concat"], self._tables["embed"]
        output = str(concat.values["output"])
        embed.check(embed.keys(EMBED, ["corpus"], [*settings.OWN]))
        given = {"corpus": f"{output}/retrieval", "output": "embeddings", "num_shards": embed.values.get("shards", 1)}
        embedded = self._add("embed", EMBED, embed, given, [self._makes(concat, "output", output)])
        encoder = {"model_dir": embed.values["model_dir"]} if "model_dir" in embed.values else {}
        for table in self._tables["search"]:
            joined = ["queries", "embeddings", "model_dir"]
            table.check({**table.keys(SEARCH, joined, [*settings.OWN]), "split": str})
            split = table.values.get("split", "test")
            queries = {"queries": f"{output}/{split}", "embeddings": "embeddings"}
            given = {**queries, **encoder, "output": f"hits/{split}", "num_shards": table.values.get("shards", 1)}
            searched = self._add("search", SEARCH, table, given, [embedded])
            merged = self._add("search_merge", SEARCH, table, {**given, "merge": True}, [searched])
            only = {name: value for name, value in table.values.items() if name in {"domain", "slurm"}}
            given = {**queries, "hits": f"hits/{split}", "output": f"retrieved/{split}"}
            self._add("write_mds", WRITE, replace(table, values=only), given, [merged])

    def _flags(self, table: Table, num_tasks: int = 0, is_alone: bool = True) -> list[str]:
        """What sbatch is told of a job: cores and GPUs are for tasks that compute."""
        values = {} if is_alone else table.values
        flags = [f"--{flag}={values[key]}" for key, flag in (("gpus", "gpus"), ("cores", "cpus-per-task"))
                 if key in values]  # fmt: skip
        array = [f"--array=0-{num_tasks - 1}"] if num_tasks else []
        return [*self._values.get("slurm", []), *table.values.get("slurm", []), *flags, *array]

    def _add(self, name: str, script: Script, table: Table, given: dict[str, Any], after: Sequence[Job]) -> Job:
        """Add a job, and look at its output, for which its arguments are parsed by its own script."""
        own_workers = "num_workers" in script.arguments and "cores" in table.values
        given |= {"num_workers": table.values["cores"]} if own_workers else {}
        model = self._folder / str(given.get("model_dir", table.values.get("model_dir", "")))
        given |= {"model_dir": model} if model.is_dir() and model != self._folder else {}
        positionals, flags = table.arguments(script, given)
        options = self._parse(script, table, [*positionals, *flags])
        step = script.look(options, self._outputs)
        is_alone = bool(given.get("merge"))
        num_tasks = 0 if is_alone or not {"num_shards", "retrieval_shards"} & {*given} else len(step.tasks)
        id_flag = () if "shard_id" in script.positionals else ("--shard_id",)
        cores, slurm = table.values.get("cores", 1), self._flags(table, num_tasks, is_alone)
        job = Job(name, script.name, positionals, flags, after, num_tasks, cores, slurm, id_flag, step)
        self._outputs += step.outputs
        self._jobs.append(job)
        return job

    def _parse(self, script: Script, table: Table, words: Sequence[str]) -> Any:
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                args = self._parsers[script.name](words)
        except SystemExit:
            what = said.getvalue().strip().splitlines()[-1].partition("error: ")[2]
            key = re.match(r"argument (?:--)?(\w+)", what)
            message = f"{script.name} does not take this: {what}"
            raise table.error(key[1].lower() if key else "", message) from None
        taken: Any = cli.typed(script.options, args)
        paths = {name: self._folder / value for name, value in vars(taken).items() if isinstance(value, Path)}
        return replace(taken, **paths)
