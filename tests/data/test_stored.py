"""Stored boxes: found once, apart by parameters, and never those of another image."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest

from segmod.data.edgeboxes import EdgeBoxes
from segmod.data.stored import StoredProposals
from segmod.ground.errors import UserError

BOXES = np.array([[1, 2, 30, 40, 0.9], [5, 6, 7, 8, 0.5]], dtype=np.float32)


class Counting(StoredProposals):
    """Says the same boxes each time, and how often it was asked."""

    def __init__(self, root: Path, step: int = 1) -> None:
        super().__init__("counting", root, {"version": 1, "step": step})
        self.asked = 0

    def find(self, image: np.ndarray) -> np.ndarray:
        self.asked += 1
        return BOXES + np.float32(self.asked - 1)


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (48, 50, 3), dtype=np.uint8)


def test_boxes_are_found_once(tmp_path: Path, image: np.ndarray) -> None:
    source = Counting(tmp_path)
    for _ in range(3):
        np.testing.assert_array_equal(source("a", image), BOXES)
    assert source.asked == 1
    np.testing.assert_array_equal(Counting(tmp_path)("a", image), BOXES)
    assert json.loads((source.folder / "parameters.json").read_text()) == {"version": 1, "step": 1}
    assert sorted(path.name for path in source.folder.iterdir()) == ["a.npz", "parameters.json"]


def test_other_parameters_have_another_folder(tmp_path: Path, image: np.ndarray) -> None:
    first, second = Counting(tmp_path, step=1), Counting(tmp_path, step=2)
    first("a", image)
    second("a", image)
    assert (first.asked, second.asked) == (1, 1)
    assert len(list(tmp_path.glob("counting-*/a.npz"))) == 2


@pytest.mark.parametrize("key", ["alpha", "beta", "sigma", "min_score", "gamma", "kappa", "min_box_area", "eta"])
def test_every_key_of_edgeboxes_counts(key: str) -> None:
    assert EdgeBoxes(**{key: 0.3}).folder != EdgeBoxes().folder
    assert EdgeBoxes("elsewhere").folder.name == EdgeBoxes().folder.name


def test_what_does_not_matter_to_the_edges_does_not_count() -> None:
    assert EdgeBoxes(model="unused.gz").folder == EdgeBoxes().folder


def test_another_image_of_the_same_name_is_found_anew(tmp_path: Path, image: np.ndarray) -> None:
    source = Counting(tmp_path)
    source("a", image)
    changed = image.copy()
    changed[0, 0, 0] ^= 1
    np.testing.assert_array_equal(source("a", changed), BOXES + 1)
    # the same bytes in another shape have the same checksum
    np.testing.assert_array_equal(source("a", changed.reshape(50, 48, 3)), BOXES + 2)
    assert source.asked == 3


@pytest.mark.parametrize("how", ["empty", "cut", "text", "other"])
def test_a_damaged_file_is_found_anew(tmp_path: Path, image: np.ndarray, how: str) -> None:
    source = Counting(tmp_path)
    source("a", image)
    path = source.path("a")
    if how == "other":
        np.savez(path, things=np.zeros(3))
    else:
        whole = path.read_bytes()
        path.write_bytes({"empty": b"", "cut": whole[: len(whole) // 2], "text": b"boxes"}[how])
    np.testing.assert_array_equal(source("a", image), BOXES + 1)
    np.testing.assert_array_equal(Counting(tmp_path)("a", image), BOXES + 1)


@pytest.mark.parametrize(
    "boxes",
    [
        BOXES.astype(np.float64),
        BOXES.astype(np.complex64),
        np.where(BOXES == 40, np.float32(np.nan), BOXES),
        np.where(BOXES == 40, np.float32(49), BOXES),  # the image is 50 x 48 pixels
        np.where(BOXES == 1, np.float32(-1), BOXES),
        BOXES[:, [2, 1, 0, 3, 4]],
        np.where(BOXES == 0.5, np.float32(np.inf), BOXES),
        np.broadcast_to(np.float32(0), (10**6, 5)),
    ],
)
def test_boxes_that_no_source_finds_are_found_anew(tmp_path: Path, image: np.ndarray, boxes: np.ndarray) -> None:
    source = Counting(tmp_path)
    source("a", image)
    with np.load(source.path("a")) as stored:
        facts = {name: stored[name] for name in ("size", "crc32")}
    np.savez_compressed(source.path("a"), boxes=boxes, **facts)
    np.testing.assert_array_equal(source("a", image), BOXES + 1)


@pytest.mark.parametrize("byte", [6, 8])  # flags and method of the first entry
def test_an_odd_entry_is_found_anew(tmp_path: Path, image: np.ndarray, byte: int) -> None:
    source = Counting(tmp_path)
    source("a", image)
    data = bytearray(source.path("a").read_bytes())
    data[data.index(b"PK\x01\x02") + 2 + byte] ^= 1
    source.path("a").write_bytes(data)
    np.testing.assert_array_equal(source("a", image), BOXES + 1)


def test_a_flipped_bit_is_noticed(tmp_path: Path, image: np.ndarray) -> None:
    source = Counting(tmp_path)
    source("a", image)
    data = bytearray(source.path("a").read_bytes())
    place = data.index(b"boxes.npy") + 60  # in the compressed array
    data[place] ^= 255
    source.path("a").write_bytes(data)
    np.testing.assert_array_equal(source("a", image), BOXES + 1)


def test_an_image_without_a_name_is_not_kept(tmp_path: Path, image: np.ndarray) -> None:
    source = Counting(tmp_path)
    source("", image)
    source("", image)
    assert source.asked == 2
    assert not source.folder.exists()


def test_a_failed_write_leaves_nothing(tmp_path: Path, image: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    source = Counting(tmp_path)
    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(UserError, match=r"a\.npz: cannot store the proposals \(No space left.*proposals\.root"):
        source("a", image)
    assert [path.name for path in source.folder.iterdir()] == ["parameters.json"]


def test_threads_may_write_the_same_file(tmp_path: Path, image: np.ndarray) -> None:
    source = Counting(tmp_path)
    threads = [threading.Thread(target=source, args=("a", image)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert source.load("a", image) is not None
    assert sorted(path.name for path in source.folder.iterdir()) == ["a.npz", "parameters.json"]
