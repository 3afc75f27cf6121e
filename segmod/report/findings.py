"""What a run makes of images, and where it errs: the part of a report that is not in the run's folder yet."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from itertools import pairwise

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import track

from segmod.data.instances import find_instances
from segmod.ground.types import IGNORE_INDEX, UInt8Array, fitted, labels_of, picture_of
from segmod.metrics import SegmentationMetrics, mean_iou, present_classes, summarise
from segmod.runs.trained import TrainedRun
from segmod.viz import MATTERS, borders, covering

_SIDE = 320  # pixels of the longer side of a picture
_OPACITY = 150  # of the colours over an image, 0..255
_DISTANCES = (0, 3, 6, 12, 24, np.inf)  # pixels from a border of the truth
_SHARES = (0.0, 0.01, 0.05, 0.15, 0.4, 1.0)  # of an image's pixels that an object has


@dataclass(frozen=True)
class Picture:
    """An image with its layers, small and encoded: JPEG the image, PNG with transparency the others.

    Attributes:
        name: Id of the image.
        iou: Mean IoU of the classes that its truth has, in this image alone; None where it has no truth.
        image: The photograph.
        truth: Colours and outlines of the truth.
        prediction: The same of the prediction.
        errors: Wrong pixels in red.
        classes: Of truth and prediction, those that cover something.
    """

    name: str
    iou: float | None
    image: bytes
    truth: bytes
    prediction: bytes
    errors: bytes
    classes: tuple[int, ...]


@dataclass
class Findings:
    """What was seen in the images of a split.

    Attributes:
        pictures: Of all images, in the order of the split.
        confusion: (K, K) pixels, rows = truth.
        distances: By range of the distance to the next border of the truth, in pixels: wrong pixels and all.
        objects: By range of an object's share of its image: the fraction of its pixels that was found, an object each.
    """

    pictures: list[Picture] = field(default_factory=list)
    confusion: torch.Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    distances: dict[str, tuple[int, int]] = field(default_factory=dict)
    objects: dict[str, list[float]] = field(default_factory=dict)


def look(run: TrainedRun, count: int) -> Findings:
    """Score the first images of a run's split, with a progress bar.

    Args:
        run: Gives images, truth and predictions.
        count: Images to look at, at most.
    """
    found = Findings(confusion=torch.zeros(len(run.classes), len(run.classes), dtype=torch.int64))
    images = range(min(count, len(run.dataset)))
    for index in track(images, "Looking at images", console=Console(stderr=True)):
        batch = run.batch(index)
        labels = labels_of(run.scores(batch))
        truth, predicted = batch["mask"][0].cpu().numpy(), labels[0].numpy().astype(np.uint8)
        metrics = SegmentationMetrics(len(run.classes))
        metrics.update(labels, batch["mask"].cpu())
        counts = metrics.compute()
        found.confusion += counts
        iou = mean_iou(summarise(counts).iou, present_classes(counts))
        image = picture_of(batch["image"][0])
        found.pictures.append(_picture(run, batch["name"][0], image, truth, predicted, iou))
        _count_distances(found, truth, predicted)
        objects, numbered = find_instances(truth, run.dataset.read_objects(index))
        for thing in objects:
            own = numbered == thing.number
            where = next(name for low, high, name in _ranges(_SHARES, 100, " %") if low < own.mean() <= high)
            found.objects.setdefault(where, []).append(float((predicted[own] == thing.label).mean()))
    found.objects = {name: found.objects[name] for _, _, name in _ranges(_SHARES, 100, " %") if name in found.objects}
    return found


def _ranges(edges: tuple[float, ...], factor: float, unit: str) -> Iterator[tuple[float, float, str]]:
    for low, high in pairwise(edges):
        told = f"{factor * low:g} to {factor * high:g}{unit}" if np.isfinite(high) else f"over {factor * low:g}{unit}"
        yield low, high, told


def _count_distances(found: Findings, truth: UInt8Array, predicted: UInt8Array) -> None:
    solid = truth != IGNORE_INDEX
    dark, light = borders(truth)
    inner = ~(dark | light)
    if inner.all():  # one class alone: no border
        return
    away = cv2.distanceTransform(inner.astype(np.uint8), cv2.DIST_L2, 3)
    wrong = truth != predicted
    for low, high, name in _ranges(_DISTANCES, 1, " px"):
        those = solid & (away >= low) & (away < high)
        errors, pixels = found.distances.get(name, (0, 0))
        found.distances[name] = errors + int((wrong & those).sum()), pixels + int(those.sum())


def _picture(
    run: TrainedRun, name: str, image: UInt8Array, truth: UInt8Array, predicted: UInt8Array, iou: float | None
) -> Picture:
    height, width = image.shape[:2]
    size = fitted(height, width, _SIDE)[::-1]
    small = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))
    layers = [np.asarray(Image.fromarray(m).resize(size, Image.Resampling.NEAREST)) for m in (truth, predicted)]
    wrong = (layers[0] != layers[1]) & (layers[0] != IGNORE_INDEX)
    red = np.zeros((*wrong.shape, 4), np.uint8)
    red[wrong] = (230, 30, 30, 200)
    classes = tuple(k for k in covering(layers, MATTERS) if k not in (0, IGNORE_INDEX))
    truth_layer, prediction_layer = (_layer(layer, run.legend.palette) for layer in layers)
    return Picture(
        name, iou, encoded(small, "JPEG"), truth_layer, prediction_layer, encoded(red, "PNG"), classes
    )  # fmt: skip


def _layer(labels: UInt8Array, palette: UInt8Array) -> bytes:
    layer = np.dstack([palette[labels], np.where(labels == 0, 0, _OPACITY).astype(np.uint8)])
    dark, light = borders(labels)
    layer[dark], layer[light] = (0, 0, 0, 255), (255, 255, 255, 255)
    return encoded(layer, "PNG")


def encoded(picture: NDArray[np.uint8], form: str) -> bytes:
    """A picture as the bytes of a file, JPEG or PNG."""
    file = BytesIO()
    Image.fromarray(picture).save(file, form, quality=80, optimize=True)
    return file.getvalue()
