"""The classes of PASCAL VOC and the colours that labels wear."""

from __future__ import annotations

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
