"""A user's mistake is told in one line that names the key or file, before any work is done."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

MISTAKES = [
    (["foo=1"], "no config key 'foo'"),
    (["model.optimizer.lrr=1"], "no config key 'model.optimizer.lrr': did you mean model.optimizer.lr?"),
    (["modle=fcn8s"], "'modle': did you mean model?"),
    (["model=fnc8s"], "model=fnc8s: no such option; choose one of boxwise_inceptionv3, "),
    (["experiment=nope"], "experiment=nope: no such option; choose one of"),
    (["callbacks=[default,nope]"], "callbacks=nope: no such option"),
    (["model.optimizer.lr=fast"], "model.optimizer.lr='fast' has the wrong type"),
    (["model.optimizer.lr=-1"], "model.optimizer: Invalid learning rate: -1"),
    (["model.loss._target_=torch.nn.CrossEntropy"], "model.loss._target_=torch.nn.CrossEntropy: cannot be imported"),
    (["+model.net.depth=3"], "model.net.depth: segmod.nets.hypercolumn.Hypercolumn takes no such argument"),
    (["seed=x"], "seed='x': give a whole number"),
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
    assert not list(Path("runs").glob("**/metrics.json"))


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


def test_another_number_of_classes_than_the_checkpoint(segmod: Any, small: Any, capfd: Any) -> None:
    short = (*small, "trainer.max_epochs=1")
    assert segmod("train", *short, "name=first") == 0
    (checkpoint,) = Path("runs").glob("**/best.ckpt")
    capfd.readouterr()
    assert segmod("train", *short, "name=second", "data.num_classes=5", f"init_from='{checkpoint}'") == 1
    error = capfd.readouterr().err
    assert error.count("segmod: error: ") == 1
    assert "num_classes" in error


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


@pytest.mark.parametrize(
    "name", ["train", "evaluate", "predict", "proposals", "benchmark", "study", "skipmaps", "tables"]
)
def test_help_needs_no_torch(name: str) -> None:
    code = (
        f"import sys; sys.argv = ['segmod-{name}', '--help']\n"
        f"from segmod.__main__ import COMMANDS\n"
        f"try: COMMANDS['{name}']()\n"
        "finally: print('HEAVY', [m for m in ('torch', 'lightning', 'cv2', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "HEAVY []" in done.stdout
    assert f"segmod-{name}" in done.stdout
