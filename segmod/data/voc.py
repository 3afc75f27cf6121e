"""PASCAL VOC segmentation in its own directory layout, with or without the extra masks of SBD."""

from __future__ import annotations

import shutil
import tarfile
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from segmod.data.base import Dataset
from segmod.data.instances import COMPONENTS
from segmod.data.sbd import SBD_SPLITS, download_sbd, read_ids, read_mat, sbd_masks, unpacking
from segmod.ground.errors import UserError, reason, require
from segmod.ground.files import open_file, writing
from segmod.ground.names import require_name
from segmod.ground.palettes import VOC_CLASSES
from segmod.ground.types import IGNORE_INDEX, UInt8Array

YEARS = range(2007, 2013)
_TAIL_BYTES = 4096
_DOWNLOAD_BYTES = 5 * 10**9  # archive and unpacked tree of 2012, the largest


class PascalVOC(Dataset):
    """PASCAL VOC on disk.

    Masks are palette indices 0..20, and 255 for void. Splits are the lists in ``ImageSets/Segmentation``: ``train``,
    ``val``, ``trainval``, ``test``, or one of your own; a split without published masks (``test``) has masks of 255.
    Four more are of what other authors trained and scored on:

    - ``trainaug``: VOC train and the images of SBD that are not in VOC val;
    - ``trainvalaug``: VOC trainval and all other images of SBD, before a submission of ``test``;
    - ``sbd_train``: SBD's own list of that name with SBD's masks, without VOC val (Long et al. 2015 keep it);
    - ``seg11valid``: the 736 images of VOC 2011 val that SBD train lacks, what Long et al. 2015 are scored on.

    Args:
        root: folder that holds ``VOCdevkit``, or ``VOCdevkit`` itself, or the folder of the year.
        year: 2007..2012.
        sbd_root: folder of SBD (``cls``, ``img``); None for ``sbd`` in ``root``. Only splits of SBD need it.

    Raises:
        UserError: there is no such year.
    """

    classes = VOC_CLASSES

    def __init__(self, root: str | Path, year: int = 2012, sbd_root: str | Path | None = None) -> None:
        require(
            year in YEARS,
            f"data.dataset.year={year}: PASCAL VOC segmentation has the years {YEARS[0]} to {YEARS[-1]}",
        )
        self.name = f"VOC{year}"
        self.root = Path(root).expanduser()
        self.year = year
        self.sbd_root = Path(sbd_root).expanduser() if sbd_root else self.root / "sbd"
        self._masks: dict[str, dict[str, Path]] = {}  # file by name, of the splits asked for

    def names(self, split: str) -> list[str]:
        """Return the ids of a split.

        Raises:
            UserError: the folder of the year, the list of the split or the masks of SBD are missing.
        """
        return list(self._mask_files(split))

    def read(self, split: str, name: str) -> tuple[UInt8Array, UInt8Array]:
        """Read one image and mask.

        Raises:
            UserError: a file is missing or corrupt.
        """
        image_file, mask_file = self.files(split, name)
        image = read_image(image_file)
        if split == "test" and not mask_file.exists():
            return image, np.full(image.shape[:2], IGNORE_INDEX, dtype=np.uint8)
        return image, read_mat(mask_file) if mask_file.suffix == ".mat" else read_mask(mask_file)

    def files(self, split: str, name: str) -> tuple[Path, Path]:
        """Return the files of image and mask; SBD brings copies of images for who has a smaller VOC."""
        file = self._folder / "JPEGImages" / f"{name}.jpg"
        copy = self.sbd_root / "img" / f"{name}.jpg"
        return file if file.exists() or not copy.exists() else copy, self._mask_files(split)[name]

    def read_objects(self, split: str, name: str) -> UInt8Array | None:
        """Read the objects of one image: VOC's ``SegmentationObject``, else ``inst`` of SBD, else None.

        Raises:
            UserError: the file is corrupt, or its size is not the image's.
        """
        mask_file = self._object_file(name)
        if mask_file is None:
            return None
        objects = read_mat(mask_file, "GTinst") if mask_file.suffix == ".mat" else read_mask(mask_file)
        image_file = self.files(split, name)[0]
        try:
            with open_file(image_file) as file, Image.open(file) as image:  # reads the header alone
                width, height = image.size
        except Exception as error:  # whatever PIL trips over
            raise UserError(f"{image_file}: the image is damaged or missing; {_CHECK}") from error
        if objects.shape != (height, width):
            raise UserError(
                f"{mask_file}: the map of objects is {objects.shape[1]}x{objects.shape[0]} pixels but its image "
                f"{image_file} is {width}x{height}; replace one of them"
            )
        return objects

    def object_source(self, split: str) -> str:
        """Return where the objects come from and, where that is mixed, for how many images."""
        found = [self._object_file(name) for name in self.names(split)]
        counts = Counter(COMPONENTS if file is None else f"{file.parent.name}/*{file.suffix}" for file in found)
        if len(counts) == 1:
            return next(iter(counts))
        return ", ".join(f"{source} ({count} images)" for source, count in counts.most_common())

    def download(self, splits: Sequence[str]) -> None:
        """Fetch what is missing: the year's trainval archive, and SBD for the splits that need it.

        Raises:
            UserError: the download failed or the disk is too full.
        """
        download_voc(self.root, self.year)
        if SBD_SPLITS.intersection(splits):
            download_sbd(self.sbd_root)

    @cached_property
    def _folder(self) -> Path:
        """Folder of the year."""
        return _folder_of(self.root, self.year)

    def _mask_files(self, split: str) -> dict[str, Path]:
        """Return the mask of each image of a split, in the order of its list."""
        if split not in self._masks:
            own = {"sbd_train": "val", "trainaug": "train", "trainvalaug": "trainval"}.get(split, split)
            names = self._ids(own)
            masks = {name: self._folder / "SegmentationClass" / f"{name}.png" for name in names}
            if split in SBD_SPLITS:
                exclude = {*names, *(self._ids("val") if split == "trainaug" else ())}
                further = sbd_masks(self._folder, self.sbd_root, split, exclude)
                masks = further if split == "sbd_train" else masks | further
            self._masks[split] = masks
        return self._masks[split]

    def _ids(self, split: str) -> list[str]:
        """Return the ids on a list."""
        require_name(split, "split ", nested=False)
        file = self._folder / "ImageSets" / "Segmentation" / f"{split}.txt"
        if split == "seg11valid" and not file.is_file():
            file = Path(__file__).with_name("seg11valid.txt")
        if not file.is_file():
            lists = ", ".join(sorted(found.stem for found in file.parent.glob("*.txt")))
            remedy = f"choose one of {lists}, or put the list there" if lists else _remedy(self.root, self.year)
            raise UserError(f"{file}: no such list for split {split}; {remedy}")
        names = read_ids(file)
        if not names:
            raise UserError(f"{file}: the list is empty; {_remedy(self.root, self.year)}")
        return [require_name(name, f"{file}: ") for name in names]

    def _object_file(self, name: str) -> Path | None:
        files = self._folder / "SegmentationObject" / f"{name}.png", self.sbd_root / "inst" / f"{name}.mat"
        return next((file for file in files if file.is_file()), None)


def read_image(file: Path) -> UInt8Array:
    """Return a JPEG as uint8 (H, W, 3) RGB, in the orientation it is stored in, which is that of its mask.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        with open_file(file) as opened:
            data = np.fromfile(opened, dtype=np.uint8)
    except OSError as error:
        raise UserError(f"{file}: cannot read the image ({reason(error)}); {_CHECK}") from error
    # A cut-off JPEG decodes to a picture with a grey rest; it lacks the end-of-image marker. Only the tail counts:
    # a thumbnail near the start has such a marker, too, and what may follow the image's own is short.
    whole = b"\xff\xd9" in data[-_TAIL_BYTES:].tobytes()
    image = None
    with suppress(cv2.error):  # more pixels than OpenCV takes
        image = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION) if whole else None
    if image is None:
        raise UserError(f"{file}: the image is damaged or no JPEG; {_CHECK}")
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image), dtype=np.uint8)


def read_mask(file: Path) -> UInt8Array:
    """Return the indices of a palette (or grey) PNG, uint8 (H, W).

    Raises:
        UserError: the file is missing or damaged, or holds colours instead of indices.
    """
    try:
        with open_file(file) as opened, Image.open(opened) as png:
            mode, mask = png.mode, np.array(png, dtype=np.uint8)
    except FileNotFoundError as error:
        raise UserError(f"{file}: cannot read the mask ({reason(error)}); {_CHECK}") from error
    except Exception as error:  # whatever PIL trips over
        raise UserError(f"{file}: the mask is damaged ({reason(error)}); {_CHECK}") from error
    if mode not in ("P", "L"):
        raise UserError(f"{file}: the mask is stored as {mode} colours; store class indices (mode P or L)")
    return mask


_CHECK = "`segmod-train data.verify=true` with your other options lists all bad files"


def _candidates(root: Path, year: int) -> tuple[Path, ...]:
    """Return where the folder of a year may be; the 2011 archive wraps one more folder round it."""
    folder = f"VOC{year}"
    return root / "VOCdevkit" / folder, root / folder, root / "TrainVal" / "VOCdevkit" / folder


def _folder_of(root: Path, year: int) -> Path:
    for folder in _candidates(root, year):
        if folder.is_dir():
            return folder
    if (root / "ImageSets").is_dir():
        return root
    raise UserError(f"{_candidates(root, year)[0]}: no such folder; {_remedy(root, year)}")


def _remedy(root: Path, year: int) -> str:
    wanted = "" if year == YEARS[-1] else f" data.dataset.year={year}"
    command = f"segmod-train data=voc data.root={root}{wanted} data.download=true"
    return f"set data.root to where VOC is, or download it: {command}"


def download_voc(root: Path, year: int) -> None:
    """Fetch the train and val images of a year through torchvision, unless they are there.

    Raises:
        UserError: the download failed or the disk is too full.
    """
    if any((folder / "ImageSets" / "Segmentation").is_dir() for folder in (*_candidates(root, year), root)):
        return
    from torchvision.datasets import VOCSegmentation as Download  # takes seconds to import, rarely needed

    with writing(root / "VOCdevkit"):
        require_space(root, _DOWNLOAD_BYTES)
    try:
        with unpacking(_DOWNLOAD_BYTES):
            Download(str(root), year=str(year), image_set="trainval", download=True)
    except (OSError, RuntimeError, tarfile.TarError) as error:
        for folder in _candidates(root, year):  # what is half unpacked would pass for the whole
            shutil.rmtree(folder / "ImageSets" / "Segmentation", ignore_errors=True)
        raise UserError(
            f"{root}: the download of PASCAL VOC {year} failed ({reason(error)}); "
            "try again, or unpack its trainval archive there"
        ) from error


def require_space(folder: Path, needed: int) -> None:
    """Check the free bytes of a disk before a download.

    Raises:
        UserError: there is less than ``needed``.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder}: {free / 1e9:.1f} GB free, the download needs {needed / 1e9:.0f} GB; "
            "free some space or set data.root to another disk"
        )
