"""Against a small hub on this machine; as processes of their own, faults/test_models.py
asks it."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import WeakFileLock, are_progress_bars_disabled

from tests.conftest import heard
from tests.model_folders import COMMIT, NO_WEIGHTS, part_files, write_cached
from tests.processes import interrupting
from tests.quantized import SDNQ
from tests.small_hub import Hub, small_hub
from toolkit.config.sections.model_files import repository_folder
from toolkit.errors import UserError
from toolkit.files import now
from toolkit.files.safetensors_io import framed
from toolkit.models import hub
from toolkit.models.hub import (
    KEY,
    download,
    download_anything,
    download_encoder,
    download_file,
    fetch_index,
)
from toolkit.models.qwen_image.family import FAMILY
from toolkit.system import signals

NAME = "someone/model"
FILES = {
    "model_index.json": b'{"_class_name": "QwenImageEditPlusPipeline"}',
    **{f"{part}/{file}": b"{}" for part in FAMILY.parts for file in part_files(part)},
    **{f"{part}/model.safetensors": NO_WEIGHTS for part in FAMILY.weight_parts[1:]},
    "transformer/diffusion_pytorch_model.safetensors": framed(
        json.dumps({"__metadata__": {"filling": "x" * 7000}})
    ),
    "preview.png": b"never wanted",
}


@pytest.fixture
def server() -> Iterator[Hub]:
    with small_hub(FILES, NAME) as state:
        yield state


@pytest.fixture
def ask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, str]]:
    """Calls `what` with its arguments under what the client library reads of
    HF_ENDPOINT and HF_HUB_OFFLINE; returns the path or the error, and what was said
    last, as `path`, `error` and `note`."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))

    def call(
        revision: str | None = None, name: str = NAME, what: Callable[..., Path] = download,
        url: str = "http://127.0.0.1:9", offline: bool = False, **more: object,
    ) -> dict[str, str]:  # fmt: skip
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(
            constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            url + "/{repo_id}/resolve/{revision}/{filename}",
        )
        arguments = (
            (name, "model.key")
            if what in (download_encoder, download_file)
            else (name, revision)
        )
        with heard() as said:
            try:
                found = {"path": str(what(*arguments, **more))}
            except UserError as error:
                found = {"error": str(error)}
        return found | ({"note": said[-1]} if said else {})

    return call


def test_offline_without_the_model_names_the_line_that_downloads_by_hand(ask) -> None:
    said = ask(offline=True)
    assert "path" not in said
    assert (
        f"hf download {NAME}" in said["error"] and "model.name_or_path" in said["error"]
    )


@pytest.mark.parametrize("revision", [None, COMMIT])
def test_a_snapshot_that_is_here_is_used_offline(
    ask, tmp_path: Path, revision: str | None
) -> None:
    snapshot = write_cached(tmp_path / "hf", NAME)
    assert ask(revision, offline=True) == {"path": str(snapshot)}


def test_a_snapshot_that_is_here_asks_no_hub(ask, server: Hub, tmp_path: Path) -> None:
    write_cached(tmp_path / "hf", NAME)
    assert "path" in ask(url=server.url)
    assert server.asked == []


def test_a_snapshot_without_a_part_is_completed(
    ask, server: Hub, tmp_path: Path
) -> None:
    write_cached(tmp_path / "hf", NAME, without="vae")
    folder = Path(ask(url=server.url)["path"])
    assert (folder / "vae" / "config.json").is_file()
    assert not any("transformer/config" in path for path in server.asked)


def test_a_snapshot_that_is_all_that_the_hub_has_asks_no_hub(
    ask, server: Hub, tmp_path: Path
) -> None:
    snapshot = write_cached(tmp_path / "hf", NAME, without="vae", listed=True)
    assert ask(url=server.url) == {"path": str(snapshot)}
    assert server.asked == []


def test_a_revision_that_is_not_here_is_not_replaced_by_another(
    ask, tmp_path: Path
) -> None:
    write_cached(tmp_path / "hf", NAME)
    assert "error" in ask("b" * 40, offline=True)


def test_an_unknown_revision_is_named(ask, server: Hub) -> None:
    server.refusal = (404, "RevisionNotFound")
    assert (
        ask("v9", url=server.url)["error"]
        == f"model.name_or_path: {NAME}: has no revision 'v9'."
    )


def test_a_download_says_size_and_target_and_brings_what_is_needed(
    ask, server: Hub, tmp_path: Path
) -> None:
    said = ask(url=server.url)
    assert said["note"].startswith(
        f"downloading {NAME}: 0.0 GB to {tmp_path / 'hf' / 'hub'} ("
    )
    folder = Path(said["path"])
    assert {
        str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()
    } == set(FILES) - {"preview.png"}
    assert (
        folder / "transformer/diffusion_pytorch_model.safetensors"
    ).read_bytes() == FILES["transformer/diffusion_pytorch_model.safetensors"]


def test_weights_that_a_file_gives_are_not_brought_until_they_are_needed(
    ask, server: Hub
) -> None:
    folder = Path(ask(given=("transformer", "vae"), url=server.url)["path"])
    brought = {str(path.relative_to(folder)) for path in folder.rglob("*.safetensors")}
    assert (
        brought == {"text_encoder/model.safetensors"}
        and (folder / "transformer/config.json").is_file()
    )
    server.asked.clear()
    assert ask(given=("transformer", "vae"), url=server.url) == {"path": str(folder)}
    assert server.asked == []
    ask(url=server.url)
    assert (folder / "transformer/diffusion_pytorch_model.safetensors").is_file()


@pytest.mark.slow
def test_a_download_that_broke_off_is_finished_by_the_next_run(
    ask, server: Hub
) -> None:
    server.break_after = 3000
    assert "error" in ask(url=server.url)
    server.break_after = None
    server.asked.clear()
    folder = Path(ask(url=server.url)["path"])
    assert (
        folder / "transformer/diffusion_pytorch_model.safetensors"
    ).read_bytes() == FILES["transformer/diffusion_pytorch_model.safetensors"]
    # Whole files are not fetched again.
    assert {path.rsplit("/", 1)[1] for path in server.asked if "/resolve/" in path} == {
        "diffusion_pytorch_model.safetensors"
    }


def test_too_little_space_is_said_before_the_download(
    said: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    files = [
        SimpleNamespace(rfilename=name, size=10 * 10**9)
        for name in ("transformer/a.safetensors", "preview.png")
    ]
    info = SimpleNamespace(siblings=files)
    monkeypatch.setattr(
        hub, "HfApi", lambda: SimpleNamespace(model_info=lambda *_, **__: info)
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "not there yet"))
    monkeypatch.setattr(hub, "_bring", lambda *_, **__: tmp_path)

    def bring(free: float) -> Path:
        disk = SimpleNamespace(free=free)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: disk)
        return hub._bring_told(NAME, None, KEY, allow_patterns=["transformer/*"])

    with pytest.raises(
        UserError, match=r"needs 10\.0 GB, .* has 10\.1 GB free.*HF_HOME"
    ):
        bring(free=10.1e9)
    assert "10.0 GB" in said[0]
    assert bring(free=10.3e9) == tmp_path


def test_the_index_is_brought_alone_and_then_the_rest(ask, server: Hub) -> None:
    index = Path(ask(what=fetch_index, url=server.url)["path"])
    assert index.read_bytes() == FILES["model_index.json"]
    assert {path.split(COMMIT)[1] for path in server.asked if "/resolve/" in path} == {
        "/model_index.json"
    }
    server.asked.clear()
    assert ask(what=fetch_index, url=server.url) == {"path": str(index)}
    assert server.asked == []
    folder = Path(ask(url=server.url)["path"])
    assert {
        str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()
    } == set(FILES) - {"preview.png"}


def test_an_index_that_cannot_be_had_says_why(ask) -> None:
    ask = partial(ask, what=fetch_index)
    with small_hub({"lora.safetensors": b"weights"}, NAME) as server:
        assert "holds no model_index.json" in ask(url=server.url)["error"]
        assert not any("lora.safetensors" in path for path in server.asked)
        server.refusal = 404, "RepoNotFound"
        said = ask("v1", url=server.url)["error"]
        assert (
            "the hub has no such model" in said
            and f"(working directory: {Path.cwd()})" in said
        )
    assert "the hub cannot be used" in ask("v1", offline=True)["error"]


@pytest.fixture
def ask_for_file(ask: Callable[..., dict[str, str]]) -> Callable[..., dict[str, str]]:
    """Calls `download_file` as `ask` calls `download`."""
    return lambda file, **options: ask(
        name=f"{NAME}/{file}", what=download_file, **options
    )


def test_one_file_is_brought_once(server: Hub, ask_for_file) -> None:
    first = ask_for_file("transformer/config.json", url=server.url)
    assert Path(first["path"]).read_bytes() == FILES["transformer/config.json"]
    assert first["note"] == "downloading transformer/config.json of someone/model"
    assert not any("preview" in path for path in server.asked)
    server.asked.clear()
    assert ask_for_file("transformer/config.json", url=server.url) == {
        "path": first["path"]
    }
    assert server.asked == []


def test_a_file_that_cannot_be_brought_says_why(server: Hub, ask_for_file) -> None:
    absent = ask_for_file("none.safetensors", url=server.url)
    assert (
        absent["error"]
        == "model.key: someone/model/none.safetensors: someone/model has no such file."
    )
    server.refusal = 401, "RepoNotFound"
    assert (
        "the hub has no such repository, or it is private"
        in ask_for_file("a.bin", url=server.url)["error"]
    )
    offline = ask_for_file("a.bin", url=server.url, offline=True)
    assert "`hf download someone/model a.bin`" in offline["error"]


# ---------------------------------------------------------------- text encoders


ENCODER = {
    "config.json": b"{}",
    "model.safetensors": NO_WEIGHTS,
    "tokenizer.json": b"{}",
    "pytorch_model.bin": b"never wanted",
    "onnx/model.onnx": b"never wanted",
}


def test_a_text_encoder_is_brought_once_without_other_formats_or_named(ask) -> None:
    ask = partial(ask, what=download_encoder)
    refused = ask(offline=True)["error"]
    assert (
        refused.startswith(f"model.key: {NAME}: not complete")
        and "hf download" in refused
    )
    with small_hub(ENCODER, NAME) as server:
        folder = Path(ask(url=server.url)["path"])
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert ask(offline=True) == {"path": str(folder)}


def test_a_file_is_no_text_encoder(tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"embedder: .*photo\.jpg: neither a local folder nor a model id of the hub",
    ):
        download_encoder(str(tmp_path / "photo.jpg"), "embedder")


QUANTIZED_CONFIG = json.dumps({"quantization_config": SDNQ}).encode()


def test_quantized_weights_are_refused_before_they_are_brought(ask) -> None:
    with small_hub(
        {**FILES, "transformer/config.json": QUANTIZED_CONFIG}, NAME
    ) as server:
        said = ask(url=server.url)
        assert (
            "the transformer is quantized by sdnq (uint4), which is not read. "
            in said["error"]
        )
        assert said["error"].startswith("model.name_or_path: ") and "note" not in said
        assert not any("safetensors" in path for path in server.asked)
        assert "path" in ask(url=server.url, given=("transformer",))


def test_a_quantized_text_encoder_is_refused_before_it_is_brought(ask) -> None:
    with small_hub({**ENCODER, "config.json": QUANTIZED_CONFIG}, NAME) as server:
        said = ask(url=server.url, what=download_encoder)
        assert (
            said["error"].startswith("model.key: ")
            and "the model is quantized by sdnq (uint4)" in said["error"]
        )
        assert not any("safetensors" in path for path in server.asked)
        assert "path" in ask(url=server.url, what=download_encoder, weights=False)


class Listening:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.all: list[now.Told] = []

    def tell(self, *told) -> None:
        self.all.append(told)

    def count(self, phase: str, units: float) -> None: ...

    @property
    def told(self) -> now.Told:
        return now.NOTHING


def test_whoever_listens_is_told_how_far_a_download_is(
    ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files that grow say it; the bars of the client library would tear the
    line."""
    monkeypatch.setattr(hub, "LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    weights = framed(json.dumps({"__metadata__": {"filling": "x" * 100_000}}))
    files = FILES | {"transformer/diffusion_pytorch_model.safetensors": weights}
    listener, wanted = (
        Listening(),
        sum(len(data) for name, data in files.items() if name != "preview.png") / 1e3,
    )
    with small_hub(files, NAME) as server, now.told_to(listener):
        server.opened.clear()

        def tell(*told) -> None:
            listener.all.append(told)
            if told[1] > 40:  # half of the weights, but for what is not written yet
                server.opened.set()

        listener.tell = tell
        assert "path" in ask(url=server.url)
    assert {told[::3] for told in listener.all} == {("downloading", "kB")}
    assert {told[2] for told in listener.all} == {round(wanted, 3)}
    shares = [told[1] for told in listener.all]
    assert shares == sorted(shares) and shares[-1] <= wanted
    assert are_progress_bars_disabled()


def test_where_nobody_listens_the_bars_of_the_client_library_are_shown(
    ask, server: Hub
) -> None:
    assert "path" in ask(url=server.url) and not are_progress_bars_disabled()


@pytest.mark.slow
def test_a_download_that_is_cut_off_goes_on_as_long_as_files_arrive(
    ask, server: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    server.break_after = 3000
    server.breaks = 6  # what the client library tries by itself
    folder = Path(ask(url=server.url)["path"])
    weights = "transformer/diffusion_pytorch_model.safetensors"
    assert (folder / weights).read_bytes() == FILES[weights]
    assert "cut off" in caplog.text and "it goes on" in caplog.text


@pytest.mark.parametrize("within", [nullcontext, signals.defer_signals])
def test_ctrl_c_waits_for_no_file(
    ask, monkeypatch: pytest.MonkeyPatch, within: Callable
) -> None:
    files = ENCODER | {"model.safetensors": b"x" * 100_000}
    with small_hub(files, NAME) as server, interrupting() as hold, within():
        monkeypatch.setattr(server.opened, "wait", hold)
        ask(url=server.url, what=download_encoder)


def test_a_disk_that_fills_up_meanwhile_is_told_once(
    ask, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hub, "LOOK_EVERY_S", 0.01)
    files = ENCODER | {"model.safetensors": b"x" * 100_000}
    room, looks = [10**12], []
    monkeypatch.setattr(hub, "free_space", lambda _: room[0])
    with small_hub(files, NAME) as server, now.told_to(listener := Listening()):
        server.opened.clear()

        def tell(*told) -> None:
            looks.append(told)
            room[0] = 0
            if len(looks) > 2:
                server.opened.set()

        listener.tell = tell
        assert "path" in ask(url=server.url, what=download_encoder)
    assert caplog.text.count("the room runs out while it arrives: someone/model") == 1


WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
SUM = sha256(FILES[WEIGHTS]).hexdigest()


@pytest.mark.parametrize(
    ("left", "ranges", "said"),
    [
        ({f"{SUM}.part": 3000}, ["bytes=3000-"], "3 kB of 7.05 kB are there"),
        ({f"{SUM}.12345678.incomplete": 3000}, ["bytes=3000-"], "it goes on with them"),
        ({f"{SUM}.12345678.incomplete": 2, f"{SUM}.part": 9}, ["bytes=9-"], ""),
        ({f"{SUM}.part": len(FILES[WEIGHTS])}, [], "it goes on with them"),
        ({f"{SUM}.part": -3000}, ["bytes=3000-"], "the part was damaged"),
        ({f"{SUM}.part": 9000}, [], "the part was damaged"),
        ({f"{SUM}.part": 0}, [], ""),
        ({f"{'a' * 64}.part": 3000}, [], ""),
    ],
    ids=str,
)
def test_a_file_goes_on_from_the_part_that_is_there(
    ask,
    server: Hub,
    caplog: pytest.LogCaptureFixture,
    left: dict[str, int],
    ranges: list[str],
    said: str,
) -> None:
    """Its bytes; below zero: of other ones; and of a file that has left the hub."""
    ask(offline=True)  # sets the cache
    caplog.set_level("INFO")
    blobs = repository_folder(NAME) / "blobs"
    blobs.mkdir(parents=True)
    for name, size in left.items():
        part = FILES[WEIGHTS] + b"more" * 1000 if size >= 0 else b"x" * 3000
        (blobs / name).write_bytes(part[: abs(size)])
    folder = Path(ask(url=server.url)["path"])
    assert (folder / WEIGHTS).read_bytes() == FILES[WEIGHTS]
    assert server.ranges == ranges and said in caplog.text
    assert not [*blobs.glob("*.part"), *blobs.glob("*.incomplete")]


def test_the_part_of_a_file_that_is_not_needed_now_waits(ask, server: Hub) -> None:
    ask(offline=True)  # sets the cache
    blobs = repository_folder(NAME) / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{SUM}.part").write_bytes(FILES[WEIGHTS][:3000])
    assert "path" in ask(given=("transformer", "vae"), url=server.url)
    assert (blobs / f"{SUM}.part").is_file() and server.ranges == []
    assert "path" in ask(url=server.url) and server.ranges == ["bytes=3000-"]


@pytest.mark.slow
def test_a_start_after_a_cut_asks_for_what_is_missing_of_the_file(
    ask, server: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client library begins it again, and removes what it has at each failure."""
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100)
    monkeypatch.setattr(hub, "LOOK_EVERY_S", 0.01)
    server.break_after = 4000
    assert "cut off" in ask(url=server.url)["error"]
    blobs = repository_folder(NAME) / "blobs"
    part = blobs / f"{SUM}.part"
    assert part.read_bytes() == FILES[WEIGHTS][:4000]
    server.break_after = None
    server.ranges.clear()
    folder = Path(ask(url=server.url)["path"])
    assert (folder / WEIGHTS).read_bytes() == FILES[WEIGHTS]
    assert server.ranges == ["bytes=4000-"] and not part.exists()


def test_parts_that_a_killed_download_has_left_make_room(
    ask, server: Hub, tmp_path: Path
) -> None:
    """Not those of a file that another process is bringing."""
    monkey = ask(offline=True)  # sets the cache
    assert "error" in monkey
    blobs = repository_folder(NAME) / "blobs"
    blobs.mkdir(parents=True)
    left, used = (blobs / f"{letter * 40}.12345678.incomplete" for letter in "ab")
    left.write_bytes(b"x"), used.write_bytes(b"x")
    locks = tmp_path / "hf" / "hub" / ".locks" / repository_folder(NAME).name
    locks.mkdir(parents=True)
    with WeakFileLock(locks / f"{'b' * 40}.lock"):
        assert "path" in ask(url=server.url)
    assert not left.exists() and used.exists()


@pytest.mark.parametrize(
    ("files", "name", "brought"),
    [
        (FILES, NAME, "model_index.json"),
        (ENCODER, NAME, "model.safetensors"),
        ({"a.safetensors": b"x", "README.md": b"x"}, NAME, ""),
        ({"vae/a.safetensors": b"x"}, f"{NAME}/vae/a.safetensors", ""),
    ],
    ids=["model", "encoder", "lora", "file"],
)
def test_whatever_the_hub_has_under_a_name_is_brought(
    ask, files: dict[str, bytes], name: str, brought: str
) -> None:
    with small_hub(files, NAME) as server:
        path = Path(
            ask(url=server.url, name=name, what=download_anything, key="model")["path"]
        )
    assert (path / brought).is_file() and "README" not in str(path)
