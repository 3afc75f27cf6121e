"""Scoring an image by several systems at once."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from segmod.ground.errors import UserError
from segmod.ground.types import Batch, Predictor
from segmod.inference.proposals import probabilities_of


@runtime_checkable
class LogitsPredictor(Predictor, Protocol):
    """A predictor that can also tell what it has before the softmax."""

    def logits(self, net: nn.Module, batch: Batch) -> Tensor:
        """Raw scores, float32 (B, K, H, W)."""
        ...


class EnsemblePredictor:
    """Mean of the class probabilities of several predictors (Noh, Hong, Han 2015, sec. 5.3: EDeconvNet).

    Differs from the paper: the option ``score_product`` is what the released script does in place of the mean. It
    multiplies the raw scores of the first member by those of the others, negative ones counting as 0, and takes the
    softmax of the product; where all are 0 the pixel is background.

    Args:
        combine: ``mean`` or ``score_product``.
        members: Predictors by name; those of other runs bring a net of their own (`TrainedPredictor`).

    Raises:
        UserError: There is no member, something else than a predictor, or one without raw scores for the product.
    """

    def __init__(self, combine: str = "mean", **members: Predictor) -> None:
        if combine not in ("mean", "score_product"):
            raise UserError(f"inference.combine={combine}: choose mean or score_product")
        if not members:
            raise UserError("inference: an ensemble needs at least one member, each a predictor under its own key")
        for name, member in members.items():
            if not callable(member):
                raise UserError(f"inference.{name}={member}: not a predictor; a run goes to inference.{name}.run")
            if combine == "score_product" and not isinstance(member, LogitsPredictor):
                raise UserError(
                    f"inference.combine=score_product needs raw scores, which {type(member).__name__} of "
                    f"inference.{name} does not have: choose mean, or a member scored densely or by proposals"
                )
        self.combine = combine
        self.members = members

    def __call__(self, net: nn.Module, batch: Batch) -> Tensor:
        """Class probabilities, float32 (B, K, H, W), of ``batch['image']`` (B, 3, H, W).

        Raises:
            UserError: The members do not have the same number of classes.
        """
        product = self.combine == "score_product"
        total: Tensor | None = None
        for name, member in self.members.items():
            if product and isinstance(member, LogitsPredictor):
                scores = member.logits(net, batch)
            else:
                scores = member(net, batch)
            if total is None:
                total = scores
                continue
            if scores.shape != total.shape:
                raise UserError(
                    f"inference.{name} has {scores.shape[1]} classes, the members before it have {total.shape[1]}: "
                    "give runs with the same classes"
                )
            total = total * scores.relu() if product else total + scores
        assert total is not None
        return probabilities_of(total) if product else total / len(self.members)


class TrainedPredictor:
    """A predictor with a net of its own, from another run: it leaves aside the net that it is given.

    The net is kept in evaluation mode and follows the image to its device; it is no part of another module's state.

    Args:
        net: The other run's net.
        predictor: How that run scores an image.
    """

    def __init__(self, net: nn.Module, predictor: Predictor) -> None:
        self.net = net.eval()
        self.predictor = predictor

    def __call__(self, net: nn.Module, batch: Batch) -> Tensor:
        """Class probabilities of the other run's net, float32 (B, K, H, W)."""
        return self.predictor(self._on(batch["image"].device), batch)

    def logits(self, net: nn.Module, batch: Batch) -> Tensor:
        """Raw scores of the other run's net, float32 (B, K, H, W).

        Raises:
            UserError: That run is scored in a way that has none.
        """
        if not isinstance(self.predictor, LogitsPredictor):
            raise UserError(
                f"inference.combine=score_product needs raw scores, which {type(self.predictor).__name__} of the "
                "other run does not have: choose combine=mean"
            )
        return self.predictor.logits(self._on(batch["image"].device), batch)

    def _on(self, device: torch.device) -> nn.Module:
        if next(self.net.parameters()).device != device:
            self.net.to(device)
        return self.net
