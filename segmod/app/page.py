"""The page of `segmod-app`, made with gradio."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from segmod.app.answers import SCRIPT, Answers
from segmod.ground.errors import UserError
from segmod.runs.records import Score

_STYLE = """
.segmod-answers { display: flex; flex-wrap: wrap; gap: 16px; }
.segmod-answer { margin: 0; max-width: 460px; }
.segmod-answer figcaption { font-weight: 600; margin-bottom: 4px; }
.segmod-answer img { cursor: crosshair; display: block; max-width: 100%; }
.segmod-told { min-height: 1.5em; font-variant-numeric: tabular-nums; }
.segmod-class { margin-right: 14px; white-space: nowrap; }
.segmod-class > span { display: inline-block; width: 11px; height: 11px; border: 1px solid #666; margin-right: 4px; }
"""
LARGEST_FILE = "30mb"


def make(answers: Answers, scores: Sequence[Score], chosen: Sequence[str]) -> gr.Blocks:
    """The page: one tab tries runs on a photograph, the other lists the runs and shows their reports.

    Args:
        answers: Labels photographs.
        scores: Of the finished runs, for the list.
        chosen: Runs that are chosen at first.
    """
    names = list(answers.runs)
    page: gr.Blocks
    # gradio deletes its copies of photographs after ten minutes
    with gr.Blocks(title="segmod", analytics_enabled=False, delete_cache=(600, 600)) as page:
        with gr.Tab("Try"), gr.Row():
            with gr.Column(scale=1, min_width=280):
                photograph = gr.Image(type="filepath", sources=["upload", "clipboard"], label="Photograph", height=280)
                runs = gr.CheckboxGroup(names, value=list(chosen), label="Runs")
                multiscale = gr.Checkbox(label="several scales, and mirrored")
                crf = gr.Checkbox(label="refine by a dense CRF")
                button = gr.Button("Label it", variant="primary")
            with gr.Column(scale=3):
                shown = gr.HTML()

        def label(path: str | None, wanted: list[str], scales: bool, refine: bool) -> str:
            if path is None or not wanted:
                raise gr.Error("Choose a photograph and a run.", print_exception=False)
            try:
                made = [answers.look(path, name, scales, refine) for name in wanted]
            except UserError as error:
                raise gr.Error(html.escape(str(error)), print_exception=False) from error
            return f'<div class="segmod-answers">{"".join(made)}</div>'

        inputs: list[Any] = [photograph, runs, multiscale, crf]
        button.click(label, inputs, shown, concurrency_limit=1)
        with gr.Tab("Runs"):
            gr.Dataframe(_rows(scores), headers=["run", "data", "mIoU (%)", "pixel accuracy (%)"], interactive=False)
            reports = {name: folder / "report.html" for name, folder in answers.runs.items()}
            found = [name for name, file in reports.items() if file.is_file()]
            which = gr.Dropdown(found, label="Report", value=None, info="segmod-report run=RUN writes one")
            report = gr.HTML()
            which.change(lambda name: _report(reports.get(name)), which, report)
    return page


def serve(page: gr.Blocks, port: int) -> str:
    """Serve a page on this machine alone; returns at once, with its address."""
    page.queue(max_size=16, default_concurrency_limit=2)
    _, address, _ = page.launch(
        server_name="127.0.0.1",
        server_port=port,
        prevent_thread_lock=True,
        quiet=True,
        share=False,
        ssr_mode=False,
        max_file_size=LARGEST_FILE,
        footer_links=[],
        theme=gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["monospace"]),  # no fonts of the network
        css=_STYLE,
        head=f"<script>{SCRIPT.read_text()}</script>",
    )
    return str(address)


def _rows(scores: Sequence[Score]) -> list[list[Any]]:
    def percent(score: Score, key: str) -> float | None:
        return round(100 * score.values[key], 2) if key in score.values else None

    return [
        [
            f"{score.name} {score.settings} seed{score.config.get('seed')}",
            f"{score.data} {score.split}",
            percent(score, "miou"),
            percent(score, "pixel_acc"),
        ]
        for score in scores
        if not score.evaluation
    ]


def _report(file: Path | None) -> str:
    """A report in a frame of its own, whose scripts reach nothing else."""
    if file is None or not file.is_file():
        return ""
    text = html.escape(file.read_text(), quote=True)
    return f'<iframe sandbox="allow-scripts" srcdoc="{text}" style="width: 100%; height: 85vh; border: 0"></iframe>'
