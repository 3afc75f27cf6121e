"""The error that a user can mend, and the checks that raise it."""

from __future__ import annotations


class UserError(Exception):
    """A mistake the user can mend: one line that names the file or the config key and says what to do.

    Commands print it as ``segmod: error: ...`` and exit with code 1; it never shows a traceback.
    """


def require(condition: bool, message: str) -> None:
    """Raise a `UserError` unless the condition holds."""
    if not condition:
        raise UserError(message)


def whole(value: object, least: int) -> bool:
    """Whether a config value is a whole number of at least ``least``."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
