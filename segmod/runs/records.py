"""``metrics.json`` and ``benchmark.json``: what a run, an evaluation or a benchmark reached, written and read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from omegaconf import DictConfig

from segmod.ground.errors import UserError, reason
from segmod.ground.files import read_text, replace_text
from segmod.ground.printing import damaged, read_csv
from segmod.metrics import summarise
from segmod.runs.environment import git_commit, hardware, peak_memory, versions
from segmod.runs.keys import digest

if TYPE_CHECKING:
    from segmod.training.module import SegmentationModule
import logging
from dataclasses import dataclass, replace
from statistics import mean

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from segmod.runs import folders as runs


def record(
    directory: Path,
    cfg: DictConfig,
    *,
    metrics: Mapping[str, float | None],
    iou: Mapping[str, float | None],
    **facts: Any,
) -> dict[str, Any]:
    """Write ``metrics.json``: the record of a finished run or evaluation, fractions in [0, 1], None where undefined.

    Args:
        directory: Of the run or evaluation.
        cfg: The run's config.
        metrics: Such as ``val/miou``.
        iou: Per class, None for classes without ground truth or prediction.
        facts: Whatever else belongs to the record (``wall_time_s``, ``step``, ``data``, ``inference``, ...).
    """
    contents = {
        "metrics": dict(metrics),
        "iou": dict(iou),
        "name": cfg.name,
        "seed": cfg.seed,
        "config_digest": digest(cfg),
        **facts,
        "peak_memory_bytes": peak_memory(),
        "git_commit": git_commit(),
        "versions": versions(),
        "hardware": hardware(),
    }
    replace_text(directory / "metrics.json", json.dumps(contents, indent=2) + "\n")
    return contents


def metrics_of(module: SegmentationModule, classes: Sequence[str]) -> dict[str, Any]:
    """``metrics`` and ``iou`` of the module's last validation, for `record`."""
    assert module.confusion is not None
    summary = summarise(module.confusion)
    names = ("miou", "pixel_acc", "mean_acc", "fwiou")
    return {
        "metrics": {f"val/{name}": getattr(summary, name) for name in names} | module.further,
        "iou": dict(zip(classes, summary.iou, strict=True)),
    }


log = logging.getLogger(__name__)

Content = TypeVar("Content")


@dataclass(frozen=True)
class Score:
    """One metrics.json: a finished run, or an evaluation of one.

    ``values`` are called ``miou``, ``iou/<class>``, or by a further number's name (``wall_time_s``), and those of the
    curves in metrics.csv ``mean_over_epochs/<metric>`` and ``max_over_epochs/<metric>``.
    """

    folder: Path  # of the run and its siblings with other seeds
    name: str  # of the run
    settings: str  # the overrides that set this folder apart from others of the name
    evaluation: str  # folder of the evaluation, such as multiscale-val; empty for the run's own result
    inference: str
    data: str  # such as VOC2012
    split: str
    images: int | None  # how many were scored, where the file says so
    values: Mapping[str, float]
    config: DictConfig  # of the run
    net: Any = None  # resolved node model.net of the run, without its weights
    costs: str = ""  # what time and memory among the values were measured on


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.json."""

    folder: Path  # as of the runs with the same choices
    name: str
    settings: Mapping[str, Any]
    net: Any  # as of a score
    values: Mapping[str, float]
    machine: str
    written: float  # seconds since the epoch


def collect(root: Path) -> list[Score]:
    """All results below a folder; a file that holds none is left out with a warning that names it.

    An evaluation that scores a split as the run itself does says nothing new, and is left out, too.
    """
    scores = list(_all_below(root, "metrics.json", read_score, "result of segmod"))
    known = {(s.folder, f"{s.inference}-{s.split}") for s in scores if not s.evaluation}
    kept = [s for s in scores if (s.folder, s.evaluation) not in known]
    return sorted(kept, key=lambda s: (s.folder, s.evaluation))


def _all_below(root: Path, name: str, read: Callable[[Path], Content], what: str) -> Iterator[Content]:
    """What the files of a name below a folder hold; one that cannot be read is left out with a warning."""
    for path in sorted(root.rglob(name)):
        try:
            content = read(path)
        except Exception as error:  # whatever a foreign file can cause
            why = error if isinstance(error, UserError) else reason(error)
            log.warning("segmod: warning: %s is left out: no %s (%s)", path, what, why)
        else:
            yield content


def read_score(path: Path) -> Score:
    """Read one metrics.json, the config of its run and the run's curves."""
    contents = json.loads(read_text(path))
    evaluation = path.parent.name if path.parent.parent.name == "evaluation" else ""
    directory = path.parents[2] if evaluation else path.parent
    cfg = runs.Run(directory).config()
    split = contents["split"]
    values = {key: value for key, value in contents.items() if isinstance(value, (int, float))}
    values |= {f"iou/{name}": value for name, value in contents["iou"].items()}
    values |= {key.rpartition("/")[2]: value for key, value in contents["metrics"].items()}
    if not evaluation:
        values |= over_epochs(directory / "metrics.csv")
    name, folder = str(contents["name"]), directory.resolve().parent
    return Score(
        folder=folder,
        name=name,
        settings=f"/{folder}/".rpartition(f"/{name}/")[2].strip("/"),
        evaluation=evaluation,
        inference=str(contents.get("inference") or cfg.inference._target_.split(".")[-2]),
        data=str(contents["data"]),
        split=split,
        images=contents.get("images"),
        values={key: float(value) for key, value in values.items() if value is not None},
        config=cfg,
        net=_net(cfg),
    )


def without_weights(node: Any) -> Any:
    """A resolved node of a net with every ``weights`` set to null: costs do not depend on them."""
    if isinstance(node, dict):
        return {key: None if key == "weights" else without_weights(value) for key, value in node.items()}
    return [without_weights(item) for item in node] if isinstance(node, list) else node


def _net(cfg: DictConfig) -> Any:
    try:
        return without_weights(OmegaConf.to_container(cfg.model.net, resolve=True))
    except OmegaConfBaseException:  # none, or one that refers to what is not there
        return None


def collect_benchmarks(root: Path) -> list[Benchmark]:
    """All benchmarks below a folder, the preferred last: on a GPU before on a CPU, newer before older."""
    found = _all_below(root, "benchmark.json", read_benchmark, "benchmark")
    return sorted(found, key=lambda b: (str(b.settings["device"]).startswith("cuda"), b.written))


def read_benchmark(path: Path) -> Benchmark:
    """Read one benchmark.json."""
    contents = json.loads(read_text(path))
    settings, hardware = contents["settings"], contents["hardware"]
    gpu = str(settings["device"]).startswith("cuda") and hardware["gpus"]
    return Benchmark(
        folder=path.resolve().parents[2],
        name=str(contents["name"]),
        settings=settings,
        net=contents["net"],
        values={key: float(value) for key, value in contents["values"].items()},
        machine=hardware["gpus"][0] if gpu else f"{hardware['machine']} CPU, {settings['threads']} threads",
        written=path.stat().st_mtime,
    )


def with_costs(scores: Sequence[Score], benchmarks: Sequence[Benchmark], wanted: Mapping[str, Any]) -> list[Score]:
    """Scores with the time and memory of their nets, and further ones for nets that were measured and not trained.

    Args:
        scores: Of runs and evaluations.
        benchmarks: The preferred last.
        wanted: Settings that a benchmark must have to count.
    """
    fitting = [b for b in benchmarks if all(b.settings.get(key) == value for key, value in wanted.items())]
    shown = {k: "x".join(map(str, v)) if isinstance(v, list) else v for k, v in wanted.items()}
    what = ", ".join(f"{key} {value}" for key, value in shown.items())

    def costs(net: Any) -> dict[str, Any]:
        of_net = [b for b in fitting if net is not None and b.net == net]
        values = {key: value for b in of_net for key, value in b.values.items()}
        return {"values": values, "costs": f"{of_net[-1].machine} ({what})" if of_net else ""}

    found = []
    for score in scores:
        known = costs(score.net)
        found.append(replace(score, values={**known["values"], **score.values}, costs=known["costs"]))
    for b in fitting:
        if all(score.net != b.net or score.name != b.name for score in found):
            config = OmegaConf.create({"name": b.name, "model": {"net": b.net}})
            found.append(Score(b.folder, b.name, "", "", "", "", "", None, config=config, net=b.net, **costs(b.net)))
    return found


def over_epochs(path: Path) -> dict[str, float]:
    """Mean and maximum of each validation metric over the epochs of a run; nothing where it has no curves.

    Raises:
        UserError: The curves are damaged.
    """
    found: dict[str, list[float]] = {}
    try:
        rows = [{key: float(value) for key, value in row.items() if value} for row in read_csv(path)]
        last = max((row["epoch"] for row in rows if "train/loss" in row), default=-1.0)
        for row in rows:
            if row.get("epoch", 0) <= last:  # after it the chosen checkpoint is scored again: no further epoch
                for key, value in row.items():
                    if key.startswith("val/"):
                        found.setdefault(key.removeprefix("val/"), []).append(value)
    except (KeyError, ValueError) as error:
        raise damaged(path, error) from error
    means = {f"mean_over_epochs/{key}": mean(values) for key, values in found.items()}
    return means | {f"max_over_epochs/{key}": max(values) for key, values in found.items()}
