"""``segmod-benchmark``: time, memory and operations of a model; for a sweep its jobs side by side, taking turns."""

from __future__ import annotations

import json
import logging
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from omegaconf import DictConfig

from segmod.ground.errors import UserError
from segmod.runs import folders as runs
from segmod.runs import trial
from segmod.runs.environment import git_commit, hardware, versions
from segmod.runs.jobs import Job, find_reference, label, name_of, settle, whole

log = logging.getLogger(__name__)


def after(jobs: Sequence[tuple[Job, DictConfig]]) -> None:
    """Measure the jobs of this command, once all are known."""
    from segmod.runs.comparison import report

    cfg, measured = jobs[0][1], [job for job, _ in jobs]
    label(measured)
    reference = find_reference(measured, cfg.against)
    rounds = whole(cfg, "rounds") or (3 if len(measured) > 1 else 1)
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the child is ended, too
    try:
        measure(measured, rounds, reference)
    finally:
        signal.signal(signal.SIGTERM, before)
    report(measured, reference, Path(str(cfg.output)).expanduser() / name_of(measured))


def main(cfg: DictConfig) -> tuple[Job, DictConfig]:
    """Settle what is to be measured; `after` measures once all jobs are known."""
    return settle(cfg), cfg


# -- measuring -------------------------------------------------------------------------------------------------------


def measure(jobs: Sequence[Job], rounds: int, reference: Job) -> None:
    """Count once, then let the jobs take turns; after each round all is written."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    trials = list(plan(jobs, rounds))
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=len(trials))
        for i, (round_, kind, job) in enumerate(trials):
            turn = f", round {round_} of {rounds}" if round_ else ""
            progress.update(task, description=f"{job.label}: {kind}{turn}")
            quick = {"warmup": 0, "steps": 2} if kind == "train" and not round_ else {}
            try:
                found = trial.run(kind, job.model, {**job.settings, **quick, "what": job.what})
            except UserError as error:
                raise UserError(f"{job.label}: {error}" if len(jobs) > 1 else str(error)) from error
            enter(job, kind, found, timed=bool(round_))
            progress.advance(task)
            if round_ and not console.is_terminal:  # a log file shows how far it is
                log.info("%s: %s%s: %.3f s", job.label, kind, turn, median(found["time_s"]))
            if i + 1 == len(trials) or trials[i + 1][0] > max(round_, 1):
                for other in jobs:
                    other.settings["rounds"] = round_
                    relate(other, reference)
                    write(other, reference if len(jobs) > 1 else None)


def plan(jobs: Sequence[Job], rounds: int) -> Iterator[tuple[int, str, Job]]:
    """Round (0: before them), kind and job of each trial, in their order."""
    for job in jobs:
        yield 0, "count", job
    for job in jobs:
        if "memory" in job.what and "train" not in job.what:
            yield 0, "train", job
    for round_ in range(1, rounds + 1):
        for kind in ("train", "test"):
            for job in jobs:
                if kind in job.what:
                    yield round_, kind, job


def enter(job: Job, kind: str, found: dict[str, Any], timed: bool) -> None:
    """Put what a trial has found into its job."""
    from segmod.measure import spread

    job.values |= found.get("values", {})
    for key in ("memory_bytes", "reserved_bytes"):
        if key in found:
            name = f"{kind}_{key}"
            job.values[name] = max(found[key], job.values.get(name, 0))
    if timed:
        for key in ("time_s", "cpu_s"):
            all_rounds = job.rounds.setdefault(kind, {}).setdefault(key, [])
            all_rounds.append(found[key])
            job.values[f"{kind}_{key}"] = spread(all_rounds)["median"]


def relate(job: Job, reference: Job) -> None:
    """Ratios of a job to the reference: of times by rounds, of the rest by value."""
    from segmod.measure import ratio_of_rounds

    job.ratios = {}
    for name, value in job.values.items():
        kind, _, key = name.partition("_")
        own, other = (j.rounds.get(kind, {}).get(key) for j in (job, reference))
        if own and other and len(own) == len(other):
            job.ratios[name] = ratio_of_rounds(own, other)
        elif reference.values.get(name):
            job.ratios[name] = value / reference.values[name]


def write(job: Job, reference: Job | None) -> None:
    """Write benchmark.json."""
    from segmod.measure import spread

    times = {
        kind: {key: spread(rounds) for key, rounds in clocks.items()} | {"rounds": clocks}
        for kind, clocks in job.rounds.items()
    }
    contents = {
        "name": job.name,
        "settings": job.settings | {name: bool(job.model.get(name)) for name in ("channels_last", "compile")},
        "net": job.model["net"],
        "values": job.values,
        **times,
        "ratios": {"against": reference.label, **job.ratios} if reference else None,
        **job.facts,
        "git_commit": git_commit(),
        "versions": versions(),
        "hardware": hardware(),
    }
    job.directory.mkdir(parents=True, exist_ok=True)
    runs.write_atomically(job.directory / "benchmark.json", json.dumps(contents, indent=2) + "\n")
