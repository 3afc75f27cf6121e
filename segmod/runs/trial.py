"""One measurement of ``segmod-benchmark`` in a process of its own, which nothing before it has warmed or filled."""

from __future__ import annotations

import multiprocessing
import signal
import tempfile
import time
import traceback
import warnings
from contextlib import AbstractContextManager, nullcontext
from multiprocessing.connection import Connection
from typing import Any

import lightning as L
import torch
from omegaconf import OmegaConf
from torch.utils.data import DataLoader

from segmod import measure
from segmod.ground.errors import UserError
from segmod.ground.memory import keep_freed_memory
from segmod.ground.types import Batch
from segmod.runs.instantiate import instantiate
from segmod.runs.launch import prepare_lightning
from segmod.training.module import SegmentationModule

_AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def run(kind: str, model: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Make one trial in a fresh process and wait for what it found.

    The processes are forked from a server that has imported the libraries and done nothing else.

    Args:
        kind: ``count``, ``train`` or ``test``.
        model: The resolved node ``model`` of a config.
        settings: Those of `segmod.commands.benchmark`.

    Raises:
        UserError: The net refuses the size, memory is short, or another mistake of the user.
    """
    methods = multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if "forkserver" in methods:
        context.set_forkserver_preload([__name__, "torch._dynamo"])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(theirs, kind, model, settings))
    process.start()
    theirs.close()
    try:
        outcome: dict[str, Any] = ours.recv()
    except EOFError:
        process.join()
        killed = " (killed, perhaps for want of memory: a smaller batch or size may do)" * (process.exitcode == -9)
        raise UserError(f"{kind}: the measuring process ended with code {process.exitcode}{killed}") from None
    finally:
        if process.is_alive():
            process.join(0.2)
            process.kill()  # it holds nothing worth a farewell
        process.join()
        ours.close()
    if "mistake" in outcome:
        raise UserError(outcome["mistake"])
    if "traceback" in outcome:
        raise RuntimeError(f"in the process that measured {kind}:\n{outcome['traceback']}")
    return outcome


def _child(answer: Connection, kind: str, model: dict[str, Any], settings: dict[str, Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends this process
    warnings.simplefilter("ignore")
    try:
        answer.send(perform(kind, model, settings))
    except UserError as error:
        answer.send({"mistake": str(error)})
    except BaseException as error:
        if type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error):
            size = "x".join(map(str, settings["size"]))
            answer.send({"mistake": f"batch={settings['batch']} of {size}: not enough memory to {kind}; give less"})
        else:
            answer.send({"traceback": traceback.format_exc()})


def perform(kind: str, model: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Make one trial in this process, see `run`."""
    keep_freed_memory()
    if settings["threads"] is not None:
        torch.set_num_threads(settings["threads"])
    device = device_of(settings["device"])
    torch.manual_seed(0)
    facts = {"device": device.type, "threads": torch.get_num_threads()}
    trial = {"count": count, "train": train, "test": test}[kind]
    return facts | trial(model, settings, device)


def device_of(name: str) -> torch.device:
    """The device of a key ``device``: auto, cpu, cuda or cuda:<n>.

    Raises:
        UserError: This machine has none of that kind.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.partition(":")[0] not in ("cpu", "cuda"):
        raise UserError(f"device={name}: choose one of auto, cpu, cuda, cuda:0, ...")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device={name}: this machine has {torch.cuda.device_count()} CUDA devices; give device=cpu")
    return device


def build(model: dict[str, Any]) -> SegmentationModule:
    """The module of a config, with random weights."""
    module: SegmentationModule = instantiate(OmegaConf.create({"model": model}), "model")
    return module


def noise(module: SegmentationModule, settings: dict[str, Any], device: str | torch.device) -> Batch:
    """A batch of the settings' size for a module."""
    height, width = settings["size"]
    return measure.random_batch(settings["batch"], (height, width), int(module.net.num_classes), device)  # type: ignore[arg-type]


def count(model: dict[str, Any], settings: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Parameters, operations and saved bytes; nothing is computed where shapes alone decide.

    Raises:
        UserError: The net refuses images of this size.
    """
    try:
        return counts_on("meta", model, settings, device)  # shapes without numbers
    except (RuntimeError, ValueError):
        # shapes depend on numbers somewhere, or a layer refuses the size: see what is really so
        return counts_on(device, model, settings, device)


def counts_on(
    where: str | torch.device, model: dict[str, Any], settings: dict[str, Any], device: torch.device
) -> dict[str, Any]:
    """What `count` returns, by passes on a device that may be ``meta``."""
    module = build(model).to(where)
    batch = noise(module, settings, where)
    values: dict[str, Any] = measure.parameters(module.net)
    try:
        with torch.no_grad():
            values["forward_flops"] = measure.flops(lambda: module.net(batch["image"]))
    except (RuntimeError, ValueError) as error:
        if where == "meta" or isinstance(error, torch.OutOfMemoryError):
            raise
        size, reason = "x".join(map(str, settings["size"])), str(error).splitlines()[0]
        raise UserError(f"size={size}: the net refuses images of this size ({reason})") from error
    values["forward_macs"] = values["forward_flops"] // 2
    if type(module).adapt is SegmentationModule.adapt:
        values["train_flops"] = measure.flops(lambda: module.compute_loss(batch).backward())  # type: ignore[no-untyped-call]
        module.zero_grad()
        if settings["precision"] in _AUTOCAST and where == "meta":  # autocast decides what is saved, and knows no meta
            module = module.to_empty(device=device)
            batch = noise(module, settings, device)
        with precision(settings["precision"], device):
            values["saved_activation_bytes"] = measure.saved_bytes(lambda: module.compute_loss(batch), module)
    elif {"train", "memory"} & set(settings["what"]):
        raise UserError(
            f"model: {type(module).__name__} trains on something else than images: give what=[test,flops], "
            "or benchmark the stage that trains the whole net"
        )
    return {"values": values}


def precision(name: str, device: torch.device) -> AbstractContextManager[Any]:
    """Autocast as Lightning's mixed precision has it, or nothing."""
    return torch.autocast(device.type, _AUTOCAST[name]) if name in _AUTOCAST else nullcontext()


class StepClock(L.Callback):
    """Times every training step: loss, backward pass and optimiser; the wait for data is left out.

    Attributes:
        seconds: Wall and CPU seconds (of all threads) of each step.
    """

    def __init__(self) -> None:
        self.seconds: list[tuple[float, float]] = []
        self._started = (0.0, 0.0)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start once the device is idle."""
        measure.synchronize(pl_module.device)
        self._started = (time.perf_counter(), time.process_time())

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop once the device is idle again."""
        measure.synchronize(pl_module.device)
        wall, cpu = self._started
        self.seconds.append((time.perf_counter() - wall, time.process_time() - cpu))


def train(model: dict[str, Any], settings: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Steps as ``segmod-train`` makes them, on one batch of noise; seconds of each and peak memory of all."""
    prepare_lightning()
    clock = StepClock()
    steps = settings["warmup"] + settings["steps"]
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            accelerator="gpu" if device.type == "cuda" else "cpu",
            devices=[device.index or 0] if device.type == "cuda" else 1,
            precision=settings["precision"],
            gradient_clip_val=settings["gradient_clip_val"],
            max_steps=steps,
            callbacks=[clock],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            default_root_dir=folder,
        )
        peak = measure.PeakMemory(device)
        module = build(model)
        batch = noise(module, settings, "cpu")
        trainer.fit(module, DataLoader([batch] * steps, batch_size=None))  # type: ignore[arg-type]
    return _found(clock.seconds[settings["warmup"] :], peak.read())


def test(model: dict[str, Any], settings: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Forward passes of the net in eval mode, one batch of noise; seconds of each and peak memory of all."""
    peak = measure.PeakMemory(device)
    module = build(model)
    if module.compile_net:
        module.net.compile()
    net = module.net.to(device).eval()
    image = noise(module, settings, device)["image"]
    if module.channels_last:
        image = image.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode(), precision(settings["precision"], device):
        seconds = measure.timed(lambda: net(image), device, settings["passes"], settings["warmup"])
    return _found(seconds, peak.read())


def _found(seconds: list[tuple[float, float]], memory: dict[str, int]) -> dict[str, Any]:
    return {"time_s": [wall for wall, _ in seconds], "cpu_s": [cpu for _, cpu in seconds], **memory}
