"""The page of one run."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import mean
from typing import Any

from omegaconf import DictConfig, OmegaConf

from segmod.ground.printing import read_csv
from segmod.report import figures
from segmod.report.findings import Findings
from segmod.report.page import METRICS, Page, commands_of, data_uri, made_by
from segmod.runs import cli
from segmod.runs.folders import Run
from segmod.runs.tables import reported
from segmod.runs.trained import TrainedRun


def page(run: TrainedRun, found: Findings | None, pictures: int) -> Page:
    """The page of one run.

    Args:
        run: The run.
        found: What it makes of images; None leaves that out.
        pictures: Of the first images, the best and the worst, so many each.
    """
    record = Run(run.directory).result() or {}
    iou: Mapping[str, float | None] = record.get("iou", {})
    classes = run.classes
    made = Page(" ".join([run.name, *_recipe(run)]), _subtitle(record))
    made.tables.append({"title": "Scores", **_headline(record, run.stored_config())})
    rows = read_csv(run.directory / "metrics.csv")
    losses = {"train/loss": "of a step", "train/loss_epoch": "mean of an epoch"}
    values = {f"val/{key}": name for key, name in METRICS.items()}
    made.add_charts("Curves", figures.curves(rows, losses), figures.curves(rows, values))
    made.add_charts("IoU of each class", figures.class_bars(iou))
    if found is not None and found.pictures:
        count = f"Of the first {len(found.pictures)} images of {run.split}."
        if found.confusion.sum() > 0:
            note = f"{count} Rows: the truth, whose pixels add up to 100 %."
            made.add_charts(
                "Where the pixels of each class went", figures.confusion(found.confusion, classes), note=note
            )
        shares = {name: wrong / pixels for name, (wrong, pixels) in found.distances.items() if pixels}
        pixels = {name: total for name, (_, total) in found.distances.items()}
        finds = {name: mean(values) for name, values in found.objects.items()}
        counts = {name: len(values) for name, values in found.objects.items()}
        made.add_charts(
            "Where errors lie",
            figures.bars(shares, pixels, "wrong pixels", "distance to a border of the truth", "pixels"),
            figures.bars(finds, counts, "pixels found", "share of the image that an object has", "objects"),
            note=f"{count} On the left the share of pixels that are wrong, by how far they are from where the truth "
            "changes its class; on the right how much of an object is found, by its size.",
        )
        _add_galleries(made, run, found, pictures)
    made.commands = commands_of(record, run.directory)
    made.made_by = made_by(record)
    made.config = OmegaConf.to_yaml(run.stored_config())
    return made


def _recipe(run: TrainedRun) -> list[str]:
    """The names of its folders below that of its own name, such as ``depth-1`` and ``seed0``."""
    folders = run.directory.parts
    return [*folders[len(folders) - folders[::-1].index(run.name) :]] if run.name in folders else [run.directory.name]


def _subtitle(record: Mapping[str, Any]) -> str:
    if not record:
        return "not finished yet"
    images = f"{record.get('data')} {record.get('split')}, {record.get('images')} images"
    return f"{images}; {record.get('checkpoint')} of step {record.get('step')}"


def _headline(record: Mapping[str, Any], config: DictConfig) -> dict[str, Any]:
    papers = reported(config, cli.search_path())
    rows = [["metric", "ours", "the paper's"]]
    for key, name in METRICS.items():
        ours, theirs = record.get("metrics", {}).get(f"val/{key}"), papers.get(key)
        rows.append([name, *("-" if value is None else f"{100 * value:.2f} %" for value in (ours, theirs))])
    seconds = record.get("wall_time_s")
    rows.append(["training", "-" if seconds is None else f"{seconds / 60:.1f} min", ""])
    rows.append(["parameters", f"{record.get('parameters', 0):,}", ""])
    note = "The paper's numbers are of its own images; see segmod-tables." if papers else ""
    return {"rows": rows if papers else [row[:2] for row in rows], "note": note}


def _add_galleries(page: Page, run: TrainedRun, found: Findings, count: int) -> None:
    scored = sorted((p for p in found.pictures if p.iou is not None), key=lambda p: -float(p.iou or 0))
    groups = {"The first": found.pictures[:count], "The best": scored[:count], "The worst": scored[::-1][:count]}
    if len(found.pictures) <= count:
        del groups["The best"], groups["The worst"]
    for title, pictures in groups.items():
        shown = [
            {name: data_uri(getattr(p, name)) for name in ("image", "truth", "prediction", "errors")}
            | {"name": p.name, "caption": _caption(p.name, p.iou)}
            for p in pictures
        ]
        page.galleries.append({"title": title, "pictures": shown})
    seen = sorted({label for pictures in groups.values() for p in pictures for label in p.classes})
    page.legend = [
        (run.classes[k] if k < len(run.classes) else str(k), "#{:02x}{:02x}{:02x}".format(*run.legend.palette[k]))
        for k in seen
    ]


def _caption(name: str, iou: float | None) -> str:
    return name if iou is None else f"{name}: mean IoU of its classes {100 * iou:.1f} %"
