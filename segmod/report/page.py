"""A report as one HTML file: all that it shows is in it, and it asks no network."""

from __future__ import annotations

import shlex
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import vl_convert
from markupsafe import Markup

from segmod.ground.printing import short_path
from segmod.report.figures import Chart

METRICS = {"miou": "mIoU", "pixel_acc": "pixel accuracy", "mean_acc": "mean accuracy", "fwiou": "fw IoU"}
"""What the metrics of a record are called."""

TEMPLATE = Path(__file__).with_name("page.html")


@dataclass
class Page:
    """What stands on a page, in its order.

    Attributes:
        title: Of the page.
        subtitle: One line below it.
        tables: Each with ``title``, ``rows`` of text with the header first, and perhaps ``note`` and ``sortable``.
        charts: Groups with ``title``, ``charts`` and perhaps ``note``.
        galleries: Groups with ``title`` and ``pictures``, whose layers can be switched.
        legend: Names and colours, such as ``#800000``, of what the layers show.
        rows: Groups with ``title`` and ``pictures`` of a ``source`` and a ``caption``.
        commands: How to repeat it.
        made_by: Versions and machine.
        config: As yaml; empty for none.
    """

    title: str
    subtitle: str = ""
    tables: list[dict[str, Any]] = field(default_factory=list)
    charts: list[dict[str, Any]] = field(default_factory=list)
    galleries: list[dict[str, Any]] = field(default_factory=list)
    legend: Sequence[tuple[str, str]] = ()
    rows: list[dict[str, Any]] = field(default_factory=list)
    commands: Sequence[str] = ()
    made_by: str = ""
    config: str = ""

    def add_charts(self, title: str, *charts: Chart | None, note: str = "") -> None:
        """Add a group of those charts that there are."""
        if known := [chart for chart in charts if chart is not None]:
            self.charts.append({"title": title, "charts": known, "note": note})

    def html(self) -> str:
        """The file; what comes of a run is escaped."""
        environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
        template = environment.from_string(TEMPLATE.read_text())
        return template.render(vars(self), bundle=Markup(_bundle()))


def data_uri(content: bytes) -> str:
    """An encoded picture as the address of itself."""
    kind = "jpeg" if content[:2] == b"\xff\xd8" else "png"
    return f"data:image/{kind};base64,{b64encode(content).decode()}"


def commands_of(record: Mapping[str, Any], folder: Path) -> list[str]:
    """The command that trained a run."""
    overrides = record.get("overrides")
    if overrides is None:
        return [f"# the config of {short_path(folder)}"]
    return [shlex.join(["segmod-train", *map(str, overrides)])]


def made_by(record: Mapping[str, Any]) -> str:
    """Versions and machine of a run."""
    versions = ", ".join(f"{name} {number}" for name, number in record.get("versions", {}).items())
    hardware = record.get("hardware", {})
    machine = ", ".join(
        [str(hardware.get("machine", "")), f"{hardware.get('cpus')} CPU cores", *hardware.get("gpus", [])]
    )
    return f"{versions}; {machine}; commit {record.get('git_commit')}" if record else ""


@cache
def _bundle() -> str:
    """Vega, Vega-Lite and vega-embed as one script."""
    script: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return script.replace("</script", "<\\/script")
