"""What the benchmarks share: work timed in alternating order, and the memory of this process."""

import time
from collections.abc import Callable
from pathlib import Path


def alternate(work: dict[str, Callable[[], object]], rounds: int) -> dict[str, tuple[float, float]]:
    """Smallest (wall, CPU) seconds of each, after one run to warm up."""
    for run in work.values():
        run()
    best = dict.fromkeys(work, (float("inf"), float("inf")))
    names = list(work)
    for _ in range(rounds):
        for name in (*names, *reversed(names)):
            wall, cpu = time.perf_counter(), time.process_time()
            work[name]()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            best[name] = (min(best[name][0], wall), min(best[name][1], cpu))
    return best


def memory(entry: str) -> int:
    """KiB of this process, from the kernel; ``ru_maxrss`` would start at that of the parent."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(entry))
    return int(line.split()[1])
