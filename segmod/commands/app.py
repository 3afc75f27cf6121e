"""``segmod-app``: a page on this machine that tries runs on photographs."""

from __future__ import annotations

import logging
import os
import socket
import tempfile
import time
from pathlib import Path

from omegaconf import DictConfig

from segmod.ground.errors import UserError
from segmod.ground.memory import keep_few_shapes
from segmod.runs.folders import Run, find_run, named
from segmod.runs.keys import differences
from segmod.runs.records import collect
from segmod.runs.trained import choose_device

log = logging.getLogger(__name__)


def main(cfg: DictConfig) -> None:
    """Serve the page until a signal ends it.

    Raises:
        UserError: There is no run, the port is taken, or what serves it is not installed.
    """
    with tempfile.TemporaryDirectory(prefix="segmod-app-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # gradio reads it when it is imported
        os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
        try:
            from segmod.app import page
            from segmod.app.answers import Answers
        except ImportError as error:
            raise UserError(f"segmod-app needs {error.name}: pip install 'segmod[app,report]'") from error
        keep_few_shapes()
        device = choose_device(str(cfg.device))
        require_free(cfg.port)
        root = Path(str(cfg.runs)).expanduser()
        chosen = [find_run(run, str(root)).directory for run in named(cfg.run)]
        runs = named_runs(root, chosen)
        names = [name for name, path in runs.items() if path in chosen] or list(runs)[:1]
        trust = cfg.trust if isinstance(cfg.trust, str) else list(cfg.trust)
        answers = Answers(runs, str(device), trust, cfg.max_side)
        logging.getLogger("httpx").setLevel(logging.WARNING)  # gradio asks itself whether it is up
        made = page.make(answers, collect(root), names)
        log.info("page      %s; Ctrl-C ends it", page.serve(made, cfg.port))
        try:
            while True:
                time.sleep(3600)  # a signal ends it
        finally:
            made.close(verbose=False)


def require_free(port: int) -> None:
    """Check that nothing serves at a port of this machine.

    Raises:
        UserError: Something does.
    """
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(("127.0.0.1", port))
        except OSError as error:
            raise UserError(
                f"port={port}: cannot be used ({error.strerror}); give another, such as port={port + 1}"
            ) from None


def named_runs(root: Path, further: list[Path]) -> dict[str, Path]:
    """All runs with a checkpoint below a folder, and further ones, by their names and what sets them apart.

    Raises:
        UserError: There is none.
    """
    found = [path.parents[1].resolve() for path in root.rglob(".hydra/config.yaml")] if root.is_dir() else []
    folders = sorted({folder for folder in found if list(folder.glob("checkpoints/*.ckpt"))} | {*further})
    if not folders:
        raise UserError(f"runs={root}: no trained run there; train one first, or give runs=DIR or run=FOLDER")
    by_name: dict[str, list[Path]] = {}
    configs = {folder: Run(folder).config() for folder in folders}
    for folder in folders:
        by_name.setdefault(str(configs[folder].get("name")), []).append(folder)
    told: dict[str, Path] = {}
    for name, same in by_name.items():
        for folder, recipe in zip(same, differences([configs[folder] for folder in same]), strict=True):
            words = " ".join(filter(None, [name, recipe]))
            told[words if words not in told else f"{words} {folder.name}"] = folder
    return told
