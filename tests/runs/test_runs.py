import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from segmod.ground.errors import UserError
from segmod.runs import folders as runs
from segmod.runs.claim import claim, own_run
from segmod.runs.keys import digest
from segmod.runs.launch import is_leader
from segmod.runs.records import record

CHOICES = {"model": "tiny", "data": "synthetic"}


def directory(overrides: list[str], name: str = "tiny-synthetic", seed: int = 0) -> str:
    return runs.run_dir("runs", name, seed, overrides, CHOICES)


def test_directory_is_a_function_of_the_choices() -> None:
    assert directory([]) == "runs/tiny-synthetic/seed0"
    one = directory(["trainer.precision=9", "model.optimizer.lr=0.1"], seed=3)
    assert one == "runs/tiny-synthetic/lr-0.1+precision-9/seed3"
    assert one == directory(["model.optimizer.lr=0.1", "trainer.precision=9"], seed=3)
    assert one == directory(["model.optimizer.lr=0.1", "trainer.precision=9", "trainer.max_steps=9"], seed=3)


def test_infrastructure_names_no_directory() -> None:
    infrastructure = [
        "seed=4", "runs=elsewhere", "overwrite=true", "logger=wandb", "logger.wandb.offline=false", "trainer=ddp",
        "trainer.devices=2", "trainer.enable_progress_bar=false", "data.num_workers=3", "data.root=/data",
        "experiment=fcn8s", "sweep=fcn_staged", "hydra.launcher.n_jobs=2", "name=x", "data=voc", "model=fcn8s",
        "inference.batch_size=2", "inference.predictor.own.batch_size=2",
    ]  # fmt: skip
    assert directory(infrastructure) == "runs/tiny-synthetic/seed0"
    assert directory(["trainer=debug"]) == "runs/tiny-synthetic/trainer-debug/seed0"


def test_named_runs_tell_model_and_data_apart() -> None:
    assert directory(["data=voc"], name="fcn8s") == "runs/fcn8s/data-voc/seed0"


def test_odd_values_give_safe_directories() -> None:
    found = directory(["+data.scale=[0.5,2.0]", "model.net.weights='/a b/c\u00e9 d.pth'", "~model.scheduler"])
    assert set(found) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._+-")
    long = directory([f"model.net.key{i}={i}" for i in range(40)])
    other = directory([f"model.net.key{i}={i}" for i in range(41)])
    assert len(long) == len("runs/tiny-synthetic/") + 60 + len("/seed0")
    assert long != other


def config(tmp_path: Path, **kwargs: object) -> DictConfig:
    base = {
        "name": "a", "seed": 0, "runs": str(tmp_path), "run_dir": str(tmp_path / "a" / "seed0"), "overwrite": False,
        "init_from": None, "checkpoint": "best", "model": {"lr": 0.1}, "data": {"num_workers": 2},
        "trainer": {"devices": 1, "max_steps": 5},
    }  # fmt: skip
    return OmegaConf.merge(base, kwargs)  # type: ignore[return-value]


def taken(cfg: DictConfig) -> runs.Run:
    run = own_run(cfg)
    with claim(run, cfg):
        return run


def test_another_config_in_the_same_directory_is_refused_by_key(tmp_path: Path) -> None:
    taken(config(tmp_path))
    taken(config(tmp_path, data={"num_workers": 0}, trainer={"devices": 2}))  # may differ
    with pytest.raises(UserError, match=r"model\.lr: 0\.1 there, 0\.2 here.*overwrite=true"):
        taken(config(tmp_path, model={"lr": 0.2}))
    assert runs.Run(tmp_path / "a" / "seed0").config().model.lr == 0.1
    taken(config(tmp_path, model={"lr": 0.2}, overwrite=True))
    assert runs.Run(tmp_path / "a" / "seed0").config().model.lr == 0.2


def test_overwrite_leaves_foreign_files_alone(tmp_path: Path) -> None:
    run = taken(config(tmp_path))
    (run.directory / "notes.txt").write_text("mine")
    (run.directory / "checkpoints").mkdir()
    (run.directory / "checkpoints" / "last.ckpt").write_text("x")
    taken(config(tmp_path, overwrite=True))
    assert (run.directory / "notes.txt").exists()
    assert not (run.directory / "checkpoints").exists()


def test_digest_follows_what_is_computed(tmp_path: Path) -> None:
    assert digest(config(tmp_path)) == digest(config(tmp_path, data={"num_workers": 0}))
    assert digest(config(tmp_path)) != digest(config(tmp_path, seed=1))


def test_a_record_is_read_back(tmp_path: Path) -> None:
    run = taken(config(tmp_path))
    assert run.result() is None
    record(run.directory, config(tmp_path), metrics={"val/miou": 0.5}, iou={"cat": None}, wall_time_s=1.5)
    result = run.result()
    assert result is not None
    assert result["metrics"] == {"val/miou": 0.5}
    assert result["iou"] == {"cat": None}
    assert result["wall_time_s"] == 1.5
    assert result["peak_memory_bytes"] > 10**6
    assert result["versions"]["torch"].startswith("2.")
    assert not list(run.directory.glob("*.part"))
    run.metrics_file.write_text("{")
    with pytest.raises(UserError, match=r"metrics\.json"):
        run.result()


def test_a_predecessor_is_a_file_a_directory_or_a_finished_sibling(tmp_path: Path) -> None:
    overrides = ["experiment=b", "trainer.precision=5", "trainer.max_steps=5", "overwrite=true"]
    cfg = config(tmp_path, init_from="fcn32s")
    command = "segmod-train experiment=fcn32s trainer.precision=5 trainer.max_steps=5"
    with pytest.raises(UserError, match=f"run first: {re.escape(command)}$"):
        runs.predecessor("fcn32s", cfg, overrides, {})
    sibling = tmp_path / "fcn32s" / "precision-5" / "seed0"
    (sibling / "checkpoints").mkdir(parents=True)
    last = sibling / "checkpoints" / "last.ckpt"
    last.write_text("x")
    with pytest.raises(UserError, match="holds no finished run"):
        runs.predecessor("fcn32s", cfg, overrides, {})
    (sibling / "metrics.json").write_text(json.dumps({"metrics": {}}))
    assert runs.predecessor("fcn32s", cfg, overrides, {}) == last
    assert runs.predecessor(str(sibling), cfg, overrides, {}) == last
    assert runs.predecessor(str(last), cfg, overrides, {}) == last
    best = last.with_name("best.ckpt")
    best.write_text("x")
    assert runs.predecessor("fcn32s", cfg, overrides, {}) == best


def test_missing_checkpoints_and_runs_are_named(tmp_path: Path) -> None:
    run = taken(config(tmp_path))
    with pytest.raises(UserError, match=r"checkpoint=best: .*best\.ckpt does not exist"):
        run.checkpoint("best")
    with pytest.raises(UserError, match="no run there"):
        runs.Run(tmp_path / "nowhere").config()


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"])
def test_only_rank_zero_leads(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for other in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(other, raising=False)
    assert is_leader()
    monkeypatch.setitem(os.environ, name, "1")
    assert not is_leader()


def make_run(folder: Path) -> Path:
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "config.yaml").write_text("name: x\n")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.ckpt").touch()
    return folder


def test_a_run_is_found_by_its_folder_or_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one = make_run(tmp_path / "runs" / "fcn8s" / "data-voc" / "seed0")
    make_run(tmp_path / "runs" / "fcn8s_at_once" / "seed0")
    (tmp_path / "fcn8s").mkdir()  # a folder of that name that holds no run
    for given in (
        "runs/fcn8s/data-voc/seed0",
        str(one),
        "runs/fcn8s",
        "fcn8s",
        "fcn8s/data-voc",
        "fcn8s/data-voc/seed0",
    ):
        assert runs.find_run(given).directory == one
    assert runs.find_run("fcn8s", root=str(tmp_path / "runs")).directory == one
    two = make_run(tmp_path / "runs" / "fcn8s" / "data-voc" / "seed1")
    with pytest.raises(UserError, match=r"inference\.fcn\.run=fcn8s: there are 2 runs; choose one of .*seed0, .*seed1"):
        runs.find_run("fcn8s", key="inference.fcn.run")
    assert runs.find_run("fcn8s/data-voc/seed1").directory == two
    assert runs.find_run("fcn8s", seed="seed1").directory == two
    with pytest.raises(UserError, match="there are 2 runs"):
        runs.find_run("fcn8s", seed="seed7")
    with pytest.raises(UserError, match="run=fcn16s: no run there, and none of that name in runs"):
        runs.find_run("fcn16s")


def test_a_folder_without_a_checkpoint_is_not_offered(tmp_path: Path) -> None:
    """Of a run that failed at once the config alone is left; it is told where nothing else is there."""
    shell = tmp_path / "fcn8s" / "seed0"
    (shell / ".hydra").mkdir(parents=True)
    (shell / ".hydra" / "config.yaml").write_text("name: x\n")
    with pytest.raises(UserError, match=r"run=fcn8s: .*seed0 has no checkpoint yet; run the command that trains it"):
        runs.find_run("fcn8s", str(tmp_path))
    trained = make_run(tmp_path / "fcn8s" / "seed1")
    assert runs.find_run("fcn8s", str(tmp_path)).directory == trained
    (shell / "metrics.json").write_text("{}")
    with pytest.raises(UserError, match="there are 2 runs"):
        runs.find_run("fcn8s", str(tmp_path))


@pytest.mark.parametrize("name", ["../../escape", "/abs/name", "a/../../b", "..", "a\\b"])
def test_a_name_does_not_lead_out_of_runs(name: str, segmod: Any, tmp_path: Path, capfd: Any) -> None:
    for command in ("train", "benchmark"):
        assert segmod(command, f"name='{name}'") == 1
        error = capfd.readouterr().err
        assert error.startswith("segmod: error: name='")
        assert "can be no file's name" in error
        assert error.count("\n") == 1
    assert not list(tmp_path.rglob("*"))
