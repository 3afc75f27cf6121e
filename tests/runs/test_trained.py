"""A trained run as an object: found, built when asked, and saying what the commands say."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

import segmod
from segmod.data.synthetic import write_voc_tree
from segmod.ground.errors import UserError
from segmod.ground.palettes import VOC_CLASSES, Legend
from segmod.inference.multiscale import MultiScalePredictor
from segmod.measure import PeakMemory
from segmod.runs.prediction import Prediction
from segmod.runs.trained import TrainedRun

SHORT = (
    "data=voc", "data.root=data", "data.num_workers=0", "data.batch_size=2", "data.crop_size=32", "name=small",
    "model.net.hidden=8", "trainer.max_steps=2", "trainer=cpu", "trainer.enable_progress_bar=false",
)  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, command: Any) -> Path:
    """A folder with ``runs/small/.../seed0`` and its data."""
    home = tmp_path_factory.mktemp("home")
    write_voc_tree(home / "data", train=2, val=2, size=(40, 50))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        assert command("train", *SHORT) == 0
    return home


@pytest.fixture
def here(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only run below ``home``, which is the working directory."""
    monkeypatch.chdir(home)
    return next(home.glob("runs/small/*/seed0"))


def copy(run: Path, to: Path) -> Path:
    shutil.copytree(run, to)
    return to


PHOTO = np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8)


def test_opened_by_name_or_folder(here: Path, tmp_path: Path) -> None:
    for given in ("small", here, str(here), here.parent, "runs/small"):
        run = segmod.open(given)
        assert (run.directory, run.name, run.split) == (here, "small", "val")
    assert run.checkpoint == here / "checkpoints" / "best.ckpt"
    assert set(run.metrics) == {f"val/{name}" for name in ("miou", "pixel_acc", "mean_acc", "fwiou")}
    assert run.classes[:2] == ("background", "aeroplane")
    assert segmod.open("small", here.parents[2]).directory == here
    first, second = (copy(here, tmp_path / "twice" / f"seed{k}") for k in (0, 1))
    with pytest.raises(UserError, match=r"run=twice: there are 2 runs; choose one of .*seed0, .*seed1"):
        segmod.open("twice", tmp_path)
    assert segmod.open("twice/seed0", tmp_path).directory == first
    assert segmod.open("twice", tmp_path, seed="seed1").directory == second


def test_predicts_what_the_command_predicts_and_needs_no_data(
    here: Path, home: Path, tmp_path: Path, command: Any
) -> None:
    Image.fromarray(PHOTO).save(tmp_path / "x.png")
    (home / "data").rename(home / "elsewhere")
    try:
        keys = (f"output={tmp_path}", "probabilities=true", "max_side=25", "device=cpu")
        assert command("predict", "run=small", f"input={tmp_path / 'x.png'}", *keys) == 0
        run = segmod.open("small", device="cpu")
        for given in (tmp_path / "x.png", str(tmp_path / "x.png"), Image.fromarray(PHOTO), PHOTO):
            found = run.predict(given, max_side=25)
            with Image.open(tmp_path / "masks" / "x.png") as mask:
                np.testing.assert_array_equal(found.labels, mask)
    finally:
        (home / "elsewhere").rename(home / "data")
    stored = np.load(tmp_path / "probabilities" / "x.npz")["probabilities"]
    np.testing.assert_array_equal(found.probabilities.astype(np.float16), stored)
    assert (found.labels.dtype, found.probabilities.dtype) == (np.uint8, np.float32)
    np.testing.assert_allclose(found.probabilities.sum(0), 1, atol=1e-5)
    np.testing.assert_array_equal(found.probabilities.argmax(0), found.labels)
    with Image.open(tmp_path / "overlays" / "x.png") as overlay:
        np.testing.assert_array_equal(found.overlay(), overlay)
    assert found._repr_png_().startswith(b"\x89PNG")
    assert not np.array_equal(run.predict(PHOTO).probabilities, found.probabilities)  # scored at its own size


def test_labels_of_a_large_image_need_no_volume_of_probabilities() -> None:
    side, classes = 2000, 21
    scores = torch.rand(classes, 40, 40)
    found = Prediction(np.zeros((side, side, 3), np.uint8), scores, Legend("VOC2012", VOC_CLASSES))
    peak = PeakMemory(torch.device("cpu"))
    labels = found.labels
    assert peak.read()["memory_bytes"] < 30 * side**2  # all classes take 84 bytes a pixel
    np.testing.assert_array_equal(labels, found.probabilities.argmax(0))


@pytest.mark.parametrize("wrong", [PHOTO.astype(np.float32), PHOTO[..., 0], np.zeros((3, 4, 5), np.uint8)])
def test_other_arrays_are_no_pictures(wrong: Any, here: Path) -> None:
    with pytest.raises(UserError, match=r"image: \w+ \(.*\) is no picture: give uint8 \(H, W, 3\) RGB, or a path"):
        segmod.open(here).predict(wrong)


def test_the_module_holds_the_same_net_and_predictor(here: Path) -> None:
    run = TrainedRun.open(here)
    assert run.module.net is run.net
    assert run.module.predictor is run.predictor
    assert not run.net.training
    weights = torch.load(run.checkpoint, weights_only=True)["state_dict"]
    for name, tensor in run.net.state_dict().items():
        assert torch.equal(tensor, weights[f"net.{name}"]), name


def test_changes_are_those_asked_for(here: Path) -> None:
    asked = {"_target_": "segmod.inference.multiscale.MultiScalePredictor", "scales": [0.5], "flip": False}
    run = TrainedRun.open(here, split="train", checkpoint="last", inference=asked, data={"root": "x", "pad": None})
    assert isinstance(run.predictor, MultiScalePredictor)
    assert (run.split, run.checkpoint.name, run.config.data.root, run.config.data.pad) == (
        "train",
        "last.ckpt",
        "x",
        "mean",
    )
    assert TrainedRun.open(here, inference={"size": 16}).predictor.size == 16  # type: ignore[attr-defined]
    assert TrainedRun.open(here).config.data.root == "data"
    assert run.stored_config().data.root == "data"


def test_config_and_metrics_cost_no_torch_and_prediction_no_lightning(here: Path) -> None:
    code = (
        "import sys, segmod\n"
        "assert 'hydra' not in sys.modules\n"
        "run = segmod.open('small', device='cpu')\n"
        "assert run.config.seed == 0 and run.metrics\n"
        "print([m for m in ('torch', 'lightning', 'cv2') if m in sys.modules])\n"
        "import numpy as np\n"
        "run.predict(np.zeros((8, 8, 3), np.uint8))\n"
        "import segmod.nets.backbones\n"
        "heavy = ('torch', 'torchvision', 'lightning', 'matplotlib', 'torch._dynamo')\n"
        "print([m for m in heavy if m in sys.modules])\n"
        "import torch, torchvision\n"
        "print(torchvision.ops.roi_align(torch.zeros(1, 1, 4, 4), [torch.zeros(1, 4)], 1).shape)\n"
        "print(torch.compile(torch.sin, backend='eager')(torch.zeros(1)).item())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    expected = ["[]", "['torch', 'torchvision']", "torch.Size([1, 1, 1, 1])", "0.0"]
    assert done.stdout.splitlines() == expected


def test_mistakes_are_told_in_one_line(here: Path, tmp_path: Path, capfd: Any, command: Any) -> None:
    with pytest.raises(UserError, match="run=fcn8s: no run there, and none of that name in runs"):
        segmod.open("fcn8s")
    with pytest.raises(UserError, match=r"checkpoint=no\.ckpt"):
        _ = segmod.open(here, checkpoint="no.ckpt").net
    with pytest.raises(UserError, match="device=abacus cannot be used"):
        segmod.open(here, device="abacus").predict(PHOTO)
    member = {"_target_": "segmod.runs.trained.member", "run": "fcn8s"}
    ensemble = {"_target_": "segmod.inference.ensemble.EnsemblePredictor", "fcn": member}
    with pytest.raises(UserError, match=r"inference\.fcn\.run=fcn8s: no run there"):
        segmod.open(here, inference=ensemble)
    with pytest.raises(UserError, match=r"^model\.predictor\.width: segmod\.\S+DensePredictor takes no such argument"):
        segmod.open(here, inference={"width": 3}).load()
    # a run of a version whose classes had other names, or took other arguments
    for key, value in (("model.net._target_", "segmod.heads.Net"), ("+model.net.mirror", 3), ("+data.mirror", True)):
        old = copy(here, tmp_path / key / "seed0")
        cfg = OmegaConf.load(old / ".hydra" / "config.yaml")
        OmegaConf.update(cfg, key.lstrip("+"), value)
        (old / ".hydra" / "config.yaml").write_text(OmegaConf.to_yaml(cfg))
        assert command("evaluate", f"run='{old}'", "trainer=cpu") == 1
        error = capfd.readouterr().err
        line = f"segmod: error: run={old}: this version of segmod cannot build it as it was stored ({key.lstrip('+')}"
        assert error.startswith(line)
        assert error.count("\n") == 1


def test_a_member_has_the_seed_of_the_run_itself(here: Path, tmp_path: Path) -> None:
    for name in ("ours", "other"):
        for k in (0, 1):
            copy(here, tmp_path / name / f"seed{k}")
    member = {"_target_": "segmod.runs.trained.member", "run": "other"}
    ensemble = {"_target_": "segmod.inference.ensemble.EnsemblePredictor", "fcn": member}
    run = TrainedRun.open("ours/seed1", tmp_path, inference=ensemble)
    assert run.config.inference.fcn.run == str(tmp_path / "other" / "seed1")
    with torch.no_grad():
        for weight in run.net.parameters():
            weight.zero_()
    # the only member speaks, with a net of its own: that of the run itself says nothing any more
    alone = TrainedRun.open(here).predict(PHOTO).probabilities
    np.testing.assert_allclose(run.predict(PHOTO).probabilities, alone, atol=1e-6)


def test_verification_and_download_are_of_the_training_alone(here: Path, tmp_path: Path) -> None:
    stored = copy(here, tmp_path / "seed0")
    cfg = OmegaConf.load(stored / ".hydra" / "config.yaml")
    cfg.data.verify = cfg.data.download = True
    (stored / ".hydra" / "config.yaml").write_text(OmegaConf.to_yaml(cfg))
    run = TrainedRun.open(stored)
    assert not run.datamodule.verify  # type: ignore[attr-defined]
    assert not run.datamodule.download  # type: ignore[attr-defined]
    assert TrainedRun.open(stored, data={"verify": True}).datamodule.verify  # type: ignore[attr-defined]
