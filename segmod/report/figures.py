"""Charts of a report, to hover over: specifications of Vega-Lite, made by Altair.

Altair, because what it draws with takes 0.9 MB of a page; that of Bokeh takes 3.9, that of Plotly 4.7.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import torch

from segmod.ground.palettes import OKABE_ITO

Chart = Mapping[str, Any]
"""A specification of Vega-Lite."""

_PERCENT = ".1f"
_MARKED = 60  # points of a curve up to which each is marked


def _spec(chart: Any) -> Chart:
    look = (
        chart.configure_axis(gridColor="#eee").configure_axisBand(grid=False).configure_range(category=list(OKABE_ITO))
    )
    spec: Chart = look.configure_view(stroke=None).to_dict()
    return spec


def curves(rows: Sequence[Mapping[str, str]], metrics: Mapping[str, str], most: int = 600) -> Chart | None:
    """Curves of metrics over the steps, in one panel; None where no row has one of them.

    Args:
        rows: Of metrics.csv.
        metrics: What to call each metric.
        most: Points of a curve; of more, each so many are left out.
    """
    points: list[dict[str, Any]] = []
    for metric, name in metrics.items():
        factor = 100 if metric.startswith("val/") else 1
        own = [(int(row["step"]), float(row[metric])) for row in rows if row.get(metric)]
        own = own[:: max(1, len(own) // most)]
        points += [{"step": step, "value": round(factor * value, 5), "metric": name} for step, value in own]
    points = [point for point in points if point["value"] == point["value"]]
    if not points:
        return None
    chart = alt.Chart(alt.InlineData(values=points)).encode(
        x=alt.X("step:Q"),
        y=alt.Y(
            "value:Q", title="%" if next(iter(metrics)).startswith("val/") else "loss", scale=alt.Scale(zero=False)
        ),
        color=alt.Color("metric:N", title=None, sort=list(metrics.values()), legend=alt.Legend(orient="bottom")),
        tooltip=["metric:N", "step:Q", alt.Tooltip("value:Q", format=".4g")],
    )
    most_points = max(sum(point["metric"] == name for point in points) for name in metrics.values())
    lines = chart.mark_line(point={"size": 20} if most_points <= _MARKED else False)
    return _spec(lines.properties(width=420, height=240))


def class_bars(iou: Mapping[str, float | None]) -> Chart | None:
    """IoU of each class in percent, the best first, without absent classes; None where all are."""
    known = [{"class": name, "IoU": round(100 * value, 2)} for name, value in iou.items() if value is not None]
    if not known:
        return None
    chart = alt.Chart(alt.InlineData(values=known)).encode(
        y=alt.Y("class:N", sort="-x", title=None),
        x=alt.X("IoU:Q", title="IoU (%)", scale=alt.Scale(domain=[0, 100])),
        tooltip=["class:N", alt.Tooltip("IoU:Q", format=".2f")],
    )
    texts = chart.mark_text(align="left", dx=3).encode(text=alt.Text("IoU:Q", format=_PERCENT))
    return _spec((chart.mark_bar(color=OKABE_ITO[0]) + texts).properties(width=420, height=alt.Step(18)))


def confusion(counts: torch.Tensor, classes: Sequence[str]) -> Chart:
    """Where the pixels of each class went, in percent of the class; classes without truth are left out."""
    share = 100 * counts.double() / counts.sum(1, keepdim=True)
    there = [k for k in range(len(classes)) if counts[k].sum() > 0 or counts[:, k].sum() > 0]
    cells = [
        {
            "truth": classes[i],
            "prediction": classes[j],
            "share": round(float(share[i, j]), 2),
            "pixels": int(counts[i, j]),
        }
        for i in there
        for j in there
        if counts[i].sum() > 0
    ]
    order = [classes[k] for k in there]
    chart = alt.Chart(alt.InlineData(values=cells)).encode(
        x=alt.X("prediction:N", sort=order, axis=alt.Axis(labelAngle=-50)),
        y=alt.Y("truth:N", sort=order),
        tooltip=["truth:N", "prediction:N", alt.Tooltip("share:Q", title="% of the truth"), "pixels:Q"],
    )
    heat = chart.mark_rect().encode(
        color=alt.Color("share:Q", title="%", scale=alt.Scale(range=["#f4f8fc", "#08306b"], domain=[0, 100]))
    )
    shown = alt.condition("datum.share > 55", alt.value("white"), alt.value("black"))
    texts = (
        chart.transform_filter("datum.share >= 1")
        .mark_text(fontSize=9)
        .encode(text=alt.Text("share:Q", format=".0f"), color=shown)
    )
    return _spec((heat + texts).properties(width=alt.Step(26), height=alt.Step(22)))


def bars(values: Mapping[str, float], counts: Mapping[str, int], what: str, of: str, number: str) -> Chart | None:
    """A bar in percent for each range; None for no range.

    Args:
        values: Fractions by range.
        counts: How many each is of.
        what: The heading of the values.
        of: The heading of the ranges.
        number: The heading of the counts.
    """
    if not values:
        return None
    rows = [{of: name, what: round(100 * value, 2), number: counts[name]} for name, value in values.items()]
    chart = alt.Chart(alt.InlineData(values=rows)).encode(
        x=alt.X(f"{of}:N", sort=None, axis=alt.Axis(labelAngle=0)),
        y=alt.Y(f"{what}:Q", title=f"{what} (%)"),
        tooltip=[f"{of}:N", alt.Tooltip(f"{what}:Q", format=_PERCENT), f"{number}:Q"],
    )
    texts = chart.mark_text(dy=-6).encode(text=alt.Text(f"{what}:Q", format=_PERCENT))
    return _spec((chart.mark_bar(color=OKABE_ITO[0], size=34) + texts).properties(width=420, height=200))


def parallel(runs: Sequence[Mapping[str, Any]], keys: Sequence[str], metric: str) -> Chart:
    """A line a run through its values of the keys that differ, ending at its metric, whose colour it has.

    Args:
        runs: By key its value, ``run`` its name, and the metric in percent.
        keys: Axes from left to right.
        metric: The last axis.
    """
    places: dict[str, dict[str, float]] = {}
    for key in keys:
        found = list(dict.fromkeys(run.get(key) for run in runs))
        is_number = all(isinstance(value, int | float) and not isinstance(value, bool) for value in found)
        order = sorted(found) if is_number else sorted(found, key=str)  # type: ignore[type-var]
        places[key] = {str(value): (i + 0.5) / len(order) for i, value in enumerate(order)}
    numbers = [run[metric] for run in runs]
    low, high = min(numbers), max(numbers)
    points = [
        {
            "run": run["run"],
            "axis": axis,
            "position": position,
            "place": places[axis][str(run.get(axis))] if axis in places else (run[metric] - low) / ((high - low) or 1),
            "value": str(run.get(axis)) if axis in places else f"{run[metric]:.2f} %",
            metric: run[metric],
        }
        for run in runs
        for position, axis in enumerate((*keys, metric))
    ]
    touched = alt.selection_point(on="pointerover", fields=["run"], nearest=True)
    chart = alt.Chart(alt.InlineData(values=points)).encode(
        x=alt.X("axis:N", sort=[*keys, metric], title=None, axis=alt.Axis(labelAngle=0, orient="top")),
        y=alt.Y("place:Q", axis=None),
        detail="run:N",
    )
    colour = alt.Color(f"{metric}:Q", scale=alt.Scale(scheme="viridis"), title=f"{metric} (%)")
    lines = chart.mark_line(strokeWidth=2).encode(
        color=colour, opacity=alt.condition(touched, alt.value(0.95), alt.value(0.25)), order="position:Q"
    )
    marks = chart.mark_point(filled=True, size=60).encode(
        color=colour, tooltip=["run:N", "axis:N", "value:N", alt.Tooltip(f"{metric}:Q", format=".2f")]
    )
    names = chart.mark_text(dx=8, align="left", fontSize=10).encode(text="value:N")
    return _spec((lines + marks.add_params(touched) + names).properties(width=160 * (len(keys) + 1), height=300))


def by_key(runs: Sequence[Mapping[str, Any]], key: str, metric: str) -> Chart:
    """The metric of each run against one key, with the mean of each value."""
    values = [{"run": run["run"], "value": str(run.get(key)), metric: run[metric]} for run in runs]
    found = list(dict.fromkeys(run.get(key) for run in runs))
    is_number = all(isinstance(value, int | float) and not isinstance(value, bool) for value in found)
    order = [str(value) for value in (sorted(found) if is_number else sorted(found, key=str))]  # type: ignore[type-var]
    chart = alt.Chart(alt.InlineData(values=values)).encode(
        x=alt.X("value:N", sort=order, title=key, axis=alt.Axis(labelAngle=0, labelLimit=120)),
        y=alt.Y(f"{metric}:Q", title=f"{metric} (%)", scale=alt.Scale(zero=False)),
    )
    dots = chart.mark_circle(size=60, color=OKABE_ITO[0]).encode(tooltip=["run:N", "value:N", f"{metric}:Q"])
    means = chart.mark_tick(thickness=3, size=30, color=OKABE_ITO[5]).encode(y=alt.Y(f"mean({metric}):Q"))
    return _spec((dots + means).properties(width=max(140, 60 * len(order)), height=220))
