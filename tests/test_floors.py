"""The floors of ARCHITECTURE.md: who may import whom, read off the syntax trees."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "segmod"
GROUND = {"types", "ops", "memory", "checkpoint"}
PARTS = {"nets", "data", "inference", "metrics", "optim", "losses", "viz", "figures", "measure"}
LIGHTNING = {"modules", "datamodules", "callbacks", "studies"}
COMMANDS = {
    "train", "evaluate", "predict", "tables", "results", "runs", "environment", "cli", "instantiate", "launch",
    "benchmark", "trial", "jobs", "comparison", "rows", "study", "proposals", "printing", "skipmaps",
}  # fmt: skip
FLOORS = [GROUND, PARTS, LIGHTNING, COMMANDS]
# packages a floor may not import, beyond what the floors above it may
FORBIDDEN = [
    {"lightning", "hydra", "omegaconf", "wandb", "torchvision", "torchmetrics", "albumentations", "cv2", "pydantic"},
    {"lightning", "hydra", "omegaconf", "wandb", "pydantic"},
    {"hydra", "omegaconf", "pydantic"},
    set(),
]
FILES = sorted(path for path in ROOT.rglob("*.py") if path.name != "__init__.py")


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[0]


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_module_imports_only_what_its_floor_may(path: Path) -> None:
    room = room_of(path)
    floor = next((i for i, rooms in enumerate(FLOORS) if room in rooms), None)
    assert floor is not None, f"{room} stands on no floor"
    below = set().union(*FLOORS[:floor])
    for name in imports(path):
        top, _, rest = name.partition(".")
        assert top not in FORBIDDEN[floor], f"{room} (floor {floor}) imports {name}"
        if top == "segmod" and rest:
            other = rest.partition(".")[0]
            allowed = other in below or other == room or floor == 3 or other == "__version__"
            # floor 0 and 3 are one house each; elsewhere rooms of one floor keep apart
            allowed = allowed or (floor == 0 and other in GROUND)
            assert allowed, f"{room} (floor {floor}) imports segmod.{other}"
            if room in ("modules", "datamodules") and other == "nets":
                pytest.fail(f"{path} imports a net; modules are handed one")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_modules_stay_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 300


def test_wandb_is_imported_by_callbacks_and_launch_alone() -> None:
    for path in FILES:
        if any(name.split(".")[0] == "wandb" for name in imports(path)):
            assert room_of(path) in ("callbacks", "launch"), path
