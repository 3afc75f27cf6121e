"""The papers' tables, made from run directories written by hand."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from segmod.commands.tables import footnotes, layout
from segmod.runs import cli
from segmod.runs.results import collect, collect_benchmarks, over_epochs
from segmod.runs.rows import Column, make_rows

MIOU = [Column("miou", "mIoU")]
FCN32S = {
    "table": "fcn",
    "row": "FCN-32s",
    "order": 1,
    "scored_on": {"data": "VOC2011", "split": "seg11valid", "images": 736},
    "metrics": {"miou": 0.636},
    "source": "the paper",
}


def write_run(
    root: Path,
    where: str,
    miou: float | None,
    *,
    split: str = "seg11valid",
    reported: Any = (FCN32S,),
    evaluation: str = "",
    **facts: Any,
) -> Path:
    """A finished run at ``root/where``, or an evaluation of it."""
    run = root / where
    (run / ".hydra").mkdir(parents=True, exist_ok=True)
    data = {"_target_": "segmod.training.voc.VOCDataModule", "year": 2012, "val_split": "seg11valid"}
    cfg = {"data": data, "inference": {"_target_": "segmod.inference.dense.DensePredictor"}}
    (run / ".hydra" / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(cfg)))
    directory = run / "evaluation" / evaluation if evaluation else run
    directory.mkdir(parents=True, exist_ok=True)
    contents = {
        "metrics": {"val/miou": miou, "val/pixel_acc": 0.9},
        "iou": {"background": 0.8, "cat": None},
        "name": where.split("/")[0],
        "split": split,
        "reported": list(reported),
        **facts,
    }
    (directory / "metrics.json").write_text(json.dumps(contents))
    return directory


def rows_of(root: Path, table: str = "fcn", columns: list[Column] = MIOU, **definition: Any) -> dict[str, list[str]]:
    """Lines of a table by their label."""
    return {line[0]: line[1:] for line in layout(columns, make_rows(table, definition, columns, collect(root)))[1:]}


def test_seeds_are_averaged_and_compared_in_points(tmp_path: Path) -> None:
    write_run(tmp_path, "fcn32s/seed0", 0.60)
    write_run(tmp_path, "fcn32s/seed1", 0.64)
    # mean of 60 and 64 is 62; their sample deviation sqrt((2^2 + 2^2) / 1) = 2.83; 62 - 63.6 = -1.6
    assert rows_of(tmp_path)["FCN-32s"] == ["2", "VOC2012 seg11valid", "62.0 ± 2.8", "63.6", "-1.6"]


def test_settings_are_rows_of_their_own(tmp_path: Path) -> None:
    write_run(tmp_path, "fcn32s/seed0", 0.60)
    write_run(tmp_path, "fcn32s/lr-0.1/seed0", 0.10)
    rows = rows_of(tmp_path)
    assert rows["FCN-32s"][2] == "60.0"
    assert rows["FCN-32s [lr-0.1]"][2] == "10.0"
    # also where the folder of the runs is given one floor too low
    rows = rows_of(tmp_path / "fcn32s")
    assert [rows["FCN-32s"][2], rows["FCN-32s [lr-0.1]"][2]] == ["60.0", "10.0"]


def test_other_images_than_the_papers_are_marked(tmp_path: Path) -> None:
    write_run(tmp_path, "fcn32s/seed0", 0.60, images=736)
    write_run(tmp_path, "fcn32s/seed0", 0.50, evaluation="dense-val", split="val", images=445, inference="dense")
    rows = make_rows("fcn", {}, MIOU, collect(tmp_path))
    assert {row.label: row.comparable() for row in rows if row.scores} == {
        "FCN-32s": True,
        "FCN-32s [dense-val]": False,
    }
    # 50 - 63.6 = -13.6
    assert rows_of(tmp_path)["FCN-32s [dense-val]"] == ["1", "VOC2012 val, 445 images", "50.0", "63.6", "-13.6 †"]


def test_fewer_images_of_the_same_split_are_marked(tmp_path: Path) -> None:
    write_run(tmp_path, "fcn32s/seed0", 0.60, images=100)
    assert rows_of(tmp_path)["FCN-32s"][-1] == "-3.6 †"


def test_an_evaluation_that_repeats_the_run_adds_no_row(tmp_path: Path) -> None:
    write_run(tmp_path, "fcn32s/seed0", 0.60)
    write_run(tmp_path, "fcn32s/seed0", 0.60, evaluation="dense-seg11valid", inference="dense")
    write_run(tmp_path, "fcn32s/seed0", 0.62, evaluation="multiscale-seg11valid", inference="multiscale")
    labels = [label for label in rows_of(tmp_path) if label.startswith("FCN-32s") and "summed" not in label]
    assert labels == ["FCN-32s", "FCN-32s [multiscale-seg11valid]"]


def test_a_row_of_another_inference_takes_only_its_evaluations(tmp_path: Path) -> None:
    plain = {"table": "t", "row": "Net", "order": 1, "metrics": {"miou": 0.5}}
    crf = {"table": "t", "row": "Net+CRF", "order": 2, "metrics": {"miou": 0.6}, "inference": "crf"}
    write_run(tmp_path, "net/seed0", 0.50, reported=[plain, crf])
    write_run(tmp_path, "net/seed0", 0.55, reported=[plain, crf], evaluation="crf-seg11valid", inference="crf")
    assert rows_of(tmp_path, "t") == {
        "Net": ["1", "VOC2012 seg11valid", "50.0", "50.0", "+0.0"],
        "Net+CRF [crf-seg11valid]": ["1", "VOC2012 seg11valid", "55.0", "60.0", "-5.0"],
    }


def test_rows_of_deconvnet_are_made_by_training_and_then_scoring_whole_images(tmp_path: Path) -> None:
    """Their commands name the folders that training with the table's data makes; scores of crops are in no row."""
    definition = {"overrides": "data=voc_aug"}
    commands = {row.label: row.command for row in make_rows("deconvnet_table1", definition, MIOU, [])}
    train = "segmod-train sweep=deconvnet_curriculum data=voc_aug"
    score = "segmod-evaluate run=runs/deconvnet/data-voc_aug/seed0"
    assert commands["FCN8s"] == "segmod-train experiment=fcn8s data=voc_aug"
    assert commands["DeconvNet+CRF"] == f"{train} && {score} inference=proposals_crf"
    with_fcn = f"{train} && segmod-train sweep=fcn_staged data=voc_aug && {score}"
    assert commands["EDeconvNet"] == f"{with_fcn} inference=ensemble"

    reported = OmegaConf.to_container(OmegaConf.load(cli.CONF_DIR / "experiment" / "deconvnet.yaml").reported)
    where = "deconvnet/data-voc_aug/seed0"
    write_run(tmp_path, where, 0.9, reported=reported, split="val crops", images=1000)
    for inference, miou in {"proposals": 0.5, "ensemble": 0.6, "dense": 0.2}.items():
        write_run(
            tmp_path, where, miou, reported=reported, evaluation=f"{inference}-val", split="val", inference=inference
        )
    ours = {label: line[2] for label, line in rows_of(tmp_path, "deconvnet_table1").items() if line[0]}
    assert ours == {
        "DeconvNet [data-voc_aug, proposals-val]": "50.0",
        "EDeconvNet [data-voc_aug, ensemble-val]": "60.0",
    }


def test_one_experiment_may_have_two_rows_of_a_table(tmp_path: Path) -> None:
    """The run that both rows are of stands in both; where it was scored on other images, that is marked."""
    reported = OmegaConf.to_container(OmegaConf.load(cli.CONF_DIR / "experiment" / "fcn8s_caffe.yaml").reported)
    write_run(tmp_path, "fcn8s_caffe/seed0", 0.660, reported=reported, images=736)
    rows = rows_of(tmp_path)
    # 66.0 - 65.5 = +0.5 and 66.0 - 67.2 = -1.2
    assert rows["FCN-8s, summed loss"] == ["1", "VOC2012 seg11valid, 736 images", "66.0", "65.5", "+0.5"]
    assert rows["FCN-8s, summed loss, on test"] == ["1", "VOC2012 seg11valid, 736 images", "66.0", "67.2", "-1.2 †"]


def test_units_and_curves(tmp_path: Path) -> None:
    # two epochs and the final scoring of the best checkpoint, which is no epoch: mean (0.2 + 0.4) / 2, maximum 0.4
    curves = "step,epoch,train/loss,val/miou\n0,0,3.0,\n1,0,,0.2\n2,1,2.0,0.4\n3,2,,0.4\n"
    entry = {
        "table": "t",
        "row": "depth 5",
        "metrics": {"max_over_epochs/miou": 0.5, "peak_memory_bytes": 4677 * 2**20, "test_time_s": 0.098},
    }
    run = write_run(tmp_path, "dfp/seed0", 0.4, reported=[entry], peak_memory_bytes=4000 * 2**20, test_time_s=0.1)
    (run / "metrics.csv").write_text(curves)
    columns = [
        Column("mean_over_epochs/miou", "mean"),
        Column("max_over_epochs/miou", "best"),
        Column("peak_memory_bytes", "memory", "MiB"),
        Column("test_time_s", "time", "s"),
    ]
    (line,) = rows_of(tmp_path, "t", columns).values()
    assert line[2:] == ["30.0", "40.0", "50.0", "-10.0", "4000", "4677", "-677", "0.100", "0.098", "+0.002"]
    assert over_epochs(tmp_path / "absent.csv") == {}


def test_wide_tables_stack_ours_paper_and_difference(tmp_path: Path) -> None:
    names = ["background", "cat", "a", "b", "c"]
    entry = {"table": "t", "row": "Net", "metrics": {"iou/background": 0.7}}
    write_run(tmp_path, "net/seed0", 0.4, reported=[entry])
    columns = [Column(f"iou/{name}", name) for name in names]
    lines = layout(columns, make_rows("t", {}, columns, collect(tmp_path)))[1:]
    dash = "\N{EN DASH}"
    assert [line[0] for line in lines] == ["Net"] * 3
    assert [line[3:] for line in lines] == [
        ["ours", "80.0", dash, dash, dash, dash],  # IoU of cat is null in the file
        ["paper", "70.0", dash, dash, dash, dash],
        ["difference", "+10.0", dash, dash, dash, dash],
    ]


def test_time_and_memory_come_from_the_benchmark_of_the_same_net(tmp_path: Path) -> None:
    def write_benchmark(name: str, depth: int, batch: int, seconds: float) -> None:
        folder = tmp_path / name / "benchmark" / f"cpu-{batch}"
        folder.mkdir(parents=True)
        reported = [{"table": "dfp", "row": name, "order": depth, "metrics": {"test_time_s": 0.05}}]
        contents = {
            "name": name, "settings": {"device": "cpu", "batch": batch, "threads": 1, "size": [64, 64]},
            "net": {"_target_": "Net", "depth": depth, "weights": None}, "values": {"test_time_s": seconds},
            "reported": reported, "hardware": {"machine": "x86_64", "gpus": []},
        }  # fmt: skip
        (folder / "benchmark.json").write_text(json.dumps(contents))

    reported = [{"table": "dfp", "row": "deep", "order": 1, "metrics": {"test_time_s": 0.05}}]
    run = write_run(tmp_path, "deep/seed0", 0.5, reported=reported)
    cfg = OmegaConf.load(run / ".hydra" / "config.yaml")
    cfg.model = {"net": {"_target_": "Net", "depth": "${depth}", "weights": "DEFAULT"}}  # weights do not matter
    cfg.depth = 1
    (run / ".hydra" / "config.yaml").write_text(OmegaConf.to_yaml(cfg))
    write_benchmark("deep", 1, 3, 0.25)
    write_benchmark("deep", 1, 4, 9.0)  # another batch than the table's: nowhere
    write_benchmark("flat", 0, 3, 0.125)  # a net that nobody trained has a row, too

    columns = [Column("miou", "mIoU"), Column("test_time_s", "test time", "s")]
    definition = {"benchmark": {"batch": 3, "size": [64, 64]}}
    rows = make_rows("dfp", definition, columns, collect(tmp_path), collect_benchmarks(tmp_path))
    assert layout(columns, rows)[1:] == [
        ["flat", "", "", "\N{EN DASH}", "0.125", "0.050", "+0.075"],
        ["deep", "1", "VOC2012 seg11valid", "50.0", "0.250", "0.050", "+0.200"],
    ]
    columns = [Column("relative/test_time_s", "test time", "x")]
    rows = make_rows("dfp", definition, columns, collect(tmp_path), collect_benchmarks(tmp_path))
    # ours 0.25 / 0.125, the paper's 0.05 / 0.05
    assert [line[3:] for line in layout(columns, rows)[1:]] == [["1.00", "1.00", "+0.00"], ["2.00", "1.00", "+1.00"]]
    assert "Time and memory of ours: x86_64 CPU, 1 threads (batch 3, size 64x64)" in "\n".join(footnotes(rows))


def test_foreign_and_corrupt_files_are_named_and_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_run(tmp_path, "fcn32s/seed0", 0.60)
    for name, text in {"half": '{"metrics": {', "list": "[1, 2]", "other": '{"loss": 3}'}.items():
        write_run(tmp_path, f"{name}/seed0", 0.5)
        (tmp_path / name / "seed0" / "metrics.json").write_text(text)
    assert [score.name for score in collect(tmp_path)] == ["fcn32s"]
    for name in ("half", "list", "other"):
        assert str(tmp_path / name / "seed0" / "metrics.json") in caplog.text


def test_every_shipped_table_is_whole() -> None:
    """Each reported row has a table, each row of the literature all its numbers, and their mean is the paper's."""
    tables = {path.stem: OmegaConf.load(path) for path in (cli.CONF_DIR / "tables").glob("*.yaml")}
    for path in (cli.CONF_DIR / "experiment").glob("*.yaml"):
        for entry in OmegaConf.load(path).get("reported", []):
            assert entry.table in tables, f"{path}: no table {entry.table}"
    columns = [Column(**column) for column in tables["deconvnet_table1"].columns]
    rows = make_rows("deconvnet_table1", OmegaConf.to_container(tables["deconvnet_table1"]), columns, [])
    assert [row.label for row in rows] == [
        "Hypercolumn", "MSRA-CFM", "FCN8s", "TTI-Zoomout-16", "DeepLab-CRF", "DeconvNet", "DeconvNet+CRF",
        "EDeconvNet", "EDeconvNet+CRF", "WSSL*", "BoxSup*"
    ]  # fmt: skip
    for row in rows:
        values = [row.theirs(column) for column in columns]
        assert None not in values, row.label
        # the paper prints one decimal: the mean of 21 rounded numbers is within 0.05 of it, and its own rounding
        assert sum(values[1:]) / 21 == pytest.approx(values[0], abs=0.1), row.label


def run_tables(cwd: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "segmod", "tables", *overrides]
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=120, env={**os.environ, "COLUMNS": "200"}
    )


def test_command_writes_all_forms(tmp_path: Path) -> None:
    write_run(tmp_path / "runs", "fcn32s/seed0", 0.60, images=736)
    done = run_tables(tmp_path, "table=fcn")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "tables" / "fcn.md").read_text()
    assert "| FCN-32s | 1 | VOC2012 seg11valid, 736 images | 60.0 | 63.6 | -3.6 |" in text
    assert "- FCN-16s: `segmod-train experiment=fcn16s data=voc_aug`" in text
    assert (
        "FCN-32s & 1 & VOC2012 seg11valid, 736 images & 60.0 & 63.6 & -3.6 &"
        in (tmp_path / "tables/fcn.tex").read_text()
    )
    assert (tmp_path / "tables" / "fcn.png").read_bytes()[:4] == b"\x89PNG"
    assert "60.0" in done.stdout
    with (tmp_path / "tables" / "fcn.csv").open() as file:
        records = list(csv.DictReader(file))
    # a number of ours stands in the row that was run alone
    assert {record["row"] for record in records if record["ours"]} == {"FCN-32s"}
    (ours,) = [record for record in records if record["row"] == "FCN-32s" and record["metric"] == "miou"]
    assert float(ours["difference"]) == pytest.approx(-3.6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs", "tables"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("table=fnc", "table=fnc: no such table; choose one of runs, deconvnet_table1, "),
        ("runs=nowhere", "runs=nowhere: no such folder"),
        ("runs=.", "runs=.: no finished run there"),
    ],
)
def test_command_tells_mistakes_in_one_line(tmp_path: Path, override: str, message: str) -> None:
    (tmp_path / "runs").mkdir()
    done = run_tables(tmp_path, override)
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert f"segmod: error: {message}" in done.stderr
