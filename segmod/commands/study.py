"""``segmod-study``: draw and count a paper's figure for a trained run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from segmod.commands.evaluate import named_by_changes, restore, settle
from segmod.commands.predict import choose_device
from segmod.ground.errors import UserError
from segmod.ground.printing import short_path, write_records
from segmod.runs import cli
from segmod.runs import folders as runs

if TYPE_CHECKING:
    from segmod.studies.subject import Row, Study, Subject
    from segmod.training.module import SegmentationModule

log = logging.getLogger(__name__)


def main(cfg: DictConfig) -> None:
    """Do the study that the config names."""
    from segmod.runs.instantiate import instantiate
    from segmod.runs.launch import prepare_lightning

    prepare_lightning()
    if cfg.get("study") is None:
        known = ", ".join(sorted(path.stem for path in (cli.CONF_DIR / "study").glob("*.yaml")))
        raise UserError(f"study=... is required; choose one of {known}")
    device = choose_device(str(cfg.device))
    run = runs.find_run(str(cfg.run), str(cfg.runs))
    run_cfg = settle(cfg, run)
    if cfg.against is not None and cfg.against_name is None:
        cfg.against_name = str(runs.find_run(str(cfg.against), str(cfg.runs), "against").config().name)
    directory = Path(cfg.output or run.directory / "studies" / study_name(run_cfg)).expanduser()
    cfg.run_dir = str(directory.resolve())
    study: Study = instantiate(cfg, "study")
    subject, _ = subject_of(run_cfg, run, cfg.checkpoint, device, str(run_cfg.name))
    directory.mkdir(parents=True, exist_ok=True)
    table = study(subject, directory)
    write_records(directory / "table.csv", table)
    report(directory, table)
    log_pictures(cfg, directory, table)


def subject_of(
    run_cfg: DictConfig, run: runs.Run, which: str | None, device: Any, name: str
) -> tuple[Subject, SegmentationModule]:
    """A trained run as a study looks at it, and its module.

    Args:
        run_cfg: Config of the run, as `settle` returns it; its ``data.val_split`` is looked at.
        run: The run.
        which: ``best``, ``last`` or a path; None for what the run's config says.
        device: Where to compute.
        name: What to call the run.
    """
    from segmod.inference.dense import DensePredictor
    from segmod.studies.subject import Subject

    module, datamodule, _ = restore(run_cfg, run, which)
    module.eval().to(device)
    dataset = datamodule.dataset(str(run_cfg.data.val_split), datamodule.eval_transform)
    predictor = module.predictor or DensePredictor()
    return Subject(name, module.net, predictor, dataset, datamodule.classes), module


def study_name(run_cfg: DictConfig) -> str:
    """Folder of a study: ``<study>-<split>``, and what was changed by hand."""
    groups = ("study.", "inference", "proposals", "against", "checkpoint=")
    return named_by_changes(f"{cli.choices()['study']}-{run_cfg.data.val_split}", groups)


def report(directory: Path, table: Sequence[Row]) -> None:
    """Print the table, fractions in percent, and where things are."""
    from rich.console import Console
    from rich.table import Table

    def text(value: Any) -> str:
        return "-" if value is None else f"{100 * value:.2f} %" if isinstance(value, float) else str(value)

    lines = Table(title=directory.name)
    for column in table[0]:
        lines.add_column(column)
    for row in table:
        lines.add_row(*map(text, row.values()))
    console = Console(highlight=False)
    console.print(lines)
    console.print(f"table and pictures in {short_path(directory.resolve())}", soft_wrap=True)


def log_pictures(cfg: DictConfig, directory: Path, table: Sequence[Row]) -> None:
    """Send pictures and table to the loggers that take them, such as W&B."""
    from segmod.runs.instantiate import instantiate

    for name, node in (cfg.get("logger") or {}).items():
        logger: Any = instantiate(cfg, f"logger.{name}") if node is not None else None
        if hasattr(logger, "log_image"):
            for path in sorted(directory.glob("*.png")):
                logger.log_image(key=f"{directory.name}/{path.stem}", images=[str(path)])
            if table:
                rows = [list(row.values()) for row in table]
                logger.log_table(key=f"{directory.name}/table", columns=list(table[0]), data=rows)
            logger.finalize("success")
