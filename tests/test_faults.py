"""The campaign of benchmarks/faults.py in its short form: kills, signals, dead ranks, full disks, damaged files."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_a_run_survives_two_minutes_of_faults() -> None:
    script = Path(__file__).parents[1] / "benchmarks" / "faults.py"
    done = subprocess.run([sys.executable, script, "minutes=2"], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
