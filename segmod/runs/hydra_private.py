"""What segmod uses of Hydra beyond its public names."""

from __future__ import annotations

from hydra._internal import utils

from segmod.ground.errors import require_names

TESTED = ">=1.3.2,<1.4"
NAMES = ("hydra._internal.utils.run_and_report",)


def let_errors_through() -> None:
    """Keep Hydra from printing what goes wrong and leaving by itself, so that `segmod.runs.cli` tells it in one line.

    Raises:
        UserError: This Hydra is not one that segmod knows.
    """
    require_names("hydra-core", TESTED, NAMES)
    utils.run_and_report = lambda func: func()
