"""``segmod-study``: draw and count a paper's figure for trained runs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from segmod.ground.errors import UserError
from segmod.ground.files import replace_text, require_writable
from segmod.ground.names import require_name
from segmod.ground.printing import markdown, print_table, short_path, write_records
from segmod.runs import cli
from segmod.runs.folders import named
from segmod.runs.instantiate import instantiate, loggers
from segmod.runs.keys import differences
from segmod.runs.launch import prepare_lightning
from segmod.runs.trained import TrainedRun, choose_device
from segmod.studies.base import Row, Study

log = logging.getLogger(__name__)


def main(cfg: DictConfig) -> None:
    """Do the study that the config names."""
    prepare_lightning()
    if cfg.get("study") is None:
        raise UserError(f"study=... is required; choose one of {', '.join(cli.options('study'))}")
    device = choose_device(str(cfg.device))
    given = named(cfg.run)
    if not given and cfg.run is not None:
        raise UserError("run=[]: give a run, or several: run=[FOLDER,FOLDER]")
    changes = {name: cfg.get(name) for name in ("checkpoint", "split", "inference", "proposals", "data", "trust")}
    runs = [TrainedRun.open(run, cfg.runs, **changes).to(device) for run in given]
    if cfg.against is not None:
        seed = runs[0].directory.name if runs else None
        runs.append(TrainedRun.open(cfg.against, cfg.runs, key="against", seed=seed, trust=cfg.trust).to(device))
    names = names_of(runs)
    if cfg.against is not None and cfg.against_name is not None:
        names[-1] = require_name(cfg.against_name, "against_name=")
    name = study_name(runs[0].split if runs else "")
    if cfg.output:
        folder = Path(cfg.output).expanduser()
    else:
        folder = runs[0].folder("studies", name) if runs else Path("studies") / name
    directory = folder.resolve()
    cfg.run_dir = str(directory)
    require_writable(directory)
    study: Study = instantiate(cfg, "study")
    table = study(dict(zip(names, runs, strict=True)), directory)
    if table:
        write_records(directory / "table.csv", table)
        replace_text(directory / "table.md", markdown(lines_of(table)) + "\n")
        print_rows(directory, table)
    else:
        log.info("pictures in %s", short_path(directory))
    log_pictures(cfg, directory, table)


def names_of(runs: Sequence[TrainedRun]) -> list[str]:
    """What to call runs: their names, or where some share one, that in which their recipes differ."""
    names = [run.name for run in runs]
    if len(set(names)) == len(names):
        return names
    names = differences([run.config for run in runs])
    if len(set(names)) < len(names):
        raise UserError(f"run: {runs[0].directory} is among the runs twice; give each once")
    return names


def study_name(split: str) -> str:
    """Folder of a study: ``<study>-<split>``, and what was changed by hand."""
    groups = ("study.", "inference", "proposals", "against", "checkpoint=", "run=[")
    return cli.named_by_changes("-".join(filter(None, [cli.choices()["study"], split])), groups)


def lines_of(table: Sequence[Row]) -> list[list[str]]:
    """Header and lines of a table as text, fractions in percent."""

    def text(value: Any) -> str:
        return "-" if value is None else f"{100 * value:.2f} %" if isinstance(value, float) else str(value)

    return [list(table[0]), *(list(map(text, row.values())) for row in table)]


def print_rows(directory: Path, table: Sequence[Row]) -> None:
    """Print the table, and where things are."""
    console = print_table(directory.name, lines_of(table))
    console.print(f"table and pictures in {short_path(directory.resolve())}", soft_wrap=True)


def log_pictures(cfg: DictConfig, directory: Path, table: Sequence[Row]) -> None:
    """Send pictures and table to the loggers that take them, such as W&B."""
    for logger in loggers(cfg, "study", str(cfg.get("name"))):
        if hasattr(logger, "log_image"):
            for path in sorted(directory.glob("*.png")):
                logger.log_image(key=f"{directory.name}/{path.stem}", images=[str(path)])
            if table:
                rows = [list(row.values()) for row in table]
                logger.log_table(key=f"{directory.name}/table", columns=list(table[0]), data=rows)
            logger.finalize("success")
