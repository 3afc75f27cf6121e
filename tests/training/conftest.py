"""A training of seconds: a 1x1 convolution on four scenes of 32 pixels."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from segmod.data.synthetic import SyntheticScenes
from segmod.nets.normalise import Normalise
from segmod.training.datamodule import SegmentationDataModule
from segmod.training.module import SegmentationModule


class PixelNet(nn.Module):
    """Classifies each pixel by its colour."""

    num_classes = 5

    def __init__(self) -> None:
        super().__init__()
        self.normalise = Normalise()
        self.score = nn.Conv2d(3, self.num_classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        scores: Tensor = self.score(self.normalise(image))
        return scores


Train = Callable[..., L.Trainer]


@pytest.fixture
def train(tmp_path: Path) -> Train:
    """``train(logger, callbacks)`` trains two epochs of two steps, a `PixelNet` by default, and returns the trainer."""

    def run(
        logger: Any,
        callbacks: list[L.Callback],
        max_epochs: int | None = 2,
        progress: bool = False,
        module: SegmentationModule | None = None,
        **options: Any,
    ) -> L.Trainer:
        L.seed_everything(0, verbose=False)
        scenes = SyntheticScenes(32, train_images=4, val_images=3, num_classes=5)
        data = SegmentationDataModule(scenes, batch_size=2, num_workers=0, hflip=0.0)
        if module is None:
            optimizer = partial(torch.optim.SGD, lr=0.1)
            module = SegmentationModule(PixelNet(), nn.CrossEntropyLoss(ignore_index=255), optimizer)
        trainer = L.Trainer(
            max_epochs=max_epochs,
            accelerator="cpu",
            logger=logger,
            callbacks=callbacks,
            log_every_n_steps=1,
            enable_checkpointing=False,
            enable_progress_bar=progress,
            enable_model_summary=progress,
            use_distributed_sampler=False,
            default_root_dir=tmp_path,
            **options,
        )
        trainer.fit(module, datamodule=data)
        return trainer

    return run
