"""A user's mistake is told in one line that names the key or file, before any work is done."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from segmod.data.synthetic import write_voc_tree
from segmod.ground.printing import read_csv
from segmod.runs import cli

MISTAKES = [
    (["foo=1"], "no config key 'foo'"),
    (["model.optimizer.lrr=1"], "no config key 'model.optimizer.lrr': did you mean model.optimizer.lr?"),
    (["modle=fcn8s"], "'modle': did you mean model?"),
    (["model=fnc8s"], "model=fnc8s: no such option; choose one of boxwise_inceptionv3, "),
    (["experiment=nope"], "experiment=nope: no such option; choose one of"),
    (["callbacks=[default,nope]"], "callbacks=nope: no such option"),
    (["model.optimizer.lr=fast"], "model.optimizer.lr='fast' has the wrong type"),
    (["model.optimizer.lr=-1"], "error: model.optimizer.lr=-1: give a number, 0 or more"),
    (["model.loss._target_=torch.nn.CrossEntropy"], "model.loss._target_=torch.nn.CrossEntropy: cannot be imported"),
    (["+model.net.depth=3"], "model.net.depth: segmod.nets.hypercolumn.Hypercolumn takes no such argument"),
    (["inference=crf", "inference.normalization=none"], "did you mean inference.kernel_normalization?"),
    (["seed=x"], "error: seed='x': give a whole number, from 0 to 4294967295"),
    (["seed=-1"], "error: seed=-1: give a whole number"),
    (["seed=4294967296"], "error: seed=4294967296: give a whole number"),
    (["seed=true"], "error: seed=True: give a whole number"),
    (
        ["model.net._target_=nowhere.Net"],
        "model.net._target_=nowhere.Net: cannot be imported (No module named 'nowhere')",
    ),
    (["study=object_sizes"], "segmod-train has no group 'study': its groups are data, "),
    (["trainer.max_epochs=two"], "trainer.max_epochs='two' has the wrong type"),
    (["trainer.precision=8"], "trainer.precision=8 has the wrong type"),
    (["trainer.devices=999"], "trainer.devices=999: this machine has"),
    (["trainer.accelerator=tpu"], "trainer: "),
    (["callbacks.checkpoints.mode=best"], "callbacks.checkpoints.mode='best' has the wrong type"),
    (["callbacks.checkpoints.monitor=val/nope"], "callbacks.checkpoints.monitor='val/nope' is not logged"),
    (["data.crop_size=9999"], "data.crop_size=9999"),
    (["data.batch_size=0"], "data.batch_size=0"),
    (["data=voc", "data.root=nowhere"], "nowhere/VOCdevkit/VOC2012: no such folder; set data.root"),
    (["model.net.weights=no.pth"], "model.net.weights=no.pth"),
    (["model.param_rules=[{match: nothing}]"], "model.param_rules[0].match='nothing' decides for no parameter"),
    (["trainer.val_check_interval=99"], "trainer.val_check_interval=99: longer than an epoch"),
    (["init_from=fcn32s"], "run first: segmod-train experiment=fcn32s"),
    (["a b"], "cannot read the override"),
    (["trainer.max_epochs=null", "trainer.max_steps=0"], "set trainer.max_steps or max_epochs"),
]


@pytest.mark.parametrize(("overrides", "message"), MISTAKES, ids=lambda x: " ".join(x) if isinstance(x, list) else "")
def test_mistakes_in_training(overrides: list[str], message: str, segmod: Any, small: Any, capfd: Any) -> None:
    assert segmod("train", *(small if "data=voc" not in overrides else ()), *overrides) == 1
    error = capfd.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("segmod: error: ")]
    assert len(lines) == 1, error
    assert message in lines[0]
    assert "Traceback" not in error
    assert "Error executing job" not in error
    assert "Error getting object" not in error
    assert not list(Path("runs").glob("**/metrics.json"))


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        (
            "evaluate",
            "callbacks=ema",
            "segmod-evaluate has no group 'callbacks': its groups are inference, proposals, logger, trainer",
        ),
        ("predict", "model=tiny", "segmod-predict has no group 'model': its groups are inference, proposals"),
        ("tables", "tables=fcn", "segmod-tables has no group 'tables': did you mean table?"),
        ("evaluate", "run=nowhere", "run=nowhere: no run there, and none of that name in runs"),
    ],
)
def test_mistakes_of_other_commands(name: str, override: str, message: str, segmod: Any, capfd: Any) -> None:
    assert segmod(name, override) == 1
    assert capfd.readouterr().err.startswith(f"segmod: error: {message}")


def test_the_config_of_a_sweep_is_not_shown(segmod: Any, capfd: Any) -> None:
    assert segmod("train", "-m", "model=tiny,fcn8s", "--cfg", "job") == 2
    assert capfd.readouterr().err == (
        "segmod: error: -m and --cfg do not go together: --cfg job shows one job, without -m\n"
    )


REFUSED = [
    ["model.optimizer.lr=fast"], ["data.batch_size=0"], ["data=voc", "data.root=nowhere"], ["trainer.accelerator=tpu"],
    ["hydra.mode=MULTIRUN", "seed=0,1", "model.net._target_=nowhere.Net"],
]  # fmt: skip


@pytest.mark.parametrize("overrides", REFUSED, ids=" ".join)
def test_a_refused_command_leaves_no_folder(overrides: list[str], segmod: Any, small: Any, capfd: Any) -> None:
    kept = ["trainer=cpu", "trainer.enable_progress_bar=false"] if "data=voc" in overrides else small
    assert segmod("train", *kept, *overrides) == 1
    assert "segmod: error: " in capfd.readouterr().err
    left = [path.name for path in Path("runs").rglob("*")] if Path("runs").exists() else []
    assert left == []


def test_a_refused_command_leaves_a_run_as_it_was(segmod: Any, small: Any) -> None:
    short = (*small, "trainer.max_epochs=1", "name=kept")
    assert segmod("train", *short) == 0
    before = {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*") if path.name != "train.log"}
    (run,) = Path("runs").rglob("metrics.json")
    assert segmod("train", *short, "overwrite=true", "data.batch_size=0", f"hydra.run.dir='{run.parent}'") == 1
    assert {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*") if path.name != "train.log"} == before


def test_a_finished_run_verifies_its_data_when_asked(segmod: Any, small: Any, capfd: Any) -> None:
    voc = write_voc_tree(Path("data"), train=2, val=2, size=(40, 50))
    short = [word for word in small if not word.startswith("data.") or "workers" in word]
    short += ["data=voc", "data.root=data", "data.crop_size=32", "data.batch_size=2", "trainer.max_steps=1"]
    assert segmod("train", *short) == 0
    assert segmod("train", *short, "data.verify=true") == 0
    next((voc / "JPEGImages").iterdir()).write_bytes(b"no picture")
    capfd.readouterr()
    assert segmod("train", *short, "data.verify=true") == 1
    assert "1 of 4 images are bad" in capfd.readouterr().err
    assert segmod("train", *short) == 0


def test_what_a_folder_of_ones_own_adds_is_listed(segmod: Any, tmp_path: Path, capfd: Any) -> None:
    own = tmp_path / "own" / "experiment"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text("# @package _global_\nname: mine\n")
    assert segmod("train", "--config-dir", "own", "experiment=mine", "--cfg", "job") == 0
    assert "\nname: mine\n" in capfd.readouterr().out
    assert segmod("train", "--config-dir", "own", "experiment=mime") == 1
    error = capfd.readouterr().err
    assert "experiment=mime: no such option; choose one of deconvnet, " in error
    assert ", mine, " in error


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("train", "model"), ("evaluate", "inference"), ("predict", "inference"), ("study", "study"),
        ("proposals", "proposals"), ("benchmark", "loss"),
    ],
)  # fmt: skip
def test_every_command_lists_what_a_folder_of_ones_own_adds(
    name: str, group: str, segmod: Any, tmp_path: Path, capfd: Any
) -> None:
    own = tmp_path / "a folder" / "of mine" / group
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text("{}\n")
    assert segmod(name, "--config-dir", str(own.parent), f"{group}=mime") == 1
    error = capfd.readouterr().err
    assert f"{group}=mime: no such option; choose one of " in error
    assert "mine" in error.partition("choose one of ")[2].replace(",", "").split()
    assert segmod(name, f"--config-dir={own.parent}", f"{group}=mine", "--cfg", "job") == 0


def test_another_number_of_classes_than_the_checkpoint(segmod: Any, small: Any, capfd: Any) -> None:
    short = (*small, "trainer.max_epochs=1")
    assert segmod("train", *short, "name=first") == 0
    (checkpoint,) = Path("runs").glob("**/best.ckpt")
    capfd.readouterr()
    assert segmod("train", *short, "name=second", "data.dataset.num_classes=5", f"init_from='{checkpoint}'") == 1
    error = capfd.readouterr().err
    assert error.count("segmod: error: ") == 1
    assert "21 classes, this data has 5" in error


def test_a_disk_too_small_is_told_before_training(
    segmod: Any, small: Any, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10))
    assert segmod("train", *small) == 1
    assert "0.0 GB free" in capfd.readouterr().err


def test_one_failing_job_does_not_stop_the_others(segmod: Any, small: Any, capfd: Any) -> None:
    assert segmod("train", "-m", *small, "trainer.max_epochs=1", "model.optimizer.lr=fast,1e-3") == 1
    error = capfd.readouterr().err
    assert "segmod: error: model.optimizer.lr='fast' has the wrong type" in error
    assert len(list(Path("runs").glob("**/metrics.json"))) == 1
    (table,) = Path("runs/sweeps").glob("*/jobs.csv")
    rows = read_csv(table)
    assert [(row["model.optimizer.lr"], row["state"]) for row in rows] == [("fast", "failed"), ("0.001", "finished")]
    assert "has the wrong type" in rows[0]["error"]
    assert 0 <= float(rows[1]["val/miou"]) <= 1
    assert table.with_suffix(".png").stat().st_size > 1000


def test_help_tells_of_the_command_and_its_keys_and_needs_no_torch() -> None:
    names = ("train", "evaluate", "predict", "proposals", "benchmark", "study", "tables")
    code = (
        "import sys\n"
        "from segmod.__main__ import COMMANDS\n"
        f"for name in {names}:\n"
        "    sys.argv = [f'segmod-{name}', '--help']\n"
        "    try: COMMANDS[name]()\n"
        "    finally: print('HEAVY', [m for m in ('torch', 'lightning', 'cv2', 'matplotlib') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *pages, rest = done.stdout.split("HEAVY []\n")
    assert (len(pages), rest) == (len(names), "")
    for name, page in zip(names, pages, strict=True):
        first = next(line for line in page.splitlines() if line)
        assert first.startswith(f"segmod-{name}: ")
        cfg = OmegaConf.load(cli.CONF_DIR / f"{name}.yaml")
        keys = [key for key in cfg if key not in ("defaults", "hydra", "run_dir", "model", "data", "trainer")]
        keys = [key for key in keys if name == "train" or key not in ("name", "seed")]  # elsewhere for a logger or data
        told = " ".join(line for line in page.splitlines() if "=" in line)
        assert [key for key in keys if f" {key}=" not in told] == []


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("what", [["--help"], ["--cfg", "job"]], ids=" ".join)
def test_who_reads_no_further_is_left_in_peace(what: list[str], unbuffered: str) -> None:
    """As ``| head`` does: 141 is 128 + SIGPIPE."""
    command = [sys.executable, "-m", "segmod", "train", *what]
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        process.stdout.close()
        error = process.communicate(timeout=60)[1]
    assert (process.returncode, error) == (141, b"")


def test_another_broken_pipe_is_an_error_like_any(capfd: Any) -> None:
    assert cli._report(BrokenPipeError(32, "Broken pipe"), "train") == 1
    assert "BrokenPipeError: [Errno 32]" in capfd.readouterr().err
