"""Charts, and pages of pictures; everything is drawn without a display.

Charts use the palette of Okabe and Ito (2008), which keeps its colours apart for colour-blind readers, and tell series
apart by hatch or marker as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

from segmod.ground.files import writing
from segmod.ground.palettes import OKABE_ITO

Curve = Sequence[tuple[float, float]]  # points (x, y)
Tile = NDArray[np.uint8] | NDArray[np.float32] | None
"""uint8 (H, W, 3), RGB, shown as it is; float (H, W), shown from 0 to 1; None leaves its place empty."""

HATCHES = ("", "//", "..", "\\\\", "xx", "--", "++")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def confusion_picture(confusion: NDArray[np.integer] | Tensor, classes: Sequence[str], path: Path | str) -> None:
    """Confusion matrix as percentages of the truth: each row sums to 100; rows without truth stay blank.

    Args:
        confusion: (K, K) counts, rows = truth, columns = prediction.
        classes: Names of the K classes.
        path: PNG to write.
    """
    counts = np.asarray(confusion.detach().cpu() if isinstance(confusion, Tensor) else confusion, dtype=np.float64)
    totals = counts.sum(1, keepdims=True)
    percent = np.divide(100 * counts, totals, out=np.full_like(counts, np.nan), where=totals > 0)
    count = len(classes)
    side = 2.2 + 0.36 * count
    figure, axes = _figure(max(side, 4.5) + 0.6, max(side, 4.2))
    picture = axes.imshow(percent, cmap="Blues", vmin=0, vmax=100)
    axes.set_facecolor("0.93")
    for i, j in np.argwhere(percent >= 0.5):
        shade = "white" if percent[i, j] > 55 else "black"
        axes.text(j, i, f"{percent[i, j]:.0f}", ha="center", va="center", fontsize=7.5, color=shade)
    axes.set_xticks(range(count), classes, rotation=60, ha="right", rotation_mode="anchor", fontsize=9)
    axes.set_yticks(range(count), classes, fontsize=9)
    axes.set_xlabel("prediction")
    axes.set_ylabel("truth")
    axes.set_title("Confusion: where the pixels of each class went (%)", fontsize=11)
    figure.colorbar(picture, ax=axes, fraction=0.04, pad=0.02)
    _save(figure, path)


def iou_chart(iou: Sequence[float | None], classes: Sequence[str], path: Path | str, title: str = "") -> None:
    """IoU of each class in percent, with their mean; classes without truth or prediction are marked absent.

    Args:
        iou: Fractions, None where undefined.
        classes: Names of the classes.
        path: PNG to write.
        title: Heading.
    """
    figure, axes = _figure(7.0, 1.3 + 0.27 * len(classes))
    values = [0.0 if value is None else 100 * value for value in iou]
    bars = axes.barh(range(len(classes)), values, color=OKABE_ITO[0], height=0.72)
    texts = ["absent" if value is None else f"{100 * value:.1f}" for value in iou]
    behind = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}  # keeps the mean's line out of the figures
    axes.bar_label(bars, texts, padding=3, fontsize=8.5, bbox=behind)
    defined = [100 * value for value in iou if value is not None]
    if defined:
        mean = sum(defined) / len(defined)
        axes.axvline(mean, color=OKABE_ITO[5], linestyle="--", linewidth=1.4, label=f"mean {mean:.1f}", zorder=0)
        figure.legend(loc="outside lower right", fontsize=9, frameon=False)
    axes.set_yticks(range(len(classes)), classes, fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, 108)  # room for the label of a full bar
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("IoU (%)")
    axes.set_title(title, fontsize=11)
    _save(figure, path)


def bar_chart(
    labels: Sequence[str],
    series: Mapping[str, Sequence[float | None]],
    path: Path | str,
    title: str,
    ylabel: str,
    errors: Mapping[str, Sequence[float | None]] | None = None,
) -> None:
    """Grouped bars, one group a label and one bar a series; None leaves a gap.

    Args:
        labels: Names under the groups.
        series: Values of each series, one a label.
        path: PNG to write.
        title: Heading.
        ylabel: What the values are, with their unit.
        errors: Half the length of an error bar for each value of a series; None for none.
    """
    width = 0.8 / max(1, len(series))
    figure, axes = _figure(max(5.0, 1.6 + len(labels) * (0.2 + 0.34 * len(series))), 4.2)
    for i, (name, values) in enumerate(series.items()):
        known = [(x, value) for x, value in enumerate(values) if value is not None]
        spread = (errors or {}).get(name) or [None] * len(values)
        bars = axes.bar(
            [x + (i - (len(series) - 1) / 2) * width for x, _ in known],
            [value for _, value in known],
            width=0.92 * width,
            label=name,
            color=OKABE_ITO[i % len(OKABE_ITO)],
            hatch=HATCHES[i % len(HATCHES)],
            edgecolor="white",
            yerr=[spread[x] or 0 for x, _ in known] if any(spread) else None,
        )
        axes.bar_label(bars, [_value_text(value) for _, value in known], padding=2, fontsize=7.5)
    axes.set_xticks(range(len(labels)), labels, fontsize=9)
    room = (figure.get_figwidth() - 1) / max(1, len(labels)) * 12  # letters under one group, at 12 an inch
    if max(map(len, labels), default=0) > room:
        axes.tick_params(axis="x", labelrotation=35)
        for text in axes.get_xticklabels():
            text.set(ha="right", rotation_mode="anchor")
    spare = max(0.0, 3 - len(labels)) / 2  # keeps one or two groups from filling the whole width
    axes.set_xlim(-0.6 - spare, len(labels) - 0.4 + spare)
    axes.margins(y=0.1)
    _dress(figure, axes, title, ylabel, legend=len(series) > 1)
    _save(figure, path)


def line_chart(
    x: Sequence[float],
    series: Mapping[str, Sequence[float | None]],
    path: Path | str,
    title: str,
    xlabel: str,
    ylabel: str,
) -> None:
    """One line a series over common positions; None leaves a gap. Positions that span decades are spaced by their log.

    Args:
        x: Positions, ascending; each is a tick.
        series: Values of each series, one a position.
        path: PNG to write.
        title: Heading.
        xlabel: What the positions are, with their unit.
        ylabel: What the values are, with their unit.
    """
    figure, axes = _figure(6.4, 4.2)
    for i, (name, values) in enumerate(series.items()):
        heights = [float("nan") if value is None else value for value in values]
        colour, marker = OKABE_ITO[i % len(OKABE_ITO)], MARKERS[i % len(MARKERS)]
        axes.plot(x, heights, label=name, color=colour, marker=marker, markersize=5, linewidth=1.8)
    if x and min(x) > 0 and max(x) >= 50 * min(x):
        axes.set_xscale("log")
    axes.set_xticks(x, [f"{value:g}" for value in x], fontsize=9)
    axes.minorticks_off()
    axes.set_xlabel(xlabel)
    _dress(figure, axes, title, ylabel, legend=len(series) > 1)
    _save(figure, path)


def scatter_chart(
    panels: Mapping[str, Sequence[tuple[float | str, float]]], path: Path | str, title: str, ylabel: str
) -> None:
    """Points in panels side by side with one y axis; numbers that span decades are spaced by their log.

    Args:
        panels: By what the positions are: the points (x, y).
        path: PNG to write.
        title: Heading.
        ylabel: What the heights are, with their unit.
    """
    figure = Figure(figsize=(1 + 3.6 * len(panels), 4.2), dpi=120, layout="constrained")
    places = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (xlabel, points) in zip(places, panels.items(), strict=True):
        numbers = [x for x, _ in points if not isinstance(x, str)]
        are_words = len(numbers) < len(points)
        axes.scatter([str(x) if are_words else x for x, _ in points], [y for _, y in points], color=OKABE_ITO[0])
        if not are_words and min(numbers) > 0 and max(numbers) >= 50 * min(numbers):
            axes.set_xscale("log")
        if not are_words and len(set(numbers)) <= 6:
            axes.set_xticks(sorted(set(numbers)), [f"{x:.3g}" for x in sorted(set(numbers))])
            axes.minorticks_off()
        axes.tick_params(axis="x", labelrotation=35 if are_words else 0)
        axes.set_xlabel(xlabel)
        _dress(figure, axes, "", ylabel if axes is places[0] else "", legend=False)
    figure.suptitle(title, fontsize=11)
    _save(figure, path)


def curves(panels: Mapping[str, Mapping[str, Curve]], path: Path | str, xlabel: str) -> None:
    """Lines of several series in panels side by side, each with positions of its own.

    Args:
        panels: By what is drawn, with its unit: the points (x, y) of each series.
        path: PNG to write.
        xlabel: What the positions are; whole numbers.
    """
    figure = Figure(figsize=(1 + 4.2 * len(panels), 4.2), dpi=120, layout="constrained")
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    for axes, (ylabel, lines) in zip(
        figure.subplots(1, len(panels), sharex=True, squeeze=False)[0], panels.items(), strict=True
    ):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        for name, points in lines.items():
            i = names.index(name)
            look = {"color": OKABE_ITO[i % len(OKABE_ITO)], "marker": MARKERS[i % len(MARKERS)]}
            # few points are marked all, many by some marks that tell the lines apart
            axes.plot(*zip(*points, strict=True), label=name, markersize=4, markevery=-(-len(points) // 15), **look)
        axes.set_xlabel(xlabel)
        _dress(figure, axes, "", ylabel, legend=False)
    shown = {label: line for axes in figure.axes for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    _save(figure, path)


def page(
    rows: Sequence[Sequence[Tile]],
    path: Path | str,
    columns: Sequence[str] = (),
    labels: Sequence[str] = (),
    side: float = 1.9,
    colours: str = "magma",
    bar: str = "",
    legend: Mapping[str, NDArray[np.uint8]] | None = None,
) -> None:
    """Draw pictures in rows and columns.

    Args:
        rows: The tiles of each row; rows may differ in length.
        path: PNG to write.
        columns: Headings of the columns.
        labels: What stands left of the rows.
        side: Longer side of a tile, in inches.
        colours: Matplotlib's name of the colours of the float tiles.
        bar: What the colours mean; empty for no colour bar.
        legend: Names below, with their colours, RGB.
    """
    count = max(map(len, rows))
    shapes = [tile.shape[:2] for row in rows for tile in row if tile is not None]
    ratio = float(np.median([height / width for height, width in shapes])) if shapes else 1.0
    width, height = side / max(1.0, ratio), side * min(1.0, ratio)
    below = 0.24 * -(-len(legend or ()) // (count + 1))
    size = (width * count + 0.5 + 0.8 * bool(bar), (height + 0.1) * len(rows) + 0.35 + below)
    figure = Figure(figsize=size, dpi=100, layout="compressed")
    axes = figure.subplots(len(rows), count, squeeze=False)
    shown = None
    for y, row in enumerate(rows):
        for x in range(count):
            place = axes[y, x]
            place.set(xticks=[], yticks=[])
            place.spines[:].set_visible(False)
            if y == 0 and x < len(columns):
                place.set_title(columns[x], fontsize=9)
            if x == 0 and y < len(labels):
                place.set_ylabel(labels[y], fontsize=9)
            tile = row[x] if x < len(row) else None
            if tile is not None and tile.ndim == 2:
                shown = place.imshow(tile, cmap=colours, vmin=0, vmax=1, interpolation="nearest")
            elif tile is not None:
                place.imshow(tile, interpolation="antialiased")
    if bar and shown is not None:
        figure.colorbar(shown, ax=axes, fraction=0.03, pad=0.02, label=bar)
    if legend:
        _add_legend(figure, legend, count + 1)
    _save(figure, path)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    # Figure without pyplot: no global state, and the Agg canvas whatever the environment asks for
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    return figure, figure.subplots()


def _dress(figure: Figure, axes: Axes, title: str, ylabel: str, legend: bool) -> None:
    axes.set_title(title, fontsize=11)
    axes.set_ylabel(ylabel)
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if legend:
        figure.legend(loc="outside lower center", ncols=4, fontsize=9, frameon=False)


def _add_legend(figure: Figure, colours: Mapping[str, NDArray[np.uint8]], columns: int) -> None:
    handles = [Patch(facecolor=tuple(rgb / 255), edgecolor="grey", label=name) for name, rgb in colours.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=9, frameon=False)


def _value_text(value: float) -> str:
    size = abs(value)
    digits = 0 if size >= 1000 else 1 if size >= 10 else 3 if 0 < size < 0.1 else 2
    return f"{value:.{digits}f}"


def _save(figure: Figure, path: Path | str) -> None:
    with writing(path):
        figure.savefig(path, format="png", bbox_inches="tight", pad_inches=0.1)
