"""DeconvNet: VGG-16 and its mirror image, with unpooling that puts maxima back where they came from."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import VGG16_Weights

from segmod.ground.errors import UserError
from segmod.ground.types import Factor
from segmod.nets.backbones import initialise, scaled
from segmod.nets.foreign import VGG16_CONVOLUTIONS
from segmod.nets.normalise import Normalisation, Normalise
from segmod.nets.ops import contiguous, recompute, round_up
from segmod.nets.weights import VGG16_CLASSIFIER, load_backbone_weights

Layers = list[tuple[str, nn.Module]]

# Channels of the convolutions before each pooling and of the deconvolutions after its unpooling, from the image down.
_CONV = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_DECONV = ((64, 64), (128, 64), (256, 256, 128), (512, 512, 256), (512, 512, 512))
_FC = 4096
_STRIDE = 32
_SIDE = 224  # of the paper's crops, in pixels: fc6 then sees one 7x7 map


class DeconvNet(nn.Module):
    """DeconvNet (Noh, Hong and Han 2015, section 3, and table 2 of its appendix).

    VGG-16 with its classifier as convolutions, then fc6 undone by a 7x7 deconvolution, then five times an unpooling and
    deconvolutions, to the size of the input. An unpooling puts each value where the pooling of the same level had found
    its maximum, and zeros elsewhere. Every convolution and deconvolution but the last 1x1 is followed by batch norm and
    ReLU; there is no dropout. A batch norm makes the bias before it superfluous, but the paper's net has both, and
    VGG's biases come with its weights.

    The paper's net sees crops of 224x224. Other images are padded at the bottom and right with zeros (the mean colour,
    once normalised) to a multiple of 32 and at least 224, and the logits are cut back; where the padded image is larger
    than 224, fc6 slides over the 7x7 windows of pool5 and the deconvolution adds up what they say. The net was trained
    on crops alone: score whole images by proposals, not by one large pass.

    Differs from the paper: in evaluation mode batch norm uses its running averages, the momentum being 0.1, where the
    authors' code has statistics of the batch until it computes those of the population at last (see ``PreciseBN``).

    Args:
        num_classes: Number of classes K.
        weights: Weights of VGG-16 for the convolutions, fc6 and fc7: torchvision name, file path, or None for random
            values. The deconvolutions start from N(0, 0.01), batch norm with scale 1 and shift 0.001.
        width: Factor on every number of channels; 1 is the paper's net.
        checkpointing: Compute the maps between poolings again in the backward pass rather than keep them: the same
            gradients with less memory, for about a third more time.
        normalise: What the weights expect of pixels, see `Normalise`.

    Shape:
        (B, 3, H, W) -> logits (B, K, H, W), for any H and W from 1 on.

    Raises:
        UserError: A training batch is a single crop of at most 224x224; for weights see ``load_backbone_weights``.
    """

    def __init__(
        self,
        num_classes: int,
        weights: str | None = None,
        width: Factor = 1.0,
        checkpointing: bool = False,
        normalise: Normalisation = "imagenet",
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.normalise = Normalise(normalise)
        self.checkpointing = checkpointing
        convs, deconvs = ([[scaled(n, width) for n in level] for level in part] for part in (_CONV, _DECONV))
        inputs = [3, *(level[-1] for level in convs)]  # channels of the image and of each pooling
        outputs = [*(level[-1] for level in deconvs), inputs[-1]]  # channels of what each unpooling's level gives
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()  # five levels each, from the image down
        for i in range(len(_CONV)):
            pool: Layers = [(f"pool{i + 1}", nn.MaxPool2d(2, return_indices=True))]
            self.encoder.append(_Down(_layers(nn.Conv2d, f"conv{i + 1}", inputs[i], convs[i]) + pool))
            deconvolutions = _layers(nn.ConvTranspose2d, f"deconv{i + 1}", outputs[i + 1], deconvs[i])
            self.decoder.append(_Up([(f"unpool{i + 1}", Unpool()), *deconvolutions]))
        fc = scaled(_FC, width)
        layers = [
            *_layer("fc6", nn.Conv2d(inputs[-1], fc, 7)),
            *_layer("fc7", nn.Conv2d(fc, fc, 1)),
            *_layer("deconv_fc6", nn.ConvTranspose2d(fc, inputs[-1], 7)),
        ]
        self.bottleneck = nn.Sequential(OrderedDict(layers))
        self.score = nn.Conv2d(outputs[0], num_classes, 1)
        self._initialise(weights)

    def _initialise(self, weights: str | None) -> None:
        layers = {name.rpartition(".")[2]: part for name, part in self.named_modules()}
        renamed = {name: (theirs,) for name, theirs in VGG16_CONVOLUTIONS.items()} | VGG16_CLASSIFIER
        vgg = nn.ModuleDict({name: layers[name] for name in renamed})
        initialise(vgg)
        load_backbone_weights(vgg, weights, VGG16_Weights, renamed, optional=list(VGG16_CLASSIFIER))
        for part in self.modules():
            if isinstance(part, nn.ConvTranspose2d) or part is self.score:
                nn.init.normal_(part.weight, std=0.01)
                nn.init.zeros_(part.bias)  # type: ignore[arg-type]
            elif isinstance(part, nn.BatchNorm2d):
                nn.init.constant_(part.bias, 0.001)

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, K, H, W) of an image (B, 3, H, W)."""
        height, width = image.shape[2:]
        x = F.pad(self.normalise(image), (0, _missing(width), 0, _missing(height)))
        if self.training and len(x) == 1 and tuple(x.shape[2:]) == (_SIDE, _SIDE):
            raise UserError(
                "DeconvNet cannot train on a single crop, for batch norm then has one value a channel after fc6: "
                "set data.batch_size to 2 or more for each process"
            )
        run = recompute if self.checkpointing else _call
        switches: list[Tensor] = []
        for level in self.encoder:
            x, where = run(level, x)
            switches.append(where)
        x = run(self.bottleneck, x)
        for level in reversed(self.decoder):
            x = run(level, x, switches.pop())
        logits: Tensor = self.score(x)
        return contiguous(logits[..., :height, :width])

    def activations(self, image: Tensor) -> dict[str, Tensor]:
        """Maps on the way back to the image's size, as in fig. 4 of the paper, without gradients.

        Args:
            image: (B, 3, H, W).

        Returns:
            By name, in the net's order: ``deconv5_3, unpool4, deconv4_3, ..., unpool1, deconv1_2``: after the ReLU of
            the last deconvolution of each level, and after each unpooling but the first. Each is (B, C, H / s, W / s),
            rounded up, at its stride s; of a 224x224 image the sides are 14, 28, 28, 56, 56, 112, 112, 224 and 224.
        """
        maps: dict[str, Tensor] = {}
        for level, (name, around) in zip(reversed(self.decoder), self.unpoolings(image).items(), strict=True):
            if maps:
                maps[name] = around.unpooled
            *_, last = dict(level.named_children())
            maps[last.removeprefix("relu_")] = around.deconvolved
        return maps

    @torch.no_grad()
    def unpoolings(self, image: Tensor) -> dict[str, Unpooling]:
        """What each unpooling makes of its maps, as in fig. 3 of the paper, without gradients.

        Args:
            image: (B, 3, H, W).

        Returns:
            By name, in the net's order: ``unpool5, ..., unpool1``.
        """
        seen: dict[nn.Module, tuple[Tensor, Any]] = {}

        def keep(part: nn.Module, given: tuple[Tensor, ...], output: Any) -> None:
            seen[part] = given[0], output

        pairs = zip(self.encoder, self.decoder, strict=True)
        levels = [(list(down.children())[-1], *[list(up.children())[i] for i in (0, -1)]) for down, up in pairs]
        hooks = [part.register_forward_hook(keep) for level in levels for part in level]
        try:
            self.forward(image)
        finally:
            for hook in hooks:
                hook.remove()
        found = {}
        for i, (pool, unpool, last) in reversed(list(enumerate(levels))):
            (before, (pooled, _)), (given, unpooled) = seen[pool], seen[unpool]
            maps = (
                (before, 2**i),
                (pooled, 2 ** (i + 1)),
                (given, 2 ** (i + 1)),
                (unpooled, 2**i),
                (seen[last][1], 2**i),
            )
            found[f"unpool{i + 1}"] = Unpooling(*(_cut(own, image, stride) for own, stride in maps))
        return found


class Unpooling(NamedTuple):
    """Maps around one unpooling and the pooling that it undoes; each (B, C, h, w).

    Attributes:
        before: What the pooling was given.
        pooled: What it made of that, at half the size.
        given: What the unpooling was given.
        unpooled: What it made of that, at twice the size: channel c at the places that the pooling chose in c.
        deconvolved: What the deconvolutions after it made of that.
    """

    before: Tensor
    pooled: Tensor
    given: Tensor
    unpooled: Tensor
    deconvolved: Tensor


class Unpool(nn.Module):
    """Put each value where a 2x2 pooling had found it, and zeros elsewhere (Noh, Hong and Han 2015, section 3.2.1)."""

    kernel_size, stride, padding = 2, 2, 0  # of that pooling

    def forward(self, maps: Tensor, switches: Tensor) -> Tensor:
        """Spread maps over twice their size.

        Args:
            maps: (B, C, h, w).
            switches: int64 (B, C, h, w), places in the larger map, as the pooling returned them.

        Returns:
            (B, C, 2h, 2w).
        """
        if not torch.are_deterministic_algorithms_enabled():
            return F.max_unpool2d(maps, switches, [2, 2])
        # the same, in a form that GPUs can do deterministically
        shape = (*maps.shape[:2], 2 * maps.shape[2], 2 * maps.shape[3])
        return maps.new_zeros(shape).flatten(2).scatter(2, switches.flatten(2), maps.flatten(2)).view(shape)


class _Down(nn.Sequential):
    """Convolutions and their pooling."""

    def __init__(self, layers: Layers) -> None:
        super().__init__(OrderedDict(layers))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Maps at half the size, and the places of the maxima."""
        *layers, pool = self
        for layer in layers:
            x = layer(x)
        maps, switches = pool(x)
        return maps, switches


class _Up(nn.Sequential):
    """Unpooling and its deconvolutions."""

    def __init__(self, layers: Layers) -> None:
        super().__init__(OrderedDict(layers))

    def forward(self, x: Tensor, switches: Tensor) -> Tensor:  # type: ignore[override]
        """Maps at twice the size."""
        unpool, *layers = self
        x = unpool(x, switches)
        for layer in layers:
            x = layer(x)
        return x


def _layers(kind: type[nn.Conv2d | nn.ConvTranspose2d], name: str, channels: int, widths: Sequence[int]) -> Layers:
    """The (de)convolutions of a level, numbered, each with batch norm and ReLU."""
    layers: Layers = []
    for i, out in enumerate(widths, 1):
        layers += _layer(f"{name}_{i}", kind(channels, out, 3, padding=1))
        channels = out
    return layers


def _layer(name: str, layer: nn.Conv2d | nn.ConvTranspose2d) -> Layers:
    return [(name, layer), (f"bn_{name}", nn.BatchNorm2d(layer.out_channels)), (f"relu_{name}", nn.ReLU(inplace=True))]


def _call(layer: nn.Module, *inputs: Tensor) -> Any:
    return layer(*inputs)


def _cut(maps: Tensor, image: Tensor, stride: int) -> Tensor:
    """The part of maps at a stride that lies on the image, and not on its padding."""
    height, width = (-(-side // stride) for side in image.shape[2:])
    return maps[..., :height, :width]


def _missing(side: int) -> int:
    """Pixels to add to a side, which in an export is a symbol."""
    padded: int = torch.sym_max(_SIDE, round_up(side, _STRIDE))  # type: ignore[no-untyped-call]
    return padded - side
