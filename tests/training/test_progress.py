"""What a training shows on the terminal."""

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest

from segmod.training.progress import Lines, ModelSummary, ProgressBar


@pytest.mark.parametrize(
    ("length", "label"), [({"max_epochs": None, "max_steps": 3}, "Epoch 1 "), ({"max_epochs": 2}, "Epoch 1/1")]
)
def test_the_bar_names_the_last_epoch_where_it_is_known(
    length: dict[str, int | None], label: str, train: Callable[..., L.Trainer], capsys: pytest.CaptureFixture[str]
) -> None:
    train(False, [ProgressBar()], progress=True, **length)  # two steps an epoch
    printed = capsys.readouterr().out
    assert label in printed
    assert "/-" not in printed


def test_lines_tell_of_the_data_and_of_each_validation(
    train: Callable[..., L.Trainer], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "segmod")
    train(False, [Lines()])
    data, device, length, *found = [record.message for record in caplog.records if record.module == "progress"]
    assert data == "data      Synthetic, 5 classes, 4 samples to train, 3 samples to val"
    assert device == "device    cpu, 32-true"
    assert length == "length    4 steps, 2 an epoch, 2 images a batch; at step 0"
    assert [line.split("  val/miou ")[0] for line in found] == ["step 2  epoch 1", "step 4  epoch 2"]
    for line in found:
        assert re.fullmatch(r".*  val/miou \d+\.\d\d %  loss \d\.\d{4}  time 0:00:\d\d", line)


def test_the_log_of_a_run_tells_the_same(segmod: Any, small: tuple[str, ...], capfd: Any) -> None:
    assert segmod("train", *small) == 0
    told = capfd.readouterr().err
    (log,) = Path("runs").rglob("train.log")
    logged = log.read_text()
    for begin in (
        "model.net.weights=null: random, training ",
        "data      ",
        "device    ",
        "length    ",
        "step 8  epoch 2  val",
    ):
        assert begin in told
        assert begin in logged
    assert told.count("  val/miou ") == 2


def test_the_summary_counts_parameters_and_no_flops(
    train: Callable[..., L.Trainer], capsys: pytest.CaptureFixture[str]
) -> None:
    train(False, [ProgressBar(), ModelSummary(max_depth=2)], progress=True)
    printed = capsys.readouterr().out
    (row,) = (line for line in printed.splitlines() if "net.score" in line)
    assert "Conv2d" in row
    assert " 20 " in row  # 3 colours times 5 classes, and 5 biases
    assert "20 parameters, 20 of them trained" in " ".join(printed.split())
    assert "FLOPs" not in printed
