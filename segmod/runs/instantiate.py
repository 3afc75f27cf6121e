"""Build objects from configs, with every value checked against the signature it goes to, before any work is done."""

from __future__ import annotations

import difflib
import inspect
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from typing import Any, get_args, get_type_hints

import hydra
import hydra.utils
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

from segmod.ground.errors import UserError, cut
from segmod.runs import cli
from segmod.runs.values import OF_LIBRARIES, check_type, shown

logging.getLogger("hydra.utils").addFilter(lambda record: False)  # writes what cannot be imported in three lines more


# that configs of segmod name, and no install brings
_PACKAGES = {
    "segmentation_models_pytorch": "pip install segmentation-models-pytorch",
    "transformers": "pip install transformers",
}


class BuildError(UserError):
    """A node names what the code does not have, or leaves out what it needs: a target, an argument."""


def instantiate(cfg: DictConfig, key: str, **kwargs: Any) -> Any:
    """Build what the node at ``key`` describes.

    Args:
        cfg: Root config.
        key: Dotted key of a node with ``_target_``.
        kwargs: Further arguments, already built.

    Raises:
        UserError: A target does not exist; an argument is unknown, missing, of a wrong type or refused. Names its key.
    """
    node = OmegaConf.select(cfg, key)
    if not (OmegaConf.is_dict(node) and "_target_" in node):
        raise UserError(f"{key}={shown(node)}: give a node with _target_, the class to build, and its arguments")
    plain = OmegaConf.to_container(node, resolve=True)
    check(plain, key, given=kwargs)
    node = OmegaConf.select(placed(_with_tensors(plain), key), key)  # so that Hydra names the whole key
    try:
        return hydra.utils.instantiate(node, _convert_="all", **kwargs)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, UserError):
            raise cause from None
        if (
            isinstance(cause, (ValueError, TypeError, OSError, ImportError, RuntimeError, ArithmeticError, MemoryError))
            or type(cause).__name__ == "MisconfigurationException"
        ):
            place = str(error).rpartition("full_key: ")[2].split("\n")[0].strip() or key
            raise UserError(f"{place}: {(str(cause).splitlines() or [type(cause).__name__])[0]}") from error
        raise


def placed(node: Any, key: str) -> DictConfig:
    """A config that has a node at a dotted key, and nothing else."""
    for part in reversed(key.split(".")):
        node = {part: node}
    config: DictConfig = OmegaConf.create(node)
    return config


def loggers(cfg: DictConfig, job: str, group: str) -> list[Any]:
    """Build the loggers of a config.

    Args:
        cfg: Root config, which may have a node ``logger``.
        job: Kind of the job, such as ``train``.
        group: Of the job, where the config names none; both are for W&B, which sorts by them.

    Raises:
        UserError: As `instantiate`.
    """
    nodes = {name: node for name, node in (cfg.get("logger") or {}).items() if node is not None}
    extra = {
        name: {"job_type": job, "group": node.group or group}
        for name, node in nodes.items()
        if OmegaConf.is_dict(node) and "group" in node
    }
    return [instantiate(cfg, f"logger.{name}", **extra.get(name, {})) for name in nodes]


def settle_classes(cfg: DictConfig) -> None:
    """Give the net as many classes as the data set has: ``model.net.num_classes``, which no yaml says.

    Raises:
        UserError: As `instantiate`, of ``data.dataset``.
    """
    classes = instantiate(cfg, "data.dataset").legend.classes
    OmegaConf.update(cfg, "model.net.num_classes", len(classes), force_add=True)


def untrained_net(model: str) -> Any:
    """The net of an option of the config group ``model``, with random weights, for the classes of its data.

    Raises:
        UserError: As `instantiate`.
        HydraException: There is no such option.
    """
    here = GlobalHydra.instance().is_initialized()  # within a command, whose folders of configs count
    with nullcontext() if here else hydra.initialize_config_dir(str(cli.CONF_DIR), version_base="1.3"):
        cfg = hydra.compose("train", overrides=[f"model={model}"])
    settle_classes(cfg)
    if "weights" in cfg.model.net:
        cfg.model.net.weights = None
    return instantiate(cfg, "model.net")


def check(node: Any, key: str, given: Mapping[str, Any] | None = None) -> None:
    """Check a resolved node and all nodes below it against the signatures of their targets.

    Raises:
        UserError: As `instantiate`.
    """
    if isinstance(node, list):
        for i, item in enumerate(node):
            check(item, f"{key}[{i}]")
        return
    if not isinstance(node, dict):
        return
    if "_target_" not in node:
        for name, value in node.items():
            check(value, f"{key}.{name}")
        return

    if node["_target_"] == "???":
        raise UserError(f"{key}._target_ is required: give {key}._target_=..., the class to build")
    target = _locate(node["_target_"], key)
    parameters, hints = _signature(target)
    hints |= OF_LIBRARIES.get(node["_target_"], {})
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    arguments = {name: value for name, value in node.items() if not (name.startswith("_") and name.endswith("_"))}
    for name in {"_partial_", "_recursive_"} & set(node):
        check_type(node[name], bool, f"{key}.{name}")
    strange = [] if takes_any else [name for name in arguments if name not in parameters]
    if strange:
        remedy = _alternatives(strange[0], parameters)
        if "mean" not in remedy and "[" not in key:  # as what another optimiser has left behind
            remedy = f"leave it out by {' '.join(f'~{key}.{name}' for name in strange)}, or {remedy}"
        raise BuildError(cut(f"{key}.{strange[0]}: {node['_target_']} takes no such argument; {remedy}", 300))
    for name, value in arguments.items():
        if value == "???":
            raise UserError(f"{key}.{name} is required: give {key}.{name}=...")
        if _builds(value):
            check(value, f"{key}.{name}")
        elif name in hints:
            hint = Sequence[float] | None if _takes_tensor(hints[name]) else hints[name]
            check_type(value, hint, f"{key}.{name}")
    if not node.get("_partial_"):
        for name, parameter in _own_parameters(target).items():
            needed = parameter.default is parameter.empty and parameter.kind not in (
                parameter.VAR_POSITIONAL,
                parameter.VAR_KEYWORD,
            )
            if needed and name not in arguments and name not in (given or {}):
                raise BuildError(f"{key}.{name} is required by {node['_target_']}: give {key}.{name}=...")


def _takes_tensor(hint: Any) -> bool:
    """Whether a signature asks for a tensor, if for anything: a config gives it as a list of numbers."""
    return {getattr(kind, "__name__", "") for kind in get_args(hint) or (hint,)} - {"NoneType"} == {"Tensor"}


def _with_tensors(node: Any) -> Any:
    """A checked node with tensors in place of such lists, as the ``weight`` of torch's losses."""
    if isinstance(node, list):
        return [_with_tensors(item) for item in node]
    if not isinstance(node, dict):
        return node
    hints = _signature(_locate(node["_target_"], ""))[1] if "_target_" in node else {}
    return {
        name: {"_target_": "torch.tensor", "data": [*map(float, value)]}
        if isinstance(value, list) and _takes_tensor(hints.get(name))
        else _with_tensors(value)
        for name, value in node.items()
    }


def _alternatives(name: str, parameters: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, parameters, n=1)
    return f"did you mean {close[0]}?" if close else f"it takes {', '.join(parameters)}"


def _locate(path: str, key: str) -> Callable[..., Any]:
    try:
        found: Callable[..., Any] = hydra.utils.get_object(path)
        if not callable(found):
            raise TypeError(f"it is a {type(found).__name__}, no class or function")
    except Exception as error:
        cause = error.__cause__ or error
        reason = str(cause).partition("\n")[0] or type(error).__name__
        message = f"{key}._target_={path}: cannot be imported ({reason})"
        module = str(path).partition(".")[0]
        if (
            isinstance(cause, ModuleNotFoundError) and cause.name == module
        ):  # of the user's own, in no version of segmod
            remedy = f"run from the folder that holds {module}.py, or name it in PYTHONPATH"
            raise UserError(f"{message}: {_PACKAGES.get(module, remedy)}") from error
        raise BuildError(message) from error
    return found


def _signature(target: Callable[..., Any]) -> tuple[Mapping[str, inspect.Parameter], dict[str, Any]]:
    """Parameters and their types; targets without a readable signature take anything."""
    # what a class hands on to its bases by **kwargs has its types there
    functions = (
        [vars(c)["__init__"] for c in target.__mro__ if "__init__" in vars(c)] if inspect.isclass(target) else [target]
    )
    parameters: dict[str, inspect.Parameter] = {}
    hints: dict[str, Any] = {}
    for function in functions:
        try:
            own = dict(inspect.signature(function).parameters)
        except (TypeError, ValueError):
            return {"kwargs": inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD)}, {}
        if inspect.isclass(target):
            own.pop(next(iter(own)))  # self
        parameters = {k: p for k, p in parameters.items() if p.kind is not p.VAR_KEYWORD}
        parameters = {**own, **parameters}
        with suppress(Exception):  # names that exist for type checkers alone
            hints = {**get_type_hints(function, include_extras=True), **hints}
        if not any(p.kind is p.VAR_KEYWORD for p in own.values()):
            break
    return parameters, hints


def _own_parameters(target: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Parameters of the target itself: what its bases require, it may give them."""
    try:
        return inspect.signature(target).parameters
    except (TypeError, ValueError):
        return {}


def _builds(value: Any) -> bool:
    """Whether something inside a value is to be built first, so that its own type is not yet known."""
    if isinstance(value, dict):
        return "_target_" in value or any(map(_builds, value.values()))
    return isinstance(value, list) and any(map(_builds, value))
