from pathlib import Path

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import nn

from segmod.data.synthetic import SyntheticScenes, write_voc_tree
from segmod.data.voc import PascalVOC
from segmod.ground.errors import UserError
from segmod.ground.types import IGNORE_INDEX
from segmod.nets.normalise import Normalise
from segmod.training.datamodule import SegmentationDataModule


def synthetic(**keys) -> SegmentationDataModule:
    of_scenes = {key: keys.pop(key) for key in ("size", "train_images", "num_classes") if key in keys}
    scenes = SyntheticScenes(**{"size": 32, "train_images": 12, "val_images": 3, **of_scenes})
    return SegmentationDataModule(scenes, **{"batch_size": 4, "num_workers": 0, **keys})


def voc(root: Path, **keys) -> SegmentationDataModule:
    return SegmentationDataModule(PascalVOC(root), **keys)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_voc_tree(tmp_path, train=6, val=2, size=(32, 48))
    return tmp_path


def test_training_batch():
    module = synthetic(crop_size=24)
    module.setup("fit")
    batches = list(module.train_dataloader())
    assert len(batches) == 3  # 12 scenes by 4
    batch = batches[0]
    assert batch["image"].shape == (4, 3, 24, 24)
    assert batch["image"].dtype == batch["mask"].dtype == torch.uint8
    assert batch["mask"].shape == (4, 24, 24)
    assert batch["index"].dtype == torch.int64
    assert batch["name"] == [f"train_{index:06d}" for index in batch["index"]]


def test_incomplete_training_batches_are_dropped():
    module = synthetic(batch_size=5)
    assert [len(batch["name"]) for batch in module.train_dataloader()] == [5, 5]


def test_voc_evaluation_images_keep_their_size_and_order(root):
    module = voc(root, batch_size=2, squash=16, num_workers=0)
    module.setup()
    batches = list(module.val_dataloader())
    assert [batch["image"].shape for batch in batches] == [(1, 3, 32, 48)] * 2
    assert [batch["mask"].shape for batch in batches] == [(1, 32, 48)] * 2
    assert [int(batch["index"]) for batch in batches] == [0, 1]
    assert next(iter(module.train_dataloader()))["image"].shape == (2, 3, 16, 16)


def test_eval_squash_gives_small_masks(root):
    module = voc(root, batch_size=2, squash=16, eval_squash=True, num_workers=0)
    batch = next(iter(module.val_dataloader()))
    assert batch["image"].shape == (1, 3, 16, 16)
    assert batch["mask"].shape == (1, 16, 16)


def test_any_split_can_be_opened(root):
    images = voc(root, batch_size=1, squash=16).split("trainval")
    assert len(images) == 8
    assert images[0]["image"].shape == (3, 32, 48)  # whole, not augmented


def test_names_and_colours_come_from_the_data():
    data, classes, palette = synthetic(num_classes=5).legend
    assert (data, classes) == ("Synthetic", ("background", "aeroplane", "bicycle", "bird", "boat"))
    assert palette[1].tolist() == [128, 0, 0]


def test_void_as_background_in_training_and_evaluation():
    module = synthetic(void_as_background=True)
    module.setup()
    for dataset in (module.train_dataset, module.val_dataset):
        assert all((sample["mask"] != IGNORE_INDEX).all() for sample in dataset)


def test_scenes_are_the_same_for_every_run_seed_but_their_order_is_not():
    first, second = synthetic(seed=1), synthetic(seed=2)
    names = [[name for batch in module.train_dataloader() for name in batch["name"]] for module in (first, second)]
    assert names[0] != names[1]
    assert sorted(names[0]) == sorted(names[1])
    assert torch.equal(first.val_dataloader().dataset[0]["image"], second.val_dataloader().dataset[0]["image"])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"batch_size": 0}, r"data\.batch_size=0"),
        ({"batch_size": "4"}, r"data\.batch_size=4"),
        ({"batch_size": 2.5}, r"data\.batch_size=2\.5"),
        ({"num_workers": -1}, r"data\.num_workers=-1"),
        ({"seed": -1}, r"data\.seed=-1"),
        ({"num_classes": 22}, r"data\.dataset\.num_classes=22.*2 to 21"),
        ({"num_classes": 1}, r"data\.dataset\.num_classes=1"),
        ({"size": 8}, r"data\.dataset\.size=8"),
        ({"train_images": 0}, r"data\.dataset\.train_images=0"),
        ({"crop_size": 40}, r"data\.crop_size=40.*Synthetic, 32x32 pixels"),
        ({"crop_size": 40, "squash": 36}, r"data\.crop_size=40.*data\.squash=36"),
        ({"eval_squash": True}, r"data\.eval_squash=true.*data\.squash"),
    ],
)
def test_impossible_values_name_their_key(keys, message):
    with pytest.raises(UserError, match=message) as caught:
        synthetic(**keys)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keys", [{"crop_size": 60, "scale": (0.5, 2.0)}, {"batch_size": 1, "scale": (0.5, 2.0)}])
def test_possible_values(keys):
    assert synthetic(**keys).train_transform is not None


def test_images_of_different_sizes_make_no_batch(root):
    for module in (voc(root, batch_size=2), synthetic(batch_size=2, scale=(0.5, 2.0))):
        with pytest.raises(UserError, match=r"data\.batch_size=2: images of different.*crop_size.*data\.batch_size=1"):
            module.train_dataloader()


def test_each_of_two_processes_may_have_one_whole_image(root, monkeypatch):
    module = voc(root, batch_size=2, num_workers=0)
    monkeypatch.setattr(module, "place", lambda: (1, 2))
    assert next(len(batch["name"]) for batch in module.train_dataloader()) == 1


def test_set_smaller_than_a_batch(root):
    module = voc(root, batch_size=7, crop_size=16)
    with pytest.raises(UserError, match=r"data\.batch_size=7: split train has only 6 images"):
        module.setup("fit")


def test_verify_reads_both_splits(root):
    file = next((root / "VOCdevkit/VOC2012/JPEGImages").glob("*.jpg"))
    file.write_bytes(b"")
    module = voc(root, batch_size=1, verify=True)
    with pytest.raises(UserError, match=f"1 of 8 images are bad: {file}"):
        module.prepare_data()


class Recorder(LightningModule):
    """One weight per channel, and a record of every batch it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(Normalise(), nn.Conv2d(3, 21, 1))
        self.seen: list[tuple[int, list[str], float]] = []

    def training_step(self, batch, batch_index):
        self.seen.append((self.current_epoch, batch["name"], float(batch["image"].double().sum())))
        return nn.functional.cross_entropy(self.net(batch["image"]), batch["mask"].long(), ignore_index=IGNORE_INDEX)

    def validation_step(self, batch, batch_index):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class StopAt(Callback):
    """Die as a killed process does: no hook runs, no checkpoint is written."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            raise SystemExit


def fit(folder: Path, workers: int, stop: int | None = None, resume: bool = False) -> Recorder:
    torch.manual_seed(0)
    module = Recorder()
    checkpoint = ModelCheckpoint(folder, every_n_train_steps=2, save_last=True)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=3,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[checkpoint, *([StopAt(stop)] if stop else [])],
    )
    data = synthetic(crop_size=24, train_images=10, batch_size=2, num_workers=workers)
    if stop:
        with pytest.raises(SystemExit):
            trainer.fit(module, datamodule=data)
    else:
        trainer.fit(module, datamodule=data, ckpt_path=str(folder / "last.ckpt") if resume else None)
    return module


@pytest.mark.filterwarnings("ignore")  # Lightning advises on workers and validation
@pytest.mark.parametrize(("workers", "stop", "saved"), [(0, 3, 2), (0, 6, 6), (2, 9, 8), (2, 10, 10)])
def test_lightning_resumes_in_the_middle_of_an_epoch(tmp_path, workers, stop, saved):
    # Five batches an epoch, a checkpoint every second step; 10 is the end of the second epoch.
    whole = fit(tmp_path / "whole", 0)
    assert len(whole.seen) == 15
    stopped = fit(tmp_path / "stopped", workers, stop)
    assert stopped.seen == whole.seen[: stop + 1][: len(stopped.seen)]
    resumed = fit(tmp_path / "stopped", workers, resume=True)
    assert resumed.seen == whole.seen[saved:]
    for ours, theirs in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_batch_is_divided_among_the_processes():
    module = synthetic(batch_size=6)
    module.trainer = Ranks(rank=1, world_size=2)
    loader = module.train_dataloader()
    assert loader.batch_size == 3
    assert len(loader) == 2  # 12 scenes, 6 for each of two ranks
    assert [int(batch["index"]) for batch in module.val_dataloader()] == [1]
    module.trainer = Ranks(rank=0, world_size=4)
    with pytest.raises(UserError, match=r"data\.batch_size=6: not divisible by the 4 processes.*multiple of 4"):
        module.train_dataloader()


class Ranks:
    """The part of a Trainer that says where a process stands."""

    class strategy:  # noqa: N801 (a Trainer's attribute)
        root_device = torch.device("cpu")

    def __init__(self, rank: int, world_size: int) -> None:
        self.global_rank = rank
        self.world_size = world_size
        self.num_devices = world_size
