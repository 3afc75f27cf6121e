"""Procedural scenes of VOC-like objects, drawn when asked for: data to learn from without a download.

Each object class has an outline and a texture of its own (`segmod.data.silhouettes`). Objects overlap, the background
and the light vary, and a void border of one or two pixels surrounds each object as in PASCAL VOC.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from zlib import crc32

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from segmod.data.base import Dataset
from segmod.data.silhouettes import LOOKS, Look
from segmod.ground.errors import require, whole
from segmod.ground.palettes import VOC_CLASSES, VOC_PALETTE
from segmod.ground.types import IGNORE_INDEX, Amount, FloatArray, Images, Side, UInt8Array

_CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
_MAX_OBJECTS = 4


class SyntheticScenes(Dataset):
    """Scenes as a function of (scene seed, split, index); any name of a split gives other scenes.

    Args:
        size: side of the square scenes in pixels, at least 32; or (height, width).
        train_images: scenes of a split whose name begins with ``train``.
        val_images: scenes of every other split.
        num_classes: 2..21, background included: the first ones of PASCAL VOC.
        scene_seed: seed of the scenes, apart from that of a run so that runs with other seeds share their data.

    Raises:
        UserError: a value makes no sense.
    """

    name = "Synthetic"
    image_size: tuple[int, int]

    def __init__(
        self,
        size: Side | Sequence[Side] = 128,
        train_images: Images = 512,
        val_images: Images = 64,
        num_classes: int = len(VOC_CLASSES),
        scene_seed: Amount = 0,
    ) -> None:
        sides = [size, size] if isinstance(size, int) else list(size)
        require(
            len(sides) == 2 and all(whole(side, 32) for side in sides),
            f"data.dataset.size={size}: must be a whole number of at least 32 pixels, or two: [height, width]",
        )
        for key, count in (("train_images", train_images), ("val_images", val_images)):
            require(whole(count, 1), f"data.dataset.{key}={count}: must be a whole number of at least 1")
        require(
            whole(num_classes, 2) and num_classes <= len(VOC_CLASSES),
            f"data.dataset.num_classes={num_classes}: must be 2 to {len(VOC_CLASSES)}",
        )
        require(whole(scene_seed, 0), f"data.dataset.scene_seed={scene_seed}: must be a whole number of at least 0")
        self.image_size = sides[0], sides[1]
        self.classes = VOC_CLASSES[:num_classes]
        self.train_images = train_images
        self.val_images = val_images
        self.scene_seed = scene_seed

    def names(self, split: str) -> list[str]:
        """Return the numbered scenes of a split."""
        count = self.train_images if split.startswith("train") else self.val_images
        return [f"{split}_{index:06d}" for index in range(count)]

    def read(self, split: str, name: str) -> tuple[UInt8Array, UInt8Array]:
        """Draw a scene."""
        image, mask, _ = self._draw(split, name)
        return image, mask

    def read_objects(self, split: str, name: str) -> UInt8Array:
        """Return the objects of a scene, the farthest first; one that others hide has no pixel."""
        return self._draw(split, name)[2]

    def object_source(self, split: str) -> str:
        """Return where the objects come from."""
        return "the scenes' own"

    def _draw(self, split: str, name: str) -> tuple[UInt8Array, UInt8Array, UInt8Array]:
        """Return image, mask and map of objects of a scene."""
        index = int(name.rpartition("_")[2])
        rng = np.random.default_rng((self.scene_seed, crc32(split.encode()), index))
        image = _background(rng, self.image_size)
        mask, objects = np.zeros((2, *self.image_size), dtype=np.uint8)
        # The nearest object walks through the classes, so that any K - 1 neighbouring scenes show them all.
        count = len(self.classes)
        nearest = 1 + index % (count - 1)
        others = rng.integers(1, count, size=rng.integers(0, _MAX_OBJECTS))
        for number, label in enumerate([*others.tolist(), nearest], start=1):
            _paint(rng, image, mask, objects, label, number)
        return _light(rng, image), mask, objects


def _background(rng: np.random.Generator, size: tuple[int, int]) -> UInt8Array:
    """Return clouds of muted colour, uint8 (H, W, 3)."""
    height, width = size
    coarse = rng.uniform(70, 180, size=3) + rng.normal(0, 18, size=(6, 6, 1)) + rng.normal(0, 8, size=(6, 6, 3))
    clouds = cv2.resize(coarse.clip(0, 255).astype(np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
    fine = rng.integers(0, 40, size=(height // 2 + 1, width // 2 + 1), dtype=np.uint8)
    grain = cv2.resize(fine, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(cv2.subtract(clouds, cv2.merge([grain] * 3)), dtype=np.uint8)


def _paint(
    rng: np.random.Generator, image: UInt8Array, mask: UInt8Array, objects: UInt8Array, label: int, number: int
) -> None:
    """Draw one object of a class over image, mask and map of objects, with its void border."""
    height, width = mask.shape
    look = LOOKS[label - 1]
    # At least a sixth of the short side: what is smaller would be all border.
    radius = rng.uniform(0.17, 0.38) * min(height, width)
    angle = rng.uniform(-0.35, 0.35)
    mirror = rng.choice((-1.0, 1.0))
    turn = radius * np.array([[np.cos(angle) * mirror, -np.sin(angle)], [np.sin(angle) * mirror, np.cos(angle)]])
    centre = rng.uniform((0.2 * width, 0.2 * height), (0.8 * width, 0.8 * height))
    corners = [np.rint(part @ turn.T + centre).astype(np.int32) for part in look.outline]

    low = np.maximum(np.min([part.min(axis=0) for part in corners], axis=0) - 2, 0)
    high = np.minimum(np.max([part.max(axis=0) for part in corners], axis=0) + 3, (width, height))
    region = slice(low[1], high[1]), slice(low[0], high[0])
    body = np.zeros((high[1] - low[1], high[0] - low[0]), dtype=np.uint8)
    for part in corners:
        cv2.fillPoly(body, [part - low], 1)

    inside = body.astype(bool)
    image[region][inside] = _texture(rng, look, body.shape, radius)[inside]
    outer = cv2.dilate(body, _CROSS)
    inner = cv2.erode(body, _CROSS) if rng.random() < 0.5 else body
    for labels, value in ((mask, label), (objects, number)):
        labels[region][inside] = value
        labels[region][outer != inner] = IGNORE_INDEX


def _texture(rng: np.random.Generator, look: Look, shape: tuple[int, ...], radius: float) -> UInt8Array:
    """Return the class's two colours in its pattern, uint8 (H, W, 3)."""
    jitter = rng.integers(-22, 23, size=3)
    colours = (np.array([look.colour, look.second]) + jitter).clip(0, 255).astype(np.uint8)
    period = radius * rng.uniform(0.25, 0.4)
    rows = np.arange(shape[0], dtype=np.float32)[:, None] / period + rng.uniform()
    columns = np.arange(shape[1], dtype=np.float32)[None, :] / period + rng.uniform()
    phase = _pattern(look.texture, rows, columns)
    return colours[np.broadcast_to(phase, shape).astype(np.intp)]


def _pattern(texture: str, rows: FloatArray, columns: FloatArray) -> npt.NDArray[np.bool_]:
    """Return where a texture shows its second colour; rows (H, 1) and columns (1, W) count periods."""
    match texture:
        case "stripes":
            return np.asarray((rows + columns) % 1 < 0.4)
        case "bars":
            return np.asarray(rows % 1 < 0.4)
        case "checks":
            return np.asarray((rows % 1 < 0.5) ^ (columns % 1 < 0.5))
        case "dots":
            return np.asarray((rows % 1 - 0.5) ** 2 + (columns % 1 - 0.5) ** 2 < 0.1)
        case _:
            return np.zeros((1, 1), dtype=np.bool_)


def _light(rng: np.random.Generator, image: UInt8Array) -> UInt8Array:
    """Shade the scene from one side to the other and add sensor noise."""
    height, width = image.shape[:2]
    corners = rng.uniform(0.7, 1.2, size=(2, 2)).astype(np.float32)
    shade = cv2.resize(corners, (width, height), interpolation=cv2.INTER_LINEAR)
    lit = cv2.multiply(image, cv2.merge([shade] * 3), dtype=cv2.CV_8U)
    noise = rng.integers(-8, 8, size=image.shape, dtype=np.int8)
    return np.asarray(cv2.add(lit, noise, dtype=cv2.CV_8U), dtype=np.uint8)


def write_voc_tree(
    root: Path,
    train: int = 8,
    val: int = 4,
    size: tuple[int, int] = (96, 128),
    year: int = 2012,
    num_classes: int = len(VOC_CLASSES),
) -> Path:
    """Write scenes in the directory layout of PASCAL VOC and return the folder of the year.

    Args:
        root: folder that will hold ``VOCdevkit``.
        train: number of training images.
        val: number of validation images.
        size: (height, width) in pixels.
        year: year of the challenge, which names the folder.
        num_classes: see `SyntheticScenes`.
    """
    voc = root / "VOCdevkit" / f"VOC{year}"
    for folder in ("JPEGImages", "SegmentationClass", "SegmentationObject", "ImageSets/Segmentation"):
        (voc / folder).mkdir(parents=True, exist_ok=True)
    names: dict[str, list[str]] = {}
    scenes = SyntheticScenes(size, train, val, num_classes)
    for split in ("train", "val"):
        names[split] = []
        for scene in scenes.names(split):
            name = f"{year}_{crc32(scene.encode()) % 10**6:06d}"
            names[split].append(name)
            image, mask = scenes.read(split, scene)
            Image.fromarray(image).save(voc / "JPEGImages" / f"{name}.jpg", quality=92)
            objects = scenes.read_objects(split, scene)
            for folder, labels in (("SegmentationClass", mask), ("SegmentationObject", objects)):
                png = Image.fromarray(labels, mode="P")
                png.putpalette(VOC_PALETTE.tobytes())
                png.save(voc / folder / f"{name}.png")
    names["trainval"] = sorted(names["train"] + names["val"])
    for split, ids in names.items():
        (voc / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("".join(f"{name}\n" for name in ids))
    return voc
