from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from segmod.ground.errors import UserError
from segmod.nets.pyramid import DeepFeaturePyramid

DEPTHS = range(6)


def small(depth=5, **options):
    torch.manual_seed(0)
    options = {"backbone": "resnet18", "width": 0.125} | options
    net = DeepFeaturePyramid(5, depth, **options)
    nn.init.normal_(net.score.weight)
    nn.init.normal_(net.score.bias)
    for part in net.modules():  # statistics and weights that are not those of a new net
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.running_mean, -0.1, 0.1), nn.init.uniform_(part.running_var, 0.5, 1)
            nn.init.uniform_(part.bias, -0.1, 0.1)
    return net.eval()


def image(height=96, width=128, batch=2):
    return 255 * torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("depth", DEPTHS)
def test_parameter_counts(depth):
    # trunk 23508032; encoder 2048 * 1024 + 9 * 1024 * 1024 + two batch norms of 2 * 1024 = 11538432;
    # scores 21 * (1024 + 1) = 21525 for one branch, 21 * (3072 + 1) = 64533 for three
    with torch.device("meta"):
        net = DeepFeaturePyramid(21, depth)
    assert sum(parameter.numel() for parameter in net.parameters()) == (35110997 if depth else 35067989)


@pytest.mark.parametrize("depth", DEPTHS)
def test_stages_within_the_depth_run_once_for_each_scale(depth):
    net = small(depth)
    layers = ["conv1", "layer1.0", "layer2.0", "layer3.0", "layer4.0"]
    calls = Counter()
    for number, layer in enumerate(layers, start=1):
        net.backbone.get_submodule(layer).register_forward_hook(lambda *_, number=number: calls.update([number]))
    net.encoder.register_forward_hook(lambda *_: calls.update(["encoder"]))
    with torch.no_grad():
        net(image())
    assert [calls[number] for number in range(1, 6)] == [1] * (5 - depth) + [3] * depth
    assert calls["encoder"] == (3 if depth else 1)


@pytest.mark.parametrize(
    ("depth", "channels", "sizes", "first"),
    [  # SPEC of the paper at a crop of 512; ResNet-50's channels
        (1, 1024, (32, 24, 16), "layer4.0"),
        (2, 512, (64, 48, 32), "layer3.0"),
        (3, 256, (128, 96, 64), "layer2.0"),
        (4, 64, (256, 192, 128), "maxpool"),
        (5, 3, (512, 384, 256), "conv1"),
    ],
)
def test_what_is_resized_and_to_what(depth, channels, sizes, first):
    with torch.device("meta"):
        net = DeepFeaturePyramid(21, depth)
    seen, deep = [], []
    net.backbone.get_submodule(first).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    net.encoder.register_forward_pre_hook(lambda _, inputs: deep.append(inputs[0].shape))
    with torch.device("meta"):
        assert net(torch.empty(3, 3, 512, 512)).shape == (3, 21, 512, 512)
    assert seen == [(3, channels, size, size) for size in sizes]
    assert deep == [(3, 2048, size, size) for size in (16, 12, 8)]


@pytest.mark.parametrize("fusion", ["concat", "sum", "max"])
def test_with_one_scale_all_depths_are_the_plain_net(fusion):
    plain = small(0, fusion=fusion)
    with torch.no_grad():
        expected = plain(image(45, 67))
        for depth in range(1, 6):
            net = small(depth, scales=[1.0], fusion=fusion)
            net.load_state_dict(plain.state_dict())
            assert torch.equal(net(image(45, 67)), expected)


def reference(net, x):
    """The paper's way: resize the encoded maps, join them, then one 1x1 convolution."""
    x = net.normalise(x)
    stages = [nn.Sequential(*map(net.backbone.get_submodule, names)) for names in net.stages]
    size, deep = x.shape[2:], 5 - net.depth
    for stage in stages[:deep]:
        x = stage(x)
    maps = []
    for scale in net.scales:
        branch = F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=net.align_corners)
        for stage in stages[deep:]:
            branch = stage(branch)
        branch = net.encoder(branch)
        grid = maps[0].shape[2:] if maps else branch.shape[2:]  # the first scale is 1
        maps.append(F.interpolate(branch, grid, mode="bilinear", align_corners=net.align_corners))
    joined = {
        "concat": lambda: torch.cat(maps, 1),
        "sum": lambda: torch.stack(maps).sum(0),
        "max": lambda: torch.stack(maps).amax(0),
    }[net.fusion]()
    return F.interpolate(net.score(joined), size, mode="bilinear", align_corners=net.align_corners)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("fusion", ["concat", "sum", "max"])
@pytest.mark.parametrize("depth", [1, 2, 4, 5])
def test_scoring_before_resizing_changes_nothing(depth, fusion, align_corners):
    net = small(depth, fusion=fusion, align_corners=align_corners).double()
    x = image(128, 192).double()  # every scale divides every map
    with torch.no_grad():
        torch.testing.assert_close(net(x), reference(net, x), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("fusion", ["concat", "sum"])
def test_gradients_are_those_of_the_papers_way(fusion):
    net = small(3, fusion=fusion).double()
    x = image(64, 128, 1).double()
    parameters = list(net.parameters())
    ours = torch.autograd.grad(net(x).square().mean(), parameters)
    theirs = torch.autograd.grad(reference(net, x).square().mean(), parameters)
    for mine, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize("scales", [[0.5], [2.0, 0.6], [0.75, 1.0, 1.25, 1.5]])
@pytest.mark.parametrize("depth", [1, 3, 5])
def test_any_scales_and_sizes(depth, scales):
    net = small(depth, scales=scales)
    with torch.no_grad():
        for size in [(64, 64), (75, 101), (130, 40)]:
            assert net(image(*size)).shape == (2, 5, *size)


@pytest.mark.parametrize("depth", [0, 2, 5])
def test_computing_maps_again_changes_nothing(depth):
    """Not even the running statistics, which a second forward pass of batch norm would move again."""
    kept, again = small(depth).train(), small(depth, checkpointing=True).train()
    for net in (kept, again):
        net(image(64, 64)).square().mean().backward()
    for (name, ours), theirs in zip(again.state_dict().items(), kept.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
    for (name, ours), theirs in zip(again.named_parameters(), kept.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad), name
    assert again.backbone.get_submodule("layer4.0.bn1").momentum == 0.1


def saved_bytes(net, x):
    """Bytes of the activations kept for the gradient, each storage once."""
    kept = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in [*net.parameters(), *net.buffers()]}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = net(x)
    assert output.requires_grad
    return sum(kept.values())


def test_each_depth_keeps_more_and_computing_again_keeps_less():
    x = image(128, 128)
    kept = [saved_bytes(small(depth).train(), x) for depth in DEPTHS]
    assert kept == sorted(set(kept))
    kept, again = (
        saved_bytes(small(3, backbone="resnet50", checkpointing=option).train(), x) for option in (False, True)
    )
    assert again < 0.7 * kept  # at an eighth of the channels; the stem, kept as it is, has all of its own


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 6}, r"model\.net\.depth=6: resnet18 has 5 stages; choose 0 to 5"),
        ({"depth": -1}, r"model\.net\.depth=-1"),
        ({"scales": []}, r"model\.net\.scales=\[\]"),
        ({"scales": [1.0, 0.0]}, r"model\.net\.scales=\[1\.0, 0\.0\]: give at least one factor above 0"),
        ({"fusion": "mean"}, r"model\.net\.fusion=mean .* concat, sum, max"),
        ({"encoder": "3x3"}, r"model\.net\.encoder=3x3 .* 1x1_3x3 nor 1x1"),
        ({"backbone": "vgg99"}, r"model\.net\.backbone=vgg99: no such net in torchvision"),
        ({"backbone": "tiny"}, r"model\.net\.backbone=tiny halves the map 4 times, the pyramid needs 5"),
        ({"weights": "IMAGENET1K_V9"}, r"model\.net\.weights=IMAGENET1K_V9 .* IMAGENET1K_V1"),
    ],
)
def test_impossible_values_name_their_key(options, message):
    with pytest.raises(UserError, match=message):
        small(**options)


def test_a_scale_that_leaves_nothing_is_named():
    # an image of 30 x 100 is 2 x 7 at layer3, of which 0.4 leaves 0 x 2
    net = small(1, scales=[1.0, 0.4])
    with pytest.raises(UserError, match=r"model\.net\.scales: 0\.4 leaves nothing of a map of 2 x 7 .* at least 0\.50"):
        net(image(30, 100))
