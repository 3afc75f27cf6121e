"""What each config key is for: the recipe of a run, its length, its machine, or watching it; here alone.

*Recipe* keys decide the result: they name the run's folder, and who goes on with a run must give them as they were.
*Length* keys decide it, too, but a run may be trained on: they are no part of the name, see `segmod.runs.length`.
*Machine* keys say where and on what it is computed and *watching* keys what is seen of it: they may change at any time.
A key that nothing here speaks of is of the recipe, so that a new one is never lost from sight.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from enum import Enum
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf


class Kind(Enum):
    """What a config key is for."""

    RECIPE = "recipe"
    LENGTH = "length"
    MACHINE = "machine"
    WATCHING = "watching"


_PATTERNS = {
    Kind.LENGTH: r"trainer\.max_(epochs|steps)",
    Kind.MACHINE: (
        r"runs|run_dir|overwrite|hydra([./].*)?"
        r"|(.+\.)?(root|sbd_root)"  # of data, of stored proposals, of other runs
        r"|data\.(.+\.)?(num_workers|pin_memory|download|verify|cache_images)"
        r"|(inference|model\.predictor)\.(.+\.)?batch_size"
        r"|trainer\.(accelerator|devices|num_nodes|strategy(\..+)?|benchmark|use_distributed_sampler|default_root_dir)"
        r"|callbacks\.(checkpoints\.(directory|every_n_steps)|prune\.sweep)"
        # how segmod-benchmark measures
        r"|what|size|batch|device|precision|channels_last|compile|threads|steps|passes|warmup|rounds|against|output"
    ),
    Kind.WATCHING: (
        r"data\.summary|logger(\..+)?|callbacks\.(pictures|panels|lr_monitor|progress|lines|summary)(\..+)?"
        r"|trainer\.(enable_\w+|log_every_n_steps|num_sanity_val_steps|profiler|detect_anomaly)"
    ),
}
# options of the group `trainer` that say on what to compute, and no more
_DEVICES = {"default", "cpu", "gpu", "ddp", "fsdp"}
# what a folder's name says elsewhere: an experiment sets the name
SAID = frozenset({"name", "seed", "experiment", "sweep"})

LONGEST = 60  # characters of a folder's name


def kinds(key: str) -> list[Kind]:
    """The kinds whose patterns a dotted key matches: none for the recipe, never two."""
    return [kind for kind, pattern in _PATTERNS.items() if re.fullmatch(pattern, key)]


def kind(key: str) -> Kind:
    """What a dotted key, or a config group, is for."""
    return next(iter(kinds(key)), Kind.RECIPE)


# -- of a whole config -----------------------------------------------------------------------------------------------


def settings(cfg: DictConfig) -> dict[str, Any]:
    """The recipe of a config with its length: the keys, flat and resolved."""
    resolved = dict(flat(OmegaConf.to_container(cfg, resolve=True)))
    # boxes count where they are used: in data or inference, which refer to the node `proposals`
    return {
        k: v for k, v in resolved.items() if kind(k) in (Kind.RECIPE, Kind.LENGTH) and not k.startswith("proposals.")
    }


def digest(cfg: DictConfig) -> str:
    """Fingerprint of what a run computes: equal for equal `settings`."""
    return hashlib.sha256(json.dumps(settings(cfg), sort_keys=True, default=str).encode()).hexdigest()[:16]


def flat(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of the leaves of nested dicts; lists and empty dicts are leaves."""
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from flat(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, node


def differences(configs: Sequence[DictConfig]) -> list[str]:
    """What sets each of some runs apart from the others, as folders are called: ``depth-0``, ``depth-1``."""
    found = [settings(cfg) for cfg in configs]
    keys = sorted(differing(found))
    ends = endings(keys)
    return [
        shortened("+".join(f"{end}-{_word(one[key])}" for key, end in zip(keys, ends, strict=True) if key in one))
        for one in found
    ]


def differing(recipes: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys whose values are not the same in all recipes, in their order."""
    keys = dict.fromkeys(key for recipe in recipes for key in recipe)
    return [key for key in keys if len({repr(recipe.get(key)) for recipe in recipes}) > 1]


# -- of a command line -----------------------------------------------------------------------------------------------


def readable(
    overrides: Sequence[str], *, with_model_and_data: bool, longest: int | None = LONGEST, said: Set[str] = SAID
) -> str:
    """Short name of the overrides that are of the recipe, in the order of their keys; may be empty.

    ``["seed=1", "model.net={depth:2,width:0.5}", "optimizer=adam"]`` gives
    ``depth-2+width-0.5+optimizer-adam``: last parts of the keys, or more where two end alike, and of paths the name of
    the file.

    Args:
        overrides: Of the command line.
        with_model_and_data: Whether the choices ``model=`` and ``data=`` are part of it.
        longest: Characters at most; a name that would be longer is cut and ends in a hash. None: any number.
        said: Keys that are no part of it, and their groups.
    """
    chosen: dict[str, Any] = {}
    parser = OverridesParser.create()
    for override in overrides:
        parsed = parser.parse_override(override)
        key = "@".join(filter(None, [parsed.key_or_group, parsed.package]))
        value = override.partition("=")[2] if parsed.is_sweep_override() else _plain(parsed.value())
        chosen |= {f"~{key}": None} if parsed.is_delete() else dict(flat(value, key))
    untold = said if with_model_and_data else {*said, "model", "data"}
    named = {
        key: value
        for key, value in sorted(chosen.items(), key=lambda item: item[0].lstrip("~"))
        if kind(key.lstrip("~")) is Kind.RECIPE
        and key not in untold
        and not (key == "trainer" and str(value) in _DEVICES)
    }
    ends = endings([key.lstrip("~") for key in named])
    words = [
        f"no-{end}" if key[0] == "~" else f"{end}-{_word(named[key])}" for key, end in zip(named, ends, strict=True)
    ]
    text = "+".join(words)
    return text if longest is None else shortened(text, json.dumps(named, default=str), longest)


def shortened(text: str, meaning: str = "", longest: int = LONGEST) -> str:
    """A text that fits; of one that does not the beginning, and a hash of what it means."""
    if len(text) <= longest:
        return text
    return f"{text[: longest - 9]}-{hashlib.sha256((meaning or text).encode()).hexdigest()[:8]}"


def _plain(value: Any) -> Any:
    """A parsed value with plain strings for the keys of its dicts."""
    return {str(key): _plain(item) for key, item in value.items()} if isinstance(value, Mapping) else value


def endings(keys: Sequence[str]) -> list[str]:
    """Of each key the fewest last parts that no other key ends in."""
    parts = [re.split(r"[./@]", key) for key in keys]
    found = []
    for own in parts:
        fewest = next((n for n in range(1, len(own)) if sum(other[-n:] == own[-n:] for other in parts) == 1), len(own))
        found.append(".".join(own[-fewest:]))
    return found


def _word(value: Any) -> str:
    """A value as a part of a folder's name: no path, no interpolation, no odd characters."""
    if isinstance(value, list):
        return "_".join(map(_word, value))
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    text = re.sub(r"\$\{([^{}]*)\}", lambda match: re.split(r"[.:,/]", match[1])[-1], str(value))
    text = Path(text).stem if "/" in text else text
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("_")
