"""Datasets on the page: what is shown, captions that two people edit, changes of many,
the trash, findings."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from extensions.tools.ui.datasets import read_dataset, set_crop
from extensions.tools.ui.queue import Queue
from extensions.tools.ui.state import Ui
from extensions.tools.ui.views import datasets as views
from tests.conftest import TURNED_HEIC
from tests.extensions.tools.ui.conftest import client_of
from tests.processes import until
from toolkit.contracts.data import Focus
from toolkit.data.scan.crops import CropError
from toolkit.files.writing import write_json

HTML = {"accept": "text/html"}
JSON = {"accept": "application/json"}


def picture(
    path: Path, size: tuple[int, int] = (64, 48), colour: str = "red", **options: Any
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **options)
    return path


@pytest.fixture
def ui(ui: Ui) -> Ui:
    for name, caption in (("a", "pipo, red"), ("b", "pipo, blue"), ("c", "")):
        picture(ui.datasets / "pipo" / "4_pipo" / f"{name}.png")
        if caption:
            (ui.datasets / "pipo" / "4_pipo" / f"{name}.txt").write_text(caption)
    return ui


@pytest.fixture
def page(ui: Ui) -> TestClient:
    return client_of(ui, headers=HTML)


def captions(ui: Ui) -> dict[str, str]:
    return {file.name: file.read_text() for file in sorted(ui.datasets.rglob("*.txt"))}


def kept(ui: Ui) -> list[dict[str, str]]:
    """The captions that were replaced."""
    return [
        json.loads(file.read_text())
        for file in sorted((ui.own / "trash" / "captions").rglob("*.json"))
    ]


def version(page: TestClient, name: str) -> str:
    found = re.search(rf'name="name" value="{re.escape(name)}"><input type="hidden" name="version" value="(\w+)"',
                      page.get("/datasets/pipo").text)  # fmt: skip
    assert found
    return found[1]


def save(page: TestClient, name: str, caption: str, version: str, **fields: str) -> Any:
    data = {"name": name, "caption": caption, "version": version} | fields
    return page.post("/datasets/pipo/captions", data=data, headers=JSON)


def test_the_list_says_images_repeats_and_captions_missing(
    page: TestClient, ui: Ui
) -> None:
    picture(ui.datasets / "40_one" / "x.jpg")
    text = page.get("/datasets").text
    assert "3 images, repeats 4" in text and "1 without a caption" in text
    assert "1 image, repeats 40" in text
    assert "/datasets/pipo/thumbs/4_pipo%2Fa.png" in text


def test_a_new_dataset_has_its_repeats_in_its_name(page: TestClient, ui: Ui) -> None:
    for name, repeats, made in (
        ("girl", "1", "girl"),
        ("girl", "20", "20_girl"),
        ("写真", "3", "3_写真"),
        ("5_girl", "20", "5_girl"),
    ):
        answer = page.post(
            "/datasets", data={"name": name, "repeats": repeats}, follow_redirects=False
        )
        assert answer.status_code == 303 and (ui.datasets / made).is_dir(), made
        assert page.get(answer.headers["location"]).status_code == 200
    before = sorted(os.listdir(ui.datasets))
    for name, repeats, says in (
        ("..", "1", "cannot be the name"),
        ("a/b", "1", "leave out"),
        (".x", "1", "hidden"),
        (".x", "20", "hidden"),
        ("aux", "1", "Write &#39;my_aux&#39;"),
        ("cats: grey", "1", "on Windows"),
        ("", "20", "cannot be the name"),
        ("x" * 300, "1", "too long"),
        ("pipo", "1", "exists already"),
        ("ok", "0", "whole number"),
        ("ok", "1e3", "whole number"),
    ):
        answer = page.post("/datasets", data={"name": name, "repeats": repeats})
        assert answer.status_code == 400 and says in answer.text, name
        assert f'value="{name}"' in answer.text, "it stays in the form"
    assert sorted(os.listdir(ui.datasets)) == before


def test_a_dataset_that_leads_elsewhere_is_none(
    page: TestClient, ui: Ui, tmp_path: Path
) -> None:
    picture(tmp_path / "private" / "x.png")
    picture(ui.datasets / ".trash" / "x.png")
    (ui.datasets / "out").symlink_to(tmp_path / "private")
    (tmp_path / "private" / "x.txt").write_text("the secret words")
    (ui.datasets / "pipo" / "5_out").symlink_to(tmp_path / "private")
    (ui.datasets / "pipo" / "4_pipo" / "d.png").symlink_to(
        tmp_path / "private" / "x.png"
    )
    (ui.datasets / "pipo" / "4_pipo" / "c.txt").symlink_to(
        tmp_path / "private" / "secret.txt"
    )
    (tmp_path / "private" / "secret.txt").write_text("the secret words")
    assert ">out<" not in page.get("/datasets").text
    for address in ("out", "out/images/x.png", "pipo/images/5_out/x.png", "pipo/thumbs/4_pipo/d.png",
                    "pipo/images/4_pipo%2F..%2F..%2F..%2Fprivate%2Fx.png", "%2e%2e/images/x.png",
                    ".trash/images/x.png", "x" * 300 + "/upload"):  # fmt: skip
        assert page.get(f"/datasets/{address}").status_code == 404, address
    text = page.get("/datasets/pipo").text
    assert "leads out of the folder" in text
    assert "secret words" not in text


def test_a_dataset_that_vanishes_is_told(page: TestClient, ui: Ui) -> None:
    assert page.get("/datasets/pipo").status_code == 200
    (ui.datasets / "pipo").rename(ui.datasets.parent / "elsewhere")
    assert page.get("/datasets/pipo").status_code == 404
    assert save(page, "4_pipo/a.png", "x", "none").status_code == 404
    assert page.get("/datasets").status_code == 200


def test_thumbnails_are_upright_made_once_and_known_again(
    page: TestClient, ui: Ui
) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    picture(ui.datasets / "pipo" / "4_pipo" / "turned.jpg", (800, 400), exif=turned)
    answer = page.get("/datasets/pipo/thumbs/4_pipo/turned.jpg")
    assert answer.headers["content-type"] == "image/webp"
    (made,) = ui.own.rglob("*.webp")
    assert Image.open(made).size == (200, 400)
    assert "400 × 800" in page.get("/datasets/pipo").text
    assert (
        "private" in answer.headers["cache-control"]
        and answer.headers["x-content-type-options"] == "nosniff"
    )
    again = page.get(
        "/datasets/pipo/thumbs/4_pipo/turned.jpg",
        headers={"if-none-match": answer.headers["etag"]},
    )
    assert again.status_code == 304 and not again.content
    picture(ui.datasets / "pipo" / "4_pipo" / "turned.jpg", (400, 400))
    assert (
        page.get("/datasets/pipo/thumbs/4_pipo/turned.jpg").headers["etag"]
        != answer.headers["etag"]
    )


def test_an_image_is_of_the_type_that_it_holds(page: TestClient, ui: Ui) -> None:
    folder = ui.datasets / "pipo" / "4_pipo"
    picture(folder / "x.jpg").rename(folder / "jpeg.png")
    (folder / "vector.png").write_text(
        "<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>"
    )
    assert (
        page.get("/datasets/pipo/images/4_pipo/jpeg.png").headers["content-type"]
        == "image/jpeg"
    )
    assert page.get("/datasets/pipo/images/4_pipo/vector.png").status_code == 415
    assert page.get("/datasets/pipo/images/4_pipo/a.txt").status_code == 415
    # of which browsers get a copy that they can show
    shutil.copyfile(TURNED_HEIC, folder / "phone.heic")
    answer = page.get("/datasets/pipo/images/4_pipo/phone.heic")
    assert answer.headers["content-type"] == "image/webp"
    assert Image.open(io.BytesIO(answer.content)).size == (64, 96)


def test_a_broken_image_is_shown_as_broken_with_the_reason(
    page: TestClient, ui: Ui
) -> None:
    file = picture(ui.datasets / "pipo" / "4_pipo" / "cut.jpg", (600, 600))
    file.write_bytes(file.read_bytes()[:-400])
    answer = page.get("/datasets/pipo/thumbs/4_pipo/cut.jpg")
    assert answer.status_code == 415 and "truncated" in answer.text
    text = page.get("/datasets/pipo?only=broken").text
    assert "truncated" in text and "1 of 4" in text
    assert page.get("/datasets/pipo/thumbs/4_pipo/a.png").status_code == 200, (
        "the decoder goes on"
    )


def test_a_disk_without_room_for_thumbnails_makes_no_image_broken(
    page: TestClient, ui: Ui
) -> None:
    ui.own.mkdir(parents=True)
    (ui.own / "thumbs").write_text("a file is where the folder is to be")
    assert page.get("/datasets/pipo/thumbs/4_pipo/a.png").status_code == 403
    assert "0 of 3" in page.get("/datasets/pipo?only=broken").text


@pytest.mark.slow
def test_a_decoder_that_dies_is_told_and_another_goes_on(
    page: TestClient, ui: Ui
) -> None:
    assert page.get("/datasets/pipo/thumbs/4_pipo/a.png").status_code == 200
    views.decoder(ui)._process.kill()  # type: ignore[union-attr]  # it has just answered
    answer = [
        page.get(f"/datasets/pipo/thumbs/4_pipo/{name}.png").status_code
        for name in "bc"
    ]
    assert answer in ([415, 200], [200, 200])


def test_the_crop_is_the_one_that_is_trained(page: TestClient, ui: Ui) -> None:
    picture(ui.datasets / "pipo" / "4_pipo" / "wide.png", (1000, 300))
    assert (
        page.post("/datasets/pipo/view", data={"resolution": "256"}).status_code == 200
    )
    text = page.get("/datasets/pipo?q=wide").text
    # Area at most 256², sides multiples of 32: 480 x 128, for which it becomes 480 x
    # 144, and 8 rows of each end go.
    assert "1000 × 300 → 480 × 128" in text
    assert frame_in(text) == pytest.approx([0, 16.7, 1000, 266.7], abs=0.1)
    assert page.post("/datasets/pipo/view", data={"resolution": "7"}).status_code == 400


def frame_in(text: str) -> list[float]:
    """Left, top, width and height of the frame in a page of one image."""
    place = re.search(r'<g transform="translate\(([\d.]+) ([\d.]+)\)">', text)
    size = re.search(r'<rect width="([\d.]+)" height="([\d.]+)"', text)
    assert place and size
    return [float(number) for number in (*place.groups(), *size.groups())]


def test_the_frame_is_moved_and_kept_in_a_file_beside_the_image(
    page: TestClient, ui: Ui
) -> None:
    """Along the side that is cut, as the training reads it; with the image it is
    deleted and restored."""
    folder = ui.datasets / "pipo" / "4_pipo"
    for name, size in (("wide", (1000, 300)), ("tall", (300, 1000)), ("a", (64, 64))):
        picture(folder / f"{name}.png", size)
    page.post("/datasets/pipo/view", data={"resolution": "256"})

    def move(name: str, at: str) -> int:
        sent = {"name": f"4_pipo/{name}.png", "at": at}
        return page.post("/datasets/pipo/crop", data=sent, headers=JSON).status_code

    assert (move("wide", "0"), move("tall", "200")) == (200, 200)
    assert frame_in(page.get("/datasets/pipo?q=wide").text)[:2] == [0, 0]
    tall = frame_in(page.get("/datasets/pipo?q=tall").text)
    assert tall[:2] == pytest.approx([33.3, 0], abs=0.1)
    assert (folder / "wide.crop").read_text() == "0.5 0\n"
    assert (folder / "tall.crop").read_text() == "1 0.5\n"
    assert 'name="at"' not in page.get("/datasets/pipo?q=4_pipo/a").text
    assert [move("wide", bad) for bad in ("201", "-1", "", "0.5")] == [400] * 4
    assert (move("no", "1"), (folder / "wide.crop").read_text()) == (404, "0.5 0\n")

    (folder / "wide.crop").write_text("notes of mine")
    assert move("wide", "9") == 409
    assert (folder / "wide.crop").read_text() == "notes of mine"
    assert "has to be two numbers" in page.get("/datasets/pipo").text
    chosen = {"chosen": ["4_pipo/tall.png"]}
    entry = page.post("/datasets/pipo/delete", data=chosen, headers=JSON).json()
    assert not list(folder.glob("tall.*"))
    page.post("/datasets/restore", data={"entry": entry["entry"]})
    assert (folder / "tall.crop").read_text() == "1 0.5\n"

    images = read_dataset(ui, "pipo").images  # as another tab has read them
    (tall_image,) = (one for one in images if one.path.endswith("tall.png"))
    (folder / "tall.png").unlink()
    with pytest.raises(CropError, match="deleted or moved"):
        set_crop(tall_image, Focus(0, 0))
    assert (folder / "tall.crop").read_text() == "1 0.5\n"


def test_references_and_masks_are_beside_their_images(page: TestClient, ui: Ui) -> None:
    picture(ui.datasets / "before" / "a.png")
    picture(ui.datasets / "pipo" / "4_pipo" / "a_mask.png")
    page.post(
        "/datasets/pipo/view",
        data={"references": "before", "masks": "_mask", "resolution": "512"},
    )
    text = page.get("/datasets/pipo").text
    assert (
        "/datasets/before/thumbs/a.png" in text
        and "/datasets/pipo/thumbs/4_pipo/a_mask.png" in text
    )
    assert "1 pair, " in text and "2 without a partner" in text, (
        "the mask is not an image of its own"
    )
    assert text.count("No image before. Drop the image “") == 2


@pytest.fixture
def eyes(page: TestClient, ui: Ui) -> Path:
    """A dataset of pairs as the page makes it: two pairs, and an image on each side
    without a partner."""
    answer = page.post(
        "/datasets",
        data={"name": "eyes", "kind": "pairs", "repeats": "9"},
        follow_redirects=False,
    )
    assert answer.headers["location"] == "/datasets/eyes"
    folder = ui.datasets / "eyes"
    assert "holds no images" not in page.get("/datasets/eyes").text
    for name in ("before/1", "before/2", "before/x", "after/1", "after/2", "after/y"):
        picture(folder / f"{name}.png")
    return folder


def test_partners_are_shown_together_and_orphans_with_what_to_do(
    page: TestClient, ui: Ui, eyes: Path
) -> None:
    text = page.get("/datasets/eyes").text
    assert (
        "2 pairs, " in text and "2 without a partner" in text and "6 images" not in text
    )
    assert (
        text.index("thumbs/before/1.png")
        < text.index("thumbs/after/1.png")
        < text.index("thumbs/before/2.png")
    )
    assert (
        "before. Drop the image “y” into Before" in text
        and "after. Drop the image “x” into After" in text
    )
    assert "2 pairs, " in page.get("/datasets").text
    alone = page.get("/datasets/eyes?only=alone").text
    assert 'data-name="after/y.png"' in alone and 'data-name="after/1.png"' not in alone


def test_a_pair_is_deleted_and_restored_whole(
    page: TestClient, ui: Ui, eyes: Path
) -> None:
    (eyes / "after" / "1.txt").write_text("add eyes")
    page.post("/datasets/eyes/delete", data={"chosen": ["after/1.png", "before/x.png"]})
    left = {path.relative_to(eyes).as_posix() for path in eyes.rglob("*.*")}
    assert left == {"before/2.png", "after/2.png", "after/y.png"}
    (entry,) = (ui.datasets / ".trash").iterdir()
    page.post("/datasets/restore", data={"entry": entry.name})
    assert (eyes / "after" / "1.txt").exists() and (eyes / "before" / "1.png").exists()
    assert (eyes / "before" / "x.png").exists() and not entry.exists()


def test_a_control_image_of_two_images_stays_while_one_has_it(
    page: TestClient, ui: Ui, eyes: Path
) -> None:
    (eyes / "after" / "rows.csv").write_text(
        "file_name,control_image,caption\n1.png,../before/1.png,a\n2.png,../before/1.png,b\n"
    )
    page.post("/datasets/eyes/delete", data={"chosen": "after/1.png"})
    assert (eyes / "before" / "1.png").exists()


def test_new_files_go_to_the_side_that_they_are_sent_to(
    page: TestClient, ui: Ui, eyes: Path
) -> None:
    for into, sent in (("before", "3.png"), ("after", "3.png"), ("", "4.png")):
        data = io.BytesIO()
        Image.new("RGB", (20, 20), "blue").save(data, "PNG")
        page.post(
            "/datasets/eyes/files",
            data={"into": into},
            files={"file": (sent, data.getvalue())},
        )
    assert (eyes / "before" / "3.png").exists() and (eyes / "after" / "3.png").exists()
    assert (eyes / "after" / "4.png").exists(), (
        "without a side they are images that are trained"
    )


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("references", "befor", "neither a folder"),
        ("references", "x" * 300, "neither a folder"),
        ("masks", "_maks", "neither a folder"),
        ("resolution", "7", "number of pixels from 32"),
    ],
)
def test_a_choice_that_is_none_is_told_at_its_field_and_stays_there(
    page: TestClient, ui: Ui, field: str, value: str, says: str
) -> None:
    given = {"references": "", "masks": "", "resolution": "512"} | {field: value}
    answer = page.post("/datasets/pipo/view", data=given)
    assert (
        answer.status_code == 400 and not (ui.own / "datasets" / "pipo.json").exists()
    )
    (shown,) = re.findall(
        rf'name="{field}" value="{value}"[^>]*aria-invalid="true"[^>]*><span class="bad"[^>]*>([^<]*)',
        answer.text,
    )
    assert says in shown
    assert answer.text.count('aria-invalid="true"') == 1


def test_the_check_knows_the_pairs(
    page: TestClient, ui: Ui, eyes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(
        "extensions.tools.ui.datasets.run_py",
        lambda *flags, **_: asked.append(flags) or (0, "", "no"),
    )
    assert "without a caption</a>" in page.get("/datasets/eyes").text
    shown = page.post("/datasets/eyes/view", data={"instruction": "add eyes"}).text
    assert (
        "with the instruction</a>" in shown
        and 'placeholder="the instruction: add eyes"' in shown
    )
    assert (
        "without a caption</a>" not in shown
        and "with the instruction</span>" in page.get("/datasets").text
    )
    page.post("/datasets/eyes/lint")
    until(lambda: asked)
    control = f"--control-path={eyes}/before"
    flags = (
        "lint",
        f"{eyes}/after",
        "--json",
        "--resolution=1024",
        control,
        "--default-caption=add eyes",
    )
    assert asked.pop() == flags
    data = views.datasets.read_dataset(ui, "eyes")
    views.datasets.keep_view(data, {"trigger": "zumi"})
    until(lambda: page.get("/datasets/eyes/lint").json()["status"] != "running")
    page.post("/datasets/eyes/lint")
    until(lambda: asked)
    assert asked == [(*flags, "--trigger-word=zumi")], (
        "the word that the captions were asked to hold"
    )


def test_a_caption_is_saved_whole_and_the_old_one_kept(
    page: TestClient, ui: Ui
) -> None:
    (ui.datasets / "pipo" / "4_pipo" / "a.txt").write_bytes(b"\xef\xbb\xbfold\r\nwords")
    known = version(page, "4_pipo/a.png")
    assert "old\nwords</textarea>" in page.get("/datasets/pipo").text
    answer = save(page, "4_pipo/a.png", " new <b>words</b>\r\nhf_" + "a" * 34, known)
    assert answer.status_code == 200
    assert captions(ui)["a.txt"] == "new <b>words</b>\nhf_" + "a" * 34 + "\n"
    assert "&lt;b&gt;words&lt;/b&gt;" in page.get("/datasets/pipo").text
    assert kept(ui) == [{"4_pipo/a.txt": "\ufeffold\r\nwords"}]
    assert (
        save(page, "4_pipo/a.png", "third", answer.json()["version"]).status_code == 200
    )
    assert save(page, "4_pipo/c.png", "new file", "none").status_code == 200
    assert captions(ui)["c.txt"] == "new file\n"


def test_the_later_of_two_tabs_is_told_with_both_texts(
    page: TestClient, ui: Ui
) -> None:
    known = version(page, "4_pipo/a.png")
    assert save(page, "4_pipo/a.png", "first", known).status_code == 200
    answer = save(page, "4_pipo/a.png", "second", known)
    assert answer.status_code == 409
    assert (answer.json()["theirs"], answer.json()["yours"]) == ("first", "second")
    assert captions(ui)["a.txt"] == "first\n"
    plain = page.post(
        "/datasets/pipo/captions",
        data={"name": "4_pipo/a.png", "caption": "second", "version": known},
    )
    assert plain.status_code == 409
    assert "first</textarea>" in plain.text and "second</textarea>" in plain.text
    assert (
        save(page, "4_pipo/a.png", "second", answer.json()["version"]).status_code
        == 200
    )
    assert save(page, "4_pipo/c.png", "x", known).status_code == 409, (
        "the version of a file that is not there"
    )


def test_undo_takes_back_what_is_still_there(page: TestClient, ui: Ui) -> None:
    assert (
        save(page, "4_pipo/a.png", "back", "", was="something else").status_code == 409
    )
    assert save(page, "4_pipo/a.png", "back", "", was="pipo, red").status_code == 200
    assert captions(ui)["a.txt"] == "back\n"


def test_a_caption_that_no_file_should_hold_is_refused(
    page: TestClient, ui: Ui
) -> None:
    known = version(page, "4_pipo/a.png")
    for text in ("a\0b", "x" * 100_001):
        assert save(page, "4_pipo/a.png", text, known).status_code == 400
    assert captions(ui)["a.txt"] == "pipo, red"


def test_captions_of_json_keep_their_other_keys_and_tables_are_not_edited(
    page: TestClient, ui: Ui
) -> None:
    file = ui.datasets / "pipo" / "4_pipo" / "c.json"
    file.write_text('{"width": 64, "text": "in json"}')
    assert "caption_ext: .json" in page.get("/datasets/pipo").text
    assert (
        save(page, "4_pipo/c.png", "edited", version(page, "4_pipo/c.png")).status_code
        == 200
    )
    assert json.loads(file.read_text()) == {"width": 64, "text": "edited"}
    file.write_text('{"width": 64, "text": ["one", "two"]}')
    text = page.get("/datasets/pipo").text
    assert "one\ntwo</textarea>" in text and text.count("one of them at each use") == 1
    assert (
        save(
            page, "4_pipo/c.png", "one\nthree", version(page, "4_pipo/c.png")
        ).status_code
        == 200
    )
    assert json.loads(file.read_text()) == {"width": 64, "text": ["one", "three"]}
    folder = ui.datasets / "table"
    picture(folder / "x.png")
    (folder / "captions.tsv").write_text("x.png\tfrom the table\n")
    text = page.get("/datasets/table").text
    assert (
        "from the table" in text and "captions.tsv" in text and "<textarea" not in text
    )
    answer = page.post(
        "/datasets/table/captions",
        data={"name": "x.png", "caption": "y", "version": "none"},
    )
    assert (
        answer.status_code == 409
        and (folder / "captions.tsv").read_text() == "x.png\tfrom the table\n"
    )


def test_a_folder_that_cannot_be_written_is_told(
    page: TestClient, ui: Ui, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As root, for whom no folder is read-only, the disk says it."""
    known = version(page, "4_pipo/a.png")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    answer = save(page, "4_pipo/a.png", "new", known)
    assert answer.status_code == 507 and "No space left" in answer.text
    monkeypatch.undo()
    assert captions(ui)["a.txt"] == "pipo, red"
    assert not list(ui.datasets.rglob("*.tmp"))


def preview(page: TestClient, **fields: Any) -> tuple[str, str]:
    answer = page.post("/datasets/pipo/change", data=fields)
    assert answer.status_code == 200
    found = re.search(r'name="apply" value="(\w+)"', answer.text)
    return answer.text, found[1] if found else ""


def test_a_change_of_many_is_taken_back_by_one_request(
    page: TestClient, ui: Ui
) -> None:
    assert 'class="undoing" hidden' in page.get("/datasets/pipo").text
    fields = {"op": "add", "tag": "hat", "where": "end"}
    _, digest = preview(page, **fields)
    page.post("/datasets/pipo/change", data=fields | {"apply": digest})
    known = version(page, "4_pipo/b.png")
    theirs = save(page, "4_pipo/b.png", "pipo, of somebody else", known).json()["step"]
    text = page.get("/datasets/pipo").text
    (step,) = re.findall(r'name="step" value="(\d+)"', text)
    assert step == theirs, "the latest change is taken back first"
    assert page.post("/datasets/pipo/undo", data={"step": step}).status_code == 200
    assert captions(ui)["b.txt"] == "pipo, blue, hat\n"
    save(page, "4_pipo/b.png", "theirs", version(page, "4_pipo/b.png"))

    many = min(path.stem for path in (ui.own / "undo" / "pipo").iterdir())
    told = page.post("/datasets/pipo/undo", data={"step": many}).text
    assert "2 captions are as they were. 1 were changed by somebody else" in told
    assert captions(ui) == {
        "a.txt": "pipo, red\n",
        "b.txt": "theirs\n",
        "c.txt": "",
    }
    again = page.post("/datasets/pipo/undo", data={"step": many}, headers=JSON)
    assert again.json()["now"] == {} and captions(ui)["a.txt"] == "pipo, red\n"
    for bad in ("", "..", "../../queue/000001", "%2e%2e/x", "a\\b"):
        answer = page.post("/datasets/pipo/undo", data={"step": bad}, headers=JSON)
        assert answer.status_code == 404 or answer.json()["now"] == {}
    assert captions(ui)["b.txt"] == "theirs\n"


def test_what_changes_is_shown_before_it_is_done(page: TestClient, ui: Ui) -> None:
    fields = {"op": "replace", "find": "PIPO", "replacement": "pepe"}
    text, digest = preview(page, **fields)
    assert "2 of 3 captions change" in text and "<del>ipo</del>" in text
    assert captions(ui)["a.txt"] == "pipo, red"
    assert (
        page.post("/datasets/pipo/change", data=fields | {"apply": digest}).status_code
        == 200
    )
    assert captions(ui) == {"a.txt": "pepe, red\n", "b.txt": "pepe, blue\n"}
    assert kept(ui) == [{"4_pipo/a.txt": "pipo, red", "4_pipo/b.txt": "pipo, blue"}]


def test_a_preview_that_no_longer_holds_changes_nothing(
    page: TestClient, ui: Ui
) -> None:
    fields = {"op": "replace", "find": "pipo", "replacement": "pepe"}
    _, digest = preview(page, **fields)
    (ui.datasets / "pipo" / "4_pipo" / "a.txt").write_text("pipo, green")
    answer = page.post("/datasets/pipo/change", data=fields | {"apply": digest})
    assert answer.status_code == 409 and "changed meanwhile" in answer.text
    assert captions(ui)["b.txt"] == "pipo, blue"


def test_changes_of_many(page: TestClient, ui: Ui) -> None:
    folder = ui.datasets / "pipo" / "4_pipo"
    for fields, became in (
        ({"op": "add", "tag": "hat", "where": "start"}, {"a": "hat, pipo, red", "b": "hat, pipo, blue", "c": "hat"}),
        ({"op": "add", "tag": "RED", "where": "end"}, {"a": "pipo, red", "b": "pipo, blue, RED", "c": "RED"}),
        ({"op": "remove", "tag": "Pipo"}, {"a": "red", "b": "blue", "c": None}),
        ({"op": "remove", "tag": "pi"}, {"a": "pipo, red", "b": "pipo, blue", "c": None}),
        ({"op": "add", "tag": "hat", "where": "end", "chosen": "4_pipo/b.png"}, {"b": "pipo, blue, hat", "c": None}),
        ({"op": "add", "tag": "hat", "where": "end", "only": "missing"}, {"a": "pipo, red", "c": "hat"}),
        ({"op": "replace", "find": "(", "replacement": "x"}, {"a": "pipo, red"}),
        ({"op": "replace", "find": "PIPO", "replacement": r"\1", "case": "1"}, {"a": "pipo, red"}),
        ({"op": "replace", "find": "pipo", "replacement": r"\1"}, {"a": r"\1, red"}),
    ):  # fmt: skip
        (folder / "a.txt").write_text("pipo, red")
        (folder / "b.txt").write_text("pipo, blue")
        (folder / "c.txt").unlink(missing_ok=True)
        _, digest = preview(page, **fields)
        if digest:
            page.post("/datasets/pipo/change", data=fields | {"apply": digest})
        now = captions(ui)
        found = {name: now.get(f"{name}.txt", "").strip() or None for name in became}
        assert found == became, fields


def test_what_is_deleted_comes_back_with_its_caption(page: TestClient, ui: Ui) -> None:
    folder = ui.datasets / "pipo" / "4_pipo"
    answer = page.post(
        "/datasets/pipo/delete",
        data={"chosen": ["4_pipo/a.png", "4_pipo/c.png"]},
        headers=JSON,
    )
    assert answer.json()["deleted"] == 2
    assert sorted(os.listdir(folder)) == ["b.png", "b.txt"]
    assert "3 files of pipo" in page.get("/datasets").text
    picture(folder / "c.png", colour="blue")
    back = page.post(
        "/datasets/restore", data={"entry": answer.json()["entry"]}, headers=JSON
    ).json()
    assert back == {"back": 2, "stay": 1}, "another c.png is there by now"
    assert sorted(os.listdir(folder)) == ["a.png", "a.txt", "b.png", "b.txt", "c.png"]
    (folder / "c.png").unlink()
    assert (
        page.post(
            "/datasets/restore", data={"entry": answer.json()["entry"]}, headers=JSON
        ).json()["back"]
        == 1
    )
    assert not list((ui.datasets / ".trash").iterdir())
    for entry in ("..", "../pipo", "", "nothing"):
        page.post("/datasets/restore", data={"entry": entry})
    assert len(os.listdir(folder)) == 5
    assert page.post("/datasets/pipo/delete", data={}).status_code == 404


def test_an_image_that_shares_its_stem_leaves_the_caption(
    page: TestClient, ui: Ui
) -> None:
    folder = ui.datasets / "pipo" / "4_pipo"
    picture(folder / "a.jpg")
    text = page.get("/datasets/pipo?only=broken").text
    assert text.count("share the stem") >= 1
    told = page.post("/datasets/pipo/delete", data={"chosen": "4_pipo/a.jpg"}).text
    assert "1 image moved to the trash." in told
    assert (
        (folder / "a.png").is_file()
        and (folder / "a.txt").is_file()
        and not (folder / "a.jpg").exists()
    )


def test_findings_stand_at_their_images_until_the_next_check(
    page: TestClient, ui: Ui
) -> None:
    page.post("/datasets/pipo/lint")
    until(lambda: page.get("/datasets/pipo/lint").json()["status"] != "running", 60)
    text = page.get("/datasets/pipo?only=found").text
    assert "is small" in text and "has changed since" not in text
    assert re.search(r'<span class="warn">\d+ findings in 3 images</span>', text)
    assert re.search(r">3 images are small: \d+% of 1024</a>", text), "one line for all"
    tiny = page.get("/datasets/pipo?only=tiny").text
    assert tiny.count('<article class="card image') == 3
    save(page, "4_pipo/a.png", "new", version(page, "4_pipo/a.png"))
    text = page.get("/datasets/pipo").text
    assert "is small" in text and "has changed since" in text


def test_images_that_look_the_same_stand_beside_each_other_until_one_is_deleted(
    page: TestClient, ui: Ui
) -> None:
    folder = ui.datasets / "pipo" / "4_pipo"
    like = f"shows what {folder}/a.png shows, mirrored"
    rows = [
        ("duplicate", "b.png", like),
        ("duplicate", "c.png", like),
        ("tiny", "b.png", "is small: 9 x 9, 30% of the resolution 1024, and is not"),
        ("unused", "gone.gif", "is a GIF"),
    ]
    findings = [
        {"check": check, "file": f"{folder}/{name}", "message": message}
        for check, name, message in rows
    ]
    document = {"state": views.datasets.read_dataset(ui, "pipo").state, "images": 3}
    write_json(ui.own / "lint" / "pipo.json", document | {"findings": findings})
    (note,) = re.findall('<p class="note">(.*?)</p>', page.get("/datasets/pipo").text)
    assert note.startswith("2 near-duplicates. ")
    assert '<a href="?check=1#lint">Look at them</a>' in note
    text = page.get("/datasets/pipo?check=1").text
    assert 'class="note"' not in text, "it is what is looked at"
    assert "2 near-duplicates" in text and "gone.gif" not in text
    pairs = re.findall(r'class="duo">.*?</form>', text, re.DOTALL)
    named = [re.findall(r'name="chosen" value="([^"]*)"', pair) for pair in pairs]
    assert named == [[f"4_pipo/{name}.png", "4_pipo/a.png"] for name in "bc"]
    told = page.post(
        "/datasets/pipo/delete", data={"chosen": "4_pipo/b.png", "check": "1"}
    ).text
    assert "1 image moved to the trash." in told and "Restore" in told
    assert "<details open><summary>Check the images" in told, "the next pair is in view"
    assert told.count("Delete this one</button>") == 2 and "is small" not in told
    page.post("/datasets/pipo/delete", data={"chosen": "4_pipo/a.png"})
    assert "another one shows" not in page.get("/datasets/pipo").text


def test_captions_are_written_by_the_queue(
    page: TestClient, ui: Ui, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Queue] = []
    monkeypatch.setattr(Queue, "start_runner", lambda queue: started.append(queue))
    given = {"trigger-word": "pipo", "prompt": "--overwrite", "model": ""}
    answer = page.post("/datasets/pipo/captioning", data=given, follow_redirects=False)
    assert answer.headers["location"] == "/queue" and len(started) == 1
    (entry,) = Queue(ui.own / "queue").entries()
    assert entry.argv == (
        "caption",
        str(ui.datasets / "pipo"),
        "--trigger-word=pipo",
        "--prompt=--overwrite",
        "--recursive",
    )
    page.post("/datasets/pipo/captioning", data=given | {"limit": "1"})
    assert "--limit=1" in Queue(ui.own / "queue").entries()[1].argv, "to see one first"


def test_two_hundred_images_are_pages(page: TestClient, ui: Ui) -> None:
    folder = ui.datasets / "many"
    first = picture(folder / "000.png")
    for number in range(1, 200):
        os.link(first, folder / f"{number:03}.png")
        (folder / f"{number:03}.txt").write_text(f"caption {number}")
    text = page.get("/datasets/many?page=4").text
    assert "4 of 4" in text and text.count("<article") == 20
    assert "caption 199</textarea>" in text
    assert re.findall(r'page=(\d)"(?: aria-current="page")?>\d</a>', text) == [*"1234"]
    assert "1 of 200" in page.get("/datasets/many?q=caption 123").text
    for number in ("0", "-1", "²", "٣", "99999999999999999999", "x"):
        text = page.get(f"/datasets/pipo?page={number}").text
        assert text.count("<article") == 3, "a page that is none is one that is"


def test_a_name_that_is_not_utf8_is_told_and_hides_nothing(
    page: TestClient, ui: Ui
) -> None:
    picture(ui.datasets / "pipo" / "4_pipo" / os.fsdecode(b"caf\xe9.png"))
    (ui.datasets / os.fsdecode(b"set\xe9")).mkdir()
    assert page.get("/datasets").status_code == 200
    text = page.get("/datasets/pipo").text
    assert (
        r"caf\udce9.png" in text
        and "is not UTF-8" in text
        and text.count("<article") == 3
    )


def test_notes_of_views_that_are_damaged_are_left_aside(
    page: TestClient, ui: Ui
) -> None:
    for text in ("{", "[]", json.dumps({"resolution": "x", "references": 3})):
        (ui.own / "datasets").mkdir(parents=True, exist_ok=True)
        (ui.own / "datasets" / "pipo.json").write_text(text)
        assert page.get("/datasets/pipo").status_code == 200


def test_a_pipe_among_the_images_is_not_waited_for(client: TestClient, ui: Ui) -> None:
    folder = ui.datasets / "d"
    folder.mkdir()
    for name in ("a.png", "b.txt"):
        os.mkfifo(folder / name)
    Image.new("RGB", (32, 32)).save(folder / "b.png")
    assert client.get("/datasets/d").status_code == 200
    for part in ("images", "thumbs"):
        assert client.get(f"/datasets/d/{part}/a.png").status_code == 415
    answer = client.post(
        "/datasets/d/captions", data={"name": "b.png", "caption": "x", "version": "0"}
    )
    assert answer.status_code >= 400


@pytest.mark.parametrize(
    "prompt", ["a\0b", "hf_abcdefghijklmnopqrstuvwxyzABCDEF12", "x" * 2**17]
)
def test_captioning_that_cannot_be_asked_for_is_told_so(
    client: TestClient, ui: Ui, prompt: str
) -> None:
    (ui.datasets / "d").mkdir()
    answer = client.post("/datasets/d/captioning", data={"prompt": prompt})
    assert answer.status_code == 409 and prompt not in answer.text
    assert not (ui.own / "queue").exists() or not list(
        (ui.own / "queue").glob("*.json")
    )


def test_a_click_on_a_tag_shows_its_images_where_it_is_removed_or_put_into_all(
    page: TestClient, ui: Ui
) -> None:
    """First as a preview, as all changes of many; Undo takes it back."""
    folder = ui.datasets / "pipo" / "4_pipo"
    (folder / "c.txt").write_text("Pipo, redder, <b>x</b>")
    picture(folder / "d.png", colour="teal")
    (folder / "d.txt").write_text("<b>x</b>,red, PIPO , alone")
    text = page.get("/datasets/pipo").text
    found = re.findall(r'<a href="\?has=([^"]*)"\s*>([^<]*?)\s*<span class="faint num">(\d+)', text)  # fmt: skip
    assert found == [
        ("pipo", "pipo", "4"),
        ("red", "red", "2"),
        ("%3Cb%3Ex%3C/b%3E", "&lt;b&gt;x&lt;/b&gt;", "2"),
    ]
    shown = page.get("/datasets/pipo?has=Red").text
    assert re.findall('data-name="([^"]*)"', shown) == ["4_pipo/a.png", "4_pipo/d.png"]
    assert 'name="tag" value="Red"' in shown and 'name="has" value="Red"' in shown
    assert re.search(r'has=red" aria-current="true"', shown)

    before = captions(ui)
    for op, wanted in (
        ("remove", ["pipo", "pipo, blue", "Pipo, redder, <b>x</b>", "<b>x</b>, PIPO , alone"]),
        ("add", ["pipo, red", "pipo, blue, red", "Pipo, redder, <b>x</b>, red", "<b>x</b>,red, PIPO , alone"]),
    ):  # fmt: skip
        fields = {"op": op, "tag": "red", "has": "red", "where": "end"}
        text, digest = preview(page, **fields)
        assert captions(ui) == before and "2 of" in text
        done = page.post("/datasets/pipo/change", data=fields | {"apply": digest})
        assert "2 captions changed" in done.text and done.text.count("<article") == 4
        assert [text.strip() for text in captions(ui).values()] == wanted
        step = re.search(r'name="step" value="(\d+)"', done.text)
        assert step
        page.post("/datasets/pipo/undo", data={"step": step[1]})
        before = {name: text.strip() for name, text in before.items()}
        assert {k: v.strip() for k, v in captions(ui).items()} == before
        before = captions(ui)
