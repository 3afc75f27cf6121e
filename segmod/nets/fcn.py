"""Fully convolutional networks: FCN-32s, FCN-16s and FCN-8s, on VGG-16 or any other backbone."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import VGG16_Weights

from segmod.ground.errors import UserError
from segmod.ground.types import Factor
from segmod.nets.backbones import feature_maps, initialise, last_layers, map_shapes, scaled
from segmod.nets.normalise import Normalisation, Normalise
from segmod.nets.ops import BilinearUpsample, contiguous, crop, resize
from segmod.nets.tracing import SIDE
from segmod.nets.weights import VGG16_CLASSIFIER, load_backbone_weights

# Where the reference nets crop: the first row and column kept, in pixels of the map that is cropped
# (``voc-fcn{32s,16s,8s}/net.py`` of the authors' code).
_CROP_IMAGE = {32: 19, 16: 27, 8: 31}
_CROP_POOL4 = 5
_CROP_POOL3 = 9
_SKIPS = {16: "pool4", 8: "pool3"}
_POOLS = ("features.16", "features.23", "features.30")  # pool3, pool4 and pool5 of torchvision's VGG-16
# Of the border's 100 pixels conv1_1 is given 8, pool1 makes 20 of them, pool2 52 and pool3 100: see `_WideningPool`.
_BORDER = 8
_WIDENED = {"4": (1, (20 - 8) // 2), "9": (2, (52 - 20) // 4), "16": (3, (100 - 52) // 8)}  # features: (ring, times)


class FCN(nn.Module):
    """FCN-32s, FCN-16s and FCN-8s (Long, Shelhamer and Darrell 2015, section 4).

    VGG-16 is made fully convolutional: its classifier's layers fc6 and fc7 become convolutions, each followed by ReLU
    and elementwise dropout of 0.5, and its poolings round up (section 3.1). Class scores of fc7, at stride 32, are
    upsampled by 2 and joined by those of pool4, and again by 2 and joined by those of pool3, as far as ``stride`` says;
    the sum is upsampled to the image. All score layers start at zero, so a net that starts from its coarser sibling
    starts with the sibling's output.

    Other backbones lose their classifier (section 4.1 of the paper, on AlexNet and GoogLeNet), and their last maps at
    strides 32, 16 and 8 are scored in place of fc7, pool4 and pool3. They have neither border nor fc6 and fc7, for
    these are VGG-16's, and scores are resized bilinearly.

    Differs from the paper: with ``padding="same"``, the 100-pixel border is left out, and a training step
    takes 0.7 of the time; scores near the edges of an image then differ.

    Args:
        num_classes: Number of classes K.
        stride: Of the finest scores, in pixels: 32, 16 or 8.
        backbone: Name of a classification net of torchvision; of timm, behind ``timm/``; or ``tiny``.
        weights: Of the backbone: name of pretrained weights, file path, or None for random values; fc6 and fc7 take
            those of the first two layers of VGG-16's classifier, and stay random where there are none.
        skip_factors: Of pool4 and pool3 before they are scored. To train all strides in one stage, the authors' code
            (``voc-fcn8s-atonce``) takes 0.01 and 0.0001, made for Caffe's VGG-16; see `stream_rms` for other weights.
        padding: ``border`` for the paper's 100 pixels around the image, of VGG-16 alone, ``same`` for none; None for
            the border where there is one.
        learn_upsample: Train the upsampling kernels, of VGG-16 alone; the authors found no significant difference.
        width: Factor on the backbone's numbers of channels; 1 is the paper's net.
        normalise: What the weights expect of pixels, see `Normalise`.

    Shape:
        (B, 3, H, W) -> logits (B, K, H, W), for any H and W from 1 on.
    """

    def __init__(
        self,
        num_classes: int,
        stride: int = 8,
        backbone: str = "vgg16",
        weights: str | None = None,
        skip_factors: tuple[float, float] = (1.0, 1.0),
        padding: Literal["border", "same"] | None = None,
        learn_upsample: bool = False,
        width: Factor = 1.0,
        normalise: Normalisation = "imagenet",
    ) -> None:
        super().__init__()
        if stride not in _CROP_IMAGE:
            raise UserError(f"model.net.stride={stride} is none of 32, 16, 8: choose one of them")
        if padding not in ("border", "same", None):
            raise UserError(f"model.net.padding={padding} is neither 'border' nor 'same': choose one of them")
        self.num_classes = num_classes
        self.normalise = Normalise(normalise)
        self.stride = stride
        self.is_vgg = backbone == "vgg16"
        self.border = self.is_vgg and padding != "same"
        self.factor_pool4, self.factor_pool3 = skip_factors
        if not self.is_vgg:
            self._transplant(backbone, weights, width, border=padding == "border", learned=learn_upsample)
            return
        self.backbone = feature_maps("vgg16", _POOLS, weights, width)
        if self.border:
            self.backbone.get_submodule("features.0").padding = (_BORDER, _BORDER)  # type: ignore[assignment]
            for pool, (ring, times) in _WIDENED.items():
                self.backbone.get_submodule("features").add_module(pool, _WideningPool(ring, times))
        for layer in self.backbone.modules():
            if isinstance(layer, nn.MaxPool2d):
                layer.ceil_mode = True  # as Caffe's do
        pool3, pool4, pool5, fc7 = (scaled(channels, width) for channels in (256, 512, 512, 4096))
        self.fc6 = nn.Conv2d(pool5, fc7, 7, padding=0 if self.border else 3)
        self.fc7 = nn.Conv2d(fc7, fc7, 1)
        self.dropout = nn.Dropout(0.5)
        classifier = nn.ModuleDict({"fc6": self.fc6, "fc7": self.fc7})
        initialise(classifier)
        load_backbone_weights(classifier, weights, VGG16_Weights, VGG16_CLASSIFIER, optional=list(VGG16_CLASSIFIER))
        self.score_fr = _score(fc7, num_classes)
        if stride <= 16:
            self.upscore2 = BilinearUpsample(num_classes, 2, learn_upsample)
            self.score_pool4 = _score(pool4, num_classes)
        if stride <= 8:
            self.upscore_pool4 = BilinearUpsample(num_classes, 2, learn_upsample)
            self.score_pool3 = _score(pool3, num_classes)
        # named by its stride, for those of two stages differ in size
        self.add_module(f"upscore{stride}", BilinearUpsample(num_classes, stride, learn_upsample))

    def _transplant(self, backbone: str, weights: str | None, width: float, border: bool, learned: bool) -> None:
        """Take the maps of another backbone than VGG-16."""
        for key, given in {"padding=border": border, "learn_upsample=true": learned}.items():
            if given:
                raise UserError(f"model.net.{key} is VGG-16's alone: leave it away, or choose model.net.backbone=vgg16")
        layers = last_layers(backbone)
        if self.stride not in layers:
            strides = ", ".join(str(stride) for stride in layers if stride in _CROP_IMAGE) or "none of these"
            raise UserError(
                f"model.net.stride={self.stride}: {backbone} has maps at strides {', '.join(map(str, layers))}: "
                f"of 32, 16 and 8 choose {strides}"
            )
        used = [layers[stride] for stride in sorted(layers) if stride >= self.stride]
        self.backbone = feature_maps(backbone, used, weights, width, normalise=self.normalise)
        shapes = map_shapes(self.backbone, SIDE)
        self.score_fr = _score(shapes[used[-1]][0], self.num_classes)
        for stride, name in _SKIPS.items():
            if layers.get(stride) in used[:-1]:
                self.add_module(f"score_{name}", _score(shapes[layers[stride]][0], self.num_classes))

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, K, H, W) of an image (B, 3, H, W)."""
        streams = self._streams(image)
        if not self.is_vgg:
            scores = self.score_fr(streams.pop("top"))
            for name, maps in streams.items():
                skip = self.get_submodule(f"score_{name}")(maps)
                scores = resize(scores, (skip.shape[2], skip.shape[3])) + skip
            return resize(scores, (image.shape[2], image.shape[3]))
        scores = self.score_fr(streams["fc7"])  # stride 32
        if self.stride <= 16:
            scores = self._join(self.upscore2(scores), self.score_pool4(streams["pool4"]), _CROP_POOL4)  # stride 16
        if self.stride <= 8:
            scores = self._join(self.upscore_pool4(scores), self.score_pool3(streams["pool3"]), _CROP_POOL3)  # stride 8
        offset = _CROP_IMAGE[self.stride] if self.border else self.stride // 2
        scores = self.get_submodule(f"upscore{self.stride}")(scores)
        return contiguous(crop(scores, offset, (image.shape[2], image.shape[3])))

    @torch.no_grad()
    def stream_rms(self, image: Tensor) -> dict[str, tuple[float, int]]:
        """What each score layer sees of an image (B, 3, H, W): root mean square and number of channels, by stream.

        From zero, a step moves the scores of a stream by the rate times the sum of squares over its channels. Rates and
        factors that suit one kind of weights so leave the skips of another untrained, or blow them up.
        """
        was = self.training
        streams = self.eval()._streams(image)
        self.train(was)
        return {name: (float(x.float().square().mean().sqrt()), x.shape[1]) for name, x in streams.items()}

    def _streams(self, image: Tensor) -> dict[str, Tensor]:
        """What is scored: fc7 or the top map and, as far as the stride asks for them, pool4 and pool3."""
        maps = self.backbone(self.normalise(image)).values()
        if not self.is_vgg:
            *finer, top = maps
            factors = {"pool4": self.factor_pool4, "pool3": self.factor_pool3}
            scored = [name for name in factors if hasattr(self, f"score_{name}")]
            return {"top": top} | {name: factors[name] * x for name, x in zip(scored, reversed(finer), strict=True)}
        pool3, pool4, pool5 = maps
        fc6 = self.dropout(F.relu(self.fc6(pool5), inplace=True))
        streams = {"fc7": self.dropout(F.relu(self.fc7(fc6), inplace=True))}
        if self.stride <= 16:
            streams["pool4"] = pool4 * self.factor_pool4
        if self.stride <= 8:
            streams["pool3"] = pool3 * self.factor_pool3
        return streams

    def _join(self, coarse: Tensor, skip: Tensor, offset: int) -> Tensor:
        """Sum of upsampled coarse scores and of the finer ones where they lie on the same pixels."""
        if self.border:  # the map of the larger border is cut to what the unpadded fc6 left over
            return coarse + crop(skip, offset, (coarse.shape[2], coarse.shape[3]))
        return crop(coarse, 1, (skip.shape[2], skip.shape[3])) + skip


class _WideningPool(nn.MaxPool2d):
    """Pooling that makes a border around its map as wide as it would be, had the layers before been given all of it.

    In a border of zeros around the image these layers find the same everywhere, but near the image and at the outer
    edge, as far as their kernels reach. So they can be given a narrow border, and one row and one column at each side,
    which lie between both, stand for all that are missing: their values are those of the wide border, and so are the
    gradients.

    From the outer edge, 1 row of pool1 is another, since conv1_2 pads its input; then 2 of pool2, for conv2_1 and
    conv2_2 add one each and pooling halves 3, and 3 of pool3. Row 1 of pool1 sees nothing of the image if the border is
    8 pixels wide, row 2 of pool2 if it is 20, row 3 of pool3 if it is 52; row 3 of pool4 would need 108.

    Args:
        ring: The row and the column that are repeated, counted from each side.
        times: How often, besides being there.
    """

    def __init__(self, ring: int, times: int) -> None:
        super().__init__(2, 2)
        self.ring = ring
        self.times = times

    def forward(self, maps: Tensor) -> Tensor:
        """Pool maps (B, C, h, w) to (B, C, h / 2 + 2 times, w / 2 + 2 times), rounded up."""
        pooled: Tensor = super().forward(maps)
        for dim in (2, 3):
            start, stop = self.ring, pooled.shape[dim] - self.ring
            first, inner, last = torch.split(pooled, [start, stop - start, start], dim)
            before, after = (inner.narrow(dim, at, 1) for at in (0, stop - start - 1))
            pooled = torch.cat([first, *[before] * self.times, inner, *[after] * self.times, last], dim)
        return pooled


def _score(channels: int, num_classes: int) -> nn.Conv2d:
    """A 1x1 convolution to class scores that starts at zero, as Caffe's do by default."""
    layer = nn.Conv2d(channels, num_classes, 1)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer
