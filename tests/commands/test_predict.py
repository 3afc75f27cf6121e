"""segmod-predict: which files it takes, how it reads them, and what it writes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segmod import viz
from segmod.__main__ import COMMANDS
from segmod.commands import predict
from segmod.data.pictures import read_picture
from segmod.ground.errors import UserError


def call(name: str, *overrides: str) -> None:
    """Run a command in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["segmod", *overrides])
        COMMANDS[name]()


def labels_in(path: Path) -> np.ndarray:
    with Image.open(path) as png:
        assert png.mode == "P"
        return np.array(png)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two training steps on synthetic scenes."""
    runs = tmp_path_factory.mktemp("runs")
    call(
        "train",
        *[
            f"runs={runs}",
            "name=small",
            "data.dataset.train_images=4",
            "data.dataset.val_images=2",
            "data.batch_size=2",
        ],
        *["data.num_workers=0", "model.net.hidden=8", "trainer.max_steps=2"],
        *["trainer=cpu", "trainer.enable_progress_bar=false"],
    )
    return next(runs.rglob("metrics.json")).parent


@pytest.fixture
def photo() -> Image.Image:
    """A 50 x 30 picture with some structure."""
    y, x = np.mgrid[:30, :50]
    return Image.fromarray(np.stack([5 * x, 8 * y, 100 + x + y], axis=-1).astype(np.uint8))


# -- reading ---------------------------------------------------------------------------------------------------------


def test_read_grey_as_three_equal_channels(tmp_path: Path, photo: Image.Image) -> None:
    grey = photo.convert("L")
    grey.save(tmp_path / "x.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "x.png"), np.stack([np.array(grey)] * 3, axis=-1))


def test_read_sixteen_bits_over_their_whole_range(tmp_path: Path) -> None:
    values = np.array([[0, 257, 65535], [32896, 128, 129]], np.uint16)
    Image.fromarray(values).save(tmp_path / "x.png")
    # 65535 = 255 * 257; 128 / 257 rounds to 0, 129 / 257 to 1
    np.testing.assert_array_equal(read_picture(tmp_path / "x.png")[..., 0], [[0, 1, 255], [128, 0, 1]])


def test_read_floats(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0.0, 0.5, 1.0]], np.float32)).save(tmp_path / "x.tif")
    np.testing.assert_array_equal(read_picture(tmp_path / "x.tif")[0, :, 0], [0, 128, 255])


@pytest.mark.parametrize(("mode", "opaque", "half"), [("RGBA", (10, 20, 30), (132, 137, 142)), ("LA", 10, 132)])
def test_transparent_pixels_show_white(tmp_path: Path, mode: str, opaque: object, half: object) -> None:
    image = Image.new(mode, (3, 1))
    for x, alpha in enumerate((255, 128, 0)):
        colour = (10, 20, 30, alpha) if mode == "RGBA" else (10, alpha)
        image.putpixel((x, 0), colour)
    image.save(tmp_path / "x.png")
    # half: c * 128/255 + 255 * 127/255, for c = 10, 20, 30; PIL rounds in its own way
    expected = np.stack([np.broadcast_to(c, 3) for c in (opaque, half, 255)])
    np.testing.assert_allclose(read_picture(tmp_path / "x.png")[0], expected, atol=1)


def test_read_cmyk_and_palette(tmp_path: Path) -> None:
    Image.new("CMYK", (2, 2), (0, 255, 255, 0)).save(tmp_path / "red.jpg", quality=100)
    np.testing.assert_allclose(read_picture(tmp_path / "red.jpg")[0, 0], (255, 0, 0), atol=3)
    indexed = Image.new("P", (2, 2), 1)
    indexed.putpalette([0, 0, 0, 9, 8, 7])
    indexed.save(tmp_path / "x.png")
    assert read_picture(tmp_path / "x.png")[1, 1].tolist() == [9, 8, 7]


def test_exif_orientation_is_applied(tmp_path: Path, photo: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the picture is to be shown turned clockwise
    photo.save(tmp_path / "x.png", exif=exif)
    turned = np.rot90(np.array(photo), k=-1)
    np.testing.assert_array_equal(read_picture(tmp_path / "x.png"), turned)


# -- files -----------------------------------------------------------------------------------------------------------


def test_inputs_of_folder_pattern_and_file(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", "sub/c.webp", "notes.txt", ".hidden.jpg", "out/masks/a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()

    def found(given: str) -> list[str]:
        paths = predict.find_images(str(tmp_path / given), tmp_path / "out")
        return [path.relative_to(tmp_path).as_posix() for path in paths]

    assert found("") == ["a.jpg", "b.PNG", "sub/c.webp"]
    assert found("*.jpg") == ["a.jpg"]
    assert found("**/*.webp") == ["sub/c.webp"]
    assert found("notes.txt") == ["notes.txt"]
    for given in ("*.bmp", "missing.png"):
        with pytest.raises(UserError, match="input="):
            found(given)


def test_names_are_paths_below_the_common_folder_and_never_collide() -> None:
    paths = [Path(f"/data/{p}") for p in ("x/a.jpg", "y/a.jpg", "y/b.jpg", "y/b.png", "y/B.gif", "y/b.png.jpg")]
    names = predict.output_names(paths)
    assert names[:2] == ["x/a", "y/a"]
    assert names[2:5] == ["y/b.jpg", "y/b.png", "y/B.gif"]
    assert len({name.casefold() for name in names}) == 6
    assert predict.output_names([Path("/data/x/a.jpg")]) == ["a"]
    upwards = [Path("/data/y/../../up/a.jpg"), Path("/data/y/x/../../../../up/b.jpg")]  # as a pattern may find them
    assert predict.output_names(upwards) == ["a", "b"]


def test_outputs_never_replace_inputs(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    image = tmp_path / "masks" / "a.png"
    image.touch()
    with pytest.raises(UserError, match=r"would overwrite the input .*a\.png"):
        predict.check_outputs([image], ["a"], tmp_path)
    predict.check_outputs([image], ["a"], tmp_path / "elsewhere")


# -- the command -----------------------------------------------------------------------------------------------------


def test_folder_with_a_bad_file(
    run: Path, tmp_path: Path, photo: Image.Image, capfd: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in"
    (source / "sub").mkdir(parents=True)
    photo.save(source / "a.png")
    photo.resize((21, 90)).save(source / "sub" / "a.png")
    photo.resize((1, 1)).save(source / "dot.png")
    (source / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    with pytest.raises(SystemExit) as caught:
        call("predict", f"run={run}", f"input={source}", f"output={tmp_path / 'out'}", "device=cpu")
    assert caught.value.code == 1
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("segmod: error: 1 of 4 images failed:")
    assert "broken.jpg" in last
    for name, size in {"a": (50, 30), "sub/a": (21, 90), "dot": (1, 1)}.items():
        with Image.open(tmp_path / "out" / "overlays" / f"{name}.png") as png:
            assert png.size == size
        mask = labels_in(tmp_path / "out" / "masks" / f"{name}.png")
        assert mask.shape == size[::-1]
        assert mask.max() < 21
    assert not (tmp_path / "out" / "probabilities").exists()


def test_probabilities_decide_the_mask_and_the_overlay(run: Path, tmp_path: Path, photo: Image.Image) -> None:
    photo.save(tmp_path / "x.png")
    call("predict", f"run={run}", f"input={tmp_path / 'x.png'}", f"output={tmp_path}", "probabilities=true")
    scores = np.load(tmp_path / "probabilities" / "x.npz")["probabilities"]
    assert (scores.dtype, scores.shape) == (np.float16, (21, 30, 50))
    np.testing.assert_allclose(scores.astype(np.float32).sum(0), 1, atol=0.01)
    mask = labels_in(tmp_path / "masks" / "x.png")
    chosen = np.take_along_axis(scores, mask[None].astype(np.int64), axis=0)[0]
    np.testing.assert_array_equal(chosen, scores.max(0))
    with Image.open(tmp_path / "overlays" / "x.png") as png:
        np.testing.assert_array_equal(np.array(png), viz.overlay(np.array(photo), mask))


def test_large_images_are_scored_small_and_brought_back(run: Path, tmp_path: Path, photo: Image.Image) -> None:
    flat = Image.new("RGB", (60, 40), (90, 120, 30))
    flat.save(tmp_path / "large.png")
    flat.resize((30, 20)).save(tmp_path / "small.png")
    for name in ("large", "small"):
        given = [
            f"run={run}",
            f"input={tmp_path / name}.png",
            f"output={tmp_path}",
            "probabilities=true",
            "max_side=30",
        ]
        call("predict", *given)
    large, small = (np.load(tmp_path / f"probabilities/{name}.npz")["probabilities"] for name in ("large", "small"))
    assert large.shape == (21, 40, 60)
    # corners of an upsampled map are its own corners
    np.testing.assert_allclose(
        large[:, [0, 0, -1, -1], [0, -1, 0, -1]], small[:, [0, 0, -1, -1], [0, -1, 0, -1]], atol=2e-3
    )


def test_another_inference_changes_the_probabilities(run: Path, tmp_path: Path, photo: Image.Image) -> None:
    photo.save(tmp_path / "x.png")
    found = []
    scaled, sliding = ["inference=multiscale", "inference.scales=[1.5]"], ["inference=sliding", "inference.window=16"]
    for choice in (["inference=dense"], scaled, sliding):
        output = tmp_path / choice[0]
        call("predict", f"run={run}", f"input={tmp_path}/x.png", f"output='{output}'", "probabilities=true", *choice)
        found.append(np.load(output / "probabilities" / "x.npz")["probabilities"])
    assert np.abs(found[0] - found[1]).max() > 1e-3
    assert np.abs(found[0] - found[2]).max() > 1e-3


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["input=nothing_here"], "input=nothing_here: no such file"),
        (["input={image}", "device=abacus"], "device=abacus"),
        (["input={image}", "max_side=0"], "max_side=0"),
        (["input={image}", "output={image}"], "is a file: give a folder"),
    ],
)
def test_mistakes_are_one_line(
    overrides: list[str], message: str, tmp_path: Path, photo: Image.Image, capfd: pytest.CaptureFixture[str]
) -> None:
    photo.save(tmp_path / "x.png")
    with pytest.raises(SystemExit) as caught:
        call("predict", f"run={tmp_path}", *[o.format(image=tmp_path / "x.png") for o in overrides])
    assert caught.value.code == 1
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("segmod: error: ")
    assert message in last


def test_boxes_of_a_photo_are_found_and_not_kept(
    run: Path, tmp_path: Path, photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGMOD_PROPOSALS", str(tmp_path / "kept"))
    photo.resize((120, 90)).save(tmp_path / "x.png")
    given = ["inference=proposals", "inference.size=32", "inference.min_side=20", "inference.max_proposals=3"]
    call("predict", f"run={run}", f"input={tmp_path}/x.png", f"output={tmp_path}", "probabilities=true", *given)
    scores = np.load(tmp_path / "probabilities" / "x.npz")["probabilities"]
    assert scores.shape == (21, 90, 120)
    np.testing.assert_allclose(scores.astype(np.float32).sum(0), 1, atol=0.01)
    assert np.abs(scores.astype(np.float32) - 1 / 21).max() > 0.01  # some box was scored
    assert not (tmp_path / "kept").exists()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_memory_does_not_grow_with_the_number_of_images(segmod: Any, small: tuple[str, ...]) -> None:
    assert segmod("train", *small, "trainer.max_epochs=1", "name=run") == 0
    rng = np.random.default_rng(0)
    Path("photos").mkdir()
    for number in range(160):
        height, width = rng.integers(150, 500, 2)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(f"photos/{number}.png")
    code = """
import sys
from pathlib import Path
from typing import Any
from segmod.commands import predict
from segmod.__main__ import COMMANDS
resident = []
write = predict.write
def note(*args):
    write(*args)
    resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6)
predict.write = note
sys.argv = ["segmod-predict", "run=run", "input=photos", "output=out"]
COMMANDS["predict"]()
print(min(resident[40:56]), min(resident[-16:]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=500)
    early, late = map(float, done.stdout.split())
    assert late - early < 12, (early, late)
