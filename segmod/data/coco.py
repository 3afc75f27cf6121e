"""Data of one's own whose masks are a COCO json: polygons and run lengths, through pycocotools."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from segmod.data.base import Dataset
from segmod.data.folder import SPELLINGS, part_of, read_any
from segmod.ground.errors import UserError, require
from segmod.ground.files import read_text
from segmod.ground.types import UInt8Array

_PLACES = (
    "annotations/instances_{split}.json", "annotations/instances_{split}2017.json", "annotations/{split}.json",
    "{split}/_annotations.coco.json", "{split}.json", "annotations/instances_default.json", "_annotations.coco.json",
    "annotations.json", "coco.json", "instances.json",
)  # fmt: skip
_FOLDERS = ("images/{split}", "{split}/images", "{split}", "{split}2017", "images", ".")


def find_json(root: Path, split: str, places: Sequence[str] = _PLACES) -> tuple[Path, bool] | None:
    """The json of a split below a folder, if there is one in a usual place, and whether it is that of all splits."""
    for place in places:
        for spelt in SPELLINGS.get(split, (split,)):
            if (root / place.replace("{split}", spelt)).is_file():
                return root / place.replace("{split}", spelt), "{split}" not in place
    return None


class CocoFolder(Dataset):
    """Images with a COCO json each split, or one for all, split by a hash of the names as `ImageFolder` does.

    Class 0 is the background, which has no annotation; the categories follow in the order of their ids. Where
    annotations overlap, the smaller lies on top. Crowds are of their class. Each annotation is an object, for nets that
    train on crops of objects.

    Args:
        root: the folder.
        name: as records and tables show it; None for the folder's own.
        annotations: the json below ``root``, with ``{split}`` if there is one a split; None looks in usual places
            (``annotations/instances_{split}.json``, ``{split}/_annotations.coco.json``, ``{split}.json``, ...).
        images: folder below ``root`` that the json's file names are of, with ``{split}`` if there is one a split.
        val_fraction: share of the images that is ``val`` where one json holds all.

    Raises:
        UserError: there is no json, or it is none of COCO's; pycocotools is not installed.
    """

    def __init__(
        self,
        root: str | Path,
        name: str | None = None,
        annotations: str | None = None,
        images: str | None = None,
        val_fraction: float = 0.2,
    ) -> None:
        try:
            import pycocotools.mask  # noqa: F401
        except ImportError as error:
            raise UserError("COCO annotations need pycocotools: pip install 'segmod[coco]'") from error
        self.root = Path(root).expanduser()
        self.name = name or self.root.resolve().name
        self.annotations = annotations
        self.images = images
        self.val_fraction = val_fraction
        self._records: dict[str, dict[str, Any]] = {}  # what is kept of each split: images and annotations by name

    @cached_property
    def classes(self) -> Sequence[str]:  # type: ignore[override]
        """Background and the categories of the training split's json, or of the only one."""
        return self._classes_of(self._json("train")[0])

    def names(self, split: str) -> list[str]:
        """Return the file names of a split's images.

        Raises:
            UserError: there is no such split; the json is damaged, or has other categories than that of train.
        """
        return list(self._split(split))

    def files(self, split: str, name: str) -> tuple[Path, Path]:
        """Return image and json."""
        return self._split(split)[name]["file"], self._json(split)[0]

    def read(self, split: str, name: str) -> tuple[UInt8Array, UInt8Array]:
        """Read an image and draw its mask.

        Raises:
            UserError: the image is damaged or of another size than the json says, or an annotation cannot be drawn.
        """
        record = self._split(split)[name]
        image = read_any(record["file"], (record["height"], record["width"]))
        mask = np.zeros((record["height"], record["width"]), dtype=np.uint8)
        for label, drawn in self._drawn(split, record):
            mask[drawn] = label
        return image, mask

    def read_objects(self, split: str, name: str) -> UInt8Array | None:
        """Return the annotations as a map of objects; None where there are more than 254."""
        record = self._split(split)[name]
        drawn = self._drawn(split, record)
        objects = np.zeros((record["height"], record["width"]), dtype=np.uint8)
        for number, (_, pixels) in enumerate(drawn, 1):
            objects[pixels] = min(number, 255)
        return objects if len(drawn) < 255 else None

    def object_source(self, split: str) -> str:
        """Return where the objects come from."""
        return "annotations of the COCO json"

    def _json(self, split: str) -> tuple[Path, bool]:
        found = find_json(self.root, split, [self.annotations] if self.annotations else _PLACES)
        if found is None:
            raise UserError(
                f"{self.root}: no COCO json of split {split}; choose another split, or say where it is: "
                "data.dataset.annotations=annotations/instances_{split}.json"
            )
        return found

    def _classes_of(self, file: Path) -> tuple[str, ...]:
        names = [str(c["name"]) for c in self._categories(file)]
        return tuple(names) if names[:1] == ["background"] else ("background", *names)

    def _categories(self, file: Path) -> list[dict[str, Any]]:
        return sorted(_load(file)["categories"], key=lambda category: int(category["id"]))

    def _split(self, split: str) -> dict[str, dict[str, Any]]:
        if split in self._records:
            return self._records[split]
        file, of_all = self._json(split)
        require(
            self._classes_of(file) == tuple(self.classes),
            f"{file}: its categories are not those of {self._json('train')[0]}; give both the same",
        )
        content = _load(file)
        categories = self._categories(file)
        first = 0 if categories and categories[0]["name"] == "background" else 1
        labels = {category["id"]: label for label, category in enumerate(categories, first)}
        by_id: dict[Any, dict[str, Any]] = {}
        for image in content["images"]:
            by_id[image["id"]] = {
                "file": Path(image["file_name"]),
                "height": int(image["height"]),
                "width": int(image["width"]),
                "annotations": [],
            }
        for number, annotation in enumerate(content["annotations"]):
            image_id, category = annotation.get("image_id"), annotation.get("category_id")
            require(image_id in by_id, f"{file}: annotation {number} is of image {image_id}, which is not in the list")
            require(
                category in labels, f"{file}: annotation {number} is of category {category}, which is not in the list"
            )
            if annotation.get("segmentation"):  # none: a box alone
                by_id[image_id]["annotations"].append((labels[category], annotation["segmentation"]))
        named = {str(Path(image["file_name"]).with_suffix("")): by_id[image["id"]] for image in content["images"]}
        require(len(named) == len(content["images"]), f"{file}: two images have one name; give each a name of its own")
        if of_all and split != "all":
            require(split in ("train", "val"), f"{file}: holds all images; choose split train, val or all")
            named = part_of(named, split, self.val_fraction)
        require(bool(named), f"{file}: split {split} has no images")
        folder = self._folder(split, content, file)
        for record in named.values():
            record["file"] = folder / record["file"]
        self._records[split] = dict(sorted(named.items()))
        return self._records[split]

    def _folder(self, split: str, content: dict[str, Any], file: Path) -> Path:
        """Where the first image is."""
        spellings = SPELLINGS.get(split, (split,))
        places = [self.images] if self.images is not None else list(_FOLDERS)
        folders = [self.root / place.replace("{split}", spelt) for place in places for spelt in spellings]
        first = next((image["file_name"] for image in content["images"]), "")
        found = next((folder for folder in folders if (folder / first).is_file()), None)
        require(
            found is not None,
            f"{file}: its image {first} is in none of {', '.join(dict.fromkeys(map(str, folders)))}; "
            "give data.dataset.images=FOLDER",
        )
        return found  # type: ignore[return-value]

    def _drawn(self, split: str, record: dict[str, Any]) -> list[tuple[int, Any]]:
        """Label and pixels, bool (H, W), of the annotations, the largest first."""
        from pycocotools import mask as runs

        height, width = record["height"], record["width"]
        drawn = []
        for label, segmentation in record["annotations"]:
            try:
                if isinstance(segmentation, list):
                    code = runs.merge(runs.frPyObjects(segmentation, height, width))
                elif isinstance(segmentation["counts"], list):
                    code = runs.frPyObjects(segmentation, height, width)
                else:
                    code = segmentation
                pixels = runs.decode(code).astype(bool)
                fits = pixels.shape == (height, width)
            except Exception as error:  # pycocotools raises what it trips over
                raise UserError(
                    f"{self._json(split)[0]}: an annotation of {record['file'].name} is neither polygons "
                    f"nor run lengths ({str(error)[:80]}); mend it"
                ) from error
            require(fits, f"{self._json(split)[0]}: an annotation of {record['file'].name} is of another size; mend it")
            drawn.append((label, pixels))
        return sorted(drawn, key=lambda item: -int(item[1].sum()))


_LOADED: dict[tuple[Path, int], dict[str, Any]] = {}


def _load(file: Path) -> dict[str, Any]:
    """The content of a json, read once; it has COCO's three lists.

    Raises:
        UserError: it has not, or is no json.
    """
    key = file, file.stat().st_mtime_ns
    if key not in _LOADED:
        try:
            content = json.loads(read_text(file))
            for name, keys in (("images", ("id", "file_name", "height", "width")), ("categories", ("id", "name"))):
                for number, entry in enumerate(content[name]):
                    missing = [k for k in keys if k not in entry]
                    require(not missing, f"{file}: {name}[{number}] has no {', '.join(missing)}; add it")
            require(isinstance(content["annotations"], list), f"{file}: its annotations are no list")
        except UserError:
            raise
        except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
            raise UserError(
                f"{file}: is no json of COCO ({type(error).__name__}: {str(error)[:80]}); write it anew"
            ) from error
        _LOADED.clear()
        _LOADED[key] = content
    return _LOADED[key]
