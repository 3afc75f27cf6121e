"""Tables as they are printed and written."""

from pathlib import Path

import pytest

from segmod.ground.printing import markdown, print_table, write_records

LINES = [["class", "kind", "IoU"], ["cat [a]", "animal", "9.50"], ["background", "-", "-"]]


def test_numbers_stand_to_the_right_and_words_to_the_left(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("Scores", LINES).print("[below]")
    printed = capsys.readouterr().out
    assert "Scores" in printed
    assert "│ cat [a]    │ animal │ 9.50 │" in printed  # brackets are no markup
    assert "│ background │ -      │    - │" in printed
    assert printed.endswith("[below]\n")


def test_markdown_keeps_its_columns() -> None:
    assert markdown([["a|b", "n"], ["c", "1"]]) == "| a/b | n |\n| :-- | --: |\n| c | 1 |"


def test_records_are_written_with_all_their_digits(tmp_path: Path) -> None:
    write_records(tmp_path / "new" / "t.csv", [{"name": "a,b", "value": 0.1 + 0.2}, {"name": "c", "value": None}])
    assert (tmp_path / "new" / "t.csv").read_bytes() == b'name,value\r\n"a,b",0.30000000000000004\r\nc,\r\n'
