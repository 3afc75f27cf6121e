"""The rows of a table: what the finished runs reached, beside what the papers report."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Any

from omegaconf import OmegaConf

from segmod.runs import cli
from segmod.runs import folders as runs
from segmod.runs.results import Benchmark, Score, with_costs

RELATIVE = "relative/"  # before the name of a metric: as a multiple of the first row
RUNS = "runs"  # the table of all runs, which no paper has
FACTORS = {"%": 100.0, "MiB": 2.0**-20, "s": 1.0, "x": 1.0}  # from the units of metrics.json to those of a table


@dataclass(frozen=True)
class Column:
    """One quantity of a table.

    Attributes:
        metric: Key of `Score.values`.
        header: What the paper calls it.
        unit: Of the table: %, MiB, s, or x for a multiple of the first row (``relative/<metric>``).
    """

    metric: str
    header: str
    unit: str = "%"


@dataclass(frozen=True)
class Row:
    """One line of a table: a system as the paper reports it, and as runs of one setting reached it, one a seed."""

    label: str
    order: float = 0
    paper: Mapping[str, float] = field(default_factory=dict)  # by metric, in the units of metrics.json
    paper_data: Mapping[str, Any] = field(default_factory=dict)  # data, split, images
    source: str | None = None
    command: str = ""  # makes the missing runs; empty where nothing here can
    scores: Sequence[Score] = ()

    def ours(self, column: Column) -> list[float]:
        """What each seed reached, in the unit of the column."""
        values = [score.values[column.metric] for score in self.scores if column.metric in score.values]
        return [FACTORS[column.unit] * value for value in values]

    def theirs(self, column: Column) -> float | None:
        """What the paper reports, in the unit of the column."""
        return FACTORS[column.unit] * self.paper[column.metric] if column.metric in self.paper else None

    def comparable(self) -> bool:
        """Whether ours was scored on the paper's images, as far as one can tell."""
        theirs = self.paper_data
        return not theirs or all(
            # a later VOC holds the images of the earlier ones, so its year does not matter
            (score.data[:3], score.split) == (theirs["data"][:3], theirs["split"])
            and score.images in (None, theirs["images"])
            for score in self.trained()
        )

    def trained(self) -> list[Score]:
        """The scores of images: those of finished runs, and not of benchmarks alone."""
        return [score for score in self.scores if score.split]


def make_rows(
    name: str,
    definition: Mapping[str, Any],
    columns: Sequence[Column],
    scores: Sequence[Score],
    benchmarks: Sequence[Benchmark] = (),
) -> list[Row]:
    """Rows of a table in the paper's order: each setting of an experiment a row of its own, its seeds together.

    They come from the ``reported`` entries of the experiments and of the runs, and from the csv file of the systems
    that nobody trains here. Time and memory come from the benchmarks with the settings that the definition names.
    """
    if "benchmark" in definition:
        scores = with_costs(scores, benchmarks, definition["benchmark"])
    by_setting: dict[tuple[Path, str], list[Score]] = {}
    for score in scores:
        by_setting.setdefault((score.folder, score.evaluation), []).append(score)
    groups = list(by_setting.values())
    if name == RUNS:
        return [Row(_label(group[0].name, group[0]), scores=group) for group in groups]
    entries = {entry["row"]: entry for entry in _experiments(name, definition.get("overrides", ""))}
    for entry in (entry for score in scores for entry in score.reported if entry["table"] == name):
        entries.setdefault(entry["row"], entry)
    rows = list(_literature(definition, columns))
    for label, entry in entries.items():
        paper, data = entry.get("metrics") or {}, entry.get("scored_on") or {}
        row = Row(label, entry.get("order", 0), paper, data, entry.get("source"), entry.get("command", ""))
        found = [group for group in groups if _belongs(group[0], entry)]
        rows += [replace(row, label=_label(row.label, group[0]), scores=group) for group in found] or [row]
    rows.sort(key=lambda row: row.order)
    for column in columns:
        if column.metric.startswith(RELATIVE):
            rows = relative(rows, column.metric)
    return rows


def relative(rows: Sequence[Row], metric: str) -> list[Row]:
    """Give rows a metric ``relative/<name>``: multiples of the first row that has ``<name>``, ours and the paper's."""
    name = metric.removeprefix(RELATIVE)
    ours = [mean(values) for row in rows if (values := [s.values[name] for s in row.scores if name in s.values])]
    papers = [row.paper[name] for row in rows if name in row.paper]

    def with_ratio(values: Mapping[str, float], base: list[float]) -> Mapping[str, float]:
        return {**values, metric: values[name] / base[0]} if name in values else values

    return [
        replace(
            row,
            paper=with_ratio(row.paper, papers),
            scores=[replace(score, values=with_ratio(score.values, ours)) for score in row.scores],
        )
        for row in rows
    ]


def _label(label: str, score: Score) -> str:
    note = ", ".join(filter(None, [score.settings, score.evaluation]))
    return f"{label} [{note}]" if note else label


def _belongs(score: Score, entry: Mapping[str, Any]) -> bool:
    """Whether a score is one of a row: of its experiment, and of its way of inference, or of none that has a row."""
    of_table = [other for other in score.reported if other["table"] == entry["table"]]
    if entry["row"] not in [other["row"] for other in of_table]:
        return False
    if entry.get("inference"):
        return bool(score.inference == entry["inference"])
    return score.inference not in [other.get("inference") for other in of_table]


def _experiments(table: str, overrides: str) -> Iterator[Mapping[str, Any]]:
    """The ``reported`` entries of all experiments for a table, each with the command that makes its row."""
    for path in sorted((cli.CONF_DIR / "experiment").glob("*.yaml")):
        experiment: Any = OmegaConf.to_container(OmegaConf.load(path))
        for entry in experiment.get("reported", []):
            if entry["table"] == table:
                command = f"segmod-train experiment={path.stem} {overrides}".strip()
                if entry.get("inference"):
                    needed = [_training(name, overrides) for name in (path.stem, *entry.get("members", []))]
                    run = runs.run_dir("runs", experiment["name"], 0, overrides.split(), {})
                    command = " && ".join([*needed, f"segmod-evaluate run={run} inference={entry['inference']}"])
                yield {**entry, "command": command}


def _training(experiment: str, overrides: str) -> str:
    """The command that trains an experiment, with the stages before it where a sweep has them."""
    for path in sorted((cli.CONF_DIR / "sweep").glob("*.yaml")):
        stages = str(OmegaConf.select(OmegaConf.load(path), "hydra.sweeper.params.experiment", default="")).split(",")
        stage: Any = OmegaConf.load(cli.CONF_DIR / "experiment" / f"{experiment}.yaml")
        if stages[-1] == experiment and stage.get("init_from"):
            return f"segmod-train sweep={path.stem} {overrides}".strip()
    return f"segmod-train experiment={experiment} {overrides}".strip()


def _literature(definition: Mapping[str, Any], columns: Sequence[Column]) -> Iterator[Row]:
    if "literature" in definition:
        with (cli.CONF_DIR / "tables" / definition["literature"]).open(newline="") as file:
            for line in csv.DictReader(file):
                paper = {c.metric: float(line[c.header]) / FACTORS[c.unit] for c in columns if line.get(c.header)}
                data, source = definition.get("scored_on", {}), definition.get("source")
                yield Row(line["row"], float(line["order"]), paper, data, source)
