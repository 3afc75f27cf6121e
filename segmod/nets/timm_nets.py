"""Nets of timm as backbones: built by name, with pretrained weights by their tags. The package is an extra."""

from __future__ import annotations

import difflib
import importlib
import logging
from contextlib import suppress
from typing import Any, cast

import torch
from torch import Tensor, nn

from segmod.ground.errors import UserError
from segmod.nets.normalise import Normalise

log = logging.getLogger(__name__)

PREFIX = "timm/"
"""What the names of timm's nets begin with, as backbones: ``timm/resnet18`` is not torchvision's ``resnet18``."""

# what makes ViT, Swin and the like take images of any size
_ANY_SIZE: list[dict[str, bool]] = [{"dynamic_img_size": True}, {"strict_img_size": False}, {}]


def build(backbone: str) -> nn.Module:
    """A net of timm with random weights, of any image size where it has a way to be.

    Raises:
        UserError: timm is not installed, or has no such net.
    """
    name, timm = backbone.removeprefix(PREFIX), _timm(backbone)
    # a name alone: timm would fetch what "hf-hub:" and the like begin
    if name not in timm.list_models():
        close = difflib.get_close_matches(name, timm.list_models(), n=3) or ["resnet18", "convnext_tiny"]
        hint = ", ".join(PREFIX + one for one in close)
        raise UserError(f"model.net.backbone={backbone}: no such net in timm; did you mean {hint}?")
    net: nn.Module | None = None
    for options in _ANY_SIZE:
        with suppress(TypeError):  # it has no such option
            net = timm.create_model(name, **options)
            break
    patches: Any = getattr(net, "patch_embed", None)
    for name, value in {"strict_img_size": False, "dynamic_img_pad": True}.items():
        if hasattr(patches, name):
            setattr(patches, name, value)
    return cast(nn.Module, net)


def tracing() -> dict[str, Any]:
    """What `torch.fx` is to leave alone in nets of timm: its modules and functions with a control flow of their own."""
    fx: Any = importlib.import_module("timm.models._features_fx")  # once imported, all have been registered
    return {"leaf_modules": list(fx.get_notrace_modules()), "autowrap_functions": list(fx.get_notrace_functions())}


def knows(name: str) -> bool:
    """Whether timm is installed and has a net of this name, without its prefix."""
    try:
        return name in importlib.import_module("timm").list_models()
    except ModuleNotFoundError:
        return False


class TimmWeights:
    """Pretrained weights of a net of timm, by their tags; ``DEFAULT`` is the one that timm prefers."""

    def __init__(self, backbone: str) -> None:
        self.net = backbone.removeprefix(PREFIX)
        listed = _timm(backbone).list_pretrained(f"{self.net}.*")
        tags = [name.partition(".")[2] for name in listed]
        self.names = ["DEFAULT", *tags] if tags else []

    def read(self, name: str) -> dict[str, Tensor]:
        """State dict of a tag, from timm's cache or the network."""
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # tells each of its attempts
        net: nn.Module = importlib.import_module("timm").create_model(self._full(name), pretrained=True)
        return net.state_dict()

    def compare(self, name: str, normalise: Normalise) -> None:
        """Tell in a line when weights expect other pixels than a net gives them."""
        expected: Any = importlib.import_module("timm").get_pretrained_cfg(self._full(name))
        mean, std = ([round(255 * value, 3) for value in values] for values in (expected.mean, expected.std))
        given = [normalise.mean.flatten(), normalise.std.flatten()]
        if normalise.bgr or not torch.allclose(torch.stack(given), torch.tensor([mean, std]), atol=0.01):
            log.warning(
                "model.net.weights=%s was trained on other pixels: model.net.normalise={mean: %s, std: %s}",
                name, mean, std,
            )  # fmt: skip

    def _full(self, name: str) -> str:
        return self.net if name == "DEFAULT" else f"{self.net}.{name}"


def _timm(backbone: str) -> Any:
    try:
        return importlib.import_module("timm")
    except ModuleNotFoundError as error:
        raise UserError(
            f"model.net.backbone={backbone}: timm is not installed: pip install 'segmod[timm]', "
            "or give a net of torchvision"
        ) from error
