"""A signal ends any command in one line, whatever it is doing, and leaves nothing behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from segmod.ground.signals import SIGNALS, Stopped, stoppable, tell_stop

# Sends the signal to itself as soon as a module is looked for.
AT_IMPORT = """
import os, sys
module, signum, sys.argv = sys.argv[1], int(sys.argv[2]), ["segmod", *sys.argv[3:]]
class Finder:
    def find_spec(name, path=None, target=None):
        if name == module:
            os.kill(os.getpid(), signum)
sys.meta_path.insert(0, Finder)
from segmod.__main__ import main
main()
"""


def stop_at_import(module: str, signum: int, *words: str) -> tuple[int, str]:
    command = [sys.executable, "-c", AT_IMPORT, module, str(int(signum)), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stderr


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_signal_ends_a_command_that_has_hardly_begun(signum: signal.Signals, tmp_path: Path) -> None:
    code, error = stop_at_import("hydra", signum, "predict", "run=x", "input=y", f"output={tmp_path}")
    assert (code, error) == (128 + signum, f"segmod: stopped by signal {int(signum)}\n")


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("lightning.pytorch", "albumentations")]


@pytest.mark.parametrize("module", ["torch.nn", *SLOW])
def test_a_signal_while_libraries_are_imported(module: str, tmp_path: Path, small: tuple[str, ...]) -> None:
    code, error = stop_at_import(module, signal.SIGTERM, "train", *small, f"runs={tmp_path / 'runs'}")
    assert (code, error) == (143, "segmod: stopped by signal 15; the same command goes on from the last checkpoint\n")
    assert not list(tmp_path.rglob("*.*"))


def test_a_signal_between_the_steps_of_a_training(
    segmod: Any, small: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    command = ("train", *small, "trainer.max_epochs=1")
    train = "segmod.commands.train"
    scoring = "segmod.training.module.SegmentationModule.validation_step"  # all is trained by then
    for where, signum in (
        (f"{train}.check_disk", signal.SIGHUP),
        (f"{train}.train_net", signal.SIGTERM),
        (f"{train}.record", signal.SIGINT),
        (scoring, signal.SIGUSR1),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(where, lambda *args, signum=signum, **kwargs: os.kill(os.getpid(), signum))
            assert segmod(*command) == 128 + signum, where
        error = capfd.readouterr().err
        assert [line for line in error.splitlines() if line.startswith("segmod: ")] == [
            f"segmod: stopped by signal {int(signum)}; the same command goes on from the last checkpoint"
        ]
        assert "Traceback" not in error
        assert not list(Path("runs").rglob(".lock"))
        assert not list(Path("runs").rglob("metrics.json"))
    assert segmod(*command) == 0


def test_what_is_ignored_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stoppable("train"):
            os.kill(os.getpid(), signal.SIGHUP)  # nohup
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_handlers_are_given_back() -> None:
    before = [signal.getsignal(signum) for signum in SIGNALS]
    with pytest.raises(Stopped) as stop, stoppable("tables"):
        os.kill(os.getpid(), signal.SIGUSR1)
    assert stop.value.signum == signal.SIGUSR1
    assert [signal.getsignal(signum) for signum in SIGNALS] == before


def test_what_a_destructor_swallows_is_raised_again(capfd: Any) -> None:
    class Swallower:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    before = sys.unraisablehook

    def work() -> None:
        with stoppable("train"):
            Swallower()
            time.sleep(10)

    with pytest.raises(Stopped):
        work()
    assert sys.unraisablehook is before
    assert capfd.readouterr().err == ""


def test_the_same_signal_again_and_one_that_is_lost_end_the_process() -> None:
    code = """
import os, signal, sys, time
from segmod.ground import signals
signals._GRACE_SECONDS = 0.2
with signals.stoppable("evaluate"):
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except signals.Stopped:
        os.kill(os.getpid(), signal.SIGTERM)  # another one is not heeded: the command is leaving
        if sys.argv[1] == "again":
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
"""
    for how in ("again", "lost"):
        done = subprocess.run([sys.executable, "-c", code, how], capture_output=True, text=True, timeout=30)
        assert (done.returncode, done.stderr) == (130, "segmod: stopped by signal 2\n")


def test_a_terminal_that_is_gone_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*args: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "write", gone)
    assert tell_stop(signal.SIGHUP, "train") == 129
