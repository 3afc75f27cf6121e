"""A run whose files are damaged or cannot be written: a line that names the file, and what can be done is done."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import segmod
from segmod.ground.errors import UserError
from segmod.runs.folders import Run
from segmod.runs.records import collect
from segmod.training.checkpoints import AtomicCheckpointIO

Command = Callable[..., int]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, command: Command, small: tuple[str, ...]) -> Path:
    """A finished run; tests work on a copy."""
    root = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert command("train", *small, "name=small", "hydra.run.dir=runs/small/seed0") == 0
    return root / "runs"


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run, below the working directory."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, tmp_path / "runs")
    return tmp_path / "runs" / "small" / "seed0"


@pytest.fixture
def again(command: Command, small: tuple[str, ...]) -> Callable[[], int]:
    """The command that made the run, once more."""
    return lambda: command("train", *small, "name=small", "hydra.run.dir=runs/small/seed0")


def error_of(capfd: pytest.CaptureFixture[str]) -> str:
    """The one line that a command ended with."""
    said = capfd.readouterr().err
    assert "Traceback" not in said
    (line,) = [line for line in said.splitlines() if line.startswith("segmod: error: ")]
    assert "weights_only" not in line
    return line


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# -- what cannot be written ------------------------------------------------------------------------------------------


def test_a_record_that_cannot_be_written_is_made_by_the_same_command(
    run: Path, again: Callable[[], int], monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    record = (run / "metrics.json").read_bytes()
    (run / "metrics.json").unlink()
    weights, curves = ((run / name).read_bytes() for name in ("checkpoints/last.ckpt", "metrics.csv"))
    with monkeypatch.context() as patch:
        patch.setattr("segmod.runs.records.replace_text", full)
        assert again() == 1
        assert "a file: cannot be written (No space left on device): free some disk space" in error_of(capfd)
    assert not (run / "metrics.json").exists()
    assert again() == 0
    assert (run / "metrics.json").read_bytes()[:300] == record[:300]  # the metrics, after which come the times
    assert (run / "checkpoints/last.ckpt").stat().st_size == len(weights)
    assert (run / "metrics.csv").read_bytes() == curves


def test_a_finished_run_in_a_folder_that_cannot_be_written_reports(
    run: Path, again: Callable[[], int], command: Command, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    (run / "train.log").unlink(missing_ok=True)
    (run / "train.log").mkdir()  # cannot be opened, by root either
    assert again() == 0
    said = capfd.readouterr().err
    assert "mIoU" in said or "miou" in said
    assert said.count("segmod: warning: ") == 1
    assert "train.log: cannot be written (Is a directory)" in said
    assert "Traceback" not in said

    monkeypatch.setattr(os, "access", lambda *_: False)
    for words in (("evaluate", f"run={run}"), ("study", "study=class_probabilities", f"run={run}")):
        assert command(*words) == 1
        assert "cannot be written (no right to write into" in error_of(capfd)
    assert not (run / "evaluation").exists()


def test_a_folder_that_cannot_be_held_is_told(run: Path, again: Callable[[], int], capfd: Any) -> None:
    (run / "metrics.json").unlink()
    (run / ".lock").symlink_to(run / "nowhere" / "lock")  # cannot be made
    assert again() == 1
    assert ".lock: cannot be written (No such file or directory): mend that or choose another" in error_of(capfd)


def test_pictures_that_cannot_be_written_end_a_table_in_a_line(
    run: Path, command: Command, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    assert command("tables", "table=runs", "output=out") == 1
    assert "out/runs.png: cannot be written (No space left on device)" in error_of(capfd)


# -- what is damaged -------------------------------------------------------------------------------------------------


def changed(**keys: Any) -> Callable[[Path], None]:
    """Replace parts of a checkpoint; those that are None go."""

    def change(path: Path) -> None:
        content = torch.load(path, weights_only=True) | keys
        torch.save({key: value for key, value in content.items() if value is not None}, path)

    return change


def wider(path: Path) -> None:
    content = torch.load(path, weights_only=True)
    name = next(name for name in content["state_dict"] if name.endswith("weight"))
    content["state_dict"][name] = torch.zeros(7, 7)
    torch.save(content, path)


UNREADABLE: dict[str, Callable[[Path], object]] = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:5000]),
    "text": lambda path: path.write_text("no checkpoint"),
    "code": lambda path: torch.save(Path("x"), path),
    "list": lambda path: torch.save([1], path),
}


@pytest.mark.parametrize("how", UNREADABLE)
def test_what_is_no_checkpoint_is_one_line(trained: Path, tmp_path: Path, how: str) -> None:
    last = shutil.copy(trained / "small/seed0/checkpoints/last.ckpt", tmp_path)
    UNREADABLE[how](Path(last))
    with pytest.raises(UserError) as caught:
        AtomicCheckpointIO().load_checkpoint(last)
    assert str(caught.value).startswith(f"cannot read checkpoint {last} (")
    assert str(caught.value).endswith("): delete it or set overwrite=true")
    assert "weights_only" not in str(caught.value)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "no version": changed(**{"pytorch-lightning_version": None}),
    "no loops": changed(loops=None),
    "odd optimizer": changed(optimizer_states=[{"state": {}, "param_groups": []}]),
    "odd callbacks": changed(callbacks={"Checkpoints": {"best_step": 1}}),
    "another net": wider,
}


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_checkpoint_is_one_line(run: Path, again: Callable[[], int], capfd: Any, how: str) -> None:
    (run / "metrics.json").unlink()
    last = run / "checkpoints" / "last.ckpt"
    DAMAGES[how](last)
    damaged = last.read_bytes()
    assert again() == 1
    line = error_of(capfd)
    assert f"checkpoint {last} (" in line
    assert "delete it or set overwrite=true" in line
    assert len(line) <= 300 + len(str(run))  # the folder of a test is long
    assert last.read_bytes() == damaged


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"metrics": 3}', '{"metrics": {"val/miou": "x"}}', "[" * 10**5, "\xff"]
)
def test_a_damaged_record_is_one_line(run: Path, content: str) -> None:
    (run / "metrics.json").write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match=r"cannot read .*metrics\.json \(.*\): delete it and run again"):
        Run(run).result()


@pytest.mark.parametrize("content", ["a: [", "- 1", "data: 3", "\xff", "\0", "a: ${b", "{a: 1}: 2", "[" * 3000])
def test_a_damaged_config_is_one_line(run: Path, content: str) -> None:
    (run / ".hydra" / "config.yaml").write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match=r"config\.yaml"):
        segmod.open(run)


def test_a_command_ends_with_that_line(run: Path, again: Callable[[], int], capfd: Any) -> None:
    (run / "metrics.json").write_text("{")
    assert again() == 1
    assert f"cannot read {run}/metrics.json (" in error_of(capfd)
    (run / ".hydra" / "config.yaml").write_text("a: [")
    assert again() == 1
    assert f"{run}/.hydra/config.yaml" in error_of(capfd)


@pytest.mark.parametrize("content", ["name: a", "{name: a, checkpoint: best, data: {val_split: val}, model: {net: 3}}"])
def test_a_config_without_what_it_needs_is_one_line(run: Path, content: str) -> None:
    (run / ".hydra" / "config.yaml").write_text(content)
    with pytest.raises(UserError, match=r"config\.yaml: \S+ is missing: restore it"):
        segmod.open(run)


def test_a_run_with_damaged_curves_is_left_out_of_tables_by_their_name(run: Path, caplog: Any) -> None:
    (run / "metrics.csv").write_text("step,epoch\n1")
    assert collect(run.parents[1]) == []
    assert "metrics.csv: is damaged" in caplog.text


@settings(derandomize=True, max_examples=150, deadline=None)
@given(
    name=st.sampled_from(["metrics.json", ".hydra/config.yaml"]),
    place=st.floats(0, 1, exclude_max=True),
    flip=st.integers(0, 255),
    content=st.none() | st.binary(max_size=100),
)
def test_any_bytes_are_a_record_or_one_line(
    trained: Path, read_or_line: Any, name: str, place: float, flip: int, content: bytes | None
) -> None:
    """Any bytes at all, or a file cut off (``flip`` 0) or with some bits of a byte flipped."""
    folder = trained.parent / "copy"
    whole = (trained / "small" / "seed0" / name).read_bytes()
    if name != "metrics.json":
        whole = whole[: whole.index(b"model:")]  # parsing yaml is slow
    at = int(place * len(whole))
    flipped = whole[:at] + bytes([whole[at] ^ flip]) + whole[at + 1 :]
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if content is not None else flipped if flip else whole[:at])
    read_or_line(path, Run(folder).result if name == "metrics.json" else Run(folder).config)
