"""``segmod-export``: a trained net as ONNX, as a program of torch.export, or as weights with their card."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import DictConfig
from torch import Tensor, nn

from segmod import __version__
from segmod.ground.errors import reason, require
from segmod.ground.files import replace_text, replacing, require_writable
from segmod.ground.printing import markdown, print_table, short_path
from segmod.ground.types import labels_of
from segmod.metrics import SegmentationMetrics, summarise
from segmod.nets.exported import KINDS, Exported, Output, require_package
from segmod.nets.exporting import Outlet, as_onnx, as_program, onnx_bytes, program_bytes, quantised
from segmod.nets.ops import resize
from segmod.runs.exported import CARD, WEIGHTS
from segmod.runs.trained import TrainedRun

log = logging.getLogger(__name__)

TOLERANCE = 1e-3
"""Largest difference between file and net: of logits and labels in the largest logit, of probabilities as it is."""
AGREEMENT = {"fp16": 0.99, "int8": 0.9}
"""Least share of pixels that must have the net's label where the file computes in another precision."""

# images that file and net are compared on: how many, height and width, where the net takes these
_SEEN = ((1, 160, 224), (2, 97, 131), (1, 257, 193))


def main(cfg: DictConfig) -> None:
    """Export as the config says.

    Raises:
        UserError: The net cannot be exported so, or the file says something else than the net; nothing is left of it.
    """
    kind, output, precision = str(cfg.format), cfg.output, str(cfg.precision)
    size = None if cfg.size is None else (int(cfg.size[0]), int(cfg.size[1]))
    require(kind == "onnx" or precision == "fp32", f"precision={precision}: format={kind} has fp32 alone; take onnx")
    plain = output == "logits" and size is None
    require(kind != "weights" or plain, "format=weights holds the net as it is: leave out output= and size=")
    for package in ("onnx", "onnxruntime", "onnxscript") if kind == "onnx" else ():
        require_package(package)
    run = TrainedRun.open(cfg.run, cfg.runs, checkpoint=cfg.checkpoint, split=cfg.split, data=cfg.data, trust=cfg.trust)
    path = destination(cfg, run)
    net = run.net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    require(not isinstance(net, Exported), f"run={cfg.run} is exported already: give the run that it is of")
    facts = facts_of(run, output, precision, size)
    if kind == "weights":
        write_card(path, run, net, facts)
        log.info("exported  %s", short_path(path))
        return
    program, facts["least"] = as_program(net, output, size)
    if kind == "pt2":
        content = program_bytes(program, facts)
    else:
        model = as_onnx(program, output, "fp16" if precision == "fp16" else "fp32")
        if precision == "int8":
            model = quantised(model, calibration_images(run, net, cfg.calibrate))
        content = onnx_bytes(model, facts)
        del model
    del program
    with replacing(path) as file:
        file.write(content)
        file.flush()
        exported = KINDS[path.suffix](Path(file.name), facts)
        lines, fault = compare(net, exported, output, precision)
        print_table(f"{path.name}: file against net, {output}", lines)
        if precision == "int8":  # random images are nothing that its ranges were made for
            fault = compare_on_images(run, net, exported, cfg.compare)
        require(not fault, f"format={kind} precision={precision} output={output}: {fault}: nothing is written")
    sizes = f"any size from {facts['least']} pixels a side" if size is None else f"{size[0]} x {size[1]} pixels"
    log.info("exported  %s  (%s; %.1f MB)", short_path(path), sizes, len(content) / 1e6)


def destination(cfg: DictConfig, run: TrainedRun) -> Path:
    """Where the file goes, or the folder.

    Raises:
        UserError: It cannot be written, or its name is that of something else.
    """
    suffix = "" if cfg.format == "weights" else f".{cfg.format}"
    path = Path(str(cfg.file or f"{run.name}-{run.directory.name}{suffix}")).expanduser().absolute()
    named = not suffix or path.suffix == suffix
    require(named, f"file={cfg.file}: format={cfg.format} needs a name that ends with {suffix}")
    require(not suffix or not path.is_dir(), f"file={cfg.file} is a folder: give the name of a file")
    require_writable(path.parent)
    return path


def facts_of(run: TrainedRun, output: Output, precision: str, size: Sequence[int] | None) -> dict[str, Any]:
    """What a file says of itself, as `segmod.nets.exported.read_facts` has it."""
    return {
        "segmod": __version__,
        "run": run.name,
        **run.legend.as_plain(),
        "output": output,
        "precision": precision,
        "size": size,
        "least": 1,
        "split": run.split,
        "metrics": run.metrics,
        "config": run.config_to_send(),
    }


# -- file against net ------------------------------------------------------------------------------------------------


@torch.inference_mode()
def compare(net: nn.Module, exported: Exported, output: Output, precision: str) -> tuple[list[list[str]], str]:
    """Header and lines of a table of differences, and what is wrong with the file; empty if it is right.

    In fp16 and int8 it is the share of equal labels that counts.
    """
    lines = [["images", "difference", "labels equal %"]]
    fault = ""
    for count, height, width in _SEEN:
        size = exported.size or (max(height, exported.least), max(width, exported.least))
        coarse = torch.rand(count, 3, 9, 9, generator=torch.Generator().manual_seed(height)) * 255
        image = resize(coarse, size).round().to(torch.uint8)  # as smooth as a photograph
        try:
            given = exported.run(image)
        except Exception as error:  # of onnxruntime, or what a program asserts
            return lines, f"cannot be run on {count} x {size[0]} x {size[1]} pixels ({reason(error)})"
        difference, equal = apart(net(image), given, output)
        lines.append([f"{count} x {size[0]} x {size[1]}", f"{difference:.1e}", f"{100 * equal:.2f}"])
        if precision == "fp32" and not difference <= TOLERANCE:
            fault = fault or f"differs from the net by {difference:.1e} at {size[0]} x {size[1]} pixels"
        elif precision != "fp32" and not equal >= AGREEMENT[precision]:
            fault = fault or f"{100 * equal:.2f} % of labels are those of the net at {size[0]} x {size[1]} pixels"
    return lines, fault


def apart(logits: Tensor, given: Tensor, output: Output) -> tuple[float, float]:
    """How far what a file gives is from a net's logits (B, K, H, W), and the share of pixels with the same label.

    Of logits it is the largest difference, in the largest logit; of probabilities the largest difference; of labels
    the most that the net itself prefers another label by, in the largest logit: 0 where both are equal.
    """
    expected, scale = Outlet(nn.Identity(), output)(logits), float(logits.abs().max().clamp_min(1e-12))
    if given.shape != expected.shape:
        return float("inf"), 0.0
    if output == "labels":
        labels = given.long()[:, None]
        loss = logits.max(1, keepdim=True).values - logits.gather(1, labels)
        return float(loss.max()) / scale, float((given == expected).float().mean())
    difference = float((given - expected).abs().max())
    equal = float((labels_of(given) == labels_of(expected)).float().mean())
    return difference / (scale if output == "logits" else 1.0), equal


@torch.inference_mode()
def calibration_images(run: TrainedRun, net: nn.Module, count: int) -> list[Tensor]:
    """What the net is shown of the first images of the training split, as the run scores images: uint8 (1, 3, H, W)."""
    shown: list[Tensor] = []
    hook = net.register_forward_pre_hook(lambda _, given: shown.append(given[0].round().to(torch.uint8)))
    split = run.datamodule.split(str(run.config.data.train_split))
    try:
        for index in range(min(count, len(split))):
            run.predictor(net, run.batch(index, split))
    finally:
        hook.remove()
    return shown


@torch.inference_mode()
def compare_on_images(run: TrainedRun, net: nn.Module, exported: Exported, count: int) -> str:
    """Tell mean IoU of net and file over the first images of the split; returns what is wrong, as `compare`."""
    metrics = [SegmentationMetrics(exported.num_classes) for _ in range(2)]
    equal, pixels, count = 0, 0, min(count, len(run.dataset))
    for index in range(count):
        batch = run.batch(index)
        labels = [labels_of(run.predictor(part, batch)) for part in (net, exported)]
        for metric, found in zip(metrics, labels, strict=True):
            metric.update(found, batch["mask"])
        equal += int((labels[0] == labels[1]).sum())
        pixels += labels[0].numel()
    ours, theirs = (100 * (summarise(metric.compute()).miou or 0.0) for metric in metrics)
    log.info("mean IoU %.2f %% of the net, %.2f %% of the file on %d images of %s", ours, theirs, count, run.split)
    told = f"{100 * equal / max(1, pixels):.2f} % of labels are those of the net"
    log.info("%s", told)
    return "" if equal >= AGREEMENT["int8"] * pixels else told


# -- weights with their card -----------------------------------------------------------------------------------------


def write_card(folder: Path, run: TrainedRun, net: nn.Module, facts: Mapping[str, Any]) -> None:
    """Write weights, what is known of them, and a README.md for people, into a folder.

    Raises:
        UserError: The folder holds something else.
    """
    free = not folder.exists() or (folder / CARD).is_file() or (folder.is_dir() and not any(folder.iterdir()))
    require(free, f"file={folder}: holds something already: give a new folder")
    state = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in net.state_dict().items()}
    safetensors, pickled = WEIGHTS
    if find_spec("safetensors") is not None:
        from safetensors.torch import save

        name, content = safetensors, save(state)
    else:
        file = io.BytesIO()
        torch.save(state, file)
        name, content = pickled, file.getvalue()
    with replacing(folder / name) as target:
        target.write(content)
    for other in {*WEIGHTS} - {name}:
        (folder / other).unlink(missing_ok=True)
    replace_text(folder / "README.md", card(run, facts, name))
    replace_text(folder / CARD, json.dumps(facts, indent=1) + "\n")  # last: with it the folder is a run


def card(run: TrainedRun, facts: Mapping[str, Any], weights: str) -> str:
    """The README.md of weights: what they are, what they reach, how they were made, whose terms they are under."""
    config: Mapping[str, Any] = facts["config"]
    net = config["model"]["net"]
    percent: Callable[[float | None], str] = lambda value: "-" if value is None else f"{100 * value:.2f}"  # noqa: E731
    rows = [["metric", "%"], *([name.removeprefix("val/"), percent(value)] for name, value in run.metrics.items())]
    source = net.get("weights") or "random values"
    return f"""---
library_name: segmod
pipeline_tag: image-segmentation
---

# {run.name}

{net["_target_"].rpartition(".")[2]} for semantic segmentation, trained by segmod {facts["segmod"]}.

- **Data**: {facts["data"]}, trained on the split {config["data"].get("train_split")}, seed {config.get("seed")}.
- **Classes**: {", ".join(facts["classes"])}.
- **Started from**: {source}.
- **Input**: an image (B, 3, H, W), RGB in 0..255; the net normalises it itself. **Output**: logits (B, K, H, W).

## Metrics

{"On the split " + str(facts["split"]) + ", as the run found them:" if len(rows) > 1 else "None are known."}

{markdown(rows) if len(rows) > 1 else ""}

## Use

```
segmod-predict run=THIS_FOLDER input=photos output=out
segmod-evaluate run=THIS_FOLDER data.root=DIR
```

`{weights}` is the state dict of the net; `{CARD}` has the names and colours of the classes and the config.

## Licence

segmod is under the MIT licence. The data ({facts["data"]}) and what the training started from ({source}) have terms of
their own, which may forbid commercial use of what was trained with them: look there.

## Config

```yaml
{yaml.safe_dump(config, sort_keys=False).rstrip()}
```
"""
