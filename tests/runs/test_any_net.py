"""Nets on other backbones, and those of other libraries, are trained, stored and opened again as any other."""

import importlib.util
import sys
from typing import Any

import numpy as np
import pytest

from segmod.ground.errors import UserError
from segmod.runs.trained import TrainedRun

pytestmark = pytest.mark.usefixtures("stand_ins")
SCENES = (
    "data.dataset.size=48", "data.dataset.train_images=6", "data.dataset.val_images=2", "data.crop_size=null",
    "data.squash=null", "data.batch_size=2", "data.num_workers=0", "trainer.max_epochs=1", "trainer.max_steps=-1",
    "trainer.accumulate_grad_batches=1", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false",
    "trainer.enable_model_summary=false", "callbacks.pictures.count=0",
)  # fmt: skip
PICTURE = np.random.default_rng(0).integers(256, size=(37, 53, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "choice",
    [
        ("model=fcn8s", "model.net.backbone=mobilenet_v3_small"),
        pytest.param(
            ("model=hypercolumn_resnet18", "model.net.backbone=timm/convnext_atto", "callbacks=ema"),
            marks=pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is an extra"),
        ),
        ("model=torchvision_segmentation", "model.net.architecture=lraspp_mobilenet_v3_large"),
    ],
    ids=["fcn", "timm", "torchvision"],
)
def test_a_run_opens_as_it_was_trained_without_trust(choice: tuple[str, ...], segmod: Any) -> None:
    assert segmod("train", "name=a", *choice, *SCENES) == 0
    assert TrainedRun.open("a").predict(PICTURE).labels.shape == (37, 53)


def test_a_net_of_another_library_opens_for_who_trusts_it(segmod: Any) -> None:
    assert segmod("train", "name=a", "model=smp", *SCENES) == 0
    with pytest.raises(UserError, match=r"trust=segmentation_models_pytorch\.Unet"):
        TrainedRun.open("a").predict(PICTURE)
    assert TrainedRun.open("a", trust="segmentation_models_pytorch.Unet").predict(PICTURE).labels.shape == (37, 53)


@pytest.mark.parametrize(
    ("model", "package"), [("smp", "segmentation-models-pytorch"), ("transformers", "transformers")]
)
def test_a_package_that_is_missing_is_named(
    model: str, package: str, segmod: Any, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = package.replace("-", "_")
    monkeypatch.setitem(sys.modules, module, None)
    assert segmod("train", f"model={model}", *SCENES) == 1
    error = capfd.readouterr().err.splitlines()[-1]
    assert f"pip install {package}" in error
    assert "PYTHONPATH" not in error
