"""Jobs on streams of shards: what they leave, that they go on to the same bytes, and
what ends them."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.extensions.from_scratch.conftest import Planned, write_shards
from tests.extensions.from_scratch.test_vae_process import GAN
from tests.processes import until
from tests.running import lines
from tests.toolkit.data.shard_server import png, serving, write_shard, write_tar
from toolkit.errors import RunError, UserError

TO_RESUME = {
    **GAN,
    "save": {"save_every": 2},
    "train": {"steps": 4, "ema_config": {"use_ema": True}},
}


def assert_same_bytes(whole: Path, again: Path) -> None:
    """Of two folders of runs with four steps: states and final files."""
    files = [
        f"state/step_000000004/{name}.safetensors"
        for name in ("weights", "ema", "optimizer")
    ]
    files += sorted(f"job/{file.name}" for file in (whole / "job").iterdir())
    assert len(files) > 4
    assert [
        file
        for file in files
        if (whole / file).read_bytes() != (again / file).read_bytes()
    ] == []


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "shards")


@pytest.fixture
def streamed(vae_job: Callable[..., dict]) -> Callable[..., dict]:
    """A section of `vae_trainer` on these shards; `webdataset` are keys of its
    entry."""

    def section(
        url: object,
        webdataset: dict | None = None,
        num_workers: int = 0,
        **changes: object,
    ) -> dict:
        entry = {
            "url": str(url),
            "resolution": 32,
            "num_workers": num_workers,
            "webdataset": webdataset or {},
        }
        return vae_job(Path(), **{"datasets": [entry], **changes})

    return section


@pytest.mark.slow
def test_what_a_run_on_a_stream_leaves(
    start, streamed, make_pictures, shards: Path, tmp_path: Path
) -> None:
    make_pictures(tmp_path / "held", "a", "b", size=(40, 32), captions=False)
    folder = start(
        streamed(
            f"{shards}/*.tar",
            {"window": 4},
            **GAN,
            save={"save_every": 4},
            sample={"sample_every": 4, "count": 3, "format": "png"},
            validation={"folder_path": str(tmp_path / "held"), "every": 4},
            train={"steps": 9},
        )
    )
    metrics = lines(folder / "metrics.jsonl")
    assert [line["step"] for line in metrics] == list(range(1, 10))
    assert [line["epoch"] for line in metrics][:8] == [0] * 8 and metrics[8][
        "epoch"
    ] == 1, "15 images in twos"
    assert metrics[7]["samples"] == 15, "the last batch of an epoch is short"
    assert (folder / "job_000000004").is_dir() and len(
        lines(folder / "validation.jsonl")
    ) == 4
    drawn = sorted((folder / "samples").iterdir())
    assert len(drawn) == 8 and {Image.open(path).size for path in drawn} == {
        (2 * 34, 30)
    }, "the held-out images"
    config = json.loads((folder / "job" / "config.json").read_text())
    assert config["scaling_factor"] > 0 and "shift_factor" in config


@pytest.mark.slow
def test_a_run_on_a_stream_goes_on_to_the_same_bytes(
    start, streamed, shards: Path, tmp_path: Path
) -> None:
    url = f"{shards}/*.tar"
    whole = start(streamed(url, {"window": 4}, **TO_RESUME)).rename(tmp_path / "whole")
    start(
        streamed(
            url,
            {"window": 4},
            **{**TO_RESUME, "train": {**TO_RESUME["train"], "steps": 2}},
        )
    )
    shards.rename(tmp_path / "moved")  # and read by threads
    again = start(
        streamed(
            tmp_path / "moved" / "*.tar", {"window": 4}, num_workers=2, **TO_RESUME
        )
    )
    assert_same_bytes(whole, again)


@pytest.mark.slow
def test_a_run_that_waits_for_a_server_is_stopped_at_once_with_a_state(
    start_py, write_job, streamed, tmp_path: Path
) -> None:
    write_shard(tmp_path / "shards" / "0.tar", 400, size=(32, 32))
    with serving(tmp_path / "shards") as server:
        server.silent_after = (
            790_000  # of 820,000, behind the samples that are measured
        )
        job = write_job(
            streamed(
                f"{server.address}/0.tar",
                {"window": 8},
                train={"steps": 500},
                save={"save_every": 0},
            )
        )
        process = start_py(job)
        metrics, done = tmp_path / "output" / "job" / "metrics.jsonl", -1
        while (
            not metrics.exists()
            or done < len(metrics.read_text().splitlines())
            or done < 1
        ):
            done = len(metrics.read_text().splitlines()) if metrics.exists() else -1
            assert process.poll() is None
            time.sleep(1)
        process.send(signal.SIGTERM)
        states = tmp_path / "output" / "job" / "state"
        until(lambda: [*states.glob("step_*/MANIFEST.json")], 20)
        server.released.set()
        assert process.wait(60) == 75
    (state,) = (tmp_path / "output" / "job" / "state").iterdir()
    assert state.name == f"step_{done:09d}"


@pytest.mark.slow
def test_a_resume_opens_the_shards_it_stands_in_at_their_bytes(
    start, streamed, tmp_path: Path, said: list[str]
) -> None:
    """Beside the one whose first samples every start reads."""
    for number in range(4):
        write_shard(tmp_path / "shards" / f"{number}.tar", 300, size=(32, 32))
    with serving(tmp_path / "shards") as server:
        section = streamed(
            f"{server.address}/{{0..3}}.tar",
            {"window": 8},
            train={"steps": 36, "batch_size": 10},
        )
        start({**section, "train": {**section["train"], "steps": 35}}, name="job")
        opened = [path for path, _ in server.requests]
        server.requests.clear()
        start(section, name="job")
        assert any("resuming from" in line for line in said)
        again = server.requests
    assert opened[:2] == ["/0.tar"] * 2, "looked at, the measured images"
    assert sorted(opened[2:]) == [f"/{number}.tar" for number in range(4)], (
        "side by side"
    )
    assert [path for path, _ in again] == opened
    for _, headers in again[2:]:  # 350 samples are 87 of each
        (start_byte,) = re.findall(r"bytes=(\d+)-", headers["Range"])
        assert int(start_byte) > 70 * 1024


@pytest.mark.slow
def test_another_length_than_was_given_is_told(
    start, streamed, tmp_path: Path, said: list[str]
) -> None:
    write_shard(tmp_path / "0.tar", 20, size=(32, 32))
    start(streamed(tmp_path / "0.tar", {"samples": 19}, train={"steps": 11}))
    told = "19 samples are given, and an epoch of the stream has 20. Correct it"
    assert any(told in line for line in said)


def damaged(path: Path) -> None:
    """The second half of a shard is missing."""
    whole = write_shard(path, 20, size=(32, 32)).read_bytes()
    path.write_bytes(whole[: len(whole) // 2 + 300])


@pytest.mark.slow
def test_a_shard_that_fails_loses_no_step(
    start, streamed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was trained is saved; once the shard is fetched anew, the run goes on to the
    same bytes."""
    monkeypatch.setattr("extensions.from_scratch.vae_process.MEASURED_IMAGES", 4)
    changes = {"save": {"save_every": 0}, "train": {"steps": 9}}
    write_shard(tmp_path / "0.tar", 20, size=(32, 32))
    whole = start(streamed(tmp_path / "0.tar", {"window": 4}, **changes)).rename(
        tmp_path / "whole"
    )
    damaged(tmp_path / "0.tar")
    with pytest.raises(RunError, match="is damaged behind sample"):
        start(streamed(tmp_path / "0.tar", {"window": 4}, **changes))
    folder = tmp_path / "output" / "job"
    (state,) = (folder / "state").iterdir()
    trained = len(lines(folder / "metrics.jsonl"))
    assert 0 < trained < 9 and state.name == f"step_{trained:09d}"
    status = json.loads((folder / "run.json").read_text())
    assert (
        status["status"] == "failed" and "is damaged behind sample" in status["error"]
    )
    write_shard(tmp_path / "0.tar", 20, size=(32, 32))
    again = start(streamed(tmp_path / "0.tar", {"window": 4}, **changes))
    name = "state/step_000000009/weights.safetensors"
    assert (whole / name).read_bytes() == (again / name).read_bytes()


def without_images(path: Path) -> None:
    write_tar(path, {"0.gif": b"", "0.txt": b"a"})


def with_one_damaged_image(path: Path) -> None:
    image = png("red", (32, 32))
    files = {
        f"{n:02}.png": image[:60] + b"????" + image[64:] if n == 12 else image
        for n in range(20)
    }
    write_tar(
        path,
        dict(
            sorted(
                {
                    **files,
                    **{f"{n:02}.json": b'{"prompt": ""}' for n in range(20)},
                }.items()
            )
        ),
    )


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            damaged,
            RunError,
            r"0\.tar: is damaged behind sample \d+ of it \(.*\)\. Download or rebuild it, or remove it",
        ),
        (
            with_one_damaged_image,
            RunError,
            r"0\.tar/12: its image .*\. Repair it, or remove it from its shard\.$",
        ),
        (
            without_images,
            UserError,
            r"it has no jpg or jpeg or png or webp, only gif, txt",
        ),
        (
            lambda path: None,
            UserError,
            r"^datasets\[0\]\.url: .*0\.tar: no such file",
        ),
    ],
)
def test_what_ends_a_run_is_one_line(
    start,
    streamed,
    tmp_path: Path,
    make: Callable,
    error: type,
    message: str,
) -> None:
    make(tmp_path / "0.tar")
    with pytest.raises(error, match=message) as caught:
        start(streamed(tmp_path / "0.tar", train={"steps": 20}))
    assert "\n" not in str(caught.value)


def test_a_dry_run_names_the_shards(planned: Planned) -> None:
    shards = planned.folder / "shards"
    for line in (
        f"stream of 3 shards: {shards}/0.tar to {shards}/2.tar; 15 samples as given",
        "15 samples per epoch in 8 steps; 2 epochs = 16 steps",
    ):
        assert line in planned.printed, line


def test_a_server_that_refuses_is_one_line_without_the_token(
    start, streamed, shards: Path, tmp_path: Path
) -> None:
    with serving(shards) as server, pytest.raises(UserError) as refused:
        server.failures = [403]
        start(streamed(f"{server.address}/0.tar", {"token": "a-secret-token"}))
    assert str(refused.value).endswith(
        "the server answers 403 Forbidden. The token that was sent may not read it."
    )
    assert "a-secret-token" not in str(refused.value)
    assert not (tmp_path / "output" / "job").exists()


@pytest.mark.slow
def test_small_images_are_enlarged_to_what_the_discriminator_judges(
    start, streamed, tmp_path: Path
) -> None:
    """Nobody knows the sizes before, and the run is not to end at one of them."""
    write_shard(tmp_path / "0.tar", 12, size=(40, 10))
    start(
        streamed(
            tmp_path / "0.tar",
            discriminator={"channels": 4, "layers": 2},
            train={"steps": 2},
        )
    )


def test_a_resolution_too_small_for_the_discriminator_is_told_first(
    start, streamed, shards: Path
) -> None:
    with pytest.raises(
        UserError,
        match=r"^discriminator\.layers: 5 of them judge patches of at least 96 pixels",
    ):
        start(streamed(f"{shards}/*.tar", discriminator={"layers": 5}))
