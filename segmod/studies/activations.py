"""What the layers of a deconvolution network see, and what unpooling does (Noh, Hong, Han 2015, Figs. 4 and 3)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from segmod import charts
from segmod.data.crops import cut
from segmod.data.instances import find_instances
from segmod.ground.boxes import enlarge
from segmod.ground.errors import UserError
from segmod.ground.types import Count, Factor, FloatArray, Side, UInt8Array
from segmod.runs.trained import TrainedRun
from segmod.studies.base import Row, Runs, at_least, first_images, only_run, shown


class Activations:
    """Draws the strongest channel of the net's maps for the largest object of each of some images.

    The object is cut out as in training: its box, enlarged and made square, resized to ``size``. A channel's strength
    is the sum of its positive values; the map is drawn from 0 to its maximum. The table tells, for each map, its side
    in pixels, the share of its values that are above 0 (unpooling makes maps sparse, deconvolution dense again), and
    the share of the drawn channel's positive sum that lies on the object.

    Args:
        images: Images to draw, the first of the split that show an object.
        size: Side of the crop in pixels.
        context: Factor on the sides of the object's box, at least 1.
        channel: ``strongest``, or ``object``: the channel that is strongest on the object less what it is beside it.
            Where the background is the surest class, the strongest channels speak of that.

    The net needs a method ``activations(image) -> {name: (B, C, h, w)}``, as `DeconvNet` has.
    """

    def __init__(self, images: Count = 2, size: Side = 224, context: Factor = 1.2, channel: str = "strongest") -> None:
        at_least(1, images=images, size=size, context=context)
        self.images = images
        self.size = size
        if channel not in ("strongest", "object"):
            raise UserError(f"study.channel={channel}: choose strongest or object")
        self.context = context
        self.channel = channel

    def __call__(self, runs: Runs, directory: Path) -> list[Row]:
        """Draw activations.png.

        Raises:
            UserError: The net has no such maps, or the split no object.
        """
        run = deconvolution_run(runs, "activations")
        net: Any = run.net
        rows, names = [], []
        facts: dict[str, list[tuple[int, float, float]]] = {}
        for label, crop, own in objects_of(run, self.images, self.size, self.context, "activations"):
            tiles: list[charts.Tile] = [crop]
            for name, tensor in net.activations(batch_of(run, crop)).items():
                positive = tensor[0].float().clamp(min=0).cpu()
                inside = cv2.resize(own, positive.shape[:0:-1], interpolation=cv2.INTER_AREA)
                weight = torch.from_numpy(2 * inside - 1) if self.channel == "object" else torch.ones(())
                drawn = positive[(positive * weight).sum((1, 2)).argmax()].numpy()
                tiles.append(to_one(drawn))
                on_object = float((drawn * inside).sum() / max(float(drawn.sum()), 1e-12))
                facts.setdefault(name, []).append((len(drawn), float((positive > 0).float().mean()), on_object))
            rows.append(tiles)
            names.append(run.classes[label])
        sides = [f"{name}\n{seen[0][0]}" for name, seen in facts.items()]
        charts.page(rows, directory / "activations.png", ["crop", *sides], names, side=1.6)
        return [
            {
                "map": name,
                "side": seen[0][0],
                "active values": sum(active for _, active, _ in seen) / len(seen),
                "on the object": sum(share for _, _, share in seen) / len(seen),
            }
            for name, seen in facts.items()
        ]


class Unpooling:
    """Draws, for the largest object of an image, what each unpooling and the deconvolutions after it do to a map.

    Of each level, from the smallest maps to the largest: the map that the pooling was given, what it made of that, what
    its unpooling is given, the same at the places that the pooling chose, and the strongest channel of what the
    deconvolutions make of all channels. The first four are of one channel, the strongest that the unpooling is given.
    Each map is drawn from 0 to its maximum.

    The table tells, for each unpooling, the sides, the shares of values above 0 that it gives and that the
    deconvolutions make of them, and how many of those it gives lie at a maximum of the pooling's windows: all.

    Args:
        images: Objects to draw, one a page; the table has their means.
        size: Side of the crop in pixels.
        context: Factor on the sides of the object's box, at least 1.
    """

    def __init__(self, images: Count = 1, size: Side = 224, context: Factor = 1.2) -> None:
        at_least(1, images=images, size=size, context=context)
        self.images = images
        self.size = size
        self.context = context

    def __call__(self, runs: Runs, directory: Path) -> list[Row]:
        """Draw a page of each object, unpooling_0.png and so on.

        Raises:
            UserError: The net has no unpooling, or the split no object.
        """
        run = deconvolution_run(runs, "unpooling")
        net: Any = run.net
        facts: dict[str, list[tuple[int, ...] | tuple[float, ...]]] = {}
        seen = objects_of(run, self.images, self.size, self.context, "unpooling")
        for number, (label, crop, _) in enumerate(seen):
            rows: list[list[charts.Tile]] = []
            for name, (before, pooled, given, unpooled, out) in net.unpoolings(batch_of(run, crop)).items():
                k, best = (int(maps[0].sum((1, 2)).argmax()) for maps in (given, out))
                drawn = before[0, k], pooled[0, k], given[0, k], unpooled[0, k], out[0, best]
                rows.append([to_one(tile.float().cpu().numpy()) for tile in drawn])
                top = torch.nn.functional.interpolate(pooled, scale_factor=2)[..., : before.shape[2], : before.shape[3]]
                placed = (before == top)[unpooled > 0].float().mean()
                shares = [float((maps > 0).float().mean()) for maps in (unpooled, out)]
                facts.setdefault(name, []).append((given.shape[2], unpooled.shape[2], *shares, float(placed)))
            columns = ["before pooling", "pooled", "given to unpooling", "unpooled", "deconvolved"]
            rows = [[crop if i == 0 else None, *row] for i, row in enumerate(rows)]
            names = [f"{name}\n{values[0][0]} to {values[0][1]}" for name, values in facts.items()]
            charts.page(rows, directory / f"unpooling_{number}.png", [run.classes[label], *columns], names)
        return [
            {"unpooling": name, "from": int(values[0][0]), "to": int(values[0][1])}
            | dict(
                zip(
                    ("active, unpooled", "active, deconvolved", "at a maximum"),
                    map(float, np.mean(values, 0)[2:]),
                    strict=True,
                )
            )
            for name, values in facts.items()
        ]


def deconvolution_run(runs: Runs, study: str) -> TrainedRun:
    """The one run of a study of deconvolutions.

    Raises:
        UserError: There are several, or its net has no maps of deconvolutions.
    """
    run = only_run(runs, study)
    if not hasattr(run.net, "activations"):
        kind = type(run.net).__name__
        raise UserError(f"study={study}: {kind} has no maps of deconvolutions; give a run of model=deconvnet")
    return run


def objects_of(
    run: TrainedRun, count: int, size: int, context: float, study: str
) -> Iterator[tuple[int, UInt8Array, FloatArray]]:
    """The largest object of each of the first images that show one, cut out as in training.

    Args:
        run: Its images.
        count: So many objects.
        size: Side of the crops in pixels.
        context: Factor on the sides of the object's box.
        study: For the message.

    Yields:
        Label, crop uint8 (size, size, 3), and the object's own pixels in its window, 0 or 1, not resized.

    Raises:
        UserError: No image shows an object.
    """
    found = 0
    for index in shown(first_images(run, None), "Looking at maps"):
        image, mask = run.dataset.read(index)
        objects, numbered = find_instances(mask, run.dataset.read_objects(index))
        if not objects:
            continue
        largest = max(objects, key=lambda thing: int((numbered == thing.number).sum()))
        window = enlarge(np.array([largest.box]), context)[0]
        crop = np.asarray(cv2.resize(cut(image, window, 0), (size, size), interpolation=cv2.INTER_LINEAR), np.uint8)
        yield largest.label, crop, cut((numbered == largest.number).astype(np.float32), window, 0)
        found += 1
        if found == count:
            return
    if not found:
        raise UserError(f"study={study}: no image of the split shows an object; choose another split=...")


def batch_of(run: TrainedRun, crop: UInt8Array) -> torch.Tensor:
    """A crop as its net takes it, (1, 3, H, W)."""
    return torch.from_numpy(crop).permute(2, 0, 1)[None].to(run.device)


def to_one(drawn: FloatArray) -> FloatArray:
    """A map from 0 to 1, its maximum."""
    return drawn / max(float(drawn.max()), 1e-12)
