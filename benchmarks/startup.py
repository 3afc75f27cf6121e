"""How long a user waits before anything happens: imports and ``--help``, each in fresh processes.

python benchmarks/startup.py
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

CASES = {
    "python -c pass": ["-c", "pass"],
    "import segmod": ["-c", "import segmod"],
    "import torch": ["-c", "import torch"],
    "import lightning": ["-c", "import lightning"],
    **{
        f"segmod-{name} --help": ["-m", "segmod", name, "--help"] for name in ("train", "evaluate", "predict", "tables")
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    seconds: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(rounds + 1):
        for name, arguments in CASES.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
            seconds[name].append(time.perf_counter() - start)
    for name, values in seconds.items():  # the first round fills the disk cache
        print(f"{name:24} median {statistics.median(values[1:]):6.2f} s  min {min(values[1:]):6.2f} s")


if __name__ == "__main__":
    main()
