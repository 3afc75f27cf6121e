"""What the README and the pages of docs/ tell users to type works, and the errors they explain are those there are."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = {path.stem: path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))}
TYPED = {"own_data", "own_net"}  # pages whose commands are run, one after the other


def commands(page: str) -> list[str]:
    return [
        line.partition("#")[0].strip()
        for block in re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
        for line in block.replace("\\\n", " ").splitlines()
        if line.startswith("segmod-")
    ]


COMMANDS = commands(README)
IN_PAGES = [line for name, page in PAGES.items() if name not in TYPED for line in commands(page)]


def words(command: str) -> tuple[str, list[str]]:
    program, *arguments = shlex.split(command)
    return program.removeprefix("segmod-"), arguments


def test_the_readme_has_twenty_one_commands() -> None:
    assert len(COMMANDS) == 21


@pytest.mark.parametrize("line", COMMANDS + [pytest.param(line, marks=pytest.mark.slow) for line in IN_PAGES])
def test_commands_compose(line: str, segmod: Any, capfd: Any) -> None:
    name, arguments = words(line)
    if name == "new":  # takes no config
        return
    arguments = [
        a if "[" in a else a.split(",")[0] for a in arguments if a != "-m" and "(" not in a
    ]  # one job of a sweep
    assert segmod(name, "--cfg", "job", *arguments) == 0, capfd.readouterr().err


def test_a_user_trains_evaluates_predicts_and_tabulates(segmod: Any, small: tuple[str, ...]) -> None:
    for line in COMMANDS:
        name, arguments = words(line)
        if name == "train":
            if arguments == []:
                assert segmod("train", *small, "callbacks.pictures.count=1") == 0
                (run,) = Path("runs").glob("**/seed0")
                photos = Path("photos")
                photos.mkdir()
                picture = next((run / "pictures").glob("**/*.png"))
                (photos / "one.png").write_bytes(picture.read_bytes())
            continue
        if (
            name in ("app", "benchmark", "export", "proposals") or "study=skip_maps" in arguments
        ):  # tested for themselves
            continue
        arguments = [a.replace("RUN", f"'{run}'") for a in arguments]
        assert segmod(name, *arguments) == 0, line
    assert json.loads((run / "metrics.json").read_text())["metrics"]["val/miou"] >= 0
    assert list(run.glob("evaluation/multiscale-val/**/*.tar.gz"))
    assert (Path("out") / "masks" / "one.png").exists()


@pytest.mark.parametrize("name", re.findall(r"\]\(([^)#:]+)\)", README))
def test_links_point_to_files(name: str) -> None:  # those of docs/ are checked by `make docs`
    assert (ROOT / name).exists()


def test_the_errors_explained_are_those_there_are() -> None:
    source = "".join(file.read_text() for file in (ROOT / "segmod").rglob("*.py"))
    told = re.sub(r'"\n\s*f?"', "", source)  # texts that go on in the next line
    errors = re.findall(r"^\*\*`(.*)`\*\*$", PAGES["faq"], re.MULTILINE)
    assert len(errors) > 25
    parts = {part.strip() for line in errors for part in re.split(r"\.\.\.|[;:] ", line) if len(part.strip()) > 7}
    assert [part for part in parts if part not in told] == []


def test_the_tutorial_on_own_data_can_be_typed(segmod: Any, capfd: Any) -> None:
    leaves, rng = Path("leaves"), np.random.default_rng(0)
    for folder in ("images", "masks"):
        (leaves / folder).mkdir(parents=True)
    for number in range(6):
        mask = rng.integers(0, 3, (8, 8), dtype=np.uint8).repeat(6, 0).repeat(6, 1)
        Image.fromarray(mask * 80).convert("RGB").save(leaves / "images" / f"{number:04}.jpg")
        Image.fromarray(mask).save(leaves / "masks" / f"{number:04}.png")
    (leaves / "classes.txt").write_text("background\nleaf\nsoil\n")
    lines = commands(PAGES["own_data"])
    quick = ["trainer.max_epochs=1", "trainer.enable_progress_bar=false", "callbacks.pictures.count=0"]
    quick += ["data.batch_size=4", "data.num_workers=0", "data.crop_size=32", "data.short_side=null", "data.scale=null"]
    quick += ["model.net.width=0.1"]
    run = Path()
    for line in lines:
        name, arguments = words(line)
        if name == "train":
            weights = ["model.net.weights=null"] if "experiment=dfp_resnet50" in arguments else []
            arguments += quick + weights
        assert segmod(name, *[a.replace("RUN", f"'{run}'") for a in arguments]) == 0, line
        run = max(Path("runs").glob("**/seed0"), key=lambda folder: folder.stat().st_mtime)
    told = capfd.readouterr().out
    assert "leaves: 3 classes" in told
    assert "soil" in told
    record = json.loads((run / "metrics.json").read_text())
    assert (record["data"], list(record["iou"])) == ("leaves", ["background", "leaf", "soil"])
    assert (Path("out") / "masks" / "0003.png").exists()


@pytest.mark.slow
def test_the_page_on_own_nets_can_be_typed(
    segmod: Any, small: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = PAGES["own_net"]
    for name, block in re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", page, re.DOTALL):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(block)
    lines = commands(page)
    assert len(lines) > 7
    for line in lines:
        name, arguments = words(line)
        arguments = [a.replace("RUN", "'runs/small-synthetic'") for a in arguments]
        if name == "train" and "--config-dir" in arguments:
            own = [a for a in small if not a.startswith("model.net.")] if "model=small" in arguments else small
            assert segmod("train", *arguments, *own) == 0, line
        elif name == "train":  # other backbones: too large to train here
            assert segmod("train", *arguments, "--cfg", "job") == 0, line
        else:
            assert segmod(name, *arguments) == 0, line
    assert list(Path("runs").glob("small-synthetic/**/evaluation/dense-val/metrics.json"))
    assert "sure (%)" in next(Path("runs").glob("**/studies/**/table.csv")).read_text()


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"`?make ([a-z-]+)`?", README)):
        assert f"\n{target}:" in makefile
