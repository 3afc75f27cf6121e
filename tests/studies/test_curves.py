"""Curves of runs whose numbers are known."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from segmod.ground.errors import UserError
from segmod.studies.curves import Curves

FINISHED = """step,epoch,train/loss,val/miou,val/pixel_acc
0,0.0,4.0,,
1,0.0,2.0,,
1,0.0,,0.2,0.5
2,1.0,2.0,,
3,1.0,1.0,,
3,1.0,,0.4,0.7
"""
STARTED = """step,epoch,train/loss
0,0.0,5.0
1,0.0,3.0
"""


def runs(folder: Path, **contents: str):
    for name, text in contents.items():
        (folder / name).mkdir()
        (folder / name / "metrics.csv").write_text(text)
    return {name: SimpleNamespace(name=name, directory=folder / name) for name in contents}


def test_by_epochs_a_point_is_the_mean_of_one(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr("segmod.charts.curves", lambda panels, path, by: drawn.update(panels))
    table = Curves()(runs(tmp_path, done=FINISHED, young=STARTED), tmp_path)
    assert drawn == {
        "train/loss": {"done": [(1, 3.0), (2, 1.5)], "young": [(1, 4.0)]},
        "val/miou (%)": {"done": [(1, pytest.approx(20)), (2, pytest.approx(40))]},
        "val/pixel_acc (%)": {"done": [(1, pytest.approx(50)), (2, pytest.approx(70))]},
    }
    assert [(row["metric"], row["run"], row["epochs"]) for row in table] == [
        ("train/loss", "done", "2"), ("train/loss", "young", "1"), ("val/miou", "done", "2"),
        ("val/pixel_acc", "done", "2"),
    ]  # fmt: skip
    assert [table[0][key] for key in ("first", "last", "mean", "best")] == ["3", "1.5", "2.25", "1.5"]
    assert [table[3][key] for key in ("first", "last", "mean", "best")] == pytest.approx([0.5, 0.7, 0.6, 0.7])


def test_a_young_run_has_no_panel_of_what_it_has_not_logged(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr("segmod.charts.curves", lambda panels, path, by: drawn.update(panels))
    young = "step,epoch,train/loss,train/loss_epoch\n0,0,9.0,\n9,0,5.0,\n12,0,,6.0\n19,1,4.0,\n"
    Curves()(runs(tmp_path, young=young), tmp_path)
    assert drawn == {"train/loss": {"young": [(1, 6.0), (2, 4.0)]}}  # of the first epoch what was logged of all of it


def test_by_steps_a_line_has_so_many_points_at_most(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr("segmod.charts.curves", lambda panels, path, by: drawn.update(panels))
    Curves(["train/loss"], by="step", points=3)(runs(tmp_path, done=FINISHED), tmp_path)
    assert drawn == {"train/loss": {"done": [(2, 3.0), (4, 1.5)]}}  # four values, so two a point


def test_a_picture_is_drawn(tmp_path):
    Curves()(runs(tmp_path, done=FINISHED, young=STARTED), tmp_path)
    picture = np.asarray(Image.open(tmp_path / "curves.png").convert("RGB"))
    for colour in ((0, 114, 178), (230, 159, 0)):  # the first two of Okabe and Ito
        assert (picture == colour).all(-1).sum() > 50


def test_mistakes_name_what_is_wrong(tmp_path):
    given = runs(tmp_path, young=STARTED)
    with pytest.raises(
        UserError, match=r"=\['val/miou'\]: no run has logged them yet; there are epoch, step, train/loss"
    ):
        Curves(["val/miou"])(given, tmp_path)
    with pytest.raises(UserError, match=r"study\.by=hour: choose epoch or step"):
        Curves(by="hour")
    (tmp_path / "young" / "metrics.csv").unlink()
    with pytest.raises(UserError, match=r"metrics\.csv: cannot read the run's curves"):
        Curves()(given, tmp_path)
