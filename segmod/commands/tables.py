"""``segmod-tables``: the papers' tables, with what the finished runs reached beside what the papers report."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from omegaconf import DictConfig, OmegaConf

from segmod.ground.errors import UserError
from segmod.ground.files import replace_text
from segmod.ground.printing import markdown, print_table, write_records
from segmod.runs import cli
from segmod.runs.records import collect, collect_benchmarks
from segmod.runs.tables import Column, Row, Table, filled, read_tables

log = logging.getLogger(__name__)

DASH = "\N{EN DASH}"
RUNS = "runs"  # the table of all runs, which no paper has
_DEFAULT_COLUMNS = [Column(name, name) for name in ("miou", "pixel_acc", "mean_acc", "fwiou")]
_DIGITS = {"%": 1, "MiB": 0, "s": 3, "x": 2}
_KINDS = ("ours", "paper", "difference")
_WIDE = 4  # tables with more columns than this have ours, paper and difference below each other


def main(cfg: DictConfig) -> None:
    """Collect the results below ``runs`` and write the tables."""
    tables = {RUNS: Table(f"All runs below {cfg.runs}", _DEFAULT_COLUMNS), **read_tables(cli.search_path())}
    if cfg.table is not None and cfg.table not in tables:
        raise UserError(f"table={cfg.table}: no such table; choose one of {', '.join(tables)}")
    root = Path(cfg.runs).expanduser()
    if not root.is_dir():
        raise UserError(f"runs={cfg.runs}: no such folder; train first (segmod-train), or give runs=FOLDER")
    scores, benchmarks = collect(root), collect_benchmarks(root)
    if not scores and not benchmarks and cfg.table in (None, RUNS):
        raise UserError(f"runs={cfg.runs}: no finished run there; train first (segmod-train), or give runs=FOLDER")
    empty = []
    for name in [cfg.table] if cfg.table else tables:
        rows = filled(tables[name], scores, benchmarks)
        if cfg.table or any(row.scores for row in rows):
            write(Path(cfg.output).expanduser() / name, tables[name], rows)
        else:
            empty.append(name)
    if empty:
        log.info("no run belongs to %s; table=NAME shows the commands that make one", ", ".join(empty))


# -- writing ---------------------------------------------------------------------------------------------------------


def write(path: Path, table: Table, rows: Sequence[Row]) -> None:
    """Write a table as .md, .csv, .tex and .png beside each other, and print it.

    The chart is of the first column; a table of benchmarks has one of each.
    """
    caption, columns = table.caption, table.columns
    lines = layout(columns, rows)
    notes = footnotes(rows, table.benchmark_command)
    replace_text(path.with_suffix(".md"), "\n\n".join([f"**{caption}**", markdown(lines), *notes]) + "\n")
    replace_text(path.with_suffix(".tex"), latex(caption, lines, notes))
    write_records(path.with_suffix(".csv"), list(records(columns, rows)))
    draw(path.with_suffix(".png"), caption, columns[0], rows)
    for column in columns[1:] if table.benchmark is not None else ():
        draw(path.with_name(f"{path.name}-{column.metric.replace('/', '-')}.png"), caption, column, rows)

    # a terminal is not as wide as some tables
    console = print_table(caption, layout(columns[:1] if len(columns) > _WIDE else columns, rows))
    for note in notes:
        console.print(note, soft_wrap=True)
    console.print(f"written: {path}.{{md,csv,tex,png}}\n", soft_wrap=True)


def draw(path: Path, caption: str, column: Column, rows: Sequence[Row]) -> None:
    """Draw one quantity of the rows that have it, the paper's beside ours, with the deviation over the seeds."""
    from segmod import charts

    shown = [row for row in rows if row.ours(column) or row.theirs(column) is not None]
    if not shown:
        return
    ours = [row.ours(column) for row in shown]
    series = {"ours": [mean(values) if values else None for values in ours]}
    errors = {"ours": [stdev(values) if len(values) > 1 else None for values in ours]}
    if any(row.theirs(column) is not None for row in shown):
        series["paper"] = [row.theirs(column) for row in shown]
    labels = [row.label if len(row.label) <= 40 else f"{row.label[:39]}\N{HORIZONTAL ELLIPSIS}" for row in shown]
    marked = [label if row.comparable() else f"{label} \N{DAGGER}" for label, row in zip(labels, shown, strict=True)]
    heading = _heading(column)
    if marked != labels:
        heading += ", \N{DAGGER} other images"
    charts.bar_chart(marked, series, path, caption, heading, errors)


def layout(columns: Sequence[Column], rows: Sequence[Row]) -> list[list[str]]:
    """Header and lines of a table; the paper's and the difference stand where some row has a number of the paper."""
    both = [column for column in columns if any(row.theirs(column) is not None for row in rows)]
    if len(columns) > _WIDE:
        lines = [["", "runs", "scored on", "", *(column.header for column in columns)]]
        for row in rows:
            for kind, cells in zip(_KINDS, zip(*(_cells(row, column) for column in columns), strict=True), strict=True):
                lines += [[*_facts(row), kind, *cells]] if set(cells) != {DASH} else []
        return lines
    lines = [["", "runs", "scored on"]]
    for column in columns:
        lines[0] += [_heading(column)] + (["paper", "difference"] if column in both else [])
    for row in rows:
        lines.append(_facts(row) + [t for c in columns for t in _cells(row, c)[: 3 if c in both else 1]])
    return lines


def _heading(column: Column) -> str:
    return f"{column.header} ({column.unit})"


def _facts(row: Row) -> list[str]:
    """Label, number of runs, and what they were scored on."""
    trained = row.trained()
    return [row.label, str(len(trained)) if trained else "", _place(vars(trained[0])) if trained else ""]


def _place(data: Mapping[str, Any]) -> str:
    images = f", {data['images']}{'' if 'crops' in data['split'] else ' images'}" if data.get("images") else ""
    return f"{data['data']} {data['split']}{images}"


def _cells(row: Row, column: Column) -> tuple[str, str, str]:
    """Ours (mean and standard deviation over the seeds), the paper's, and the difference."""
    values, paper, digits = row.ours(column), row.theirs(column), _DIGITS[column.unit]
    ours = f"{mean(values):.{digits}f}" if values else DASH
    if len(set(values)) > 1:  # a benchmark's number is the same for all seeds
        ours += f" ± {stdev(values):.{digits}f}"
    if paper is None:
        return ours, DASH, DASH
    mark = "" if row.comparable() else " †"
    return ours, f"{paper:.{digits}f}", f"{mean(values) - paper:+.{digits}f}{mark}" if values else DASH


def footnotes(rows: Sequence[Row], benchmark_command: str = "") -> list[str]:
    """What a reader must know: other images than the paper's, seeds, commands for what is missing, sources."""
    notes = []
    for row in rows:
        if not row.comparable():
            ours = ", ".join(sorted({_place(vars(score)) for score in row.trained()}))
            notes.append(f"† {row.label}: ours on {ours}, the paper's on {_place(row.scored_on)}: other images.")
        lengths = {_length(score.config): None for score in row.trained()}
        if len(lengths) > 1:
            notes.append(f"{row.label}: the mean of trainings of different lengths ({', '.join(sorted(lengths))}).")
    if any(len(row.trained()) > 1 for row in rows):
        notes.append("Ours: mean ± standard deviation over the seeds.")
    missing: dict[str, list[str]] = {}
    for row in rows:
        if row.command and not row.trained():
            missing.setdefault(row.command, []).append(row.label)
    unmeasured = [row.label for row in rows if row.match and not any(score.costs for score in row.scores)]
    if benchmark_command and unmeasured:
        missing[benchmark_command] = [f"time and memory of {', '.join(unmeasured)}"]
    if missing:
        told = [f"- {'; '.join(labels)}: `{command}`" for command, labels in missing.items()]
        notes.append("\n".join(["Not run yet:", "", *told]))
    if costs := dict.fromkeys(score.costs for row in rows for score in row.scores if score.costs):
        notes.append(f"Time and memory of ours: {'; '.join(costs)}. The paper's are of its own machine.")
    if sources := dict.fromkeys(f"{row.source} ({_place(row.scored_on)})" for row in rows if row.source):
        notes.append(f"The paper's numbers: {'; '.join(sources)}.")
    return notes


def _length(config: DictConfig) -> str:
    """How long a training was to be, such as ``24 epochs``."""
    found = {what: OmegaConf.select(config, f"trainer.max_{what}") for what in ("steps", "epochs")}
    return ", ".join(f"{count} {what}" for what, count in found.items() if count not in (None, -1)) or "no end"


def latex(caption: str, lines: Sequence[Sequence[str]], notes: Sequence[str]) -> str:
    """A booktabs table with its notes as comments."""
    names = {DASH: "--", "±": "$\\pm$", "†": "$\\dagger$", "\\": "\\textbackslash{}"}

    def escaped(text: str) -> str:
        return "".join(names.get(c, f"\\{c}" if c in "%&_#${}" else c) for c in text)

    body = [" & ".join(map(escaped, line)) + r" \\" for line in lines]
    comments = [f"% {line}" for note in notes for line in note.split("\n") if line]
    return "\n".join([
        r"% needs \usepackage{booktabs}", *comments, r"\begin{table}", rf"\caption{{{escaped(caption)}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(lines[0]) - 1)}}}", r"\toprule", body[0], r"\midrule", *body[1:],
        r"\bottomrule", r"\end{tabular}", r"\end{table}", "",
    ])  # fmt: skip


def records(columns: Sequence[Column], rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """One record for each row and quantity, with full precision."""
    for row in rows:
        for column in columns:
            ours, paper = row.ours(column), row.theirs(column)
            yield {
                "row": row.label, "metric": column.metric, "unit": column.unit, "runs": len(ours),
                "ours": mean(ours) if ours else None, "std": stdev(ours) if len(ours) > 1 else None,
                "scored_on": _facts(row)[2], "paper": paper,
                "paper_scored_on": _place(row.scored_on) if row.scored_on else None,
                "difference": mean(ours) - paper if ours and paper is not None else None,
                "comparable": row.comparable(), "source": row.source, "command": row.command,
            }  # fmt: skip
