import copy

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn
from torchvision.models import get_model

from segmod.ground.errors import UserError
from segmod.nets.backbones import feature_maps, in_stages, map_shapes, scaled, smallest_side
from segmod.runs.cli import CONF_DIR

TAPS = {
    name: list(OmegaConf.load(CONF_DIR / "model" / f"{name}.yaml").model.net.taps)
    for name in ("tiny", "hypercolumn_vgg11", "hypercolumn_squeezenet")
}


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def image(height=65, width=50):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


# -- maps of any layers ----------------------------------------------------------------------------------------------


def test_vgg11_taps_are_the_last_convolution_before_each_pooling():
    with torch.device("meta"):
        backbone = feature_maps("vgg11", TAPS["hypercolumn_vgg11"])
        maps = backbone(torch.empty(1, 3, 224, 224))
    assert [tuple(tap.shape[1:]) for tap in maps.values()] == [
        (64, 224, 224), (128, 112, 112), (256, 56, 56), (512, 28, 28), (512, 14, 14),
    ]  # fmt: skip
    assert parameters(backbone) == 9220480


def test_squeezenet_taps_have_the_sizes_of_the_paper():
    # conv1 7x7/2 without padding: (224 - 7) // 2 + 1 = 109; poolings 3x3/2 rounding up: 54, 27, 13; a Fire module's
    # channels are those of its two expanding convolutions: 96, 2 * 64, 2 * 64, 2 * 128, 2 * 192, 2 * 256
    backbone = feature_maps("squeezenet1_0", TAPS["hypercolumn_squeezenet"])
    shapes = list(map_shapes(backbone, 224).values())
    assert shapes[0] == (96, 109)
    assert shapes[1::2] == shapes[2::2] == [(64, 54), (64, 54), (128, 27), (192, 27), (256, 13)]
    assert sum(channels for channels, _ in shapes) == 1504
    assert parameters(backbone) == 735424


@pytest.mark.parametrize(
    ("name", "taps"), [("vgg11", "hypercolumn_vgg11"), ("squeezenet1_0", "hypercolumn_squeezenet")]
)
def test_maps_are_what_torchvisions_own_layers_compute_before_their_relu(name, taps):
    torch.manual_seed(0)
    theirs = get_model(name).eval()
    backbone = feature_maps(name, TAPS[taps]).eval()
    backbone.load_state_dict({key: value for key, value in theirs.state_dict().items() if key in backbone.state_dict()})
    seen = {}
    for tap in TAPS[taps]:
        theirs.get_submodule(tap).register_forward_hook(lambda _, __, out, tap=tap: seen.update({tap: out.clone()}))
    with torch.no_grad():
        theirs.features(image())
        maps = backbone(image())
    assert list(maps) == TAPS[taps]
    for tap, got in maps.items():
        torch.testing.assert_close(got, seen[tap])
        assert (got < 0).any()


def test_a_layer_behind_the_relu_is_another_map():
    maps = feature_maps("vgg11", ["features.3", "features.4"])(image())
    torch.testing.assert_close(maps["features.3"].relu(), maps["features.4"])


def test_tiny_has_strides_one_to_sixteen():
    maps = feature_maps("tiny", TAPS["tiny"], width=0.125)(torch.zeros(1, 3, 32, 48))
    assert [tuple(tap.shape[1:]) for tap in maps.values()] == [
        (2, 32, 48), (4, 16, 24), (8, 8, 12), (12, 4, 6), (16, 2, 3),
    ]  # fmt: skip


def test_a_backbone_can_be_copied_and_trained():
    backbone = copy.deepcopy(feature_maps("tiny", ["features.13"]))
    assert backbone.train().training
    before = backbone.get_submodule("features.1").running_mean.clone()
    backbone(image())["features.13"].square().mean().backward()
    assert all(parameter.grad is not None for name, parameter in backbone.named_parameters() if "0.weight" in name)
    assert not torch.equal(backbone.get_submodule("features.1").running_mean, before)


# -- stages ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2"])
def test_stages_of_a_resnet_are_those_of_the_paper(name):
    """S1 = conv1, bn1, relu; S2 = maxpool, layer1; then layer2, layer3, layer4."""
    with torch.device("meta"):
        trunk, stages, channels = in_stages(name)
        theirs = get_model(name)
    tops = [list(dict.fromkeys(layer.split(".")[0] for layer in stage)) for stage in stages]
    assert tops == [["conv1", "bn1", "relu"], ["maxpool", "layer1"], ["layer2"], ["layer3"], ["layer4"]]
    assert channels == (64, *(planes * (1 if name == "resnet18" else 4) for planes in (64, 128, 256, 512)))
    shapes = {key: value.shape for key, value in theirs.state_dict().items() if not key.startswith("fc.")}
    assert {key: value.shape for key, value in trunk.state_dict().items()} == shapes


def test_stages_one_by_one_give_the_map_of_torchvision():
    torch.manual_seed(0)
    theirs = get_model("resnet18").eval()
    trunk, stages, _ = in_stages("resnet18")
    trunk.eval().load_state_dict({k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")})
    x = expected = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for part in list(theirs.children())[:-2]:  # all but avgpool and fc
            expected = part(expected)
        for k, stage in enumerate(stages, 1):
            for layer in stage:
                x = trunk.get_submodule(layer)(x)
            assert x.shape[2:] == (64 >> k, 64 >> k)
    torch.testing.assert_close(x, expected)


@pytest.mark.parametrize("name", ["vgg16", "mobilenet_v2", "efficientnet_b0", "regnet_y_400mf", "convnext_tiny"])
def test_other_nets_have_five_stages_too(name):
    trunk, stages, channels = in_stages(name)
    maps = trunk(torch.randn(2, 3, 64, 64))
    assert maps.shape == (2, channels[-1], 2, 2)
    assert len(stages) == 5
    assert not any(layer.startswith(("classifier", "avgpool", "fc", "head")) for stage in stages for layer in stage)


# -- width and mistakes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vgg16", "resnet50", "mobilenet_v2", "tiny"])
def test_a_narrow_net_has_that_share_of_the_channels(name):
    for width in (1.0, 0.25):
        trunk, _, channels = in_stages(name, width=width)
        full = {"vgg16": 512, "resnet50": 2048, "mobilenet_v2": 1280, "tiny": 128}[name]
        assert channels[-1] == scaled(full, width)
        first = next(part for part in trunk.modules() if isinstance(part, nn.Conv2d))
        assert first.in_channels == 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: feature_maps("vgg17", ["features.0"]), r"backbone=vgg17: no such net .* vgg1"),
        (
            lambda: feature_maps("vgg11", ["features.99"]),
            r"taps: vgg11 has no layer 'features\.99'; there are features",
        ),
        (lambda: in_stages("googlenet"), "googlenet: its layers are no sequence|googlenet"),
        (lambda: in_stages("swin_t"), "swin_t: its layers are no sequence of maps"),
        (lambda: in_stages("resnext50_32x4d", width=0.1), "width=0.1: resnext50_32x4d has groups"),
        (lambda: in_stages("densenet121", width=0.3), "width=0.3|do not fit together"),
    ],
)
def test_mistakes_name_the_key(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_the_smallest_image_that_a_net_takes():
    backbone = feature_maps("squeezenet1_0", ["features.12"])
    least = smallest_side(backbone)
    backbone(torch.zeros(1, 3, least, least))
    with pytest.raises(RuntimeError):
        backbone(torch.zeros(1, 3, least - 1, least - 1))
