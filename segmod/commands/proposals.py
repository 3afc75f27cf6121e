"""``segmod-proposals``: find the boxes of a data set in advance, and measure how many of its objects they find."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, ListConfig

from segmod import charts
from segmod.data.base import Split
from segmod.data.instances import COMPONENTS, find_instances
from segmod.data.passes import Job, jobs_of, over_images
from segmod.data.recall import COUNTS, average_recall, best_overlaps, recall_at
from segmod.data.stored import StoredProposals, make_proposals
from segmod.ground.errors import UserError
from segmod.ground.files import replace_text
from segmod.ground.printing import markdown, print_table, short_path, write_csv
from segmod.ground.types import FloatArray, ProposalSource
from segmod.runs import cli
from segmod.runs.instantiate import instantiate

log = logging.getLogger(__name__)

THRESHOLDS = (0.5, 0.7)


def main(cfg: DictConfig) -> None:
    """Find and measure as the config says."""
    source: ProposalSource = instantiate(cfg, "proposals")
    stored = isinstance(source, StoredProposals)
    choice = str(cli.choices()["proposals"])
    if not stored and not cfg.report:
        raise UserError(
            f"proposals={choice}: these boxes are never stored, so there is nothing to make in advance; "
            "report=true measures them"
        )
    datamodule = instantiate(cfg, "data")
    splits = split_names(cfg.split) or list(dict.fromkeys([datamodule.train_split, datamodule.val_split]))
    datasets: list[Any] = [datamodule.split(split) for split in splits]
    jobs = jobs_of(datasets, cfg.limit)

    if isinstance(source, StoredProposals):
        started = time.monotonic()
        made = make_proposals(source, jobs, cfg.workers)
        each = f" ({made.seconds / made.found:.2g} s of CPU time each)" if made.found else ""
        log.info(
            "%d images, %.0f boxes an image; %d found in %.0f s%s, %d were there: %s",
            made.images,
            made.boxes / made.images,
            made.found,
            time.monotonic() - started,
            each,
            made.images - made.found,
            short_path(source.folder.resolve()),
        )
    if cfg.report:
        folder = source.folder if isinstance(source, StoredProposals) else Path("proposals") / choice
        folder = Path(cfg.output).expanduser() if cfg.output else folder
        data = f"{cli.choices()['data']} {'+'.join(splits)}"
        if cfg.limit is not None:
            data += f" first {cfg.limit}"
        best, boxes = measure_recall(source, jobs, cfg.min_pixels, cfg.workers)
        objects = f"{len(best)} objects ({object_sources(datasets, cfg.min_pixels)})"
        note = f"{len(jobs)} images with {objects}; {boxes:.0f} boxes an image."
        write_recall(best, folder / f"recall-{data.replace(' ', '-')}", f"Recall of {choice} on {data}", note)


def split_names(given: Any) -> list[str]:
    """Names in ``split``: one, several between commas, or a list; empty for null."""
    if given is None:
        return []
    names = list(given) if isinstance(given, ListConfig) else str(given).split(",")
    return [str(name).strip() for name in names]


def object_sources(datasets: Sequence[Split], min_pixels: int) -> str:
    """Where the true objects come from, in words."""
    sources = "; ".join(dict.fromkeys(dataset.object_source() for dataset in datasets))
    return sources.replace(COMPONENTS, f"{COMPONENTS} of at least {min_pixels} pixels")


def measure_recall(
    source: ProposalSource, jobs: Sequence[Job], min_pixels: int, workers: int | None
) -> tuple[FloatArray, float]:
    """Best IoU of each object, (objects, counts) as `best_overlaps`, and how many boxes an image has.

    Args:
        source: Of the boxes.
        jobs: The images.
        min_pixels: As in `find_instances`.
        workers: Images at a time; None for one a core.

    Raises:
        UserError: The images hold no object.
    """

    def look(job: Job) -> tuple[FloatArray, int]:
        dataset, index = job
        image, mask = dataset.read(index)
        boxes = source(dataset.names[index], image, mask)
        instances, _ = find_instances(mask, dataset.read_objects(index), min_pixels)
        return best_overlaps(boxes, instances), len(boxes)

    overlaps, counts = zip(*over_images(look, jobs, "Measuring recall", workers), strict=True)
    best = np.concatenate(overlaps)
    if not len(best):
        raise UserError("report=true: these images have no object in their ground truth; choose another split")
    return best, sum(counts) / len(jobs)


def write_recall(best: FloatArray, path: Path, title: str, note: str) -> None:
    """Write the recall as .md, .csv and .png beside each other, and print it."""
    columns = {f"IoU {threshold}": recall_at(best, threshold) for threshold in THRESHOLDS}
    columns["average, IoU 0.5 to 0.95"] = average_recall(best)
    header = ["boxes an image", *columns]
    rows = [[count, *(float(values[i]) for values in columns.values())] for i, count in enumerate(COUNTS)]
    write_csv(Path(f"{path}.csv"), [header, *rows])
    lines = [header, *([str(count), *(f"{value:.3f}" for value in values)] for count, *values in rows)]
    replace_text(f"{path}.md", "\n\n".join([f"**{title}**", markdown(lines), note]) + "\n")
    series = {name: values.tolist() for name, values in columns.items()}
    charts.line_chart(COUNTS, series, Path(f"{path}.png"), title, "boxes an image", "recall")

    console = print_table(title, lines)
    console.print(note, soft_wrap=True)
    console.print(f"written: {short_path(path.resolve())}.{{md,csv,png}}", soft_wrap=True)
