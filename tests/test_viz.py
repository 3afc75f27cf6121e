"""Pictures: exact for masks, and for charts what a reader must find in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segmod import charts, viz
from segmod.ground.palettes import VOC_CLASSES


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        picture.load()
        return picture.size


def test_palette_is_vocs() -> None:
    # label 15 = 0b001111: R gets bits 0 and 3 (128 + 64), G bit 1 (128), B bit 2 (128), as VOC prints for "person"
    expected = {
        0: (0, 0, 0),
        1: (128, 0, 0),
        8: (64, 0, 0),
        15: (192, 128, 128),
        20: (0, 64, 128),
        255: (224, 224, 192),
    }
    for label, colour in expected.items():
        assert tuple(viz.VOC_PALETTE[label]) == colour
    assert len({tuple(c) for c in viz.VOC_PALETTE}) == 256


def test_colour_mask_takes_arrays_and_tensors() -> None:
    mask = np.array([[0, 1], [15, 255]])
    painted = [[(0, 0, 0), (128, 0, 0)], [(192, 128, 128), (224, 224, 192)]]
    np.testing.assert_array_equal(viz.colour_mask(mask), painted)
    np.testing.assert_array_equal(viz.colour_mask(torch.tensor(mask)), painted)


def test_palette_png_round_trip(tmp_path: Path) -> None:
    mask = torch.randint(0, 21, (7, 5), generator=torch.Generator().manual_seed(0))
    mask[0, 0] = 255
    viz.save_palette_png(mask, tmp_path / "new" / "mask.png")
    with Image.open(tmp_path / "new" / "mask.png") as png:
        assert png.mode == "P"
        np.testing.assert_array_equal(np.array(png), mask.numpy())
        np.testing.assert_array_equal(np.array(png.convert("RGB")), viz.colour_mask(mask))


def test_overlay_blends_objects_and_leaves_background() -> None:
    image = np.full((9, 12, 3), 100, np.uint8)
    mask = np.zeros((9, 12), np.int64)
    mask[:, 4:8], mask[:, 8:] = 1, 255
    blended = viz.overlay(image, mask, alpha=0.25)
    # .75 * 100 + .25 * (128, 0, 0) and .75 * 100 + .25 * (224, 224, 192)
    inside = [(100, 100, 100), (107, 75, 75), (131, 131, 123)]
    np.testing.assert_array_equal(blended[4, [1, 5, 10]], inside)
    np.testing.assert_array_equal(image, 100)


def test_borders_are_white_and_black_on_any_photograph() -> None:
    for level in (0, 255):
        image = np.full((9, 9, 3), level, np.uint8)
        mask = np.zeros((9, 9), np.int64)
        mask[3:6, 3:6] = 1
        drawn = viz.overlay(image, mask)
        assert drawn[4, 2].tolist() == drawn[2, 4].tolist() == [255] * 3  # last pixels before the object
        assert drawn[4, 3].tolist() == drawn[3, 4].tolist() == [0] * 3  # its first
        assert drawn[4, 5].tolist() == drawn[5, 4].tolist() == [255] * 3
        assert drawn[4, 6].tolist() == drawn[6, 4].tolist() == [0] * 3
        np.testing.assert_array_equal(drawn[0], image[0])


def test_panel_shows_truth_and_prediction_alike_and_their_classes() -> None:
    image = np.full((60, 90, 3), 200, np.uint8)
    truth, prediction = np.zeros((60, 90), np.int64), np.zeros((60, 90), np.int64)
    truth[:30] = 8  # cat, (64, 0, 0)
    prediction[:30] = 12  # dog, (64, 0, 128)
    truth[30:33] = 255
    truth[59, :8] = 15  # 8 of 5400 pixels: not worth a name
    drawn = viz.panel(image, truth, prediction, VOC_CLASSES)
    assert drawn.dtype == np.uint8

    def count(colour: tuple[int, int, int]) -> int:
        return int((drawn == colour).all(-1).sum())

    # .4 * 200 + .6 * (64, 0, 0) and so on: half of each picture of 340 x 227
    for blend in ((118, 80, 80), (118, 80, 157)):
        assert count(blend) == pytest.approx(340 * 227 / 2, rel=0.05)
    for colour in ((64, 0, 0), (64, 0, 128), (224, 224, 192)):  # the squares of the legend
        assert 100 < count(colour) < 200
    assert count((192, 128, 128)) == 0
    without = viz.panel(image, None, prediction, VOC_CLASSES)
    assert without.shape[1] < 0.75 * drawn.shape[1]
    assert not (without == (118, 80, 80)).all(-1).any()


def test_panel_of_a_class_without_a_name() -> None:
    drawn = viz.panel(np.zeros((8, 8, 3), np.uint8), None, np.full((8, 8), 30), ["background"])
    assert drawn.ndim == 3


@pytest.mark.parametrize("count", [2, 21])
def test_confusion_picture_draws_rows_as_percentages(tmp_path: Path, count: int) -> None:
    confusion = torch.zeros(count, count, dtype=torch.int64)
    confusion[0, 0] = 1000  # everything right: darkest blue; the other rows have no truth and stay grey
    charts.confusion_picture(confusion, VOC_CLASSES[:count], tmp_path / "confusion.png")
    with Image.open(tmp_path / "confusion.png") as png:
        pixels = np.array(png.convert("RGB"))
    darkest, blank = (8, 48, 107), (237, 237, 237)  # ends of matplotlib's Blues, grey .93
    cell = int((pixels == darkest).all(-1).sum())
    grey = int((pixels == blank).all(-1).sum())
    assert cell > 200
    assert grey > (count - 1) * count * cell * 0.3


def test_taller_charts_for_more_classes(tmp_path: Path) -> None:
    charts.iou_chart([0.5, None, 0.0], VOC_CLASSES[:3], tmp_path / "a.png", "three")
    charts.iou_chart([0.5] * 21, VOC_CLASSES, tmp_path / "b.png", "all")
    charts.iou_chart([None, None], VOC_CLASSES[:2], tmp_path / "c.png")
    assert size_of(tmp_path / "b.png")[1] > size_of(tmp_path / "a.png")[1] > 100
    assert size_of(tmp_path / "c.png")[1] > 100


def test_bar_chart_draws_bars_in_proportion_and_gaps(tmp_path: Path) -> None:
    def bars(values: list[float | None]) -> np.ndarray:
        charts.bar_chart(["a", "b", "c"], {"ours": values}, tmp_path / "bars.png", "title", "mIoU (%)")
        with Image.open(tmp_path / "bars.png") as png:
            blue = (np.array(png.convert("RGB")) == (0, 114, 178)).all(-1)
        columns = np.flatnonzero(blue.any(0))
        groups = np.split(columns, np.flatnonzero(np.diff(columns) > 10) + 1)
        return np.array([blue[:, group].sum(0).max() for group in groups])

    heights = bars([10.0, 20.0, 40.0])
    np.testing.assert_allclose(heights / heights[-1], [0.25, 0.5, 1.0], atol=0.02)
    assert len(bars([10.0, None, 40.0])) == 2


def test_error_bars_stand_where_there_is_an_error(tmp_path: Path) -> None:
    """20 +- 10: the line covers the upper half of that bar's middle, and nothing of the other bar."""
    path = tmp_path / "bars.png"
    charts.bar_chart(["a", "b"], {"ours": [20.0, 20.0]}, path, "title", "mIoU (%)", {"ours": [None, 10.0]})
    with Image.open(path) as png:
        blue = (np.array(png.convert("RGB")) == (0, 114, 178)).all(-1)
    columns = np.flatnonzero(blue.any(0))
    groups = np.split(columns, np.flatnonzero(np.diff(columns) > 10) + 1)
    shares = [blue[:, group[3:-3]].sum(0).min() / blue[:, group].sum(0).max() for group in groups]
    assert shares == pytest.approx([1.0, 0.5], abs=0.05)


def test_line_chart_rises_and_leaves_gaps(tmp_path: Path) -> None:
    def groups(x: list[float], values: list[float | None]) -> tuple[list[int], list[int]]:
        """Middle column and mean row of each connected stretch of the line."""
        charts.line_chart(x, {"recall": values}, tmp_path / "lines.png", "title", "boxes", "recall")
        with Image.open(tmp_path / "lines.png") as png:
            blue = (np.array(png.convert("RGB")) == (0, 114, 178)).all(-1)
        columns = np.flatnonzero(blue.any(0))
        parts = np.split(columns, np.flatnonzero(np.diff(columns) > 10) + 1)
        return [int(part.mean()) for part in parts], [int(np.argwhere(blue[:, part])[:, 0].mean()) for part in parts]

    assert len(groups([1, 2, 3, 4], [0.1, 0.2, 0.3, 0.4])[0]) == 1
    _, rows = groups([1, 2, 3, 4, 5], [0.1, 0.2, None, 0.4, 0.5])
    assert len(rows) == 2
    assert rows[0] > rows[1]
    # lone points: equal steps of the logarithm over decades, in proportion otherwise
    columns, _ = groups([10, 20, 100, 200, 1000], [0.1, None, 0.2, None, 0.3])
    assert columns[1] - columns[0] == pytest.approx(columns[2] - columns[1], abs=2)
    columns, _ = groups([10, 20, 30, 35, 40], [0.1, None, 0.2, None, 0.3])
    assert columns[1] - columns[0] == pytest.approx(2 * (columns[2] - columns[1]), abs=2)


def test_charts_survive_odd_input(tmp_path: Path) -> None:
    charts.line_chart([], {}, tmp_path / "none.png", "nothing yet", "boxes", "recall")
    charts.bar_chart([], {}, tmp_path / "empty.png", "nothing yet", "mIoU (%)")
    charts.bar_chart(
        ["a row with a very long name"] * 9, {"x": [None] * 9, "y": [1.0] * 9}, tmp_path / "long.png", "t", "y"
    )
    for name in ("empty", "long"):
        assert size_of(tmp_path / f"{name}.png")[0] > 300
