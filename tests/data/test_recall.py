"""Recall of boxes whose overlaps are known by hand."""

import numpy as np
import pytest

from segmod.data.instances import Instance
from segmod.data.recall import COUNTS, average_recall, best_overlaps, recall_at


def scored(*boxes: tuple[float, float, float, float]) -> np.ndarray:
    return np.array([[*box, 1 - i / 10] for i, box in enumerate(boxes)], dtype=np.float32).reshape(-1, 5)


def test_the_best_of_the_first_boxes_counts() -> None:
    objects = [Instance((0, 0, 10, 10), 3, 1), Instance((20, 20, 30, 40), 5, 2)]
    boxes = scored((0, 0, 10, 5), (20, 20, 30, 30), (0, 0, 10, 8), (50, 50, 60, 60))
    # Object 1: 50 of 100 at once, 80 of 100 with the third. Object 2: nothing, then 100 of 200.
    expected = [[0.5, 0.5, 0.8, 0.8], [0, 0.5, 0.5, 0.5]]
    np.testing.assert_allclose(best_overlaps(boxes, objects, counts=(1, 2, 3, 9)), expected, rtol=1e-6)


def test_images_without_boxes_or_objects() -> None:
    objects = [Instance((0, 0, 10, 10), 3, 1)]
    np.testing.assert_array_equal(best_overlaps(scored(), objects), np.zeros((1, len(COUNTS))))
    assert best_overlaps(scored((0, 0, 5, 5)), []).shape == (0, len(COUNTS))


def test_recall_is_the_fraction_found() -> None:
    best = np.array([[0.2, 0.5], [0.0, 0.69], [0.6, 0.7], [0.5, 1.0]], dtype=np.float32)
    assert recall_at(best, 0.5).tolist() == [0.5, 1.0]
    assert recall_at(best, 0.7).tolist() == [0.0, 0.5]


def test_average_recall_is_over_ten_thresholds() -> None:
    # 0.72 passes 0.5, 0.55, 0.6, 0.65, 0.7; 0.52 passes 0.5 alone; 1 passes all ten.
    best = np.array([[0.72], [0.52], [1.0], [0.1]], dtype=np.float32)
    assert average_recall(best)[0] == pytest.approx((5 + 1 + 10) / 40)
