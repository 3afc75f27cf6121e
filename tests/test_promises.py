"""What README and ARCHITECTURE promise to who brings data, a net or a loss: one class and one yaml, nothing else."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from PIL import Image

from segmod.data.base import Split
from segmod.data.synthetic import write_voc_tree
from segmod.data.transforms import EvalTransform
from segmod.runs.cli import CONF_DIR
from segmod.runs.folders import register_resolvers
from segmod.runs.instantiate import check, instantiate

SCRIPTS = Path(sys.executable).parent
UNET = Path(__file__).parent / "own_net"
README = (Path(__file__).parents[1] / "README.md").read_text()

LEAVES = '''
"""Leaves of 29 trees on the ground: photographs and masks in a folder for each split."""

from pathlib import Path

import numpy as np
from PIL import Image

from segmod.data.base import Dataset


class Leaves(Dataset):
    name = "Leaves"
    classes = ("ground", *(f"tree {k}" for k in range(1, 30)))
    palette = np.arange(768, dtype=np.int64).reshape(256, 3).astype(np.uint8)

    def __init__(self, root: str) -> None:
        self.root = Path(root)

    def names(self, split):
        return sorted(path.stem for path in (self.root / split).glob("*.jpg"))

    def files(self, split, name):
        return self.root / split / f"{name}.jpg", self.root / split / f"{name}.png"

    def read(self, split, name):
        image, mask = self.files(split, name)
        return np.asarray(Image.open(image).convert("RGB")), np.asarray(Image.open(mask))
'''
LEAVES_YAML = """
defaults:
  - /loader@_here_
  - _self_

dataset:
  _target_: leaves.Leaves
  root: ${data.root}
crop_size: 24
"""
TREES = [f"tree {k}" for k in range(1, 30)]

LOSS = '''
"""Cross-entropy of the pixels that the net gets wrong."""

import torch


class OfMistakes(torch.nn.Module):
    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, logits, mask):
        each = torch.nn.functional.cross_entropy(logits, mask, ignore_index=255, reduction="none")
        return each.flatten().topk(int(self.share * each.numel())).values.mean()
'''

NET = (
    "data.num_workers=0", "data.batch_size=4", "model.net.hidden=8", "model.net.width=0.2",
    "trainer.max_epochs=1", "trainer.enable_progress_bar=false",
)  # fmt: skip


def write_leaves(root: Path) -> None:
    """Eight images a split, halves of two trees each; in ``val`` trees 22 to 29 on the ground."""
    for split in ("train", "val"):
        (root / split).mkdir(parents=True)
        for index in range(8):
            first = 22 + index if split == "val" else 1 + index
            mask = np.zeros((28, 36), np.uint8)
            mask[4:24, 4:18], mask[4:24, 18:32] = first, first if split == "val" else 1 + (first + 7) % 29
            image = np.stack([mask * 8, 255 - mask * 8, mask], axis=2)
            Image.fromarray(image).save(root / split / f"leaf{index}.jpg")
            Image.fromarray(mask).save(root / split / f"leaf{index}.png")


@pytest.fixture
def home(segmod: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder a user works in, with modules and configs of their own."""
    monkeypatch.setattr("sys.path", [*sys.path])
    for module in ("leaves", "losses_of_mine", "unet"):  # of another test
        monkeypatch.delitem(sys.modules, module, raising=False)
    for name, content in {
        "leaves.py": LEAVES,
        "losses_of_mine.py": LOSS,
        "conf/data/leaves.yaml": LEAVES_YAML,
        "conf/loss/of_mistakes.yaml": "# @package model.loss\n_target_: losses_of_mine.OfMistakes\nshare: 0.5\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    return tmp_path


def test_data_of_thirty_classes_are_trained_on_evaluated_predicted_and_tabled(
    home: Path, segmod: Any, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_leaves(home / "photos")
    own = ("--config-dir", str(home / "conf"))
    keys = ("data=leaves", f"data.root={home / 'photos'}", "name=leaves", *NET)
    assert segmod("train", *own, *keys, "data.verify=true") == 0
    (run,) = home.glob("runs/**/seed0")
    trained = json.loads((run / "metrics.json").read_text())
    assert (trained["data"], trained["split"], trained["images"]) == ("Leaves", "val", 8)
    assert list(trained["iou"]) == ["ground", *TREES]

    assert segmod("evaluate", f"run={run}", "trust=leaves.Leaves", "trainer.enable_progress_bar=false") == 0
    (folder,) = run.glob("evaluation/*")
    evaluated = json.loads((folder / "metrics.json").read_text())
    assert evaluated["data"] == "Leaves"
    assert evaluated["present"]["classes"] == ["ground", *TREES[21:]]
    assert [row["class"] for row in csv.DictReader((folder / "iou.csv").open())] == ["ground", *TREES]
    capfd.readouterr()
    assert segmod("evaluate", f"run={run}", "trust=all", "submission=true", "trainer.enable_progress_bar=false") == 1
    assert "submission=true: the VOC server takes its own classes" in capfd.readouterr().err

    assert segmod("tables", "table=runs") == 0
    table = (home / "tables" / "runs.md").read_text()
    assert "Leaves val, 8 images |" in table

    shutil.move(home / "photos" / "val" / "leaf3.jpg", home / "leaf.jpg")
    shutil.rmtree(home / "photos")  # the checkpoint knows names and colours
    (home / "leaves.py").unlink()
    monkeypatch.delitem(sys.modules, "leaves")
    assert segmod("predict", f"run={run}", f"input={home / 'leaf.jpg'}", "output=out", "device=cpu") == 0
    with Image.open(home / "out" / "masks" / "leaf.png") as mask:
        assert mask.size == (36, 28)
        palette = mask.getpalette()
        assert palette is not None
        assert palette[87:90] == [87, 88, 89]  # of tree 29


def test_mistakes_in_data_of_ones_own_are_told_in_one_line(home: Path, segmod: Any, capfd: Any) -> None:
    write_leaves(home / "photos")
    file = home / "photos" / "train" / "leaf2.png"
    Image.fromarray(np.full((28, 36), 30, np.uint8)).save(file)
    own = ("--config-dir", str(home / "conf"), "data=leaves", f"data.root={home / 'photos'}", *NET)
    for more, message in (
        (("data.verify=true",), f"1 of 16 images are bad: {file}: labels [30] are outside 0..29 and 255"),
        ((), f"{file}: labels [30] are outside 0..29 and 255, those of Leaves"),
        (("data.download=true",), "data.download=true: segmod cannot fetch Leaves"),
    ):
        capfd.readouterr()
        assert segmod("train", *own, *more) == 1
        error = capfd.readouterr().err
        assert message in error
        assert "Traceback" not in error


def test_the_readme_says_all_that_the_config_of_a_net_needs() -> None:
    yaml = (UNET / "conf/model/unet.yaml").read_text()
    assert f"`conf/model/unet.yaml`:\n\n```yaml\n{yaml}```" in README


def test_a_net_of_ones_own_is_trained_evaluated_and_predicted_with(
    home: Path, segmod: Any, small: tuple[str, ...], capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in ("unet.py", "conf/model/unet.yaml"):
        (home / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(UNET / file, home / file)
    short = [word for word in small if not word.startswith(("model.", "trainer.max_epochs", "callbacks."))]
    command = [SCRIPTS / "segmod-train", "--config-dir", "conf", "model=unet", *short, "trainer.max_steps=1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    (run,) = home.glob("runs/unet-synthetic/**/seed0")
    trained = json.loads((run / "metrics.json").read_text())
    assert trained["step"] == 1

    capfd.readouterr()
    assert segmod("evaluate", f"run={run}", "trainer=cpu") == 1
    line = "model.net._target_=unet.UNet is not segmod's own, and would be called: if you trust it, add trust=unet.UNet"
    assert capfd.readouterr().err == f"segmod: error: {line}\n"
    trust = line.split()[-1]
    assert trust in README
    assert segmod("evaluate", f"run={run}", trust, "trainer=cpu", "trainer.enable_progress_bar=false") == 0
    (evaluated,) = run.glob("evaluation/*/metrics.json")
    assert json.loads(evaluated.read_text())["iou"] == trained["iou"]
    picture = next((run / "pictures").glob("**/*.png"))
    assert segmod("predict", f"run={run}", trust, f"input={picture}", "output=out", "device=cpu") == 0
    assert (home / "out" / "masks" / picture.name).exists()
    next_stage = ("name=next", "init_from='" + str(run) + "'", "trainer.max_epochs=1", *short)  # reads weights alone
    assert segmod("train", "--config-dir", "conf", "model=unet", *next_stage) == 0

    (home / "unet.py").unlink()
    monkeypatch.delitem(sys.modules, "unet")
    capfd.readouterr()
    assert segmod("evaluate", f"run={run}", trust) == 1
    assert capfd.readouterr().err == (
        "segmod: error: model.net._target_=unet.UNet: cannot be imported (No module named 'unet'): "
        "run from the folder that holds unet.py, or name it in PYTHONPATH\n"
    )


@pytest.mark.skipif(not (CONF_DIR / "loss").is_dir(), reason="there is no config group loss yet")
def test_a_loss_of_ones_own_is_trained_with(home: Path, segmod: Any, small: tuple[str, ...]) -> None:
    own = ("--config-dir", str(home / "conf"), "loss=of_mistakes")
    losses = {}
    for name, share in (("half", 0.5), ("all", 1.0)):
        more = (f"name={name}", f"model.loss.share={share}", "trainer.max_epochs=1", "trainer.log_every_n_steps=1")
        assert segmod("train", *own, *small, *more) == 0
        (curves,) = home.glob(f"runs/{name}/**/metrics.csv")
        losses[name] = next(float(row["train/loss"]) for row in csv.DictReader(curves.open()) if row["train/loss"])
    assert losses["half"] > 1.01 * losses["all"]  # of the same first batch, its worse half


FOLDERS = {"folder", "camvid", "cityscapes", "ade20k", "pascal_context"}  # tests/data/test_folder.py reads these


@pytest.mark.parametrize("option", sorted({path.stem for path in (CONF_DIR / "data").glob("*.yaml")} - FOLDERS))
def test_every_option_of_data_gives_images(option: str, tmp_path: Path) -> None:
    register_resolvers()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        cfg = compose("train", overrides=[f"data={option}", f"data.root={tmp_path}", "data.num_workers=0"])
    check(OmegaConf.to_container(cfg.data, resolve=True), "data")
    voc = write_voc_tree(tmp_path, train=1, val=1, size=(64, 80))
    (voc / "SegmentationClassAug").mkdir()
    shutil.copy(next((voc / "SegmentationClass").iterdir()), voc / "SegmentationClassAug")
    (id_of_val,) = (voc / "ImageSets" / "Segmentation" / "val.txt").read_text().split()
    (voc / "ImageSets" / "Segmentation" / "seg11valid.txt").write_text(id_of_val)
    (tmp_path / "sbd").mkdir()
    (tmp_path / "sbd" / "train.txt").write_text(next((voc / "SegmentationClassAug").iterdir()).stem)
    data = instantiate(cfg, "data")
    for split in (data.train_split, data.val_split):
        images = Split(data.dataset, split, EvalTransform())
        assert len(images) >= 1
        assert images[0]["image"].dtype == images[0]["mask"].dtype
    assert len(data.legend.classes) == 21
    assert data.legend.data == ("Synthetic" if option == "synthetic" else "VOC2012")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("data.size=64", "data.dataset.size"),
        ("data.num_classes=5", "data.dataset.num_classes"),
        ("data.train_images=5", "data.dataset.train_images"),
        ("data.scene_seed=1", "data.dataset.scene_seed"),
        ("data=voc data.year=2007", "data.dataset.year"),
        ("data=voc data.sbd_root=x", "data.dataset.sbd_root"),
    ],
)
def test_keys_that_moved_to_the_data_set_are_named(old: str, new: str, segmod: Any, capfd: Any) -> None:
    assert segmod("train", *old.split()) == 1
    assert f"did you mean {new}?" in capfd.readouterr().err
