"""The accent and every other colour of text can be read in both themes; the bar says
what the machine has."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from starlette.testclient import TestClient

from extensions.tools.shared.html_page import PAGES
from extensions.tools.ui import machine, state
from extensions.tools.ui.machine import LOOK_S
from extensions.tools.ui.queue import RUNNING, WAITING, try_lock
from extensions.tools.ui.state import HERE, Ui
from extensions.tools.ui.views.queue import queue_of
from tests.html_browser import Browser
from toolkit.system.nvidia import Gpu

LEAST = 4.5
"""Contrast of text. Source: WCAG 2.2, success criterion 1.4.3."""

STYLES = (
    PAGES / "tokens.css",
    PAGES / "page.css",
    HERE / "static" / "ui.css",
    HERE / "static" / "looks.css",
)
CARD = Gpu("NVIDIA GeForce RTX 4090", 8, 25_757_220_864, 18_900_000_000, 72)


def colours() -> dict[str, tuple[str, str]]:
    """Name of a colour -> it in the light and in the dark theme."""
    text = "".join(path.read_text(encoding="utf-8") for path in STYLES)
    return {
        name: (light, dark)
        for name, light, dark in re.findall(
            r"--([\w-]+): light-dark\((#\w+), (#\w+)\)", text
        )
    }


def luminance(colour: str) -> float:
    """Relative luminance, 0 to 1. Source: WCAG 2.2, "relative luminance"."""
    digits = (
        colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    )
    parts = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
        for part in parts
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def test_text_can_be_read_on_every_ground_and_on_the_accent() -> None:
    known, pairs = colours(), [("on-accent", "accent")]
    texts = ("accent", "text", "faint", "good", "warn", "bad")
    pairs += [(text, ground) for text in texts for ground in ("back", "card", "tint")]
    found = {
        (text, ground, theme): contrast(known[text][theme], known[ground][theme])
        for text, ground in pairs
        for theme in (0, 1)
    }
    assert {key: each for key, each in found.items() if each < LEAST} == {}


def test_there_is_one_accent_and_the_icon_has_it() -> None:
    assert f'fill="{colours()["accent"][0]}"' in (
        HERE / "static" / "icon.svg"
    ).read_text(encoding="utf-8")
    sheets = [*(HERE / "static").glob("*.css"), PAGES / "page.css", PAGES / "run.css"]
    literal = {
        path.name: re.findall(r"#[0-9a-f]{3,8}\b(?![^;{]*\{)", path.read_text("utf-8"))
        for path in sheets
    }
    assert {name for name, found in literal.items() if found} == set()


def test_there_are_five_sizes_of_text_and_two_radii() -> None:
    known = re.findall(r"--s\d: \d+px", (PAGES / "tokens.css").read_text("utf-8"))
    assert len(known) == 5
    sheets = [*(HERE / "static").glob("*.css"), PAGES / "page.css", PAGES / "run.css"]
    radii = {
        radius
        for path in sheets
        for radius in re.findall(r"border-radius: ([^;]*)", path.read_text("utf-8"))
    }
    assert radii == {"var(--round)", "var(--round-small)", "50%", "0"}
    sizes = {
        size
        for path in sheets
        for size in re.findall(r"font(?:-size)?: ([^;]*?)[;/]", path.read_text("utf-8"))
    }
    assert sizes - {f"var(--s{number})" for number in range(1, 6)} == {"inherit"}


def test_the_theme_that_is_chosen_goes_before_that_of_the_system(
    client: TestClient,
) -> None:
    for chosen, shown in (
        ("dark", "dark"),
        ("light", "light"),
        ("auto", "auto"),
        ("pink", "auto"),
    ):
        client.post("/theme", data={"theme": chosen})
        assert f'<html lang="en" data-theme="{shown}">' in client.get("/").text, chosen
    sheet = (HERE / "static" / "ui.css").read_text(encoding="utf-8")
    for theme in ("light", "dark"):
        rule = rf"\[data-theme='{theme}'\] {{\s+color-scheme: {theme};\s+}}"
        assert re.search(rule, sheet), theme


# ---------------------------------------------------------------- the bar


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def have(*found: Gpu) -> None:
        monkeypatch.setattr(machine, "ask_nvml", lambda: ("580.1", list(found)))

    return have


def bar_of(page: str) -> str:
    [bar] = re.findall(r'(?s)<footer class="machine".*?</footer>', page)
    return " ".join(re.sub(r"<[^>]+>", " ", bar).split())


@pytest.mark.slow
def test_every_page_has_the_bar(client: TestClient, gpus: Callable[..., None]) -> None:
    gpus(CARD)
    card = "NVIDIA GeForce RTX 4090 18.9 GB of 25.8 GB 72 % busy Memory "
    for page in ("/", "/datasets", "/new", "/queue", "/tools", "/system", "/nowhere"):
        text = bar_of(client.get(page, headers={"accept": "text/html"}).text)
        assert text.startswith(card) and text.endswith("Queue empty"), page


def test_the_bar_tells_no_card_one_of_which_little_is_known_and_further_ones(
    client: TestClient, ui: Ui, gpus: Callable[..., None]
) -> None:
    for cards, said in (
        ((), "No GPU Memory "),
        ((Gpu("", 0, 0), CARD, CARD), "GPU + 2 more Memory "),
    ):
        gpus(*cards)
        ui.memory.clear()
        assert bar_of(client.get("/").text).startswith(said)


def test_it_counts_the_queue_and_is_asked_for_alone(
    client: TestClient, ui: Ui, gpus: Callable[..., None]
) -> None:
    gpus()
    queue = queue_of(ui)
    for name in ("a", "b", "maya", "c"):
        queue.add(["report", f"output/{name}"], name)
    page = client.get("/status").text
    assert bar_of(page).endswith("Queue 4 waiting") and "<main" not in page
    assert 'data-live="/status"' in page  # by which the page finds it in the answer
    for running, expected in (
        (("maya",), "Queue maya runs 3 waiting"),
        (("maya", "c"), "Queue 2 running 2 waiting"),
    ):
        for entry in queue.entries():
            queue.save(
                entry.model_copy(
                    update={"state": RUNNING if entry.name in running else WAITING}
                )
            )
        ui.memory.pop(("kept", "machine"))
        with (queue.folder / "runner.lock").open("a") as file:
            assert try_lock(file)  # as a runner that works on the queue
            assert bar_of(client.get("/").text).endswith(expected)


def test_it_is_looked_at_once_for_many_pages(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []
    monkeypatch.setattr(machine, "ask_nvml", lambda: looks.append(1) or (None, []))
    clock = [100.0]
    monkeypatch.setattr(state.time, "monotonic", lambda: clock[0])
    for seconds, expected in ((0, 1), (0, 1), (LOOK_S + 0.1, 2)):
        clock[0] += seconds
        client.app.state.machine()
        assert len(looks) == expected


def test_empty_lists_have_the_drawing(client: TestClient) -> None:
    for page in ("/queue", "/datasets"):
        assert client.get(page).text.count('<svg viewBox="0 0 168 132"') == 1


@pytest.mark.slow
def test_the_bar_hides_nothing_and_is_renewed_and_the_typeface_is_the_pages_own(
    browser: Browser, address: str, ui: Ui, make_run, gpus
) -> None:
    gpus(
        Gpu(
            "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition",
            12,
            10**11,
            5 * 10**10,
            100,
        )
    )
    for name in ("one", "two", "three", "four", "five"):
        make_run(name)
        queue_of(ui).add(["report", f"output/{name}"], f"a_name_of_twenty_five_{name}")
    first = queue_of(ui).entries()[0]
    queue_of(ui).save(first.model_copy(update={"state": RUNNING}))
    cut = """return [...document.querySelectorAll('.machine a, .machine .num')].filter(part => {
        const place = part.getBoundingClientRect();
        return !place.width || place.right > innerWidth || place.bottom > innerHeight;
    }).map(part => part.className + JSON.stringify(part.getBoundingClientRect()))"""
    for width in (1200, 390):
        browser.open(f"{address}/", width, 600)
        # its style is there
        browser.wait_for(
            "getComputedStyle(document.querySelector('.machine')).position == 'fixed'"
        )
        assert browser.run(cut) == [] and browser.is_as_wide_as_the_window()
        browser.run("scrollTo(0, document.body.scrollHeight)")
        assert browser.run("""return document.querySelector('.runs > p button').getBoundingClientRect().bottom
            <= document.querySelector('.machine').getBoundingClientRect().top""")
    queue_of(ui).add(["report", "output/a"], "a")
    browser.wait_for(
        "document.querySelector('.machine .queue').textContent.includes('5 waiting')"
    )
    manifest = browser.command("Page.getAppManifest")
    assert manifest["errors"] == [] and '"standalone"' in manifest["data"]
    loaded = "document.fonts.ready.then(() => [...document.fonts].some(font => font.status === 'loaded'))"
    assert browser.run(f"return {loaded}")
    # Of numbers alone: Inter also widens the hyphens of names and dates.
    widths = """return ['1111', '8888'].map(text => {
      const span = document.body.appendChild(document.createElement('span'));
      Object.assign(span, {textContent: text, className: 'num'});
      return span.getBoundingClientRect().width; })"""
    first, second = browser.run(widths)
    assert first == second
    assert browser.errors() == [] and browser.requests_elsewhere() == []
