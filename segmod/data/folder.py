"""Data of one's own: a folder of images and masks, in the layouts in which people keep them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from segmod.data.base import Dataset
from segmod.data.classes import palette_of, read_classes, text_of
from segmod.data.masks import MaskReader
from segmod.data.pictures import read_picture
from segmod.ground.errors import UserError, require
from segmod.ground.files import open_file
from segmod.ground.types import IGNORE_INDEX, UInt8Array

IMAGE_FILES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")
_MASK_FILES = (".png", ".tif", ".tiff", ".bmp", ".webp", ".gif")  # JPEG would change labels
_IMAGES = ("images", "imgs", "image", "img", "JPEGImages")
_MASKS = ("masks", "mask", "labels", "label", "annotations", "annot", "gt", "SegmentationClass")
_LISTS = ("{split}.txt", "splits/{split}.txt", "lists/{split}.txt", "ImageSets/Segmentation/{split}.txt")
SPELLINGS = {"train": ("train", "training"), "val": ("val", "valid", "validation")}
"""What folders and files of a split are called."""


class ImageFolder(Dataset):
    """Images and masks in folders, matched by their names.

    Unless ``images`` and ``masks`` say where they are, these layouts are looked for, with ``images`` or one of its
    synonyms (``imgs``, ``img``, ``JPEGImages``) and ``masks`` or one of its own (``labels``, ``annotations``, ``gt``,
    ``SegmentationClass``): ``images/train`` + ``masks/train``; ``train/images`` + ``train/masks``; ``train`` +
    ``trainannot``; and ``images`` + ``masks``, split by lists (``train.txt``, in the folder, ``splits``, ``lists`` or
    ``ImageSets/Segmentation``) or, without any, by a hash of each name, so that an image stays where it is whatever is
    added. ``valid`` and ``validation`` serve as ``val``. Splits ``train`` and ``val`` of a folder without lists are
    disjoint, and ``all`` is both.

    Masks hold an index or a colour for each pixel: PNG, TIFF or BMP with a palette, grey (8 or 16 bit), or RGB.

    Args:
        root: the folder.
        name: as records and tables show it; None for the folder's own.
        classes: their names, in the order of their labels; or each with its colour; or a file of these, below ``root``;
            or how many there are. None looks for ``classes.txt``, ``labelmap.txt``, ``class_dict.csv``, or the like.
        colours: (r, g, b) of each class, 0..255, for masks in colours; None for those that come with ``classes``.
        labels: what masks store for each class, where that is not 0, 1, 2, ...; or for the first, the others following.
        void: what else masks may store: values or colours that are no class; or ``rest``, all others.
        images: pattern of the images' files below ``root``, with ``{name}`` and, if it has splits, ``{split}``:
            ``leftImg8bit/{split}/{name}_leftImg8bit.png``. Names may hold folders; without a suffix any kind of image.
        masks: the same of the masks.
        lists: pattern of the lists of splits below ``root``, with ``{split}``, where it is not a usual one.
        val_fraction: share of the images that is ``val`` where nothing else splits them.

    Raises:
        UserError: the folder or its classes cannot be found or understood.
    """

    def __init__(
        self,
        root: str | Path,
        name: str | None = None,
        classes: Sequence[str] | Mapping[str, Sequence[int]] | str | int | None = None,
        colours: Sequence[Sequence[int]] | None = None,
        labels: Sequence[int] | int | None = None,
        void: Sequence[int | Sequence[int]] | str = (IGNORE_INDEX,),
        images: str | None = None,
        masks: str | None = None,
        lists: str | None = None,
        val_fraction: float = 0.2,
    ) -> None:
        self.root = Path(root).expanduser()
        require(self.root.is_dir(), f"data.root={root}: no such folder; give the one that holds images and masks")
        self.name = name or self.root.resolve().name
        self.classes, own = read_classes(self.root, classes)
        self.masks = MaskReader(self.classes, colours if colours is not None else own, labels, void)
        self.palette = palette_of(self.masks.colours)
        require(0 < val_fraction < 1, f"data.dataset.val_fraction={val_fraction}: must be above 0 and below 1")
        self.lists = _LISTS if lists is None else (lists,)
        self.val_fraction = val_fraction
        for key, pattern in (("images", images), ("masks", masks)):
            require(
                (images is None) == (masks is None) and (pattern is None or pattern.count("{name}") == 1),
                f"data.dataset.{key}={pattern}: give both patterns, each with {{name}} once, or neither",
            )
        self._given = (images, masks) if images is not None and masks is not None else None
        self._files: dict[str, dict[str, tuple[Path, Path]]] = {}

    # -- which images there are --------------------------------------------------------------------------------------

    def names(self, split: str) -> list[str]:
        """Return the names of a split: paths below the folder of images without what all end in.

        Raises:
            UserError: there is no such split; an image has no mask, or two; a list names what is not there.
        """
        return list(self._split(split))

    def files(self, split: str, name: str) -> tuple[Path, Path]:
        """Return the files of image and mask."""
        return self._split(split)[name]

    def _split(self, split: str) -> dict[str, tuple[Path, Path]]:
        """Image and mask by name, sorted."""
        if split not in self._files:
            images, masks, spelt = self._layout(split)
            found = self._expand(images, spelt, IMAGE_FILES)
            if "{split}" not in images:
                found = self._chosen(found, split)
            matched = self._match(found, masks, spelt)
            require(
                bool(matched), f"{self.root}: split {split} has no images; look at data.dataset.images and the lists"
            )
            self._files[split] = matched
        return self._files[split]

    def _layout(self, split: str) -> tuple[str, str, str]:
        """Patterns of images and masks, and how the folders spell the split."""
        spellings = SPELLINGS.get(split, (split,))
        if self._given:
            folder = self._given[0].partition("{name}")[0].rpartition("/")[0]
            there = [s for s in spellings if (self.root / folder.replace("{split}", s)).is_dir()]
            require(bool(there), f"{self.root / folder.replace('{split}', split)}: no such folder for split {split}")
            return (*self._given, there[0])
        pairs = [(image, mask) for image in _IMAGES for mask in _MASKS]
        layouts = [
            *((f"{i}/{{split}}/{{name}}", f"{m}/{{split}}/{{name}}") for i, m in pairs),
            *((f"{{split}}/{i}/{{name}}", f"{{split}}/{m}/{{name}}") for i, m in pairs),
            ("{split}/{name}", "{split}annot/{name}"),
            *((f"{i}/{{name}}", f"{m}/{{name}}") for i, m in pairs),
        ]
        for images, masks in layouts:
            for spelt in spellings:
                folders = [self.root / p.removesuffix("/{name}").replace("{split}", spelt) for p in (images, masks)]
                if all(folder.is_dir() for folder in folders) and not self._has_splits_below(images):
                    return images, masks, spelt
        nested = sorted({p.name for i in _IMAGES for p in (self.root / i).glob("*") if p.is_dir()})
        nested.extend(p.parent.name for i in _IMAGES for p in sorted(self.root.glob(f"*/{i}")) if p.is_dir())
        hint = f"there are {', '.join(nested)}" if nested else "expected images/ and masks/, or train/images, ..."
        raise UserError(
            f"{self.root}: no images and masks of split {split} ({hint}); choose data.train_split and data.val_split, "
            "or say where they are: data.dataset.images=PATTERN data.dataset.masks=PATTERN"
        )

    def _has_splits_below(self, images: str) -> bool:
        """Whether a folder that a layout takes as a whole is divided into splits, without the one asked for."""
        if "{split}" in images:
            return False
        folder = self.root / images.removesuffix("/{name}")
        return any((folder / spelt).is_dir() for names in SPELLINGS.values() for spelt in names)

    def _expand(self, pattern: str, split: str, kinds: Sequence[str]) -> dict[str, Path]:
        """The files of a pattern by name.

        Raises:
            UserError: two files have one name.
        """
        before, _, after = pattern.replace("{split}", split).partition("{name}")
        folder, _, start = before.rpartition("/")
        base = self.root / folder
        found: dict[str, Path] = {}
        for path in sorted(base.rglob("*")):
            relative = path.relative_to(base).as_posix()
            fits = relative.startswith(start) and (relative.endswith(after) if after else path.suffix.lower() in kinds)
            if not fits or not path.is_file() or path.name.startswith("."):
                continue
            end = len(relative) - len(after if after else path.suffix)
            name = relative[len(start) : end]
            require(name not in found, f"{path}: {found.get(name)} has the same name; rename or remove one of them")
            found[name] = path
        return found

    def _match(self, images: dict[str, Path], masks: str, split: str) -> dict[str, tuple[Path, Path]]:
        """Give each image its mask."""
        found = self._expand(masks, split, _MASK_FILES)
        missing = [name for name in images if name not in found]
        if missing:
            place = self.root / masks.replace("{split}", split)
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise UserError(
                f"{images[missing[0]]}: has no mask{more}; expected {str(place).replace('{name}', missing[0])} "
                f"({', '.join(_MASK_FILES)}): add it or remove the image"
            )
        return {name: (path, found[name]) for name, path in images.items()}

    def _chosen(self, found: dict[str, Path], split: str) -> dict[str, Path]:
        """Those of all images that are of a split, by its list or by the hash of their names."""
        for pattern in self.lists:
            file = self.root / pattern.replace("{split}", split)
            if file.is_file():
                return _listed(found, file)
        if split == "all":
            return found
        lists = sorted(
            {path.name for pattern in self.lists for path in self.root.glob(pattern.replace("{split}", "*"))}
        )
        lists = [name for name in lists if name.removesuffix(".txt") in ("train", "val", "test")]
        require(
            split in ("train", "val") and not lists,
            f"{self.root}: no list {split}.txt; "
            + (f"there are {', '.join(lists)}" if lists else "choose train, val or all"),
        )
        return part_of(found, split, self.val_fraction)

    # -- what is in them ---------------------------------------------------------------------------------------------

    def read(self, split: str, name: str) -> tuple[UInt8Array, UInt8Array]:
        """Read one image and mask.

        An image is turned as its EXIF tag says, unless its mask fits it as it is stored.

        Raises:
            UserError: a file is damaged, or the mask stores what is no class.
        """
        image_file, mask_file = self.files(split, name)
        mask = self.masks.read(mask_file)
        return read_any(image_file, (mask.shape[0], mask.shape[1])), mask


def _listed(found: dict[str, Path], file: Path) -> dict[str, Path]:
    """The images on a list, whose lines are names or paths of images, anything after a space left aside."""
    chosen: dict[str, Path] = {}
    ends = {Path(name).name: name for name in found}
    for number, line in enumerate(text_of(file).splitlines(), 1):
        if not (words := line.split()):
            continue
        path = Path(words[0])
        stem = path.with_suffix("") if path.suffix.lower() in IMAGE_FILES else path
        name = next((n for n in (stem.as_posix(), ends.get(stem.name, "")) if n in found), None)
        if name is None:
            raise UserError(f"{file}, line {number}: there is no image {words[0]}; mend the line or add the image")
        chosen[name] = found[name]
    return chosen


def held_out(names: Sequence[str], fraction: float) -> set[str]:
    """About a share of some names, at least one: those whose hash is lowest, whatever the others are called."""
    ranks = {name: int.from_bytes(hashlib.sha256(name.encode()).digest()[:6]) / 2**48 for name in names}
    return {name for name in names if ranks[name] < fraction} or set(sorted(names, key=ranks.__getitem__)[:1])


def part_of(found: Mapping[str, Any], split: str, fraction: float) -> dict[str, Any]:
    """Those of all images that are of ``train`` or ``val``, by `held_out`."""
    ours = held_out(list(found), fraction)
    return {name: value for name, value in found.items() if (name in ours) == (split == "val")}


def read_any(file: Path, size: tuple[int, int]) -> UInt8Array:
    """Read an image of any format as uint8 (H, W, 3) RGB, turned as its EXIF tag says unless it then misses a size.

    Args:
        file: the image.
        size: (H, W) of its mask.

    Raises:
        UserError: the image is missing or damaged.
    """
    try:
        image = read_picture(file)
        if image.shape[:2] != size and image.shape[:2] == size[::-1]:
            with open_file(file) as opened, Image.open(opened) as stored:
                image = np.array(stored.convert("RGB"))
    except FileNotFoundError as error:
        raise UserError(f"{file}: there is no such image; add it, or take it off the list") from error
    except Exception as error:  # whatever PIL finds wrong
        raise UserError(f"{file}: the image is damaged ({str(error)[:80]}); replace it or take it away") from error
    return image


def open_folder(
    root: str | Path,
    name: str | None = None,
    classes: Sequence[str] | Mapping[str, Sequence[int]] | str | int | None = None,
    colours: Sequence[Sequence[int]] | None = None,
    labels: Sequence[int] | int | None = None,
    void: Sequence[int | Sequence[int]] | str = (IGNORE_INDEX,),
    images: str | None = None,
    masks: str | None = None,
    lists: str | None = None,
    annotations: str | None = None,
    val_fraction: float = 0.2,
) -> Dataset:
    """The data in a folder: a `CocoFolder` where ``annotations`` are given, or found and no masks are; else images.

    Raises:
        UserError: as those of `ImageFolder` and `CocoFolder`; a key is for the other of the two.
    """
    from segmod.data.coco import CocoFolder, find_json  # which imports this module

    folder = Path(root).expanduser()
    require(folder.is_dir(), f"data.root={root}: no such folder; give the one that holds images and masks")
    if annotations is None and (masks is not None or find_json(folder, "train") is None):
        return ImageFolder(root, name, classes, colours, labels, void, images, masks, lists, val_fraction)
    for key, value in (
        ("classes", classes),
        ("colours", colours),
        ("labels", labels),
        ("masks", masks),
        ("lists", lists),
    ):
        require(value is None, f"data.dataset.{key}: {root} has a COCO json, which says that itself; leave it out")
    return CocoFolder(root, name, annotations, images, val_fraction)
