"""From scores to the confusion matrix: labels and counts of an image of 500 x 375 and 21 classes.

    python benchmarks/labels.py [--threads 1]

Against torchmetrics on the same scores, for noise and for smooth maps, whose largest class rarely changes.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from segmod.ground.types import IGNORE_INDEX, labels_of
from segmod.measure import ratio_in_turns, timed
from segmod.metrics import SegmentationMetrics
from segmod.nets.ops import resize

SIZE, CLASSES = (375, 500), 21


def smooth() -> Tensor:
    torch.manual_seed(0)
    return resize(torch.randn(1, CLASSES, 24, 32), SIZE).softmax(1)


def noise() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(1, CLASSES, *SIZE).softmax(1)


def ratio_and_seconds(scores: Tensor) -> tuple[float, float]:
    mask = torch.randint(CLASSES, (1, *SIZE), dtype=torch.uint8)
    mask[torch.rand(mask.shape) < 0.05] = IGNORE_INDEX
    ours = SegmentationMetrics(CLASSES)
    theirs = MulticlassConfusionMatrix(CLASSES, ignore_index=IGNORE_INDEX, validate_args=False)

    def count() -> None:
        ours.update(labels_of(scores), mask)

    ratio = ratio_in_turns(count, lambda: theirs.update(scores, mask.long()), 10)
    return ratio, min(cpu for _, cpu in timed(count, torch.device("cpu"), 20, 0))


def milliseconds() -> float:
    return 1e3 * ratio_and_seconds(noise())[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    torch.set_num_threads(parser.parse_args().threads)
    for scores in (noise, smooth):
        ratio, seconds = ratio_and_seconds(scores())
        print(f"{scores.__name__:8} {1e3 * seconds:6.2f} ms of CPU time, {ratio:.3f} of torchmetrics'")


if __name__ == "__main__":
    main()
