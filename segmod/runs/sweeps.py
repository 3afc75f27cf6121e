"""What a multirun tells of its jobs: a row from each, whatever launcher ran it, then a table and a chart of all."""

from __future__ import annotations

import json
import os
import shutil
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from segmod.ground.errors import UserError, one_line
from segmod.ground.files import read_text, replace_text
from segmod.ground.printing import print_table, short_path, write_records
from segmod.runs.folders import Run
from segmod.runs.keys import endings
from segmod.runs.launch import is_leader

SWEEP = "SEGMOD_SWEEP"  # folder of the multirun that this process works at
_METRICS = ("val/miou", "val/pixel_acc", "val/mean_acc", "val/fwiou")
_begun: list[Path] = []  # folder of the multirun of this command, once it has begun

Value = str | int | float
Row = dict[str, Any]
"""``job`` (its number), ``overrides``, ``folder``, ``state``, ``metrics``, ``time_s``, ``error``."""


class Jobs(Callback):
    """Writes what becomes of each job into the folder of its multirun, as ``jobs/<number>.json``.

    Hydra calls it in whatever process a launcher runs the job.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Begin with no rows."""
        # the sweeper of optuna gives it what a later one will no longer take
        warnings.filterwarnings("ignore", r".* has been deprecated in v\d\.\d", FutureWarning)
        HydraConfig.instance().set_config(config)  # which the name of the folder asks; Hydra sets it for jobs alone
        self.folder = Path(os.path.abspath(config.hydra.sweep.dir))
        shutil.rmtree(self.folder / "jobs", ignore_errors=True)
        _begun[:] = [self.folder]

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Tell that a job runs."""
        self.started = time.monotonic()
        if hasattr(self, "folder"):
            os.environ[SWEEP] = str(self.folder)
            self._write(config, "running")

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Tell how it ended."""
        if not hasattr(self, "folder"):
            return
        os.environ.pop(SWEEP, None)
        try:
            _ = job_return.return_value  # raises what the job has raised
        except Exception as error:
            self._write(config, "failed", error=one_line(str(error) or type(error).__name__))
        else:
            result = Run(Path(config.hydra.runtime.output_dir)).result() or {}
            facts = {"metrics": result.get("metrics", {}), "time_s": result.get("wall_time_s")}
            self._write(config, "finished", **facts)

    def _write(self, config: DictConfig, state: str, **facts: Any) -> None:
        if is_leader():
            number, folder = int(config.hydra.job.num), str(config.hydra.runtime.output_dir)
            row = {
                "job": number, "overrides": OmegaConf.to_container(config.hydra.overrides.task), "folder": folder,
                "state": state, "metrics": {}, "time_s": time.monotonic() - self.started, "error": "", **facts,
            }  # fmt: skip
            replace_text(self.folder / "jobs" / f"{number}.json", json.dumps(row, indent=2) + "\n")


def read_rows(folder: Path) -> list[Row]:
    """What the jobs of a multirun have told so far, by their numbers."""
    rows = [json.loads(read_text(path)) for path in folder.glob("jobs/*.json")]
    return sorted(rows, key=lambda row: int(row["job"]))


@contextmanager
def concluded() -> Iterator[None]:
    """Tell of a multirun once it is over, whether its jobs went well or not; does nothing for a single run.

    Raises:
        UserError: A job failed, and the sweeper has gone on without a word; or a launcher has lost one.
    """
    _begun.clear()
    try:
        yield
    except Exception as error:
        lost = [row for row in _conclude() if row["state"] == "lost"]
        if lost and not isinstance(error, UserError):
            raise UserError(f"job {lost[0]['job']}: {lost[0]['error']}; the same command goes on") from error
        raise
    failed = [row for row in _conclude() if row["error"]]
    if failed:
        raise UserError(f"job {failed[0]['job']} failed: {failed[0]['error']}")


def _conclude() -> list[Row]:
    """Print and write the table of this command's multirun; one whose jobs have left no run leaves nothing, either."""
    if not _begun:
        return []
    folder = _begun.pop()
    rows = read_rows(folder)
    for row in rows:
        if row["state"] == "running":  # nobody has told of its end
            row |= {"state": "lost", "error": "its process died, or trains on by itself"}
    if rows:
        show(folder, rows)
    if not any(Path(row["folder"]).is_dir() for row in rows):
        (folder / "multirun.yaml").unlink(missing_ok=True)
        for part in ("jobs", ".submitit"):
            shutil.rmtree(folder / part, ignore_errors=True)
        with suppress(OSError):  # the first that is not empty ends it
            for path in (folder, *folder.parents[:2]):
                path.rmdir()
    return rows


def show(folder: Path, rows: Sequence[Row]) -> None:
    """Print the table of a multirun, and write it as ``jobs.csv``, with the chart ``jobs.png``, into its folder."""
    from segmod import charts  # here, so that --help needs no matplotlib

    values = varied(rows)
    names = endings(list(values))
    metrics = [key for key in _METRICS if any(row["metrics"].get(key) is not None for row in rows)]
    lines = [["job", *names, *(f"{key.removeprefix('val/')} (%)" for key in metrics), "state", "time (s)", "folder"]]
    for i, row in enumerate(rows):
        scores = [row["metrics"].get(key) for key in metrics]
        lines.append([
            str(row["job"]), *(_shown(column[i]) for column in values.values()),
            *("" if score is None else f"{100 * score:.2f}" for score in scores),
            row["state"], "" if row["time_s"] is None else f"{row['time_s']:.1f}", str(short_path(Path(row["folder"]))),
        ])  # fmt: skip
    console = print_table(folder.name, lines)
    for row in rows:
        if row["error"]:
            console.print(f"job {row['job']} {row['state']}: {row['error']}", soft_wrap=True)
    done = [row for row in rows if row["metrics"].get("val/miou") is not None]
    if not done:
        return
    best = max(done, key=lambda row: float(row["metrics"]["val/miou"]))
    told = ", ".join(f"{key}={_shown(column[rows.index(best)])}" for key, column in values.items())
    console.print(f"best: job {best['job']}{': ' * bool(told)}{told}", soft_wrap=True)
    write_records(
        folder / "jobs.csv",
        [
            {"job": row["job"], **{key: column[i] for key, column in values.items()}}
            | {key: row["metrics"].get(key) for key in metrics}
            | {key: row[key] for key in ("state", "time_s", "folder", "error")}
            for i, row in enumerate(rows)
        ],
    )
    places = dict(zip(names, values.values(), strict=True)) or {"job": list(range(len(rows)))}
    panels = {
        key: [(column[rows.index(row)], 100 * row["metrics"]["val/miou"]) for row in done]
        for key, column in places.items()
    }
    charts.scatter_chart(panels, folder / "jobs.png", folder.name, "val mIoU (%)")
    console.print(f"written: {short_path(folder)}/jobs.{{csv,png}}", soft_wrap=True)


def varied(rows: Sequence[Row]) -> dict[str, list[Value]]:
    """The keys that jobs differ in, with the values of the jobs: a number where it is one, null where there is none."""
    given = [dict(word.lstrip("+").split("=", 1) for word in row["overrides"] if "=" in word) for row in rows]
    keys = dict.fromkeys(key for one in given for key in one)
    return {key: [_value(one.get(key)) for one in given] for key in keys if len({one.get(key) for one in given}) > 1}


def _value(text: str | None) -> Value:
    for kind in (int, float):
        with suppress(ValueError, TypeError):
            return kind(text)  # type: ignore[arg-type]
    return text or "null"


def _shown(value: Value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
