"""Two processes train one run: where one dies, stops or fails, both end with one line that says so."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from segmod.data.synthetic import write_voc_tree
from segmod.training.checkpoints import Checkpoints, StopOnSignal

TWO = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
ENDLESS = (
    "trainer.max_epochs=100000",
    "trainer.check_val_every_n_epoch=100000",
    "callbacks.checkpoints.every_n_steps=10",
)


@contextmanager
def started(*words: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A training of two ranks, and the number of the second one's process."""
    command = [sys.executable, "-m", "segmod", "train", *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as leader:
        children = Path(f"/proc/{leader.pid}/task/{leader.pid}/children")
        try:
            wait_for(lambda: leader.poll() is not None or bool(children.read_text()))
            other = int(children.read_text().split()[0])
            yield leader, other
        finally:
            for process in (leader.pid, other):
                if alive(process):
                    os.kill(process, signal.SIGKILL)


def wait_for(condition: Any, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] not in "ZX"
    except OSError:
        return False


def error_of(leader: subprocess.Popen[str]) -> str:
    """The one line that rank 0 ends with."""
    error = leader.communicate(timeout=60)[1]
    assert "Traceback" not in error
    (line,) = [line for line in error.splitlines() if line.startswith("segmod: error: ")]
    assert len(line) <= 300
    return line


@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
@pytest.mark.parametrize(
    ("signum", "what"),
    [
        (signal.SIGKILL, "died of signal 9 (SIGKILL)"),
        pytest.param(signal.SIGSTOP, "does not answer", marks=pytest.mark.slow),
    ],
)
def test_a_rank_that_is_no_more_ends_all(signum: int, what: str, segmod: Any, small: tuple[str, ...]) -> None:
    with started(*small, *TWO, *ENDLESS) as (leader, other):
        wait_for(lambda: list(Path("runs").glob("**/last.ckpt")))
        os.kill(other, signum)
        line = error_of(leader)
        assert f"rank 1 ({os.uname().nodename}, pid {other}) {what}" in line
        assert line.endswith("/seed0/rank1.log")
        assert leader.returncode == 1
        wait_for(lambda: not alive(other), 5)
    (run,) = Path("runs").glob("**/seed0")
    assert not (run / ".lock").exists()
    torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
@pytest.mark.parametrize("seconds", [0, 2, None])
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSTOP])
def test_a_leader_that_is_no_more_ends_the_others(
    signum: int, seconds: float | None, segmod: Any, small: tuple[str, ...]
) -> None:
    """Just after the other rank was started, while it imports, and in the middle of the training."""
    with started(*small, *TWO, *ENDLESS) as (leader, other):
        if seconds is None:
            wait_for(lambda: list(Path("runs").glob("**/last.ckpt")))
        else:
            time.sleep(seconds)
        os.kill(leader.pid, signum)
        wait_for(lambda: not alive(other), 60)
    (log,) = Path("runs").glob("**/rank1.log")
    assert "segmod: error: rank 0 (" in log.read_text()
    assert "Traceback" not in log.read_text()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_a_rank_that_dies_while_it_starts_ends_all(segmod: Any, small: tuple[str, ...]) -> None:
    with started(*small, *TWO, *ENDLESS) as (leader, other):
        os.kill(other, signal.SIGKILL)
        assert "died of signal 9" in error_of(leader)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_a_rank_that_fails_tells_all_why(segmod: Any, small: tuple[str, ...]) -> None:
    voc = write_voc_tree(Path("data"), train=4, val=4, size=(40, 50))
    names = (voc / "ImageSets/Segmentation/val.txt").read_text().split()
    (voc / f"JPEGImages/{names[1]}.jpg").write_bytes(b"no picture")  # validated by rank 1
    words = [word for word in small if not word.startswith("data.") or "workers" in word]
    words += ["data=voc", "data.root=data", "data.crop_size=32", "data.batch_size=2"]
    with started(*words, *TWO) as (leader, other):
        line = error_of(leader)
        assert f"rank 1 ({os.uname().nodename}, pid {other}) failed: " in line
        assert f"{names[1]}.jpg" in line
        assert leader.returncode == 1
        wait_for(lambda: not alive(other), 5)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_rank_stops_all_at_the_same_step(rank: int, segmod: Any, small: tuple[str, ...]) -> None:
    with started(*small, *TWO, *ENDLESS) as (leader, other):
        wait_for(lambda: list(Path("runs").glob("**/last.ckpt")))
        os.kill((leader.pid, other)[rank], signal.SIGTERM)
        error = leader.communicate(timeout=60)[1]
        assert leader.returncode == 143
        assert "segmod: stopped by signal 15" in error
        assert "segmod: error" not in error
        wait_for(lambda: not alive(other), 10)
    (run,) = Path("runs").glob("**/seed0")
    assert "stopped by signal 15" in (run / "rank1.log").read_text()


def test_ranks_ask_each_other_for_signals_in_logged_steps_alone() -> None:
    asked = []

    def reduce(tensor: torch.Tensor, reduce_op: str) -> torch.Tensor:
        asked.append(trainer.global_step)
        return tensor

    trainer: Any = SimpleNamespace(world_size=2, log_every_n_steps=10, strategy=SimpleNamespace(reduce=reduce))
    callback = StopOnSignal(Checkpoints("unused"))
    for trainer.global_step in range(1, 31):
        callback.on_train_batch_end(trainer, SimpleNamespace(device=torch.device("cpu")))  # type: ignore[arg-type]
    assert asked == [10, 20, 30]
