"""onnxruntime against torch, eager and compiled, on one CPU thread: time of an image, for each net as its paper has it.

The ways take turns, and the ratios are within a run: to torch's eager mode, in the median of the rounds. Weights are
random, which costs the same. Beside them: how far the file is from the net, in its largest logit, and its size.

    python benchmarks/export.py --models tiny fcn8s deconvnet --size 320 --rounds 5
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor, nn

from segmod.ground.palettes import Legend
from segmod.ground.printing import print_table
from segmod.nets.exported import OnnxNet
from segmod.nets.exporting import as_onnx, as_program, onnx_bytes
from segmod.runs.instantiate import untrained_net

MODELS = (
    "tiny", "fcn32s", "fcn16s", "fcn8s", "fcn8s_at_once", "deconvnet", "hypercolumn_vgg11", "hypercolumn_squeezenet",
    "dfp_resnet50", "single_skip", "boxwise_inceptionv3", "torchvision_segmentation",
)  # fmt: skip
FIXED = {"single_skip": 224, "boxwise_inceptionv3": 555}  # these take images of one size
CLASSES = tuple(f"class {k}" for k in range(21))


def ways(net: nn.Module, size: int, fixed: bool, folder: Path, compiled: bool) -> dict[str, Callable[[Tensor], Tensor]]:
    """The net in each way, and as a file in a folder."""
    program, least = as_program(net, size=(size, size) if fixed else None)
    facts = {**Legend("x", CLASSES).as_plain(), "output": "logits", "size": None, "least": least}
    path = folder / "net.onnx"
    path.write_bytes(onnx_bytes(as_onnx(program, "logits"), facts))
    found: dict[str, Callable[[Tensor], Tensor]] = {"eager": net, "onnxruntime": OnnxNet(path, facts)}
    return found | ({"compiled": torch.compile(net)} if compiled else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--size", type=int, default=320, help="side of the images, where the net takes any")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compiled", action="store_true", help="torch.compile, too, which needs a C++ compiler")
    given = parser.parse_args()
    torch.set_num_threads(1)
    lines = [["net", "size", "eager s", "onnxruntime", *(["compiled"] if given.compiled else []), "difference", "MB"]]
    for model in given.models:
        torch.manual_seed(0)
        net = untrained_net(model).eval().requires_grad_(False)
        for parameter in net.parameters():  # score layers start at zero
            if parameter.dim() > 1 and not parameter.any():
                nn.init.normal_(parameter, std=0.1)
        size = FIXED.get(model, given.size)
        image = torch.randint(256, (1, 3, size, size), dtype=torch.uint8)
        with tempfile.TemporaryDirectory() as folder, torch.inference_mode(False), torch.no_grad():
            nets = ways(net, size, model in FIXED, Path(folder), given.compiled)
            megabytes = (Path(folder) / "net.onnx").stat().st_size / 1e6
            expected = nets["eager"](image)
            difference = float((nets["onnxruntime"](image) - expected).abs().max() / expected.abs().max())
            seconds: dict[str, list[float]] = {name: [] for name in nets}
            for _ in range(given.rounds + 1):
                for name, way in nets.items():
                    start = time.perf_counter()
                    way(image)
                    seconds[name].append(time.perf_counter() - start)
        # the first round warms up
        ratios = [
            f"{statistics.median(a / b for a, b in zip(taken[1:], seconds['eager'][1:], strict=True)):.2f}"
            for name, taken in seconds.items()
            if name != "eager"
        ]
        eager = statistics.median(seconds["eager"][1:])
        lines.append([model, str(size), f"{eager:.3f}", *ratios, f"{difference:.1e}", f"{megabytes:.1f}"])
        print(" ".join(lines[-1]), flush=True)
    print_table("time of an image, ratios to torch eager, one thread", lines)


if __name__ == "__main__":
    main()
