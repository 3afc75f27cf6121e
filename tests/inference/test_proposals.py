"""Aggregation of proposals, against canvases worked out by hand and a reference in OpenCV that keeps every map."""

from __future__ import annotations

import logging
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from segmod.ground.errors import UserError
from segmod.ground.types import Batch
from segmod.inference.proposals import ProposalPredictor
from segmod.nets.normalise import Normalise


class Boxes:
    """A source that knows its boxes: (x1, y1, x2, y2, score) each."""

    def __init__(self, *boxes: tuple[float, ...]) -> None:
        self.boxes = np.array(boxes, np.float32).reshape(-1, 5)
        self.seen: list[tuple[str, NDArray[np.uint8], NDArray[np.uint8] | None]] = []

    def __call__(
        self, name: str, image: NDArray[np.uint8], mask: NDArray[np.uint8] | None = None
    ) -> NDArray[np.float32]:
        self.seen.append((name, image, mask))
        return self.boxes


class Scripted(nn.Module):
    """Gives the i-th crop it is shown the i-th row of scores, all over."""

    def __init__(self, rows: list[list[float]], dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.num_classes = len(rows[0])
        self.rows = torch.tensor(rows, dtype=dtype)
        self.crops: list[Tensor] = []
        self.batches: list[int] = []

    def forward(self, image: Tensor) -> Tensor:
        rows = self.rows[len(self.crops) : len(self.crops) + len(image)]
        self.crops += list(image)
        self.batches.append(len(image))
        return rows[:, :, None, None].expand(-1, -1, *image.shape[-2:])


def batch_of(*pictures: NDArray[np.uint8]) -> Batch:
    image = torch.stack([torch.from_numpy(picture).permute(2, 0, 1) for picture in pictures])
    mask = torch.full((len(image), *image.shape[-2:]), 255, dtype=torch.uint8)
    return {"image": image, "mask": mask, "name": [f"x{i}" for i in range(len(image))], "index": torch.arange(1)}


def black(height: int, width: int) -> NDArray[np.uint8]:
    return np.zeros((height, width, 3), np.uint8)


def scene(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def predictor(source: Boxes, **keys: Any) -> ProposalPredictor:
    given: dict[str, Any] = {"min_side": 0, "extend": 1.0, "size": 4} | keys
    return ProposalPredictor(source, **given)


# columns 0 to 2 in the first box, 2 to 4 in the second, 2 in the third, 5 in none
THREE = [(0, 0, 3, 2, 0.9), (2, 0, 5, 2, 0.8), (2, 0, 3, 2, 0.7)]
ROWS = [[1.0, 2.0, -1.0], [0.0, 1.0, 3.0], [-5.0, 4.0, -2.0]]
# max: the canvas starts at 0, so the -1 does not show; column 2 has the largest of three
MAX = [[1, 2, 0], [1, 2, 0], [1, 4, 3], [0, 1, 3], [0, 1, 3], [0, 0, 0]]
# sum: column 2 has 1 + 0 - 5, 2 + 1 + 4, -1 + 3 - 2
SUM = [[1, 2, -1], [1, 2, -1], [-4, 7, 0], [0, 1, 3], [0, 1, 3], [0, 0, 0]]


@pytest.mark.parametrize(
    ("aggregate", "columns", "labels"), [("max", MAX, [1, 1, 1, 2, 2, 0]), ("sum", SUM, [1, 1, 1, 2, 2, 0])]
)
@pytest.mark.parametrize("batch_size", [1, 2, 10])
def test_three_boxes_by_hand(aggregate: str, columns: list[list[int]], labels: list[int], batch_size: int) -> None:
    net = Scripted(ROWS)
    scored = predictor(Boxes(*THREE), aggregate=aggregate, batch_size=batch_size)
    canvas = scored.logits(net, batch_of(black(2, 6)))
    expected = torch.tensor(columns, dtype=torch.float32).T[None, :, None].expand(1, 3, 2, 6)
    torch.testing.assert_close(canvas, expected)
    assert net.batches == {1: [1, 1, 1], 2: [2, 1], 10: [3]}[batch_size]
    net.crops.clear()
    scores = scored(net, batch_of(black(2, 6)))
    torch.testing.assert_close(scores, expected.softmax(1), atol=1e-6, rtol=0)
    assert scores.max(1).indices[0, 0].tolist() == labels


def test_uncovered_pixels_are_background_by_a_hair() -> None:
    scores = predictor(Boxes(*THREE))(Scripted(ROWS), batch_of(black(2, 6)))[0, :, 0, 5]
    # exp(1e-6) / (exp(1e-6) + 2) - 1 / (exp(1e-6) + 2) = 3.3e-7
    assert 1e-7 < scores[0] - scores[1] < 1e-6
    assert scores[1] == scores[2]


def test_best_boxes_count_and_small_ones_do_not() -> None:
    # sides once enlarged by 1.2: 12, 9.6 -> 10 (from 8), 2.4; the second and the last but one are too small
    boxes = [(5, 5, 15, 15, 0.5), (8, 8, 9, 18, 0.9), (4, 4, 12, 12, 0.7), (0, 0, 20, 2, 0.6), (6, 6, 16, 16, 0.1)]
    chosen = predictor(Boxes(), extend=1.2, min_side=10, max_proposals=2).select(np.array(boxes, np.float32), 20, 20)
    # centre 8, sides 9.6: 3.2 to 12.8; centre 10, sides 12
    assert chosen.tolist() == [[3, 3, 13, 13], [4, 4, 16, 16]]
    everything = predictor(Boxes(), extend=1.2, min_side=None, max_proposals=None)
    assert len(everything.select(np.array(boxes, np.float32), 20, 20)) == 5


def test_square_boxes_have_the_longer_side() -> None:
    # centre (10, 5), sides 10 x 4 enlarged to 12 x 4.8, then 12 x 12
    chosen = predictor(Boxes(), extend=1.2, square=True).select(np.array([[5, 3, 15, 7, 1]], np.float32), 30, 30)
    assert chosen.tolist() == [[4, -1, 16, 11]]


def test_boxes_outside_the_image_are_clipped_or_left_out() -> None:
    boxes = np.array(
        [[-5, -5, 10, 10, 1], [25, 0, 40, 10, 1], [8, 8, 8, 12, 1], [12, 4, 9, 8, 1], [np.nan, 0, 9, 9, 1], [1e9] * 5],
        np.float32,
    )
    # the first is clipped to 0..10 and then enlarged by 1 on every side; the second lies outside, the others are none
    assert predictor(Boxes(), extend=1.2).select(boxes, 20, 20).tolist() == [[-1, -1, 11, 11]]


def test_a_crop_beyond_the_image_shows_black() -> None:
    picture = np.full((8, 8, 3), 200, np.uint8)
    net = Scripted([[1.0, 2.0]])
    # sides 4 enlarged to 8 about (2, 4): x from -2 to 6; the crop of 8 pixels is shown to the net as it is
    batch = batch_of(picture)
    canvas = predictor(Boxes((0, 2, 4, 6, 1)), extend=2.0, size=8).logits(net, batch)
    expected = picture.copy()
    expected[:, :2] = 0
    assert torch.equal(net.crops[0], torch.from_numpy(expected).permute(2, 0, 1).float())
    # and its scores lie on the canvas in columns 0 to 5
    assert (canvas[0, 1, :, :6] == 2).all()
    assert (canvas[0, :, :, 6:] == 0).all()


def reference(
    net: nn.Module,
    picture: NDArray[np.uint8],
    boxes: NDArray[np.int64],
    size: int,
    how: str,
) -> NDArray[np.float32]:
    """One crop at a time, resized by OpenCV as the training crops are; every map is kept until the end."""
    height, width = picture.shape[:2]
    around = cv2.copyMakeBorder(picture, height, height, width, width, cv2.BORDER_CONSTANT, value=(0, 0, 0))
    around = around.astype(np.float32)
    maps = []
    for x1, y1, x2, y2 in boxes.tolist():
        crop = cv2.resize(around[y1 + height : y2 + height, x1 + width : x2 + width], (size, size))
        with torch.no_grad():
            scores = net(torch.from_numpy(crop.transpose(2, 0, 1))[None])[0].numpy()
        whole = np.zeros((len(scores), 3 * height, 3 * width), np.float32)
        for k, plane in enumerate(scores):
            whole[k, y1 + height : y2 + height, x1 + width : x2 + width] = cv2.resize(plane, (x2 - x1, y2 - y1))
        maps.append(whole[:, height : 2 * height, width : 2 * width])
    maps.append(np.zeros_like(maps[0]))
    return np.max(maps, axis=0) if how == "max" else np.sum(maps, axis=0)


@pytest.mark.parametrize("how", ["max", "sum"])
@pytest.mark.parametrize("square", [False, True])
def test_equals_single_crops_that_keep_all_maps(how: str, square: bool) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(Normalise(), nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 5, 3, padding=1)).eval()
    net.num_classes = 5  # type: ignore[assignment]
    picture = scene(47, 61)
    random = np.random.default_rng(1)
    corners = random.uniform(0, 1, (17, 2)) * (50, 36)
    corners[0] = 0
    boxes = np.concatenate([corners, corners + random.uniform(12, 30, (17, 2)), random.uniform(0, 1, (17, 1))], 1)
    source = Boxes(*map(tuple, boxes))
    options: dict[str, Any] = {"extend": 1.2, "square": square, "size": 24, "aggregate": how, "min_side": 20}
    options["antialias"] = False  # as OpenCV
    first = predictor(source, batch_size=1, **options)
    chosen = first.select(source.boxes, 47, 61)
    assert chosen.min() < 0
    assert chosen[:, 2].max() > 61
    assert 5 < len(chosen) < 17
    batch = batch_of(picture)
    canvas = first.logits(net, batch)
    expected = reference(net, picture, chosen, 24, how)
    torch.testing.assert_close(canvas[0], torch.from_numpy(expected), atol=1e-5, rtol=1e-5)
    for batch_size in (4, 50):
        other = predictor(source, batch_size=batch_size, **options).logits(net, batch)
        torch.testing.assert_close(other, canvas, atol=1e-5, rtol=1e-5)
    turned = Boxes(*[(*box[:4], 1 - box[4]) for box in boxes])  # the other way round
    other = predictor(turned, batch_size=4, **options).logits(net, batch)
    torch.testing.assert_close(other, canvas, atol=1e-5, rtol=1e-5)


def test_a_crop_that_shrinks_is_antialiased() -> None:
    """Every fourth column white: a quarter of the light; without, what the kernel meets."""
    picture = np.zeros((32, 32, 3), np.uint8)
    picture[:, ::4] = 200
    seen: dict[bool, torch.Tensor] = {}
    for antialias in (True, False):
        net = Scripted([[0.0, 1.0]])
        options: dict[str, Any] = {"extend": 1, "size": 8, "antialias": antialias}
        predictor(Boxes((0, 0, 32, 32, 1)), **options).logits(net, batch_of(picture))
        seen[antialias] = net.crops[0]
    torch.testing.assert_close(seen[True][..., 1:-1], torch.full((3, 8, 6), 50.0), atol=0.5, rtol=0)
    assert (seen[False] == 0).all()  # columns 1 and 2 of each four: none is white


def test_float32_whatever_the_net_answers_and_under_autocast() -> None:
    halves = Scripted([[0.0, 1.0], [0.0, 2.0**-9]], dtype=torch.bfloat16)
    source = Boxes((0, 0, 4, 4, 1), (0, 0, 4, 4, 0.9))
    summed = predictor(source, aggregate="sum").logits(halves, batch_of(black(4, 4)))
    # bfloat16 has 8 bits: there the sum would be 1
    torch.testing.assert_close(summed[0, 1], torch.full((4, 4), 1 + 2.0**-9), rtol=0, atol=0)
    net = nn.Sequential(Normalise(), nn.Conv2d(3, 5, 1))
    net.num_classes = 5  # type: ignore[assignment]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = predictor(source)(net, batch_of(scene(5, 6)))
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores.sum(1), torch.ones(1, 5, 6))


def test_a_net_in_half_precision_is_scored_in_float32() -> None:
    net = nn.Sequential(Normalise(), nn.Conv2d(3, 5, 1)).bfloat16()
    net.num_classes = 5  # type: ignore[assignment]
    batch = batch_of(scene(5, 6))
    assert predictor(Boxes((0, 0, 9, 9, 1)))(net, batch).dtype == torch.float32


def test_the_source_sees_the_picture_and_the_truth_where_there_is_one() -> None:
    pictures = scene(5, 6, 1), scene(5, 6, 2)
    batch = batch_of(*pictures)
    batch["mask"][1, 0, 0] = 3
    source = Boxes((0, 0, 4, 4, 1))
    net = Scripted([[0.0, 1.0], [0.0, 7.0]])
    canvas = predictor(source).logits(net, batch)
    assert [name for name, _, _ in source.seen] == ["x0", "x1"]
    for (_, seen, _), picture in zip(source.seen, pictures, strict=True):
        np.testing.assert_array_equal(seen, picture)
    assert source.seen[0][2] is None
    truth = source.seen[1][2]
    assert truth is not None
    assert (truth.dtype, truth[0, 0], truth[1, 1]) == (np.uint8, 3, 255)
    # each image has its own canvas
    assert canvas[:, 1, 0, 0].tolist() == [1.0, 7.0]


def test_no_gradient_is_kept() -> None:
    net = nn.Conv2d(3, 2, 1)
    net.num_classes = 2  # type: ignore[assignment]
    assert not predictor(Boxes((0, 0, 4, 4, 1)))(net, batch_of(scene(4, 4))).requires_grad


@pytest.mark.parametrize("source", [Boxes(), Boxes((0, 0, 3, 3, 1))])
def test_an_image_without_a_box_is_background_and_told_once(source: Boxes, caplog: pytest.LogCaptureFixture) -> None:
    scored = predictor(source, min_side=5)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            scores = scored(Scripted(ROWS), batch_of(black(4, 4), black(4, 4)))
    assert (scores.max(1).indices == 0).all()
    torch.testing.assert_close(scores, torch.full((2, 3, 4, 4), 1 / 3))
    assert [record.getMessage()[:9] for record in caplog.records] == ["image x0 "]


def test_progressive_takes_the_largest_first() -> None:
    # areas 6, 6 and 2: the first two in their order, then the small one; one that is not there changes nothing
    steps = list(predictor(Boxes(*THREE[::-1])).progressive(Scripted(ROWS), batch_of(black(2, 6)), [1, 2, 3, 9]))
    assert [count for count, _ in steps] == [1, 2, 3, 9]
    labels = [scores.max(1).indices[0, 0].tolist() for _, scores in steps]
    assert labels == [[1, 1, 1, 0, 0, 0], [1, 1, 2, 2, 2, 0], [1, 1, 1, 2, 2, 0], [1, 1, 1, 2, 2, 0]]
    torch.testing.assert_close(
        steps[-1][1][0, :, 0].T, torch.tensor(MAX, dtype=torch.float32).softmax(1), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [("max_proposals", 0), ("min_side", -1), ("extend", 0.5), ("size", 0), ("batch_size", 0), ("aggregate", "mean")],
)
def test_impossible_values_name_the_key(key: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"inference\.{key}={value}"):
        predictor(Boxes(), **{key: value})
