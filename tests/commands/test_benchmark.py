"""What a model costs: counts by hand, trials in processes of their own, and sweeps whose jobs take turns."""

import ast
import csv
import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from segmod import measure
from segmod.runs import trial

CPU = torch.device("cpu")
# one small net; what is measured must not take long
QUICK = ("size=32", "batch=2", "steps=1", "passes=2", "warmup=0", "threads=1")
SETTINGS = {
    "device": "cpu", "batch": 2, "size": [32, 32], "precision": "32-true", "steps": 1, "passes": 1, "warmup": 0,
    "threads": 1, "gradient_clip_val": None, "what": ["train", "test", "memory", "flops"],
}  # fmt: skip
MODEL = {
    "_target_": "segmod.training.module.SegmentationModule",
    "net": {
        "_target_": "segmod.nets.hypercolumn.Hypercolumn",
        "num_classes": 3,
        "backbone": "tiny",
        "taps": ["features.1", "features.13"],
        "width": 0.1,
        "hidden": 4,
        "freeze_backbone": False,
    },
    "loss": {"_target_": "torch.nn.CrossEntropyLoss", "ignore_index": 255},
    "optimizer": {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1},
}


def test_operations_of_a_convolution() -> None:
    net = nn.Conv2d(3, 8, 3, padding=1)
    image = torch.zeros(2, 3, 10, 20)
    # 2 images of 10 x 20 outputs, 8 channels, each of 3 * 9 multiply-adds, two operations a multiply-add
    forward = 2 * (2 * 10 * 20 * 8 * 27)
    assert measure.flops(lambda: net(image)) == forward
    # backward: the gradient of the weights takes as much again; the image wants none
    assert measure.flops(lambda: net(image).sum().backward()) == 2 * forward
    # the same without numbers
    assert measure.flops(lambda: net.to("meta")(image.to("meta"))) == forward


def test_saved_bytes_are_those_of_the_hand_sum() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True), nn.BatchNorm2d(4))
    image = torch.zeros(2, 3, 8, 8)

    def loss() -> torch.Tensor:
        features = net(image)
        return (features * features).sum()

    pixels = 2 * 8 * 8
    # the convolution keeps the image; ReLU (in place) and batch norm the same 4 maps, once; batch norm the mean and
    # deviation of 4 channels; the product its factor, once. Weights and running statistics do not count.
    expected = 4 * (3 * pixels + 4 * pixels + 4 * pixels + 2 * 4)
    assert measure.saved_bytes(loss, net) == expected
    net.to("meta")
    image = image.to("meta")
    assert measure.saved_bytes(loss, net) == expected


def test_parameters_trained_and_not() -> None:
    net = nn.Conv2d(3, 4, 1)
    net.bias.requires_grad_(False)
    assert measure.parameters(net) == {"parameters": 16, "trainable_parameters": 12}


def test_spread_is_over_all_rounds() -> None:
    found = measure.spread([[4.0, 1.0], [3.0, 2.0]])
    # of 1 2 3 4: quartiles a quarter, half and three quarters of the way from 1 to 4
    assert (found["q1"], found["median"], found["q3"]) == (1.75, 2.5, 3.25)
    assert (found["min"], found["max"], found["mean"], found["count"]) == (1.0, 4.0, 2.5, 4)
    assert measure.spread([[7.0]])["q1"] == 7.0


def test_a_slow_round_does_not_spoil_the_ratio() -> None:
    # the machine is ten times slower in the second round; the ratio is 1/2 in both
    assert measure.ratio_of_rounds([[1.0, 1.0], [10.0]], [[2.0], [20.0, 20.0]]) == 0.5


def test_peak_memory_is_of_what_comes_after() -> None:
    """In a process of its own: here, the tensor might lie in memory that an earlier test has freed."""
    code = (
        "import torch\n"
        "from segmod import measure\n"
        "before = torch.ones(64 * 2**18)\n"  # 64 MiB that are gone again
        "del before\n"
        "peak = measure.PeakMemory(torch.device('cpu'))\n"
        "kept = torch.ones(32 * 2**18)\n"
        "print(*peak.read().items())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    name, value = ast.literal_eval(done.stdout)
    assert name == "memory_bytes"
    assert 32 * 2**20 <= value + 2**20 < 48 * 2**20  # pages may have been there


def test_warm_up_is_not_counted() -> None:
    calls: list[int] = []
    assert len(measure.timed(lambda: calls.append(1), CPU, passes=3, warmup=2)) == 3
    assert len(calls) == 5


def test_works_take_turns_and_the_fastest_run_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    # wall seconds of each run, in their order: a warms up for no time that counts; then a b b a, a b b a
    runs = iter([5.0, 7.0, 8.0, 3.0, 4.0, 6.0, 9.0, 2.0])
    clock = {"wall": 0.0, "cpu": 0.0}

    def work(name: str) -> None:
        calls.append(name)
        if len(calls) > 2:
            seconds = next(runs)
            clock["wall"] += seconds
            clock["cpu"] += seconds / 2

    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock["wall"])
    monkeypatch.setattr(measure.time, "process_time", lambda: clock["cpu"])
    best = measure.in_turns({name: partial(work, name) for name in "ab"}, rounds=2)
    assert "".join(calls) == "ab" + "abba" * 2
    assert best == {"a": (2.0, 1.0), "b": (6.0, 3.0)}  # a: 5, 3, 4, 2; b: 7, 8, 6, 9


def test_peak_memory_of_a_work_in_a_process_of_its_own() -> None:
    # prepared is the call torch.ones(32 * 2**18), of 4 bytes each: 32 MiB; pages may have been there
    assert 32 * 2**20 <= measure.peak_of(partial, torch.ones, 32 * 2**18) + 2**20 < 48 * 2**20


def test_a_training_trial_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    from segmod.training.module import SegmentationModule

    modules = []
    first = SegmentationModule.configure_optimizers

    def noted(self: Any) -> Any:
        modules.append((self, self.net.score.weight.detach().clone()))
        return first(self)

    monkeypatch.setattr(SegmentationModule, "configure_optimizers", noted)
    found = trial.perform("train", MODEL, {**SETTINGS, "steps": 2, "warmup": 1})
    assert len(found["time_s"]) == len(found["cpu_s"]) == 2
    assert found["memory_bytes"] > 0
    ((module, before),) = modules
    assert module.global_step == 3  # the warm-up step and the two
    assert not torch.equal(module.net.score.weight, before)


def test_counts_need_no_computation(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("this would take long")

    monkeypatch.setattr(trial, "train", refused)
    found = trial.perform("count", MODEL, {**SETTINGS, "batch": 1000, "size": [4096, 4096]})["values"]
    assert found["forward_flops"] > 1e12  # more than this machine does in a second
    assert found["forward_macs"] == found["forward_flops"] // 2
    assert found["train_flops"] > 2 * found["forward_flops"]


def test_half_precision_saves_less() -> None:
    # autocast: the convolutions keep their inputs in half as many bytes
    full, half = (
        trial.perform("count", MODEL, {**SETTINGS, "precision": name})["values"]["saved_activation_bytes"]
        for name in ("32-true", "bf16-mixed")
    )
    assert half < full


def test_a_process_of_its_own_answers_and_tells_mistakes() -> None:
    here = trial.perform("count", MODEL, SETTINGS)
    assert trial.run("count", MODEL, SETTINGS) == here
    with pytest.raises(trial.UserError, match=r"model\.net\.hidden='many' has the wrong type"):
        trial.run("count", {**MODEL, "net": {**MODEL["net"], "hidden": "many"}}, SETTINGS)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """Trials are made in this process, to save time; what they were is noted."""
    made: list[tuple[str, Any]] = []

    def run(kind: str, model: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
        made.append((kind, model["net"].get("hidden")))
        return trial.perform(kind, model, settings)

    monkeypatch.setattr(trial, "run", run)
    return made


def test_one_model(segmod: Any, small: Any, here: Any, capfd: Any) -> None:
    assert segmod("benchmark", *small, *QUICK) == 0
    (path,) = Path("runs").rglob("benchmark.json")
    assert path.parts[-3:-1] == ("benchmark", "cpu-2x32x32-32-true-threads_1")
    found = json.loads(path.read_text())
    assert {
        "name", "settings", "net", "values", "train", "test", "ratios", "reported", "versions", "hardware",
        "git_commit", "command", "model",
    } <= set(found)  # fmt: skip
    assert set(found["values"]) == {
        "parameters", "trainable_parameters", "forward_flops", "forward_macs", "train_flops", "saved_activation_bytes",
        "train_memory_bytes", "test_memory_bytes", "train_time_s", "train_cpu_s", "test_time_s", "test_cpu_s",
    }  # fmt: skip
    assert found["settings"]["size"] == [32, 32]
    assert found["test"]["time_s"]["count"] == 2
    assert found["ratios"] is None
    assert here == [("count", 8), ("train", 8), ("test", 8)]
    printed = capfd.readouterr().out
    assert "training step (s)" in printed
    assert str(path) in printed


def test_jobs_of_a_sweep_take_turns(segmod: Any, small: Any, here: Any) -> None:
    small = [word for word in small if "hidden" not in word]
    assert segmod("benchmark", "-m", *small, *QUICK, "model.net.hidden=4,8", "rounds=2") == 0
    turns = [("train", 4), ("train", 8), ("test", 4), ("test", 8)]
    assert here == [("count", 4), ("count", 8), *turns, *turns]
    found = [json.loads(path.read_text()) for path in Path("runs").rglob("benchmark.json")]
    first, second = sorted(found, key=lambda job: job["net"]["hidden"])
    assert first["ratios"]["against"] == second["ratios"]["against"]
    assert set(first["ratios"].values()) - {first["ratios"]["against"]} == {1.0}
    for key in ("parameters", "train_flops", "saved_activation_bytes"):
        assert second["ratios"][key] == pytest.approx(second["values"][key] / first["values"][key])
        assert second["ratios"][key] > 1
    assert len(second["train"]["rounds"]["time_s"]) == 2

    (table,) = Path("runs/benchmark").glob("*.csv")
    with table.open() as file:
        records = [r for r in csv.DictReader(file) if r["quantity"] == "parameters"]
    assert [float(r["value"]) for r in records] == [first["values"]["parameters"], second["values"]["parameters"]]
    assert {path.name.rpartition("-")[2] for path in Path("runs/benchmark").glob("*.png")} == {"time.png", "memory.png"}
    assert not Path("runs/jobs").exists()  # its table says all, and stands alone


@pytest.mark.slow
def test_a_sweep_of_training_with_its_papers_ratios(segmod: Any, here: Any) -> None:
    small_nets = "model.net.backbone=resnet18", "model.net.width=0.1"
    assert segmod("benchmark", "sweep=dfp_table1", *small_nets, "what=[flops]", "size=64", "batch=2") == 0
    assert [kind for kind, _ in here] == ["count"] * 6
    (table,) = Path("runs/benchmark").glob("dfp_table1*.csv")
    with table.open() as file:
        ratios = [float(r["ratio"]) for r in csv.DictReader(file) if r["quantity"] == "forward_flops"]
    assert ratios[0] == 1.0
    assert ratios == sorted(ratios)
    assert 1.7 < ratios[5] < 1.9  # the trunk on areas of 1 + 0.75^2 + 0.5^2 = 1.81, the last layer on one


def test_jobs_are_called_by_what_tells_them_apart() -> None:
    from segmod.commands.benchmark import Job, label_jobs

    def labels(*places: tuple[str, str, int]) -> list[str]:
        jobs = [
            Job(name, Path("runs", name), {}, {**SETTINGS, "batch": batch}, ["flops"], {}, {}, overrides)
            for name, overrides, batch in places
        ]
        label_jobs(jobs)
        return [job.label for job in jobs]

    assert labels(("a", "lr-1+width-2", 1)) == ["a"]
    assert labels(("a", "", 1), ("b", "", 2)) == ["a", "b"]
    assert labels(("a", "lr-1+width-2", 1), ("a", "lr-1+width-4", 1)) == ["width-2", "width-4"]
    assert labels(("a", "lr-1", 1), ("a", "lr-1", 2)) == ["cpu-1x32x32-32-true-flops", "cpu-2x32x32-32-true-flops"]
    with pytest.raises(trial.UserError, match="two jobs of this sweep are both a cpu-1x32x32"):
        labels(("a", "lr-1", 1), ("a", "lr-1", 1))


def test_the_papers_ratio_is_that_of_its_numbers() -> None:
    from segmod.commands.benchmark import Job, paper_ratio

    def job(seconds: float | None) -> Job:
        facts = {"reported": {"test_time_s": seconds} if seconds else {}}
        return Job("name", Path("runs/name"), {}, SETTINGS, [], facts, {})

    assert paper_ratio(job(0.098), job(0.05), "test_time_s") == pytest.approx(1.96)
    assert paper_ratio(job(None), job(0.05), "test_time_s") is None


def test_memory_alone_takes_two_steps(segmod: Any, small: Any, here: Any) -> None:
    assert segmod("benchmark", *small, *QUICK, "what=[memory]") == 0
    assert here == [("count", 8), ("train", 8)]
    (path,) = Path("runs").rglob("benchmark.json")
    found = json.loads(path.read_text())
    assert "train_memory_bytes" in found["values"]
    assert "train_time_s" not in found["values"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["what=[trian]"], "what=['trian']: choose some of [train,test,memory,flops]"),
        (["size=0"], "size=0: give a whole number, from 1 to 16384, or a list of 2, each"),
        (["size=[32]"], "size=[32]: give a whole number, from 1 to 16384, or a list of 2, each"),
        (["batch=two"], "batch='two' has the wrong type: give a whole number, 1 or more"),
        (["precision=fp8"], "precision=fp8: choose one of 32-true, bf16-mixed, 16-mixed"),
        (["precision=16-mixed"], "precision=16-mixed needs a GPU"),
        (["device=cuda:99"], "device=cuda:99: this machine has"),
        (["device=gpu"], "device=gpu: choose one of auto, cpu, cuda"),
        (["compile=maybe"], "compile='maybe' has the wrong type: give true or false"),
        (["rounds=0"], "rounds=0: give a whole number, 1 or more"),
        (["sizes=3"], "no config key 'sizes': did you mean size?"),
        (["size=null", "data.crop_size=null"], "size is required"),
        (["model=hypercolumn_squeezenet", "size=4"], "size=4x4: the net refuses images of this size"),
        (["experiment=hypercolumn_sparse"], "HypercolumnSparse trains on something else than images"),
        (["-m", "seed=0,1"], "two jobs of this sweep are both"),
        (["-m", "size=32,64", "against=x"], "against=x: no such job; choose one of"),
    ],
)
def test_mistakes(overrides: list[str], message: str, segmod: Any, here: Any, capfd: Any) -> None:
    sweep, rest = overrides[:1] * (overrides[0] == "-m"), [word for word in overrides if word != "-m"]
    assert segmod("benchmark", *sweep, "batch=1", "size=32", *rest) == 1
    error = capfd.readouterr().err
    (line,) = [line for line in error.splitlines() if line.startswith("segmod: error: ")]
    assert message in line
    assert not list(Path().rglob("benchmark.json"))
