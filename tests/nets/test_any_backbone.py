"""Every net on backbones of torchvision and timm of every kind: convolutions, windows, tokens."""

import hashlib
import importlib
import logging
import sys

import pytest
import torch
from torch import nn
from torchvision.models import get_model

from segmod.ground.errors import UserError
from segmod.nets import timm_nets
from segmod.nets.backbones import feature_maps, in_stages, last_layers
from segmod.nets.boxwise import SingleSkip
from segmod.nets.fcn import FCN
from segmod.nets.hypercolumn import Hypercolumn
from segmod.nets.pyramid import DeepFeaturePyramid

CLASSES = 3
TIMM = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is an extra")
SWIN, VIT = "timm/swin_tiny_patch4_window7_224", "timm/vit_tiny_patch16_224"
BACKBONES = [
    "resnet18",
    "mobilenet_v3_small",
    *(
        pytest.param(name, marks=TIMM)
        for name in ("timm/resnet18", "timm/mobilenetv3_small_050", "timm/convnext_atto", SWIN, VIT)
    ),
]
NETS = {
    "fcn": lambda backbone: FCN(CLASSES, 16 if backbone == VIT else 8, backbone),
    "hypercolumn": lambda backbone: Hypercolumn(CLASSES, backbone, hidden=8, freeze_backbone=False),
    "boxwise": lambda backbone: SingleSkip(
        CLASSES, backbone, taps=None, connections=None if backbone == VIT else 2, hidden=4, boxes=8
    ),
    "pyramid": lambda backbone: DeepFeaturePyramid(CLASSES, 3, backbone),
}


def image(*size):
    return torch.randint(
        256, (*size[:-2], 3, *size[-2:]), generator=torch.Generator().manual_seed(1), dtype=torch.uint8
    )


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_net_learns_on_a_backbone_and_scores_odd_sizes(backbone, kind):
    torch.manual_seed(0)
    if kind == "pyramid" and backbone in (SWIN, VIT):
        with pytest.raises(UserError, match=r"model\.net\.backbone=.* its layers are no sequence of maps"):
            NETS[kind](backbone)
        return
    net = NETS[kind](backbone)
    for parameter in net.parameters():  # score layers start at zero, which would stop every gradient below them
        if parameter.dim() == 4 and not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    logits = net.train()(image(2, 64, 96))
    assert logits.shape == (2, CLASSES, 64, 96)
    logits.square().mean().backward()
    lost = [name for name, p in net.named_parameters() if p.requires_grad and (p.grad is None or p.grad.isnan().any())]
    assert not lost
    with torch.no_grad():
        size = (67, 93) if kind == "pyramid" else (37, 53)  # of which the pyramid takes half
        odd = net.eval()(image(2, *size))
        assert odd.shape == (2, CLASSES, *size)
        assert odd.isfinite().all()
        torch.testing.assert_close(net(image(2, *size)[1:]), odd[1:], atol=1e-4, rtol=1e-3)


# -- what stays as it was --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "layers", "count", "digest"),
    [
        ("vgg16", ["features.16", "features.23", "features.30"], 26, "7ae4d4f565d70dfc"),
        ("squeezenet1_0", ["features.0", "features.3.expand1x1", "features.12"], 50, "e9e3ca324ba3a671"),
        ("resnet50", ["relu", "layer1.0.bn2", "layer4"], 318, "3fd989592177b1c7"),
        ("inception_v3", ["Mixed_6e", "Mixed_7c"], 564, "345c0fc4996308a8"),
    ],
)
def test_names_and_shapes_of_a_backbones_weights_are_those_of_older_checkpoints(name, layers, count, digest):
    with torch.device("meta"):
        state = feature_maps(name, layers).state_dict()
    assert len(state) == count
    listed = "\n".join(f"{key} {tuple(value.shape)}" for key, value in state.items())
    assert hashlib.sha256(listed.encode()).hexdigest()[:16] == digest


def test_names_of_fcns_weights_are_those_of_older_checkpoints():
    with torch.device("meta"):
        names = {name.partition(".")[0] for name in FCN(21, 8).state_dict()}
    assert names == {"backbone", "fc6", "fc7", "score_fr", "score_pool4", "score_pool3"}


# -- the last layer at each stride -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("resnet18", {2: "relu", 4: "layer1", 8: "layer2", 16: "layer3", 32: "layer4"}),
        ("tiny", {1: "features.2", 2: "features.5", 4: "features.8", 8: "features.11", 16: "features"}),
        ("squeezenet1_0", {2: "features.1", 4: "features.5", 8: "features.10", 16: "features"}),
        ("mobilenet_v3_small", {2: "features.0", 4: "features.1", 8: "features.3", 16: "features.8", 32: "features"}),
        ("inception_v3", {2: "Conv2d_2b_3x3", 4: "Conv2d_4a_3x3", 8: "Mixed_5d", 16: "Mixed_6e", 32: "Mixed_7c"}),
        ("swin_t", {4: "features.1", 8: "features.3", 16: "features.5", 32: "permute"}),
        pytest.param(
            "timm/convnext_atto", {4: "stages.0", 8: "stages.1", 16: "stages.2", 32: "norm_pre"}, marks=TIMM
        ),
        pytest.param(VIT, {16: "norm"}, marks=TIMM),
    ],
)  # fmt: skip
def test_a_stage_ends_with_its_last_block(name, layers):
    assert last_layers(name) == layers


@TIMM
def test_they_are_where_timm_itself_takes_features():
    timm = importlib.import_module("timm")
    for name in ("resnet18", "regnety_002", "densenet121"):
        ours, theirs = last_layers(f"timm/{name}"), timm.create_model(name, features_only=True).feature_info
        assert [ours[stride] for stride in theirs.reduction()][:4] == theirs.module_name()[:4]


# -- maps of nets that have none of their own ------------------------------------------------------------------------


def test_channels_that_come_last_are_brought_before_the_rows():
    torch.manual_seed(0)
    trunk = feature_maps("swin_t", ["features.1", "features.3"]).eval()
    theirs = get_model("swin_t").eval()
    theirs.load_state_dict(trunk.state_dict(), strict=False)
    x = torch.randn(1, 3, 45, 70)
    with torch.no_grad():
        maps = trunk(x)
        torch.testing.assert_close(maps["features.1"], theirs.features[:2](x).permute(0, 3, 1, 2))
    assert [tuple(part.shape) for part in maps.values()] == [(1, 96, 11, 17), (1, 192, 6, 9)]


@TIMM
@pytest.mark.parametrize(("name", "layer", "index"), [(VIT, "blocks.5", 5), (SWIN, "layers.1", 1)])
@pytest.mark.parametrize("size", [(224, 224), (64, 96)])
def test_a_map_of_tokens_or_windows_is_timms_own(name, layer, index, size):
    torch.manual_seed(0)
    net = timm_nets.build(name).eval()
    trunk = feature_maps(name, [layer]).eval()
    trunk.load_state_dict({key: value for key, value in net.state_dict().items() if key in trunk.state_dict()})
    x = torch.randn(1, 3, *size)
    with torch.no_grad():
        (expected,) = net.forward_intermediates(x, indices=[index], output_fmt="NCHW", intermediates_only=True)
        torch.testing.assert_close(trunk(x)[layer], expected)


# -- weights of timm -------------------------------------------------------------------------------------------------


@TIMM
def test_a_file_of_timms_weights_fits(tmp_path):
    theirs = importlib.import_module("timm").create_model("resnet18")
    torch.save(theirs.state_dict(), tmp_path / "resnet18.pth")
    trunk = feature_maps("timm/resnet18", ["layer2"], str(tmp_path / "resnet18.pth"))
    assert torch.equal(trunk.get_submodule("layer2.1.conv2").weight, theirs.layer2[1].conv2.weight)
    stages = in_stages("timm/resnet18", str(tmp_path / "resnet18.pth"))
    assert torch.equal(stages.trunk.get_submodule("layer4.1.conv2").weight, theirs.layer4[1].conv2.weight)


@TIMM
def test_other_pixels_than_the_weights_expect_are_told_in_a_line(monkeypatch, caplog):
    monkeypatch.setattr(timm_nets.TimmWeights, "read", lambda self, name: timm_nets.build(VIT).state_dict())
    half = {"mean": [127.5] * 3, "std": [127.5] * 3}
    with caplog.at_level(logging.WARNING):
        Hypercolumn(CLASSES, VIT, weights="DEFAULT", normalise=half)
        assert not caplog.messages
        Hypercolumn(CLASSES, VIT, weights="DEFAULT")
    assert caplog.messages == [
        "model.net.weights=DEFAULT was trained on other pixels: "
        "model.net.normalise={mean: [127.5, 127.5, 127.5], std: [127.5, 127.5, 127.5]}"
    ]


@TIMM
def test_weights_that_cannot_be_fetched_say_so_in_a_line(monkeypatch):
    def refuse(*args, **options):
        raise ConnectionError("no route to host\nand more")

    timm = importlib.import_module("timm")
    build = timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda *a, pretrained=False, **o: (refuse if pretrained else build)(*a, **o)
    )
    with pytest.raises(UserError, match=r"weights=a1_in1k could not be downloaded \(no route to host\): .*=null$"):
        FCN(CLASSES, backbone="timm/resnet18", weights="a1_in1k")


# -- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FCN(2, backbone="resnet18", padding="border"), "padding=border is VGG-16's alone"),
        (lambda: FCN(2, backbone="resnet18", learn_upsample=True), "learn_upsample=true is VGG-16's alone"),
        (
            lambda: FCN(2, 32, "squeezenet1_0"),
            "stride=32: squeezenet1_0 has maps at strides 2, 4, 8, 16: of 32, 16 and 8 choose 8, 16",
        ),
        (lambda: FCN(2, backbone="vit_b_16"), "backbone=vit_b_16 takes no image of 224 x 112 pixels"),
        pytest.param(lambda: FCN(2, 8, VIT), "stride=8: .* has maps at strides 16: .* choose 16", marks=TIMM),
        pytest.param(lambda: last_layers("timm/resnet81"), "no such net in timm; did you mean timm/resnet", marks=TIMM),
        pytest.param(lambda: last_layers("timm/hf-hub:a/b"), "no such net in timm; did you mean timm/", marks=TIMM),
        pytest.param(
            lambda: last_layers("mobilenetv3_small_100"), "did you mean timm/mobilenetv3_small_100", marks=TIMM
        ),
        pytest.param(
            lambda: feature_maps("timm/resnet18", ["act1"], width=0.5), r"width=0\.5: nets of timm", marks=TIMM
        ),
        pytest.param(
            lambda: feature_maps("timm/resnet18", ["act1"], "IMAGENET1K_V1"),
            "weights=IMAGENET1K_V1 is neither a file nor weights of this backbone: give DEFAULT, a1_in1k",
            marks=TIMM,
        ),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(call, message):
    with pytest.raises(UserError, match=rf"^model\.net\.\w+=.*{message}|^model\.net\.{message}") as caught:
        call()
    assert len(str(caught.value)) <= 300


def test_without_timm_its_nets_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"timm/resnet18: timm is not installed: pip install 'segmod\[timm\]'"):
        last_layers("timm/resnet18")
    with pytest.raises(UserError, match="vgg17: no such net in torchvision; did you mean vgg1"):
        last_layers("vgg17")
