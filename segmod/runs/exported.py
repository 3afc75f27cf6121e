"""What `segmod-export` wrote, as a run: a file that brings its net, or a folder with weights and their card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segmod.ground.errors import UserError, require
from segmod.runs.folders import Run
from segmod.runs.stored import UNBUILT
from segmod.runs.trust import Trust

if TYPE_CHECKING:
    from torch import nn

    from segmod.ground.palettes import Legend

_OF_MACHINE = {"init_from": None, "runs": "runs"}  # as the config of a run refers to them
_LEFT_OUT = ("run_dir", "overwrite", "hydra", *UNBUILT)


@dataclass(frozen=True)
class ExportedRun(Run):
    """An exported file or folder. Its config and classes are in it; results go beside a file, and into a folder."""

    path: Path = Path()

    @classmethod
    def at(cls, path: Path) -> ExportedRun | None:
        """The exported run at a path, if one is there; reads nothing of it.

        Raises:
            UserError: It is a file of another kind.
        """
        if path.is_dir():
            return cls(path.resolve(), path.resolve()) if (path / CARD).is_file() else None
        if not path.is_file():
            return None
        require(
            path.suffix in (".onnx", ".pt2"),
            f"run={path}: is a file; give the folder of a run, or a .onnx or .pt2 that segmod-export wrote",
        )
        path = path.resolve()
        return cls(path.with_name(f"{path.stem}-{path.suffix[1:]}"), path)

    @property
    def place(self) -> Path:
        """What names it, from any folder."""
        return self.path

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What is known of it, see `segmod.nets.exported.read_facts`."""
        from segmod.nets.exported import read_facts

        return read_facts(self.config_file)

    @property
    def config_file(self) -> Path:
        """Where its config stands."""
        return self.path / CARD if self.path.is_dir() else self.path

    def result(self) -> dict[str, Any] | None:
        """Its metrics."""
        found = {name: value for name, value in self.facts["metrics"].items() if isinstance(value, int | float)}
        return {"metrics": found}

    def stored(self) -> dict[str, Any]:
        """Its config; that of a file scores by its net alone, whatever the run's own module asks of a net."""
        config = {**self.facts["config"], "run_dir": str(self.directory)}
        model = config.get("model")
        if self.path.is_file() and isinstance(model, Mapping):
            kept = {name: model[name] for name in ("net", "loss", "predictor") if name in model}
            config["model"] = {"_target_": "segmod.training.module.SegmentationModule", **kept}
        return config

    def checkpoint(self, which: str) -> Path:
        """The file itself, or that of the folder's weights.

        Raises:
            UserError: The folder has none.
        """
        if self.path.is_file():
            return self.path
        found = next((self.path / name for name in WEIGHTS if (self.path / name).is_file()), None)
        if found is None:
            raise UserError(f"run={self.path}: none of {', '.join(WEIGHTS)} is there: export it again")
        return found

    @property
    def legend(self) -> Legend:
        """Names and colours of the labels."""
        from segmod.ground.palettes import Legend

        return Legend.from_plain(self.facts)

    def net(self, trust: Trust) -> nn.Module | None:
        """The net in a file; None for weights, which need one.

        Raises:
            UserError: Reading it would run code, and nobody vouches for it.
        """
        from segmod.nets.exported import KINDS

        if self.path.is_dir():
            return None
        require(
            self.path.suffix != ".pt2" or trust.is_full,
            f"run={self.path}: torch.export runs what the author of such a file put there: if you trust it, add "
            "trust=all; an .onnx file needs no trust",
        )
        return KINDS[self.path.suffix](self.path, self.facts)


CARD = "config.json"
"""What is known of weights in a folder."""
WEIGHTS = ("model.safetensors", "model.pt")
"""Their file."""


def as_sent(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A stored config as it is handed to others: without what is of this machine, of absolute paths the names alone."""

    def plain(node: Any) -> Any:
        if isinstance(node, dict):
            return {name: plain(value) for name, value in node.items()}
        if isinstance(node, list):
            return [plain(item) for item in node]
        return Path(node).name if isinstance(node, str) and Path(node).is_absolute() else node

    return {name: plain(value) for name, value in raw.items() if name not in _LEFT_OUT} | _OF_MACHINE
