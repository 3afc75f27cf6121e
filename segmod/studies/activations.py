"""What the layers of a deconvolution network see (Noh, Hong, Han 2015, Fig. 4)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from segmod import viz
from segmod.data.crops import cut
from segmod.data.instances import find_instances
from segmod.ground.boxes import enlarge
from segmod.ground.errors import UserError
from segmod.ground.types import Count, Factor, Side
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
        run = only_run(runs, "activations")
        net: Any = run.net
        if not hasattr(net, "activations"):
            kind = type(net).__name__
            raise UserError(f"study=activations: {kind} has no maps of deconvolutions; give a run of model=deconvnet")
        rows, names = [], []
        facts: dict[str, list[tuple[int, float, float]]] = {}
        for index in shown(first_images(run, None), "Looking at maps"):
            image, mask = run.dataset.read(index)
            objects, numbered = find_instances(mask, run.dataset.read_objects(index))
            if not objects:
                continue
            largest = max(objects, key=lambda thing: int((numbered == thing.number).sum()))
            window = enlarge(np.array([largest.box]), self.context)[0]
            side = (self.size, self.size)
            crop = np.asarray(cv2.resize(cut(image, window, 0), side, interpolation=cv2.INTER_LINEAR), dtype=np.uint8)
            own = cut((numbered == largest.number).astype(np.float32), window, 0)
            maps = net.activations(torch.from_numpy(crop).permute(2, 0, 1)[None].to(run.device))
            tiles = [crop]
            for name, tensor in maps.items():
                positive = tensor[0].float().clamp(min=0).cpu()
                inside = cv2.resize(own, positive.shape[:0:-1], interpolation=cv2.INTER_AREA)
                weight = torch.from_numpy(2 * inside - 1) if self.channel == "object" else torch.ones(())
                drawn = positive[(positive * weight).sum((1, 2)).argmax()].numpy()
                tiles.append(drawn / max(float(drawn.max()), 1e-12))
                on_object = float((drawn * inside).sum() / max(float(drawn.sum()), 1e-12))
                facts.setdefault(name, []).append((len(drawn), float((positive > 0).float().mean()), on_object))
            rows.append(tiles)
            names.append(run.classes[largest.label])
            if len(rows) == self.images:
                break
        if not rows:
            raise UserError("study=activations: no image of the split shows an object; choose another split=...")
        sides = [f"{name}\n{seen[0][0]}" for name, seen in facts.items()]
        viz.page(rows, directory / "activations.png", ["crop", *sides], names, side=1.6)
        return [
            {
                "map": name,
                "side": seen[0][0],
                "active values": sum(active for _, active, _ in seen) / len(seen),
                "on the object": sum(share for _, _, share in seen) / len(seen),
            }
            for name, seen in facts.items()
        ]
