"""``segmod-report``: one HTML file that shows a run, or compares the runs of a sweep."""

from __future__ import annotations

import logging
from pathlib import Path

from omegaconf import DictConfig

from segmod.ground.errors import UserError
from segmod.ground.files import replace_text, require_writable
from segmod.ground.printing import short_path
from segmod.runs.records import collect
from segmod.runs.trained import TrainedRun, choose_device

log = logging.getLogger(__name__)

_AS_IN_THE_RUN = ("checkpoint", "split", "inference", "proposals", "data", "trust")  # unless they are given


def main(cfg: DictConfig) -> None:
    """Write the report that the config asks for.

    Raises:
        UserError: There is no finished run, or what draws it is not installed.
    """
    try:
        from segmod.report import findings, of_run, of_sweep
    except ImportError as error:
        raise UserError(f"segmod-report needs {error.name}: pip install 'segmod[report]'") from error
    device = choose_device(str(cfg.device))
    given = Path(str(cfg.run)).expanduser()
    folder = given if given.is_dir() else Path(str(cfg.runs)).expanduser() / str(cfg.run)
    scores = [score for score in collect(folder) if not score.evaluation] if folder.is_dir() else []
    if len(scores) > 1:
        output = Path(cfg.output or folder / "report.html").expanduser()
        require_writable(output.parent)
        page = of_sweep.page(folder, scores)
    else:
        run = TrainedRun.open(cfg.run, cfg.runs, **{name: cfg.get(name) for name in _AS_IN_THE_RUN}).to(device)
        output = Path(cfg.output or run.directory / "report.html").expanduser()
        require_writable(output.parent)
        found = None
        if cfg.images:
            try:
                found = findings.look(run, cfg.images)
            except UserError as error:
                log.warning("segmod: warning: the report has no pictures: %s", error)
        page = of_run.page(run, found, cfg.pictures)
    text = page.html()
    replace_text(output, text)
    log.info("report    %s, %.1f MB", short_path(output.resolve()), len(text.encode()) / 1e6)
