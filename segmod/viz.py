"""Masks as pictures, in the colours of their data set; drawn without a display, and fast: training waits for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from segmod.ground.files import writing
from segmod.ground.palettes import VOC_PALETTE
from segmod.ground.types import IGNORE_INDEX, fitted

Picture = NDArray[np.uint8]  # (H, W, 3), RGB
Palette = NDArray[np.uint8]  # (256, 3), RGB
Mask = NDArray[np.integer] | Tensor  # (H, W), labels and IGNORE_INDEX

_SIDE = 340  # pixels of the longer side of a picture in a panel
MATTERS = 0.002
"""Share of the pixels from which on a class is in a legend."""
_GAP = 8


def colour_mask(mask: Mask, palette: Palette = VOC_PALETTE) -> Picture:
    """Paint each label in its colour; void is (224, 224, 192) in that of PASCAL VOC."""
    painted: Picture = palette[_labels(mask)]
    return painted


def save_palette_png(mask: Mask, path: Path | str, palette: Palette = VOC_PALETTE) -> None:
    """Write labels as VOC does: an 8-bit PNG of palette indices, not of colours."""
    png = Image.fromarray(_labels(mask))  # mode L: one byte a pixel, which putpalette turns into indices
    png.putpalette(palette.tobytes())
    with writing(path):
        png.save(path, format="PNG", compress_level=1)


def save_png(picture: Picture, path: Path | str) -> None:
    """Write an RGB picture."""
    with writing(path):
        Image.fromarray(picture).save(path, format="PNG", compress_level=1)  # a tenth of the time, a quarter larger


def overlay(image: Picture, mask: Mask, palette: Palette = VOC_PALETTE, alpha: float = 0.6) -> Picture:
    """Lay the colours of a mask over its image, with white and black outlines; background stays as it is.

    Args:
        image: uint8 (H, W, 3), RGB.
        mask: (H, W) labels.
        palette: Colours of the labels.
        alpha: Weight of the colours, 0..1.
    """
    labels = _labels(mask)
    chosen: Picture = np.empty_like(image)
    for top in range(0, len(image), 64):  # a few rows at a time: floats take four times the image's memory
        rows = slice(top, top + 64)
        blended = image[rows].astype(np.float32) * (1 - alpha) + palette[labels[rows]].astype(np.float32) * alpha
        chosen[rows] = np.where((labels[rows] == 0)[..., None], image[rows], np.rint(blended).astype(np.uint8))
    dark, light = borders(labels)
    chosen[dark], chosen[light] = 0, 255
    return chosen


def borders(labels: NDArray[np.uint8]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """The pixels on the one and on the other side of the borders of labels (H, W), to be black and white.

    Side by side they show on any photograph.
    """
    dark, light = np.zeros(labels.shape, bool), np.zeros(labels.shape, bool)
    for behind, ahead in ((np.s_[:-1], np.s_[1:]), (np.s_[:, :-1], np.s_[:, 1:])):
        differ = labels[behind] != labels[ahead]
        light[behind] |= differ
        dark[ahead] |= differ
    return dark & ~light, light


def panel(
    image: Picture, truth: Mask | None, prediction: Mask, classes: Sequence[str], palette: Palette = VOC_PALETTE
) -> Picture:
    """Image, truth and prediction side by side, over a legend of the classes that cover something in them.

    Args:
        image: uint8 (H, W, 3), RGB.
        truth: (H, W) labels; None leaves its picture out.
        prediction: (H, W) labels.
        classes: Names of the classes, in the order of their labels.
        palette: Colours of the labels.
    """
    height, width = image.shape[:2]
    size = fitted(height, width, _SIDE, enlarge=True)[::-1]

    def scaled(array: NDArray[np.uint8], how: Image.Resampling) -> NDArray[np.uint8]:
        return np.asarray(Image.fromarray(array).resize(size, how))

    shown = scaled(image, Image.Resampling.BOX)
    pictures = {"image": shown}
    for title, mask in (("truth", truth), ("prediction", prediction)):
        if mask is not None:
            pictures[title] = overlay(shown, scaled(_labels(mask), Image.Resampling.NEAREST), palette)
    legend = class_colours([m for m in (truth, prediction) if m is not None], classes, palette, MATTERS)

    font = ImageFont.load_default(14)
    pitch = max(size[0], 150) + _GAP
    line = 20
    entry = max([20 + round(font.getlength(name)) for name in legend], default=0) + 2 * _GAP
    columns = max(1, (pitch * len(pictures) - _GAP) // entry)
    rows = -(-len(legend) // columns)
    page = Image.new("RGB", (pitch * len(pictures) + _GAP, line + size[1] + rows * line + 3 * _GAP), "white")
    draw = ImageDraw.Draw(page)
    for i, (title, picture) in enumerate(pictures.items()):
        left = _GAP + i * pitch + (pitch - _GAP - size[0]) // 2
        draw.text((left + size[0] / 2, _GAP), title, "black", font, anchor="mt")
        page.paste(Image.fromarray(picture), (left, _GAP + line))
    for i, (name, colour) in enumerate(legend.items()):
        left, top = _GAP + i % columns * entry, line + size[1] + 2 * _GAP + i // columns * line
        draw.rectangle((left, top + 2, left + 13, top + 15), tuple(colour.tolist()), "grey")
        draw.text((left + 20, top + 9), name, "black", font, anchor="lm")
    return np.asarray(page)


def class_colours(
    masks: Sequence[Mask], classes: Sequence[str], palette: Palette = VOC_PALETTE, least: float = 0.0
) -> dict[str, NDArray[np.uint8]]:
    """Colours of the classes that occur in masks, by name, in the order of their labels.

    Args:
        masks: (H, W) labels each; sizes may differ.
        classes: Names of the classes.
        palette: Colours of the labels.
        least: Share of one of the masks, 0..1, that a class must cover.
    """
    seen = covering(masks, least)
    return {"void" if k == IGNORE_INDEX else classes[k] if k < len(classes) else str(k): palette[k] for k in seen}


def covering(masks: Sequence[Mask], least: float = 0.0) -> list[int]:
    """Labels, ascending, that cover something, and at least a share of one of some masks, which may differ in size."""
    counts = [np.bincount(_labels(mask).ravel(), minlength=256) for mask in masks]
    most = np.max([count / max(1, count.sum()) for count in counts], axis=0)
    found: list[int] = np.flatnonzero((most > 0) & (most >= least)).tolist()
    return found


def _labels(mask: Mask) -> NDArray[np.uint8]:
    array = mask.detach().cpu().numpy() if isinstance(mask, Tensor) else np.asarray(mask)
    return array.astype(np.uint8)
