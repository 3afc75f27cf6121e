"""The order of samples as a function of (seed, epoch) alone, and a loader that resumes in the middle of an epoch."""

from __future__ import annotations

import atexit
import os
import signal
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from segmod.ground.errors import UserError
from segmod.ground.memory import keep_freed_memory
from segmod.ground.torch_private import stop_workers
from segmod.ground.types import Batch

_GRACE_SECONDS = 15
_STARTED: weakref.WeakSet[Iterator[Any]] = weakref.WeakSet()

# Both orders are DistributedSamplers because that is how Lightning knows that ranks are already told apart.


class TrainingOrder(DistributedSampler[tuple[int, ...]]):
    """A new random order each epoch, dealt out to the ranks in turn; yields (epoch, index) keys.

    The epoch travels with the index because worker processes outlive epochs. The batches of all ranks together are
    the same whatever the number of ranks, as long as the batch of the whole job is.

    Args:
        size: number of samples.
        seed: seed of the order.
        rank: position of this process.
        world_size: number of processes.
    """

    def __init__(self, size: int, seed: int = 0, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(range(size), num_replicas=world_size, rank=rank, seed=seed, drop_last=True)  # type: ignore[arg-type]
        self.size = size
        self.start = 0  # samples of this rank that a resumed epoch skips

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.size)
        mine = order[self.rank :: self.num_replicas][: len(self)]
        return iter([(self.epoch, index) for index in mine[self.start :].tolist()])


class EvaluationOrder(DistributedSampler[int]):
    """Every sample once, in order, dealt out to the ranks in turn without padding.

    torch's own sampler repeats samples to give all ranks the same number, which counts them twice in a metric.

    Args:
        size: number of samples.
        rank: position of this process.
        world_size: number of processes.
    """

    def __init__(self, size: int, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(range(size), num_replicas=world_size, rank=rank, shuffle=False)  # type: ignore[arg-type]
        self._indices = range(rank, size, world_size)

    def __iter__(self) -> Iterator[int]:
        return iter(self._indices)

    def __len__(self) -> int:
        return len(self._indices)


class ResumableLoader(DataLoader[Any]):
    """A DataLoader that can start in the middle of an epoch and that lets a `UserError` through as one line.

    Its sampler, a `TrainingOrder`, knows the epoch. Lightning stores `state_dict` in its checkpoints and calls the
    sampler's ``set_epoch`` before each epoch.
    """

    _epoch = 0
    _handed_out = 0
    _resume: dict[str, int] | None = None

    def state_dict(self) -> dict[str, int]:
        """Return the epoch and the number of its batches handed out."""
        return {"epoch": self._epoch, "batches": self._handed_out}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Skip, without loading them, the batches that were handed out when ``state`` was taken."""
        self._epoch, self._handed_out = state["epoch"], state["batches"]
        self._resume = dict(state)

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        # Being a generator, this starts no worker before the first batch is asked for. Lightning makes the iterator
        # before it calls set_epoch, so an eager one would load the wrong epoch when a run is resumed.
        order = self.sampler if isinstance(self.sampler, TrainingOrder) else None
        self._epoch = order.epoch if order else 0
        resume, self._resume = self._resume, None
        self._handed_out = resume["batches"] if resume and resume["epoch"] == self._epoch else 0
        if order:
            order.start = self._handed_out * (self.batch_size or 1)
        batches = super().__iter__()
        _STARTED.add(batches)
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except UserError as error:
                raise UserError(_own_line(error)) from None
            self._handed_out += 1
            yield batch


def _own_line(error: UserError) -> str:
    """Return the message without the worker's traceback, which torch puts in front of it."""
    return str(error).rpartition("UserError: ")[2].strip()


def prepare_worker(worker: int) -> None:
    """Set a worker process up for loading images; ``worker_init_fn`` of a DataLoader.

    Signals are for the main process, which ends its step before it stops the workers. Where it does not, a worker that
    was told to terminate does so after a while.
    """
    keep_freed_memory()
    for signum in (signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_GRACE_SECONDS))


@atexit.register
def _stop_workers() -> None:
    """Stop workers whose loader an error left in the middle of an epoch; to terminate them takes longer."""
    for batches in list(_STARTED):
        stop_workers(batches)


def cores() -> int:
    """Return the number of cores this process may use; only Linux can say."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
