import numpy as np
import pytest
import torch

from segmod.data.transforms import EvalTransform, Normalization, TrainTransform
from segmod.ground.errors import UserError
from segmod.ground.types import IGNORE_INDEX

RAW = Normalization.named("raw255")


def grid(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """An image whose red is the row and green the column, and a mask that repeats the row."""
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    return np.stack([rows, columns, np.zeros_like(rows)], axis=2), rows.copy()


def test_imagenet_profile_of_one_pixel():
    # By hand: (128/255 - 0.485)/0.229 = 0.07406, (0 - 0.456)/0.224 = -2.03571, (1 - 0.406)/0.225 = 2.64.
    image = Normalization.named("imagenet").normalise(np.array([[[128, 0, 255]]], dtype=np.uint8))
    torch.testing.assert_close(image[:, 0, 0], torch.tensor([0.07406, -2.03571, 2.64]), atol=1e-4, rtol=0)


def test_caffe_profile_is_bgr_minus_the_mean_pixel():
    # RGB (10, 20, 30) is BGR (30, 20, 10), less (104.00699, 116.66877, 122.67892).
    image = Normalization.named("caffe").normalise(np.array([[[10, 20, 30]]], dtype=np.uint8))
    torch.testing.assert_close(image[:, 0, 0], torch.tensor([-74.00699, -96.66877, -112.67892]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("profile", ["imagenet", "caffe", "raw255"])
def test_denormalise_undoes_normalise(profile):
    norm = Normalization.named(profile)
    image = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    np.testing.assert_array_equal(norm.denormalise(norm.normalise(image)), image)


@pytest.mark.parametrize("profile", ["imagenet", "caffe", "raw255"])
def test_fill_is_zero_once_normalised(profile):
    norm = Normalization.named(profile)
    padding = norm.normalise(np.full((1, 1, 3), norm.fill, dtype=np.uint8))
    half_a_grey_level = 0.5 / min(norm.std)
    assert padding.abs().max() <= half_a_grey_level


def test_unknown_profile_names_the_key_and_the_choices():
    with pytest.raises(UserError, match=r"data\.norm=vgg.*imagenet, caffe, raw255"):
        Normalization.named("vgg")


def test_crop_shows_the_same_pixels_in_image_and_mask():
    image, mask = grid(40, 50)
    out = TrainTransform(RAW, crop_size=16, hflip=0)(image, mask, (0, 0, 0))
    torch.testing.assert_close(out.image[0].long(), out.mask)
    # Columns of a crop without resize go up by one, wherever the crop lies.
    assert (out.image[1].diff(dim=1) == 1).all()


def test_flip_moves_image_and_mask_together():
    image, mask = grid(8, 6)
    out = TrainTransform(RAW, hflip=1)(image, mask.T.copy().T, (0, 0, 0))
    np.testing.assert_array_equal(out.image[1].numpy(), np.fliplr(image[:, :, 1]))
    np.testing.assert_array_equal(out.mask.numpy(), np.fliplr(mask))


@pytest.mark.parametrize("pad", ["mean", "black"])
def test_crop_larger_than_the_image_is_padded(pad):
    norm = Normalization((10.0, 20.0, 30.0), (1.0, 1.0, 1.0))
    image, mask = np.full((6, 8, 3), 200, dtype=np.uint8), np.full((6, 8), 3, dtype=np.uint8)
    out = TrainTransform(norm, crop_size=12, hflip=0, pad=pad)(image, mask, (0, 0, 1))
    inside = out.mask == 3
    assert inside.sum() == 6 * 8
    assert (out.mask[~inside] == IGNORE_INDEX).all()
    # 200 - mean inside; the mean colour normalises to 0, black to -mean.
    assert torch.equal(out.image[:, inside].T, torch.tensor([190.0, 180.0, 170.0]).expand(48, 3))
    outside = torch.zeros(3) if pad == "mean" else torch.tensor([-10.0, -20.0, -30.0])
    assert torch.equal(out.image[:, ~inside].T, outside.expand(12 * 12 - 48, 3))


def test_short_side_equal_to_the_crop_leaves_no_padding():
    image, mask = grid(30, 60)
    transform = TrainTransform(RAW, crop_size=24, short_side=24)
    for index in range(20):
        out = transform(image, mask, (0, 0, index))
        assert out.image.shape == (3, 24, 24)
        assert (out.mask != IGNORE_INDEX).all()


def test_short_side_without_crop_keeps_the_aspect():
    image, mask = grid(30, 60)
    out = TrainTransform(RAW, short_side=20)(image, mask, (0, 0, 0))
    assert out.image.shape == (3, 20, 40)  # 60 * 20 / 30 = 40
    assert out.mask.shape == (20, 40)


def test_squash_ignores_the_aspect():
    image, mask = grid(30, 60)
    out = TrainTransform(RAW, squash=15, hflip=0)(image, mask, (0, 0, 0))
    assert out.image.shape == (3, 15, 15)
    assert set(out.mask.unique().tolist()) <= set(range(30))


def test_squash_of_250_then_crop_of_224_shows_nine_tenths_of_the_image():
    # 224 / 250 of each side: 0.896 * 100 = 90 rows and 0.896 * 200 = 179 columns.
    image, mask = grid(100, 200)
    out = TrainTransform(RAW, crop_size=224, squash=250, hflip=0)(image, mask, (0, 0, 0))
    assert out.image.shape == (3, 224, 224)
    assert out.mask.max() - out.mask.min() == 89
    assert 176 <= out.image[1].max() - out.image[1].min() <= 178


def test_scale_makes_objects_larger():
    # A centred 10x10 object at twice the scale covers 20x20 pixels.
    image = np.zeros((40, 40, 3), dtype=np.uint8)
    mask = np.zeros((40, 40), dtype=np.uint8)
    mask[15:25, 15:25] = 1
    out = TrainTransform(RAW, scale=(2.0, 2.0), hflip=0)(image, mask, (0, 0, 0))
    assert out.mask.shape == (80, 80)
    assert (out.mask == 1).sum() == 400


def test_scale_covers_its_range():
    image, mask = grid(50, 50)
    transform = TrainTransform(RAW, scale=(0.5, 2.0))
    sides = [transform(image, mask, (0, 0, index)).mask.shape[0] for index in range(200)]
    assert min(sides) >= 25
    assert min(sides) < 35
    assert max(sides) <= 100
    assert max(sides) > 90


def test_boxes_follow_the_pixels_they_enclose():
    mask = np.zeros((60, 80), dtype=np.uint8)
    mask[20:40, 30:50] = 7
    image = np.repeat(mask[:, :, None], 3, axis=2)
    boxes = np.array([[30, 20, 50, 40, 7]], dtype=np.float32)
    transform = TrainTransform(RAW, crop_size=64, scale=(0.8, 1.5))
    for index in range(20):
        out = transform(image, mask, (0, 0, index), boxes)
        rows, columns = (out.mask == 7).nonzero(as_tuple=True)
        left, top, right, bottom, label = out.boxes[0]
        assert label == 7
        seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose([left, top, right, bottom], seen, atol=1.5)  # nearest rounds by up to a pixel


def test_boxes_outside_the_crop_are_dropped():
    image, mask = grid(30, 30)
    boxes = np.array([[0, 0, 5, 5]], dtype=np.float32)
    transform = TrainTransform(RAW, crop_size=10, hflip=0)
    kept = []
    for index in range(60):
        out = transform(image, mask, (0, 0, index), boxes)
        corner = out.image[0].min() < 5 and out.image[1].min() < 5  # the crop starts inside the box
        kept.append(len(out.boxes))
        assert kept[-1] == int(corner)
    assert 0 < sum(kept) < 60


def test_the_seed_alone_decides():
    image, mask = grid(60, 60)
    transform = TrainTransform(RAW, crop_size=20, scale=(0.5, 2.0))
    first = transform(image, mask, (3, 1, 4))
    for other in ((3, 1, 5), (3, 2, 4), (4, 1, 4)):
        assert not torch.equal(transform(image, mask, other).image, first.image)
    again = transform(image, mask, (3, 1, 4))
    assert torch.equal(again.image, first.image)
    assert torch.equal(again.mask, first.mask)


def test_flips_and_crops_are_drawn_independently():
    # Were one stream behind both, flipped samples would all lie in one half of the crop positions.
    image, mask = grid(2, 200)
    transform = TrainTransform(RAW, crop_size=2)
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
    boxes = np.array([[10, 15, 20, 30]], dtype=np.float32)
    assert EvalTransform(RAW)(image, mask, (0,)).image.shape == (3, 30, 50)
    out = EvalTransform(RAW, squash=10)(image, mask, (0,), boxes)
    assert out.image.shape == (3, 10, 10)
    assert out.mask.shape == (10, 10)
    np.testing.assert_allclose(out.boxes, [[2, 5, 4, 10]])  # x / 5, y / 3


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
        TrainTransform(RAW, **keys)
