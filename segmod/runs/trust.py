"""What a stored config may name: classes of segmod that do no more than compute, and what the user vouches for."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, Self

from segmod.ground.errors import UserError, require
from segmod.runs.instantiate import BuildError

ALL = "all"
"""As a value of ``trust``: the stored config is as good as one of the user's own."""

SAFE = frozenset(
    f"{module}.{name}"
    for module, names in {
        "segmod.nets.boxwise": "BoxwiseInception SingleSkip",
        "segmod.nets.deconvnet": "DeconvNet",
        "segmod.nets.fcn": "FCN",
        "segmod.nets.hypercolumn": "Hypercolumn",
        "segmod.nets.pyramid": "DeepFeaturePyramid",
        "segmod.nets.wrapped": "TorchvisionNet Wrapped",
        "segmod.training.module": "SegmentationModule",
        "segmod.training.boxwise": "BoxwiseModule",
        "segmod.training.sparse": "HypercolumnSparse",
        "segmod.training.precise_bn": "PreciseBN",
        "segmod.training.datamodule": "SegmentationDataModule",
        "segmod.losses": "BalancedCrossEntropy Dice Focal Lovasz OHEM OneVsRest Sum",
        "torch.nn": "CrossEntropyLoss NLLLoss",
        "segmod.data.voc": "PascalVOC",
        "segmod.data.folder": "ImageFolder open_folder",
        "segmod.data.coco": "CocoFolder",
        "segmod.data.synthetic": "SyntheticScenes",
        "segmod.data.edgeboxes": "EdgeBoxes",
        "segmod.data.proposals": "BoxFiles GridBoxes TruthBoxes",
        "segmod.inference.crf": "CRFPredictor",
        "segmod.inference.dense": "DensePredictor",
        "segmod.inference.ensemble": "EnsemblePredictor",
        "segmod.inference.multiscale": "MultiScalePredictor",
        "segmod.inference.proposals": "ProposalPredictor",
        "segmod.inference.sliding": "SlidingPredictor",
        "segmod.runs.trained": "member",
    }.items()
    for name in names.split()
)
"""Exact names: once admitted, none of these runs a command, reads a pickle, opens a connection or writes a file."""

log = logging.getLogger(__name__)

_PYTHON_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", re.ASCII)
_STORING = "segmod.data.edgeboxes.EdgeBoxes"


@dataclass(frozen=True)
class Trust:
    """What a stored config may name besides `SAFE`, and where it may have boxes stored.

    Attributes:
        names: Dotted names of classes and functions, or `ALL`.
        folders: Values of ``proposals.root`` that are the user's own.
    """

    names: frozenset[str]
    folders: frozenset[str]

    @classmethod
    def of(cls, trust: object, given: Mapping[str, Any] | None = None) -> Self:
        """Trust in what the user vouches for, and in what the user's own nodes name.

        Args:
            trust: A name or several, or `ALL`.
            given: Plain nodes of the command line, by the group that they change.

        Raises:
            UserError: ``trust`` is something else.
        """
        names = [trust] if isinstance(trust, str) else trust or []
        good = isinstance(names, Iterable) and all(n == ALL or _PYTHON_NAME.fullmatch(str(n)) for n in names)
        require(good, f"trust={trust}: give names such as trust=[unet.UNet], or trust=all")
        own = {str(value) for _, value in _values(given, "_target_")}
        roots = {str(value) for place, value in _values(given, "root") if not place.startswith(".data.")}
        return cls(
            frozenset({*map(str, names), *own}),  # type: ignore[call-overload]
            frozenset({os.environ.get("SEGMOD_PROPOSALS", "proposals"), *roots}),
        )

    @property
    def is_full(self) -> bool:
        """Whether the config is as good as the user's own."""
        return ALL in self.names

    def admit(self, node: Any, key: str, config: Mapping[str, Any]) -> Any:
        """A plain node of a stored config as it may be built.

        What it stores is stored nowhere but where the user has it, and it loads no pretrained weights.

        Args:
            node: The node, its references followed.
            key: Its dotted key.
            config: The whole config, so that all names are told at once.

        Raises:
            UserError: It names something else; says what to type to allow it.
        """
        if self.is_full:
            return node
        for where, name in _values(node, "_target_", key):
            if not isinstance(name, str) or name not in SAFE | self.names:
                self._refuse(where, name, config)
        return self._tamed(node, key)

    def _refuse(self, where: str, name: Any, config: Mapping[str, Any]) -> NoReturn:
        where = where if len(where) <= 80 else f"...{where[-80:]}"
        if not _PYTHON_NAME.fullmatch(str(name)) or str(name).startswith("segmod.") or len(str(name)) > 80:
            raise BuildError(f"{where}={str(name)[:80]!a}: no class that a run may be made of")
        named = [str(n) for group in ("model", "data") for _, n in _values(config[group], "_target_")]
        new = [n for n in named if n not in SAFE | self.names and _PYTHON_NAME.fullmatch(n) and "segmod." not in n]
        wanted = ",".join(dict.fromkeys([name, *new]))
        wanted = f"[{wanted}]" if "," in wanted and len(wanted) < 100 else name
        raise UserError(f"{where}={name} is not segmod's own, and would be called: if you trust it, add trust={wanted}")

    def _tamed(self, node: Any, key: str) -> Any:
        if isinstance(node, list):
            return [self._tamed(item, f"{key}[{i}]") for i, item in enumerate(node)]
        if not isinstance(node, dict):
            return node
        node = {name: self._tamed(value, f"{key}.{name}") for name, value in node.items()}
        if node.get("_target_") in SAFE:
            # Hydra's, such as _args_: they would get by the checks of arguments by their names
            for name in node:
                if re.fullmatch("_.*_", str(name)) and name not in ("_target_", "_partial_"):
                    raise BuildError(f"{key}.{name}: no key that a run may have")
            if "weights" in node:
                node["weights"] = None
            if node["_target_"] == _STORING and (root := str(node.get("root", "proposals"))) not in self.folders:
                log.info("boxes are read from %s, and new ones not stored: +proposals.root=%s stores them", root, root)
                node["keep"] = False
        return node


def _values(node: Any, wanted: str, key: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of each key of a name, in a node and below it."""
    if isinstance(node, Mapping):
        for name, value in node.items():
            if name == wanted:
                yield f"{key}.{name}", value
            yield from _values(value, wanted, f"{key}.{name}")
    elif isinstance(node, list):
        for i, item in enumerate(node):
            yield from _values(item, wanted, f"{key}[{i}]")
