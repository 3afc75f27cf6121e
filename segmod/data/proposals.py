"""Sources of object proposals that need no storage: sliding windows, the ground truth, the files of another tool.

A source is a `segmod.ground.types.ProposalSource`; `segmod.data.edgeboxes` has the one that DeconvNet uses.
"""

from __future__ import annotations

import json
import logging
import math
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray
from torch.utils.data import get_worker_info

from segmod.data.base import Dataset
from segmod.data.instances import find_instances
from segmod.ground.boxes import clip
from segmod.ground.errors import UserError, reason, require, whole
from segmod.ground.files import open_file, read_text
from segmod.ground.types import IGNORE_INDEX, Factor, FloatArray, Fraction, Images, UInt8Array

log = logging.getLogger(__name__)

Coordinates = Literal["xyxy", "xywh", "yxyx"]
_MOST_BYTES = 2**24  # that the boxes of an image may take, 400 000 of them; a packed file may claim terabytes


class GridBoxes:
    """Windows slid over the image at several sizes and shapes: no model, and the same boxes for every image of a size.

    The score is the window's share of the image, less up to a half with its distance from the middle: large and central
    objects are the most frequent ones.

    Args:
        scales: sides of the windows as fractions of the image's, each above 0 and at most 1.
        aspects: width / height of the windows, relative to the image's own.
        overlap: share of a window that the next one covers, at least 0 and below 1.
        max_boxes: so many of the best.
    """

    def __init__(
        self,
        scales: Sequence[Fraction] = (1.0, 0.75, 0.5, 0.35, 0.25),
        aspects: Sequence[Factor] = (0.5, 1.0, 2.0),
        overlap: float = 0.5,
        max_boxes: Images = 2000,
    ) -> None:
        require(
            bool(scales) and all(0 < scale <= 1 for scale in scales),
            f"proposals.scales={list(scales)}: each must be above 0 and at most 1",
        )
        require(
            bool(aspects) and all(aspect > 0 for aspect in aspects),
            f"proposals.aspects={list(aspects)}: each must be above 0",
        )
        require(0 <= overlap < 1, f"proposals.overlap={overlap}: must be at least 0 and below 1")
        require_boxes(max_boxes)
        self.scales = scales
        self.aspects = aspects
        self.overlap = overlap
        self.max_boxes = max_boxes

    def __call__(self, name: str, image: UInt8Array, mask: UInt8Array | None = None) -> FloatArray:
        """Return the windows; see `segmod.ground.types.ProposalSource`."""
        height, width = image.shape[:2]
        shapes = {
            (min(1.0, scale * aspect**0.5), min(1.0, scale / aspect**0.5))
            for scale in self.scales
            for aspect in self.aspects
        }
        boxes = [
            (left, top, left + across, top + down)
            for across, down in shapes
            for left in self._starts(across)
            for top in self._starts(down)
        ]
        fractions = np.array(boxes)
        middle = (fractions[:, :2] + fractions[:, 2:]) / 2 - 0.5
        distance = np.hypot(*middle.T) / np.hypot(0.5, 0.5)
        share = np.prod(fractions[:, 2:] - fractions[:, :2], axis=1)
        pixels = np.rint(fractions * (width, height, width, height))
        return tidy(np.column_stack([pixels, share * (1 - distance / 2)]), height, width)[: self.max_boxes]

    def _starts(self, side: float) -> NDArray[np.float64]:
        """Return where windows of a side begin, evenly from edge to edge, overlapping as asked or a little more."""
        room = 1 - side
        return np.linspace(0, room, 1 + int(np.ceil(room / (side * (1 - self.overlap)) - 1e-9)))


class TruthBoxes:
    """Boxes of the objects, largest first: what perfect proposals would give.

    The objects are those somebody drew, where the data set has a map of them; else the pieces of each class in the
    mask, see `segmod.data.instances.find_instances`. A line in the log says which.

    Args:
        dataset: where maps of objects are from; None for pieces alone.
        splits: of the data set, where images are looked for, in this order.
    """

    def __init__(self, dataset: Dataset | None = None, splits: Sequence[str] = ()) -> None:
        self.dataset = dataset
        self.splits = splits
        self._names: dict[str, frozenset[str]] = {}  # of the splits asked so far: others may not be on the disk

    def __call__(self, name: str, image: UInt8Array, mask: UInt8Array | None = None) -> FloatArray:
        """Return the boxes, with the share of the image they cover as score.

        Raises:
            UserError: the image has no mask, or one that is all void, as the images of a test set have.
        """
        if mask is None or (mask == IGNORE_INDEX).all():
            raise UserError(
                f"proposals=gt: image {name or '(without a name)'} has no ground truth; choose proposals=edgeboxes"
            )
        objects = self._objects(name)
        if objects is not None and objects.shape != mask.shape:  # the image was resized
            objects = np.asarray(cv2.resize(objects, mask.shape[::-1], interpolation=cv2.INTER_NEAREST_EXACT))
        instances, _ = find_instances(mask, objects)
        boxes = np.array([instance.box for instance in instances], dtype=np.float32).reshape(-1, 4)
        area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) / mask.size
        return tidy(np.column_stack([boxes, area]), *mask.shape)

    def _objects(self, name: str) -> UInt8Array | None:
        """Return the map of objects of an image of the data set, if it has one."""
        for split in self.splits if self.dataset is not None else ():
            assert self.dataset is not None
            if split not in self._names:
                self._names[split] = frozenset(self.dataset.names(split))
                if get_worker_info() is None:
                    log.info("proposals=gt: objects of %s: %s", split, self.dataset.object_source(split))
            if name in self._names[split]:
                return self.dataset.read_objects(split, name)
        return None


class BoxFiles:
    """Boxes of any tool, read from one file an image.

    The file of image ``2007_000033`` is the first that exists of

    - ``2007_000033.npz``: array ``boxes`` (N, 4 or 5), or the only array there is; as `segmod-proposals` writes them;
    - ``2007_000033.npy``: array (N, 4 or 5);
    - ``2007_000033.json``: a list of lists of 4 or 5 numbers, or an object with such a list under ``boxes``;
    - ``2007_000033.csv`` or ``.txt``: a box a line, numbers between commas or blanks; a first line of words is skipped.

    A fifth number is the score; without one the order in the file counts, best first. What lies outside the image is
    cut off. Boxes of more than 16 MiB are refused before they are read.

    Args:
        folder: where the files are.
        coordinates: what the four numbers are: ``xyxy`` (x2, y2 exclusive), ``xywh`` or ``yxyx``, in pixels from 0.
        max_boxes: so many of the best.
    """

    def __init__(self, folder: str | Path, coordinates: Coordinates = "xyxy", max_boxes: Images = 2000) -> None:
        self.folder = Path(folder).expanduser()
        require(self.folder.is_dir(), f"proposals.folder={folder}: no such folder; it must hold one file an image")
        known = get_args(Coordinates)
        require(coordinates in known, f"proposals.coordinates={coordinates}: must be one of {', '.join(known)}")
        require_boxes(max_boxes)
        self.coordinates = coordinates
        self.max_boxes = max_boxes

    def __call__(self, name: str, image: UInt8Array, mask: UInt8Array | None = None) -> FloatArray:
        """Return the boxes of the file.

        Raises:
            UserError: there is no file for the image, or it holds no boxes.
        """
        require(bool(name), "proposals=file: an image without a name has no file; choose proposals=edgeboxes")
        files = [self.folder / f"{name}{suffix}" for suffix in _READERS]
        file = next((file for file in files if file.is_file()), None)
        if file is None:
            raise UserError(f"{self.folder / name}: no boxes for this image; looked for {', '.join(_READERS)}")
        try:
            boxes = np.asarray(_READERS[file.suffix](file))
        except Exception as error:  # each format has errors of its own
            raise UserError(f"{file}: cannot read boxes from it ({reason(error)})") from error
        if boxes.size == 0:
            return np.zeros((0, 5), dtype=np.float32)
        right = boxes.dtype.kind in "iuf" and boxes.ndim == 2 and boxes.shape[1] in (4, 5)
        if not right or not (abs(boxes := boxes.astype(np.float64)) <= np.finfo(np.float32).max).all():
            raise UserError(
                f"{file}: must hold boxes of 4 or 5 finite numbers, found an array of shape {boxes.shape} and type "
                f"{boxes.dtype}"
            )
        corners, score = boxes[:, :4], boxes[:, 4] if boxes.shape[1] == 5 else -np.arange(float(len(boxes)))
        if self.coordinates == "yxyx":
            corners = corners[:, [1, 0, 3, 2]]
        elif self.coordinates == "xywh":
            corners = np.column_stack([corners[:, :2], corners[:, :2] + corners[:, 2:]])
        return tidy(np.column_stack([corners, score]), *image.shape[:2])[: self.max_boxes]


def tidy(boxes: NDArray[np.floating], height: int, width: int) -> FloatArray:
    """Return boxes cut off at the borders of the image, best first; those of which less than a pixel is left go.

    Args:
        boxes: (N, 5), x1 y1 x2 y2 score.
        height: of the image.
        width: of the image.
    """
    boxes = boxes.astype(np.float32)
    boxes[:, :4] = clip(boxes[:, :4], height, width)
    boxes = boxes[(boxes[:, 2:4] - boxes[:, :2] >= 1).all(axis=1)]
    return boxes[np.argsort(-boxes[:, 4], kind="stable")]


def require_boxes(max_boxes: int) -> None:
    """Check ``max_boxes`` of a source."""
    require(whole(max_boxes, 1), f"proposals.max_boxes={max_boxes}: must be a whole number of at least 1")


def read_npz(file: Path, *names: str) -> list[NDArray[Any]]:
    """Return arrays of a .npz, those of some names, or the one called ``boxes``, or the only one there is.

    Raises:
        Exception: the file is damaged or of another kind, or holds no such array, or one too large for boxes.
    """
    with open_file(file) as opened, zipfile.ZipFile(opened) as archive:
        held = archive.namelist()
        members = [f"{name}.npy" for name in names] or (held if len(held) == 1 else ["boxes.npy"])
        return [_read_array(archive.open(member)) for member in members]


def _read_npy(file: Path) -> NDArray[Any]:
    with open_file(file) as opened:
        return _read_array(opened)


def _read_array(file: IO[bytes]) -> NDArray[Any]:
    """Return an array stored as .npy; its header says how large it is before any of it is read."""
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shape, by_columns, dtype = readers[np.lib.format.read_magic(file)](file)
    require(math.prod(shape) * max(dtype.itemsize, 8) <= _MOST_BYTES, f"shape {shape}, too many to be boxes")
    data = bytearray(file.read(math.prod(shape) * dtype.itemsize))
    file.read(1)  # nothing: at its end a packed file's checksum is compared
    return np.ndarray(shape, dtype, data, order="F" if by_columns else "C")


def _read_small_text(file: Path) -> str:
    require(file.stat().st_size <= _MOST_BYTES, f"more than {_MOST_BYTES} bytes, too many to be boxes")
    return read_text(file)


def _read_json(file: Path) -> Any:
    content = json.loads(_read_small_text(file))
    return content["boxes"] if isinstance(content, dict) else content


def _read_text(file: Path) -> list[list[float]]:
    lines = [line.replace(",", " ").replace(";", " ").split() for line in _read_small_text(file).splitlines()]
    lines = [line for line in lines if line]
    if lines and not _is_number(lines[0][0]):
        lines = lines[1:]
    return [[float(word) for word in line] for line in lines]


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


_READERS: dict[str, Callable[[Path], Any]] = {
    ".npz": lambda file: read_npz(file)[0],
    ".npy": _read_npy,
    ".json": _read_json,
    ".csv": _read_text,
    ".txt": _read_text,
}
