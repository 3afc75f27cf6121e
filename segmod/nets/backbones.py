"""Feature extractors: VGG-16 made fully convolutional, and backbones that hand out several maps of one image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import SqueezeNet1_0_Weights, VGG11_Weights, VGG16_Weights, WeightsEnum, squeezenet1_0
from torchvision.models.squeezenet import Fire

from segmod.nets.weights import load_backbone_weights

Tap = Literal["pre_relu", "post_relu"]

# Channels of the 3x3 convolutions between the five poolings (Simonyan and Zisserman 2015, table 1).
_VGG11 = ((64,), (128,), (256, 256), (512, 512), (512, 512))
_VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def vgg_features(
    stages: Sequence[Sequence[int]], width: float = 1.0, border: int = 1, ceil_mode: bool = False
) -> nn.Sequential:
    """Convolutions of a VGG net, with torchvision's indices, so its weights fit by name.

    Args:
        stages: Channels of the convolutions before each pooling.
        width: Factor on every number of channels, above 0.
        border: Padding of the first convolution in pixels; the others have 1.
        ceil_mode: Whether the poolings round sizes up.
    """
    layers: list[nn.Module] = []
    channels = 3
    for stage in stages:
        for planes in stage:
            out = scaled(planes, width)
            layers += [nn.Conv2d(channels, out, 3, padding=1 if layers else border), nn.ReLU(inplace=True)]
            channels = out
        layers.append(nn.MaxPool2d(2, 2, ceil_mode=ceil_mode))
    features = nn.Sequential(*layers)
    initialise(features)
    return features


def initialise(module: nn.Module) -> None:
    """Draw convolution weights by He et al. (2015), set biases to 0, in place: deep ReLU nets start well from it."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def scaled(channels: int, width: float) -> int:
    """Number of channels times a factor, at least 1."""
    return max(1, round(channels * width))


class VGG16(nn.Module):
    """VGG-16 with its classifier as convolutions (Long et al. 2015, section 3.1; ``voc-fcn*/net.py`` of the authors).

    Poolings round up, as Caffe's do. fc6 and fc7 are followed by ReLU and elementwise dropout of 0.5.

    Args:
        weights: Torchvision weight name, file path or None, see ``load_backbone_weights``; fc6 and fc7 take the weights
            of the classifier's first two layers.
        border: True for the paper's 100-pixel zero border around the image and an unpadded fc6; False for a border of
            1 pixel and an fc6 padded by 3, so that every map has the image's size over its stride, rounded up.
        width: Factor on every number of channels.

    Shape:
        (B, 3, H, W) -> pool3 (B, 256, ., .), pool4 (B, 512, ., .), fc7 (B, 4096, ., .), strides 8, 16 and 32.
    """

    def __init__(self, weights: str | None = None, border: bool = True, width: float = 1.0) -> None:
        super().__init__()
        self.features = vgg_features(_VGG16, width, border=100 if border else 1, ceil_mode=True)
        self.channels = (scaled(256, width), scaled(512, width), scaled(4096, width))
        self.fc6 = nn.Conv2d(self.channels[1], self.channels[2], 7, padding=0 if border else 3)
        self.fc7 = nn.Conv2d(self.channels[2], self.channels[2], 1)
        initialise(self.fc6)
        initialise(self.fc7)
        self.dropout = nn.Dropout(0.5)
        load_backbone_weights(self, weights, VGG16_Weights, {"fc6": "classifier.0", "fc7": "classifier.3"})

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Maps pool3, pool4 and fc7 of an image (B, 3, H, W)."""
        pool3 = self.features[:17](image)
        pool4 = self.features[17:24](pool3)
        pool5 = self.features[24:](pool4)
        fc6 = self.dropout(F.relu(self.fc6(pool5), inplace=True))
        fc7 = self.dropout(F.relu(self.fc7(fc6), inplace=True))
        return pool3, pool4, fc7


class TappedBackbone(nn.Module):
    """A chain of layers that hands out the maps of chosen layers, and ends with the last of them.

    Args:
        features: The layers, numbered as torchvision numbers them.
        taps: Indices of the layers to hand out, in ascending order.
        channels: Channels of every tap.
        tap: Whether a tap is taken before or after its ReLU.
        family: Torchvision weights this backbone takes by name.
    """

    def __init__(
        self,
        features: nn.Sequential,
        taps: Sequence[int],
        channels: Sequence[int],
        tap: Tap = "pre_relu",
        family: type[WeightsEnum] | None = None,
    ) -> None:
        super().__init__()
        self.taps = tuple(taps)
        self.channels = tuple(channels)
        self.tap = tap
        self.family = family
        self.features = nn.Sequential(*list(features)[: self.taps[-1] + 1])
        for layer in self.features.modules():
            if isinstance(layer, nn.ReLU):
                layer.inplace = False  # a map that was handed out before its ReLU has to stay as it was

    def forward(self, image: Tensor) -> list[Tensor]:
        """Maps of the taps, shallow to deep: (B, C_i, h_i, w_i) for an image (B, 3, H, W)."""
        maps: list[Tensor] = []
        x = image
        for index, layer in enumerate(self.features):
            if isinstance(layer, Fire):
                before = _fire(layer, x)
                x = F.relu(before)
            else:
                before = x = layer(x)
            if index in self.taps:
                maps.append(before if self.tap == "pre_relu" else F.relu(before))
        return maps


class VGG11(TappedBackbone):
    """VGG-11 (Simonyan and Zisserman 2015, table 1, column A), cut after the last tap.

    Args:
        taps: Indices into torchvision's ``vgg11().features`` of the convolutions to hand out; by default the last one
            before each pooling, 1472 channels in all.
        tap: Whether a tap is taken before or after its ReLU.
        width: Factor on every number of channels.
    """

    def __init__(self, taps: Sequence[int] = (0, 3, 8, 13, 18), tap: Tap = "pre_relu", width: float = 1.0) -> None:
        features = vgg_features(_VGG11, width)
        channels = [_out_channels(features[index]) for index in taps]
        super().__init__(features, taps, channels, tap, VGG11_Weights)


class SqueezeNet(TappedBackbone):
    """SqueezeNet 1.0 (Iandola et al. 2016), cut after the last tap.

    The map of a Fire module before its ReLU is the concatenation of its two expand convolutions.

    Args:
        taps: Indices into torchvision's ``squeezenet1_0().features`` of the convolutions and Fire modules to hand out;
            by default conv1, fire2, fire3, fire5, fire7 and fire9, 1504 channels in all.
        tap: Whether a tap is taken before or after its ReLU.
    """

    def __init__(self, taps: Sequence[int] = (0, 3, 4, 7, 9, 12), tap: Tap = "pre_relu") -> None:
        features = squeezenet1_0().features
        channels = [_out_channels(features[index]) for index in taps]
        super().__init__(features, taps, channels, tap, SqueezeNet1_0_Weights)


class Tiny(TappedBackbone):
    """Small net of five stages, each a 3x3 convolution, batch norm and ReLU at strides 1, 2, 4, 8 and 16.

    It is no paper's: it learns the synthetic scenes within minutes on a CPU.

    Args:
        channels: Channels of the stages.
        tap: Whether a tap is taken before or after its ReLU.
    """

    def __init__(self, channels: Sequence[int] = (16, 32, 64, 96, 128), tap: Tap = "pre_relu") -> None:
        layers: list[nn.Module] = []
        for previous, planes in zip((3, *channels), channels, strict=False):
            stride = 2 if layers else 1
            layers += [nn.Conv2d(previous, planes, 3, stride, 1, bias=False), nn.BatchNorm2d(planes), nn.ReLU()]
        features = nn.Sequential(*layers)
        initialise(features)
        super().__init__(features, range(1, len(layers), 3), channels, tap)


def _fire(fire: Fire, x: Tensor) -> Tensor:
    """Output of a Fire module before its last ReLU."""
    squeezed = fire.squeeze_activation(fire.squeeze(x))
    return torch.cat([fire.expand1x1(squeezed), fire.expand3x3(squeezed)], dim=1)


def _out_channels(layer: nn.Module) -> int:
    if isinstance(layer, Fire):
        return int(layer.expand1x1.out_channels + layer.expand3x3.out_channels)
    return int(layer.out_channels)  # type: ignore[arg-type]
