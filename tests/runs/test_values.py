"""Whatever a key is given is taken, or refused in one line that names it, before anything is touched."""

import os
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Ge, Gt, Le, Lt
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from segmod.commands import train
from segmod.data.voc import PascalVOC
from segmod.ground.errors import UserError
from segmod.runs import cli
from segmod.runs.folders import Run, register_resolvers
from segmod.runs.values import check_type, check_values

MODELS = sorted(path.stem for path in (cli.CONF_DIR / "model").glob("*.yaml"))
BAD = (-1, 0, 10**9, 1e9, float("nan"), float("inf"), None, "abc", "", [], {}, True)
TINY = (
    "data.dataset.size=32", "data.dataset.train_images=4", "data.dataset.val_images=2", "data.crop_size=null",
    "data.batch_size=2", "data.num_workers=0", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false",
    "trainer.enable_model_summary=false",
)  # fmt: skip
DEFAULT = ("model.net.hidden=4", "model.net.width=0.1", "trainer.max_epochs=1", "callbacks=[early_stopping,ema]")


@pytest.mark.parametrize(
    ("value", "hint", "message"),
    [
        (0, Annotated[int, Ge(1)], "key=0: give a whole number, 1 or more"),
        (2.0, int, "key=2.0 has the wrong type: give a whole number"),
        (True, int | None, "key=true has the wrong type: give a whole number, or null"),
        ("no", bool, "key='no' has the wrong type: give true or false"),
        (1, bool, "key=1 has the wrong type: give true or false"),
        (float("nan"), float, "key=nan: give a number"),
        (1, Annotated[float, Ge(0), Lt(1)], "key=1: give a number, 0 or more and below 1"),
        (2, Annotated[float, Gt(0), Le(1)], "key=2: give a number, above 0 and at most 1"),
        (["1"], list[float], "key=['1'] has the wrong type: give a list, each a number"),
        ("c", Literal["a", "b"], "key='c' has the wrong type: give a or b"),
        (None, str, "key=null has the wrong type: give a text"),
    ],
)
def test_a_value_is_refused_in_the_words_of_its_type(value: Any, hint: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        check_type(value, hint, "key")
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("value", "hint"),
    [(1, float), ([1, 2], tuple[float, float]), ("x", Path), (None, int | None), ({"a": 1}, dict[str, int])],
)
def test_a_value_of_its_type_is_taken(value: Any, hint: Any) -> None:
    check_type(value, hint, "key")


# -- every key, whatever is given -----------------------------------------------------------------------------------


def composed(*overrides: str) -> DictConfig:
    register_resolvers()
    with initialize_config_dir(str(cli.CONF_DIR), version_base="1.3"):
        return compose("train", overrides=list(overrides))


def keys_of(node: DictConfig, prefix: str = "") -> list[str]:
    found = []
    for name in node:
        key = f"{prefix}{name}"
        child = node._get_node(name)
        found.append(key)
        if isinstance(child, DictConfig) and not (child._is_none() or child._is_interpolation() or child._is_missing()):
            found += keys_of(child, f"{key}.")
    return found


def outcome(cfg: DictConfig, key: str, value: Any, folder: Path, capfd: Any) -> str:
    """What a training says of a value, up to where it would take its folder; empty where it takes it."""
    cfg = deepcopy(cfg)
    OmegaConf.set_struct(cfg, False)
    cfg.name, cfg.run_dir = "any", str(folder / "runs" / "any")
    OmegaConf.update(cfg, key, value, merge=False)
    try:
        check_values(cfg, "train")
        train.resolve(cfg)
        train.fit(cfg, Run(Path(cfg.run_dir)))
    except Claimed:
        return ""
    except (UserError, OmegaConfBaseException) as error:
        cli._report(error, "train")
    except Exception as error:
        if type(error).__name__ != "MisconfigurationException":
            raise AssertionError(f"{key}={value!r}") from error
        cli._report(error, "train")
    said: str = capfd.readouterr().err
    return said


class Claimed(BaseException):
    pass


def sweep(chosen: tuple[str, ...], values: Any, folder: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def claim(*_: Any) -> None:
        raise Claimed

    monkeypatch.setattr(train, "claim", claim)
    monkeypatch.chdir(folder)
    cfg = composed(*chosen)
    for place, key in enumerate(keys_of(cfg)):
        if key in ("run_dir", "init_from"):
            continue
        for value in values(place):
            lines = outcome(cfg, key, value, folder, capfd).splitlines()
            errors = [line for line in lines if line.startswith("segmod: error: ")]
            assert "Traceback" not in "".join(lines), (key, value)
            assert len(errors) == bool(lines) or not errors, (key, value, lines)
            assert all(len(line) <= 300 for line in errors), errors
            assert not list(folder.iterdir()), (key, value)


def test_any_key_takes_a_value_or_refuses_it_in_one_line(
    tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bad value a key; the next key gets the next one."""
    sweep((*TINY, *DEFAULT), lambda place: [BAD[place % len(BAD)]], tmp_path, capfd, monkeypatch)


@pytest.mark.slow
@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("model", MODELS)
def test_any_key_of_any_model_takes_any_value_or_refuses_it(
    model: str, tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = () if model == "boxwise_inceptionv3" else TINY
    sweep((f"model={model}", *tiny), lambda place: BAD, tmp_path, capfd, monkeypatch)


# -- commands -------------------------------------------------------------------------------------------------------

REFUSED = [
    ("train", ["overwrite=no"], "overwrite='no' has the wrong type: give true or false"),
    ("train", ["overwrite=abc"], "overwrite='abc' has the wrong type: give true or false"),
    ("train", ["model=null"], "model=null: choose one of boxwise_inceptionv3, "),
    ("train", ["loss=null"], "loss=null: choose one of balanced_cross_entropy, "),
    ("train", ["trainer=null"], "trainer=null: choose one of cpu, "),
    ("train", ["callbacks=[]"], "callbacks is required: choose one of default, "),
    ("train", ["~model"], "model is required: choose one of boxwise_inceptionv3, "),
    ("train", ["data.dataset=null"], "data.dataset=null: give a node with _target_"),
    ("train", ["model.net=null"], "model.net=null has the wrong type"),
    ("train", ["name=12"], "name=12: give a text"),
    ("train", ["runs=null"], "runs=None: give a text"),
    ("train", ["trainer.accumulate_grad_batches=0"], "trainer.accumulate_grad_batches=0: give a whole number, 1 or "),
    ("train", ["trainer.log_every_n_steps=0"], "trainer.log_every_n_steps=0: give a whole number, 1 or more"),
    ("train", ["trainer.val_check_interval=0"], "trainer.val_check_interval=0: give a whole number, 1 or more"),
    ("train", ["trainer.limit_val_batches=0"], "trainer.limit_val_batches=0: give a whole number, 1 or more"),
    ("train", ["trainer.gradient_clip_val=-1"], "trainer.gradient_clip_val=-1: give a number, above 0, or null"),
    ("train", ["trainer.max_epochs=null"], "trainer: set trainer.max_steps or max_epochs"),
    ("train", ["trainer.num_nodes=2"], "trainer.num_nodes=2: nothing has started the other nodes: use srun or "),
    ("train", ["data.dataset.scene_seed=-1"], "data.dataset.scene_seed=-1: give a whole number, 0 or more"),
    ("train", ["model.net.hidden=0"], "model.net.hidden=0: give a whole number, from 1 to 65536"),
    ("train", ["model.net.width=-1"], "model.net.width=-1: give a number, above 0 and at most 100"),
    ("train", ["model.param_rules=abc"], "model.param_rules='abc' has the wrong type: give a list"),
    ("train", ["model.scheduler.warmup=-1"], "model.scheduler.warmup=-1: give a whole number, 0 or more"),
    ("train", ["callbacks=ema", "callbacks.ema.decay=1"], "callbacks.ema.decay=1: give a number, 0 or more and"),
    ("train", ["callbacks=early_stopping", "callbacks.early_stopping.monitor=foo"],
     "callbacks.early_stopping.monitor='foo' is not logged; choose one of ['val/fwiou', "),
    ("evaluate", ["run=x", "submission=maybe"], "submission='maybe' has the wrong type: give true or false, or null"),
    ("evaluate", ["run=x", "pictures=abc"], "pictures='abc' has the wrong type: give a whole number, 0 or more"),
    ("predict", ["run=x", "input=''"], "input='': give a text"),
    ("predict", ["run=x", "input=y", "max_side=-1"], "max_side=-1: give a whole number, from 1 to 16384, or null"),
    ("proposals", ["limit=-1"], "limit=-1: give a whole number, 1 or more, or null"),
    ("proposals", ["proposals.sigma=1e9"], "proposals.sigma=1000000000.0: give a number, above 0 and at most 1000"),
    ("study", ["run=x", "study=activations", "seed=-1"], "seed=-1: give a whole number, from 0 to 4294967295"),
    ("tables", ["output=null"], "output=null has the wrong type: give a text"),
    ("benchmark", ["steps=-1"], "steps=-1: give a whole number, 1 or more, or null"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "overrides", "message"), REFUSED, ids=lambda x: " ".join(x) if isinstance(x, list) else ""
)
def test_a_meaningless_value_leaves_nothing(
    name: str, overrides: list[str], message: str, segmod: Any, small: Any, capfd: Any
) -> None:
    replaced = tuple(override.lstrip("~").partition("=")[0] for override in overrides)
    given = [word for word in small if not word.startswith(replaced)] if name == "train" else []
    assert segmod(name, *given, *overrides) == 1
    error = capfd.readouterr().err
    (line,) = [line for line in error.splitlines() if line.startswith("segmod: error: ")]
    assert line.startswith(f"segmod: error: {message}")
    assert len(line) <= 300
    assert "Traceback" not in error
    assert not [path for path in Path().rglob("*") if path.is_file()]


def test_no_torch_is_needed_to_refuse_a_value(tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['segmod-train', 'overwrite=no']\n"
        "from segmod.__main__ import train\n"
        "try: train()\n"
        "except SystemExit as end: print(end.code, [m for m in ('torch', 'lightning', 'cv2') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout == "1 []\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("link", ["", "checkpoints"])
def test_overwriting_stays_out_of_what_is_elsewhere(link: str, segmod: Any, small: Any, capfd: Any) -> None:
    short = (*small, "trainer.max_epochs=1", "name=linked")
    assert segmod("train", *short) == 0
    (metrics,) = Path("runs").rglob("metrics.json")
    moved = metrics.parent / link
    moved.rename("elsewhere")
    moved.symlink_to(Path("elsewhere").resolve(), target_is_directory=True)
    before = sorted((path, path.stat().st_mtime_ns) for path in Path("elsewhere").rglob("*.ckpt"))
    capfd.readouterr()
    assert segmod("train", *short, "overwrite=true") == 1
    assert "is a link, to " in capfd.readouterr().err
    assert before
    assert sorted((path, path.stat().st_mtime_ns) for path in Path("elsewhere").rglob("*.ckpt")) == before


# -- what a process is started with ---------------------------------------------------------------------------------


@pytest.mark.parametrize("variable", ["RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID"])
def test_garbage_of_a_launcher_is_named(
    variable: str, segmod: Any, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "abc")
    assert segmod("train") == 1
    assert capfd.readouterr().err.startswith(f"segmod: error: {variable}=abc: must be a whole number; unset {variable}")


@pytest.mark.parametrize(
    ("shell", "message"),
    [
        ("mkdir gone && cd gone && rmdir ../gone && {train}", "the working directory is gone"),
        ("ulimit -n 20 && {train}", "only 20 files may be open at once"),
        ("{train} overwrite=no >&-", "overwrite='no' has the wrong type"),
    ],
)
def test_odd_surroundings_are_told_in_one_line(shell: str, message: str, tmp_path: Path) -> None:
    train = f"'{sys.executable}' -m segmod train"
    root = {"PYTHONPATH": str(cli.CONF_DIR.parent)}
    done = subprocess.run(
        ["bash", "-c", shell.format(train=train)], capture_output=True, text=True, cwd=tmp_path, env=os.environ | root
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"segmod: error: {message}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "text", [b"\xff\xfe2\x000\x000\x007\x00", b"caf\xe9\n", b"2007\0000033\n"], ids=["utf-16", "latin-1", "nul"]
)
def test_a_list_that_is_no_text_is_named(text: bytes, tmp_path: Path) -> None:
    lists = tmp_path / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_bytes(text)
    with pytest.raises(UserError, match=r"val\.txt: the list is no plain text: store it as UTF-8"):
        PascalVOC(tmp_path).names("val")
