import pytest
import torch
import torch.nn.functional as F
from torch import nn

from segmod.ground.errors import UserError
from segmod.nets.boxwise import TAPS, BoxwiseInception, SingleSkip, _head, to_grid

FIRES = [f"features.{i}" for i in (3, 4, 5, 7, 8, 9, 10)]  # fire2 to fire8; fire9 is features.12


def squeezenet(**options):
    torch.manual_seed(0)
    settings = {"taps": FIRES, "connections": 6, "hidden": 8, "boxes": 14, "side": 64, **options}
    return SingleSkip(5, "squeezenet1_0", "features.12", **settings).eval()


def image(side=64):
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def inception():
    """All connections, for its layers take a second to build."""
    return BoxwiseInception(
        21, connections=[*range(1, 8), "Conv2d_1a_3x3"], kernel=1, hidden=4, upsample="tconv"
    ).eval()


CHANNELS = {
    "maxpool1": 64, "maxpool2": 192, "Mixed_5b": 256, "Mixed_5d": 288,
    "Mixed_6a": 768, "Mixed_6e": 768, "Mixed_7b": 2048,
}  # fmt: skip


def test_inception_has_the_sizes_of_the_paper(inception):
    with torch.device("meta"):
        picture = torch.empty(1, 3, 555, 555)
    tensors = {name: tensor.to("meta") for name, tensor in inception.backbone.state_dict().items()}
    maps = torch.func.functional_call(inception.backbone, tensors, (picture,))
    rows = {"Conv2d_1a_3x3": 277, "maxpool1": 137, "maxpool2": 67, "Mixed_5b": 67, "Mixed_5d": 67}
    rows |= {"Mixed_6a": 33, "Mixed_6e": 33, "Mixed_7b": 16, "Mixed_7c": 16}
    channels = {"Conv2d_1a_3x3": 32, **CHANNELS, "Mixed_7c": 2048}
    assert {name: tuple(part.shape[1:]) for name, part in maps.items()} == {
        name: (channels[name], rows[name], rows[name]) for name in rows
    }
    assert sum(parameter.numel() for parameter in inception.backbone.parameters()) == 21785568
    assert not any(name.startswith(("fc", "AuxLogits")) for name, _ in inception.backbone.named_modules())


@pytest.mark.slow
def test_inception_labels_67_boxes_at_555_pixels(inception):
    with torch.no_grad():
        assert inception.forward_boxes(torch.zeros(1, 3, 555, 555)).shape == (1, 21, 67, 67)


def test_heads_have_the_parameters_of_the_paper():
    # C n^2 256 + 256 for the n x n convolution, 256 * 21 + 21 = 5397 for the 1x1; the top 2048 * 21 + 21
    expected = {
        "maxpool1": (153109, 415253, 808469), "maxpool2": (448021, 1234453, 2414101),
        "Mixed_5b": (595477, 1644053, 3216917), "Mixed_5d": (669205, 1848853, 3618325),
        "Mixed_6a": (1775125, 4920853, 9639445), "Mixed_6e": (1775125, 4920853, 9639445),
        "Mixed_7b": (4724245, 13112853, 25695765),
    }  # fmt: skip
    for column, n in enumerate((3, 5, 7)):
        with torch.device("meta"):
            heads = {layer: _head(CHANNELS[layer], 21, n, 256, "kernel") for layer in expected}
        counts = {layer: sum(p.numel() for part in head for p in part.parameters()) for layer, head in heads.items()}
        assert counts == {layer: numbers[column] for layer, numbers in expected.items()}


def test_presets_name_seven_layers_bottom_to_top(inception):
    assert inception.connections[:7] == TAPS["stages"] == tuple(CHANNELS)
    assert len(TAPS["upsample_only"]) == 7
    assert TAPS["upsample_only"][3:] == TAPS["stages"][3:]


def test_inception_maps_imagenet_normalisation_to_its_own(inception):
    # (x * sd + mean - 0.5) / 0.5 for each channel, before the first layer
    seen = []
    first = inception.backbone.get_submodule("Conv2d_1a_3x3.conv")
    with first.register_forward_pre_hook(lambda _, args: seen.append(args[0])):
        inception.backbone(image(75))
    mean, sd = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (image(75) * sd.view(3, 1, 1) + mean.view(3, 1, 1) - 0.5) / 0.5
    torch.testing.assert_close(seen[0], expected)


def test_no_layer_is_computed_twice_and_none_above_the_top():
    net = squeezenet(connections=[1, 6], upsample="bilinear")
    calls = {}
    for name, module in net.named_modules():
        module.register_forward_hook(lambda *_, name=name: calls.update({name: calls.get(name, 0) + 1}))
    net(image())
    used = [name for name, module in net.backbone.named_modules() if isinstance(module, nn.Conv2d)]
    assert used[-1] == "features.12.expand3x3"
    assert {calls[f"backbone.{name}"] for name in used} == {1}
    assert {calls[f"heads.{name}"] for name in ("features_3", "features_9", "features_12")} == {1}


def test_boxes_are_the_sum_of_the_parts():
    net = squeezenet(connections=[1, 6])
    with torch.no_grad():
        parts = net.forward_parts(image())
        assert list(parts) == ["features.3", "features.9", "features.12"]
        assert {part.shape for part in parts.values()} == {(2, 5, 14, 14)}
        torch.testing.assert_close(net.forward_boxes(image()), sum(parts.values()))
        torch.testing.assert_close(net(image()), F.interpolate(sum(parts.values()), (64, 64), mode="bilinear"))


def test_a_connection_of_zeros_is_no_connection():
    one, none = squeezenet(), squeezenet(connections=None)
    with torch.no_grad():
        for parameter in one.heads["features_9"].parameters():
            parameter.zero_()
        none.backbone.load_state_dict(one.backbone.state_dict())
        none.heads["features_12"].load_state_dict(one.heads["features_12"].state_dict())
        assert torch.equal(one(image()), none(image()))


@pytest.mark.parametrize("upsample", ["bilinear", "tconv"])
@pytest.mark.parametrize(
    ("connections", "kernel"), [(None, 3), (1, None), (7, 1), (3, 7), ([2, "features.9"], [5, None])]
)
def test_all_forms_give_logits_of_the_image_and_gradients_everywhere(connections, kernel, upsample):
    # at 67 pixels the maps have 15, 7 and 3 rows: conv1 (67 - 7) / 2 + 1 = 31, and each pooling (s - 3) / 2 + 1
    net = squeezenet(connections=connections, kernel=kernel, upsample=upsample, boxes=15, side=67)
    logits = net(image(67))
    assert logits.shape == (2, 5, 67, 67)
    logits.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in net.parameters())


def test_transposed_convolutions_start_bilinear(inception):
    # 16 -> 33 -> 67; kernel [1/2, 1, 1/2] puts values at the odd places and means between them: place j of 67 shows the
    # value at (j - 3) / 4 of 16 inside
    ramp = torch.arange(16.0).expand(1, 21, 16, 16)
    grown = inception.heads["Mixed_7c"][1:](ramp)
    assert grown.shape == (1, 21, 67, 67)
    torch.testing.assert_close(grown[0, 0, 30, 3:64], torch.arange(0, 15.01, 0.25))


def test_maps_larger_than_the_grid_are_averaged():
    maps = torch.arange(16.0).view(1, 1, 4, 4)
    assert to_grid(maps, 2).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert to_grid(maps, 4) is maps


def test_a_map_stays_as_it_was_when_a_relu_in_place_follows():
    net = SingleSkip(2, "squeezenet1_0", "features.3", connections="features.0", boxes=8, side=32, hidden=4).eval()
    with torch.no_grad():
        maps = net.backbone(image(32))
        torch.testing.assert_close(maps["features.0"], net.backbone.get_submodule("features.0")(image(32)))
    assert (maps["features.0"] < 0).any()


def test_resnet_and_others_can_be_cut_anywhere():
    net = SingleSkip(2, "resnet18", "layer3", connections=["layer1.0.bn2", "relu"], boxes=8, side=32, hidden=4)
    assert net(image(32)).shape == (2, 2, 32, 32)
    assert not any(name.startswith(("layer4", "fc")) for name, _ in net.backbone.named_parameters())
    assert net.min_size == 1


MISTAKES = [
    ({"connections": "features.99"}, "connections: squeezenet1_0 has no layer 'features.99'; there are features.9"),
    ({"top": "classifierr"}, "model.net.top: squeezenet1_0 has no layer 'classifierr'; there are classifier"),
    ({"connections": 8}, "connections=8: there are 1 to 7, or null"),
    ({"connections": [6, "features.9"]}, "names a layer twice"),
    ({"connections": "features.12"}, "is model.net.top already"),
    ({"kernel": 4}, "model.net.kernel=4: choose 1, 3, 5 or 7"),
    ({"top_kernel": 0}, "model.net.top_kernel=0: choose"),
    ({"kernel": [3, 5]}, "give one number, or 1, one for each connection"),
    ({"side": 16}, "data.squash to 21 or more"),
    ({"boxes": 16, "upsample": "tconv"}, "never to model.net.boxes=16"),
    ({"upsample": "cubic"}, "model.net.upsample=cubic is neither"),
    ({"boxes": 0}, "model.net.boxes=0"),
    ({"backbone": "squeezenet"}, "model.net.backbone=squeezenet: no such net in torchvision; did you mean squeezenet1"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "message"), MISTAKES)
def test_mistakes_are_told_with_the_key(options, message):
    settings = {
        "backbone": "squeezenet1_0",
        "top": "features.12",
        "taps": FIRES,
        "connections": 6,
        "side": 64,
        **options,
    }
    with pytest.raises(UserError) as caught:
        SingleSkip(5, **settings)
    assert message in str(caught.value)


def test_an_unknown_preset_is_told():
    with pytest.raises(UserError, match=r"model\.net\.taps=stage: choose stages, upsample_only"):
        BoxwiseInception(21, taps="stage")


def test_an_image_too_small_for_the_trunk_is_told():
    # conv1 and the poolings leave 8, 4, 2 and 1 of 21 rows, and 7, 3, 1 and 0 of 20
    net = squeezenet()
    assert net.min_size == 21
    with pytest.raises(UserError, match=r"20 x 64 pixels is too small for this net: set data\.squash to 21 or more"):
        net(torch.zeros(1, 3, 20, 64))
    assert net(torch.zeros(1, 3, 21, 21)).shape == (1, 5, 21, 21)
