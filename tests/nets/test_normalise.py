"""The first layer of every net, against numbers worked out by hand."""

import numpy as np
import pytest
import torch

from segmod.data.transforms import IMAGENET_COLOUR
from segmod.ground.errors import UserError
from segmod.ground.types import picture_of
from segmod.nets.normalise import Normalise


def one_pixel(red: int, green: int, blue: int) -> torch.Tensor:
    return torch.tensor([red, green, blue], dtype=torch.uint8).view(1, 3, 1, 1)


def test_imagenet_of_one_pixel() -> None:
    # (128/255 - 0.485)/0.229 = 0.07406, (0 - 0.456)/0.224 = -2.03571, (1 - 0.406)/0.225 = 2.64
    normalised = Normalise("imagenet")(one_pixel(128, 0, 255)).flatten()
    torch.testing.assert_close(normalised, torch.tensor([0.07406, -2.03571, 2.64]), atol=1e-4, rtol=0)


def test_caffe_is_bgr_minus_the_mean_pixel() -> None:
    # RGB (10, 20, 30) is BGR (30, 20, 10), less (104.00699, 116.66877, 122.67892)
    normalised = Normalise("caffe")(one_pixel(10, 20, 30)).flatten()
    torch.testing.assert_close(normalised, torch.tensor([-74.00699, -96.66877, -112.67892]), atol=1e-4, rtol=0)


def test_raw_pixels_and_statistics_of_ones_own() -> None:
    assert Normalise("raw255")(one_pixel(10, 20, 30)).flatten().tolist() == [10, 20, 30]
    own = Normalise({"mean": [10, 10, 10], "std": [1, 2, 4]})
    assert own(one_pixel(10, 20, 30)).flatten().tolist() == [0, 5, 5]


@pytest.mark.parametrize("kind", ["imagenet", "caffe", "raw255"])
def test_bytes_and_floats_are_the_same_photograph(kind: str) -> None:
    image = torch.randint(256, (2, 3, 5, 4), dtype=torch.uint8)
    assert torch.equal(Normalise(kind)(image), Normalise(kind)(image.float()))
    assert Normalise(kind).half()(image).dtype == torch.float16


def test_padding_of_the_mean_colour_is_next_to_zero() -> None:
    # at most half a grey level in units of the smallest deviation, 0.5 / (0.224 * 255)
    assert Normalise("imagenet")(one_pixel(*IMAGENET_COLOUR)).abs().max() <= 0.5 / (0.224 * 255)


def test_it_is_no_part_of_a_state_dict() -> None:
    assert not Normalise("imagenet").state_dict()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("vgg", r"model\.net\.normalise=vgg: choose imagenet, caffe, raw255"),
        ({"mean": [1, 2, 3]}, "give mean and std"),
        ({"mean": [1, 2], "std": [1, 2]}, "three numbers each"),
        ({"mean": [1, 2, 3], "std": [1, 0, 3]}, "must be above 0"),
    ],
)
def test_mistakes_name_the_key(kind: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Normalise(kind)  # type: ignore[arg-type]


def test_the_picture_of_an_image_is_what_it_was_made_of() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    image = torch.from_numpy(picture).permute(2, 0, 1)
    np.testing.assert_array_equal(picture_of(image), picture)
    np.testing.assert_array_equal(picture_of(image.float() + 0.3), picture)
