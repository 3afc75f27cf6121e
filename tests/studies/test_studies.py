"""Studies of systems whose answers are known: one that sees the truth, one that sees nothing."""

import csv
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch import nn

from segmod.data.base import Split
from segmod.data.proposals import TruthBoxes
from segmod.data.synthetic import SyntheticScenes
from segmod.data.transforms import EvalTransform
from segmod.ground.errors import UserError
from segmod.ground.palettes import VOC_CLASSES, Legend
from segmod.ground.types import IGNORE_INDEX
from segmod.inference.dense import DensePredictor
from segmod.inference.proposals import ProposalPredictor
from segmod.nets.deconvnet import DeconvNet
from segmod.runs.folders import Run
from segmod.runs.trained import TrainedRun
from segmod.studies.activations import Activations, Unpooling
from segmod.studies.class_probabilities import ClassProbabilities
from segmod.studies.object_sizes import ObjectSizes
from segmod.studies.proposal_count import ProposalCount
from segmod.studies.side_by_side import SideBySide


class Nothing(nn.Module):
    """Background everywhere."""

    num_classes = len(VOC_CLASSES)

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, image):
        logits = torch.zeros(len(image), self.num_classes, *image.shape[-2:])
        logits[:, 0] = 50 * self.weight
        return logits


def truth_of(net, batch):
    """A predictor that is right everywhere and sure of it."""
    mask = batch["mask"].long()
    return nn.functional.one_hot(mask.where(mask != IGNORE_INDEX, 0), len(VOC_CLASSES)).permute(0, 3, 1, 2).float()


def run_of(net, predictor, dataset=None):
    """A trained run of which nothing stands on the disk."""
    run = TrainedRun(Run(Path("nowhere")), OmegaConf.create({"name": "ours"}))
    legend = Legend("VOC2012", VOC_CLASSES)
    vars(run).update(net=net, predictor=predictor, dataset=dataset, legend=legend)
    return run


ORACLE = run_of(Nothing(), truth_of)


def alone(*args, **kwargs):
    return {"ours": subject(*args, **kwargs)}


def subject(net=None, predictor=None, images=4, size=(64, 96)):
    scenes = Split(SyntheticScenes(size, val_images=images), "val", EvalTransform())
    return run_of((net or Nothing()).eval(), predictor or DensePredictor(), scenes)


def test_sizes_give_each_system_its_share_of_each_object(tmp_path):
    table = ObjectSizes(edges=[0.05], pictures=2)(alone() | {"oracle": ORACLE}, tmp_path)
    assert [row["share of the image"] for row in table] == ["0 to 5 %", "5 to 100 %"]
    assert sum(row["objects"] for row in table) > 3
    for row in table:
        if row["objects"]:
            assert (row["ours"], row["oracle"]) == (0.0, 1.0)
    assert {path.name for path in tmp_path.iterdir()} == {"large.png", "small.png", "sizes.png"}


def test_sizes_put_objects_into_their_range(tmp_path, monkeypatch):
    """One scene of 100 pixels a side with a 10x10 and a 40x40 object: 1 % and 16 % of the image."""
    mask = np.zeros((100, 100), np.uint8)
    mask[:10, :10], mask[50:90, 50:90] = 7, 12
    look = subject(images=1)
    monkeypatch.setattr(look.dataset, "read", lambda index: (np.zeros((100, 100, 3), np.uint8), mask.copy()))
    monkeypatch.setattr(look.dataset, "read_objects", lambda index: None)
    table = ObjectSizes(edges=[0.05, 0.2])({"ours": look}, tmp_path)
    assert [row["objects"] for row in table] == [1, 1, 0]
    assert table[2]["ours"] is None


def test_probabilities_are_averaged_inside_and_outside_the_class(tmp_path):
    look = subject(images=6)
    labels = np.unique(look.dataset.read(0)[1])
    name = VOC_CLASSES[int(labels[(labels > 0) & (labels < len(VOC_CLASSES))][0])]
    ours, oracle = ClassProbabilities([name], pictures=2)({"ours": look, "oracle": ORACLE}, tmp_path)
    assert (ours["system"], oracle["system"]) == ("ours", "oracle")
    assert (oracle["mean p inside"], oracle["mean p outside"]) == (1.0, 0.0)
    assert ours["mean p inside"] == pytest.approx(0, abs=1e-9)
    assert (tmp_path / f"{name}.png").is_file()


def test_classes_that_are_nowhere_are_told(tmp_path):
    with pytest.raises(UserError, match=r"no class 'cow_boy'; choose among background, aeroplane"):
        ClassProbabilities(["cow_boy"])(alone(images=1), tmp_path)
    look = subject(images=1)
    absent = next(name for k, name in enumerate(VOC_CLASSES) if k not in look.dataset.read(0)[1])
    with pytest.raises(UserError, match="no image of the split shows them"):
        ClassProbabilities([absent])({"ours": look}, tmp_path)


class Sees(nn.Module):
    """Says of each crop that all of it is the class most of its pixels show; knows the scenes' colours by heart."""

    num_classes = len(VOC_CLASSES)

    def __init__(self, label):
        super().__init__()
        self.label = nn.Parameter(torch.tensor(float(label)))

    def forward(self, image):
        logits = torch.zeros(len(image), self.num_classes, *image.shape[-2:])
        logits[:, int(self.label)] = 9
        return logits


def test_more_proposals_find_more(tmp_path, monkeypatch):
    """Two objects of class 7, each box adds its own: after one box the larger is found, after two both."""
    mask = np.zeros((60, 80), np.uint8)
    mask[5:25, 5:25], mask[30:60, 40:80] = 7, 7
    look = subject(Sees(7), ProposalPredictor(TruthBoxes(), min_side=0, extend=1, size=8), images=1)
    monkeypatch.setattr(look.dataset, "read", lambda index: (np.zeros((60, 80, 3), np.uint8), mask.copy()))
    table = ProposalCount([1, 2, 5])({"ours": look}, tmp_path)
    assert [row["proposals"] for row in table] == [1, 2, 5]
    small, large, background = 400, 1200, 3200
    after_one = (large / (small + large) + background / (background + small)) / 2
    assert table[0]["mIoU of the classes present"] == pytest.approx(after_one)
    assert table[1]["mIoU"] == table[2]["mIoU"] == 1.0
    assert (tmp_path / "steps.png").is_file()
    assert (tmp_path / "curve.png").is_file()


def test_counting_proposals_needs_proposals(tmp_path):
    with pytest.raises(UserError, match="give inference=proposals"):
        ProposalCount()(alone(), tmp_path)
    with pytest.raises(UserError, match=r"study\.counts=\[5, 1\]"):
        ProposalCount([5, 1])


@pytest.mark.parametrize(
    ("study", "key"),
    [
        (lambda: ProposalCount(images=-1), "images=-1"),
        (lambda: ObjectSizes(pictures=0), "pictures=0"),
        (lambda: ClassProbabilities(pictures=0), "pictures=0"),
        (lambda: Activations(context=0), "context=0"),
    ],
)
def test_numbers_that_make_no_sense(study, key):
    with pytest.raises(UserError, match=rf"study\.{key}: must be at least 1"):
        study()


def test_activations_follow_the_paper(tmp_path):
    """Sides of fig. 4; an unpooling leaves at least three of four values at 0."""
    torch.manual_seed(0)
    table = Activations(images=1)(alone(DeconvNet(21, width=0.03), images=1), tmp_path)
    assert [row["side"] for row in table] == [14, 28, 28, 56, 56, 112, 112, 224, 224]
    assert all(row["active values"] <= 0.25 for row in table if row["map"].startswith("unpool"))
    assert all(0 <= row["on the object"] <= 1.0001 for row in table)
    assert Image.open(tmp_path / "activations.png").width > 600


def test_the_objects_own_channel_can_be_drawn(tmp_path, monkeypatch):
    """Channel 0 is active all over, channel 1 on the object alone, a quarter of the crop, and less in sum."""
    look = subject(images=1)
    mask = np.zeros((40, 40), np.uint8)
    mask[10:30, 10:30] = 5
    monkeypatch.setattr(look.dataset, "read", lambda index: (np.zeros((40, 40, 3), np.uint8), mask.copy()))
    monkeypatch.setattr(look.dataset, "read_objects", lambda index: None)
    maps = torch.zeros(1, 2, 8, 8)
    maps[0, 0], maps[0, 1, 2:6, 2:6] = 1, 2
    look.net.activations = lambda image: {"map": maps}
    study = {"images": 1, "size": 40, "context": 2}
    (strongest,) = Activations(**study)({"ours": look}, tmp_path)
    (own,) = Activations(channel="object", **study)({"ours": look}, tmp_path)
    assert (strongest["on the object"], own["on the object"]) == (0.25, 1.0)


def test_activations_need_a_deconvolution_network(tmp_path):
    for study in (Activations(), Unpooling()):
        with pytest.raises(UserError, match="Nothing has no maps of deconvolutions"):
            study(alone(), tmp_path)


def colours_of(path):
    """How many colours a picture has: a blank one has one, an empty figure with letters some greys."""
    return len(np.unique(np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3), axis=0))


def test_unpooling_puts_all_at_a_maximum_of_its_pooling(tmp_path):
    """Sides double from 7 to 224; at most one of four values is active, and it lies where the pooling found its own."""
    torch.manual_seed(0)
    table = Unpooling()(alone(DeconvNet(21, width=0.03), images=1), tmp_path)
    assert [(row["unpooling"], row["from"], row["to"]) for row in table] == [
        (f"unpool{level}", 224 >> level, 448 >> level) for level in (5, 4, 3, 2, 1)
    ]
    for row in table:
        assert 0 < row["active, unpooled"] <= 0.25 < row["active, deconvolved"]
        assert row["at a maximum"] == 1
    assert colours_of(tmp_path / "unpooling_0.png") > 100


def test_runs_are_drawn_where_they_differ_most(tmp_path, monkeypatch):
    """Ours says background; the truth shows an object of 10 %, 40 % and 20 % of three images: they differ there."""
    masks = []
    for rows in (10, 40, 20):
        mask = np.zeros((100, 100), np.uint8)
        mask[:rows], mask[-5:] = 7, 255
        masks.append(mask)
    look = subject(images=3, size=(100, 100))
    monkeypatch.setattr(look.dataset, "read", lambda index: (np.full((100, 100, 3), 80, np.uint8), masks[index]))
    drawn = {}
    monkeypatch.setattr(
        "segmod.charts.page", lambda rows, path, columns, labels, **_: drawn.update(c=columns, l=labels)
    )
    ours, oracle = SideBySide(pictures=2)({"ours": look, "oracle": ORACLE}, tmp_path)
    assert drawn["l"] == [look.dataset.names[1], look.dataset.names[2]]
    # of 3 * 9500 pixels with a truth 7000 are the object: background alone has 21500 of 28500 right, and no object
    assert ours["pixel accuracy"] == pytest.approx(215 / 285)
    assert ours["mIoU of the classes present"] == pytest.approx(215 / 285 / 2)
    assert drawn["c"] == ["image", "truth", "ours\nmIoU 37.7 %", "oracle\nmIoU 100.0 %"]
    assert oracle["mIoU"] == 1
    SideBySide(pictures=1)({"ours": look}, tmp_path)  # a single run is held against the truth
    assert drawn["l"] == [look.dataset.names[1]]
    SideBySide(images=[0, look.dataset.names[2]], measure=1)({"ours": look, "oracle": ORACLE}, tmp_path)
    assert drawn["l"] == [look.dataset.names[0], look.dataset.names[2]]


def test_runs_side_by_side_have_a_legend(tmp_path):
    SideBySide(pictures=2)(alone(images=2) | {"oracle": ORACLE}, tmp_path)
    assert colours_of(tmp_path / "side_by_side.png") > 100
    with pytest.raises(UserError, match="run is required: give run=FOLDER"):
        SideBySide()({}, tmp_path)


def test_the_command_writes_table_and_pictures(segmod, small, tmp_path, capsys):
    assert segmod("train", *small, "trainer.max_epochs=1") == 0
    (run,) = tmp_path.glob("runs/**/seed0")
    capsys.readouterr()
    assert segmod("study", f"run={run}", "study=object_sizes", "study.images=2") == 0
    folder = run / "studies" / "object_sizes-val+images-2"
    rows = list(csv.DictReader((folder / "table.csv").read_text().splitlines()))
    assert list(rows[0])[:2] == ["share of the image", "objects"]
    assert (folder / "sizes.png").is_file()
    assert "table and pictures in" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            [],
            "study=... is required; choose one of activations, class_probabilities, curves, heat_map, layers, "
            "object_sizes, proposal_count, side_by_side, skip",
        ),
        (["study=colours"], "study=colours: no such option"),
        (["study=object_sizes", "run=nowhere"], "nowhere"),
    ],
)
def test_mistakes_are_told_in_one_line(segmod, capsys, overrides, message):
    assert segmod("study", "run=x", *overrides) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_pictures_go_to_loggers_that_take_them(tmp_path, monkeypatch):
    from segmod.commands import study

    sent = {}
    logger = SimpleNamespace(
        log_image=lambda key, images: sent.update({key: images}),
        log_table=lambda key, columns, data: sent.update({key: data}),
        finalize=lambda status: None,
    )
    monkeypatch.setattr(study, "loggers", lambda cfg, job, group: [object(), logger])
    (tmp_path / "page.png").write_bytes(b"")
    study.log_pictures({"logger": {"csv": {}, "wandb": {}}}, tmp_path, [{"a": 1, "b": 0.5}])
    assert sent == {f"{tmp_path.name}/page": [str(tmp_path / "page.png")], f"{tmp_path.name}/table": [[1, 0.5]]}
