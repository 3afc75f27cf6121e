"""A run that was cut off anywhere ends with the very weights of a run that was not."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from segmod.ground.errors import UserError
from segmod.metrics import summarise
from segmod.runs import cli
from segmod.runs.trained import TrainedRun
from segmod.training.checkpoints import AtomicCheckpointIO, Checkpoints
from segmod.training.datamodule import SegmentationDataModule

OWN_NET = Path(__file__).parents[1] / "own_net"
OVERRIDES = (
    "trainer.max_epochs=3",
    "trainer.val_check_interval=3",
    "callbacks.checkpoints.every_n_steps=1",
    "data.crop_size=24",
    "data.scale=[0.8,1.2]",
    "trainer.log_every_n_steps=1",
)


class Crash(BaseException):
    """Stands for a SIGKILL: no handler of the run gets to save anything."""


@pytest.fixture(autouse=True)
def let_crashes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    report = cli._report

    def report_all_but_crashes(error: BaseException, config_name: str) -> int:
        if isinstance(error, Crash):
            raise error
        return report(error, config_name)

    monkeypatch.setattr(cli, "_report", report_all_but_crashes)


def saved(run: Path, which: str = "last") -> dict[str, Any]:
    """A checkpoint: weights, optimiser, schedule, callbacks, progress; without the time that it took."""
    loaded: dict[str, Any] = torch.load(run / "checkpoints" / f"{which}.ckpt", weights_only=True)
    del loaded["callbacks"]["Checkpoints"]["wall_time"]
    return loaded


def assert_same(one: Any, other: Any, where: str) -> None:
    """Equal to the last bit, at any depth."""
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
    if isinstance(one, dict | list | tuple):
        assert len(one) == len(other), where
        for key in one if isinstance(one, dict) else range(len(one)):
            assert_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    else:
        assert one == other, where


def the_run(root: Path) -> Path:
    (found,) = root.glob("**/seed0")
    return found


def assert_equal_runs(one: Path, other: Path) -> None:
    for which in ("last", "best"):
        assert_same(saved(one, which), saved(other, which), which)
    assert (one / "metrics.csv").read_text() == (other / "metrics.csv").read_text()
    ours, theirs = (json.loads((run / "metrics.json").read_text()) for run in (one, other))
    assert ours["metrics"] == theirs["metrics"]
    assert ours["step"] == theirs["step"]


@pytest.fixture(scope="module")
def undisturbed(command: Any, small: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Runs that nothing disturbs, by their overrides; each is made once."""

    @cache
    def made(*overrides: str) -> Path:
        root = tmp_path_factory.mktemp("undisturbed")
        assert command("train", *small, *overrides, f"runs={root}") == 0
        return the_run(root)

    return made


@pytest.fixture(scope="module")
def whole(undisturbed: Callable[..., Path]) -> Path:
    """A run of 12 steps in 3 epochs that nothing disturbs, validated after batch 3 of each epoch."""
    return undisturbed(*OVERRIDES)


def crash(*args: object, **kwargs: object) -> None:
    raise Crash


def crash_at(monkeypatch: pytest.MonkeyPatch, hook: str, count: int, happen: Callable[[], None] = crash) -> None:
    """Raise `Crash` in the ``count``-th call of a hook of `Checkpoints`, before it does anything."""
    original = getattr(Checkpoints, hook, None) or getattr(L.Callback, hook)
    calls = 0

    def crashing(self: Checkpoints, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        nonlocal calls
        calls += not trainer.sanity_checking and trainer.state.fn == "fit"
        if calls == count:
            happen()
        original(self, trainer, *args, **kwargs)

    monkeypatch.setattr(Checkpoints, hook, crashing)


@pytest.mark.parametrize(
    ("hook", "count"),
    [
        ("on_train_batch_end", 2),  # in the middle of the first epoch
        ("on_train_batch_start", 5),  # between two epochs
        ("on_validation_batch_end", 4),  # in the second validation
        ("on_validation_end", 2),  # after it, before the best is kept
        ("on_train_epoch_end", 2),
        ("on_train_batch_end", 7),  # the batch that a validation follows
        ("on_train_batch_end", 12),  # the very last batch
        ("on_train_epoch_logged", 3),  # before the last checkpoint
        ("on_train_end", 1),  # after it
    ],
)
def test_a_crash_changes_nothing(
    hook: str, count: int, whole: Path, segmod: Any, small: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("train", *small, *OVERRIDES)
    with monkeypatch.context() as patch:
        crash_at(patch, hook, count)
        with pytest.raises(Crash):
            segmod(*command)
    run = the_run(Path("runs"))
    assert not (run / "metrics.json").exists()
    assert segmod(*command) == 0
    assert_equal_runs(whole, run)


def test_a_resumed_run_does_not_begin_with_other_weights_again(
    whole: Path, segmod: Any, small: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    command = ("train", *small, f"init_from={whole}")
    with monkeypatch.context() as patch:
        crash_at(patch, "on_train_batch_end", 6)
        with pytest.raises(Crash):
            segmod(*command)
    assert capfd.readouterr().err.count("tensors copied") == 1
    assert segmod(*command) == 0
    assert "tensors copied" not in capfd.readouterr().err


def test_two_crashes_and_other_workers_change_nothing(
    whole: Path, segmod: Any, small: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("train", *small, *OVERRIDES)
    for count in (3, 5):
        with monkeypatch.context() as patch:
            crash_at(patch, "on_train_batch_end", count)
            with pytest.raises(Crash):
                segmod(*command)
    assert segmod(*command, "data.num_workers=1") == 0
    assert_equal_runs(whole, the_run(Path("runs")))


# 4 batches an epoch
STEPS = ("trainer.max_epochs=null", "trainer.max_steps=10", "trainer.log_every_n_steps=1")  # two epochs and a half
PLATEAU = ("scheduler=plateau", "model.scheduler.patience=0", "model.scheduler.factor=0.5", "trainer.max_epochs=4")
NEVER_BETTER = ("callbacks.early_stopping.patience=1", "+callbacks.early_stopping.min_delta=1")  # than the first time
RECIPES = {
    "steps": STEPS,
    "steps, validation within the epoch": (*STEPS, "trainer.val_check_interval=3"),
    "steps, validation in every second epoch": (*STEPS, "trainer.check_val_every_n_epoch=2"),
    "steps, saved at every other one": (*STEPS, "callbacks.checkpoints.every_n_steps=2"),
    "steps, accumulation": (*STEPS, "trainer.max_steps=5", "trainer.accumulate_grad_batches=3"),
    "steps, moving average": (*STEPS, "callbacks=[ema]"),
    "steps, worse at last": (*STEPS, "model.optimizer.lr=0.1"),
    "plateau": PLATEAU,
    "plateau, validation within the epoch": (*PLATEAU, "trainer.val_check_interval=3"),
    "plateau of the loss": (*PLATEAU, "model.scheduler_monitor=train/loss_epoch"),
    "early stopping": ("callbacks=early_stopping", *NEVER_BETTER, "trainer.max_epochs=5"),
    "early stopping within the epoch": ("callbacks=early_stopping", *NEVER_BETTER, "trainer.val_check_interval=3"),
}


OFTEN = ("steps", "early stopping")


@pytest.mark.parametrize(
    "recipe", [pytest.param(name, marks=() if name in OFTEN else pytest.mark.slow) for name in RECIPES]
)
def test_a_kill_after_each_checkpoint_changes_nothing(
    recipe: str, segmod: Any, small: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("train", *small, "callbacks.checkpoints.every_n_steps=0", *RECIPES[recipe])
    assert segmod(*command, "runs=whole") == 0
    whole = the_run(Path("whole"))
    write = Checkpoints._write_last

    def write_and_die(self: Checkpoints, trainer: L.Trainer) -> None:
        write(self, trainer)
        raise Crash

    monkeypatch.setattr(Checkpoints, "_write_last", write_and_die)
    steps = []
    while not steps or steps[-1] < saved(whole)["global_step"]:
        with pytest.raises(Crash):
            segmod(*command, "runs=cut")
        steps.append(saved(the_run(Path("cut")))["global_step"])
    assert steps == sorted(set(steps))
    assert len(steps) > 1
    with monkeypatch.context() as patch:
        patch.setattr("segmod.commands.train.record", crash)  # all is trained and scored
        with pytest.raises(Crash):
            segmod(*command, "runs=cut")
    assert segmod(*command, "runs=cut") == 0
    assert_equal_runs(whole, the_run(Path("cut")))


@pytest.mark.parametrize(
    ("hook", "count"),
    [
        ("on_train_batch_end", 8),  # the batch that a validation follows and that ends the second epoch
        ("on_train_epoch_end", 1),
        ("on_train_epoch_logged", 2),
        ("on_train_batch_start", 9),  # between two epochs
        ("on_train_batch_logged", 10),  # the very last batch, in the middle of the third epoch
        ("on_train_epoch_logged", 3),  # before the final weights are validated
        ("on_validation_end", 3),  # of the final weights
        ("on_train_end", 1),
    ],
)
def test_a_crash_changes_nothing_where_steps_end_the_training(
    hook: str, count: int, undisturbed: Any, segmod: Any, small: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = (*STEPS, "callbacks.checkpoints.every_n_steps=3")
    command = ("train", *small, *recipe)
    with monkeypatch.context() as patch:
        crash_at(patch, hook, count)
        with pytest.raises(Crash):
            segmod(*command)
    assert segmod(*command) == 0
    assert_equal_runs(undisturbed(*recipe), the_run(Path("runs")))


@pytest.mark.parametrize(
    ("hook", "count", "saved_steps"),
    [
        ("on_train_batch_start", 2, 2),
        ("on_train_batch_start", 8, 4),  # a validation follows: the file from between the epochs stands
        ("on_validation_batch_start", 4, 4),
        ("on_train_epoch_end", 2, 8),
        ("on_train_batch_start", 10, 8),  # the last step, which the final validation follows
        ("on_train_epoch_end", 3, 8),  # before that validation
        ("on_train_end", 1, 10),
    ],
)
def test_a_stop_by_a_signal_changes_nothing(
    hook: str,
    count: int,
    saved_steps: int,
    undisturbed: Any,
    segmod: Any,
    small: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = (*STEPS, "callbacks.checkpoints.every_n_steps=0")
    command = ("train", *small, *recipe)
    with monkeypatch.context() as patch:
        crash_at(patch, hook, count, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert segmod(*command) == 128 + signal.SIGTERM
    run = the_run(Path("runs"))
    assert saved(run)["global_step"] == saved_steps
    rows = (run / "metrics.csv").read_text().splitlines()[1:]
    assert [int(row.partition(",")[0]) for row in rows][:saved_steps] == list(range(saved_steps))
    assert segmod(*command) == 0
    assert_equal_runs(undisturbed(*recipe), run)


@pytest.mark.parametrize("other", [2, 1])
def test_another_number_of_processes_goes_on_and_is_told(
    other: int, segmod: Any, small: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    command = ("train", *small, "callbacks.checkpoints.every_n_steps=1")
    with monkeypatch.context() as patch:
        crash_at(patch, "on_train_batch_end", 6)
        with pytest.raises(Crash):
            segmod(*command)
    last = the_run(Path("runs")) / "checkpoints" / "last.ckpt"
    state = torch.load(last, weights_only=True)
    torch.save({**state, "ranks": other}, last)
    assert segmod(*command) == 0
    assert capfd.readouterr().err.count("1 processes go on where 2 left off: ") == (1 if other == 2 else 0)


@pytest.mark.slow
def test_two_processes_go_on_where_one_left_off(
    segmod: Any, small: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("train", *small, "callbacks.checkpoints.every_n_steps=1")
    two = [sys.executable, "-m", "segmod", *command, "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
    assert segmod(*command, "runs=whole") == 0
    with monkeypatch.context() as patch:
        crash_at(patch, "on_train_batch_end", 6)
        with pytest.raises(Crash):
            segmod(*command, "runs=cut")
    done = subprocess.run([*two, "runs=cut"], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "2 processes go on where 1 left off" in done.stderr
    cut, whole = (the_run(Path(root)) for root in ("cut", "whole"))
    assert saved(cut)["global_step"] == saved(whole)["global_step"]
    steps = [[row.partition(",")[0] for row in (run / "metrics.csv").read_text().splitlines()] for run in (cut, whole)]
    assert steps[0] == steps[1]


def test_accumulated_gradients_survive(segmod: Any, small: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("train", *small, "trainer.accumulate_grad_batches=3", "callbacks.checkpoints.every_n_steps=1")
    assert segmod(*command, "runs=whole") == 0
    with monkeypatch.context() as patch:
        crash_at(patch, "on_train_batch_end", 2)  # one batch short of the first optimiser step
        with pytest.raises(Crash):
            segmod(*command, "runs=cut")
    with monkeypatch.context() as patch:
        crash_at(patch, "on_train_batch_end", 4)  # the epoch's last batch, stepping with one batch alone
        with pytest.raises(Crash):
            segmod(*command, "runs=cut")
    assert segmod(*command, "runs=cut") == 0
    assert_equal_runs(the_run(Path("whole")), the_run(Path("cut")))


def test_dropout_goes_on_as_it_would_have(segmod: Any, small: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut off in the middle of an epoch, a net that drops half of its features drops the same ones afterwards."""
    monkeypatch.syspath_prepend(OWN_NET)
    words = [word for word in small if not word.startswith("model.")] + ["callbacks.checkpoints.every_n_steps=1"]
    command = ("train", "--config-dir", str(OWN_NET / "conf"), "model=unet", "+model.net.dropout=0.5", *words)
    assert segmod(*command, "runs=whole") == 0
    with monkeypatch.context() as patch:
        crash_at(patch, "on_train_batch_end", 6)  # the second of four batches of the second epoch
        with pytest.raises(Crash):
            segmod(*command, "runs=cut")
    assert segmod(*command, "runs=cut") == 0
    assert_equal_runs(the_run(Path("whole")), the_run(Path("cut")))


def test_what_comes_after_a_resume_must_beat_the_best_before_it(
    segmod: Any, small: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("train", *small, "trainer.max_epochs=4", "callbacks.checkpoints.every_n_steps=1")

    def score(*values: float) -> None:
        """Let validations find these, the last one for ever."""
        coming = chain(values, repeat(values[-1]))

        def scripted(confusion: torch.Tensor) -> Any:
            return replace(summarise(confusion), miou=next(coming))

        monkeypatch.setattr("segmod.training.module.summarise", scripted)

    score(0.0, 0.2, 0.9)  # the first of all is of untrained weights
    with monkeypatch.context() as patch:
        crash_at(patch, "on_train_batch_end", 10)  # in the third of four epochs
        with pytest.raises(Crash):
            segmod(*command)
    score(0.5, 0.6)
    assert segmod(*command) == 0
    run = the_run(Path("runs"))
    assert torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["global_step"] == 8  # after two epochs
    assert json.loads((run / "metrics.json").read_text())["step"] == 8


def test_a_finished_run_is_reported_not_repeated(whole: Path, segmod: Any, small: tuple[str, ...]) -> None:
    before = (whole / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    root = whole.parents[2]
    assert segmod("train", *small, *OVERRIDES, f"runs={root}") == 0
    assert (whole / "checkpoints" / "last.ckpt").stat().st_mtime_ns == before


CONSTANT = "scheduler=constant"
LONGER = {
    "constant": (CONSTANT, "trainer.max_epochs=2", "trainer.max_epochs=4"),
    "step": ("scheduler=step", "model.scheduler.every=3", "trainer.max_epochs=2", "trainer.max_epochs=4"),
    "plateau": (*PLATEAU[:-1], "trainer.max_epochs=2", "trainer.max_epochs=4"),
    "moving average": (CONSTANT, "callbacks=[ema]", "trainer.max_epochs=2", "trainer.max_epochs=4"),
    "steps": (CONSTANT, "trainer.max_epochs=null", "trainer.max_steps=8", "trainer.max_steps=14"),
    "steps, then epochs": (CONSTANT, "trainer.max_epochs=2", "trainer.max_epochs=null trainer.max_steps=14"),
}


@pytest.mark.parametrize(
    "recipe", [pytest.param(n, marks=() if n in ("constant", "plateau") else pytest.mark.slow) for n in LONGER]
)
def test_a_longer_training_goes_on_where_a_shorter_one_ended(
    recipe: str, segmod: Any, small: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    *kept, short, long = LONGER[recipe]
    command = ("train", *small, *kept, "trainer.log_every_n_steps=1")
    assert segmod(*command, *long.split(), "runs=whole") == 0
    assert segmod(*command, short, "runs=cut") == 0
    run = the_run(Path("cut"))
    steps = saved(run)["global_step"]
    with monkeypatch.context() as patch:
        crash_at(patch, "on_train_batch_end", 2)
        with pytest.raises(Crash):
            segmod(*command, *long.split(), "runs=cut")
    assert not (run / "metrics.json").exists()
    assert segmod(*command, *long.split(), "runs=cut") == 0
    assert saved(run)["global_step"] > steps == 8
    assert_equal_runs(the_run(Path("whole")), run)


def test_final_weights_are_validated_when_steps_end_between_validations(segmod: Any, small: tuple[str, ...]) -> None:
    assert segmod("train", *small, "trainer.max_steps=3", "trainer.max_epochs=null") == 0
    run = the_run(Path("runs"))
    assert (run / "checkpoints" / "best.ckpt").exists()
    assert json.loads((run / "metrics.json").read_text())["step"] == 3


def test_a_half_written_checkpoint_never_replaces_a_good_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    io = AtomicCheckpointIO()
    path = tmp_path / "checkpoints" / "last.ckpt"
    io.save_checkpoint({"x": torch.ones(3)}, path)

    def full_disk(obj: object, file: Any) -> None:
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(UserError, match=r"last\.ckpt.*No space left.*free some disk space"):
        io.save_checkpoint({"x": torch.zeros(3)}, path)
    assert torch.equal(io.load_checkpoint(path)["x"], torch.ones(3))
    assert [p.name for p in path.parent.iterdir()] == ["last.ckpt"]


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(content: object, file: Any) -> None:
        file.write(b"half")
        raise RuntimeError("PytorchStreamWriter failed writing file")  # what torch says of a full disk

    path = tmp_path / "checkpoints" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, path)
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match=r"cannot write checkpoint \S+last\.ckpt .*free some disk space"):
        AtomicCheckpointIO().save_checkpoint({"step": 2}, path)
    assert os.listdir(path.parent) == ["last.ckpt"]
    assert torch.load(path, weights_only=True) == {"step": 1}


def test_a_run_begins_by_removing_what_a_crash_left(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    left = [tmp_path / f"checkpoints/.last.ckpt.{os.getpid()}.7.part", tmp_path / f".metrics.csv.{os.getpid()}.7.part"]
    for part in left:
        part.touch()
    callback = Checkpoints(str(tmp_path / "checkpoints"))
    trainer = L.Trainer(
        default_root_dir=tmp_path, max_steps=0, callbacks=[callback], logger=False, enable_checkpointing=False
    )
    callback.on_fit_start(trainer, L.LightningModule())
    assert not any(part.exists() for part in left)


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    path.write_bytes(b"PK nothing")
    with pytest.raises(UserError, match=r"cannot read checkpoint .*last\.ckpt"):
        AtomicCheckpointIO().load_checkpoint(path)


def test_a_loss_that_is_not_finite_stops_the_run(segmod: Any, small: tuple[str, ...], capfd: Any) -> None:
    # with 1e30 the weights overflow in the first step, the loss in the second
    assert segmod("train", *small, "model.optimizer.lr=1e30", "model.scheduler.warmup=0") == 1
    error = capfd.readouterr().err
    assert "segmod: error: the loss is" in error
    assert "at step" in error
    assert "model.optimizer.lr" in error


@pytest.mark.parametrize(
    "signum",
    [
        signal.SIGTERM,
        signal.SIGKILL,
        *(pytest.param(s, marks=pytest.mark.slow) for s in (signal.SIGUSR1, signal.SIGINT)),
    ],
)
def test_a_signal_saves_and_leaves(signum: signal.Signals, segmod: Any, small: tuple[str, ...]) -> None:
    endless = ("trainer.max_epochs=100000", "trainer.check_val_every_n_epoch=100000")
    command = [sys.executable, "-m", "segmod", "train", *small, *endless, "data.num_workers=1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while not list(Path("runs").glob("**/last.ckpt")) and time.monotonic() < deadline:
            assert process.poll() is None, process.communicate()[1].decode()
            time.sleep(0.1)
        os.killpg(process.pid, signum)  # as Ctrl-C and SLURM do: to the workers, too
        error = process.communicate(timeout=60)[1].decode()
    finally:
        process.kill()
    (last,) = Path("runs").glob("**/last.ckpt")
    state = torch.load(last, weights_only=True)  # whole, even after SIGKILL
    assert state["global_step"] > 0
    if signum != signal.SIGKILL:
        assert process.returncode == 128 + signum, error
        assert f"stopped by signal {int(signum)}" in error
        assert "Traceback" not in error


def test_a_validation_between_two_accumulated_batches_changes_nothing(
    segmod: Any, small: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    # 4 batches an epoch, steps after batches 3 and 4 of each; validations after batches 5 and 10 of the training, that
    # is after batch 1 of the second epoch and batch 2 of the third, both in the middle of an accumulation
    recipe = ("trainer.accumulate_grad_batches=3", "trainer.max_epochs=3", "trainer.val_check_interval=5")
    command = (
        "train",
        *small,
        *recipe,
        "trainer.check_val_every_n_epoch=null",
        "callbacks.checkpoints.every_n_steps=0",
    )
    assert segmod(*command, "runs=whole") == 0
    for count in (6, 11):  # in the batch after each
        with monkeypatch.context() as patch:
            crash_at(patch, "on_train_batch_start", count)
            with pytest.raises(Crash):
                segmod(*command, f"runs=cut{count}")
        assert segmod(*command, f"runs=cut{count}") == 0
        assert_equal_runs(the_run(Path("whole")), the_run(Path(f"cut{count}")))


def test_signal_handlers_are_given_back(segmod: Any, small: tuple[str, ...]) -> None:
    before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
    assert segmod("train", *small) == 0
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)] == before


def test_a_resumed_run_keeps_its_augmentation_and_the_weights_that_were_counted(
    segmod: Any, small: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("train", *small, *OVERRIDES, "data.class_weights=auto", "loss=cross_entropy_dice", "augment=strong")
    assert segmod(*command, "runs=whole") == 0
    with monkeypatch.context() as patch:
        crash_at(patch, "on_train_batch_end", 5)
        with pytest.raises(Crash):
            segmod(*command)
    monkeypatch.setattr(SegmentationDataModule, "balancing_weights", crash)
    assert segmod(*command) == 0
    assert_equal_runs(the_run(Path("whole")), the_run(Path("runs")))
    weights = saved(the_run(Path("runs")))["state_dict"]
    assert weights["loss.parts.dice.weight"].unique().numel() > 1
    assert torch.equal(weights["loss.parts.dice.weight"], weights["loss.parts.cross_entropy.weight"])
    assert segmod("evaluate", f"run={the_run(Path('runs'))}") == 0


def test_colours_are_measured_when_a_run_begins(
    segmod: Any, small: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("train", *small, "trainer.max_epochs=1", "model.net.normalise=measured")
    with monkeypatch.context() as patch:
        crash_at(patch, "on_train_batch_end", 3)
        with pytest.raises(Crash):
            segmod(*command)
    run = the_run(Path("runs"))
    monkeypatch.setattr(SegmentationDataModule, "measured_colours", crash)
    assert segmod(*command) == 0  # goes on
    assert segmod(*command) == 0  # is finished
    trained = TrainedRun.open(run)
    stored = trained.config.model.net.normalise
    images = trained.datamodule.split("train")
    pixels = torch.cat([images[i]["image"].flatten(1) for i in range(len(images))], dim=1).double()
    assert list(stored.mean) == pytest.approx(pixels.mean(1).tolist(), abs=0.01)
    assert list(stored.std) == pytest.approx(pixels.std(1).tolist(), abs=0.01)
    assert trained.net.normalise.mean.flatten().tolist() == pytest.approx(list(stored.mean))  # type: ignore
