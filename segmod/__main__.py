"""``python -m segmod train ...``: the commands by name; ``segmod-train`` and the others start here, too."""

from __future__ import annotations

import sys
from collections.abc import Callable

from segmod.ground.signals import Stopped, stoppable, tell_stop


def entry(name: str) -> Callable[[], None]:
    """The entry point of a command, see `segmod.runs.cli`; signals are heeded before Hydra is imported."""

    def main() -> None:
        try:
            with stoppable(name):
                from segmod.runs import cli

                code = cli.run_plain(name) if name == "new" else cli.run(name)
        except Stopped as stop:
            code = tell_stop(stop.signum, name)
        if code:
            sys.exit(code)

    return main


train = entry("train")
evaluate = entry("evaluate")
predict = entry("predict")
proposals = entry("proposals")
benchmark = entry("benchmark")
study = entry("study")
tables = entry("tables")
export = entry("export")
report = entry("report")
app = entry("app")
new = entry("new")

COMMANDS = {
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "proposals": proposals,
    "benchmark": benchmark,
    "study": study,
    "tables": tables,
    "export": export,
    "report": report,
    "app": app,
    "new": new,
}


def main() -> None:
    """Run the command that the first argument names."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in COMMANDS:
        sys.stderr.write(f"usage: python -m segmod COMMAND ...; a command is one of {', '.join(COMMANDS)}\n")
        sys.exit(0 if name in ("-h", "--help") else 2)
    del sys.argv[1]
    COMMANDS[name]()


if __name__ == "__main__":
    main()
