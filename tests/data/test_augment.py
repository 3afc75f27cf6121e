"""Transforms of albumentations from a config: joint, void where there is nothing, decided by the seed, checked."""

import albumentations as A
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from segmod.data.augment import augmentations
from segmod.data.synthetic import SyntheticScenes
from segmod.data.transforms import TrainTransform
from segmod.ground.errors import UserError
from segmod.ground.types import IGNORE_INDEX
from segmod.runs.cli import CONF_DIR
from segmod.training.datamodule import SegmentationDataModule


def scene(side: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """A mask of blocks of two classes, and an image that shows them."""
    mask = np.random.default_rng(0).integers(0, 2, (side // 8, side // 8), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    return np.repeat(200 * mask[:, :, None], 3, axis=2), mask


def preset(name: str) -> list[dict[str, object]]:
    return OmegaConf.to_container(OmegaConf.load(CONF_DIR / "augment" / f"{name}.yaml"))["augment"]  # type: ignore


def test_image_and_mask_turn_together_and_what_is_outside_is_void() -> None:
    image, mask = scene()
    turn = {"Affine": {"rotate": [45, 45], "p": 1.0, "interpolation": 0}}
    out = TrainTransform(crop_size=64, hflip=0, augment=[turn])(image, mask, (0, 0, 0))
    inside = out.mask != IGNORE_INDEX
    # of a square that is turned by 45 degrees within itself an octagon of 83 % is left: 2 (sqrt 2 - 1)
    assert float(inside.float().mean()) == pytest.approx(2 * (2**0.5 - 1), abs=0.03)
    assert torch.equal(out.image[0][inside], 200 * out.mask[inside])
    assert set(out.image[:, ~inside].T.unique(dim=0).flatten().tolist()) == {124, 116, 104}  # as padding
    out = TrainTransform(crop_size=64, hflip=0, augment=[{"Affine": {**turn["Affine"], "fill": 7, "fill_mask": 0}}])(
        image, mask, (0, 0, 0)
    )
    assert set(out.mask.unique().tolist()) == {0, 1}
    assert (out.image[:, ~inside] == 7).all()


def test_holes_are_in_the_image_alone() -> None:
    image, mask = scene()
    holes = {"CoarseDropout": {"p": 1.0, "fill": 9}}
    out = TrainTransform(crop_size=64, hflip=0, augment=[holes])(image, mask, (0, 0, 0))
    assert torch.equal(out.mask, torch.from_numpy(mask))
    assert (out.image == 9).any()


@pytest.mark.parametrize("name", ["light", "strong"])
def test_the_seed_decides_all_of_a_preset(name: str) -> None:
    image, mask = scene()
    first, second = (TrainTransform(crop_size=48, scale=(0.5, 2.0), augment=preset(name)) for _ in range(2))
    plain = TrainTransform(crop_size=48, scale=(0.5, 2.0))
    seen = set()
    for index in range(20):
        out = first(image, mask, (3, 1, index))
        second(image, mask, (0, 0, index))  # what another has drawn before does not matter
        again = second(image, mask, (3, 1, index))
        assert torch.equal(out.image, again.image)
        assert torch.equal(out.mask, again.mask)
        assert set(out.mask.unique().tolist()) <= {0, 1, IGNORE_INDEX}
        seen.add(out.image.numpy().tobytes())
        # the draws before those of the preset are as they are without it
        kept = plain(image, mask, (3, 1, index))
        agree = (kept.mask == out.mask) | (out.mask == IGNORE_INDEX) | (kept.mask == IGNORE_INDEX)
        assert agree.float().mean() > 0.5
    assert len(seen) == 20


def test_transforms_within_others_draw_apart() -> None:
    """Two flips in a sequence: were one stream behind both, they would always agree."""
    parts = [{"HorizontalFlip": {"p": 0.5}}, {"VerticalFlip": {"p": 0.5}}]
    transform = TrainTransform(hflip=0, augment=[{"Sequential": {"transforms": parts, "p": 1.0}}])
    image = np.arange(4, dtype=np.uint8).reshape(2, 2, 1).repeat(3, axis=2)
    mask = np.zeros((2, 2), dtype=np.uint8)
    corners = {int(transform(image, mask, (0, 0, index)).image[0, 0, 0]) for index in range(40)}
    assert corners == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ("strong", r"^data\.augment=strong: give a list of transforms; augment=light and augment=strong"),
        (["Blur"], r"^data\.augment\[0\]=Blur: give a name and its arguments, such as \{ColorJitter"),
        ([{"Blur": {}, "ToGray": {}}], r"^data\.augment\[0\]=.*give a name and its arguments"),
        ([{"Blur": [3]}], r"^data\.augment\[0\]=.*give a name and its arguments"),
        (
            [{"ToGray": {}}, {"ColorJiter": {}}],
            r"^data\.augment\[1\]: .* no transform ColorJiter; did you mean ColorJitter",
        ),
        ([{"os.system": {}}], r"^data\.augment\[0\]: albumentations has no transform os\.system"),
        ([{"cv2": {}}], r"^data\.augment\[0\]: albumentations has no transform cv2"),
        ([{"ColorJitter": {"brightnes": 1}}], r"\[0\]\.ColorJitter: takes no brightnes; did you mean brightness\?"),
        ([{"ColorJitter": {"brightness": "much"}}], r"\[0\]\.ColorJitter: brightness: Input should be a valid"),
        ([{"ColorJitter": {"p": 2}}], r"\[0\]\.ColorJitter: p: Input should be less than or equal to 1"),
        ([{"CenterCrop": {}}], r"\[0\]\.CenterCrop: height: Field required"),
        ([{"DualTransform": {}}], r"\[0\]: DualTransform cannot be done"),
        (
            [{"OneOf": {"transforms": [{"Blr": {}}]}}],
            r"\[0\]\.OneOf\.transforms\[0\]: .*no transform Blr; did you mean",
        ),
        ([{"OneOf": {"transforms": 3}}], r"\[0\]\.OneOf\.transforms=3: give a list"),
        ([{"Normalize": {}}], r"\[0\]: Normalize makes the image float32 .*model\.net\.normalise"),
        (
            [{"RandomCrop": {"height": 8, "width": 8}}],
            r"\[0\]: RandomCrop makes the image uint8 \(8, 8, 3\) of .*crop_size",
        ),
        ([{"RandomScale": {}}], r"\[0\]: RandomScale makes the image .*data\.scale"),
        ([{"ToTensorV2": {}}], r"\[0\]: ToTensorV2 makes the image torch\.uint8"),
        ([{"CubicSymmetry": {}}], r"\[0\]: CubicSymmetry cannot be done to an image and its mask"),
        ([{"Mosaic": {}}], r"\[0\]: Mosaic cannot be done to an image and its mask \(Mosaic requires"),
        ([{"Rotate": {"mask_interpolation": 1}}], r"\[0\]: Rotate makes labels .*mask_interpolation: 0"),
        ([{"Rotate": {"fill_mask": 7}}], r"\[0\]: Rotate makes labels \[7\] of .*fill_mask: 255"),
    ],
)
def test_what_cannot_be_done_is_told_before_a_training(steps: object, message: str) -> None:
    with pytest.raises(UserError, match=message) as told:
        SegmentationDataModule(SyntheticScenes(32), augment=steps)
    assert len(str(told.value)) <= 300
    assert "\n" not in str(told.value)


def test_turns_by_quarters_need_squares() -> None:
    with pytest.raises(UserError, match=r"RandomRotate90 makes the image"):
        augmentations([{"RandomRotate90": {}}])
    (step,) = augmentations([{"RandomRotate90": None}], side=32)
    assert isinstance(step, A.RandomRotate90)
