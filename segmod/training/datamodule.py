"""The Lightning datamodule of images and masks: splits of a data set, loaders and their order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from lightning import LightningDataModule
from torch.utils.data import Dataset as AnySamples

from segmod.data import summary
from segmod.data.base import Dataset, Split, Transform
from segmod.data.order import EvaluationOrder, ResumableLoader, TrainingOrder, cores, prepare_worker
from segmod.data.passes import verify as verify_images
from segmod.data.transforms import EvalTransform, TrainTransform, scale_range
from segmod.ground.errors import require, whole
from segmod.ground.types import IGNORE_INDEX, Amount, Factor, Fraction, Images, Positive, Processes, Sample, Side, Text

_MAX_WORKERS = 4


class SegmentationDataModule(LightningDataModule):
    """Loaders for one data set.

    Training batches have one size. Evaluation images keep their own size, one a batch, unless ``eval_squash``.

    Args:
        dataset: the data set, which brings its classes and colours.
        train_split: name of the split trained on.
        val_split: name of the split validated on.
        batch_size: training images a step of the whole job; divided by the number of processes.
        seed: seed of order and augmentation.
        num_workers: loading processes of each loader; None for one a core up to 4.
        crop_size: side of the random square crop in pixels; None for whole images.
        scale: range of a random resize factor; None for none.
        short_side: resize so that the shorter side has this many pixels, before ``scale``.
        squash: resize to a square of this side, aspect ignored, before ``scale``.
        eval_squash: squash validation images and masks too, so that metrics are those of the small masks.
        hflip: probability of a horizontal flip.
        pad: colour of padding, ``mean`` or ``black``.
        antialias: let every pixel of an image count where it shrinks, as PIL and MATLAB do; see `resized`.
        augment: further transforms of training images, of albumentations; see `augmentations`.
        void_as_background: train and evaluate void pixels as background.
        class_weights: factors of the classes in the loss, which configs hand on to the module as
            ``${data.class_weights}``; not used here. ``auto`` is `balancing_weights`.
        crops: makes of this the datamodule that a run trains on, such as `BoxCropDataModule`; None for this itself.
            Evaluation is of whole images all the same.
        download: fetch what is missing, where the data set knows how.
        verify: read every image of both splits before training.
        summary: so many images of each split are looked at and described before training; None for none.
        root: folder of the data, which configs hand on to the data set as ``${data.root}``; not used here.

    Raises:
        UserError: a value makes no sense.
    """

    # A rank may be left without images when there are more ranks than images.
    allow_zero_length_dataloader_with_multiple_devices = True

    def __init__(
        self,
        dataset: Dataset,
        train_split: Text = "train",
        val_split: Text = "val",
        batch_size: Images = 1,
        seed: Amount = 0,
        num_workers: Processes | None = None,
        crop_size: Side | None = None,
        scale: Sequence[Factor] | None = None,
        short_side: Side | None = None,
        squash: Side | None = None,
        eval_squash: bool = False,
        hflip: Fraction = 0.5,
        pad: str = "mean",
        antialias: bool = False,
        augment: Any = (),
        void_as_background: bool = False,
        class_weights: Literal["auto"] | Sequence[Positive] | None = None,
        crops: Callable[[SegmentationDataModule], LightningDataModule] | None = None,
        download: bool = False,
        verify: bool = False,
        summary: int | None = None,
        root: str | Path | None = None,
    ) -> None:
        super().__init__()
        require(whole(batch_size, 1), f"data.batch_size={batch_size}: must be a whole number of at least 1")
        require(num_workers is None or whole(num_workers, 0), f"data.num_workers={num_workers}: must be 0 or more")
        require(whole(seed, 0), f"data.seed={seed}: must be a whole number of at least 0")
        require(summary is None or whole(summary, 1), f"data.summary={summary}: must be 1 or more images, or null")
        require(not eval_squash or squash is not None, "data.eval_squash=true: set data.squash to the size as well")
        self.train_transform = TrainTransform(crop_size, scale, short_side, squash, hflip, pad, antialias, augment)
        size = dataset.image_size
        self._one_size = self.train_transform.gives_one_size(size is not None)
        if size is not None and crop_size and not squash and not short_side:
            require(
                crop_size <= max(size) * scale_range(scale)[1],
                f"data.crop_size={crop_size}: larger than any image of {dataset.name}, {size[1]}x{size[0]} pixels "
                "times data.scale; lower it",
            )
        self.eval_transform = EvalTransform(squash if eval_squash else None, antialias=antialias)
        self.dataset = dataset
        self.legend = dataset.legend
        self.train_split = train_split
        self.val_split = val_split
        self.batch_size = batch_size
        self.crop_size = crop_size
        self.squash = squash
        self.antialias = antialias
        self.crops = crops
        self.seed = seed
        self.num_workers = num_workers
        self.void_as_background = void_as_background
        self.download = download
        self.verify = verify
        self.summary = summary
        self.train_dataset: Split | None = None
        self.val_dataset: Split | None = None

    def for_training(self) -> LightningDataModule:
        """Return the datamodule that a run trains on and validates on: crops of this one's images, or this one."""
        return self if self.crops is None else self.crops(self)

    def split(self, name: str, transform: Transform | None = None) -> Split:
        """Return the images of a split; without a transform whole, as they are validated on."""
        return Split(self.dataset, name, transform or self.eval_transform, self.seed, self.void_as_background)

    def prepare_data(self) -> None:
        """Download, verify and show what there is, in one process."""
        splits = list(dict.fromkeys((self.train_split, self.val_split)))
        if self.download:
            self.dataset.download(splits)
        if self.verify:
            verify_images([self.split(name) for name in splits])
        if self.summary is not None:
            summary.show([self.split(name) for name in splits], self.summary)

    def balancing_weights(self) -> dict[str, float]:
        """Return the weight of each class by its name, counted over the masks of the training split."""
        split = self.split(self.train_split)
        pixels = summary.look(split, len(split)).pixels
        if self.void_as_background:
            pixels[:, 0] += pixels[:, IGNORE_INDEX]
        return dict(zip(self.legend.classes, summary.balancing_weights(pixels, len(self.legend.classes)), strict=True))

    def measured_colours(self) -> dict[str, list[float]]:
        """Return mean and standard deviation of red, green and blue, 0..255, over 500 training images, or all."""
        if self.download:
            self.dataset.download([self.train_split])
        return summary.mean_and_std(summary.look(self.split(self.train_split), 500).colours)

    def setup(self, stage: str | None = None) -> None:
        """Open the splits that a stage (``fit``, ``validate``; None for all) needs.

        Raises:
            UserError: the training set is smaller than a batch.
        """
        if stage in (None, "fit") and self.train_dataset is None:
            self.train_dataset = self.split(self.train_split, self.train_transform)
            size = len(self.train_dataset)
            require(
                size >= self.batch_size,
                f"data.batch_size={self.batch_size}: split {self.train_split} has only {size} images; lower it",
            )
        if self.val_dataset is None:
            self.val_dataset = self.split(self.val_split)

    def train_dataloader(self) -> ResumableLoader:
        """Return the loader of augmented batches, in an order that depends on (seed, epoch) alone.

        Raises:
            UserError: the batch cannot be divided among the processes, or its images have different sizes.
        """
        if self.train_dataset is None:
            self.setup("fit")
        assert self.train_dataset is not None
        rank, world_size = self.place()
        each = self.batch_a_process()
        require(
            each == 1 or self._one_size,
            f"data.batch_size={self.batch_size}: images of different sizes make no batch of {each} a process; "
            f"set data.crop_size or data.squash, or data.batch_size={world_size}",
        )
        order = TrainingOrder(len(self.train_dataset), self.seed, rank, world_size)
        return self.loader(self.train_dataset, order, each)

    def val_dataloader(self) -> ResumableLoader:
        """Return the loader of the validation split, each image once over all processes."""
        if self.val_dataset is None:
            self.setup("validate")
        assert self.val_dataset is not None
        return self.loader(self.val_dataset, EvaluationOrder(len(self.val_dataset), *self.place()), 1)

    def loader(
        self, samples: AnySamples[Sample], order: TrainingOrder | EvaluationOrder, batch_size: int
    ) -> ResumableLoader:
        """Return a loader of any samples, set up as those of this datamodule are.

        Args:
            samples: what is loaded.
            order: their order.
            batch_size: samples a batch of this process.
        """
        workers = self.workers()
        return ResumableLoader(
            samples,
            batch_size=batch_size,
            sampler=order,
            drop_last=isinstance(order, TrainingOrder),
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=self._on_cuda(),
            worker_init_fn=prepare_worker,
            # A generator of its own, for a loader would draw a number from the global one each time it is iterated.
            generator=torch.Generator(),
        )

    def workers(self) -> int:
        """Return the number of loading processes: ``num_workers``, or what None comes to on this machine."""
        if self.num_workers is not None:
            return self.num_workers
        local = self.trainer.num_devices if self.trainer else 1
        return min(_MAX_WORKERS, max(1, cores() // local))

    def batch_a_process(self) -> int:
        """Return the training samples a step of one process.

        Raises:
            UserError: the batch cannot be divided among the processes.
        """
        world_size = self.place()[1]
        require(
            self.batch_size % world_size == 0,
            f"data.batch_size={self.batch_size}: not divisible by the {world_size} processes of the job; "
            f"choose a multiple of {world_size}",
        )
        return self.batch_size // world_size

    def place(self) -> tuple[int, int]:
        """Return the rank of this process and the number of processes."""
        if self.trainer is not None:
            return self.trainer.global_rank, self.trainer.world_size
        if dist.is_available() and dist.is_initialized():
            return dist.get_rank(), dist.get_world_size()
        return 0, 1

    def _on_cuda(self) -> bool:
        if self.trainer is not None:
            return self.trainer.strategy.root_device.type == "cuda"
        return torch.cuda.is_available()
