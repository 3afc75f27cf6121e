import cv2
import numpy as np
import pytest

from segmod.data.base import Split
from segmod.data.synthetic import SyntheticScenes
from segmod.data.transforms import EvalTransform
from segmod.ground.types import IGNORE_INDEX

PLAIN = EvalTransform()


def scenes(split="train", count=5, void_as_background=False, **keys) -> Split:
    data = SyntheticScenes(train_images=count, val_images=count, **keys)
    return Split(data, split, PLAIN, void_as_background=void_as_background)


def test_scenes_depend_on_seed_split_and_index_alone():
    first = scenes("train", 5)
    image, mask = first.read(3)
    again, again_mask = scenes("train", 9).read(3)
    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(mask, again_mask)
    for other in (
        first.read(2),
        scenes("val", 5).read(3),
        scenes("train", 5, scene_seed=1).read(3),
    ):
        assert (other[0] != image).mean() > 0.5


@pytest.mark.parametrize("num_classes", [2, 5, 21])
def test_every_class_appears_and_no_other(num_classes):
    split = scenes("val", num_classes - 1, num_classes=num_classes)
    seen = {int(label) for index in range(len(split)) for label in np.unique(split.read(index)[1])}
    assert seen == {*range(num_classes), IGNORE_INDEX}


def test_void_lies_where_objects_end():
    for index in range(10):
        mask = scenes("train", 10).read(index)[1]
        void = mask == IGNORE_INDEX
        assert 0.005 < void.mean() < 0.15
        # No two labels touch: whatever differs from its neighbour is next to void. Checked by growing each label by
        # one pixel, which must not reach another label.
        for label in np.unique(mask[~void]):
            grown = cv2.dilate((mask == label).astype(np.uint8), np.ones((1, 2), np.uint8)).astype(bool)
            grown |= cv2.dilate((mask == label).astype(np.uint8), np.ones((2, 1), np.uint8)).astype(bool)
            assert (mask[grown] == label).sum() + void[grown].sum() == grown.sum()


def test_void_borders_are_one_or_two_pixels_wide():
    # In a band one or two pixels wide every pixel touches one that is not void; only in narrow gaps, as between legs,
    # two bands meet.
    touching = []
    for index in range(20):
        mask = scenes("train", 20).read(index)[1]
        void = (mask == IGNORE_INDEX).astype(np.uint8)
        inner = cv2.erode(void, np.ones((3, 3), np.uint8), borderValue=1)
        touching.append(1 - inner.sum() / void.sum())
    assert min(touching) > 0.9


def test_size_and_dtype():
    image, mask = scenes("train", 1, size=(48, 80)).read(0)
    assert image.shape == (48, 80, 3)
    assert mask.shape == (48, 80)
    assert image.dtype == mask.dtype == np.uint8


def test_void_as_background_leaves_no_void():
    sample = scenes("train", 1, void_as_background=True)[0]
    plain = scenes("train", 1)[0]
    assert (plain["mask"] == IGNORE_INDEX).any()
    assert (sample["mask"][plain["mask"] == IGNORE_INDEX] == 0).all()


def test_indices_outside_raise_so_that_iteration_ends():
    assert len(list(scenes("train", 3))) == 3
