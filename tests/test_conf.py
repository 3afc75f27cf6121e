"""Every config composes and checks out; experiments and sweeps follow the papers and hand their nets on."""

import inspect
import json
import os
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from segmod.ground.errors import UserError
from segmod.optim import param_groups
from segmod.runs import cli
from segmod.runs import folders as runs
from segmod.runs.instantiate import check, instantiate, settle_classes
from segmod.runs.keys import settings
from segmod.runs.tables import read_tables, reported

MODELS = sorted(path.stem for path in (cli.CONF_DIR / "model").glob("*.yaml"))
EXPERIMENTS = sorted(path.stem for path in (cli.CONF_DIR / "experiment").glob("*.yaml"))
SWEEPS = sorted({path.stem for path in (cli.CONF_DIR / "sweep").glob("*.yaml")} - {"optuna"})  # which has no stages
TABLES = read_tables([cli.CONF_DIR])


pytestmark = pytest.mark.usefixtures("stand_ins")


@cache
def composed(*overrides: str) -> DictConfig:
    runs.register_resolvers()
    with initialize_config_dir(str(cli.CONF_DIR), version_base="1.3"):
        cfg = compose("train", overrides=list(overrides))
    cfg.run_dir = "unused"
    settle_classes(cfg)  # as a training does first
    return cfg


def jobs(sweep: str) -> list[list[str]]:
    """Overrides of each job of a sweep, as Hydra's sweeper makes them."""
    params = OmegaConf.load(cli.CONF_DIR / "sweep" / f"{sweep}.yaml").hydra.sweeper.params
    lists = BasicSweeper.split_arguments(
        OverridesParser.create().parse_overrides([f"{key}={value}" for key, value in params.items()]),
        max_batch_size=None,
    )
    return [[f"sweep={sweep}", *job] for batch in lists for job in batch]


def stages(sweep: str) -> list[str]:
    return [job[-1].removeprefix("experiment=") for job in jobs(sweep)]


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


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("loss", "optimizer", "scheduler"),
    [
        ("cross_entropy", "sgd", "constant"),
        ("balanced_cross_entropy", "adam", "plateau"),
        ("one_vs_rest", "adamw", "poly"),
        ("dice", None, "constant"),
        ("lovasz", None, "constant"),
        ("focal", None, "constant"),
        ("ohem", None, "constant"),
        ("cross_entropy_dice", None, "constant"),
        (None, None, "linear"),
        (None, None, "compound"),
        (None, None, "cosine"),
        (None, None, "step"),
    ],
)
def test_loss_optimiser_and_schedule_of_a_model_can_be_swapped(
    model: str, loss: str | None, optimizer: str | None, scheduler: str
) -> None:
    """Any with any: the model's rate stays, and every schedule can be warmed up."""
    swapped = [f"{group}={name}" for group, name in (("loss", loss), ("optimizer", optimizer)) if name]
    cfg = composed(f"model={model}", *swapped, f"scheduler={scheduler}", "model.scheduler.warmup=2")
    for key in ("loss", "optimizer", "scheduler"):
        check(OmegaConf.to_container(cfg.model[key], resolve=True), f"model.{key}")
    assert cfg.model.optimizer.lr == composed(f"model={model}").model.optimizer.lr
    optimiser = instantiate(cfg, "model.optimizer")([torch.nn.Parameter(torch.zeros(1))])
    schedule = instantiate(cfg, "model.scheduler")
    schedule(optimiser, **({"total_steps": 100} if "total_steps" in inspect.signature(schedule).parameters else {}))
    assert optimiser.param_groups[0]["lr"] == pytest.approx(cfg.model.optimizer.lr / 3)


@pytest.mark.parametrize(
    ("chosen", "interval"),
    [
        (["scheduler=one_cycle"], "step"),
        (["scheduler=torch", "model.scheduler._target_=torch.optim.lr_scheduler.ConstantLR"], "epoch"),
    ],
)
def test_schedules_of_torch_can_be_chosen(chosen: list[str], interval: str) -> None:
    cfg = composed(*chosen)
    check(OmegaConf.to_container(cfg.model, resolve=True), "model")
    schedule = instantiate(cfg, "model.scheduler")
    assert issubclass(schedule.func, torch.optim.lr_scheduler.LRScheduler)
    assert cfg.model.scheduler_interval == interval


@pytest.mark.parametrize("preset", ["paper", "light", "strong"])
@pytest.mark.parametrize("model", ["fcn8s", "tiny"])
def test_augmentation_of_any_model(model: str, preset: str) -> None:
    cfg = composed(f"model={model}", f"augment={preset}")
    assert bool(cfg.data.augment) == (preset != "paper")
    assert {**cfg.data, "augment": []} == {**composed(f"model={model}").data}
    instantiate(cfg, "data")


@pytest.mark.parametrize("crops", ["objects", "proposals"])
def test_crops_of_any_data_and_model(crops: str) -> None:
    cfg = composed("data=voc", "model=fcn8s", f"crops={crops}")
    assert (cfg.data.squash, cfg.data.crop_size, cfg.data.hflip) == (250, 224, 0.5)  # not what the model says
    assert ("proposals" in cfg.data.crops) == (crops == "proposals")


@pytest.mark.parametrize("sweep", SWEEPS)
def test_sweep_runs_stages_in_order(sweep: str) -> None:
    """A stage starts from one before it; no two jobs are the same run, whatever is added to the command."""
    done: list[str | None] = [None]
    folders = set()
    for job in jobs(sweep):
        cfg = composed(*job)
        assert cfg.init_from in done
        done.append(cfg.name)
        folders.add(runs.run_dir("runs", cfg.name, 0, [*job, "data=voc"], {}))
    assert len(done) > 2
    assert len(folders) == len(done) - 1


@pytest.mark.parametrize("stage", stages("fcn_staged"))
def test_staged_fcn_follows_the_paper(stage: str) -> None:
    """Batch 20, momentum 0.9, a new skip at the first stage's rate; in the reference code 1e-10, 1e-12, 1e-14."""
    place = stages("fcn_staged").index(stage)
    cfg = composed(f"experiment={stage}")
    assert cfg.model.net.stride == [32, 16, 8][place]
    assert (cfg.data.batch_size * cfg.trainer.accumulate_grad_batches, cfg.model.optimizer.momentum) == (20, 0.9)
    assert cfg.trainer.max_steps == 5000
    small = composed(f"experiment={stage}", "model.net.width=0.03", "model.net.weights=null")
    net = instantiate(small, "model.net")
    rates = {
        id(p): group["lr_mult"] * cfg.model.optimizer.lr
        for group in param_groups(net, cfg.model.param_rules)
        for p in group["params"]
    }
    found = {name: rates[id(p)] for name, p in net.named_parameters()}
    newest = ["score_fr.weight", "score_pool4.weight", "score_pool3.weight"][place]
    assert found[newest] == pytest.approx(1e-3)
    assert found["fc6.weight"] == pytest.approx([1e-3, 1e-4, 1e-4][place])
    caffe = composed(f"experiment={stage}_caffe")
    assert caffe.model.loss.reduction == "sum"
    assert (caffe.data.batch_size * caffe.trainer.accumulate_grad_batches, caffe.model.optimizer.momentum) == (1, 0.99)
    assert caffe.model.optimizer.lr == pytest.approx([1e-10, 1e-12, 1e-14][place])
    assert [rule.get("lr_mult") for rule in caffe.model.param_rules] == [
        2.0
    ]  # biases; a new skip has no rate of its own
    assert (caffe.trainer.max_steps, caffe.model.net.normalise) == (100_000, "caffe")


def test_factors_of_the_net_trained_at_once_are_for_caffes_weights() -> None:
    assert composed("experiment=fcn8s_at_once").model.net.skip_factors == [1.0, 1.0]
    caffe = composed("experiment=fcn8s_at_once_caffe")
    assert (caffe.model.net.skip_factors, caffe.model.net.normalise) == ([0.01, 0.0001], "caffe")
    with pytest.raises(UserError, match=r"model\.net\.weights=vgg16_from_caffe\.pth"):
        instantiate(caffe, "model.net")


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
    depths = [composed(*job, "data=voc") for job in jobs("dfp_table1")]
    assert [cfg.model.net.depth for cfg in depths] == list(range(6))
    first, *others = [{**settings(cfg), "model.net.depth": None} for cfg in depths]
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


@pytest.mark.parametrize("sweep", ["yim_table1", "skip_squeezenet"])
def test_connections_have_the_filters_of_the_paper(sweep: str) -> None:
    """Of each n, Tables 1 and 2 tell 7 for connection 6 and 5 for connection 5; it grows from 3 to 7 with height."""
    nets = [composed(*job).model.net for job in jobs(sweep)]
    found = {net.connections: net.kernel for net in nets}
    assert found.pop("features.11", 7) == 7  # pool8, in the study of SqueezeNet alone
    del found[None]
    assert found == {1: 3, 2: 3, 3: 3, 4: 5, 5: 5, 6: 7, 7: 7}
    assert all(net.weights == "DEFAULT" for net in nets)


def test_the_second_table_shares_runs_with_the_first() -> None:
    def folders(sweep: str) -> set[str]:
        return {runs.run_dir("runs", "yim", 0, [*job, "data=voc"], {}) for job in jobs(sweep)}

    connections = {f"connections-{i}+kernel-{n}" for i, n in enumerate((3, 3, 3, 5, 5, 7, 7), 1)} | {"connections-null"}
    assert folders("yim_table1") == {f"runs/yim/data-voc+{part}/seed0" for part in connections}
    further = {"connections-6+kernel-5", "connections-5+kernel-7"}
    assert folders("yim_table2") - folders("yim_table1") == {f"runs/yim/data-voc+{part}/seed0" for part in further}
    assert len(folders("yim_table2")) == 4


@pytest.mark.parametrize("backbone", ["vgg11", "squeezenet"])
def test_protocol_of_the_report_differs_in_these_keys_alone(backbone: str) -> None:
    ours, theirs = (
        settings(composed(f"experiment=hypercolumn_dense{suffix}", f"model=hypercolumn_{backbone}"))
        for suffix in ("", "_as_report")
    )
    changed = {key: theirs[key] for key in ours if ours[key] != theirs[key]}
    assert changed == {
        "name": "hypercolumn_dense_as_report",
        "init_from": "hypercolumn_sparse_as_report",
        "model.init_from": "hypercolumn_sparse_as_report",
        "model.net.score_relu": True,
        "model.net.normalise": "raw255",
        "data.void_as_background": True,
        "data.eval_squash": True,
        "data.antialias": True,
    }


@pytest.mark.parametrize("suffix", ["", "_as_report"])
def test_both_stages_of_hypercolumns_take_the_backbone_that_is_chosen(suffix: str) -> None:
    """The dense stage finds the sparse one of the same choices; the sparse one has its loss and module all the same."""
    chosen = ["model=hypercolumn_vgg11", "data=voc", "model.net.hidden=8"]
    sparse, dense = (composed(f"experiment=hypercolumn_{stage}{suffix}", *chosen) for stage in ("sparse", "dense"))
    assert sparse.model.net.backbone == dense.model.net.backbone == "vgg11"
    assert sparse.model._target_ == "segmod.training.sparse.HypercolumnSparse"
    assert (sparse.model.loss._target_, sparse.model.points_per_class) == ("torch.nn.CrossEntropyLoss", 3)
    assert dense.model.loss._target_ == "segmod.losses.BalancedCrossEntropy"
    found = [
        runs.run_dir("runs", name, 0, [f"experiment={experiment}", *chosen], {"model": "hypercolumn_vgg11"})
        for name, experiment in ((sparse.name, sparse.name), (dense.init_from, dense.name))
    ]
    assert found[0] == found[1]
    assert found[0].endswith(f"hypercolumn_sparse{suffix}/data-voc+model-hypercolumn_vgg11+hidden-8/seed0")


# -- the papers' tables ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TABLES)
def test_reported_numbers_say_what_they_are_of(name: str) -> None:
    for row in TABLES[name].rows or ():
        percent = {column.metric for column in TABLES[name].columns if column.unit == "%"}
        assert (row.source is None) == (not row.paper), "numbers and their source belong together"
        if row.paper:
            assert set(row.scored_on) == {"data", "split", "images"}
        assert all(0 < row.paper[metric] < 1 for metric in percent & set(row.paper)), row.label


def test_what_papers_report_is_found_by_a_config() -> None:
    """The numbers of Chen et al., Table 1, depth 1; another name is another experiment."""
    chosen = ["experiment=dfp_resnet50", "model.net.depth=1"]
    found = reported(composed(*chosen), [cli.CONF_DIR])
    assert found == pytest.approx({"miou": 0.6826, "train_memory_bytes": 3349 * 2**20, "test_time_s": 0.059})
    assert reported(composed(*chosen, "name=other"), [cli.CONF_DIR]) == {}


@pytest.mark.parametrize("name", TABLES)
def test_the_command_of_each_row_makes_it(name: str) -> None:
    """As printed: each training has its predecessors before it, one job is of the row, and that is what is scored."""
    rows = [row for row in TABLES[name].rows or () if row.match is not None]
    assert rows
    for row in rows:
        made: dict[str, DictConfig] = {}
        for command in row.command.split(" && "):
            program, *given = shlex.split(command)
            if program == "segmod-evaluate":
                values = dict(word.split("=", 1) for word in given)
                assert values["inference"] == row.inference
                assert row.made_by(made[values["run"]])
                continue
            assert program == "segmod-train"
            sweep = next((word.removeprefix("sweep=") for word in given if word.startswith("sweep=")), None)
            for job in jobs(sweep) if sweep else [[]]:
                overrides = [*dict.fromkeys([*given, *job])]
                cfg = composed(*overrides)
                assert cfg.init_from is None or cfg.init_from in [other.name for other in made.values()]
                made[runs.run_dir("runs", cfg.name, 0, overrides, {})] = cfg
        assert len([cfg for cfg in made.values() if row.made_by(cfg)]) == 1, row.label


def run_sweep(cwd: Path, *overrides: str) -> dict[str, Any]:
    """Run a sweep on four small scenes; returns the results by run name and seed."""
    small = (
        "data.dataset.train_images=4 data.dataset.val_images=2 data.num_workers=0 model.net.weights=null trainer=cpu "
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
        *["sweep=fcn_staged", "seed=0,1", "data.dataset.size=48", "model.net.width=0.05"],
        *["trainer.max_steps=1", "trainer.accumulate_grad_batches=1"],
    )
    assert set(results) == {f"fcn{stride}s/{seed}" for stride in (32, 16, 8) for seed in (0, 1)}


@pytest.mark.slow
def test_hypercolumn_stages_run_by_one_command(tmp_path: Path) -> None:
    """With another backbone than that of the experiments, which both stages must hear of."""
    results = run_sweep(
        tmp_path,
        *["sweep=hypercolumn_sparse_dense", "model=hypercolumn_vgg11", "data.dataset.size=64", "data.squash=48"],
        *["model.net.hidden=8", "trainer.max_epochs=2"],
    )
    assert set(results) == {"hypercolumn_sparse/0", "hypercolumn_dense/0"}
    for stored in tmp_path.glob("runs/**/config.yaml"):
        assert OmegaConf.load(stored).model.net.backbone == "vgg11"


@pytest.mark.slow
def test_a_sweep_of_keys_takes_seeds_and_further_keys(tmp_path: Path) -> None:
    results = run_sweep(
        tmp_path,
        *["sweep=dfp_table1", "seed=0,1", "data.dataset.size=64", "data.short_side=null", "data.crop_size=48"],
        *["model.net.backbone=resnet18", "model.net.width=0.05", "trainer.max_epochs=1", "data.batch_size=2"],
        *["~callbacks.freeze_batch_norm"],
    )
    assert set(results) == {"dfp_resnet50/0", "dfp_resnet50/1"}
    depths = [OmegaConf.load(path).model.net.depth for path in tmp_path.glob("runs/dfp_resnet50/*/seed?/.hydra/*.yaml")]
    assert sorted(depths) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]


@pytest.mark.slow
def test_deconvnet_curriculum_runs_by_one_command(tmp_path: Path) -> None:
    """It makes its proposals, and the last stage changes the statistics of batch norm alone."""
    results = run_sweep(
        tmp_path,
        *[
            "sweep=deconvnet_curriculum",
            "data.dataset.size=96",
            "model.net.width=0.03",
            "data.squash=40",
            "data.crop_size=32",
        ],
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
        "segmod",
        "evaluate",
        f"run={run}",
        "inference=proposals",
        "inference.min_side=null",
    ]
    done = subprocess.run([*command, "inference.max_proposals=3", "trainer=cpu"], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done.stderr[-3000:]
    (scored,) = run.glob("evaluation/proposals-val*/metrics.json")
    assert json.loads(scored.read_text())["images"] == 2
