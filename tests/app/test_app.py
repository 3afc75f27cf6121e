"""The page that tries runs on photographs: what it says, what it refuses, and in a browser that it answers."""

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from base64 import b64decode
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("gradio")
pytest.importorskip("vl_convert")

from segmod.app.answers import Answers, answer, check
from segmod.app.page import make
from segmod.commands.app import named_runs
from segmod.ground.errors import UserError
from segmod.ground.palettes import Legend
from segmod.runs.prediction import Prediction
from segmod.runs.records import collect


@pytest.fixture(scope="module")
def runs(command: Any, small: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("app") / "runs"
    assert command("train", *small, "name=small", f"runs={root}", "trainer.max_epochs=1") == 0
    return root


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photograph.png")
    return tmp_path / "photograph.png"


def test_an_answer_carries_the_probabilities_below_the_pointer() -> None:
    scores = torch.zeros(3, 4, 6)
    scores[0] = 1.0
    scores[:, :, 3:] = torch.tensor([0.2, 0.8, 0.0])[:, None, None]
    legend = Legend("X", ("ground", "<b>cat</b>", "never"))
    told = answer("a & b", Prediction(np.zeros((4, 6, 3), np.uint8), scores, legend))
    assert "<b>cat" not in told
    assert "a &amp; b" in told
    assert "50.0 %" in told  # of the labels
    (names,) = re.findall("data-names='(.*?)'", told)
    assert json.loads(names.replace("&quot;", '"').replace("&lt;", "<").replace("&gt;", ">")) == list(
        legend.classes[:2]
    )
    (maps,) = re.findall('data-maps="(.*?)"', told)
    found = np.frombuffer(b64decode(maps), np.uint8).reshape(2, 4, 6)
    assert found[:, 0, 0].tolist() == [255, 0]
    assert found[:, 3, 5].tolist() == [51, 204]  # a fifth and four fifths of 255


def test_runs_answer_and_the_last_few_are_kept(runs: Path, photograph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder,) = named_runs(runs, []).values()
    answers = Answers(dict.fromkeys("abcd", folder))
    for name in "abcda":
        assert f"<figcaption>{name}</figcaption>" in answers.look(photograph, name)
    assert list(answers._open) == ["c", "d", "a"]
    plain = answers.look(photograph, "a")
    assert answers.look(photograph, "a", multiscale=True) != plain
    assert answers.look(photograph, "a", crf=True) != plain
    assert answers.look(photograph, "a") == plain  # the run itself is as it was


@pytest.mark.parametrize(
    ("size", "line"),
    [((20000, 10), "are a stripe"), ((9000, 9000), "are too many: at most 64 million"), (None, "is no")],
)
def test_what_is_no_photograph_is_refused_before_its_pixels_are_read(
    size: tuple[int, int] | None, line: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.png"
    if size:
        Image.new("1", size).save(path)
    else:
        path.write_bytes(b"GIF89a no")
    with pytest.raises(UserError, match=line):
        check(path)


def test_runs_are_called_by_what_sets_them_apart(tmp_path: Path) -> None:
    for folder, name, depth in (
        ("a/0/seed0", "a", 0),
        ("a/1/seed0", "a", 1),
        ("a/1/seed1", "a", 1),
        ("b/seed0", "b", 0),
    ):
        run = tmp_path / folder
        (run / ".hydra").mkdir(parents=True)
        (run / ".hydra" / "config.yaml").write_text(json.dumps({"name": name, "model": {"net": {"depth": depth}}}))
        (run / "checkpoints").mkdir()
        (run / "checkpoints" / "last.ckpt").touch()
    found = {name: str(path.relative_to(tmp_path)) for name, path in named_runs(tmp_path, []).items()}
    assert found == {"a depth-0": "a/0/seed0", "a depth-1": "a/1/seed0", "a depth-1 seed1": "a/1/seed1", "b": "b/seed0"}


def test_the_page_lists_runs(runs: Path) -> None:
    named = named_runs(runs, [])
    page = make(Answers(named), collect(runs), list(named))
    config = json.dumps(page.get_config_file(), default=str)
    assert all(name in config for name in named)
    assert "Synthetic val" in config


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["runs=nowhere"], "runs=nowhere: no trained run there"),
        (["run=nowhere"], "run=nowhere: no run there"),
        (["port=80"], "port=80"),
        (["device=abacus"], "device=abacus cannot be used"),
    ],
)
def test_mistakes_are_one_line(segmod: Any, capfd: Any, words: list[str], line: str) -> None:
    assert segmod("app", *words) == 1
    (told,) = capfd.readouterr().err.strip().splitlines()
    assert line in told


def test_a_port_in_use_is_one_line(segmod: Any, capfd: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert segmod("app", f"port={port}") == 1
    assert f"port={port}: cannot be used (Address already in use)" in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("chromium") and shutil.which("chromedriver")), reason="no chromium")
def test_a_browser_drops_a_photograph_and_reads_what_a_run_says(runs: Path, photograph: Path, tmp_path: Path) -> None:
    from selenium import webdriver
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "segmod", "app", f"runs={runs}", f"port={port}", "device=cpu"]
    served = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for flag in ("headless", "no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking"):
        options.add_argument(f"--{flag}")
    options.add_argument("--window-size=1200,900")
    driver = None
    try:
        assert served.stderr is not None
        assert f"http://127.0.0.1:{port}" in served.stderr.readline()
        driver = webdriver.Chrome(options, webdriver.ChromeService(str(shutil.which("chromedriver"))))
        driver.get(f"http://127.0.0.1:{port}")
        wait = WebDriverWait(driver, 60)
        field = wait.until(lambda page: page.find_elements(By.CSS_SELECTOR, "input[type=file]"))[0]
        field.send_keys(str(photograph))
        wait.until(lambda page: page.find_elements(By.CSS_SELECTOR, ".image-frame img, .image-container img"))
        next(b for b in driver.find_elements(By.TAG_NAME, "button") if b.text == "Label it").click()
        picture = wait.until(lambda page: page.find_elements(By.CSS_SELECTOR, ".segmod-answer img"))[0]
        webdriver.ActionChains(driver).move_to_element(picture).perform()
        wait.until(lambda page: "%" in page.find_element(By.CLASS_NAME, "segmod-told").text)
        served.send_signal(signal.SIGINT)
        deadline = time.monotonic() + 30
        while served.poll() is None and time.monotonic() < deadline:
            time.sleep(0.2)
        assert served.returncode == 128 + signal.SIGINT
    finally:
        if driver is not None:
            driver.quit()
        served.kill()
