"""Box-wise nets: the scores of a backbone's top layer, and those of layers below it, added on a coarse grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le
from torch import Tensor, nn

from segmod.ground.errors import UserError
from segmod.ground.types import Channels, Side
from segmod.nets.backbones import feature_maps, last_layers, map_shapes, smallest_side
from segmod.nets.normalise import Normalisation, Normalise
from segmod.nets.ops import bilinear_kernel, resize

TAPS = {
    "stages": ("maxpool1", "maxpool2", "Mixed_5b", "Mixed_5d", "Mixed_6a", "Mixed_6e", "Mixed_7b"),
    "upsample_only": ("maxpool2", "Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6e", "Mixed_7b"),
}
"""Connections 1 to 7 of Inception-v3: the first and last layer of each resolution, or none larger than the grid."""

Connections = int | str | Sequence[int | str] | None
Kernel = Annotated[int, Ge(1), Le(1023)]  # n of n x n


class SingleSkip(nn.Module):
    """Box-wise classifier with skip connections (Yim and Sohn 2017, arXiv 1710.08192) on any backbone.

    The image is divided into boxes x boxes cells. A 1x1 convolution turns the map of the top layer into class scores
    z_top; a connection i from a lower layer goes through an n x n convolution, ReLU and a 1x1 convolution, which gives
    z_i. All are resized to the grid and added. Nothing above the top layer is computed, and no layer twice.

    Differs from the paper: any layers of any backbone that `torch.fx` can trace, any number of connections.

    Args:
        num_classes: Number of classes K.
        backbone: Name of a classification net of torchvision; of timm, behind ``timm/``; or ``tiny``.
        top: Name of the top layer, as ``named_modules`` of the backbone has it; None for the last one that has a map.
        taps: Names of the layers that connections may start from: connection 1, 2, and so on; None for the last layer
            at each stride, up to the top.
        connections: Which connections there are: a number, the name of any layer, a list of these, or None.
        kernel: n, odd; None for the 1x1 convolution alone, without a hidden layer. One for all connections, or a list
            with one for each of them.
        top_kernel: n of a hidden layer on the top layer; None, as in the paper, for none.
        hidden: Channels of the hidden layers h_i.
        boxes: Side of the grid, in cells.
        side: Side in pixels of the square images that the net is meant for; others of at least ``min_size`` will do.
        standardise: Put a batch norm without parameters on each map before its head: for backbones without batch norm,
            whose maps may have any scale.
        upsample: ``bilinear``, or ``tconv`` for transposed 3x3 convolutions of stride 2, which start bilinear.
        weights: Of the backbone: name of pretrained weights, file path, or None for random values.
        normalise: What the backbone's weights expect of pixels, see `Normalise`.

    Shape:
        (B, 3, H, W) -> logits (B, K, H, W), the grid's scores resized to the image.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: str,
        top: str | None = None,
        taps: Sequence[str] | None = (),
        connections: Connections = None,
        kernel: Kernel | Sequence[Kernel | None] | None = 3,
        top_kernel: Kernel | None = None,
        hidden: Channels = 256,
        boxes: Side = 67,
        side: Side = 224,
        standardise: bool = False,
        upsample: Literal["bilinear", "tconv"] = "bilinear",
        weights: str | None = None,
        normalise: Normalisation = "imagenet",
    ) -> None:
        super().__init__()
        if boxes < 1 or hidden < 1:
            raise UserError(f"model.net.boxes={boxes}, model.net.hidden={hidden}: set both to 1 or more")
        if upsample not in ("bilinear", "tconv"):
            raise UserError(f"model.net.upsample={upsample} is neither 'bilinear' nor 'tconv': choose one of them")
        self.num_classes = num_classes
        self.normalise = Normalise(normalise)
        self.boxes = boxes
        if top is None or taps is None:
            layers = list(last_layers(backbone).values())
            top = top or layers[-1]
            if taps is None:
                taps = layers[: layers.index(top)] if top in layers else layers
        self.top = top
        self.connections = _chosen(connections, taps)
        kernels = dict(zip(self.connections, _kernels(kernel, len(self.connections)), strict=True)) | {top: top_kernel}
        if top in self.connections:
            raise UserError(f"model.net.connections: '{top}' is model.net.top already; choose a layer below it")
        keys = dict.fromkeys(self.connections, "connections") | {top: "top"}
        self.backbone = feature_maps(backbone, [*self.connections, top], weights, keys=keys, normalise=self.normalise)
        shapes = map_shapes(self.backbone, side)
        self.heads = nn.ModuleDict({
            _key(layer): nn.Sequential(
                *([nn.BatchNorm2d(shapes[layer][0], affine=False)] if standardise else ()),
                *_head(shapes[layer][0], num_classes, n, hidden, "top_kernel" if layer == top else "kernel"),
                *(_enlarge(num_classes, shapes[layer][1], boxes) if upsample == "tconv" else ()),
            )
            for layer, n in kernels.items()
        })  # fmt: skip

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, K, H, W) of an image (B, 3, H, W)."""
        return resize(self.forward_boxes(image), (image.shape[2], image.shape[3]))

    def forward_boxes(self, image: Tensor) -> Tensor:
        """Logits of the boxes, (B, K, boxes, boxes): the sum of z_top and of each z_i."""
        return torch.stack(list(self.forward_parts(image).values())).sum(0)

    def forward_parts(self, image: Tensor) -> dict[str, Tensor]:
        """What the logits of the boxes are the sum of: z_i by the name of its layer, then z_top; (B, K, boxes, boxes).

        Raises:
            UserError: The image is too small for the backbone.
        """
        try:
            maps: Mapping[str, Tensor] = self.backbone(self.normalise(image))
        except RuntimeError as error:
            if min(image.shape[-2:]) >= self.min_size:
                raise
            raise UserError(
                f"an image of {image.shape[-2]} x {image.shape[-1]} pixels is too small for this net: "
                f"set data.squash to {self.min_size} or more"
            ) from error
        layers = (*self.connections, self.top)
        return {layer: to_grid(self.heads[_key(layer)](maps[layer]), self.boxes) for layer in layers}

    @cached_property
    def min_size(self) -> int:
        """Side in pixels of the smallest image that the backbone takes."""
        return smallest_side(self.backbone)


class BoxwiseInception(SingleSkip):
    """Inception-v3 with one skip connection (Yim and Sohn 2017, arXiv 1710.08192), without its auxiliary classifier.

    For images of 555 x 555 pixels the layers from maxpool2 up have 67, 33 and 16 rows, the paper's sizes. The paper
    does not say which layers its connections 1 to 7 start from, nor how wide h_i is: see ``TAPS`` for two readings.

    Args:
        num_classes: Number of classes K.
        taps: ``stages``, ``upsample_only``, or names of layers.
        connections: As in `SingleSkip`; None to 7 in the paper.
        kernel: As in `SingleSkip`; the paper has 3, 5 and 7, larger ones higher up.
        settings: The other arguments of `SingleSkip`.
    """

    def __init__(
        self,
        num_classes: int,
        taps: str | Sequence[str] = "stages",
        connections: Connections = 6,
        kernel: Kernel | Sequence[Kernel | None] | None = 7,
        **settings: Any,
    ) -> None:
        if isinstance(taps, str):
            if taps not in TAPS:
                raise UserError(f"model.net.taps={taps}: choose {', '.join(TAPS)}, or give a list of layers")
            taps = TAPS[taps]
        settings = {"backbone": "inception_v3", "top": "Mixed_7c", "side": 555, **settings}
        super().__init__(num_classes, taps=taps, connections=connections, kernel=kernel, **settings)


def to_grid(maps: Tensor, boxes: int) -> Tensor:
    """Bring maps (B, K, h, w) to (B, K, boxes, boxes): small ones bilinearly, large ones by the mean of each cell."""
    shrinks = max(maps.shape[-2:]) > boxes
    return F.adaptive_avg_pool2d(maps, boxes) if shrinks else resize(maps, (boxes, boxes))


def _head(channels: int, num_classes: int, n: int | None, hidden: int, key: str) -> list[nn.Module]:
    """A 1x1 convolution to class scores, behind an n x n convolution and ReLU unless n is None."""
    layers: list[nn.Module] = []
    if n is not None:
        if n < 1 or n % 2 == 0:
            raise UserError(f"model.net.{key}={n}: choose 1, 3, 5 or 7 (any odd number), or null for no hidden layer")
        layers = [nn.Conv2d(channels, hidden, n, padding=n // 2), nn.ReLU(inplace=True)]
        nn.init.kaiming_normal_(layers[0].weight, nonlinearity="relu")  # type: ignore[arg-type]
        nn.init.zeros_(layers[0].bias)  # type: ignore[arg-type]
    score = nn.Conv2d(hidden if layers else channels, num_classes, 1)
    nn.init.normal_(score.weight, std=0.01)
    nn.init.zeros_(score.bias)  # type: ignore[arg-type]
    return [*layers, score]


def _enlarge(num_classes: int, side: int, boxes: int) -> list[nn.Module]:
    """Transposed 3x3 convolutions of stride 2, each class by itself, until a map has the size of the grid.

    They undo the geometry of unpadded layers of stride 2: 16 -> 33 -> 67. A map that is larger than the grid already is
    left to `to_grid`.
    """
    sides = [side]
    while sides[-1] < boxes:
        sides.append(2 * sides[-1] + 1)
    if len(sides) > 1 and sides[-1] != boxes:
        raise UserError(
            f"model.net.upsample=tconv takes a map of {side} rows to {', '.join(map(str, sides[1:]))}, never to "
            f"model.net.boxes={boxes}: choose other boxes, or model.net.upsample=bilinear"
        )
    layers: list[nn.Module] = []
    for _ in pairwise(sides):
        layer = nn.ConvTranspose2d(num_classes, num_classes, 3, stride=2, groups=num_classes, bias=False)
        with torch.no_grad():
            layer.weight.copy_(bilinear_kernel(3).expand_as(layer.weight))
        layers.append(layer)
    return layers


def _chosen(connections: Connections, taps: Sequence[str]) -> tuple[str, ...]:
    """Names of the layers that connections start from."""
    if connections is None or isinstance(connections, (int, str)):
        connections = () if connections is None else (connections,)
    names = []
    for connection in connections:
        if isinstance(connection, int) and not 1 <= connection <= len(taps):
            numbers = f"1 to {len(taps)}" if taps else "none, for model.net.taps is empty; name a layer"
            raise UserError(f"model.net.connections={connection}: there are {numbers}, or null for no connection")
        names.append(taps[connection - 1] if isinstance(connection, int) else connection)
    if len(set(names)) < len(names):
        raise UserError(f"model.net.connections={list(connections)} names a layer twice: {', '.join(names)}")
    return tuple(names)


def _kernels(kernel: Kernel | Sequence[Kernel | None] | None, count: int) -> list[int | None]:
    """The n of each connection."""
    if kernel is None or isinstance(kernel, int):
        return [kernel] * count
    if len(kernel) != count:
        raise UserError(f"model.net.kernel={list(kernel)}: give one number, or {count}, one for each connection")
    return list(kernel)


def _key(layer: str) -> str:
    """Name of a layer's head; the names of modules have no dots."""
    return layer.replace(".", "_")
