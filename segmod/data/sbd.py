"""The extra masks of the Semantic Boundaries Dataset (Hariharan et al. 2011) for images of PASCAL VOC.

They come in two forms: SBD's own ``cls/*.mat``, or PNG label images in ``SegmentationClassAug`` beside VOC's masks.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.io import loadmat

from segmod.ground.errors import UserError
from segmod.ground.types import UInt8Array

AUGMENTED_SPLIT = "trainaug"


def augmented_masks(voc: Path, sbd: Path, exclude: set[str]) -> dict[str, Path]:
    """Return the mask file of each image of SBD, by id.

    Args:
        voc: folder of a VOC year; its ``SegmentationClassAug`` is preferred.
        sbd: folder of SBD.
        exclude: ids to leave out: VOC val, which would leak into training, and VOC train, whose own masks are better.

    Raises:
        UserError: neither form is there.
    """
    png, mat = voc / "SegmentationClassAug", sbd / "cls"
    files = sorted(png.glob("*.png")) or sorted(mat.glob("*.mat"))
    if not files:
        raise UserError(
            f"split {AUGMENTED_SPLIT} needs the masks of SBD: neither {png}/*.png nor {mat}/*.mat exist; "
            "set data.dataset.sbd_root to where SBD is, or download it: "
            f"segmod-train data=voc_aug data.root={sbd.parent} data.download=true"
        )
    return {file.stem: file for file in files if file.stem not in exclude}


def read_mat(file: Path, struct: str = "GTcls") -> UInt8Array:
    """Return the labels of a ``.mat`` file of SBD, uint8 (H, W).

    Args:
        file: one of ``cls/*.mat``, or of ``inst/*.mat``.
        struct: ``GTcls`` for classes, ``GTinst`` for the numbers of objects.

    Raises:
        UserError: the file is missing, damaged or of another kind.
    """
    try:
        return np.array(loadmat(file)[struct][0, 0]["Segmentation"], dtype=np.uint8)
    except FileNotFoundError as error:
        raise UserError(f"{file}: cannot read the mask ({error.strerror}); take SBD from its archive again") from error
    # scipy reports a damaged file by whatever its parser trips over.
    except Exception as error:
        raise UserError(
            f"{file}: the mask is damaged or not SBD's ({error}); take it from the archive again"
        ) from error


def download_sbd(folder: Path) -> None:
    """Fetch SBD through torchvision into ``folder``, unless its masks are there.

    Raises:
        UserError: the download failed.
    """
    if (folder / "cls").is_dir():
        return
    from torchvision.datasets import SBDataset  # takes seconds to import, rarely needed

    folder.mkdir(parents=True, exist_ok=True)
    try:
        SBDataset(str(folder), image_set="train", mode="segmentation", download=True)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{folder}: the download of SBD failed ({error}); try again, or unpack img and cls of its archive there"
        ) from error
