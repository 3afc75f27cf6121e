"""Run directories: a function of the choices, never of the clock; what they hold, and how they are found."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from segmod.ground.errors import UserError, reason, require, whole
from segmod.ground.files import read_text
from segmod.ground.names import require_name
from segmod.runs.keys import readable
from segmod.runs.stored import followed, read

MEMBER = "segmod.runs.trained.member"
"""``_target_`` of another run within a predictor."""


def run_dir(runs: str, name: str, seed: int, overrides: Sequence[str], choices: Mapping[str, Any]) -> str:
    """Directory of a run: ``runs/<name>[/<overrides>]/seed<k>``.

    Raises:
        UserError: The seed or the name cannot be.
    """
    if not whole(seed, 0) or seed >= 2**32:
        raise UserError(f"seed={seed!r}: give a whole number, from 0 to {2**32 - 1}")
    for key, value in (("name", name), ("runs", runs)):
        require(isinstance(value, str) and bool(value), f"{key}={value!r}: give a text, in quotes where it is a number")
    if OmegaConf.is_list(overrides):  # as they were typed: an interpolation in one is not of Hydra's own config
        typed: Any = OmegaConf.to_container(overrides, resolve=False)
        overrides = list(typed)
    is_default = name == f"{choices.get('model')}-{choices.get('data')}"
    suffix = readable(overrides, with_model_and_data=not is_default)
    return str(Path(runs).expanduser().joinpath(*filter(None, [require_name(name, "name="), suffix]), f"seed{seed}"))


def sweep_dir(
    runs: str, name: str, overrides: Sequence[str], of_hydra: Sequence[str], choices: Mapping[str, Any]
) -> str:
    """Directory of a multirun, for what it tells of its jobs: ``runs/sweeps/<sweep or name>[+<overrides>]``.

    Args:
        runs: Root of the runs.
        name: Of the run, where no ``sweep`` is chosen.
        overrides: Of the command line, with what is swept.
        of_hydra: Those of Hydra's own keys, of which the search space of a sweeper counts.
        choices: Of the config groups.
    """
    space = [word.partition("hydra.sweeper.params.")[2] for word in of_hydra]
    chosen = readable(
        [*overrides, *filter(None, space)],
        with_model_and_data=True,
        said={"sweep"} if choices.get("sweep") else {"name"},
    )
    return str(Path(runs).expanduser() / "sweeps" / "+".join(filter(None, [choices.get("sweep") or name, chosen])))


def register_resolvers() -> None:
    """Make ``${segmod.run_dir:...}``, ``sweep_dir``, ``job_dir`` and ``find_run`` known to the configs."""
    OmegaConf.register_new_resolver("segmod.run_dir", run_dir, replace=True)
    OmegaConf.register_new_resolver("segmod.sweep_dir", sweep_dir, replace=True)
    OmegaConf.register_new_resolver("segmod.job_dir", lambda *given: os.path.abspath(run_dir(*given)), replace=True)
    OmegaConf.register_new_resolver("segmod.find_run", lambda *given: str(find_run(*given).directory), replace=True)


@dataclass(frozen=True)
class Run:
    """A run directory and what stands in it."""

    directory: Path

    @property
    def place(self) -> Path:
        """What names it, from any folder."""
        return self.directory

    @property
    def is_trained(self) -> bool:
        """Whether it holds a result or a checkpoint, and not only the config of a run that never came so far."""
        return self.metrics_file.is_file() or any(self.directory.glob("checkpoints/*.ckpt"))

    @property
    def config_file(self) -> Path:
        """The config the run was made with."""
        return self.directory / ".hydra" / "config.yaml"

    @property
    def metrics_file(self) -> Path:
        """Written when the run is finished, not before."""
        return self.directory / "metrics.json"

    def result(self) -> dict[str, Any] | None:
        """The stored metrics of a finished run, else None.

        Raises:
            UserError: The file is damaged.
        """
        if not self.metrics_file.is_file():
            return None
        try:
            result: dict[str, Any] = json.loads(read_text(self.metrics_file))
            if not all(value is None or isinstance(value, int | float) for value in dict(result["metrics"]).values()):
                raise ValueError("its metrics are no numbers")
        except Exception as error:  # whatever a damaged file can cause
            raise UserError(f"cannot read {self.metrics_file} ({reason(error)}): delete it and run again") from error
        return result

    def stored(self) -> dict[str, Any]:
        """The stored config as it stands there, see `segmod.runs.stored`; its ``run_dir`` is where it lies now.

        Raises:
            UserError: The directory holds no run, or the config is damaged.
        """
        if not self.config_file.is_file():
            raise UserError(
                f"run={self.directory}: no run there (no {self.config_file}); give a folder like runs/NAME/seed0"
            )
        return {**read(self.config_file), "run_dir": str(self.directory.resolve())}

    def config(self) -> DictConfig:
        """The stored config, its references followed; nothing in it is called.

        Raises:
            UserError: As `stored`.
        """
        return OmegaConf.create(followed(self.stored(), self.config_file)[0])

    def checkpoint(self, which: str) -> Path:
        """Path of the ``best`` or ``last`` checkpoint (the last where no validation has made a best), or a path.

        Raises:
            UserError: It does not exist.
        """
        folder = self.directory / "checkpoints"
        candidates = {"best": ["best.ckpt", "last.ckpt"], "last": ["last.ckpt"]}.get(which)
        paths = [folder / name for name in candidates] if candidates else [Path(which)]
        for path in paths:
            if path.is_file():
                return path
        raise UserError(
            f"checkpoint={which}: {paths[0]} does not exist; train the run first, or choose best, last or a file"
        )


def find_run(given: str, root: str = "runs", key: str = "run", seed: str | None = None) -> Run:
    """The run that a user names: its folder, a folder with one run below it, its name, or what `segmod-export` made.

    Args:
        given: Such as ``runs/fcn8s/seed0``, ``runs/fcn8s``, ``fcn8s`` or ``fcn8s.onnx``.
        root: Folder of the runs, where names are looked for.
        key: Config key to name in messages.
        seed: Folder name such as ``seed0``; where several runs are found, those of another name are left out.

    Raises:
        UserError: There is no such run, or there are several.
    """
    from segmod.runs.exported import ExportedRun  # a kind of run, so it imports this module

    shells: list[Path] = []
    for path in (Path(given).expanduser(), Path(root).expanduser() / given):
        if (exported := ExportedRun.at(path)) is not None:
            return exported
        made = sorted(p.parents[1] for depth in ("", "*/", "*/*/") for p in path.glob(f"{depth}.hydra/config.yaml"))
        found = [folder for folder in made if Run(folder).is_trained]
        shells += [folder for folder in made if folder not in found]
        if len(found) > 1:
            found = [path for path in found if path.name == seed] or found
        if len(found) > 1:
            listed = ", ".join(map(str, found[:6])) + (f" and {len(found) - 6} more" if len(found) > 6 else "")
            raise UserError(f"{key}={given}: there are {len(found)} runs; choose one of {listed}")
        if found:
            return Run(found[0].resolve())
    if shells:
        raise UserError(f"{key}={given}: {shells[0]} has no checkpoint yet; run the command that trains it first")
    raise UserError(
        f"{key}={given}: no run there, and none of that name in {root}; give a folder like runs/NAME/seed0, or train it"
    )


def named(given: Any) -> list[str]:
    """What ``run=`` names: nothing, a run, or several."""
    return [] if given is None else [str(run) for run in given] if OmegaConf.is_list(given) else [str(given)]


def find_members(node: Any, key: str, runs: str, seed: str) -> None:
    """Give each other run that a predictor names by its folder, in place.

    So a mistake is told by its key before anything is loaded, and the record says which run it was. Of several seeds
    that of the run itself is taken.

    Raises:
        UserError: There is no such run, or several.
    """
    if not isinstance(node, dict):
        return
    if node.get("_target_") == MEMBER:
        node["run"] = str(find_run(str(node.get("run")), runs, f"{key}.run", seed).place)
    for name, value in node.items():
        find_members(value, f"{key}.{name}", runs, seed)


def predecessor(init_from: str, cfg: DictConfig, overrides: Sequence[str], choices: Mapping[str, Any]) -> Path:
    """Checkpoint that ``init_from`` names: a file, a run directory, or a sibling run (same overrides and seed).

    Raises:
        UserError: There is none, or the sibling has not finished; names the command that makes it.
    """
    path = Path(init_from).expanduser()
    if path.is_file():
        return path
    is_sibling = os.sep not in init_from and not path.is_dir()
    if is_sibling:
        own = [o for o in overrides if not o.startswith("init_from=")]
        path = Path(run_dir(cfg.runs, init_from, cfg.seed, own, choices))
    run = Run(path)
    if run.result() is None:
        command = "train it first"
        if is_sibling:
            kept = [
                o for o in overrides if o.partition("=")[0] not in ("experiment", "sweep", "init_from", "overwrite")
            ]
            whole = shlex.join(["segmod-train", f"experiment={init_from}", *kept])
            short = f"segmod-train experiment={init_from}, with the further keys of this command"
            command = f"run first: {whole if len(whole) <= 120 else short}"
        raise UserError(f"init_from={init_from}: {path} holds no finished run; {command}")
    return run.checkpoint(str(cfg.checkpoint))
