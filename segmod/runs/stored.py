"""Stored configs are data, whoever stored them: read within bounds, their references followed, and nothing called.

A stored config may refer to its own keys (``${data.root}``) and to the two environment variables that say where data
lie. Resolvers, such as ``oc.env``, run when a config is composed from a command line, and never when it is read back.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

import yaml
from omegaconf import Container, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from segmod.ground.errors import UserError, reason, require
from segmod.ground.names import require_name

LARGEST = 2**18  # bytes of a file; those of the largest experiment have 5000
GROWN = 2**20  # values and characters once references are followed
UNBUILT = ("logger", "callbacks")
"""Groups that are never built from a stored config; they may name secrets, which are stored as they were typed."""

_REFERENCE = re.compile(r"\$\{([\w.\[\]-]+)\}")
_PLACE = re.compile(r"\$\{oc\.env:(SEGMOD_(?:DATA|PROPOSALS)),(\w+)\}")  # as conf/ has it, so that runs can be moved


def read(path: Path) -> dict[str, Any]:
    """The content of a stored config as it stands there.

    Raises:
        UserError: It is no config, or so large that it would fill the memory.
    """
    remedy = "take another run, or train it again"
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
        require(len(content) <= LARGEST, f"{path}: larger than {LARGEST} bytes, which no config of a run is; {remedy}")
        text = content.decode()
        repeats = "&" in text and any(isinstance(e, yaml.AliasEvent) for e in yaml.parse(text, Loader=yaml.SafeLoader))
        require(not repeats, f"{path}: has YAML aliases, which no config of a run has; {remedy}")
        plain: Any = OmegaConf.to_container(OmegaConf.load(StringIO(text)))
    except (OSError, ValueError, RecursionError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{path}: cannot be read as a config ({reason(error)}); {remedy}") from None
    require(isinstance(plain, dict), f"{path}: is a list, not the config of a run; {remedy}")
    require(
        "${" not in str(path), f"{path}: its folder has ${{ in its name, which configs take for a reference; rename it"
    )
    return plain  # type: ignore[no-any-return]


def followed(raw: Mapping[str, Any], path: Path | str = "config") -> tuple[dict[str, Any], dict[str, str]]:
    """A config with values in place of its references.

    Args:
        raw: The config.
        path: Where it was read, for messages.

    Returns:
        The config, in which no string has ``${`` any more; and by dotted key what could not be followed, because it
        calls a resolver or refers to nothing. There the config has the text, its ``${`` taken apart.

    Raises:
        UserError: It refers to itself, or grows without bound.
    """
    follower = _Follower(raw)
    try:
        return follower.value(raw, ()), follower.left
    except RecursionError:
        raise UserError(f"{path}: refers to itself; take another run, or train it again") from None
    except OverflowError:
        raise UserError(f"{path}: grows without bound by its references; take another run") from None


def settled(raw: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """A config as something may be built from it: as `followed`, with nothing left over, and named as a run can be.

    Raises:
        UserError: As `followed`, or it calls a resolver, refers to nothing, or has a name that leads elsewhere.
    """
    config, left = followed(raw, path)
    for place, text in left.items():
        if place.partition(".")[0] not in UNBUILT:
            remedy = "calls a resolver: if you trust it, add trust=all" if ":" in text else "refers to nothing there"
            raise UserError(f"{path}: {place[-60:]}={text[:80]!a} {remedy}")
    require_name(config.get("name"), f"{path}: name=")
    return config


class _Follower:
    """Follows the references of a config, each time anew, as long as the result stays small."""

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self.raw = raw
        self.left: dict[str, str] = {}
        self._size = 0

    def value(self, node: Any, place: tuple[str, ...]) -> Any:
        self._size += 1 + (len(node) if isinstance(node, str) else 0)
        if self._size > GROWN:
            raise OverflowError
        if isinstance(node, Mapping):
            return {key: self.value(item, (*place, str(key))) for key, item in node.items()}
        if isinstance(node, list):
            return [self.value(item, (*place, str(i))) for i, item in enumerate(node)]
        return self._text(node, place) if isinstance(node, str) and "${" in node else node

    def _text(self, text: str, place: tuple[str, ...]) -> Any:
        if found := _PLACE.fullmatch(text):
            return os.environ.get(found[1], found[2]).replace("${", "$ {")
        try:
            if found := _REFERENCE.fullmatch(text):
                return self._target(found[1], place)
            whole = _REFERENCE.sub(lambda found: str(self._target(found[1], place)), text)
        except (LookupError, TypeError, ValueError):  # refers to nothing
            whole = text
        if "${" in whole:
            self.left[".".join(place)] = text
        return whole.replace("${", "$ {")

    def _target(self, reference: str, place: tuple[str, ...]) -> Any:
        """What a reference leads to; one that begins with dots counts from its own place."""
        path = reference.lstrip(".")
        dots = len(reference) - len(path)
        node: Any = self.raw
        at: tuple[str, ...] = ()
        for part in (*place[: len(place) - dots if dots else 0], *re.split(r"[.\[\]]+", path.rstrip("]"))):
            if isinstance(node, str):  # a reference on the way
                node = self.value(node, at)
            node = node[int(part)] if isinstance(node, list) else node[part]
            at = (*at, part)
        return self.value(node, at)


def for_scoring(raw: Mapping[str, Any], asked: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """A stored config as whole images are scored with it, its references as they were.

    Args:
        raw: The config.
        asked: Other nodes for some groups; those without ``_target_`` change keys of the group's own.
        data: Keys of the data to change.

    Raises:
        UserError: It is not the config of a training.
    """
    config = {key: dict(value) if isinstance(value, dict) else value for key, value in raw.items()}
    model, images = config.get("model"), config.get("data")
    if not (isinstance(images, dict) and isinstance(model, dict) and isinstance(model.get("net"), dict)):
        raise UserError(f"run={raw.get('run_dir')}: its config has no data or no model.net; take another run")
    for group, node in asked.items():
        config[group] = node if "_target_" in node else merged(config.get(group), node)
    images |= dict.fromkeys({"download", "verify"} & set(images), False)  # that was when it was trained
    images |= {"summary": None, "augment": []}
    config["data"] = images = merged(images, data)
    seen = followed(config)[0]["data"]
    if seen.get("crops") is not None:
        images["crops"] = None  # whole images are scored, whatever the run trained on
        if not seen.get("eval_squash"):
            images["squash"] = None  # that was the size of the crops
    if model["net"].get("weights") is not None:
        model["net"] = {**model["net"], "weights": None}  # the checkpoint brings all weights
    return config


def merged(old: Any, new: Any) -> Any:
    """Nested dicts in one, of two values the new one."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    return {**old, **{key: merged(old.get(key), value) for key, value in new.items()}}


def frozen(cfg: Container | Mapping[str, Any]) -> Any:
    """A config of the user's own as plain data: what calls a resolver gives way to its value, references stay."""
    cfg = cfg if isinstance(cfg, Container) else OmegaConf.create(dict(cfg))
    raw: Any = OmegaConf.to_container(cfg, resolve=False)
    for key, value in raw.items() if isinstance(raw, dict) else enumerate(raw):
        if isinstance(value, (dict, list)):
            raw[key] = frozen(cfg[key])
        elif isinstance(value, str) and "${" in _REFERENCE.sub("", value) and not _PLACE.fullmatch(value):
            found = cfg[key]
            raw[key] = OmegaConf.to_container(found, resolve=True) if OmegaConf.is_config(found) else found
    return raw


def as_stored(cfg: DictConfig) -> dict[str, Any]:
    """What the config of a training is stored as; see `frozen` and `UNBUILT`."""
    typed = {group: OmegaConf.to_container(cfg[group]) for group in UNBUILT if cfg.get(group) is not None}
    return {**frozen(cfg), **typed}
