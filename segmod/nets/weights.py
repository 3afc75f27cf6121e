"""Weights in files: read without running code, and copied into a backbone, or from a trained net into a net."""

from __future__ import annotations

import logging
import pickle
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models import WeightsEnum

from segmod.ground.errors import UserError, reason
from segmod.ground.palettes import Legend
from segmod.nets.foreign import as_ours, read_caffemodel
from segmod.nets.timm_nets import TimmWeights

log = logging.getLogger(__name__)

Family = type[WeightsEnum] | TimmWeights | None
"""The pretrained weights of a net: torchvision's, timm's, or none."""

_KEY = "model.net.weights"

VGG16_CLASSIFIER = {"fc6": ("classifier.0", "classifier.1"), "fc7": ("classifier.3", "classifier.4")}
"""The first two layers of VGG-16's classifier: torchvision's names, and those of files that count its dropout first."""


def load_backbone_weights(
    backbone: nn.Module,
    weights: str | None,
    family: Family = None,
    renamed: Mapping[str, Sequence[str]] | None = None,
    optional: Sequence[str] = (),
) -> None:
    """Fill a backbone with pretrained weights, in place.

    Every parameter and buffer of the backbone has to be found. The weight of a fully connected layer fills a
    convolution of as many elements: so FCN makes a classifier convolutional (Long et al. 2015, section 3.1).

    Args:
        backbone: The module to fill; its parts are named as torchvision names them, but for ``renamed``.
        weights: A torchvision weight name (``DEFAULT``, ``IMAGENET1K_V1``, ``VGG16_Weights.IMAGENET1K_V1``)
            or, for a net of timm, a tag (``DEFAULT``, ``a1_in1k``); the path of a state dict (.pth) or of a Lightning
            checkpoint (.ckpt) of a net with this backbone; or None: keep the random initial values.
        family: The pretrained weights that fit this backbone; None where there are none.
        renamed: Prefixes of the backbone's names and those that files have for them, ``{"fc6": ["classifier.0"]}``.
        optional: Prefixes of names that the weights may lack: these keep their random values, which is told in a line.

    Raises:
        UserError: Unknown name, missing or broken file, failed download, or weights of another architecture.
    """
    if weights is None:
        return
    state = _read(str(weights), family)
    remedy = f"choose weights of this backbone: {_choices(family)}"
    kept: list[str] = []
    with torch.no_grad():
        for name, own in backbone.state_dict().items():
            given = next((state[other] for other in _names_of(name, renamed or {}) if other in state), None)
            # torchvision fills what it has no values for with NaN
            if name.startswith(tuple(optional)) and (given is None or not given.isfinite().all()):
                kept.append(name)
                continue
            if given is None:
                raise UserError(f"{_KEY}={weights} holds no '{name}': {remedy}")
            fully_connected = given.dim() == 2 and own.dim() == 4 and given.numel() == own.numel()
            if given.shape != own.shape and not fully_connected:
                raise UserError(
                    f"{_KEY}={weights} has {tuple(given.shape)} for '{name}', not {tuple(own.shape)}: {remedy}"
                )
            if not given.isfinite().all():
                raise UserError(f"{_KEY}={weights} has no values for '{name}': {remedy}")
            own.copy_(given.reshape(own.shape))
    copied = [name for name in backbone.state_dict() if name not in kept]
    used = {other for name in copied for other in _names_of(name, renamed or {})}
    dropped = tuple(name for name in state if name not in used)
    log.info("%s=%s: %s", _KEY, weights, Transfer(tuple(copied), (), dropped))
    if kept:
        parts = ", ".join(dict.fromkeys(name.rpartition(".")[0] for name in kept))
        log.warning("%s=%s has no %s: random values there", _KEY, weights, parts)


def _read(weights: str, family: Family) -> dict[str, Tensor]:
    """State dict of a name of pretrained weights or of a file."""
    if isinstance(family, TimmWeights):
        if weights in family.names:
            try:
                return family.read(weights)
            except Exception as error:  # of the Hub's client or of the libraries it stands on
                raise UserError(
                    f"{_KEY}={weights} could not be downloaded ({reason(error)}): fetch timm/{family.net} from the "
                    f"Hugging Face Hub elsewhere and give the file, or start from random values, {_KEY}=null"
                ) from error
    elif (
        family is not None
        and (name := weights.rpartition(".")[2]) in family.__members__
        and weights in (name, f"{family.__name__}.{name}")
    ):
        member = family[name]
        try:
            return dict(member.get_state_dict(progress=True, check_hash=True, weights_only=True))
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:  # a URLError is an OSError
            raise UserError(
                f"{_KEY}={weights} could not be downloaded ({reason(error)}): fetch {member.url} elsewhere and give "
                f"the file, {_KEY}=/path/to/{Path(member.url).name}, or start from random values, {_KEY}=null"
            ) from error
    if not Path(weights).expanduser().is_file():
        raise UserError(f"{_KEY}={weights} is neither a file nor weights of this backbone: give {_choices(family)}")
    state = read_weights(weights, f"{_KEY}: file")
    return {name.removeprefix("backbone."): tensor for name, tensor in state.items()}


def _names_of(name: str, renamed: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """A backbone's name, and those that files have for it."""
    part, _, rest = name.partition(".")
    yield name
    yield from (f"{other}.{rest}" for other in renamed.get(part, ()))


def _choices(family: Family) -> str:
    names = family.names[:6] if isinstance(family, TimmWeights) else family.__members__ if family is not None else ()
    return ", ".join([*names, "a file or null"])


class Transfer(NamedTuple):
    """Names of what `load_net` copied, and of what it did not."""

    copied: tuple[str, ...]
    new: tuple[str, ...]  # only the net has them: they keep their initial values
    dropped: tuple[str, ...]  # only the checkpoint has them

    def __str__(self) -> str:
        """Counts and a few names, for a log."""
        parts = [f"{len(self.copied)} tensors copied"]
        if self.new:
            parts.append(f"{len(self.new)} that it lacks keep their initial values ({_some(self.new)})")
        if self.dropped:
            parts.append(f"{len(self.dropped)} that this net lacks are left out ({_some(self.dropped)})")
        return "; ".join(parts)


def load_net(net: nn.Module, path: str | Path, strict: bool = False) -> Transfer:
    """Copy a trained net's weights into a net, in place, by equal names.

    Args:
        net: The net to fill.
        path: A Lightning checkpoint (weights under ``net.``) or the state dict of a net.
        strict: Whether a name that only one side has is an error (evaluation) or is left alone (the next stage).

    Returns:
        The names that were copied, and those that were not.

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
        copied=tuple(shared),
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

    Also those of others, under segmod's names, see `segmod.nets.foreign`: a line tells whose they are. Files are mapped
    into memory, so that optimiser states are not read. No code in a file is ever run.

    Args:
        path: The file.
        what: What the file is to the user, for the message: ``checkpoint``, ``model.net.weights: file``.

    Raises:
        UserError: The file is missing, broken, or holds something else.
    """
    content, prefix = _load(path, what), ""
    if isinstance(content, Mapping):  # of Lightning, of pytorch-fcn, of torchvision's scripts
        key = next(
            (key for key in ("state_dict", "model_state_dict", "model") if isinstance(content.get(key), Mapping)), ""
        )
        content, prefix = content.get(key, content), "net." if key == "state_dict" else ""
    if not isinstance(content, Mapping):
        raise UserError(
            f"{what} {path} holds a {type(content).__name__}, not weights: give a state dict or a checkpoint"
        )
    given = {str(name): tensor for name, tensor in content.items() if isinstance(tensor, Tensor)}
    ours, whose = as_ours({n.removeprefix(prefix): tensor for n, tensor in given.items() if n.startswith(prefix)})
    if whose:
        log.info("%s %s has the names of %s", what, path, whose)
    return ours


def read_legend(path: str | Path) -> Legend | None:
    """What the labels mean, as a checkpoint of a run says; None where it does not, as a plain state dict.

    Raises:
        UserError: As `read_weights`.
    """
    content = _load(path, "checkpoint")
    plain = content.get("legend") if isinstance(content, Mapping) else None
    try:
        return None if plain is None else Legend.from_plain(plain)
    except Exception as error:  # whatever stands there instead
        raise UserError(f"checkpoint {path}: its classes are damaged ({reason(error)}): give another file") from error


def _load(path: str | Path, what: str) -> Any:
    """The content of a file of weights, on the CPU."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"{what} {path} does not exist: check the path")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        if path.suffix == ".caffemodel":
            return read_caffemodel(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # whatever a damaged file can cause
        raise UserError(
            f"{what} {path} cannot be read as weights, it may be cut short: give another file ({reason(error)})"
        ) from error


def _mismatch(path: str | Path, name: str, given: Tensor, own: Tensor, num_classes: int | None) -> str:
    message = f"checkpoint {path} has {tuple(given.shape)} for '{name}', this net needs {tuple(own.shape)}"
    if given.dim() and own.dim() and own.shape[0] == num_classes and given.shape[1:] == own.shape[1:]:
        classes = f"it was trained with {given.shape[0]} classes, this data has {num_classes}"
        return f"{message}: {classes}: give the data it was trained on"
    return f"{message}: give one of the same kind of model"


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
