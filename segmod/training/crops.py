"""Training on crops of objects in place of whole images, whatever dataset the images are of."""

from __future__ import annotations

import logging
from typing import Any

import lightning as L
import numpy as np
import rich.progress
import torch

from segmod.data.crops import BoxCrops, Boxes, BoxFinder, CropOrder
from segmod.data.order import EvaluationOrder, ResumableLoader, prepare_worker
from segmod.data.transforms import EvalTransform
from segmod.ground.errors import require, whole
from segmod.ground.types import Amount, Count, Factor, Fraction, ProposalSource, Side
from segmod.training.datamodule import SegmentationDataModule

log = logging.getLogger(__name__)


class BoxCropDataModule(L.LightningDataModule):
    """Crops around boxes to train on and to validate on, made from the images of another datamodule.

    Stage 1 of Noh et al. 2015 (sections 4.2 and 5.1; no ``proposals``) takes the tight box of each object, where only
    that object keeps its class and what else is there is background. Stage 2 takes the proposals that overlap an object
    and labels all classes in them. Boxes are enlarged, made square and brought to one size by the keys of all data:
    ``squash`` 250, then a random crop of ``crop_size`` 224; in validation the centre in stage 1, all of it at that size
    in stage 2, as the authors' solvers have it. Outside the image crops are black and void.

    Scores of crops are no scores of images: the record calls their split ``<val_split> crops``. To score whole images,
    evaluate the run.

    Differs from the paper: stage 2 mixes in the boxes of stage 1 (labelled as in stage 2), one epoch has as many crops
    as there are boxes, and small boxes are kept unless ``min_side`` is set.

    Args:
        images: the datamodule of whole images.
        context: both sides of a box are multiplied by this.
        square: make boxes square by the longer side.
        balance: let all classes come equally often, by repetition and omission; see `CropOrder`.
        min_side: shorter side in pixels that a box needs before it is enlarged; None for any.
        val_crops: validation crops, the same ones for every seed; None for all.
        cache_images: decoded images that each loading process keeps, about 0.9 MB each for PASCAL VOC. Of larger
            datasets half as many take part in a stretch of the order; see `CropOrder`.
        proposals: where the boxes of stage 2 come from; None for stage 1.
        min_iou: overlap with an object that a proposal needs, intersection over union.
        include_objects: stage 2 has the boxes of the objects, too.
    """

    allow_zero_length_dataloader_with_multiple_devices = True

    def __init__(
        self,
        images: SegmentationDataModule,
        context: Factor = 1.2,
        square: bool = True,
        balance: bool = True,
        min_side: Side | None = None,
        val_crops: Count | None = 1000,
        cache_images: Amount = 512,
        proposals: ProposalSource | None = None,
        min_iou: Fraction = 0.5,
        include_objects: bool = True,
    ) -> None:
        super().__init__()
        require(context > 0, f"data.crops.context={context}: must be a factor above 0")
        require(0 < min_iou <= 1, f"data.crops.min_iou={min_iou}: must be above 0 and at most 1")
        for key, value, least in (
            ("min_side", min_side, 1),
            ("val_crops", val_crops, 1),
            ("cache_images", cache_images, 0),
        ):
            allowed = whole(value, least) or (value is None and key != "cache_images")
            require(allowed, f"data.crops.{key}={value}: must be a whole number of at least {least}")
        require(images.squash is not None, "data.crops needs data.squash, the size that all boxes are brought to")
        self.images = images
        self.context = context
        self.square = square
        self.balance = balance
        self.min_side = min_side
        self.val_crops = val_crops
        self.cache_images = cache_images
        self.proposals = proposals
        self.min_iou = min_iou
        self.include_objects = include_objects
        self.legend = images.legend
        self._found: dict[str, Boxes] = {}
        self.train_dataset: BoxCrops | None = None
        self.val_dataset: BoxCrops | None = None

    @property
    def scored_on(self) -> str:
        """What a validation scores, for the record."""
        return f"{self.images.val_split} crops"

    def prepare_data(self) -> None:
        """Prepare the images, and let one process make the proposals that are missing."""
        self.images.prepare_data()
        if self.proposals is not None:
            for split in (self.images.train_split, self.images.val_split):
                self._find(split)

    def setup(self, stage: str | None = None) -> None:
        """Find the boxes of the splits that a stage (``fit``, ``validate``; None for all) needs.

        Raises:
            UserError: there are none, or fewer than a batch.
        """
        self.images.trainer = self.trainer
        if stage in (None, "fit") and self.train_dataset is None:
            split = self.images.train_split
            self.train_dataset = self._crops(split, self._find(split), self.images.train_transform)
            size, batch = len(self.train_dataset), self.images.batch_size
            require(size >= batch, f"data.batch_size={batch}: split {split} has only {size} boxes; lower it")
        if self.val_dataset is None:
            boxes = self._find(self.images.val_split)
            if self.val_crops is not None:
                # of the boxes alone, so that runs with other seeds are compared on the same crops
                boxes = boxes[np.sort(np.random.default_rng(0).permutation(len(boxes))[: self.val_crops])]
            squash, centre, antialias = self.images.squash, self.images.crop_size, self.images.antialias
            if self.proposals is not None:
                squash, centre = centre or squash, None
            transform = EvalTransform(squash, centre, antialias)
            self.val_dataset = self._crops(self.images.val_split, boxes, transform)

    def train_dataloader(self) -> ResumableLoader:
        """Return the loader of augmented crops, in an order that depends on (seed, epoch) alone.

        Raises:
            UserError: the batch cannot be divided among the processes.
        """
        if self.train_dataset is None:
            self.setup("fit")
        assert self.train_dataset is not None
        boxes = self.train_dataset.boxes
        window = None if len(np.unique(boxes.image)) <= self.cache_images else max(1, self.cache_images // 2)
        order = CropOrder(boxes, self.images.seed, *self.images.place(), balance=self.balance, window=window)
        return self.images.loader(self.train_dataset, order, self.images.batch_a_process())

    def val_dataloader(self) -> ResumableLoader:
        """Return the loader of the validation crops, each once over all processes, in batches as in training."""
        if self.val_dataset is None:
            self.setup("validate")
        assert self.val_dataset is not None
        order = EvaluationOrder(len(self.val_dataset), *self.images.place())
        return self.images.loader(self.val_dataset, order, self.images.batch_a_process())

    def _crops(self, split: str, boxes: Boxes, transform: Any) -> BoxCrops:
        return BoxCrops(
            self.images.split(split, transform),
            boxes,
            transform,
            self.images.seed,
            self.context,
            self.square,
            isolate=self.proposals is None,
            cache_images=self.cache_images,
        )

    def _find(self, split: str) -> Boxes:
        """Find the boxes of a split, once, with a progress bar."""
        if split in self._found:
            return self._found[split]
        images = self.images.split(split)
        finder = BoxFinder(images, self.proposals, self.min_iou, self.include_objects, self.min_side or 0)
        loader: Any = ResumableLoader(
            finder,
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=self.images.workers(),
            worker_init_fn=prepare_worker,
            generator=torch.Generator(),
        )
        first = self.images.place()[0] == 0
        found = list(rich.progress.track(loader, f"Boxes of {split}", transient=True, disable=not first))
        boxes = Boxes.joined(found)
        require(
            len(boxes) > 0,
            f"split {split} of {len(images)} images has no object to cut out; choose another split"
            + (", or lower data.crops.min_side" if self.min_side else ""),
        )
        if first:
            log.info("%s: %d boxes in %d images; objects: %s", split, len(boxes), len(images), images.object_source())
        self._found[split] = boxes
        return boxes


def _as_it_is(boxes: Any) -> Any:
    return boxes
