"""Runs, datasets and jobs are renamed, cloned, deleted and restored, by commands and on
the page; what runs, and what the program did not make, is not touched."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from starlette.testclient import TestClient

from extensions.tools.ui import shelf
from extensions.tools.ui.queue import Queue
from extensions.tools.ui.shelf import Shelf
from extensions.tools.ui.state import Ui
from tests.extensions.tools.ui.accessible import SIZES, faults
from tests.html_browser import Browser
from toolkit.errors import RunError, UserError
from toolkit.files.writing import MOST_SOURCE
from toolkit.train.lock import run_lock


@pytest.fixture
def own(ui: Ui) -> Shelf:
    return Shelf(ui.output, ui.datasets, ui.jobs)


def make_all(own: Shelf, make_run: Callable[..., Path]) -> None:
    """A run, its dataset and its job, which is called as they are."""
    folder = make_run("cat")
    (own.datasets / "cat").mkdir()
    (own.datasets / "cat" / "1.txt").write_text("a cat")
    process = {"datasets": [{"folder_path": str(own.datasets / "cat")}]}
    process |= {"type": "sd_trainer", "train": {"steps": 10}}
    job = {"job": "extension", "config": {"name": "cat", "process": [process]}}
    for path in (folder / "config.yaml", own.jobs / "cat.yaml"):
        path.write_text(f"# mine\n{yaml.safe_dump(job)}")


def snapshot(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("kind", ["runs", "datasets", "jobs"])
def test_what_is_deleted_comes_back_as_it_was(
    own: Shelf, make_run: Callable[..., Path], kind: shelf.Kind
) -> None:
    make_all(own, make_run)
    before = snapshot(own.runs.parent)
    gone = shelf.delete(own, kind, "cat")
    there = snapshot(own.home(kind))
    assert not {path for path in there if not path.startswith(".trash")}
    own_folder = f"{own.home(kind).name}/"
    sizes = [len(each) for path, each in before.items() if path.startswith(own_folder)]
    assert (gone.size, gone.files) == (sum(sizes), len(sizes))
    assert [one.entry for one in shelf.trashed(own, kind)] == [gone.entry]
    assert shelf.listed(own, kind) == []
    shelf.restore(own, kind, "cat")
    assert snapshot(own.runs.parent) == before and shelf.trashed(own, kind) == []
    assert [*(own.home(kind) / ".trash").iterdir()] == []


def test_a_place_that_is_taken_is_not_restored_into(
    own: Shelf, make_run: Callable[..., Path]
) -> None:
    make_all(own, make_run)
    shelf.delete(own, "datasets", "cat")
    (own.datasets / "cat").mkdir()
    with pytest.raises(UserError, match="is there again"):
        shelf.restore(own, "datasets", "cat")
    (own.datasets / "cat").rmdir()
    assert shelf.restore(own, "datasets", "cat") == own.datasets / "cat"


def test_what_the_program_did_not_make_is_refused(
    own: Shelf, make_run: Callable[..., Path], tmp_path: Path
) -> None:
    make_all(own, make_run)
    away = tmp_path / "away"
    away.mkdir()
    (away / "photo.txt").write_text("mine")
    (own.datasets / "linked").symlink_to(away)
    (own.runs / "holiday").mkdir()
    (own.jobs / "notes.txt").write_text("mine")
    before = snapshot(tmp_path)
    names: tuple[tuple[shelf.Kind, str], ...] = (
        ("datasets", str(away)),
        ("datasets", "../away"),
        ("datasets", "linked"),
        ("datasets", "cat/1.txt"),
        ("datasets", ".trash"),
        ("datasets", ""),
        ("datasets", "a\0b"),
        ("datasets", "x" * 5000),
        ("jobs", "x" * 5000),
        ("runs", "holiday"),
        ("runs", ".ui"),
        ("runs", "gone"),
        ("jobs", "notes.txt"),
        ("jobs", "../output/cat/config.yaml"),
    )
    for kind, name in names:
        with pytest.raises(UserError, match=r"is no|is a link to"):
            shelf.delete(own, kind, name)
        with pytest.raises(UserError, match=r"is no|is a link to"):
            shelf.rename(own, kind, name, "other")
    assert snapshot(tmp_path) == before


def test_links_are_listed_and_files_that_are_no_jobs_are_not(
    client: TestClient, own: Shelf, make_run: Callable[..., Path], tmp_path: Path
) -> None:
    make_all(own, make_run)
    for kind, name in (("runs", "cat"), ("datasets", "cat"), ("jobs", "cat.yaml")):
        away = tmp_path / f"{kind} elsewhere {name}"
        (own.home(kind) / name).rename(away)
        (own.home(kind) / name).symlink_to(away)
        path = own.home(kind) / name
        assert shelf.listed(own, kind) == [("cat", path)]
    (own.jobs / "large.json").write_text(" " * (MOST_SOURCE + 1))
    assert 'href="/verbs/jobs/cat.yaml"' in client.get("/jobs").text


def test_nothing_that_runs_or_is_needed_is_touched(
    own: Shelf, make_run: Callable[..., Path]
) -> None:
    make_all(own, make_run)
    before = {kind: snapshot(own.home(kind)) for kind in shelf.ONE}
    with run_lock(own.runs / "cat"):
        for kind in ("runs", "datasets", "jobs"):
            for act in (shelf.delete, lambda *words: shelf.rename(*words, "other")):
                with pytest.raises(UserError, match=r"is running in this|needs it|goes on with"):  # fmt: skip
                    act(own, kind, "cat")
        with pytest.raises(UserError, match="is running in this folder"):
            shelf.longer(own, "cat", "20")
    (own.runs / "cat" / "run.lock").unlink()
    assert {kind: snapshot(own.home(kind)) for kind in shelf.ONE} == before
    queue = Queue(own.runs / ".ui" / "queue")
    queue.add(["generate", f"--lora={own.runs / 'cat' / 'cat.safetensors'}:0.5"], "try")
    with pytest.raises(UserError, match="try in the queue needs it"):
        shelf.delete(own, "runs", "cat")
    queue.remove(queue.entries()[0].id)
    for name in ("cat.yaml", "cat"):
        queue.add([str(own.jobs / name)], "cat")
        for kind in ("runs", "datasets", "jobs"):
            with pytest.raises(UserError, match="cat in the queue needs it"):
                shelf.rename(own, kind, "cat", "other")
        queue.remove(queue.entries()[0].id)


def test_names_that_cannot_be_are_refused(
    own: Shelf, make_run: Callable[..., Path]
) -> None:
    make_all(own, make_run)
    before = snapshot(own.runs.parent)
    for kind in ("runs", "datasets", "jobs"):
        for new in (
            "",
            "..",
            "a/b",
            ".hidden",
            "cat",
            "x" * 5000,
            "tom.yaml",
            "tom.yaml.bak",
        ):
            with pytest.raises(UserError):
                shelf.rename(own, kind, "cat", new)
            if new != "cat" or kind != "runs":
                with pytest.raises(UserError):
                    shelf.clone(own, kind, "cat", new)
        with pytest.raises(UserError, match=r"is the name of a file. Write 'tom'"):
            shelf.rename(own, kind, "cat", "tom.yaml.bak")
    assert snapshot(own.runs.parent) == before


def test_a_dataset_and_a_job_are_renamed_and_cloned(
    own: Shelf, make_run: Callable[..., Path]
) -> None:
    make_all(own, make_run)
    undo = own.runs / ".ui" / "undo"
    for name in ("cat", "tom"):  # the second is of one that was deleted
        (undo / name).mkdir(parents=True)
        (undo / name / "1.json").write_text(name)
    shelf.rename(own, "datasets", "cat", "tom")
    assert snapshot(undo) == {"tom/1.json": b"cat"}
    for path in (own.jobs / "cat.yaml", own.runs / "cat" / "config.yaml"):
        text = path.read_text()
        assert f"folder_path: {own.datasets / 'tom'}\n" in text and "# mine" in text
    shelf.clone(own, "datasets", "tom", "tim")
    assert snapshot(own.datasets / "tim") == snapshot(own.datasets / "tom")
    with pytest.raises(UserError, match=r"Rename both: .*runs rename cat dog"):
        shelf.rename(own, "jobs", "cat", "dog")
    assert shelf.clone(own, "runs", "cat", "dog") == own.jobs / "dog.yaml"
    assert shelf.rename(own, "jobs", "dog", "fox") == own.jobs / "fox.yaml"
    assert (
        yaml.safe_load((own.jobs / "fox.yaml").read_text())["config"]["name"] == "fox"
    )
    assert [name for name, _ in shelf.listed(own, "jobs")] == ["cat", "fox"]


SECRETS = """hf_token: hf_AbCdEfGhIjKlMnOpQrStUvWxYz0123456789  # mine
      hook: https://alerts:planted77@example.org/hook"""


def test_a_job_file_keeps_its_secrets_its_rights_and_its_link(
    own: Shelf, make_run: Callable[..., Path], tmp_path: Path
) -> None:
    make_all(own, make_run)
    text = f"""config:
  name: dog
  process:
    - {SECRETS}
      control_path: [{own.datasets}/cat/deep, elsewhere]
      lora: {own.runs}/cat/cat.safetensors
"""
    elsewhere = tmp_path / "dog.yaml"
    elsewhere.write_text(text)
    elsewhere.chmod(0o640)
    (own.jobs / "dog.yaml").symlink_to(elsewhere)
    (own.runs / "cat" / "cat.safetensors").touch()
    shelf.rename(own, "datasets", "cat", "tom")
    shelf.rename(own, "runs", "cat", "max")
    text = text.replace("datasets/cat", "datasets/tom").replace("cat/cat.", "max/max.")
    assert (own.jobs / "dog.yaml").is_symlink() and elsewhere.read_text() == text
    (own.jobs / "dog.yaml").unlink()
    elsewhere.rename(own.jobs / "dog.yaml")
    fox = shelf.rename(own, "jobs", "dog", "fox")
    owl = shelf.clone(own, "jobs", "fox", "owl")
    for path in (fox, owl):
        assert path.read_text() == text.replace("dog", path.stem)
        assert path.stat().st_mode & 0o777 == 0o640


def test_a_job_whose_secret_is_lost_is_cloned_once_it_names_a_variable(
    own: Shelf, make_run: Callable[..., Path]
) -> None:
    make_all(own, make_run)
    saved = own.runs / "cat" / "config.yaml"
    whole = saved.read_text()
    saved.write_text(f"{whole}meta: {{hf_token: <redacted>}}\n")
    line = len(saved.read_text().splitlines())
    with pytest.raises(
        UserError,
        match=rf"config\.yaml:{line}: a secret of the job stood here, .* Write \$\{{NAME\}}",
    ):
        shelf.clone(own, "runs", "cat", "dog")
    saved.write_text(f"{whole}meta: {{hf_token: ${{NAME}}}}\n")
    copy = shelf.clone(own, "runs", "cat", "dog").read_text()
    assert copy == saved.read_text().replace("name: cat", "name: dog")


def test_a_name_that_cannot_be_edited_alone_is_refused_until_it_is_by_hand(
    own: Shelf, make_run: Callable[..., Path]
) -> None:
    make_all(own, make_run)
    job = own.jobs / "dog.yaml"
    job.write_text(
        f"config:\n  name: dog\n  process: [{{a: &a {own.datasets}/cat, b: *a}}]\n"
    )
    before = snapshot(own.runs.parent)
    with pytest.raises(
        UserError,
        match=r"dog\.yaml: config\.process\.0\.a cannot be changed without another value",
    ):
        shelf.rename(own, "datasets", "cat", "tom")
    assert snapshot(own.runs.parent) == before
    job.write_text(job.read_text().replace("datasets/cat", "datasets/tom"))
    assert shelf.rename(own, "datasets", "cat", "tom").is_dir()


def test_a_dataset_that_cannot_be_copied_is_named_and_no_half_stays(
    own: Shelf, make_run: Callable[..., Path]
) -> None:
    make_all(own, make_run)
    os.mkfifo(own.datasets / "cat" / "pipe")
    with pytest.raises(
        RunError, match=r"cat/pipe: cannot be copied: .*is a named pipe"
    ):
        shelf.clone(own, "datasets", "cat", "tom")
    assert [path.name for path in own.datasets.iterdir()] == ["cat"]
    (own.datasets / "cat" / "pipe").unlink()
    (own.datasets / "cat" / "loop").symlink_to(".")
    shelf.clone(own, "datasets", "cat", "tom")
    assert (own.datasets / "tom" / "loop").readlink() == Path(".")


def test_a_run_that_is_renamed_knows_the_job_that_it_began_with(
    own: Shelf, make_run: Callable[..., Path]
) -> None:
    make_all(own, make_run)
    status = own.runs / "cat" / "run.json"
    origin = {"file": str(own.jobs / "cat.yaml"), "cwd": "/"}
    status.write_text(json.dumps(json.loads(status.read_text()) | {"origin": origin}))
    shelf.rename(own, "runs", "cat", "tom")
    known = json.loads((own.runs / "tom" / "run.json").read_text())
    assert (known["name"], known["origin"]["file"]) == (
        "tom",
        str(own.jobs / "tom.yaml"),
    )


def test_the_same_number_of_steps_is_taken_again(
    own: Shelf, make_run: Callable[..., Path]
) -> None:
    """A kill may have come between the job and the queue."""
    make_all(own, make_run)
    words = shelf.longer(own, "cat", "20")
    assert shelf.longer(own, "cat", "20") == words
    for steps in ("10", "19", "-30", "1e3"):
        with pytest.raises(UserError, match="give a number of steps above"):
            shelf.longer(own, "cat", steps)


def test_a_run_that_was_renamed_halfway_says_how_to_go_on(
    own: Shelf, make_run: Callable[..., Path]
) -> None:
    make_all(own, make_run)
    status = own.runs / "cat" / "run.json"
    status.write_text(status.read_text().replace('"cat"', '"tom"'))
    with pytest.raises(UserError, match="runs rename cat tom"):
        shelf.rename(own, "runs", "cat", "max")
    assert shelf.rename(own, "runs", "cat", "tom") == own.runs / "tom"


def test_a_job_of_several_processes_is_not_renamed_by_one_of_them(
    own: Shelf, make_run: Callable[..., Path]
) -> None:
    make_run("both/one")
    with pytest.raises(UserError, match="one of several processes"):
        shelf.rename(own, "runs", "both/one", "two")
    shelf.delete(own, "runs", "both/one")
    assert shelf.restore(own, "runs", "both/one") == own.runs / "both" / "one"


@pytest.mark.slow
def test_a_run_that_is_renamed_and_trained_longer_resumes(
    run_py: Callable[..., object],
    write_job: Callable[..., Path],
    trainer: Callable[..., dict[str, object]],
    tmp_path: Path,
) -> None:
    data = tmp_path / "datasets" / "cats"
    data.mkdir(parents=True)
    from PIL import Image

    for number in range(2):
        Image.new("RGB", (64, 64), (90 * number, 60, 60)).save(data / f"{number}.png")
    section = trainer("datasets/cats", train={"steps": 4}, save={"save_every": 3})
    write_job(section, name="cat")
    (tmp_path / "config").mkdir(exist_ok=True)
    job = next(tmp_path.glob("cat.yaml"), None) or next(tmp_path.rglob("cat.yaml"))
    if job.parent.name != "config":
        job = job.rename(tmp_path / "config" / "cat.yaml")
    assert run_py(job).returncode == 0
    answer = run_py("runs", "rename", "cat", "tom", "--json")
    assert json.loads(answer.stdout) == {"path": "output/tom"}
    assert run_py("datasets", "rename", "cats", "toms").returncode == 0
    assert not (tmp_path / "output" / "cat").exists()
    files = {path.name for path in (tmp_path / "output" / "tom").glob("*.safetensors")}
    assert files and all(name.startswith("tom") for name in files)
    same = run_py("config/tom.yaml", "--dry-run")
    assert "complete at step 4: nothing to do" in same.stdout
    end = (tmp_path / "output" / "tom" / "tom.safetensors").read_bytes()
    answer = run_py("runs", "longer", "tom", "6", "--json")
    words = json.loads(answer.stdout)["command"]
    config = yaml.safe_load((tmp_path / "config" / "tom.yaml").read_text())["config"]
    assert config["process"][0]["train"]["steps"] == 6
    more = run_py(*words)
    assert more.returncode == 0 and "resum" in more.stdout + more.stderr
    kept = tmp_path / "output" / "tom" / "tom_000000004.safetensors"
    assert (
        kept.read_bytes() == end
        and "kept as tom_000000004" in more.stderr + more.stdout
    )
    status = json.loads((tmp_path / "output" / "tom" / "run.json").read_text())
    assert (status["name"], status["step"]) == ("tom", 6)
    for words, part in ((["list"], "tom"), (["delete", "tom"], "in the trash")):
        assert part in run_py("runs", *words).stdout
    listed = json.loads(run_py("runs", "--json").stdout)
    assert listed["runs"] == [] and [one["name"] for one in listed["trash"]] == ["tom"]
    assert run_py("runs", "restore", "tom").returncode == 0


def test_the_page_has_the_verbs_and_says_the_size(
    client: TestClient, ui: Ui, own: Shelf, make_run: Callable[..., Path]
) -> None:
    make_all(own, make_run)
    assert '/verbs/runs/cat#delete"' in client.get("/runs/cat").text
    for kind, id_ in (("runs", "cat"), ("datasets", "cat"), ("jobs", "cat.yaml")):
        page = client.get(f"/verbs/{kind}/{id_}").text
        _, files = shelf.size_of(shelf.find(own, kind, "cat"))
        assert re.search(rf"[\d.]+ k?B in {files} files go to the trash", page), kind
        answer = client.post(f"/verbs/{kind}/{id_}/rename", data={"name": "a/b"})
        assert answer.status_code == 409 and "cannot be the name" in answer.text
        client.post(f"/verbs/{kind}/{id_}/delete")
        trash = client.get("/trash").text
        [entry] = re.findall(rf"/trash/{kind}/([^\"]+)", trash)
        answer = client.post(f"/trash/{kind}/{entry}", follow_redirects=False)
        assert answer.headers["location"] == f"/{kind}/{id_}"
    assert 'href="/verbs/jobs/cat.yaml"' in client.get("/jobs").text
    assert client.get("/verbs/cats/cat").status_code == 404


@pytest.mark.slow
def test_the_pages_of_the_verbs_are_used_by_all(
    browser: Browser, address: str, own: Shelf, make_run: Callable[..., Path]
) -> None:
    make_all(own, make_run)
    make_run("gone")
    shelf.delete(own, "runs", "gone")
    for width, dark in SIZES:
        for page in ("verbs/runs/cat", "verbs/jobs/cat.yaml", "trash", "jobs", "tools"):
            browser.open(f"{address}/{page}", width=width, dark=dark)
            assert faults(browser, width) == [], page
    browser.open(f"{address}/runs/cat", width=390)
    browser.run(
        "for (const menu of document.querySelectorAll('.pop')) menu.open = true"
    )
    assert faults(browser, 390) == []
    browser.click(".pop .sheet a[href$='#delete']")
    browser.click("#delete button")
    browser.wait_for("location.pathname == '/trash'")
    assert "cat" in browser.text("main") and not (own.runs / "cat").exists()
    browser.click("form[action^='/trash/runs/'] button")
    browser.wait_for("location.pathname == '/runs/cat'")
    assert browser.errors() == []
