"""What every net keeps to, whatever its paper: each model of conf/model is found and tested by itself.

So is the net that a user adds: the U-Net in tests/own_net, which has no more than the README asks for.
"""

import sys
from functools import cache
from itertools import chain
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

UNET = Path(__file__).parents[1] / "own_net"
FILES = {path.stem: path for conf in (UNET.parents[1] / "conf", UNET / "conf") for path in conf.glob("model/*.yaml")}
CLASSES = 4
SIZE = (45, 67)  # odd on purpose


def config(model):
    """The composed ``model`` node; a yaml without packages of its own is merged over those it names."""
    loaded = OmegaConf.load(FILES[model])
    parents = [parent for parent in loaded.pop("defaults", []) if parent != "_self_" and isinstance(parent, str)]
    return OmegaConf.merge(*(config(parent) for parent in parents), loaded)


@cache
def built(model):
    node = config(model).model.net
    node.num_classes = CLASSES  # in a run those of the data
    if "weights" in node:
        node.weights = None
    if "width" in node:
        node.width = 0.03  # same structure, fewer channels
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path, str(UNET)])
        return instantiate(node, _convert_="all")


@pytest.fixture
def net(request):
    net = built(request.param)
    torch.manual_seed(1)
    for parameter in net.parameters():  # score layers start at zero, which would stop every gradient below them
        if parameter.dim() > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return net.eval()


pytestmark = [pytest.mark.usefixtures("stand_ins"), pytest.mark.parametrize("net", sorted(FILES), indirect=True)]


def size_for(net, size=SIZE):
    """A size that the net can take: some backbones need images of ``min_size`` pixels."""
    return tuple(max(side, getattr(net, "min_size", 1)) for side in size)


def image(net, size=SIZE):
    generator = torch.Generator().manual_seed(2)
    return torch.randint(256, (2, 3, *size_for(net, size)), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("size", [SIZE, (64, 64), (33, 96)])
def test_logits_have_the_size_of_the_image(net, size):
    assert net.num_classes == CLASSES
    with torch.no_grad():
        logits = net(image(net, size))
    assert logits.shape == (2, CLASSES, *size_for(net, size))
    assert logits.dtype == torch.float32


def test_logits_are_finite_and_no_probabilities(net):
    with torch.no_grad():
        logits = net(image(net))
    assert logits.isfinite().all()
    assert not torch.allclose(logits.sum(1), torch.ones(2, *size_for(net)))


def test_an_image_is_bytes_or_floats(net):
    with torch.no_grad():
        assert torch.equal(net(image(net).float()), net(image(net)))


def test_gradients_reach_every_trainable_parameter(net):
    net.zero_grad()
    logits = net(image(net))
    # no softmax here: a deep net of random weights may be so sure that the gradient of its loss is 0
    (logits * torch.randn(logits.shape, generator=torch.Generator().manual_seed(3))).sum().backward()
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.any(), name
        else:
            assert parameter.grad is None, name


def test_evaluation_is_deterministic_and_independent_of_the_batch(net):
    with torch.no_grad():
        both = net(image(net))
        assert torch.equal(both, net(image(net)))
        torch.testing.assert_close(net(image(net)[1:]), both[1:], atol=1e-4, rtol=1e-4)


def test_state_dict_carries_the_whole_function(net):
    with torch.no_grad():
        expected = net(image(net))
        state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        for parameter in net.parameters():
            parameter.add_(0.05)
        assert not torch.equal(net(image(net)), expected)
        net.load_state_dict(state)
        assert torch.equal(net(image(net)), expected)


def test_channels_last_changes_nothing(net):
    with torch.no_grad():
        expected = net(image(net))
        logits = net(image(net).contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_every_tensor_is_on_the_device_of_the_image(net):
    size = size_for(net)
    with FakeTensorMode() as mode, torch.no_grad():  # has a GPU's tensors without one, and refuses to mix devices
        parts = chain(net.named_parameters(), net.named_buffers())
        state = {name: mode.from_tensor(part).to("cuda") for name, part in parts}
        logits = functional_call(net, state, (torch.empty(2, 3, *size, dtype=torch.uint8, device="cuda"),))
    assert logits.device.type == "cuda"
    assert logits.shape == (2, CLASSES, *size)


def test_bfloat16_is_close_to_float32(net):
    with torch.no_grad():
        expected = net(image(net))
        with torch.autocast("cpu", torch.bfloat16):
            logits = net(image(net))
    # 8 bits of mantissa, 2**-9 a rounding, through up to a hundred layers
    assert (logits.float() - expected).std() < 0.05 * expected.std()


@pytest.mark.slow
def test_compiling_finds_no_break(net):
    found = torch._dynamo.explain(net)(image(net))
    assert found.graph_break_count == 0, found.break_reasons
