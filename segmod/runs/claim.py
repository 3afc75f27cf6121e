"""Whose folder a run's is: a config finds its own there or nothing, and takes it once all has been built."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from segmod.ground.errors import UserError
from segmod.ground.files import replace_text
from segmod.runs.folders import Run
from segmod.runs.keys import settings
from segmod.runs.launch import is_leader

log = logging.getLogger(__name__)

# What a training writes; what else lies in its folder is not its own, and stays.
_WRITTEN = (
    ".hydra", "checkpoints", "evaluation", "metrics.csv", "metrics.json", "pictures", "points.pt", "tensorboard",
    "wandb",
)  # fmt: skip


def own_run(cfg: DictConfig) -> Run:
    """The folder of a config: new, or holding the same config, or to be overwritten if the config says so.

    Raises:
        UserError: It holds a run with another config; names the keys that differ.
    """
    run = Run(Path(cfg.run_dir))
    if cfg.overwrite or not run.config_file.is_file():
        return run
    stored = run.config()
    ours, theirs = settings(cfg), settings(stored)
    roots = [c.data.get("root") for c in (cfg, stored) if "data" in c]
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
    return run


def claim(run: Run, cfg: DictConfig) -> None:
    """Write the config into its folder, after clearing that if ``overwrite`` says so; rank 0 does it for all."""
    if is_leader():
        if cfg.overwrite:
            clear(run)
        replace_text(run.config_file, OmegaConf.to_yaml(cfg))


def clear(run: Run) -> None:
    """Remove what a training has written into its folder."""
    for path in (run.directory / name for name in _WRITTEN):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
