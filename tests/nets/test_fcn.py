from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from segmod.ground.errors import UserError
from segmod.nets.fcn import FCN
from segmod.nets.ops import bilinear_kernel
from segmod.nets.weights import load_net

STRIDES = (32, 16, 8)


def small(stride, **options):
    torch.manual_seed(0)
    return FCN(5, stride, width=0.03, **options).eval()


@pytest.mark.parametrize(("stride", "count"), [(32, 134346581), (16, 134357354), (8, 134362751)])
def test_parameter_counts(stride, count):
    # features 14714688, fc6 4096 * (512 * 49 + 1), fc7 4096 * 4097, score_fr 21 * 4097: 134346581;
    # score_pool4 adds 21 * 513 = 10773, score_pool3 21 * 257 = 5397
    with torch.device("meta"):
        net = FCN(21, stride)
    assert sum(parameter.numel() for parameter in net.parameters()) == count


@pytest.mark.parametrize("padding", ["border", "same"])
@pytest.mark.parametrize("stride", STRIDES)
def test_every_size_comes_back(stride, padding):
    with torch.device("meta"):
        net = FCN(5, stride, padding=padding, width=0.03)
        for height in (*range(1, 70, 3), 224, 500):
            for width in (1, 32, 33, 334, 375):
                assert net(torch.empty(1, 3, height, width)).shape == (1, 5, height, width)


@pytest.mark.parametrize("stride", STRIDES)
def test_a_new_net_has_no_opinion(stride):
    assert not small(stride)(255 * torch.rand(1, 3, 40, 50)).any()


def maps_of(net, *size):
    """Sizes of pool3, pool4, pool5 and fc7."""
    with torch.device("meta"):
        pools = net.to("meta").backbone(torch.empty(1, 3, *size))
        maps = [*pools.values(), net.fc7(net.fc6(list(pools.values())[-1]))]
    return [tuple(part.shape[2:]) for part in maps]


def test_the_border_leaves_room_for_the_unpadded_fc6():
    # 224 + 2 * 100 - 2 = 422; halved five times rounding up: 211, 106, 53, 27, 14; fc6 takes 6
    assert maps_of(small(8), 224, 224) == [(53, 53), (27, 27), (14, 14), (8, 8)]


def test_a_border_made_wider_at_each_pooling_is_the_whole_border():
    net = FCN(5, 8, width=0.05).double().eval()
    for name, parameter in net.backbone.named_parameters():
        nn.init.normal_(parameter, std=0.3 if name.endswith("bias") else (2 / parameter[0].numel()) ** 0.5)
    plain = deepcopy(net.backbone)
    plain.get_submodule("features.0").padding = (100, 100)
    for index in ("4", "9", "16"):
        plain.get_submodule("features").add_module(index, nn.MaxPool2d(2, 2, ceil_mode=True))
    sizes = [(side, 7 * side % 32 + 1) for side in range(1, 33)]  # every remainder of 32 in both directions
    for size in sizes:
        image = torch.randn(1, 3, *size, dtype=torch.float64)
        for found, expected in zip(net.backbone(image).values(), plain(image).values(), strict=True):
            torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)
    for backbone in (net.backbone, plain):
        sum((maps * maps.cos()).sum() for maps in backbone(image).values()).backward()
    for (name, ours), theirs in zip(net.backbone.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=1e-9, msg=name)


def test_without_border_maps_have_the_size_over_the_stride_rounded_up():
    assert maps_of(small(8, padding="same"), 375, 500) == [(47, 63), (24, 32), (12, 16), (12, 16)]


def test_dropout_drops_single_elements_not_channels():
    net = small(32, padding="same").train()
    seen = []
    net.score_fr.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    net(255 * torch.rand(1, 3, 256, 256))
    dropped = (seen[0] == 0).float().mean(dim=(2, 3))
    assert ((dropped > 0) & (dropped < 1)).any()


def reference(net, image, crops):
    """The authors' net.py, layer by layer, with dense transposed convolutions and the crops as numbers."""

    def upsample(scores, kernel, stride):
        weight = torch.zeros(5, 5, kernel, kernel)
        for k in range(5):
            weight[k, k] = bilinear_kernel(kernel)
        return F.conv_transpose2d(scores, weight, stride=stride)

    x = net.normalise(image)
    pools = []
    for index, layer in enumerate(net.backbone.get_submodule("features").children()):
        if isinstance(layer, nn.Conv2d):
            x = F.relu(F.conv2d(x, layer.weight, layer.bias, padding=100 if index == 0 else 1))
        elif isinstance(layer, nn.MaxPool2d):
            x = F.max_pool2d(x, 2, 2, ceil_mode=True)
            pools.append(x)
    x = F.relu(F.conv2d(x, net.fc6.weight, net.fc6.bias))
    x = F.relu(F.conv2d(x, net.fc7.weight, net.fc7.bias))
    x = net.score_fr(x)
    if net.stride <= 16:
        x = upsample(x, 4, 2)
        h, w = x.shape[2:]
        x = x + net.score_pool4(pools[3])[..., 5 : 5 + h, 5 : 5 + w]
    if net.stride <= 8:
        x = upsample(x, 4, 2)
        h, w = x.shape[2:]
        x = x + net.score_pool3(pools[2])[..., 9 : 9 + h, 9 : 9 + w]
    x = upsample(x, 2 * net.stride, net.stride)
    h, w = image.shape[2:]
    return x[..., crops : crops + h, crops : crops + w]


@pytest.mark.parametrize(("stride", "crops"), [(32, 19), (16, 27), (8, 31)])
def test_equals_the_authors_net(stride, crops):
    net = small(stride)
    for name, parameter in net.named_parameters():
        if name.startswith("score"):
            nn.init.normal_(parameter)
    image = 255 * torch.rand(2, 3, 57, 91)
    with torch.no_grad():
        torch.testing.assert_close(net(image), reference(net, image, crops), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("padding", ["border", "same"])
@pytest.mark.parametrize("stride", [16, 8])
def test_a_stage_starts_with_the_output_of_the_one_before(stride, padding):
    coarse = small(stride * 2, padding=padding)
    nn.init.zeros_(coarse.score_fr.weight)
    with torch.no_grad():
        coarse.score_fr.bias.copy_(torch.arange(5.0))
    fine = small(stride, padding=padding)
    fine.load_state_dict(coarse.state_dict(), strict=False)
    image = 255 * torch.rand(1, 3, 160, 160)
    # constant scores stay constant under bilinear upsampling, but for the margin that fades to zero
    with torch.no_grad():
        inner, expected = fine(image)[..., 48:-48, 48:-48], coarse(image)[..., 48:-48, 48:-48]
    torch.testing.assert_close(inner, expected)
    torch.testing.assert_close(inner[0, :, 20, 20], torch.arange(5.0))


@pytest.mark.parametrize("stride", STRIDES)
def test_without_border_scores_lie_over_the_pixels_they_come_from(stride):
    # With kernels that are their own mirror image, and a size that every pooling halves evenly, the mirrored image has
    # the mirrored scores, unless a map is joined or cropped off its place.
    net = small(stride, padding="same").double()
    for name, parameter in net.named_parameters():
        if name.startswith("score"):
            nn.init.normal_(parameter)
        if parameter.dim() == 4:
            parameter.data += parameter.data.flip(-1, -2)
    image = 255 * torch.rand(1, 3, 96, 160, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(net(image.flip(-1, -2)), net(image).flip(-1, -2), atol=1e-6, rtol=1e-6)


def test_stream_rms_is_of_what_the_score_layers_see():
    net, image = small(8, skip_factors=(0.5, 0.25)).train(), 255 * torch.rand(1, 3, 40, 50)
    pool3, pool4, pool5 = net.backbone(net.normalise(image)).values()
    fc7 = F.relu(net.fc7(F.relu(net.fc6(pool5))))  # no dropout
    expected = {"fc7": fc7.detach(), "pool4": 0.5 * pool4, "pool3": 0.25 * pool3}
    rms = net.stream_rms(image)
    for name, (value, channels) in rms.items():
        assert (value, channels) == (
            pytest.approx(float(expected[name].square().mean().sqrt())),
            expected[name].shape[1],
        )
    assert list(rms) == list(expected)
    assert net.training
    assert list(small(32).stream_rms(image)) == ["fc7"]
    # from zero, a step of rate r on a sum of the scores moves them by r times the sum of squares over the channels
    net.eval(), net.score_pool3.weight.requires_grad_(True)
    scores = net.score_pool3(expected["pool3"].detach()[..., :1, :1])
    scores.sum().backward()
    moved = 0.1 * torch.einsum("kcxy,bcxy->bk", net.score_pool3.weight.grad, expected["pool3"].detach()[..., :1, :1])
    assert moved[0, 0] == pytest.approx(0.1 * float(expected["pool3"][0, :, 0, 0].square().sum()))


def test_at_once_scales_the_pools_before_their_scores():
    plain, at_once = small(8), small(8, skip_factors=(0.01, 0.0001))
    at_once.load_state_dict(plain.state_dict())
    for net in (plain, at_once):
        nn.init.ones_(net.score_pool3.weight)
        nn.init.ones_(net.score_pool4.weight)
    image = 255 * torch.rand(1, 3, 64, 64)
    only4 = {"score_pool3.weight": torch.zeros_like(plain.score_pool3.weight)}
    with torch.no_grad():
        for net in (plain, at_once):
            net.load_state_dict(only4, strict=False)
        torch.testing.assert_close(at_once(image), plain(image) * 0.01)
        nn.init.ones_(plain.score_pool3.weight), nn.init.ones_(at_once.score_pool3.weight)
        nn.init.zeros_(plain.score_pool4.weight), nn.init.zeros_(at_once.score_pool4.weight)
        torch.testing.assert_close(at_once(image), plain(image) * 0.0001)


def test_upsampling_is_learned_only_when_asked():
    frozen = {name for name, _ in small(8).named_parameters()}
    learned = {name for name, _ in small(8, learn_upsample=True).named_parameters()}
    assert learned - frozen == {"upscore2.weight", "upscore_pool4.weight", "upscore8.weight"}
    image = 255 * torch.rand(1, 3, 40, 40)
    torch.testing.assert_close(small(8, learn_upsample=True)(image), small(8)(image))


@pytest.mark.parametrize("stride", [16, 8])
def test_a_stage_starts_from_the_one_before_with_learned_kernels_too(stride, tmp_path):
    coarse, fine = (small(s, learn_upsample=True) for s in (stride * 2, stride))
    torch.save(coarse.state_dict(), tmp_path / "coarse.pth")
    transfer = load_net(fine, tmp_path / "coarse.pth")
    assert f"upscore{stride}.weight" in transfer.new
    assert transfer.dropped == (f"upscore{stride * 2}.weight",)


@pytest.mark.parametrize(("options", "key"), [({"stride": 4}, "stride"), ({"padding": "none"}, "padding")])
def test_impossible_values_name_their_key(options, key):
    with pytest.raises(UserError, match=rf"model\.net\.{key}="):
        FCN(5, width=0.03, **options)
