"""Lightning datamodules: what a run trains and is evaluated on."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning import LightningDataModule

from segmod.data.dataset import SegmentationDataset, Transform
from segmod.data.order import EvaluationOrder, ResumableLoader, TrainingOrder, collate, prepare_worker
from segmod.data.sbd import AUGMENTED_SPLIT, download_sbd
from segmod.data.synthetic import SyntheticScenes
from segmod.data.transforms import EvalTransform, Normalization, TrainTransform, require, scale_range, whole
from segmod.data.verify import verify
from segmod.data.voc import VOCSegmentation, download_voc
from segmod.types import VOC_CLASSES

_MAX_WORKERS = 4


class SegmentationDataModule(LightningDataModule):
    """Loaders for one dataset; a subclass gives `dataset`.

    Training batches have one size. Evaluation images keep their own size, one a batch, unless ``eval_squash``.

    Args:
        num_classes: number of classes, background included.
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
        norm: normalisation profile: ``imagenet``, ``caffe`` or ``raw255``.
        void_as_background: train and evaluate void pixels as background.
    """

    # A rank may be left without images when there are more ranks than images.
    allow_zero_length_dataloader_with_multiple_devices = True
    one_size = False  # whether all images of the dataset have the same size

    def __init__(
        self,
        num_classes: int,
        train_split: str,
        val_split: str,
        batch_size: int,
        seed: int = 0,
        num_workers: int | None = None,
        crop_size: int | None = None,
        scale: Sequence[float] | None = None,
        short_side: int | None = None,
        squash: int | None = None,
        eval_squash: bool = False,
        hflip: float = 0.5,
        pad: str = "mean",
        norm: str = "imagenet",
        void_as_background: bool = False,
    ) -> None:
        super().__init__()
        self.normalization = Normalization.named(norm)
        require(whole(batch_size, 1), f"data.batch_size={batch_size}: must be a whole number of at least 1")
        require(num_workers is None or whole(num_workers, 0), f"data.num_workers={num_workers}: must be 0 or more")
        require(whole(seed, 0), f"data.seed={seed}: must be a whole number of at least 0")
        require(not eval_squash or squash is not None, "data.eval_squash=true: set data.squash to the size as well")
        self.train_transform = TrainTransform(self.normalization, crop_size, scale, short_side, squash, hflip, pad)
        self._one_size = self.train_transform.gives_one_size(self.one_size)
        self.eval_transform = EvalTransform(self.normalization, squash if eval_squash else None)
        self.num_classes = num_classes
        self.classes: tuple[str, ...] = VOC_CLASSES[:num_classes]
        self.train_split = train_split
        self.val_split = val_split
        self.batch_size = batch_size
        self.seed = seed
        self.num_workers = num_workers
        self.void_as_background = void_as_background
        self.train_dataset: SegmentationDataset | None = None
        self.val_dataset: SegmentationDataset | None = None

    @abstractmethod
    def dataset(self, split: str, transform: Transform) -> SegmentationDataset:
        """Return the images of a split."""

    def setup(self, stage: str | None = None) -> None:
        """Open the splits that a stage (``fit``, ``validate``; None for all) needs.

        Raises:
            UserError: the training set is smaller than a batch.
        """
        if stage in (None, "fit") and self.train_dataset is None:
            self.train_dataset = self.dataset(self.train_split, self.train_transform)
            size = len(self.train_dataset)
            require(
                size >= self.batch_size,
                f"data.batch_size={self.batch_size}: split {self.train_split} has only {size} images; lower it",
            )
        if self.val_dataset is None:
            self.val_dataset = self.dataset(self.val_split, self.eval_transform)

    def train_dataloader(self) -> ResumableLoader:
        """Return the loader of augmented batches, in an order that depends on (seed, epoch) alone.

        Raises:
            UserError: the batch cannot be divided among the processes, or its images have different sizes.
        """
        if self.train_dataset is None:
            self.setup("fit")
        assert self.train_dataset is not None
        rank, world_size = self._place()
        require(
            self.batch_size % world_size == 0,
            f"data.batch_size={self.batch_size}: not divisible by the {world_size} processes of the job; "
            f"choose a multiple of {world_size}",
        )
        each = self.batch_size // world_size
        require(
            each == 1 or self._one_size,
            f"data.batch_size={self.batch_size}: images of different sizes make no batch of {each} a process; "
            f"set data.crop_size or data.squash, or data.batch_size={world_size}",
        )
        order = TrainingOrder(len(self.train_dataset), self.seed, rank, world_size)
        return self._loader(self.train_dataset, order, self.batch_size // world_size, persistent=True)

    def val_dataloader(self) -> ResumableLoader:
        """Return the loader of the validation split, each image once over all processes."""
        if self.val_dataset is None:
            self.setup("validate")
        assert self.val_dataset is not None
        return self._evaluation_loader(self.val_dataset, persistent=True)

    def evaluation_dataloader(self, split: str) -> ResumableLoader:
        """Return a loader like `val_dataloader` for any split."""
        return self._evaluation_loader(self.dataset(split, self.eval_transform), persistent=False)

    def _evaluation_loader(self, dataset: SegmentationDataset, persistent: bool) -> ResumableLoader:
        return self._loader(dataset, EvaluationOrder(len(dataset), *self._place()), 1, persistent)

    def _loader(
        self, dataset: SegmentationDataset, order: TrainingOrder | EvaluationOrder, batch_size: int, persistent: bool
    ) -> ResumableLoader:
        workers = self.num_workers
        if workers is None:
            local = self.trainer.num_devices if self.trainer else 1
            workers = min(_MAX_WORKERS, max(1, _cores() // local))
        return ResumableLoader(
            dataset,
            batch_size=batch_size,
            sampler=order,
            collate_fn=collate,
            drop_last=isinstance(order, TrainingOrder),
            num_workers=workers,
            persistent_workers=persistent and workers > 0,
            pin_memory=self._on_cuda(),
            worker_init_fn=prepare_worker,
            # A generator of its own, for a loader would draw a number from the global one each time it is iterated.
            generator=torch.Generator(),
        )

    def _place(self) -> tuple[int, int]:
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


class SyntheticDataModule(SegmentationDataModule):
    """Procedural scenes; see `SyntheticScenes`.

    Args:
        size: side of the square scenes in pixels, at least 32.
        train_images: scenes of the training split.
        val_images: scenes of every other split.
        scene_seed: seed of the scenes, apart from ``seed`` so that runs with other seeds share their data.
        base: the arguments of `SegmentationDataModule`.
    """

    one_size = True

    def __init__(
        self,
        size: int = 128,
        train_images: int = 512,
        val_images: int = 64,
        scene_seed: int = 0,
        num_classes: int = len(VOC_CLASSES),
        train_split: str = "train",
        val_split: str = "val",
        **base: Any,
    ) -> None:
        require(whole(size, 32), f"data.size={size}: must be a whole number of at least 32 pixels")
        for key, count in (("train_images", train_images), ("val_images", val_images)):
            require(whole(count, 1), f"data.{key}={count}: must be a whole number of at least 1")
        require(
            whole(num_classes, 2) and num_classes <= len(VOC_CLASSES),
            f"data.num_classes={num_classes}: must be 2 to {len(VOC_CLASSES)}",
        )
        super().__init__(num_classes, train_split, val_split, **base)
        crop, window = base.get("crop_size"), base.get("squash") or base.get("short_side")
        require(
            not crop or bool(window) or crop <= size * scale_range(base.get("scale"))[1],
            f"data.crop_size={crop}: larger than any scene, data.size={size} times data.scale; lower it",
        )
        self.size = size
        self.train_images = train_images
        self.val_images = val_images
        self.scene_seed = scene_seed

    def dataset(self, split: str, transform: Transform) -> SyntheticScenes:
        """Return the scenes of a split."""
        length = self.train_images if split == self.train_split else self.val_images
        size = (self.size, self.size)
        return SyntheticScenes(
            split, length, transform, size, self.num_classes, self.scene_seed, self.seed, self.void_as_background
        )


class VOCDataModule(SegmentationDataModule):
    """PASCAL VOC on disk; see `VOCSegmentation`.

    Args:
        root: folder that holds ``VOCdevkit``, or ``VOCdevkit`` itself, or the folder of the year.
        year: 2007..2012.
        sbd_root: folder of SBD for split ``trainaug``; None for ``sbd`` in ``root``.
        download: fetch what is missing.
        verify: read every file before training.
        base: the arguments of `SegmentationDataModule`.
    """

    def __init__(
        self,
        root: str | Path,
        year: int = 2012,
        sbd_root: str | Path | None = None,
        download: bool = False,
        verify: bool = False,
        num_classes: int = len(VOC_CLASSES),
        train_split: str = "train",
        val_split: str = "val",
        **base: Any,
    ) -> None:
        require(
            num_classes == len(VOC_CLASSES),
            f"data.num_classes={num_classes}: PASCAL VOC has {len(VOC_CLASSES)} classes",
        )
        super().__init__(num_classes, train_split, val_split, **base)
        self.root = Path(root).expanduser()
        self.year = year
        self.sbd_root = Path(sbd_root).expanduser() if sbd_root else self.root / "sbd"
        self.download = download
        self.verify = verify

    def prepare_data(self) -> None:
        """Download and verify, in one process."""
        splits = (self.train_split, self.val_split)
        if self.download:
            download_voc(self.root, self.year)
            if AUGMENTED_SPLIT in splits:
                download_sbd(self.sbd_root)
        if self.verify:
            verify([self.dataset(split, self.eval_transform) for split in dict.fromkeys(splits)])

    def dataset(self, split: str, transform: Transform) -> VOCSegmentation:
        """Return the images of a split."""
        return VOCSegmentation(
            self.root, split, transform, self.year, self.sbd_root, self.seed, self.void_as_background
        )


def _cores() -> int:
    """Return the number of cores this process may use; only Linux can say."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
