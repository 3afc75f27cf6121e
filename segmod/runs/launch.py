"""The process around a job: its environment, and the further processes of a multi-device run."""

from __future__ import annotations

import gc
import logging
import os
import resource
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from segmod.ground.errors import UserError, require
from segmod.ground.memory import keep_freed_memory

TICK = 1.0  # seconds between two looks at other processes
LEADER = "SEGMOD_LEADER"  # number of the process that starts the other ranks of its machine

# What the launcher, seed_everything and the W&B logger leave behind; the next job of a sweep must not find it.
_JOB_VARIABLES = (
    "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "PL_GLOBAL_SEED", "PL_SEED_WORKERS",
    "WANDB_DATA_DIR", "WANDB_CACHE_DIR", LEADER,
)  # fmt: skip


# Numbers that launchers hand to a process: Lightning reads them, too.
_RANKS = ("RANK", "SLURM_PROCID", "NODE_RANK", "LOCAL_RANK")
_NUMBERS = (
    *_RANKS, "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_PORT", "SLURM_LOCALID", "SLURM_NODEID",
    "SLURM_NTASKS", "SLURM_JOB_ID",
)  # fmt: skip


def is_leader() -> bool:
    """Whether this process is rank 0 of its job.

    Raises:
        UserError: What the environment says of it is no number.
    """
    for name in _NUMBERS:
        value = os.environ.get(name) or "0"
        require(value.isdecimal(), f"{name}={value}: must be a whole number; unset {name} where no launcher has set it")
    return all(int(os.environ.get(name) or 0) == 0 for name in _RANKS)


def prepare_process() -> None:
    """Make of what this process was started with what a command can work with.

    Raises:
        UserError: That cannot be; says what to do.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:  # closed: the next file would take its number, and whatever is printed there
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
        elif mode == "w" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal of ASCII shows a ? for what it cannot
    least = 128
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < least <= hard or hard < 0:
        resource.setrlimit(resource.RLIMIT_NOFILE, (least, hard))
    require(
        not 0 <= hard < least,
        f"only {hard} files may be open at once, too few to load data: raise the limit, ulimit -n 1024",
    )
    try:
        os.getcwd()
    except OSError:
        raise UserError("the working directory is gone: change to a folder that exists") from None
    is_leader()  # whether the environment says it at all


@contextmanager
def job_environment(cfg: DictConfig) -> Iterator[None]:
    """Run one job so that it leaves nothing to the next one of the same sweep: no W&B run, no process group, no memory.

    Ranks above 0 write what they print to ``<run>/rank<k>.log``.
    """
    keep_freed_memory()
    before = {name: os.environ.get(name) for name in _JOB_VARIABLES}
    if not is_leader():
        logging.getLogger().handlers.clear()  # the log of the run is rank 0's
        _print_to_file(Path(cfg.run_dir))
    left = _follow_leader()
    try:
        yield
    finally:
        left.set()
        if "wandb" in sys.modules:
            import wandb

            with suppress(Exception):  # watching must not spoil a run
                wandb.finish(exit_code=1 if sys.exc_info()[0] else 0)
        if "torch" in sys.modules:
            import torch

            if torch.distributed.is_available() and torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def rank_log(run_dir: Path, rank: int | str) -> Path:
    """Where a rank above 0 prints."""
    return run_dir / f"rank{rank}.log"


def _print_to_file(run_dir: Path) -> None:
    run_dir.mkdir(parents=True, exist_ok=True)
    rank = os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_PROCID") or ""
    file = rank_log(run_dir, rank).open("a", buffering=1)
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)


def _follow_leader() -> threading.Event:
    """End this process if the rank that has started it is no more; until the event is set."""
    leader, left = int(os.environ.get(LEADER) or os.getppid()), threading.Event()

    def follow() -> None:
        while not left.wait(TICK):
            if os.getppid() != leader:
                tell(f"rank 0 (pid {leader}), which started this rank, died")
                os._exit(1)

    if LEADER in os.environ and not is_leader():  # a leader may have been started by one of another job
        threading.Thread(target=follow, daemon=True, name="leader").start()
    return left


def tell(line: str) -> None:
    """Print the line that a process ends with, below what else stands on the terminal."""
    print("\n" * sys.stderr.isatty() + f"segmod: error: {line}", file=sys.stderr, flush=True)


def child_command(local_rank: int) -> tuple[Sequence[str], str]:
    """Command and working directory of a further rank of this very job.

    Lightning would run ``sys.argv`` again, which in a multirun is the whole sweep: each child would walk through all
    jobs, and with a random sweeper the ranks would train different configs. The child gets this job's own overrides
    and directory instead.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.utils import get_original_cwd

    hydra_cfg = HydraConfig.get()
    program = ["-m", "segmod", str(hydra_cfg.job.config_name)]
    typed: Any = OmegaConf.to_container(hydra_cfg.overrides.task, resolve=False)  # an interpolation stays as it is
    kept = [o for o in typed if o.lstrip("+").partition("=")[0] != "overwrite"]
    directory = str(Path(hydra_cfg.runtime.output_dir).resolve()).replace("'", "\\'")
    searched = [s.path for s in hydra_cfg.runtime.config_sources if s.provider == "command-line"]
    kept = [*(word for path in searched for word in ("--config-dir", path)), *kept]
    command = [sys.executable, *program, *kept, f"hydra.run.dir='{directory}'", "hydra.mode=RUN"]
    return command, get_original_cwd()


def prepare_lightning() -> None:
    """Make Lightning start further ranks with `child_command`, and keep its remarks for real warnings."""
    from segmod.training.lightning_private import leave_signals_alone, start_ranks_by

    if "LOCAL_RANK" not in os.environ:
        os.environ[LEADER] = str(os.getpid())
    start_ranks_by(child_command)
    leave_signals_alone()
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*isinstance.treespec, LeafSpec.*",
        ".*overridden `on_after_batch_transfer`.*",
        ".*num_workers.*",
        ".*sync_dist=True.*",
    ):
        warnings.filterwarnings("ignore", message=message)
