"""A character made from nothing by clicks and keys alone, on the tiny model: the page,
its queue and real runs."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from extensions.tools.ui.state import Ui
from tests.extensions.tools.ui.conftest import Served
from tests.html_browser import Browser
from tests.processes import until

pytestmark = pytest.mark.slow

NAME = "my_character"
"""Of a dataset that the first page makes, and of its training."""

MOST_CLICKS = {"character": 10, "edit": 13}
"""From an empty folder to a LoRA that is downloaded, choosing files included."""


def drawn(folder: Path, count: int = 14) -> list[Path]:
    """Images that a camera might have called so."""
    folder.mkdir()
    paths = [folder / f"写真 {number:02}.png" for number in range(count)]
    for number, path in enumerate(paths):
        image = Image.effect_noise((128, 128), 20 + 5 * number).convert("RGB")
        hue = f"hsl({number * 360 // count}, 80%, 50%)"
        ImageDraw.Draw(image).ellipse((24, 24, 104, 104), fill=hue)
        image.save(path)
    return paths


class Clicks:
    """Clicks of a person who walks the path, counted."""

    def __init__(self, browser: Browser) -> None:
        self.browser, self.count = browser, 0

    def __call__(self, selector: str, seconds: float = 60) -> None:
        """Clicks on what is there, or about to appear."""
        self.browser.wait_for(f"document.querySelector({selector!r})", seconds)
        self.browser.click(selector)
        self.count += 1

    def choose(self, selector: str, files: list[Path]) -> None:
        """Files by the dialog of a browser, which one click opens."""
        self.browser.type(selector, "\n".join(map(str, files)))
        self.count += 1

    def type(self, selector: str, text: str) -> None:
        """Keys into a field, clicked on unless the page has put the cursor there."""
        is_there = f"document.activeElement === document.querySelector({selector!r})"
        if not self.browser.run(f"return {is_there}"):
            self(selector)
        self.browser.press(*text)


def seen(browser: Browser, text: str, seconds: float = 60) -> None:
    browser.wait_for(f"document.body.innerText.includes({text!r})", seconds)


def test_a_character_is_made_from_nothing(
    browser: Browser, served: Served, tmp_path: Path
) -> None:
    """By clicks and typing alone: images, one word for all captions, check, job, run,
    download. Then the run is looked at and stopped on the way, which is not counted."""
    loaded = tmp_path / "loaded"
    loaded.mkdir()
    browser.open(served.address)
    browser.command(
        "Page.setDownloadBehavior", behavior="allow", downloadPath=str(loaded)
    )

    click = Clicks(browser)
    browser.wait_for("document.querySelectorAll('.shown img').length == 10")
    images = drawn(tmp_path / "sent")
    (broken := tmp_path / "sent" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n no")
    browser.run(
        "const told = document.querySelector('.arrived');"
        "new MutationObserver(() => sessionStorage.seen = (sessionStorage.seen ?? '') + told.textContent + ';')"
        ".observe(told, {childList: true})"
    )
    click.choose("[name=file]", [*images, broken])
    browser.wait_for("document.querySelectorAll('.image').length == 14", 90)
    assert "12 of 15;" in browser.run("return sessionStorage.seen")
    assert "broken.png" in browser.text(".sent") and "not accepted" in browser.text(
        ".sent .bad"
    )
    assert "14 without a caption" in browser.text(".counts")
    assert "Write the 14 missing captions" in browser.text(".head .main")
    click(".tools details summary")
    click.type("[name=tag]", "pipo")
    click("[value=add]")
    click("main form .main")
    seen(browser, "all captioned")
    folder = served.folder / "datasets" / "my_character"
    assert sorted(path.name for path in folder.glob("*.png")) == [
        path.name for path in images
    ]
    assert {path.read_text().strip() for path in folder.glob("*.txt")} == {"pipo"}
    click(".head [action$='/lint'] button")
    browser.wait_for(
        "document.querySelector('.path .now')?.textContent.trim() == '4Settings'", 90
    )

    click(".head .main")
    assert (
        browser.run("return document.getElementById('f-name').value") == "my_character"
    )
    click("[name=effort][value=quick]")
    seen(browser, "Ready to start", 90)
    assert browser.text(".sentence") == "14 images, 60 steps."
    assert browser.run("return document.querySelectorAll('.filmstrip img').length") > 9
    click("[value=start]")

    browser.wait_for(
        "location.pathname == '/runs/my_character'", 60
    )  # Start leads to the run
    browser.wait_for("document.getElementById('step')", 60)
    browser.run("window.isSame = true")
    browser.wait_for("document.getElementById('step').max >= 1", 90)
    browser.wait_for("document.querySelector('.frame.now img').naturalWidth")
    browser.wait_for(
        "document.querySelector('.plot canvas') && document.querySelector('[data-fact=loss]')"
    )
    assert 0 < float(browser.text("[data-fact=loss]")) < 5 and browser.run(
        "return window.isSame"
    )
    browser.click("[name=request][value=stop]")
    browser.wait_for("document.querySelector('#state .stopped')", 60)
    # the facts of a save may say so a moment before the page has its other buttons
    browser.wait_for("document.querySelector('.head .main')")
    browser.click(".head .main")
    browser.wait_for("location.pathname.startsWith('/queue/')")
    browser.wait_for(
        "location.pathname == '/runs/my_character'", 60
    )  # and so does Resume
    browser.wait_for("document.querySelector('#state .finished')", 120)
    assert "60 steps" in browser.text("#state")
    click("#download")
    assert click.count <= MOST_CLICKS["character"]
    made = (served.folder / "output" / NAME / f"{NAME}.safetensors").read_bytes()
    until((loaded / f"{NAME}.safetensors").exists)
    assert (loaded / f"{NAME}.safetensors").read_bytes() == made
    browser.click("#more > summary")
    assert "step 60 of 60" in browser.text("#tail") and "resum" in browser.text("#tail")
    assert browser.errors() == [] and browser.requests_elsewhere() == []


THIRSTY = """
import torch
from toolkit.train.run import Callback


class Thirsty(Callback):
    '''A GPU that is too small for the model as it is.'''

    def after_step(self, run):
        if run.state.step == 3 and "offload" not in (run.folder / "config.yaml").read_text():
            def backward(self, *args, **kwargs):
                raise torch.OutOfMemoryError("out of memory")
            torch.Tensor.backward = backward
"""


def test_a_training_that_lacked_memory_goes_on_by_one_click(
    browser: Browser,
    ui: Ui,
    run_py,
    write_job,
    trainer,
    write_extension,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    init = """
    from toolkit.extension import Extension

    class Thirsty(Extension):
        uid = "thirsty"
        name = "Runs out of memory"
        callback = ".callback:Thirsty"

    AI_TOOLKIT_EXTENSIONS = [Thirsty]
    """
    package = write_extension("thirsty", init, callback=THIRSTY)
    monkeypatch.setenv("EXTENSIONS_PATH", str(package.parent))
    # So large that activations are the most of what steps take.
    for path in drawn(ui.datasets / "owl", 4):
        Image.open(path).resize((256, 256)).save(path)
    section = trainer(
        "datasets/owl",
        train={"steps": 6},
        save={"dtype": "float32", "save_every": 2},
        callbacks=["thirsty"],
        datasets=[{"folder_path": "datasets/owl", "resolution": 256}],
    )
    assert run_py(write_job(section, name="owl")).returncode != 0
    page = Served(ui.output.parent)
    try:
        browser.open(f"{page.address}/runs/owl")
        assert "It ran out of memory at step 3." in browser.text("#state + .notice")
        browser.click(".head .main")
        browser.wait_for("document.querySelector('#state .finished')", 180)
        assert "it needs less memory." in browser.text("main")
        assert "6 steps" in browser.text("#state")
    finally:
        page.stop(signal.SIGKILL)
