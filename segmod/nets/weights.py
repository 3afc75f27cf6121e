"""The ``weights`` key of every net: ImageNet weights by name, weights from a file, or none."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import WeightsEnum

from segmod.ground.errors import UserError
from segmod.nets.checkpoint import read_weights

_KEY = "model.net.weights"


def load_backbone_weights(
    backbone: nn.Module,
    weights: str | None,
    family: type[WeightsEnum] | None = None,
    renamed: Mapping[str, str] | None = None,
) -> None:
    """Fill a backbone with pretrained weights, in place.

    Every parameter and buffer of the backbone has to be found. The weight of a fully connected layer fills a
    convolution of as many elements: so FCN makes a classifier convolutional (Long et al. 2015, section 3.1).

    Args:
        backbone: The module to fill; its parts are named as torchvision names them, but for ``renamed``.
        weights: A torchvision weight name (``DEFAULT``, ``IMAGENET1K_V1``, ``VGG16_Weights.IMAGENET1K_V1``), the path
            of a state dict (.pth) or of a Lightning checkpoint (.ckpt) of a net with this backbone, or None: keep the
            random initial values.
        family: The torchvision weights that fit this backbone; None where there are none.
        renamed: Prefixes of the backbone's names and torchvision's for them, such as ``{"fc6": "classifier.0"}``.

    Raises:
        UserError: Unknown name, missing or broken file, failed download, or weights of another architecture.
    """
    if weights is None:
        return
    state = _read(str(weights), family)
    remedy = f"choose weights of this backbone: {_choices(family)}"
    with torch.no_grad():
        for name, own in backbone.state_dict().items():
            given = state.get(name, state.get(_theirs(name, renamed or {})))
            if given is None:
                raise UserError(f"{_KEY}={weights} holds no '{name}': {remedy}")
            fully_connected = given.dim() == 2 and own.dim() == 4 and given.numel() == own.numel()
            if given.shape != own.shape and not fully_connected:
                raise UserError(
                    f"{_KEY}={weights} has {tuple(given.shape)} for '{name}', not {tuple(own.shape)}: {remedy}"
                )
            if not given.isfinite().all():  # torchvision fills what it has no values for with NaN
                raise UserError(f"{_KEY}={weights} has no values for '{name}': {remedy}")
            own.copy_(given.reshape(own.shape))


def _read(weights: str, family: type[WeightsEnum] | None) -> dict[str, Tensor]:
    """State dict of a torchvision weight name or of a file."""
    name = weights.rpartition(".")[2]
    if family is not None and name in family.__members__ and weights in (name, f"{family.__name__}.{name}"):
        member = family[name]
        try:
            return dict(member.get_state_dict(progress=True, check_hash=True, weights_only=True))
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:  # a URLError is an OSError
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise UserError(
                f"{_KEY}={weights} could not be downloaded ({reason}): fetch {member.url} elsewhere and give the file, "
                f"{_KEY}=/path/to/{Path(member.url).name}, or start from random values, {_KEY}=null"
            ) from error
    if not Path(weights).expanduser().is_file():
        raise UserError(f"{_KEY}={weights} is neither a file nor weights of this backbone: give {_choices(family)}")
    state = read_weights(weights, f"{_KEY}: file")
    return {name.removeprefix("backbone."): tensor for name, tensor in state.items()}


def _theirs(name: str, renamed: Mapping[str, str]) -> str:
    """Torchvision's name for a backbone's name."""
    part, _, rest = name.partition(".")
    return f"{renamed.get(part, part)}.{rest}"


def _choices(family: type[WeightsEnum] | None) -> str:
    return ", ".join([*(family.__members__ if family is not None else ()), "a file or null"])
