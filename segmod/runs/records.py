"""``metrics.json``: what a run or an evaluation reached, and what with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from segmod.ground.files import replace_text
from segmod.metrics import summarise
from segmod.runs.environment import git_commit, hardware, peak_memory, versions
from segmod.runs.keys import digest

if TYPE_CHECKING:
    from segmod.training.module import SegmentationModule


def record(
    directory: Path,
    cfg: DictConfig,
    *,
    metrics: Mapping[str, float | None],
    iou: Mapping[str, float | None],
    **facts: Any,
) -> dict[str, Any]:
    """Write ``metrics.json``: the record of a finished run or evaluation, fractions in [0, 1], None where undefined.

    Args:
        directory: Of the run or evaluation.
        cfg: The run's config.
        metrics: Such as ``val/miou``.
        iou: Per class, None for classes without ground truth or prediction.
        facts: Whatever else belongs to the record (``wall_time_s``, ``step``, ``data``, ``inference``, ...).
    """
    contents = {
        "metrics": dict(metrics),
        "iou": dict(iou),
        "name": cfg.name,
        "seed": cfg.seed,
        "config_digest": digest(cfg),
        **facts,
        "peak_memory_bytes": peak_memory(),
        "git_commit": git_commit(),
        "versions": versions(),
        "hardware": hardware(),
    }
    replace_text(directory / "metrics.json", json.dumps(contents, indent=2) + "\n")
    return contents


def metrics_of(module: SegmentationModule, classes: Sequence[str]) -> dict[str, Any]:
    """``metrics`` and ``iou`` of the module's last validation, for `record`."""
    assert module.confusion is not None
    summary = summarise(module.confusion)
    names = ("miou", "pixel_acc", "mean_acc", "fwiou")
    return {
        "metrics": {f"val/{name}": getattr(summary, name) for name in names} | module.further,
        "iou": dict(zip(classes, summary.iou, strict=True)),
    }
