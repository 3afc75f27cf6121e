"""Losses that torch does not have: each maps (logits, mask) to a scalar. And the weights of classes, for any loss.

All are computed in float32 also where the logits are of half precision, leave void pixels out, and cost 0, with a
gradient, where a batch has no other. ``weight``, one factor a class, is a buffer, as in torch's own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segmod.ground.errors import require
from segmod.ground.types import IGNORE_INDEX, Fraction, NotNegative


class BalancedCrossEntropy(nn.Module):
    """Cross-entropy in which every class that is present counts the same, however many pixels it has.

    The mean over the classes present in the batch of the mean negative log-likelihood of that class's pixels: most of
    a photo is background, and a plain mean learns it first and best.

    Args:
        ignore_index: Label of the pixels that do not count.

    Shape:
        logits (B, K, ...) and mask int64 (B, ...) -> scalar.
    """

    def __init__(self, ignore_index: Literal[255] = IGNORE_INDEX) -> None:
        super().__init__()
        self.ignore_index = ignore_index

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Loss of a batch."""
        counts = torch.bincount(mask[mask != self.ignore_index], minlength=logits.shape[1])
        weights = 1 / counts.clamp_min(1).float()
        total = F.cross_entropy(logits.float(), mask, weights, ignore_index=self.ignore_index, reduction="sum")
        return total / (counts > 0).sum().clamp_min(1)


class OneVsRest(nn.Module):
    """Binary cross-entropy of each class against the rest: a sigmoid a class in place of one softmax over all.

    The mean over labelled pixels and classes.

    Args:
        ignore_index: Label of the pixels that do not count.

    Shape:
        logits (B, K, ...) and mask int64 (B, ...) -> scalar.
    """

    def __init__(self, ignore_index: Literal[255] = IGNORE_INDEX) -> None:
        super().__init__()
        self.ignore_index = ignore_index

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Loss of a batch."""
        counted = mask != self.ignore_index
        truth = F.one_hot(mask.where(counted, 0), logits.shape[1]).movedim(-1, 1).float()
        losses = F.binary_cross_entropy_with_logits(logits.float(), truth, reduction="none").mean(1)
        return (losses * counted).sum() / counted.sum().clamp_min(1)


class _Weighted(nn.Module):
    """What the losses below have in common.

    Args:
        weight: (K,), factor of each class; None for 1.
        ignore_index: Label of the pixels that do not count.

    Shape:
        logits (B, K, ...) and mask int64 (B, ...) -> scalar.
    """

    weight: Tensor | None

    def __init__(self, weight: Tensor | None = None, ignore_index: Literal[255] = IGNORE_INDEX) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index

    def _weights(self, logits: Tensor) -> Tensor:
        """The factor of each class, float32 (K,)."""
        ones = torch.ones(logits.shape[1], device=logits.device)
        return ones if self.weight is None else ones * self.weight

    def _costs(self, logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy (N,) of the pixels that count, and the weights of their classes (N,)."""
        counted = mask != self.ignore_index
        costs = F.cross_entropy(logits.float(), mask, ignore_index=self.ignore_index, reduction="none")
        return costs[counted], self._weights(logits)[mask[counted]]


class Dice(_Weighted):
    """1 - the soft Dice coefficient of each class, ``2 sum(p g) / (sum(p^2) + sum(g^2))`` (Milletari et al. 2016).

    The sums are over all pixels of the batch, and the (weighted) mean over the classes that it shows. Differs from the
    paper, which has two classes: p is of a softmax over all.

    Args and shape: See `_Weighted`.
    """

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Loss of a batch."""
        p = logits.float().softmax(1).movedim(1, -1)[mask != self.ignore_index]
        labels = mask[mask != self.ignore_index]
        right = p.new_zeros(p.shape[1]).index_add(0, labels, p.gather(1, labels[:, None])[:, 0])
        shown = torch.bincount(labels, minlength=p.shape[1])
        dice = 2 * right / (p.square().sum(0) + shown).clamp_min(1)
        return _mean(1 - dice, self._weights(logits) * (shown > 0))


class Lovasz(_Weighted):
    """The Lovasz-softmax loss (Berman et al. 2018): a stand-in for 1 - IoU of each class that has a gradient.

    The errors of all pixels of the batch, the largest first, each times what it adds to the Jaccard loss of those
    before it; and the (weighted) mean over the classes that the batch shows.

    Args and shape: See `_Weighted`.
    """

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Loss of a batch."""
        p = logits.float().softmax(1).movedim(1, -1)[mask != self.ignore_index]
        labels = mask[mask != self.ignore_index]
        classes = labels.unique()  # type: ignore[no-untyped-call]
        losses = [p[:0].sum()]
        for label in classes:
            truth = (labels == label).long()  # whole numbers, whose sums come out the same on a GPU every time
            errors, order = (truth - p[:, label]).abs().sort(descending=True)
            found = truth[order]
            jaccard = 1 - (found.sum() - found.cumsum(0)) / (found.sum() + (1 - found).cumsum(0))
            losses.append(errors @ jaccard.diff(prepend=jaccard.new_zeros(1)))
        weights = self._weights(logits)[classes]
        return _mean(torch.stack(losses), torch.cat([weights.new_zeros(1), weights]))


class Focal(_Weighted):
    """Cross-entropy in which a pixel counts ``(1 - p) ** gamma``, p of its class (Lin et al. 2017, eq. 4 and 5).

    The mean over labelled pixels, weighted as in torch's cross-entropy; the weights are the paper's alpha. Differs from
    the paper, and from torchvision's ``sigmoid_focal_loss``: p is of a softmax, not of a sigmoid for each class.

    Args:
        gamma: How little pixels count that are right, 0 or more; 0 is plain cross-entropy.
        weight: See `_Weighted`.
        ignore_index: See `_Weighted`.
    """

    def __init__(
        self, gamma: NotNegative = 2.0, weight: Tensor | None = None, ignore_index: Literal[255] = IGNORE_INDEX
    ) -> None:
        super().__init__(weight, ignore_index)
        self.gamma = gamma

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Loss of a batch."""
        costs, weights = self._costs(logits, mask)
        # 1 - p, with all its digits where p is next to 1, but not 0, where a power below 1 has no gradient
        wrong = -torch.expm1(-costs).clamp_max(-1e-12)
        return _mean(wrong**self.gamma * costs, weights)


class OHEM(_Weighted):
    """Cross-entropy over the pixels that are hard: online hard example mining.

    Hard are the pixels whose class has a probability below ``threshold``, and in any case the share ``least`` of all
    labelled ones that cost most (Shrivastava et al. 2016 for boxes; for pixels Wu et al. 2016, who call it online
    bootstrapping and take a fixed number). The mean over them, weighted as in torch's cross-entropy.

    Args:
        threshold: Probability of its class from which on a pixel is easy, 0 to 1.
        least: Share of the labelled pixels of a batch that count at least, 0 to 1.
        weight: See `_Weighted`.
        ignore_index: See `_Weighted`.
    """

    def __init__(
        self,
        threshold: Fraction = 0.7,
        least: Fraction = 0.1,
        weight: Tensor | None = None,
        ignore_index: Literal[255] = IGNORE_INDEX,
    ) -> None:
        super().__init__(weight, ignore_index)
        require(threshold + least > 0, "model.loss: with threshold=0 and least=0 no pixel counts; raise one of them")
        self.threshold = threshold
        self.least = least

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Loss of a batch."""
        costs, weights = self._costs(logits, mask)
        hard = int((torch.exp(-costs.detach()) < self.threshold).sum())
        costs, which = costs.topk(max(hard, math.ceil(self.least * len(costs))))
        return _mean(costs, weights[which])


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean; 0, with a gradient, of nothing."""
    return (values * weights).sum() / weights.sum().clamp_min(torch.finfo(weights.dtype).tiny)


class Sum(nn.Module):
    """A weighted sum of losses, such as half of cross-entropy and half of `Dice`.

    Args:
        parts: The losses, by names of one's choice.
        factors: Of each; 1 where there is none.

    Raises:
        UserError: There is no part, or a factor of none.
    """

    def __init__(self, parts: Mapping[str, nn.Module], factors: Mapping[str, NotNegative] | None = None) -> None:
        super().__init__()
        self.factors = dict(factors or {})
        require(len(parts) > 0, "model.loss.parts: give at least one loss by a name of your own")
        strange = ", ".join(set(self.factors) - set(parts))
        require(not strange, f"model.loss.factors: no part is called {strange}; they are {', '.join(parts)}")
        self.parts = nn.ModuleDict(parts)

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Loss of a batch."""
        return torch.stack(
            [self.factors.get(name, 1.0) * part(logits, mask) for name, part in self.parts.items()]
        ).sum()


def weigh_classes(loss: nn.Module, weights: Sequence[float] | None, classes: int) -> None:
    """Give a loss the weights of the classes, and check those that it has.

    Args:
        loss: The loss; see `weighted_parts`.
        weights: One factor a class, in the order of the labels; None leaves the loss as it is.
        classes: How many there are.

    Raises:
        UserError: The loss takes none, it has some of its own, or they are for other classes.
    """
    parts = weighted_parts(loss)
    if weights is not None:
        require(
            len(parts) > 0,
            f"data.class_weights: {type(loss).__name__} takes none; choose another loss, such as loss=cross_entropy, "
            "or data.class_weights=null",
        )
        require(
            all(part.weight is None for part in parts),
            "data.class_weights: model.loss has a weight of its own; set one of the two to null",
        )
        for part in parts:
            part.weight = torch.tensor(weights, dtype=torch.float32)
    key = "model.loss: weight" if weights is None else "data.class_weights"
    for found in (part.weight for part in parts):
        require(
            found is None or (isinstance(found, Tensor) and found.shape == (classes,)),
            f"{key} has {getattr(found, 'numel', lambda: 0)()} numbers; the data have {classes} classes",
        )


def weighted_parts(loss: nn.Module) -> list[nn.Module]:
    """The loss or its parts that take weights of classes, as torch's do: with a ``weight`` that is no parameter."""
    return [part for part in loss.modules() if hasattr(part, "weight") and not isinstance(part.weight, nn.Parameter)]
