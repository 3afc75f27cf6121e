"""``segmod-benchmark``: time, memory and operations of a model; for a sweep its jobs side by side, taking turns."""

from __future__ import annotations

import json
import logging
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from segmod import charts
from segmod.ground.errors import UserError, require
from segmod.ground.files import replace_text
from segmod.ground.printing import markdown, print_table, short_path, write_records
from segmod.measure import ratio_of_rounds, spread
from segmod.runs import cli, trial
from segmod.runs import folders as runs
from segmod.runs.environment import git_commit, hardware, versions
from segmod.runs.instantiate import settle_classes
from segmod.runs.keys import readable, shortened
from segmod.runs.records import without_weights
from segmod.runs.tables import reported

log = logging.getLogger(__name__)

WHAT = ("train", "test", "memory", "flops")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
# Timed and warm-up passes: on a GPU those of Chen et al.; on a CPU, where a pass takes seconds, few
_COUNTS = {"cuda": {"steps": 20, "passes": 100, "warmup": 10}, "cpu": {"steps": 3, "passes": 5, "warmup": 1}}
_COSTLESS = ("predictor", "scheduler", "scheduler_monitor", "init_from")  # change no cost, or ask for files
DASH = "\N{EN DASH}"


def after(jobs: Sequence[tuple[Job, DictConfig]]) -> None:
    """Measure the jobs of this command, once all are known."""
    cfg, measured = jobs[0][1], [job for job, _ in jobs]
    label_jobs(measured)
    reference = find_reference(measured, cfg.against)
    rounds = cfg.rounds or (3 if len(measured) > 1 else 1)
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the child is ended, too
    try:
        take_turns(measured, rounds, reference)
    finally:
        signal.signal(signal.SIGTERM, before)
    show(measured, reference, Path(str(cfg.output)).expanduser() / sweep_name(measured))


# -- what is measured ------------------------------------------------------------------------------------------------


@dataclass
class Job:
    """One model under one setting, and what was measured of it."""

    name: str  # of the run
    folder: Path  # of the runs with the same choices
    model: dict[str, Any]  # the resolved node `model`
    settings: dict[str, Any]  # how it is measured
    what: list[str]  # which of WHAT
    facts: dict[str, Any]  # what else belongs to the record
    given: dict[str, Any]  # keys that are part of the settings where they are given; None where not
    overrides: str = ""  # of the recipe, as names of folders tell them, however many
    label: str = ""  # what tells it from the other jobs
    values: dict[str, float] = field(default_factory=dict)  # by the names of benchmark.json
    # of `train` and `test`: seconds of each pass (`time_s`, `cpu_s`), a list for each round
    rounds: dict[str, dict[str, list[list[float]]]] = field(default_factory=dict)
    ratios: dict[str, float] = field(default_factory=dict)  # to the job that ratios are against

    @property
    def record(self) -> Path:
        """Where the record goes: a function of the choices."""
        return self.folder / "benchmark" / self.parts[2] / "benchmark.json"

    @property
    def parts(self) -> tuple[str, str, str]:
        """Name, overrides and settings: what may tell it from others."""
        s = self.settings
        words = [s["device"].replace(":", ""), "x".join(map(str, [s["batch"], *s["size"]])), s["precision"]]
        words += [f"{name}_{value}".lower() for name, value in self.given.items() if value is not None]
        words += ["_".join(self.what)] if set(self.what) != set(WHAT) else []
        return self.name, self.overrides, "-".join(words)

    def seconds(self, name: str) -> list[list[float]]:
        """Seconds of each pass of each round, of a value such as ``train_cpu_s``; empty for what is no time."""
        kind, _, clock = name.partition("_")
        return self.rounds.get(kind, {}).get(clock, [])

    def spread(self, name: str) -> dict[str, float]:
        """Quartiles and the like of a time over all rounds; empty for what is no time."""
        return spread(seconds) if (seconds := self.seconds(name)) else {}

    def of_the_paper(self, name: str) -> float | None:
        """Number of a paper by its name in benchmark.json; a paper's time stands beside both of our clocks."""
        metrics: dict[str, float] = self.facts.get("reported") or {}
        return metrics.get(name, metrics.get(name.replace("_cpu_s", "_time_s")))


def main(cfg: DictConfig) -> tuple[Job, DictConfig]:
    """The job that a config describes, with all defaults filled in; `after` measures it, once all are known.

    Raises:
        UserError: A key has a value that cannot be.
    """
    what = [cfg.what] if isinstance(cfg.what, str) else list(cfg.what or [])
    require(bool(what) and not set(what) - set(WHAT), f"what={cfg.what}: choose some of [{','.join(WHAT)}]")
    device = str(trial.device_of(str(cfg.device)))
    precision = str(cfg.trainer.precision if cfg.precision is None else cfg.precision)
    require(precision in PRECISIONS, f"precision={precision}: choose one of {', '.join(PRECISIONS)}")
    needs_gpu = precision == "16-mixed" and device == "cpu"
    require(not needs_gpu, "precision=16-mixed needs a GPU: choose bf16-mixed or 32-true")
    counts = {name: cfg[name] for name in ("steps", "passes", "warmup")}
    settings = {
        "device": device,
        "batch": cfg.batch or cfg.data.batch_size,
        "size": size_of(cfg),
        "precision": precision,
        **_COUNTS[device.partition(":")[0]],
        **{name: count for name, count in counts.items() if count is not None},
        "threads": cfg.threads or torch.get_num_threads(),
        "gradient_clip_val": cfg.trainer.get("gradient_clip_val"),
    }
    job = Job(
        name=str(cfg.name),
        folder=Path(runs.run_dir(cfg.runs, str(cfg.name), cfg.seed, cli.overrides(), cli.choices())).parent,
        model=model_of(cfg),
        settings=settings,
        what=what,
        facts={
            **{group: cli.choices().get(group) for group in ("model", "sweep")},
            "reported": reported(cfg, cli.search_path()),
            "command": shlex.join(["segmod-benchmark", *cli.overrides()]),
        },
        given={name: cfg[name] for name in ("channels_last", "compile", "threads")},
        overrides=readable(cli.overrides(), with_model_and_data=True, longest=None),
    )
    return job, cfg


def model_of(cfg: DictConfig) -> dict[str, Any]:
    """The resolved node ``model`` for the classes of the data, without weights and `_COSTLESS`."""
    settle_classes(cfg)
    cfg.model.update({name: None for name in _COSTLESS if name in cfg.model})
    resolved: Any = OmegaConf.to_container(cfg.model, resolve=True)
    model = {name: value for name, value in resolved.items() if name not in _COSTLESS}
    for name in ("channels_last", "compile"):
        if cfg[name] is not None:
            model[name] = cfg[name]
    model["net"] = without_weights(model["net"])
    return model


def size_of(cfg: DictConfig) -> list[int]:
    """Height and width of the images."""
    size: Any = cfg.size if cfg.size is not None else cfg.data.get("crop_size") or cfg.data.get("squash")
    require(size is not None, "size is required, the training images have no size of their own: give size=N or [H,W]")
    return [size, size] if not OmegaConf.is_list(size) else list(size)


def label_jobs(jobs: Sequence[Job]) -> None:
    """Call each job by what tells it from the others.

    Raises:
        UserError: Two are the same.
    """
    words = [job.parts[1].split("+") for job in jobs]
    overrides = ["+".join(w for w in own if not all(w in other for other in words)) for own in words]
    names = [(job.parts[0], changed, job.parts[2]) for job, changed in zip(jobs, overrides, strict=True)]
    for chosen in ((0,), (1,), (2,), (0, 1), (1, 2), (0, 2), (0, 1, 2)):
        for job, parts in zip(jobs, names, strict=True):
            job.label = " ".join(parts[i] for i in chosen if parts[i]) or "as it is"
        if len({job.label for job in jobs}) == len(jobs):
            return
    twice = max((job.label for job in jobs), key=[job.label for job in jobs].count)
    raise UserError(f"two jobs of this sweep are both {twice}: sweep over what changes the costs, which seeds do not")


def sweep_name(jobs: Sequence[Job]) -> str:
    """What the files of a sweep are called: by its sweep of segmod-train or its runs, by its overrides and settings."""
    words = [job.facts["sweep"] or job.name for job in jobs] + [part for job in jobs for part in job.parts[1:]]
    return shortened("+".join(filter(None, dict.fromkeys(words))))


def find_reference(jobs: Sequence[Job], against: Any) -> Job:
    """The job that ratios are against."""
    for job in jobs:
        if against is None or str(against) in (job.label, job.name):
            return job
    raise UserError(f"against={against}: no such job; choose one of {', '.join(job.label for job in jobs)}")


# -- measuring -------------------------------------------------------------------------------------------------------


def take_turns(jobs: Sequence[Job], rounds: int, reference: Job) -> None:
    """Count once, then let the jobs take turns; after each round all is written."""
    trials = plan(jobs, rounds)
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
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
                    write_benchmark(other, reference if len(jobs) > 1 else None)


def plan(jobs: Sequence[Job], rounds: int) -> list[tuple[int, str, Job]]:
    """Round (0: before them), kind and job of each trial, in their order."""
    once = [(0, "count", job) for job in jobs]
    once += [(0, "train", job) for job in jobs if "memory" in job.what and "train" not in job.what]
    kinds = [(kind, job) for kind in ("train", "test") for job in jobs if kind in job.what]
    return once + [(round_, kind, job) for round_ in range(1, rounds + 1) for kind, job in kinds]


def enter(job: Job, kind: str, found: dict[str, Any], timed: bool) -> None:
    """Put what a trial has found into its job."""
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
    job.ratios = {}
    for name, value in job.values.items():
        own, other = job.seconds(name), reference.seconds(name)
        if own and len(own) == len(other):
            job.ratios[name] = ratio_of_rounds(own, other)
        elif reference.values.get(name):
            job.ratios[name] = value / reference.values[name]


def write_benchmark(job: Job, reference: Job | None) -> None:
    """Write benchmark.json."""
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
    replace_text(job.record, json.dumps(contents, indent=2) + "\n")


# -- showing ---------------------------------------------------------------------------------------------------------


UNITS = {"M": (1e-6, 2), "GFLOP": (1e-9, 1), "MiB": (2.0**-20, 0), "s": (1.0, 3)}
"""Factor from the unit of benchmark.json to that of the table, and the digits there."""

QUANTITIES = {
    "parameters": ("parameters", "M"),
    "forward_flops": ("forward", "GFLOP"),
    "train_flops": ("forward + backward", "GFLOP"),
    "saved_activation_bytes": ("saved activations", "MiB"),
    "train_memory_bytes": ("training memory", "MiB"),
    "train_reserved_bytes": ("training memory, reserved", "MiB"),
    "test_memory_bytes": ("test memory", "MiB"),
    "train_time_s": ("training step", "s"),
    "train_cpu_s": ("training step, CPU time", "s"),
    "test_time_s": ("forward pass", "s"),
    "test_cpu_s": ("forward pass, CPU time", "s"),
}
"""How a table calls the values of benchmark.json, and their units there."""


def show(jobs: Sequence[Job], reference: Job, path: Path) -> None:
    """Print what was found; of a sweep also write ``path`` .md, .csv and charts."""
    lines, note = compare(jobs, reference), caption(jobs)
    console = print_table(note, lines)
    for job in jobs:
        console.print(f"written: {short_path(job.record.absolute())}", soft_wrap=True)
    if len(jobs) > 1:
        replace_text(f"{path}.md", f"**{note}**\n\n{markdown(lines)}\n")
        write_records(Path(f"{path}.csv"), list(flat_records(jobs, reference)))
        charts = draw_charts(jobs, reference, path)
        console.print(f"written: {short_path(path.absolute())}{{.md,.csv,{','.join(charts)}}}", soft_wrap=True)


def caption(jobs: Sequence[Job]) -> str:
    """The settings that all jobs have in common."""
    common = {k: v for k, v in jobs[0].settings.items() if all(job.settings.get(k) == v for job in jobs)}
    words = [str(common[key]) for key in ("device", "precision") if key in common]
    words += [f"batch {common['batch']}"] if "batch" in common else []
    words += ["x".join(map(str, common["size"]))] if "size" in common else []
    words += [f"{common[key]} {key}" for key in ("threads", "steps", "passes", "rounds") if common.get(key)]
    return ", ".join(words)


def compare(jobs: Sequence[Job], reference: Job) -> list[list[str]]:
    """Header and lines: a column for each job, under each quantity its quartiles, its ratio and the paper's."""

    def text(value: float | None, factor: float = 1.0, digits: int = 2) -> str:
        return DASH if value is None else f"{factor * value:.{digits}f}"

    lines = [["", *(job.label for job in jobs)]]
    for name, (header, unit) in QUANTITIES.items():
        if not any(name in job.values for job in jobs):
            continue
        lines.append([f"{header} ({unit})", *(text(job.values.get(name), *UNITS[unit]) for job in jobs)])
        spreads = [job.spread(name) for job in jobs]
        if any(s.get("count", 0) > 1 for s in spreads):
            quartiles = [[text(s.get(q), *UNITS[unit]) for q in ("q1", "q3")] for s in spreads]
            lines.append(["- quartiles", *(" to ".join(pair) if DASH not in pair else DASH for pair in quartiles)])
        if len(jobs) > 1:
            lines.append(["- ratio", *(text(job.ratios.get(name)) for job in jobs)])
            papers = [paper_ratio(job, reference, name) for job in jobs]
            lines += [["- ratio, paper", *map(text, papers)]] if any(papers) else []
    return lines


def paper_ratio(job: Job, reference: Job, name: str) -> float | None:
    """The ratio by the numbers that a paper reports of these two, if it does."""
    own, other = job.of_the_paper(name), reference.of_the_paper(name)
    return own / other if own and other else None


def flat_records(jobs: Sequence[Job], reference: Job) -> Iterator[dict[str, Any]]:
    """One record for each job and quantity, in the units of benchmark.json."""
    for job in jobs:
        for name, value in job.values.items():
            yield {
                "job": job.label, "quantity": name, "value": value,
                **{key: job.spread(name).get(key) for key in ("q1", "q3")},
                "ratio": job.ratios.get(name), "against": reference.label,
                "paper_ratio": paper_ratio(job, reference, name),
            }  # fmt: skip


def draw_charts(jobs: Sequence[Job], reference: Job, path: Path) -> list[str]:
    """Draw ratios of times and of memory, with the paper's; returns the endings of the files."""
    # other work on the machine disturbs CPU time less than what the clock says
    times = ("train_cpu_s", "test_cpu_s") if reference.settings["device"] == "cpu" else ("train_time_s", "test_time_s")
    timed = any(name in reference.ratios for name in times)
    wanted = {
        "-time.png": ("Time", times) if timed else ("Operations", ("forward_flops", "train_flops")),
        "-memory.png": ("Memory", ("saved_activation_bytes", "train_memory_bytes")),
    }
    drawn = []
    for ending, (what, names) in wanted.items():
        series: dict[str, list[float | None]] = {}
        for name in names:
            header = QUANTITIES[name][0]
            series[header] = [job.ratios.get(name) for job in jobs]
            series[f"{header.partition(',')[0]}, paper"] = [paper_ratio(job, reference, name) for job in jobs]
        if series := {header: ratios for header, ratios in series.items() if any(ratios)}:
            title = f"{what} as a multiple of {reference.label}"
            charts.bar_chart([job.label for job in jobs], series, Path(f"{path}{ending}"), title, "ratio")
            drawn.append(ending)
    return drawn
