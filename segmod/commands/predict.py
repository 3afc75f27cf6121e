"""``segmod-predict``: label images with a trained run: palette masks, overlays, and probabilities if asked."""

from __future__ import annotations

import glob
import logging
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import track

from segmod import viz
from segmod.ground.errors import UserError, reason
from segmod.ground.files import UnwritableError, require_writable, writing
from segmod.ground.memory import give_freed_memory_back, keep_few_shapes
from segmod.ground.printing import short_path
from segmod.runs.prediction import Prediction
from segmod.runs.trained import TrainedRun, choose_device

log = logging.getLogger(__name__)

_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".jp2"}


def main(cfg: DictConfig) -> None:
    """Predict as the config says; images that fail are reported at the end, the others are done.

    Raises:
        UserError: Some image failed, or there is nothing to do.
    """
    output = Path(cfg.output).expanduser()
    images = find_images(str(cfg.input), output)
    names = output_names(images)
    check_outputs(images, names, output)
    device = choose_device(str(cfg.device))
    run = TrainedRun.open(
        cfg.run,
        cfg.runs,
        checkpoint=cfg.checkpoint,
        inference=cfg.get("inference"),
        proposals=cfg.get("proposals"),
        trust=cfg.trust,
    ).to(device)
    keep_few_shapes()
    run.load()  # before the first image, whose failure would be taken for that image's own

    console = Console(stderr=True, highlight=False)
    failed = []
    for number, (path, name) in enumerate(track(list(zip(images, names, strict=True)), "Predicting", console=console)):
        if number % 8 == 7:  # images of differing sizes leave gaps
            give_freed_memory_back()
        try:
            write(output, name, run.predict(path, cfg.max_side), cfg.probabilities)
        except UnwritableError:  # nor could the others' results be
            raise
        except Exception as error:  # whatever is wrong with one image, the others are still wanted
            failed.append(f"{path} ({reason(error)})")
            console.print(f"failed: {failed[-1]}", markup=False, soft_wrap=True)
    if len(failed) < len(images):
        log.info(
            "%d of %d images labelled, in %s", len(images) - len(failed), len(images), short_path(output.resolve())
        )
    if failed:
        more = f"; and {len(failed) - 1} more, told above" if len(failed) > 1 else ""
        raise UserError(f"{len(failed)} of {len(images)} images failed: {failed[0]}{more}")


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
    absolute = [Path(os.path.abspath(path)) for path in images]  # a pattern may hold .., a name must not
    root = Path(os.path.commonpath([path.parent for path in absolute]))
    relative = [path.relative_to(root) for path in absolute]
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
    require_writable(output)


def write(output: Path, name: str, found: Prediction, probabilities: bool) -> None:
    """Write the results of one image."""
    viz.save_palette_png(found.labels, result_path(output, "masks", name), found.legend.palette)
    viz.save_png(found.overlay(), result_path(output, "overlays", name))
    if probabilities:
        path = result_path(output, "probabilities", name)
        header = {"descr": "<f2", "fortran_order": False, "shape": (len(found.scores), *found.image.shape[:2])}
        with (
            writing(path),
            zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,  # as np.savez_compressed, but class by class
            archive.open("probabilities.npy", "w", force_zip64=True) as file,
        ):
            np.lib.format.write_array_header_1_0(file, header)
            for scores in found.maps():
                file.write(scores.astype("<f2").tobytes())
