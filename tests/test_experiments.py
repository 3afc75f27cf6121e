"""Every experiment and sweep composes, checks out, and hands its net on to the next stage."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from segmod.optim import param_groups
from segmod.runs import cli
from segmod.runs import folders as runs
from segmod.runs.instantiate import check, instantiate

EXPERIMENTS = sorted(path.stem for path in (cli.CONF_DIR / "experiment").glob("*.yaml"))
SWEEPS = sorted(path.stem for path in (cli.CONF_DIR / "sweep").glob("*.yaml"))


def composed(*overrides: str) -> DictConfig:
    runs.register_resolvers()
    with initialize_config_dir(str(cli.CONF_DIR), version_base="1.3"):
        cfg = compose("train", overrides=list(overrides))
    cfg.run_dir = "unused"
    return cfg


def stages(sweep: str) -> list[str]:
    params = OmegaConf.load(cli.CONF_DIR / "sweep" / f"{sweep}.yaml").hydra.sweeper.params
    return str(params.experiment).split(",")


@pytest.mark.parametrize("data", ["synthetic", "voc"])
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiment_composes_into_valid_arguments(experiment: str, data: str) -> None:
    cfg = composed(f"experiment={experiment}", f"data={data}", "logger=[csv,wandb,tensorboard]")
    assert cfg.name == experiment
    assert list(cfg.logger) == ["csv", "wandb", "tensorboard"]
    for key in ("data", "model", "trainer", "callbacks", "logger"):
        given = {"callbacks": None, "logger": None} if key == "trainer" else None
        check(OmegaConf.to_container(cfg[key], resolve=True), key, given=given)
    if cfg.init_from is not None:
        assert cfg.init_from in EXPERIMENTS


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_reported_numbers_say_what_they_are_of(experiment: str) -> None:
    for entry in composed(f"experiment={experiment}").reported or []:
        table = OmegaConf.load(cli.CONF_DIR / "tables" / f"{entry.table}.yaml")
        percent = {column.metric for column in table.columns if column.get("unit", "%") == "%"}
        assert not entry.metrics or entry.source, "numbers without a source"
        if entry.metrics or entry.scored_on:  # a row of a study of our own has neither
            assert set(entry.scored_on) == {"data", "split", "images"}
        assert all(0 < entry.metrics[metric] < 1 for metric in percent & set(entry.metrics)), "fractions, not percent"


@pytest.mark.parametrize("sweep", SWEEPS)
def test_sweep_runs_stages_in_order(sweep: str) -> None:
    done: list[str | None] = [None]
    for stage in stages(sweep):
        assert composed(f"sweep={sweep}", f"experiment={stage}").init_from in done
        done.append(stage)
    assert len(done) > 2


@pytest.mark.parametrize("stage", stages("fcn_staged"))
def test_staged_fcn_follows_the_paper(stage: str) -> None:
    """Batch 20, momentum 0.9, learning rates 1e-4, 1e-6, 1e-8; the solvers of the reference code 1e-10 ... 1e-14."""
    place = stages("fcn_staged").index(stage)
    cfg = composed(f"experiment={stage}")
    assert cfg.model.net.stride == [32, 16, 8][place]
    assert (cfg.data.batch_size * cfg.trainer.accumulate_grad_batches, cfg.model.optimizer.momentum) == (20, 0.9)
    assert cfg.model.optimizer.lr == pytest.approx([1e-4, 1e-6, 1e-8][place])
    caffe = composed(f"experiment={stage}_caffe")
    assert caffe.model.loss.reduction == "sum"
    assert (caffe.data.batch_size * caffe.trainer.accumulate_grad_batches, caffe.model.optimizer.momentum) == (1, 0.99)
    assert caffe.model.optimizer.lr == pytest.approx([1e-10, 1e-12, 1e-14][place])


@pytest.mark.parametrize(
    ("stage", "batch", "steps", "every", "crops"),
    [
        ("deconvnet_stage1", (8, 8), 20000, 9000, "objects"),
        ("deconvnet_stage2", (8, 8), 40000, 10000, "proposals"),
        ("deconvnet", (28, 1), 501, None, "proposals"),
    ],
)
def test_stages_of_deconvnet_follow_the_authors(
    stage: str, batch: tuple[int, int], steps: int, every: int | None, crops: str
) -> None:
    """Their solvers: 8 x 8 crops a step, rate 0.01 / 10 after fixed steps; then statistics over 501 batches of 28."""
    cfg = composed(f"experiment={stage}", "data=voc_aug")
    assert (cfg.data.batch_size, cfg.trainer.accumulate_grad_batches) == batch
    assert cfg.trainer.max_steps == steps
    assert cfg.model.scheduler.get("every") == every
    assert (cfg.model.optimizer.lr, cfg.model.optimizer.momentum) == (0.01, 0.9)
    assert (cfg.data.train_split, cfg.data.squash, cfg.data.crop_size) == ("trainaug", 250, 224)
    assert ("proposals" in cfg.data.crops) == (crops == "proposals")
    assert cfg.inference._target_ == "segmod.inference.proposals.ProposalPredictor"  # what segmod-evaluate does unasked
    assert cfg.checkpoint == "last"


def test_rates_and_decay_of_deconvnet() -> None:
    """As the authors' prototxt has them: biases of convolutions twice the rate and no decay, batch norm as weights."""
    cfg = composed("experiment=deconvnet_stage1", "model.net.width=0.03", "model.net.weights=null")
    net = instantiate(cfg, "model.net")
    groups = param_groups(net, cfg.model.param_rules)
    multipliers = {id(p): (group["lr_mult"], group["decay_mult"]) for group in groups for p in group["params"]}
    found = {name: multipliers[id(parameter)] for name, parameter in net.named_parameters()}
    assert found["encoder.0.conv1_1.weight"] == found["bottleneck.bn_fc6.bias"] == (1.0, 1.0)
    assert found["encoder.0.conv1_1.bias"] == found["score.bias"] == found["decoder.1.deconv2_2.bias"] == (2.0, 0.0)
    assert sum(value == (2.0, 0.0) for value in found.values()) == 30  # 29 before a batch norm, and that of the scores


def test_the_plateau_schedule_of_the_comment_works() -> None:
    """What the comment in deconvnet_stage1.yaml tells."""
    text = (cli.CONF_DIR / "experiment" / "deconvnet_stage1.yaml").read_text()
    told = text.partition("stagnates:\n")[2].partition("\ndefaults:")[0].replace("\n#", "")
    cfg = composed("experiment=deconvnet_stage1", *shlex.split(told.lstrip("# ")))
    check(OmegaConf.to_container(cfg.model, resolve=True), "model")
    assert cfg.model.scheduler._target_ == "segmod.optim.Plateau"
    assert (cfg.model.scheduler.patience, cfg.model.scheduler_monitor) == (5, "val/pixel_acc")
    assert (cfg.trainer.val_check_interval, cfg.trainer.check_val_every_n_epoch) == (None, 1)


def test_depths_of_the_pyramid_share_the_recipe_of_the_paper() -> None:
    """30 epochs of batches of 3, crop 512, flip, SGD with decay 5e-4, rate 5e-4 (30 - e) / 30, batch norm for 10."""
    depths = [composed(f"experiment={stage}", "data=voc") for stage in stages("dfp_table1")]
    assert [cfg.model.net.depth for cfg in depths] == list(range(6))
    first, *others = [{**runs.settings(cfg), "model.net.depth": None, "name": None} for cfg in depths]
    assert all(other == first for other in others)
    cfg = depths[0]
    assert (cfg.data.batch_size, cfg.data.crop_size, cfg.data.short_side, cfg.data.hflip) == (3, 512, 512, 0.5)
    assert (cfg.data.scale, cfg.trainer.accumulate_grad_batches, cfg.model.net.weights) == (None, 1, "DEFAULT")
    assert cfg.callbacks.freeze_batch_norm.epochs == 10

    optimizer = instantiate(cfg, "model.optimizer")([torch.nn.Parameter(torch.zeros(1))])
    group = optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"], group["momentum"]) == (5e-4, 5e-4, 0.9)
    steps = 1464 // 3
    schedule = instantiate(cfg, "model.scheduler")(
        optimizer, total_steps=steps * cfg.trainer.max_epochs, steps_per_epoch=steps
    )
    rate = schedule.lr_lambdas[0]
    for epoch in range(30):
        assert 5e-4 * rate(steps * epoch) == 5e-4 * rate(steps * epoch + steps - 1)
        assert 5e-4 * rate(steps * epoch) == pytest.approx(5e-4 * (30 - epoch) / 30)


@pytest.mark.parametrize("connection", [None, *range(1, 8)])
def test_connections_have_the_filters_of_the_paper(connection: int | None) -> None:
    """Of each n, Tables 1 and 2 tell 7 for connection 6 and 5 for connection 5; it grows from 3 to 7 with height."""
    name = connection or "none"
    for study in ("yim", "skip"):
        net = composed(f"experiment={study}_{name}").model.net
        assert net.connections == connection
        assert connection is None or net.kernel == {1: 3, 2: 3, 3: 3, 4: 5, 5: 5, 6: 7, 7: 7}[connection]


def test_the_second_table_shares_runs_with_the_first() -> None:
    assert set(stages("yim_table1")) == {"yim_none", *(f"yim_{i}" for i in range(1, 8))}
    assert set(stages("yim_table2")) - set(stages("yim_table1")) == {"yim_6_n5", "yim_5_n7"}
    kernels = [composed(f"experiment={stage}").model.net.kernel for stage in ("yim_6_n5", "yim_5_n7")]
    assert kernels == [5, 7]


@pytest.mark.parametrize("backbone", ["vgg11", "squeezenet"])
def test_protocol_of_the_report_differs_in_these_keys_alone(backbone: str) -> None:
    ours, theirs = (
        runs.settings(composed(f"experiment=hypercolumn_{backbone}_dense{suffix}")) for suffix in ("", "_as_report")
    )
    changed = {key: theirs[key] for key in ours if ours[key] != theirs[key]}
    assert changed == {
        "name": f"hypercolumn_{backbone}_dense_as_report",
        "init_from": f"hypercolumn_{backbone}_sparse_as_report",
        "model.init_from": f"hypercolumn_{backbone}_sparse_as_report",
        "model.net.score_relu": True,
        "model.net.normalise": "raw255",
        "data.void_as_background": True,
        "data.eval_squash": True,
    }


def run_sweep(cwd: Path, *overrides: str) -> dict[str, Any]:
    """Run a sweep on four small scenes; returns the results by run name and seed."""
    small = (
        "data.train_images=4 data.val_images=2 data.num_workers=0 model.net.weights=null trainer=cpu "
        "trainer.num_sanity_val_steps=0 trainer.enable_progress_bar=false trainer.log_every_n_steps=1"
    )
    command = [sys.executable, "-m", "segmod", "train", *overrides, *small.split()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=500, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    results = [json.loads(path.read_text()) for path in sorted(cwd.glob("runs/**/seed?/metrics.json"))]
    return {f"{result['name']}/{result['seed']}": result for result in results}


@pytest.mark.slow
def test_fcn_stages_run_by_one_command(tmp_path: Path) -> None:
    """A key that the default model lacks (width) and a list of seeds go with the sweep."""
    results = run_sweep(
        tmp_path,
        *["sweep=fcn_staged", "seed=0,1", "data.size=48", "model.net.width=0.05"],
        *["trainer.max_steps=1", "trainer.accumulate_grad_batches=1"],
    )
    assert set(results) == {f"fcn{stride}s/{seed}" for stride in (32, 16, 8) for seed in (0, 1)}
    assert [entry["row"] for entry in results["fcn8s/0"]["reported"]] == ["FCN-8s", "FCN8s"]


@pytest.mark.slow
def test_hypercolumn_stages_run_by_one_command(tmp_path: Path) -> None:
    results = run_sweep(
        tmp_path, "sweep=hypercolumn_sparse_dense", "data.size=64", "data.squash=48", "trainer.max_epochs=2"
    )
    assert set(results) == {"hypercolumn_squeezenet_sparse/0", "hypercolumn_squeezenet_dense/0"}


@pytest.mark.slow
def test_deconvnet_curriculum_runs_by_one_command(tmp_path: Path) -> None:
    """It makes its proposals, and the last stage changes the statistics of batch norm alone."""
    results = run_sweep(
        tmp_path,
        *["sweep=deconvnet_curriculum", "data.size=96", "model.net.width=0.03", "data.squash=40", "data.crop_size=32"],
        *["data.batch_size=2", "data.crops.val_crops=3", "trainer.max_steps=2", "trainer.accumulate_grad_batches=2"],
    )
    assert set(results) == {"deconvnet_stage1/0", "deconvnet_stage2/0", "deconvnet/0"}
    assert [(result["split"], result["images"], result["step"]) for result in results.values()] == [
        ("val crops", 3, 2)
    ] * 3
    states = {
        name: torch.load(next(tmp_path.glob(f"runs/{name}/*/seed0/checkpoints/last.ckpt")), weights_only=True)
        for name in ("deconvnet_stage2", "deconvnet")
    }
    before, after = (states[name]["state_dict"] for name in ("deconvnet_stage2", "deconvnet"))
    changed = {key.rpartition(".")[2] for key, value in before.items() if not torch.equal(value, after[key])}
    assert {"running_mean", "running_var"} <= changed <= {"running_mean", "running_var", "num_batches_tracked"}
    assert list(tmp_path.glob("proposals/**/*.npz")), "no proposals were made"
    (run,) = tmp_path.glob("runs/deconvnet/*/seed0")
    command = [
        sys.executable,
        "-m",
        "segmod.commands.evaluate",
        f"run={run}",
        "inference=proposals",
        "inference.min_side=null",
    ]
    done = subprocess.run([*command, "inference.max_proposals=3", "trainer=cpu"], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done.stderr[-3000:]
    (scored,) = run.glob("evaluation/proposals-val*/metrics.json")
    assert json.loads(scored.read_text())["images"] == 2
