"""A dataset in a real browser: by mouse and keys, in two tabs, without a connection."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from PIL import Image

from extensions.tools.ui.state import Ui
from tests.html_browser import Browser
from tests.processes import until
from toolkit.files.writing import write_json


@pytest.fixture
def ui(ui: Ui) -> Ui:
    (ui.datasets / "pipo").mkdir()
    for number, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (200, 120), colour).save(
            ui.datasets / "pipo" / f"{number}.png"
        )
        (ui.datasets / "pipo" / f"{number}.txt").write_text(f"pipo, {colour}\n")
    return ui


def text_of(ui: Ui, number: int) -> str:
    return (ui.datasets / "pipo" / f"{number}.txt").read_text()


@pytest.mark.slow
def test_captions_by_keys_two_tabs_and_undo(
    browser: Browser, ui: Ui, address: str
) -> None:
    browser.open(f"{address}/datasets/pipo")
    browser.run("document.querySelector('.image').focus()")
    browser.press("ArrowRight", "Enter", "x")
    browser.press("Escape")
    browser.wait_for(
        "document.querySelectorAll('.image')[1].innerText.includes('Saved')"
    )
    assert text_of(ui, 1) == "pipo, greenx\n"
    assert browser.run("return document.activeElement.dataset.name") == "1.png"

    (ui.datasets / "pipo" / "1.txt").write_text("another tab\n")
    browser.press("Enter", "y", "Escape")
    said = browser.wait_for("document.querySelector('.caption .bad')?.textContent")
    assert "another tab" in said and text_of(ui, 1) == "another tab\n"
    assert (
        browser.run("return document.activeElement.querySelector('textarea').value")
        == "pipo, greenxy"
    )
    browser.press("Enter", "Escape")
    time.sleep(0.3)
    assert text_of(ui, 1) == "another tab\n", (
        "leaving the field does not replace what somebody else wrote"
    )
    browser.run("document.querySelectorAll('.caption')[1].requestSubmit()")
    browser.wait_for(
        "document.querySelectorAll('.image')[1].innerText.includes('Saved')"
    )
    assert text_of(ui, 1) == "pipo, greenxy\n"
    browser.click(".undo")
    browser.wait_for("document.getElementById('told').textContent")
    assert text_of(ui, 1) == "another tab\n"

    browser.run("document.querySelector('.tools details').open = true")
    browser.type("[name=find]", "pipo")
    browser.type("[name=replacement]", "pepe")
    browser.click("[value=replace]")
    browser.wait_for("document.querySelector('[name=apply]')")
    browser.click("[name=apply]")
    browser.wait_for("document.body.innerText.includes('2 captions changed')")
    assert [text_of(ui, number) for number in range(3)] == [
        "pepe, red\n",
        "another tab\n",
        "pepe, blue\n",
    ]
    browser.click(".undo")
    browser.wait_for("document.getElementById('told').textContent")
    assert text_of(ui, 0) == "pipo, red\n" and text_of(ui, 2) == "pipo, blue\n"

    browser.run("document.getElementById('lint').closest('details').open = true")
    browser.click("#lint form button")
    browser.wait_for(
        "/findings in 3 images/.test(document.querySelector('#lint')?.textContent)", 90
    )
    assert browser.run("return document.getElementById('lint').closest('details').open")
    assert browser.requests_elsewhere() == []


@pytest.mark.slow
def test_an_undo_of_many_is_whole_whoever_leaves(
    browser: Browser, ui: Ui, address: str
) -> None:
    for number in range(3, 40):
        Image.new("RGB", (40, 40)).save(ui.datasets / "pipo" / f"{number}.png")
        (ui.datasets / "pipo" / f"{number}.txt").write_text("pipo\n")
    browser.open(f"{address}/datasets/pipo")
    browser.run("document.querySelector('.tools details').open = true")
    browser.type("[name=tag]", "mirax")
    browser.click("[value=add]")
    browser.wait_for("document.querySelector('[name=apply]')")
    browser.click("[name=apply]")
    browser.wait_for("document.body.innerText.includes('40 captions changed')")
    assert text_of(ui, 39) == "mirax, pipo\n"
    browser.run("sessionStorage.clear(); document.querySelector('.undo').click()")
    browser.run("location.href = '/'")
    browser.wait_for("location.pathname == '/'")
    until(lambda: "mirax" not in "".join(text_of(ui, number) for number in range(40)))
    assert [text_of(ui, 0), text_of(ui, 39)] == ["pipo, red\n", "pipo\n"]


@pytest.mark.slow
def test_files_are_sent_deleted_and_brought_back(
    browser: Browser, ui: Ui, address: str, tmp_path: Path
) -> None:
    sent = tmp_path / "写真.png"
    # 17 MB: three pieces
    Image.effect_noise((2400, 2400), 90).convert("RGB").save(sent, compress_level=0)
    sent.with_suffix(".txt").write_text("of a 写真")
    (tmp_path / "0.png").write_bytes(sent.read_bytes()[:5000])
    Image.new("RGB", (50, 50), "white").save(tmp_path / "1.png")
    (tmp_path / "1.txt").write_text("white")
    browser.open(f"{address}/datasets/pipo")
    files = (
        sent,
        sent.with_suffix(".txt"),
        tmp_path / "0.png",
        tmp_path / "1.png",
        tmp_path / "1.txt",
    )
    network = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    browser.command("Network.enable")
    browser.command("Network.emulateNetworkConditions", offline=True, **network)
    browser.type("[name=file]", "\n".join(map(str, files)))
    browser.wait_for("document.querySelector('.sent img')?.naturalWidth == 2400")
    assert (
        browser.run("return document.querySelector('.sent li progress').value") == 0
    ), "it is seen before it is here"
    assert not (ui.datasets / "pipo" / sent.name).exists()
    browser.command("Network.emulateNetworkConditions", offline=False, **network)
    browser.wait_for("document.querySelectorAll('.image').length == 5", 60)
    said = browser.text(".sent")
    assert "truncated" in said and "added as 1-2.png" in said
    folder = ui.datasets / "pipo"
    assert (folder / "写真.png").read_bytes() == sent.read_bytes()
    assert (folder / "写真.txt").read_text() == "of a 写真" and (
        folder / "1-2.txt"
    ).read_text() == "white"
    assert text_of(ui, 1) == "pipo, green\n"

    browser.open(f"{address}/datasets/pipo")
    assert browser.is_as_wide_as_the_window()
    browser.run(
        "window.confirm = () => true; document.querySelector('[value=\"写真.png\"]').click()"
    )
    browser.click("[formaction$=delete]")
    browser.wait_for("document.querySelector('.told')")
    assert not (folder / "写真.png").exists() and not (folder / "写真.txt").exists()
    browser.click(".told button")
    browser.wait_for("location.pathname == '/datasets'")
    assert (folder / "写真.png").read_bytes() == sent.read_bytes() and (
        folder / "写真.txt"
    ).exists()
    assert browser.errors() == []

    large = "const e = document.getElementById('large'); return [e.open, e.querySelector('img').src, e.innerText]"
    browser.open(f"{address}/datasets/pipo")
    browser.click(".view")
    for key, shown in (
        ("", "0.png"),
        ("ArrowRight", "1-2.png"),
        ("ArrowRight", "1.png"),
        ("ArrowLeft", "1-2.png"),
    ):
        browser.press(*filter(None, [key]))
        is_open, source, words = browser.run(large)
        assert is_open and source.endswith(f"/images/{shown}") and f"{shown} ·" in words
    browser.click('[data-by="1"]')
    browser.press("Escape")
    assert not browser.run(large)[0]
    browser.wait_for("document.activeElement.dataset.name == '1.png'")

    (folder / "cut.jpg").write_bytes(b"\xff\xd8\xff no image")
    browser.open(f"{address}/datasets/pipo", width=360, dark=True)
    browser.wait_for("document.body.innerText.includes('cannot be used')")
    assert browser.is_as_wide_as_the_window()


@pytest.mark.slow
def test_an_upload_that_was_cut_says_what_is_missing(
    browser: Browser, ui: Ui, address: str, tmp_path: Path
) -> None:
    names = [f"photo{number:02}.png" for number in range(12)]
    for name in names:
        Image.effect_noise((300, 300), 90).save(tmp_path / name, compress_level=0)
    browser.open(f"{address}/datasets/pipo")
    browser.command("Network.enable")
    network = {"latency": 0, "downloadThroughput": -1, "offline": False}
    browser.command(
        "Network.emulateNetworkConditions", uploadThroughput=200_000, **network
    )
    chosen = "\n".join(str(tmp_path / name) for name in names)
    browser.type("[name=file]", chosen)
    until((ui.datasets / "pipo" / names[2]).exists)
    assert browser.run(
        "const leaving = new Event('beforeunload', {cancelable: true});"
        "dispatchEvent(leaving); return leaving.defaultPrevented"
    ), "whoever leaves is asked"
    browser.run("location.reload()")
    said = browser.wait_for("document.querySelector('.absent p')?.textContent")
    here = {path.name for path in (ui.datasets / "pipo").iterdir()}
    missing = [name for name in names if name not in here]
    assert len(missing) > 5 and names[-1] in said
    browser.command("Network.emulateNetworkConditions", uploadThroughput=-1, **network)
    browser.open(f"{address}/datasets/pipo")
    missing = [name for name in names if not (ui.datasets / "pipo" / name).exists()]
    assert browser.text(".absent p").endswith(
        f"{len(missing)} of 12 files did not arrive: {', '.join(missing)}"
    )
    browser.type("[name=file]", chosen)
    browser.wait_for("document.querySelectorAll('.image').length == 15", 60)
    assert not browser.run("return document.querySelector('.absent')")
    assert {*names} <= {path.name for path in (ui.datasets / "pipo").iterdir()}


@pytest.mark.slow
def test_thirty_images_are_rows_of_whole_images_with_a_caption_that_opens(
    browser: Browser, ui: Ui, address: str
) -> None:
    for number in range(3, 30):
        size = (300, 200) if number % 3 else (150, 200)
        Image.new("RGB", size, "teal").save(ui.datasets / "pipo" / f"{number}.png")
    (ui.datasets / "pipo" / "1.txt").write_text("pipo, green, " * 30)
    browser.open(f"{address}/datasets/pipo", 1200, 800)
    assert browser.run("return document.documentElement.scrollHeight") <= 2200
    box = "const box = e => e.getBoundingClientRect(), all = [...document.querySelectorAll('.view')].map(box);"
    heights = browser.run(
        f"{box} return all.filter(b => b.top === all[0].top).map(b => b.height)"
    )
    assert len(heights) >= 3 and max(heights) - min(heights) < 1
    shapes = browser.run(f"{box} return all.map(b => b.width / b.height)")
    nearest = {
        min((0.75, 1.5, 1.65), key=lambda own: abs(own - each)) for each in shapes
    }
    assert nearest == {0.75, 1.5, 1.65}, "nothing is cut off"
    assert max(min(abs(own - each) for own in nearest) for each in shapes) < 0.03

    frame = "return getComputedStyle(document.querySelectorAll('.view svg')[1]).opacity"
    short = "document.querySelectorAll('.short')[1]"
    assert browser.run(f"return {short}.offsetHeight") < 60, "two lines"
    assert browser.run(f"return {short}.textContent").startswith("pipo, green, pipo")
    assert browser.run(frame) == "0"
    browser.run("document.querySelectorAll('.image')[1].focus()")
    browser.press("Enter")
    assert browser.run(frame) == "1", "what is trained of it"
    assert browser.run(f"return {short}.checkVisibility()") is False
    assert "200 × 120" in browser.text(".open .more")
    browser.press("Escape", "ArrowDown")
    moved = f"{box} const b = box(document.activeElement); return [b.top - all[1].top, b.left - all[1].left]"
    down, across = browser.run(moved)
    assert down > 0 and abs(across) < 200

    browser.open(f"{address}/datasets/pipo", 390, 800)
    assert browser.is_as_wide_as_the_window()
    places = f"{box} return [...new Set(all.map(b => Math.round(b.left)))]"
    assert len(browser.run(places)) == 2
    assert browser.errors() == []


COVERED = """
const cards = [...document.querySelectorAll('.image:not(.open)')];
return cards.filter(card => ['.view', '.short'].some(part => {
  const box = card.querySelector(part).getBoundingClientRect(), [x, y] = [box.left + box.width / 2, box.top + 8];
  return y > 60 && y < innerHeight - 40 && !card.contains(document.elementFromPoint(x, y));
})).map(card => card.dataset.name);
"""


@pytest.mark.slow
def test_captions_are_written_on_a_desk_one_after_the_other(
    browser: Browser, ui: Ui, address: str
) -> None:
    for number in range(3, 9):
        Image.new("RGB", (300, 300), "teal").save(
            ui.datasets / "pipo" / f"{number}.png"
        )
    where = "document.activeElement.closest('.image').dataset.name"

    def key(name: str, **held: bool) -> None:
        options = json.dumps({"key": name, "bubbles": True, "cancelable": True} | held)
        browser.run(
            f"document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {options}))"
        )

    browser.open(f"{address}/datasets/pipo", 1440, 900)
    browser.click(".image[data-name='3.png'] .sheet")
    assert browser.run(f"return {where}") == "3.png"
    size = "return document.querySelector('.open .view img').getBoundingClientRect().height"
    assert browser.run(size) >= 340
    assert browser.run(COVERED) == []
    assert browser.text("#desk").startswith("4 / 9"), "beside what is to be done"
    browser.click("#desk .word")
    browser.press(*"sad", "Tab")
    assert browser.run(f"return {where}") == "4.png"
    until(lambda: (ui.datasets / "pipo" / "3.txt").exists())
    assert text_of(ui, 3) == "pipo, sad\n"
    browser.press(*"big")
    key("Enter", ctrlKey=True)
    assert browser.run(f"return {where}") == "5.png"
    until(lambda: (ui.datasets / "pipo" / "4.txt").exists())
    key("Tab", shiftKey=True)
    assert browser.run(f"return {where}") == "4.png"
    browser.click(".image[data-name='7.png'] .view")
    assert browser.run(f"return {where}") == "7.png", "and not the picture alone"
    assert not browser.run("return document.getElementById('large').open")

    # with the last caption the path, the count and the button change together
    for number in range(5, 9):
        (ui.datasets / "pipo" / f"{number}.txt").write_text("pipo")
    (ui.datasets / "pipo" / "0.txt").unlink()
    browser.open(f"{address}/datasets/pipo", 1440, 900)
    state = "['.path .now', '.counts', '.nexts .main'].map(e => document.querySelector(e).innerText).join()"
    assert "Captions" in browser.run(f"return {state}")
    browser.click(".image[data-name='0.png'] .sheet")
    browser.press(*"pipo", "Escape")
    browser.wait_for(f"/Check.*all captioned.*Check the images/s.test({state})")
    assert browser.run("return document.querySelectorAll('.head .main').length") == 1
    assert browser.errors() == []


@pytest.mark.slow
def test_the_frame_is_dragged_in_the_image_and_moved_by_keys(
    browser: Browser, ui: Ui, address: str
) -> None:
    for name, size in (("wide", (1000, 300)), ("tall", (300, 1000))):
        Image.new("RGB", size, "teal").save(ui.datasets / "pipo" / f"{name}.png")
    write_json(ui.own / "datasets" / "pipo.json", {"resolution": 256})
    box = (
        "const box = document.querySelector('.open .view').getBoundingClientRect();"
        "return [box.left + box.width / 2, box.top + box.height / 2]"
    )

    def drag(across: float, down: float) -> None:
        x, y = browser.run(box)
        kinds = ("mousePressed", "mouseMoved", "mouseMoved", "mouseReleased")
        for share, kind in zip((0, 0.5, 1, 1), kinds, strict=True):
            place = {"x": x + share * across, "y": y + share * down}
            browser.command(
                "Input.dispatchMouseEvent",
                **{"type": kind, "button": "left", "buttons": 1, "clickCount": 1},
                **place,
            )

    def crop_of(name: str) -> list[float]:
        file = ui.datasets / "pipo" / f"{name}.crop"
        until(file.exists)
        return [float(number) for number in file.read_text().split()]

    browser.open(f"{address}/datasets/pipo?q=wide", 1440, 900)
    browser.click(".image .sheet")
    drag(0, -500)
    assert crop_of("wide") == [0.5, 0], "as far as the image goes"
    moved = "document.querySelector('.open g').getAttribute('transform')"
    assert browser.run(f"return {moved}") == "translate(0 0)"
    assert not browser.run("return document.getElementById('large').open")
    browser.run("document.querySelector('.open textarea').focus()")
    browser.press("PageDown", "ArrowRight", "ArrowRight")
    until(lambda: crop_of("wide") == [0.5, 0.035])
    drag(0, 0)
    assert browser.run("return document.getElementById('large').open"), "a click alone"

    browser.open(f"{address}/datasets/pipo?q=tall", 1440, 900)
    browser.click(".image .sheet")
    drag(8, 0)
    across, down = crop_of("tall")
    assert 0.6 < across <= 1 and down == 0.5
    assert browser.errors() == []


@pytest.mark.slow
def test_a_dropped_folder_and_a_pasted_image_arrive(
    browser: Browser, ui: Ui, address: str, tmp_path: Path
) -> None:
    """With captions and subfolders with repeats, without the files of a file manager; of
    pairs each side, from the first page too."""
    sent = tmp_path / "owls"
    for place, name in (("2_near", "a"), ("4_wide", "b"), ("4_wide", "a")):
        (sent / place).mkdir(parents=True, exist_ok=True)
        colour = (ord(place[0]), 90, ord(name))
        Image.new("RGB", (60, 60), colour).save(sent / place / f"{name}.png")
        (sent / place / f"{name}.txt").write_text(f"{place} {name}")
    for place in ("Thumbs.db", "4_wide/.DS_Store", "._a.png"):
        (sent / place).write_bytes(b"x")

    def drop(folder: Path) -> None:
        data = {"items": [], "files": [str(folder)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            browser.command(
                "Input.dispatchDragEvent", type=kind, x=300, y=300, data=data
            )

    def files(dataset: str) -> list[str]:
        folder = ui.datasets / dataset
        paths = [path for path in folder.rglob("*") if path.is_file()]
        return sorted(path.relative_to(folder).as_posix() for path in paths)

    browser.open(f"{address}/")
    drop(sent)
    browser.wait_for("location.pathname == '/datasets/owls'", 60)
    browser.wait_for("document.querySelectorAll('.image').length == 3")
    names = ("2_near/a", "4_wide/a", "4_wide/b")
    assert files("owls") == sorted(
        f"{n}.{end}" for n in names for end in ("png", "txt")
    )
    assert (ui.datasets / "owls/4_wide/a.txt").read_text() == "4_wide a"
    assert not browser.run("return document.querySelectorAll('.sent li').length")

    browser.run(
        "const canvas = new OffscreenCanvas(50, 50); canvas.getContext('2d').fillRect(0, 0, 50, 50);"
        "canvas.convertToBlob().then(blob => { const data = new DataTransfer();"
        "data.items.add(new File([blob], 'image.png', {type: 'image/png'}));"
        "document.body.dispatchEvent(new ClipboardEvent('paste', {clipboardData: data, bubbles: true})); })"
    )
    until(lambda: "2_near/image.png" in files("owls"))

    for side in ("before", "after"):
        (tmp_path / "eyes" / side).mkdir(parents=True)
        Image.new("RGB", (60, 60), (side[0] == "a" and "red") or "blue").save(
            tmp_path / "eyes" / side / "1.png"
        )
    browser.wait_for("document.querySelectorAll('.image').length == 4")
    browser.open(f"{address}/")
    drop(tmp_path / "eyes")
    browser.wait_for("location.pathname == '/datasets/eyes'", 60)
    assert files("eyes") == ["after/1.png", "before/1.png"]
    assert browser.errors() == []
