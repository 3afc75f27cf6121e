"""What a run survives: kills, signals, dead ranks, full disks and damaged files, at random but repeatable.

    python benchmarks/faults.py                              ten minutes of all kinds
    python benchmarks/faults.py minutes=2 kinds=[kills,fuzz]
    python benchmarks/faults.py kinds=[kills] seed=0 case=17   one case again

Each case is a process of its own, forked from this one, which has imported all that is slow; ranks are started anew.
"""

from __future__ import annotations

import atexit
import itertools
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image
from rich.console import Console
from rich.table import Table

import segmod.commands.evaluate
import segmod.commands.predict
import segmod.commands.tables
import segmod.commands.train  # noqa: F401 (imported once, for all cases)
from segmod.__main__ import COMMANDS
from segmod.data.synthetic import write_voc_tree

SMALL = (
    "data.dataset.size=32", "data.dataset.train_images=16", "data.dataset.val_images=3", "data.crop_size=null",
    "data.batch_size=4", "data.num_workers=0", "trainer.enable_progress_bar=false",
    "trainer.enable_model_summary=false", "callbacks.pictures.count=0", "trainer.accelerator=cpu",
    "trainer.log_every_n_steps=1",
)  # fmt: skip
TINY = ("model.net.hidden=8", "model.net.width=0.2", "trainer.max_epochs=3")
STEPS = (*TINY[:2], "trainer.max_epochs=null", "trainer.max_steps=10")
STOPPING = ("callbacks=early_stopping", "callbacks.early_stopping.patience=1", "+callbacks.early_stopping.min_delta=1")
PLATEAU = ("scheduler=plateau", "model.scheduler.patience=0")
CROPS = ("data.squash=40", "data.crop_size=32", "data.crops.val_crops=4")
SPARSE = ("model._target_=segmod.training.sparse.HypercolumnSparse", "+model.points_per_class=2", "+model.rows=40")
TWO = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.log_every_n_steps=1")
RECIPES: dict[str, tuple[str, ...]] = {
    "epochs": TINY,
    "steps": STEPS,
    "steps, validation within the epoch": (*STEPS, "trainer.val_check_interval=3"),
    "two workers": (*TINY, "data.num_workers=2"),
    "random crops, saved at every step": (
        *TINY, "data.crop_size=24", "data.scale=[0.8,1.2]", "callbacks.checkpoints.every_n_steps=1"
    ),
    "moving average": (*STEPS, "callbacks=[ema]"),
    "accumulation": (*TINY, "trainer.accumulate_grad_batches=3", "callbacks.checkpoints.every_n_steps=1"),
    "early stopping": (*TINY, *STOPPING, "trainer.max_epochs=5"),
    "plateau": (*TINY, *PLATEAU),
    "plateau and early stopping of steps": (*STEPS, *PLATEAU, *STOPPING),
    **{f"scheduler {name}": (*STEPS, f"scheduler={name}") for name in ("poly", "linear", "compound", "step")},
    **{f"optimizer {name}": (*TINY, f"optimizer={name}") for name in ("sgd", "adam")},
    "crops of objects": (*TINY, "crops=objects", *CROPS),
    "crops of proposals": (*STEPS, "crops=proposals", "proposals=grid", *CROPS, "data.num_workers=2"),
    "sparse stage": (*TINY, *SPARSE, "callbacks.checkpoints.every_n_steps=1"),
    "two ranks": (*TINY, *TWO, "callbacks.checkpoints.every_n_steps=1"),
    "two ranks, steps, two workers": (*STEPS, *TWO, "data.num_workers=2", "trainer.val_check_interval=3"),
    "fcn32s": ("model=fcn32s", "model.net.width=0.03", "trainer.max_epochs=null", "trainer.max_steps=6"),
    "fcn8s_at_once": ("model=fcn8s_at_once", "model.net.width=0.03", "trainer.max_epochs=null", "trainer.max_steps=6"),
    "dfp_resnet50": ("model=dfp_resnet50", "model.net.width=0.05", "trainer.max_epochs=2"),
    "single_skip": ("model=single_skip", "data.squash=64", "trainer.max_epochs=2"),
}  # fmt: skip
CLOCK = re.compile(
    r"(git_commit|wall_time|finished|date|memory|seconds|peak)"
)  # keys of a record that are of the machine


# -- processes ---------------------------------------------------------------------------------------------------------


def start(name: str, *words: str, folder: Path, prepare: Callable[[], object] | None = None) -> int:
    """Begin a command in a forked process that leads a group of its own; returns its number."""
    folder.mkdir(parents=True, exist_ok=True)
    process = os.fork()
    if process:
        return process
    try:
        os.setsid()
        os.chdir(folder)
        out = os.open("out.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.argv = [f"segmod-{name}", *words]
        if prepare is not None:
            prepare()
        COMMANDS[name]()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException as error:
        os.write(2, f"Traceback of {error!r}".encode())
        code = 99
    sys.stdout.flush()
    atexit._run_exitfuncs()  # as the interpreter does, which would also end what belongs to the parent
    os._exit(code)


def wait(process: int, seconds: float = 240) -> int | None:
    """Exit code, or minus the signal that a process died of; None if it still ran and had to be killed."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if (done := os.waitpid(process, os.WNOHANG))[0]:
            return os.waitstatus_to_exitcode(done[1])
        time.sleep(0.01)
    os.killpg(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return None


def run(name: str, *words: str, folder: Path, prepare: Callable[[], object] | None = None) -> int | None:
    return wait(start(name, *words, folder=folder, prepare=prepare))


def told(folder: Path, code: int | None, *allowed: int, most: int = 1) -> str:
    """What is wrong with how a command ended: empty for success, or for one line (or ``most``) with an allowed code."""
    text = (folder / "out.txt").read_text(errors="replace")
    if code is None:
        return "hangs"
    if "Traceback" in text:
        return "traceback: " + text.strip().splitlines()[-1][:200]
    lines = [line for line in text.splitlines() if line.startswith(("segmod: error", "segmod: stopped"))]
    if code not in (0, *allowed):
        return f"exit code {code}"
    if code and (not 1 <= len(lines) <= most or max(map(len, lines)) > 300):
        return f"{len(lines)} lines, the longest of {max(map(len, lines), default=0)} characters, exit code {code}"
    return ""


def left(process: int, seconds: float = 20) -> bool:
    """Whether anything of a group lives after a while; it is killed then."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.killpg(process, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.1)
    os.killpg(process, signal.SIGKILL)
    return True


# -- what is compared --------------------------------------------------------------------------------------------------


@cache
def whole(recipe: str, root: Path) -> tuple[Path, float]:
    """A run that nothing disturbs, and the seconds it took; made once."""
    folder = root / "whole" / re.sub(r"\W+", "-", recipe)
    started = time.monotonic()
    code = run("train", *SMALL, *RECIPES[recipe], folder=folder)
    assert code == 0, (recipe, (folder / "out.txt").read_text()[-2000:])
    (found,) = folder.glob("runs/**/seed0")
    return found, time.monotonic() - started


def difference(one: Any, other: Any, where: str = "") -> str:
    """Where two values differ first, to the last bit; empty if nowhere."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = [key for key in {**one, **other} if not CLOCK.search(str(key))]
        pairs = [(one.get(key, "absent"), other.get(key, "absent"), f"{where}.{key}") for key in keys]
    elif isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        pairs = [(a, b, f"{where}.{i}") for i, (a, b) in enumerate(zip(one, other, strict=True))]
    elif isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return "" if torch.equal(one, other) else where
    else:
        return "" if one == other or (one != one and other != other) else where
    return next(filter(None, itertools.starmap(difference, pairs)), "")


def unequal(one: Path, other: Path) -> str:
    """Where two finished runs differ first: checkpoints, curves, record."""
    for name in ("last", "best"):
        files = [run / "checkpoints" / f"{name}.ckpt" for run in (one, other)]
        if found := difference(*(torch.load(file, weights_only=True) for file in files), name):
            return found
    if (one / "metrics.csv").read_text() != (other / "metrics.csv").read_text():
        return "metrics.csv"
    return difference(*(json.loads((run / "metrics.json").read_text()) for run in (one, other)), "metrics.json")


# -- kinds: each does one case and returns what was tried, and what is wrong with it -----------------------------------


def kills(rng: random.Random, root: Path, folder: Path) -> tuple[str, str]:
    """SIGKILL up to three times at any moment, then the same command to the end: equal to the last bit."""
    recipe = rng.choice(list(RECIPES))
    expected, seconds = whole(recipe, root)
    words = ("train", *SMALL, *RECIPES[recipe])
    for _ in range(rng.randint(1, 3)):
        process = start(*words, folder=folder)
        time.sleep(rng.uniform(0.1, 1.0) * seconds)
        (os.killpg if rng.random() < 0.7 else os.kill)(process, signal.SIGKILL)
        os.waitpid(process, 0)
    wrong = told(folder, code := run(*words, folder=folder)) or (f"exit code {code}" if code else "")
    (found,) = folder.glob("runs/**/seed0")
    return recipe, wrong or unequal(expected, found)


def signals(rng: random.Random, root: Path, folder: Path) -> tuple[str, str]:
    """A signal at any moment of any command: one line, 128 + n, nothing left."""
    made = whole("steps", root)[0]
    name = rng.choice(("train", "train", "evaluate", "predict", "tables"))
    recipe = rng.choice(list(RECIPES))
    pictures(root)
    words = {
        "train": (*SMALL, *RECIPES[recipe]),
        "evaluate": (f"run={made}", "trainer=cpu", "trainer.enable_progress_bar=false", "data.num_workers=2"),
        "predict": (f"run={made}", f"input={root / 'pictures'}", "output=out", "device=cpu"),
        "tables": (f"runs={made.parents[2]}",),
    }[name]
    signum = rng.choice((signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1))
    process = start(name, *words, folder=folder)
    time.sleep(0.2 + rng.random() ** 2 * (whole(recipe, root)[1] if name == "train" else 2))
    (os.killpg if rng.random() < 0.5 else os.kill)(process, signum)
    code = wait(process, 60)
    wrong = told(folder, code, 128 + signum)
    if not wrong and left(process):
        wrong = "a process is left"
    if not wrong and list(folder.rglob(".lock")):
        wrong = ".lock is left"
    return f"{signum.name} {name}", wrong


def ranks(rng: random.Random, root: Path, folder: Path) -> tuple[str, str]:
    """A rank of two is killed, suspended or stopped at any moment: all end within 30 s, in one line."""
    signum = rng.choice((signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM))
    rank = rng.choice((0, 1))
    process = start("train", *SMALL, *TINY, *TWO, "trainer.max_epochs=100000", folder=folder)
    children = Path(f"/proc/{process}/task/{process}/children")
    while not children.read_text():
        time.sleep(0.05)
    other = int(children.read_text().split()[0])
    time.sleep(rng.uniform(0, 25))
    what = f"{signum.name} to rank {rank}"
    os.kill((process, other)[rank], signum)
    if rank == 0 and signum != signal.SIGTERM:  # what is left is the other rank
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and " Z" not in (stat := stat_of(other)) and stat:
            time.sleep(0.2)
        ended = not stat_of(other) or " Z" in stat_of(other)
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        logs = "".join(log.read_text() for log in folder.rglob("rank1.log"))
        wrong = "" if ended else "rank 1 lives after 30 s"
        return what, wrong or ("" if "segmod: error: rank 0" in logs or not logs else "no line")
    code = wait(process, 30)
    # a rank that has hardly begun tells its own end where rank 0 tells its
    return what, told(folder, code, 1, 143, most=2) or ("a process is left" if left(process) else "")


def stat_of(process: int) -> str:
    try:
        return Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return ""


def disk(rng: random.Random, root: Path, folder: Path) -> tuple[str, str]:
    """No file may grow beyond so many bytes: one line; with room again, it ends as if nothing had been."""
    limit = int(10 ** rng.uniform(0, 5.3))

    def full() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    recipe = rng.choice(("steps", "moving average", "sparse stage"))
    words = ("train", *SMALL, *RECIPES[recipe])
    expected, _ = whole(recipe, root)
    process = start(*words, folder=folder, prepare=full)
    code = wait(process)
    out = folder / "out.txt"  # is a file, too
    wrong = "" if out.stat().st_size >= limit else told(folder, code, 1)
    wrong = wrong or ("" if code in (0, 1, 120) else f"exit code {code}")
    wrong = wrong or told(folder, code := run(*words, folder=folder)) or (f"exit code {code}" if code else "")
    found = list(folder.glob("runs/**/seed0"))
    return f"{recipe}, files of at most {limit} bytes", wrong or unequal(expected, found[0])


def fuzz(rng: random.Random, root: Path, folder: Path) -> tuple[str, str]:
    """A file with bits turned, bytes lost or added, and the command that reads it: success or one line."""
    sparse, files = whole("sparse stage", root)[0].parents[2], pictures(root)
    train = ("train", *SMALL, *RECIPES["sparse stage"])
    voc = ("train", *SMALL[3:], *STEPS, "data=voc", "data.root=voc", "data.crop_size=32", "data.verify=true")
    boxes = (*voc, "crops=proposals", *CROPS[:2], "proposals=file", "proposals.folder=boxes")
    seed = str(next(sparse.glob("**/seed0")).relative_to(sparse.parent))
    predict = ("predict", f"run={seed}", "input=pictures", "output=out", "device=cpu")
    pattern, command = rng.choice(
        (
            ("runs/**/config.yaml", predict),
            ("runs/**/config.yaml", ("tables", "runs=runs")),
            ("runs/**/config.yaml", train),
            ("runs/**/metrics.json", ("tables", "runs=runs")),
            ("runs/**/metrics.json", train),
            ("runs/**/best.ckpt", predict),
            ("runs/**/last.ckpt", train),
            ("runs/**/metrics.csv", train),
            ("runs/**/points.pt", train),
            ("pictures/*", predict),
            ("voc/**/*.jpg", voc),
            ("voc/**/SegmentationClass/*.png", voc),
            ("voc/**/Segmentation/*.txt", voc),
            ("boxes/*", boxes),
        )
    )
    folder.mkdir(parents=True)
    shutil.copytree(sparse, folder / "runs")
    for path in files.iterdir():
        shutil.copytree(path, folder / path.name) if path.is_dir() else shutil.copy(path, folder)
    if command is train and not pattern.endswith(("json", "yaml")):
        next(folder.glob("runs/**/metrics.json")).unlink()  # else the run is finished and nothing is read
    target = rng.choice(sorted(folder.glob(pattern)))
    target.write_bytes(damaged(rng, target.read_bytes()))
    code = run(*command, folder=folder)
    return f"{target.relative_to(folder)} read by {command[0]}", told(folder, code, 1)


def damaged(rng: random.Random, content: bytes) -> bytes:
    """A content cut short, with bits turned, with bytes in its middle lost, or with others in their place."""
    place = rng.randrange(max(1, len(content)))
    way = rng.randrange(4)
    if way == 0:
        return content[:place]
    if way == 1:
        turned = bytearray(content)
        for _ in range(rng.choice((1, 1, 3, 30))):
            turned[rng.randrange(len(turned))] ^= 1 << rng.randrange(8)
        return bytes(turned)
    length = rng.choice((1, 10, 1000))
    return content[:place] + (rng.randbytes(length) if way == 3 else b"") + content[place + length :]


@cache
def pictures(root: Path) -> Path:
    """Inputs: ``pictures``, ``voc`` and ``boxes``."""
    (root / "inputs" / "boxes").mkdir(parents=True)
    (root / "pictures").mkdir()
    rng = np.random.default_rng(0)
    for number, suffix in enumerate(("png", "jpg", "gif", "tif", "webp", "bmp")):
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(root / "pictures" / f"{number}.{suffix}")
    shutil.copytree(root / "pictures", root / "inputs" / "pictures")
    voc = write_voc_tree(root / "inputs" / "voc", train=8, val=3, size=(40, 50))
    for number, image in enumerate(sorted(voc.glob("JPEGImages/*.jpg"))):
        table = np.array([[2, 3, 30, 35, 0.9], [10, 10, 40, 39, 0.5]])
        file = root / "inputs" / "boxes" / image.stem
        if number % 3 == 0:
            np.savez_compressed(f"{file}.npz", boxes=table)
        elif number % 3 == 1:
            np.save(f"{file}.npy", table)
        else:
            np.savetxt(f"{file}.csv", table, delimiter=",")
    return root / "inputs"


# -- the campaign ------------------------------------------------------------------------------------------------------

KINDS = {"kills": kills, "signals": signals, "ranks": ranks, "disk": disk, "fuzz": fuzz}


def campaign(minutes: float, kinds: Sequence[str], seed: int, case: int | None, keep: bool) -> list[str]:
    """Try the kinds in turn until the time is over, or one case; prints the table, returns the failures."""
    root = Path(tempfile.mkdtemp(prefix="faults-"))
    tried, failures = dict.fromkeys(kinds, 0), []
    end = time.monotonic() + 60 * minutes
    for number in itertools.count() if case is None else [case]:
        for kind in kinds:
            if case is None and time.monotonic() > end and number:
                break
            folder = root / f"{kind}-{number}"
            what, wrong = KINDS[kind](random.Random(f"{seed} {kind} {number}"), root, folder)
            tried[kind] += 1
            if wrong:
                failures.append(f"kinds=[{kind}] seed={seed} case={number}: {what}: {wrong}")
                print(failures[-1], flush=True)
            elif not keep:
                shutil.rmtree(folder, ignore_errors=True)
        else:
            continue
        break
    table = Table("kind", "tried", "as promised", "failures")
    for kind in kinds:
        failed = sum(line.startswith(f"kinds=[{kind}]") for line in failures)
        table.add_row(kind, str(tried[kind]), str(tried[kind] - failed), str(failed))
    Console().print(table)
    if failures or keep:
        print(f"what they left: {root}")
    else:
        shutil.rmtree(root)
    return failures


def main() -> None:
    """Read the keys, do the campaign."""
    defaults = {"minutes": 10.0, "kinds": list(KINDS), "seed": 0, "case": None, "keep": False}
    keys = OmegaConf.create(defaults)
    OmegaConf.set_struct(keys, True)
    keys.merge_with(OmegaConf.from_cli())
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    sys.exit(1 if campaign(**keys) else 0)


if __name__ == "__main__":
    main()
