"""``segmod-study``: draw and count a paper's figure for a trained run."""

from __future__ import annotations

import csv
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from segmod import cli, runs
from segmod.evaluate import restore, settle
from segmod.predict import choose_device
from segmod.train import shown
from segmod.types import UserError

if TYPE_CHECKING:
    from segmod.studies.subject import Row, Study

log = logging.getLogger(__name__)


@cli.command("study")
def main(cfg: DictConfig) -> None:
    """Do the study that the config names."""
    from segmod.inference.dense import DensePredictor
    from segmod.instantiate import instantiate
    from segmod.launch import prepare_lightning
    from segmod.studies.subject import Subject

    prepare_lightning()
    if cfg.get("study") is None:
        known = ", ".join(sorted(path.stem for path in (cli.CONF_DIR / "study").glob("*.yaml")))
        raise UserError(f"study=... is required; choose one of {known}")
    device = choose_device(str(cfg.device))
    run = runs.find_run(str(cfg.run), str(cfg.runs))
    run_cfg = settle(cfg, run)
    cfg.data = run_cfg.data  # a study may ask how the run's images are normalised
    if cfg.against is not None and cfg.against_name is None:
        cfg.against_name = str(runs.find_run(str(cfg.against), str(cfg.runs), "against").config().name)
    directory = Path(cfg.output or run.directory / "studies" / study_name(run_cfg)).expanduser()
    cfg.run_dir = str(directory.resolve())
    study: Study = instantiate(cfg, "study")
    module, datamodule, _ = restore(run_cfg, run, cfg.checkpoint)
    dataset = datamodule.dataset(str(run_cfg.data.val_split), datamodule.eval_transform)
    module.eval().to(device)
    directory.mkdir(parents=True, exist_ok=True)
    predictor = module.predictor or DensePredictor()
    subject = Subject(str(run_cfg.name), module.net, predictor, dataset, datamodule.normalization, datamodule.classes)
    table = study(subject, directory)
    write_table(directory / "table.csv", table)
    report(directory, table)
    log_pictures(cfg, directory, table)


def study_name(run_cfg: DictConfig) -> str:
    """Folder of a study: ``<study>-<split>``, and what was changed by hand."""
    groups = ("study.", "inference", "proposals", "against", "checkpoint=")
    changes = [override for override in cli.overrides() if override.lstrip("+").startswith(groups)]
    suffix = runs.readable(changes, with_model_and_data=True)
    return "+".join(filter(None, [f"{cli.choices()['study']}-{run_cfg.data.val_split}", suffix]))


def write_table(path: Path, table: Sequence[Row]) -> None:
    """Write the lines of a study's table with full precision."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)


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
    console.print(f"table and pictures in {shown(directory.resolve())}", soft_wrap=True)


def log_pictures(cfg: DictConfig, directory: Path, table: Sequence[Row]) -> None:
    """Send pictures and table to the loggers that take them, such as W&B."""
    from segmod.instantiate import instantiate

    for name, node in (cfg.get("logger") or {}).items():
        logger: Any = instantiate(cfg, f"logger.{name}") if node is not None else None
        if hasattr(logger, "log_image"):
            for path in sorted(directory.glob("*.png")):
                logger.log_image(key=f"{directory.name}/{path.stem}", images=[str(path)])
            if table:
                rows = [list(row.values()) for row in table]
                logger.log_table(key=f"{directory.name}/table", columns=list(table[0]), data=rows)
            logger.finalize("success")


if __name__ == "__main__":
    main()
