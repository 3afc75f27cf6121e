"""``segmod-predict``: label images with a trained run: palette masks, overlays, and probabilities if asked."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from segmod.commands.evaluate import restore, settle
from segmod.ground.errors import UserError
from segmod.ground.printing import short_path
from segmod.runs import folders as runs

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from segmod.training.module import SegmentationModule

log = logging.getLogger(__name__)

_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".jp2"}


def main(cfg: DictConfig) -> None:
    """Predict as the config says; images that fail are reported at the end, the others are done.

    Raises:
        UserError: Some image failed, or there is nothing to do.
    """
    from rich.console import Console
    from rich.progress import track

    output = Path(cfg.output).expanduser()
    images = find_images(str(cfg.input), output)
    names = output_names(images)
    check_outputs(images, names, output)
    device = choose_device(str(cfg.device))
    if cfg.max_side is not None and not (isinstance(cfg.max_side, int) and cfg.max_side > 0):
        raise UserError(f"max_side={cfg.max_side}: give a number of pixels, or null")
    run = runs.find_run(str(cfg.run), str(cfg.runs))
    run_cfg = settle(cfg, run)
    module, _, _ = restore(run_cfg, run, cfg.checkpoint)
    module.eval().to(device)

    console = Console(stderr=True, highlight=False)
    failed = []
    for path, name in track(list(zip(images, names, strict=True)), "Predicting", console=console):
        try:
            picture = read_picture(path)
            scores = predict(module, picture, device, cfg.max_side)
            write(output, name, picture, scores, bool(cfg.probabilities))
        except Exception as error:  # whatever is wrong with one image, the others are still wanted
            reason = " ".join(str(error).split()) or type(error).__name__
            failed.append(f"{path} ({reason[:200]})")
            console.print(f"failed: {failed[-1]}", markup=False, soft_wrap=True)
    if len(failed) < len(images):
        log.info(
            "%d of %d images labelled, in %s", len(images) - len(failed), len(images), short_path(output.resolve())
        )
    if failed:
        raise UserError(f"{len(failed)} of {len(images)} images failed: {'; '.join(failed)}")


def find_images(given: str, output: Path) -> list[Path]:
    """Files that ``input`` names: an image, all images in a folder, or what a pattern matches.

    Args:
        given: Path or pattern.
        output: Folder of the results, left out where it lies in the input folder.

    Raises:
        UserError: There is none.
    """
    path = Path(given).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        found = [p for p in path.rglob("*") if p.suffix.lower() in _SUFFIXES and not p.name.startswith(".")]
        results = [(output / kind).resolve() for kind in ("masks", "overlays")]
        found = [p for p in found if not any(p.resolve().is_relative_to(folder) for folder in results)]
        wanted = f"no image in this folder (looked for {', '.join(sorted(_SUFFIXES))})"
    else:
        found = [Path(p) for p in glob.glob(str(path), recursive=True)]
        wanted = "no such file, folder, or match of the pattern"
    images = sorted(p for p in found if p.is_file())
    if not images:
        raise UserError(f"input={given}: {wanted}")
    return images


def output_names(images: Sequence[Path]) -> list[str]:
    """Name of each image's results: its path below the images' common folder, without the suffix where that is unique.

    Compared without regard to case, so that results stay apart on every file system.
    """
    root = Path(os.path.commonpath([path.absolute().parent for path in images]))
    relative = [path.absolute().relative_to(root) for path in images]
    stems = [path.with_suffix("").as_posix().casefold() for path in relative]
    taken: set[str] = set()
    names = []
    for path, stem in zip(relative, stems, strict=True):
        name = plain = path.as_posix() if stems.count(stem) > 1 else path.with_suffix("").as_posix()
        count = 1
        while name.casefold() in taken:
            count += 1
            name = f"{plain}_{count}"
        taken.add(name.casefold())
        names.append(name)
    return names


def result_path(output: Path, kind: str, name: str) -> Path:
    """Where a result goes."""
    return output / kind / f"{name}.{'npz' if kind == 'probabilities' else 'png'}"


def check_outputs(images: Sequence[Path], names: Sequence[str], output: Path) -> None:
    """Refuse to write over the images.

    Raises:
        UserError: A result would take the place of an input.
    """
    inputs = {path.resolve() for path in images}
    for name in names:
        for kind in ("masks", "overlays", "probabilities"):
            target = result_path(output, kind, name)
            if target.resolve() in inputs:
                raise UserError(f"output={output} would overwrite the input {target}: choose another folder")
    if output.exists() and not output.is_dir():
        raise UserError(f"output={output} is a file: give a folder")


def choose_device(name: str) -> torch.device:
    """The device called ``name``; ``auto`` takes the best there is.

    Raises:
        UserError: There is no such device.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device={name} cannot be used ({str(error).splitlines()[0]}): try device=cpu") from None
    return device


def read_picture(path: Path) -> NDArray[np.uint8]:
    """Read an image of any mode as uint8 (H, W, 3) RGB, turned as its EXIF tag says.

    16-bit values are brought to 8; transparent pixels show white, as on a page; of several frames the first counts.

    Raises:
        Exception: Whatever PIL finds wrong with the file.
    """
    import numpy as np
    from PIL import Image, ImageOps

    with Image.open(path) as file:
        picture: Image.Image = ImageOps.exif_transpose(file)
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


def predict(
    module: SegmentationModule,
    picture: NDArray[np.uint8],
    device: torch.device,
    max_side: int | None,
) -> torch.Tensor:
    """Class probabilities of one image.

    Args:
        module: With the trained net, on ``device``.
        picture: uint8 (H, W, 3), RGB.
        device: Where to compute.
        max_side: Longest side in pixels that is scored; None for any.

    Returns:
        float32 (K, H, W), on the CPU.
    """
    import torch

    from segmod.ground.types import IGNORE_INDEX, Batch
    from segmod.nets.ops import resize

    height, width = picture.shape[:2]
    image = torch.from_numpy(picture).permute(2, 0, 1)[None].to(device)
    factor = min(1.0, max_side / max(height, width)) if max_side is not None else 1.0
    image = resize(image.float(), (max(1, round(factor * height)), max(1, round(factor * width))), antialias=True)
    mask = torch.full((1, *image.shape[-2:]), IGNORE_INDEX, dtype=torch.uint8, device=device)
    batch: Batch = {"image": image, "mask": mask, "name": [""], "index": torch.zeros(1, dtype=torch.int64)}
    with torch.inference_mode():
        return resize(module.predict_scores(batch).cpu(), (height, width))[0]


def write(output: Path, name: str, picture: NDArray[np.uint8], scores: torch.Tensor, probabilities: bool) -> None:
    """Write the results of one image."""
    import numpy as np

    from segmod import viz
    from segmod.ground.types import labels_of

    labels: Any = labels_of(scores[None])[0]
    viz.save_palette_png(labels, result_path(output, "masks", name))
    viz.save_png(viz.overlay(picture, labels), result_path(output, "overlays", name))
    if probabilities:
        path = result_path(output, "probabilities", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, probabilities=scores.numpy().astype(np.float16))
