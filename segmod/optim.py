"""Optimiser parameter groups from ordered rules, and learning-rate schedules in closed form."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NotRequired

from annotated_types import Gt, Lt
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau
from typing_extensions import TypedDict  # typing's own cannot be checked before Python 3.12

from segmod.ground.errors import UserError
from segmod.ground.types import Amount, Count, NotNegative, Positive

_RISING = ("val/miou", "val/mean_acc", "val/pixel_acc", "val/fwiou")


class ParamRule(TypedDict):
    """What to do with the parameters whose name the pattern finds; multipliers default to 1."""

    match: str  # regular expression, searched in names such as "features.0.bias"
    lr_mult: NotRequired[NotNegative]  # 0 freezes the parameters
    decay_mult: NotRequired[NotNegative]


def param_groups(net: nn.Module, rules: Sequence[ParamRule]) -> list[dict[str, Any]]:
    """Sort the trainable parameters of a net into one group a rule; the first rule that matches wins.

    Each group carries ``lr_mult`` and ``decay_mult``, which `scale_groups` applies once the optimiser has filled in
    its learning rate and weight decay. A rule with ``lr_mult: 0`` freezes its parameters: they get no gradient.

    Raises:
        UserError: A rule matches no parameter, its pattern is no regular expression, or it has an unknown key.
    """
    defaults = {"lr_mult": 1.0, "decay_mult": 1.0}
    patterns = []
    for i, rule in enumerate(rules):
        unknown = set(rule) - {"match", *defaults}
        if unknown or "match" not in rule:
            raise UserError(
                f"model.param_rules[{i}] needs 'match' and may have 'lr_mult' and 'decay_mult': {dict(rule)}"
            )
        try:
            patterns.append(re.compile(rule["match"]))
        except re.error as error:
            raise UserError(
                f"model.param_rules[{i}].match={rule['match']!r} is no regular expression: {error}"
            ) from None

    groups: list[dict[str, Any]] = [{"params": [], **defaults, **rule} for rule in rules] + [{"params": [], **defaults}]
    seen = [False] * len(rules)
    for name, parameter in net.named_parameters():
        hits = [i for i, pattern in enumerate(patterns) if pattern.search(name)]
        for i in hits[:1]:
            seen[i] = True
        group = groups[hits[0]] if hits else groups[-1]
        if group["lr_mult"] == 0:
            parameter.requires_grad_(False)
        if parameter.requires_grad:
            group["params"].append(parameter)
    for i, (rule, hit) in enumerate(zip(rules, seen, strict=True)):
        if not hit:
            raise UserError(
                f"model.param_rules[{i}].match={rule['match']!r} decides for no parameter of {type(net).__name__}: "
                "mend the pattern or take the rule out"
            )
    return [{k: v for k, v in group.items() if k != "match"} for group in groups if group["params"]]


def scale_groups(optimizer: Optimizer) -> None:
    """Multiply each group's learning rate and weight decay by its own multipliers."""
    for group in optimizer.param_groups:
        group["lr"] *= group.get("lr_mult", 1.0)
        if "weight_decay" in group:
            group["weight_decay"] *= group.get("decay_mult", 1.0)


class Schedule(LambdaLR):
    """Learning rate = initial rate x `factor` (t, total), with an optional linear warm-up from 0.

    It is stepped after every optimiser step; ``by_epoch`` holds the rate still within an epoch. Being a closed form of
    the step it cannot drift when a run is resumed.

    Args:
        optimizer: Whose rates to set.
        total_steps: Length of the training in steps; the module fills it in.
        steps_per_epoch: Likewise.
        warmup: Steps of the ramp.
        by_epoch: Let t and total count epochs in place of steps.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        steps_per_epoch: int = 1,
        *,
        warmup: Amount = 0,
        by_epoch: bool = False,
    ) -> None:
        self.total_steps = max(1, total_steps)
        self.unit = max(1, steps_per_epoch) if by_epoch else 1
        self.warmup = warmup
        super().__init__(optimizer, lambda step: self._warmed(step))  # a plain function stays out of the state dict

    def _warmed(self, step: int) -> float:
        ramp = min(1.0, (step + 1) / (self.warmup + 1))
        return ramp * self.factor(step // self.unit, self.total_steps / self.unit)

    def factor(self, t: int, total: float) -> float:
        """Multiplier of the initial rate after ``t`` of ``total`` steps (or epochs)."""
        raise NotImplementedError


class Constant(Schedule):
    """The initial rate throughout; the length of the training does not matter."""

    def __init__(self, optimizer: Optimizer, *, warmup: Amount = 0) -> None:
        super().__init__(optimizer, 1, warmup=warmup)

    def factor(self, t: int, total: float) -> float:  # noqa: D102
        return 1.0


class Poly(Schedule):
    """(1 - t / total) ** power, the schedule of DeepLab (Chen et al. 2017, sec. 3.1)."""

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        steps_per_epoch: int = 1,
        *,
        power: NotNegative = 0.9,
        warmup: Amount = 0,
        by_epoch: bool = False,
    ) -> None:
        self.power = power
        super().__init__(optimizer, total_steps, steps_per_epoch, warmup=warmup, by_epoch=by_epoch)

    def factor(self, t: int, total: float) -> float:  # noqa: D102
        return float(max(0.0, 1.0 - t / total) ** self.power)


class Linear(Schedule):
    """1 - t / total: falls to zero in equal steps."""

    def factor(self, t: int, total: float) -> float:  # noqa: D102
        return max(0.0, 1.0 - t / total)


class Cosine(Schedule):
    """(1 + cos(pi t / total)) / 2: half a cosine (Loshchilov and Hutter 2017, eq. 5, without restarts)."""

    def factor(self, t: int, total: float) -> float:  # noqa: D102
        return (1 + math.cos(math.pi * min(1.0, t / total))) / 2


class Compound(Schedule):
    """Product of 1 - i / total over i = 1 ... t: falls towards zero ever faster."""

    def factor(self, t: int, total: float) -> float:  # noqa: D102
        if t >= total:
            return 0.0
        return math.exp(math.lgamma(total) - math.lgamma(total - t) - t * math.log(total))


class Step(Schedule):
    """Times ``gamma`` after every ``every`` steps (or epochs); the length of the training does not matter."""

    def __init__(
        self,
        optimizer: Optimizer,
        steps_per_epoch: int = 1,
        *,
        every: Count = 10000,
        gamma: Positive = 0.1,
        warmup: Amount = 0,
        by_epoch: bool = False,
    ) -> None:
        self.every = every
        self.gamma = gamma
        super().__init__(optimizer, 1, steps_per_epoch, warmup=warmup, by_epoch=by_epoch)

    def factor(self, t: int, total: float) -> float:  # noqa: D102
        return float(self.gamma ** (t // self.every))


def watched(schedule: ReduceLROnPlateau, metric: str | None) -> str:
    """The metric that a plateau schedule watches.

    Raises:
        UserError: There is none, or the schedule takes it for better the other way round.
    """
    if metric is None:
        raise UserError("model.scheduler_monitor: name the metric that the schedule watches, such as val/miou")
    right = "min" if "loss" in metric else "max" if metric in _RISING else schedule.mode
    if schedule.mode != right:
        raise UserError(
            f"model.scheduler.mode={schedule.mode}: {right} is best for {metric}; give ++model.scheduler.mode={right}"
        )
    return metric


class Plateau(ReduceLROnPlateau):
    """Times ``factor`` where a metric has not improved for more than ``patience`` epochs.

    The one schedule that is no closed form: what it has seen is part of its state.

    Args:
        optimizer: Whose rates to set.
        mode: Whether the metric is to rise (``max``) or to fall (``min``).
        factor: Of the rates.
        patience: Epochs without progress that are borne.
        warmup: Steps of a linear ramp from 0, in which nothing else changes the rates.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        mode: Literal["min", "max"] = "max",
        factor: Annotated[float, Gt(0), Lt(1)] = 0.1,
        patience: Amount = 10,
        warmup: Amount = 0,
    ) -> None:
        super().__init__(optimizer, mode, factor, patience)
        self.warmup = warmup
        self.rates = [group["lr"] for group in optimizer.param_groups]
        self.taken = 0  # steps of the optimiser
        self._ramp()
        optimizer.register_step_post_hook(lambda *_: self._count())

    def _count(self) -> None:
        self.taken += 1
        self._ramp()

    def _ramp(self) -> None:
        if self.taken <= self.warmup:
            for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
                group["lr"] = rate * (self.taken + 1) / (self.warmup + 1)
