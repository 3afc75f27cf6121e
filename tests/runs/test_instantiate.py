import pytest
from omegaconf import OmegaConf

from segmod.ground.errors import UserError
from segmod.runs.instantiate import instantiate

SGD = {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1}


def build(node: dict[str, object], **kwargs: object) -> object:
    return instantiate(OmegaConf.create({"model": {"optimizer": node}}), "model.optimizer", **kwargs)


def test_a_right_config_is_built() -> None:
    conv = build({"_target_": "torch.nn.Conv2d", "in_channels": 3, "out_channels": 2, "kernel_size": [3, 1]})
    assert tuple(conv.weight.shape) == (2, 3, 3, 1)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (SGD | {"lr": "fast"}, r"model\.optimizer\.lr='fast' has the wrong type"),
        (SGD | {"momentum": [0.9]}, r"model\.optimizer\.momentum=\[0.9\] has the wrong type"),
        (SGD | {"nesterov": "often"}, r"model\.optimizer\.nesterov='often' has the wrong type"),
        (SGD | {"momentun": 0.9}, r"model\.optimizer\.momentun: torch\.optim\.SGD takes no .*did you mean momentum\?"),
        (
            {
                "_target_": "segmod.inference.crf.CRFPredictor",
                "predictor": {"_target_": "builtins.dict"},
                "normalization": "none",
            },
            r"model\.optimizer\.normalization: .* takes no such argument; did you mean kernel_normalization\?",
        ),
        (
            SGD | {"_target_": "torch.optim.Adagrad", "momentum": 0.9, "nesterov": True},
            r"momentum: torch\.optim\.Adagrad takes no such argument; leave it out by "
            r"~model\.optimizer\.momentum ~model\.optimizer\.nesterov, or it takes params, lr, ",
        ),
        (SGD | {"_target_": "torch.optim.SDG"}, r"model\.optimizer\._target_=torch\.optim\.SDG: cannot be imported"),
        (SGD | {"lr": "???"}, r"model\.optimizer\.lr"),
        ({"_target_": "torch.nn.Conv2d", "in_channels": 3, "kernel_size": 1}, r"out_channels is required by torch\.nn"),
        (
            {"_target_": "torch.nn.Conv2d", "in_channels": 3, "out_channels": 4, "kernel_size": 1, "groups": 2},
            r"model\.optimizer: in_channels must be divisible by groups",
        ),
        ({"_target_": "torch.nn.Sequential", "x": 1}, r"model\.optimizer\.x"),
    ],
)
def test_a_wrong_config_names_its_key(node: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(node)


def test_the_config_stays_as_it_was() -> None:
    outer = {"_target_": "builtins.dict", "inner": "${inner}"}
    cfg = OmegaConf.create({"size": 3, "inner": {"_target_": "builtins.dict", "size": "${size}"}, "outer": outer})
    before = OmegaConf.to_yaml(cfg)
    assert instantiate(cfg, "outer") == {"inner": {"size": 3}}
    assert OmegaConf.to_yaml(cfg) == before


def test_nested_nodes_are_checked_with_their_full_key() -> None:
    cfg = OmegaConf.create(
        {"model": {"_target_": "builtins.dict", "loss": {"_target_": "torch.nn.CrossEntropyLoss", "ignore_index": "x"}}}
    )
    with pytest.raises(UserError, match=r"model\.loss\.ignore_index='x' has the wrong type"):
        instantiate(cfg, "model")
    cfg.model.loss._target_ = "???"
    with pytest.raises(UserError, match=r"model\.loss\._target_ is required: give model\.loss\._target_="):
        instantiate(cfg, "model")


def test_a_list_is_a_tensor_where_the_signature_asks_for_one() -> None:
    node = {"_target_": "torch.nn.CrossEntropyLoss", "weight": [1, 2.5]}
    cfg = OmegaConf.create({"loss": {"_target_": "segmod.losses.Sum", "parts": {"a": node}, "factors": {"a": 2}}})
    assert instantiate(cfg, "loss").parts.a.weight.tolist() == [1, 2.5]
    node["weight"] = [1, "x"]
    with pytest.raises(UserError, match=r"^model\.optimizer\.weight=\[1, 'x'\] has the wrong type"):
        build(node)
    node["weight"] = 2
    with pytest.raises(UserError, match=r"^model\.optimizer\.weight=2 has the wrong type"):
        build(node)
