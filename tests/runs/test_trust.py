"""A run of a stranger stays data: what its config names is not imported, what it calls is not called."""

import json
import os
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import get_object
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

import segmod as package
from segmod.ground.errors import UserError
from segmod.runs.claim import own_run
from segmod.runs.cli import CONF_DIR
from segmod.runs.folders import Run, register_resolvers
from segmod.runs.records import read_score
from segmod.runs.stored import LARGEST, as_stored, followed
from segmod.runs.trained import TrainedRun
from segmod.runs.trust import SAFE, Trust

CHOICES = [
    f"{group}={path.stem}"
    for group in ("experiment", "model", "data", "inference", "proposals", "loss", "crops")
    for path in sorted((CONF_DIR / group).glob("*.yaml"))
    if (group, path.stem) not in (("model", "smp"), ("model", "transformers"))  # which call what is not segmod's
]
COMMANDS = {
    "predict": ("input=photo.png", "device=cpu"),
    "evaluate": ("trainer=cpu", "trainer.enable_progress_bar=false"),
    "study": ("study=skip_maps", "device=cpu"),
}
CALL = "os.makedirs"  # of the folder `pwned`, the sign that an attack came through
ATTACKS = {
    "net": ("model.net", {"_target_": CALL, "name": "pwned"}),
    "command": ("model.net", {"_target_": "torch.utils.collect_env.run", "command": "mkdir pwned"}),
    "loss": ("model.loss", {"_target_": "os.system", "command": "mkdir pwned"}),
    "module": ("model", {"_target_": CALL, "name": "pwned", "net": {}}),
    "argument": ("model.net.hidden", {"_target_": CALL, "name": "pwned"}),
    "list": ("model.net.taps", [[{"deep": {"_target_": CALL, "name": "pwned"}}]]),
    "predictor": ("inference", {"_target_": CALL, "name": "pwned"}),
    "boxes": (
        "inference.size",
        {"_target_": "segmod.data.proposals.BoxFiles", "folder": {"_target_": CALL, "name": "pwned"}},
    ),
    "short": ("inference", {"_target_": "x"}),
    "terminal": ("model.net", {"\x1b]0;x\x07": {"_target_": "\x1b[2J.x"}, "_target_": "segmod.nets.fcn.FCN"}),
    "refers": ("model.net", {"_target_": "${description}", "name": "pwned"}),
    "partly": ("model.net", {"_target_": "${description.first}.${description.last}", "name": "pwned"}),
    "attribute": ("model.net", {"_target_": "segmod.runs.claim.os.makedirs", "name": "pwned"}),
    "own": ("model.net", {"_target_": "segmod.runs.claim.clear", "run": None}),
    "hydra": ("model.net", {"_target_": "hydra.utils.call", "config": {"_target_": CALL, "name": "pwned"}}),
    "method": ("model.net", {"_target_": "hydra.utils.get_method", "path": "unheard.of"}),
    "positional": ("model.net", {"_target_": "segmod.nets.fcn.FCN", "_args_": [2, 8, "DEFAULT"]}),
    "unbuilt": ("model.net", {"_target_": "segmod.nets.fcn.FCN", "_recursive_": False, "num_classes": 2}),
    "import": ("model.net", {"_target_": "unheard.Of"}),
    "relative": ("model.net", {"_target_": ".os.system"}),
    "number": ("model.net", {"_target_": 3}),
    "nothing": ("model.net", {"_target_": None}),
    "many": ("model.net", {"_target_": ["os", "system"]}),
    "shell": ("model.net", {"_target_": "os.system; mkdir pwned"}),
    "kind": ("model.net", {"_target_": "segmod.data.proposals.TruthBoxes"}),
    "pickle": ("model.net", {"_target_": "torch.load", "f": "evil.pt", "weights_only": False}),
    "resolver": ("model.net.width", "${oc.create:{_target_:os.makedirs,name:pwned}}"),
    "decoded": ("model.net", "${oc.decode:'{_target_:os.makedirs,name:pwned}'}"),
    "environment": ("data.root", "${oc.env:SECRET}"),
    "joined": ("data.root", "${description.half}{oc.env:SECRET}"),
    "within": ("data.root", "${description.${oc.env:SECRET}}"),
    "run": ("data.root", "${segmod.find_run:x}"),
    "name": ("name", "${oc.env:SECRET}"),
    "loop": ("data.root", "${data.root}"),
    "path": ("name", "../../pwned"),
}


@cache
def composed(*overrides: str) -> Any:
    """The config of a training, resolved by no one yet."""
    register_resolvers()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        cfg = compose("train", overrides=list(overrides))
    cfg.name, cfg.run_dir = "stranger", "unused"
    return cfg


@pytest.fixture
def here(segmod: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unheard: None) -> Path:
    monkeypatch.setenv("SECRET", "s3cret")
    (tmp_path / "photo.png").write_bytes(b"")
    return tmp_path


@pytest.fixture
def unheard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module in the working directory that must never be imported."""
    monkeypatch.setattr("sys.path", [*sys.path])
    (tmp_path / "unheard.py").write_text("import os\n\nos.makedirs('pwned')\nOf = of = dict\n")
    yield
    sys.modules.pop("unheard", None)


def store(folder: Path, key: str = "", value: Any = None, **more: Any) -> Path:
    """A run whose config holds something else at a key, and a checkpoint that nothing can read."""
    raw: Any = as_stored(composed())
    raw["description"] = {"first": "os", "last": "makedirs", "half": "$", **more}
    if key == "model.net" and value == {"_target_": "${description}", "name": "pwned"}:
        raw["description"] = CALL
    node, parts = raw, key.split(".")
    for part in parts[:-1]:
        node = node[part]
    if key:
        node[parts[-1]] = value
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "config.yaml").write_text(json.dumps(raw))
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.ckpt").write_bytes(b"")
    return folder


def any_net() -> torch.nn.Module:
    net = torch.nn.Conv2d(3, 2, 1)
    net.num_classes = 2  # type: ignore[assignment]
    return net


@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_of_a_stranger_runs(attack: str, here: Path) -> None:
    store(here / "run", *ATTACKS[attack])
    before = sorted(here.rglob("*"))
    refused = []
    for part in ("predictor", "net", "module", "datamodule"):
        try:
            run = TrainedRun.open("run")
            if part == "module":
                run.net, run.predictor = any_net(), None  # type: ignore[assignment]
            getattr(run, part)
        except UserError as error:
            refused.append(str(error))
    told = [line for line in refused if "last.ckpt cannot be read as weights" not in line]
    assert told
    for line in told:
        assert "s3cret" not in line
        assert len(line) < 300 + len(str(here))
    assert sorted(here.rglob("*")) == before
    assert "unheard" not in sys.modules


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("attack", ["net", "short", "many", "environment", "terminal"])
def test_commands_tell_it_in_a_line_and_leave_nothing(
    attack: str, name: str, here: Path, segmod: Any, capfd: Any
) -> None:
    store(here / "run", *ATTACKS[attack])
    before = sorted(here.rglob("*"))
    assert segmod(name, "run=run", *COMMANDS[name]) == 1
    error = capfd.readouterr().err
    assert error.startswith("segmod: error: ")
    assert error.count("\n") == 1
    assert "s3cret" not in error
    assert "last.ckpt" not in error
    assert error[:-1].isprintable()
    assert sorted(here.rglob("*")) == before


def test_a_loss_is_refused_where_it_is_built(here: Path) -> None:
    store(here / "run", *ATTACKS["loss"])
    run = TrainedRun.open("run")
    run.net, run.predictor = any_net(), None  # type: ignore[assignment]
    with pytest.raises(
        UserError, match=r"^model\.loss\._target_=os\.system is not segmod's own, .* add trust=os\.system$"
    ):
        _ = run.module


def test_the_line_names_all_that_is_to_be_trusted(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store(here / "run", "data.dataset", {"_target_": "unheard.of"})
    raw = json.loads((here / "run/.hydra/config.yaml").read_text())
    raw["model"]["net"] = {"_target_": "unheard.Of", "num_classes": 3}
    (here / "run/.hydra/config.yaml").write_text(json.dumps(raw))
    with pytest.raises(UserError, match=r"add trust=\[unheard\.Of,unheard\.of\]$"):
        _ = package.open("run").net
    (here / "unheard.py").write_text(
        "import torch\n\n\ndef Of(num_classes):\n    return torch.nn.Linear(num_classes, 1)\n"
    )
    monkeypatch.syspath_prepend(here)
    for trust in ("unheard.Of", ["unheard.Of", "unheard.of"], "all"):
        run = TrainedRun.open("run", trust=trust)
        with pytest.raises(UserError, match=r"last\.ckpt cannot be read as weights"):  # so it was built
            _ = run.net


@pytest.mark.parametrize("trust", ["unet", "os.system()", 3, True, ["a.b", "c d.e"], "a..b"])
def test_trust_is_in_names(trust: Any, here: Path) -> None:
    store(here / "run")
    with pytest.raises(UserError, match=r"^trust=.*: give names such as trust=\[unet\.UNet\], or trust=all$"):
        TrainedRun.open("run", trust=trust)


def test_full_trust_takes_a_config_as_ones_own(here: Path) -> None:
    store(here / "run", "data.root", "${oc.env:SECRET}/voc")
    with pytest.raises(UserError, match=r"data\.root='\$\{oc\.env:SECRET\}/voc' calls a resolver: .* trust=all"):
        TrainedRun.open("run")
    assert TrainedRun.open("run", trust="all").config.data.root == "s3cret/voc"


@pytest.mark.parametrize("choice", CHOICES)
def test_what_segmod_stores_needs_no_trust(choice: str) -> None:
    folder = ["proposals.folder=x"] if choice == "proposals=file" else []
    cfg = composed(choice, *folder)
    config, left = followed(as_stored(cfg))
    assert not left
    for key in ("model", "data", "inference", "proposals"):
        plain: Any = OmegaConf.to_container(cfg[key], resolve=True)
        assert config[key] == plain
        node = {name: value for name, value in plain.items() if name not in ("optimizer", "scheduler", "crops")}
        assert Trust.of(()).admit(node, key, config).keys() >= node.keys()


@pytest.mark.parametrize(
    ("model", "names"),
    [
        ("smp", "segmentation_models_pytorch.Unet"),
        ("transformers", "transformers.SegformerForSemanticSegmentation,transformers.SegformerConfig"),
    ],
)
def test_a_net_of_another_library_is_the_users_to_trust(model: str, names: str) -> None:
    cfg = composed(f"model={model}", "model.net.num_classes=5")
    config, left = followed(as_stored(cfg))
    assert not left
    nodes = {"net": config["model"]["net"]}
    with pytest.raises(UserError, match=rf"trust=.*{names.split(',')[0]}"):
        Trust.of(()).admit(nodes, "model", config)
    assert Trust.of(names.split(",")).admit(nodes, "model", config) == nodes


def test_what_is_safe_is_there_and_is_what_it_is_called() -> None:
    for name in SAFE:
        found = get_object(name)
        assert callable(found)
        if name.startswith("segmod."):
            assert f"{found.__module__}.{found.__qualname__}" == name


PLAIN = st.one_of(st.none(), st.booleans(), st.integers(0, 9), st.text("ab._-", max_size=4))
NODES = st.recursive(
    PLAIN,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "size", "net"]), inner, max_size=3)
    ),
    max_leaves=8,
)
FORBIDDEN = st.sampled_from(
    ["unheard.Of", "os.system", "torch.load", "segmod.runs.claim.clear", "builtins.eval", "unheard", ""]
)


@settings(max_examples=60, deadline=None)
@given(
    around=st.lists(st.tuples(st.booleans(), NODES), max_size=5),
    target=FORBIDDEN,
    rest=NODES,
    safe=st.sampled_from(sorted(SAFE)),
)
def test_a_forbidden_name_is_refused_wherever_it_stands(around: list[Any], target: str, rest: Any, safe: str) -> None:
    node: Any = {"_target_": target, "argument": rest}
    for in_list, beside in around:
        node = [beside, node] if in_list else {"beside": beside, "_target_": safe, "node": node}
    run = TrainedRun(Run(Path("nowhere")), OmegaConf.create({"model": {"net": {"x": node}}, "data": {"x": node}}))
    for build in ("net", "datamodule"):
        with pytest.raises(UserError, match="_target_="):
            getattr(run, build)
    assert "unheard" not in sys.modules


# -- references and bounds -------------------------------------------------------------------------------------------


def test_references_are_followed_as_omegaconf_does() -> None:
    raw = {
        "a": {"b": [1, {"c": "x"}], "d": "${a.b}", "e": "${.f}", "f": None, "g": "${..h}-${a.b[0]}"},
        "h": "${a.d[1].c}",
        "i": {"j": "${a}", "k": "${.j.d.1.c}"},
    }
    assert followed(raw) == (OmegaConf.to_container(OmegaConf.create(raw), resolve=True), {})


def test_the_folders_of_data_and_boxes_follow_the_environment(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store(here / "run")
    assert TrainedRun.open("run").config.data.root == os.environ.get("SEGMOD_DATA", "data")
    monkeypatch.setenv("SEGMOD_DATA", "elsewhere/${oc.env:SECRET}")
    assert TrainedRun.open("run").config.data.root == "elsewhere/$ {oc.env:SECRET}"


def large(kind: str) -> str:
    if kind == "bytes":
        return "a: " + "x" * LARGEST
    if kind == "aliases":
        return "\n".join(["a0: &a0 [x, x]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60))])
    if kind == "references":
        return "\n".join(["a0: xxxxxxxx", *(f"a{i}: ${{a{i - 1}}}${{a{i - 1}}}" for i in range(1, 60))])
    if kind == "nodes":
        return "\n".join(["a0: [x, x]", *(f"a{i}: ['${{a{i - 1}}}', '${{a{i - 1}}}']" for i in range(1, 60))])
    return {
        "nested": "a: " + "[" * 5000 + "]" * 5000,
        "circle": "a: ${b}\nb: ${a}",
        "object": "!!python/object/apply:os.makedirs [pwned]",
        "list": "[1, 2]",
        "bytes that are no text": "\udcff\udcfe",
        "word": "word",
        "torn": "a: ${b",
        "empty": "",
    }[kind]


KINDS = (
    "bytes", "aliases", "references", "nodes", "nested", "circle", "object", "list", "bytes that are no text", "word",
    "torn",
)  # fmt: skip


@pytest.mark.parametrize("kind", [*KINDS, "empty"])
def test_a_config_that_is_none_is_refused_at_once(kind: str, here: Path) -> None:
    run = Run(store(here / "run"))
    run.config_file.write_bytes(large(kind).encode(errors="surrogateescape"))
    started = time.process_time()
    if kind not in ("empty", "word"):
        with pytest.raises(UserError, match=r"config\.yaml: "):
            run.config()
    with pytest.raises(UserError, match=r"config\.yaml: |run=.*: its config has no data or no model\.net"):
        TrainedRun.open(run.directory)
    assert time.process_time() - started < 20
    assert not (here / "pwned").exists()


# -- what is read and written ------------------------------------------------------------------------------------------


def test_tables_call_nothing_and_copy_no_secret(here: Path, segmod: Any, capfd: Any) -> None:
    run = store(here / "runs" / "x" / "seed0", "name", "${oc.env:SECRET}")
    raw = json.loads((run / ".hydra/config.yaml").read_text())
    raw["model"]["net"] = {"_target_": CALL, "name": "${oc.env:SECRET}"}
    (run / ".hydra/config.yaml").write_text(json.dumps(raw))
    record = {"name": "x", "metrics": {"val/miou": 0.5}, "iou": {}, "split": "val", "data": "D", "inference": "dense"}
    (run / "metrics.json").write_text(json.dumps(record))
    assert read_score(run / "metrics.json").net == {"_target_": CALL, "name": "$ {oc.env:SECRET}"}
    assert segmod("tables", "table=runs") == 0
    assert "s3cret" not in "".join(capfd.readouterr())
    assert not any(b"s3cret" in path.read_bytes() for path in here.rglob("*") if path.is_file())


def test_a_training_stores_values_in_place_of_calls_and_no_secret(here: Path) -> None:
    cfg = composed().copy()
    OmegaConf.set_struct(cfg, False)
    cfg.data.root = "${oc.env:SECRET}/voc"
    cfg.callbacks.mine = {"_target_": "mine.Alarm", "token": "${oc.env:SECRET}"}
    raw = as_stored(cfg)
    assert raw["data"]["root"] == "s3cret/voc"
    assert raw["callbacks"]["mine"]["token"] == "${oc.env:SECRET}"
    cfg.overwrite, cfg.run_dir = False, str(here / "run")
    store(here / "run")
    (here / "run/.hydra/config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(raw)))
    assert TrainedRun.open("run").config.data.root == "s3cret/voc"
    assert own_run(cfg).directory == here / "run"  # the same config goes on


BOXES = {"_target_": "segmod.inference.proposals.ProposalPredictor", "proposals": "${proposals}"}


@pytest.mark.parametrize(
    ("stored", "asked", "keeps"),
    [("proposals", None, True), ("/victim", None, False), ("/victim", {"root": "mine"}, True), ("../x", {}, False)],
)
def test_boxes_are_stored_where_the_user_says_alone(stored: str, asked: Any, keeps: bool, here: Path) -> None:
    store(here / "run", "proposals.root", stored)
    run = TrainedRun.open("run", inference=BOXES, proposals=asked)
    assert run.predictor.proposals.keep is keeps  # type: ignore[attr-defined]
    root = (asked or {}).get("root", stored)
    assert run.predictor.proposals.folder.parent == Path(root)  # type: ignore[attr-defined]


def test_boxes_of_a_hidden_source_are_not_stored_either(here: Path) -> None:
    hidden = {"_target_": "segmod.data.edgeboxes.EdgeBoxes", "root": "/victim", "keep": True}
    store(here / "run", "inference", {**BOXES, "proposals": hidden})
    for more in ({}, {"proposals": {"_target_": "segmod.data.edgeboxes.EdgeBoxes"}}, {"data": {"root": "/victim"}}):
        assert not TrainedRun.open("run", **more).predictor.proposals.keep  # type: ignore[arg-type,attr-defined]


def test_no_net_fetches_its_weights(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", lambda *_, **__: pytest.fail("asks for weights"))
    net = {"_target_": "segmod.nets.fcn.FCN", "num_classes": 2, "weights": "DEFAULT", "width": 0.01}
    store(here / "run", "inference.size", {"hidden": net})
    _ = TrainedRun.open("run").predictor


def test_members_are_trusted_as_the_run_that_names_them(here: Path) -> None:
    store(here / "runs/evil", *ATTACKS["net"])
    member = {"_target_": "segmod.runs.trained.member", "run": "evil", "trust": "all"}
    ensemble = {"_target_": "segmod.inference.ensemble.EnsemblePredictor", "other": member}
    store(here / "runs/good", "inference", ensemble)
    with pytest.raises(UserError, match=r"takes no such argument"):  # nobody vouches for himself
        _ = TrainedRun.open("good").predictor
    del member["trust"]
    store(here / "runs/better", "inference", ensemble)
    with pytest.raises(UserError, match=r"add trust=os\.makedirs$"):
        _ = TrainedRun.open("better").predictor
    assert not (here / "pwned").exists()
    with pytest.raises(UserError, match=r"model\.net gives a NoneType"):
        _ = TrainedRun.open("better", trust=CALL).predictor
    assert (here / "pwned").exists()
    member["run"] = "itself"
    store(here / "runs/itself", "inference", ensemble)
    with pytest.raises(UserError, match=r"itself is a member of its own ensemble; name another run$"):
        _ = TrainedRun.open("itself").predictor


def test_results_do_not_follow_links_or_names_out_of_the_run(here: Path, segmod: Any, capfd: Any) -> None:
    run = store(here / "run")
    (here / "victim" / "results").mkdir(parents=True)
    (run / "evaluation").mkdir()
    (run / "evaluation" / "dense-val").symlink_to(here / "victim")
    assert segmod("evaluate", "run=run", "submission=true", *COMMANDS["evaluate"]) == 1
    assert "evaluation/dense-val: is a link, and results would go where it leads" in capfd.readouterr().err
    store(here / "other", "data.val_split", "../../../victim")
    for command in ("evaluate", "study"):
        assert segmod(command, "run=other", *COMMANDS[command]) == 1
        assert "can be no file's name" in capfd.readouterr().err
    assert sorted(path.name for path in (here / "victim").rglob("*")) == ["results"]
