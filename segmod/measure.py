"""What a net costs: parameters, operations, tensors kept for the backward pass, seconds, peak memory."""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from itertools import chain
from pathlib import Path
from statistics import mean, median, quantiles

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from segmod.ground.memory import keep_freed_memory
from segmod.ground.types import IGNORE_INDEX, Batch


def random_batch(batch: int, size: tuple[int, int], num_classes: int, device: torch.device | str = "cpu") -> Batch:
    """Images of noise with a random label for each pixel, a twentieth of them void; the same ones each time.

    Args:
        batch: Number of images.
        size: Height and width.
        num_classes: Labels are below it.
        device: Where the tensors go.
    """
    if str(device) == "meta":
        image = torch.empty(batch, 3, *size, dtype=torch.uint8, device=device)
        mask = torch.empty(batch, *size, dtype=torch.uint8, device=device)
    else:
        generator = torch.Generator().manual_seed(0)
        image = torch.randint(256, (batch, 3, *size), generator=generator, dtype=torch.uint8)
        mask = torch.randint(num_classes, (batch, *size), generator=generator, dtype=torch.uint8)
        mask[torch.rand(batch, *size, generator=generator) < 0.05] = IGNORE_INDEX
    return {
        "image": image.to(device),
        "mask": mask.to(device),
        "name": [str(i) for i in range(batch)],
        "index": torch.arange(batch, device=device),
    }


# -- counts ----------------------------------------------------------------------------------------------------------


def parameters(net: nn.Module) -> dict[str, int]:
    """Number of all parameters and of those that are trained."""
    counts = [(p.numel(), p.requires_grad) for p in net.parameters()]
    return {"parameters": sum(n for n, _ in counts), "trainable_parameters": sum(n for n, trained in counts if trained)}


def flops(work: Callable[[], object]) -> int:
    """Floating-point operations, two a multiply-add, of the convolutions and matrix products, as torch counts them.

    Resizing, pooling, normalisation and activations are not counted; what checkpointing computes again is.
    """
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def saved_bytes(loss: Callable[[], Tensor], model: nn.Module) -> int:
    """Bytes that autograd keeps between the forward and the backward pass, each storage once.

    Parameters and buffers are left out: they are there anyway. The images count, if a layer keeps them.

    Args:
        loss: One forward pass; its result holds the graph.
        model: Whose parameters and buffers are left out.
    """
    own = {tensor.untyped_storage() for tensor in (*model.parameters(), *model.buffers())}
    kept: set[torch.UntypedStorage] = set()  # two tensors of one storage have one such object, as long as it is held

    def pack(tensor: Tensor) -> Tensor:
        kept.add(tensor.untyped_storage())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = loss()
    del result
    return sum(storage.nbytes() for storage in kept - own)


# -- time ------------------------------------------------------------------------------------------------------------


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(work: Callable[[], object], device: torch.device, passes: int, warmup: int) -> list[tuple[float, float]]:
    """Wall and CPU seconds (of all threads) of each pass, after some that are not counted."""
    seconds = []
    for _ in range(warmup + passes):
        synchronize(device)
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        synchronize(device)
        seconds.append((time.perf_counter() - wall, time.process_time() - cpu))
    return seconds[warmup:]


def in_turns(work: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, tuple[float, float]]:
    """Smallest wall and CPU seconds of each of several works, in the order A B C C B A, after one run to warm up.

    Other load on the machine falls on all alike, and disturbs the smallest times least.

    Args:
        work: By name.
        rounds: How often the order is gone through.
    """
    for run in work.values():
        run()
    order = [*work, *reversed([*work])]
    seconds = [(name, timed(work[name], torch.device("cpu"), 1, 0)[0]) for _ in range(rounds) for name in order]
    clocks = {name: zip(*(pair for other, pair in seconds if other == name), strict=True) for name in work}
    return {name: (min(wall), min(cpu)) for name, (wall, cpu) in clocks.items()}


def ratio_in_turns(work: Callable[[], object], anchor: Callable[[], object], rounds: int) -> float:
    """Median ratio of the CPU seconds of two works, in the order A B B A, after one run of each to warm up.

    Args:
        work: What is measured.
        anchor: What it is compared with.
        rounds: How often the order is gone through.
    """
    cpu = torch.device("cpu")
    for run in (work, anchor):
        run()
    pairs = [(work, anchor), (anchor, work)] * rounds
    seconds = [{run: timed(run, cpu, 1, 0)[0][1] for run in pair} for pair in pairs]
    return median(pair[work] / pair[anchor] for pair in seconds)


def spread(rounds: Iterable[Sequence[float]]) -> dict[str, float]:
    """Median, quartiles (linear between the values), extremes, mean and count of what several rounds measured."""
    values = list(chain(*rounds))
    q1, q2, q3 = quantiles(values, n=4, method="inclusive") if len(values) > 1 else (values[0],) * 3
    return {
        "median": q2, "q1": q1, "q3": q3, "min": min(values), "max": max(values), "mean": mean(values),
        "count": len(values),
    }  # fmt: skip


def ratio_of_rounds(rounds: Iterable[Sequence[float]], reference: Iterable[Sequence[float]]) -> float:
    """Median over the rounds of the ratio of the medians: what slows the machine for a while slows both alike."""
    return median(median(own) / median(other) for own, other in zip(rounds, reference, strict=True))


# -- memory ----------------------------------------------------------------------------------------------------------


class PeakMemory:
    """Peak memory of this process from here on: of the GPU's allocator, or resident and above what there is now.

    A small training step is made first, so that the libraries' own pages are not counted.

    Args:
        device: Where the work will be done.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)).to(device)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        logits = F.interpolate(net(torch.zeros(1, 3, 18, 18, device=device)), size=(18, 18), mode="bilinear")
        F.cross_entropy(logits, torch.zeros(1, 18, 18, dtype=torch.int64, device=device)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        del net, optimizer, logits
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak so far is forgotten
        self._start = _resident("VmRSS")

    def read(self) -> dict[str, int]:
        """``memory_bytes``, and on a GPU ``reserved_bytes``, what the allocator took from the driver."""
        if self.device.type == "cuda":
            return {
                "memory_bytes": int(torch.cuda.max_memory_allocated(self.device)),
                "reserved_bytes": int(torch.cuda.max_memory_reserved(self.device)),
            }
        return {"memory_bytes": _resident("VmHWM") - self._start}


def peak_of(prepare: Callable[..., Callable[[], object]], *arguments: object) -> int:
    """Peak resident bytes of a work in a fresh process, above what there is once it is prepared.

    Args:
        prepare: A function of a module; returns the work.
        arguments: Of ``prepare``.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peak, prepare, torch.get_num_threads(), *arguments).result()


def _peak(prepare: Callable[..., Callable[[], object]], threads: int, *arguments: object) -> int:
    torch.set_num_threads(threads)
    keep_freed_memory()
    work = prepare(*arguments)
    peak = PeakMemory(torch.device("cpu"))
    work()
    return peak.read()["memory_bytes"]


def _resident(entry: str) -> int:
    """Resident bytes now (VmRSS) or at most (VmHWM): Linux tells them of this process alone, and not of its parent."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith(entry))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
