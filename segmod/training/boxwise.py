"""Box-wise training: the net labels the cells of a coarse grid, and is scored on the grid and at full resolution."""

from __future__ import annotations

from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from segmod.ground.errors import UserError
from segmod.ground.types import Batch, Side, labels_of
from segmod.metrics import SegmentationMetrics, mean_iou, present_classes, summarise
from segmod.nets.ops import Targets, box_labels, nearest, resize
from segmod.training.module import SegmentationModule


class BoxNet(Protocol):
    """What box-wise training asks of a net beyond image -> logits, see ``SingleSkip``."""

    boxes: int  # cells in each direction

    def forward_boxes(self, image: Tensor) -> Tensor:
        """Logits (B, K, boxes, boxes) of an image (B, 3, H, W)."""
        ...


class BoxwiseModule(SegmentationModule):
    """Trains and scores a net on the cells of a grid over the image (Yim and Sohn 2017, arXiv 1710.08192).

    A validation gives two sets of numbers: ``val/box_...`` of the cells, which is what the paper's mIoU is taken to be,
    and ``val/...`` of the pixels of the original images, from the scores of the cells resized bilinearly. Two more are
    of the cells: ``val/box_present_miou``, the mean over the classes that the truth has, ``val/box_background_iou``.

    The paper does not say how a cell gets its label: see `box_labels` for the two ways there are.

    Args:
        net: A net with `forward_boxes`.
        loss: Maps logits (B, K, n, n) and labels (B, n, n) to a scalar.
        optimizer: As in `SegmentationModule`.
        targets: ``majority`` or ``nearest``.
        side: Validation masks are squashed to this side in pixels before the cells are labelled, as the predictor
            squashes the images; None leaves them as they are.
        settings: The other arguments of `SegmentationModule`.
    """

    def __init__(
        self,
        net: nn.Module,
        loss: nn.Module,
        optimizer: Any,
        *,
        targets: Targets = "majority",
        side: Side | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(net, loss, optimizer, **settings)
        if not hasattr(net, "forward_boxes"):
            raise UserError(f"model.net={type(net).__name__} labels no boxes: use SingleSkip or BoxwiseInception")
        if targets not in ("majority", "nearest"):
            raise UserError(f"model.targets={targets} is neither 'majority' nor 'nearest': choose one of them")
        self.targets = targets
        self.side = side
        self.box_metrics = SegmentationMetrics(int(net.num_classes))  # type: ignore[arg-type]
        self._seen: list[Tensor] = []  # logits of the boxes of the last image, from each pass of the predictor

    @property
    def box_net(self) -> BoxNet:
        """The net, seen as what it offers for boxes."""
        return cast(BoxNet, self.net)

    def compute_loss(self, batch: Batch) -> Tensor:
        """Loss of the boxes of one training batch."""
        loss: Tensor = self.loss(self.box_net.forward_boxes(batch["image"]), self._labels(batch["mask"]))
        return loss

    def predict_scores(self, batch: Batch) -> Tensor:
        """Class probabilities of whole images, float32 (B, K, H, W)."""
        net = _Recorder(self.net)
        self._seen = net.seen
        return self.predictor(net, batch)

    def setup(self, stage: str) -> None:
        """As ever; compiling takes in `forward_boxes`, too."""
        super().setup(stage)
        if self.compile_net:
            net: Any = self.net
            net.forward_boxes = torch.compile(net.forward_boxes)

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Count the pixels and the boxes of one batch; returns the labels of the pixels."""
        labels = super().validation_step(batch, batch_idx)
        image, mask = batch["image"], batch["mask"]
        if self.side is not None:
            size = (self.side, self.side)
            image, mask = resize(image.float(), size), nearest(mask, size)
        # a predictor of several passes or windows has no single answer for a box
        single = [len(boxes) for boxes in self._seen] == [len(image)]
        logits = self._seen[0] if single else self.box_net.forward_boxes(image)
        self.box_metrics.update(labels_of(logits), self._labels(mask))
        self._seen = []
        return labels

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of the pixels and of the boxes."""
        super().on_validation_epoch_end()
        confusion = self.box_metrics.compute()
        self.box_metrics.reset()
        summary = summarise(confusion)
        names = ("miou", "mean_acc", "pixel_acc", "fwiou")
        self.further = {f"val/box_{name}": getattr(summary, name) for name in names} | {
            "val/box_present_miou": mean_iou(summary.iou, present_classes(confusion)),
            "val/box_background_iou": summary.iou[0],
        }
        self.log_dict({k: float("nan") if v is None else v for k, v in self.further.items()}, batch_size=1)

    def _labels(self, mask: Tensor) -> Tensor:
        return box_labels(mask.long(), self.box_net.boxes, self.targets)


class _Recorder(nn.Module):
    """A box-wise net that remembers what it said of the boxes, so that it need not be run for them once more."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.num_classes = net.num_classes  # predictors ask for it
        self.seen: list[Tensor] = []

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, K, H, W) of an image (B, 3, H, W)."""
        self.seen.append(cast(BoxNet, self.net).forward_boxes(image))
        return resize(self.seen[-1], (image.shape[2], image.shape[3]))
