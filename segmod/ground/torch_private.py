"""What segmod uses of torch beyond its public names; they are checked here, once, when this is imported."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.modules import batchnorm
from torch.utils.data import dataloader

from segmod.ground.errors import require_names

if TYPE_CHECKING:
    from torch.export import ExportedProgram

TESTED = ">=2.7,<2.14"
NAMES = (
    "torch.nn.modules.batchnorm._BatchNorm",
    "torch.utils.data.dataloader._MultiProcessingDataLoaderIter._shutdown_workers",
    "torch.fx.experimental._config.backed_size_oblivious",
)
require_names("torch", TESTED, NAMES)

BatchNorm = batchnorm._BatchNorm
"""What all kinds of batch normalisation have in common: 1d, 2d, 3d and synchronised."""


def stop_workers(batches: object) -> None:
    """Stop the worker processes of what iterating a DataLoader gave, if it has any."""
    if isinstance(batches, dataloader._MultiProcessingDataLoaderIter):
        batches._shutdown_workers()


@contextmanager
def without_dynamo() -> Iterator[None]:
    """Import torchvision within this, where torch's compiler need not be: it is most of the time that this takes.

    torchvision imports ``torch._dynamo``, which draws in sympy and ``torch.distributed``, for one function that only
    its RoI align calls. Within, that name stands for what imports the compiler once it is called.
    """
    names = ("torch._dynamo", "torch._dynamo.utils")
    if any(name in sys.modules for name in ("torchvision", *names)):
        yield
        return

    def stand_in(name: str) -> ModuleType:
        def real(attribute: str) -> Any:
            if attribute.startswith("__"):  # what the import itself asks for
                raise AttributeError(attribute)
            forget()
            return getattr(importlib.import_module(name), attribute)

        module = ModuleType(name)
        module.__getattr__ = real  # type: ignore[method-assign]
        return module

    def forget() -> None:
        for name, module in stand_ins.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]

    stand_ins = {name: stand_in(name) for name in names}
    utils = stand_ins["torch._dynamo.utils"]
    vars(utils)["is_compile_supported"] = lambda *args: utils.__getattr__("is_compile_supported")(*args)
    sys.modules |= stand_ins
    try:
        yield
    finally:
        forget()


def free_sizes() -> AbstractContextManager[None]:
    """An export whose sizes of any value may be 1, too, which torch else takes for a size apart."""
    from torch.fx.experimental import _config

    patch: AbstractContextManager[None] = _config.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]
    return patch


def sizes_asserted(program: ExportedProgram) -> Callable[[tuple[int, int]], bool]:
    """Whether what a program asserts of its first input, images (B, 3, H, W), holds for two of a size (H, W)."""
    import sympy

    nodes = list(program.graph.nodes)
    image = next(
        node for node in nodes if node.op == "placeholder" and node.name == program.graph_signature.user_inputs[0]
    )
    symbols = [getattr(getattr(side, "node", None), "expr", None) for side in image.meta["val"].shape]
    found = (node.args[0].meta["val"] for node in nodes if node.target is torch.ops.aten._assert_scalar.default)
    claims = {value.node.expr for value in found if isinstance(value, torch.SymBool)}

    def hold(size: tuple[int, int]) -> bool:
        given = {s: sympy.Integer(n) for s, n in zip(symbols, (2, 3, *size), strict=True) if s is not None}
        in_range = all(given[s] in bounds for s, bounds in program.range_constraints.items() if s in given)
        return in_range and all(claim.xreplace(given) == sympy.true for claim in claims)

    return hold
