"""What a config key may be, checked before anything is touched: types with ranges, which pydantic reads.

A class says what its arguments may be in its signature (`segmod.ground.types.Count` and the like), and so can
anybody's. The table here has what no signature of ours can say: the keys of the commands themselves, and the ranges
that libraries leave out.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cache
from inspect import isclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, is_typeddict

from annotated_types import Ge, Gt, Le, Len, Lt, MinLen
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigTypeError
from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

from segmod.ground.errors import UserError, cut, require
from segmod.ground.types import Amount, Count, Fraction, Images, NotNegative, Positive, Processes, Side, Text

Seed = Annotated[int, Ge(0), Le(2**32 - 1)]  # what NumPy takes
Limit = Count | Annotated[float, Gt(0), Le(1)]  # batches, or a share of them
Below1 = Annotated[float, Ge(0), Lt(1)]
Steps = Annotated[int, Ge(-1)]  # -1: no end

_KEYS: dict[str, Any] = {
    # of the commands
    "name": Text,
    "runs": Text,
    "seed": Seed,
    "overwrite": bool,
    "init_from": Text | None,
    "checkpoint": Text | None,
    "run": Text | list[Text],
    "against": Text | None,
    "against_name": Text | None,
    "split": Text | Annotated[list[Text], MinLen(1)] | None,
    "submission": bool | None,
    "competition": Literal["comp5", "comp6"],
    "pictures": Amount,
    "input": Text,
    "output": Text | None,
    "probabilities": bool,
    "max_side": Side | None,
    "device": Text,
    "limit": Count | None,
    "workers": Annotated[int, Ge(1), Le(256)] | None,
    "report": bool,
    "min_pixels": Amount,
    "table": Text | None,
    # of segmod-benchmark
    "size": Side | Annotated[list[Side], Len(2, 2)] | None,
    "batch": Count | None,
    "precision": Text | None,
    "channels_last": bool | None,
    "compile": bool | None,
    "threads": Annotated[int, Ge(1), Le(1024)] | None,
    "steps": Count | None,
    "passes": Count | None,
    "warmup": Amount | None,
    "rounds": Count | None,
    # of segmod-export
    "format": Literal["onnx", "pt2", "weights"],
    "file": Text | None,
    "calibrate": Images,
    "compare": Images,
    # nodes
    **dict.fromkeys(("data", "model", "model.net", "trainer", "callbacks", "logger"), dict[str, Any]),
    # data, where a command has but some of its keys
    "data.root": Text | None,
    "data.num_workers": Processes | None,
    "data.eval_squash": bool | None,
    # lightning.Trainer
    "trainer.accelerator": Text,
    "trainer.devices": Literal[-1] | Count | Text | Annotated[list[Amount], MinLen(1)],
    "trainer.num_nodes": Count,
    "trainer.strategy": Text | dict[str, Any],
    "trainer.max_epochs": Literal[-1] | Count | None,
    "trainer.min_epochs": Amount | None,
    "trainer.max_steps": Steps,
    "trainer.min_steps": Amount | None,
    "trainer.limit_train_batches": Limit | None,
    "trainer.limit_val_batches": Limit | None,
    "trainer.overfit_batches": Amount | Fraction,
    "trainer.val_check_interval": Limit | Text | Annotated[dict[str, int], MinLen(1)] | None,
    "trainer.check_val_every_n_epoch": Count | None,
    "trainer.num_sanity_val_steps": Steps | None,
    "trainer.log_every_n_steps": Count,
    "trainer.accumulate_grad_batches": Count,
    "trainer.gradient_clip_val": Positive | None,
    "trainer.gradient_clip_algorithm": Literal["norm", "value"] | None,
    "trainer.enable_progress_bar": bool,
    "trainer.enable_model_summary": bool,
    "trainer.profiler": Literal["simple", "advanced", "pytorch"] | dict[str, Any] | None,
    "trainer.default_root_dir": Text | None,
    # torch.optim
    "model.optimizer.lr": NotNegative,
    "model.optimizer.momentum": Below1,
    "model.optimizer.betas": Sequence[Below1],
    "model.optimizer.weight_decay": NotNegative,
}
# arguments of classes that say less of them than they take
OF_LIBRARIES: dict[str, dict[str, Any]] = {
    "torch.nn.CrossEntropyLoss": {
        "reduction": Literal["mean", "sum"], "label_smoothing": Fraction, "ignore_index": Literal[255],
    },
    "lightning.pytorch.callbacks.EarlyStopping": {
        "monitor": Text, "patience": Amount, "mode": Literal["min", "max"], "min_delta": NotNegative,
    },
    "lightning.pytorch.callbacks.EMAWeightAveraging": {"decay": Below1, "update_every_n_steps": Count},
    "segmod.training.progress.ModelSummary": {"max_depth": Steps},
}  # fmt: skip
# where a command is stricter than the others
_OF_COMMAND: dict[str, dict[str, Any]] = {
    "train": {"checkpoint": Literal["best", "last"]},
    "predict": {"output": Text, "run": Text},
    "export": {
        "run": Text,
        "split": Text | None,
        "output": Literal["logits", "probabilities", "labels"],
        "size": Annotated[list[Side], Len(2, 2)] | None,
        "precision": Literal["fp32", "fp16", "int8"],
    },
    "evaluate": {"run": Text, "split": Text | None},
    "study": {"split": Text | None, "run": Text | Annotated[list[Text], MinLen(1)] | None, "name": Text | None},
    "tables": {"output": Text},
    "app": {
        "run": Text | Annotated[list[Text], MinLen(1)] | None,
        "port": Annotated[int, Ge(1024), Le(65535)],
        "max_side": Side | None,
    },
    "report": {"run": Text, "split": Text | None, "output": Text | None, "images": Amount, "pictures": Count},
    "benchmark": {
        "output": Text,
        "data.batch_size": Images,
        "data.crop_size": Side | None,
        "data.squash": Side | None,
    },
}


_ABSENT = object()


def check_values(cfg: DictConfig, command: str) -> None:
    """Check the keys of a config that the table knows, as far as they are there.

    Raises:
        UserError: One has a value that cannot be; names it, and says what can.
    """
    for key, hint in (_KEYS | _OF_COMMAND.get(command, {})).items():
        try:
            value = OmegaConf.select(cfg, key, default=_ABSENT)
        except ConfigTypeError:  # below something that is no node, which is refused where it is built
            continue
        if value is not _ABSENT:
            check_type(OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value, hint, key)
    if command == "train":
        _check_length(cfg.trainer)


def _check_length(trainer: Mapping[str, Any]) -> None:
    """Check that a training ends, and that all who take part in it can be there.

    Raises:
        UserError: It does not, or they cannot.
    """
    steps, epochs = trainer.get("max_steps", -1), trainer.get("max_epochs")
    require(
        steps != 0 and (steps > 0 or (epochs or -1) > 0 or trainer.get("max_time") is not None),
        "trainer: set trainer.max_steps or max_epochs, to 1 or more: nothing says how long to train",
    )
    nodes = trainer.get("num_nodes", 1)
    require(
        nodes == 1 or any(name in os.environ for name in _LAUNCHERS),
        f"trainer.num_nodes={nodes}: nothing has started the other nodes: use srun or torchrun, or start it on each "
        "node with NODE_RANK, MASTER_ADDR and MASTER_PORT set; or give trainer.num_nodes=1",
    )


_LAUNCHERS = ("MASTER_ADDR", "SLURM_NTASKS", "TORCHELASTIC_RUN_ID", "LSB_JOBID", "OMPI_COMM_WORLD_SIZE")


def check_type(value: Any, hint: Any, key: str) -> None:
    """Check the value of a key. Numbers must be finite, and a text, a number and a truth value are never each other.

    Raises:
        UserError: It is of another type or out of range.
    """
    try:
        adapter = _adapter(hint)
    except Exception:  # hints pydantic cannot read are left to the target
        return
    fault = " has the wrong type"
    try:
        if _unchanged(value, adapter.validate_python(value)):
            return
    except ValidationError as error:
        if any(one["type"] in _RANGES for one in error.errors()):
            fault = ""
    raise UserError(f"{key}={shown(value)}{fault}: give {_describe(hint)}")


@cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False))
    except PydanticUserError:  # of a type that brings a configuration of its own
        return TypeAdapter(hint)


# what pydantic calls a value of the right type that is out of range
_RANGES = {
    "greater_than", "greater_than_equal", "less_than", "less_than_equal", "finite_number", "string_too_short",
    "too_short", "too_long",
}  # fmt: skip


def _unchanged(value: Any, checked: Any) -> bool:
    """Whether pydantic made no other number, truth value or text of what it was given, nor of what is in it."""
    if isinstance(value, list) and isinstance(checked, list | tuple):
        return all(map(_unchanged, value, checked))
    if isinstance(value, dict) and isinstance(checked, dict):
        return all(_unchanged(item, checked[key]) for key, item in value.items() if key in checked)
    if not isinstance(checked, bool | int | float):
        return True
    return type(value) is type(checked) or (type(value) is int and type(checked) is float)


def shown(value: Any) -> str:
    """A value as YAML has it."""
    return (
        {None: "null", True: "true", False: "false"}[value]
        if value is None or value is True or value is False
        else cut(repr(value), 60)
    )


_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    Path: "a path",
    NoneType: "null",
}


def _describe(hint: Any) -> str:
    """What a type takes, in words."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return ", or ".join(dict.fromkeys(map(_describe, arguments)))
    if origin is Literal:
        return " or ".join(map(str, arguments)) if len(arguments) < 3 else f"one of {', '.join(map(str, arguments))}"
    if origin is Annotated:
        of = [f" of {mark.min_length}" for mark in arguments[1:] if isinstance(mark, Len)]
        return _describe(arguments[0]).replace("a list", "".join(["a list", *of]), 1) + _bounds(arguments[1:])
    if origin is not None and isclass(origin) and issubclass(origin, Sequence) and arguments:
        return f"a list, each {_describe(arguments[0])}"
    if is_typeddict(hint):
        return f"{{{', '.join(hint.__annotations__)}}}"
    return _WORDS.get(hint) or getattr(hint, "__name__", str(hint)).replace("typing.", "")


def _bounds(marks: Sequence[Any]) -> str:
    """The range that the marks of an annotated type leave, in words."""
    bounds = {type(mark): mark for mark in marks}
    low, high = bounds.get(Ge), bounds.get(Le)
    if low and high:
        return f", from {low.ge} to {high.le}"
    words = [f"{low.ge} or more"] if low else []
    words += [f"above {bounds[Gt].gt}"] if Gt in bounds else []
    words += [f"below {bounds[Lt].lt}"] if Lt in bounds else []
    words += [f"at most {high.le}"] if high else []
    return ", ".join(["", " and ".join(words)]) if words else ""
