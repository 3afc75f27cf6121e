"""Run directories: a function of the choices, never of the clock; what they hold, and who may go on in one."""

from __future__ import annotations

import json
import logging
import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from segmod.ground.errors import UserError
from segmod.runs.environment import git_commit, hardware, peak_memory, versions
from segmod.runs.keys import digest, readable, settings

log = logging.getLogger(__name__)


def run_dir(runs: str, name: str, seed: int, overrides: Sequence[str], choices: Mapping[str, Any]) -> str:
    """Directory of a run: ``runs/<name>[/<overrides>]/seed<k>``."""
    if not isinstance(seed, int):
        raise UserError(f"seed={seed!r}: give a whole number")
    if OmegaConf.is_list(overrides):  # as they were typed: an interpolation in one is not of Hydra's own config
        typed: Any = OmegaConf.to_container(overrides, resolve=False)
        overrides = list(typed)
    is_default = name == f"{choices.get('model')}-{choices.get('data')}"
    suffix = readable(overrides, with_model_and_data=not is_default)
    return str(Path(runs).expanduser().joinpath(*filter(None, [name, suffix]), f"seed{seed}"))


def register_resolvers() -> None:
    """Make ``${segmod.run_dir:...}`` and ``${segmod.find_run:...}`` known to the configs."""
    OmegaConf.register_new_resolver("segmod.run_dir", run_dir, replace=True)
    OmegaConf.register_new_resolver("segmod.find_run", lambda *given: str(find_run(*given).directory), replace=True)


@dataclass(frozen=True)
class Run:
    """A run directory and what stands in it."""

    directory: Path

    @property
    def config_file(self) -> Path:
        """The config the run was made with."""
        return self.directory / ".hydra" / "config.yaml"

    @property
    def metrics_file(self) -> Path:
        """Written when the run is finished, not before."""
        return self.directory / "metrics.json"

    def result(self) -> dict[str, Any] | None:
        """The stored metrics of a finished run, else None."""
        if not self.metrics_file.is_file():
            return None
        try:
            result: dict[str, Any] = json.loads(self.metrics_file.read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read {self.metrics_file} ({error}): delete it and run again") from None
        return result

    def config(self) -> DictConfig:
        """The stored config.

        Raises:
            UserError: The directory holds no run.
        """
        if not self.config_file.is_file():
            raise UserError(
                f"run={self.directory}: no run there (no {self.config_file}); give a folder like runs/NAME/seed0"
            )
        cfg = OmegaConf.load(self.config_file)
        assert isinstance(cfg, DictConfig)
        cfg.run_dir = str(self.directory.resolve())
        return cfg

    def checkpoint(self, which: str) -> Path:
        """Path of the ``best`` or ``last`` checkpoint (the last where no validation has made a best), or a path.

        Raises:
            UserError: It does not exist.
        """
        folder = self.directory / "checkpoints"
        candidates = {"best": ["best.ckpt", "last.ckpt"], "last": ["last.ckpt"]}.get(which)
        paths = [folder / name for name in candidates] if candidates else [Path(which)]
        for path in paths:
            if path.is_file():
                return path
        raise UserError(
            f"checkpoint={which}: {paths[0]} does not exist; train the run first, or choose best, last or a file"
        )


def find_run(given: str, root: str = "runs", key: str = "run", seed: str | None = None) -> Run:
    """The run that a user names: by its folder, by a folder with one run below it, or by the name of a run.

    Args:
        given: Such as ``runs/fcn8s/seed0``, ``runs/fcn8s`` or ``fcn8s``.
        root: Folder of the runs, where names are looked for.
        key: Config key to name in messages.
        seed: Folder name such as ``seed0``; where several runs are found, those of another name are left out.

    Raises:
        UserError: There is no such run, or there are several.
    """
    for path in (Path(given).expanduser(), Path(root).expanduser() / given):
        found = sorted(p.parents[1] for depth in ("", "*/", "*/*/") for p in path.glob(f"{depth}.hydra/config.yaml"))
        if len(found) > 1:
            found = [path for path in found if path.name == seed] or found
        if len(found) > 1:
            listed = ", ".join(map(str, found[:6])) + (f" and {len(found) - 6} more" if len(found) > 6 else "")
            raise UserError(f"{key}={given}: there are {len(found)} runs; choose one of {listed}")
        if found:
            return Run(found[0].resolve())
    raise UserError(
        f"{key}={given}: no run there, and none of that name in {root}; give a folder like runs/NAME/seed0, or train it"
    )


def open_run(cfg: DictConfig) -> Run:
    """Claim the directory of a config: new, or holding the same config, or overwritten if the config says so.

    Raises:
        UserError: It holds a run with another config; names the keys that differ.
    """
    run = Run(Path(cfg.run_dir))
    leader = is_leader()
    if cfg.overwrite and not leader:
        return run  # the leader clears the folder in its own time
    if cfg.overwrite:
        for name in (
            ".hydra",
            "checkpoints",
            "evaluation",
            "metrics.csv",
            "metrics.json",
            "pictures",
            "points.pt",
            "tensorboard",
            "wandb",
        ):
            path = run.directory / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    elif run.config_file.is_file():
        ours, theirs = settings(cfg), settings(run.config())
        roots = [c.data.get("root") for c in (cfg, run.config()) if "data" in c]
        if len(set(roots)) > 1:
            log.warning("data.root was %s when %s was made, it is %s now", roots[1], run.directory, roots[0])
        differing = sorted(k for k in {*ours, *theirs} if ours.get(k, "-") != theirs.get(k, "-"))
        if differing:
            shown = ", ".join(f"{k}: {theirs.get(k, '-')} there, {ours.get(k, '-')} here" for k in differing[:4])
            more = f" and {len(differing) - 4} more" if len(differing) > 4 else ""
            raise UserError(
                f"{run.directory} holds a run with another config ({shown}{more}): "
                "choose another name=..., or overwrite=true to start anew"
            )
    if leader:
        run.config_file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(run.config_file, OmegaConf.to_yaml(cfg))
    return run


def predecessor(init_from: str, cfg: DictConfig, overrides: Sequence[str], choices: Mapping[str, Any]) -> Path:
    """Checkpoint that ``init_from`` names: a file, a run directory, or a sibling run (same overrides and seed).

    Raises:
        UserError: There is none, or the sibling has not finished; names the command that makes it.
    """
    path = Path(init_from).expanduser()
    if path.is_file():
        return path
    is_sibling = os.sep not in init_from and not path.is_dir()
    if is_sibling:
        own = [o for o in overrides if not o.startswith("init_from=")]
        path = Path(run_dir(cfg.runs, init_from, cfg.seed, own, choices))
    run = Run(path)
    if run.result() is None:
        command = "train it first"
        if is_sibling:
            kept = [
                o for o in overrides if o.partition("=")[0] not in ("experiment", "sweep", "init_from", "overwrite")
            ]
            command = f"run first: {shlex.join(['segmod-train', f'experiment={init_from}', *kept])}"
        raise UserError(f"init_from={init_from}: {path} holds no finished run; {command}")
    return run.checkpoint(str(cfg.checkpoint))


def record(
    directory: Path,
    cfg: DictConfig,
    *,
    metrics: Mapping[str, float | None],
    iou: Mapping[str, float | None],
    **facts: Any,
) -> dict[str, Any]:
    """Write ``metrics.json``: the record of a finished run or evaluation, fractions in [0, 1], None where undefined.

    Args:
        directory: Of the run or evaluation.
        cfg: The run's config.
        metrics: Such as ``val/miou``.
        iou: Per class, None for classes without ground truth or prediction.
        facts: Whatever else belongs to the record (``wall_time_s``, ``step``, ``data``, ``inference``, ...).
    """
    contents = {
        "metrics": dict(metrics),
        "iou": dict(iou),
        "name": cfg.name,
        "seed": cfg.seed,
        "config_digest": digest(cfg),
        **facts,
        "peak_memory_bytes": peak_memory(),
        "git_commit": git_commit(),
        "versions": versions(),
        "hardware": hardware(),
    }
    directory.mkdir(parents=True, exist_ok=True)
    write_atomically(directory / "metrics.json", json.dumps(contents, indent=2) + "\n")
    return contents


def write_atomically(path: Path, text: str) -> None:
    """Replace a text file whole: no reader sees half of it."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(text)
    part.replace(path)


def is_leader() -> bool:
    """Whether this process is rank 0 of its job."""
    return all(int(os.environ.get(name) or 0) == 0 for name in ("RANK", "SLURM_PROCID", "NODE_RANK", "LOCAL_RANK"))
