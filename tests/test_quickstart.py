import json
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.slow
def test_the_quickstart_learns(segmod: Any) -> None:
    """The bar of the README, far above the 4 % of calling everything background."""
    assert segmod("train") == 0
    run = Path("runs/tiny-synthetic/seed0")
    assert json.loads((run / "metrics.json").read_text())["metrics"]["val/miou"] > 0.70
    assert len(list((run / "pictures").glob("*.png"))) == 4
