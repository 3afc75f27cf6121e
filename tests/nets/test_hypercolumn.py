import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import nn

from segmod.nets.hypercolumn import Hypercolumn
from segmod.nets.ops import resize
from segmod.runs.cli import CONF_DIR

SIZE = (37, 50)
TINY = [f"features.{i}" for i in (1, 4, 7, 10, 13)]


def build(backbone, **options):
    """The net of conf/model/hypercolumn_<backbone>.yaml."""
    node = OmegaConf.load(CONF_DIR / "model" / f"hypercolumn_{backbone}.yaml").model.net
    return Hypercolumn(21, node.backbone, list(node.taps), **options)


def tiny(**options):
    torch.manual_seed(0)
    net = Hypercolumn(4, "tiny", TINY, **{"hidden": 9, "width": 0.25, **options})
    net.standardise_by(torch.randn(net.channels), torch.rand(net.channels) + 0.5)
    return net.eval()


def image():
    return 255 * torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(1))


def direct(net, image):
    """The definition: resize every tap to the image, concatenate, standardise, classify each pixel."""
    taps = net.backbone(net.normalise(image))
    maps = [resize(taps[tap], image.shape[2:], net.align_corners) for tap in net.taps]
    columns = torch.cat(maps, dim=1).permute(0, 2, 3, 1)
    standardised = (columns - net.mean) / (net.std + 1e-5)
    return net.score(F.relu(net.hidden(standardised))).permute(0, 3, 1, 2)


@pytest.mark.parametrize(("backbone", "count", "channels"), [("vgg11", 764949, 1472), ("squeezenet", 781333, 1504)])
def test_parameter_counts_of_the_classifier(backbone, count, channels):
    # 512 * (1472 + 1) + 21 * 513 = 764949; 512 * (1504 + 1) + 21 * 513 = 781333
    net = build(backbone)
    assert sum(parameter.numel() for parameter in net.parameters() if parameter.requires_grad) == count
    assert net.channels == channels


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("backbone", ["vgg11", "squeezenet"])
def test_factored_form_equals_the_direct_one(backbone, align_corners):
    torch.manual_seed(0)
    net = build(backbone, hidden=32, align_corners=align_corners).eval()
    net.standardise_by(torch.randn(net.channels), torch.rand(net.channels) + 0.5)
    picture = 255 * torch.rand(2, 3, 61, 48)
    with torch.no_grad():
        torch.testing.assert_close(net(picture), direct(net, picture), atol=1e-4, rtol=1e-4)


def test_gradients_of_the_factored_form_equal_the_direct_ones():
    net, other = tiny(freeze_backbone=False), tiny(freeze_backbone=False)
    mask = torch.randint(0, 4, (2, *SIZE), generator=torch.Generator().manual_seed(2))
    F.cross_entropy(net(image()), mask).backward()
    F.cross_entropy(direct(other, image()), mask).backward()
    for (name, parameter), (_, expected) in zip(net.named_parameters(), other.named_parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad, atol=1e-5, rtol=1e-3, msg=name)


@pytest.mark.parametrize("options", [{}, {"align_corners": False}, {"grid": 3}, {"score_relu": True}])
def test_points_have_the_logits_of_the_dense_map(options):
    net = tiny(**options)
    generator = torch.Generator().manual_seed(3)
    points = torch.stack([torch.randint(0, side, (2, 60), generator=generator) for side in SIZE], dim=-1)
    points[:, 0], points[:, 1] = torch.tensor([0, 0]), torch.tensor([36, 49])  # corners included
    with torch.no_grad():
        logits = net.classify(net.point_features(image(), points), net.point_cells(image(), points))
        dense = net(image())
    assert logits.shape == (2, 60, 4)
    at_points = dense[torch.arange(2)[:, None], :, points[..., 0], points[..., 1]]
    torch.testing.assert_close(logits, at_points, atol=1e-4, rtol=1e-4)


def test_point_features_are_the_taps_at_the_pixel():
    net = tiny()
    with torch.no_grad():
        features = net.point_features(image(), torch.tensor([[[5, 7]], [[36, 0]]]))
        first = net.backbone(net.normalise(image()))[net.taps[0]]
    # the first tap has the image's size, so nothing is interpolated in its four channels
    torch.testing.assert_close(features[:, 0, :4], torch.stack([first[0, :, 5, 7], first[1, :, 36, 0]]))


def test_a_grid_of_one_cell_is_the_plain_net():
    plain, grid = tiny(), tiny(grid=1)
    assert torch.equal(plain(image()), grid(image()))


def test_a_grid_of_equal_classifiers_is_the_plain_net():
    plain, grid = tiny(), tiny(grid=3)
    state = plain.state_dict()
    for name in ("score.weight", "score.bias"):
        state[name] = torch.cat([state[name]] * 9)
    grid.load_state_dict(state)
    with torch.no_grad():
        # the grid returns log p; the plain net's logits are log p but for a constant
        torch.testing.assert_close(grid(image()), plain(image()).log_softmax(1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("grid_out", [None, 20])
def test_a_grid_returns_the_logs_of_probabilities(grid_out):
    with torch.no_grad():
        log_p = tiny(grid=3, grid_out=grid_out)(image())
    assert log_p.shape == (2, 4, *SIZE)
    torch.testing.assert_close(log_p.exp().sum(1), torch.ones(2, *SIZE))


def test_cells_interpolate_between_their_centres():
    # Hariharan et al. 2015, section 2.3, in numbers: 2 cells over 8 rows have their centres at 1.5 and 5.5 (row centres
    # counted from 0), so rows 0 and 1 belong to the first alone, row 3 is (3 - 1.5) / 4 = 3/8 on the way, and so on.
    net = tiny(grid=2)
    points = torch.tensor([[[row, 0] for row in range(8)]])
    weights = net.point_cells(torch.zeros(1, 3, 8, 8), points)  # (1, 8, 4), cells in reading order
    second_row = weights[0, :, 2]
    assert second_row.tolist() == pytest.approx([0, 0, 1 / 8, 3 / 8, 5 / 8, 7 / 8, 1, 1])
    assert weights.sum(-1).tolist()[0] == pytest.approx([1] * 8)


def test_each_cell_decides_at_its_own_centre():
    net = tiny(grid=2)
    nn.init.zeros_(net.score.weight)
    with torch.no_grad():
        net.score.bias.copy_(10 * torch.eye(4).flatten())  # cell k is sure of class k
    labels = net(torch.randn(1, 3, 16, 16))[0].argmax(0)
    assert [int(labels[row, column]) for row in (1, 14) for column in (1, 14)] == [0, 1, 2, 3]


def test_rectified_scores_are_not_negative():
    with torch.no_grad():
        scores = tiny(score_relu=True)(image())
        torch.testing.assert_close(scores, tiny()(image()).relu())


def test_a_frozen_backbone_stays_frozen():
    net = Hypercolumn(4, "tiny", TINY, width=0.25)
    before = {name: tensor.clone() for name, tensor in net.backbone.state_dict().items()}
    net.train()
    assert net.training
    assert not any(part.training for part in net.backbone.modules())
    F.cross_entropy(net(image()), torch.zeros(2, *SIZE, dtype=torch.int64)).backward()
    assert all(parameter.grad is None for parameter in net.backbone.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.backbone.state_dict().items())


def test_a_fine_tuned_backbone_trains():
    net = Hypercolumn(4, "tiny", TINY, width=0.25, freeze_backbone=False).train()
    assert net.backbone.training
    F.cross_entropy(net(image()), torch.zeros(2, *SIZE, dtype=torch.int64)).backward()
    assert all(parameter.grad is not None for parameter in net.backbone.parameters())


def test_runs_in_bfloat16():
    net = tiny()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = net(image())
    # 8 bits of mantissa: about 1 % of the largest logit
    assert (logits.float() - net(image())).abs().max() < 0.05 * net(image()).abs().max()


def test_trains_in_bfloat16():
    net, other = tiny(), tiny()
    mask = torch.randint(0, 4, (2, *SIZE), generator=torch.Generator().manual_seed(2))
    with torch.autocast("cpu", torch.bfloat16):
        loss = F.cross_entropy(net(image()), mask)
    loss.backward()
    F.cross_entropy(other(image()), mask).backward()
    for layer in ("hidden", "score"):
        grad, expected = getattr(net, layer).weight.grad, getattr(other, layer).weight.grad
        # 8 bits of mantissa, as above
        assert (grad - expected).abs().max() < 0.05 * expected.abs().max()


def test_a_channel_that_says_nothing_is_left_unscaled_in_its_own_tap():
    # 64, 128, 256, 512, 512 channels; deviations of the first tap are 1, of the others 100
    net = build("vgg11")
    std = torch.full((1472,), 100.0)
    std[:64] = 1.0
    std[5], std[70], std[71], std[200:456] = 0.0009, 0.09, 0.11, 0.0  # the last: more than half of the third tap
    net.standardise_by(torch.zeros(1472), std)
    assert net.std[5] == 1
    assert net.std[70] == 1  # below 100 / 1000
    assert net.std[71] == pytest.approx(0.11)
    assert (net.std[200:448] == 1).all()
    assert (net.std[:64][torch.arange(64) != 5] == 1).all()


def test_training_a_backbone_with_a_dead_channel_does_not_blow_up():
    """As fire7's expand1x1 channel 19 of SqueezeNet's ImageNet weights: the first step moves it off zero."""
    torch.manual_seed(0)
    net = Hypercolumn(4, "tiny", TINY, width=0.25, hidden=9, freeze_backbone=False)
    with torch.no_grad():
        for name in ("weight", "bias"):
            getattr(net.backbone.get_submodule("features.4"), name)[3] = 0  # batch norm: a constant 0 of deviation 0
        taps = net.backbone(net.normalise(image()))
        stds = torch.cat([taps[tap].permute(1, 0, 2, 3).flatten(1).std(1) for tap in TINY])
        means = torch.cat([taps[tap].permute(1, 0, 2, 3).flatten(1).mean(1) for tap in TINY])
    assert stds[4 + 3] == 0
    net.standardise_by(means, stds)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    mask = torch.randint(0, 4, (2, *SIZE), generator=torch.Generator().manual_seed(2))
    losses = []
    for _ in range(3):
        loss = F.cross_entropy(net.train()(image()), mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert max(losses) < 2 * losses[0]
