"""The net and the data set keep what segmod asks of them, and train: ``python -m pytest``."""

import subprocess
import sys
from pathlib import Path

import torch
from own_data import OwnData
from own_net import OwnNet

from segmod.data.base import Split
from segmod.data.transforms import EvalTransform

HERE = Path(__file__).parent


def test_logits_have_the_size_of_the_image() -> None:
    """Of sizes that no stride divides, too."""
    image = torch.zeros(2, 3, 37, 50, dtype=torch.uint8)
    assert OwnNet(num_classes=3)(image).shape == (2, 3, 37, 50)


def test_every_image_can_be_read() -> None:
    """`Split` checks sizes, types and labels."""
    for name in ("train", "val"):
        split = Split(OwnData(images=8), name, EvalTransform())
        assert len([split[index] for index in range(len(split))]) == len(split)


def test_one_epoch_trains(tmp_path: Path) -> None:
    """The command, as it is typed in this folder."""
    words = ["--config-dir", "conf", "experiment=own", "trainer=cpu", "trainer.max_epochs=1", "data.dataset.images=8"]
    command = [sys.executable, "-m", "segmod", "train", *words, "data.num_workers=0", f"runs={tmp_path}"]
    subprocess.run(command, cwd=HERE, check=True)
    assert list(tmp_path.rglob("metrics.json"))
