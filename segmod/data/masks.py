"""Masks as people store them, an index or a colour a pixel, read as labels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segmod.data.classes import Colour, is_colour, palette_of
from segmod.ground.errors import UserError, reason, require
from segmod.ground.files import open_file
from segmod.ground.types import IGNORE_INDEX, UInt8Array

_SHOWN = 5


class MaskReader:
    """Reads masks: palette, grey (8 or 16 bit) or RGB images of any lossless format.

    Args:
        classes: their names.
        colours: (r, g, b) of each class, 0..255, for masks in colours; None where there are none.
        labels: what masks store for each class; or for the first, the others following; None for 0, 1, 2, ...
        void: what else they may store: values or colours that are no class; or ``rest``, all others.

    Raises:
        UserError: one of these makes no sense.
    """

    def __init__(
        self,
        classes: Sequence[str],
        colours: Sequence[Sequence[int]] | None = None,
        labels: Sequence[int] | int | None = None,
        void: Sequence[int | Sequence[int]] | str = (IGNORE_INDEX,),
    ) -> None:
        count = len(classes)
        self.colours = None if colours is None else _colours(colours, classes)
        if not isinstance(labels, Sequence):
            labels = range(labels or 0, (labels or 0) + count)
        require(
            len(labels) == count == len(set(labels)) and min(labels) >= 0 and max(labels) < 2**16,
            f"data.dataset.labels: give {count} different values of 0..65535, one for each of the classes",
        )
        self.labels = list(labels)
        require(void == "rest" or not isinstance(void, str), f"data.dataset.void={void}: give a list, or rest")
        values = [] if isinstance(void, str) else [[v] if isinstance(v, int) else list(v) for v in void]
        require(
            all(len(v) in (1, 3) and all(0 <= part < (2**16 if len(v) == 1 else 256) for part in v) for v in values),
            f"data.dataset.void={void}: give values of 0..65535, colours [r,g,b] of 0..255, or rest",
        )
        self.void: list[int | Sequence[int]] | None = None if isinstance(void, str) else list(void)

    def read(self, file: Path) -> UInt8Array:
        """Read a mask as labels, uint8 (H, W), 255 for void.

        Raises:
            UserError: it is damaged, or stores what is no class.
        """
        try:
            with open_file(file) as opened, Image.open(opened) as mask:
                stored = self._stored(mask)
        except UserError:
            raise
        except Exception as error:  # whatever PIL trips over
            raise UserError(f"{file}: the mask is damaged ({reason(error)}); replace it or take it away") from error
        if stored.ndim == 3:
            return self._from_colours(stored, file)
        table = self._table
        labels = table[np.minimum(stored.astype(np.int64), len(table) - 1)]
        if labels.min() < 0:
            wrong = np.unique(stored[labels < 0])
            shown = ", ".join(map(str, wrong[:_SHOWN].tolist())) + (", ..." if len(wrong) > _SHOWN else "")
            raise UserError(
                f"{file}: holds {shown}, which no class has: the {len(self.labels)} classes are stored as "
                f"{_span(self.labels)}; add to data.dataset.classes, .labels or .void what it means"
            )
        return np.asarray(labels, dtype=np.uint8)

    def _stored(self, mask: Image.Image) -> NDArray[Any]:
        """Values (H, W), or colours (H, W, 3) where these are what counts."""
        if mask.mode == "1":
            return np.array(mask, dtype=np.uint8)
        if mask.mode == "P":
            values = np.array(mask)
            if self.colours is None:
                return values
            # of a palette image, colours count where all of them are those of classes or void
            palette = np.zeros((256, 3), dtype=np.int64)
            given = np.array(mask.getpalette("RGB") or [], dtype=np.int64).reshape(-1, 3)
            palette[: len(given)] = given
            known = all(_code(palette[value]) in self._codes for value in np.unique(values).tolist())
            return np.asarray(palette[values], dtype=np.uint8) if known else values
        if mask.mode in ("L", "LA"):
            return np.array(mask.getchannel(0))
        if mask.mode.startswith("I"):
            return np.array(mask).astype(np.int64).clip(0)
        colours = np.array(mask.convert("RGB"))
        grey = (colours[..., :1] == colours).all()
        return np.asarray(colours[..., 0] if grey and self.colours is None else colours)

    @cached_property
    def _table(self) -> NDArray[np.int16]:
        """Label of each stored value, -1 for none; the last entry is that of all larger ones."""
        rest = IGNORE_INDEX if self.void is None else -1
        values = [v for v in self.void or () if isinstance(v, int)]
        table = np.full(max([*self.labels, *values, 0]) + 2, rest, dtype=np.int16)
        table[values] = IGNORE_INDEX
        table[self.labels] = range(len(self.labels))
        return table

    @cached_property
    def _codes(self) -> dict[int, int]:
        """Label of each colour, the colours as numbers."""
        void = [v for v in self.void or () if not isinstance(v, int)]
        codes = {_code(np.array(colour)): IGNORE_INDEX for colour in (palette_of(None)[IGNORE_INDEX], *void)}
        return codes | {_code(np.array(colour)): label for label, colour in enumerate(self.colours or ())}

    def _from_colours(self, stored: NDArray[np.uint8], file: Path) -> UInt8Array:
        """Labels of a mask in colours."""
        codes = stored.astype(np.int32) @ np.array([65536, 256, 1], dtype=np.int32)
        used, where = np.unique(codes, return_inverse=True)
        if self.colours is None:
            raise UserError(
                f"{file}: the mask is in colours ({_shown(used.tolist())}): say which class has which, as lines "
                "`name r g b` of classes.txt or by data.dataset.colours=[[r,g,b],...]"
            )
        wrong = [code for code in used.tolist() if code not in self._codes]
        if wrong and self.void is not None:
            raise UserError(
                f"{file}: holds the colours {_shown(wrong)}, which no class has; "
                "mend data.dataset.colours (or classes.txt), or add them to data.dataset.void"
            )
        labels = np.array([self._codes.get(code, IGNORE_INDEX) for code in used.tolist()], dtype=np.uint8)
        return np.asarray(labels[where.reshape(codes.shape)])


def _colours(colours: Sequence[Sequence[int]], classes: Sequence[str]) -> list[Colour]:
    made = [(int(c[0]), int(c[1]), int(c[2])) for c in colours] if all(map(is_colour, colours)) else []
    require(
        len(made) == len(classes) == len(set(made)),
        f"data.dataset.colours: give {len(classes)} different colours [r,g,b] of 0..255, one for each of the classes",
    )
    return made


def _code(colour: NDArray[np.integer]) -> int:
    red, green, blue = map(int, colour)
    return 65536 * red + 256 * green + blue


def _shown(codes: Sequence[int]) -> str:
    colours = [f"({code >> 16}, {code >> 8 & 255}, {code & 255})" for code in codes[:_SHOWN]]
    return ", ".join(colours) + (", ..." if len(codes) > _SHOWN else "")


def _span(values: Sequence[int]) -> str:
    whole = list(values) == list(range(len(values)))
    return (
        f"0..{len(values) - 1}" if whole else ", ".join(map(str, values[:_SHOWN])) + (", ..." * (len(values) > _SHOWN))
    )
