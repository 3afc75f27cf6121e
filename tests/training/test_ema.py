"""A moving average of the weights: kept, validated and stored by `callbacks=[ema]`."""

import json
from collections.abc import Callable
from pathlib import Path

import torch

Command = Callable[..., int]


def test_the_average_is_stored_and_loads(segmod: Command, small: tuple[str, ...], tmp_path: Path) -> None:
    assert segmod("train", *small, "callbacks=[ema]") == 0
    (run,) = tmp_path.glob("runs/**/seed0")
    stored = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    # 16 images in batches of 4, two epochs: 8 steps, all of them in the average, which trails the weights
    assert (stored["global_step"], int(stored["averaging_state"]["n_averaged"])) == (8, 8)
    current = stored["current_model_state"]
    assert any(not torch.equal(value, current[name]) for name, value in stored["state_dict"].items())
    # the best checkpoint, read back by another command, scores as the run said
    assert segmod("evaluate", f"run={run}", "checkpoint=best") == 0
    (evaluation,) = run.glob("evaluation/*/metrics.json")
    ours, theirs = (json.loads(path.read_text())["metrics"] for path in (run / "metrics.json", evaluation))
    assert theirs["val/miou"] == ours["val/miou"]
