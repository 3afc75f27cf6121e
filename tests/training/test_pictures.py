import warnings
from collections.abc import Callable
from pathlib import Path

import lightning as L
import numpy as np
import pytest
from PIL import Image

from segmod import viz
from segmod.training.loggers import TensorBoardLogger
from segmod.training.pictures import PredictionPictures

Train = Callable[..., L.Trainer]


def test_first_images_are_drawn_after_the_sanity_check(tmp_path: Path, train: Train) -> None:
    train(False, [PredictionPictures(str(tmp_path / "pictures"), count=2)])
    files = sorted((tmp_path / "pictures").iterdir())
    assert [file.name[:4] for file in files] == ["000_", "001_"]
    assert all(file.suffix == ".png" for file in files)


def test_pictures_hold_the_image_as_it_was_read(tmp_path: Path, train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def panel(
        image: np.ndarray, truth: np.ndarray, prediction: np.ndarray, classes: tuple[str, ...], palette: np.ndarray
    ) -> np.ndarray:
        drawn.append((image, truth, prediction, classes, palette))
        return image

    monkeypatch.setattr(viz, "panel", panel)
    trainer = train(False, [PredictionPictures(str(tmp_path), count=1)], max_epochs=1)
    image, truth, prediction, classes, palette = drawn[-1]
    data = trainer.datamodule  # type: ignore[attr-defined]
    read_image, read_mask = data.val_dataset.read(0)
    assert np.abs(image.astype(int) - read_image.astype(int)).max() <= 1  # normalised and back
    assert np.array_equal(truth, read_mask)
    assert prediction.shape == truth.shape
    assert prediction.max() < 5
    assert classes == data.legend.classes
    assert palette is data.legend.palette
    assert Image.open(next(tmp_path.glob("000_*.png"))).size == (32, 32)


def test_pictures_reach_tensorboard(tmp_path: Path, train: Train) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(str(tmp_path))
    train(logger, [PredictionPictures(str(tmp_path / "pictures"), count=1)])
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    (tag,) = events.Tags()["images"]
    assert tag.startswith("pictures/000_")
    assert [event.step for event in events.Images(tag)] == [2, 4]  # two epochs of two steps


def test_none_are_drawn_when_none_are_asked_for(tmp_path: Path, train: Train) -> None:
    train(False, [PredictionPictures(str(tmp_path / "pictures"), count=0)], max_epochs=1)
    assert not (tmp_path / "pictures").exists()


def test_pictures_that_cannot_be_written_are_one_warning(tmp_path: Path, train: Train) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "pictures"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")  # as a user sees them: a text from one place once
        trainer = train(False, [PredictionPictures(str(folder), count=3)])
    assert trainer.global_step == 4
    told = [str(warning.message) for warning in caught if "pictures" in str(warning.message)]
    assert told == [f"pictures in {folder}: Not a directory"]
