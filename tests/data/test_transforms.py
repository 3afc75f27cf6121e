import albumentations as A
import numpy as np
import pytest
import torch
from PIL import Image

from segmod.data.transforms import EvalTransform, TrainTransform, reseed
from segmod.ground.errors import UserError
from segmod.ground.types import IGNORE_INDEX


def grid(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """An image whose red is the row and green the column, and a mask that repeats the row."""
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    return np.stack([rows, columns, np.zeros_like(rows)], axis=2), rows.copy()


def test_crop_shows_the_same_pixels_in_image_and_mask():
    image, mask = grid(40, 50)
    out = TrainTransform(crop_size=16, hflip=0)(image, mask, (0, 0, 0))
    assert torch.equal(out.image[0], out.mask)
    # Columns of a crop without resize go up by one, wherever the crop lies.
    assert (out.image[1].diff(dim=1) == 1).all()


def test_flip_moves_image_and_mask_together():
    image, mask = grid(8, 6)
    out = TrainTransform(hflip=1)(image, mask.T.copy().T, (0, 0, 0))
    np.testing.assert_array_equal(out.image[1].numpy(), np.fliplr(image[:, :, 1]))
    np.testing.assert_array_equal(out.mask.numpy(), np.fliplr(mask))


@pytest.mark.parametrize(("pad", "colour"), [("mean", (124, 116, 104)), ("black", (0, 0, 0))])
def test_crop_larger_than_the_image_is_padded(pad, colour):
    # the mean of ImageNet is (0.485, 0.456, 0.406) * 255 = (123.7, 116.3, 103.5)
    image, mask = np.full((6, 8, 3), 200, dtype=np.uint8), np.full((6, 8), 3, dtype=np.uint8)
    out = TrainTransform(crop_size=12, hflip=0, pad=pad)(image, mask, (0, 0, 1))
    inside = out.mask == 3
    assert inside.sum() == 6 * 8
    assert (out.mask[~inside] == IGNORE_INDEX).all()
    assert (out.image[:, inside] == 200).all()
    assert torch.equal(out.image[:, ~inside].T, torch.tensor(colour, dtype=torch.uint8).expand(12 * 12 - 48, 3))


def test_short_side_equal_to_the_crop_leaves_no_padding():
    image, mask = grid(30, 60)
    transform = TrainTransform(crop_size=24, short_side=24)
    for index in range(20):
        out = transform(image, mask, (0, 0, index))
        assert out.image.shape == (3, 24, 24)
        assert (out.mask != IGNORE_INDEX).all()


def test_short_side_without_crop_keeps_the_aspect():
    image, mask = grid(30, 60)
    out = TrainTransform(short_side=20)(image, mask, (0, 0, 0))
    assert out.image.shape == (3, 20, 40)  # 60 * 20 / 30 = 40
    assert out.mask.shape == (20, 40)


def test_squash_ignores_the_aspect():
    image, mask = grid(30, 60)
    out = TrainTransform(squash=15, hflip=0)(image, mask, (0, 0, 0))
    assert out.image.shape == (3, 15, 15)
    assert set(out.mask.unique().tolist()) <= set(range(30))


def test_squash_of_250_then_crop_of_224_shows_nine_tenths_of_the_image():
    # 224 / 250 of each side: 0.896 * 100 = 90 rows and 0.896 * 200 = 179 columns.
    image, mask = grid(100, 200)
    out = TrainTransform(crop_size=224, squash=250, hflip=0)(image, mask, (0, 0, 0))
    assert out.image.shape == (3, 224, 224)
    assert out.mask.max() - out.mask.min() == 89
    assert 176 <= out.image[1].max() - out.image[1].min() <= 178


def test_scale_makes_objects_larger():
    # A centred 10x10 object at twice the scale covers 20x20 pixels.
    image = np.zeros((40, 40, 3), dtype=np.uint8)
    mask = np.zeros((40, 40), dtype=np.uint8)
    mask[15:25, 15:25] = 1
    out = TrainTransform(scale=(2.0, 2.0), hflip=0)(image, mask, (0, 0, 0))
    assert out.mask.shape == (80, 80)
    assert (out.mask == 1).sum() == 400


def test_scale_covers_its_range():
    image, mask = grid(50, 50)
    transform = TrainTransform(scale=(0.5, 2.0))
    sides = [transform(image, mask, (0, 0, index)).mask.shape[0] for index in range(200)]
    assert min(sides) >= 25
    assert min(sides) < 35
    assert max(sides) <= 100
    assert max(sides) > 90


def test_the_seed_alone_decides():
    image, mask = grid(60, 60)
    transform = TrainTransform(crop_size=20, scale=(0.5, 2.0))
    first = transform(image, mask, (3, 1, 4))
    for other in ((3, 1, 5), (3, 2, 4), (4, 1, 4)):
        assert not torch.equal(transform(image, mask, other).image, first.image)
    again = transform(image, mask, (3, 1, 4))
    assert torch.equal(again.image, first.image)
    assert torch.equal(again.mask, first.mask)


def test_flips_and_crops_are_drawn_independently():
    # Were one stream behind both, flipped samples would all lie in one half of the crop positions.
    image, mask = grid(2, 200)
    transform = TrainTransform(crop_size=2)
    starts: dict[bool, list[float]] = {False: [], True: []}
    for index in range(300):
        row = transform(image, mask, (0, 0, index)).image[1, 0]
        starts[bool(row[0] > row[1])].append(float(row.min()))
    for positions in starts.values():
        assert len(positions) > 100
        assert min(positions) < 30
        assert max(positions) > 170


def test_evaluation_keeps_the_size_or_squashes():
    image, mask = grid(30, 50)
    assert EvalTransform()(image, mask, (0,)).image.shape == (3, 30, 50)
    out = EvalTransform(squash=10)(image, mask, (0,))
    assert out.image.shape == (3, 10, 10)
    assert out.mask.shape == (10, 10)


def test_antialiasing_is_that_of_pil_and_moves_no_label():
    image, mask = grid(60, 90)
    image[::3] = 255
    wanted = np.asarray(Image.fromarray(image).resize((20, 20), Image.Resampling.BILINEAR))
    train = TrainTransform(squash=20, hflip=0, antialias=True)(image, mask, (0,))
    score = EvalTransform(squash=20, antialias=True)(image, mask, (0,))
    plain = EvalTransform(squash=20)(image, mask, (0,))
    for out in (train, score):
        np.testing.assert_array_equal(out.image.permute(1, 2, 0).numpy(), wanted)
        assert torch.equal(out.mask, plain.mask)
    assert not torch.equal(score.image, plain.image)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"crop_size": 0}, r"data\.crop_size=0"),
        ({"crop_size": 10.5}, r"data\.crop_size=10\.5"),
        ({"squash": "big"}, r"data\.squash=big"),
        ({"scale": (2.0, 1.0)}, r"data\.scale"),
        ({"scale": (0.0, 1.0)}, r"data\.scale"),
        ({"hflip": 2}, r"data\.hflip=2"),
        ({"pad": "white"}, r"data\.pad=white.*mean or black"),
        ({"crop_size": 300, "squash": 224}, r"data\.crop_size=300.*data\.squash=224"),
        ({"crop_size": 300, "short_side": 200}, r"data\.crop_size=300.*data\.short_side=200"),
    ],
)
def test_impossible_values_name_their_key(keys, message):
    with pytest.raises(UserError, match=message):
        TrainTransform(**keys)


def test_masks_are_resized_by_their_nearest_pixel():
    # classes 2 and 200 along a diagonal: anything between them would be a class that is not there
    mask = np.where(np.tri(30, 40, dtype=bool), np.uint8(2), np.uint8(200))
    image = np.repeat(mask[:, :, None], 3, axis=2)
    for transform, padded in (
        (TrainTransform(scale=(1.7, 1.7), hflip=0), False),
        (TrainTransform(crop_size=24, scale=(0.6, 0.6), hflip=0, pad="black"), True),  # 18 x 24 pixels
        (TrainTransform(squash=33, hflip=0), False),
        (EvalTransform(squash=33), False),
    ):
        out = transform(image, mask, (0, 0, 0))
        assert out.mask.unique().tolist() == [2, 200] + [IGNORE_INDEX] * padded
        assert set(range(3, 200)) & set(out.image.unique().tolist())  # the image is resized bilinearly


def test_steps_of_a_pipeline_draw_apart():
    # Two steps of one kind draw from generators of one kind: with one seed for both they would always agree.
    steps = A.Compose([A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5)])
    image = np.arange(4, dtype=np.uint8).reshape(2, 2, 1).repeat(3, axis=2)
    seen = set()
    for index in range(40):
        reseed(steps, (0, 0, index))
        seen.add(int(steps(image=image)["image"][0, 0, 0]))
    assert seen == {0, 1, 2, 3}  # the corner that comes to lie first: as it was, either flip alone, both
