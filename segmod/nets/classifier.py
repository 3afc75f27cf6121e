"""A classifier made convolutional: it labels each window of an image of any size (Long et al. 2015, section 3.1)."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import torchvision
from torch import fx, nn

from segmod.ground.errors import UserError, reason
from segmod.nets.normalise import Normalise
from segmod.nets.weights import load_backbone_weights


def heat_map_net(classifier: str, weights: str | None) -> nn.Module:
    """A classification net of torchvision as one that maps (B, 3, H, W), RGB in 0..255, to scores (B, K, h, w).

    Args:
        classifier: Torchvision's name, such as ``vgg16``.
        weights: Torchvision name, file path of a net with its classifier, or None for random values.

    Raises:
        UserError: There is no such net, it is none of convolutions, or the weights do not fit.
    """
    known = torchvision.models.list_models(module=torchvision.models)
    if classifier not in known:
        close = ", ".join(difflib.get_close_matches(classifier, known, n=3) or ["vgg16", "resnet50", "alexnet"])
        raise UserError(f"study.classifier={classifier}: no such net in torchvision; did you mean {close}?")
    # inception and googlenet came to torchvision with a normalisation of their own
    own = {"transform_input": True, "init_weights": True} if classifier in ("inception_v3", "googlenet") else {}
    try:
        net = as_convolutions(torchvision.models.get_model(classifier, weights=None, **own))
    except (fx.proxy.TraceError, ValueError, TypeError) as error:
        raise UserError(
            f"study.classifier={classifier} cannot be made convolutional ({reason(error)}): try vgg16"
        ) from error
    load_backbone_weights(net, weights, torchvision.models.get_model_weights(classifier))
    return nn.Sequential(Normalise("imagenet"), net).eval()


def categories(classifier: str) -> Sequence[str]:
    """Names of the 1000 classes that torchvision's classifiers know."""
    family: Any = torchvision.models.get_model_weights(classifier)
    names: list[str] = next(iter(family)).meta["categories"]
    return names


def as_convolutions(net: nn.Module) -> fx.GraphModule:
    """Make a classifier convolutional, with parameters of the same names and numbers.

    Its fully connected layers become convolutions, the first of the size of the maps that it saw at once, and the
    pooling before them, which brings maps of any image to that size, goes. Of VGG-16, whose maps of 224 x 224 are not
    pooled any more, there are the classifier's scores for each window of that size. A net that averages its maps, such
    as ResNet, gives the scores of each place, whose mean is the classifier's.

    Args:
        net: (B, 3, H, W) -> (B, K) by convolutions, an adaptive pooling, and fully connected layers.

    Raises:
        TraceError: It cannot be traced.
        ValueError: It has no such pooling.
    """
    traced = fx.symbolic_trace(net.eval())
    side = 0  # of the maps that the first fully connected layer sees
    for flatten in [node for node in traced.graph.nodes if _is(traced, node, nn.Flatten, "flatten")]:
        pool = flatten.args[0]
        while not _is(traced, pool, nn.AdaptiveAvgPool2d, "adaptive_avg_pool2d"):
            if not pool.args or not isinstance(pool.args[0], fx.Node):
                raise ValueError("no pooling before its fully connected layers")
            pool = pool.args[0]
        pooling: Any = traced.get_submodule(pool.target) if pool.op == "call_module" else None
        size: Any = pool.args[1] if pooling is None else pooling.output_size
        side = size if isinstance(size, int) else size[0]
        for node in (flatten, pool):
            node.replace_all_uses_with(node.args[0])
            traced.graph.erase_node(node)
    if not side:
        raise ValueError("it flattens no maps")
    for node in traced.graph.nodes:
        if _is(traced, node, nn.Linear):
            linear: Any = traced.get_submodule(node.target)
            conv = nn.Conv2d(linear.in_features // side**2, linear.out_features, side, bias=linear.bias is not None)
            conv.weight = nn.Parameter(linear.weight.detach().view_as(conv.weight))
            conv.bias = linear.bias
            traced.set_submodule(node.target, conv)
            side = 1
    traced.recompile()
    return traced


def _is(traced: fx.GraphModule, node: fx.Node, kind: type[nn.Module], name: str = "") -> bool:
    """Whether a node calls a module of a kind, or the function or method of a name."""
    if node.op == "call_module":
        return isinstance(traced.get_submodule(str(node.target)), kind)
    called = getattr(node.target, "__name__", node.target)  # of a method its name
    return node.op in ("call_function", "call_method") and bool(name) and called == name
