"""Multiruns: where they lie, what they tell of their jobs, and every launcher that brings jobs to other processes."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins

from segmod.ground.errors import UserError
from segmod.ground.files import replace_text
from segmod.ground.printing import read_csv
from segmod.runs import sweeps
from segmod.runs.folders import sweep_dir
from segmod.runs.sweeps import Row, show, varied

SCRIPT = Path(sys.executable).parent / "segmod-train"


@pytest.mark.parametrize(
    ("overrides", "of_hydra", "sweep", "name"),
    [
        (["seed=0,1", "data.num_workers=0"], [], None, "tiny+seed-0_1"),
        (["name=tiny", "model.optimizer.lr=0.1,1"], ["hydra/launcher=joblib"], None, "tiny+lr-0.1_1"),
        (["experiment=fcn32s,fcn8s"], [], None, "tiny+experiment-fcn32s_fcn8s"),
        (["sweep=fcn_staged", "data=voc"], [], "fcn_staged", "fcn_staged+data-voc"),
        (["sweep=optuna"], ["hydra.sweeper.n_trials=9"], "optuna", "optuna"),
        (["sweep=optuna"], ["hydra.sweeper.params.model.net.width='interval(0.5,1)'"], "optuna",
         "optuna+width-interval_0.5_1"),
    ],
)  # fmt: skip
def test_the_folder_of_a_multirun_is_named_by_its_choices(
    overrides: list[str], of_hydra: list[str], sweep: str | None, name: str
) -> None:
    assert sweep_dir("runs", "tiny", overrides, of_hydra, {"sweep": sweep}) == f"runs/sweeps/{name}"


def row(job: int, *overrides: str, miou: float | None = None, **facts: Any) -> Row:
    folder = str(Path("runs/x").absolute() / str(job))
    metrics = {"val/miou": miou, "val/pixel_acc": None}
    return {
        "job": job, "overrides": ["trainer.max_epochs=1", *overrides], "folder": folder, "metrics": metrics,
        "state": "finished", "time_s": 2.0, "error": "", **facts,
    }  # fmt: skip


def test_the_table_of_a_multirun_tells_what_its_jobs_differ_in_and_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [
        row(0, "model.net.depth=1", "+a.lr=1e-3", miou=0.25),
        row(1, "model.net.depth=2", "+a.lr=1e-1", miou=0.5),
        row(2, "model.net.depth=2", state="failed", error="no depth is left"),
    ]
    assert varied(rows) == {"model.net.depth": [1, 2, 2], "a.lr": [0.001, 0.1, "null"]}
    show(Path("runs/sweeps/x"), rows)
    told = capsys.readouterr().out
    assert "best: job 1: model.net.depth=2, a.lr=0.1" in told
    assert "job 2 failed: no depth is left" in told
    assert "runs/x/1" in told
    assert str(tmp_path) not in told
    assert [line["val/miou"] for line in read_csv(Path("runs/sweeps/x/jobs.csv"))] == ["0.25", "0.5", ""]
    assert Path("runs/sweeps/x/jobs.png").stat().st_size > 1000


def lose_a_worker(folder: Path) -> None:
    with sweeps.concluded():
        sweeps._begun.append(folder)
        for one in (row(0, "seed=0", miou=0.5), row(1, "seed=1", state="running")):
            replace_text(folder / "jobs" / f"{one['job']}.json", json.dumps(one))
        raise RuntimeError("a worker was lost")


def test_a_job_whose_process_dies_is_told(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="job 1: its process died"):
        lose_a_worker(tmp_path / "runs" / "sweeps" / "x")
    assert "job 1 lost: its process died" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("group", "option", "extra"),
    [
        ("hydra/sweeper", "optuna", "optuna"),
        ("hydra/launcher", "joblib", "joblib"),
        ("hydra/launcher", "submitit_slurm", "submitit"),
        ("hydra/launcher", "ray", "ray"),
    ],
)
def test_a_missing_plugin_is_told_with_what_to_install(
    group: str, option: str, extra: str, segmod: Any, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    Plugins.instance()
    kind = ConfigStore.instance().repo["hydra"][group.partition("/")[2]]
    monkeypatch.delitem(kind, f"{option}.yaml", raising=False)
    assert segmod("train", "-m", f"{group}={option}", "seed=0,1") == 1
    assert capfd.readouterr().err == (
        f"segmod: error: {group}={option}: not installed; pip install 'segmod[{extra}]'\n"
    )
    assert not Path("runs").exists()


# -- in processes of their own ---------------------------------------------------------------------------------------


def start(*words: str, **environment: str) -> subprocess.Popen[str]:
    clean = {k: v for k, v in os.environ.items() if k not in ("PL_GLOBAL_SEED", "LOCAL_RANK", "WORLD_SIZE")}
    return subprocess.Popen(
        [str(SCRIPT), *words],
        env=clean | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run(*words: str, **environment: str) -> str:
    process = start(*words, **environment)
    told, _ = process.communicate(timeout=280)
    assert process.returncode == 0, told[-3000:]
    return told


def results(root: str | Path = "runs") -> dict[str, dict[str, Any]]:
    """Metrics of all finished runs, by their folder."""
    found = sorted(Path(root).glob("**/metrics.json"))
    return {str(path.parent.relative_to(root)): json.loads(path.read_text())["metrics"] for path in found}


LAUNCHERS = {
    "joblib": ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2"),
    "submitit": ("hydra/launcher=submitit_local",),
    "ray": (
        "hydra/launcher=ray",
        "+hydra.launcher.ray.init.num_cpus=1",
        "+hydra.launcher.ray.init.include_dashboard=false",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_launcher_trains_what_a_plain_multirun_does(
    launcher: str, segmod: Any, small: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(f"hydra_plugins.hydra_{launcher}_launcher")
    sweep = ("-m", *small, "name=x", "trainer.max_epochs=1", "seed=0,1")
    assert segmod("train", *sweep, "runs=plain") == 0
    run(*sweep, *LAUNCHERS[launcher], RAY_AUTH_MODE="disabled")
    assert results() == results("plain")
    (table,) = Path("runs/sweeps").glob("*/jobs.csv")
    assert [(line["seed"], line["state"]) for line in read_csv(table)] == [("0", "finished"), ("1", "finished")]
    first = read_csv(table)[0]["folder"]
    assert "val/miou" in (Path(first) / "train.log").read_text()
    if launcher == "submitit":
        assert table.parent.joinpath(".submitit").is_dir()


@pytest.mark.slow
def test_jobs_of_submitit_have_two_ranks_of_their_own(segmod: Any, small: tuple[str, ...]) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    ddp = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
    run("-m", *small, *ddp, "name=x", "trainer.max_epochs=1", "seed=0,1", "hydra/launcher=submitit_local")
    assert [Path(folder).name for folder in results()] == ["seed0", "seed1"]
    for folder in results():
        assert "rror" not in (Path("runs") / folder / "rank1.log").read_text()
        assert "ranks above 0 print to" in (Path("runs") / folder / "train.log").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [(), LAUNCHERS["joblib"]], ids=["one by one", "joblib"])
def test_a_search_that_was_killed_goes_through_the_same_trials(
    launcher: tuple[str, ...], segmod: Any, small: tuple[str, ...]
) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    search = (
        *small, "name=x", "sweep=optuna", "data.hflip=0,0.5", "hydra.sweeper.n_trials=6",
        "hydra.sweeper.sampler.n_startup_trials=2", *(("hydra.sweeper.n_jobs=2", *launcher) if launcher else ()),
    )  # fmt: skip
    run(*search, "runs=whole")
    process = start(*search)
    while len(results()) < 3:
        assert process.poll() is None
        time.sleep(0.1)
    os.killpg(process.pid, 9)
    process.communicate()
    finished = {path: path.stat().st_mtime_ns for path in Path("runs").glob("**/metrics.json")}
    told = run(*search)
    assert results() == results("whole")
    assert len(results()) == 6
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    best = max(metrics["val/miou"] for metrics in results().values())
    assert f"Best value: {best}" in told
