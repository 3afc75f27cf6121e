"""Commands run as a user types them, in this process, so that torch is imported once."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from segmod.__main__ import COMMANDS
from segmod.ground.errors import UserError

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ["WANDB_MODE"] = "offline"
os.environ["OMP_NUM_THREADS"] = "1"  # of processes that tests start: threads that share a core wait for each other
torch.set_num_threads(1)

# the default net on a few small scenes: an epoch is 4 batches, a validation 3 images
SMALL = (
    "data.dataset.size=32", "data.dataset.train_images=16", "data.dataset.val_images=3", "data.crop_size=null",
    "data.batch_size=4", "data.num_workers=0", "model.net.hidden=8", "model.net.width=0.2",
    "trainer.max_epochs=2", "trainer.enable_progress_bar=false", "callbacks.pictures.count=0",
)  # fmt: skip

STAND_INS = Path(__file__).parent / "stand_ins"

Command = Callable[..., int]

# What starts the tests in the background makes them ignore these, and every process that they start.
for _signum, _handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_signum) == signal.SIG_IGN:
        signal.signal(_signum, _handler)


@pytest.fixture(scope="module")
def stand_ins() -> Iterator[None]:
    """Packages that configs name and no install brings, as far as they are used; installed ones go before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path, str(STAND_INS)])
        yield
    for file in STAND_INS.glob("*.py"):
        module = sys.modules.get(file.stem)
        if module is not None and module.__file__ == str(file):
            del sys.modules[file.stem]


@pytest.fixture(autouse=True)
def signal_handlers_are_given_back() -> Iterator[None]:
    """A test that leaves a handler behind would hide a signal from the tests after it."""
    before = {
        number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
    }
    yield
    after = {number: signal.getsignal(number) for number in before}
    for number, handler in before.items():
        signal.signal(number, handler)
    assert after == before


@pytest.fixture(scope="session")
def command() -> Command:
    """``command("train", "seed=1")`` runs ``segmod-train seed=1``; returns the exit code."""
    return run_command


@pytest.fixture
def segmod(command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """Like ``command``, in an empty directory."""
    monkeypatch.chdir(tmp_path)
    return command


def run_command(name: str, *arguments: str) -> int:
    before = sys.argv
    sys.argv = [f"segmod-{name}", *arguments]
    try:
        COMMANDS[name]()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    finally:
        sys.argv = before
    return 0


@pytest.fixture(scope="session")
def small() -> tuple[str, ...]:
    """Overrides that make ``segmod-train`` a matter of a second."""
    return SMALL


@pytest.fixture(scope="session")
def read_or_line() -> Callable[..., Any]:
    """``read_or_line(path, read, ...)``: what ``read(...)`` returns, or None where it raises a line on that file."""

    def read_it(path: Path, read: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return read(*arguments)
        except UserError as error:
            line = str(error)
        assert str(path) in line
        assert "\n" not in line
        assert len(line) <= 300
        return None

    return read_it
