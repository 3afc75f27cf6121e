"""A run may be trained on; what cannot be is told, and nothing is touched."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

Command = Callable[..., int]
CONSTANT = ("scheduler=constant", "name=constant")


def contents(run: Path) -> dict[Path, float]:
    return {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file() and path.name != "train.log"}


@pytest.fixture
def run(segmod: Command, small: tuple[str, ...]) -> Path:
    """A finished run of two epochs of four steps."""
    assert segmod("train", *small, *CONSTANT) == 0
    (found,) = Path("runs").glob("**/seed0")
    return found


@pytest.mark.parametrize("length", ["trainer.max_epochs=1", "trainer.max_steps=8", "trainer.max_steps=3"])
def test_a_finished_run_of_which_less_is_asked_is_reported(
    length: str, run: Path, segmod: Command, small: tuple[str, ...], capfd: Any
) -> None:
    before = contents(run)
    assert segmod("train", *small, *CONSTANT, length) == 0
    assert "is trained for 2 epochs, 8 steps; that is not less than trainer.max_" in capfd.readouterr().err
    assert contents(run) == before


def test_the_record_is_of_the_longer_training(run: Path, segmod: Command, small: tuple[str, ...], capfd: Any) -> None:
    (run / "evaluation").mkdir()
    assert segmod("train", *small, *CONSTANT, "trainer.max_epochs=3") == 0
    told = capfd.readouterr().err
    assert "2 epochs and 8 steps long, goes on to trainer.max_epochs=3" in told
    assert "evaluate again" in told
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 12
    assert "max_epochs: 3" in (run / ".hydra" / "config.yaml").read_text()


TORCH = "torch model.scheduler._target_=torch.optim.lr_scheduler.CosineAnnealingLR"


@pytest.mark.parametrize(
    "scheduler",
    ["poly", pytest.param("compound", marks=pytest.mark.slow), pytest.param(TORCH, marks=pytest.mark.slow)],
)
def test_a_schedule_to_the_end_of_the_training_has_one_end(
    scheduler: str, segmod: Command, small: tuple[str, ...], capfd: Any
) -> None:
    command = ("train", *small, *f"scheduler={scheduler}".split(), "name=to_the_end")
    assert segmod(*command) == 0
    (run,) = Path("runs").glob("**/seed0")
    before = contents(run)
    assert segmod(*command, "trainer.max_epochs=3") == 1
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("segmod: error: ")]
    assert "run to the end of trainer.max_epochs=2, so it cannot go on: another name=... trains anew" in line
    assert contents(run) == before
    assert segmod(*command) == 0


def test_an_unfinished_run_is_not_shortened_below_what_is_done(
    run: Path, segmod: Command, small: tuple[str, ...], capfd: Any
) -> None:
    (run / "metrics.json").unlink()
    before = contents(run)
    assert segmod("train", *small, *CONSTANT, "trainer.max_epochs=1") == 1
    assert "is trained for 2 epochs, 8 steps already: give more" in capfd.readouterr().err
    assert contents(run) == before


def test_what_early_stopping_has_ended_stays_ended(segmod: Command, small: tuple[str, ...], capfd: Any) -> None:
    never_better = (
        "callbacks=early_stopping",
        "callbacks.early_stopping.patience=1",
        "+callbacks.early_stopping.min_delta=1",
    )
    assert segmod("train", *small, *CONSTANT, *never_better, "trainer.max_epochs=4") == 0
    (run,) = Path("runs").glob("**/seed0")
    before = contents(run)
    assert segmod("train", *small, *CONSTANT, *never_better, "trainer.max_epochs=9") == 0
    assert "is trained for 2 epochs, 8 steps; early stopping ended it" in capfd.readouterr().err
    assert contents(run) == before


@pytest.mark.parametrize("swept", ["trainer.max_epochs=1,2", "trainer.max_steps=range(1,4)"])
def test_lengths_of_a_sweep_need_names(swept: str, segmod: Command, small: tuple[str, ...], capfd: Any) -> None:
    short = [word for word in small if "max_epochs" not in word]
    assert segmod("train", "-m", *short, swept) == 1
    assert "name='NAME-${" in capfd.readouterr().err
    assert not list(Path().rglob("*.ckpt"))


def test_named_lengths_of_a_sweep_are_runs_of_their_own(segmod: Command, small: tuple[str, ...]) -> None:
    short = [word for word in small if "max_epochs" not in word]
    assert segmod("train", "-m", *short, "trainer.max_epochs=1,2", "name='long-${trainer.max_epochs}'") == 0
    assert sorted(path.parts[1] for path in Path("runs").glob("**/metrics.json")) == ["long-1", "long-2"]
