"""Every way of scoring composes with nets trained on crops and on whole images, checks out, and is built."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

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
    from segmod.data.proposals import GridBoxes
    from segmod.inference.proposals import ProposalPredictor

    cfg = composed(f"inference={option}", "proposals=grid", "model=deconvnet", "data=voc")
    predictor = instantiate(cfg, "inference")
    predictor = predictor if option == "proposals" else predictor.predictor
    assert isinstance(predictor, ProposalPredictor)
    assert isinstance(predictor.proposals, GridBoxes)
    # the paper: the 50 best, enlarged 1.2 times, the maximum of their scores
    assert (predictor.max_proposals, predictor.extend, predictor.aggregate, predictor.size) == (50, 1.2, "max", 224)


def test_members_can_be_scored_otherwise() -> None:
    from segmod.inference.dense import DensePredictor

    cfg = composed("inference=ensemble_crf", "inference@inference.predictor.own=dense")
    assert instantiate(cfg, "inference.predictor.own").__class__ is DensePredictor
