"""A classifier made convolutional: where in an image it sees a class (Long et al. 2015, Fig. 2)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from segmod import charts
from segmod.data.pictures import read_picture
from segmod.ground.errors import UserError, reason
from segmod.ground.types import Factor, UInt8Array
from segmod.nets.classifier import categories, heat_map_net
from segmod.nets.ops import resize
from segmod.studies.base import Row, Runs


class HeatMap:
    """Draws where a classifier of ImageNet sees a class, for images of any size; needs no run.

    Each place of the map is the classifier's answer for a window of the image, computed for all windows in one pass.
    The table has, for each image and class, the largest probability over the windows, and the centre of that window
    as shares of the image's height and width.

    Args:
        images: Files.
        classifier: A classification net of torchvision.
        weights: Torchvision name, or path of its weights with the classifier; None for random values.
        classes: Names of ImageNet, or their numbers from 0; None for the one with the largest mean over the windows.
        scale: Factor on the image's sides before it is classified: the map grows with it, and the objects seen shrink.
    """

    def __init__(
        self,
        images: Sequence[str],
        classifier: str = "vgg16",
        weights: str | None = "DEFAULT",
        classes: Sequence[str | int] | None = None,
        scale: Factor = 1.0,
    ) -> None:
        if not images:
            raise UserError("study.images is required: give the files, study.images=[photo.jpg]")
        if scale <= 0:
            raise UserError(f"study.scale={scale}: must be a factor above 0")
        self.images = images
        self.classifier = classifier
        self.weights = weights
        self.classes = classes
        self.scale = scale

    def __call__(self, runs: Runs, directory: Path) -> list[Row]:
        """Draw heat_map.png.

        Raises:
            UserError: There is no such net, class or image; the weights do not fit; an image is too small.
        """
        pictures = [_read(path) for path in self.images]
        try:
            net = heat_map_net(self.classifier, self.weights)
        except UserError as error:
            raise UserError(str(error).replace("model.net.", "study.")) from error
        names = categories(self.classifier)
        chosen = None if self.classes is None else [_number(given, names) for given in self.classes]
        rows: list[list[charts.Tile]] = []
        table: list[Row] = []
        for path, picture in zip(self.images, pictures, strict=True):
            seen = probabilities(net, picture, self.scale, path)
            rows.append([picture])
            for k in [int(seen.mean((1, 2)).argmax())] if chosen is None else chosen:
                rows[-1].append(seen[k].numpy())
                top, (y, x) = float(seen[k].max()), divmod(int(seen[k].argmax()), seen.shape[2])
                table.append({
                    "image": Path(path).stem, "class": names[k], "windows": f"{seen.shape[1]} x {seen.shape[2]}",
                    "largest p": top, "down": (y + 0.5) / seen.shape[1], "across": (x + 0.5) / seen.shape[2],
                })  # fmt: skip
        columns = ["image", *(f"p({names[k]})" for k in chosen)] if chosen else ()
        best = [row["class"] for row in table] if chosen is None else ()
        charts.page(
            rows, directory / "heat_map.png", columns, best, side=3.0, bar="probability of the class in a window"
        )
        return table


def probabilities(net: torch.nn.Module, picture: UInt8Array, scale: float, name: str) -> torch.Tensor:
    """Class probabilities of all windows of a picture, float32 (K, h, w).

    Raises:
        UserError: The picture is smaller than a window.
    """
    image = torch.from_numpy(picture).permute(2, 0, 1)[None].float()
    height, width = (max(1, round(scale * side)) for side in image.shape[2:])
    try:
        with torch.inference_mode():
            scores: torch.Tensor = net(resize(image, (height, width), antialias=True))
    except RuntimeError as error:
        raise UserError(
            f"study.images: {name} has {width}x{height} pixels, less than the classifier sees at once; "
            f"give study.scale={2 * scale:g} or more"
        ) from error
    return scores[0].float().softmax(0)


def _read(path: str) -> UInt8Array:
    try:
        return read_picture(Path(path).expanduser())
    except Exception as error:  # whatever PIL finds wrong with a file
        raise UserError(f"study.images={path}: cannot be read ({reason(error)})") from error


def _number(given: str | int, names: Sequence[str]) -> int:
    """Label of a class of ImageNet."""
    if isinstance(given, int) and 0 <= given < len(names):
        return given
    if given in names:
        return list(names).index(str(given))
    near = [name for name in names if str(given).lower() in name.lower()][:5] or ["tabby", "golden retriever"]
    raise UserError(
        f"study.classes={given}: no class of ImageNet; there are {', '.join(near)}, or 0 to {len(names) - 1}"
    )
