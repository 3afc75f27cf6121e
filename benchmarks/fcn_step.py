"""A training step of FCN-8s at 500 x 375 against the step that common ports make of the same net.

    python benchmarks/fcn_step.py [--rounds 2] [--threads 2] [--size 375 500]

The reference upsamples with dense class x class transposed convolutions whose gradient is computed though nobody wants
it, takes the mean negative log-likelihood by hand (transpose, mask, gather), gives every layer the whole border of 100
pixels, and steps with unfused SGD. All variants
have the same weights and run in one process in the order A B C C B A; the ratios are of the smallest CPU and wall-clock
times, which other work on the machine disturbs least.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segmod.measure import in_turns, peak_of, ratio_in_turns
from segmod.nets.fcn import FCN
from segmod.nets.ops import BilinearUpsample, bilinear_kernel


class DenseUpsample(nn.ConvTranspose2d):
    """Bilinear kernels on the diagonal of a dense transposed convolution."""

    def __init__(self, channels: int, factor: int) -> None:
        super().__init__(channels, channels, 2 * factor, factor, bias=False)
        self.weight.data.zero_()
        for channel in range(channels):
            self.weight.data[channel, channel] = bilinear_kernel(2 * factor)


def handmade_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """Mean negative log-likelihood of the pixels that are not void, as ports without an ignore_index wrote it."""
    log_p = F.log_softmax(logits, dim=1).transpose(1, 2).transpose(2, 3).contiguous()
    wanted = mask != 255
    log_p = log_p[wanted.unsqueeze(-1).expand_as(log_p)].view(-1, logits.shape[1])
    return F.nll_loss(log_p, mask[wanted], reduction="sum") / wanted.sum()


def build(kind: str) -> nn.Module:
    torch.manual_seed(0)
    net = FCN(21, 8, padding="same" if kind == "same" else "border")
    for name, parameter in net.named_parameters():
        if name.startswith("score"):
            nn.init.normal_(parameter, std=0.01)
    if kind == "reference":
        net.backbone.get_submodule("features.0").padding = (100, 100)
        for name, pool in list(net.backbone.get_submodule("features").named_children()):
            if isinstance(pool, nn.MaxPool2d):
                net.backbone.get_submodule("features").add_module(name, nn.MaxPool2d(2, ceil_mode=True))
        for name, part in list(net.named_children()):
            if isinstance(part, BilinearUpsample):
                setattr(net, name, DenseUpsample(part.channels, part.factor))
    return net


def stepper(kind: str, net: nn.Module, image: Tensor, mask: Tensor) -> Callable[[], None]:
    weights = [p for name, p in net.named_parameters() if not name.startswith("upscore")]
    settings = {"lr": 1e-10, "momentum": 0.9, "weight_decay": 5e-4, "fused": kind != "reference"}
    optimizer = torch.optim.SGD(weights, **settings)
    loss = handmade_loss if kind == "reference" else nn.CrossEntropyLoss(ignore_index=255)

    def step() -> None:
        net.zero_grad()
        loss(net(image), mask).backward()
        optimizer.step()

    return step


def sample(height: int = 375, width: int = 500) -> tuple[Tensor, Tensor]:
    """An image of noise and its mask."""
    torch.manual_seed(0)
    image, mask = torch.randn(1, 3, height, width), torch.randint(0, 21, (1, height, width))
    mask[:, :4] = 255
    return image, mask


def fresh_step(kind: str) -> Callable[[], None]:
    return stepper(kind, build(kind).train(), *sample())


def forward_ratio() -> float:
    image, _ = sample()
    works = [torch.inference_mode()(partial(build(kind).eval(), image)) for kind in ("border", "reference")]
    return ratio_in_turns(*works, rounds=3)


def step_ratio() -> float:
    return ratio_in_turns(fresh_step("border"), fresh_step("reference"), rounds=2)


def memory_ratio() -> float:
    return peak_of(fresh_step, "border") / peak_of(fresh_step, "reference")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--size", type=int, nargs=2, default=(375, 500), metavar=("HEIGHT", "WIDTH"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    image, mask = sample(*options.size)
    nets = {kind: build(kind).eval() for kind in ("reference", "border", "same")}
    with torch.no_grad():
        expected = nets["reference"](image)
        difference = float((nets["border"](image) - expected).abs().max() / expected.abs().max())
    steps = {kind: stepper(kind, net.train(), image, mask) for kind, net in nets.items()}
    best = in_turns(steps, options.rounds)

    title = f"FCN-8s, {options.size[1]} x {options.size[0]}, {options.threads} threads"
    print(f"{title:34}  wall s  ratio   CPU s  ratio   goal")
    base = best["reference"]
    goals = {"reference": "", "border": "0.92", "same": "0.60"}
    for kind, (wall, cpu) in best.items():
        print(f"  {kind:32} {wall:7.2f} {wall / base[0]:6.3f} {cpu:7.2f} {cpu / base[1]:6.3f}   {goals[kind]}")
    print(f"largest relative difference of the outputs, border against reference: {difference:.1e}")


if __name__ == "__main__":
    main()
