"""One training at a time has a folder, and it is free again however that ends."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from segmod.ground.errors import UserError
from segmod.runs.claim import claim
from segmod.runs.folders import Run

Command = Callable[..., int]
CONFIG = OmegaConf.create({"overwrite": False})


TRAIN = [sys.executable, "-m", "segmod", "train"]


def test_one_training_at_a_time_has_a_folder(segmod: Command, small: tuple[str, ...], capfd: Any) -> None:
    small = (*small, "trainer.max_epochs=100000", "trainer.check_val_every_n_epoch=100000")
    first = subprocess.Popen([*TRAIN, *small, "data.num_workers=1"], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not list(Path("runs").glob("**/last.ckpt")) and time.monotonic() < deadline:
            assert first.poll() is None
            time.sleep(0.1)
        (run,) = Path("runs").glob("**/seed0")
        config = (run / ".hydra" / "config.yaml").read_bytes()
        for more in ((), ("overwrite=true",)):
            capfd.readouterr()
            assert segmod("train", *small, "data.num_workers=1", *more) == 1
            error = capfd.readouterr().err
            assert f"seed0 is held by process {first.pid} on {socket.gethostname()}" in error
            assert "Traceback" not in error
        assert first.poll() is None
        assert (run / ".hydra" / "config.yaml").read_bytes() == config
    finally:
        first.kill()
        first.wait()
    assert (run / ".lock").exists()  # nobody could remove it
    second = subprocess.Popen([*TRAIN, *small], stderr=subprocess.PIPE)  # the first one's worker may still be there
    try:
        deadline = time.monotonic() + 120
        while str(second.pid) not in (run / ".lock").read_text() and time.monotonic() < deadline:
            assert second.poll() is None, second.communicate()[1].decode()
            time.sleep(0.1)
        assert str(second.pid) in (run / ".lock").read_text()
    finally:
        second.kill()
        second.communicate()


def test_a_folder_that_another_machine_holds_is_left_alone(segmod: Command, small: tuple[str, ...], capfd: Any) -> None:
    assert segmod("train", *small) == 0
    (run,) = Path("runs").glob("**/seed0")
    assert not (run / ".lock").exists()
    (run / "metrics.json").unlink()
    (run / ".lock").write_text("elsewhere 123")
    before = sorted((path, path.stat().st_mtime_ns) for path in run.glob("**/*") if path.name != "train.log")
    assert segmod("train", *small) == 1
    error = capfd.readouterr().err
    assert "seed0 is held by process 123 on elsewhere" in error
    assert f"delete {run / '.lock'} and run again" in error
    assert sorted((path, path.stat().st_mtime_ns) for path in run.glob("**/*") if path.name != "train.log") == before
    (run / ".lock").unlink()
    assert segmod("train", *small) == 0


@pytest.mark.parametrize("error", [UserError("of the data"), KeyboardInterrupt()])
def test_a_folder_is_free_after_a_mistake(error: BaseException, tmp_path: Path) -> None:
    def fail() -> None:
        with claim(Run(tmp_path), CONFIG) as is_new:
            assert is_new
            assert (tmp_path / ".lock").read_text() == f"{socket.gethostname()} {os.getpid()}"
            raise error

    with pytest.raises(type(error)):
        fail()
    assert os.listdir(tmp_path) == [".hydra"]


def test_further_ranks_share_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    (tmp_path / ".lock").write_text("elsewhere 123")
    with claim(Run(tmp_path), CONFIG) as is_new:
        assert not is_new
