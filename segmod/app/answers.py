"""What runs say of a photograph, as HTML to point at."""

from __future__ import annotations

import copy
import html
import json
from base64 import b64encode
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from segmod.data.pictures import read_picture
from segmod.ground.errors import UserError, reason, require
from segmod.ground.files import open_file
from segmod.ground.memory import give_freed_memory_back
from segmod.ground.types import UInt8Array, fitted
from segmod.inference.crf import CRFPredictor
from segmod.inference.multiscale import MultiScalePredictor
from segmod.nets.ops import resize
from segmod.report.findings import encoded
from segmod.report.page import data_uri
from segmod.runs.prediction import Prediction
from segmod.runs.trained import TrainedRun
from segmod.viz import MATTERS

_SIDE = 640  # pixels of the longer side of what is shown
_GRID = 128  # of the probabilities that follow the pointer
_KEPT = 3  # runs in memory at a time
_LIKELY = 0.02  # probability somewhere in the image from which on a class is told
_LARGEST = 64 * 2**20  # pixels of a photograph
_LONGEST = 50  # times its shorter side that the longer one may have

SCRIPT = Path(__file__).with_name("point.js")
"""What an answer calls when the pointer moves over it."""


class Answers:
    """Opens runs when they are first asked, keeps the last few, and labels photographs.

    Args:
        runs: Folders by what to call them.
        device: Where to compute.
        trust: Classes that stored configs may name, see `TrainedRun.open`.
        max_side: A larger photograph is scored at this many pixels on its longer side.
    """

    def __init__(
        self,
        runs: Mapping[str, Path],
        device: str = "cpu",
        trust: Iterable[str] | str = (),
        max_side: int | None = 1024,
    ) -> None:
        self.runs = runs
        self.device = device
        self.trust = trust
        self.max_side = max_side
        self._open: OrderedDict[str, TrainedRun] = OrderedDict()

    def look(self, photograph: str | Path, name: str, multiscale: bool = False, crf: bool = False) -> str:
        """What one run says of a photograph: its picture with colours and outlines, and what the pointer tells.

        Args:
            photograph: The file.
            name: Of the run.
            multiscale: Take the mean over several scales and the mirrored image instead of the run's own way.
            crf: Refine that by a dense CRF.

        Raises:
            UserError: It is no photograph, or too large; or the run cannot be opened.
        """
        check(photograph)
        run = copy.copy(self._run(name))
        if multiscale:
            vars(run)["predictor"] = MultiScalePredictor(size=run.config.data.get("squash"))
        if crf:
            vars(run)["predictor"] = CRFPredictor(run.predictor)
        try:
            picture = read_picture(photograph)
        except Exception as error:  # whatever PIL finds wrong with a file
            raise UserError(f"this is no photograph ({reason(error)})") from error
        told = answer(name, run.predict(picture, self.max_side))
        give_freed_memory_back()  # photographs of differing sizes leave gaps
        return told

    def _run(self, name: str) -> TrainedRun:
        if name not in self.runs:
            raise UserError(f"there is no run {name}")
        if name not in self._open:
            while len(self._open) >= _KEPT:
                self._open.popitem(last=False)
            self._open[name] = TrainedRun.open(self.runs[name], trust=self.trust).to(self.device).load()
        self._open.move_to_end(name)
        return self._open[name]


def check(photograph: str | Path) -> None:
    """Look at the header of a photograph, before its pixels take memory.

    Raises:
        UserError: It is none, or too large, or a stripe.
    """
    try:
        with open_file(photograph) as file, Image.open(file) as opened:
            width, height = opened.size
    except Exception as error:
        raise UserError(f"this is no photograph ({reason(error)})") from error
    size = f"{width} x {height} pixels"
    require(width * height <= _LARGEST, f"{size} are too many: at most {_LARGEST // 2**20} million")
    require(max(width, height) <= _LONGEST * min(width, height), f"{size} are a stripe, not a photograph")


def answer(name: str, found: Prediction) -> str:
    """A prediction as HTML: the overlay, which tells the probabilities below the pointer, and the classes' shares."""
    height, width = fitted(len(found.labels), len(found.labels[0]), _SIDE)
    shown = Image.fromarray(found.overlay()).resize((width, height), Image.Resampling.BOX)
    shares = np.bincount(found.labels.ravel(), minlength=len(found.legend.classes)) / found.labels.size
    legend = "".join(
        f'<span class="segmod-class"><span style="background: rgb({r}, {g}, {b})"></span>'
        f"{html.escape(found.legend.classes[k])} {100 * shares[k]:.1f} %</span>"
        for k in np.argsort(-shares)
        if shares[k] >= MATTERS
        for r, g, b in [found.legend.palette[k]]
    )
    names, maps = _maps(found)
    return (
        f'<figure class="segmod-answer"><figcaption>{html.escape(name)}</figcaption>'
        f'<img src="{data_uri(encoded(np.asarray(shown), "JPEG"))}" alt="labels of {html.escape(name)}" '
        f'onpointermove="segmodPoint(event, this)" data-rows="{maps.shape[1]}" data-columns="{maps.shape[2]}" '
        f"data-names='{html.escape(json.dumps(names), quote=True)}' data-maps=\"{b64encode(maps.tobytes()).decode()}\">"
        f'<div class="segmod-told">point at the picture</div><div>{legend}</div></figure>'
    )


def _maps(found: Prediction) -> tuple[list[str], UInt8Array]:
    """Names and coarse probabilities, uint8 (n, h, w) of 0..255, of the classes that are likely somewhere."""
    coarse = resize(found.scores[None], fitted(found.scores.shape[1], found.scores.shape[2], _GRID))[0]
    likely = [k for k in range(len(coarse)) if coarse[k].max() >= _LIKELY]
    maps: UInt8Array = (255 * coarse[likely]).round().byte().numpy()
    return [found.legend.classes[k] for k in likely], maps
