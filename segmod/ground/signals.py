"""Signals that end a command, from its first moment on: imports nothing heavy."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
_GRACE_SECONDS = 30


class Stopped(BaseException):
    """A signal asked the command to stop, and its state is saved as far as it can be."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


@contextmanager
def stoppable(command: str) -> Iterator[None]:
    """Raise `Stopped` where a signal comes; one that is ignored, as ``nohup`` has it, stays so.

    The same signal again ends the process at once, and so does the first after a while. Where nobody can catch what is
    raised, in a destructor or a callback, it is raised once more.

    Args:
        command: Its name, such as ``train``, for the line that is then told.
    """

    def leave(signum: int) -> None:
        os._exit(tell_stop(signum, command))

    process = os.getpid()
    first, timer = 0, threading.Timer(_GRACE_SECONDS, lambda: leave(first))
    timer.daemon = True

    def heed(signum: int, frame: FrameType | None) -> None:
        nonlocal first
        if os.getpid() != process:  # a worker process that has not set its own handlers yet
            os._exit(128 + signum)
        if first == signum:
            leave(signum)
        if not first:
            first = signum
            if not timer.is_alive():
                timer.start()
            raise Stopped(signum)

    def raise_again(lost: Any) -> None:
        nonlocal first
        if not isinstance(lost.exc_value, Stopped):
            tell_lost(lost)
            return
        first = 0
        threading.Timer(0.05, os.kill, (process, lost.exc_value.signum)).start()

    tell_lost = sys.unraisablehook
    in_main = threading.current_thread() is threading.main_thread()
    before = {signum: signal.getsignal(signum) for signum in SIGNALS if in_main}
    before = {signum: handler for signum, handler in before.items() if handler != signal.SIG_IGN}
    try:
        sys.unraisablehook = raise_again
        for signum in before:
            signal.signal(signum, heed)
        yield
    finally:
        sys.unraisablehook = tell_lost
        for signum, handler in before.items():
            signal.signal(signum, handler)
        timer.cancel()


def tell_stop(signum: int, command: str) -> int:
    """Tell in one line that a signal has stopped a command; returns the exit code."""
    how_on = "; the same command goes on" if command in ("train", "proposals") else ""
    how_on += " from the last checkpoint" if command == "train" else ""
    with suppress(OSError):  # the terminal is gone
        os.write(2, f"segmod: stopped by signal {int(signum)}{how_on}\n".encode())
    return 128 + signum
