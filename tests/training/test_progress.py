"""What a training shows on the terminal."""

from collections.abc import Callable

import lightning as L
import pytest

from segmod.training.progress import ModelSummary, ProgressBar


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
