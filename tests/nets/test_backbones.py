import pytest
import torch
from torch import nn
from torchvision.models import squeezenet1_0, vgg11

from segmod.nets.backbones import VGG11, VGG16, SqueezeNet, Tiny


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_vgg11_taps_are_the_last_convolution_before_each_pooling():
    with torch.device("meta"):
        backbone = VGG11()
        maps = backbone(torch.empty(1, 3, 224, 224))
    assert [tuple(tap.shape[1:]) for tap in maps] == [
        (64, 224, 224), (128, 112, 112), (256, 56, 56), (512, 28, 28), (512, 14, 14),
    ]  # fmt: skip
    assert sum(backbone.channels) == 1472
    assert parameters(backbone) == 9220480


def test_squeezenet_taps_have_the_sizes_of_the_paper():
    # conv1 7x7/2 without padding: (224 - 7) // 2 + 1 = 109; poolings 3x3/2 rounding up: 54, 27, 13
    with torch.device("meta"):
        backbone = SqueezeNet()
        maps = backbone(torch.empty(1, 3, 224, 224))
    assert [tuple(tap.shape[1:]) for tap in maps] == [
        (96, 109, 109), (128, 54, 54), (128, 54, 54), (256, 27, 27), (384, 27, 27), (512, 13, 13),
    ]  # fmt: skip
    assert sum(backbone.channels) == 1504
    assert parameters(backbone) == 735424


@pytest.mark.parametrize(("build", "peer"), [(VGG11, vgg11), (SqueezeNet, squeezenet1_0)])
@pytest.mark.parametrize("tap", ["pre_relu", "post_relu"])
def test_taps_are_what_torchvisions_own_layers_compute(build, peer, tap):
    torch.manual_seed(0)
    theirs = peer().features.eval()
    backbone = build(tap=tap)
    backbone.features.load_state_dict(theirs[: len(backbone.features)].state_dict())
    seen = {}
    for index in backbone.taps:
        layer = theirs[index]
        parts = [layer] if isinstance(layer, nn.Conv2d) else [layer.expand1x1, layer.expand3x3]
        for part in parts:
            part.register_forward_hook(lambda _, __, out, at=index: seen.setdefault(at, []).append(out.clone()))
    image = torch.randn(1, 3, 65, 50)
    with torch.no_grad():
        theirs(image)
        maps = backbone(image)
    for index, got in zip(backbone.taps, maps, strict=True):
        expected = torch.cat(seen[index], dim=1)
        torch.testing.assert_close(got, expected if tap == "pre_relu" else expected.relu())
        assert bool((got < 0).any()) == (tap == "pre_relu")


def test_tiny_has_strides_one_to_sixteen():
    maps = Tiny(channels=(2, 3, 4, 5, 6))(torch.zeros(1, 3, 32, 48))
    assert [tuple(tap.shape[1:]) for tap in maps] == [(2, 32, 48), (3, 16, 24), (4, 8, 12), (5, 4, 6), (6, 2, 3)]


def test_vgg16_border_leaves_room_for_the_unpadded_fc6():
    # 224 + 2 * 100 - 2 = 422; halved five times rounding up: 211, 106, 53, 27, 14; fc6 takes 6
    with torch.device("meta"):
        pool3, pool4, fc7 = VGG16()(torch.empty(1, 3, 224, 224))
    assert tuple(pool3.shape) == (1, 256, 53, 53)
    assert tuple(pool4.shape) == (1, 512, 27, 27)
    assert tuple(fc7.shape) == (1, 4096, 8, 8)


def test_vgg16_without_border_has_maps_of_size_over_stride_rounded_up():
    with torch.device("meta"):
        maps = VGG16(border=False)(torch.empty(1, 3, 375, 500))
    assert [tuple(part.shape[2:]) for part in maps] == [(47, 63), (24, 32), (12, 16)]


def test_vgg16_drops_single_elements_not_channels():
    torch.manual_seed(0)
    backbone = VGG16(border=False, width=0.03).train()
    _, _, fc7 = backbone(torch.randn(1, 3, 256, 256))
    dropped = (fc7 == 0).float().mean(dim=(2, 3))
    assert ((dropped > 0) & (dropped < 1)).any()
