"""The submission folder and its archive."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segmod import viz
from segmod.ground.errors import UserError
from segmod.inference.submission import Submission

SIZES = {"2007_000001": (4, 6), "2007_000002": (5, 3)}


@pytest.fixture
def submission(tmp_path: Path) -> Submission:
    made = Submission(tmp_path, "test")
    made.clear()
    for name, size in SIZES.items():
        viz.save_palette_png(np.full(size, 20), made.path(name))
    return made


def test_layout_is_the_servers(submission: Submission, tmp_path: Path) -> None:
    submission.verify(SIZES, 21)
    archive = submission.pack()
    with tarfile.open(archive) as tar:
        assert tar.getnames() == [
            "results/VOC2012/Segmentation/comp6_test_cls/2007_000001.png",
            "results/VOC2012/Segmentation/comp6_test_cls/2007_000002.png",
        ]
        tar.extractall(tmp_path / "out", filter="data")
    with Image.open(tmp_path / "out/results/VOC2012/Segmentation/comp6_test_cls/2007_000001.png") as png:
        assert png.mode == "P"
        assert png.size == (6, 4)
        assert np.unique(np.array(png)).tolist() == [20]
        assert png.getpalette()[60:63] == [0, 64, 128]  # tvmonitor


def test_archive_is_a_function_of_its_files(submission: Submission) -> None:
    first = submission.pack().read_bytes()
    for name in SIZES:
        submission.path(name).touch()
    assert submission.pack().read_bytes() == first


def test_clear_removes_an_older_submission(submission: Submission) -> None:
    submission.pack()
    submission.clear()
    assert list(submission.folder.iterdir()) == []
    assert not submission.archive.exists()


def test_missing_image(submission: Submission) -> None:
    submission.path("2007_000002").unlink()
    with pytest.raises(UserError, match=r"2007_000002\.png is missing"):
        submission.verify(SIZES, 21)


def test_wrong_size(submission: Submission) -> None:
    with pytest.raises(UserError, match=r"2007_000001\.png is 6x4 pixels, its image 4x6"):
        submission.verify({**SIZES, "2007_000001": (6, 4)}, 21)


def test_labels_beyond_the_classes_count_as_void_does(submission: Submission) -> None:
    with pytest.raises(UserError, match=r"has label 20, beyond 19 \(and 1 more faults\)"):
        submission.verify(SIZES, 20)


def test_colours_instead_of_labels(submission: Submission) -> None:
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(submission.path("2007_000001"))
    with pytest.raises(UserError, match="RGB colours"):
        submission.verify(SIZES, 21)


def test_damaged_file(submission: Submission) -> None:
    submission.path("2007_000001").write_bytes(b"\x89PNG cut short")
    with pytest.raises(UserError, match="cannot be read"):
        submission.verify(SIZES, 21)


def test_foreign_file(submission: Submission) -> None:
    (submission.folder / "2007_000009.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"2007_000009\.png is not in the image list"):
        submission.verify(SIZES, 21)
