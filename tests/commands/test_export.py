"""`segmod-export`, and what it wrote behind the commands that take a run."""

import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import segmod
from segmod.commands.export import apart, compare
from segmod.ground.errors import UserError
from segmod.nets.exported import Exported

Command = Callable[..., int]
QUICK = ("trainer=cpu", "trainer.enable_progress_bar=false", "data.num_workers=0", "pictures=0")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, command: Command, small: tuple[str, ...]) -> Path:
    """A folder with a run called ``small``, and a photo."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        assert command("train", *small, "name=small", "trainer=cpu", "trainer.max_epochs=3") == 0
    Image.new("RGB", (50, 40), (200, 30, 30)).save(home / "photo.png")
    return home


@pytest.fixture
def here(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(home)
    return next(home.glob("runs/small/*/seed0"))


def scores(folder: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((folder / "evaluation" / "dense-val" / "metrics.json").read_text())["metrics"]
    return found


def test_weights_with_their_card_are_a_run(here: Path, home: Path, command: Command) -> None:
    assert command("export", "run=small", "format=weights", "file=card") == 0
    assert {path.name for path in (home / "card").iterdir()} == {"README.md", "config.json", "model.safetensors"}
    card = (home / "card" / "README.md").read_text()
    assert str(home) not in card
    assert str(home) not in (home / "card" / "config.json").read_text()
    assert "_target_: segmod.nets.hypercolumn.Hypercolumn" in card
    miou = segmod.open("small").metrics["val/miou"]
    assert miou is not None
    assert f"| miou | {100 * miou:.2f} |" in card
    assert command("evaluate", "run=card", *QUICK) == 0
    assert scores(home / "card") == segmod.open("small").metrics
    photo = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    card_run = segmod.open("card", device="cpu")
    np.testing.assert_array_equal(card_run.predict(photo).scores, segmod.open(here, device="cpu").predict(photo).scores)
    assert card_run.classes == segmod.open("small").classes


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("format=pt2", "precision=fp16"), "precision=fp16: format=pt2 has fp32 alone"),
        (("format=weights", "output=labels"), "format=weights holds the net as it is"),
        (("file=x.pt2",), "file=x.pt2: format=onnx needs a name that ends with .onnx"),
        (("format=weights", "file=runs"), "runs: holds something already"),
    ],
)
def test_mistakes_are_told_before_any_work(
    words: tuple[str, ...], line: str, here: Path, command: Command, capfd: pytest.CaptureFixture[str]
) -> None:
    before = sorted(Path().rglob("*"))
    assert command("export", "run=small", *words) == 1
    told = capfd.readouterr().err.splitlines()
    assert line in told[-1]
    assert "Traceback" not in "".join(told)
    assert sorted(Path().rglob("*")) == before


def test_without_the_packages_a_line_says_what_to_install(
    here: Path, command: Command, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segmod.nets.exported.find_spec", lambda name: None)
    assert command("export", "run=small") == 1
    assert "onnx is not installed, which ONNX files need: pip install 'segmod[export]'" in capfd.readouterr().err
    Path("x.onnx").write_bytes(b"")
    assert command("predict", "run=x.onnx", "input=photo.png") == 1
    assert "pip install 'segmod[export]'" in capfd.readouterr().err


def test_a_stranger_cannot_have_code_run(here: Path, command: Command, capfd: pytest.CaptureFixture[str]) -> None:
    legend = segmod.open("small").legend.as_plain()
    known = {
        "output": "logits",
        "size": None,
        "least": 32,
        "metrics": {},
        "config": segmod.open("small").config_to_send(),
    }
    with zipfile.ZipFile("x.pt2", "w") as archive:
        archive.writestr("x/extra/segmod.json", json.dumps({**legend, **known}))
    assert command("predict", "run=x.pt2", "input=photo.png", "output=out") == 1
    assert "if you trust it, add trust=all; an .onnx file needs no trust" in capfd.readouterr().err


def test_how_far_a_file_is_from_the_net() -> None:
    logits = torch.tensor([2.0, 1.0]).view(1, 2, 1, 1)  # one pixel
    assert apart(logits, logits, "logits") == (0.0, 1.0)
    difference, equal = apart(logits, logits + torch.tensor([-1.0, 1.0])[:, None, None], "logits")
    assert (difference, equal) == (0.5, 0.0)  # 1 of 2
    assert apart(logits, torch.zeros(1, 1, 1, dtype=torch.uint8), "labels") == (0.0, 1.0)
    assert apart(logits, torch.ones(1, 1, 1, dtype=torch.uint8), "labels") == (0.5, 0.0)  # 2 is preferred to 1 by 1
    assert apart(logits, logits.softmax(1) + 0.1, "probabilities")[0] == pytest.approx(0.1, abs=1e-6)
    assert apart(logits, logits[..., :0], "logits")[0] == float("inf")


class Doubled(Exported):
    """A file that gives twice the logits of `net`, and refuses two images where it is told to."""

    def __init__(self, refuses: bool = False, factor: float = 2.0) -> None:
        super().__init__(Path("x"), {"classes": ["a", "b"], "output": "logits", "size": None, "least": 1})
        self.refuses, self.factor = refuses, factor

    def run(self, image: torch.Tensor) -> torch.Tensor:
        if self.refuses and len(image) == 2:
            raise RuntimeError("no such batch")
        return self.factor * net(image)


def net(image: torch.Tensor) -> torch.Tensor:
    return image[:, :2].float()


def test_what_is_wrong_with_a_file_is_told() -> None:
    for precision in ("fp32", "fp16"):
        lines, fault = compare(net, Doubled(factor=1.0), "logits", precision)
        assert (len(lines), fault) == (4, "")
    assert compare(net, Doubled(), "logits", "fp32")[1] == "differs from the net by 1.0e+00 at 160 x 224 pixels"
    assert compare(net, Doubled(), "logits", "fp16")[1] == ""  # the labels are the same
    assert "% of labels are those of the net" in compare(net, Doubled(factor=-1.0), "logits", "fp16")[1]
    fault = compare(net, Doubled(refuses=True, factor=1.0), "logits", "fp32")[1]
    assert fault == "cannot be run on 2 x 97 x 131 pixels (no such batch)"


@pytest.mark.slow
@pytest.mark.parametrize("words", [(), ("output=probabilities",), ("output=labels",), ("format=pt2",)])
def test_a_file_scores_as_its_run(
    words: tuple[str, ...], here: Path, home: Path, command: Command, capfd: pytest.CaptureFixture[str]
) -> None:
    name = "-".join(words).replace("=", "") or "onnx"
    suffix = "pt2" if "format=pt2" in words else "onnx"
    assert command("export", "run=small", f"file={name}.{suffix}", *words) == 0
    printed = capfd.readouterr()
    assert len(re.findall(r"[0-3] x \d+ x \d+", printed.out)) == 3
    trust = ("trust=all",) if suffix == "pt2" else ()
    assert command("evaluate", f"run={name}.{suffix}", *QUICK, *trust) == 0
    expected = segmod.open("small").metrics
    for metric, value in scores(home / f"{name}-{suffix}").items():
        assert value == pytest.approx(expected[metric], abs=1e-4), metric
    photo = np.random.default_rng(0).integers(0, 256, (70, 50, 3), dtype=np.uint8)
    Image.fromarray(photo).save("photo.png")
    assert command("predict", f"run={name}.{suffix}", "input=photo.png", f"output={name}", *trust) == 0
    with Image.open(f"{name}/masks/photo.png") as mask:
        assert (np.asarray(mask) == segmod.open(here, device="cpu").predict(photo).labels).mean() > 0.999


@pytest.mark.slow
def test_a_file_that_says_something_else_is_not_left(
    here: Path, command: Command, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(model: Any, facts: Any) -> bytes:
        next(part for part in model.graph.initializer if part.name.endswith("score.bias")).raw_data = b"\x40" * 84
        return original(model, facts)

    from segmod.commands import export

    original = export.onnx_bytes
    monkeypatch.setattr(export, "onnx_bytes", spoil)
    before = sorted(Path().rglob("*"))
    assert command("export", "run=small", "file=spoilt.onnx") == 1
    assert "differs from the net by" in capfd.readouterr().err.splitlines()[-1]
    assert sorted(Path().rglob("*")) == before


@pytest.mark.slow
def test_eight_bits_are_scored_beside_the_net(
    here: Path, command: Command, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segmod.commands.export.AGREEMENT", {"int8": 0.0})  # of a net of 6 steps
    keys = ("precision=int8", "file=eight.onnx", "calibrate=4", "compare=2")
    assert command("export", "run=small", *keys) == 0
    printed = "".join(capfd.readouterr())
    assert re.search(r"mean IoU [\d.]+ % of the net, [\d.]+ % of the file on 2 images of val", printed)
    assert segmod.open("eight.onnx").load()
    with pytest.raises(UserError, match="brings its weights"):
        segmod.open("eight.onnx", checkpoint="best")
