"""Processes of one job that watch each other: where one dies, stops or fails, all end with one line that says so.

Each rank tells every second, through the store of the process group, that it lives, from a thread of its own: one in a
long validation lives, too. A collective that waits for a rank that is no more cannot be interrupted, so the thread that
notices ends the process.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from segmod.ground.errors import UserError
from segmod.ground.printing import short_path
from segmod.ground.signals import Stopped
from segmod.runs.claim import release
from segmod.runs.launch import LEADER, TICK, rank_log, tell

LIMIT = 20  # own ticks without one of another rank's; so all may be suspended and woken together
_GRACE = 3  # ticks in which a rank may leave by itself, with a reason of its own, once another has failed


@contextmanager
def watched(trainer: Any, folder: Path) -> Iterator[None]:
    """Watch the other ranks of a trainer for as long as the block takes; does nothing where there are none.

    Args:
        trainer: What is going to start or join them.
        folder: Of the run, where ranks above 0 print.
    """
    if trainer.world_size == 1:
        yield
        return
    watch = _Watch(trainer, folder)
    try:
        yield
    except BaseException as error:
        if _of_the_network(error):  # the watch knows whose fault it is, or soon will
            time.sleep(TICK * (LIMIT + _GRACE + 2))
        watch.leave(f"was stopped by signal {error.signum}" if isinstance(error, Stopped) else f"failed: {error}")
        raise
    watch.leave("")


class _Watch:
    """The threads of one rank: one exchanges signs of life, which may block, one judges what has come of it."""

    def __init__(self, trainer: Any, folder: Path) -> None:
        environment = trainer.strategy.cluster_environment
        self._was_started = os.environ.get(LEADER) not in (None, str(os.getpid()))  # by another rank
        self._place = environment.main_address, environment.main_port
        self._launcher = trainer.strategy.launcher
        self._rank, self._count = trainer.global_rank, trainer.world_size
        self._folder = folder
        self._name = f"segmod/{folder}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
        self._me: dict[str, Any] = {"who": f"{socket.gethostname()}, pid {os.getpid()}", "last": None}
        self._seen: list[dict[str, Any]] = []  # what every rank has told, in the last exchange
        self._silent = [0] * self._count  # ticks since a rank has told something new
        self._stopped = [0] * self._count  # ticks that a rank started here has been suspended
        self._exchanges = 0
        self._left, self._over = threading.Event(), threading.Event()
        self._lock = threading.Lock()
        for task in (self._exchange, self._judge):
            threading.Thread(target=task, daemon=True, name=f"ranks-{task.__name__}").start()

    def leave(self, last: str) -> None:
        """Stop watching; rank 0 goes last, for the store goes with it.

        Args:
            last: Why this rank leaves before its work is done; empty if it does not.
        """
        with self._lock:  # no verdict from here on
            self._me["last"] = " ".join(last.split())[:150]
            self._left.set()
        for second in range(_GRACE + 5 if last else LIMIT):
            told = [there["last"] is not None for there in self._seen]
            if (told and (all(told) if self._rank == 0 else told[self._rank])) or (not told and second > _GRACE):
                break
            time.sleep(TICK)
        self._over.set()
        if last:
            self._end_children(patience=5)

    # -- signs of life -----------------------------------------------------------------------------------------------

    def _exchange(self) -> None:
        import torch.distributed as dist

        keys = [str(rank) for rank in range(self._count)]
        store = None
        while not self._over.is_set():
            with suppress(RuntimeError):  # it is not there yet, or no longer
                if store is None:
                    client = dist.TCPStore(*self._place, is_master=False, timeout=timedelta(seconds=LIMIT))  # type: ignore[attr-defined]
                    store = dist.PrefixStore(self._name, client)  # type: ignore[attr-defined]
                store.set(str(self._rank), json.dumps({**self._me, "beat": self._exchanges}))
                if store.check(keys):  # else somebody has not come yet
                    self._seen = [json.loads(told) for told in store.multi_get(keys)]
                self._exchanges += 1
            (self._over if self._left.wait(TICK) else self._left).wait(TICK / 5)

    # -- verdicts ----------------------------------------------------------------------------------------------------

    def _judge(self) -> None:
        verdict, since, exchanges, unanswered = "", 0, 0, 0
        beats = [-1] * self._count
        while not self._left.wait(TICK):
            unanswered = 0 if self._exchanges != exchanges else unanswered + 1
            exchanges = self._exchanges
            for rank, there in enumerate(self._seen):
                self._silent[rank] = 0 if there["beat"] != beats[rank] else self._silent[rank] + 1
                beats[rank] = there["beat"]
            expected = exchanges or self._was_started  # for then rank 0 has made the store by now
            found = self._of_children() or self._of_peers()
            if not found and expected and unanswered > LIMIT:
                found = f"rank 0 ({self._seen[0]['who'] if self._seen else self._place[0]}) died or does not answer"
            verdict, since = found, since + 1 if found == verdict and found else 0
            if verdict and since >= _GRACE:
                self._end(verdict)

    def _of_peers(self) -> str:
        for rank, there in enumerate(self._seen):
            name = f"rank {rank} ({there['who']})"
            log = f"; its log: {short_path(rank_log(self._folder, rank))}" if rank else ""
            if rank != self._rank and there["last"]:
                return str(there["last"]) if there.get("of_another") else f"{name} {there['last']}{log}"
            if rank != self._rank and there["last"] is None and self._silent[rank] > LIMIT:
                return f"{name} does not answer{log}"
        return ""

    def _of_children(self) -> str:
        """What has become of the ranks that this one has started."""
        for rank, child in enumerate(getattr(self._launcher, "procs", ()), 1):
            log = rank_log(self._folder, rank)
            name, where = f"rank {rank} ({socket.gethostname()}, pid {child.pid})", f"; its log: {short_path(log)}"
            if not isinstance(child, subprocess.Popen):
                continue
            code = child.poll()
            if code is None:
                suspended = os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT)
                self._stopped[rank] = self._stopped[rank] + 1 if suspended else 0
                if self._stopped[rank] > LIMIT:
                    return f"{name} does not answer: it is suspended{where}"
            if code and code < 0:
                return f"{name} died of signal {-code} ({signal.Signals(-code).name}){where}"
            if code and code > 128:
                return f"{name} was stopped by signal {code - 128}{where}"
            if code and not any(there["last"] for there in self._seen):
                lines = log.read_text(errors="replace").split("\n") if log.is_file() else []
                reason = next((line for line in lines[::-1] if line.startswith("segmod: ")), "nothing told")
                return f"{name} failed: {reason.removeprefix('segmod: error: ')[:150]}{where}"
        return ""

    def _end(self, verdict: str) -> None:
        with self._lock:
            if self._left.is_set():
                return
            self._me |= {"last": verdict, "of_another": True}
            tell(verdict)
            time.sleep(TICK * 1.5)  # so that the others tell the same
            self._end_children()
            if self._rank == 0:
                release(self._folder)
            stop = verdict.partition("was stopped by signal ")[2]
            os._exit(128 + int(stop.partition(";")[0]) if stop else 1)

    def _end_children(self, patience: float = 0) -> None:
        for child in getattr(self._launcher, "procs", ()):
            with suppress(OSError, subprocess.TimeoutExpired):
                child.wait(patience)
            with suppress(OSError):
                child.kill()


def _of_the_network(error: BaseException) -> bool:
    """Whether an exception may come of another rank that is no more."""
    if isinstance(error, UserError) or not isinstance(error, Exception):
        return False
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or "gloo" in str(error) or "NCCL" in str(error)
