"""What docs/performance.md claims, measured again in one run: ``make bench``.

    python benchmarks/table.py [--only WORDS]

Each row is measured in a process of its own, with one thread. Ratios are medians of CPU times taken in turns (A B B A),
so that other work on the machine falls on both; seconds are the smallest CPU times. The load is that of the machine, of
the last minute, once the row is measured.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import NamedTuple

import fcn_step
import hypercolumn_head
import labels
import pyramid_depth
import sliding
import torch

from segmod.ground.memory import keep_freed_memory


class Row(NamedTuple):
    """A work, what its number is compared with or counted in, the number to stay below, and what measures it."""

    work: str
    anchor: str
    goal: float
    measure: Callable[[], float]


# To add a row, write a function of a script here that returns its number.
ROWS = [
    Row("hypercolumns on SqueezeNet, 500 x 375", "CPU seconds", 0.45, partial(hypercolumn_head.seconds, 375, 500)),
    Row("the same, 1000 x 750", "CPU seconds", 1.7, partial(hypercolumn_head.seconds, 750, 1000)),
    Row("the same, a pixel of 2000 x 1500", "a pixel of 500 x 375", 1.1, hypercolumn_head.growth),
    Row("the same, 500 x 375, peak memory", "MiB", 140, partial(hypercolumn_head.mebibytes, 375, 500)),
    Row("the same, 1000 x 750, peak memory", "MiB", 530, partial(hypercolumn_head.mebibytes, 750, 1000)),
    Row("hypercolumns on VGG-11, training step", "concatenated taps", 0.20, hypercolumn_head.step_ratio),
    Row("FCN-8s, 500 x 375, forward", "common port", 0.85, fcn_step.forward_ratio),
    Row("FCN-8s, training step", "common port", 0.85, fcn_step.step_ratio),
    Row("FCN-8s, training step, peak memory", "common port", 0.85, fcn_step.memory_ratio),
    Row("pyramid, depth 5 over depth 0, forward", "their FLOPs", 1.03, pyramid_depth.excess),
    Row("labels and counts, 500 x 375 x 21", "CPU milliseconds", 8, labels.milliseconds),
    Row("sliding windows, memory beside the result", "of a quarter of the image", 1.2, sliding.growth),
]


def alone(measure: Callable[[], float]) -> float:
    torch.set_num_threads(1)
    keep_freed_memory()
    return measure()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="rows whose work has these words in it")
    only = parser.parse_args().only
    print(f"| {'work':42} | {'anchor':26} |    now |   goal | load |\n|---|---|---|---|---|")
    for row in ROWS:
        if only in row.work:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                now = pool.submit(alone, row.measure).result()
            load = os.getloadavg()[0]
            print(f"| {row.work:42} | {row.anchor:26} | {now:6.3g} | {row.goal:6.3g} | {load:4.1f} |", flush=True)


if __name__ == "__main__":
    main()
