"""Memory and time of `inference=sliding` against one pass over the whole image, for SqueezeNet's hypercolumns.

    python benchmarks/sliding.py [--sides 512 1024 2048] [--threads 1]

Peak memory is that of a fresh process above what it has once the net is built.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from hypercolumn_head import squeezenet

from segmod.ground.types import Predictor
from segmod.inference.dense import DensePredictor
from segmod.inference.sliding import SlidingPredictor
from segmod.measure import peak_of, random_batch, timed

PREDICTORS: dict[str, Predictor] = {"dense": DensePredictor(), "sliding": SlidingPredictor()}


def score(kind: str, side: int) -> Callable[[], object]:
    net, batch = squeezenet(), random_batch(1, (side, side), 21)
    return torch.inference_mode()(lambda: PREDICTORS[kind](net, batch))


def beyond_result(kind: str, side: int) -> float:
    """Peak memory in MiB, less that of the probabilities."""
    return (peak_of(score, kind, side) - 4 * 21 * side**2) / 2**20


def growth() -> float:
    """Peak memory but for the result, at 2048 x 2048 over that at 1024 x 1024."""
    return beyond_result("sliding", 2048) / beyond_result("sliding", 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[512, 1024, 2048])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print("side     result MiB | beyond it MiB, CPU s: dense | sliding")
    for side in options.sides:
        line = f"{side:5} {4 * 21 * side**2 / 2**20:13.0f} |"
        for kind in PREDICTORS:
            seconds = min(cpu for _, cpu in timed(score(kind, side), torch.device("cpu"), 1, 1))
            line += f" {beyond_result(kind, side):8.0f} {seconds:8.2f} |"
        print(line)


if __name__ == "__main__":
    main()
