"""Sources that store nothing: sliding windows, the truth, and the files of another tool."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segmod.data.proposals import BoxFiles, GridBoxes, TruthBoxes, tidy
from segmod.ground.errors import UserError

IMAGE = np.zeros((60, 100, 3), dtype=np.uint8)


def test_tidy_cuts_sorts_and_drops() -> None:
    boxes = np.array([
        [-5, 10, 20, 30, 0.1],  # left of the image in part
        [90, 50, 140, 90, 0.7],  # beyond the lower right corner
        [120, 10, 150, 20, 0.9],  # outside
        [10, 10, 10.5, 40, 0.8],  # less than a pixel wide
        [30, 20, 10, 40, 0.8],  # turned round
        [0, 0, 5, 5, 0.7],  # as good as the second: stays behind it
    ])  # fmt: skip
    expected = [[90, 50, 100, 60, 0.7], [0, 0, 5, 5, 0.7], [0, 10, 20, 30, 0.1]]
    np.testing.assert_array_equal(tidy(boxes, 60, 100), np.float32(expected))


def test_windows_of_one_scale_tile_the_image() -> None:
    boxes = GridBoxes(scales=[0.5], aspects=[1.0], overlap=0.0)("a", IMAGE)
    tiles = {(0, 0, 50, 30), (50, 0, 100, 30), (0, 30, 50, 60), (50, 30, 100, 60)}
    assert {tuple(map(int, box[:4])) for box in boxes} == tiles
    # A quarter of the image, its middle half-way to the corner: 0.25 * (1 - 0.5 / 2).
    np.testing.assert_allclose(boxes[:, 4], 0.1875)


def test_windows_overlap_at_least_as_asked() -> None:
    boxes = GridBoxes(scales=[0.4], aspects=[1.0], overlap=0.5)("a", IMAGE)
    starts = sorted({int(box[0]) for box in boxes})
    # Steps of at most 0.2 over a room of 0.6: 0, 20, 40, 60.
    assert starts == [0, 20, 40, 60]
    assert len(boxes) == 16


def test_the_whole_image_comes_first_and_no_window_twice() -> None:
    boxes = GridBoxes()("a", IMAGE)
    assert boxes[0].tolist() == [0, 0, 100, 60, 1]
    assert (np.diff(boxes[:, 4]) <= 0).all()
    assert len(np.unique(boxes[:, :4], axis=0)) == len(boxes)
    assert len(GridBoxes(max_boxes=5)("a", IMAGE)) == 5


def test_truth_is_the_boxes_of_the_objects() -> None:
    mask = np.zeros((60, 100), dtype=np.uint8)
    mask[10:20, 10:30], mask[30:60, 40:100], mask[0:3, 50:53] = 3, 5, 255
    boxes = TruthBoxes()("a", IMAGE, mask)
    # 60 x 30 and 20 x 10 of 6000 pixels
    np.testing.assert_allclose(boxes, [[40, 30, 100, 60, 0.3], [10, 10, 30, 20, 200 / 6000]], rtol=1e-6)
    assert TruthBoxes()("a", IMAGE, np.zeros_like(mask)).shape == (0, 5)


@pytest.mark.parametrize("mask", [None, np.full((60, 100), 255, np.uint8)])
def test_truth_of_an_image_without_one(mask: Any) -> None:
    with pytest.raises(UserError, match=r"proposals=gt: image 2008_000001 has no ground truth"):
        TruthBoxes()("2008_000001", IMAGE, mask)


SCORED = [[10, 20, 30, 40, 0.2], [0, 0, 50, 50, 0.9]]
PLAIN = [[0, 0, 50, 50], [10, 20, 30, 40]]


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        (".csv", "x1,y1,x2,y2,score\n10,20,30,40,0.2\n0,0,50,50,0.9\n"),
        (".csv", "0, 0, 50, 50\n10, 20, 30, 40\n"),
        (".txt", "10 20 30 40 0.2\n\n0 0 50 50 9e-1\n"),
        (".json", json.dumps(SCORED)),
        (".json", json.dumps({"boxes": PLAIN, "method": "mine"})),
        (".npy", SCORED),
        (".npz", {"boxes": SCORED, "labels": [1, 2]}),
        (".npz", {"anything": PLAIN}),
    ],
)
def test_forms_of_files(tmp_path: Path, suffix: str, content: Any) -> None:
    path = tmp_path / f"a{suffix}"
    if isinstance(content, str):
        path.write_text(content)
    elif isinstance(content, dict):
        np.savez(path, **content)
    else:
        np.save(path, content)
    boxes = BoxFiles(tmp_path)("a", IMAGE)
    assert boxes.dtype == np.float32
    assert boxes[:, :4].tolist() == PLAIN
    assert boxes[0, 4] > boxes[1, 4]


@pytest.mark.parametrize(("coordinates", "numbers"), [("xywh", "10 20 30 5"), ("yxyx", "20 10 25 40")])
def test_coordinates(tmp_path: Path, coordinates: Any, numbers: str) -> None:
    (tmp_path / "a.txt").write_text(numbers)
    assert BoxFiles(tmp_path, coordinates)("a", IMAGE)[0, :4].tolist() == [10, 20, 40, 25]


def test_what_is_stored_can_be_read_as_files(tmp_path: Path) -> None:
    from segmod.data.edgeboxes import EdgeBoxes

    image = np.random.default_rng(0).integers(0, 255, (80, 90, 3), dtype=np.uint8)
    source = EdgeBoxes(tmp_path)
    boxes = source("a", image)
    assert len(boxes) > 10
    np.testing.assert_array_equal(BoxFiles(source.folder)("a", image), boxes)


def test_an_empty_file_says_there_is_no_box(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("")
    assert BoxFiles(tmp_path)("a", IMAGE).shape == (0, 5)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("b.txt", "1 2 3 4", r"/a: no boxes for this image; looked for \.npz, "),
        ("a.txt", "1 2 3", r"a\.txt: must hold boxes of 4 or 5 finite numbers, found an array of shape \(1, 3\)"),
        ("a.txt", "1 2 3 nan", r"a\.txt: must hold boxes of 4 or 5 finite numbers"),
        ("a.csv", "1,2,3,4\n1,2,x,4", r"a\.csv: cannot read boxes from it \(could not convert"),
        ("a.json", "{", r"a\.json: cannot read boxes"),
        ("a.npz", "text", r"a\.npz: cannot read boxes"),
    ],
)
def test_files_that_hold_no_boxes(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        BoxFiles(tmp_path)("a", IMAGE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BoxFiles("nowhere"), r"proposals\.folder=nowhere: no such folder"),
        (lambda: BoxFiles(".", "ltrb"), r"proposals\.coordinates=ltrb: must be one of xyxy, xywh, yxyx"),
        (lambda: BoxFiles(".")("", IMAGE), r"an image without a name has no file"),
        (lambda: GridBoxes(scales=[1.5]), r"proposals\.scales"),
        (lambda: GridBoxes(aspects=[]), r"proposals\.aspects"),
        (lambda: GridBoxes(overlap=1.0), r"proposals\.overlap=1"),
        (lambda: GridBoxes(max_boxes=0), r"proposals\.max_boxes=0"),
    ],
)
def test_mistakes_name_the_key(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()
