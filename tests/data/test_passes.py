"""Boxes made in advance, over threads: what is there stays, and what fails is told at the end."""

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from segmod.data.base import Split
from segmod.data.passes import jobs_of, over_images
from segmod.data.stored import StoredProposals, make_proposals
from segmod.data.summary import balancing_weights, mean_and_std
from segmod.data.synthetic import SyntheticScenes, write_voc_tree
from segmod.data.transforms import EvalTransform
from segmod.data.voc import PascalVOC
from segmod.ground.errors import UserError
from segmod.ground.types import IGNORE_INDEX

PLAIN = EvalTransform()


class Slow(StoredProposals):
    """One box an image, after a while."""

    def __init__(self, root: Path, seconds: float = 0.0) -> None:
        super().__init__("slow", root, {})
        self.seconds = seconds
        self.threads: set[int] = set()

    def find(self, image: np.ndarray) -> np.ndarray:
        self.threads.add(threading.get_ident())
        time.sleep(self.seconds)
        return np.array([[0, 0, image.shape[1], image.shape[0], 1]], dtype=np.float32)


def scenes(split: str = "train", length: int = 6) -> Split:
    return Split(SyntheticScenes(32, length, length), split, PLAIN)


def test_what_is_there_is_kept(tmp_path: Path) -> None:
    source = Slow(tmp_path, 0.01)
    made = make_proposals(source, jobs_of([scenes()], limit=4), workers=2)
    assert made[:3] == (4, 4, 4)
    assert 0 < made.seconds < 4
    assert make_proposals(source, jobs_of([scenes()]), workers=2)[:3] == (6, 2, 6)
    assert make_proposals(source, jobs_of([scenes()]), workers=2) == (6, 0, 6, 0.0)
    source.path("train_000003").write_bytes(b"damaged")
    assert make_proposals(source, jobs_of([scenes()]), workers=2).found == 1
    assert len(list(source.folder.iterdir())) == 7  # with parameters.json


def test_images_of_one_name_are_done_once() -> None:
    jobs = jobs_of([scenes(), scenes("val", 2), scenes()])
    assert [dataset.names[index] for dataset, index in jobs] == [*scenes().names, *scenes("val", 2).names]


def test_workers_share_the_images(tmp_path: Path) -> None:
    source = Slow(tmp_path, 0.02)
    make_proposals(source, jobs_of([scenes()]), workers=3)
    assert len(source.threads) == 3


def test_bad_images_are_told_when_the_others_are_done(tmp_path: Path) -> None:
    split = Split(PascalVOC(write_voc_tree(tmp_path / "voc", train=4, val=1, size=(32, 48))), "trainval", PLAIN)
    for name in split.names[:2]:
        split.dataset.files("trainval", name)[0].write_bytes(b"no picture")
    source = Slow(tmp_path)
    with pytest.raises(UserError, match=r"^2 of 5 images failed: .*damaged.*; .*damaged") as caught:
        make_proposals(source, jobs_of([split]), workers=2)
    assert "\n" not in str(caught.value)
    assert len(list(source.folder.glob("*.npz"))) == 3


def test_ctrl_c_stops_soon_and_the_next_call_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, find, calls = Slow(tmp_path), Slow.find, []

    def interrupted(self: Slow, image: np.ndarray) -> np.ndarray:
        calls.append(1)
        if len(calls) in (6, 40):  # the second for an interpreter that was busy with its own affairs
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)
        return find(self, image)

    monkeypatch.setattr(Slow, "find", interrupted)
    jobs = jobs_of([scenes(length=200)])
    with pytest.raises(KeyboardInterrupt):
        make_proposals(source, jobs, workers=2)
    done = sorted(path.name for path in source.folder.iterdir())
    assert len(calls) < 150
    assert len(done) == len(calls) + 1  # those in work were ended; and parameters.json
    assert all(name.endswith((".npz", ".json")) for name in done)
    monkeypatch.setattr(Slow, "find", find)
    assert make_proposals(source, jobs, workers=2).found == 200 - len(calls)


@pytest.mark.parametrize("workers", [0, -1])
def test_workers_must_be_some(workers: int) -> None:
    with pytest.raises(UserError, match=f"workers={workers}: "):
        list(over_images(lambda job: job, jobs_of([scenes()]), "x", workers))


def test_limit_must_be_some() -> None:
    with pytest.raises(UserError, match="limit=0: "):
        jobs_of([scenes()], 0)


def test_balancing_weights_are_the_median_frequency_over_each() -> None:
    # 8 labelled pixels and two void in each of two images; class 1 is in one of them, class 3 in none.
    # frequencies: 0: 11 of 16; 1: 2 of 8; 2: 3 of 16; their median is 1/4
    pixels = np.zeros((2, 256), dtype=np.int64)
    pixels[0, [0, 1, 2, IGNORE_INDEX]] = 5, 2, 1, 2
    pixels[1, [0, 2, IGNORE_INDEX]] = 6, 2, 2
    assert balancing_weights(pixels, 4) == pytest.approx([0.25 / (11 / 16), 1, 0.25 / (3 / 16), 1])
    assert balancing_weights(np.zeros((2, 256), dtype=np.int64), 2) == [1, 1]  # void alone


def test_colours_are_measured_over_all_pixels() -> None:
    # red: 0 and 100 alike often: mean 50, deviation 50; green always 7, whose deviation of 0 is raised to 1;
    # blue: three of 10, one of 50: mean 20, deviation sqrt((3 * 100 + 900) / 4) = 17.32
    colours = np.zeros((3, 256), dtype=np.int64)
    colours[0, [0, 100]], colours[1, 7], colours[2, [10, 50]] = 2, 4, (3, 1)
    assert mean_and_std(colours) == {"mean": [50, 7, 20], "std": [50, 1, 17.32]}
