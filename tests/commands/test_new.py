"""What `segmod-new` writes works as it is, from any folder."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from segmod.commands.new import STARTER

QUICK = (
    "trainer=cpu", "trainer.enable_progress_bar=false", "trainer.max_epochs=1", "data.dataset.images=8",
    "data.num_workers=0", "callbacks.pictures.count=0",
)  # fmt: skip
OWN = "trust=[own_net.OwnNet,own_data.OwnData]"


@pytest.fixture
def project(segmod: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project in a folder of its own."""
    monkeypatch.setattr("sys.path", [*sys.path])
    for module in ("own_net", "own_data"):  # of another test
        monkeypatch.delitem(sys.modules, module, raising=False)
    assert segmod("new", "a project") == 0
    return Path("a project").resolve()


def test_it_trains_and_is_evaluated_from_its_folder(
    project: Path, segmod: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    assert segmod("train", "--config-dir", "conf", "experiment=own", *QUICK) == 0
    (record,) = [json.loads(path.read_text()) for path in project.glob("runs/own/**/metrics.json")]
    assert (record["data"], list(record["iou"])) == ("Own data", ["ground", "disc", "square"])
    assert segmod("evaluate", "run=own", OWN, *QUICK[:2]) == 0
    assert list(project.glob("runs/own/**/evaluation/dense-val/metrics.json"))


def test_every_command_finds_its_modules_from_another_folder(project: Path, segmod: Any, tmp_path: Path) -> None:
    own = ("--config-dir", str(project / "conf"))
    assert segmod("train", *own, "experiment=own", *QUICK) == 0
    assert segmod("evaluate", *own, "run=own", OWN, *QUICK[:2]) == 0
    photo = next(Path("runs/own").glob("**/evaluation/**/*.png"))
    assert segmod("predict", *own, "run=own", OWN, f"input='{photo}'", "device=cpu") == 0
    assert segmod("study", *own, "study=object_sizes", "run=own", OWN, "study.images=2", "device=cpu") == 0
    assert segmod("proposals", *own, "data=own_data", "data.dataset.images=4", "split=val", "report=true") == 0
    assert segmod("tables", *own, "table=runs") == 0
    quick = ("size=32", "batch=1", "steps=1", "passes=1", "warmup=0", "rounds=1", "device=cpu")
    assert segmod("benchmark", f"--config-dir={project / 'conf'}", "model=own_net", *quick) == 0


def test_a_folder_that_holds_something_is_left_alone(segmod: Any, tmp_path: Path, capfd: Any) -> None:
    (tmp_path / "mine").write_text("")
    assert segmod("new", ".") == 1
    assert capfd.readouterr().err == "segmod: error: .: holds something already: give a new folder\n"
    assert segmod("new", "mine") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_its_readme_names_what_is_there(segmod: Any) -> None:
    text = (STARTER / "README.md").read_text()
    for path in STARTER.rglob("*.yaml"):
        assert path.stem in text
    for path in STARTER.glob("own_*.py"):
        assert path.stem in text
