"""Whose folder a run's is: a config finds its own there or nothing, and takes it once all has been built."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from segmod.ground.errors import UserError
from segmod.ground.files import replace_text, writing
from segmod.ground.printing import short_path
from segmod.runs.folders import Run
from segmod.runs.keys import Kind, kind, settings
from segmod.runs.launch import is_leader
from segmod.runs.stored import as_stored, followed

log = logging.getLogger(__name__)

# What a training writes; what else lies in its folder is not its own, and stays.
_WRITTEN = (
    ".hydra", "checkpoints", "evaluation", "metrics.csv", "metrics.json", "pictures", "points.pt", "tensorboard",
    "wandb",
)  # fmt: skip


def own_run(cfg: DictConfig) -> Run:
    """The folder of a config: new, or holding the same config, or to be overwritten if the config says so.

    Raises:
        UserError: It holds a run with another config; names the keys that differ. Or it is to be overwritten and lies
            elsewhere.
    """
    run = Run(Path(cfg.run_dir))
    if cfg.overwrite:
        refuse_links(run)
    if cfg.overwrite or not run.config_file.is_file():
        return run
    stored = run.config()
    ours, theirs = settings(OmegaConf.create(followed(as_stored(cfg))[0])), settings(stored)
    roots = [c.data.get("root") for c in (cfg, stored) if "data" in c]
    if len(set(roots)) > 1:
        log.warning("data.root was %s when %s was made, it is %s now", roots[1], run.directory, roots[0])
    recipe = [key for key in {*ours, *theirs} if kind(key) is Kind.RECIPE]
    differing = sorted(key for key in recipe if ours.get(key, "-") != theirs.get(key, "-"))
    if differing:
        shown = ", ".join(f"{k}: {theirs.get(k, '-')} there, {ours.get(k, '-')} here" for k in differing[:4])
        more = f" and {len(differing) - 4} more" if len(differing) > 4 else ""
        raise UserError(
            f"{run.directory} holds a run with another config ({shown}{more}): "
            "choose another name=..., or overwrite=true to start anew"
        )
    return run


@contextmanager
def claim(run: Run, cfg: DictConfig) -> Iterator[bool]:
    """Hold a folder, and write the config into it, after clearing it if ``overwrite`` says so; rank 0 does it for all.

    Yields:
        Whether no run was there before, and this is rank 0.

    Raises:
        UserError: Another process holds it.
    """
    if not is_leader():
        yield False
        return
    with _held(run.directory):
        is_new = not run.config_file.is_file()
        if cfg.overwrite:
            clear(run)
        run.metrics_file.unlink(missing_ok=True)  # of a shorter training
        replace_text(run.config_file, OmegaConf.to_yaml(OmegaConf.create(as_stored(cfg))))
        yield is_new


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Hold a folder as long as this process lives: by a lock on its file ``.lock``, which says who holds it.

    The lock goes with the process, however that ends, and worker processes have no part in it; not every file system
    tells other machines of it, so a file that another machine has left there is taken at its word.

    Raises:
        UserError: Another process holds it; names its number and its machine. Or nothing may be written there.
    """
    path = folder / ".lock"
    with writing(path):
        path.open("a").close()
    here = socket.gethostname()
    while True:
        with path.open("a+") as file:
            file.seek(0)
            host, _, pid = file.read().partition(" ")
            holder = f"{short_path(folder)} is held by process {pid or '?'} on {host or here}, which trains it"
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                raise UserError(f"{holder}: wait for it, or stop it and run again") from None
            except OSError as error:  # a file system without locks
                log.warning("%s cannot be locked (%s): see to it that nothing else trains there", folder, error)
            if host not in ("", here):
                raise UserError(f"{holder}: if it is no more, delete {short_path(path)} and run again")
            if not path.exists() or not os.path.samestat(path.stat(), os.fstat(file.fileno())):
                continue  # who held it has just removed it
            try:
                file.truncate(0)
                file.write(f"{here} {os.getpid()}")
                file.flush()
                yield
            finally:
                release(folder)
            return


def refuse_links(run: Run) -> None:
    """Refuse to clear a folder that is elsewhere.

    Raises:
        UserError: The folder, or one in it that a training writes, is a symbolic link.
    """
    for path in (run.directory, *(run.directory / name for name in _WRITTEN)):
        if path.is_symlink():
            raise UserError(f"overwrite=true: {short_path(path)} is a link, to {path.readlink()}: remove it yourself")


def release(folder: Path) -> None:
    """Give a folder back that this process holds."""
    (folder / ".lock").unlink(missing_ok=True)


def clear(run: Run) -> None:
    """Remove what a training has written into its folder."""
    for path in (run.directory / name for name in _WRITTEN):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
