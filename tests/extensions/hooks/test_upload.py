"""The callback `upload`: copies in a bucket, and a bare machine that goes on from them.

Buckets are fsspec's file system in memory, and folders. Against S3's own protocol the
test needs `pip install s3fs 'moto[server]'`.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from pydantic import ValidationError

from extensions.hooks.config import UploadConfig
from extensions.hooks.upload import COPIES, Copies, UploadCallback
from tests.running import lines, run_job
from toolkit.errors import RunError
from toolkit.files.writing import sha256_of
from toolkit.train.run import Run, Saved


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty place of the kind that the test asks for."""
    kind = getattr(request, "param", "memory")
    if kind != "s3":
        yield (
            f"memory://{uuid4().hex}"
            if kind == "memory"
            else f"file://{tmp_path}/bucket"
        )
        return
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        _, port = server.get_host_and_port()
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()  # an earlier server is gone
        s3fs.S3FileSystem().mkdir("bucket")
        yield "s3://bucket/loras"
    server.stop()


KINDS = pytest.mark.parametrize("place", ["memory", "file", "s3"], indirect=True)


def write_run(folder: Path, step: int, saves: tuple[int, ...] = ()) -> Path:
    """A run's folder with a state that is whole, and files of weights."""
    state = folder / "state" / f"step_{step:09d}"
    state.mkdir(parents=True)
    for name in ("weights", "ema", "optimizer"):
        (state / f"{name}.safetensors").write_bytes(f"{name} {step}".encode() * 9)
    (state / "state.json").write_text("{}")
    files = {
        file.name: {"size": file.stat().st_size, "sha256": sha256_of(file)}
        for file in state.iterdir()
    }
    manifest = {"format": 1, "step": step, "files": files}
    (state / "MANIFEST.json").write_text(json.dumps(manifest))
    for save in saves:
        (folder / f"maya_{save:09d}.safetensors").write_bytes(b"%d" % save)
    (folder / "metrics.jsonl").write_text('{"step": 1}\n' * step)
    (folder / "run.json").write_text("{}")
    (folder / "samples").mkdir(exist_ok=True)
    (folder / "samples" / "a.png").write_bytes(b"")
    return folder


def there(place: str) -> set[str]:
    copies = Copies(Path("nowhere"), place)
    return {
        name.removeprefix(copies.root).lstrip("/")
        for name in copies.fs.find(copies.root)
    }


@KINDS
def test_what_is_there_is_not_sent_again_and_the_newest_state_is_fetched(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_run(tmp_path / "maya", 5, saves=(5,))
    copies = Copies(folder, place)
    copies.send()
    state = {
        f"state/step_000000005/{name}"
        for name in ("MANIFEST.json", "state.json", "ema.safetensors")
    }
    assert state | {COPIES, "maya_000000005.safetensors", "metrics.jsonl"} <= there(
        place
    )
    assert not {"run.json", "samples/a.png"} & there(place)

    # another process goes on: it sends what is new, and removes the older state
    write_run(folder, 9, saves=(9,))
    again = Copies(folder, place)
    sent = []
    real = again.fs.put_file
    monkeypatch.setattr(
        again.fs,
        "put_file",
        lambda file, to: (sent.append(Path(file).name), real(file, to)),
    )
    again.send()
    weights = ["ema.safetensors", "optimizer.safetensors", "weights.safetensors"]
    assert sent == ["maya_000000009.safetensors", *weights]
    assert not state & there(place)
    monkeypatch.undo()

    bare = tmp_path / "bare"
    Copies(bare, place).fetch_newer_state()
    fetched = {
        str(path.relative_to(bare)) for path in bare.rglob("*") if path.is_file()
    }
    assert fetched == {
        "metrics.jsonl",
        *(
            f"state/step_000000009/{name}.safetensors"
            for name in ("weights", "ema", "optimizer")
        ),
        "state/step_000000009/state.json",
        "state/step_000000009/MANIFEST.json",
    }
    for name in fetched:
        assert (bare / name).read_bytes() == (folder / name).read_bytes()


def test_a_copy_that_broke_off_goes_on_and_lists_no_half_state(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = Copies(write_run(tmp_path / "maya", 5), place)
    copies.send()
    write_run(tmp_path / "maya", 9)
    real = copies.fs.put_file

    def breaks(file: str, to: str) -> None:
        if file.endswith("weights.safetensors"):
            raise ConnectionResetError("the network is gone")
        real(file, to)

    with monkeypatch.context() as patch:
        patch.setattr(copies.fs, "put_file", breaks)
        for _ in range(2):
            with pytest.raises(ConnectionResetError):
                copies.send()
    bare = tmp_path / "bare"
    Copies(bare, place).fetch_newer_state()
    assert [path.name for path in (bare / "state").iterdir()] == ["step_000000005"]
    sent = []
    with monkeypatch.context() as patch:
        patch.setattr(
            copies.fs,
            "put_file",
            lambda file, to: (sent.append(Path(file).name), real(file, to)),
        )
        copies.send()
    assert sent == ["weights.safetensors"]


def test_what_a_killed_process_has_sent_of_a_state_is_removed(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_run(tmp_path / "maya", 5)
    Copies(folder, place).send()
    killed = Copies(folder, place)
    for name in ("state/step_000000007/ema.safetensors", "state/mine/notes.txt"):
        killed.fs.makedirs(f"{killed.root}/{name}".rpartition("/")[0], exist_ok=True)
        killed.fs.pipe_file(f"{killed.root}/{name}", b"half")
    write_run(folder, 9)
    copies = Copies(folder, place)
    looks = []
    real = copies.fs.find
    with monkeypatch.context() as patch:
        patch.setattr(copies.fs, "find", lambda root: looks.append(root) or real(root))
        copies.send()
        copies.send()
    assert len(looks) == 1
    states = {name for name in there(place) if name.startswith("state/")}
    assert states == {
        "state/mine/notes.txt",
        *(n for n in copies.listed if "state/" in n),
    }
    assert "state/step_000000009/ema.safetensors" in states


def test_a_file_of_the_same_size_and_other_content_is_sent(
    place: str, tmp_path: Path
) -> None:
    folder = write_run(tmp_path / "maya", 5, saves=(5,))
    Copies(folder, place).send()
    shutil.rmtree(folder)
    write_run(folder, 5)
    file = folder / "maya_000000005.safetensors"
    file.write_bytes(b"6")
    copies = Copies(folder, place)
    copies.send()
    assert copies.fs.cat_file(f"{copies.root}/{file.name}") == b"6"
    copies.fs.rm_file(f"{copies.root}/{file.name}")  # by somebody else
    copies.send()
    assert file.name in there(place)


def test_a_state_here_that_is_as_new_stays(place: str, tmp_path: Path) -> None:
    Copies(write_run(tmp_path / "first", 5), place).send()
    here = write_run(tmp_path / "second", 5)
    (here / "metrics.jsonl").write_text("of this machine")
    Copies(here, place).fetch_newer_state()
    assert (here / "metrics.jsonl").read_text() == "of this machine"


@pytest.mark.parametrize("kind", ["content", "name", "list"])
def test_what_was_tampered_with_is_not_taken(
    place: str, tmp_path: Path, kind: str
) -> None:
    copies = Copies(write_run(tmp_path / "maya", 5), place)
    copies.send()
    if kind == "content":
        copies.fs.pipe_file(
            f"{copies.root}/state/step_000000005/weights.safetensors", b"x"
        )
    elif kind == "list":
        copies.fs.pipe_file(f"{copies.root}/{COPIES}", b'{"files": []}')
    else:
        entry = copies.listed.pop("metrics.jsonl")
        copies.listed |= {
            "../out.jsonl": entry,
            "state/step_000000005/../../out.x": entry,
        }
        copies._list()
    bare = tmp_path / "bare"
    if kind == "content":
        with pytest.raises(RunError, match=r"weights.safetensors is damaged"):
            Copies(bare, place).fetch_newer_state()
        assert [*bare.rglob("*.safetensors")] == []
    else:
        Copies(bare, place).fetch_newer_state()
        assert (bare / "state").exists() is (kind == "name")
        assert {path.name for path in tmp_path.iterdir()} <= {"maya", "bare"}


def test_training_does_not_wait_and_the_end_waits_a_bounded_time(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    go_on = threading.Event()
    real = Copies.send
    monkeypatch.setattr(Copies, "send", lambda self: (go_on.wait(), real(self)))
    callback = UploadCallback(UploadConfig(type="upload", to=place, timeout_s=0.05))
    folder = write_run(tmp_path / "maya", 5, saves=(5,))
    run = Run("maya", folder, 9, grad_accum_steps=1, seed=1, roles={})
    callback.before_start(folder, "job/maya", True)
    callback.on_error(run, OSError())  # a failure before the first step copies nothing
    assert not caplog.text
    callback.on_start(run)
    for _ in range(3):
        callback.on_save(run, Saved(5, 1, ()))
    assert there(f"{place}/job/maya") == set()
    callback.on_end(run, True)
    assert "'upload' failed: not done within 0.05 s" in caplog.text
    go_on.set()
    callback.section = callback.section.model_copy(update={"timeout_s": 60.0})
    callback.on_error(run, OSError())  # a failure behind the end copies, too
    assert "maya_000000005.safetensors" in there(f"{place}/job/maya")


def test_a_place_that_cannot_be_read_ends_the_run_before_it_begins(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object) -> bytes:
        raise PermissionError("Access Denied")

    monkeypatch.setattr(MemoryFileSystem, "cat_file", refuses)
    callback = UploadCallback(UploadConfig(type="upload", to=place))
    with pytest.raises(
        RunError, match=rf"{place}/maya cannot be read, .*Access Denied"
    ):
        callback.before_start(tmp_path, "maya", False)


@pytest.mark.parametrize(
    ("to", "told"),
    [
        ("output", "Write s3://BUCKET/FOLDER"),
        ("s3://", "Write s3://BUCKET/FOLDER"),
        ("/mnt/share", "file:///FOLDER"),
        ("s4://bucket", "fsspec does not know s4://"),
        ("dropbox://folder", "needs a package that is not there"),
    ],
)
def test_a_place_that_cannot_be_is_refused_before_the_start(to: str, told: str) -> None:
    with pytest.raises(ValidationError) as error:
        UploadConfig(type="upload", to=to)
    assert told in str(error.value)


@pytest.mark.slow
@KINDS
def test_a_bare_machine_goes_on_from_the_copies_to_the_same_bytes(
    place: str, trainer: Callable, make_pictures, write_job, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pictures = make_pictures(tmp_path / "photos", "a", "b")

    def run(steps: int, **more: object) -> Path:
        run_job(
            write_job(
                trainer(
                    pictures,
                    train={"steps": steps},
                    save={"dtype": "float32", "save_every": 2},
                    callbacks=[{"type": "upload", "to": place}],
                    **more,
                )
            )
        )
        return tmp_path / "output" / "job"

    folder = run(3)
    (tmp_path / "output").rename(tmp_path / "first_machine")
    assert "job.safetensors" in there(f"{place}/job")
    folder = run(6)
    assert [row["step"] for row in lines(folder / "metrics.jsonl")] == [
        1,
        2,
        3,
        4,
        5,
        6,
    ]
    weights = (folder / "job.safetensors").read_bytes()
    shutil.rmtree(folder)
    folder = run(6, resume="never")
    assert [row["step"] for row in lines(folder / "metrics.jsonl")] == [
        1,
        2,
        3,
        4,
        5,
        6,
    ]
    # but for the metadata
    assert len((folder / "job.safetensors").read_bytes()) == len(weights)
