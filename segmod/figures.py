"""Pages of pictures in rows and columns, drawn without a display."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

Tile = NDArray[np.uint8] | NDArray[np.float32] | None
"""uint8 (H, W, 3), RGB, shown as it is; float (H, W), shown from 0 to 1; None leaves its place empty."""


def page(
    rows: Sequence[Sequence[Tile]],
    path: Path | str,
    columns: Sequence[str] = (),
    labels: Sequence[str] = (),
    side: float = 1.9,
    colours: str = "magma",
    bar: str = "",
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
    """
    count = max(map(len, rows))
    shapes = [tile.shape[:2] for row in rows for tile in row if tile is not None]
    ratio = float(np.median([height / width for height, width in shapes])) if shapes else 1.0
    width, height = side / max(1.0, ratio), side * min(1.0, ratio)
    size = (width * count + 0.5 + 0.8 * bool(bar), (height + 0.1) * len(rows) + 0.35)
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
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", bbox_inches="tight", pad_inches=0.1)
