"""What each depth of the feature pyramid costs, beside torchvision's fcn_resnet50.

    python benchmarks/pyramid_depth.py [--size 512] [--batch 3] [--timed 256 1] [--only "depth 0" "depth 5"]
        [--rounds 2] [--threads 1]

Operations and the tensors kept for the backward pass are counted on tensors without memory, so at the paper's size on
any machine. Times are taken at the size and batch of ``--timed``, all variants in one process in the order A B C C B A;
the ratios are of the smallest CPU times, which other work on the machine disturbs least.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet50
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.segmentation.fcn import FCN, FCNHead

from segmod.measure import flops, in_turns, ratio_in_turns, saved_bytes
from segmod.nets.pyramid import DeepFeaturePyramid

PAPER_TIME = (0.050, 0.059, 0.063, 0.086, 0.095, 0.098)  # s of a test pass, Chen et al., Table 1
PAPER_MEMORY = (3275, 3349, 3609, 3994, 4459, 4677)  # MB of a training step


class Torchvision(nn.Module):
    """fcn_resnet50 without its auxiliary head; ``dilated`` as torchvision ships it, at stride 8 in place of 32."""

    def __init__(self, dilated: bool) -> None:
        super().__init__()
        trunk = resnet50(replace_stride_with_dilation=[False, dilated, dilated])
        self.net = FCN(IntermediateLayerGetter(trunk, {"layer4": "out"}), FCNHead(2048, 21))

    def forward(self, image: Tensor) -> Tensor:  # noqa: D102
        logits: Tensor = self.net(image)["out"]
        return logits


def variants() -> dict[str, Callable[[], nn.Module]]:
    made: dict[str, Callable[[], nn.Module]] = {}
    for depth in range(6):
        made[f"depth {depth}"] = lambda depth=depth: DeepFeaturePyramid(21, depth)  # type: ignore[misc]
    for depth in range(6):
        made[f"depth {depth}, checkpointing"] = lambda depth=depth: DeepFeaturePyramid(21, depth, checkpointing=True)  # type: ignore[misc]
    made["fcn_resnet50, stride 32"] = lambda: Torchvision(dilated=False)
    made["fcn_resnet50, dilated"] = lambda: Torchvision(dilated=True)
    return made


def counts(make: Callable[[], nn.Module], batch: int, size: int) -> tuple[int, int]:
    """Operations of a test pass, and bytes kept by a training pass, parameters left out."""
    with torch.device("meta"):
        net, image = make().train(), torch.empty(batch, 3, size, size)
        mask = torch.empty(batch, size, size, dtype=torch.int64)
        kept = saved_bytes(lambda: F.cross_entropy(net(image), mask, ignore_index=255), net)
        with torch.no_grad():
            net.eval()
            operations = flops(lambda: net(image))
    return operations, kept


def times(makers: dict[str, Callable[[], nn.Module]], size: int, batch: int, rounds: int) -> dict[str, list[float]]:
    """Smallest CPU seconds of a training step (forward and backward) and of a test pass."""
    image, mask = torch.randn(batch, 3, size, size), torch.randint(21, (batch, size, size))
    nets = {kind: make() for kind, make in makers.items()}

    def train(net: nn.Module) -> None:
        net.train().zero_grad()
        F.cross_entropy(net(image), mask).backward()  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def test(net: nn.Module) -> None:
        net.eval()(image)

    works = {f"{work.__name__} {kind}": partial(work, net) for kind, net in nets.items() for work in (train, test)}
    best = in_turns(works, rounds)
    return {kind: [best[f"train {kind}"][1], best[f"test {kind}"][1]] for kind in nets}


def excess(size: int = 512) -> float:
    """How much longer depth 5 takes than depth 0, over how many more operations it has."""
    nets, image = [DeepFeaturePyramid(21, depth).eval() for depth in (5, 0)], torch.randn(1, 3, size, size)
    works = [torch.inference_mode()(partial(net, image)) for net in nets]
    deep, plain = (flops(work) for work in works)
    return ratio_in_turns(*works, rounds=4) / (deep / plain)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--batch", type=int, default=3)
    parser.add_argument("--timed", type=int, nargs=2, default=(256, 1), metavar=("SIZE", "BATCH"))
    parser.add_argument("--only", nargs="*", metavar="VARIANT", help="time these alone, the first as the reference")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    makers = variants()
    counted = {kind: counts(make, options.batch, options.size) for kind, make in makers.items()}
    size, batch = options.timed
    chosen = {kind: makers[kind] for kind in options.only or makers}
    timed = times(chosen, size, batch, options.rounds)
    plain, step = counted["depth 0"], next(iter(timed.values()))
    print(f"counted: batch {options.batch} of {options.size} x {options.size}; paper: of Chen et al., GTX 1060")
    print(f"timed: batch {batch} of {size} x {size}, {options.threads} threads, CPU seconds\n")
    print(f"{'':26}  GFLOP  ratio  kept MiB   more  | train s  ratio  test s  ratio | paper: more  time ratio")
    for kind, (operations, kept) in counted.items():
        line = f"{kind:26} {operations / 1e9:6.1f} {operations / plain[0]:6.3f} {kept / 2**20:9.0f} "
        line += f"{(kept - plain[1]) / 2**20:+6.0f}  |"
        if kind in timed:
            train, test = timed[kind]
            line += f" {train:7.2f} {train / step[0]:6.3f} {test:7.3f} {test / step[1]:6.3f} |"
        if kind.removeprefix("depth ").isdigit():
            depth = int(kind.removeprefix("depth "))
            line += f" {PAPER_MEMORY[depth] - PAPER_MEMORY[0]:+11d} {PAPER_TIME[depth] / PAPER_TIME[0]:11.2f}"
        print(line)


if __name__ == "__main__":
    main()
