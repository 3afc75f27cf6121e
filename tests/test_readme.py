"""What the README tells users to type works."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

README = (Path(__file__).parents[1] / "README.md").read_text()
COMMANDS = [
    line.partition("#")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.startswith("segmod-")
]


def words(command: str) -> tuple[str, list[str]]:
    program, *arguments = shlex.split(command)
    return program.removeprefix("segmod-"), arguments


def test_the_readme_has_nineteen_commands() -> None:
    assert len(COMMANDS) == 19


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_compose(line: str, segmod: Any, capfd: Any) -> None:
    name, arguments = words(line)
    if name == "new":  # takes no config
        return
    arguments = [a.split(",")[0] for a in arguments if a != "-m"]
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
        if name in ("benchmark", "proposals", "export") or "study=skip_maps" in arguments:  # tested for themselves
            continue
        arguments = [a.replace("RUN", f"'{run}'") for a in arguments]
        assert segmod(name, *arguments) == 0, line
    assert json.loads((run / "metrics.json").read_text())["metrics"]["val/miou"] >= 0
    assert list(run.glob("evaluation/multiscale-val/**/*.tar.gz"))
    assert (Path("out") / "masks" / "one.png").exists()


@pytest.mark.parametrize("name", re.findall(r"\]\(([^)#:]+)\)", README))
def test_links_point_to_files(name: str) -> None:
    assert (Path(__file__).parents[1] / name).exists()


def test_the_tutorial_on_own_data_can_be_typed(segmod: Any, capfd: Any) -> None:
    leaves, rng = Path("leaves"), np.random.default_rng(0)
    for folder in ("images", "masks"):
        (leaves / folder).mkdir(parents=True)
    for number in range(6):
        mask = rng.integers(0, 3, (8, 8), dtype=np.uint8).repeat(6, 0).repeat(6, 1)
        Image.fromarray(mask * 80).convert("RGB").save(leaves / "images" / f"{number:04}.jpg")
        Image.fromarray(mask).save(leaves / "masks" / f"{number:04}.png")
    (leaves / "classes.txt").write_text("background\nleaf\nsoil\n")
    tutorial = (Path(__file__).parents[1] / "docs" / "own_data.md").read_text()
    lines = [line for block in re.findall(r"```bash\n(.*?)```", tutorial, re.DOTALL) for line in block.splitlines()]
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


def test_make_targets_exist() -> None:
    makefile = (Path(__file__).parents[1] / "Makefile").read_text()
    for target in set(re.findall(r"`?make ([a-z-]+)`?", README)):
        assert f"\n{target}:" in makefile
