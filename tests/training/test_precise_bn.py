from types import SimpleNamespace

import lightning as L
import pytest
import torch
from torch import nn

from segmod.data.order import ResumableLoader, TrainingOrder
from segmod.ground.errors import UserError
from segmod.nets.hypercolumn import Hypercolumn
from segmod.training.checkpoints import Checkpoints
from segmod.training.precise_bn import PreciseBN

SETTINGS = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False,
            "enable_progress_bar": False, "enable_model_summary": False, "use_distributed_sampler": False}  # fmt: skip


class Net(nn.Module):
    """Batch norm on the image, a second one behind the rectified first."""

    num_classes = 3

    def __init__(self):
        super().__init__()
        self.first = nn.BatchNorm2d(3)
        self.second = nn.BatchNorm2d(3)

    def forward(self, image):
        return self.second(torch.relu(self.first(image)))


def batches(count, size=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        {"image": 2 + 3 * torch.randn(size, 3, 5, 6, generator=generator), "mask": torch.zeros(size, 5, 6).long()}
        for _ in range(count)
    ]


def module(net=None):
    torch.manual_seed(0)
    return PreciseBN(
        net or Net(), nn.CrossEntropyLoss(), lambda groups, **_: torch.optim.SGD(groups, lr=1.0, momentum=0.9)
    )


def fit(precise, data, **options):
    trainer = L.Trainer(**SETTINGS | {"max_epochs": 1, **options})
    trainer.fit(precise, torch.utils.data.DataLoader(data, batch_size=None))
    return trainer


def expected(data):
    """Means and unbiased variances of both norms, averaged over batches, by their definition."""
    sums = [torch.zeros(3) for _ in range(4)]
    for batch in data:
        x = batch["image"]
        for place in (0, 2):
            mean, unbiased = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=1)
            sums[place] += mean
            sums[place + 1] += unbiased
            biased = x.var((0, 2, 3), correction=0)
            x = ((x - mean[:, None, None]) / (biased + 1e-5).sqrt()[:, None, None]).relu()
    return [total / len(data) for total in sums]


def statistics(net):
    return [net.first.running_mean, net.first.running_var, net.second.running_mean, net.second.running_var]


def test_statistics_are_the_average_over_batches_and_nothing_else_changes():
    net = Net()
    for norm in (net.first, net.second):
        nn.init.uniform_(norm.weight, 0.5, 2)
        nn.init.normal_(norm.bias)
        norm.running_mean.fill_(50)  # what training has left
    nn.init.ones_(net.first.weight), nn.init.zeros_(net.first.bias)
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    data = batches(5)
    trainer = fit(module(net), data)
    for ours, theirs in zip(statistics(net), expected(data), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert all(torch.equal(parameter, before[name]) for name, parameter in net.named_parameters())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert (trainer.global_step, int(net.first.num_batches_tracked)) == (5, 5)


def test_batch_norm_that_the_net_keeps_frozen_is_left_alone():
    net = Net()
    net.second.running_mean.fill_(7)
    train = net.train

    def all_but_the_second(mode=True):
        train(mode)
        net.second.eval()
        return net

    net.train = all_but_the_second
    fit(module(net), batches(2))
    assert net.second.running_mean.tolist() == [7, 7, 7]
    torch.testing.assert_close(net.first.running_mean, expected(batches(2))[0])


def test_nets_without_statistics_to_compute_are_refused():
    plain = nn.Conv2d(3, 3, 1)
    plain.num_classes = 3
    with pytest.raises(UserError, match=r"model\.net=Conv2d has no batch norm"):
        module(plain)
    with pytest.raises(UserError, match=r"model\.net=Hypercolumn has no batch norm"):
        module(Hypercolumn(3, "tiny", ["features.4"], hidden=4, freeze_backbone=True))


def test_ranks_average_what_they_found():
    precise = module()
    for norm, value in ((precise.net.first, 1.0), (precise.net.second, 2.0)):
        norm.running_mean.fill_(value)
        norm.running_var.fill_(10 * value)

    def with_a_rank_of_zeros(tensor, reduce_op):
        assert reduce_op == "mean"
        return tensor / 2

    precise._trainer = SimpleNamespace(world_size=2, strategy=SimpleNamespace(reduce=with_a_rank_of_zeros))
    precise.average_over_ranks()
    assert [tensor.tolist() for tensor in statistics(precise.net)] == [[0.5] * 3, [5.0] * 3, [1.0] * 3, [10.0] * 3]


class OfThisRank(torch.utils.data.IterableDataset):
    """The first or second half of the batches."""

    def __iter__(self):
        data = batches(6, size=3)
        rank = torch.distributed.get_rank()
        return iter(data[rank::2])


def test_two_processes_find_the_statistics_of_all_batches():
    precise = module()
    fit(precise, OfThisRank(), strategy="ddp_fork", devices=2)
    for ours, theirs in zip(statistics(precise.net), expected(batches(6, size=3)), strict=True):
        torch.testing.assert_close(ours, theirs)


class Keyed(torch.utils.data.Dataset):
    """Images by the (epoch, index) keys of a training order."""

    def __init__(self):
        (self.data,) = batches(1, size=12)

    def __getitem__(self, key):
        epoch, index = key
        return {"image": self.data["image"][index] * (1 + epoch), "mask": self.data["mask"][index]}


class Crash(BaseException):
    """Stands for a SIGKILL."""


class CrashAtTheSeventhBatch(L.Callback):
    def on_train_batch_start(self, trainer, *args):
        if trainer.global_step == 6:
            raise Crash


def test_a_run_cut_off_in_the_middle_ends_with_the_same_statistics(tmp_path):
    def run(folder, *callbacks):
        precise = module()
        checkpoints = Checkpoints(str(tmp_path / folder), every_n_steps=1)
        loader = ResumableLoader(Keyed(), batch_size=3, sampler=TrainingOrder(12, seed=1))
        trainer = L.Trainer(**SETTINGS, max_epochs=3, callbacks=[*callbacks, checkpoints])
        trainer.fit(precise, loader, ckpt_path=checkpoints.last if checkpoints.last.exists() else None)
        return precise.net, trainer.global_step

    with pytest.raises(Crash):
        run("cut", CrashAtTheSeventhBatch())  # of 12: in the middle of the second epoch of three
    (cut, cut_steps), (whole, steps) = run("cut"), run("whole")
    assert cut_steps == steps == 12
    assert int(cut.first.num_batches_tracked) == 12
    assert all(torch.equal(tensor, cut.state_dict()[name]) for name, tensor in whole.state_dict().items())
