"""Deep Feature Pyramid: the deep end of a ResNet run at several scales."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from itertools import cycle
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import get_model_weights
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from segmod.ground.errors import UserError
from segmod.nets.backbones import initialise, scaled
from segmod.nets.normalise import Normalisation, Normalise
from segmod.nets.ops import recompute, resize
from segmod.nets.weights import load_backbone_weights

Fusion = Literal["concat", "sum", "max"]
Encoder = Literal["1x1_3x3", "1x1"]

# Residual blocks of layer1 to layer4 (He et al. 2016, table 1), and what the wider kinds say besides.
_RESNETS: dict[str, tuple[type[BasicBlock | Bottleneck], list[int], dict[str, int]]] = {
    "resnet18": (BasicBlock, [2, 2, 2, 2], {}),
    "resnet34": (BasicBlock, [3, 4, 6, 3], {}),
    "resnet50": (Bottleneck, [3, 4, 6, 3], {}),
    "resnet101": (Bottleneck, [3, 4, 23, 3], {}),
    "resnet152": (Bottleneck, [3, 8, 36, 3], {}),
    "resnext50_32x4d": (Bottleneck, [3, 4, 6, 3], {"groups": 32, "width_per_group": 4}),
    "resnext101_32x8d": (Bottleneck, [3, 4, 23, 3], {"groups": 32, "width_per_group": 8}),
    "resnext101_64x4d": (Bottleneck, [3, 4, 23, 3], {"groups": 64, "width_per_group": 4}),
    "wide_resnet50_2": (Bottleneck, [3, 4, 6, 3], {"width_per_group": 128}),
    "wide_resnet101_2": (Bottleneck, [3, 4, 23, 3], {"width_per_group": 128}),
}
STAGES = 5  # of every ResNet, each of which halves the map


class StagedResNet(ResNet):  # type: ignore[misc]  # torchvision has no types
    """Torchvision's ResNet without its classifier, run from any of its five halving stages to any other.

    The stages are S1 = conv1, bn1 and relu (stride 2), S2 = maxpool and layer1 (4), S3 = layer2 (8), S4 = layer3 (16),
    S5 = layer4 (32). Every stage rounds sizes up. Names of parameters are torchvision's.

    Args:
        name: Torchvision's name of a ResNet, ResNeXt or wide ResNet.
        width: Factor on the channels of layer1 to layer4.
        checkpointing: Keep the input of each residual block alone, and compute the rest again for the gradient.

    Attributes:
        channels: Of the output of S5.

    Shape:
        (B, C, h, w) -> the map of stage ``last``, half the size for each stage run.
    """

    def __init__(self, name: str, width: float = 1.0, checkpointing: bool = False) -> None:
        if name not in _RESNETS:
            raise UserError(
                f"model.net.backbone={name} is no ResNet of torchvision: choose one of {', '.join(_RESNETS)}"
            )
        block, blocks, options = _RESNETS[name]
        self._factor, self._checkpointing = width, checkpointing
        super().__init__(block, blocks, num_classes=1, **options)
        del self.avgpool, self.fc
        self.channels = scaled(512, width) * block.expansion

    def _make_layer(
        self, block: type[BasicBlock | Bottleneck], planes: int, *args: Any, **options: Any
    ) -> nn.Sequential:
        blocks = super()._make_layer(block, scaled(planes, self._factor), *args, **options)
        return (_Recomputed if self._checkpointing else nn.Sequential)(*blocks)

    def forward(self, maps: Tensor, first: int = 1, last: int = STAGES) -> Tensor:
        """Run stages ``first`` to ``last`` on what the stage before ``first`` gave; the image where that is 1."""
        stages = (
            (self.conv1, self.bn1, self.relu),
            (self.maxpool, self.layer1),
            (self.layer2,),
            (self.layer3,),
            (self.layer4,),
        )
        for stage in stages[first - 1 : last]:
            for part in stage:
                maps = part(maps)
        return maps


class _Recomputed(nn.Sequential):
    """Residual blocks whose inner maps are not kept for the gradient."""

    def forward(self, maps: Tensor) -> Tensor:
        """Run the blocks."""
        for block in self:
            maps = recompute(block, maps)
        return maps


class DeepFeaturePyramid(nn.Module):
    """Deep Feature Pyramid (Chen et al., section 3): the last ``depth`` stages of a ResNet see the map at each scale.

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
        backbone: Torchvision's name of a ResNet.
        scales: Factors on the height and width of the map, above 0; depth 0 has none.
        fusion: How branches are joined: ``concat``, ``sum`` or ``max``.
        encoder: Convolutions before that: ``1x1_3x3`` from k to k / 2 and on to k / 2, or the first of them alone.
        align_corners: How maps are resized: corner pixels coincide (True), or borders do (False).
        weights: Weights of the backbone: torchvision name, file path, or None for random values.
        width: Factor on the channels of layer1 to layer4; 1 is the paper's net.
        checkpointing: Train with less memory and about a third more time: maps within the residual blocks are computed
            again for the gradient.
        normalise: What the backbone's weights expect of pixels, see `Normalise`.

    Shape:
        (B, 3, H, W) -> logits (B, K, H, W), as long as no scale leaves an empty map.
    """

    def __init__(
        self,
        num_classes: int,
        depth: int = 5,
        backbone: str = "resnet50",
        scales: Sequence[float] = (1.0, 0.75, 0.5),
        fusion: Fusion = "concat",
        encoder: Encoder = "1x1_3x3",
        align_corners: bool = False,
        weights: str | None = None,
        width: float = 1.0,
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
        self.backbone = StagedResNet(backbone, width, checkpointing)
        self.planes = self.backbone.channels // 2
        self.encoder = _encoder(self.backbone.channels, self.planes, encoder)
        self.score = nn.Conv2d(self.planes * (len(self.scales) if fusion == "concat" else 1), num_classes, 1)
        nn.init.normal_(self.score.weight, std=0.01)
        nn.init.zeros_(self.score.bias)  # type: ignore[arg-type]
        load_backbone_weights(self.backbone, weights, get_model_weights(backbone))

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, K, H, W) of an image (B, 3, H, W).

        Raises:
            UserError: A scale leaves an empty map of an image of this size.
        """
        height, width = image.shape[2:]
        grid = (-(-height // 2**STAGES), -(-width // 2**STAGES))  # what S1 to S5 make of the image at scale 1
        maps = self.backbone(self.normalise(image), last=STAGES - self.depth)
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
        height, width = (int(side * scale + 1e-6) for side in maps.shape[2:])  # 1e-6: 100 * 0.29 is 28.999...
        if not height or not width:
            raise UserError(
                f"model.net.scales: {scale} leaves nothing of a map of {maps.shape[2]} x {maps.shape[3]} at depth "
                f"{self.depth}: take larger scales, at least {1 / min(maps.shape[2:]):.2f} here, or larger images"
            )
        encoded: Tensor = self.encoder(
            self.backbone(self._resize(maps, (height, width)), first=STAGES + 1 - self.depth)
        )
        return encoded

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
