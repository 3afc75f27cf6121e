"""Private names of other libraries: a library without one is told apart before anything else goes wrong."""

import importlib
import inspect
import pkgutil
import re
import tomllib
from importlib.metadata import version
from pathlib import Path
from types import FunctionType, ModuleType

import pytest

from segmod.ground import torch_private
from segmod.ground.errors import UserError, require_names
from segmod.runs import hydra_private
from segmod.training import lightning_private

ROOT = Path(__file__).parents[2]
LIBRARIES = {"torch": torch_private, "lightning": lightning_private, "hydra-core": hydra_private}
CASES = [(package, file, name) for package, file in LIBRARIES.items() for name in file.NAMES]


@pytest.mark.parametrize(("package", "file", "name"), CASES, ids=[name for *_, name in CASES])
def test_a_missing_name_is_told_with_the_versions_to_install(
    package: str, file: ModuleType, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, _, attribute = name.rpartition(".")
    found = pkgutil.resolve_name(owner)
    if hasattr(found, attribute):
        monkeypatch.delattr(found, attribute)
    else:  # given to the objects by __init__
        init = inspect.unwrap(found.__init__)
        names = tuple("another" if used == attribute else used for used in init.__code__.co_names)
        code = init.__code__.replace(co_names=names)
        monkeypatch.setattr(found, "__init__", FunctionType(code, {}, closure=init.__closure__))
    line = f"{package} {version(package)} has no {name}, which segmod relies on: pip install '{package}{file.TESTED}'"
    with pytest.raises(UserError, match=f"^{re.escape(line)}$"):
        hydra_private.let_errors_through() if file is hydra_private else importlib.reload(file)


def test_a_module_that_has_moved_is_a_missing_name() -> None:
    with pytest.raises(UserError, match=r"torch \S+ has no torch\.nowhere\.Thing\._name, which segmod relies on"):
        require_names("torch", ">=1", ["torch.nowhere.Thing._name"])


def test_the_versions_told_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for package, file in LIBRARIES.items():
        assert f"{package}{file.TESTED}" in project["dependencies"]
