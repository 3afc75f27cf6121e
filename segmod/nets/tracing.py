"""Nets traced by `torch.fx` and cut, and the maps that come out, found without computing a value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torchvision.models.feature_extraction import create_feature_extractor

from segmod.ground.errors import UserError, reason
from segmod.nets import timm_nets

SIDE = 224  # pixels of the images by which shapes are found
_UPRIGHT = (224, 112)  # rows and columns of one that tells maps (B, C, H, W) from (B, H, W, C)


UNTRACEABLE = (fx.proxy.TraceError, TypeError, ValueError, RuntimeError, AssertionError)
"""What tracing a net may raise."""


def tracer(backbone: str, leaves: Sequence[type[nn.Module]] = ()) -> dict[str, Any]:
    """Arguments of the tracer for a net, with types of layers that it is not to look into."""
    if not backbone.startswith(timm_nets.PREFIX):
        return {"leaf_modules": list(leaves)} if leaves else {}
    found = timm_nets.tracing()
    return {**found, "leaf_modules": [*found["leaf_modules"], *leaves]}


def blocks(net: nn.Module) -> list[type[nn.Module]]:
    """Types of the layers of torchvision and timm that follow one another in a net."""
    of_timm = type(net).__module__.startswith("timm.")
    return list({
        type(part)
        for container in net.modules()
        if isinstance(container, nn.Sequential) or (of_timm and container is net)
        for part in container.children()
        if type(part).__module__.startswith(("torchvision.models.", "torchvision.ops.", "timm."))
    })  # fmt: skip


def cut_at(net: nn.Module, layers: Sequence[str], backbone: str) -> Any:
    """A net, traced and cut; where its blocks cannot be traced, they are taken as they are."""
    nodes = {layer: layer for layer in layers}
    try:
        return create_feature_extractor(net, nodes, tracer_kwargs=tracer(backbone))
    except UNTRACEABLE as error:
        told = reason(error)
    try:
        return create_feature_extractor(net, nodes, tracer_kwargs=tracer(backbone, blocks(net)))
    except UNTRACEABLE as error:
        raise UserError(f"model.net.backbone={backbone} cannot be cut at {', '.join(layers)} ({told})") from error


def try_on_paper(net: nn.Module, backbone: str) -> Any:
    """What a net gives of an image that is not square.

    Raises:
        UserError: It takes none.
    """
    try:
        return run_on_paper(net, _UPRIGHT)
    except (RuntimeError, AssertionError, ValueError, TypeError, NotImplementedError) as error:
        raise UserError(
            f"model.net.backbone={backbone} takes no image of {_UPRIGHT[0]} x {_UPRIGHT[1]} pixels, so "
            f"perhaps those of one size alone: choose another net ({reason(error)})"
        ) from error


def grid_of(shape: Sequence[int], net: nn.Module) -> tuple[int, str] | None:
    """Rows of the map that a layer gives of an image of `_UPRIGHT`, and what it is: map, channels last or tokens."""
    if len(shape) == 4 and shape[0] == 1:
        for first, kind in ((2, "map"), (1, "last")):
            rows, columns = shape[first : first + 2]
            if abs(rows - 2 * columns) <= 4:  # padding or its absence make them a few more or less
                return rows, kind
    patches = _patches(net)
    if len(shape) == 3 and patches is not None:
        (height, width), prefix = patches
        rows, columns = -(-_UPRIGHT[0] // height), -(-_UPRIGHT[1] // width)
        return (rows, "tokens") if shape[1] == prefix + rows * columns else None
    return None


def _patches(net: nn.Module) -> tuple[tuple[int, int], int] | None:
    """Height and width of the patches of a net of tokens, and how many tokens come before theirs."""
    size = getattr(getattr(net, "patch_embed", None), "patch_size", None)
    return None if size is None else (tuple(size), getattr(net, "num_prefix_tokens", 0))


def as_map(node: fx.Node, image: fx.Node, shape: Sequence[int], net: nn.Module) -> fx.Node:
    """A node that holds a map (B, C, H, W), made of what a layer gives if that is none."""
    kind = (grid_of(shape, net) or (0, "map"))[1]
    if kind == "last":
        return node.graph.call_method("permute", (node, 0, 3, 1, 2))
    if kind == "tokens" and (patches := _patches(net)) is not None:
        return node.graph.call_function(_tokens_as_map, (node, image, *patches))
    return node


def _tokens_as_map(tokens: Tensor, image: Tensor, patch: tuple[int, int], prefix: int) -> Tensor:
    """Tokens (B, prefix + h w, C) of an image (B, 3, H, W) in patches as a map (B, C, h, w)."""
    rows, columns = ((side + part - 1) // part for side, part in zip(image.shape[2:], patch, strict=True))
    # not len(tokens), which an export takes for a constant
    return tokens[:, prefix:].transpose(1, 2).reshape(tokens.shape[0], -1, rows, columns)


def halvings(rows: int) -> int:
    """Stride of a map of so many rows, as a power of 2."""
    return max(0, round(SIDE / rows).bit_length() - 1)


def run_on_paper(trunk: nn.Module, size: int | tuple[int, int]) -> Any:
    """What a net gives of an image, without the values.

    Args:
        trunk: Takes images (1, 3, H, W).
        size: (H, W) in pixels, or the side of a square.
    """
    height, width = (size, size) if isinstance(size, int) else size
    tensors = {**dict(trunk.named_parameters()), **dict(trunk.named_buffers())}
    empty = {name: tensor.detach().to("meta") for name, tensor in tensors.items()}
    training = trunk.training
    try:  # batch norm refuses to train on maps of one pixel
        image = torch.empty(1, 3, height, width, device="meta")
        with _LeftOut():
            return torch.func.functional_call(trunk.eval(), empty, (image,))
    finally:
        trunk.train(training)


# For these, tensors without values import torch's compiler, which takes a second (sums and concatenations do, too)
_OF_ONE_SHAPE = {F.batch_norm, F.relu, F.relu6, F.hardtanh, F.hardswish, F.silu, F.gelu}


class _LeftOut(TorchFunctionMode):
    """Leaves out normalisation and activations, which change no shape."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func in _OF_ONE_SHAPE else func(*args, **(kwargs or {}))
