"""A net that is divided among two CPU processes trains as with DDP, and leaves checkpoints that anybody can use."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.slow

# 5 validation images do not divide by 2 processes
RECIPE = (
    "data.dataset.val_images=5", "optimizer=sgd", "scheduler=constant", "name=x",
    "trainer.accelerator=cpu", "trainer.devices=2",
)  # fmt: skip


def train(*words: str) -> None:
    clean = {k: v for k, v in os.environ.items() if k not in ("PL_GLOBAL_SEED", "LOCAL_RANK", "WORLD_SIZE")}
    command = [str(Path(sys.executable).parent / "segmod-train"), *words]
    done = subprocess.run(command, env=clean, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]


def outcome(root: str) -> tuple[dict[str, Any], dict[str, torch.Tensor], list[Any]]:
    """Metrics, weights with the statistics of batch norm, and momenta."""
    (run,) = Path(root).glob("**/metrics.json")
    last = torch.load(run.parent / "checkpoints" / "last.ckpt", weights_only=True)
    state = last["optimizer_states"][0]["state"]
    return json.loads(run.read_text())["metrics"], last["state_dict"], [state[i]["momentum_buffer"] for i in state]


def test_a_divided_net_trains_as_with_ddp_and_is_resumed_by_either(segmod: Any, small: tuple[str, ...]) -> None:
    fsdp = ("trainer=fsdp", "trainer.strategy.layer=1000")  # some layers by themselves, the rest together
    train(*small, *RECIPE, "trainer=ddp", "runs=whole")
    metrics, weights, momenta = outcome("whole")
    assert any("running_mean" in name for name in weights)
    for root, first, then in (
        ("both", fsdp, fsdp),
        ("first", fsdp, ("trainer=ddp",)),
        ("then", ("trainer=ddp",), fsdp),
    ):
        train(*small, *RECIPE, *first, f"runs={root}", "trainer.max_epochs=1")
        train(*small, *RECIPE, *then, f"runs={root}")
        found = outcome(root)
        assert found[0] == pytest.approx(metrics, abs=1e-4)
        torch.testing.assert_close(found[1], weights)
        torch.testing.assert_close(found[2], momenta)
    (run,) = Path("both").glob("**/seed0")
    assert segmod("evaluate", f"run={run}", "trainer=cpu") == 0
    (scored,) = run.glob("evaluation/*/metrics.json")
    assert json.loads(scored.read_text())["metrics"] == json.loads((run / "metrics.json").read_text())["metrics"]
