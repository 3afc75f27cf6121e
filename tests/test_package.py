"""The built wheel works without the checkout, and the notebooks run."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages of an environment into which the wheel has been unpacked."""
    tmp_path = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("segmod-*.whl")
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    (site,) = venv.glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    # the dependencies of this environment, but not its editable segmod: path files in there are not followed
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return site


def installed(site: Path, *words: str, folder: Path) -> str:
    """What Python prints where the wheel, and not the checkout, is found."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [str(site.parents[2] / "bin" / "python"), *words]
    return subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout


def test_the_wheel_carries_its_configs(site: Path, tmp_path: Path) -> None:
    code = "from segmod import __main__; from segmod.runs import cli; print(cli.CONF_DIR); __main__.train()"
    printed = installed(site, "-c", code, "--cfg", "job", "experiment=fcn8s", "data=voc", folder=tmp_path)
    assert printed.startswith(str(site / "segmod" / "conf"))
    assert "_target_: segmod.nets.fcn.FCN" in printed


@pytest.mark.slow
def test_a_project_of_ones_own_works_with_the_wheel_alone(site: Path, tmp_path: Path) -> None:
    installed(site, "-m", "segmod", "new", "own", folder=tmp_path)
    own = tmp_path / "own"
    assert "3 passed" in installed(site, "-m", "pytest", "-q", "-p", "no:cacheprovider", folder=own)
    words = ("--config-dir", "conf", "experiment=own", "trainer=cpu", "trainer.max_epochs=1")
    installed(site, "-m", "segmod", "train", *words, folder=own)
    assert (own / "runs" / "own" / "seed0" / "metrics.json").is_file()


NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SLOW = dict.fromkeys(["02_train_and_predict", "03_skip_connections"], pytest.mark.slow)  # half a minute or more each


@pytest.mark.parametrize("path", [pytest.param(p, id=p.stem, marks=SLOW.get(p.stem, ())) for p in NOTEBOOKS])
def test_notebooks_run(path: Path, tmp_path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    assert len(notebook.cells) <= 10
    assert all(not cell.get("outputs") for cell in notebook.cells), "commit notebooks without outputs"
    client = NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
