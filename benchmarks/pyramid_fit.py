"""Can the pyramid learn at all: eight training images of VOC by heart, on a small ResNet from random weights.

    python benchmarks/pyramid_fit.py --root DIR [--depths 0 2 5] [--steps 100] [--threads 1]

The first eight training images, squashed to 160 x 160; batches of 4, SGD with momentum 0.9, decay 5e-4 and a rate that
falls from 0.02 in equal steps. Printed are the loss and, on the same images, the mIoU of the classes in them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from segmod.ground.types import labels_of
from segmod.metrics import SegmentationMetrics, summarise
from segmod.nets.pyramid import DeepFeaturePyramid
from segmod.optim import Linear

SIZE = (160, 160)


def load(root: Path) -> tuple[Tensor, Tensor]:
    """Images (8, 3, 160, 160) and masks (8, 160, 160)."""
    voc = root / "VOCdevkit" / "VOC2012"
    names = (voc / "ImageSets/Segmentation/train.txt").read_text().split()[:8]
    images = [Image.open(voc / f"JPEGImages/{name}.jpg").resize(SIZE, Image.Resampling.BILINEAR) for name in names]
    masks = [Image.open(voc / f"SegmentationClass/{name}.png").resize(SIZE, Image.Resampling.NEAREST) for name in names]
    truth = torch.from_numpy(np.stack([np.array(mask) for mask in masks])).long()
    return torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images]), truth


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--depths", type=int, nargs="+", default=(0, 2, 5))
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    images, masks = load(options.root)
    for depth in options.depths:
        torch.manual_seed(0)
        net = DeepFeaturePyramid(21, depth, "resnet18")
        optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
        schedule = Linear(optimizer, options.steps)
        order = torch.Generator().manual_seed(0)
        losses = []
        for step in range(options.steps):
            if step % 2 == 0:
                halves = torch.randperm(8, generator=order).split(4)
            batch = halves[step % 2]
            loss = F.cross_entropy(net(images[batch]), masks[batch], ignore_index=255)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        metrics = SegmentationMetrics(21)
        with torch.no_grad():
            metrics.update(labels_of(net.eval()(images)), masks)
        found = summarise(metrics.compute())
        means = ", ".join(f"{np.mean(losses[i : i + 20]):.2f}" for i in range(0, options.steps, 20))
        print(
            f"depth {depth}: loss of each 20 steps {means}; mIoU {found.miou:.3f}, pixel accuracy {found.pixel_acc:.3f}"
        )


if __name__ == "__main__":
    main()
