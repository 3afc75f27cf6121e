"""The error that a user can mend, and the checks that raise it."""

from __future__ import annotations

import inspect
import pickle
import pkgutil
from collections.abc import Iterable
from importlib.metadata import version


class UserError(Exception):
    """A mistake the user can mend: one line that names the file or the config key and says what to do.

    Commands print it as ``segmod: error: ...`` and exit with code 1; it never shows a traceback.
    """


def cut(text: str, longest: int) -> str:
    """A text without its middle where it is too long: a message begins with its key and ends with the remedy."""
    head = 7 * longest // 10
    return text if len(text) <= longest else f"{text[:head]} ... {text[head + 5 - longest :]}"


def one_line(text: str) -> str:
    """A message as the terminal has it, at most 280 characters, so that its line has less than 300."""
    shown = "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))  # of a file that is anybody's
    return cut(shown, 280)


def require(condition: bool, message: str) -> None:
    """Raise a `UserError` unless the condition holds."""
    if not condition:
        raise UserError(message)


def reason(error: BaseException) -> str:
    """Why something failed, for a line that says what to do about it: at most 100 characters of the message.

    Torch's word on files that hold code is left out: it would have the reader run that code.
    """
    if isinstance(error, pickle.UnpicklingError):
        return "it is damaged, or holds more than plain values"
    told = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    lines = [" ".join(line.split()) for line in told.splitlines() if line.strip()] or [type(error).__name__]
    line = " ".join(lines[: 2 if lines[0].endswith(":") else 1])
    line = f"no {line}" if isinstance(error, KeyError) else line
    return line if len(line) <= 100 else f"{line[:97]}..."


def behind(error: BaseException) -> OSError | None:
    """What the system said, where an error, or one that caused it, is of the system; else None."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    return cause


def whole(value: object, least: int) -> bool:
    """Whether a config value is a whole number of at least ``least``."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def require_names(package: str, tested: str, names: Iterable[str]) -> None:
    """Check that an installed package has the private names that segmod relies on, which it may drop without notice.

    Args:
        package: As pip knows it.
        tested: The versions that segmod was tested with.
        names: Dotted, down to an attribute of a module or class, or one that the class gives its objects in
            ``__init__``.

    Raises:
        UserError: One is missing; names the versions to install.
    """
    for name in names:
        owner, _, attribute = name.rpartition(".")
        try:
            found = pkgutil.resolve_name(owner)
        except (ImportError, AttributeError):
            found = None
        made = inspect.unwrap(found.__init__).__code__.co_names if inspect.isclass(found) else ()
        require(
            hasattr(found, attribute) or attribute in made,
            f"{package} {version(package)} has no {name}, which segmod relies on: pip install '{package}{tested}'",
        )
