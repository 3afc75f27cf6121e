"""Measures of maps whose qualities are known by construction, and the command on a small trained run."""

import csv
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch import nn

from segmod.commands.study import names_of
from segmod.ground.errors import UserError
from segmod.studies.base import find_images
from segmod.studies.skip_maps import (
    gradient_energy,
    numbered,
    receptive_field,
    responses,
    sharpness,
    skip_net,
)

TRUTH = torch.zeros(10, 10, dtype=torch.int64)
TRUTH[2:6, 3:8] = 5


def test_a_map_of_the_truth_is_sharp_and_a_flat_one_is_not():
    # the central difference of a step is not 0 in the two boxes on either side of it: exactly the boxes at the border,
    # but for the corners of the rectangle outside, which touch it at no side
    assert sharpness((TRUTH == 5).float(), TRUTH, 5) == 1
    assert sharpness(torch.zeros(10, 10), TRUTH, 5) == 0.5  # all ties
    assert sharpness(torch.full((10, 10), 3.0), TRUTH, 7) is None  # the class has no border


def test_a_map_that_is_steep_elsewhere_is_below_chance():
    elsewhere = torch.zeros(10, 10)
    elsewhere[:, 9] = torch.arange(10.0) * 9
    assert sharpness(elsewhere, TRUTH, 5) < 0.5


def test_void_boxes_count_on_neither_side():
    truth = TRUTH.clone()
    z = (TRUTH == 5).float()
    truth[8:] = 255
    z[8:] = torch.rand(2, 10, generator=torch.Generator().manual_seed(0)) * 100
    z[7] = 0
    # at the border are 14 boxes inside and 18 outside, 48 of rows 0 to 7 are elsewhere; row 7 feels the noise below it,
    # so that 10 of these are steeper than the border, and the others are flat
    assert sharpness(z, truth, 5) == pytest.approx(38 / 48)
    assert sharpness(z, TRUTH, 5) < 38 / 48


def test_responses_are_shares_of_those_of_all_objects():
    truth = torch.tensor([[1, 1], [0, 255]])
    z = torch.zeros(4, 2, 2)
    z[0] = 100  # the background has no part in it
    z[1] = torch.tensor([[2.0, -5.0], [1.0, 50.0]])  # 2 inside its boxes, 1 outside, 50 in a void box
    z[3] = torch.tensor([[4.0, 0.0], [1.0, 0.0]])  # a class that is not there
    answer = responses(z, truth, [1])
    assert answer.own == pytest.approx(2 / 8)
    assert answer.false.tolist() == pytest.approx([0, 0, 0, 5 / 8])
    assert responses(z, truth, []) is None
    assert responses(-z, truth.clamp_max(1), [1]) is not None  # -z is positive where z was negative
    assert responses(-z.abs(), truth, [1]) is None


@pytest.mark.parametrize(("kernel", "layers", "side"), [(3, 1, 3), (5, 1, 5), (3, 3, 7)])
def test_the_field_of_convolutions_is_known(kernel, layers, side):
    # k x k convolutions see (k - 1) * layers + 1 pixels; weights of ones give the outermost ring enough energy
    parts = []
    for _ in range(layers):
        part = nn.Conv2d(1 if parts else 3, 1, kernel, padding=kernel // 2, bias=False)
        nn.init.ones_(part.weight)
        parts.append(part)
    energy = gradient_energy(nn.Sequential(*parts), torch.rand(1, 3, 21, 21), torch.Generator().manual_seed(0))
    assert receptive_field(energy, share=1 - 1e-9) == side
    assert receptive_field(energy, share=1e-9) == 1


def test_the_field_is_the_square_with_its_share_of_the_energy():
    energy = torch.zeros(9, 9, dtype=torch.float64)
    energy[4, 4], energy[4, 7] = 8, 2  # at distances 0 and 3 of the middle
    assert receptive_field(energy, 0.8) == 1
    assert receptive_field(energy, 0.81) == 7


def test_channels_of_opposite_sign_do_not_cancel():
    class Opposite(nn.Module):
        def forward(self, image):
            return torch.cat([image[:, :1], -image[:, :1]], 1)

    assert gradient_energy(Opposite(), torch.zeros(1, 3, 5, 5), torch.Generator().manual_seed(0))[2, 2] > 0


def test_objects_come_before_the_background():
    assert numbered(4) == [1, 2, 3, 0]


def test_a_net_without_connections_is_told():
    with pytest.raises(UserError, match="Conv2d, has no skip maps"):
        skip_net(nn.Conv2d(3, 3, 1))


def test_images_are_found_by_position_and_by_id():
    names = ["2007_000033", "2008_000001", "scene7"]
    # Hydra reads 2007_000033 as a number
    assert find_images([2007000033, "2008_000001", 2, "scene7"], names) == [0, 1, 2, 2]
    with pytest.raises(
        UserError, match=r"study\.images=2009_000001: give ids of the split, such as 2007_000033, or 0 to 2"
    ):
        find_images(["2009_000001"], names)


def test_runs_are_named_by_what_tells_them_apart():
    def run(name, **recipe):
        config = OmegaConf.create({"name": name, "model": {"kernel": 7}, "runs": name, **recipe})
        return SimpleNamespace(name=name, directory=Path("runs"), config=config)

    assert names_of([run("skip_6", seed=0), run("skip_2", seed=1)]) == ["skip_6", "skip_2"]
    same = [run("skip_6", data={"a": 1, "b": 2}, seed=0), run("skip_6", data={"a": 2, "b": 2, "c": "x/y.pth"}, seed=1)]
    assert names_of(same) == ["a-1+seed-0", "a-2+c-y+seed-1"]
    with pytest.raises(UserError, match="among the runs twice"):
        names_of([same[0], same[0]])


SMALL = (
    "model=single_skip", "model.net.hidden=4", "model.net.boxes=7", "data.squash=33", "trainer=cpu",
    "data.dataset.size=33", "data.dataset.train_images=8", "data.dataset.val_images=3", "data.batch_size=4",
    "data.num_workers=0", "trainer.max_epochs=1",
    "trainer.enable_progress_bar=false", "trainer.num_sanity_val_steps=0", "data.dataset.num_classes=4",
)  # fmt: skip


def test_the_command_draws_and_measures_runs(segmod, capfd):
    for name, connection in (("high", "7"), ("none", "null")):
        assert segmod("train", *SMALL, f"name={name}", f"model.net.connections={connection}") == 0
    runs = [str(next(Path("runs", name).rglob("seed0"))) for name in ("high", "none")]
    study = ("study=skip_maps", "device=cpu")
    drawn = ("study.images=[2,0]", "study.measure=2", "output=out")
    assert segmod("study", *study, f"run=['{runs[0]}',none]", *drawn) == 0
    with Path("out/table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["layer"] for row in rows] == ["features.10", "features.12"]
    assert all(0 <= float(row["sharpness"]) <= 1 for row in rows)
    assert (
        int(rows[0]["field of the layer"].removesuffix(" px")) <= int(rows[0]["field of z"].removesuffix(" px")) <= 33
    )
    folders = [path for path in Path("out").iterdir() if path.is_dir()]
    assert len(folders) == 2
    for folder in folders:
        assert sorted(path.name for path in folder.iterdir()) == [f"{i}_{k}.png" for i in (0, 1) for k in range(4)]
    maps = [np.asarray(Image.open(next(Path("out").glob(f"*none*/0_{k}.png")))) for k in range(4)]
    assert maps[0].shape == (7, 7, 3)
    assert max(part.max() for part in maps) == 255  # one scale for all classes of an image
    assert Path("out/page_1.png").is_file()

    capfd.readouterr()
    keys = ("study.images=[0]", "study.measure=0", "study.softmax=true")
    assert segmod("study", *study, f"run='{runs[0]}'", *keys) == 0
    (folder,) = (path for path in Path(runs[0]).glob("studies/skip_maps-val+*/*") if path.is_dir())
    total = sum(np.asarray(Image.open(folder / f"0_{k}.png"))[..., 0].astype(int) for k in range(4))
    assert abs(total - 255).max() <= 2  # probabilities, each rounded

    for arguments, message in (
        (["run=nowhere"], "run=nowhere: no run there"),
        ([f"run='{runs[0]}'", "study.images=[9]"], "study.images=9: give ids of the split"),
        ([f"run='{runs[0]}'", "study.measure=-1"], "study.measure=-1: give a whole number, 0 or more"),
        (["run=[]"], "run=[]: give a text"),
        (["run=[high,none]", "study=activations"], "study=activations looks at one run, not at high, none"),
        (["run=high", "against=none", "study=proposal_count"], "study=proposal_count looks at one run"),
    ):
        assert segmod("study", "study=skip_maps", *arguments, "device=cpu") == 1
        assert message in capfd.readouterr().err
