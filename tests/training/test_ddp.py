"""Two CPU processes, however they are started, train one run and count every validation image once."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# 5 validation images do not divide by 2 ranks: one rank has 3, the other 2
RECIPE = (
    "data.dataset.val_images=5",
    "trainer.max_epochs=1",
    "trainer=ddp",
    "trainer.accelerator=cpu",
    "trainer.devices=2",
)
SCRIPT = Path(sys.executable).parent / "segmod-train"


def run(command: list[str], **environment: str) -> None:
    clean = {k: v for k, v in os.environ.items() if k not in ("PL_GLOBAL_SEED", "LOCAL_RANK", "WORLD_SIZE")}
    done = subprocess.run(
        command, env=clean | {"OMP_NUM_THREADS": "1"} | environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]


def confusion_metrics(directory: Path) -> dict[str, Any]:
    result = json.loads((directory / "metrics.json").read_text())
    return {"metrics": result["metrics"], "iou": result["iou"]}


def test_two_processes_score_as_one(segmod: Any, small: tuple[str, ...]) -> None:
    run([str(SCRIPT), *small, *RECIPE, "runs=two", "data.class_weights=auto"])
    (two,) = Path("two").glob("**/seed0")
    assert "class_weights: background" in (two / "train.log").read_text()
    assert "class_weights" not in (two / "rank1.log").read_text()  # counted once
    assert segmod("evaluate", f"run={two}", "trainer=cpu") == 0
    (one,) = (two / "evaluation").glob("*")  # the same weights, scored by one process
    assert confusion_metrics(one) == confusion_metrics(two)


@pytest.mark.slow
def test_python_m_and_torchrun_train_the_same_run(small: tuple[str, ...], tmp_path: Path) -> None:
    recipe = [*small, *RECIPE]
    run([sys.executable, "-m", "segmod", "train", *recipe, f"runs={tmp_path / 'm'}"])
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29876"]
    run([*torchrun, "-m", "segmod", "train", *recipe, f"runs={tmp_path / 'torchrun'}"])
    (m,), (t,) = (list((tmp_path / name).glob("**/seed0")) for name in ("m", "torchrun"))
    assert confusion_metrics(m) == confusion_metrics(t)


@pytest.mark.slow
def test_each_job_of_a_multirun_has_two_ranks_of_its_own(small: tuple[str, ...], tmp_path: Path) -> None:
    run([str(SCRIPT), "-m", *small, *RECIPE, f"runs={tmp_path / 'runs'}", "seed=0,1"])
    results = sorted((tmp_path / "runs").glob("**/metrics.json"))
    assert [path.parent.name for path in results] == ["seed0", "seed1"]
    seeds = [json.loads(path.read_text())["seed"] for path in results]
    assert seeds == [0, 1]
    for path in results:
        assert "rror" not in (path.parent / "rank1.log").read_text()
