"""The objects of an image: from a map of objects where there is one, else from the pieces of its class mask."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from segmod.ground.types import IGNORE_INDEX, UInt8Array

COMPONENTS = "connected components of the class mask"
"""What stands in for objects where nobody drew them."""


class Instance(NamedTuple):
    """One object of an image.

    Attributes:
        box: x1, y1, x2, y2 in pixels; x2 and y2 lie just outside, so x2 - x1 is the width.
        label: its class, never background.
        number: what its pixels have in the map that comes with it.
    """

    box: tuple[int, int, int, int]
    label: int
    number: int


def find_instances(
    mask: UInt8Array, objects: NDArray[np.integer] | None = None, min_pixels: int = 50
) -> tuple[list[Instance], NDArray[np.int32]]:
    """Return the objects of an image, in the order of their numbers, and the map that holds the numbers.

    Without a map of objects each connected piece of a class (8 neighbours) counts as one: what touches is one object,
    and what something in front cuts apart is several.

    Args:
        mask: uint8 (H, W) labels, 255 = void.
        objects: (H, W), 0 = background, 255 = void, any other number an object. It takes the class that most of its
            pixels have in ``mask``; one without any is left out.
        min_pixels: pieces of fewer pixels are left out: crumbs that the void border cut off. Drawn objects stay.

    Returns:
        The instances, and their pixels as int32 (H, W), 0 where there is none.

    Raises:
        ValueError: the sizes of mask and map differ.
    """
    if objects is None:
        return _components(mask, min_pixels)
    if objects.shape != mask.shape:
        raise ValueError(f"the map of objects is {objects.shape} but the mask {mask.shape}")
    numbered = np.where(objects == IGNORE_INDEX, 0, objects).astype(np.int32)
    found = []
    for number in np.unique(numbered[numbered > 0]).tolist():
        inside = numbered == number
        votes = np.bincount(mask[inside], minlength=IGNORE_INDEX + 1)
        votes[[0, IGNORE_INDEX]] = 0
        if votes.any():
            found.append(Instance(_box(inside), int(votes.argmax()), number))
        else:
            numbered[inside] = 0
    return found, numbered


def _components(mask: UInt8Array, min_pixels: int) -> tuple[list[Instance], NDArray[np.int32]]:
    numbered = np.zeros(mask.shape, dtype=np.int32)
    found: list[Instance] = []
    for label in np.unique(mask).tolist():
        if label in (0, IGNORE_INDEX):
            continue
        count, pieces, stats, _ = cv2.connectedComponentsWithStats((mask == label).astype(np.uint8), connectivity=8)
        numbers = np.zeros(count, dtype=np.int32)
        for piece in range(1, count):
            x, y, width, height, pixels = map(int, stats[piece])
            if pixels >= min_pixels:
                numbers[piece] = len(found) + 1
                found.append(Instance((x, y, x + width, y + height), label, len(found) + 1))
        numbered += numbers[pieces]
    return found, numbered


def _box(inside: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
