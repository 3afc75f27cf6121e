"""A trained net as a file that runs without segmod: a program of `torch.export`, and ONNX made of it."""

from __future__ import annotations

import io
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from segmod.ground.errors import UserError, reason
from segmod.ground.torch_private import free_sizes, sizes_asserted
from segmod.ground.types import labels_of
from segmod.nets.exported import FACTS, SMALLEST, Output, require_package

Size = tuple[int, int]

MOST = 4096
"""Sizes are tried up to this many pixels a side."""

_TRIED = (*range(SMALLEST, 100), 128, 224, 225, 256, 257, 320, 321, 375, 500, 511, 512, 513, 1000, 1024, 2049, MOST)


class Outlet(nn.Module):
    """A net with the output that is wanted of it.

    Args:
        net: Image (B, 3, H, W) -> logits (B, K, H, W).
        output: ``logits``; ``probabilities``, their softmax; or ``labels``, uint8 (B, H, W).
    """

    def __init__(self, net: nn.Module, output: Output = "logits") -> None:
        super().__init__()
        self.net = net
        self.output = output

    def forward(self, image: Tensor) -> Tensor:
        """What is wanted of an image (B, 3, H, W)."""
        logits: Tensor = self.net(image)
        if self.output == "labels":
            return labels_of(logits).to(torch.uint8)
        return logits.softmax(1) if self.output == "probabilities" else logits


def as_program(net: nn.Module, output: Output = "logits", size: Size | None = None) -> tuple[ExportedProgram, int]:
    """A net as a program for uint8 images (B, 3, H, W) of any number.

    Args:
        net: In evaluation mode, on the CPU.
        output: See `Outlet`.
        size: (H, W) of the images; None for any from the least that the net takes.

    Returns:
        The program, and the least side in pixels of the images that it takes.

    Raises:
        UserError: It cannot be exported, or not for images of any size.
    """
    least = max(SMALLEST, int(getattr(net, "min_size", 1)))
    # of any size: one that is no multiple of a stride, nor square, so that nothing is taken for equal by accident
    image = torch.zeros(2, 3, *(size or (least + 65, least + 99)), dtype=torch.uint8)
    free = {2: Dim.DYNAMIC(min=least, max=2**14), 3: Dim.DYNAMIC(min=least, max=2**14)} if size is None else {}
    try:
        with free_sizes(), _quietly():
            program = torch.export.export(
                Outlet(net, output).eval(),
                (image,),
                dynamic_shapes=({0: Dim.DYNAMIC(min=1, max=2**14), **free},),
                prefer_deferred_runtime_asserts_over_guards=True,
            )
    except UserError:
        raise
    except Exception as error:  # whatever the net does that cannot be traced
        what = f"{type(net).__name__} cannot be exported"
        if size is not None:
            raise UserError(f"{what} ({reason(error)}): wrap or change the net") from error
        raise UserError(f"{what} for images of any size ({reason(error)}): give one, such as size=[320,320]") from error
    if size is not None:
        return program, min(size)
    # What it assumes of sizes a program asserts, but ONNX has no assertions: it would be wrong without a word.
    holds = sizes_asserted(program)
    tried = [side for side in _TRIED if side >= least]
    square = [side for side in tried if holds((side, side))]
    good = [side for side in square if holds((side, square[0])) and holds((square[0], side))]
    if MOST not in good:
        raise UserError(
            f"{type(net).__name__} takes images of one size once it is exported, for it does another thing with those "
            f"of more than {max(good, default=0)} pixels: give the size that it was trained on, such as size=[224,224]"
        )
    return program, max([least, *(side + 1 for side in tried if side not in good)])


def as_onnx(program: ExportedProgram, output: Output, precision: Literal["fp32", "fp16"] = "fp32") -> Any:
    """The ONNX model of a program, an ``onnx.ModelProto``; fp16 rounds its weights and computes in half precision.

    Raises:
        UserError: ONNX has no form for what the net does.
    """
    require_package("onnxscript")
    with _quietly(), _told("this net cannot be made ONNX", "give size=[H,W], or take format=pt2"):
        converted = torch.onnx.export(
            program, dynamo=True, verbose=False, input_names=["image"], output_names=[output], external_data=False
        )
        assert converted is not None
        model = converted.model_proto
        if precision == "fp16":
            from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

            blocked = [*DEFAULT_OP_BLOCK_LIST, "Resize"]
            model = convert_float_to_float16(model, keep_io_types=True, op_block_list=blocked)
    del model.graph.value_info[:]  # sizes as formulas of sizes
    for value in (*model.graph.input, *model.graph.output):
        dims = value.type.tensor_type.shape.dim
        for name, dim in zip(("batch", "height", "width"), (dims[0], *dims[-2:]), strict=True):
            if not dim.HasField("dim_value"):
                dim.dim_param = name
    return model


def quantised(model: Any, images: Sequence[Tensor]) -> Any:
    """An ONNX model with convolutions and products in 8-bit integers, their ranges taken from images.

    Args:
        model: In float32.
        images: uint8 (1, 3, H, W) each.

    Raises:
        UserError: onnxruntime cannot do that with this model, or not with images of these sizes.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Images(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rest = iter(images)

        def get_next(self) -> Any:
            image = next(self.rest, None)
            return None if image is None else {"image": image.numpy()}

    told = _told("precision=int8: this net cannot be quantised", "leave size= out, or take fp32 or fp16")
    with tempfile.TemporaryDirectory() as folder, _quietly(), told:
        path = Path(folder) / "model.onnx"
        quantize_static(
            model,
            path,
            Images(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "ConvTranspose", "Gemm", "MatMul"],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return onnx.load(path)


def onnx_bytes(model: Any, facts: Mapping[str, Any]) -> bytes:
    """The content of a file: a model with what is known of it, each fact as JSON under its name."""
    del model.metadata_props[:]
    for name, fact in facts.items():
        prop = model.metadata_props.add()
        prop.key, prop.value = name, json.dumps(fact)
    content: bytes = model.SerializeToString()
    return content


def program_bytes(program: ExportedProgram, facts: Mapping[str, Any]) -> bytes:
    """The content of a file: a program with what is known of it."""
    file = io.BytesIO()
    with _quietly():
        torch.export.save(program, file, extra_files={FACTS: json.dumps(facts)})
    return file.getvalue()


@contextmanager
def _told(what: str, remedy: str) -> Iterator[None]:
    """Make a line of whatever an exporter raises."""
    try:
        yield
    except Exception as error:
        raise UserError(f"{what} ({reason(error)}): {remedy}") from error


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the exporters' words on what they do, which are for their makers."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
