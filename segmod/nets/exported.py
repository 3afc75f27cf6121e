"""Files that `segmod-export` wrote, read back as nets: ONNX by onnxruntime, programs of `torch.export` by torch."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segmod.ground.errors import UserError, reason, require
from segmod.ground.files import open_file
from segmod.ground.palettes import Legend

Output = Literal["logits", "probabilities", "labels"]

FACTS = "segmod.json"
"""Name of what is known of a program, in its file."""

SMALLEST = 32
"""Pixels of the least side that exported nets take, unless they need more."""

_LONGEST = 2**20  # characters of all facts


class Exported(nn.Module):
    """A net in a file, behind the contract of nets: image (B, 3, H, W), RGB in 0..255 -> logits (B, K, H, W).

    Images are rounded to bytes, which the file takes. It computes on the CPU, whatever the image is on. Of a file that
    gives probabilities or labels, logits are the logarithms of these, so that their softmax is what the file gives.

    Args:
        path: The file, for messages.
        facts: What it says of itself, as `read_facts` gives it.
    """

    def __init__(self, path: Path, facts: Mapping[str, Any]) -> None:
        super().__init__()
        self.path = path
        self.num_classes = len(facts["classes"])
        self.output: Output = facts["output"]
        self.size = None if facts["size"] is None else tuple(facts["size"])
        self.least = int(facts["least"])

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, K, H, W) of an image (B, 3, H, W).

        Raises:
            UserError: The file does not take images of this size, or gives something else.
        """
        height, width = image.shape[2:]
        if self.size is not None and self.size != (height, width):
            raise UserError(
                f"{self.path} takes images of {self.size[0]} x {self.size[1]} alone, not {height} x {width}: "
                "score them at that size, inference=dense inference.size=N, or export without size="
            )
        if self.size is None and min(height, width) < self.least:
            raise UserError(f"{self.path} takes images from {self.least} pixels a side, not {height} x {width}")
        bytes_ = image.round().clamp(0, 255).to(torch.uint8) if image.is_floating_point() else image
        try:
            given = self.run(bytes_.cpu().contiguous()).to(image.device)
        except Exception as error:  # whatever a stranger's file can cause
            raise UserError(f"{self.path} cannot be run ({reason(error)}): export it again") from error
        shape = (len(image), *(() if self.output == "labels" else (self.num_classes,)), height, width)
        if given.shape != shape or (self.output == "labels" and int(given.max()) >= self.num_classes):
            raise UserError(f"{self.path} gives {tuple(given.shape)} where {shape} belongs: export it again")
        if self.output == "labels":
            given = F.one_hot(given.long(), self.num_classes).movedim(-1, 1)
        given = given.float()
        return given if self.output == "logits" else given.clamp_min(torch.finfo(given.dtype).tiny).log()

    def run(self, image: Tensor) -> Tensor:
        """What the file gives of an image, uint8 (B, 3, H, W) on the CPU."""
        raise NotImplementedError


class OnnxNet(Exported):
    """An ONNX file, run by onnxruntime on as many threads as torch has. No code and no other file is read for it."""

    def __init__(self, path: Path, facts: Mapping[str, Any]) -> None:
        super().__init__(path, facts)
        require_package("onnxruntime")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4  # what fails is raised, too
        try:
            self.session = onnxruntime.InferenceSession(_onnx(path)[0], options)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{path} cannot be run by onnxruntime ({reason(error)}): export it again") from error

    def run(self, image: Tensor) -> Tensor:
        """What the file gives of an image, uint8 (B, 3, H, W) on the CPU."""
        return torch.from_numpy(self.session.run(None, {"image": image.numpy()})[0])


class ProgramNet(Exported):
    """A program of `torch.export`. Reading one runs what its author put there: it holds pickles and formulas."""

    def __init__(self, path: Path, facts: Mapping[str, Any]) -> None:
        super().__init__(path, facts)
        try:
            self.program = torch.export.load(io.BytesIO(path.read_bytes())).module()
        except Exception as error:
            raise UserError(f"{path} cannot be read by torch.export ({reason(error)}): export it again") from error

    def run(self, image: Tensor) -> Tensor:
        """What the file gives of an image, uint8 (B, 3, H, W) on the CPU."""
        given: Tensor = self.program(image)
        return given

    def train(self, mode: bool = True) -> ProgramNet:
        """A program has the one mode it was exported in."""
        return self


KINDS: Mapping[str, type[Exported]] = {".onnx": OnnxNet, ".pt2": ProgramNet}
"""What reads a file, by its suffix."""


def read_facts(path: Path) -> dict[str, Any]:
    """What an exported file, or the ``config.json`` of a folder of weights, says of itself; nothing in it is run.

    Returns:
        At least ``run data classes palette output size least metrics config``, as `segmod-export` wrote them.

    Raises:
        UserError: It cannot be read, or was not written by ``segmod-export``.
    """
    try:
        facts = _READERS[path.suffix](path)
        Legend.from_plain(facts)
        size = facts.get("size")
        good = (
            isinstance(facts["classes"], list)
            and isinstance(facts["config"], dict)
            and isinstance(facts.get("metrics"), dict)
        )
        good = good and facts["output"] in ("logits", "probabilities", "labels") and int(facts["least"]) >= 0
        if not good or not (size is None or [type(side) for side in size] == [int, int]):
            raise ValueError("its facts are damaged")
        return facts
    except UserError:
        raise
    except Exception as error:  # whatever a damaged file can cause
        raise UserError(
            f"{path}: no whole file of segmod-export ({reason(error)}): export it again, or take another"
        ) from error


def _facts_of_onnx(path: Path) -> dict[str, Any]:
    props = _onnx(path)[1].metadata_props
    if sum(len(prop.value) for prop in props) > _LONGEST:
        raise ValueError(f"more than {_LONGEST} characters of metadata")
    return {prop.key: json.loads(prop.value) for prop in props}


def _facts_of_program(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        found = next((info for info in archive.infolist() if info.filename.endswith(f"/extra/{FACTS}")), None)
        if found is None:
            raise ValueError(f"it has no {FACTS}")
        with archive.open(found) as file:
            return _parsed(file.read(_LONGEST + 1))


def _facts_of_folder(path: Path) -> dict[str, Any]:
    with open_file(path) as file:
        return _parsed(file.read(_LONGEST + 1))


_READERS = {".onnx": _facts_of_onnx, ".pt2": _facts_of_program, ".json": _facts_of_folder}


def _parsed(text: bytes) -> dict[str, Any]:
    if len(text) > _LONGEST:
        raise ValueError(f"more than {_LONGEST} characters of facts")
    return dict(json.loads(text))


def _onnx(path: Path) -> tuple[bytes, Any]:
    """The content of an ONNX file and the model in it, which has all its weights in it.

    Raises:
        UserError: It names other files.
    """
    require_package("onnx")
    import onnx

    with open_file(path) as file:
        content = file.read()
    model = onnx.load_model_from_string(content)
    elsewhere = any(type(part).__name__ == "TensorProto" and part.external_data for part in _messages(model))
    require(not elsewhere, f"{path} has weights in other files, which is not read from anybody: export it again")
    return content, model


def _messages(message: Any) -> Any:
    """A protobuf message, and all messages in it."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for item in [value] if hasattr(value, "ListFields") else value:
                yield from _messages(item)


def require_package(name: str) -> None:
    """Check that what writes and runs ONNX files is installed.

    Raises:
        UserError: It is not; says what to install.
    """
    require(
        find_spec(name) is not None, f"{name} is not installed, which ONNX files need: pip install 'segmod[export]'"
    )
