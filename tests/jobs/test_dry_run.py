"""The plan of a whole job."""

from __future__ import annotations

import importlib
import shutil
import tempfile
import zipfile
from pathlib import Path

import pytest
from pydantic import Field

from jobs.dry_run import plan_job
from tests.first_hour import JOB, images
from toolkit.config import JobConfig, JobContext, ProcessConfig, ProcessEntry, load_job
from toolkit.errors import DataErrors, Diagnostic, UserError
from toolkit.extension import discover
from toolkit.files.archives import unpacked
from toolkit.plan.run_plan import RunPlan


class Writer(ProcessConfig):
    path: str = "/model"

    def outputs(self, job: JobContext) -> frozenset[Path]:
        return frozenset([Path(self.path)])


class Trainer(ProcessConfig):
    seen: list = Field(default_factory=list)
    mistakes: tuple[str, ...] = ()

    def plan(self, job: JobContext) -> RunPlan:
        self.seen.append(job)
        if self.mistakes:
            raise DataErrors([Diagnostic((place,), "bad") for place in self.mistakes])
        return RunPlan(
            self.type, self.display_name(job), (), 8, 4, 12, requested_epochs=3
        )


def job(*sections: ProcessConfig | None) -> JobConfig:
    entries = tuple(
        ProcessEntry(
            index,
            section.type if section else "drop_in",
            section and section.name,
            {},
            section,
        )
        for index, section in enumerate(sections)
    )
    return JobConfig("extension", "my_job", {}, entries, (), Path("my_job.yaml"), "")


EMPTY = {
    "datasets": [],
    "samples_per_epoch": 0,
    "micro_batches_per_epoch": 0,
    "optimizer_steps": 0,
    "epochs": 0,
    "notes": [],
    "warnings": [],
}


def test_every_process_has_an_entry() -> None:
    plan = plan_job(
        job(Writer(type="writer"), Trainer(type="trainer", name="one"), None)
    )
    writer, trainer, drop_in = plan.to_json()["processes"]
    assert plan.to_json()["job"] == "my_job"
    assert writer == {"type": "writer", "name": "my_job", **EMPTY}
    assert drop_in == {"type": "drop_in", "name": "my_job", **EMPTY}
    assert (trainer["name"], trainer["optimizer_steps"], trainer["epochs"]) == (
        "one",
        12,
        3,
    )


def test_the_folders_of_run_files_are_named_in_order() -> None:
    class WithFolder(ProcessConfig):
        def run_folder(self, job: JobContext) -> Path | None:
            return Path("output", self.display_name(job))

    plan = plan_job(
        job(
            WithFolder(type="a", name="one"),
            Writer(type="writer"),
            None,
            WithFolder(type="a"),
        )
    )
    assert plan.to_json()["folders"] == ["output/one", "output/my_job"]


def test_words_name_the_job_and_each_process() -> None:
    words = (
        plan_job(job(Trainer(type="trainer", name="one"), None)).render().splitlines()
    )
    assert words == ["Job my_job", "one (trainer)", "my_job (drop_in)"]


def test_a_process_knows_what_earlier_ones_will_write() -> None:
    before, after = Trainer(type="trainer", seen=[]), Trainer(type="trainer", seen=[])
    plan_job(job(before, Writer(type="writer"), after))
    assert before.seen == [JobContext("my_job")]
    assert after.seen == [JobContext("my_job", frozenset([Path("/model")]))]


def test_mistakes_of_all_processes_come_at_once_each_line_once() -> None:
    sections = [
        Trainer(type="t", mistakes=("a", "b")),
        Trainer(type="t", mistakes=("b", "c")),
    ]
    with pytest.raises(UserError) as caught:
        plan_job(job(*sections))
    assert str(caught.value) == "a: bad\nb: bad\nc: bad"


def test_images_that_an_earlier_process_writes_are_counted_when_they_are_there(
    write_job, make_pictures, tmp_path, tiny_model: Path
) -> None:
    from toolkit.config import load_job
    from toolkit.extension import discover

    def notes(folder: Path) -> tuple[str, ...]:
        dataset = {"folder_path": str(folder / "pictures"), "resolution": 64}
        training = {
            "type": "sd_trainer",
            "training_folder": str(tmp_path / "out"),
            "datasets": [dataset],
        }
        training |= {"name": "lora", "device": "cpu", "train": {"steps": 1}}
        training |= {
            "model": {"name_or_path": str(tiny_model)},
            "network": {"linear": 4},
        }
        training |= {"validation": {"folder_path": str(folder / "edits" / "after")}}
        path = write_job({"type": "writer", "path": str(folder)}, training)
        find = {"writer": Writer, "sd_trainer": discover().find_config("sd_trainer")}
        return plan_job(load_job(path, find.get)).processes[1].notes

    later = (
        f"{tmp_path / 'drawn' / 'pictures'}, {tmp_path / 'drawn' / 'edits' / 'after'}"
    )
    assert notes(tmp_path / "drawn") == (
        f"reads {later}, which an earlier process of the job writes: counted then",
    )
    make_pictures(tmp_path / "drawn" / "pictures", "a", "b")
    make_pictures(tmp_path / "drawn" / "edits" / "after", "c", "d")
    assert "counted then" not in "".join(notes(tmp_path / "drawn"))


def test_errors_in_a_dataset_follow_the_line_of_the_job_that_names_it() -> None:
    """A folder that the job names is at its line; files in it, and rows of a table,
    follow that line."""
    places = {
        Path("photos"): "my_job.yaml:9:3: datasets[0].folder_path",
        Path("a.csv"): "my_job.yaml:10:3: captions_file",
    }
    section = Trainer(
        type="trainer",
        mistakes=("photos/a/b.png", "empty", "a.csv:7", "photos/c.png", "photos"),
    )
    config = JobConfig(
        "extension",
        "my_job",
        {},
        (ProcessEntry(0, "trainer", None, {}, section, places),),
        (),
        Path("my_job.yaml"),
        "",
    )
    with pytest.raises(UserError) as caught:
        plan_job(config)
    assert str(caught.value).splitlines() == [
        "my_job.yaml:9:3: datasets[0].folder_path: 'photos': bad",
        "my_job.yaml:9:3: datasets[0].folder_path: 2 files of 'photos' cannot be used:",
        "photos/a/b.png: bad",
        "photos/c.png: bad",
        "empty: bad",
        "my_job.yaml:10:3: captions_file: 1 row of 'a.csv' cannot be used:",
        "a.csv:7: bad",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [".zip", ".parquet"])
def test_a_plan_of_packed_images_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Neither in the cache, nor beside the images, nor in the folder for temporary
    files; with the same plan as the start, whose images are unpacked."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    Path("temporary").mkdir()
    images(tmp_path)
    packed = "datasets/robot" + kind
    if kind == ".zip":
        shutil.make_archive("datasets/robot", "zip", "datasets/robot")
    else:
        pyarrow = pytest.importorskip("pyarrow")
        importlib.import_module("pyarrow.parquet").write_table(
            pyarrow.table(
                {
                    "image": [
                        picture.read_bytes()
                        for picture in sorted(Path("datasets/robot").glob("*.jpg"))
                    ],
                    "text": ["a photo"] * 4,
                }
            ),
            packed,
        )
    job = JOB.replace("folder_path: datasets/robot", f"folder_path: {packed}")
    Path("job.yaml").write_text(job)
    config = load_job("job.yaml", discover().find_config)
    before = sorted(tmp_path.rglob("*"))
    planned = plan_job(config).processes[0].datasets
    assert sorted(tmp_path.rglob("*")) == before
    assert [folder.images for folder in planned] == [4]
    if kind == ".zip":
        with zipfile.ZipFile("bad.zip", "w") as archive:
            archive.writestr("in/odd.png", b"no picture")
        Path("bad.yaml").write_text(job.replace(packed, "bad.zip/in"))
        with pytest.raises(
            UserError, match=r"^bad\.zip/in/odd\.png: |\nbad\.zip/in/odd\.png: "
        ):
            plan_job(load_job("bad.yaml", discover().find_config))
    unpacked(packed, Path("output/_cache/zips"))
    with monkeypatch.context() as broken:
        broken.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
        assert plan_job(config).processes[0].datasets == planned
