"""Weights of others: Caffe's files, and the names that pytorch-fcn and the authors' FCN and DeconvNet give layers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segmod.ground.files import open_file
from segmod.nets.ops import bilinear_kernel

VGG16_CONVOLUTIONS = {
    "conv1_1": "features.0", "conv1_2": "features.2", "conv2_1": "features.5", "conv2_2": "features.7",
    "conv3_1": "features.10", "conv3_2": "features.12", "conv3_3": "features.14", "conv4_1": "features.17",
    "conv4_2": "features.19", "conv4_3": "features.21", "conv5_1": "features.24", "conv5_2": "features.26",
    "conv5_3": "features.28",
}  # fmt: skip
"""VGG-16's convolutions: Caffe's names, and torchvision's."""

_EPS = 1e-5  # of torch's batch norm
# layers of the authors' DeconvNet, and where segmod has them; a group that is a number counts levels from 1
_DECONVNET = {
    r"conv(\d)_(\d)": "encoder.{0}.conv{1}_{2}",
    r"bn(\d)_(\d)": "encoder.{0}.bn_conv{1}_{2}",
    r"deconv(\d)_(\d)": "decoder.{0}.deconv{1}_{2}",
    r"debn(\d)_(\d)": "decoder.{0}.bn_deconv{1}_{2}",
    r"fc([67])": "bottleneck.fc{1}",
    r"bnfc([67])": "bottleneck.bn_fc{1}",
    r"fc6-deconv": "bottleneck.deconv_fc6",
    r"fc6-deconv-bn": "bottleneck.bn_deconv_fc6",
    r"seg-score(-voc)?": "score",
}


def as_ours(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Weights under segmod's names, and whose names they had; empty where these are nobody's that are known here.

    Of FCN, kernels that upsample bilinearly are left out, for segmod's are made, not stored; others lose what is off
    the diagonal if that is 0. Of the authors' DeconvNet, the file for inference is meant, in which the statistics of
    batch norm are part of its scale and shift.
    """
    if "conv1_1.weight" not in state:
        return dict(state), ""
    if "deconv1_1.weight" in state:
        return dict(_of_deconvnet(state)), "the authors' DeconvNet, for model.net.normalise=caffe"
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        layer, _, part = name.replace("-", "_").rpartition(".")
        layer = "upscore32" if layer == "upscore" else layer
        if layer in VGG16_CONVOLUTIONS:
            layer = f"backbone.{VGG16_CONVOLUTIONS[layer]}"
        elif layer.startswith("upscore") and tensor.dim() == 4 and tensor.shape[0] == tensor.shape[1]:
            kernels = tensor.diagonal().permute(2, 0, 1)[:, None]  # (K, 1, k, k)
            if torch.count_nonzero(kernels) == torch.count_nonzero(tensor):
                tensor = kernels
            if torch.allclose(tensor, bilinear_kernel(tensor.shape[-1]).expand_as(tensor), atol=1e-4):
                continue
        found[f"{layer}.{part}"] = tensor
    return found, "Caffe's VGG-16 or FCN, or of pytorch-fcn, for model.net.normalise=caffe"


def _of_deconvnet(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in state.items():
        layer, _, part = name.rpartition(".")
        matches = ((re.fullmatch(pattern, layer), ours) for pattern, ours in _DECONVNET.items())
        match, ours = next(((match, ours) for match, ours in matches if match), (None, layer))
        if match is not None:
            level = int(match[1]) - 1 if match.lastindex and match[1].isdigit() else 0
            ours = ours.format(level, *match.groups())
        if ".bn_" not in ours:
            yield f"{ours}.{part}", tensor
            continue
        yield f"{ours}.{part}", tensor.flatten()
        if part == "weight":  # batch norm that changes nothing: variance 1 with what torch adds to it
            yield f"{ours}.running_mean", torch.zeros(tensor.numel())
            yield f"{ours}.running_var", torch.full((tensor.numel(),), 1 - _EPS)
            yield f"{ours}.num_batches_tracked", torch.tensor(0)


# -- Caffe's files: messages of protobuf; its package would take several times their size in memory --------------------

# numbers of the fields in caffe.proto: NetParameter, its layers of both versions, and their arrays
_LAYERS = {2: (4, 6), 100: (1, 7)}  # V1LayerParameter and LayerParameter: of each name and blobs
_DATA, _DOUBLE_DATA, _SHAPE = 5, 8, 7  # of BlobProto; before there was a shape it was num, channels, height and width
_OLD_SHAPE = (1, 2, 3, 4)


def read_caffemodel(path: Path) -> dict[str, Tensor]:
    """The arrays in a file of Caffe: ``<layer>.weight`` the first of each layer, ``<layer>.bias`` the second.

    Raises:
        OSError: It cannot be read.
        ValueError: It is damaged, or something else.
    """
    with open_file(path) as file:
        content = memoryview(file.read())
    state: dict[str, Tensor] = {}
    for number, layer in _fields(content):
        if number in _LAYERS:
            state |= _layer(layer, *_LAYERS[number])
    if not state:
        raise ValueError("no layer of Caffe is in it")
    return state


def _layer(message: memoryview, name_number: int, blob_number: int) -> dict[str, Tensor]:
    name, blobs = "", []
    for number, value in _fields(message):
        if number == name_number:
            name = bytes(value).decode()
        elif number == blob_number:
            blobs.append(_blob(value))
    parts = ("weight", "bias", *(f"blob{i}" for i in range(2, len(blobs))))
    return {f"{name}.{part}": blob for part, blob in zip(parts, blobs, strict=False)}


def _blob(message: memoryview) -> Tensor:
    """An array; of those of old files, which all have four dimensions, biases and matrices get their own again."""
    shape: list[int] | None = None
    old = dict.fromkeys(_OLD_SHAPE, 1)
    data = np.zeros(0, np.float32)
    for number, value in _fields(message):
        if number in (_DATA, _DOUBLE_DATA):
            data = np.frombuffer(value, "<f4" if number == _DATA else "<f8").astype(np.float32)  # a copy
        elif number == _SHAPE:
            shape = [dim for field, dims in _fields(value) for dim in _varints(dims) if field == 1]
        elif number in old:
            old[number] = value
    if shape is None:
        shape = [*old.values()]
        shape = shape[3:] if shape[:3] == [1, 1, 1] else shape[2:] if shape[:2] == [1, 1] else shape
    if math.prod(shape) != data.size:
        raise ValueError(f"{data.size} numbers for an array of {shape}")
    return torch.from_numpy(data).view(shape)


def _fields(message: memoryview) -> Iterator[tuple[int, Any]]:
    """Number and value of each field of a message: an int, or the bytes of what is longer."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield key >> 3, value
            continue
        if kind == 2:
            size, at = _varint(message, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError("it is no message of protobuf")
        if size > len(message) - at:
            raise ValueError("it is cut short")
        yield key >> 3, message[at : at + size]
        at += size


def _varints(value: int | memoryview) -> Iterator[int]:
    """A number, or several that are packed."""
    if isinstance(value, int):
        yield value
        return
    at = 0
    while at < len(value):
        number, at = _varint(value, at)
        yield number


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    number = 0
    for i in range(10):
        if at + i >= len(message):
            break
        byte = message[at + i]
        number |= (byte & 127) << (7 * i)
        if byte < 128:
            return number, at + i + 1
    raise ValueError("it is cut short")
