"""Backbones by name: any classification net of torchvision or timm, cut after the maps that are wanted.

There are two ways to use one. `feature_maps` hands out the maps of any of its layers, for nets that look at several
(`torch.fx` traces it, so layers may lie inside blocks and branches). `in_stages` gives the layers as a sequence, by
stages of one resolution each, for nets that run some stages more than once; each layer must feed the next alone.

In both the layers keep the names they have in torchvision or timm, so the weights of these fit, and what lies above
the last map is left out.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torchvision
from torch import Tensor, fx, nn
from torchvision.models.feature_extraction import NodePathTracer
from torchvision.models.vgg import cfgs, make_layers

from segmod.ground.errors import UserError, reason
from segmod.nets import timm_nets
from segmod.nets.normalise import Normalise
from segmod.nets.tracing import (
    SIDE,
    UNTRACEABLE,
    as_map,
    blocks,
    cut_at,
    grid_of,
    halvings,
    run_on_paper,
    tracer,
    try_on_paper,
)
from segmod.nets.weights import Family, load_backbone_weights

# torchvision's map from ImageNet normalisation to -1..1, behind which the weights of these nets were trained, is part
# of the trunk whatever the weights, so that a checkpoint means the same everywhere
_BUILT_WITH = {
    name: {"aux_logits": False, "init_weights": True, "transform_input": True} for name in ("inception_v3", "googlenet")
}
# Nets whose classifier holds most of their parameters: their convolutions alone are built. Torchvision's letters.
_VGG = {"vgg11": "A", "vgg13": "B", "vgg16": "D", "vgg19": "E"}
# what torchvision and timm call the layers that are no part of a backbone
_TOP = ("classifier", "avgpool", "fc", "head", "global_pool", "pre_logits")


class Tiny(nn.Module):
    """Small net of five stages, each a 3x3 convolution, batch norm and ReLU at strides 1, 2, 4, 8 and 16.

    It is no paper's: it learns the synthetic scenes within minutes on a CPU.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = (3, 16, 32, 64, 96, 128)
        for inputs, outputs in pairwise(channels):
            stride = 2 if layers else 1
            layers += [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        initialise(self.features)

    def forward(self, image: Tensor) -> Tensor:
        """Map (B, 128, H / 16, W / 16), rounded up, of an image (B, 3, H, W)."""
        maps: Tensor = self.features(image)
        return maps


class Stages(NamedTuple):
    """A backbone as a sequence of layers.

    Attributes:
        trunk: Holds the layers under torchvision's names; it runs them all.
        stages: Names of the layers of each stage. Stage k ends with the last map at stride 2**k.
        channels: Of the map at the end of each stage.
    """

    trunk: nn.Module
    stages: tuple[tuple[str, ...], ...]
    channels: tuple[int, ...]


def feature_maps(
    backbone: str,
    layers: Sequence[str],
    weights: str | None = None,
    width: float = 1.0,
    keys: Mapping[str, str] | None = None,
    normalise: Normalise | None = None,
) -> nn.Module:
    """The part of a net that some of its layers need, as a module image (B, 3, H, W) -> {layer: map (B, C, h, w)}.

    A map is what the layer gives, so that of a convolution is from before its ReLU. Where a layer has its channels
    last, or gives the tokens of patches, the map is made of that.

    Args:
        backbone: Name of a classification net of torchvision; of timm, behind ``timm/``; or ``tiny``.
        layers: Names of its layers, as ``named_modules`` has them.
        weights: Name of pretrained weights, file path, or None for random values.
        width: Factor on every number of channels.
        keys: Config key below ``model.net`` that gives each layer, for messages; ``taps`` where it is not told.
        normalise: What the image goes through before; a line tells if pretrained weights expect something else.

    Raises:
        UserError: There is no such net or layer, it cannot be traced or narrowed, or the weights do not fit.
    """
    net = _build(backbone, width)
    known = [name for name, _ in net.named_modules() if name]
    for layer in layers:
        if layer not in known:
            close = difflib.get_close_matches(layer, known, n=4, cutoff=0.5) or known[:8]
            key = (keys or {}).get(layer, "taps")
            raise UserError(f"model.net.{key}: {backbone} has no layer '{layer}'; there are {', '.join(close)}, ...")
    trunk = cut_at(net, layers, backbone)
    shapes = {layer: getattr(maps, "shape", ()) for layer, maps in try_on_paper(trunk, backbone).items()}
    for graph in (trunk.train_graph, trunk.eval_graph):
        (output,) = (node for node in graph.nodes if node.op == "output")
        for user in (user for node in output.args[0].values() for user in node.users):
            # what is handed out has to stay as it was
            if user.op == "call_module" and getattr(trunk.get_submodule(user.target), "inplace", False):
                trunk.get_submodule(user.target).inplace = False
            if user.kwargs.get("inplace"):
                user.kwargs = {**user.kwargs, "inplace": False}
        image = next(iter(graph.nodes))
        with graph.inserting_before(output):
            output.args = ({name: as_map(node, image, shapes[name], net) for name, node in output.args[0].items()},)
    trunk.recompile()
    _load(trunk, backbone, weights, normalise)
    return trunk  # type: ignore[no-any-return]


def last_layers(backbone: str) -> dict[int, str]:
    """The last layer of a net at each stride, 1 to 32, from shallow to deep: {stride: name of the layer}.

    Raises:
        UserError: There is no such net, or it has no maps.
    """
    net = _build(backbone, 1.0)
    seen: list[tuple[str, int]] = []  # in the order in which they are done

    def note(name: str, given: object) -> None:
        grid = grid_of(given.shape, net) if isinstance(given, Tensor) else None
        if grid is not None and (stride := 2 ** halvings(grid[0])) <= 32:
            seen.append((name, stride))

    parts = [(name, part) for name, part in net.named_modules() if name and name.split(".")[0] not in _TOP]
    hooks = [part.register_forward_hook(lambda _, __, out, name=name: note(name, out)) for name, part in parts]
    try_on_paper(net, backbone)
    for hook in hooks:
        hook.remove()
    if not seen:
        raise UserError(f"model.net.backbone={backbone} has no maps (B, C, H, W): choose another")
    inner = {name: {s for other, s in seen if f"{other}.".startswith(f"{name}.")} for name, _ in seen}
    # what halves the map begins a stage, with all that is inside it
    halving = [(f"{name}.", stride) for name, stride in seen if inner[name] == {stride // 2, stride}]
    last = {s: name for name, s in seen if not any(name.startswith(whole) and s < its for whole, its in halving)}
    return dict(sorted(last.items()))


def in_stages(
    backbone: str, weights: str | None = None, width: float = 1.0, normalise: Normalise | None = None
) -> Stages:
    """A net as a sequence of layers, by stages of one resolution each.

    Args:
        backbone: Name of a classification net of torchvision; of timm, behind ``timm/``; or ``tiny``.
        weights: Name of pretrained weights, file path, or None for random values.
        width: Factor on every number of channels.
        normalise: What the image goes through before; a line tells if pretrained weights expect something else.

    Raises:
        UserError: There is no such net, its layers are no sequence, or the weights do not fit.
    """
    net = _build(backbone, width)
    # a block, such as torchvision's BasicBlock, counts as one layer; so do its convolutions with norm and activation
    try:
        graph = NodePathTracer(**tracer(backbone, blocks(net))).trace(net)
    except UNTRACEABLE as error:
        raise UserError(f"model.net.backbone={backbone} cannot be traced ({reason(error)})") from error
    last, *rest = graph.nodes
    names: list[str] = []
    for node in rest:
        if node.op != "call_module" or node.all_input_nodes != [last] or str(node.target).split(".")[0] in _TOP:
            break
        names.append(str(node.target))
        last = node
    (output,) = (node for node in graph.nodes if node.op == "output")
    output.args = (last,)
    trunk = fx.GraphModule(net, graph)
    graph.eliminate_dead_code()
    trunk.delete_all_unused_submodules()
    trunk.recompile()
    stages, channels = _by_stride(trunk, names, backbone)
    _load(trunk, backbone, weights, normalise)
    return Stages(trunk, stages, channels)


def weights_family(backbone: str) -> Family:
    """Pretrained weights of a net; None where it has none."""
    if backbone.startswith(timm_nets.PREFIX):
        return timm_nets.TimmWeights(backbone)
    return None if backbone == "tiny" else torchvision.models.get_model_weights(backbone)


def map_shapes(trunk: nn.Module, side: int) -> dict[str, tuple[int, int]]:
    """Channels and rows of the maps that `feature_maps` hands out, for square images.

    Raises:
        UserError: The images are too small, or a layer gives no map.
    """
    try:
        found: Mapping[str, Any] = run_on_paper(trunk, side)
    except RuntimeError as error:
        raise UserError(
            f"model.net.side={side}, which follows data.squash, is too small for this backbone: "
            f"set data.squash to {smallest_side(trunk)} or more"
        ) from error
    for layer, maps in found.items():
        if not isinstance(maps, Tensor) or maps.dim() != 4 or maps.shape[2] != maps.shape[3]:
            raise UserError(f"model.net: the layer '{layer}' gives no map (B, C, H, W): choose another")
    return {layer: (maps.shape[1], maps.shape[2]) for layer, maps in found.items()}


def smallest_side(trunk: nn.Module) -> int:
    """Side in pixels of the smallest square image that a trunk takes."""
    least, most = 0, 1
    while not _takes(trunk, most):
        least, most = most, 2 * most
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (least, middle) if _takes(trunk, middle) else (middle, most)
    return most


def initialise(module: nn.Module) -> None:
    """Draw convolution weights by He et al. (2015), set biases to 0, in place: deep ReLU nets start well from it."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def scaled(channels: int, width: float) -> int:
    """Number of channels times a factor, at least 1."""
    return max(1, round(channels * width))


def _build(backbone: str, width: float) -> nn.Module:
    """A net with random weights."""
    if backbone.startswith(timm_nets.PREFIX):
        if width != 1:
            raise UserError(f"model.net.width={width}: nets of timm have widths of their own; leave it at 1")
        return timm_nets.build(backbone)
    known = [*torchvision.models.list_models(module=torchvision.models), "tiny"]
    if backbone not in known:
        close = difflib.get_close_matches(backbone, known, n=3) or ["vgg16", "resnet50", "mobilenet_v2"]
        if timm_nets.knows(backbone):
            close = [timm_nets.PREFIX + backbone]
        raise UserError(f"model.net.backbone={backbone}: no such net in torchvision; did you mean {', '.join(close)}?")
    plain = backbone.removesuffix("_bn")
    if backbone == "tiny":
        net: nn.Module = Tiny()
    elif plain in _VGG:
        net = _Features(make_layers(cfgs[_VGG[plain]], batch_norm=backbone != plain))
        initialise(net)
    else:
        net = torchvision.models.get_model(backbone, weights=None, **_BUILT_WITH.get(backbone, {}))
    if width != 1:
        _narrow(net, width, backbone)
    return net


def _load(trunk: nn.Module, backbone: str, weights: str | None, normalise: Normalise | None) -> None:
    if weights is None:
        return
    family = weights_family(backbone)
    load_backbone_weights(trunk, weights, family)
    if isinstance(family, timm_nets.TimmWeights) and weights in family.names and normalise is not None:
        family.compare(weights, normalise)


class _Features(nn.Module):
    """The convolutional part of a net, under the name it has in torchvision."""

    def __init__(self, features: nn.Module) -> None:
        super().__init__()
        self.features = features

    def forward(self, image: Tensor) -> Tensor:
        maps: Tensor = self.features(image)
        return maps


def _narrow(net: nn.Module, width: float, backbone: str) -> None:
    """Replace every convolution and batch norm by one with ``width`` times the channels, in place."""
    for parent in list(net.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.Conv2d):
                inputs = layer.in_channels if layer.in_channels == 3 else scaled(layer.in_channels, width)
                groups = inputs if layer.groups == layer.in_channels else layer.groups
                outputs = scaled(layer.out_channels, width)
                if inputs % groups or outputs % groups:
                    raise UserError(f"model.net.width={width}: {backbone} has groups of channels; leave width at 1")
                options: Any = {name: getattr(layer, name) for name in ("kernel_size", "stride", "padding", "dilation")}
                narrow: nn.Module = nn.Conv2d(inputs, outputs, **options, groups=groups, bias=layer.bias is not None)
                initialise(narrow)
            elif isinstance(layer, nn.BatchNorm2d):
                narrow = nn.BatchNorm2d(scaled(layer.num_features, width), layer.eps, layer.momentum)
            else:
                continue
            setattr(parent, name, narrow)


def _by_stride(
    trunk: fx.GraphModule, names: Sequence[str], backbone: str
) -> tuple[tuple[tuple[str, ...], ...], tuple[int, ...]]:
    """Names of the layers by stage, and the channels at the end of each."""
    shapes: dict[str, torch.Size] = {}
    hooks = [
        trunk.get_submodule(name).register_forward_hook(lambda _, __, out, name=name: shapes.update({name: out.shape}))
        for name in names
    ]
    try:
        run_on_paper(trunk, SIDE)
    except RuntimeError as error:
        raise UserError(f"model.net.backbone={backbone}: its layers do not fit together ({error})") from error
    finally:
        for hook in hooks:
            hook.remove()
    if not names or any(len(shape) != 4 or shape[2] != shape[3] for shape in shapes.values()):
        raise UserError(
            f"model.net.backbone={backbone}: its layers are no sequence of maps (B, C, H, W); choose another"
        )
    stages: list[list[str]] = []
    channels: list[int] = []
    for name in names:
        stage = max(1, halvings(shapes[name][2]))
        while len(stages) < stage:
            stages.append([])
            channels.append(0)
        stages[-1].append(name)
        channels[-1] = shapes[name][1]
    return tuple(map(tuple, stages)), tuple(channels)


def _takes(trunk: nn.Module, side: int) -> bool:
    try:
        run_on_paper(trunk, side)
    except RuntimeError:
        return False
    return True
