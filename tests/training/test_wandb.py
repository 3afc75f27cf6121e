"""What reaches W&B, read back from the files of offline runs."""

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import wandb
from lightning.pytorch.callbacks import LearningRateMonitor

from segmod.training.loggers import WandbLogger
from segmod.training.wandb_panels import WandbPanels

Train = Callable[..., L.Trainer]


@pytest.fixture(autouse=True)
def _nobody_is_logged_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb-home"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    yield
    wandb.finish()


def logger_of(tmp_path: Path, run: str, **options: Any) -> WandbLogger:
    directory = str(tmp_path / "runs" / run)
    return WandbLogger(directory, runs=str(tmp_path / "runs"), project="segmod", group=run.split("/")[0], **options)


def records(tmp_path: Path, run: str) -> list[dict[str, Any]]:
    """Records of the one offline W&B run in a run directory."""
    (file,) = (tmp_path / "runs" / run).glob("wandb/offline-run-*/run-*.wandb")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()
    return [json.loads(line) for line in lines]


def history(found: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Logged values by name; the parts of tables and pictures have dotted names."""
    values: dict[str, list[Any]] = {}
    for record in found:
        if record["type"] == "history":
            for key, value in record["history"]["item"].items():
                values.setdefault(key, []).append(value)
    return values


def test_panels_of_a_training(tmp_path: Path, train: Train) -> None:
    logger = logger_of(tmp_path, "tiny/seed0")
    logger.log_hyperparams({"model": {"optimizer": {"lr": 0.1}}})
    train([logger], [LearningRateMonitor("step"), WandbPanels(pictures=2)])
    wandb.finish()
    found = records(tmp_path, "tiny/seed0")
    values = history(found)
    for name in (
        "train/loss",
        "val/miou",
        "val/mean_acc",
        "val/pixel_acc",
        "val/fwiou",
        "lr-SGD",
        "val/iou/background",
    ):
        assert values[name], name
    assert len(values["train/loss"]) == 4  # two epochs of two steps

    assert values["val/pictures.captions"] == [["val_000000", "val_000001"]] * 2  # not in the sanity check
    assert [set(masks) for masks in values["val/pictures.all_masks"][-1]] == [{"prediction", "truth"}] * 2
    media = next((tmp_path / "runs/tiny/seed0/wandb").glob("offline-run-*")) / "files"
    content = json.loads((media / values["val/iou_table.path"][-1]).read_text())
    assert content["columns"] == ["class", "IoU"]
    assert [row[0] for row in content["data"]] == ["background", "aeroplane", "bicycle", "bird", "boat"]
    confusion = json.loads((media / values["val/confusion_table.path"][-1]).read_text())
    assert confusion["columns"] == ["Actual", "Predicted", "nPredictions"]
    # rows of the matrix are percentages of the true class
    shares: dict[str, float] = {}
    for actual, _, share in confusion["data"]:
        shares[actual] = shares.get(actual, 0) + share
    assert all(total == pytest.approx(100, abs=0.05) for total in shares.values())
    assert "val/iou_chart_table.path" in values

    config: dict[str, Any] = {}
    for record in found:
        config |= record.get("config", {}).get("update", {})
    assert config["model"] == {"optimizer": {"lr": 0.1}}
    assert config["system"]["precision"] == "32-true"
    names = config["_wandb"]["mask/class_labels"]["val/pictures_wandb_delimeter_prediction"]["value"]
    assert (names["1"], names["255"]) == ("aeroplane", "void")


def test_a_validation_is_one_row(tmp_path: Path, train: Train) -> None:
    train([logger_of(tmp_path, "tiny/seed0")], [WandbPanels(pictures=1)])
    wandb.finish()
    rows = [r["history"]["item"] for r in records(tmp_path, "tiny/seed0") if r["type"] == "history"]
    validated = [row for row in rows if any(key.startswith("val/") for key in row)]
    assert len(validated) == 2
    for row in validated:
        assert {"val/miou", "val/iou/background", "val/pictures.captions", "val/iou_table.path"} <= row.keys()
    assert [row["trainer/global_step"] for row in validated] == [1, 3]
    steps = [row["trainer/global_step"] for row in rows]
    assert steps == sorted(set(steps))


def test_a_run_is_sorted_and_its_model_kept_where_asked(segmod: Any, small: tuple[str, ...], tmp_path: Path) -> None:
    watched = ("logger=wandb", "logger.wandb.log_model=true", "logger.wandb.tags=[mine]", "callbacks.panels.pictures=0")
    assert segmod("train", *small, *watched, "trainer.max_epochs=1", "name=kept") == 0
    (run,) = Path("runs").glob("kept/**/seed0")
    found = records(tmp_path, str(run.relative_to("runs")))
    (facts,) = [r["run"] for r in found if r["type"] == "run"][:1]
    assert (facts["run_group"], facts["job_type"], facts["tags"]) == ("kept", "train", ["mine"])
    (artifact,) = [r["artifact"] for r in found if r["type"] == "artifact" and r["artifact"]["type"] == "model"]
    assert [file["path"] for file in artifact["manifest"]["contents"]] == ["best.ckpt"]
    assert json.loads(artifact["metadata"]).keys() == json.loads((run / "metrics.json").read_text())["metrics"].keys()

    assert segmod("evaluate", f"run={run}", "logger=wandb", "trainer=cpu", "trainer.enable_progress_bar=false") == 0
    found = records(tmp_path, str(run.relative_to("runs") / "evaluation" / "dense-val"))
    (facts,) = [r["run"] for r in found if r["type"] == "run"][:1]
    assert (facts["run_group"], facts["job_type"]) == ("kept", "evaluate")
    values = history(found)
    trained = json.loads((run / "metrics.json").read_text())["metrics"]
    assert values["val/miou"] == pytest.approx([trained["val/miou"]])
    assert len(values["val/iou_table.path"]) == len(values["val/confusion_table.path"]) == 1
    assert len(values["val/pictures.captions"][0]) == 3


def test_each_job_of_a_sweep_is_a_run_of_its_own(tmp_path: Path) -> None:
    for seed in (0, 1):  # no wandb.finish() in between
        logger_of(tmp_path, f"tiny/lr-0.1/seed{seed}").log_metrics({"train/loss": float(seed)}, step=1)
    wandb.finish()
    runs = []
    for seed in (0, 1):
        found = records(tmp_path, f"tiny/lr-0.1/seed{seed}")
        assert history(found)["train/loss"] == [float(seed)]
        runs += [record["run"] for record in found if record["type"] == "run"]
    assert [run["display_name"] for run in runs] == ["tiny/lr-0.1/seed0", "tiny/lr-0.1/seed1"]
    assert [(run["run_group"], run["project"]) for run in runs] == [("tiny", "segmod")] * 2
    assert runs[0]["run_id"] != runs[1]["run_id"]


def test_a_resumed_run_has_the_id_it_had(tmp_path: Path) -> None:
    assert logger_of(tmp_path, "tiny/seed0").version == logger_of(tmp_path, "tiny/seed0").version
    assert logger_of(tmp_path, "tiny/seed0").version != logger_of(tmp_path, "tiny/seed1").version


def test_mode_is_offline_unless_the_environment_or_the_config_says_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert logger_of(tmp_path, "tiny/seed0")._wandb_init["mode"] == "offline"
    monkeypatch.setenv("WANDB_MODE", "online")
    assert logger_of(tmp_path, "tiny/seed0")._wandb_init["mode"] == "online"
    assert logger_of(tmp_path, "tiny/seed0", offline=True)._wandb_init["mode"] == "offline"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert logger_of(tmp_path, "tiny/seed0", offline=False)._wandb_init["mode"] == "online"


def test_without_a_login_an_online_run_is_recorded_offline(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"W&B: nobody is logged in.*recording offline"):
        logger_of(tmp_path, "tiny/seed0", offline=False).log_metrics({"train/loss": 1.0}, step=1)
    wandb.finish()
    assert history(records(tmp_path, "tiny/seed0"))["train/loss"] == [1.0]


def test_training_goes_on_when_wandb_cannot_start(
    tmp_path: Path, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = wandb.init

    def fail(*args: Any, mode: str, **kwargs: Any) -> Any:
        if mode == "disabled":
            return start(*args, mode=mode, **kwargs)
        raise OSError("no space left on device")

    monkeypatch.setattr(wandb, "init", fail)
    with pytest.warns(UserWarning, match="no space left on device: this run goes on without W&B"):
        trainer = train([logger_of(tmp_path, "tiny/seed0")], [WandbPanels()])
    assert trainer.global_step == 4


def test_training_goes_on_when_wandb_fails_on_the_way(
    tmp_path: Path, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logger_of(tmp_path, "tiny/seed0")
    run = logger.experiment

    def fail(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("the service has died")

    monkeypatch.setattr(run, "log", fail)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")  # as a user sees them: a text from one place once
        trainer = train([logger], [WandbPanels()])
    assert trainer.global_step == 4
    assert [str(w.message) for w in caught if "W&B" in str(w.message)] == ["W&B: ConnectionError: the service has died"]


def test_panels_do_nothing_without_wandb(train: Train) -> None:
    assert train(False, [WandbPanels()]).global_step == 4
    assert wandb.run is None
