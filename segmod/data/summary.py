"""What a data set was understood to be, before anything is trained on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from segmod.data.base import Split
from segmod.data.passes import Job, over_images
from segmod.ground.printing import print_table
from segmod.ground.types import IGNORE_INDEX

_SHOWN = 40


class Looked(NamedTuple):
    """What was seen of a split.

    Attributes:
        split: its name.
        images: how many it has.
        pixels: int64 (n, 256), how many pixels of each label each mask has that was looked at.
        sizes: int64 (n, 2), height and width of these.
        colours: int64 (3, 256), how many pixels of these images have each value of red, green and blue.
    """

    split: str
    images: int
    pixels: NDArray[np.int64]
    sizes: NDArray[np.int64]
    colours: NDArray[np.int64]


def show(splits: Sequence[Split], limit: int) -> None:
    """Print what some splits hold, and what looks wrong.

    Args:
        splits: of one data set.
        limit: images of each that are looked at.

    Raises:
        UserError: some are bad.
    """
    dataset = splits[0].dataset
    looked = [look(split, limit) for split in splits]
    console = print_table(f"{dataset.name}: {len(dataset.classes)} classes", table(looked, dataset.classes))
    for part in looked:
        console.print(sizes(part), soft_wrap=True)
    both = set.intersection(*(set(split.names) for split in splits)) if len(splits) > 1 else set()
    shared = [f"{len(both)} images are of {' and '.join(s.split for s in splits)}, too"] if both else []
    for line in oddities(looked, dataset.classes) + shared:
        console.print(f"look at this: {line}", soft_wrap=True)


def look(split: Split, limit: int) -> Looked:
    """Read so many images of a split with their masks, evenly over it, showing progress.

    Raises:
        UserError: some are bad, see `Split.read`.
    """
    chosen = np.unique(np.linspace(0, len(split) - 1, min(limit, len(split))).astype(int)).tolist()

    def count(job: Job) -> tuple[NDArray[np.int64], tuple[int, int], NDArray[np.int64]]:
        image, mask = job[0].read(job[1])
        colours = np.stack([np.bincount(image[:, :, c].ravel(), minlength=256) for c in range(3)])
        return np.bincount(mask.ravel(), minlength=256), (mask.shape[0], mask.shape[1]), colours

    seen = list(
        over_images(count, [(split, index) for index in chosen], f"Looking at {split.split}", verdict="are bad")
    )
    colours = np.sum([c for _, _, c in seen], axis=0)
    return Looked(
        split.split, len(split), np.array([p for p, _, _ in seen]), np.array([s for _, s, _ in seen]), colours
    )


def table(looked: Sequence[Looked], classes: Sequence[str]) -> list[list[str]]:
    """Header and a line a class: its share of the pixels that are not void, and the share of images that show it."""
    header = ["class"] + [f"{part.split}: {what}" for part in looked for what in ("of pixels", "of images")]
    lines = []
    shares = []
    for label, name in enumerate(classes):
        cells, total = [name], 0.0
        for part in looked:
            known = part.pixels[:, :IGNORE_INDEX].sum()
            of_pixels, of_images = part.pixels[:, label].sum() / max(1, known), (part.pixels[:, label] > 0).mean()
            total += float(of_pixels)
            cells += [f"{100 * of_pixels:.2f} %", f"{100 * of_images:.0f} %"]
        lines.append(cells)
        shares.append(total)
    if len(lines) > _SHOWN:
        kept = sorted(np.argsort(shares)[::-1][:_SHOWN].tolist())
        rest = [f"and {len(lines) - _SHOWN} rarer", *[""] * (2 * len(looked))]
        lines = [lines[label] for label in kept] + [rest]
    return [header, *lines]


def balancing_weights(pixels: NDArray[np.int64], classes: int) -> list[float]:
    """Weights by which the classes of a loss count alike: median frequency balancing (Eigen and Fergus 2015).

    The weight of a class is the median of the frequencies of all classes, over its own: its pixels as a share of all
    labelled pixels of the images that show it. A class that no image shows has 1.

    Args:
        pixels: int64 (n, 256), of each label in each image.
        classes: how many there are.
    """
    labelled = pixels[:, :IGNORE_INDEX].sum(axis=1)
    shown = pixels[:, :classes] > 0
    frequency = pixels[:, :classes].sum(axis=0) / np.maximum(1, (labelled[:, None] * shown).sum(axis=0))
    present = frequency > 0
    median = np.median(frequency[present]) if present.any() else 1.0
    return np.where(present, median / np.where(present, frequency, 1.0), 1.0).tolist()  # type: ignore[no-any-return]


def mean_and_std(colours: NDArray[np.int64]) -> dict[str, list[float]]:
    """Mean and standard deviation (1 or more) of red, green and blue in 0..255, of what `Looked` counts."""
    values = np.arange(256)
    pixels = colours.sum(axis=1)
    mean = colours @ values / pixels
    std = np.sqrt(np.maximum(1.0, colours @ values**2 / pixels - mean**2))
    return {"mean": mean.round(2).tolist(), "std": std.round(2).tolist()}


def sizes(part: Looked) -> str:
    """A line: how many images, and how large."""
    looked = "" if len(part.sizes) == part.images else f", {len(part.sizes)} of them looked at"
    (least_h, least_w), (most_h, most_w) = part.sizes.min(axis=0), part.sizes.max(axis=0)
    same = (least_h, least_w) == (most_h, most_w)
    extent = f"{least_w} x {least_h}" if same else f"{least_w} to {most_w} wide, {least_h} to {most_h} high"
    return f"{part.split}: {part.images} images{looked}, {extent} pixels"


def oddities(looked: Sequence[Looked], classes: Sequence[str]) -> list[str]:
    """What looks wrong, a line each: classes without a pixel, masks of one value or of void alone."""
    lines = []
    for part in looked:
        present = part.pixels.sum(axis=0) > 0
        empty = [name for label, name in enumerate(classes) if not present[label]]
        if empty:
            shown = ", ".join(empty[:8]) + (f" and {len(empty) - 8} more" if len(empty) > 8 else "")
            lines.append(f"{part.split}: no pixel of {shown}")
        void = int((part.pixels[:, :IGNORE_INDEX].sum(axis=1) == 0).sum())
        alike = int((((part.pixels > 0).sum(axis=1) == 1) & (part.pixels[:, IGNORE_INDEX] == 0)).sum())
        if void:
            lines.append(f"{part.split}: {void} of {len(part.pixels)} masks are void ({IGNORE_INDEX}) alone")
        if alike * 2 > len(part.pixels):
            lines.append(f"{part.split}: {alike} of {len(part.pixels)} masks hold one class alone")
        share = part.pixels[:, IGNORE_INDEX].sum() / max(1, part.pixels.sum())
        if share > 0.5 and void < len(part.pixels):
            lines.append(
                f"{part.split}: {100 * share:.0f} % of the pixels are void; if {IGNORE_INDEX} is a class, "
                "give data.dataset.labels (such as [0,255]) and data.dataset.void"
            )
    return lines
