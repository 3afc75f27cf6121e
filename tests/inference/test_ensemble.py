"""Means and products of members, against numbers worked out by hand; members with nets of their own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from segmod.ground.errors import UserError
from segmod.ground.types import Batch
from segmod.inference.dense import DensePredictor
from segmod.inference.ensemble import EnsemblePredictor, TrainedPredictor
from segmod.inference.multiscale import MultiScalePredictor
from segmod.nets.normalise import Normalise


class Fixed(nn.Module):
    """The same logits at every pixel."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.num_classes = len(logits)
        self.logits = nn.Parameter(torch.tensor(logits))
        self.seen = torch.empty(0)

    def forward(self, image: Tensor) -> Tensor:
        self.seen = image
        return self.logits.view(1, -1, 1, 1).expand(len(image), -1, *image.shape[-2:])


def batch_of(picture: Any = None) -> Batch:
    picture = np.zeros((2, 3, 3), np.uint8) if picture is None else picture
    image = torch.from_numpy(picture).permute(2, 0, 1)[None]
    mask = torch.full((1, *image.shape[-2:]), 255, dtype=torch.uint8)
    return {"image": image, "mask": mask, "name": ["x"], "index": torch.arange(1)}


def log(*odds: float) -> list[float]:
    return torch.tensor(odds).log().tolist()


def test_mean_of_probabilities() -> None:
    other = TrainedPredictor(Fixed(*log(1, 3)), DensePredictor())
    scores = EnsemblePredictor(own=DensePredictor(), fcn=other)(Fixed(*log(4, 1)), batch_of())
    # (4/5 + 1/4) / 2, and not the softmax of the mean logits, which would be (4 * 1) ** .5 : (1 * 3) ** .5
    torch.testing.assert_close(scores[0, 0], torch.full((2, 3), 0.525))
    torch.testing.assert_close(scores[0, 1], torch.full((2, 3), 0.475))


def test_three_members_count_alike() -> None:
    members = {f"m{odds}": TrainedPredictor(Fixed(*log(odds, 1)), DensePredictor()) for odds in (1, 3, 9)}
    scores = EnsemblePredictor(**members)(Fixed(0.0, 0.0), batch_of())
    torch.testing.assert_close(scores[0, 0], torch.full((2, 3), (1 / 2 + 3 / 4 + 9 / 10) / 3))


def test_product_of_scores() -> None:
    # own 2, 3, 1 times max(0, -4), max(0, 0.5), max(0, 1): 0, 1.5, 1
    other = TrainedPredictor(Fixed(-4.0, 0.5, 1.0), DensePredictor())
    scores = EnsemblePredictor("score_product", own=DensePredictor(), fcn=other)(Fixed(2.0, 3.0, 1.0), batch_of())
    torch.testing.assert_close(scores[0, :, 0, 0], torch.tensor([0.0, 1.5, 1.0]).softmax(0), atol=1e-6, rtol=0)


def test_product_without_any_score_is_background() -> None:
    other = TrainedPredictor(Fixed(-4.0, -0.5, -1.0), DensePredictor())
    scores = EnsemblePredictor("score_product", own=DensePredictor(), fcn=other)(Fixed(2.0, 3.0, 9.0), batch_of())
    assert (scores[:, 0] > scores[:, 1:].amax(1)).all()
    torch.testing.assert_close(scores, torch.full((1, 3, 2, 3), 1 / 3))


def test_members_normalise_the_same_photograph_each_in_its_own_way() -> None:
    class Mean(nn.Module):
        """Two logits: the mean of the normalised image's first channel, and 0."""

        def __init__(self, kind: str) -> None:
            super().__init__()
            self.num_classes = 2
            self.normalise = Normalise(kind)
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, image: Tensor) -> Tensor:
            first = self.normalise(image)[:, :1] * self.weight
            return torch.cat([first, torch.zeros_like(first)], 1)

    picture = np.full((2, 3, 3), (128, 90, 107), np.uint8)
    # imagenet: red, (128 / 255 - 0.485) / 0.229 = 0.0741; caffe: blue, 107 - 104.00699 = 2.99301
    expected = (torch.tensor([0.0741, 2.99301]).sigmoid()).mean()
    caffe = TrainedPredictor(Mean("caffe"), DensePredictor())
    scores = EnsemblePredictor(own=DensePredictor(), fcn=caffe)(Mean("imagenet"), batch_of(picture))
    torch.testing.assert_close(scores[0, 0], expected.expand(2, 3), atol=1e-4, rtol=0)


def test_a_member_has_a_net_of_its_own_in_evaluation_mode() -> None:
    own = nn.Sequential(Normalise(), nn.Conv2d(3, 2, 1), nn.Dropout(0.5)).train()
    predictor = TrainedPredictor(own, DensePredictor())
    assert not own.training
    assert not isinstance(predictor, nn.Module)
    holder = nn.Module()
    holder.predictor = EnsemblePredictor(fcn=predictor)  # type: ignore[assignment]
    assert not holder.state_dict()
    torch.testing.assert_close(predictor(nn.Identity(), batch_of()), predictor(nn.Identity(), batch_of()))


def test_other_classes_are_told() -> None:
    other = TrainedPredictor(Fixed(0.0, 1.0, 2.0), DensePredictor())
    with pytest.raises(UserError, match=r"inference\.fcn has 3 classes, the members before it have 2"):
        EnsemblePredictor(own=DensePredictor(), fcn=other)(Fixed(0.0, 1.0), batch_of())


def test_mistakes_name_the_key() -> None:
    with pytest.raises(UserError, match=r"inference\.combine=max"):
        EnsemblePredictor("max", own=DensePredictor())
    with pytest.raises(UserError, match="at least one member"):
        EnsemblePredictor()
    with pytest.raises(UserError, match=r"inference\.fcn=fcn8s: .*inference\.fcn\.run"):
        EnsemblePredictor(own=DensePredictor(), fcn="fcn8s")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"MultiScalePredictor of inference\.own"):
        EnsemblePredictor("score_product", own=MultiScalePredictor())
    other = TrainedPredictor(Fixed(0.0, 1.0), MultiScalePredictor())
    with pytest.raises(UserError, match="MultiScalePredictor of the other run"):
        EnsemblePredictor("score_product", own=DensePredictor(), fcn=other)(Fixed(0.0, 1.0), batch_of())
