"""Sources that store nothing: sliding windows, the truth, and the files of another tool."""

import json
import logging
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segmod.data.instances import find_instances
from segmod.data.proposals import BoxFiles, GridBoxes, TruthBoxes, tidy
from segmod.data.synthetic import SyntheticScenes
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


def test_truth_takes_the_objects_that_somebody_drew(caplog: pytest.LogCaptureFixture) -> None:
    """Objects of one class that touch are one piece, and one that another cuts apart is two."""
    scenes = SyntheticScenes(size=64, train_images=4, val_images=6, num_classes=2)
    truth = TruthBoxes(scenes, ["val", "train"])
    drawn, pieces = [], []
    with caplog.at_level(logging.INFO):
        for split in ("val", "train"):
            for name in scenes.names(split):
                image, mask = scenes.read(split, name)
                drawn.append([i.box for i in find_instances(mask, scenes.read_objects(split, name))[0]])
                pieces.append(len(TruthBoxes()(name, image, mask)))
                assert sorted(truth(name, image, mask)[:, :4].tolist()) == sorted(map(list, drawn[-1]))
                small = np.ascontiguousarray(mask[::2, ::2])  # as an image that was resized
                assert len(truth(name, image[::2, ::2], small)) == len(drawn[-1])
    assert list(map(len, drawn)) != pieces
    told = [record.message for record in caplog.records]
    assert told == [f"proposals=gt: objects of {split}: the scenes' own" for split in ("val", "train")]
    assert len(truth("another", IMAGE, np.pad(np.ones((20, 20), np.uint8), 10))) == 1  # no image of the data: pieces


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


@pytest.mark.parametrize("numbers", [[[1 + 2j] * 4], [["1"] * 4], [[True] * 4], [[None] * 4], [[1e39] * 4]])
def test_what_are_no_numbers_are_no_boxes(tmp_path: Path, numbers: Any) -> None:
    np.savez(tmp_path / "a.npz", boxes=np.array(numbers))
    with pytest.raises(UserError, match=r"a\.npz: (must hold boxes of 4 or 5 finite numbers|cannot read boxes)"):
        BoxFiles(tmp_path)("a", IMAGE)


def claiming(shape: str, data: bytes = b"") -> bytes:
    """A .npy whose header says how many float64 follow."""
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".json", ".txt"])
def test_files_larger_than_boxes_are_refused_before_they_take_memory(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    if suffix == ".npz":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:  # 2 MB of them took 11 GB
            archive.writestr("boxes.npy", claiming("(3000000, 5)", bytes(120_000_000)))
        assert path.stat().st_size < 200_000
    elif suffix == ".npy":
        path.write_bytes(claiming("(1000000000000, 5)"))
    else:
        with path.open("wb") as file:
            file.truncate(2**30)  # takes no room on the disk
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=rf"a\{suffix}: cannot read boxes from it \(.*too many to be boxes\)"):
            BoxFiles(tmp_path)("a", IMAGE)
        assert tracemalloc.get_traced_memory()[1] < 10**6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.npy", claiming("(2, 5)", bytes(79))),
        ("a.npy", claiming("(-2, 5)")),
        ("a.npy", claiming("(2, 5").replace(b"}", b")")),
        ("a.npz", claiming("(1, 4)", bytes(32))),
        ("a.json", b"[" * 100_000),
        ("a.json", b'{"scores": []}'),
        ("a.json", b"[[1, 2, 3, " + b"9" * 5000 + b"]]"),
        ("a.txt", "1 2 3 4".encode("utf-16")),
        ("a.txt", b"1 2 3 4\n\xff"),
    ],
)
def test_damaged_files_are_one_short_line(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=name) as caught:
        BoxFiles(tmp_path)("a", IMAGE)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) <= 300


def test_packed_files_of_odd_kinds_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, boxes=np.zeros((1, 4)))
    whole = path.read_bytes()
    entry = whole.index(b"PK\x01\x02")  # of the table at the end
    for place, value, message in ((entry + 8, 1, "encrypted"), (entry + 10, 99, "compression"), (entry + 16, 7, "CRC")):
        path.write_bytes(whole[:place] + bytes([value]) + whole[place + 1 :])
        with pytest.raises(UserError, match=rf"a\.npz: cannot read boxes from it \(.*{message}"):
            BoxFiles(tmp_path)("a", IMAGE)


@settings(derandomize=True, max_examples=150, deadline=None)
@given(
    suffix=st.sampled_from([".npz", ".npy", ".json", ".csv"]),
    place=st.floats(0, 1, exclude_max=True),
    flip=st.integers(0, 255),
    content=st.none() | st.binary(max_size=200),
)
def test_any_bytes_are_boxes_or_one_line(
    tmp_path_factory: pytest.TempPathFactory,
    read_or_line: Any,
    suffix: str,
    place: float,
    flip: int,
    content: bytes | None,
) -> None:
    """Any bytes at all, or a file cut off (``flip`` 0) or with some bits of a byte flipped."""
    folder = tmp_path_factory.mktemp("boxes")
    path = folder / f"a{suffix}"
    if suffix == ".npz":
        np.savez_compressed(path, boxes=np.array(SCORED))
    elif suffix == ".npy":
        np.save(path, SCORED)
    else:
        path.write_text(json.dumps(SCORED) if suffix == ".json" else "x1,y1,x2,y2\n0,0,50,50\n10,20,30,40\n")
    whole = path.read_bytes()
    at = int(place * len(whole))
    flipped = whole[:at] + bytes([whole[at] ^ flip]) + whole[at + 1 :]
    path.write_bytes(content if content is not None else flipped if flip else whole[:at])
    boxes = read_or_line(path, BoxFiles(folder), "a", IMAGE)
    if boxes is not None:
        assert (boxes.dtype, boxes.shape[1:]) == (np.float32, (5,))
        assert np.isfinite(boxes).all()
        np.testing.assert_array_equal(tidy(boxes, *IMAGE.shape[:2]), boxes)


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
