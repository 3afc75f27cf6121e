"""Weights of others, written in their formats, say in our nets what they say in theirs."""

import struct
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from segmod.ground.errors import UserError
from segmod.nets.deconvnet import DeconvNet
from segmod.nets.fcn import FCN
from segmod.nets.ops import bilinear_kernel
from segmod.nets.pyramid import DeepFeaturePyramid
from segmod.nets.weights import load_net

K = 3
WIDTH = 1 / 32  # VGG-16 with 2, 4, 8, 16, 16 channels and 128 in fc6 and fc7
LEVELS = (2, 4, 8, 16, 16)
FC = 128
BGR_MEAN = torch.tensor([104.00699, 116.66877, 122.67892]).view(3, 1, 1)
IMAGE = torch.randint(256, (1, 3, 50, 70), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def as_caffe_sees(image: Tensor) -> Tensor:
    return image.flip(1).float() - BGR_MEAN


def convolutions() -> dict[str, nn.Conv2d]:
    """Those of VGG-16 by Caffe's names."""
    torch.manual_seed(0)
    layers = {}
    channels = 3
    for level, (width, count) in enumerate(zip(LEVELS, (2, 2, 3, 3, 3), strict=True), 1):
        for i in range(1, count + 1):
            layers[f"conv{level}_{i}"] = nn.Conv2d(channels, width, 3, padding=1)
            channels = width
    return layers


class PytorchFCN(nn.Module):
    """FCN-8s, 16s or 32s as the repository wkentaro/pytorch-fcn names and connects its layers."""

    def __init__(self, stride: int, factors: tuple[float, float] = (1.0, 1.0)) -> None:
        super().__init__()
        self.stride, self.factors = stride, factors
        for name, layer in convolutions().items():
            self.add_module(name, layer)
        self.conv1_1.padding = (100, 100)
        self.fc6, self.fc7 = nn.Conv2d(LEVELS[-1], FC, 7), nn.Conv2d(FC, FC, 1)
        self.score_fr = nn.Conv2d(FC, K, 1)
        kernels = {32: {"upscore": 64}, 16: {"upscore2": 4, "upscore16": 32}}.get(
            stride, {"upscore2": 4, "upscore_pool4": 4, "upscore8": 16}
        )
        for name, size in kernels.items():
            up = nn.ConvTranspose2d(K, K, size, stride=size // 2, bias=False)
            up.weight.data = torch.eye(K)[:, :, None, None] * bilinear_kernel(size)
            self.add_module(name, up)
        if stride < 32:
            self.score_pool4 = nn.Conv2d(LEVELS[3], K, 1)
        if stride < 16:
            self.score_pool3 = nn.Conv2d(LEVELS[2], K, 1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        pools = []
        for level, count in enumerate((2, 2, 3, 3, 3), 1):
            for i in range(1, count + 1):
                x = F.relu(getattr(self, f"conv{level}_{i}")(x))
            pools.append(x := F.max_pool2d(x, 2, 2, ceil_mode=True))
        h = self.score_fr(F.relu(self.fc7(F.relu(self.fc6(x)))))
        if self.stride == 32:
            return self.upscore(h)[:, :, 19 : 19 + height, 19 : 19 + width]
        h = self.upscore2(h)
        h = h + self.score_pool4(pools[3] * self.factors[0])[:, :, 5 : 5 + h.shape[2], 5 : 5 + h.shape[3]]
        if self.stride == 16:
            return self.upscore16(h)[:, :, 27 : 27 + height, 27 : 27 + width]
        h = self.upscore_pool4(h)
        h = h + self.score_pool3(pools[2] * self.factors[1])[:, :, 9 : 9 + h.shape[2], 9 : 9 + h.shape[3]]
        return self.upscore8(h)[:, :, 31 : 31 + height, 31 : 31 + width]


# -- Caffe's files, encoded by hand ------------------------------------------------------------------------------------


def varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def field(number: int, value: bytes | int) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def blob(tensor: Tensor, old: bool) -> bytes:
    numbers = tensor.detach().flatten().tolist()
    data = field(5, struct.pack(f"<{len(numbers)}f", *numbers))
    if old:
        shape = [1] * (4 - tensor.dim()) + list(tensor.shape)
        return b"".join(field(i, side) for i, side in enumerate(shape, 1)) + data
    return data + field(7, field(1, b"".join(map(varint, tensor.shape))))


def caffemodel(layers: Mapping[str, tuple[Tensor, ...]], old: bool) -> bytes:
    """A NetParameter: its name, a layer of data without blobs, and the layers."""
    number, name, blobs = (2, 4, 6) if old else (100, 1, 7)
    parts = [field(1, b"net"), field(number, field(name, b"data") + field(5 if old else 2, 5 if old else b"Data"))]
    for layer, tensors in layers.items():
        message = field(name, layer.encode()) + b"".join(field(blobs, blob(tensor, old)) for tensor in tensors)
        parts.append(field(number, message))
    return b"".join(parts)


def by_layer(net: nn.Module) -> dict[str, tuple[Tensor, ...]]:
    return {name: tuple(layer.parameters()) for name, layer in net.named_children()}


def as_checkpoint(net: nn.Module, path: Path) -> Path:
    torch.save({"epoch": 3, "arch": "FCN8s", "optim_state_dict": {}, "model_state_dict": net.state_dict()}, path)
    return path


def as_caffemodel(net: nn.Module, path: Path, old: bool = True) -> Path:
    path = path.with_suffix(".caffemodel")
    path.write_bytes(caffemodel(by_layer(net), old))
    return path


def as_new_caffemodel(net: nn.Module, path: Path) -> Path:
    return as_caffemodel(net, path, old=False)


@pytest.mark.parametrize(
    ("stride", "factors", "write"),
    [
        (32, (1, 1), as_checkpoint),
        (16, (1, 1), as_caffemodel),
        (8, (1, 1), as_checkpoint),
        (8, (0.01, 0.0001), as_new_caffemodel),
    ],
)
def test_fcn_says_what_theirs_says(
    stride: int, factors: Any, write: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    theirs = PytorchFCN(stride, factors).eval()
    path = write(theirs, tmp_path / "theirs.pth")
    for learn in (False, True):
        ours = FCN(K, stride, width=WIDTH, normalise="caffe", skip_factors=factors, learn_upsample=learn).eval()
        told = str(load_net(ours, path, strict=not learn))
        assert "has the names of Caffe's VGG-16 or FCN, or of pytorch-fcn, for model.net.normalise=caffe" in caplog.text
        assert "left out" not in told
        with torch.no_grad():
            expected = theirs(as_caffe_sees(IMAGE))
            torch.testing.assert_close(ours(IMAGE), expected, atol=1e-4 * float(expected.abs().max()), rtol=0)


def test_kernels_that_were_trained_are_kept_or_told(tmp_path: Path) -> None:
    theirs = PytorchFCN(32)
    theirs.upscore.weight.data *= 1.5
    path = as_checkpoint(theirs, tmp_path / "theirs.pth")
    assert "1 that this net lacks are left out (upscore32.weight)" in str(load_net(FCN(K, 32, width=WIDTH), path))
    ours = FCN(K, 32, width=WIDTH, learn_upsample=True)
    load_net(ours, path, strict=True)
    torch.testing.assert_close(ours.upscore32.weight[1, 0], 1.5 * bilinear_kernel(64))


@pytest.mark.parametrize("write", [as_checkpoint, as_caffemodel])
def test_their_backbone_is_taken_by_weights(
    write: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    theirs = PytorchFCN(8)
    path = write(theirs, tmp_path / "theirs.pth")
    with caplog.at_level("INFO"):
        ours = FCN(K, 8, width=WIDTH, normalise="caffe", weights=str(path))
    assert torch.equal(ours.backbone.get_submodule("features.28").weight, theirs.conv5_3.weight)
    assert torch.equal(ours.fc6.weight, theirs.fc6.weight)
    assert not ours.score_fr.weight.any()
    assert "has the names of Caffe's VGG-16" in caplog.text
    assert "26 tensors copied; " in caplog.text
    assert "are left out (fc6.weight, fc6.bias, fc7.weight and" in caplog.text
    other = DeconvNet(K, width=WIDTH, normalise="caffe", weights=str(path))
    assert torch.equal(other.encoder[4].conv5_3.bias, theirs.conv5_3.bias)


def test_caffes_vgg_with_fully_connected_layers_fills_convolutions(tmp_path: Path) -> None:
    layers = {name: tuple(layer.parameters()) for name, layer in convolutions().items()}
    fc6 = nn.Linear(LEVELS[-1] * 49, FC)
    layers |= {"fc6": tuple(fc6.parameters()), "fc7": tuple(nn.Linear(FC, FC).parameters())}
    path = tmp_path / "vgg.caffemodel"
    path.write_bytes(caffemodel(layers, old=True))
    ours = FCN(K, 8, width=WIDTH, weights=str(path))
    assert torch.equal(ours.fc6.weight.flatten(1), fc6.weight)


class AuthorsDeconvNet:
    """DeconvNet as its authors' file for inference has it: statistics of batch norm folded into scale and shift."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)

        def drawn(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        widths = {"fc6": (LEVELS[-1], FC, 7), "fc7": (FC, FC, 1)}
        up = {"fc6-deconv": (FC, LEVELS[-1], 7)}
        counts = ((2, 2), (4, 2), (8, 8, 4), (16, 16, 8), (16, 16, 16))
        before = LEVELS[-1]
        for level in range(5, 0, -1):
            for i, (inputs, outputs) in enumerate(pairwise((before, *counts[level - 1])), 1):
                up[f"deconv{level}_{i}"] = (inputs, outputs, 3)
            before = counts[level - 1][-1]
        self.layers: dict[str, tuple[Tensor, ...]] = {n: tuple(c.parameters()) for n, c in convolutions().items()}
        for name, (inputs, outputs, side) in widths.items():
            weight = drawn(outputs, inputs, side, side) / (side * inputs**0.5)
            self.layers[name] = (weight, drawn(outputs))
        for name, (inputs, outputs, side) in up.items():
            self.layers[name] = (drawn(inputs, outputs, side, side) / (side * inputs**0.5), drawn(outputs))
        for name, (_, bias) in list(self.layers.items()):
            norm = f"{name}-bn" if name == "fc6-deconv" else name.replace("conv", "bn").replace("fc", "bnfc")
            shape = (1, len(bias), 1, 1)
            self.layers[norm] = (1 + 0.1 * drawn(*shape), 0.1 * drawn(*shape))
        self.layers["seg-score-voc"] = (drawn(K, before, 1, 1), drawn(K))

    def __call__(self, x: Tensor) -> Tensor:
        def step(x: Tensor, name: str, norm: str, layer: Callable[..., Tensor], **options: int) -> Tensor:
            scale, shift = self.layers[norm]
            return F.relu(layer(x, *self.layers[name], **options) * scale + shift)

        switches = []
        for level, count in enumerate((2, 2, 3, 3, 3), 1):
            for i in range(1, count + 1):
                x = step(x, f"conv{level}_{i}", f"bn{level}_{i}", F.conv2d, padding=1)
            x, where = F.max_pool2d(x, 2, return_indices=True)
            switches.append(where)
        x = step(step(x, "fc6", "bnfc6", F.conv2d), "fc7", "bnfc7", F.conv2d)
        x = step(x, "fc6-deconv", "fc6-deconv-bn", F.conv_transpose2d)
        for level, count in zip((5, 4, 3, 2, 1), (3, 3, 3, 2, 2), strict=True):
            x = F.max_unpool2d(x, switches.pop(), 2)
            for i in range(1, count + 1):
                x = step(x, f"deconv{level}_{i}", f"debn{level}_{i}", F.conv_transpose2d, padding=1)
        return F.conv2d(x, *self.layers["seg-score-voc"])


@pytest.mark.parametrize("old", [True, False])
def test_deconvnet_says_what_its_authors_says(old: bool, tmp_path: Path) -> None:
    theirs = AuthorsDeconvNet()
    path = tmp_path / "deconvnet.caffemodel"
    path.write_bytes(caffemodel(theirs.layers, old))
    ours = DeconvNet(K, width=WIDTH, normalise="caffe").eval()
    load_net(ours, path, strict=True)
    image = torch.randint(256, (1, 3, 224, 224), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    with torch.no_grad():
        expected = theirs(as_caffe_sees(image))
        torch.testing.assert_close(ours(image), expected, atol=1e-4 * float(expected.abs().max()), rtol=0)


@pytest.mark.slow
def test_torchvisions_fcn_fills_the_backbone_of_a_pyramid(tmp_path: Path) -> None:
    net = torchvision.models.segmentation.fcn_resnet50(weights=None, weights_backbone=None, num_classes=K)
    path = tmp_path / "model_3.pth"
    torch.save({"model": net.state_dict(), "epoch": 3}, path)  # as torchvision's own scripts do
    ours = DeepFeaturePyramid(K, depth=0)
    told = str(load_net(ours, path))
    assert "318 tensors copied" in told
    assert "that this net lacks are left out (classifier.0.weight" in told
    again = DeepFeaturePyramid(K, depth=0, weights=str(path))
    for filled in (ours, again):
        for name, tensor in net.backbone.state_dict().items():
            assert torch.equal(filled.backbone.state_dict()[name], tensor), name


def test_damaged_files_of_caffe_are_one_line(tmp_path: Path) -> None:
    layers = {name: tuple(layer.parameters()) for name, layer in list(convolutions().items())[:2]}
    content = caffemodel(layers, old=False)
    path = tmp_path / "x.caffemodel"
    wrong = [content[:cut] for cut in (0, 1, 20, len(content) // 2, len(content) - 1)]
    wrong += [b"\xff" * 40, b"PK\x03\x04" * 9, field(100, field(7, field(7, field(1, 2**60)))), b"\x0b" + content]
    wrong += [field(100, field(1, b"a") + field(7, field(5, b"123")))]  # no whole number of floats
    net = FCN(K, 32, width=WIDTH)
    for part in wrong:
        path.write_bytes(part)
        with pytest.raises(UserError, match=r"x.caffemodel cannot be read as weights, it may be cut short") as error:
            load_net(net, path)
        assert len(str(error.value)) < 300
