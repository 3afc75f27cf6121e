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

from segmod import charts
from segmod.commands.tables import draw, footnotes, latex, layout, write
from segmod.runs import cli
from segmod.runs.records import collect, collect_benchmarks, over_epochs
from segmod.runs.tables import Column, Row, Table, filled, read_tables

MIOU = [Column("miou", "mIoU")]
SHIPPED = read_tables([cli.CONF_DIR])
DASH = "\N{EN DASH}"


def write_run(
    root: Path,
    where: str,
    miou: float | None,
    *,
    split: str = "seg11valid",
    config: Any = None,
    evaluation: str = "",
    **facts: Any,
) -> Path:
    """A finished run at ``root/where``, or an evaluation of it."""
    run = root / where
    (run / ".hydra").mkdir(parents=True, exist_ok=True)
    name = where.split("/")[0]
    cfg = {"name": name, "inference": {"_target_": "segmod.inference.dense.DensePredictor"}}
    (run / ".hydra" / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.merge(cfg, config or {})))
    directory = run / "evaluation" / evaluation if evaluation else run
    directory.mkdir(parents=True, exist_ok=True)
    contents = {
        "metrics": {"val/miou": miou, "val/pixel_acc": 0.9},
        "iou": {"background": 0.8, "cat": None},
        "name": name,
        "data": "VOC2012",
        "split": split,
        **facts,
    }
    (directory / "metrics.json").write_text(json.dumps(contents))
    return directory


def test_a_column_may_be_the_mean_over_chosen_classes(tmp_path: Path) -> None:
    write_run(tmp_path, "fcn8s/seed0", 0.5, iou={"background": 0.9, "cat": 0.5, "dog": 0.1, "cow": None})
    column = Column("miou/two", "of two", classes=("background", "dog", "cow"))
    row = next(row for row in filled(fcn(), collect(tmp_path)) if row.scores)
    assert row.ours(column) == [pytest.approx(50)]  # (90 + 10) / 2: there is no cow
    assert row.ours(Column("miou/none", "none", classes=("cow",))) == []


def fcn(columns: list[Column] = MIOU) -> Table:
    """The shipped table with other columns."""
    return Table("", columns, SHIPPED["fcn"].rows)


def rows_of(root: Path, table: Table | None = None) -> dict[str, list[str]]:
    """Lines of a table by their label."""
    table = table or fcn()
    return {line[0]: line[1:] for line in layout(table.columns, filled(table, collect(root)))[1:]}


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
    rows = filled(fcn(), collect(tmp_path))
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
    plain = Row("Net", {"name": "net"}, paper={"miou": 0.5})
    crf = Row("Net+CRF", {"name": "net"}, "crf", {"miou": 0.6})
    write_run(tmp_path, "net/seed0", 0.50)
    write_run(tmp_path, "net/seed0", 0.55, evaluation="crf-seg11valid", inference="crf")
    assert rows_of(tmp_path, Table("", MIOU, [plain, crf])) == {
        "Net": ["1", "VOC2012 seg11valid", "50.0", "50.0", "+0.0"],
        "Net+CRF [crf-seg11valid]": ["1", "VOC2012 seg11valid", "55.0", "60.0", "-5.0"],
    }


def test_rows_of_one_sweep_are_told_apart_by_the_resolved_keys_of_their_configs(tmp_path: Path) -> None:
    """What a row asks of a config is not told twice; any other choice is, and a run that fits no row is in none."""
    rows = [Row(f"depth {depth}", {"name": "net", "model.net.depth": depth}) for depth in (0, 1)]
    rows += [Row("no depth", {"name": "net", "model.net.depth": None})]

    def write(folder: str, miou: float, depth: Any, **more: Any) -> None:
        write_run(tmp_path, f"net/{folder}/seed0", miou, config={"model": {"net": {"depth": depth}}, **more})

    write("depth-0", 0.1, 0)
    write("depth-0+lr-0.1", 0.2, 0)
    write("lr-3", 0.3, "${first}", first=1)
    write("depth-null", 0.4, None)
    write("depth-7", 0.5, 7)
    write_run(tmp_path, "other/seed0", 0.6, config={"model": {"net": {"depth": 0}}})
    write_run(tmp_path, "net/plain/seed0", 0.7)  # has no such key, and none is not null
    assert {label: line[2] for label, line in rows_of(tmp_path, Table("", MIOU, rows)).items()} == {
        "depth 0": "10.0",
        "depth 0 [lr-0.1]": "20.0",
        "depth 1 [lr-3]": "30.0",
        "no depth": "40.0",
    }


def test_scores_of_crops_are_in_no_row_of_deconvnet(tmp_path: Path) -> None:
    table = Table("", MIOU, SHIPPED["deconvnet_table1"].rows)
    where = "deconvnet/data-voc_aug/seed0"
    write_run(tmp_path, where, 0.9, split="val crops", images=1000, inference="crops")
    for inference, miou in {"proposals": 0.5, "ensemble": 0.6, "dense": 0.2}.items():
        write_run(tmp_path, where, miou, evaluation=f"{inference}-val", split="val", inference=inference)
    ours = {label: line[2] for label, line in rows_of(tmp_path, table).items() if line[0]}
    assert ours == {
        "DeconvNet [data-voc_aug, proposals-val]": "50.0",
        "EDeconvNet [data-voc_aug, ensemble-val]": "60.0",
    }


def test_one_experiment_may_have_two_rows_of_a_table(tmp_path: Path) -> None:
    """The run that both rows are of stands in both; where it was scored on other images, that is marked."""
    write_run(tmp_path, "fcn8s_caffe/seed0", 0.660, images=736)
    rows = rows_of(tmp_path)
    # 66.0 - 65.5 = +0.5 and 66.0 - 67.2 = -1.2
    assert rows["FCN-8s, summed loss"] == ["1", "VOC2012 seg11valid, 736 images", "66.0", "65.5", "+0.5"]
    assert rows["FCN-8s, summed loss, on test"] == ["1", "VOC2012 seg11valid, 736 images", "66.0", "67.2", "-1.2 †"]


def test_units_and_curves(tmp_path: Path) -> None:
    # two epochs and the final scoring of the best checkpoint, which is no epoch: mean (0.2 + 0.4) / 2, maximum 0.4
    curves = "step,epoch,train/loss,val/miou\n0,0,3.0,\n1,0,,0.2\n2,1,2.0,0.4\n3,2,,0.4\n"
    paper = {"max_over_epochs/miou": 0.5, "peak_memory_bytes": 4677 * 2**20, "test_time_s": 0.098}
    run = write_run(tmp_path, "dfp/seed0", 0.4, peak_memory_bytes=4000 * 2**20, test_time_s=0.1)
    (run / "metrics.csv").write_text(curves)
    columns = [
        Column("mean_over_epochs/miou", "mean"),
        Column("max_over_epochs/miou", "best"),
        Column("peak_memory_bytes", "memory", "MiB"),
        Column("test_time_s", "time", "s"),
    ]
    (line,) = rows_of(tmp_path, Table("", columns, [Row("depth 5", {"name": "dfp"}, paper=paper)])).values()
    assert line[2:] == ["30.0", "40.0", "50.0", "-10.0", "4000", "4677", "-677", "0.100", "0.098", "+0.002"]
    assert over_epochs(tmp_path / "absent.csv") == {}


def test_wide_tables_stack_ours_paper_and_difference(tmp_path: Path) -> None:
    names = ["background", "cat", "a", "b", "c"]
    write_run(tmp_path, "net/seed0", 0.4)
    columns = [Column(f"iou/{name}", name) for name in names]
    table = Table("", columns, [Row("Net", {"name": "net"}, paper={"iou/background": 0.7})])
    lines = layout(columns, filled(table, collect(tmp_path)))[1:]
    assert [line[0] for line in lines] == ["Net"] * 3
    assert [line[3:] for line in lines] == [
        ["ours", "80.0", DASH, DASH, DASH, DASH],  # IoU of cat is null in the file
        ["paper", "70.0", DASH, DASH, DASH, DASH],
        ["difference", "+10.0", DASH, DASH, DASH, DASH],
    ]


def test_time_and_memory_come_from_the_benchmark_of_the_same_net(tmp_path: Path) -> None:
    def write_benchmark(depth: int, batch: int, seconds: float) -> None:
        folder = tmp_path / "dfp" / f"depth-{depth}" / "benchmark" / f"cpu-{batch}"
        folder.mkdir(parents=True)
        contents = {
            "name": "dfp", "settings": {"device": "cpu", "batch": batch, "threads": 1, "size": [64, 64]},
            "net": {"_target_": "Net", "depth": depth, "weights": None}, "values": {"test_time_s": seconds},
            "hardware": {"machine": "x86_64", "gpus": []},
        }  # fmt: skip
        (folder / "benchmark.json").write_text(json.dumps(contents))

    rows = [
        Row(label, {"name": "dfp", "model.net.depth": depth}, paper={"test_time_s": 0.05})
        for depth, label in enumerate(("flat", "deep"))
    ]
    net = {"_target_": "Net", "depth": "${depth}", "weights": "DEFAULT"}  # weights do not matter
    write_run(tmp_path, "dfp/depth-1/seed0", 0.5, config={"model": {"net": net}, "depth": 1})
    write_benchmark(1, 3, 0.25)
    write_benchmark(1, 4, 9.0)  # another batch than the table's: nowhere
    write_benchmark(0, 3, 0.125)  # a net that nobody trained has a row, too

    settings = {"batch": 3, "size": [64, 64]}
    table = Table("", [Column("miou", "mIoU"), Column("test_time_s", "test time", "s")], rows, settings)
    found = filled(table, collect(tmp_path), collect_benchmarks(tmp_path))
    assert layout(table.columns, found)[1:] == [
        ["flat", "", "", DASH, "0.125", "0.050", "+0.075"],
        ["deep", "1", "VOC2012 seg11valid", "50.0", "0.250", "0.050", "+0.200"],
    ]
    table = Table("", [Column("relative/test_time_s", "test time", "x")], rows, settings)
    found = filled(table, collect(tmp_path), collect_benchmarks(tmp_path))
    # ours 0.25 / 0.125, the paper's 0.05 / 0.05
    lines = layout(table.columns, found)[1:]
    assert [line[3:] for line in lines] == [["1.00", "1.00", "+0.00"], ["2.00", "1.00", "+1.00"]]
    assert "segmod-benchmark" not in "\n".join(footnotes(found, "segmod-benchmark"))  # all are measured
    unmeasured = filled(table, collect(tmp_path))
    assert "- time and memory of flat, deep: `segmod-benchmark`" in "\n".join(footnotes(unmeasured, "segmod-benchmark"))
    assert "Time and memory of ours: x86_64 CPU, 1 threads (batch 3, size 64x64)" in "\n".join(footnotes(found))


def test_charts_show_other_images_and_the_spread_of_the_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path, "fcn32s/seed0", 0.60, images=736)
    write_run(tmp_path, "fcn32s/seed1", 0.64, images=736)
    write_run(tmp_path, "fcn16s/seed0", 0.50, images=100)
    drawn: list[Any] = []
    monkeypatch.setattr(charts, "bar_chart", lambda *given: drawn.extend(given))
    draw(tmp_path / "x.png", "caption", MIOU[0], filled(fcn(), collect(tmp_path))[:3])
    labels, series, _, _, heading, errors = drawn
    assert labels == ["FCN-32s", "FCN-16s †", "FCN-8s"]
    assert series["ours"] == [pytest.approx(62), 50, None]
    assert series["paper"] == pytest.approx([63.6, 65, 65.5])
    assert errors["ours"] == [pytest.approx(8**0.5), None, None]  # of 60 and 64: sqrt(2^2 + 2^2)
    assert "†" in heading


def test_a_table_of_benchmarks_has_a_chart_of_each_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    monkeypatch.setattr(charts, "bar_chart", lambda labels, series, path, *_: drawn.append(path.name))
    columns = [Column("miou", "mIoU"), Column("relative/test_time_s", "test time", "x")]
    rows = [Row("flat", {"name": "dfp"}, paper={"miou": 0.6, "relative/test_time_s": 1.0})]
    for benchmark, names in ((None, ["t.png"]), ({"batch": 3}, ["t.png", "t-relative-test_time_s.png"])):
        write(tmp_path / "t", Table("", columns, rows, benchmark), rows)
        assert drawn == names
        drawn.clear()


def test_foreign_and_corrupt_files_are_named_and_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_run(tmp_path, "fcn32s/seed0", 0.60)
    for name, text in {"half": '{"metrics": {', "list": "[1, 2]", "other": '{"loss": 3}'}.items():
        write_run(tmp_path, f"{name}/seed0", 0.5)
        (tmp_path / name / "seed0" / "metrics.json").write_text(text)
    assert [score.name for score in collect(tmp_path)] == ["fcn32s"]
    for name in ("half", "list", "other"):
        assert str(tmp_path / name / "seed0" / "metrics.json") in caplog.text


def test_table_1_of_deconvnet_is_whole() -> None:
    """Each row has all its numbers, and their mean is the paper's."""
    table = SHIPPED["deconvnet_table1"]
    assert [row.label for row in table.rows or ()] == [
        "Hypercolumn", "MSRA-CFM", "FCN8s", "TTI-Zoomout-16", "DeepLab-CRF", "DeconvNet", "DeconvNet+CRF",
        "EDeconvNet", "EDeconvNet+CRF", "WSSL*", "BoxSup*"
    ]  # fmt: skip
    for row in table.rows or ():
        values = [row.theirs(column) for column in table.columns]
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
    assert "- FCN-16s; FCN-8s: `segmod-train sweep=fcn_staged data=voc_sbd`" in text
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
def test_command_tells_mistakes_in_one_line(
    tmp_path: Path, segmod: Any, capfd: pytest.CaptureFixture[str], override: str, message: str
) -> None:
    (tmp_path / "runs").mkdir()
    assert segmod("tables", override) == 1
    told = capfd.readouterr().err
    assert len(told.strip().splitlines()) == 1
    assert f"segmod: error: {message}" in told


def test_all_tables_leave_one_line_of_those_that_are_empty(
    tmp_path: Path, segmod: Any, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    write_run(tmp_path / "runs", "fcn32s/seed0", 0.60)
    assert segmod("tables") == 0
    done = capfd.readouterr()
    assert sorted(path.name for path in (tmp_path / "tables").glob("*.md")) == ["fcn.md", "runs.md"]
    (line,) = [line for line in (done.out + done.err).splitlines() if "no run belongs" in line]
    assert "dfp_table1, " in line


def test_seeds_of_different_lengths_are_told(tmp_path: Path) -> None:
    for seed, epochs in ((0, 24), (1, 24), (2, 48)):
        write_run(tmp_path, f"fcn32s/seed{seed}", 0.6, config={"trainer": {"max_epochs": epochs, "max_steps": -1}})
    (note,) = [note for note in footnotes(filled(fcn(), collect(tmp_path))) if "lengths" in note]
    assert note == "FCN-32s: the mean of trainings of different lengths (24 epochs, 48 epochs)."


def own_table(folder: Path, **changes: Any) -> None:
    row = {"label": "first", "match": {"name": "fcn32s"}, "numbers": [50.0]}
    table = {"caption": "Mine", "columns": [{"metric": "miou", "header": "mIoU"}], "rows": [row]}
    (folder / "own" / "tables").mkdir(parents=True)
    (folder / "own" / "tables" / "mine.yaml").write_text(json.dumps(table | changes))
    write_run(folder / "runs", "fcn32s/seed0", 0.60)


def test_tables_of_a_folder_of_ones_own_are_found(tmp_path: Path, segmod: Any) -> None:
    own_table(tmp_path)
    assert segmod("tables", "--config-dir", "own", "table=mine") == 0
    assert "| first | 1 | VOC2012 seg11valid | 60.0 | 50.0 | +10.0 |" in (tmp_path / "tables" / "mine.md").read_text()


def test_a_mistake_in_a_table_of_ones_own_is_one_line(
    tmp_path: Path, segmod: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    own_table(tmp_path, rows=[{"match": {}}])
    assert segmod("tables", "--config-dir", "own", "table=mine") == 1
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert "tables/mine.yaml: no table of segmod" in line
    assert "'label'" in line


def test_latex_writes_out_what_a_name_holds() -> None:
    table = latex("of a run", [["", "miou"], ["\\input{x}", "1"]], [])
    assert "\\textbackslash{}input\\{x\\} & 1" in table
