"""``segmod-skipmaps``: draw what skip connections say of each class, and measure it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from segmod.commands.evaluate import settle
from segmod.commands.predict import choose_device
from segmod.commands.study import log_pictures, report, subject_of
from segmod.ground.errors import UserError
from segmod.ground.printing import write_records
from segmod.runs import folders as runs

log = logging.getLogger(__name__)


def main(cfg: DictConfig) -> None:
    """Draw and measure the runs that the config names."""
    from segmod.runs.launch import prepare_lightning
    from segmod.studies import skip_maps

    prepare_lightning()
    given = entries(cfg.run)
    if not given:
        raise UserError("run=[]: give a run, or several: run=[skip_6,skip_2]")
    if cfg.measure is not None and not (isinstance(cfg.measure, int) and cfg.measure >= 0):
        raise UserError(f"measure={cfg.measure}: give a number of images, 0 for no table, or null for all")
    device = choose_device(str(cfg.device))
    found = [runs.find_run(str(name), str(cfg.runs)) for name in given]
    subjects, sides = {}, {}
    named = labels([run.directory for run in found]) if len(found) > 1 else [str(found[0].config().name)]
    for run, label in zip(found, named, strict=True):
        subjects[label], module = subject_of(settle(cfg, run), run, cfg.checkpoint, device, label)
        skip_maps.skip_net(module.net)
        sides[label] = getattr(module, "side", None)  # of the images that the net sees
    first = next(iter(subjects.values()))
    images = find_images(entries(cfg.images), first.dataset.names)
    split = str(settle(cfg, found[0]).data.val_split)
    directory = Path(cfg.output or (found[0].directory if len(found) == 1 else Path()) / f"skipmaps-{split}")
    directory = directory.expanduser().resolve()
    cfg.run_dir = str(directory)

    skip_maps.draw(subjects, sides, images, directory, bool(cfg.softmax))
    count = len(first.dataset) if cfg.measure is None else min(int(cfg.measure), len(first.dataset))
    table: list[Any] = []
    for label, subject in subjects.items():
        table += skip_maps.measure(label, subject, sides[label], range(count)) if count else []
    if table:
        write_records(directory / "table.csv", table)
        report(directory, table)
    else:
        log.info("pictures in %s", directory)
    log_pictures(cfg, directory, table)


def labels(directories: Sequence[Path]) -> list[str]:
    """Short names of runs: of the parts of their folders, those that not all have in common."""
    parts = [[part for folder in path.parts for part in folder.split("+")] for path in directories]
    shared = set.intersection(*map(set, parts))
    return ["+".join(part for part in own if part not in shared) for own in parts]


def entries(node: Any) -> list[Any]:
    """What a key of one value or a list of values holds."""
    return list(node) if OmegaConf.is_list(node) else [node]


def find_images(given: Sequence[int | str], names: Sequence[str]) -> list[int]:
    """Positions of the images that ``images`` names, by position or by id.

    Raises:
        UserError: The split has no such image.
    """
    # an id such as 2007_000033 comes as the number 2007000033
    known = {name: i for i, name in enumerate(names)} | {name.replace("_", ""): i for i, name in enumerate(names)}
    positions = []
    for entry in given:
        if isinstance(entry, int) and 0 <= entry < len(names):
            positions.append(entry)
        elif str(entry) in known:
            positions.append(known[str(entry)])
        else:
            raise UserError(f"images={entry}: give ids of the split, such as {names[0]}, or 0 to {len(names) - 1}")
    if not positions:
        raise UserError("images=[]: give at least one image")
    return positions
