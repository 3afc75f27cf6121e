import csv
from collections.abc import Callable
from pathlib import Path

import lightning as L
import pytest
from lightning.pytorch.loggers import TensorBoardLogger as LightningTensorBoardLogger

from segmod.ground.errors import UserError
from segmod.training.loggers import CSVLogger, TensorBoardLogger

Train = Callable[..., L.Trainer]


def read(path: Path) -> dict[int, dict[str, str]]:
    with path.open() as file:
        return {int(row["step"]): row for row in csv.DictReader(file)}


def test_metrics_of_a_step_share_a_row(tmp_path: Path) -> None:
    logger = CSVLogger(str(tmp_path))
    logger.log_metrics({"train/loss": 2.0, "epoch": 0}, step=9)
    logger.log_metrics({"val/miou": 0.5, "epoch": 0}, step=9)
    logger.log_metrics({"train/loss": 1.0, "epoch": 1}, step=19)
    logger.finalize("success")
    rows = read(tmp_path / "metrics.csv")
    assert list(rows) == [9, 19]
    assert (rows[9]["train/loss"], rows[9]["val/miou"], rows[9]["epoch"]) == ("2.0", "0.5", "0.0")
    assert (rows[19]["train/loss"], rows[19]["val/miou"]) == ("1.0", "")


def test_a_resumed_run_keeps_what_lies_before_it(tmp_path: Path) -> None:
    first = CSVLogger(str(tmp_path))
    for step in (10, 20, 30):
        first.log_metrics({"train/loss": float(step)}, step=step)
    first.save()  # then the run is killed, its last checkpoint being of step 15
    second = CSVLogger(str(tmp_path))
    second.log_metrics({"train/loss": 0.25, "lr": 1.0}, step=20)
    second.finalize("success")
    rows = read(tmp_path / "metrics.csv")
    assert {step: row["train/loss"] for step, row in rows.items()} == {10: "10.0", 20: "0.25"}


def test_rows_are_on_the_disk_after_each_validation(tmp_path: Path) -> None:
    logger = CSVLogger(str(tmp_path), flush_every=100)
    logger.log_metrics({"train/loss": 2.0}, step=1)
    assert not (tmp_path / "metrics.csv").exists()
    logger.log_metrics({"val/miou": 0.5}, step=1)
    assert list(read(tmp_path / "metrics.csv")) == [1]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_a_training_leaves_its_curves(tmp_path: Path, train: Train) -> None:
    train([CSVLogger(str(tmp_path / "run"))], [])
    rows = read(tmp_path / "run" / "metrics.csv")
    assert [step for step, row in rows.items() if row["train/loss"]] == [0, 1, 2, 3]
    assert [step for step, row in rows.items() if row["val/miou"]] == [1, 3]


def test_missing_tensorboard_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*args: object, **kwargs: object) -> None:
        raise ModuleNotFoundError("Neither `tensorboard` nor `tensorboardX` is available.")

    monkeypatch.setattr(LightningTensorBoardLogger, "__init__", absent)
    with pytest.raises(UserError, match="pip install tensorboard"):
        TensorBoardLogger(str(tmp_path))
