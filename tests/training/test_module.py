"""What the module makes of its arguments once Lightning asks for it: optimiser, schedule, initial weights, seeds."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn

from segmod.ground.errors import UserError
from segmod.nets.normalise import Normalise
from segmod.optim import Linear, Plateau
from segmod.training.module import SegmentationModule

Train = Callable[..., L.Trainer]
SGD = partial(torch.optim.SGD, lr=0.1, weight_decay=0.01)
RULES = [{"match": r"\.bias$", "lr_mult": 2.0, "decay_mult": 0.0}]


class Net(nn.Module):
    """Classifies each pixel by its colour; one stage of a curriculum may have layers that another has not."""

    num_classes = 5

    def __init__(self, *layers: str) -> None:
        super().__init__()
        self.normalise = Normalise()
        for name in ("score", *layers):
            self.add_module(name, nn.Conv2d(3, self.num_classes, 1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.score(self.normalise(image))
        return scores


def module(optimizer: Any = SGD, net: nn.Module | None = None, **options: Any) -> SegmentationModule:
    return SegmentationModule(net or Net(), nn.CrossEntropyLoss(ignore_index=255), optimizer, **options)


def test_a_batch_that_is_all_void_costs_nothing_and_moves_nothing() -> None:
    made = module()
    image = torch.rand(2, 3, 8, 8)
    loss = made.compute_loss({"image": image, "mask": torch.full((2, 8, 8), 255, dtype=torch.uint8)})  # type: ignore[typeddict-item]
    loss.backward()
    assert loss == 0
    assert all((p.grad == 0).all() for p in made.net.parameters() if p.grad is not None)
    labels = torch.zeros(2, 8, 8, dtype=torch.uint8)
    loss = made.compute_loss({"image": image, "mask": labels})  # type: ignore[typeddict-item]
    assert loss == made.loss(made.net(image), labels.long())


class Rates(L.Callback):
    """Notes the rates of all groups that each batch is trained with."""

    def __init__(self) -> None:
        self.seen: list[list[float]] = []

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        self.seen.append([group["lr"] for group in trainer.optimizers[0].param_groups])


def rates(train: Train, module: SegmentationModule, **options: Any) -> list[list[float]]:
    callback = Rates()
    train(False, [callback], module=module, **options)
    return callback.seen


# -- optimiser -------------------------------------------------------------------------------------------------------


def test_rules_make_groups_with_rates_and_decays_of_their_own(train: Train) -> None:
    trainer = train(False, [], module=module(param_rules=RULES))
    groups = trainer.optimizers[0].param_groups
    # the bias of five classes at twice the rate and without decay, then the weights of three colours for each
    assert [sum(p.numel() for p in group["params"]) for group in groups] == [5, 15]
    assert [group["lr"] for group in groups] == [0.2, 0.1]
    assert [group["weight_decay"] for group in groups] == [0, 0.01]


def test_the_schedule_multiplies_the_rate_of_each_group_after_every_step(train: Train) -> None:
    seen = rates(train, module(param_rules=RULES, scheduler=Linear))
    # two epochs of two steps: 1, 3/4, 2/4 and 1/4 of 0.2 and of 0.1
    assert torch.tensor(seen).allclose(torch.tensor([[0.2, 0.1], [0.15, 0.075], [0.1, 0.05], [0.05, 0.025]]))


def test_the_schedule_counts_optimiser_steps_where_gradients_are_accumulated(train: Train) -> None:
    # both batches of an epoch make one step: two steps in all, at 1 and 1/2
    found = rates(train, module(scheduler=Linear), accumulate_grad_batches=2)
    assert found == [[0.1], [0.1], [0.05], [0.05]]
    # of three epochs of one step, each an epoch of the schedule: 1, 2/3 and 1/3
    by_epoch = module(scheduler=partial(Linear, by_epoch=True))
    found = rates(train, by_epoch, max_epochs=3, accumulate_grad_batches=2)
    assert torch.tensor(found).flatten().allclose(torch.tensor([3, 3, 2, 2, 1, 1]) / 30)


def test_a_plateau_is_looked_for_after_every_epoch(train: Train) -> None:
    # a rate that changes no label: the first score is the best, the second no better, so the third epoch has the half
    plateau = partial(Plateau, factor=0.5, patience=0)
    optimizer = partial(torch.optim.SGD, lr=1e-6)
    found = rates(train, module(optimizer, scheduler=plateau, scheduler_monitor="val/pixel_acc"), max_epochs=3)
    assert found == [[1e-6]] * 4 + [[5e-7]] * 2


def test_one_cycle_rises_to_the_rate_of_each_group(train: Train) -> None:
    # of four steps 0 to 3 the peak is 0.5 * 4 - 1 = 1: from a quarter up to the rates of the groups, and in two equal
    # steps down to where it began
    cycle = partial(
        torch.optim.lr_scheduler.OneCycleLR, pct_start=0.5, anneal_strategy="linear", final_div_factor=1.0,
        cycle_momentum=False, div_factor=4.0,
    )  # fmt: skip
    found = torch.tensor(rates(train, module(param_rules=RULES, scheduler=cycle)))
    assert found[:, 1].tolist() == pytest.approx([0.025, 0.1, 0.0625, 0.025])
    assert torch.allclose(found[:, 0], 2 * found[:, 1])


@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_a_schedule_takes_its_steps_and_its_length_in_its_interval(train: Train, interval: str) -> None:
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR
    found = rates(train, module(scheduler=cosine, scheduler_interval=interval))
    # half a cosine over 4 steps, or over 2 epochs: (1 + cos(pi t / T)) / 2
    expected = [1, 0.85355339, 0.5, 0.14644661] if interval == "step" else [1, 1, 0.5, 0.5]
    assert [rate for (rate,) in found] == pytest.approx([0.1 * factor for factor in expected])
    # ours count as they are called, too: 1, 1/2 of two epochs
    found = rates(train, module(scheduler=Linear, scheduler_interval=interval))
    expected = [1, 0.75, 0.5, 0.25] if interval == "step" else [1, 1, 0.5, 0.5]
    assert [rate for (rate,) in found] == pytest.approx([0.1 * factor for factor in expected])


def test_a_length_that_the_config_gives_stays(train: Train) -> None:
    cosine = partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=2)
    found = rates(train, module(scheduler=cosine))
    assert [rate for (rate,) in found] == pytest.approx([0.1, 0.05, 0, 0.05])


@pytest.mark.parametrize(
    ("mode", "monitor", "message"),
    [
        (
            "min",
            "val/miou",
            r"model\.scheduler\.mode=min: max is best for val/miou; give \+\+model\.scheduler\.mode=max",
        ),
        ("max", "train/loss_epoch", r"model\.scheduler\.mode=max: min is best for train/loss_epoch"),
        ("max", None, r"model\.scheduler_monitor: name the metric"),
    ],
)
def test_a_plateau_watches_for_what_is_better(mode: Any, monitor: str | None, message: str, train: Train) -> None:
    plateau = partial(torch.optim.lr_scheduler.ReduceLROnPlateau, mode=mode)
    with pytest.raises(UserError, match=message):
        train(False, [], module=module(scheduler=plateau, scheduler_monitor=monitor))


def test_what_a_schedule_lacks_is_told(train: Train) -> None:
    with pytest.raises(UserError, match=r"model\.scheduler: .*'step_size'"):
        train(False, [], module=module(scheduler=torch.optim.lr_scheduler.StepLR))


@pytest.mark.parametrize(
    ("precision", "clip", "fused"),
    [
        ("32-true", None, True),
        ("32-true", 1.0, True),
        ("bf16-mixed", 1.0, True),
        ("16-mixed", None, True),
        ("16-mixed", 1.0, None),  # a fused step unscales the gradients itself: too late to clip them
    ],
)
def test_the_fused_optimiser_is_taken_where_gradients_can_be_clipped(
    precision: str, clip: float | None, fused: bool | None
) -> None:
    made = module()
    trainer = SimpleNamespace(precision=precision, gradient_clip_val=clip, strategy=SimpleNamespace())
    made.trainer = trainer  # type: ignore[assignment]
    optimizer: Any = made.configure_optimizers()
    assert optimizer.defaults["fused"] is fused
    trainer.strategy.shard = print  # a net that is divided among processes
    optimizer = made.configure_optimizers()
    assert optimizer.defaults["fused"] is None


def test_the_config_decides_for_or_against_the_fused_optimiser(train: Train) -> None:
    trainer = train(False, [], module=module(partial(torch.optim.SGD, lr=0.1, fused=False)))
    assert trainer.optimizers[0].defaults["fused"] is False
    trainer = train(False, [], module=module(partial(torch.optim.Rprop, lr=0.1)))  # there is no fused one
    assert "fused" not in trainer.optimizers[0].defaults


@pytest.mark.skipif(not torch.cuda.is_available(), reason="fp16 is mixed on a GPU")
def test_fp16_with_clipped_gradients_trains(train: Train) -> None:
    made = module()
    before = made.net.score.weight.detach().clone()  # type: ignore[union-attr, operator]
    train(False, [], module=made, accelerator="gpu", devices=1, precision="16-mixed", gradient_clip_val=0.1)
    assert not torch.equal(made.net.score.weight.cpu(), before)  # type: ignore[union-attr, operator, arg-type]


# -- initial weights -------------------------------------------------------------------------------------------------


def test_init_from_copies_what_both_nets_have_and_tells_the_rest(
    train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = Net("auxiliary"), Net("skip")
    torch.save({"state_dict": {f"net.{k}": v for k, v in first.state_dict().items()}}, tmp_path / "first.ckpt")
    before = second.skip.weight.clone()
    caplog.set_level(logging.INFO, "segmod")
    made = module(partial(torch.optim.SGD, lr=0.0), net=second, init_from=str(tmp_path / "first.ckpt"))
    train(False, [], module=made)
    assert torch.equal(second.score.weight, first.score.weight)
    assert torch.equal(second.skip.weight, before)
    (line,) = [record.getMessage() for record in caplog.records if "init_from" in record.getMessage()]
    assert line == (
        f"init_from {tmp_path / 'first.ckpt'}: 2 tensors copied; "
        "2 that it lacks keep their initial values (skip.weight, skip.bias); "
        "2 that this net lacks are left out (auxiliary.weight, auxiliary.bias)"
    )


@pytest.mark.parametrize(("stage", "resumed"), [("fit", "last.ckpt"), ("validate", None)])
def test_init_from_is_for_the_beginning_of_a_training_alone(stage: str, resumed: str | None) -> None:
    made = module(init_from="nowhere.ckpt")
    made.trainer = SimpleNamespace(ckpt_path=resumed)  # type: ignore[assignment]
    made.setup(stage)  # would fail if it looked for the file


def test_of_several_processes_the_first_tells_what_was_copied(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save(Net().state_dict(), tmp_path / "first.pth")
    caplog.set_level(logging.INFO, "segmod")
    for first in (False, True):
        assert not caplog.records
        made = module(init_from=str(tmp_path / "first.pth"))
        made.trainer = SimpleNamespace(ckpt_path=None, is_global_zero=first)  # type: ignore[assignment]
        made.setup("fit")
    assert len(caplog.records) == 1


def test_what_the_score_layers_see_is_told_once_at_the_start(train: Train, caplog: pytest.LogCaptureFixture) -> None:
    class Streams(Net):
        def stream_rms(self, image: torch.Tensor) -> dict[str, tuple[float, int]]:
            return {"fc7": (1.0, 4096), "pool4": (2.25 * image.shape[0], 512)}

    caplog.set_level(logging.INFO, "segmod")
    train(False, [], module=module(net=Streams()))  # four steps of two images
    (line,) = [record.getMessage() for record in caplog.records if "rms" in record.getMessage()]
    assert line.endswith("fc7 1 (4096), pool4 4.5 (512)")


# -- weights of classes ----------------------------------------------------------------------------------------------


def test_classes_are_counted_when_a_training_begins(train: Train, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "segmod")
    made = module(class_weights="auto")
    trainer = train(False, [], module=made)
    counted = list(trainer.datamodule.balancing_weights().values())  # type: ignore[attr-defined]
    assert len(set(counted)) > 1
    assert made.loss.weight.tolist() == pytest.approx(counted)  # type: ignore[union-attr, operator]
    (line,) = [record.getMessage() for record in caplog.records if "class_weights" in record.getMessage()]
    assert line.startswith(f"data.class_weights: background {counted[0]:.3g}, aeroplane {counted[1]:.3g}, ")


def test_weights_change_the_loss(train: Train) -> None:
    made = module(class_weights=[1, 2, 3, 4, 5])
    train(False, [], module=made)
    assert made.loss.weight.tolist() == [1, 2, 3, 4, 5]  # type: ignore[union-attr, operator]
    assert "loss.weight" in made.state_dict()
    with pytest.raises(UserError, match=r"data\.class_weights has 2 numbers; the data have 5 classes"):
        module(class_weights=[1, 2])


def test_weights_are_counted_of_whole_images_alone() -> None:
    made = module(class_weights="auto")
    made.trainer = SimpleNamespace(  # type: ignore[assignment]
        ckpt_path=None, is_global_zero=True, datamodule=object(), strategy=SimpleNamespace(broadcast=lambda it: it)
    )
    with pytest.raises(UserError, match=r"data\.class_weights=auto: this stage trains on no whole images"):
        made.on_fit_start()
    made.trainer.datamodule = None  # type: ignore[attr-defined]
    made.on_fit_start()  # as segmod-benchmark times a step


# -- seeds -----------------------------------------------------------------------------------------------------------


def test_dropout_is_decided_by_seed_epoch_batch_and_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn(seed: int, epoch: int, batch: int, rank: int) -> float:
        monkeypatch.setenv("PL_GLOBAL_SEED", str(seed))
        made = module()
        made.trainer = SimpleNamespace(current_epoch=epoch, global_rank=rank)  # type: ignore[assignment]
        made.on_train_batch_start({}, batch)
        return float(torch.rand(()))

    places = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]
    first = [drawn(*place) for place in places]
    assert len(set(first)) == len(places)
    assert [drawn(*place) for place in places] == first


# -- images that do not suit the net ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "told"),
    [
        (nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(5)), "raise data.batch_size"),
        (nn.Conv2d(5, 5, 99), "too small for this net"),
    ],
)
def test_images_that_are_too_small_or_too_few_are_told_in_a_line(layer: nn.Module, told: str) -> None:
    net = nn.Sequential(Net(), layer)
    net.num_classes = 5
    batch: Any = {"image": torch.zeros(1, 3, 8, 8), "mask": torch.zeros(1, 8, 8).byte(), "name": ["2007_000033"]}
    with pytest.raises(UserError, match=rf"batch \['2007_000033'\]: .*{told}"):
        module(net=net.train()).training_step(batch, 0)


def test_other_errors_of_a_net_stay_what_they_are() -> None:
    net = nn.Sequential(Net(), nn.Conv2d(7, 5, 1))
    net.num_classes = 5
    batch: Any = {"image": torch.zeros(1, 3, 8, 8), "mask": torch.zeros(1, 8, 8).byte(), "name": ["a"]}
    with pytest.raises(RuntimeError, match="channels"):
        module(net=net).training_step(batch, 0)
