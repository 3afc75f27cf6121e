"""What labels are called and the colours they wear; those of PASCAL VOC."""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

VOC_CLASSES: tuple[str, ...] = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""The 21 classes of PASCAL VOC in the order of their labels."""


def _voc_palette() -> NDArray[np.uint8]:
    """Colours of the labels 0..255: bits 0, 1, 2 of k fill R, G, B from the top, then bits 3, 4, 5, and so on."""
    k = np.arange(256)
    palette = np.zeros((256, 3), np.uint8)
    for plane in range(8):
        for channel in range(3):
            palette[:, channel] |= ((k >> (3 * plane + channel) & 1) << (7 - plane)).astype(np.uint8)
    return palette


VOC_PALETTE: NDArray[np.uint8] = _voc_palette()
"""uint8 (256, 3), as in VOC's own development kit; entry 255, void, is (224, 224, 192)."""


OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
"""Colours of series, apart for colour-blind readers, too (Okabe and Ito 2008)."""


class Legend(NamedTuple):
    """What the labels of a data set mean.

    Attributes:
        data: name of the data set, such as ``VOC2012``.
        classes: names of the classes in the order of their labels.
        palette: uint8 (256, 3), the colours of the labels, RGB.
    """

    data: str
    classes: tuple[str, ...]
    palette: NDArray[np.uint8] = VOC_PALETTE

    def as_plain(self) -> dict[str, Any]:
        """Lists and strings alone, which a checkpoint may hold."""
        return {"data": self.data, "classes": list(self.classes), "palette": self.palette.tolist()}

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Self:
        """What `as_plain` gave.

        Raises:
            Exception: It is something else.
        """
        palette = np.array(plain["palette"], dtype=np.uint8)
        names = [plain["data"], *plain["classes"]]
        if palette.shape != (256, 3) or len(names) < 3 or not all(isinstance(name, str) for name in names):
            raise ValueError("no names and 256 colours")
        return cls(plain["data"], tuple(plain["classes"]), palette)
