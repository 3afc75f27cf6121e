"""Nets of other libraries: what they give in their several forms becomes logits of the image's size."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torchvision.models import get_model, mobilenet_v3_large, resnet50

from segmod.ground.errors import UserError
from segmod.nets.ops import resize
from segmod.nets.wrapped import TorchvisionNet, Wrapped

FORMS = {
    "tensor": lambda logits: logits,
    "torchvision": lambda logits: {"out": logits, "aux": logits[:, :1]},
    "transformers": lambda logits: SimpleNamespace(loss=None, logits=logits),
}


class Quarter(nn.Module):
    """Scores at a quarter of the size, in a form."""

    def __init__(self, form, classes=3):
        super().__init__()
        self.layer = nn.Conv2d(3, classes, 4, stride=4)
        self.form = form

    def forward(self, x):
        self.seen = x.shape
        return self.form(self.layer(x))


def image(height, width):
    return torch.randint(256, (2, 3, height, width), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.mark.parametrize("form", FORMS)
def test_each_form_of_an_output_becomes_logits_of_the_image(form):
    net = Wrapped(3, Quarter(FORMS[form]))
    expected = resize(net.net.layer(net.normalise(image(36, 52))), (36, 52))
    torch.testing.assert_close(net(image(36, 52)), expected)
    assert net(image(37, 53)).shape == (2, 3, 37, 53)


def test_sides_are_made_multiples_and_the_scores_cut():
    net = Wrapped(3, Quarter(FORMS["tensor"]), multiple=32)
    logits = net(image(37, 64))
    assert net.net.seen == (2, 3, 64, 64)
    assert logits.shape == (2, 3, 37, 64)
    # the mean colour, which is 0 once normalised: what the net sees of the image is as it was
    whole = torch.zeros(2, 3, 64, 64)
    whole[:, :, :37] = net.normalise(image(37, 64))
    torch.testing.assert_close(logits, resize(net.net.layer(whole), (64, 64))[:, :, :37])


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (Quarter(lambda logits: {"masks": logits}), "Quarter gives a dict without logits"),
        (Quarter(lambda logits: logits.mean((2, 3))), "Quarter gives a Tensor without logits"),
        (Quarter(FORMS["tensor"], classes=21), "scores 21 classes, the data has 3: .* num_labels"),
    ],
)
def test_a_net_that_gives_something_else_is_named(net, message):
    with pytest.raises(UserError, match=rf"^model\.net\.net: .*{message}"):
        Wrapped(3, net)(image(36, 52))


def test_a_net_of_torchvision_is_torchvisions_own():
    torch.manual_seed(0)
    net = TorchvisionNet(5, "lraspp_mobilenet_v3_large").eval()
    theirs = get_model("lraspp_mobilenet_v3_large", weights=None, weights_backbone=None, num_classes=5).eval()
    theirs.load_state_dict(net.net.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(net(image(37, 53)), theirs(net.normalise(image(37, 53)))["out"])


@pytest.mark.parametrize(
    ("architecture", "classifier", "last"),
    [
        ("lraspp_mobilenet_v3_large", mobilenet_v3_large, ("16.0.weight", "features.16.0.weight")),
        ("fcn_resnet50", resnet50, ("layer4.2.conv3.weight", "layer4.2.conv3.weight")),
    ],
)
def test_its_backbone_starts_from_a_classifiers_weights(architecture, classifier, last, tmp_path):
    state = classifier().state_dict()
    torch.save(state, tmp_path / "classifier.pth")
    net = TorchvisionNet(5, architecture, weights=str(tmp_path / "classifier.pth"))
    ours, theirs = last
    assert torch.equal(net.net.backbone.state_dict()[ours], state[theirs])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "deeplab"}, r"model\.net\.architecture=deeplab: no such net .* did you mean"),
        ({"weights": "IMAGENET"}, r"model\.net\.weights=IMAGENET is neither a file nor .* IMAGENET1K_V1"),
    ],
)
def test_mistakes_name_their_key(options, message):
    with pytest.raises(UserError, match=message):
        TorchvisionNet(**({"num_classes": 5, "architecture": "lraspp_mobilenet_v3_large"} | options))
