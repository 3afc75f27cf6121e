from urllib.error import URLError

import pytest
import torch
from torch import nn
from torchvision.models import VGG11_Weights, VGG16_Weights

from segmod.ground.errors import UserError
from segmod.nets.backbones import feature_maps, weights_family
from segmod.nets.deconvnet import DeconvNet
from segmod.nets.fcn import FCN
from segmod.nets.weights import load_backbone_weights


def vgg11(width=1.0):
    return feature_maps("vgg11", ["features.18"], width=width)


def squeezenet():
    return feature_maps("squeezenet1_0", ["features.12"])


def tiny():
    return feature_maps("tiny", ["features.13"])


def load(backbone, weights, name="vgg11"):
    load_backbone_weights(backbone, weights, weights_family(name))


def first(backbone):
    return backbone.get_submodule("features.0").weight


def test_null_keeps_the_random_values():
    backbone = tiny()
    before = first(backbone).clone()
    load(backbone, None)
    assert torch.equal(first(backbone), before)


def test_a_torchvision_state_dict_fits_and_its_classifier_is_left_out(tmp_path):
    source = squeezenet()
    state = {**source.state_dict(), "classifier.1.weight": torch.zeros(1000, 512, 1, 1)}
    torch.save(state, tmp_path / "w.pth")
    target = squeezenet()
    load(target, str(tmp_path / "w.pth"), "squeezenet1_0")
    assert all(torch.equal(tensor, target.state_dict()[name]) for name, tensor in source.state_dict().items())


def test_a_lightning_checkpoint_of_a_net_with_the_backbone_fits(tmp_path):
    source = tiny()
    source.get_submodule("features.1").running_mean.fill_(3.0)
    state = {f"net.backbone.{name}": tensor for name, tensor in source.state_dict().items()}
    torch.save({"state_dict": {**state, "net.score.weight": torch.zeros(2, 2)}}, tmp_path / "w.ckpt")
    target = tiny()
    load(target, str(tmp_path / "w.ckpt"), "tiny")
    assert torch.equal(target.get_submodule("features.1").running_mean, torch.full((16,), 3.0))


def torchvision_vgg16(width):
    """State dict with torchvision's names and, but for the width, shapes: fc6 and fc7 are fully connected."""
    own = FCN(5, width=width).state_dict()
    features = {name.removeprefix("backbone."): tensor for name, tensor in own.items() if "features" in name}
    state = {name: torch.randn_like(tensor) for name, tensor in features.items()}
    for fc, theirs in (("fc6", "classifier.0"), ("fc7", "classifier.3")):
        state[f"{theirs}.weight"] = torch.randn_like(own[f"{fc}.weight"]).flatten(1)
        state[f"{theirs}.bias"] = torch.randn_like(own[f"{fc}.bias"])
    return state


def test_the_classifier_of_vgg16_becomes_fc6_and_fc7(tmp_path):
    state = torchvision_vgg16(width=0.02)
    torch.save(state, tmp_path / "vgg.pth")
    net = FCN(5, weights=str(tmp_path / "vgg.pth"), width=0.02, padding="same").eval()
    # one 7x7 map under fc6 is what the fully connected layer saw
    pool5 = torch.randn(1, net.fc6.in_channels, 7, 7)
    expected = pool5.flatten(1) @ state["classifier.0.weight"].T + state["classifier.0.bias"]
    fc6 = nn.functional.conv2d(pool5, net.fc6.weight, net.fc6.bias).flatten(1)
    torch.testing.assert_close(fc6, expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(net.fc7.bias, state["classifier.3.bias"])
    assert torch.equal(first(net.backbone), state["features.0.weight"])


def test_names_download_through_torchvision(monkeypatch):
    source = vgg11()
    asked = []

    def download(self, **options):
        asked.append((self.name, options["check_hash"], options["weights_only"]))
        return source.state_dict()

    monkeypatch.setattr(VGG11_Weights, "get_state_dict", download)
    for name in ("DEFAULT", "IMAGENET1K_V1", "VGG11_Weights.IMAGENET1K_V1"):
        target = vgg11()
        load(target, name)
        assert torch.equal(first(target), first(source))
    assert asked == [("IMAGENET1K_V1", True, True)] * 3


def test_a_failed_download_tells_the_address_and_the_ways_out(monkeypatch):
    def fail(self, **options):
        raise URLError("no route to host")

    monkeypatch.setattr(VGG11_Weights, "get_state_dict", fail)
    with pytest.raises(UserError) as caught:
        load(vgg11(), "DEFAULT")
    message = str(caught.value)
    assert "\n" not in message
    for part in ("model.net.weights=DEFAULT", "no route to host", "https://", "model.net.weights=/path/to/vgg11",
                 "model.net.weights=null"):  # fmt: skip
        assert part in message


@pytest.mark.parametrize("weights", ["IMAGENET1K_V9", "VGG16_Weights.IMAGENET1K_V1", "missing.pth"])
def test_an_unknown_name_or_missing_file_lists_the_choices(weights):
    with pytest.raises(UserError, match=r"model\.net\.weights=.* neither .*IMAGENET1K_V1.* null"):
        load(vgg11(), weights)


def test_weights_of_another_architecture(tmp_path):
    torch.save(vgg11(width=0.5).state_dict(), tmp_path / "half.pth")
    with pytest.raises(
        UserError, match=r"half\.pth has \(32, 3, 3, 3\) for 'features\.0\.weight', not \(64, 3, 3, 3\)"
    ):
        load(vgg11(), str(tmp_path / "half.pth"))
    with pytest.raises(UserError, match=r"half\.pth holds no 'features\.3\.squeeze\.weight'|has \(32, 3, 3, 3\)"):
        load(squeezenet(), str(tmp_path / "half.pth"), "squeezenet1_0")


def test_weights_without_values_are_refused(tmp_path):
    state = vgg11().state_dict()
    state["features.3.weight"] = state["features.3.weight"] * float("nan")
    torch.save(state, tmp_path / "vgg.pth")
    with pytest.raises(UserError, match=r"no values for 'features\.3\.weight'.*IMAGENET1K_V1"):
        load(vgg11(), str(tmp_path / "vgg.pth"))


@pytest.mark.parametrize("build", [FCN, DeconvNet])
def test_features_alone_leave_the_classifier_random_and_say_so(build, tmp_path, caplog):
    state = torchvision_vgg16(width=0.02)
    features = {name: tensor for name, tensor in state.items() if name.startswith("features")}
    # torchvision's VGG16_Weights.IMAGENET1K_FEATURES has NaN for the classifier
    without_values = state | {name: state[name] * float("nan") for name in state if name.startswith("classifier")}
    assert "IMAGENET1K_FEATURES" in VGG16_Weights.__members__
    caplog.set_level("WARNING", "segmod")
    for given in (features, without_values):
        torch.save(given, tmp_path / "vgg.pth")
        caplog.clear()
        net = build(5, weights=str(tmp_path / "vgg.pth"), width=0.02)
        assert all(parameter.isfinite().all() for parameter in net.parameters())
        assert caplog.messages == [f"model.net.weights={tmp_path / 'vgg.pth'} has no fc6, fc7: random values there"]
    caplog.clear()
    torch.save(state, tmp_path / "vgg.pth")
    build(5, weights=str(tmp_path / "vgg.pth"), width=0.02)
    assert not caplog.messages


def test_a_file_that_counts_the_dropout_first_fits(tmp_path):
    """``classifier.1`` and ``.4`` in place of torchvision's ``.0`` and ``.3``, as conversions from Caffe have them."""
    state = torchvision_vgg16(width=0.02)
    moved = {name.replace("classifier.0", "classifier.1").replace("classifier.3", "classifier.4") for name in state}
    torch.save({new: state[old] for old, new in zip(sorted(state), sorted(moved), strict=True)}, tmp_path / "caffe.pth")
    net = FCN(5, weights=str(tmp_path / "caffe.pth"), width=0.02)
    assert torch.equal(net.fc6.bias, state["classifier.0.bias"])
    assert torch.equal(net.fc7.bias, state["classifier.3.bias"])
