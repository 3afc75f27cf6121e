"""A job of a sweep that stays behind is given up; one that does not is not."""

import json
from pathlib import Path
from typing import Any

import pytest

from segmod.ground.files import replace_text
from segmod.ground.printing import write_csv
from segmod.training.pruning import Prune


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Three finished jobs with a score of 0.2, 0.6, 0.7 after step 2 and 0.9 after step 4, and one that still runs."""
    for job, first in enumerate((0.2, 0.6, 0.7, 1.0)):
        folder = tmp_path / "runs" / str(job)
        row = {"state": "running" if job == 3 else "finished", "folder": str(folder)}
        replace_text(tmp_path / "sweep" / "jobs" / f"{job}.json", json.dumps(row))
        write_csv(folder / "metrics.csv", [["step", "train/loss", "score"], [1, 2.0, ""], [2, "", first], [4, "", 0.9]])
    return tmp_path / "sweep"


@pytest.mark.parametrize(
    ("scores", "options", "steps"),
    [
        ([0.5, 0.5], {"validations": 0}, 2),  # the median of 0.2, 0.6 and 0.7 by step 2 is 0.6
        ([0.65, 0.65], {"validations": 0}, 4),  # above it, then below 0.9: at the end anyway
        ([0.5, 0.5], {"validations": 2}, 4),
        ([0.5, 0.5], {"validations": 0, "jobs": 4}, 4),  # the job that runs does not count
        ([0.5, 0.5], {"validations": 0, "sweep": None}, 4),
    ],
)
def test_a_job_below_the_median_is_given_up(
    scores: list[float], options: dict[str, Any], steps: int, sweep: Path, train: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = iter(scores)

    class Scored(Prune):
        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            if not trainer.sanity_checking:
                trainer.callback_metrics["score"] = next(given)
            super().on_validation_end(trainer, pl_module)

    trainer = train(False, [Scored(**{"sweep": str(sweep), "jobs": 3, "monitor": "score"} | options)])
    assert trainer.global_step == steps
