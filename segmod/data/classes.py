"""Names and colours of classes, in the forms in which people write them down."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from segmod.ground.errors import UserError, require
from segmod.ground.files import read_text
from segmod.ground.palettes import VOC_PALETTE
from segmod.ground.types import UInt8Array

Colour = tuple[int, int, int]
"""Red, green, blue, 0..255."""

_FILES = (
    "classes.txt", "labels.txt", "labelmap.txt", "class_names.txt", "label_colors.txt", "class_dict.csv", "classes.csv",
    "classes.yaml", "classes.yml",
)  # fmt: skip
_HEADERS = ("name,r,g,b", "class,r,g,b", "name", "class")
_BYTE = r"(25[0-5]|2[0-4]\d|1?\d?\d)"
_BETWEEN = r"[\s,;:]+"
_NAME_FIRST = re.compile(rf"(?P<name>.*?\S){_BETWEEN}{_BYTE}{_BETWEEN}{_BYTE}{_BETWEEN}{_BYTE}[\s,;:]*")
_COLOUR_FIRST = re.compile(rf"{_BYTE}{_BETWEEN}{_BYTE}{_BETWEEN}{_BYTE}{_BETWEEN}(?P<name>\S.*?)\s*")


def read_classes(
    root: Path, given: Sequence[str] | Mapping[str, Sequence[int]] | str | int | None
) -> tuple[tuple[str, ...], list[Colour] | None]:
    """Names of classes in the order of their labels, and their colours where these are given.

    A text file has a class a line: ``name``, ``name r g b`` or ``r g b name``, with spaces, commas or colons between;
    CamVid's ``class_dict.csv`` and CVAT's ``labelmap.txt`` are so. A yaml file has a list of names, or a mapping
    of names to colours, or of labels 0, 1, ... to names, at its top or under ``names``.

    Args:
        root: where files are looked for.
        given: the names; or their colours by name; or a file; or how many there are; None to look for a usual file.

    Raises:
        UserError: there is no such file; it says something else.
    """
    if isinstance(given, bool):
        raise UserError(f"data.dataset.classes={given}: give names, a file or a number")
    if isinstance(given, int):
        require(2 <= given <= 255, f"data.dataset.classes={given}: 2 to 255 classes can be labelled")
        return tuple(f"class {label}" for label in range(given)), None
    if given is None:
        file = next((root / name for name in _FILES if (root / name).is_file()), None)
        require(
            file is not None,
            f"{root / _FILES[0]}: no such file, which would name the classes, one a line; write it, or give "
            "data.dataset.classes=[background,...] or their number",
        )
        return _read(file)  # type: ignore[arg-type]
    if isinstance(given, str):
        file = root / given
        require(file.is_file(), f"data.dataset.classes={given}: there is no file {file}")
        return _read(file)
    return _understood(dict(given) if isinstance(given, Mapping) else list(given), "data.dataset.classes")


def is_colour(value: Any) -> bool:
    """Whether a value of a config or a file is [r, g, b] of 0..255."""
    return isinstance(value, Sequence) and len(value) == 3 and all(isinstance(v, int) and 0 <= v <= 255 for v in value)


def palette_of(colours: Sequence[Colour] | None) -> UInt8Array:
    """Colours of the labels 0..255, uint8 (256, 3): VOC's where there are none."""
    palette = VOC_PALETTE.copy()
    if colours:
        palette[: len(colours)] = colours
    return palette


def text_of(file: Path) -> str:
    """Text of a file that the user wrote.

    Raises:
        UserError: it cannot be read, or not as UTF-8.
    """
    try:
        return read_text(file)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read as UTF-8 text ({error}); save it so") from error


def _read(file: Path) -> tuple[tuple[str, ...], list[Colour] | None]:
    text = text_of(file)
    if file.suffix in (".yaml", ".yml"):
        try:
            found = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UserError(f"{file}: is no yaml ({' '.join(str(error).split())[:120]}); mend it") from error
        return _understood(found.get("names", found) if isinstance(found, dict) else found, str(file))
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if lines and lines[0].replace(" ", "").lower() in _HEADERS:
        lines = lines[1:]
    matches = [_NAME_FIRST.fullmatch(line) or _COLOUR_FIRST.fullmatch(line) for line in lines]
    if lines and all(matches):
        pairs = [(m["name"], [int(m[g]) for g in range(1, 5) if g != m.re.groupindex["name"]]) for m in matches if m]
        return _understood(dict(pairs), str(file), len(lines))
    odd = next((line for line, match in zip(lines, matches, strict=True) if match), None)
    if odd is not None:
        plain = next(line for line, match in zip(lines, matches, strict=True) if not match)
        raise UserError(f"{file}: {odd!r} has a colour and {plain!r} has none; give all of them one, or none")
    return _understood(lines, str(file))


def _understood(found: Any, place: str, count: int | None = None) -> tuple[tuple[str, ...], list[Colour] | None]:
    """Names and colours of a list or a mapping; ``count`` is what a file had, where names may come twice."""
    if isinstance(found, dict) and sorted(map(str, found)) == sorted(map(str, range(len(found)))):
        found = [found[key] for key in sorted(found, key=int)]
    names = [str(name).strip() for name in found] if isinstance(found, (list, dict)) else []
    require(
        len(names) >= 2 and all(names) and len(set(names)) == (count or len(names)),
        f"{place}: give two or more different names of classes, in the order of their labels, background first",
    )
    if not isinstance(found, dict):
        return tuple(names), None
    colours = []
    for name, value in found.items():
        require(is_colour(value), f"{place}: the colour of {name} is {value}; give [r, g, b] of 0..255")
        colours.append((int(value[0]), int(value[1]), int(value[2])))
    twice = next((name for name, c in zip(names, colours, strict=True) if colours.count(c) > 1), None)
    require(twice is None, f"{place}: the colour of {twice} is that of another class, too; give each its own")
    return tuple(names), colours
