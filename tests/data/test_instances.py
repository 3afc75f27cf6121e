"""Objects from object maps of both kinds, and from the pieces of a class mask."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from segmod.data.base import Split
from segmod.data.instances import Instance, find_instances
from segmod.data.synthetic import SyntheticScenes, write_voc_tree
from segmod.data.transforms import EvalTransform
from segmod.data.voc import PascalVOC
from segmod.ground.errors import UserError
from segmod.ground.types import IGNORE_INDEX

PLAIN = EvalTransform()


def mask_of(*rectangles: tuple[int, int, int, int, int], size: tuple[int, int] = (20, 30)) -> np.ndarray:
    """A mask with (x1, y1, x2, y2, label) painted in turn."""
    mask = np.zeros(size, dtype=np.uint8)
    for x1, y1, x2, y2, label in rectangles:
        mask[y1:y2, x1:x2] = label
    return mask


def test_pieces_of_a_class_are_instances_with_exclusive_boxes() -> None:
    mask = mask_of((1, 2, 5, 8, 3), (10, 2, 12, 4, 3), (20, 10, 30, 20, 7), (15, 0, 16, 20, IGNORE_INDEX))
    found, numbered = find_instances(mask, min_pixels=1)
    assert found == [
        Instance((1, 2, 5, 8), 3, 1),
        Instance((10, 2, 12, 4), 3, 2),
        Instance((20, 10, 30, 20), 7, 3),
    ]
    assert numbered.dtype == np.int32
    # 4 x 6, 2 x 2 and 10 x 10 pixels
    assert np.bincount(numbered.ravel())[1:].tolist() == [24, 4, 100]
    assert (numbered[5, 15], numbered[0, 0]) == (0, 0)


def test_corners_join_pieces_and_classes_do_not() -> None:
    mask = mask_of((0, 0, 4, 4, 1), (4, 4, 8, 8, 1), (8, 0, 12, 8, 2))
    assert [(i.box, i.label) for i in find_instances(mask, min_pixels=1)[0]] == [((0, 0, 8, 8), 1), ((8, 0, 12, 8), 2)]


def test_specks_are_left_out_of_list_and_map() -> None:
    mask = mask_of((0, 0, 3, 3, 1), (10, 10, 20, 15, 1))
    found, numbered = find_instances(mask, min_pixels=10)  # 9 pixels and 50
    assert found == [Instance((10, 10, 20, 15), 1, 1)]
    assert set(np.unique(numbered)) == {0, 1}
    assert numbered[0, 0] == 0


def test_an_object_takes_the_class_of_most_of_its_pixels() -> None:
    # Object 4: 6 pixels of class 9, 3 of class 2, and more of background and void, which do not vote.
    mask = mask_of((0, 0, 3, 2, 9), (0, 2, 3, 3, 2), (0, 3, 3, 10, IGNORE_INDEX))
    objects = mask_of((0, 0, 10, 10, 4), (20, 0, 22, 2, 5), (25, 0, 30, 20, IGNORE_INDEX))
    found, numbered = find_instances(mask, objects)
    assert found == [Instance((0, 0, 10, 10), 9, 4)]  # object 5 has no labelled pixel
    assert set(np.unique(numbered)) == {0, 4}


def test_an_object_in_two_pieces_stays_one() -> None:
    objects = mask_of((0, 0, 2, 2, 1), (20, 15, 22, 17, 1))
    assert find_instances(np.where(objects > 0, 6, 0).astype(np.uint8), objects)[0] == [Instance((0, 0, 22, 17), 6, 1)]


@pytest.mark.parametrize("objects", [None, np.zeros((20, 30), np.uint8)])
def test_no_object(objects: np.ndarray | None) -> None:
    found, numbered = find_instances(mask_of((0, 0, 5, 5, IGNORE_INDEX)), objects)
    assert found == []
    assert not numbered.any()


def test_sizes_must_agree() -> None:
    with pytest.raises(ValueError, match="map of objects is"):
        find_instances(np.zeros((3, 4), np.uint8), np.zeros((4, 3), np.uint8))


def test_scenes_know_their_objects() -> None:
    scenes = Split(SyntheticScenes(train_images=12), "train", PLAIN)
    together = 0
    for index in range(12):
        mask, objects = scenes.read(index)[1], scenes.read_objects(index)
        np.testing.assert_array_equal(objects == IGNORE_INDEX, mask == IGNORE_INDEX)
        np.testing.assert_array_equal(objects == 0, mask == 0)
        found, numbered = find_instances(mask, objects)
        for instance in found:
            assert set(mask[numbered == instance.number]) == {instance.label}
        together += len(found)
        assert found[-1].label == 1 + index  # the nearest object walks through the classes
    assert together > 20


def first(images: Split) -> tuple[Path, str]:
    """Folder of the year, and name of the first image."""
    files = images.dataset.files("train", images.names[0])
    assert files is not None
    return files[1].parents[1], images.names[0]


def test_objects_of_voc(tmp_path: Path) -> None:
    dataset = Split(PascalVOC(write_voc_tree(tmp_path, train=2, val=1, size=(32, 48))), "train", PLAIN)
    assert dataset.object_source() == "SegmentationObject/*.png"
    objects = dataset.read_objects(0)
    assert objects is not None
    mask = dataset.read(0)[1]
    np.testing.assert_array_equal(objects > 0, mask > 0)
    voc, name = first(dataset)
    (voc / "SegmentationObject" / f"{name}.png").unlink()
    assert dataset.read_objects(0) is None
    assert dataset.object_source() == (
        "connected components of the class mask (1 images), SegmentationObject/*.png (1 images)"
    )


def test_objects_of_sbd_stand_in_where_voc_has_none(tmp_path: Path) -> None:
    dataset = Split(PascalVOC(write_voc_tree(tmp_path, train=1, val=1, size=(32, 48))), "train", PLAIN)
    voc, name = first(dataset)
    inst = tmp_path / "sbd" / "inst"
    inst.mkdir(parents=True)
    objects = mask_of((0, 0, 5, 5, 1), (9, 9, 20, 20, 2), size=(32, 48))
    savemat(inst / f"{name}.mat", {"GTinst": {"Segmentation": objects, "Categories": [[3], [4]]}})
    assert (dataset.read_objects(0) != objects).any()  # VOC's own are better
    (voc / "SegmentationObject" / f"{name}.png").unlink()
    plain = Split(PascalVOC(tmp_path), "train", PLAIN)
    np.testing.assert_array_equal(plain.read_objects(0), objects)
    assert plain.object_source() == "inst/*.mat"


def test_objects_of_another_size_name_both_files(tmp_path: Path) -> None:
    dataset = Split(PascalVOC(write_voc_tree(tmp_path, train=1, val=1, size=(32, 48))), "train", PLAIN)
    voc, name = first(dataset)
    Image.new("L", (10, 20)).save(voc / "SegmentationObject" / f"{name}.png")
    with pytest.raises(UserError, match=rf"SegmentationObject/{name}\.png: .* 10x20 .*{name}\.jpg is 48x32"):
        dataset.read_objects(0)
