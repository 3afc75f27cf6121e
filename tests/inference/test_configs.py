"""Every way of scoring composes with nets trained on crops and on whole images, is built, and runs on a GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from segmod.data.proposals import GridBoxes
from segmod.ground.types import Batch, Predictor
from segmod.inference.dense import DensePredictor
from segmod.inference.ensemble import EnsemblePredictor
from segmod.inference.multiscale import MultiScalePredictor
from segmod.inference.proposals import ProposalPredictor
from segmod.inference.sliding import SlidingPredictor
from segmod.runs import cli
from segmod.runs import folders as runs
from segmod.runs.instantiate import check, instantiate, settle_classes

OPTIONS = sorted(path.stem for path in (cli.CONF_DIR / "inference").glob("*.yaml"))


def composed(*overrides: str) -> DictConfig:
    runs.register_resolvers()
    with initialize_config_dir(str(cli.CONF_DIR), version_base="1.3"):
        cfg = compose("train", overrides=list(overrides))
    cfg.run_dir = "unused"
    return cfg


@pytest.mark.parametrize("model", ["deconvnet", "fcn8s"])
@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_composes_into_valid_arguments(option: str, model: str) -> None:
    cfg = composed(f"inference={option}", f"model={model}", "data=voc")
    settle_classes(cfg)
    check(OmegaConf.to_container(cfg.model, resolve=True), "model")


@pytest.mark.parametrize("option", ["proposals", "proposals_crf"])
def test_proposals_are_built(option: str, tmp_path: Path) -> None:
    cfg = composed(f"inference={option}", "proposals=grid", "model=deconvnet", "data=voc")
    predictor = instantiate(cfg, "inference")
    predictor = predictor if option == "proposals" else predictor.predictor
    assert isinstance(predictor, ProposalPredictor)
    assert isinstance(predictor.proposals, GridBoxes)
    # the paper: the 50 best, enlarged 1.2 times, the maximum of their scores
    assert (predictor.max_proposals, predictor.extend, predictor.aggregate, predictor.size) == (50, 1.2, "max", 224)


def test_members_can_be_scored_otherwise() -> None:
    cfg = composed("inference=ensemble_crf", "inference@inference.predictor.own=dense")
    assert instantiate(cfg, "inference.predictor.own").__class__ is DensePredictor


class Weighted(nn.Module):
    """Takes the three colours for the scores of three classes."""

    num_classes = 3

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        return image * self.weight


PREDICTORS: dict[str, Predictor] = {
    "dense": DensePredictor(),
    "squashed": DensePredictor(5),
    "multiscale": MultiScalePredictor(),
    "sliding": SlidingPredictor(6, batch_size=2),
    "proposals": ProposalPredictor(GridBoxes(), min_side=None, size=8),
    "ensemble": EnsemblePredictor(dense=DensePredictor(), multiscale=MultiScalePredictor()),
    "product": EnsemblePredictor("score_product", one=DensePredictor(), other=DensePredictor(4)),
}


@pytest.mark.parametrize("name", PREDICTORS)
def test_every_tensor_is_on_the_device_of_the_image(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "proposals":  # boxes are found in pixels, which a tensor without values does not have
        monkeypatch.setattr(ProposalPredictor, "_boxes", lambda *_: [np.array([[-1, 0, 7, 9], [2, 2, 6, 11]])] * 2)
    with FakeTensorMode():  # tensors have a device and no values; it refuses to mix devices
        with torch.device("cuda"):
            net = Weighted()
        image = torch.empty(2, 3, 9, 10, dtype=torch.uint8)
        mask, index = torch.empty(2, 9, 10, dtype=torch.uint8), torch.empty(2, dtype=torch.int64)
        batch: Batch = {"image": image.to("cuda"), "mask": mask.to("cuda"), "name": ["a", "b"], "index": index}
        scores = PREDICTORS[name](net, batch)
        assert (scores.device.type, scores.dtype, tuple(scores.shape)) == ("cuda", torch.float32, (2, 3, 9, 10))
        with pytest.raises(RuntimeError, match="device"):
            PREDICTORS[name](net, {**batch, "image": image})
