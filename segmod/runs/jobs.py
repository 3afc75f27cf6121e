"""What ``segmod-benchmark`` measures: one model under one setting, and what was found of it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from segmod.ground.errors import UserError
from segmod.runs import cli, trial
from segmod.runs import folders as runs
from segmod.runs.keys import readable, shortened
from segmod.runs.results import without_weights
from segmod.runs.tables import reported

WHAT = ("train", "test", "memory", "flops")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
# Timed and warm-up passes: on a GPU those of Chen et al.; on a CPU, where a pass takes seconds, few
_COUNTS = {"cuda": {"steps": 20, "passes": 100, "warmup": 10}, "cpu": {"steps": 3, "passes": 5, "warmup": 1}}


@dataclass
class Job:
    """One model under one setting, and what was measured of it.

    Attributes:
        name: Of the run.
        folder: Of the runs with the same choices.
        model: The resolved node ``model``.
        settings: How it is measured.
        what: Which of `WHAT`.
        facts: What else belongs to the record.
        given: Keys that are part of the settings where they are given; None where not.
        overrides: Of the recipe, as names of folders tell them, however many.
        label: What tells it from the other jobs.
        values: Flat, by the names of benchmark.json.
        rounds: Of ``train`` and ``test``: seconds of each pass (``time_s``, ``cpu_s``), a list for each round.
        ratios: To the job that ratios are against.
    """

    name: str
    folder: Path
    model: dict[str, Any]
    settings: dict[str, Any]
    what: list[str]
    facts: dict[str, Any]
    given: dict[str, Any]
    overrides: str = ""
    label: str = ""
    values: dict[str, float] = field(default_factory=dict)
    rounds: dict[str, dict[str, list[list[float]]]] = field(default_factory=dict)
    ratios: dict[str, float] = field(default_factory=dict)

    @property
    def directory(self) -> Path:
        """Where the record goes: a function of the choices."""
        return self.folder / "benchmark" / self.parts[2]

    @property
    def parts(self) -> tuple[str, str, str]:
        """Name, overrides and settings: what may tell it from others."""
        s = self.settings
        height, width = s["size"]
        words = [s["device"].replace(":", ""), f"{s['batch']}x{height}x{width}", s["precision"]]
        words += [f"{name}_{value}".lower() for name, value in self.given.items() if value is not None]
        words += ["_".join(self.what)] if set(self.what) != set(WHAT) else []
        return self.name, self.overrides, "-".join(words)


def settle(cfg: DictConfig) -> Job:
    """The job that a config describes, with all defaults filled in.

    Raises:
        UserError: A key has a value that cannot be.
    """
    import torch

    what = [cfg.what] if isinstance(cfg.what, str) else list(cfg.what or [])
    if not what or set(what) - set(WHAT):
        raise UserError(f"what={cfg.what}: choose some of [{','.join(WHAT)}]")
    device = str(trial.device_of(str(cfg.device)))
    precision = str(cfg.trainer.precision if cfg.precision is None else cfg.precision)
    if precision not in PRECISIONS:
        raise UserError(f"precision={precision}: choose one of {', '.join(PRECISIONS)}")
    if precision == "16-mixed" and device == "cpu":
        raise UserError("precision=16-mixed needs a GPU: choose bf16-mixed or 32-true")
    counts = {name: whole(cfg, name, least=name != "warmup") for name in ("steps", "passes", "warmup")}
    defaults = _COUNTS[device.partition(":")[0]]
    settings = {
        "device": device,
        "batch": whole(cfg, "batch") or whole(cfg, "data.batch_size"),
        "size": size_of(cfg),
        "precision": precision,
        **{name: defaults[name] if count is None else count for name, count in counts.items()},
        "threads": whole(cfg, "threads") or torch.get_num_threads(),
        "gradient_clip_val": cfg.trainer.get("gradient_clip_val"),
    }
    return Job(
        name=str(cfg.name),
        folder=Path(runs.run_dir(cfg.runs, str(cfg.name), cfg.seed, cli.overrides(), cli.choices())).parent,
        model=model_of(cfg),
        settings=settings,
        what=what,
        facts={
            "model": cli.choices().get("model"),
            "sweep": cli.choices().get("sweep"),
            "reported": reported(cfg, cli.search_path()),
            "command": shlex.join(["segmod-benchmark", *cli.overrides()]),
        },
        given={name: cfg[name] for name in ("channels_last", "compile", "threads")},
        overrides=readable(cli.overrides(), with_model_and_data=True, longest=None),
    )


def model_of(cfg: DictConfig) -> dict[str, Any]:
    """The resolved node ``model`` without what changes no cost, or asks for files: weights, schedule, predictor."""
    for name in ("predictor", "scheduler", "scheduler_monitor", "init_from"):
        if name in cfg.model:
            cfg.model[name] = None
    model: Any = OmegaConf.to_container(cfg.model, resolve=True)
    for name in ("channels_last", "compile"):
        if cfg[name] is not None:
            if not isinstance(cfg[name], bool):
                raise UserError(f"{name}={cfg[name]}: give true or false")
            model[name] = cfg[name]
    model["net"] = without_weights(model["net"])
    return dict(model)


def size_of(cfg: DictConfig) -> list[int]:
    """Height and width of the images."""
    size: Any = cfg.size
    if size is None:
        size = cfg.data.get("crop_size") or cfg.data.get("squash")
        if size is None:
            raise UserError("size is required, for the training images have no size of their own: give size=N or [H,W]")
    sides = [size, size] if not OmegaConf.is_list(size) else list(size)
    if len(sides) != 2 or not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in sides):
        raise UserError(f"size={size}: give a whole number of pixels, or [height,width]")
    return sides


def whole(cfg: DictConfig, key: str, least: int = 1) -> int | None:
    """A whole number of the config, or None.

    Raises:
        UserError: It is something else, or too small.
    """
    value = OmegaConf.select(cfg, key)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
        raise UserError(f"{key}={value}: give a whole number, {int(least)} or more")
    return value


def label(jobs: Sequence[Job]) -> None:
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
    labels = [job.label for job in jobs]
    if twice := next((name for name in labels if labels.count(name) > 1), None):
        raise UserError(
            f"two jobs of this sweep are both {twice}: sweep over what changes the costs, which seeds do not"
        )


def name_of(jobs: Sequence[Job]) -> str:
    """What the files of a sweep are called: by its sweep of segmod-train or its runs, by its overrides and settings."""
    runs_of = [job.facts["sweep"] or job.name for job in jobs]
    return shortened(
        "+".join(filter(None, dict.fromkeys([*runs_of, *(part for job in jobs for part in job.parts[1:])])))
    )


def find_reference(jobs: Sequence[Job], against: Any) -> Job:
    """The job that ratios are against."""
    if against is None:
        return jobs[0]
    for job in jobs:
        if str(against) in (job.label, job.name):
            return job
    raise UserError(f"against={against}: no such job; choose one of {', '.join(job.label for job in jobs)}")
