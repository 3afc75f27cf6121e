"""Hypercolumns on VGG-11: classify-then-upsample (the form segmod has) against upsample-concatenate-classify.

    python benchmarks/hypercolumn_head.py [--rounds 3] [--threads 2]

Both forms have the same weights, keep freed memory as the commands do, and are timed in one process in the order
A B B A; the ratios are of the smallest CPU and wall-clock times, which other work on the machine disturbs least. Peak
memory is that of a fresh process that makes one training step on four images, above what it had once the net was built.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from segmod.ground.memory import keep_freed_memory
from segmod.measure import in_turns, peak_of, ratio_in_turns, timed
from segmod.nets.hypercolumn import Hypercolumn
from segmod.nets.ops import resize

SIDE = 224


def build() -> Hypercolumn:
    torch.manual_seed(0)
    net = Hypercolumn(21, "vgg11", [f"features.{i}" for i in (0, 3, 8, 13, 18)])
    net.standardise_by(torch.randn(net.channels), torch.rand(net.channels) + 0.5)
    return net


def direct_head(net: Hypercolumn, taps: list[Tensor]) -> Tensor:
    """The definition, with the classifier as 1x1 convolutions on the concatenated, standardised taps."""
    columns = torch.cat([resize(tap, (SIDE, SIDE), net.align_corners) for tap in taps], dim=1)
    columns = (columns - net.mean[:, None, None]) / (net.std[:, None, None] + 1e-5)
    hidden = F.relu(F.conv2d(columns, net.hidden.weight[:, :, None, None], net.hidden.bias))
    return F.conv2d(hidden, net.score.weight[:, :, None, None], net.score.bias)


def factored_head(net: Hypercolumn, taps: list[Tensor]) -> Tensor:
    return net._score_maps(taps, (SIDE, SIDE))


HEADS = {"direct": direct_head, "factored": factored_head}


def step(net: Hypercolumn, head: Callable[[Hypercolumn, list[Tensor]], Tensor], images: int) -> None:
    image = torch.randn(images, 3, SIDE, SIDE)
    mask = torch.randint(0, 21, (images, SIDE, SIDE))
    F.cross_entropy(head(net, net._taps(image)), mask).backward()
    net.zero_grad()


def four_images(name: str) -> Callable[[], None]:
    return partial(step, build(), HEADS[name], 4)


def squeezenet() -> Hypercolumn:
    """Hypercolumns on SqueezeNet, as conf/model/hypercolumn_squeezenet.yaml has them."""
    torch.manual_seed(0)
    fires = [f"features.{i}.{expand}" for i in (3, 4, 7, 9, 12) for expand in ("expand1x1", "expand3x3")]
    return Hypercolumn(21, "squeezenet1_0", ["features.0", *fires]).eval()


def forward(height: int, width: int) -> Callable[[], object]:
    """A forward pass of SqueezeNet's hypercolumns over an image."""
    net, image = squeezenet(), torch.randint(256, (1, 3, height, width), dtype=torch.uint8)
    return torch.inference_mode()(lambda: net(image))


def seconds(height: int, width: int) -> float:
    return min(cpu for _, cpu in timed(forward(height, width), torch.device("cpu"), 5, 2))


def mebibytes(height: int, width: int) -> float:
    return peak_of(forward, height, width) / 2**20


def growth() -> float:
    """Time a pixel of an image of 2000 x 1500 over that of one of 500 x 375."""
    return ratio_in_turns(forward(1500, 2000), forward(375, 500), 1) / 16


def step_ratio() -> float:
    net = build()
    return ratio_in_turns(lambda: step(net, factored_head, 1), lambda: step(net, direct_head, 1), 3)


def report(what: str, unit: str, direct: float, factored: float, goal: str) -> None:
    ratio = factored / direct
    print(f"{what:36} {direct:9.3f} {factored:9.3f} {unit:4} {ratio:7.3f} = 1/{1 / ratio:<5.1f} goal {goal}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    net = build()
    with torch.no_grad():
        taps = net._taps(torch.randn(1, 3, SIDE, SIDE))
        difference = float((factored_head(net, taps) - direct_head(net, taps)).abs().max())
        forward = in_turns({name: lambda h=head: h(net, taps) for name, head in HEADS.items()}, options.rounds)
    train = {name: (lambda h=head: step(net, h, 1)) for name, head in HEADS.items()}
    steps = in_turns(train, options.rounds)
    peaks = {name: peak_of(four_images, name) / 2**20 for name in HEADS}

    print(f"{'VGG-11, 224 x 224, ' + str(options.threads) + ' threads':36} {'direct':>9} {'factored':>9}      ratio")
    for position, clock in enumerate(("wall", "CPU")):
        pair = [forward[name][position] for name in HEADS]
        report(f"head forward, {clock}", "s", *pair, "1/15")
    for position, clock in enumerate(("wall", "CPU")):
        pair = [steps[name][position] for name in HEADS]
        report(f"training step with backbone, {clock}", "s", *pair, "1/3")
    report("peak memory, step on four images", "MiB", peaks["direct"], peaks["factored"], "1/3")
    print(f"largest difference of the outputs      {difference:.1e}")


if __name__ == "__main__":
    main()
