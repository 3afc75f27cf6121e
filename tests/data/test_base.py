"""What every data set is held to when its images are read."""

from pathlib import Path

import numpy as np
import pytest
import torch

from segmod.data.base import Dataset, Split
from segmod.data.passes import verify
from segmod.data.transforms import EvalTransform, TrainTransform
from segmod.ground.errors import UserError
from segmod.ground.palettes import VOC_PALETTE, Legend

IMAGE, MASK = np.full((4, 6, 3), 9, np.uint8), np.zeros((4, 6), np.uint8)


class Fields(Dataset):
    """Two images of a meadow; what is read of the second one may be given."""

    name = "Fields"
    classes = ("soil", "grass", "flower")

    def __init__(self, image: object = IMAGE, mask: object = MASK, names: tuple[str, ...] = ("a", "b")) -> None:
        self.second = image, mask
        self.listed = names

    def names(self, split):
        return self.listed

    def read(self, split, name):
        return self.second if name == "b" else (IMAGE, MASK)


def fields(*arguments, **keys) -> Split:
    return Split(Fields(*arguments, **keys), "val", EvalTransform())


def labels(*values: int) -> np.ndarray:
    mask = MASK.copy()
    mask.flat[: len(values)] = values
    return mask


def test_labels_are_those_of_the_classes_and_void():
    assert fields(IMAGE, labels(0, 1, 2, 255)).read(1)[1].max() == 255
    with pytest.raises(UserError, match=r"^b of Fields val: labels \[3, 254\] are outside 0\.\.2 and 255") as caught:
        fields(IMAGE, labels(1, 254, 3, 255)).read(1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("image", "mask", "message"),
    [
        (IMAGE.astype(np.float32), MASK, r"image is float32 \(4, 6, 3\); Fields\.read must return uint8 \(height"),
        (IMAGE[..., 0], MASK, r"image is uint8 \(4, 6\)"),
        (np.zeros((4, 6, 4), np.uint8), MASK, r"image is uint8 \(4, 6, 4\)"),
        (torch.zeros(3, 4, 6), MASK, r"image is Tensor"),
        (IMAGE[:0], MASK[:0], r"image is uint8 \(0, 6, 3\)"),
        (IMAGE, MASK.astype(np.int64), r"mask is int64 \(4, 6\); Fields\.read must return uint8 \(height, width\)"),
        (IMAGE, MASK[..., None], r"mask is uint8 \(4, 6, 1\)"),
        (IMAGE, MASK.T, r"mask is 4x6 pixels but its image .*is 6x4; replace one of them"),
    ],
)
def test_a_sample_of_another_kind_is_told_when_it_is_met(image, mask, message):
    images = fields(image, mask)
    assert images[0]["name"] == "a"
    with pytest.raises(UserError, match=rf"^b of Fields val: .*{message}") as caught:
        images[1]
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"^1 of 2 images are bad: b of Fields val"):
        verify([images])


def test_messages_name_the_files_where_there_are_any(monkeypatch):
    monkeypatch.setattr(Fields, "files", lambda self, split, name: (Path(f"{name}.jpg"), Path(f"{name}.png")))
    with pytest.raises(UserError, match=r"^b\.jpg: the image is"):
        fields(IMAGE[..., 0]).read(1)
    with pytest.raises(UserError, match=r"^b\.png: labels \[7\]"):
        fields(IMAGE, labels(7)).read(1)
    with pytest.raises(UserError, match=r"^b\.png: the mask is 5x4 pixels but its image b\.jpg is 6x4"):
        fields(IMAGE, MASK[:, :5]).read(1)


def test_images_are_told_apart_by_their_names():
    with pytest.raises(UserError, match=r"Fields val: two images are called b"):
        fields(names=("a", "b", "c", "b"))


@pytest.mark.parametrize("name", ["../../victim", "/victim", "", "a/./b"])
def test_an_image_whose_name_leads_elsewhere_is_refused(name):
    with pytest.raises(UserError, match=rf"^Fields val: image '{name}' can be no file's name: "):
        fields(names=("a", name))


def test_augmentation_is_decided_by_seed_epoch_and_index():
    # Both images are one and the same, so that nothing else can tell their crops apart.
    image = np.arange(40 * 50 * 3, dtype=np.uint8).reshape(40, 50, 3)
    transform = TrainTransform(crop_size=8)

    def crop(seed: int, epoch: int, index: int) -> torch.Tensor:
        class Same(Fields):
            def read(self, split, name):
                return image, np.zeros((40, 50), np.uint8)

        return Split(Same(), "train", transform, seed)[epoch, index]["image"]

    first = crop(0, 0, 0)
    assert torch.equal(crop(0, 0, 0), first)
    for other in ((1, 0, 0), (0, 1, 0), (0, 0, 1)):
        assert not torch.equal(crop(*other), first)


def test_arrays_that_a_data_set_keeps_are_not_changed():
    mask = labels(255, 1)
    mask.setflags(write=False)  # as np.asarray of an image of PIL is
    split = Split(Fields(IMAGE, mask), "val", EvalTransform(), void_as_background=True)
    sample = split[1]
    assert sample["mask"].flatten()[:3].tolist() == [0, 1, 0]
    sample["mask"][:] = 2
    assert mask.flatten()[:3].tolist() == [255, 1, 0]


@pytest.mark.filterwarnings("error")
def test_arrays_that_may_not_be_written_to_become_tensors():
    mask = labels(255, 1)
    mask.setflags(write=False)
    assert fields(IMAGE, mask)[1]["mask"].flatten()[:3].tolist() == [255, 1, 0]


def test_a_download_that_nobody_offers():
    with pytest.raises(UserError, match=r"data\.download=true: segmod cannot fetch Fields"):
        Fields().download(["val"])


@pytest.mark.parametrize(
    ("classes", "message"),
    [(("soil",), r"has 1 classes"), (["a", "b", "c", "b"], r"classes b come twice"), (range(256), r"has 256 classes")],
)
def test_classes_can_be_labelled_and_told_apart(classes, message):
    data = Fields()
    data.classes = classes
    with pytest.raises(UserError, match=rf"^Fields: .*{message}"):
        _ = data.legend


def test_a_legend_survives_a_checkpoint():
    legend = Fields().legend
    assert legend[:2] == ("Fields", ("soil", "grass", "flower"))
    back = Legend.from_plain(legend.as_plain())
    assert back[:2] == legend[:2]
    assert back.palette.dtype == np.uint8
    np.testing.assert_array_equal(back.palette, VOC_PALETTE)
