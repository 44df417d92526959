"""`run.py best`: the losses of a short run's LoRAs, and what is recommended."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from extensions.tools.best.process import Measured, recommend
from jobs.job import ExtensionJob
from tests.conftest import readme_commands
from tests.running import run_job, run_tool, section_of
from toolkit.config import load_job
from toolkit.errors import ConfigErrors
from toolkit.extension import discover
from toolkit.files.safetensors_io import read_metadata
from toolkit.train.run_reader import rows_by_step


@pytest.mark.slow
def test_the_loss_is_that_of_the_run_and_the_best_file_is_linked(
    write_job,
    trainer,
    make_pictures,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    said,
    run_py,
) -> None:
    monkeypatch.chdir(tmp_path)
    section = trainer(
        make_pictures(tmp_path / "images", "ab", "bee", "hat", "top"),
        train={"steps": 2, "lr": 0.05},
        save={"dtype": "float32", "save_every": 1},
        validation={"fraction": 0.5, "every": 1, "timesteps": 2},
    )
    section["train"]["disable_sampling"] = True
    job = load_job(write_job(section, name="my_char"), discover().find_config)
    ExtensionJob(job, discover()).run()
    plain, linked = readme_commands("extensions/tools/best/README.md", "best")
    run = Path(plain[0])

    def best(*flags: str) -> dict:
        run_tool("best", [*flags])
        return json.loads((run / "best.json").read_text())

    found = best(*plain)
    _, first, last = found["files"]
    assert [each["step"] for each in found["files"]] == [None, 1, 2] and last[
        "file"
    ] == "my_char.safetensors"
    with rows_by_step(run / "validation.jsonl") as rows:
        recorded = [row["validation/loss"] for row in rows]
    assert [each["loss"] for each in found["files"]] == pytest.approx(
        recorded, rel=1e-5
    )
    assert found["measured_on"] == "2 images that were not trained on"
    name = found["recommended"]
    assert name == min((first, last), key=lambda row: row["loss"])["file"]
    assert any(line.startswith(f"recommended: {name}: ") for line in said)

    monkeypatch.setattr(
        "toolkit.files.writing.os.link",
        lambda *_: (_ for _ in ()).throw(OSError("no links")),
    )
    (run / "my_char_best.safetensors").unlink(missing_ok=True)  # the run's own
    assert best(*linked)["recommended"] == name
    assert (run / "my_char_best.safetensors").read_bytes() == (run / name).read_bytes()
    with pytest.raises(
        ConfigErrors, match=r"my_char_best\.safetensors is there already"
    ):
        best(*linked)
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    again = best(*linked, "--overwrite")
    assert (run / "my_char_best.safetensors").samefile(run / again["recommended"])
    assert again == found

    told = run_py("best", run, "--json")
    assert told.returncode == 0 and json.loads(told.stdout) == found
    assert f"recommended: {name}: " in told.stderr

    (tmp_path / "photo.jpg").write_bytes(b"mine")
    (run / "my_char_best.safetensors").unlink()
    (run / "my_char_best.safetensors").write_bytes(b"mine")
    with pytest.raises(ConfigErrors) as caught:
        best(*linked, "--overwrite", "--output", "photo.jpg")
    told = [
        ("--link", "was not made by"),
        ("--output", "was not made by"),
    ]
    for line, (flag, words) in zip(str(caught.value).splitlines(), told, strict=True):
        assert f"{flag}: " in line and words in line


@pytest.mark.slow
def test_files_of_a_run_that_broke_down_are_left_out(
    write_job,
    trainer,
    make_pictures,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    said: list[str],
) -> None:
    """One holds NaN, one is so large that its loss is none, and comes first."""
    monkeypatch.chdir(tmp_path)
    section = trainer(
        make_pictures(tmp_path / "images", "ab", "bee"),
        validation={"fraction": 0.5, "timesteps": 1},
        save={"dtype": "float32", "save_every": 1},
    )
    section["train"] |= {"steps": 4, "lr": 0.01, "disable_sampling": True}
    run_job(write_job(section, name="my_char"))
    run = Path("output", "my_char")
    first, second = (run / f"my_char_00000000{step}.safetensors" for step in (1, 2))
    for file, factor in ((first, 1e30), (second, float("nan"))):
        save_file(
            {k: t * factor if "lora_B" in k else t for k, t in load_file(file).items()},
            file,
            read_metadata(file),
        )
    run_tool("best", [run])
    found = json.loads((run / "best.json").read_text())
    assert [each["step"] for each in found["files"]] == [None, 3, 4]
    assert any(f"{first.name}: its loss is not finite" in line for line in said)
    assert any(
        second.name in line and "not finite" in line and "It is left out" in line
        for line in said
    )
    assert found["recommended"] in (
        found["files"][1]["file"],
        found["files"][2]["file"],
    )


@pytest.mark.slow
def test_a_run_without_held_out_images_cannot_tell(
    write_job,
    trainer,
    make_pictures,
    tmp_path: Path,
    monkeypatch,
    said: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    section = trainer(make_pictures(tmp_path / "images", "ab"))
    section["train"] |= {"steps": 2, "disable_sampling": True}
    run_job(write_job(section, name="my_char"))
    run_tool("best", ["output/my_char"])
    found = json.loads(Path("output/my_char/best.json").read_text())
    assert (found["recommended"], found["files"]) == (None, [])
    assert any(
        line.startswith("cannot tell which file is best: no images are held out")
        for line in said
    )
    assert "fraction: 0.1, every: 1}" in found["reason"]
    capsys.readouterr()
    run_tool("best", ["output/my_char", "--json"])
    printed = capsys.readouterr()
    assert json.loads(printed.out) == found
    with pytest.raises(
        ConfigErrors, match="no section 'validation', so no file can be recommended"
    ):
        section_of("best", ["output/my_char", "--link"])


def test_the_lowest_loss_is_recommended() -> None:
    base = Measured("base model", None, 0.5)
    files = [Measured("a", 1, 0.4), Measured("b", 2, 0.403)]
    assert recommend([base, *files]) == (
        files[0],
        "the lowest loss, 0.4000; the base model has 0.5000",
    )
    assert "no LoRA of the run is better" in recommend([files[0], files[1]])[1]


def test_folders_that_cannot_be_measured(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"status": "finished", "name": "x"}')
    for folder, words in [
        (tmp_path / "none", "no run is here"),
        (tmp_path, "holds no job"),
    ]:
        with pytest.raises(ConfigErrors, match=words):
            section_of("best", [str(folder)])
