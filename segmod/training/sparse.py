"""The sparse stage of hypercolumns: the classifier learns from a few pixels of every image, whose features are kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, TypedDict, cast

import lightning as L
import numpy as np
import rich.progress
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from segmod.data.order import ResumableLoader, TrainingOrder, prepare_worker
from segmod.ground.errors import UserError
from segmod.ground.files import open_file, replacing
from segmod.ground.palettes import Legend
from segmod.ground.types import IGNORE_INDEX, Amount, Batch, Count, Sample
from segmod.training.module import SegmentationModule


class PointNet(Protocol):
    """What the sparse stage asks of a net beyond image -> logits, see ``Hypercolumn``."""

    def point_features(self, image: Tensor, points: Tensor) -> Tensor:
        """Hypercolumns (B, P, Z) of an image (B, 3, H, W) at pixels (B, P, 2), row and column."""
        ...

    def point_cells(self, image: Tensor, points: Tensor) -> Tensor:
        """Weights (B, P, cells) of the grid's cells at these pixels."""
        ...

    def classify(self, features: Tensor, cells: Tensor) -> Tensor:
        """Logits (..., K) of hypercolumns."""
        ...

    def standardise_by(self, mean: Tensor, std: Tensor) -> None:
        """Set the statistics by which hypercolumns are standardised."""
        ...


class Points(TypedDict):
    """Labelled pixels, one a row."""

    features: Tensor  # float32 (N, Z), hypercolumns before they are standardised
    cells: Tensor  # float32 (N, cells)
    label: Tensor  # int64 (N,)


class HypercolumnSparse(SegmentationModule):
    """Trains the classifier of a hypercolumn net on random pixels of every image (Hariharan et al. 2015, section 4.1).

    Of each class present in an image, ``points_per_class`` pixels are drawn with replacement, as a function of the seed
    and the image alone. Their hypercolumns are computed once, standardise the net's features, and are kept in
    ``points.pt`` of the run, from which an interrupted run goes on. Validation scores whole images as ever: the dense
    net has the same weights.

    Differs from the paper: the pixels are drawn from whole images and not from boxes around detected objects.

    Args:
        net: A hypercolumn net with a frozen backbone.
        loss: Maps logits (N, K) and labels (N,) to a scalar.
        optimizer: As in `SegmentationModule`.
        points_per_class: Pixels drawn of each class present in an image.
        rows: Pixels of a training batch, over all ranks; None for all of them.
        seed: Of the pixels drawn and of their order.
        settings: The other arguments of `SegmentationModule`.
    """

    def __init__(
        self,
        net: nn.Module,
        loss: nn.Module,
        optimizer: Any,
        *,
        points_per_class: Count = 3,
        rows: Count | None = None,
        seed: Amount = 0,
        **settings: Any,
    ) -> None:
        super().__init__(net, loss, optimizer, **settings)
        if not hasattr(net, "point_features"):
            raise UserError(f"model.net={type(net).__name__} has no hypercolumns: use Hypercolumn for the sparse stage")
        if points_per_class < 1:
            raise UserError(f"model.points_per_class={points_per_class} draws no pixel: set it to 1 or more")
        if rows is not None and rows < 1:
            raise UserError(f"model.rows={rows} is no batch size: set it to 1 or more, or null for all pixels at once")
        self.points_per_class = points_per_class
        self.rows = rows
        self.seed = seed

    @property
    def point_net(self) -> PointNet:
        """The net, seen as what it offers for single pixels."""
        return cast(PointNet, self.net)

    def compute_loss(self, batch: Batch) -> Tensor:
        """Loss of a batch of pixels."""
        points = cast(Points, batch)
        loss: Tensor = self.loss(self.point_net.classify(points["features"], points["cells"]), points["label"])
        return loss

    def adapt(self, datamodule: L.LightningDataModule) -> L.LightningDataModule:
        """Train on pixels of the datamodule's training images, validate on its validation images."""
        return PointsDataModule(datamodule, self)

    def collect(self, images: Dataset[Sample], workers: int = 0) -> Points:
        """Draw pixels of every image and compute their hypercolumns, with a progress bar.

        Args:
            images: The training images.
            workers: Processes that load them.
        """
        training = self.net.training
        self.net.to(self.device).eval()
        parts: list[Points] = []
        generator = torch.Generator()  # of its own, so that the global one is as it was
        loader = ResumableLoader(
            images, batch_size=None, num_workers=workers, worker_init_fn=prepare_worker, generator=generator
        )
        with torch.no_grad():
            for sample in rich.progress.track(loader, "Hypercolumns of the training images", transient=True):
                points, label = draw_points(sample["mask"], self.points_per_class, (self.seed, int(sample["index"])))
                if len(label) == 0:
                    continue
                image, where = sample["image"].unsqueeze(0).to(self.device), points.unsqueeze(0).to(self.device)
                features = self.point_net.point_features(image, where).squeeze(0).float().cpu()
                cells = self.point_net.point_cells(image, where).squeeze(0).float().cpu()
                parts.append({"features": features, "cells": cells, "label": label})
        self.net.train(training)
        if not parts:
            raise UserError("no pixel of the training images has a label: check the masks of data.train_split")
        return {
            "features": torch.cat([part["features"] for part in parts]),
            "cells": torch.cat([part["cells"] for part in parts]),
            "label": torch.cat([part["label"] for part in parts]),
        }


class PointsDataModule(L.LightningDataModule):
    """Pixels to train on, whole images to validate on.

    Args:
        images: The datamodule of whole images.
        module: Whose net computes the hypercolumns.
    """

    def __init__(self, images: Any, module: HypercolumnSparse) -> None:
        super().__init__()
        self.images = images
        self.module = module
        self.legend: Legend = images.legend

    def prepare_data(self) -> None:
        """Prepare the images."""
        self.images.prepare_data()

    def setup(self, stage: str) -> None:
        """Set the images up; the pixels are drawn when training asks for them, once ``init_from`` is loaded."""
        self.images.trainer = self.trainer
        self.images.setup(stage)
        self.train_dataset = getattr(self.images, "train_dataset", None)
        self.val_dataset = getattr(self.images, "val_dataset", None)

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches of pixels, in an order that depends on seed and epoch alone."""
        trainer = self.module.trainer
        points = self._points(Path(trainer.default_root_dir), trainer.is_global_zero)
        rows, world_size = len(points["label"]), trainer.world_size
        order = TrainingOrder(rows, self.module.seed, trainer.global_rank, world_size)
        batch = self.module.rows or rows
        if self.module.rows is not None and batch % world_size:
            raise UserError(f"model.rows={batch} cannot be dealt out to {world_size} processes: choose a multiple")
        batch_size = max(1, min(batch // world_size, len(order)))
        return ResumableLoader(_Rows(points), batch_size, sampler=order, collate_fn=_as_it_is)

    def val_dataloader(self) -> Any:
        """The validation images."""
        return self.images.val_dataloader()

    def _points(self, folder: Path, first: bool) -> Points:
        """The pixels of this run: from its folder, or drawn now by the first process and left there for all."""
        path = folder / "points.pt"
        drawn_as = {
            "seed": self.module.seed,
            "points_per_class": self.module.points_per_class,
            "images": len(self.images.train_dataset),
        }
        if first and _read(path, drawn_as) is None:
            workers = self.images.val_dataloader().num_workers  # data.num_workers, or what null comes to
            points = self.module.collect(self.images.train_dataset, workers)
            with replacing(path) as file:
                torch.save({"drawn_as": drawn_as, **points}, file)
        self.module.trainer.strategy.barrier("points")
        read = _read(path, drawn_as)
        if read is None:
            raise UserError(
                f"{path} cannot be read back: is there room on the disk, and do all processes see this folder?"
            )
        features = read["features"]
        self.module.point_net.standardise_by(features.mean(0), features.std(0, correction=0))
        return read


class _Rows(Dataset[Points]):
    """Rows of the points, fetched a batch at a time by the (epoch, index) keys of the training order."""

    def __init__(self, points: Points) -> None:
        self.points = points

    def __len__(self) -> int:
        return len(self.points["label"])

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> Points:
        rows = torch.tensor([index for _, index in keys])
        return cast(Points, {name: column[rows] for name, column in self.points.items()})  # type: ignore[index]


def draw_points(mask: Tensor, points_per_class: int, seed: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Draw pixels of each class present in a mask, with replacement.

    Args:
        mask: uint8 (H, W); void pixels are never drawn.
        points_per_class: Pixels a class.
        seed: What the draw depends on.

    Returns:
        int64 (P, 2), row and column, and int64 (P,), their labels in ascending order.
    """
    rng = np.random.default_rng(list(seed))
    points, labels = [torch.empty(0, 2, dtype=torch.int64)], [torch.empty(0, dtype=torch.int64)]
    for label in torch.unique(mask).tolist():
        if label == IGNORE_INDEX:
            continue
        pixels = (mask == label).nonzero()
        points.append(pixels[torch.from_numpy(rng.integers(len(pixels), size=points_per_class))])
        labels.append(torch.full((points_per_class,), label))
    return torch.cat(points), torch.cat(labels)


def _read(path: Path, drawn_as: dict[str, int]) -> Points | None:
    """Points of a file, if it is whole and they were drawn as these would be."""
    try:
        with open_file(path):
            content = torch.load(path, weights_only=True)
        whole = content.pop("drawn_as") == drawn_as and content.keys() == Points.__annotations__.keys()
        count = len(content["label"])
        shaped = [part.ndim == (1 if name == "label" else 2) and len(part) == count for name, part in content.items()]
    except Exception:  # whatever a damaged file can cause
        return None
    return cast(Points, content) if whole and all(shaped) else None


def _as_it_is(batch: Any) -> Any:
    return batch
