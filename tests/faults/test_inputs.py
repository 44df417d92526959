"""What a dataset may hold and how it may break between two starts: a job finishes, or
names the file."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from unicodedata import normalize

import pytest
from PIL import Image

from extensions.compat.names import options
from tests.faults.conftest import Job, contents, draw_pictures
from toolkit.config import load_job
from toolkit.errors import RunError, UserError
from toolkit.extension import discover

NO_PATHS = (
    "x" * 5000,
    "y" * 300 + ".safetensors",
    "a/" * 3000,
    "a\0b",
    "loop/x",
    "~nobody-of-this-name/x",
    "",
)
"""Texts that no path can have, or that lead nowhere."""

PLACES = [0.0, 0.1, 0.5, 0.9, 0.97]
"""Shares of a file that are left: nothing, the header, the middle, the end, all but the
last bytes."""


@pytest.fixture
def own_pictures(job: Job, pictures: Path) -> Path:
    """A dataset of the job's own, to be broken."""
    folder = job.cwd / "data"
    shutil.copytree(pictures, folder)
    job.section["datasets"][0]["folder_path"] = str(folder)
    return folder


def cut(path: Path, share: float) -> None:
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


@pytest.mark.parametrize("place", [0.0, 0.97])
def test_a_truncated_picture_is_named_before_anything_starts(
    job: Job, own_pictures: Path, place: float
) -> None:
    cut(own_pictures / "b.png", place)
    before = contents(own_pictures)
    said = job.run(code=2)
    assert "b.png: " in said and "a.png" not in said
    assert contents(own_pictures) == before and not (job.cwd / "output").exists()


@pytest.mark.slow
def test_a_picture_that_goes_bad_after_the_check_is_named(
    job: Job, own_pictures: Path
) -> None:
    """It is removed while the first one is being encoded."""
    vanishing = own_pictures / "c.png"
    child = job.start(
        faults=[("slow", "toolkit.data.batches.latent_cache:CacheEntry.encode", 0.3)]
    )
    child.wait_until(lambda: any(job.cwd.glob("output/_cache/latents/*/*")))
    vanishing.write_bytes(b"no picture")
    assert child.wait() == 1, child.output
    assert "c.png" in child.output and "Traceback" not in child.output


@pytest.mark.slow
def test_damaged_cache_entries_are_made_again(job: Job, whole: Job, same) -> None:
    shutil.copytree(whole.cwd / "output", job.cwd / "output")
    entries = sorted(job.cwd.glob("output/_cache/*/*/*.safetensors"))
    assert len(entries) >= 5
    good = {path: path.read_bytes() for path in entries}
    for path, place in zip(entries, [*PLACES, *PLACES], strict=False):
        cut(path, place)
    entries[-1].write_bytes(b"\xff" * 100)
    job.change(resume="never")
    assert "damaged, it is made again" in job.run()
    assert {path: path.read_bytes() for path in entries} == good
    same()


@pytest.mark.slow
def test_names_of_every_kind(job: Job) -> None:
    stems = [
        "with space",
        "[x]*?",
        "ünï",
        normalize("NFD", "é"),
        "🦊",
        "שלום",
        "name.with.dots",
        "-dash",
        "x" * 200,
    ]
    data = draw_pictures(job.cwd / "3_my [data] 🦊", *stems)
    (data / "loop").symlink_to(data)
    (data / ".hidden").mkdir()
    (data / "nowhere").symlink_to(data / "gone")
    job.section["datasets"] = [{"folder_path": str(data), "resolution": 64}]
    job.change(train__steps=1, train__gradient_accumulation=1, sample=None)
    before = {
        path: text
        for path, text in contents(data).items()
        if not path.startswith("loop/")
    }
    said = job.run()
    assert f"{len(stems)} x 3" in said
    assert "without caption" not in said
    assert {
        path: text
        for path, text in contents(data).items()
        if not path.startswith("loop/")
    } == before


@pytest.mark.slow
def test_no_connection_is_opened_for_a_model_on_the_disk(job: Job) -> None:
    job.change(train__steps=1, train__gradient_accumulation=1)
    job.run(faults=[("without_network",)])


def test_a_model_that_is_not_there_is_one_line_without_a_network(
    job: Job, monkeypatch
) -> None:
    job.change(model__name_or_path="nobody/no-such-model", model__model_kwargs={})
    child = job.start(faults=[("without_network",), ("offline", str(job.cwd / "hub"))])
    code = child.wait()
    assert code in (1, 2), (code, child.output)
    assert "nobody/no-such-model" in child.output and "Traceback" not in child.output


@pytest.mark.slow
def test_pictures_of_every_mode_train_together(job: Job, pictures: Path) -> None:
    """The exact pixels of each are tested in
    tests/toolkit/data/pixels/test_images.py."""
    data = job.cwd / "modes"
    data.mkdir()
    picture = Image.open(pictures / "a.png")
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        picture.convert(mode).save(data / f"{mode}.png")
    Image.new("I;16", (80, 64), 40_000).save(data / "sixteen.png")
    picture.convert("CMYK").save(data / "cmyk.jpg")
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        picture.save(data / f"turned_{orientation}.jpg", exif=exif)
    job.section["datasets"] = [{"folder_path": str(data), "resolution": 64}]
    job.change(train__steps=1, sample=None, trigger_word="thing")
    job.run()
    assert os.listdir(job.folder / "state")


def test_a_compiler_that_is_not_there_is_named_before_anything_is_encoded(
    job: Job,
) -> None:
    job.section["train"]["compile"] = {"enabled": True, "backend": "indcutor"}
    output = job.run(code=2)
    assert (
        "train.compile.backend: PyTorch has no backend 'indcutor'" in output
        and "latents" not in output
    )


@pytest.mark.slow
def test_a_compiled_job_prints_no_warnings(job: Job, tmp_path: Path) -> None:
    """What is compiled anew, with all that PyTorch has warned of."""
    job.change(
        model__quantize=True,
        model__qtype="float8",
        train__gradient_checkpointing="cheap",
    )
    job.section["datasets"][0]["caption_dropout_rate"] = (
        0  # texts of one length, and one program
    )
    job.change(
        train__compile={"enabled": True},
        train__steps=1,
        sample=None,
        network__dropout=0,
        network__network_kwargs={"only_if_contains": ["to_q"]},
    )
    job.change(train__gradient_accumulation=1)
    child = job.start(
        faults=[
            ("environment", {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor")})
        ]
    )
    assert child.wait(600) == 0, child.output
    assert child.errors == ""


@pytest.mark.slow
def test_no_text_in_the_place_of_a_path_is_a_traceback_in_another_programs_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    find = discover().find_config
    config = {
        "dit": "m",
        "dataset_config": "data.toml",
        "network_module": "networks.lora_qwen_image",
        "output_name": "x",
    }
    keys = sorted(options())
    assert len(keys) > 180
    for place, key in enumerate(keys):
        text = NO_PATHS[place % len(NO_PATHS)]
        rows = toml({"image_directory": "data", key: text})
        Path("data.toml").write_text(
            f"[general]\nresolution = [64, 64]\n[[datasets]]\n{rows}"
        )
        Path("j.toml").write_text(toml(config | {key: text}))
        try:
            load_job("j.toml", find, as_job=True)
        except (UserError, RunError):
            pass  # a refusal is as good as a job: only a fault of the program fails
        except BaseException as error:
            error.add_note(f"{key}: {text!r}")
            raise


def toml(values: dict[str, str]) -> str:
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())
