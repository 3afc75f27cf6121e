from pathlib import Path

import pytest
import torch
from torch import nn

from segmod.ground.errors import UserError
from segmod.optim import Compound, Constant, Cosine, Linear, Plateau, Poly, Schedule, Step, param_groups, scale_groups


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1))


def test_first_matching_rule_wins_and_multiplies() -> None:
    rules = [{"match": r"^0\.bias$", "lr_mult": 2.0, "decay_mult": 0.0}, {"match": r"\.bias$", "lr_mult": 5.0}]
    groups = param_groups(net(), rules)
    optimizer = torch.optim.SGD(groups, lr=0.1, weight_decay=0.01)
    scale_groups(optimizer)
    # two biases of 4 and 2 values, then the two weights
    assert [[p.numel() for p in g["params"]] for g in optimizer.param_groups] == [[4], [2], [108, 8]]
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.2, 0.5, 0.1])
    assert [g["weight_decay"] for g in optimizer.param_groups] == pytest.approx([0.0, 0.01, 0.01])


def test_rule_with_zero_rate_freezes() -> None:
    module = net()
    groups = param_groups(module, [{"match": "^0", "lr_mult": 0.0}])
    assert sum(p.numel() for g in groups for p in g["params"]) == 10
    assert not module[0].weight.requires_grad


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([{"match": "nothing"}], r"param_rules\[0\].match='nothing' decides for no parameter"),
        ([{"match": "bias"}, {"match": r"0\.bias"}], r"param_rules\[1\]"),  # shadowed by the first
        ([{"match": "("}], "no regular expression"),
        ([{"match": "bias", "lr": 2}], "may have 'lr_mult'"),
    ],
)
def test_wrong_rules_are_named(rules: list[dict[str, object]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        param_groups(net(), rules)  # type: ignore[arg-type]


def rates(schedule: type[Schedule], steps: int, **kwargs: object) -> list[float]:
    optimizer = torch.optim.SGD(net().parameters(), lr=1.0)
    scheduler = schedule(optimizer, **kwargs)  # type: ignore[arg-type]
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_schedules_follow_their_formulas() -> None:
    assert rates(Constant, 3) == [1, 1, 1]
    assert rates(Linear, 4, total_steps=4) == [1, 0.75, 0.5, 0.25]
    assert rates(Poly, 4, total_steps=4, power=2.0) == [1, 0.5625, 0.25, 0.0625]
    # cos of 0, 60, 120 degrees is 1, 1/2, -1/2
    assert rates(Cosine, 3, total_steps=3) == pytest.approx([1, 0.75, 0.25])
    assert rates(Step, 5, every=2, gamma=0.1) == pytest.approx([1, 1, 0.1, 0.1, 0.01])


def test_schedule_by_epoch_is_still_within_an_epoch() -> None:
    # 2 steps an epoch, 6 steps: 3 epochs at 1, 2/3, 1/3
    found = rates(Linear, 6, total_steps=6, steps_per_epoch=2, by_epoch=True)
    assert found == pytest.approx([1, 1, 2 / 3, 2 / 3, 1 / 3, 1 / 3])


def test_warmup_rises_in_equal_steps() -> None:
    assert rates(Constant, 5, warmup=3) == [0.25, 0.5, 0.75, 1, 1]


def test_schedule_state_loads_as_plain_weights(tmp_path) -> None:  # type: ignore[no-untyped-def]
    optimizer = torch.optim.SGD(net().parameters(), lr=1.0)
    scheduler = Poly(optimizer, total_steps=10)
    for _ in range(3):
        optimizer.step()
        scheduler.step()
    torch.save(scheduler.state_dict(), tmp_path / "s.pt")
    other = Poly(torch.optim.SGD(net().parameters(), lr=1.0), total_steps=10)
    other.load_state_dict(torch.load(tmp_path / "s.pt", weights_only=True))
    assert other.last_epoch == 3


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("OneCycleLR", {"max_lr": 1.0, "total_steps": 10}),
        ("CosineAnnealingWarmRestarts", {"T_0": 3}),
        ("CosineAnnealingLR", {"T_max": 9}),
        ("MultiStepLR", {"milestones": [2, 6]}),
        ("CyclicLR", {"base_lr": 0.1, "max_lr": 1.0, "step_size_up": 3}),
        ("PolynomialLR", {"total_iters": 8}),
    ],
)
def test_schedules_of_torch_go_on_from_a_checkpoint(name: str, keys: dict[str, object], tmp_path: Path) -> None:
    """Which is read as plain weights; the rates after it are those of a schedule that was not cut off."""

    def made() -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        optimizer = torch.optim.SGD(net().parameters(), lr=1.0, momentum=0.9)
        return optimizer, getattr(torch.optim.lr_scheduler, name)(optimizer, **keys)

    def step(optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LRScheduler) -> float:
        optimizer.step()
        schedule.step()
        return float(optimizer.param_groups[0]["lr"])

    whole, cut = made(), made()
    for _ in range(3):
        assert step(*whole) == step(*cut)
    torch.save([part.state_dict() for part in cut], tmp_path / "s.pt")
    resumed = made()
    for part, state in zip(resumed, torch.load(tmp_path / "s.pt", weights_only=True), strict=True):
        part.load_state_dict(state)
    found = [step(*resumed) for _ in range(4)]
    assert found == [step(*whole) for _ in range(4)]
    assert len(set(found)) > 1


def test_compound_multiplies_the_factors_of_all_epochs() -> None:
    # 1, then 3/4, then 3/4 * 2/4, then 3/4 * 2/4 * 1/4
    assert rates(Compound, 4, total_steps=4) == pytest.approx([1, 0.75, 0.375, 0.09375])
    # after 10 and 20 of 30 epochs the product is 0.123 and 7e-5
    found = rates(Compound, 31, total_steps=30)
    assert (found[10], found[20]) == pytest.approx((0.1230925, 6.987965e-5))
    assert found[30] == 0


def test_plateau_lowers_the_rate_after_too_many_epochs_without_progress() -> None:
    optimizer = torch.optim.SGD(net().parameters(), lr=0.01)
    schedule = Plateau(optimizer, patience=5)
    found = []
    for accuracy in (0.5, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6):
        schedule.step(accuracy)
        found.append(optimizer.param_groups[0]["lr"])
    assert found == pytest.approx([0.01] * 7 + [0.001])  # six after the best


def test_plateau_warms_up_and_goes_on_where_it_was() -> None:
    """Ramp of 1/3, 2/3, 1; what is resumed after one step has two thirds and then the whole rate."""
    optimizer = torch.optim.SGD(net().parameters(), lr=3.0)
    schedule = Plateau(optimizer, warmup=2)
    found = [optimizer.param_groups[0]["lr"]]
    optimizer.step()
    state = schedule.state_dict(), optimizer.state_dict()
    for _ in range(2):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
    assert [*found, optimizer.param_groups[0]["lr"]] == pytest.approx([1, 2, 3, 3])

    other = torch.optim.SGD(net().parameters(), lr=3.0)
    resumed = Plateau(other, warmup=2)
    resumed.load_state_dict(state[0])
    other.load_state_dict(state[1])
    assert other.param_groups[0]["lr"] == 2
    other.step()
    assert other.param_groups[0]["lr"] == 3
