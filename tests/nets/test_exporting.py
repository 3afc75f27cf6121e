"""Every net as ONNX and as a program: the same scores at sizes that the exporter never saw."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from segmod.ground.errors import UserError
from segmod.ground.palettes import VOC_CLASSES, Legend
from segmod.nets.boxwise import BoxwiseInception, SingleSkip
from segmod.nets.deconvnet import DeconvNet
from segmod.nets.exported import KINDS, read_facts
from segmod.nets.exporting import as_onnx, as_program, onnx_bytes, program_bytes, quantised
from segmod.nets.fcn import FCN
from segmod.nets.hypercolumn import Hypercolumn
from segmod.nets.normalise import Normalise
from segmod.nets.pyramid import DeepFeaturePyramid
from segmod.nets.wrapped import TorchvisionNet

pytest.importorskip("onnxruntime")

K = 4
TAPS = ["features.1", "features.4", "features.7", "features.10", "features.13"]
TINY: dict[str, Any] = {"backbone": "tiny", "taps": TAPS, "width": 0.2, "hidden": 8, "align_corners": False}
NARROW: dict[str, Any] = {"width": 0.03}
RESNET: dict[str, Any] = {"backbone": "resnet18", "width": 0.1}
SKIP: dict[str, Any] = {
    "backbone": "squeezenet1_0", "top": "features.12", "taps": ["features.3", "features.7"], "connections": [1, 2],
    "hidden": 8, "standardise": True, "boxes": 54,
}  # fmt: skip
NETS: dict[str, Callable[[], nn.Module]] = {
    "tiny": lambda: Hypercolumn(K, **TINY),
    "hypercolumn": lambda: Hypercolumn(K, "vgg11", hidden=8, **NARROW),
    "hypercolumn_grid": lambda: Hypercolumn(K, **TINY, grid=3),
    "hypercolumn_grid_out": lambda: Hypercolumn(K, **TINY, grid=3, grid_out=20),
    "fcn32s": lambda: FCN(K, 32, **NARROW),
    "fcn16s": lambda: FCN(K, 16, **NARROW),
    "fcn8s": lambda: FCN(K, 8, **NARROW),
    "fcn8s_at_once": lambda: FCN(K, 8, **NARROW, skip_factors=(0.01, 0.0001), learn_upsample=True),
    "fcn8s_same": lambda: FCN(K, 8, **NARROW, padding="same"),
    "fcn8s_resnet": lambda: FCN(K, 8, **RESNET),
    "deconvnet": lambda: DeconvNet(K, **NARROW),
    **{f"pyramid{depth}": lambda depth=depth: DeepFeaturePyramid(K, depth, **RESNET) for depth in range(6)},
    "pyramid_max": lambda: DeepFeaturePyramid(K, 3, **RESNET, fusion="max", align_corners=True),
    "torchvision": lambda: TorchvisionNet(K, "lraspp_mobilenet_v3_large"),
    "caffe": lambda: FCN(K, 32, **NARROW, normalise="caffe"),
}
FIXED: dict[str, tuple[Callable[[], nn.Module], tuple[int, int]]] = {
    "single_skip": (lambda: SingleSkip(K, **SKIP), (224, 224)),
    "single_skip_shrinks": (lambda: SingleSkip(K, **{**SKIP, "boxes": 20}), (224, 200)),
    "boxwise": (lambda: BoxwiseInception(K, hidden=8), (299, 299)),
}


class Micro(nn.Module):
    """A net that is exported in a second."""

    num_classes = K

    def __init__(self) -> None:
        super().__init__()
        self.normalise = Normalise()
        self.conv = nn.Conv2d(3, K, 3, padding=1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.conv(self.normalise(image))
        return logits


def made(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    net = build().eval().requires_grad_(False)
    for parameter in net.parameters():  # score layers start at zero
        if parameter.dim() > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return net


def facts(least: int, size: tuple[int, int] | None = None, output: str = "logits") -> dict[str, Any]:
    legend = Legend("synthetic", VOC_CLASSES[:K]).as_plain()
    return {**legend, "run": "x", "output": output, "size": size, "least": least, "metrics": {}, "config": {}}


def image(count: int, size: tuple[int, int]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(256, (count, 3, *size), generator=generator, dtype=torch.uint8)


def assert_same(path: Path, content: bytes, net: nn.Module, sizes: list[tuple[int, tuple[int, int]]]) -> None:
    path.write_bytes(content)
    exported = KINDS[path.suffix](path, read_facts(path)).eval()
    for count, size in sizes:
        expected = net(image(count, size))
        difference = (exported(image(count, size)) - expected).abs().max() / expected.abs().max()
        assert difference < 1e-4, (path.suffix, count, size)


def test_a_net_becomes_a_file_of_either_kind(tmp_path: Path) -> None:
    net = made(Micro)
    program, least = as_program(net)
    assert least == 32
    sizes = [(1, (64, 32)), (2, (33, 47)), (1, (300, 32))]
    assert_same(tmp_path / "net.pt2", program_bytes(program, facts(least)), net, sizes)
    model = as_onnx(program, "logits")
    assert_same(tmp_path / "net.onnx", onnx_bytes(model, facts(least)), net, sizes)
    (taken,), (given,) = model.graph.input, model.graph.output
    shape = [dim.dim_param or dim.dim_value for dim in taken.type.tensor_type.shape.dim]
    assert (taken.name, shape) == ("image", ["batch", 3, "height", "width"])
    shape = [dim.dim_param or dim.dim_value for dim in given.type.tensor_type.shape.dim]
    assert (given.name, shape) == ("logits", ["batch", K, "height", "width"])


def test_a_net_that_does_another_thing_with_large_images_takes_one_size() -> None:
    class Forked(Micro):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            logits = super().forward(image)
            return logits if max(image.shape[2:]) <= 300 else 2 * logits

    with pytest.raises(UserError, match=r"Forked takes images of one size .* more than 257 pixels: give .* size=\["):
        as_program(made(Forked))
    program, _ = as_program(made(Forked), size=(224, 200))
    assert tuple(program.module()(image(1, (224, 200))).shape) == (1, K, 224, 200)


def test_a_net_that_looks_at_values_cannot_be_exported() -> None:
    class Looking(Micro):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return super().forward(image) if image.float().mean() > 3 else torch.zeros(len(image), K, *image.shape[2:])

    with pytest.raises(UserError, match=r"Looking cannot be exported .*: wrap or change the net"):
        as_program(made(Looking), size=(64, 64))


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_nets_of_any_size(name: str, tmp_path: Path) -> None:
    net = made(NETS[name])
    program, least = as_program(net)
    assert least <= 33
    sizes = [(1, (97, 131)), (2, (64, 64)), (1, (224, 256)), (3, (40, 300))]
    assert_same(tmp_path / "net.pt2", program_bytes(program, facts(least)), net, sizes)
    assert_same(tmp_path / "net.onnx", onnx_bytes(as_onnx(program, "logits"), facts(least)), net, sizes)


@pytest.mark.slow
@pytest.mark.parametrize("name", FIXED)
def test_box_wise_nets_have_one_size(name: str, tmp_path: Path) -> None:
    build, size = FIXED[name]
    net = made(build)
    with pytest.raises(UserError, match=r"size=\["):
        as_onnx(as_program(net)[0], "logits")
    program, least = as_program(net, size=size)
    sizes = [(1, size), (2, size)]
    assert_same(tmp_path / "net.pt2", program_bytes(program, facts(least, size)), net, sizes)
    assert_same(tmp_path / "net.onnx", onnx_bytes(as_onnx(program, "logits"), facts(least, size)), net, sizes)


@pytest.mark.slow
def test_half_and_eight_bits_say_nearly_the_same(tmp_path: Path) -> None:
    net = made(NETS["tiny"])
    seen = image(2, (96, 128))
    labels = net(seen).argmax(1)
    program, least = as_program(net)
    half = as_onnx(program, "logits", "fp16")
    eight = quantised(as_onnx(program, "logits"), [image(1, (96, 128)), image(1, (65, 64))])
    sizes = []
    for name, model, least_equal in (("half", half, 0.99), ("eight", eight, 0.9)):
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(onnx_bytes(model, facts(least)))
        exported = KINDS[".onnx"](path, read_facts(path))
        assert (exported(seen).argmax(1) == labels).float().mean() > least_equal
        sizes.append(sum(len(part.raw_data) for part in model.graph.initializer))
    whole = sum(len(part.raw_data) for part in as_onnx(program, "logits").graph.initializer)
    assert sizes[0] < 0.7 * whole
    assert sizes[1] < 0.7 * whole
