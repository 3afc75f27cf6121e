"""The lower part of any torchvision classification net, cut out of it with the maps of chosen layers as outputs."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

from segmod.ground.errors import UserError
from segmod.nets.weights import load_backbone_weights

# torchvision's map from ImageNet normalisation to -1..1, behind which the weights of these nets were trained, is part
# of the trunk whatever the weights, so that a checkpoint means the same everywhere
_BUILT_WITH = {
    name: {"aux_logits": False, "init_weights": True, "transform_input": True} for name in ("inception_v3", "googlenet")
}


def build_trunk(backbone: str, connections: Sequence[str], top: str, weights: str | None) -> nn.Module:
    """The part of a torchvision net that some of its layers need, as a module image -> {layer: map}.

    Layers that none of them needs are left out, with their parameters; the others keep torchvision's names.

    Args:
        backbone: Name of a classification net of torchvision that `torch.fx` can trace.
        connections: Names of layers, as ``named_modules`` has them.
        top: Name of a further one.
        weights: Torchvision name, file path, or None for random values.

    Raises:
        UserError: There is no such net or layer.
    """
    known = torchvision.models.list_models(module=torchvision.models)
    if backbone not in known:
        close = difflib.get_close_matches(backbone, known, n=3) or ["squeezenet1_0", "resnet50", "inception_v3"]
        raise UserError(f"model.net.backbone={backbone}: no such net in torchvision; did you mean {', '.join(close)}?")
    net = torchvision.models.get_model(backbone, weights=None, **_BUILT_WITH.get(backbone, {}))
    _check(net, backbone, "top", [top])
    _check(net, backbone, "connections", connections)
    if top in connections:
        raise UserError(f"model.net.connections: '{top}' is model.net.top already; choose a layer below it")
    try:
        trunk = cut(net, [*connections, top])
    except (torch.fx.proxy.TraceError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"model.net.backbone={backbone} cannot be cut at {connections} and '{top}' ({reason})"
        ) from error
    load_backbone_weights(trunk, weights, torchvision.models.get_model_weights(backbone))
    return trunk


def cut(net: nn.Module, layers: Sequence[str]) -> nn.Module:
    """The part of a net that some of its layers need, as a module image -> {layer: map}."""
    trunk: Any = create_feature_extractor(net, return_nodes={layer: layer for layer in layers})
    for graph in (trunk.train_graph, trunk.eval_graph):
        (output,) = (node for node in graph.nodes if node.op == "output")
        for user in (user for node in output.args[0].values() for user in node.users):
            # what is handed out has to stay as it was
            if user.op == "call_module" and getattr(trunk.get_submodule(user.target), "inplace", False):
                trunk.get_submodule(user.target).inplace = False
            if user.kwargs.get("inplace"):
                user.kwargs = {**user.kwargs, "inplace": False}
    trunk.recompile()
    return trunk  # type: ignore[no-any-return]


def map_shapes(trunk: nn.Module, side: int) -> dict[str, tuple[int, int]]:
    """Channels and rows of the map of each layer, for square images.

    Raises:
        UserError: The images are too small, or a layer gives no map.
    """
    if not _takes(trunk, side):
        raise UserError(
            f"model.net.side={side}, which follows data.squash, is too small for this backbone: "
            f"set data.squash to {smallest_side(trunk)} or more"
        )
    shapes = {}
    for layer, maps in _run_on_paper(trunk, side).items():
        if not isinstance(maps, Tensor) or maps.dim() != 4:
            raise UserError(f"model.net: the layer '{layer}' gives no map (B, C, H, W): choose another")
        shapes[layer] = (maps.shape[1], maps.shape[2])
    return shapes


def smallest_side(trunk: nn.Module) -> int:
    """Side in pixels of the smallest square image that a trunk takes."""
    least, most = 0, 1
    while not _takes(trunk, most):
        least, most = most, 2 * most
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (least, middle) if _takes(trunk, middle) else (middle, most)
    return most


def _takes(trunk: nn.Module, side: int) -> bool:
    try:
        _run_on_paper(trunk, side)
    except RuntimeError:
        return False
    return True


def _run_on_paper(trunk: nn.Module, side: int) -> Mapping[str, Any]:
    """Maps of an image, without their values."""
    tensors = {**dict(trunk.named_parameters()), **dict(trunk.named_buffers())}
    empty = {name: tensor.detach().to("meta") for name, tensor in tensors.items()}
    training = trunk.training
    try:  # batch norm refuses to train on maps of one pixel
        image = torch.empty(1, 3, side, side, device="meta")
        found: Mapping[str, Any] = torch.func.functional_call(trunk.eval(), empty, (image,))
    finally:
        trunk.train(training)
    return found


def _check(net: nn.Module, backbone: str, key: str, layers: Sequence[str]) -> None:
    known = [name for name, _ in net.named_modules() if name]
    for layer in layers:
        if layer not in known:
            close = difflib.get_close_matches(layer, known, n=4, cutoff=0.5) or known[:8]
            raise UserError(f"model.net.{key}: {backbone} has no layer '{layer}'; there are {', '.join(close)}, ...")
