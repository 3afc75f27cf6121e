"""The papers' tables as ``conf/tables`` defines them, and their rows with what the finished runs reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

from omegaconf import DictConfig, OmegaConf

from segmod.ground.errors import UserError
from segmod.runs.records import Benchmark, Score, with_costs

RELATIVE = "relative/"  # before the name of a metric: as a multiple of the first row
FACTORS = {"%": 100.0, "MiB": 2.0**-20, "s": 1.0, "x": 1.0}  # from the units of metrics.json to those of a table


@dataclass(frozen=True)
class Column:
    """One quantity of a table.

    Attributes:
        metric: Key of `Score.values`.
        header: What the paper calls it.
        unit: Of the table: %, MiB, s, or x for a multiple of the first row (``relative/<metric>``).
        classes: Makes the metric the mean IoU of these, without those that neither truth nor prediction has.
    """

    metric: str
    header: str
    unit: str = "%"
    classes: tuple[str, ...] = ()

    def of(self, values: Mapping[str, float]) -> float | None:
        """This quantity among the values of a score, if it is there."""
        if self.classes:
            found = [values[f"iou/{name}"] for name in self.classes if f"iou/{name}" in values]
            return mean(found) if found else None
        return values.get(self.metric)


@dataclass(frozen=True)
class Row:
    """One line of a table: a system as the paper reports it, and as runs of one setting reached it, one a seed.

    Attributes:
        label: What the paper calls it.
        match: Dotted keys of the config, with their values in the runs that make the row; None: nothing here makes it.
        inference: How they were scored, where that makes the row.
        paper: Numbers of the paper by metric, in the units of metrics.json.
        scored_on: Images of the paper's numbers: data, split, images.
        source: Where these are printed.
        command: Makes the runs.
        scores: Of the runs.
    """

    label: str
    match: Mapping[str, Any] | None = None
    inference: str | None = None
    paper: Mapping[str, float] = field(default_factory=dict)
    scored_on: Mapping[str, Any] = field(default_factory=dict)
    source: str | None = None
    command: str = ""
    scores: Sequence[Score] = ()

    def ours(self, column: Column) -> list[float]:
        """What each seed reached, in the unit of the column."""
        values = [column.of(score.values) for score in self.scores]
        return [FACTORS[column.unit] * value for value in values if value is not None]

    def theirs(self, column: Column) -> float | None:
        """What the paper reports, in the unit of the column."""
        return FACTORS[column.unit] * self.paper[column.metric] if column.metric in self.paper else None

    def comparable(self) -> bool:
        """Whether ours was scored on the paper's images, as far as one can tell."""
        theirs = self.scored_on
        return not theirs or all(
            # a later VOC holds the images of the earlier ones, so its year does not matter
            (score.data[:3], score.split) == (theirs["data"][:3], theirs["split"])
            and score.images in (None, theirs["images"])
            for score in self.trained()
        )

    def trained(self) -> list[Score]:
        """The scores of images: those of finished runs, and not of benchmarks alone."""
        return [score for score in self.scores if score.split]

    def made_by(self, config: DictConfig) -> bool:
        """Whether a run with this config is one of the row."""
        return self.match is not None and all(
            OmegaConf.select(config, key, default="-", throw_on_resolution_failure=False) == value
            for key, value in self.match.items()
        )


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        caption: Above it.
        columns: Its quantities.
        rows: As the paper has them, without scores; None: each setting of any run has one.
        benchmark: Settings of the benchmarks that time and memory come from.
        benchmark_command: Makes these.
    """

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Row] | None = None
    benchmark: Mapping[str, Any] | None = None
    benchmark_command: str = ""


def read_tables(folders: Sequence[Path]) -> dict[str, Table]:
    """The tables of folders of configs by name; of two with one name the first, as Hydra has it."""
    found: dict[str, Table] = {}
    for folder in folders:
        for path in sorted((folder / "tables").glob("*.yaml")):
            found.setdefault(path.stem, _read(path))
    return found


@cache
def _read(path: Path) -> Table:
    """Read one table: what its rows have in common may stand at its top.

    Raises:
        UserError: Something is missing or not known.
    """
    definition: Any = OmegaConf.to_container(OmegaConf.load(path))
    try:
        columns = [Column(**column) for column in definition.pop("columns")]
        common = {key: definition.pop(key) for key in ("match", "scored_on", "source", "command") if key in definition}
        entries = definition.pop("rows", None)
        rows = None if entries is None else [_row(entry, common, columns) for entry in entries]
        return Table(columns=columns, rows=rows, **definition)
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: no table of segmod ({error}): see conf/tables/fcn.yaml for what belongs there"
        ) from error


def _row(entry: Mapping[str, Any], common: Mapping[str, Any], columns: Sequence[Column]) -> Row:
    """A row; ``numbers`` are those of the first columns in their units, ``metrics`` others in those of metrics.json."""
    given = {**common, **entry}
    numbers, metrics = given.pop("numbers", []), given.pop("metrics", {})
    paper = {c.metric: number / FACTORS[c.unit] for c, number in zip(columns, numbers, strict=False)} | metrics
    if "match" in entry:
        given["match"] = {**common.get("match", {}), **entry["match"]}
    else:
        given |= {"match": None, "command": ""}
    if not paper:
        given |= {"scored_on": {}, "source": None}
    return Row(**given, paper=paper)


def reported(config: DictConfig, folders: Sequence[Path]) -> dict[str, float]:
    """What the papers report of a run with this config, by metric, in the units of metrics.json."""
    rows = [row for table in read_tables(folders).values() for row in table.rows or () if row.made_by(config)]
    return {metric: value for row in rows for metric, value in row.paper.items()}


def filled(table: Table, scores: Sequence[Score], benchmarks: Sequence[Benchmark] = ()) -> list[Row]:
    """Rows of a table in its order: each setting of its runs a row of its own, the seeds together.

    Time and memory come from the benchmarks with the settings that the table names.
    """
    if table.benchmark is not None:
        scores = with_costs(scores, benchmarks, table.benchmark)
    by_setting: dict[tuple[Path, str], list[Score]] = {}
    for score in scores:
        by_setting.setdefault((score.folder, score.evaluation), []).append(score)
    groups = list(by_setting.values())
    if table.rows is None:
        return [Row(_label(Row(group[0].name), group[0]), scores=group) for group in groups]
    rows: list[Row] = []
    for row in table.rows:
        found = [group for group in groups if _belongs(group[0], row, table.rows)]
        rows += [replace(row, label=_label(row, group[0]), scores=group) for group in found] or [row]
    for column in table.columns:
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


def _label(row: Row, score: Score) -> str:
    """The row's name, and what sets this score apart from others of the row."""
    told = {key.rpartition(".")[2] for key in row.match or ()}
    settings = "+".join(part for part in score.settings.split("+") if part.partition("-")[0] not in told)
    note = ", ".join(filter(None, [settings, score.evaluation]))
    return f"{row.label} [{note}]" if note else row.label


def _belongs(score: Score, row: Row, rows: Sequence[Row]) -> bool:
    """Whether a score is one of a row: of its runs, and of its way of inference, or of none that has a row."""
    if not row.made_by(score.config):
        return False
    if row.inference:
        return score.inference == row.inference
    return score.inference not in [other.inference for other in rows if other.made_by(score.config)]
