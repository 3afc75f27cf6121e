"""Photographs of any kind, as the nets want them."""

from __future__ import annotations

from os import PathLike

import numpy as np
from PIL import Image, ImageOps

from segmod.ground.errors import require
from segmod.ground.files import open_file
from segmod.ground.types import UInt8Array


def read_picture(image: str | PathLike[str] | Image.Image | UInt8Array) -> UInt8Array:
    """An image of any mode as uint8 (H, W, 3) RGB, turned as its EXIF tag says.

    16-bit values are brought to 8; transparent pixels show white, as on a page; of several frames the first counts.

    Args:
        image: Path of a file, an image of PIL, or an array that is uint8 (H, W, 3) RGB already.

    Raises:
        UserError: An array of another kind.
        Exception: Whatever PIL finds wrong with a file.
    """
    if isinstance(image, np.ndarray):
        right = image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
        require(right, f"image: {image.dtype} {image.shape} is no picture: give uint8 (H, W, 3) RGB, or a path")
        return image
    if not isinstance(image, Image.Image):
        with open_file(image) as file, Image.open(file) as opened:
            return read_picture(opened)
    picture: Image.Image = ImageOps.exif_transpose(image)
    if picture.mode.startswith("I") or picture.mode == "F":
        grey = np.asarray(picture, dtype=np.float64)
        # PIL clips these modes at 255; the range is 0..1 in floats, 16 bits in integers, or 8 bits in either
        top = 1.0 if picture.mode == "F" and grey.max() <= 1 else 255.0 if grey.max() <= 255 else 65535.0
        if picture.mode.startswith("I;16"):
            top = 65535.0
        picture = Image.fromarray(np.rint(grey.clip(0, top) * (255 / top)).astype(np.uint8))
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return np.array(picture.convert("RGB"))
