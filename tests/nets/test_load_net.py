import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from segmod.ground.errors import UserError
from segmod.ground.palettes import VOC_PALETTE, Legend
from segmod.nets.weights import load_net, read_legend, read_weights


class Net(nn.Module):
    def __init__(self, num_classes=3, extra=False):
        super().__init__()
        self.num_classes = num_classes
        self.body = nn.Conv2d(3, 4, 3)
        self.score = nn.Conv2d(4, num_classes, 1)
        if extra:
            self.skip = nn.Conv2d(4, num_classes, 1)


def lightning_file(path, net):
    """A checkpoint as Lightning writes it: the net's weights under ``net.``, others beside them."""
    state = {f"net.{name}": tensor for name, tensor in net.state_dict().items()}
    torch.save({"state_dict": state | {"metrics.matrix": torch.zeros(3, 3)}, "global_step": 7}, path)
    return path


def test_equal_names_are_copied(tmp_path):
    source, target = Net(), Net()
    transfer = load_net(target, lightning_file(tmp_path / "a.ckpt", source))
    assert transfer == (tuple(source.state_dict()), (), ())
    assert str(transfer) == "4 tensors copied"
    for name, tensor in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], tensor)


def test_the_next_stage_keeps_its_new_layers(tmp_path):
    source, target = Net(), Net(extra=True)
    before = target.skip.weight.clone()
    transfer = load_net(target, lightning_file(tmp_path / "a.ckpt", source))
    assert transfer.new == ("skip.weight", "skip.bias")
    assert transfer.dropped == ()
    assert str(transfer) == ("4 tensors copied; 2 that it lacks keep their initial values (skip.weight, skip.bias)")
    assert torch.equal(target.skip.weight, before)
    assert torch.equal(target.score.weight, source.score.weight)


def test_layers_the_net_has_not_are_dropped(tmp_path):
    transfer = load_net(Net(), lightning_file(tmp_path / "a.ckpt", Net(extra=True)))
    assert transfer.dropped == ("skip.weight", "skip.bias")
    assert str(transfer) == "4 tensors copied; 2 that this net lacks are left out (skip.weight, skip.bias)"


@pytest.mark.parametrize(("mine", "theirs"), [(False, True), (True, False)])
def test_strict_names_what_one_side_lacks(tmp_path, mine, theirs):
    path = lightning_file(tmp_path / "a.ckpt", Net(extra=theirs))
    with pytest.raises(UserError, match=r"a\.ckpt .*skip\.weight"):
        load_net(Net(extra=mine), path, strict=True)


def test_another_number_of_classes_names_the_key(tmp_path):
    path = lightning_file(tmp_path / "a.ckpt", Net(num_classes=5))
    with pytest.raises(UserError, match=r"trained with 5 classes, this data has 3: "):
        load_net(Net(num_classes=3), path)


def test_another_shape_names_the_weight_and_both_shapes(tmp_path):
    source = Net()
    source.body = nn.Conv2d(3, 4, 5)
    with pytest.raises(UserError, match=r"\(4, 3, 5, 5\) for 'body\.weight', this net needs \(4, 3, 3, 3\)"):
        load_net(Net(), lightning_file(tmp_path / "a.ckpt", source))


def test_a_failed_load_leaves_the_net_as_it_was(tmp_path):
    target = Net(num_classes=3)
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(UserError):
        load_net(target, lightning_file(tmp_path / "a.ckpt", Net(num_classes=5)))
    assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())


def test_nothing_in_common_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no weight in common"):
        load_net(Net(), lightning_file(tmp_path / "a.ckpt", nn.BatchNorm1d(2)))


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.ckpt does not exist"):
        load_net(Net(), tmp_path / "nowhere.ckpt")


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_a_file_cut_short(tmp_path, keep):
    path = lightning_file(tmp_path / "a.ckpt", Net())
    data = path.read_bytes()
    path.write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    with pytest.raises(UserError, match=r"a\.ckpt cannot be read as weights") as caught:
        load_net(Net(), path)
    assert "\n" not in str(caught.value)


def test_a_file_of_something_else(tmp_path):
    path = tmp_path / "notes.pth"
    path.write_text("not weights")
    with pytest.raises(UserError, match=r"notes\.pth cannot be read"):
        read_weights(path, "checkpoint")
    torch.save([1, 2], path)
    with pytest.raises(UserError, match=r"notes\.pth holds a list"):
        read_weights(path, "checkpoint")


def test_code_in_a_file_is_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").touch, ())

    torch.save({"state_dict": Trap()}, tmp_path / "trap.ckpt")
    with pytest.raises(UserError, match="cannot be read as weights"):
        load_net(Net(), tmp_path / "trap.ckpt")
    assert not (tmp_path / "ran").exists()
    with pytest.raises(UserError) as caught:
        read_weights(tmp_path / "trap.ckpt", "checkpoint")
    assert "weights_only" not in str(caught.value)  # torch would have the file run with False
    assert "trust" not in str(caught.value)


@settings(derandomize=True, max_examples=150, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), flip=st.integers(0, 255), content=st.none() | st.binary(max_size=100))
def test_any_bytes_are_weights_or_one_line(tmp_path_factory, read_or_line, place, flip, content):
    path = tmp_path_factory.getbasetemp() / "any.ckpt"
    legend = Legend("VOC2012", ("background", "cat"))
    torch.save({"state_dict": {"net.weight": torch.ones(3)}, "legend": legend.as_plain()}, path)
    whole = path.read_bytes()
    at = int(place * len(whole))
    flipped = whole[:at] + bytes([whole[at] ^ flip]) + whole[at + 1 :]
    path.write_bytes(content if content is not None else flipped if flip else whole[:at])
    read_or_line(path, read_weights, path, "checkpoint")
    read_or_line(path, read_legend, path)


@pytest.mark.parametrize(
    "legend",
    [
        [1], {}, {"data": "x", "classes": ["a", "b"], "palette": [[0, 0, 0]]},
        {"data": 3, "classes": ["a", "b"], "palette": VOC_PALETTE.tolist()},
        {"data": "x", "classes": ["a", 7], "palette": VOC_PALETTE.tolist()},
    ],
)  # fmt: skip
def test_classes_that_are_none(tmp_path, legend):
    torch.save({"state_dict": {}, "legend": legend}, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match=r"a\.ckpt: its classes are damaged"):
        read_legend(tmp_path / "a.ckpt")
