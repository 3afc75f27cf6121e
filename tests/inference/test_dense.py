"""One forward pass, squashed or not, against nets made by hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from segmod.ground.types import Batch
from segmod.inference.dense import DensePredictor


class Logits(nn.Module):
    """Two classes: 0 and the red channel; remembers the shape it saw."""

    num_classes = 2
    seen: tuple[int, ...] = ()

    def forward(self, image: Tensor) -> Tensor:
        self.seen = tuple(image.shape)
        return torch.stack([torch.zeros_like(image[:, 0]), image[:, 0]], dim=1)


class Halves(nn.Module):
    """A net that answers in bfloat16, as under autocast."""

    num_classes = 21

    def forward(self, image: Tensor) -> Tensor:
        return torch.zeros(image.shape[0], 21, *image.shape[-2:], dtype=torch.bfloat16)


def batch_of(image: Tensor) -> Batch:
    mask = torch.full((image.shape[0], *image.shape[-2:]), 255)
    return {"image": image, "mask": mask, "name": ["x"] * len(image), "index": torch.arange(len(image))}


def test_scores_are_the_softmax_at_the_image_size() -> None:
    image = torch.zeros(1, 3, 2, 3)
    image[0, 0, 0, 0] = torch.log(torch.tensor(3.0))  # odds 3 : 1 at one pixel, 1 : 1 elsewhere
    scores = DensePredictor()(Logits(), batch_of(image))
    expected = torch.full((2, 3), 0.5)
    expected[0, 0] = 0.75
    torch.testing.assert_close(scores[0, 1], expected)
    torch.testing.assert_close(scores.sum(1), torch.ones(1, 2, 3))


def test_squash_shows_the_net_a_square_and_comes_back() -> None:
    net = Logits()
    image = torch.zeros(2, 3, 6, 10)
    image[1, 0] = 2.0
    scores = DensePredictor(size=4)(net, batch_of(image))
    assert net.seen == (2, 3, 4, 4)
    assert scores.shape == (2, 2, 6, 10)
    torch.testing.assert_close(scores[0, 1], torch.full((6, 10), 0.5))
    torch.testing.assert_close(scores[1, 1], torch.full((6, 10), float(torch.tensor(2.0).sigmoid())))


def test_squash_interpolates_probabilities() -> None:
    # The net sees 1 x 2: the means of the left and of the right pixel pair. Centres of the four columns lie at
    # -.25, .25, .75, 1.25 of the two, so columns 1 and 2 mix them 3 : 1 and 1 : 3, after the softmax.
    image = torch.zeros(1, 3, 4, 4)
    image[..., 2:] = 4.0
    left, right = 0.5, float(torch.tensor(4.0).sigmoid())
    scores = DensePredictor(size=2)(Logits(), batch_of(image))
    row = torch.tensor([left, 0.75 * left + 0.25 * right, 0.25 * left + 0.75 * right, right])
    torch.testing.assert_close(scores[0, 1, 0], row)


def test_softmax_is_float32_whatever_the_net_answers() -> None:
    scores = DensePredictor()(Halves(), batch_of(torch.zeros(1, 3, 4, 4)))
    assert scores.dtype == torch.float32
    # bfloat16 has 8 bits of mantissa: 1/21 would be off by up to 2e-4 there
    torch.testing.assert_close(scores, torch.full((1, 21, 4, 4), 1 / 21), atol=1e-7, rtol=0)


def test_scores_stay_float32_under_autocast() -> None:
    net = nn.Conv2d(3, 5, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = DensePredictor(size=8)(net, batch_of(torch.randn(1, 3, 5, 7)))
    assert scores.dtype == torch.float32
    assert scores.shape == (1, 5, 5, 7)
    torch.testing.assert_close(scores.sum(1), torch.ones(1, 5, 7))
