"""DeconvNet against the table of its paper, and what its unpooling and its checkpointing promise."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from segmod.ground.errors import UserError
from segmod.nets.deconvnet import DeconvNet, Unpool

WIDTH = 0.03


def small(**options):
    torch.manual_seed(0)
    return DeconvNet(5, width=WIDTH, **options)


def picture(*size, batch=2):
    return 255 * torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(1))


def by_name(net):
    """Layers by the names of the paper."""
    return {name.rpartition(".")[2]: part for name, part in net.named_modules()}


@pytest.fixture(scope="module")
def paper():
    with torch.device("meta"):
        return DeconvNet(21)


def test_parameter_counts(paper):
    def count(parts):
        return sum(parameter.numel() for part in parts for parameter in part.parameters(recurse=False))

    layers = by_name(paper)
    norms = [part for part in layers.values() if isinstance(part, nn.BatchNorm2d)]
    ups = [part for part in layers.values() if isinstance(part, nn.ConvTranspose2d)]
    assert count(part for name, part in layers.items() if name.startswith("conv")) == 14714688  # VGG-16's features
    # 4096 * (512 * 49 + 1) + 4096 * (4096 + 1)
    assert count([layers["fc6"], layers["fc7"]]) == 119545856
    assert count([layers["deconv_fc6"]]) == 102760960  # 4096 * 512 * 49 + 512
    assert count(ups) == 117510336
    assert count([layers["score"]]) == 1365  # 21 * (64 + 1)
    assert len(norms) == 29  # 13 + fc6, fc7 + 1 + 13
    assert count(norms) == 33408
    assert sum(parameter.numel() for parameter in paper.parameters()) == 251805653


# name, kernel, padding, channels and side of every layer of the paper's table 2
TABLE = """
conv1_1 3 1 64 224    conv1_2 3 1 64 224
conv2_1 3 1 128 112   conv2_2 3 1 128 112
conv3_1 3 1 256 56    conv3_2 3 1 256 56    conv3_3 3 1 256 56
conv4_1 3 1 512 28    conv4_2 3 1 512 28    conv4_3 3 1 512 28
conv5_1 3 1 512 14    conv5_2 3 1 512 14    conv5_3 3 1 512 14
fc6 7 0 4096 1        fc7 1 0 4096 1        deconv_fc6 7 0 512 7
deconv5_1 3 1 512 14  deconv5_2 3 1 512 14  deconv5_3 3 1 512 14
deconv4_1 3 1 512 28  deconv4_2 3 1 512 28  deconv4_3 3 1 256 28
deconv3_1 3 1 256 56  deconv3_2 3 1 256 56  deconv3_3 3 1 128 56
deconv2_1 3 1 128 112 deconv2_2 3 1 64 112
deconv1_1 3 1 64 224  deconv1_2 3 1 64 224  score 1 0 21 224
"""


def test_every_layer_of_the_table_in_its_order(paper):
    seen = []

    def note(layer, inputs, output):
        batch, channels, height, width = output.shape
        assert (batch, height) == (2, width)
        kernel, padding = layer.kernel_size[0], layer.padding[0]
        seen.extend([names[layer], str(kernel), str(padding), str(channels), str(height)])

    names = {part: name for name, part in by_name(paper).items()}
    hooks = [part.register_forward_hook(note) for part in names if isinstance(part, (nn.Conv2d, nn.ConvTranspose2d))]
    paper(torch.empty(2, 3, 224, 224, device="meta"))
    for hook in hooks:
        hook.remove()
    assert seen == TABLE.split()


def test_a_single_crop_has_no_batch_statistics():
    with pytest.raises(UserError, match=r"data\.batch_size.*2 or more"):
        small()(picture(200, 224, batch=1))
    small()(picture(256, 200, batch=1))  # fc6 has two places
    small().eval()(picture(200, 224, batch=1))


def test_unpooling_puts_values_back_where_the_maxima_were():
    #  1 5 0 0      pooled  5 9     unpooled  0 5 0 0
    #  2 3 0 9              8 4               0 0 0 9
    #  8 7 1 2                                8 0 0 0
    #  0 6 4 3                                0 0 4 0
    maps = torch.tensor([[1.0, 5, 0, 0], [2, 3, 0, 9], [8, 7, 1, 2], [0, 6, 4, 3]])[None, None]
    pooled, switches = nn.functional.max_pool2d(maps, 2, return_indices=True)
    assert pooled.flatten().tolist() == [5, 9, 8, 4]
    expected = [[0, 5, 0, 0], [0, 0, 0, 9], [8, 0, 0, 0], [0, 0, 4, 0]]
    assert Unpool()(pooled, switches)[0, 0].tolist() == expected
    # other values go to the same places
    assert Unpool()(torch.full_like(pooled, 2.0), switches)[0, 0, 0].tolist() == [0, 2, 0, 0]


def test_the_deterministic_form_of_unpooling_is_the_same():
    pooled, switches = nn.functional.max_pool2d(picture(12, 8), 2, return_indices=True)
    pooled.requires_grad_()
    results = []
    for deterministic in (False, True):
        torch.use_deterministic_algorithms(deterministic)
        try:
            output = Unpool()(pooled, switches)
            results.append((output, *torch.autograd.grad((output * picture(12, 8)).sum(), pooled)))
        finally:
            torch.use_deterministic_algorithms(False)
    assert all(map(torch.equal, *results))


def test_the_decoder_uses_the_switches_of_its_own_level():
    """What an unpooling spreads is non-zero only where the pooling of its level had found its maxima."""
    net = small().eval()
    found, spread = [], []
    for level in net.encoder:
        level.register_forward_hook(lambda _, inputs, output: found.append(output[1]))
    for level in net.decoder:
        level[0].register_forward_hook(lambda _, inputs, output: spread.append((inputs[1], output)))
    with torch.no_grad():
        net(picture(224, 224, batch=1))
    for switches, (used, output) in zip(found, reversed(spread), strict=True):
        assert torch.equal(switches, used)
        elsewhere = torch.ones_like(output).flatten(2).scatter(2, switches.flatten(2), 0.0)
        assert not (output.flatten(2) * elsewhere).any()
        assert output.any()


def test_initial_values():
    net = small()
    for name, part in by_name(net).items():
        if isinstance(part, nn.BatchNorm2d):
            assert (part.weight == 1).all(), name
            assert (part.bias == 0.001).all(), name
            assert part.eps == 1e-5
        elif isinstance(part, (nn.Conv2d, nn.ConvTranspose2d)):
            assert not part.bias.any(), name
    # 7 * 7 * 15 * 123 = 90405 draws: their standard deviation is within 1 % of the distribution's
    assert by_name(net)["deconv_fc6"].weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert not any(isinstance(part, nn.Dropout) for part in net.modules())


def vgg16(net):
    """A state dict with torchvision's names and layouts for a net of this width."""
    layers, state = by_name(net), {}
    indices = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]  # of the convolutions among torchvision's features
    convs = [part for name, part in layers.items() if name.startswith("conv")]
    theirs = [f"features.{i}" for i in indices] + ["classifier.0", "classifier.3"]
    for name, part in zip(theirs, [*convs, layers["fc6"], layers["fc7"]], strict=True):
        weight = torch.randn_like(part.weight)
        state[f"{name}.weight"] = weight.flatten(1) if name.startswith("classifier") else weight
        state[f"{name}.bias"] = torch.randn_like(part.bias)
    return state


def test_vgg16_fills_the_encoder_and_fc6_and_fc7(tmp_path):
    state = vgg16(small())
    torch.save({**state, "classifier.6.weight": torch.zeros(1000, 4)}, tmp_path / "vgg.pth")
    random, filled = small(), small(weights=str(tmp_path / "vgg.pth"))
    layers = by_name(filled)
    assert torch.equal(layers["conv3_2"].weight, state["features.12.weight"])
    assert torch.equal(layers["conv5_3"].bias, state["features.28.bias"])
    assert torch.equal(layers["fc6"].weight.flatten(1), state["classifier.0.weight"])
    assert torch.equal(layers["fc7"].bias, state["classifier.3.bias"])
    same = {name for name, tensor in random.state_dict().items() if torch.equal(tensor, filled.state_dict()[name])}
    changed = {name.split(".")[-2] for name in random.state_dict().keys() - same}
    assert changed == {name for name in layers if name.startswith("conv") or name in ("fc6", "fc7")}


def test_weights_of_another_net_name_the_key(tmp_path):
    torch.save({"features.0.weight": torch.zeros(2, 3, 3, 3)}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"model\.net\.weights=.*w\.pth holds no 'conv1_1\.bias'.*IMAGENET1K_V1"):
        small(weights=str(tmp_path / "w.pth"))


@pytest.mark.parametrize(
    ("size", "padded"), [((224, 224), (224, 224)), ((60, 90), (224, 224)), ((225, 200), (256, 224))]
)
def test_images_of_any_size_are_padded_at_the_bottom_and_right(size, padded):
    net = small().eval()
    image = picture(*size)
    # the mean colour, which is 0 once normalised
    larger = net.normalise.mean.expand(2, 3, *padded).clone()
    larger[..., : size[0], : size[1]] = image
    with torch.no_grad():
        logits = net(image)
        assert logits.shape == (2, 5, *size)
        assert torch.equal(logits, net(larger)[..., : size[0], : size[1]])


def test_above_224_fc6_slides_over_pool5():
    net = small().eval()
    layers, seen = by_name(net), {}
    for name in ("fc6", "deconv_fc6"):
        layers[name].register_forward_hook(
            lambda _, inputs, output, name=name: seen.update({name: (inputs[0], output)})
        )
    with torch.no_grad():
        net(picture(256, 320, batch=1))
    pool5, fc6 = seen["fc6"]
    assert pool5.shape[2:] == (8, 10)
    assert fc6.shape[2:] == (2, 4)
    assert seen["deconv_fc6"][1].shape[2:] == (8, 10)
    weight, bias = layers["fc6"].weight, layers["fc6"].bias
    window = torch.einsum("oihw,ihw->o", weight, pool5[0, :, 1:8, 2:9]) + bias
    torch.testing.assert_close(fc6[0, :, 1, 2], window, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_checkpointing_takes_the_same_course(precision):
    nets = [small()]
    nets.append(deepcopy(nets[0]))
    nets[1].checkpointing = True
    image, mask = picture(224, 224), torch.randint(5, (2, 224, 224), generator=torch.Generator().manual_seed(3))
    saved = []
    for net in nets:
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        kept: dict[int, int] = {}

        def note(tensor, kept=kept):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        for _ in range(2):
            optimizer.zero_grad()
            kept.clear()
            with (
                torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
                torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"),
            ):
                loss = nn.functional.cross_entropy(net(image).float(), mask)
            loss.backward()
            optimizer.step()
        saved.append(sum(kept.values()))
    for (name, plain), again in zip(nets[0].named_parameters(), nets[1].parameters(), strict=True):
        assert plain.grad.any() or name.endswith("bias"), name
        assert torch.equal(plain.grad, again.grad), name
        assert torch.equal(plain, again), name
    for (name, plain), again in zip(nets[0].named_buffers(), nets[1].buffers(), strict=True):
        assert torch.equal(plain, again), name  # running statistics: each batch counts once
        if name.endswith("num_batches_tracked"):
            assert plain == 2
    assert saved[1] < saved[0] / 2


def test_activations_of_the_papers_figure():
    net = small().eval()
    image = picture(224, 224)
    maps = net.activations(image)
    assert [(name, *tensor.shape[2:]) for name, tensor in maps.items()] == [
        ("deconv5_3", 14, 14),
        ("unpool4", 28, 28),
        ("deconv4_3", 28, 28),
        ("unpool3", 56, 56),
        ("deconv3_3", 56, 56),
        ("unpool2", 112, 112),
        ("deconv2_2", 112, 112),
        ("unpool1", 224, 224),
        ("deconv1_2", 224, 224),
    ]
    with torch.no_grad():
        assert torch.equal(net.score(maps["deconv1_2"]), net(image))
    assert all(tensor.amin() >= 0 and not tensor.requires_grad for tensor in maps.values())  # after the ReLU
    # an unpooling leaves at least three of the four pixels of a window at zero
    assert ((nn.functional.avg_pool2d((maps["unpool2"] != 0).float(), 2) * 4) <= 1).all()
    assert not any(part._forward_hooks for part in net.modules())


def test_activations_of_other_sizes_belong_to_the_image():
    net = small(checkpointing=True)
    maps = net.activations(picture(50, 231))  # 50 / 16 = 3.1, 231 / 16 = 14.4; 231 / 8 = 28.9
    assert maps["deconv5_3"].shape[2:] == (4, 15)
    assert maps["unpool4"].shape[2:] == (7, 29)
    assert maps["deconv1_2"].shape[2:] == (50, 231)
