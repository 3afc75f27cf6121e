import csv
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.loggers import TensorBoardLogger as LightningTensorBoardLogger

from segmod.ground.errors import UserError
from segmod.ground.printing import write_csv
from segmod.runs.records import over_epochs
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
    first.send()  # then the run is killed, its last checkpoint being of step 15
    second = CSVLogger(str(tmp_path))
    second.log_metrics({"train/loss": 0.25, "lr": 1.0}, step=20)
    second.finalize("success")
    rows = read(tmp_path / "metrics.csv")
    assert {step: row["train/loss"] for step, row in rows.items()} == {10: "10.0", 20: "0.25"}


def test_rows_are_on_the_disk_after_each_validation(tmp_path: Path) -> None:
    logger = CSVLogger(str(tmp_path), seconds=1000)
    logger.log_metrics({"train/loss": 2.0}, step=1)
    logger.save()
    assert not (tmp_path / "metrics.csv").exists()
    logger.log_metrics({"val/miou": 0.5}, step=1)
    assert list(read(tmp_path / "metrics.csv")) == [1]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_rows_are_on_the_disk_once_the_file_is_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    logger = CSVLogger(str(tmp_path), seconds=5)
    found = []
    for now[0], step in ((1.0, 10), (6.0, 20), (10.0, 30), (11.0, 40)):
        logger.log_metrics({"train/loss": 2.0}, step=step)
        logger.save()
        found.append(list(read(tmp_path / "metrics.csv")) if (tmp_path / "metrics.csv").exists() else [])
    assert found == [[], [10, 20], [10, 20], [10, 20, 30, 40]]


def test_a_training_leaves_its_curves(tmp_path: Path, train: Train) -> None:
    train([CSVLogger(str(tmp_path / "run"))], [])
    rows = read(tmp_path / "run" / "metrics.csv")
    assert [step for step, row in rows.items() if row["train/loss"]] == [0, 1, 2, 3]
    assert [step for step, row in rows.items() if row["val/miou"]] == [1, 3]


@pytest.mark.parametrize(
    "content",
    [
        b"step,epoch\n1,0.0\n2",  # the last line is not whole
        b"step,epoch\n1,0.0,7\n",
        b"epoch\n0.0\n",
        b"step,epoch\nx,0.0\n",
        b"\xff\xfe",
        b"",
    ],
)
def test_damaged_curves_are_told_before_any_step(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "metrics.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"metrics\.csv: is damaged \(.*\): restore it, or delete it"):
        CSVLogger(str(tmp_path)).log_hyperparams({})
    assert path.read_bytes() == content


@settings(derandomize=True, max_examples=150, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), flip=st.integers(0, 255), content=st.none() | st.binary(max_size=100))
def test_any_bytes_are_curves_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, read_or_line: Any, place: float, flip: int, content: bytes | None
) -> None:
    """Any bytes at all, or a file cut off (``flip`` 0) or with some bits of a byte flipped."""
    path = tmp_path_factory.getbasetemp() / "curves" / "metrics.csv"
    write_csv(path, [["step", "epoch", "train/loss", "val/miou"], [1, 0.0, 2.5, ""], [2, 0.0, "", 0.25]])
    whole = path.read_bytes()
    at = int(place * len(whole))
    flipped = whole[:at] + bytes([whole[at] ^ flip]) + whole[at + 1 :]
    path.write_bytes(content if content is not None else flipped if flip else whole[:at])
    read_or_line(path, CSVLogger(str(path.parent)).log_hyperparams, {})
    means = read_or_line(path, over_epochs, path)
    assert means is None or all(isinstance(value, float) for value in means.values())


def test_a_full_disk_ends_tensorboard_and_not_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    calls = []

    def full(*_: object) -> None:
        calls.append(1)
        raise OSError(28, "No space left on device")

    logger = TensorBoardLogger(str(tmp_path))
    monkeypatch.setattr(type(logger.experiment), "add_scalar", full)
    with pytest.warns(UserWarning, match="TensorBoard: No space left on device"):
        logger.log_metrics({"train/loss": 1.0}, 1)
    logger.log_metrics({"train/loss": 1.0}, 2)
    logger.finalize("success")
    assert len(calls) == 1


def test_missing_tensorboard_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*args: object, **kwargs: object) -> None:
        raise ModuleNotFoundError("Neither `tensorboard` nor `tensorboardX` is available.")

    monkeypatch.setattr(LightningTensorBoardLogger, "__init__", absent)
    with pytest.raises(UserError, match="pip install tensorboard"):
        TensorBoardLogger(str(tmp_path))
