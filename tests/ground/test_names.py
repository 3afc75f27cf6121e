"""Names that are accepted stay inside the folder they are written below; others are refused in one line."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segmod.ground.errors import UserError
from segmod.ground.names import LONGEST, require_name

PARTS = st.one_of(
    st.text(max_size=12), st.sampled_from(["..", ".", "", "~", "C:", "a", " ", "x\0", "\\", "\ud800", "é"])
)
NAMES = st.one_of(st.text(), st.lists(PARTS, max_size=12).map("/".join))


def told_of(name: str, nested: bool = True) -> str:
    """The line that refuses a name; empty for one that is accepted."""
    try:
        assert require_name(name, "image ", nested=nested) == name
    except UserError as error:
        return str(error)
    return ""


@settings(deadline=None)
@given(NAMES, st.sampled_from(["/data/boxes", "runs", "/"]))
def test_what_is_accepted_stays_inside(name: str, root: str) -> None:
    if line := told_of(name):
        assert len(line) <= 300
        assert line.isascii()  # whatever the terminal is
        assert line.isprintable()
        return
    for path in (Path(root) / name, Path(root) / f"{name}.npz"):
        assert path.resolve().is_relative_to(Path(root).resolve())
        assert path.resolve() != Path(root).resolve()


@settings(deadline=None)
@given(NAMES)
def test_a_name_that_may_not_be_nested_is_a_single_file(name: str) -> None:
    assert told_of(name, nested=False) or Path(name).parts == (name,)


@pytest.mark.parametrize("name", ["2007_000033", "val/cat 1", "é", "a.b", "...", "~x", "-", 2007, "x" * LONGEST])
def test_what_data_sets_call_their_images(name: object) -> None:
    assert require_name(name, "image ") == str(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../x",
        "a/../b",
        "/abs",
        "a//b",
        "a/",
        "C:x",
        "a\\b",
        "a\nb",
        "\0",
        "\x7f",
        "x" * 201,
        "a/" * 10 + "a",
    ],
)
def test_names_that_lead_elsewhere_or_nowhere(name: str) -> None:
    with pytest.raises(UserError, match=r"^val\.txt: '.*can be no file's name: give "):
        require_name(name, "val.txt: ")
