"""Results in the form the PASCAL VOC evaluation server takes."""

from __future__ import annotations

import gzip
import io
import shutil
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from segmod.ground.errors import UserError
from segmod.ground.files import replacing


class Submission:
    """Folder ``results/VOC<year>/Segmentation/comp6_<split>_cls`` with one label PNG an image, and its archive.

    Competition 6 allows any training data, competition 5 that of VOC alone (VOC2012 development kit, sec. 9.2).

    Args:
        directory: Where ``results`` goes; an older one is removed.
        split: Name of the image list, ``test`` for the server.
        year: Of the challenge.
        competition: ``comp5`` or ``comp6``.
    """

    def __init__(self, directory: Path, split: str, year: int = 2012, competition: str = "comp6") -> None:
        self.root = directory / "results"
        self.folder = self.root / f"VOC{year}" / "Segmentation" / f"{competition}_{split}_cls"
        self.archive = directory / f"{competition}_{split}_cls.tar.gz"

    def clear(self) -> None:
        """Make the folder, empty; files of an older evaluation would pass for this one's."""
        shutil.rmtree(self.root, ignore_errors=True)
        self.archive.unlink(missing_ok=True)
        self.folder.mkdir(parents=True)

    def path(self, name: str) -> Path:
        """Where the label PNG of an image goes."""
        return self.folder / f"{name}.png"

    def verify(self, sizes: Mapping[str, tuple[int, int]], num_classes: int) -> None:
        """Check that each image has its file, and that each file has its image's size and labels that exist.

        Args:
            sizes: (height, width) in pixels of every image of the list, by name.
            num_classes: Labels run from 0 to ``num_classes`` - 1; void is not allowed.

        Raises:
            UserError: Something is wrong; names the first file and counts the others.
        """
        faults = [f for name, size in sizes.items() if (f := _fault(self.path(name), size, num_classes)) is not None]
        faults += [
            f"{file.name} is not in the image list"
            for file in sorted(self.folder.iterdir())
            if file.suffix != ".png" or file.stem not in sizes
        ]
        if faults:
            more = f" (and {len(faults) - 1} more faults)" if len(faults) > 1 else ""
            raise UserError(f"{self.folder} is no valid submission: {faults[0]}{more}; evaluate again")

    def pack(self) -> Path:
        """Write the archive, with ``results`` at its root; equal files give equal bytes."""
        with (
            replacing(self.archive) as file,
            gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as zipped,
            tarfile.open(fileobj=zipped, mode="w", format=tarfile.USTAR_FORMAT) as tar,
        ):
            for path in sorted(self.folder.iterdir()):
                member = tarfile.TarInfo(path.relative_to(self.root.parent).as_posix())
                content = path.read_bytes()
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        return self.archive


def _fault(path: Path, size: tuple[int, int], num_classes: int) -> str | None:
    """What is wrong with a label PNG, or None."""
    try:
        with Image.open(path) as png:
            mode, labels = png.mode, np.array(png)
    except (OSError, UnidentifiedImageError, SyntaxError) as error:
        return f"{path.name} is missing" if not path.exists() else f"{path.name} cannot be read ({error})"
    if mode != "P":
        return f"{path.name} holds {mode} colours, not palette indices"
    if labels.shape != size:
        return f"{path.name} is {labels.shape[1]}x{labels.shape[0]} pixels, its image {size[1]}x{size[0]}"
    if labels.max() >= num_classes:
        return f"{path.name} has label {labels.max()}, beyond {num_classes - 1}"
    return None
