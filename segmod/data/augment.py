"""What ``data.augment`` says: further transforms of training images, by their names in albumentations."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from typing import Any

import albumentations as A
import numpy as np

from segmod.ground.errors import UserError, cut, reason, require
from segmod.ground.types import IGNORE_INDEX

_TRIALS = 4


def augmentations(steps: Any, side: int | None = None, fill: tuple[int, int, int] = (0, 0, 0)) -> list[Any]:
    """Build transforms and try each on an image of noise.

    Those that move pixels show, where they have none, ``fill`` in images and void in masks; and masks are resampled by
    their nearest pixel; unless their arguments say otherwise.

    Args:
        steps: a list of names and arguments, such as ``{ColorJitter: {brightness: 0.2}}``. OneOf, SomeOf, Sequential
            and RandomOrder take such a list, too, as ``transforms``.
        side: of the square images that come to the transforms; None where they are not square, or not all alike.
        fill: RGB.

    Raises:
        UserError: albumentations has no such transform, or it takes no such arguments; or what it makes of an image and
            its mask is not a uint8 image with a mask of the same size and with the same labels.
    """
    built = _build_all(steps, "data.augment", fill)
    for i, step in enumerate(built):
        _try(step, f"data.augment[{i}]: {type(step).__name__}", (side, side) if side else (48, 64))
    return built


def _build_all(steps: Any, key: str, fill: tuple[int, int, int]) -> list[Any]:
    if not isinstance(steps, list | tuple):
        raise UserError(f"{key}={steps!s:.60}: give a list of transforms; augment=light and augment=strong have one")
    return [_build(step, f"{key}[{i}]", fill) for i, step in enumerate(steps)]


def _build(step: Any, key: str, fill: tuple[int, int, int]) -> Any:
    require(
        isinstance(step, Mapping) and len(step) == 1 and isinstance(next(iter(step.values())), Mapping | None),
        f"{key}={step!s:.80}: give a name and its arguments, such as {{ColorJitter: {{brightness: 0.2}}}}",
    )
    ((name, given),) = step.items()
    kind = getattr(A, str(name), None)
    if not (inspect.isclass(kind) and issubclass(kind, A.BasicTransform | A.BaseCompose)):
        close = difflib.get_close_matches(str(name), dir(A), n=1)
        meant = f"did you mean {close[0]}?" if close else "see its documentation for those there are"
        raise UserError(f"{key}: albumentations has no transform {str(name)[:60]}; {meant}")
    takes = inspect.signature(kind).parameters
    arguments = dict(given or {})
    for argument in arguments:
        if argument not in takes:
            close = difflib.get_close_matches(str(argument), takes, n=1)
            meant = f"did you mean {close[0]}?" if close else f"it takes {', '.join(takes)}"
            raise UserError(cut(f"{key}.{name}: takes no {str(argument)[:60]}; {meant}", 300))
    if "border_mode" in takes:  # what moves pixels
        arguments.setdefault("fill", fill)
    if "fill_mask" in takes and takes["fill_mask"].default is not None:  # None: labels stay, whatever the image shows
        arguments.setdefault("fill_mask", IGNORE_INDEX)
    if issubclass(kind, A.BaseCompose) and "transforms" in arguments:
        arguments["transforms"] = _build_all(arguments["transforms"], f"{key}.{name}.transforms", fill)
    try:
        return kind(**arguments)
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines()] or ["cannot be made"]
        if len(lines) > 2:  # pydantic's: how many faults, then of each the argument and the reason
            lines = [f"{lines[1].partition('.')[0]}: {lines[2].partition(' [type')[0]}"]
        raise UserError(cut(f"{key}.{name}: {lines[0]}", 300)) from None


def _try(step: Any, key: str, size: tuple[int, int]) -> None:
    """Check what a transform makes of noise, with its probability raised to 1."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    mask = rng.choice(np.array([0, 4, IGNORE_INDEX], dtype=np.uint8), size)
    for trial in range(_TRIALS):
        step.set_random_seed(trial)
        try:
            out = step(image=image.copy(), mask=mask.copy(), force_apply=True)
        except Exception as error:
            raise UserError(cut(f"{key} cannot be done to an image and its mask ({reason(error)})", 300)) from error
        for what, before in (("image", image), ("mask", mask)):
            found = out[what]
            shown = f"{found.dtype} {tuple(found.shape)}"
            if shown != f"{before.dtype} {before.shape}":
                raise UserError(
                    f"{key} makes the {what} {shown} of {before.dtype} {before.shape}; kind and size must stay: sizes "
                    "are for data.crop_size, data.scale and data.squash, numbers for model.net.normalise"
                )
        strange = sorted(set(np.unique(out["mask"]).tolist()) - {0, 4, IGNORE_INDEX})
        require(
            not strange,
            f"{key} makes labels {strange[:5]} of 0, 4 and {IGNORE_INDEX}: masks take mask_interpolation: 0 (nearest) "
            f"and fill_mask: {IGNORE_INDEX} (void) or 0",
        )
