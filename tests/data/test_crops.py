from collections.abc import Sequence

import numpy as np
import pytest
import torch

from segmod.data.base import Dataset, Split
from segmod.data.crops import BoxCrops, Boxes, BoxFinder, CropOrder, cut, object_boxes, overlapping
from segmod.data.instances import Instance
from segmod.data.transforms import EvalTransform, TrainTransform
from segmod.ground.palettes import VOC_CLASSES

PLAIN = EvalTransform()


class Pets(Dataset):
    """Scenes of 20 rows and 30 columns, counting how often each is read.

    A cat (class 8, object 1) in rows and columns 4..11 and a dog (12, object 2) in rows 4..11, columns 12..19, which
    touch; a row of void below both. Scene 2 is empty.
    """

    name = "Pets"
    classes = VOC_CLASSES

    def __init__(self, count: int, drawn: bool) -> None:
        self.drawn = drawn
        self.reads = [0] * count

    def names(self, split):
        return [f"scene{i}" for i in range(len(self.reads))]

    def read(self, split, name):
        index = int(name.removeprefix("scene"))
        self.reads[index] += 1
        image = np.full((20, 30, 3), 10 + index, dtype=np.uint8)
        mask = np.zeros((20, 30), dtype=np.uint8)
        if index != 2:
            mask[4:12, 4:12], mask[4:12, 12:20], mask[12, 4:20] = 8, 12, 255
        return image, mask

    def read_objects(self, split, name):
        mask = Pets(len(self.reads), True).read(split, name)[1]
        return np.select([mask == 8, mask == 12, mask == 255], [1, 2, 255]).astype(np.uint8) if self.drawn else None


def pets(count: int = 3, drawn: bool = True, **keys) -> Split:
    return Split(Pets(count, drawn), "train", PLAIN, **keys)


def found(images: Split, **keys) -> Boxes:
    finder = BoxFinder(images, **keys)
    return Boxes.joined([finder[index] for index in range(len(finder))])


# -- boxes -----------------------------------------------------------------------------------------------------------


def test_boxes_of_objects():
    boxes = found(pets(drawn=False))
    assert boxes.image.tolist() == [0, 0, 1, 1]
    assert boxes.box.tolist() == [[4, 4, 12, 12], [12, 4, 20, 12]] * 2
    assert boxes.label.tolist() == [8, 12] * 2


def test_drawn_objects_and_pieces_of_the_mask_are_the_same_here():
    drawn, pieces = found(pets(drawn=True)), found(pets(drawn=False))
    assert drawn.box.tolist() == pieces.box.tolist()
    assert drawn.label.tolist() == pieces.label.tolist()


def test_small_boxes_are_left_out_by_the_shorter_side():
    assert len(found(pets(), min_side=8)) == 4
    assert len(found(pets(), min_side=9)) == 0


def test_proposals_that_overlap_an_object_take_the_class_of_the_one_they_overlap_most():
    # Objects 10 x 10 at (0, 0) and (10, 0). Overlaps by hand:
    # a half of the first: 50 / 100; two fifths: 40 / 100; the second and one column of the first: 100 / 110;
    # both: 100 / 200 of each, where the first comes first; beside both: 0.
    objects = [Instance((0, 0, 10, 10), 8, 1), Instance((10, 0, 20, 10), 12, 2)]
    proposals = np.array([[0, 0, 10, 5], [0, 0, 10, 4], [9, 0, 20, 10], [0, 0, 20, 10], [30, 0, 40, 10]], np.float32)
    boxes = overlapping(5, proposals, objects, 0.5)
    assert boxes.box.tolist() == [[0, 0, 10, 5], [9, 0, 20, 10], [0, 0, 20, 10]]
    assert boxes.label.tolist() == [8, 12, 8]
    assert boxes.image.tolist() == [5, 5, 5]
    assert boxes.number.tolist() == [0, 0, 0]
    assert len(overlapping(5, proposals, objects, 0.95)) == 0


def test_no_proposal_or_no_object_gives_no_box():
    objects = [Instance((0, 0, 10, 10), 8, 1)]
    assert len(overlapping(0, np.empty((0, 4), np.float32), objects, 0.5)) == 0
    assert len(overlapping(0, np.array([[0, 0, 10, 10]], np.float32), [], 0.5)) == 0
    assert object_boxes(0, []).box.shape == (0, 4)


def proposals(name: str, image, mask=None) -> np.ndarray:
    assert name != "scene2", "an image without objects needs no proposals"
    assert image.shape == (20, 30, 3)
    return np.array([[4, 4, 20, 12, 0.9], [0, 0, 30, 20, 0.8]], np.float32)  # IoU 64 / 128 with each object, and less


def test_an_image_of_void_alone_has_no_box(monkeypatch):
    image, void = np.zeros((20, 30, 3), np.uint8), np.full((20, 30), 255, np.uint8)
    one = np.ones_like(void)  # a drawn object of which no pixel has a class
    monkeypatch.setattr(Pets, "read", lambda self, split, name: (image, void))
    monkeypatch.setattr(Pets, "read_objects", lambda self, split, name: one if self.drawn else None)

    def never(name: str, image, mask=None):
        raise AssertionError("nothing here that a proposal could overlap")

    for drawn in (True, False):
        assert len(found(pets(drawn=drawn))) == len(found(pets(drawn=drawn), proposals=never)) == 0


@pytest.mark.parametrize(("include", "count"), [(True, 3), (False, 1)])
def test_proposals_with_and_without_the_objects_own_boxes(include, count):
    boxes = found(pets(), proposals=proposals, include_objects=include)
    assert np.bincount(boxes.image).tolist() == [count, count]
    assert [4, 4, 20, 12] in boxes.box.tolist()


# -- geometry --------------------------------------------------------------------------------------------------------


def test_a_window_shows_the_fill_outside():
    array = np.arange(1, 7).reshape(2, 3)
    np.testing.assert_array_equal(cut(array, (1, 0, 3, 2), 0), [[2, 3], [5, 6]])
    np.testing.assert_array_equal(cut(array, (-1, -1, 2, 1), 9), [[9, 9, 9], [9, 1, 2]])
    np.testing.assert_array_equal(cut(array, (2, 1, 4, 4), 9), [[6, 9], [9, 9], [9, 9]])
    np.testing.assert_array_equal(cut(array, (5, 5, 7, 6), 9), [[9, 9]])  # wholly outside
    assert cut(np.ones((2, 2, 3)), (0, 0, 3, 3), 0).shape == (3, 3, 3)
    assert np.shares_memory(cut(array, (1, 0, 3, 2), 0), array)


# -- samples ---------------------------------------------------------------------------------------------------------


def crops(images: Split, isolate: bool = True, transform=PLAIN, **keys) -> BoxCrops:
    return BoxCrops(images, found(images), transform, context=2.0, isolate=isolate, **keys)


@pytest.mark.parametrize("drawn", [True, False])
def test_only_the_object_of_the_crop_keeps_its_class(drawn):
    # The cat's box, 8 x 8 at (4, 4), doubled: 16 x 16 at (0, 0). The cat fills rows and columns 4..11; the void row is
    # row 12, columns 4..15; the dog, columns 12..15, is background.
    cat = crops(pets(drawn=drawn))[0]
    expected = torch.zeros(16, 16, dtype=torch.uint8)
    expected[4:12, 4:12], expected[12, 4:] = 8, 255
    assert torch.equal(cat["mask"], expected)
    assert cat["name"] == "scene0_0"
    dog = crops(pets(drawn=drawn))[1]
    assert set(dog["mask"].unique().tolist()) == {0, 12, 255}
    assert dog["name"] == "scene0_1"


def test_all_classes_keep_their_labels_where_objects_are_not_isolated():
    cat = crops(pets(), isolate=False)[0]
    assert (cat["mask"][4:12, 4:12] == 8).all()
    assert (cat["mask"][4:12, 12:] == 12).all()
    assert (cat["mask"][12, 4:] == 255).all()


@pytest.mark.parametrize("isolate", [True, False])
def test_outside_the_image_is_black_and_void(isolate):
    images = pets()
    boxes = Boxes(*(np.array(column, dtype=np.int32) for column in ([1], [[4, 0, 16, 10]], [8], [1])))
    crop = BoxCrops(images, boxes, PLAIN, context=2.0, isolate=isolate)
    assert crop.windows.tolist() == [[-2, -7, 22, 17]]
    sample = crop[0]
    inside = torch.zeros(24, 24, dtype=torch.bool)
    inside[7:, 2:] = True
    assert torch.equal(sample["image"][0] == 11, inside)
    assert (sample["image"][:, ~inside] == 0).all()
    assert (sample["mask"][~inside] == 255).all()
    assert (sample["mask"][7:11, 2:] == 0).all()


def test_void_as_background_leaves_padding_void():
    sample = crops(pets(void_as_background=True))[0]
    assert 255 not in sample["mask"]
    assert (sample["mask"] == 8).sum() == 64


def test_augmentation_depends_on_seed_epoch_index_and_copy():
    transform = TrainTransform(crop_size=8, squash=10)
    images = pets()
    images.read = lambda index: (  # type: ignore[method-assign]
        np.random.default_rng(index).integers(0, 256, (20, 30, 3), dtype=np.uint8),
        pets().read(index)[1],
    )
    first = crops(images, transform=transform, seed=1)
    same = crops(images, transform=transform, seed=1, cache_images=2)
    for key in [(0, 1, 0), (3, 1, 2)]:
        assert torch.equal(first[key]["image"], same[key]["image"])

    def variety(keys):
        return {tuple(first[key]["image"].flatten().tolist()) for key in keys}

    assert len(variety([(0, 1, copy) for copy in range(8)])) > 3  # of 4 x 4 places, flipped or not
    assert len(variety([(epoch, 1, 0) for epoch in range(8)])) > 3


def test_training_crops_and_the_centre_crops_of_validation():
    sample = crops(pets(), transform=EvalTransform(squash=32, centre=28))[0]
    # the crop of 16 pixels doubled: the cat in rows and columns 8..23 of 32, 6..21 of the 28 in the middle
    assert sample["mask"].shape == (28, 28)
    assert (sample["mask"][6:22, 6:22] == 8).all()
    assert (sample["mask"] == 8).sum() == 256
    assert crops(pets(), transform=TrainTransform(crop_size=28, squash=32))[0]["image"].shape == (3, 28, 28)


# -- the cache -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cache", "reads"), [(0, [3, 2]), (1, [2, 2]), (2, [1, 1])])
def test_images_are_kept_up_to_the_bound(cache, reads):
    images = pets()
    samples = crops(images, cache_images=cache)
    images.dataset.reads = [0, 0, 0]
    plain = crops(pets())
    for index in (0, 1, 2, 0, 3):  # boxes of the scenes 0, 0, 1, 0, 1
        ours, theirs = samples[index], plain[index]
        assert torch.equal(ours["image"], theirs["image"])
        assert torch.equal(ours["mask"], theirs["mask"])
        assert len(samples._recent) <= cache
    assert images.dataset.reads == [*reads, 0]


# -- order -----------------------------------------------------------------------------------------------------------


def boxes_of(labels: Sequence[int], images: Sequence[int] | None = None) -> Boxes:
    count = len(labels)
    image = np.zeros(count) if images is None else np.asarray(images)
    return Boxes(
        image.astype(np.int32), np.zeros((count, 4), np.int32), np.asarray(labels, np.int32), np.ones(count, np.int32)
    )


def keys_of(order: CropOrder, epoch: int = 0) -> list[tuple[int, ...]]:
    order.set_epoch(epoch)
    return list(order)


def test_balance_repeats_rare_classes_and_leaves_out_some_of_the_common_ones():
    # Ten boxes, eight of class 1 and two of class 2: each class has five places. Those of class 2 come twice or thrice.
    order = CropOrder(boxes_of([1] * 8 + [2] * 2), seed=3)
    keys = keys_of(order)
    assert len(keys) == len(set(keys)) == len(order) == 10
    common = [key for key in keys if key[1] < 8]
    assert len(common) == 5
    assert all(copy == 0 for _, _, copy in common)
    rare = sorted((index, copy) for _, index, copy in keys if index >= 8)
    assert rare in ([(8, 0), (8, 1), (8, 2), (9, 0), (9, 1)], [(8, 0), (8, 1), (9, 0), (9, 1), (9, 2)])
    # over many epochs all common ones come
    assert {index for epoch in range(20) for _, index, _ in keys_of(order, epoch)} == set(range(10))


def test_without_balance_each_box_comes_once():
    keys = keys_of(CropOrder(boxes_of([1] * 8 + [2] * 2), balance=False), epoch=4)
    assert sorted(keys) == [(4, index, 0) for index in range(10)]
    assert keys != sorted(keys)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("balance", [True, False])
def test_the_order_is_a_function_of_seed_and_epoch(window, balance):
    boxes = boxes_of([1, 1, 2, 1, 3] * 8, np.arange(40) // 4)

    def order(seed=0, **place):
        return CropOrder(boxes, seed, balance=balance, window=window, **place)

    first = keys_of(order(), epoch=1)
    assert keys_of(order(), epoch=1) == first
    assert keys_of(order(seed=1), epoch=1) != first
    assert [key[1:] for key in keys_of(order(), epoch=2)] != [key[1:] for key in first]
    ranks = [keys_of(order(rank=rank, world_size=2), epoch=1) for rank in (0, 1)]
    assert [key for pair in zip(*ranks, strict=True) for key in pair] == first
    resumed = order()
    resumed.start = 7
    assert keys_of(resumed, epoch=1) == first[7:]


def misses(images: list[int], kept: int) -> int:
    recent: list[int] = []
    count = 0
    for image in images:
        if image in recent:
            recent.remove(image)
        else:
            count += 1
        recent = [*recent, image][-kept:]
    return count


def test_a_window_keeps_the_crops_of_an_image_together():
    # 200 images of 10 crops, windows of 20 images: an image takes part in a tenth of the epoch, 200 crops. With 40
    # images kept, all are decoded once but those that begin in the last tenth and go on at the start.
    image = np.arange(2000) // 10
    boxes = boxes_of([1] * 2000, image)
    near = [int(image[index]) for _, index, _ in keys_of(CropOrder(boxes, window=20))]
    far = [int(image[index]) for _, index, _ in keys_of(CropOrder(boxes, window=None))]
    for one in (0, 77, 199):
        places = np.flatnonzero(np.array(near) == one)
        gaps = np.diff(np.append(places, places[0] + 2000))
        assert 2000 - gaps.max() <= 200 + 60  # round the epoch; its parts are not all equally dense
    assert 200 <= misses(near, 40) <= 200 + 25
    assert misses(far, 40) > 1500
    # and no part of the epoch has few images: 100 crops are of nearly as many as 20 images give
    assert min(len(set(near[start : start + 100])) for start in range(0, 2000, 100)) >= 18


def test_few_images_are_mixed_without_a_window():
    boxes = boxes_of([1] * 40, np.arange(40) // 10)
    assert keys_of(CropOrder(boxes, window=4)) == keys_of(CropOrder(boxes, window=None))
