"""Means over scales and mirror images, against nets made by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from segmod.ground.errors import UserError
from segmod.ground.types import Batch
from segmod.inference.dense import DensePredictor
from segmod.inference.multiscale import MultiScalePredictor


class WidthCounts(nn.Module):
    """Odds (width of the input) : 1 for class 0, everywhere."""

    num_classes = 2

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, int]] = []

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        self.seen.append((height, width))
        ones = torch.ones(len(image), height, width)
        return torch.stack([torch.log(width * ones), 0 * ones], dim=1)


class LeftColumn(nn.Module):
    """Votes 3 : 1 for class 0 in the left-most column, 1 : 1 elsewhere, whatever the image shows."""

    num_classes = 2

    def forward(self, image: Tensor) -> Tensor:
        logits = torch.zeros(len(image), 2, *image.shape[-2:])
        logits[:, 0, :, 0] = torch.log(torch.tensor(3.0))
        return logits


def batch_of(image: Tensor) -> Batch:
    mask = torch.full((image.shape[0], *image.shape[-2:]), 255)
    return {"image": image, "mask": mask, "name": ["x"] * len(image), "index": torch.arange(len(image))}


def test_mean_of_probabilities_over_scales() -> None:
    net = WidthCounts()
    scores = MultiScalePredictor(scales=[0.5, 1.0, 1.5], flip=False)(net, batch_of(torch.zeros(1, 3, 4, 6)))
    assert net.seen == [(2, 3), (4, 6), (6, 9)]
    expected = (3 / 4 + 6 / 7 + 9 / 10) / 3
    torch.testing.assert_close(scores[0, 0], torch.full((4, 6), expected))


def test_scales_multiply_the_squash_size() -> None:
    net = WidthCounts()
    scores = MultiScalePredictor(scales=[1.0, 2.0], flip=True, size=5)(net, batch_of(torch.zeros(1, 3, 4, 6)))
    assert sorted(net.seen) == [(5, 5), (5, 5), (10, 10), (10, 10)]
    assert scores.shape == (1, 2, 4, 6)


def test_mirrored_scores_are_mirrored_back() -> None:
    scores = MultiScalePredictor(scales=[1.0], flip=True)(LeftColumn(), batch_of(torch.zeros(1, 3, 2, 4)))
    # unmirrored .75 in the left column, mirrored .75 in the right one, .5 elsewhere; their mean
    torch.testing.assert_close(scores[0, 0, 0], torch.tensor([0.625, 0.5, 0.5, 0.625]))


def test_one_scale_without_mirror_is_the_dense_predictor() -> None:
    torch.manual_seed(0)
    net, batch = nn.Conv2d(3, 4, 3, padding=1), batch_of(torch.randn(2, 3, 9, 7))
    for size in (None, 6):
        torch.testing.assert_close(
            MultiScalePredictor([1.0], False, size)(net, batch), DensePredictor(size)(net, batch)
        )


@pytest.mark.parametrize("scales", [[], [0.0, 1.0], [-1.0]])
def test_impossible_scales_name_the_key(scales: list[float]) -> None:
    with pytest.raises(UserError, match=r"inference\.scales"):
        MultiScalePredictor(scales)
