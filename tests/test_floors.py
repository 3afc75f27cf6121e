"""Folders are floors: each imports from those above it in the list of ARCHITECTURE.md, never from below or sideways.

Read off the syntax trees, imports inside functions and for type checkers included, and off the ``_target_`` of configs.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "segmod"
CONF = ROOT.parent / "conf"
FLOORS = ["ground", "nets", "data", "inference", "parts", "training", "runs", "studies", "report", "app", "commands"]
PARTS = {
    "metrics",
    "losses",
    "optim",
    "viz",
    "charts",
    "figures",
    "measure",
}  # files between inference and training
# packages that a floor may not import: it can be used from a notebook without them
LIGHTNING, CONFIG = {"lightning", "wandb"}, {"hydra", "omegaconf", "pydantic"}
FORBIDDEN = {
    "ground": {*LIGHTNING, *CONFIG, "torchvision", "torchmetrics", "albumentations", "cv2"},
    **{floor: {*LIGHTNING, *CONFIG} for floor in ("nets", "data", "inference", "parts")},
    "training": CONFIG,
    "studies": {*LIGHTNING, *CONFIG},
    "report": {*LIGHTNING, "hydra"},
    "app": {*LIGHTNING, "hydra"},
}
FILES = sorted(path for path in ROOT.rglob("*.py") if path.parent != ROOT or path.stem in PARTS)


def floor_of(module: str) -> str:
    """Floor of a dotted name below segmod."""
    first = module.partition(".")[0]
    return "parts" if first in PARTS else first


def imports(path: Path) -> set[str]:
    """All that a file imports, wherever it does so."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_folder_imports_only_from_those_above_it(path: Path) -> None:
    own = floor_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
    place = FLOORS.index(own)
    for name in imports(path):
        top, _, rest = name.partition(".")
        assert top not in FORBIDDEN.get(own, set()), f"{own} imports {name}"
        if top == "segmod" and rest and rest != "__version__":
            other = floor_of(rest)
            assert other in FLOORS, f"{path} imports {name}, which stands on no floor"
            assert FLOORS.index(other) < place or other == own, f"{own} imports {name}, which stands below it"


def test_parts_do_not_import_each_other() -> None:
    for path in FILES:
        if path.stem in PARTS and path.parent == ROOT:
            others = {name.split(".")[1] for name in imports(path) if name.startswith("segmod.")}
            assert not others & PARTS, path


def test_training_is_handed_a_net_and_never_imports_one() -> None:
    tools = {"ops", "weights", "normalise"}
    for path in (ROOT / "training").glob("*.py"):
        used = {name.split(".")[2] for name in imports(path) if name.startswith("segmod.nets.")}
        assert used <= tools, f"{path} imports {used - tools}"


def test_wandb_is_imported_where_it_is_logged_to_alone() -> None:
    allowed = {"training/loggers.py", "training/wandb_panels.py", "runs/launch.py"}
    for path in FILES:
        if any(name.split(".")[0] == "wandb" for name in imports(path)):
            assert str(path.relative_to(ROOT)) in allowed, path


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=lambda p: str(p.relative_to(CONF)))
def test_targets_of_configs_exist(path: Path) -> None:
    for target in re.findall(r"_target_: (segmod\.[\w.]+)", path.read_text()):
        *parts, name = target.split(".")
        candidates = [(parts, name), (parts[:-1], parts[-1])]  # a class or function, or a method of a class
        files = [(ROOT.parent.joinpath(*words).with_suffix(".py"), leaf) for words, leaf in candidates]
        found = [leaf in file.read_text() for file, leaf in files if file.is_file()]
        assert found, target
        assert all(found), target


def test_no_file_grows_without_bound() -> None:
    assert [path for path in FILES if len(path.read_text().splitlines()) > 400] == []
