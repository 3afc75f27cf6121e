import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import nn

from segmod.data.synthetic import SyntheticScenes, write_voc_tree
from segmod.ground.errors import UserError
from segmod.nets.normalise import Normalise
from segmod.training.crops import BoxCropDataModule
from segmod.training.datamodule import SegmentationDataModule

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # on a machine of few cores


def scenes(num_classes: int = 21, train_images: int = 10, **keys) -> SegmentationDataModule:
    keys = {"batch_size": 4, "num_workers": 0, "squash": 40, "crop_size": 32, "pad": "black", **keys}
    return SegmentationDataModule(SyntheticScenes(48, train_images, 6, num_classes), **keys)


def crops(data: dict | None = None, **keys) -> BoxCropDataModule:
    return BoxCropDataModule(scenes(**(data or {})), **keys)


def everything(name: str, image: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """Proposals: windows of half and of three quarters of the image."""
    height, width = image.shape[:2]
    half = [
        [x, y, x + width / 2, y + height / 2, 0.5]
        for x in (0, width / 4, width / 2)
        for y in (0, height / 4, height / 2)
    ]
    most = [[x, y, x + width * 0.75, y + height * 0.75, 0.7] for x in (0, width / 4) for y in (0, height / 4)]
    return np.array([*half, *most], dtype=np.float32)


def test_a_batch_of_stage_one():
    module = crops()
    batches = list(module.train_dataloader())
    assert module.train_dataset is not None
    assert len(batches) == len(module.train_dataset) // 4 > 2
    for batch in batches:
        assert batch["image"].shape == (4, 3, 32, 32)
        assert batch["mask"].shape == (4, 32, 32)
        windows = module.train_dataset.windows[batch["index"]]
        width, height = (windows[:, 2:] - windows[:, :2]).T
        assert (width == height).all()
        labels = module.train_dataset.boxes.label[batch["index"]]
        for mask, label in zip(batch["mask"], labels.tolist(), strict=True):
            assert set(mask.unique().tolist()) <= {0, label, 255}


def test_stage_two_labels_all_classes_and_takes_the_objects_boxes_too():
    both, alone = (crops(proposals=everything, include_objects=include) for include in (True, False))
    for module in (both, alone):
        module.setup()
    objects = crops()
    objects.setup()
    assert len(both.train_dataset) == len(alone.train_dataset) + len(objects.train_dataset)
    assert len(alone.train_dataset) > 0
    found = [set(batch["mask"][i].unique().tolist()) - {0, 255} for batch in both.train_dataloader() for i in range(4)]
    assert max(map(len, found)) > 1


def test_classes_come_equally_often():
    module = crops({"num_classes": 4, "train_images": 30, "batch_size": 1})
    counts = torch.zeros(4)
    for batch in module.train_dataloader():
        counts[module.train_dataset.boxes.label[batch["index"]]] += 1
    assert counts[0] == 0
    assert counts[1:].max() - counts[1:].min() <= 1
    boxes = module.train_dataset.boxes
    assert np.ptp(np.bincount(boxes.label)[1:]) > 1  # they are not equally many
    plain = crops({"num_classes": 4, "train_images": 30, "batch_size": 1}, balance=False)
    indices = sorted(int(batch["index"]) for batch in plain.train_dataloader())
    assert indices == list(range(len(boxes)))


def test_validation_takes_the_same_centre_crops_whatever_the_seed():
    first, second = (crops({"seed": seed}, val_crops=5) for seed in (1, 2))
    ours, theirs = (list(module.val_dataloader()) for module in (first, second))
    assert [len(batch["name"]) for batch in ours] == [4, 1]  # in batches as in training, the last one as it comes
    for a, b in zip(ours, theirs, strict=True):
        assert a["name"] == b["name"]
        assert torch.equal(a["image"], b["image"])
        assert a["image"].shape[1:] == (3, 32, 32)
    assert first.scored_on == "val crops"
    everything = crops(val_crops=None)
    everything.setup("validate")
    assert len(everything.val_dataset) > 5


def test_stage_two_validates_on_whole_crops():
    """Stage 1 sees the middle 32 of 40 pixels, stage 2 all of the crop at 32."""
    for keys, wanted in (({}, (40, 32)), ({"proposals": everything}, (32, None))):
        module = crops(**keys)
        module.setup("validate")
        transform = module.val_dataset.transform
        assert (transform.squash, transform.centre) == wanted
        assert module.val_dataset[0]["image"].shape == (3, 32, 32)


def test_where_boxes_come_from_is_told_once(caplog):
    module = crops()
    with caplog.at_level(logging.INFO):
        module.prepare_data()
        module.setup("fit")
        module.setup("validate")
    told = [record.getMessage() for record in caplog.records if "boxes in" in record.getMessage()]
    assert len(told) == 2
    assert "10 images; objects: the scenes' own" in told[0]
    assert told[1].startswith("val: ")


def test_missing_proposals_are_made_before_the_training():
    asked = []

    def source(name, image, mask=None):
        asked.append(name)
        return everything(name, image, mask)

    module = crops(proposals=source)
    module.prepare_data()
    assert len(asked) == 16
    module.setup("fit")
    assert len(asked) == 16


@pytest.mark.parametrize(("proposals", "balance", "cache"), [(None, True, 512), (everything, False, 4)])
def test_batches_depend_on_neither_workers_nor_ranks_nor_cache(proposals, balance, cache):
    def batches(workers=0, place=(0, 1), cache=cache):
        module = crops(
            {"num_workers": workers, "train_images": 8}, proposals=proposals, balance=balance, cache_images=cache
        )
        module.images.place = lambda: place  # type: ignore[method-assign]
        loader = module.train_dataloader()
        loader.sampler.set_epoch(1)
        return list(loader)

    alone, workers = batches(), batches(workers=2)
    assert len(alone) > 1
    for a, b in zip(alone, workers, strict=True):
        assert a["name"] == b["name"]
        assert torch.equal(a["image"], b["image"])
        assert torch.equal(a["mask"], b["mask"])
    ranks = [batches(place=(rank, 2)) for rank in (0, 1)]
    for job, *parts in zip(alone, *ranks, strict=True):
        both = {name: image for part in parts for name, image in zip(part["name"], part["image"], strict=True)}
        assert sorted(both) == sorted(set(job["name"]))
    if cache >= 8:  # images, which are then mixed without a window
        assert [batch["name"] for batch in batches(cache=100)] == [batch["name"] for batch in alone]


class Recorder(LightningModule):
    """One weight per channel, and a record of every batch it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(Normalise(), nn.Conv2d(3, 21, 1))
        self.seen: list[tuple[int, list[str], float]] = []

    def training_step(self, batch, batch_index):
        self.seen.append((self.current_epoch, batch["name"], float(batch["image"].double().sum())))
        return nn.functional.cross_entropy(self.net(batch["image"]), batch["mask"].long(), ignore_index=255)

    def validation_step(self, batch, batch_index):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class StopAt(Callback):
    """Die as a killed process does."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 3:
            raise SystemExit


@pytest.mark.filterwarnings("ignore")  # Lightning advises on workers and validation
def test_an_epoch_of_crops_is_resumed_where_it_stopped(tmp_path):
    def fit(*callbacks: Callback, path: str | None = None) -> Recorder:
        torch.manual_seed(0)
        module = Recorder()
        trainer = Trainer(
            accelerator="cpu", max_steps=8, logger=False, enable_progress_bar=False, enable_model_summary=False,
            num_sanity_val_steps=0, limit_val_batches=0,
            callbacks=[ModelCheckpoint(tmp_path, every_n_train_steps=2, save_last=True), *callbacks],
        )  # fmt: skip
        trainer.fit(module, datamodule=crops(), ckpt_path=path)
        return module

    whole = fit()
    (tmp_path / "last.ckpt").unlink()
    with pytest.raises(SystemExit):
        fit(StopAt())
    assert fit(path=str(tmp_path / "last.ckpt")).seen == whole.seen[2:]


@pytest.mark.parametrize(
    ("data", "keys", "message"),
    [
        ({}, {"context": 0}, r"data\.crops\.context=0"),
        ({}, {"min_iou": 0.0}, r"data\.crops\.min_iou=0\.0"),
        ({}, {"min_iou": 1.5}, r"data\.crops\.min_iou=1\.5"),
        ({}, {"min_side": 0}, r"data\.crops\.min_side=0"),
        ({}, {"val_crops": 0}, r"data\.crops\.val_crops=0"),
        ({}, {"cache_images": -1}, r"data\.crops\.cache_images=-1"),
        ({"squash": None}, {}, r"data\.squash"),
        ({"batch_size": 300}, {}, r"data\.batch_size=300: split train has only \d+ boxes"),
        ({}, {"min_side": 48}, r"split train of 10 images has no object.*data\.crops\.min_side"),
    ],
)
def test_mistakes_name_their_key(data, keys, message):
    with pytest.raises(UserError, match=message) as caught:
        crops(data, **keys).setup("fit")
    assert "\n" not in str(caught.value)


def test_a_run_trains_on_crops_and_is_evaluated_on_whole_images(segmod, small, tmp_path: Path):
    write_voc_tree(tmp_path, train=8, val=3, size=(64, 80))
    kept = [key for key in small if not key.startswith(("data.dataset", "data.crop", "trainer.max"))]
    crops = ("data.squash=40", "data.crop_size=32", "data.crops.val_crops=4", f"data.root={tmp_path}")
    assert (
        segmod(
            "train", "data=voc", "crops=proposals", "proposals=grid", *kept, *crops, "name=run", "trainer.max_steps=3"
        )
        == 0
    )
    (path,) = tmp_path.glob("runs/**/seed0/metrics.json")
    trained = json.loads(path.read_text())
    assert (trained["split"], trained["images"], trained["inference"]) == ("val crops", 4, "crops")
    assert segmod("evaluate", f"run={path.parent}", "trainer.enable_progress_bar=false") == 0
    (evaluation,) = path.parent.glob("evaluation/*/metrics.json")
    scored = json.loads(evaluation.read_text())
    assert (scored["split"], scored["images"]) == ("val", 3)
    assert scored["predictor"]["size"] is None, "whole images were squashed to the size of the crops"
    assert segmod("tables", "table=runs") == 0
    table = (tmp_path / "tables" / "runs.md").read_text()
    assert "VOC2012 val crops, 4 |" in table  # not "4 images"
    assert "VOC2012 val, 3 images |" in table
