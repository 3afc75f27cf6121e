"""The extra masks of the Semantic Boundaries Dataset (Hariharan et al. 2011) for images of PASCAL VOC.

They come in two forms: SBD's own ``cls/*.mat``, or PNG label images in ``SegmentationClassAug`` beside VOC's masks.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from scipy.io import loadmat

from segmod.ground.errors import UserError, reason
from segmod.ground.files import open_file, read_text
from segmod.ground.types import UInt8Array

SBD_SPLITS = frozenset({"trainaug", "trainvalaug", "sbd_train"})
_UNPACKED_BYTES = 5 * 10**9


def sbd_masks(voc: Path, sbd: Path, split: str, exclude: set[str]) -> dict[str, Path]:
    """Return the mask file of each image of SBD that a split has, by id.

    Args:
        voc: folder of a VOC year; its ``SegmentationClassAug`` is preferred.
        sbd: folder of SBD.
        split: one of `SBD_SPLITS`; ``sbd_train`` follows SBD's own list, ``train.txt``.
        exclude: ids to leave out: those that would leak into training, and those whose masks of VOC are better.

    Raises:
        UserError: neither form is there; the list is missing or names what is not there.
    """
    png, mat = voc / "SegmentationClassAug", sbd / "cls"
    files = sorted(png.glob("*.png")) or sorted(mat.glob("*.mat"))
    if not files:
        raise UserError(
            f"split {split} needs the masks of SBD: neither {png}/*.png nor {mat}/*.mat exist; "
            "set data.dataset.sbd_root to where SBD is, or download it: "
            f"segmod-train data=voc_aug data.root={sbd.parent} data.download=true"
        )
    masks = {file.stem: file for file in files if file.stem not in exclude}
    if split != "sbd_train":
        return masks
    place = sbd / "train.txt"
    if not place.is_file():
        raise UserError(
            f"{place}: split sbd_train needs SBD's own list; take it from the archive, or train on trainaug"
        )
    names = [name for name in read_ids(place) if name not in exclude]
    if missing := [name for name in names if name not in masks]:
        raise UserError(
            f"{place}: no mask of {missing[0]} and {len(missing) - 1} more: take SBD from its archive again"
        )
    return {name: masks[name] for name in names}


def read_ids(file: Path) -> list[str]:
    """Return the names on a list, whatever blanks stand between them.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        text = read_text(file)
    except OSError as error:
        raise UserError(f"{file}: cannot read the list ({reason(error)}); give a readable text file") from error
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise UserError(f"{file}: the list is no plain text: store it as UTF-8, an id a line")
    return text.split()


def read_mat(file: Path, struct: str = "GTcls") -> UInt8Array:
    """Return the labels of a ``.mat`` file of SBD, uint8 (H, W).

    Args:
        file: one of ``cls/*.mat``, or of ``inst/*.mat``.
        struct: ``GTcls`` for classes, ``GTinst`` for the numbers of objects.

    Raises:
        UserError: the file is missing, damaged or of another kind.
    """
    try:
        with open_file(file) as opened:
            return np.array(loadmat(opened)[struct][0, 0]["Segmentation"], dtype=np.uint8)
    except FileNotFoundError as error:
        raise UserError(f"{file}: cannot read the mask ({reason(error)}); take SBD from its archive again") from error
    # scipy reports a damaged file by whatever its parser trips over.
    except Exception as error:
        raise UserError(
            f"{file}: the mask is damaged or not SBD's ({reason(error)}); take it from the archive again"
        ) from error


def download_sbd(folder: Path) -> None:
    """Fetch SBD through torchvision into ``folder``, unless its masks are there.

    Raises:
        UserError: the download failed.
    """
    if (folder / "cls").is_dir():
        return
    from torchvision.datasets import SBDataset  # takes seconds to import, rarely needed

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with unpacking(_UNPACKED_BYTES):
            SBDataset(str(folder), image_set="train", mode="segmentation", download=True)
    except (OSError, RuntimeError, tarfile.TarError) as error:
        raise UserError(
            f"{folder}: the download of SBD failed ({reason(error)}); "
            "try again, or unpack img and cls of its archive there"
        ) from error


@contextmanager
def unpacking(most: int) -> Iterator[None]:
    """Let archives be unpacked into their folder alone: no path or link that leads out of it, no device.

    Torchvision compares an archive's checksum before it unpacks it, but would then do all that stands in it.

    Args:
        most: bytes that may come out.
    """
    room = most

    def keep(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo | None:
        nonlocal room
        room -= member.size
        if room < 0:
            raise tarfile.TarError(f"more than {most / 1e9:.0f} GB come out of it")
        return tarfile.data_filter(member, path)

    before = tarfile.TarFile.extraction_filter
    tarfile.TarFile.extraction_filter = staticmethod(keep)
    try:
        yield
    finally:
        tarfile.TarFile.extraction_filter = before
