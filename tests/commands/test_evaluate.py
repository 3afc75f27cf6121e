"""segmod-evaluate on a small trained run."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from segmod.__main__ import COMMANDS
from segmod.commands.evaluate import competition
from segmod.data.synthetic import write_voc_tree
from segmod.ground.errors import UserError

CPU = ["trainer=cpu", "trainer.enable_progress_bar=false"]
PLAIN = [*CPU, "pictures=0"]


def call(name: str, *overrides: str) -> None:
    """Run a command in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["segmod", *overrides])
        COMMANDS[name]()


def read_metrics(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return loaded


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VOC tree with 6 training and 5 validation images, and a test split of 3 without masks."""
    root = tmp_path_factory.mktemp("data")
    write_voc_tree(root, train=6, val=5)
    voc = root / "VOCdevkit" / "VOC2012"
    lists = voc / "ImageSets" / "Segmentation"
    (lists / "few.txt").write_text("".join((lists / "val.txt").read_text().splitlines(keepends=True)[:2]))
    for i, name in enumerate((lists / "val.txt").read_text().split()[:3]):
        (voc / "JPEGImages" / f"test_{i}.jpg").write_bytes((voc / "JPEGImages" / f"{name}.jpg").read_bytes())
    (lists / "test.txt").write_text("test_0\ntest_1\ntest_2\n")
    return root


@pytest.fixture(scope="module")
def run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two training steps on it."""
    runs = tmp_path_factory.mktemp("runs")
    call(
        "train",
        *[f"runs={runs}", "name=small", "data=voc", f"data.root={root}", "data.num_workers=0", "data.batch_size=2"],
        *["data.crop_size=64", "model.net.hidden=8", "trainer.max_steps=2", *CPU],
    )
    return next(runs.rglob("metrics.json")).parent


def test_repeats_the_numbers_of_the_training(run: Path) -> None:
    call("evaluate", f"run={run}", *PLAIN)
    folder = run / "evaluation" / "dense-val"
    result, trained = read_metrics(folder), read_metrics(run)
    assert result["metrics"] == pytest.approx(trained["metrics"])
    assert result["config_digest"] == trained["config_digest"]
    assert (result["split"], result["inference"], result["images"]) == ("val", "dense", 5)


def test_writes_tables_that_agree_and_pictures(run: Path) -> None:
    call("evaluate", f"run={run}", "pictures=2", "split=few", *CPU)
    folder = run / "evaluation" / "dense-few"
    result = read_metrics(folder)
    with (folder / "iou.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == list(result["iou"])
    for row in rows:
        correct, truth, predicted = (int(row[f"{key}_pixels"]) for key in ("correct", "truth", "predicted"))
        union = truth + predicted - correct
        assert row["iou"] == (f"{correct / union:.6f}" if union else "")
        assert result["iou"][row["class"]] == (pytest.approx(correct / union) if union else None)
    true = [row["class"] for row in rows if int(row["truth_pixels"])]
    assert result["present"]["classes"] == true
    assert result["present"]["miou"] == pytest.approx(sum(result["iou"][name] for name in true) / len(true))
    with (folder / "confusion.csv").open() as file:
        table = np.array([row[1:] for row in csv.reader(file)][1:], dtype=np.int64)
    assert table.sum(1).tolist() == [int(row["truth_pixels"]) for row in rows]
    assert len(list((folder / "pictures").glob("*.png"))) == 2
    for name in ("iou.png", "confusion.png"):
        with Image.open(folder / name) as png:
            assert min(png.size) > 100


def test_another_inference_has_another_folder_and_result(run: Path) -> None:
    call("evaluate", f"run={run}", "inference=multiscale", "inference.scales=[0.5]", "split=few", *PLAIN)
    folder = run / "evaluation" / "multiscale-few+scales-0.5"
    result = read_metrics(folder)
    assert result["inference"] == "multiscale"
    assert result["predictor"]["scales"] == [0.5]
    # the size comes from the run's data
    assert result["predictor"]["size"] is None


def test_submission_of_a_split_without_truth(run: Path, root: Path) -> None:
    call("evaluate", f"run={run}", "split=test", *PLAIN)
    folder = run / "evaluation" / "dense-test"
    assert not (folder / "metrics.json").exists()
    with tarfile.open(folder / "comp6_test_cls.tar.gz") as tar:
        names = tar.getnames()
    place = "results/VOC2012/Segmentation/comp6_test_cls"
    assert names == [f"{place}/test_{i}.png" for i in range(3)]
    for i in range(3):
        with (
            Image.open(folder / names[i]) as png,
            Image.open(root / f"VOCdevkit/VOC2012/JPEGImages/test_{i}.jpg") as jpg,
        ):
            assert (png.mode, png.size) == ("P", jpg.size)


def test_the_competition_is_what_the_nets_saw(run: Path) -> None:
    call("evaluate", f"run={run}", "split=test", "competition=comp5", *PLAIN)
    assert (run / "evaluation" / "dense-test" / "comp5_test_cls.tar.gz").is_file()
    with pytest.raises(UserError, match="competition=comp5 is for VOC's own masks, the run saw SBD's"):
        competition("comp5", "trainaug")
    assert competition("comp6", "trainaug") == "comp6"


def test_submission_holds_what_was_scored(run: Path, root: Path) -> None:
    call("evaluate", f"run={run}", "split=few", "submission=true", "trainer.limit_val_batches=2", *PLAIN)
    folder = run / "evaluation" / "dense-few+limit_val_batches-2"
    confusion = np.zeros((21, 21), np.int64)
    for path in sorted((folder / "results/VOC2012/Segmentation/comp6_few_cls").iterdir()):
        with Image.open(path) as png, Image.open(root / "VOCdevkit/VOC2012/SegmentationClass" / path.name) as truth:
            prediction, mask = np.array(png), np.array(truth)
        np.add.at(confusion, (mask[mask != 255], prediction[mask != 255]), 1)
    correct = confusion.diagonal()
    iou = correct / np.maximum(confusion.sum(0) + confusion.sum(1) - correct, 1)
    result = read_metrics(folder)
    assert [0.0 if v is None else v for v in result["iou"].values()] == pytest.approx(iou.tolist())


SMALL_BOXES = ["proposals=grid", "inference.size=32", "inference.min_side=20", "inference.max_proposals=5"]


def test_proposals_of_a_run_by_its_name_and_their_submission(run: Path) -> None:
    named = ["run=small", f"runs={run.parents[2]}"]
    call("evaluate", *named, "inference=proposals", *SMALL_BOXES, "split=few", "submission=true", *PLAIN)
    (folder,) = (run / "evaluation").glob("proposals-few+*")
    assert "proposals-grid" in folder.name
    result = read_metrics(folder)
    assert (result["inference"], result["images"], result["checkpoint"]) == ("proposals", 2, "best.ckpt")
    assert result["predictor"]["proposals"]["_target_"].endswith("GridBoxes")
    assert len(list(folder.glob("results/VOC2012/Segmentation/comp6_few_cls/*.png"))) == 2
    assert (folder / "comp6_few_cls.tar.gz").is_file()


def test_ensemble_with_itself_changes_nothing_and_says_which_run_it_was(run: Path) -> None:
    given = [f"run={run}", f"runs={run.parents[2]}", "inference=ensemble", "inference.fcn.run=small"]
    call("evaluate", *given, "inference@inference.own=dense", *PLAIN)
    (folder,) = (run / "evaluation").glob("ensemble-val+*")
    result = read_metrics(folder)
    assert result["metrics"] == pytest.approx(read_metrics(run)["metrics"])
    assert result["predictor"]["fcn"]["run"] == str(run)


def test_members_that_are_not_there_are_told_first(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        call("evaluate", f"run={run}", "inference=ensemble_crf", *PLAIN)
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("segmod: error: inference.predictor.fcn.run=fcn8s: no run there, and none of that name")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run=nowhere", "run=.*nowhere: no run there"),
        ("checkpoint=missing.ckpt", "checkpoint=missing.ckpt"),
        ("split=unknown", "unknown"),
        ("competition=comp7 split=test", "competition='comp7' has the wrong type: give comp5 or comp6"),
        ("inference=telepathy", "inference=telepathy: no such option; choose one of crf, dense"),
    ],
)
def test_mistakes_are_one_line(run: Path, override: str, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    given = [override] if override.startswith("run=") else [f"run={run}", *override.split()]
    with pytest.raises(SystemExit) as caught:
        call("evaluate", *given, *PLAIN)
    assert caught.value.code == 1
    line = capfd.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("segmod: error: ")
    assert re.search(message, line)
    assert not Path("nowhere").exists()


def test_weights_must_fit_exactly(run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    content = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    content["state_dict"].popitem()
    torch.save(content, tmp_path / "cut.ckpt")
    with pytest.raises(SystemExit):
        call("evaluate", f"run={run}", f"checkpoint={tmp_path / 'cut.ckpt'}", *PLAIN)
    assert "cut.ckpt lacks" in capfd.readouterr().err


@pytest.mark.slow
def test_two_processes_count_each_image_once(run: Path) -> None:
    command = [sys.executable, "-m", "segmod", "evaluate", f"run={run}", "trainer=ddp", "trainer.accelerator=cpu"]
    command += ["trainer.devices=2", "submission=true", "data.num_workers=0"]
    subprocess.run(command, check=True, timeout=300)
    result = read_metrics(run / "evaluation" / "dense-val")
    assert result["metrics"] == pytest.approx(read_metrics(run)["metrics"])
    assert result["images"] == 5
    assert len(list((run / "evaluation" / "dense-val").rglob("comp6_val_cls/*.png"))) == 5
