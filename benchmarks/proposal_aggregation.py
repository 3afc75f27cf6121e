"""Scoring by proposals: batches of crops on one canvas (the form segmod has) against single crops, all maps kept.

    python benchmarks/proposal_aggregation.py [--net small] [--rounds 3] [--threads 1]

An image of 500 x 375 with random boxes, and a net of random weights: a small one of stride 8, or a narrow DeconvNet.
All forms have the same net and boxes, keep freed memory as the commands do, and are timed in one process in the order
A B C C B A; the ratios are of the smallest CPU and wall-clock times, which other work on the machine disturbs least.
Peak memory is that of a fresh process that scores one image, above what it had once the net was built.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from segmod.ground.memory import keep_freed_memory
from segmod.ground.types import Batch
from segmod.inference.proposals import ProposalPredictor, probabilities_of
from segmod.measure import in_turns, peak_of
from segmod.nets.deconvnet import DeconvNet
from segmod.nets.ops import resize

HEIGHT, WIDTH, SIZE, BATCH = 375, 500, 224, 10


class RandomBoxes:
    """So many boxes, with sides of 100 to 370 pixels."""

    def __init__(self, count: int) -> None:
        random = np.random.default_rng(0)
        sides = random.uniform(100, (370, 300), (count, 2))
        corners = random.uniform(0, 1, (count, 2)) * ((WIDTH, HEIGHT) - sides)
        self.boxes = np.column_stack([corners, corners + sides, random.uniform(0, 1, count)]).astype(np.float32)

    def __call__(
        self, name: str, image: NDArray[np.uint8], mask: NDArray[np.uint8] | None = None
    ) -> NDArray[np.float32]:
        """The same boxes for every image."""
        return self.boxes


class Small(nn.Module):
    """Three convolutions to stride 8, and bilinear back to the size of the image."""

    num_classes = 21

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 4, stride=4)
        self.second = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.score = nn.Conv2d(32, 21, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, 21, H, W) of an image (B, 3, H, W)."""
        return resize(
            self.score(self.second(self.first(image / 255).relu()).relu()), (image.shape[-2], image.shape[-1])
        )


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    net = (Small() if name == "small" else DeconvNet(21, None, 1 / 16)).eval()
    for layer in net.modules():  # weights of 0.01 would die away on the way through a narrow net
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(layer.weight)
    return net


def image_batch() -> Batch:
    picture = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    mask = torch.full((1, HEIGHT, WIDTH), 255, dtype=torch.uint8)
    return {
        "image": torch.from_numpy(picture).permute(2, 0, 1)[None],
        "mask": mask,
        "name": ["x"],
        "index": torch.zeros(1),
    }


def predictor(count: int, batch_size: int = BATCH) -> ProposalPredictor:
    return ProposalPredictor(RandomBoxes(count), max_proposals=None, batch_size=batch_size)


@torch.no_grad()
def loop(net: nn.Module, batch: Batch, count: int) -> Tensor:
    """One crop at a time; every box gets a map of the image's size, and the maps are put together at the end."""
    padded = F.pad(batch["image"].float(), (WIDTH, WIDTH, HEIGHT, HEIGHT))
    boxes = predictor(count).select(RandomBoxes(count).boxes, HEIGHT, WIDTH)
    maps = [torch.zeros(1, 21, HEIGHT, WIDTH)]
    for x1, y1, x2, y2 in boxes.tolist():
        crop = padded[..., y1 + HEIGHT : y2 + HEIGHT, x1 + WIDTH : x2 + WIDTH]
        scores = resize(net(resize(crop, (SIZE, SIZE))), (y2 - y1, x2 - x1))
        own = torch.zeros(1, 21, HEIGHT, WIDTH)
        top, left, bottom, right = max(y1, 0), max(x1, 0), min(y2, HEIGHT), min(x2, WIDTH)
        own[..., top:bottom, left:right] = scores[..., top - y1 : bottom - y1, left - x1 : right - x1]
        maps.append(own)
    return probabilities_of(torch.cat(maps).amax(0, keepdim=True))


FORMS: dict[str, Callable[[nn.Module, Batch, int], Tensor]] = {
    "loop": loop,
    "canvas, single crops": lambda net, batch, count: predictor(count, 1)(net, batch),
    "canvas, batches": lambda net, batch, count: predictor(count)(net, batch),
}


def one_image(name: str, count: int, kind: str) -> Callable[[], Tensor]:
    return partial(FORMS[name], build(kind), image_batch(), count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--net", choices=["small", "deconvnet"], default="small", help="deconvnet: of width 1/16")
    parser.add_argument("--counts", type=int, nargs="+", default=[10, 50, 200, 500], help="proposals, for the memory")
    parser.add_argument("--loop-counts", type=int, nargs="+", default=[10, 50, 100], help="the same, for the loop")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    net, batch = build(options.net), image_batch()
    answers = {name: form(net, batch, 50) for name, form in FORMS.items()}
    canvas = predictor(50).logits(net, batch)
    times = in_turns({name: (lambda f=form: f(net, batch, 50)) for name, form in FORMS.items()}, options.rounds)

    chosen = len(predictor(50).select(RandomBoxes(50).boxes, HEIGHT, WIDTH))
    print(f"{chosen} proposals, {options.net} net, {options.threads} threads; scores up to", end=" ")
    print(f"{float(canvas.abs().max()):.1f}")
    for position, clock in enumerate(("wall", "CPU")):
        first = times["loop"][position]
        for name, pair in times.items():
            goal = "goal 0.6" if name == "canvas, batches" else ""
            print(f"{clock:5}{name:24}{pair[position]:8.3f} s {pair[position] / first:7.3f} {goal}")
    for name, answer in answers.items():
        difference = float((answer - answers["loop"]).abs().max())
        print(f"largest difference from the loop, {name:24}{difference:.1e}")
    for name, counts in (("canvas, batches", options.counts), ("loop", options.loop_counts)):
        for count in counts:
            mib = peak_of(one_image, name, count, options.net) / 2**20
            print(f"peak memory, {name:16} {count:4} proposals {mib:8.0f} MiB")


if __name__ == "__main__":
    main()
