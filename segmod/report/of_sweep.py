"""The page of several runs, beside one another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from segmod.report import figures
from segmod.report.findings import encoded
from segmod.report.page import METRICS, Page, commands_of, data_uri, made_by
from segmod.runs.folders import Run
from segmod.runs.keys import differing, endings, settings
from segmod.runs.records import Score

_WIDTH = 640  # pixels of a run's picture
_SHOWN = 12  # runs with pictures, so that the file stays small
_AXES = 6  # keys in the charts


def page(folder: Path, scores: Sequence[Score]) -> Page:
    """The page of several runs: a table to sort, and charts of the keys in which they differ."""
    recipes = [settings(score.config) | {"seed": score.config.get("seed"), "name": score.name} for score in scores]
    keys = differing(recipes)
    order = sorted(range(len(scores)), key=lambda i: [_rank(recipes[i].get(key)) for key in keys])
    scores, recipes = [scores[i] for i in order], [recipes[i] for i in order]
    short = dict(zip(keys, endings(keys), strict=True))
    metrics = {key: name for key, name in METRICS.items() if any(key in score.values for score in scores)}
    runs = [
        {short[key]: _plain(recipe.get(key)) for key in keys}
        | {name: round(100 * score.values[key], 3) for key, name in metrics.items() if key in score.values}
        | {"run": ", ".join(f"{short[key]} {_plain(recipe.get(key))}" for key in keys) or score.name}
        for score, recipe in zip(scores, recipes, strict=True)
    ]
    made = Page(f"{len(scores)} runs of {folder.resolve().name}", f"{scores[0].data} {scores[0].split}")
    axes = [*short.values()]
    lines = [[*axes, *metrics.values(), "time (s)"]]
    for score, run in zip(scores, runs, strict=True):
        cells = [str(run.get(name, "-")) for name in axes] + [
            f"{run[name]:.2f}" if name in run else "-" for name in metrics.values()
        ]
        lines.append([*cells, f"{score.values.get('wall_time_s', float('nan')):.0f}"])
    made.tables.append({"title": "Runs", "rows": lines, "sortable": True, "note": "A click on a heading sorts."})
    scored = [run for run in runs if METRICS["miou"] in run]
    if scored and axes:
        shown = axes[:_AXES]
        metric = METRICS["miou"]
        made.add_charts("What they were made of, and what came of it", figures.parallel(scored, shown, metric))
        made.add_charts(
            "By each key",
            *(figures.by_key(scored, axis, metric) for axis in shown),
            note="A dot is a run, the tick their mean.",
        )
    _add_rows(made, scores, [str(run["run"]) for run in runs])
    made.commands = list(dict.fromkeys(c for score in scores for c in commands_of(_record_of(score), score.folder)))
    made.made_by = made_by(_record_of(scores[0]))
    return made


def _rank(value: Any) -> tuple[bool, float, str]:
    """Numbers by their size, then all else by its text."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return not is_number, value if is_number else 0, str(value)


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | float | str) else str(value)


def _folder(score: Score) -> Path:
    return score.folder / f"seed{score.config.get('seed')}"


def _record_of(score: Score) -> dict[str, Any]:
    return Run(_folder(score)).result() or {}


def _add_rows(page: Page, scores: Sequence[Score], names: Sequence[str]) -> None:
    best = sorted(range(len(scores)), key=lambda i: -scores[i].values.get("miou", 0))[:_SHOWN]
    found: dict[str, list[dict[str, str]]] = {}
    for i in best:
        for path in sorted(_folder(scores[i]).glob("pictures/*.png"))[:2]:
            with Image.open(path) as opened:
                picture = opened.convert("RGB")
            picture.thumbnail((_WIDTH, _WIDTH))
            source = data_uri(encoded(np.asarray(picture), "JPEG"))
            found.setdefault(path.stem, []).append({"source": source, "caption": names[i]})
    page.rows += [{"title": title, "pictures": pictures} for title, pictures in found.items()]
