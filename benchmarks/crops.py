"""How fast one core cuts training crops: decoded images kept, against reading and decoding the image for each crop.

Both ways give the same kind of batches of 8 crops of 224 x 224, made in this process by the loader that training uses.
Kept images are measured with a cache that holds all of them (filled before, as it is after the first epoch), and with
one for a quarter of them and the order that goes with it, starting empty. The ways take turns in the order A B C C B A,
so that other load on the machine falls on all alike. At the end: how often two crops of a batch are of one image.

    python benchmarks/crops.py --root FOLDER_OF_VOCDEVKIT
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from itertools import islice
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from segmod.data.base import Split
from segmod.data.crops import BoxCrops, Boxes, BoxFinder, CropOrder
from segmod.data.order import ResumableLoader
from segmod.data.proposals import GridBoxes
from segmod.data.synthetic import write_voc_tree
from segmod.data.transforms import EvalTransform, TrainTransform
from segmod.data.voc import PascalVOC

BATCH = 8


class Way:
    """A loader of crops, and what its batches cost."""

    def __init__(self, images: Split, boxes: Boxes, isolate: bool, cache_images: int, fresh: bool) -> None:
        count = len(np.unique(boxes.image))
        window = cache_images // 2 if 0 < cache_images < count else None
        transform = TrainTransform(crop_size=224, squash=250, pad="black")
        self.crops = BoxCrops(images, boxes, transform, isolate=isolate, cache_images=cache_images)
        self.order = CropOrder(boxes, balance=False, window=window)
        self.fresh = fresh
        self.costs: list[tuple[float, float]] = []

    def measure(self, epoch: int, batches: int) -> None:
        """Note the seconds a crop, by the clock and of the CPU."""
        if self.fresh:
            self.crops._recent.clear()
        self.order.set_epoch(epoch)
        loader = ResumableLoader(self.crops, BATCH, sampler=self.order, drop_last=True)
        wall, cpu = time.perf_counter(), time.process_time()
        crops = sum(len(batch["name"]) for batch in islice(loader, batches))
        self.costs.append(((time.perf_counter() - wall) / crops, (time.process_time() - cpu) / crops))

    def same_image(self, size: int) -> float:
        """Return how many pairs of crops of one image a batch has on average."""
        images = np.array([self.crops.boxes.image[index] for _, index, _ in self.order])
        batches = images[: len(images) // size * size].reshape(-1, size)
        counts = [np.unique(batch, return_counts=True)[1] for batch in batches]
        return float(np.mean([(n * (n - 1) / 2).sum() for n in counts]))


def compare(title: str, images: Split, boxes: Boxes, isolate: bool, rounds: int, batches: int) -> None:
    """Print the rates of the three ways and their ratios."""
    count = len(np.unique(boxes.image))
    print(f"\n{title}: {len(boxes)} boxes in {count} images")
    anew = Way(images, boxes, isolate, 0, fresh=True)
    kept = Way(images, boxes, isolate, count, fresh=False)
    window = Way(images, boxes, isolate, count // 4, fresh=True)
    for index in np.unique(boxes.image, return_index=True)[1].tolist():
        kept.crops[index]  # the cache is filled, and the files come into the page cache
    whole = len(boxes) // BATCH
    for number in range(rounds):
        for way in (anew, kept, window, window, kept, anew):
            # a window pays for its images over a whole epoch
            way.measure(number, whole if way is window else min(batches, whole))
    names = ("read for each crop", "all images kept", f"{count // 4} images kept, ordered")
    baseline = 0.0
    for name, way in zip(names, (anew, kept, window), strict=True):
        wall, cpu = (statistics.median(column) for column in zip(*way.costs, strict=True))
        baseline = baseline or cpu
        print(
            f"{name:30} {1 / wall:6.0f} crops/s   {1e3 * cpu:5.2f} ms CPU a crop   {baseline / cpu:5.2f} times as fast"
        )
    for way, name in ((kept, "any order"), (window, f"windows of {count // 8} images")):
        eight, many = way.same_image(8), way.same_image(64)
        print(f"pairs of one image, {name:24} {eight:5.2f} in a batch of 8 (28 pairs)   {many:6.2f} in 64 (2016 pairs)")


def run(root: Path, count: int, rounds: int, batches: int) -> None:
    """Find the boxes of both stages and compare."""
    images = Split(PascalVOC(root), "train", EvalTransform())
    images.names = images.names[:count]
    for title, finder in (
        ("objects (stage 1)", BoxFinder(images)),
        ("proposals of a grid (stage 2)", BoxFinder(images, GridBoxes())),
    ):
        start = time.process_time()
        boxes = Boxes.joined([finder[index] for index in range(len(finder))])
        found = time.process_time() - start
        compare(title, images, boxes, finder.proposals is None, rounds, batches)
        print(f"boxes found in {found:.2f} s CPU, {1e3 * found / len(finder):.1f} ms an image")
    size = np.mean([sum(array.nbytes for array in images.read(index)) for index in range(len(images))])
    print(f"\nan image takes {size / 1e6:.2f} MB in the cache, and a quarter more in stage 1")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder of VOCdevkit; by default 64 generated images of 500x375")
    parser.add_argument("--images", type=int, default=437, help="images used")
    parser.add_argument("--rounds", type=int, default=2, help="rounds of six passes")
    parser.add_argument("--batches", type=int, default=60, help="batches a pass; the last way takes whole epochs")
    options = parser.parse_args()
    if options.root:
        run(options.root, options.images, options.rounds, options.batches)
    else:
        with tempfile.TemporaryDirectory() as folder:
            write_voc_tree(Path(folder), train=64, val=1, size=(375, 500))
            run(Path(folder), options.images, options.rounds, options.batches)


if __name__ == "__main__":
    main()
