import signal

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from segmod.ground.errors import UserError
from segmod.ground.palettes import Legend
from segmod.nets.hypercolumn import Hypercolumn
from segmod.training.sparse import HypercolumnSparse, draw_points

CLASSES = ("background", "left", "right")
IMAGES = 6


class Halves(Dataset):
    """Images whose left half is red and whose right half is blue; background above, void in the last row."""

    def __init__(self):
        self.reads = 0

    def __len__(self):
        return IMAGES

    def __getitem__(self, index):
        self.reads += 1
        generator = torch.Generator().manual_seed(index)
        image = 120 + 6 * torch.randn(3, 16, 16, generator=generator)
        mask = torch.zeros(16, 16, dtype=torch.uint8)
        image[0, 4:, :8] += 120
        image[2, 4:, 8:] += 120
        mask[4:, :8], mask[4:, 8:] = 1, 2
        mask[-1] = 255
        return {"image": image.clamp(0, 255).byte(), "mask": mask, "name": str(index), "index": index}


class Images(L.LightningDataModule):
    legend = Legend("Halves", CLASSES)
    num_workers = 0

    def setup(self, stage):
        self.train_dataset = Halves()
        self.val_dataset = Halves()

    def val_dataloader(self):
        return torch.utils.data.DataLoader(self.val_dataset, batch_size=1)


def module(**options):
    torch.manual_seed(0)
    taps = [f"features.{i}" for i in (1, 4, 7, 10, 13)]  # 4 + 8 + 16 + 24 + 32 channels
    net = Hypercolumn(3, "tiny", taps, width=0.25, hidden=16, **options.pop("net", {}))
    return HypercolumnSparse(
        net, nn.CrossEntropyLoss(), lambda groups, **kwargs: torch.optim.Adam(groups, lr=0.01), **options
    )


def fit(sparse, folder, images=None, **options):
    trainer = L.Trainer(
        **{"max_epochs": 1, "accelerator": "cpu", "devices": 1, "default_root_dir": folder, "logger": False,
           "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
           "use_distributed_sampler": False, "num_sanity_val_steps": 0, **options}
    )  # fmt: skip
    trainer.fit(sparse, datamodule=sparse.adapt(images or Images()))
    return trainer


def test_points_are_drawn_of_every_class_present_and_never_of_void():
    mask = torch.full((9, 7), 255)
    mask[2, 3] = 1  # one pixel only: it is drawn again and again
    mask[5:, :4] = 2
    points, labels = draw_points(mask, 3, (0, 0))
    assert labels.tolist() == [1, 1, 1, 2, 2, 2]
    assert points[:3].tolist() == [[2, 3]] * 3
    assert all(mask[row, column] == 2 for row, column in points[3:].tolist())


def test_the_draw_depends_on_seed_and_image_alone():
    mask = torch.zeros(40, 40, dtype=torch.int64)
    first, _ = draw_points(mask, 5, (0, 1))
    torch.manual_seed(99)
    assert torch.equal(draw_points(mask, 5, (0, 1))[0], first)
    assert not torch.equal(draw_points(mask, 5, (0, 2))[0], first)
    assert not torch.equal(draw_points(mask, 5, (1, 1))[0], first)


def test_an_image_of_void_alone_has_no_points():
    points, labels = draw_points(torch.full((3, 3), 255), 3, (0, 0))
    assert points.shape == (0, 2)
    assert labels.shape == (0,)


def test_rows_are_the_hypercolumns_of_the_drawn_pixels():
    sparse = module(points_per_class=2)
    rows = sparse.collect(Halves())
    assert rows["features"].shape == (IMAGES * 3 * 2, 84)
    assert rows["label"].tolist() == [0, 0, 1, 1, 2, 2] * IMAGES
    sample = Halves()[4]
    points, _ = draw_points(sample["mask"], 2, (0, 4))
    with torch.no_grad():
        expected = sparse.net.eval().point_features(sample["image"][None], points[None])[0]
    torch.testing.assert_close(rows["features"][24:30], expected)


@pytest.mark.parametrize("grid", [1, 2])
def test_the_loss_of_rows_is_the_loss_of_the_dense_map_at_their_pixels(grid):
    sparse = module(net={"grid": grid})
    rows = sparse.collect(Halves())
    sample = Halves()[0]
    points, labels = draw_points(sample["mask"], 3, (0, 0))
    with torch.no_grad():
        logits = sparse.net(sample["image"][None])[0][:, points[:, 0], points[:, 1]].T
        batch = {name: column[:9] for name, column in rows.items()}
        torch.testing.assert_close(sparse.compute_loss(batch), nn.functional.cross_entropy(logits, labels))


def test_training_learns_and_standardises_by_the_rows(tmp_path):
    sparse = module()
    trainer = fit(sparse, tmp_path, max_epochs=60, check_val_every_n_epoch=60)
    rows = torch.load(tmp_path / "points.pt", weights_only=True)["features"]
    torch.testing.assert_close(sparse.net.mean, rows.mean(0))
    torch.testing.assert_close(sparse.net.std, rows.std(0, correction=0))
    assert trainer.global_step == 60  # all rows in one step
    # three colours, nearly without noise: far more than the largest class's 3/8 of the labelled pixels
    assert float(trainer.callback_metrics["val/pixel_acc"]) > 0.9


def test_features_are_computed_once(tmp_path):
    first = Images()
    fit(module(), tmp_path, first)
    assert first.train_dataset.reads == IMAGES
    again = Images()
    fit(module(), tmp_path, again)
    assert again.train_dataset.reads == 0
    other = Images()
    fit(module(points_per_class=4), tmp_path, other)
    assert other.train_dataset.reads == IMAGES


def test_a_broken_cache_is_made_anew(tmp_path):
    fit(module(), tmp_path)
    data = (tmp_path / "points.pt").read_bytes()
    (tmp_path / "points.pt").write_bytes(data[: len(data) // 2])
    images = Images()
    fit(module(), tmp_path, images)
    assert images.train_dataset.reads == IMAGES
    assert (tmp_path / "points.pt").read_bytes() == data
    assert [path.name for path in tmp_path.iterdir()] == ["points.pt"]


def test_batches_of_rows_go_through_all_of_them_once_an_epoch(tmp_path):
    trainer = fit(module(rows=16), tmp_path)
    assert trainer.global_step == 4  # 6 images x 3 classes x 3 points = 54 rows: 16, 16, 16 and 6
    loader = trainer.train_dataloader
    labels = torch.cat([batch["label"] for batch in loader])
    assert labels.bincount().tolist() == [18, 18, 18]


def test_equal_seeds_train_equal_weights(tmp_path):
    states = []
    for folder in ("a", "b"):
        sparse = module(rows=10)
        fit(sparse, tmp_path / folder, max_epochs=3)
        states.append(sparse.net.state_dict())
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_the_rest_of_the_datamodule_is_the_images_one():
    adapted = module().adapt(Images())
    assert adapted.legend.classes == CLASSES


def test_a_net_without_hypercolumns_is_refused():
    net = nn.Conv2d(3, 3, 1)
    net.num_classes = 3
    with pytest.raises(UserError, match=r"model\.net=Conv2d"):
        HypercolumnSparse(net, nn.CrossEntropyLoss(), torch.optim.Adam)


@pytest.mark.parametrize("options", [{"points_per_class": 0}, {"rows": 0}])
def test_impossible_values_name_their_key(options):
    with pytest.raises(UserError, match=rf"model\.{next(iter(options))}=0"):
        module(**options)


def test_images_without_labels_are_an_error():
    class Void(Halves):
        def __getitem__(self, index):
            return {**super().__getitem__(index), "mask": torch.full((16, 16), 255)}

    with pytest.raises(UserError, match="no pixel of the training images has a label"):
        module().collect(Void())


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_one_line(workers):
    class Damaged(Halves):
        def __getitem__(self, index):
            raise UserError(f"image {index}: is damaged; mend it")

    with pytest.raises(UserError) as caught:
        module().collect(Damaged(), workers)
    assert str(caught.value) == "image 0: is damaged; mend it"


def test_workers_leave_signals_to_the_main_process_and_change_no_random_number():
    class Ignoring(Halves):
        def __getitem__(self, index):
            ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
            return {**super().__getitem__(index), "mask": torch.full((16, 16), int(ignored))}

    sparse = module()
    state = torch.get_rng_state()
    assert sparse.collect(Ignoring(), 1)["label"].unique().tolist() == [1]
    assert torch.equal(torch.get_rng_state(), state)


def test_features_are_loaded_by_as_many_workers_as_the_images(tmp_path, monkeypatch):
    class Two(Images):
        num_workers = None  # as the user gives it: the loaders know what it comes to

        def val_dataloader(self):
            return torch.utils.data.DataLoader(self.val_dataset, batch_size=1, num_workers=2)

    asked = []
    sparse = module()
    collect = sparse.collect
    monkeypatch.setattr(sparse, "collect", lambda images, workers: asked.append(workers) or collect(images))
    fit(sparse, tmp_path, Two(), limit_val_batches=0)
    assert asked == [2]
