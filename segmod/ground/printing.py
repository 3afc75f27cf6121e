"""Tables that commands print and write: on the terminal, as Markdown and as csv."""

from __future__ import annotations

import csv
import io
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from segmod.ground.errors import UserError, reason
from segmod.ground.files import read_text, replace_text

if TYPE_CHECKING:
    from rich.console import Console


class Terminal(logging.StreamHandler[TextIO]):
    """Messages on stderr; while a progress bar shows, Rich takes stderr and puts them above it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a message where stderr is now."""
        if not self.stream.closed and self.stream.isatty():
            self.setStream(sys.stderr)
        super().emit(record)


def print_table(title: str, lines: Sequence[Sequence[str]]) -> Console:
    """Print header and lines, columns of numbers to the right; returns where, for what goes below."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 200  # a file has no margin
    header, *rest = lines
    table = Table(title=title)
    for i, heading in enumerate(header):
        words = i == 0 or any(line[i][:1].isalpha() for line in rest)
        table.add_column(heading, justify="left" if words else "right", overflow="fold")
    for line in rest:
        table.add_row(*line)
    console.print(table)
    return console


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """Header and lines as a Markdown table, numbers to the right."""
    header, *rest = lines
    marked = [header, [":--"] + ["--:"] * (len(header) - 1), *rest]
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in marked)


def write_records(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write records of the same keys as csv, with full precision."""
    write_csv(path, [list(records[0]), *(list(record.values()) for record in records)])


def write_csv(path: Path, lines: Sequence[Sequence[Any]]) -> None:
    """Write header and lines as csv, with full precision; a reader sees the old file or the new one."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(lines)
    replace_text(path, text.getvalue())


def read_csv(path: Path) -> list[dict[str, str]]:
    """Read lines by the names in the header, as `write_csv` wrote them; none where there is no file.

    Raises:
        UserError: The file is damaged.
    """
    if not path.exists():
        return []
    try:
        header, *lines = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
        if any(len(line) != len(header) for line in lines):
            raise ValueError("not all its lines are whole")
        return [dict(zip(header, line, strict=True)) for line in lines]
    except (OSError, ValueError, csv.Error) as error:
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> UserError:
    """The line for a file that something else has written into."""
    return UserError(f"{path}: is damaged ({reason(error)}): restore it, or delete it to go on without it")


def short_path(path: Path) -> Path:
    """Path relative to the working directory where it lies below it."""
    cwd = Path.cwd()
    return path.relative_to(cwd) if path.is_relative_to(cwd) else path
