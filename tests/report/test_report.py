"""The HTML file of a run and of several: what stands in it, and that it stands alone."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("altair")
pytest.importorskip("vl_convert")

from segmod.ground.errors import UserError
from segmod.report import figures
from segmod.report.findings import _count_distances
from segmod.report.page import Page
from segmod.runs.trained import TrainedRun
from segmod.viz import save_png

SMALLEST = ("images=6", "pictures=2", "device=cpu")


@pytest.fixture(scope="module")
def runs(command: Any, small: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of one name that differ in a rate."""
    root = tmp_path_factory.mktemp("report") / "runs"
    rates = "model.optimizer.lr=0.01,0.001"
    assert command("train", "-m", *small, "name=small", rates, f"runs={root}", "trainer.max_epochs=1") == 0
    return root


def first_of(runs: Path) -> Path:
    return next(path.parent for path in runs.rglob("metrics.json") if '"model.optimizer.lr=0.01"' in path.read_text())


def without_script(html: str) -> str:
    return re.sub(r"<script>.*?</script>", "", html, count=1, flags=re.DOTALL)


def specs(html: str) -> list[Any]:
    return [json.loads(text) for text in re.findall(r'<script type="application/json">(.*?)</script>', html, re.DOTALL)]


def test_the_report_of_a_run_stands_alone_and_shows_what_was_found(runs: Path, segmod: Any, tmp_path: Path) -> None:
    run = first_of(runs)
    assert segmod("report", f"run={run}", *SMALLEST) == 0
    html = (run / "report.html").read_text()
    assert len(html.encode()) < 5e6
    page = without_script(html)
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    record = json.loads((run / "metrics.json").read_text())
    assert f"{100 * record['metrics']['val/miou']:.2f} %" in page
    assert "segmod-train" in page
    assert "model.optimizer.lr=0.01" in page
    assert page.count("<figure>") == 6  # 2 first, 2 best, 2 worst
    curves, values, classes, confusion, distances, sizes = specs(html)
    (points,) = curves["datasets"].values() if "datasets" in curves else [curves["data"]["values"]]
    assert {point["metric"] for point in points} == {"mean of an epoch"}  # its 4 steps are fewer than are logged
    assert all(spec["$schema"] == curves["$schema"] for spec in (values, classes, confusion, distances, sizes))


def test_the_report_of_a_sweep_has_a_line_a_run_and_a_chart_a_key(runs: Path, segmod: Any, tmp_path: Path) -> None:
    for record in list(runs.rglob("metrics.json")):
        save_png(np.zeros((20, 60, 3), np.uint8), record.parent / "pictures" / "000_x.png")
    assert segmod("report", f"run={runs}", f"output={tmp_path / 'sweep.html'}") == 0
    html = without_script((tmp_path / "sweep.html").read_text())
    rows = re.findall(r"<tr>(.*?)</tr>", html, re.DOTALL)
    assert [re.findall(r"<t[hd]>(.*?)</t", row)[0] for row in rows] == ["lr", "0.001", "0.01"]
    parallel, by_rate = specs(html)
    assert "small" not in json.dumps(parallel)
    assert by_rate["layer"][0]["encoding"]["x"]["title"] == "lr"
    assert html.count("<figcaption>lr 0.01</figcaption>") == html.count("<figcaption>lr 0.001</figcaption>") == 1


def test_what_comes_of_a_run_is_no_script() -> None:
    page = Page("<script>alert(1)</script>", commands=["</pre><b>"], config="a: </details>")
    page.add_charts("x", figures.class_bars({"</script><img src=x>": 0.5, "none": None}))
    html = page.html()
    assert "<script>alert" not in html
    assert "<img src=x" not in html
    assert "</pre><b>" not in html
    (spec,) = specs(html)
    assert "</script><img src=x>" in json.dumps(spec)


def test_wrong_pixels_are_counted_by_their_distance_to_a_border_of_the_truth() -> None:
    from segmod.report.findings import Findings

    truth = np.zeros((80, 160), np.uint8)
    truth[:, 80:] = 1
    truth[0] = 255
    predicted = truth.copy()
    predicted[1:, 79] = 1  # beside the border: 79 pixels
    predicted[40, 0] = 1  # 79 from it, 39 from the void
    found = Findings()
    _count_distances(found, truth, predicted)
    assert found.distances["0 to 3 px"][0] == 79
    assert found.distances["over 24 px"][0] == 1
    assert sum(pixels for _, pixels in found.distances.values()) == 79 * 160
    alone = Findings()
    _count_distances(alone, np.zeros((8, 8), np.uint8), np.ones((8, 8), np.uint8))
    assert alone.distances == {}


def test_charts_of_nothing_are_left_out() -> None:
    page = Page("empty")
    page.add_charts("curves", figures.curves([], {"train/loss": "loss"}), figures.class_bars({"cat": None}))
    page.add_charts("bars", figures.bars({}, {}, "a", "b", "c"))
    assert page.charts == []
    assert figures.curves([{"step": "1", "train/loss": "nan"}], {"train/loss": "loss"}) is None


def test_classes_without_a_pixel_are_no_part_of_the_confusion() -> None:
    counts = torch.tensor([[8, 2, 0], [0, 0, 0], [0, 0, 0]])
    spec = figures.confusion(counts, ["ground", "cat", "dog"])
    cells = json.dumps(spec)
    assert '"share": 80.0' in cells
    assert '"share": 20.0' in cells
    assert "dog" not in cells


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["run=nowhere"], "run=nowhere: no run there"),
        (["run=x", "images=-1"], "images=-1"),
        (["run=x", "pictures=0"], "pictures=0"),
        (["run=x", "device=abacus"], "device=abacus cannot be used"),
    ],
)
def test_mistakes_are_one_line(segmod: Any, capfd: Any, words: list[str], line: str) -> None:
    assert segmod("report", *words) == 1
    (told,) = capfd.readouterr().err.strip().splitlines()
    assert line in told


def test_data_that_are_not_at_hand_leave_a_report_without_pictures(
    runs: Path, segmod: Any, capfd: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(self: Any) -> None:
        raise UserError("data.root=data: no such folder")

    monkeypatch.setattr(TrainedRun, "dataset", property(missing))
    assert segmod("report", f"run={first_of(runs)}", *SMALLEST, f"output={tmp_path / 'a.html'}") == 0
    assert "the report has no pictures: " in capfd.readouterr().err
    assert "<figure>" not in (tmp_path / "a.html").read_text()


def test_a_missing_extra_is_named(segmod: Any, capfd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("segmod.report")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "altair", None)
    assert segmod("report", "run=x") == 1
    assert "segmod-report needs altair: pip install 'segmod[report]'" in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium")
def test_a_browser_draws_it(runs: Path, segmod: Any, tmp_path: Path) -> None:
    run = first_of(runs)
    assert segmod("report", f"run={run}", *SMALLEST, f"output={tmp_path / 'a.html'}") == 0
    options = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync"
    command = ["chromium", *options.split(), f"--user-data-dir={tmp_path / 'browser'}", "--virtual-time-budget=10000"]
    done = subprocess.run(
        [*command, "--dump-dom", (tmp_path / "a.html").as_uri()], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.count('class="marks"') == 6  # a drawing for each chart
