import subprocess
import sys

import pytest
import torch
from torch.utils.data import DataLoader

from segmod.data.base import Split
from segmod.data.order import EvaluationOrder, ResumableLoader, TrainingOrder
from segmod.data.synthetic import SyntheticScenes
from segmod.data.transforms import TrainTransform
from segmod.ground.errors import UserError

SIZE = 11
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # on a machine of few cores


def loader(workers: int, batch_size: int = 2, rank: int = 0, world_size: int = 1) -> ResumableLoader:
    transform = TrainTransform(crop_size=24, scale=(0.5, 2.0))
    scenes = Split(SyntheticScenes(32, SIZE), "train", transform, seed=7)
    return ResumableLoader(
        scenes,
        batch_size=batch_size,
        sampler=TrainingOrder(SIZE, seed=7, rank=rank, world_size=world_size),
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )


def epochs(loader: ResumableLoader, *numbers: int) -> list[dict]:
    batches = []
    for epoch in numbers:
        loader.sampler.set_epoch(epoch)
        batches += list(loader)
    return batches


def same(ours: list[dict], theirs: list[dict]) -> bool:
    return len(ours) == len(theirs) and all(
        a["name"] == b["name"] and torch.equal(a["image"], b["image"]) and torch.equal(a["mask"], b["mask"])
        for a, b in zip(ours, theirs, strict=True)
    )


def test_order_holds_each_sample_once_and_changes_with_epoch_and_seed():
    order = TrainingOrder(SIZE, seed=0)
    first = list(order)
    assert sorted(first) == [(0, index) for index in range(SIZE)]
    order.set_epoch(1)
    second = [index for _, index in order]
    assert sorted(second) == list(range(SIZE))
    indices = [index for _, index in first]
    assert second != indices
    assert [index for _, index in TrainingOrder(SIZE, seed=1)] != indices
    assert list(TrainingOrder(SIZE, seed=0)) == first


@pytest.mark.parametrize("workers", [1, 3])
def test_batches_do_not_depend_on_the_number_of_workers(workers):
    assert same(epochs(loader(workers), 0, 1), epochs(loader(0), 0, 1))


def test_augmentation_changes_with_the_epoch():
    # The same scene is cropped otherwise in the next epoch.
    first, second = ({b["name"][0]: b["image"] for b in epochs(loader(0, batch_size=1), e)} for e in (0, 1))
    assert all(not torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("handed_out", [0, 1, 3, 5])
def test_an_interrupted_epoch_goes_on_where_it_stopped(workers, handed_out):
    whole = epochs(loader(0), 2, 3)  # five batches of two each: the eleventh sample is dropped
    stopped = loader(workers)
    stopped.sampler.set_epoch(2)
    batches = iter(stopped)
    before = [next(batches) for _ in range(handed_out)]
    state = stopped.state_dict() if handed_out else {"epoch": 2, "batches": 0}
    del batches, stopped
    resumed = loader(workers)
    resumed.load_state_dict(state)
    assert same(before + epochs(resumed, 2, 3), whole)


def test_a_state_of_a_finished_epoch_skips_nothing_of_the_next():
    resumed = loader(0)
    resumed.load_state_dict({"epoch": 2, "batches": 5})
    assert same(epochs(resumed, 3), epochs(loader(0), 3))


def test_the_state_survives_being_saved_again_before_a_batch_is_read():
    resumed = loader(0)
    resumed.load_state_dict({"epoch": 2, "batches": 3})
    assert resumed.state_dict() == {"epoch": 2, "batches": 3}


def test_epochs_may_be_read_again():
    again = loader(0)
    assert same(epochs(again, 1, 1), epochs(loader(0), 1) * 2)


def test_an_epoch_set_after_the_iterator_was_made_counts():
    # Lightning makes the iterator first and sets the epoch of a resumed run afterwards.
    late = loader(2)
    batches = iter(late)
    late.sampler.set_epoch(4)
    assert same(list(batches), epochs(loader(0), 4))


def test_ranks_together_see_the_batches_of_one_process():
    # A batch of four as 1 x 4 or 2 x 2: SIZE // 4 = 2 whole batches; 11 // 2 = 5 samples a rank give 2 of two.
    alone = epochs(loader(0, batch_size=4), 0)
    ranks = [epochs(loader(0, batch_size=2, rank=rank, world_size=2), 0) for rank in range(2)]
    assert len(alone) == len(ranks[0]) == len(ranks[1]) == 2
    for job, *parts in zip(alone, *ranks, strict=True):
        assert sorted(job["name"]) == sorted(name for part in parts for name in part["name"])


@pytest.mark.parametrize("world_size", [1, 2, 3, 20])
def test_evaluation_counts_each_sample_once(world_size):
    orders = [EvaluationOrder(SIZE, rank, world_size) for rank in range(world_size)]
    dealt = [list(order) for order in orders]
    assert sorted(index for part in dealt for index in part) == list(range(SIZE))
    assert [len(order) for order in orders] == [len(part) for part in dealt]


class Unreadable(SyntheticScenes):
    def read(self, split, name):
        raise UserError(f"scene {name}: is damaged; mend it")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_user_error_of_a_worker_is_one_line(workers):
    bad = Split(Unreadable(), "train", TrainTransform())
    with pytest.raises(UserError) as caught:
        list(ResumableLoader(bad, batch_size=1, num_workers=workers))
    assert str(caught.value) == "scene train_000000: is damaged; mend it"


def test_a_loader_draws_nothing_from_the_global_generator_when_given_its_own():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    own: DataLoader = ResumableLoader(
        Split(SyntheticScenes(32, 2), "train", TrainTransform()), generator=torch.Generator()
    )
    list(own)
    assert torch.equal(torch.rand(1), expected)


def test_workers_do_not_hang_on_threads_that_opencv_had_before_they_were_forked():
    code = (
        "import cv2, numpy as np;"
        "cv2.setNumThreads(4); cv2.GaussianBlur(np.zeros((2000, 2000, 3), np.uint8), (31, 31), 5);"
        "from segmod.data.synthetic import SyntheticScenes;"
        "from segmod.training.datamodule import SegmentationDataModule;"
        "data = SegmentationDataModule(SyntheticScenes(256, 4), batch_size=2, num_workers=2, crop_size=200);"
        "print(sum(len(batch['name']) for batch in data.train_dataloader()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == ["4"]


def test_importing_the_transforms_asks_no_network():
    # albumentations looks for a newer version of itself at import unless told not to.
    code = (
        "import os, socket; os.environ.pop('NO_ALBUMENTATIONS_UPDATE', None);"
        "socket.getaddrinfo = socket.socket.connect = lambda *a, **k: (print('network'), 1 / 0);"
        "import segmod.data.transforms"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "network" not in done.stdout


@pytest.mark.parametrize("workers", [0, 1])
def test_images_and_masks_arrive_as_they_are(workers):
    scenes = Split(SyntheticScenes(train_images=2), "train", TrainTransform(hflip=0))
    (batch,) = ResumableLoader(scenes, batch_size=2, num_workers=workers)
    assert batch["image"].dtype == batch["mask"].dtype == torch.uint8
    assert torch.equal(batch["image"], torch.stack([scenes[0]["image"], scenes[1]["image"]]))
    assert torch.equal(batch["mask"], torch.stack([scenes[0]["mask"], scenes[1]["mask"]]))
    assert 255 in batch["mask"]


def test_any_samples_can_be_loaded():
    order = TrainingOrder(4, seed=0)
    (batch,) = ResumableLoader(Squares(), batch_size=4, sampler=order)
    assert batch.tolist() == [index**2 for _, index in order]


class Squares(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, key):
        return key[1] ** 2


def test_a_process_ends_though_an_error_left_workers_in_the_middle_of_an_epoch():
    code = """
import torch
from segmod.data.base import Split
from segmod.data.order import ResumableLoader, prepare_worker
loader = ResumableLoader(torch.arange(8), num_workers=2, worker_init_fn=prepare_worker, persistent_workers=True)
batches = iter(loader)
next(batches)
raise SystemExit(3)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 3
