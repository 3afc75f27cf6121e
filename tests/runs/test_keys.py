"""Each config key is of one kind; the folder and the fingerprint of a run follow its recipe and nothing else."""

from functools import cache

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from segmod.runs import cli
from segmod.runs import folders as runs
from segmod.runs.keys import LONGEST, Kind, digest, flat, kind, kinds, readable

GROUPS = {
    group: sorted(path.stem for path in (cli.CONF_DIR / group).glob("*.yaml"))
    for group in ("model", "data", "trainer", "inference", "proposals", "crops", "loss", "optimizer", "scheduler")
}
WATCHED = ("callbacks=[early_stopping,ema,freeze_batch_norm]", "logger=[csv,wandb,tensorboard]")


@cache
def composed(command: str, *overrides: str) -> DictConfig:
    runs.register_resolvers()
    with initialize_config_dir(str(cli.CONF_DIR), version_base="1.3"):
        cfg = compose(command, overrides=list(overrides))
    cfg.run_dir = "unused"
    return OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))  # type: ignore[return-value]


@cache
def all_keys() -> set[str]:
    """Keys of enough configs for every option of every group to be met."""
    boxes = ("crops=proposals", "inference=proposals", "proposals=edgeboxes")
    times = range(max(map(len, GROUPS.values())))
    chosen = [[f"{group}={options[i % len(options)]}" for group, options in GROUPS.items()] for i in times]
    configs = [composed("benchmark", "name=x", *WATCHED, *overrides) for overrides in (boxes, *chosen)]
    return {key for cfg in configs for key, _ in flat(OmegaConf.to_container(cfg))}


def test_no_key_is_of_two_kinds() -> None:
    assert len(all_keys()) > 250
    assert [key for key in all_keys() if len(kinds(key)) > 1] == []


def test_these_keys_are_of_the_machine() -> None:
    found = {key for key in all_keys() if kind(key) is Kind.MACHINE}
    nested = {
        key
        for key in found
        if key.endswith(
            ("proposals.root", "proposals.dataset.root", "proposals.dataset.sbd_root", "fcn.root", "batch_size")
        )
    }  # of predictors, crops
    assert {"inference.proposals.root", "model.predictor.batch_size", "data.crops.proposals.root"} <= nested
    assert "data.batch_size" not in nested
    assert found - nested == {
        "runs", "run_dir", "overwrite",
        "what", "size", "batch", "device", "precision", "channels_last", "compile", "threads", "steps", "passes",
        "warmup", "rounds", "against", "output",
        "data.root", "data.dataset.root", "data.dataset.sbd_root", "data.num_workers", "data.download", "data.verify",
        "data.crops.cache_images",
        "trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy", "trainer.benchmark",
        "trainer.strategy._target_", "trainer.strategy.layer",
        "trainer.use_distributed_sampler", "trainer.default_root_dir",
        "callbacks.checkpoints.directory", "callbacks.checkpoints.every_n_steps",
    }  # fmt: skip


def test_a_run_may_be_trained_on() -> None:
    assert {key for key in all_keys() if kind(key) is Kind.LENGTH} == {"trainer.max_epochs", "trainer.max_steps"}


def test_these_keys_are_for_watching() -> None:
    found = {key for key in all_keys() if kind(key) is Kind.WATCHING}
    nodes = {".".join(key.split(".")[:2]) for key in found if not key.startswith("trainer.")}
    assert nodes == {
        "logger.csv", "logger.wandb", "logger.tensorboard",
        "callbacks.pictures", "callbacks.panels", "callbacks.lr_monitor", "callbacks.progress", "callbacks.lines",
        "callbacks.summary",
        "data.summary",
    }  # fmt: skip
    assert {key for key in found if key.startswith("trainer.")} == {
        "trainer.enable_progress_bar", "trainer.enable_model_summary", "trainer.log_every_n_steps",
        "trainer.num_sanity_val_steps", "trainer.profiler", "trainer.detect_anomaly",
    }  # fmt: skip


@pytest.mark.parametrize(
    "choices",
    [
        ("name=x", "data=voc", *WATCHED, "inference=proposals_crf"),
        ("experiment=deconvnet", "inference=ensemble_crf"),
        ("experiment=fcn8s", "data=voc_aug", "trainer=ddp"),
    ],
    ids=" ".join,
)
def test_folder_and_fingerprint_follow_the_recipe_alone(choices: tuple[str, ...]) -> None:
    cfg = composed("train", *choices)
    before = digest(cfg)
    for key, value in list(flat(OmegaConf.to_container(cfg))):
        if key.startswith("proposals."):  # count where they are used, under other keys
            continue
        is_recipe = kind(key) is Kind.RECIPE
        decides = is_recipe or kind(key) is Kind.LENGTH
        OmegaConf.update(cfg, key, 12345 if value != 12345 else 1, merge=False)
        assert (digest(cfg) != before) == decides, key
        OmegaConf.update(cfg, key, value, merge=False)
        if key not in ("name", "seed"):  # parts of the path of their own
            assert bool(readable([f"{key}=12345"], with_model_and_data=False)) == is_recipe, key
    assert digest(cfg) == before


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["trainer.limit_val_batches=9", "model.optimizer.lr=1e-3"], "lr-0.001+limit_val_batches-9"),
        (["trainer.max_steps=9", "trainer={max_epochs:2}", "model.optimizer.lr=1e-3"], "lr-0.001"),  # may grow
        (["model.net={kernel:7,connections:6}"], "connections-6+kernel-7"),
        (["+model.net.kernel=7", "++model.net.connections=6"], "connections-6+kernel-7"),
        (["model.net={connections:null}"], "connections-null"),
        # two that end alike
        (["model.side=5", "model.net.side=6", "model.loss.weight=1"], "weight-1+net.side-6+model.side-5"),
        # no path, no interpolation
        (["model.net.weights=/a b/vgg16-397.pth", "init_from=runs/a/seed0"], "init_from-seed0+weights-vgg16-397"),
        (["data.squash=${data.crop_size}", "x.y=${oc.env:X,/a}/b"], "squash-crop_size+y-b"),
        (["+data.scale=[0.5,2.0]", "~model.scheduler"], "scale-0.5_2.0+no-scheduler"),
        (["data.void_as_background=true", "optimizer=adam"], "void_as_background-true+optimizer-adam"),
        # the option of a group in a place of its own
        (["inference=crf", "inference@inference.predictor=multiscale"], "inference-crf+predictor-multiscale"),
        (["callbacks=[ema,early_stopping]"], "callbacks-ema_early_stopping"),
        (["trainer=debug"], "trainer-debug"),
        # of the machine, for watching, or said elsewhere
        (["trainer=gpu", "data.root=/data", "logger=wandb", "experiment=yim", "sweep=yim", "hydra.verbose=true"], ""),
        (["seed=1", "name=x", "trainer={devices:2,precision:16-mixed}"], "precision-16-mixed"),
    ],
)  # fmt: skip
def test_names_are_short_and_free_of_paths(overrides: list[str], name: str) -> None:
    assert readable(overrides, with_model_and_data=True) == name
    assert readable(overrides[::-1], with_model_and_data=True) == name


def test_long_names_are_cut_and_stay_apart() -> None:
    many = [f"model.net.key{i}={i}" for i in range(20)]
    names = {readable([*many, f"model.net.last={i}"], with_model_and_data=True) for i in range(3)}
    assert len(names) == 3
    assert {len(name) for name in names} == {LONGEST}
    assert all(name.startswith("key0-0+key1-1+key10-10+") for name in names)
    # the same choices in another order
    assert readable([*many[::-1], "model.net.last=0"], with_model_and_data=True) in names
    assert readable(many, with_model_and_data=True, longest=None).endswith("+key9-9")
