"""Weights in files: reading them safely, and copying a trained net's weights into a net."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from segmod.ground.errors import UserError
from segmod.ground.palettes import Legend


class Transfer(NamedTuple):
    """What `load_net` did not copy."""

    new: tuple[str, ...]  # names only the net has: they keep their initial values
    dropped: tuple[str, ...]  # names only the checkpoint has


def load_net(net: nn.Module, path: str | Path, strict: bool = False) -> Transfer:
    """Copy a trained net's weights into a net, in place, by equal names.

    Args:
        net: The net to fill.
        path: A Lightning checkpoint (weights under ``net.``) or the state dict of a net.
        strict: Whether a name that only one side has is an error (evaluation) or is left alone (the next stage).

    Returns:
        The names that were not copied.

    Raises:
        UserError: Missing or broken file, no name in common, shapes that differ, or with ``strict`` a lone name.
    """
    given = read_weights(path, "checkpoint")
    own = net.state_dict()
    shared = [name for name in own if name in given]
    if not shared:
        raise UserError(f"checkpoint {path} has no weight in common with this net: give one of the same kind of model")
    for name in shared:
        if given[name].shape != own[name].shape:
            raise UserError(_mismatch(path, name, given[name], own[name], getattr(net, "num_classes", None)))
    transfer = Transfer(
        new=tuple(name for name in own if name not in given),
        dropped=tuple(name for name in given if name not in own),
    )
    if strict and (transfer.new or transfer.dropped):
        fault, names = ("lacks", transfer.new) if transfer.new else ("has more than", transfer.dropped)
        raise UserError(f"checkpoint {path} {fault} this net ({_some(names)}): give the model it was trained with")
    with torch.no_grad():
        for name in shared:
            own[name].copy_(given[name])
    return transfer


def read_weights(path: str | Path, what: str) -> dict[str, Tensor]:
    """Weights of the net in a Lightning checkpoint (without their ``net.``) or in a plain state dict, on the CPU.

    Files are mapped into memory, so that optimiser states are not read. No code in a file is ever run.

    Args:
        path: The file.
        what: What the file is to the user, for the message: ``checkpoint``, ``model.net.weights: file``.

    Raises:
        UserError: The file is missing, broken, or holds something else.
    """
    content, prefix = _load(path, what), ""
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content, prefix = content["state_dict"], "net."
    if not isinstance(content, Mapping):
        raise UserError(
            f"{what} {path} holds a {type(content).__name__}, not weights: give a state dict or a checkpoint"
        )
    return {
        str(name).removeprefix(prefix): tensor
        for name, tensor in content.items()
        if str(name).startswith(prefix) and isinstance(tensor, Tensor)
    }


def read_legend(path: str | Path) -> Legend | None:
    """What the labels mean, as a checkpoint of a run says; None where it does not, as a plain state dict.

    Raises:
        UserError: As `read_weights`.
    """
    content = _load(path, "checkpoint")
    plain = content.get("legend") if isinstance(content, Mapping) else None
    return None if plain is None else Legend.from_plain(plain)


def _load(path: str | Path, what: str) -> Any:
    """The content of a file of weights, on the CPU."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"{what} {path} does not exist: check the path")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"{what} {path} cannot be read as weights, it may be cut short: give another file ({reason})"
        ) from error


def _mismatch(path: str | Path, name: str, given: Tensor, own: Tensor, num_classes: int | None) -> str:
    message = f"checkpoint {path} has {tuple(given.shape)} for '{name}', this net needs {tuple(own.shape)}"
    if given.dim() and own.dim() and own.shape[0] == num_classes and given.shape[1:] == own.shape[1:]:
        classes = f"it was trained with {given.shape[0]} classes, this data has {num_classes}"
        return f"{message}: {classes}: give the data it was trained on"
    return f"{message}: give one of the same kind of model"


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
