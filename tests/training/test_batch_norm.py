"""Batch norm that stops learning after some epochs, whatever happens around it."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor, nn

from segmod.data.synthetic import SyntheticScenes
from segmod.ground.errors import UserError
from segmod.nets.normalise import Normalise
from segmod.training.batch_norm import FreezeBatchNorm
from segmod.training.datamodule import SegmentationDataModule
from segmod.training.module import SegmentationModule

FREEZE = ("callbacks=[freeze_batch_norm]", "callbacks.freeze_batch_norm.epochs=1", "model.scheduler=null")


class Net(nn.Sequential):
    num_classes = 5

    def __init__(self, *norms: nn.Module) -> None:
        super().__init__(Normalise(), nn.Conv2d(3, 8, 3, padding=1, bias=False), *norms, nn.ReLU(), nn.Conv2d(8, 5, 1))


class Recorder(L.Callback):
    """Copies the net after every step."""

    def __init__(self) -> None:
        self.norms: list[dict[str, Tensor]] = []
        self.others: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        state = {name: value.clone() for name, value in pl_module.net.state_dict().items()}
        self.norms.append({name: value for name, value in state.items() if name.startswith("2.")})
        self.others.append({name: value for name, value in state.items() if not name.startswith("2.")})


class Meddler(L.Callback):
    """Sets the whole net to training mode before every batch."""

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        pl_module.train()


def fit(*callbacks: L.Callback, net: nn.Module | None = None, **options: Any) -> Recorder:
    """Three epochs of two steps, with momentum and a heavy weight decay."""
    torch.manual_seed(0)
    data = SegmentationDataModule(SyntheticScenes(32, 4, 1, num_classes=5), batch_size=2, num_workers=0)
    optimizer = partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1)
    module = SegmentationModule(net or Net(nn.BatchNorm2d(8)), nn.CrossEntropyLoss(ignore_index=255), optimizer)
    recorder = Recorder()
    trainer = L.Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        callbacks=[*callbacks, recorder],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **options,
    )
    trainer.fit(module, datamodule=data)
    return recorder


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    "others",
    [[], [Meddler()], [EMAWeightAveraging(decay=0.9)]],
    ids=["alone", "with train() calls", "with a moving average"],
)
def test_nothing_of_it_changes_any_more(others: list[L.Callback]) -> None:
    seen = fit(*others, FreezeBatchNorm(epochs=1), gradient_clip_val=1.0)
    assert sorted(seen.norms[0]) == ["2.bias", "2.num_batches_tracked", "2.running_mean", "2.running_var", "2.weight"]
    before, first = seen.norms[:2]  # the two steps of the first epoch
    assert not any(torch.equal(before[name], first[name]) for name in before)
    for later in seen.norms[2:]:
        assert equal(later, first)  # no statistics, gradient, momentum or weight decay
    for one, next_one in zip(seen.others, seen.others[1:], strict=False):
        assert not equal(one, next_one)


def test_it_learns_as_usual_before() -> None:
    plain, frozen = fit(), fit(FreezeBatchNorm(epochs=2))
    for step in range(4):
        assert equal(plain.norms[step], frozen.norms[step])
        assert equal(plain.others[step], frozen.others[step])
    assert not equal(plain.others[5], frozen.others[5])


def test_from_the_start() -> None:
    norm = nn.BatchNorm2d(8)
    before = {f"2.{name}": value.clone() for name, value in norm.state_dict().items()}
    assert equal(fit(FreezeBatchNorm(epochs=0), net=Net(norm)).norms[-1], before)


@pytest.mark.parametrize(
    ("epochs", "norms", "message"),
    [(-1, [nn.BatchNorm2d(8)], r"epochs=-1: must be 0 or more"), (1, [], "the net has no batch norm")],
)
def test_what_makes_no_sense_is_named(epochs: int, norms: list[nn.Module], message: str) -> None:
    with pytest.raises(UserError, match=rf"callbacks\.freeze_batch_norm.*{message}"):
        fit(FreezeBatchNorm(epochs), net=Net(*norms))


def states(root: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Batch norms (odd layers of three) and the rest of the run in a folder."""
    (last,) = Path(root).glob("**/last.ckpt")
    state = torch.load(last, weights_only=True)["state_dict"]
    norms = {name.rpartition(".")[0] for name in state if name.endswith("running_mean")}
    kinds: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
    for name, value in state.items():
        kinds[name.rpartition(".")[0] not in norms][name] = value
    return kinds


class Crash(BaseException):
    """Stands for a SIGKILL."""


def test_a_run_resumed_within_an_epoch_is_frozen_too(
    segmod: Any, small: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning calls no ``on_train_epoch_start`` then."""
    small = (*small, *FREEZE, "callbacks.checkpoints.every_n_steps=1")
    assert segmod("train", *small, "trainer.max_epochs=1", "runs=one") == 0

    steps = 0

    def crash(self: FreezeBatchNorm, *args: Any) -> None:
        nonlocal steps
        steps += 1
        if steps == 6:  # the second of the four steps of the second epoch
            raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(FreezeBatchNorm, "on_train_batch_end", crash)
        patch.setattr("segmod.runs.cli._report", lambda error, *_: (_ for _ in ()).throw(error))
        with pytest.raises(Crash):
            segmod("train", *small, "trainer.max_epochs=2", "runs=two")
    assert segmod("train", *small, "trainer.max_epochs=2", "runs=two") == 0
    (norms, others), (norms_later, others_later) = states("one"), states("two")
    assert equal(norms, norms_later)
    assert not equal(others, others_later)


@pytest.mark.slow
def test_two_processes(small: tuple[str, ...], tmp_path: Path) -> None:
    """DistributedDataParallel would wait for the gradients of frozen weights for ever."""
    recipe = (*small, *FREEZE, "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
    clean = {k: v for k, v in os.environ.items() if k not in ("PL_GLOBAL_SEED", "LOCAL_RANK", "WORLD_SIZE")}
    for epochs in (1, 3):
        command = [
            sys.executable,
            "-m",
            "segmod.commands.train",
            *recipe,
            f"trainer.max_epochs={epochs}",
            f"runs=runs{epochs}",
        ]
        environment = clean | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stderr[-3000:]
    (norms, others), (norms_later, others_later) = states(str(tmp_path / "runs1")), states(str(tmp_path / "runs3"))
    assert equal(norms, norms_later)
    assert not equal(others, others_later)
