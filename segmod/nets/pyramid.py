"""Deep Feature Pyramid: the deep end of a backbone run at several scales."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import reduce
from itertools import chain, cycle
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segmod.ground.errors import UserError
from segmod.ground.types import Factor
from segmod.nets.backbones import in_stages, initialise
from segmod.nets.normalise import Normalisation, Normalise
from segmod.nets.ops import recompute, resize, round_up

Fusion = Literal["concat", "sum", "max"]
Encoder = Literal["1x1_3x3", "1x1"]

STAGES = 5  # each of which halves the map


class DeepFeaturePyramid(nn.Module):
    """Deep Feature Pyramid (Chen et al., section 3): the last ``depth`` stages of a backbone see the map at each scale.

    Each of five stages halves the map (of a ResNet: conv1; maxpool and layer1; layer2; layer3; layer4).
    Stages 1 to 5 - depth run once on the image; their map is resized by each factor, and the other stages run on each
    copy with the same weights. What is resized is, for depths 1 to 5, the output of layer3, layer2, layer1 and the
    stem, and the image itself (an image pyramid); depth 0 is a plain FCN. One encoder halves the channels k of every
    branch; branches are resized to the grid of scale 1, joined, and scored by a 1x1 convolution.

    Resizing and the 1x1 convolution are both linear. So a branch is scored at its own size, by its own columns of the
    weight, and it is its class scores that are resized and added: the concatenation of the paper is never built. With
    ``fusion="max"`` there is no such way round.

    Args:
        num_classes: Number of classes K.
        depth: Stages that run once for each scale, counted from the deep end, 0 to 5.
        backbone: Name of a net of torchvision, or of timm behind ``timm/``, whose layers are a sequence with maps at
            strides 2 to 32.
        scales: Factors on the height and width of the map, above 0; depth 0 has none.
        fusion: How branches are joined: ``concat``, ``sum`` or ``max``.
        encoder: Convolutions before that: ``1x1_3x3`` from k to k / 2 and on to k / 2, or the first of them alone.
        align_corners: How maps are resized: corner pixels coincide (True), or borders do (False).
        weights: Of the backbone: name of pretrained weights, file path, or None for random values.
        width: Factor on the backbone's channels; 1 is the paper's net.
        checkpointing: Train with less memory and about a third more time: maps within the backbone's blocks are
            computed again for the gradient.
        normalise: What the backbone's weights expect of pixels, see `Normalise`.

    Shape:
        (B, 3, H, W) -> logits (B, K, H, W), as long as no scale leaves an empty map.
    """

    def __init__(
        self,
        num_classes: int,
        depth: int = 5,
        backbone: str = "resnet50",
        scales: Sequence[Factor] = (1.0, 0.75, 0.5),
        fusion: Fusion = "concat",
        encoder: Encoder = "1x1_3x3",
        align_corners: bool = False,
        weights: str | None = None,
        width: Factor = 1.0,
        checkpointing: bool = False,
        normalise: Normalisation = "imagenet",
    ) -> None:
        super().__init__()
        if depth not in range(STAGES + 1):
            raise UserError(f"model.net.depth={depth}: {backbone} has {STAGES} stages; choose 0 to {STAGES}")
        if not scales or not all(scale > 0 for scale in scales):
            raise UserError(f"model.net.scales={list(scales)}: give at least one factor above 0, such as [1.0, 0.5]")
        if fusion not in ("concat", "sum", "max"):
            raise UserError(f"model.net.fusion={fusion} is none of concat, sum, max: choose one of them")
        if encoder not in ("1x1_3x3", "1x1"):
            raise UserError(f"model.net.encoder={encoder} is neither 1x1_3x3 nor 1x1: choose one of them")
        self.num_classes = num_classes
        self.normalise = Normalise(normalise)
        self.depth = depth
        self.scales = tuple(scales) if depth else (1.0,)
        self.fusion = fusion
        self.align_corners = align_corners
        self.checkpointing = checkpointing
        self.backbone, self.stages, channels = in_stages(backbone, weights, width, self.normalise)
        if len(self.stages) != STAGES:
            raise UserError(
                f"model.net.backbone={backbone} halves the map {len(self.stages)} times, the pyramid needs {STAGES}"
            )
        self.planes = max(1, channels[-1] // 2)
        self.encoder = _encoder(channels[-1], self.planes, encoder)
        self.score = nn.Conv2d(self.planes * (len(self.scales) if fusion == "concat" else 1), num_classes, 1)
        nn.init.normal_(self.score.weight, std=0.01)
        nn.init.zeros_(self.score.bias)  # type: ignore[arg-type]

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, K, H, W) of an image (B, 3, H, W).

        Raises:
            UserError: A scale leaves an empty map of an image of this size.
        """
        height, width = image.shape[2:]
        cell = 2**STAGES
        grid = round_up(height, cell) // cell, round_up(width, cell) // cell  # what S1 to S5 make of scale 1
        maps = self._run(self.stages[: STAGES - self.depth], self.normalise(image))
        if self.fusion == "max":
            branches = [self._resize(self._branch(maps, scale), grid) for scale in self.scales]
            scores = self.score(reduce(torch.maximum, branches))
        else:
            weights = cycle(torch.split(self.score.weight, self.planes, dim=1))  # a sum has one weight for all
            parts = (F.conv2d(self._branch(maps, scale), next(weights)) for scale in self.scales)
            scores = reduce(torch.add, (self._resize(part, grid) for part in parts), self.score.bias[:, None, None])  # type: ignore[index]
        return self._resize(scores, (height, width))

    def _branch(self, maps: Tensor, scale: float) -> Tensor:
        """Encoded map (B, k / 2, ., .) of one scale."""
        share = Fraction(scale).limit_denominator(10**6)  # exact, for 100 * 0.29 is 28.999...
        height, width = (side * share.numerator // share.denominator for side in maps.shape[2:])
        if not height or not width:
            raise UserError(
                f"model.net.scales: {scale} leaves nothing of a map of {maps.shape[2]} x {maps.shape[3]} at depth "
                f"{self.depth}: take larger scales, at least {1 / min(maps.shape[2:]):.2f} here, or larger images"
            )
        encoded: Tensor = self.encoder(
            self._run(self.stages[STAGES - self.depth :], self._resize(maps, (height, width)))
        )
        return encoded

    def _run(self, stages: Sequence[Sequence[str]], maps: Tensor) -> Tensor:
        """Run stages of the backbone on what the stage before them gave; on the image, if they are the first."""
        for name in chain.from_iterable(stages):
            layer = self.backbone.get_submodule(name)
            again = self.checkpointing and any(layer.children())  # a block
            maps = recompute(layer, maps) if again else layer(maps)
        return maps

    def _resize(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        return resize(maps, size, self.align_corners)


def _encoder(channels: int, half: int, kind: Encoder) -> nn.Sequential:
    """Convolutions from k to k / 2 channels, each with batch norm and ReLU."""
    layers = [nn.Conv2d(channels, half, 1, bias=False), nn.BatchNorm2d(half), nn.ReLU(inplace=True)]
    if kind == "1x1_3x3":
        layers += [nn.Conv2d(half, half, 3, padding=1, bias=False), nn.BatchNorm2d(half), nn.ReLU(inplace=True)]
    encoder = nn.Sequential(*layers)
    initialise(encoder)
    return encoder
