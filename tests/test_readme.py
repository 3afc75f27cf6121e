"""What the README tells users to type works."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

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


def test_the_readme_has_fourteen_commands() -> None:
    assert len(COMMANDS) == 14


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_compose(line: str, segmod: Any, capfd: Any) -> None:
    name, arguments = words(line)
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
        if name in ("benchmark", "proposals") or "study=skip_maps" in arguments:  # tested for themselves
            continue
        arguments = [a.replace("RUN", f"'{run}'") for a in arguments]
        assert segmod(name, *arguments) == 0, line
    assert json.loads((run / "metrics.json").read_text())["metrics"]["val/miou"] >= 0
    assert list(run.glob("evaluation/multiscale-val/**/*.tar.gz"))
    assert (Path("out") / "masks" / "one.png").exists()


@pytest.mark.parametrize("name", re.findall(r"\]\(([^)#:]+)\)", README))
def test_links_point_to_files(name: str) -> None:
    assert (Path(__file__).parents[1] / name).exists()


def test_make_targets_exist() -> None:
    makefile = (Path(__file__).parents[1] / "Makefile").read_text()
    for target in set(re.findall(r"`?make ([a-z-]+)`?", README)):
        assert f"\n{target}:" in makefile
