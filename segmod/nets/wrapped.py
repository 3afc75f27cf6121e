"""Whole nets of other libraries as nets of segmod: torchvision, segmentation_models_pytorch, transformers, ..."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from segmod.ground.errors import UserError, require
from segmod.ground.types import Count
from segmod.nets.normalise import Normalisation, Normalise
from segmod.nets.ops import contiguous, resize, round_up
from segmod.nets.weights import load_backbone_weights


class Wrapped(nn.Module):
    """A net that gives scores of any resolution, in one of the usual forms, made into one of segmod.

    Args:
        num_classes: Number of classes K.
        net: Maps an image (B, 3, H, W) to logits (B, K, h, w): the tensor, a mapping that has it as ``out``
            (torchvision), or an object that has it as ``logits`` (transformers).
        multiple: Of which the net needs the sides of images to be; they are padded by the mean colour, and the scores
            cut.
        normalise: What the net expects of pixels, see `Normalise`.

    Shape:
        (B, 3, H, W) -> logits (B, K, H, W).
    """

    def __init__(
        self, num_classes: int, net: nn.Module, multiple: Count = 1, normalise: Normalisation = "imagenet"
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.normalise = Normalise(normalise)
        self.net = net
        self.multiple = multiple

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, K, H, W) of an image (B, 3, H, W).

        Raises:
            UserError: The net gives no logits, or those of another number of classes.
        """
        height, width = image.shape[2:]
        padding = (0, round_up(width, self.multiple) - width, 0, round_up(height, self.multiple) - height)
        image = F.pad(self.normalise(image), padding)
        given = self.net(image)
        logits = given["out"] if isinstance(given, Mapping) and "out" in given else getattr(given, "logits", given)
        kind = type(self.net).__name__
        if not isinstance(logits, Tensor) or logits.dim() != 4:
            raise UserError(f"model.net.net: {kind} gives a {type(given).__name__} without logits (B, K, h, w)")
        if logits.shape[1] != self.num_classes:
            raise UserError(
                f"model.net.net: {kind} scores {logits.shape[1]} classes, the data has {self.num_classes}: "
                "set its argument for it, classes or num_labels, to ${model.net.num_classes}"
            )
        return contiguous(resize(logits, (image.shape[2], image.shape[3]))[..., :height, :width])


class TorchvisionNet(Wrapped):
    """A net of `torchvision.models.segmentation`, by its name, without its auxiliary classifier.

    Args:
        num_classes: Number of classes K.
        architecture: Its name: ``deeplabv3_resnet50``, ``fcn_resnet50``, ``lraspp_mobilenet_v3_large``, ...
        weights: Of its backbone: torchvision name or file path; of the whole net, which has 21 classes:
            ``COCO_WITH_VOC_LABELS_V1``; or None for random values.
        normalise: What the weights expect of pixels, see `Normalise`.
    """

    def __init__(
        self,
        num_classes: int,
        architecture: str = "deeplabv3_resnet50",
        weights: str | None = None,
        normalise: Normalisation = "imagenet",
    ) -> None:
        known = torchvision.models.list_models(module=torchvision.models.segmentation)
        close = difflib.get_close_matches(architecture, known, n=3) or known
        require(
            architecture in known,
            f"model.net.architecture={architecture}: no such net in torchvision.models.segmentation; "
            f"did you mean {', '.join(close)}?",
        )
        random: dict[str, Any] = {"weights": None, "weights_backbone": None}
        net = torchvision.models.get_model(architecture, num_classes=num_classes, **random, aux_loss=False)
        super().__init__(num_classes, net, normalise=normalise)
        whole = torchvision.models.get_model_weights(architecture)
        if weights in set(whole.__members__) - {"DEFAULT"}:
            load_backbone_weights(net, weights, whole)
            return
        # of some classification nets it holds the features alone, without that part of their names
        renamed = {name: [f"features.{name}"] for name, _ in net.backbone.named_children()}
        family = torchvision.models.get_model_weights(architecture.partition("_")[2])
        load_backbone_weights(net.backbone, weights, family, renamed)
