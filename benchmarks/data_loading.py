"""How fast one worker turns files into training batches: segmod against PIL + torchvision v2.

Both read the same JPEGs and label PNGs of a VOC tree, resize by a random factor of 0.5 to 2, pad and crop to 512,
flip half of them; a DataLoader with one worker makes batches of 4. The peer normalises to float32 images, as is usual;
segmod hands on uint8 images, which the first layer of the net normalises.
The two take turns in the order A B B A, so that other load on the machine falls on both alike.

    python benchmarks/data_loading.py --root FOLDER_OF_VOCDEVKIT

PIL smooths when it shrinks an image and OpenCV does not: that part of the difference is not waste.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2

from segmod.data.base import Split
from segmod.data.order import ResumableLoader, TrainingOrder, prepare_worker
from segmod.data.synthetic import write_voc_tree
from segmod.data.transforms import TrainTransform
from segmod.data.voc import PascalVOC
from segmod.ground.types import IGNORE_INDEX

CROP = 512
SCALE = (0.5, 2.0)
BATCH = 4


class TorchvisionSamples(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """The same work by PIL and torchvision's transforms v2, in the order of torchvision's segmentation reference."""

    def __init__(self, files: list[tuple[Path, Path]]) -> None:
        self.files = files
        fill = {Image.Image: (124, 116, 104), tv_tensors.Mask: IGNORE_INDEX}
        self.crop = v2.Compose([v2.RandomCrop(CROP, pad_if_needed=True, fill=fill), v2.RandomHorizontalFlip(0.5)])
        self.finish = v2.Compose(
            [
                v2.ToImage(),
                v2.ToDtype({tv_tensors.Image: torch.float32, tv_tensors.Mask: torch.int64, "others": None}, scale=True),
                v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ]
        )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image_file, mask_file = self.files[index]
        image = Image.open(image_file).convert("RGB")
        mask = tv_tensors.Mask(v2.functional.pil_to_tensor(Image.open(mask_file)))
        factor = float(torch.empty(1).uniform_(*SCALE))
        size = [round(image.height * factor), round(image.width * factor)]
        image = v2.functional.resize(image, size)
        mask = v2.functional.resize(mask, size, interpolation=InterpolationMode.NEAREST)
        image, mask = self.finish(*self.crop(image, mask))
        return image, mask[0]


def epoch(loader: DataLoader) -> tuple[float, float]:
    """Return the seconds an image of one pass over a loader, by the clock and of the worker's CPU."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    images = sum(len(batch["image"] if isinstance(batch, dict) else batch[0]) for batch in loader)
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall / images, cpu / images


def compare(root: Path, images: int, rounds: int) -> None:
    """Print both rates and their ratio."""
    transform = TrainTransform(crop_size=CROP, scale=SCALE)
    voc = PascalVOC(root)
    ours = Split(voc, "train", transform)
    ours.names = ours.names[:images]
    order = TrainingOrder(len(ours))
    one: dict[str, Any] = {"batch_size": BATCH, "num_workers": 1, "drop_last": True}
    a = ResumableLoader(ours, sampler=order, worker_init_fn=prepare_worker, **one)
    b = DataLoader(TorchvisionSamples([voc.files("train", name) for name in ours.names]), shuffle=True, **one)
    epoch(a), epoch(b)  # the files come into the page cache
    times: dict[DataLoader, list[tuple[float, float]]] = {a: [], b: []}
    for number in range(rounds):
        order.set_epoch(number)
        for loader in (a, b, b, a):
            times[loader].append(epoch(loader))
    medians = {}
    for name, loader in (("segmod", a), ("PIL + torchvision v2", b)):
        wall, cpu = (statistics.median(column) for column in zip(*times[loader], strict=True))
        medians[name] = wall, cpu
        print(f"{name:22} {1 / wall:6.1f} images/s a worker   {1e3 * cpu:5.1f} ms CPU an image")
    (wall, cpu), (their_wall, their_cpu) = medians.values()
    print(f"speed-up               {their_wall / wall:6.2f} by the clock      {their_cpu / cpu:5.2f} in CPU time")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder of VOCdevkit; by default 64 generated images of 500x375")
    parser.add_argument("--images", type=int, default=200, help="images a pass")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of four passes")
    options = parser.parse_args()
    if options.root:
        compare(options.root, options.images, options.rounds)
    else:
        with tempfile.TemporaryDirectory() as folder:
            write_voc_tree(Path(folder), train=64, val=1, size=(375, 500))
            compare(Path(folder), options.images, options.rounds)


if __name__ == "__main__":
    main()
