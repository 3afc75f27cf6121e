"""``segmod-proposals`` as a user types it."""

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from segmod.data.synthetic import SyntheticScenes, write_voc_tree
from segmod.runs import cli, keys
from segmod.runs import folders as runs
from segmod.runs.trained import TrainedRun

SCENES = (
    "data.dataset.size=64",
    "data.crop_size=null",
    "data.dataset.train_images=3",
    "data.dataset.val_images=2",
    "workers=1",
)


def test_boxes_are_made_once_and_kept_by_parameters(segmod: Any, capfd: Any) -> None:
    assert segmod("proposals", *SCENES) == 0
    assert "5 images, " in capfd.readouterr().err
    (folder,) = Path("proposals").iterdir()
    assert sorted(path.stem for path in folder.glob("*.npz")) == [
        "train_000000", "train_000001", "train_000002", "val_000000", "val_000001",
    ]  # fmt: skip
    assert json.loads((folder / "parameters.json").read_text())["alpha"] == 0.65
    with np.load(folder / "val_000000.npz") as stored:
        assert stored["boxes"].shape[1] == 5
        assert stored["size"].tolist() == [64, 64]
    before = (folder / "val_000000.npz").stat().st_mtime_ns
    assert segmod("proposals", *SCENES) == 0
    assert "0 found" in capfd.readouterr().err
    assert (folder / "val_000000.npz").stat().st_mtime_ns == before
    assert segmod("proposals", *SCENES, "split=val", "limit=1", "proposals.alpha=0.5") == 0
    assert len(list(Path("proposals").glob("*/*.npz"))) == 6


def test_report_on_voc(segmod: Any, capfd: Any) -> None:
    write_voc_tree(Path("data"), train=3, val=2, size=(64, 80))
    voc = ("data=voc", "data.root=data", "workers=2", "report=true")
    assert segmod("proposals", *voc, "split=trainval") == 0
    printed = capfd.readouterr().out
    assert "SegmentationObject/*.png" in printed
    (path,) = Path("proposals").glob("edgeboxes-*/recall-voc-trainval.csv")
    rows = list(csv.DictReader(path.open()))
    assert [int(row["boxes an image"]) for row in rows] == [10, 50, 100, 500, 2000]
    recall = [float(row["IoU 0.5"]) for row in rows]
    assert recall == sorted(recall)
    assert 0.3 < recall[-1] <= 1
    assert all(float(row["IoU 0.7"]) <= float(row["IoU 0.5"]) for row in rows)
    assert "5 images with" in path.with_suffix(".md").read_text()
    assert path.with_suffix(".png").stat().st_size > 5000


def test_report_of_sources_that_store_nothing(segmod: Any, capfd: Any) -> None:
    voc = write_voc_tree(Path("data"), train=1, val=1, size=(64, 80))
    for png in (voc / "SegmentationObject").iterdir():
        png.unlink()
    common = ("data=voc", "data.root=data", "workers=1", "report=true", "split=train,val".replace(",", "\\,"))
    assert segmod("proposals", *common, "proposals=gt") == 0
    assert "connected components of the class mask of at least 50 pixels" in capfd.readouterr().out
    (path,) = Path("proposals").glob("gt/recall-voc-train+val.csv")
    # fewer than ten objects an image: their own boxes find them all
    assert {row["IoU 0.7"] for row in csv.DictReader(path.open())} == {"1.0"}
    assert segmod("proposals", *common, "proposals=grid", "output=out", "limit=1") == 0
    assert Path("out/recall-voc-train+val-first-1.png").is_file()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["proposals=nope"], "proposals=nope: no such option; choose one of edgeboxes, file, grid, gt"),
        (["proposals=grid"], "proposals=grid: these boxes are never stored"),
        (["proposals=file"], "proposals.folder is required"),
        (["proposals=file", "proposals.folder=none", "report=true"], "proposals.folder=none: no such folder"),
        (["proposals.alpha=high"], "proposals.alpha='high' has the wrong type"),
        (["proposals.edges=canny"], "proposals.edges='canny' has the wrong type"),
        (["proposals.edges=structured_forest"], "needs proposals.model"),
        (["proposals.alhpa=1"], "no config key 'proposals.alhpa': did you mean proposals.alpha?"),
        (["data=voc", "data.root=nowhere"], "nowhere/VOCdevkit/VOC2012: no such folder"),
        (["data=voc", "data.root=DATA", "split=test"], "test.txt: no such list for split test; choose one of train"),
        (["workers=many"], "workers='many' has the wrong type"),
        (["limit=0"], "limit=0"),
        (["proposals.root=/dev/null/x"], "set proposals.root to another folder"),
    ],
)
def test_mistakes(overrides: list[str], message: str, segmod: Any, capfd: Any, tmp_path: Path) -> None:
    write_voc_tree(tmp_path / "tree", train=1, val=1, size=(32, 32))
    overrides = [word.replace("DATA", str(tmp_path / "tree")) for word in overrides]
    assert segmod("proposals", *(() if "data=voc" in overrides else SCENES), *overrides) == 1
    error = capfd.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("segmod: error: ")]
    assert len(lines) == 1, error
    assert message in lines[0]
    assert "Traceback" not in error


@pytest.mark.parametrize(
    "arguments", [("proposals", *SCENES), ("train", "inference=proposals"), ("train", "experiment=deconvnet_stage2")]
)
def test_an_opencv_without_edgeboxes_is_told_before_any_image_is_read(
    arguments: tuple[str, ...], segmod: Any, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    def read(*_: Any) -> None:
        raise AssertionError("too early")

    monkeypatch.delattr(cv2.ximgproc, "createEdgeBoxes")
    monkeypatch.setattr(SyntheticScenes, "read", read)
    command, *overrides = arguments
    data = () if command == "proposals" else ("data=synthetic", "data.num_workers=0", "init_from=null")
    assert segmod(command, *overrides, *data) == 1
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("segmod: error: ")]
    assert "this OpenCV has no EdgeBoxes (cv2.ximgproc)" in line
    assert "pip install --force-reinstall --no-deps opencv-contrib-python-headless" in line


def test_the_root_may_come_from_the_environment(segmod: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SEGMOD_PROPOSALS", str(tmp_path / "shared"))
    assert segmod("proposals", *SCENES, "limit=1") == 0
    assert len(list((tmp_path / "shared").glob("edgeboxes-*/*.npz"))) == 1


def composed(config: str, *overrides: str) -> DictConfig:
    runs.register_resolvers()
    with initialize_config_dir(str(cli.CONF_DIR), version_base="1.3"):
        return compose(config, overrides=list(overrides))


def test_proposals_decide_a_run_only_where_they_are_used() -> None:
    def digest(*overrides: str) -> str:
        cfg = composed("train", *overrides)
        cfg.run_dir = cfg.name = "x"
        return keys.digest(cfg)

    assert digest() == digest("proposals.max_boxes=9") == digest("proposals=gt")
    used = "+inference.proposals=${proposals}"
    assert digest(used) != digest(used, "proposals.max_boxes=9")
    assert digest(used) == digest(used, "proposals.root=elsewhere")


@pytest.mark.parametrize("stored", ["edgeboxes", "grid"])
@pytest.mark.parametrize("asked", ["gt", None])
def test_a_run_is_scored_with_its_own_proposals_unless_asked(
    stored: str, asked: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    run_cfg = composed("train", f"proposals={stored}")
    run_cfg.run_dir = run_cfg.name = "x"
    run = runs.Run(Path("old"))
    run.config_file.parent.mkdir(parents=True)
    run.config_file.write_text(OmegaConf.to_yaml(run_cfg))
    run.metrics_file.write_text("{}")
    given = composed("evaluate", "run=old", *([f"proposals={asked}"] if asked else []))
    opened = TrainedRun.open(given.run, proposals=given.get("proposals"))
    names = {"edgeboxes": "EdgeBoxes", "grid": "GridBoxes", "gt": "TruthBoxes"}
    assert opened.config.proposals._target_.endswith(names[asked or stored])


@pytest.mark.slow
def test_ctrl_c_exits_with_130_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    words = ["data.crop_size=null", "data.dataset.size=256", "data.dataset.train_images=5000", "split=train"]
    command = [sys.executable, "-m", "segmod", "proposals", *words]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("proposals/*/*.npz")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 130, error
    assert "the same command goes on" in error
    assert "Traceback" not in error
    files = list(tmp_path.glob("proposals/*/*"))
    assert 1 < len(files) < 5000
    assert all(path.suffix in (".npz", ".json") for path in files)
    assert not [path for path in files if path.name.startswith(".")]
    for path in files:
        if path.suffix == ".npz":
            np.load(path)["boxes"]
