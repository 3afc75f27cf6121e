"""The four metrics of semantic segmentation, from one confusion matrix over a whole data set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from segmod.ground.types import IGNORE_INDEX


class SegmentationMetrics(MulticlassConfusionMatrix):
    """Confusion matrix of all pixels of a data set, summed over images and ranks; void pixels are left out.

    A mean of per-image IoUs is another number: PASCAL VOC accumulates over the data set (Everingham et al. 2015,
    sec. 3.3), and so does this.

    Args:
        num_classes: K; labels run from 0 to K - 1.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, validate_args=False)

    def update(self, labels: Tensor, mask: Tensor) -> None:
        """Count the pixels of some images; ``compute()`` returns int64 (K, K), rows = truth, columns = prediction.

        All values of a mask are counted and those that are no classes dropped, for picking the others out first, as
        torchmetrics does, takes ten times as long. Its argmax over scores is slow, too.

        Args:
            labels: Of the prediction, (B, H, W), any kind of integers below K.
            mask: (B, H, W), integers from 0 to 255; those from K on are void.
        """
        pairs = mask.to(torch.int32) * self.num_classes + labels
        counts = torch.bincount(pairs.flatten(), minlength=(IGNORE_INDEX + 1) * self.num_classes)
        self.confmat += counts[: self.num_classes**2].view(self.num_classes, -1)


@dataclass(frozen=True)
class Summary:
    """What is derived from a confusion matrix, as fractions; a mean over nothing is None.

    Attributes:
        pixel_acc: Correct pixels over all pixels.
        mean_acc: Mean over the classes in the truth of the fraction of their pixels found.
        miou: Mean of the defined entries of ``iou``, background included.
        fwiou: IoU weighted by the frequency of the classes in the truth.
        iou: Intersection over union of each class; None where neither truth nor prediction has it.
    """

    pixel_acc: float | None
    mean_acc: float | None
    miou: float | None
    fwiou: float | None
    iou: list[float | None]


def summarise(confusion: Tensor) -> Summary:
    """Derive the four metrics of Long et al. 2015 (sec. 5) and the IoU of each class.

    Pixel accuracy sum n_ii / sum t_i, mean accuracy mean n_ii / t_i, IoU n_ii / (t_i + sum_j n_ji - n_ii), frequency-
    weighted IoU sum t_i IoU_i / sum t_i. A class that is predicted but never true has IoU 0 and counts in the mean.

    Args:
        confusion: (K, K) counts, rows = truth, columns = prediction.
    """
    n = confusion.detach().cpu().double()
    correct, truth = n.diagonal(), n.sum(1)
    union = truth + n.sum(0) - correct
    iou = correct / union  # nan where the class appears nowhere
    return Summary(
        pixel_acc=_defined(correct.sum() / truth.sum()),
        mean_acc=_defined((correct / truth).nanmean()),
        miou=_defined(iou.nanmean()),
        fwiou=_defined((truth * iou).nansum() / truth.sum()),
        iou=[_defined(value) for value in iou],
    )


def present_classes(confusion: Tensor) -> list[int]:
    """Classes with at least one pixel in the truth, ascending."""
    return [int(k) for k in confusion.sum(1).nonzero().flatten()]


def mean_iou(iou: Sequence[float | None], classes: Iterable[int] | None = None) -> float | None:
    """Mean IoU over some of the classes, for sets that lack the others; None where all of them are undefined.

    Args:
        iou: IoU of each class, as in `Summary`.
        classes: Classes to average, by default all; undefined ones are skipped.
    """
    chosen = range(len(iou)) if classes is None else classes
    values = [value for k in chosen if (value := iou[k]) is not None]
    return sum(values) / len(values) if values else None


def _defined(value: Tensor) -> float | None:
    """The number, or None for nan, which JSON does not have."""
    return None if value.isnan() else float(value)
