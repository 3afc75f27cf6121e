"""What a benchmark found, as a table and charts: the jobs of a sweep beside each other, with the paper's ratios."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segmod.ground.printing import markdown, print_table, write_records

if TYPE_CHECKING:
    from segmod.runs.jobs import Job

DASH = "\N{EN DASH}"


@dataclass(frozen=True)
class Quantity:
    """One quantity of a benchmark, by its name in benchmark.json, as a table shows it."""

    name: str
    header: str
    unit: str
    factor: float  # from the unit of the file to that of the table
    digits: int


QUANTITIES = (
    Quantity("parameters", "parameters", "M", 1e-6, 2),
    Quantity("forward_flops", "forward", "GFLOP", 1e-9, 1),
    Quantity("train_flops", "forward + backward", "GFLOP", 1e-9, 1),
    Quantity("saved_activation_bytes", "saved activations", "MiB", 2.0**-20, 0),
    Quantity("train_memory_bytes", "training memory", "MiB", 2.0**-20, 0),
    Quantity("train_reserved_bytes", "training memory, reserved", "MiB", 2.0**-20, 0),
    Quantity("test_memory_bytes", "test memory", "MiB", 2.0**-20, 0),
    Quantity("train_time_s", "training step", "s", 1.0, 3),
    Quantity("train_cpu_s", "training step, CPU time", "s", 1.0, 3),
    Quantity("test_time_s", "forward pass", "s", 1.0, 3),
    Quantity("test_cpu_s", "forward pass, CPU time", "s", 1.0, 3),
)


def report(jobs: Sequence[Job], reference: Job, path: Path) -> None:
    """Print what was found; of a sweep also write ``path`` .md, .csv and charts."""
    from segmod.ground.printing import short_path

    lines = table(jobs, reference)
    note = caption(jobs)
    console = print_table(note, lines)
    for job in jobs:
        console.print(f"written: {short_path(job.directory.absolute() / 'benchmark.json')}", soft_wrap=True)
    if len(jobs) == 1:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    file_of(path, ".md").write_text(f"**{note}**\n\n{markdown(lines)}\n")
    write_records(file_of(path, ".csv"), list(records(jobs, reference)))
    charts = draw(jobs, reference, path)
    console.print(f"written: {short_path(path.absolute())}{{.md,.csv,{','.join(charts)}}}", soft_wrap=True)


def file_of(path: Path, ending: str) -> Path:
    """A file beside the others; unlike ``with_suffix`` it keeps dots of the name."""
    return path.with_name(path.name + ending)


def caption(jobs: Sequence[Job]) -> str:
    """The settings that all jobs have in common."""
    common = {k: v for k, v in jobs[0].settings.items() if all(job.settings.get(k) == v for job in jobs)}
    words = [str(common[key]) for key in ("device", "precision") if key in common]
    if "batch" in common:
        words.append(f"batch {common['batch']}")
    if "size" in common:
        words.append("x".join(map(str, common["size"])))
    words += [f"{common[key]} {key}" for key in ("threads", "steps", "passes", "rounds") if common.get(key)]
    return ", ".join(words)


def table(jobs: Sequence[Job], reference: Job) -> list[list[str]]:
    """Header and lines: a column for each job, under each quantity its quartiles, its ratio and the paper's."""
    lines = [["", *(job.label for job in jobs)]]
    for quantity in QUANTITIES:
        q, name = quantity, quantity.name
        if not any(name in job.values for job in jobs):
            continue
        lines.append([f"{q.header} ({q.unit})", *(_text(job.values.get(name), q) for job in jobs)])
        spreads = [spread_of(job, name) for job in jobs]
        if any(s and s["count"] > 1 for s in spreads):
            quartiles = [f"{_text(s['q1'], q)} to {_text(s['q3'], q)}" if s else DASH for s in spreads]
            lines.append(["- quartiles", *quartiles])
        if len(jobs) > 1:
            lines.append(["- ratio", *(_ratio_text(job.ratios.get(name)) for job in jobs)])
            papers = [paper_ratio(job, reference, name) for job in jobs]
            if any(papers):
                lines.append(["- ratio, paper", *map(_ratio_text, papers)])
    return lines


def _text(value: float | None, quantity: Quantity) -> str:
    return DASH if value is None else f"{quantity.factor * value:.{quantity.digits}f}"


def _ratio_text(ratio: float | None) -> str:
    return DASH if ratio is None else f"{ratio:.2f}"


def spread_of(job: Job, name: str) -> dict[str, float] | None:
    """Quartiles of a time over all rounds; None for what is no time."""
    from segmod.measure import spread

    kind, _, key = name.partition("_")
    rounds = job.rounds.get(kind, {}).get(key)
    return spread(rounds) if rounds else None


def paper_ratio(job: Job, reference: Job, name: str) -> float | None:
    """The ratio by the numbers that a paper reports of these two, if it does."""
    own, other = (reported(j).get(name) for j in (job, reference))
    return own / other if own and other else None


def reported(job: Job) -> dict[str, Any]:
    """Numbers of a paper about a job, by their names in benchmark.json; its times stand beside both of our clocks."""
    metrics: dict[str, Any] = dict(job.facts.get("reported") or {})
    return metrics | {name.replace("_time_s", "_cpu_s"): value for name, value in metrics.items() if "_time_s" in name}


def records(jobs: Sequence[Job], reference: Job) -> Iterator[dict[str, Any]]:
    """One record for each job and quantity, in the units of benchmark.json."""
    for job in jobs:
        for name, value in job.values.items():
            spread = spread_of(job, name) or {}
            yield {
                "job": job.label, "quantity": name, "value": value, "q1": spread.get("q1"), "q3": spread.get("q3"),
                "ratio": job.ratios.get(name), "against": reference.label,
                "paper_ratio": paper_ratio(job, reference, name),
            }  # fmt: skip


def draw(jobs: Sequence[Job], reference: Job, path: Path) -> list[str]:
    """Draw ratios of times and of memory, with the paper's; returns the endings of the files."""
    from segmod import viz

    # other work on the machine disturbs CPU time less than what the clock says
    times = ("train_cpu_s", "test_cpu_s") if reference.settings["device"] == "cpu" else ("train_time_s", "test_time_s")
    timed = any(name in reference.ratios for name in times)
    charts = {
        "-time.png": ("Time", times) if timed else ("Operations", ("forward_flops", "train_flops")),
        "-memory.png": ("Memory", ("saved_activation_bytes", "train_memory_bytes")),
    }
    drawn = []
    for ending, (title, names) in charts.items():
        series: dict[str, list[float | None]] = {}
        for q in (q for q in QUANTITIES if q.name in names):
            series[q.header] = [job.ratios.get(q.name) for job in jobs]
            series[f"{q.header.partition(',')[0]}, paper"] = [paper_ratio(job, reference, q.name) for job in jobs]
        series = {name: values for name, values in series.items() if any(values)}
        if series:
            title = f"{title} as a multiple of {reference.label}"
            viz.bar_chart([job.label for job in jobs], series, file_of(path, ending), title, "ratio")
            drawn.append(ending)
    return drawn
