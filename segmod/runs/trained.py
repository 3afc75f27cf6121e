"""A trained run as an object: its config, its numbers, its net, and what the net says of an image.

The one door through which a stored config is read and built. What is heavy is imported where it is first needed: a
run's config and numbers cost no torch, a prediction no Lightning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

from omegaconf import DictConfig, OmegaConf

from segmod.ground.errors import UserError, require
from segmod.ground.names import require_name
from segmod.runs.exported import ExportedRun, as_sent
from segmod.runs.folders import Run, find_members, find_run
from segmod.runs.instantiate import BuildError, instantiate, placed
from segmod.runs.prediction import Prediction
from segmod.runs.stored import for_scoring, frozen, settled
from segmod.runs.trust import Trust

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import Tensor, nn

    from segmod.data.base import Split
    from segmod.ground.palettes import Legend
    from segmod.ground.types import Batch, Predictor, UInt8Array
    from segmod.inference.ensemble import TrainedPredictor
    from segmod.training.datamodule import SegmentationDataModule
    from segmod.training.module import SegmentationModule

_OF_TRAINING = ("optimizer", "scheduler", "init_from", "class_weights")  # keys of the model
_AROUND: ContextVar[tuple[TrainedRun, ...]] = ContextVar("around", default=())  # runs of which something is being built


class TrainedRun:
    """A run to evaluate, to predict with, to draw or to compare.

    Everything is read and built when it is first asked for: predicting needs no data set on disk.

    Args:
        run: Its folder.
        config: Its stored config, with what is to be otherwise; see `open`.
        checkpoint: ``best``, ``last`` or a path; None for what the config says.
        asked: Key of what is not as it was stored, so that a mistake there is told as such.
        trust: What the config may name.

    Attributes:
        directory: Folder of the run.
        config: What it was made of, and what `open` changed.
    """

    def __init__(
        self, run: Run, config: DictConfig, checkpoint: str | None = None, asked: str = "", trust: Trust | None = None
    ) -> None:
        self._run = run
        self._asked = asked
        self._trust = trust or Trust.of(())
        self._checkpoint = checkpoint
        self.directory = run.directory
        self.config = config
        self._device: str | torch.device = "cpu"

    @classmethod
    def open(
        cls,
        run: str | PathLike[str],
        runs: str | PathLike[str] = "runs",
        *,
        checkpoint: str | None = None,
        split: str | None = None,
        inference: Mapping[str, Any] | None = None,
        proposals: Mapping[str, Any] | None = None,
        data: Mapping[str, Any] | None = None,
        key: str = "run",
        seed: str | None = None,
        trust: Iterable[str] | str = (),
    ) -> Self:
        """Find a run and read its config. What is None is as in the run.

        Args:
            run: Its folder, a folder with one run below it, or its name.
            runs: Folder of the runs, where names are looked for.
            checkpoint: Weights: ``best``, ``last`` or a path.
            split: Images to look at.
            inference: Node of the config group ``inference``: how a whole image is scored; without ``_target_``, keys
                to change in the run's own.
            proposals: The same of the group ``proposals``: where boxes come from.
            data: Keys of the data to change, such as ``root``; those of value None stay.
            key: What to call the run in messages.
            seed: Folder name such as ``seed0``, which is taken where there are several runs.
            trust: Classes that the stored config may name besides those of segmod, such as ``unet.UNet``, or ``all``:
                treat it as one of your own. What it names is imported and called, with its arguments.

        Raises:
            UserError: There is no such run or several, no such run as a member of the predictor, or its config calls
                a resolver.
        """
        found = find_run(str(run), str(runs), key, seed)
        groups = {"inference": inference, "proposals": proposals}
        asked = {group: frozen(node) for group, node in groups.items() if node is not None}
        changes = OmegaConf.create()
        for name, value in {**(data or {}), "val_split": split}.items():
            if value is not None:
                OmegaConf.update(changes, name, value)
        trusted = Trust.of(trust, {**asked, "data": frozen(changes)})
        brings_its_own = checkpoint is not None and isinstance(found, ExportedRun)
        require(not brings_its_own, f"checkpoint={checkpoint}: {found.directory.name} brings its weights: leave it out")
        raw = found.stored()
        for needed in ("name", "checkpoint", "data.val_split", "model.net._target_"):
            node: Any = raw
            for part in needed.split("."):
                node = node.get(part) if isinstance(node, dict) else None
            if node is None:
                raise UserError(f"{found.config_file}: {needed} is missing: restore it, or train the run again")
        raw = frozen(raw) if trusted.is_full else raw
        raw = for_scoring(raw, asked, frozen(changes))
        find_members(raw.get("inference"), "inference", str(runs), found.directory.name)
        config = settled(raw, found.config_file)
        return cls(found, OmegaConf.create(config), checkpoint, "model.predictor" if asked else "", trusted)

    # -- what stands in the folder -----------------------------------------------------------------------------------

    def stored_config(self) -> DictConfig:
        """The config as it was stored, which the digest of a record is of."""
        return self._run.config()

    def config_to_send(self) -> dict[str, Any]:
        """The config as it was stored, without what is of this machine or a secret."""
        return as_sent(self._run.stored())

    @property
    def name(self) -> str:
        """First part of its folder, such as ``fcn8s``."""
        return str(self.config.name)

    @property
    def split(self) -> str:
        """The images it is looked at with."""
        return str(self.config.data.val_split)

    @property
    def checkpoint(self) -> Path:
        """Where the weights are from.

        Raises:
            UserError: There is no such checkpoint.
        """
        return self._run.checkpoint(str(self._checkpoint or self.config.checkpoint))

    @cached_property
    def metrics(self) -> dict[str, float | None]:
        """What it reached in training, such as ``val/miou``, fractions in [0, 1]; empty until it is finished."""
        return dict((self._run.result() or {}).get("metrics", {}))

    def folder(self, kind: str, name: str) -> Path:
        """Where results go, such as ``evaluation/dense-val``: inside its folder, whatever the config says.

        Raises:
            UserError: A link leads elsewhere, or the name does.
        """
        path = self.directory / kind / require_name(name, f"{kind}: ", nested=False)
        for link in (found for found in (path.parent, path, *path.rglob("*")) if found.is_symlink()):
            raise UserError(f"{link}: is a link, and results would go where it leads; remove it")
        return path

    # -- what is built -----------------------------------------------------------------------------------------------

    @cached_property
    def net(self) -> nn.Module:
        """The trained net, in evaluation mode, on ``device``.

        Raises:
            UserError: The checkpoint's weights are not exactly those of the net.
        """
        import torch
        from torch import nn

        from segmod.nets.weights import load_net

        if isinstance(self._run, ExportedRun) and (exported := self._run.net(self._trust)) is not None:
            return exported.eval()
        net: nn.Module = self._build("model.net", nn.Module)
        load_net(net, self.checkpoint, strict=True)
        if self.config.model.get("channels_last"):
            net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return net.eval().to(self.device)

    @cached_property
    def predictor(self) -> Predictor:
        """How a whole image is scored."""
        from segmod.inference.dense import DensePredictor

        if OmegaConf.select(self.config, "model.predictor") is None:
            return DensePredictor()
        predictor: Predictor = self._build("model.predictor", Callable)
        return predictor

    @cached_property
    def module(self) -> SegmentationModule:
        """The LightningModule of net and predictor, for a trainer's ``validate``: it has no optimiser."""
        from segmod.training.module import SegmentationModule

        given = {"net": self.net, "predictor": self.predictor, "optimizer": None}
        module: SegmentationModule = self._build("model", SegmentationModule, **given)
        return module

    @cached_property
    def datamodule(self) -> SegmentationDataModule:
        """Its data; opens nothing on disk."""
        from segmod.training.datamodule import SegmentationDataModule

        datamodule: SegmentationDataModule = self._build("data", SegmentationDataModule)
        return datamodule

    @cached_property
    def legend(self) -> Legend:
        """Names and colours of the labels, which the checkpoint keeps: the data need not be there."""
        from segmod.nets.weights import read_legend

        if isinstance(self._run, ExportedRun):
            return self._run.legend
        return read_legend(self.checkpoint) or self.datamodule.legend

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes in the order of their labels."""
        return self.legend.classes

    @cached_property
    def dataset(self) -> Split:
        """Images of the split with their truth, whole, not augmented."""
        return self.datamodule.split(self.split)

    def _build(self, key: str, kind: Any, **given: Any) -> Any:
        """What a node of the config describes, of some kind; keys of the training alone are not looked at."""
        config: Any = OmegaConf.to_container(self.config, resolve=True)
        config["model"] = {name: node for name, node in config["model"].items() if name not in _OF_TRAINING}
        node = config
        for part in key.split("."):
            node = node[part]
        node = {name: value for name, value in node.items() if name not in given}
        around = _AROUND.set((*_AROUND.get(), self))
        try:
            built = instantiate(placed(self._trust.admit(node, key, config), key), key, **given)
            if not isinstance(built, kind):
                raise BuildError(f"{key} gives a {type(built).__name__}, which it cannot be")
            return built
        except BuildError as error:
            if key == self._asked:
                raise
            raise UserError(
                f"run={self.directory}: this version of segmod cannot build it as it was stored ({error}): "
                "train it again, or take the version that metrics.json names"
            ) from error
        finally:
            _AROUND.reset(around)

    def load(self) -> Self:
        """Build net and predictor now, so that whatever is wrong with them is told before the first image."""
        _ = self.net, self.predictor
        return self

    # -- what is done with it ----------------------------------------------------------------------------------------

    def to(self, device: str | torch.device) -> Self:
        """Compute on a device: ``cpu``, ``cuda``, ``cuda:1``, ``mps``, or ``auto`` for the best there is.

        What does not exist is told when the net is first needed.
        """
        self._device = device
        if "net" in vars(self):
            self.net.to(self.device)
        return self

    @property
    def device(self) -> torch.device:
        """Where the net computes.

        Raises:
            UserError: There is no such device.
        """
        return choose_device(self._device)

    def batch(self, index: int, split: Split | None = None) -> Batch:
        """One image of a split, ``dataset`` unless another is given, as a batch on ``device``."""
        from torch.utils.data import default_collate

        batch = cast("Batch", default_collate([(split or self.dataset)[index]]))
        batch["image"], batch["mask"] = batch["image"].to(self.device), batch["mask"].to(self.device)
        return batch

    def scores(self, batch: Batch) -> Tensor:
        """Class probabilities of a batch, float32 (B, K, H, W), on the CPU."""
        import torch

        with torch.inference_mode():
            return self.predictor(self.net, batch).cpu()

    def predict(self, image: str | PathLike[str] | Image | UInt8Array, max_side: int | None = None) -> Prediction:
        """Label an image.

        Args:
            image: A path, an image of PIL of any mode, or uint8 (H, W, 3) RGB.
            max_side: A larger image is scored at this many pixels on its longer side; None scores any at its own size.

        Returns:
            Labels and probabilities, for pixels of the image; a notebook shows them as an overlay.

        Raises:
            UserError: An array of another kind.
        """
        import torch

        from segmod.data.pictures import read_picture
        from segmod.ground.types import IGNORE_INDEX, fitted
        from segmod.nets.ops import resize

        picture = read_picture(image)
        height, width = picture.shape[:2]
        size = fitted(height, width, max_side) if max_side is not None else (height, width)
        seen = torch.from_numpy(picture).permute(2, 0, 1)[None].to(self.device)
        if size != (height, width):  # one colour at a time, for floats take four times the memory
            seen = torch.cat([resize(seen[:, c : c + 1].float(), size, antialias=True) for c in range(3)], dim=1)
        mask = torch.full((1, *seen.shape[-2:]), IGNORE_INDEX, dtype=torch.uint8, device=self.device)
        batch: Batch = {"image": seen.float(), "mask": mask, "name": [""], "index": torch.zeros(1, dtype=torch.int64)}
        return Prediction(picture, self.scores(batch)[0], self.legend)


def member(run: str, root: str = "runs") -> TrainedPredictor:
    """Another run as a member of an ensemble: a predictor with a net of its own, scored as that run validates.

    It is trusted as far as the run that names it.

    Args:
        run: Its folder or name.
        root: Folder of the runs, where names are looked for.

    Raises:
        UserError: There is no such run, it has no checkpoint, or it is a member of itself.
    """
    from segmod.inference.ensemble import TrainedPredictor

    around = _AROUND.get()
    other = TrainedRun.open(run, root, trust=around[-1]._trust.names if around else ())
    if other.directory in [outer.directory for outer in around if not outer._asked]:  # else it is scored in another way
        raise UserError(f"inference: {other.directory} is a member of its own ensemble; name another run")
    return TrainedPredictor(other.net, other.predictor)


def choose_device(name: str | torch.device) -> torch.device:
    """The device called ``name``; ``auto`` takes the best there is.

    Raises:
        UserError: There is no such device.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device={name} cannot be used ({str(error).splitlines()[0]}): try device=cpu") from None
    return device
