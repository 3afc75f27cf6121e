"""A classifier made convolutional says of each window what it said of an image."""

import pytest
import torch
from torch import nn

from segmod.ground.errors import UserError
from segmod.nets.classifier import as_convolutions, categories, heat_map_net


class Small(nn.Module):
    """Like VGG: maps of half the size, pooled to 3 x 3, then two fully connected layers."""

    def __init__(self, side=3):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 2, stride=2), nn.ReLU())
        self.avgpool = nn.AdaptiveAvgPool2d((side, side))
        self.classifier = nn.Sequential(nn.Linear(4 * side**2, 6), nn.ReLU(), nn.Dropout(), nn.Linear(6, 5))

    def forward(self, image):
        return self.classifier(torch.flatten(self.avgpool(self.features(image)), 1))


def test_scores_of_a_window_are_those_of_the_classifier():
    torch.manual_seed(0)
    net = Small().eval()
    names = set(net.state_dict())
    image = torch.rand(1, 3, 12, 10)
    windows = [[net(image[..., y : y + 6, x : x + 6])[0] for x in (0, 2, 4)] for y in (0, 2, 4, 6)]
    conv = as_convolutions(net)
    scores = conv(image)[0]
    assert scores.shape == (5, 4, 3)
    torch.testing.assert_close(scores, torch.stack([torch.stack(row, 1) for row in windows], 1))
    assert set(conv.state_dict()) == names


def test_the_mean_of_places_is_what_averaged_maps_give():
    torch.manual_seed(0)
    net = Small(side=1).eval()
    net.classifier = nn.Linear(4, 5)
    image = torch.rand(2, 3, 8, 14)
    expected = net(image)
    torch.testing.assert_close(as_convolutions(net)(image).mean((2, 3)), expected)


def test_nets_of_torchvision(tmp_path):
    """SqueezeNet's map of 227 pixels is 13 x 13; its weights come from a file with torchvision's names."""
    torch.manual_seed(0)
    net = heat_map_net("squeezenet1_0", None)
    torch.save(net[1].state_dict(), tmp_path / "weights.pth")
    image = torch.randint(0, 256, (1, 3, 227, 227), dtype=torch.uint8)
    with torch.inference_mode():
        scores = net(image)
        again = heat_map_net("squeezenet1_0", str(tmp_path / "weights.pth"))(image)
    assert scores.shape == (1, 1000, 13, 13)
    assert torch.equal(scores, again)
    assert categories("squeezenet1_0")[281] == "tabby"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("squeeznet", r"study\.classifier=squeeznet: no such net in torchvision; did you mean squeezenet1_"),
        ("shufflenet_v2_x0_5", r"study\.classifier=shufflenet_v2_x0_5 cannot be made convolutional"),
    ],
)
def test_other_nets_are_told(name, message):
    with pytest.raises(UserError, match=message):
        heat_map_net(name, None)
