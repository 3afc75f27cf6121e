"""Every layer of a net with its size, as a table (Noh, Hong, Han 2015, Table 2)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segmod.ground.errors import UserError, reason
from segmod.ground.types import Side
from segmod.nets.tracing import run_on_paper
from segmod.runs.instantiate import untrained_net
from segmod.studies.base import Row, Runs, at_least, only_run


class Layers:
    """Tells the layers of a net in the order in which they compute, of a run or of a model that nobody trained.

    A layer is told if it has a kernel or changes the size of its maps: norms and activations are not. One that
    computes several times, as in a pyramid, comes each time; its parameters are counted the first time. What a net
    computes without a module, such as a classifier folded into an interpolation, is not seen. The last line has the
    parameters of the whole net, norms included.

    Args:
        model: Option of the config group ``model``, in place of a run.
        size: Side of the square image in pixels.
    """

    def __init__(self, model: str | None = None, size: Side = 224) -> None:
        at_least(1, size=size)
        self.model = model
        self.size = size

    def __call__(self, runs: Runs, directory: Path) -> list[Row]:
        """Return the layers; nothing is drawn.

        Raises:
            UserError: There is no such model, or the net takes no image of this size.
        """
        if not runs and self.model is None:
            raise UserError("run or study.model is required: give study.model=deconvnet, or run=FOLDER")
        if self.model is None:
            net = only_run(runs, "layers").net
        else:
            with torch.device("meta"):  # sizes alone: no memory, no time
                net = untrained_net(self.model)
        try:
            return layers_of(net, self.size)
        except RuntimeError as error:
            raise UserError(
                f"study.size={self.size}: the net refuses such images ({reason(error)}); choose another"
            ) from error


def layers_of(net: nn.Module, size: int) -> list[Row]:
    """The layers of a net.

    Args:
        net: Maps (B, 3, H, W) to logits.
        size: Side of the image.
    """
    rows: list[Row] = []
    counted: set[nn.Module] = set()

    def keep(name: str, layer: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        maps = output[0] if isinstance(output, tuple) else output
        same_size = isinstance(given[0], Tensor) and given[0].shape[2:] == maps.shape[2:]
        if not hasattr(layer, "kernel_size") and not isinstance(layer, nn.Linear) and same_size:
            return
        count = 0 if layer in counted else sum(parameter.numel() for parameter in layer.parameters())
        counted.add(layer)
        rows.append({
            "layer": name, "kind": type(layer).__name__,
            **{key: _pair(getattr(layer, f"{key}_size" if key == "kernel" else key, None))
               for key in ("kernel", "stride", "padding")},
            "channels": maps.shape[1], "output": " x ".join(map(str, maps.shape[2:])), "parameters": count,
        })  # fmt: skip

    leaves = [(name, part) for name, part in net.named_modules() if not list(part.children())]
    hooks = [
        part.register_forward_hook(lambda layer, given, output, name=name: keep(name, layer, given, output))
        for name, part in leaves
    ]
    try:
        run_on_paper(net, size)
    finally:
        for hook in hooks:
            hook.remove()
    total = sum(parameter.numel() for parameter in net.parameters())
    return [*rows, {**dict.fromkeys(rows[0], ""), "layer": "all", "parameters": total}]


def _pair(value: Any) -> str:
    """A kernel's side, or both where they differ."""
    sides = dict.fromkeys(value) if isinstance(value, tuple) else [value]
    return "" if value is None else " x ".join(map(str, sides))
