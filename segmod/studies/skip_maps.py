"""What a skip connection says: its maps as pictures (Yim and Sohn 2017, Figs. 4-6), and their qualities as numbers.

The paper argues from pictures: low connections show edges but no classes, the top ones classes but no edges, one in
between both. Three measures put a number on each side of that: `receptive_field`, `sharpness` and `responses`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from segmod import charts, viz
from segmod.ground.errors import UserError
from segmod.ground.types import IGNORE_INDEX, Amount, Batch, picture_of
from segmod.nets.ops import box_labels, resize
from segmod.runs.trained import TrainedRun
from segmod.studies.base import Row, Runs, at_least, find_images, first_of, shown


class SkipMaps:
    """Draws what each connection of some runs says of each class, and measures it.

    Args:
        images: Images to draw: ids of the split, or positions in it.
        measure: So many images of the split for the table; None for all, 0 for no table.
        softmax: Draw the probabilities of the sum of all maps in place of each connection's own map.
    """

    def __init__(
        self, images: Sequence[int | str] = (0, 1), measure: Amount | None = 20, softmax: bool = False
    ) -> None:
        at_least(0, measure=measure)
        self.images = images
        self.measure = measure
        self.softmax = softmax

    def __call__(self, runs: Runs, directory: Path) -> list[Row]:
        """Draw the maps, and measure them.

        Raises:
            UserError: A net has no connections, or the split no such image.
        """
        dataset = first_of(runs).dataset
        for run in runs.values():
            skip_net(run.net)
        draw(runs, find_images(self.images, dataset.names), directory, self.softmax)
        count = len(dataset) if self.measure is None else min(self.measure, len(dataset))
        return [row for name, run in runs.items() for row in measures_of(name, run, range(count))] if count else []


class SkipNet(Protocol):
    """What skip maps ask of a net beyond image -> logits, see ``SingleSkip``."""

    boxes: int
    top: str
    connections: tuple[str, ...]
    normalise: nn.Module
    backbone: nn.Module

    def forward_parts(self, image: Tensor) -> dict[str, Tensor]:
        """z_i (B, K, boxes, boxes) of each connection by the name of its layer, then z_top."""
        ...


class Responses(NamedTuple):
    """Where the positive responses of a map are, as shares of those of all objects; see `responses`."""

    own: float
    false: Tensor  # float64 (K,), by class; 0 for classes of the image


def skip_net(net: nn.Module) -> SkipNet:
    """A net, seen as what it offers for skip maps.

    Raises:
        UserError: It has no connections to show.
    """
    if not hasattr(net, "forward_parts"):
        raise UserError(
            f"run: its net, {type(net).__name__}, has no skip maps; give a run of model=single_skip or the like"
        )
    return cast(SkipNet, net)


def layers_of(net: SkipNet) -> tuple[str, ...]:
    """The layers whose maps are shown: those of the connections, or the top one where there is none."""
    return net.connections or (net.top,)


def squashed(run: TrainedRun, batch: Batch) -> Tensor:
    """The image of a batch as the net sees it, (1, 3, side, side)."""
    side = getattr(run.module, "side", None)
    return resize(batch["image"].float(), (side, side)) if side is not None else batch["image"].float()


# -- pictures --------------------------------------------------------------------------------------------------------


def tiles(net: SkipNet, image: Tensor, softmax: bool) -> dict[str, NDArray[np.float32]]:
    """Maps of each class, from 0 (black) to 1 (white), by the name of their layer.

    Args:
        net: The net.
        image: (1, 3, H, W).
        softmax: In place of each z_i, the probabilities that come out of the sum of all.

    Returns:
        float32 (K, boxes, boxes) each. Of z_i the classes share one scale: clipped at 0, over the largest of all.
    """
    with torch.inference_mode():
        parts = net.forward_parts(image)
        if softmax:
            total = torch.stack(list(parts.values())).sum(0)
            return {layers_of(net)[0]: total[0].float().softmax(0).cpu().numpy()}
        positive = {layer: parts[layer][0].float().clamp_min(0) for layer in layers_of(net)}
        return {layer: (z / z.max().clamp_min(1e-12)).cpu().numpy() for layer, z in positive.items()}


def numbered(classes: int) -> list[int]:
    """Labels in the order of the paper's pictures: objects 0, 1, ..., background last."""
    return [*range(1, classes), 0]


def draw(runs: Runs, images: Sequence[int], folder: Path, softmax: bool) -> None:
    """Write each map as ``<run>/<image>_<class>.png``, and all maps of an image on one page.

    Args:
        runs: The runs by label.
        images: Positions in the split; files are numbered by their place in this list.
        folder: Where the pictures go.
        softmax: See `tiles`.
    """
    for number, index in enumerate(images):
        rows: list[list[charts.Tile]] = []
        labels = []
        for name, run in runs.items():
            batch = run.batch(index)
            found = tiles(skip_net(run.net), squashed(run, batch), softmax)
            for layer, maps in found.items():
                title = f"{name}, {layer}" if len(found) > 1 else name
                order = numbered(len(maps))
                for position, label in enumerate(order):
                    grey = np.rint(255 * maps[label]).astype(np.uint8)
                    viz.save_png(np.repeat(grey[..., None], 3, 2), folder / title / f"{number}_{position}.png")
                truth = viz.colour_mask(batch["mask"][0], run.legend.palette)
                first: list[charts.Tile] = [picture_of(batch["image"][0]), truth]
                rows.append([*(first if not rows else [None, None]), *(maps[label] for label in order)])
                labels.append(title)
        classes = first_of(runs).classes
        headings = ["image", "truth", *(f"{i} {classes[label]}" for i, label in enumerate(numbered(len(classes))))]
        charts.page(rows, folder / f"page_{number}.png", headings, labels, side=1.15, colours="gray")


# -- measures --------------------------------------------------------------------------------------------------------


def measures_of(name: str, run: TrainedRun, images: range) -> list[Row]:
    """The measures of a run's connections, means over images.

    Args:
        name: Of the run.
        run: The run.
        images: Positions in the split.
    """
    net, layers = skip_net(run.net), layers_of(skip_net(run.net))
    draws = torch.Generator().manual_seed(0)
    energy: dict[tuple[str, bool], Tensor] = {}
    sharp: dict[str, list[float]] = {layer: [] for layer in layers}
    said: dict[str, list[Responses]] = {layer: [] for layer in layers}
    for index in shown(images, f"Measuring {name}"):
        batch = run.batch(index)
        image = squashed(run, batch)
        with torch.inference_mode():
            parts = net.forward_parts(image)
        truth = box_labels(batch["mask"], net.boxes)[0].cpu()
        present = [k for k in torch.unique(batch["mask"]).tolist() if k not in (0, IGNORE_INDEX)]
        for layer in layers:
            z = parts[layer][0].float().cpu()
            sharp[layer] += [value for k in present if (value := sharpness(z[k], truth, k)) is not None]
            if (answer := responses(z, truth, present)) is not None:
                said[layer].append(answer)
            for filtered in (False, True):
                maps = _z_of(net, layer) if filtered else _layer_of(net, layer)
                found = gradient_energy(maps, image, draws)
                energy[layer, filtered] = energy.get((layer, filtered), torch.zeros_like(found)) + found
    return [
        {
            "run": name,
            "layer": layer,
            "field of the layer": f"{receptive_field(energy[layer, False])} px",
            "field of z": f"{receptive_field(energy[layer, True])} px",
            "sharpness": _mean(sharp[layer]),
            "own": _mean([answer.own for answer in said[layer]]),
            "false": _mean([float(answer.false.sum()) for answer in said[layer]]),
            "most false": _most(said[layer], run.classes),
        }
        for layer in layers
    ]


def gradient_energy(maps: Callable[[Tensor], Tensor], image: Tensor, draws: torch.Generator) -> Tensor:
    """How much each pixel of an image moves the middle of a map (Luo et al. 2016, section 2).

    The gradient of the channels at the middle place, weighed by independent normal draws so that channels of opposite
    sign do not cancel, with respect to the image; squared and summed over the colours.

    Args:
        maps: Image (1, 3, H, W) -> map (1, C, h, w).
        image: (1, 3, H, W).
        draws: Source of the weights.

    Returns:
        float64 (H, W), on the CPU.
    """
    image = image.detach().clone().requires_grad_(True)
    with torch.enable_grad():
        values = maps(image)
        middle = values[0, :, values.shape[2] // 2, values.shape[3] // 2]
        weights = torch.randn(len(middle), generator=draws).to(middle)
        (gradient,) = torch.autograd.grad((weights * middle).sum(), image)
    return gradient[0].double().square().sum(0).cpu()


def receptive_field(energy: Tensor, share: float = 0.9) -> int:
    """Side in pixels of the smallest square around the middle of an image that holds a share of the energy.

    Args:
        energy: float64 (H, W), see `gradient_energy`.
        share: 0..1.
    """
    height, width = energy.shape
    y, x = torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2
    distance = torch.maximum(y.abs()[:, None], x.abs()[None, :]).flatten()
    order = distance.argsort()
    reached = energy.flatten()[order].cumsum(0) >= share * energy.sum()
    return round(2 * float(distance[order][int(reached.int().argmax())]) + 1)


def sharpness(z: Tensor, truth: Tensor, label: int) -> float | None:
    """Chance that the map of a class is steeper in a box at a border of that class than in a box elsewhere.

    A box is at a border if the box above, below, left or right of it is of the class and it is not, or the other way
    round; void boxes do not count. The steepness is the length of the map's gradient (central differences). The chance
    is that of two boxes drawn at random, a tie counting half: 0.5 for a map that knows nothing of the borders.

    Args:
        z: float (n, n), map of the class.
        truth: int64 (n, n), labels of the boxes.
        label: The class.

    Returns:
        0..1; None where the class has no border in these boxes, or all boxes are at one.
    """
    inside = (truth == label).int()
    border = torch.zeros_like(truth, dtype=torch.bool)
    rows, columns = inside.diff(dim=0) != 0, inside.diff(dim=1) != 0
    border[1:] |= rows
    border[:-1] |= rows
    border[:, 1:] |= columns
    border[:, :-1] |= columns
    counted = truth != IGNORE_INDEX
    steepness = torch.stack(torch.gradient(z)).square().sum(0).sqrt()
    at, elsewhere = steepness[border & counted], steepness[~border & counted].sort().values
    if not len(at) or not len(elsewhere):
        return None
    below = torch.searchsorted(elsewhere, at) + torch.searchsorted(elsewhere, at, right=True)
    return float(below.double().mean()) / (2 * len(elsewhere))


def responses(z: Tensor, truth: Tensor, present: Sequence[int]) -> Responses | None:
    """How much of the positive response of the objects' maps is where it belongs, and how much is false.

    Of the sum of max(z, 0) over all classes but the background and all boxes that are not void, ``own`` is the share of
    the classes in the image inside their own boxes: the selectivity of the connection. ``false`` is the share of each
    class that the image does not show. What is left are classes of the image outside their boxes.

    Args:
        z: float (K, n, n).
        truth: int64 (n, n), labels of the boxes.
        present: Classes of objects that the image shows.

    Returns:
        None where the image shows no object, or no map of an object is positive anywhere.
    """
    positive = z.double().clamp_min(0) * (truth != IGNORE_INDEX)
    positive[0] = 0
    total = positive.sum()
    if not present or not float(total):
        return None
    own = torch.stack([positive[k, truth == k].sum() for k in present]).sum()
    false = positive.sum((1, 2))
    false[list(present)] = 0
    return Responses(float(own / total), false / total)


def _layer_of(net: SkipNet, layer: str) -> Callable[[Tensor], Tensor]:
    return lambda image: cast(Tensor, net.backbone(net.normalise(image))[layer])


def _z_of(net: SkipNet, layer: str) -> Callable[[Tensor], Tensor]:
    return lambda image: net.forward_parts(image)[layer]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _most(said: Sequence[Responses], classes: Sequence[str], count: int = 3) -> str:
    """The classes with the largest false responses, with their shares."""
    if not said:
        return ""
    shares: Any = torch.stack([answer.false for answer in said]).mean(0)
    best = [int(k) for k in shares.argsort(descending=True)[:count] if float(shares[k])]
    return ", ".join(f"{classes[k]} {100 * float(shares[k]):.0f} %" for k in best)
