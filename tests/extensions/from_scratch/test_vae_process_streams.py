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
from safetensors.torch import load_file

from tests.extensions.from_scratch.test_vae_process import GAN, assert_same_bytes, lines
from tests.toolkit.data.shard_server import png, serving, write_shard, write_tar
from toolkit.errors import ConfigErrors, RunError, UserError

TO_RESUME = {
    **GAN,
    "save": {"save_every": 2},
    "train": {"steps": 4, "ema_config": {"use_ema": True}},
}


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Three shards of five images, by two sizes."""
    for number in range(3):
        write_shard(
            tmp_path / "shards" / f"{number}.tar",
            5,
            size=((40, 32), (32, 40))[number % 2],
        )
    return tmp_path / "shards"


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
        deadline = time.monotonic() + 20
        while not list(
            (tmp_path / "output" / "job" / "state").glob("step_*/MANIFEST.json")
        ):
            assert time.monotonic() < deadline
            time.sleep(0.05)
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
def test_a_connection_that_breaks_changes_nothing(
    start, streamed, shards: Path, tmp_path: Path
) -> None:
    whole = start(streamed(f"{shards}/*.tar")).rename(tmp_path / "whole")
    with serving(shards) as server:
        server.cut = 12_000
        again = start(
            streamed(f"{server.address}/{{0..2}}.tar", {"token": "a-secret-token"})
        )
        assert len(server.requests) > 8
        assert all(
            headers["Authorization"] == "Bearer a-secret-token"
            for _, headers in server.requests
        )
    name = "job/diffusion_pytorch_model.safetensors"
    assert (whole / name).read_bytes() == (again / name).read_bytes()
    written = [
        path
        for path in again.rglob("*")
        if path.is_file() and b"a-secret-token" in path.read_bytes()
    ]
    assert written == [], "the token"


def test_a_damaged_image_is_left_out_and_counted(
    start, streamed, tmp_path: Path, said: list[str]
) -> None:
    with_one_damaged_image(tmp_path / "0.tar")
    folder = start(streamed(tmp_path / "0.tar", {"samples": 19}, train={"steps": 11}))
    assert load_file(folder / "job" / "diffusion_pytorch_model.safetensors")
    named = f"{tmp_path}/0.tar/12: left out: its image cannot be read"
    assert sum(line.startswith(named) for line in said) == 1, (
        "in each epoch, and named once"
    )
    assert any(
        re.match(
            r"stream: left out \d of \d+ samples\. The last: .*/12: its image", line
        )
        for line in said
    )
    assert any(
        "19 samples are given, and an epoch of the stream has 20. Correct it" in line
        for line in said
    )


def damaged(path: Path) -> None:
    """The second half of a shard is missing."""
    whole = write_shard(path, 20, size=(32, 32)).read_bytes()
    path.write_bytes(whole[: len(whole) // 2 + 300])


@pytest.mark.slow
def test_a_shard_that_fails_loses_no_step(
    start, streamed, tmp_path: Path, said: list[str]
) -> None:
    """What was trained is saved; once the shard is fetched anew, the run goes on to the
    same bytes."""
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
    ("make", "webdataset", "error", "message"),
    [
        (
            damaged,
            {},
            RunError,
            r"0\.tar: is damaged behind sample \d+ of it \(.*\); 1 of 1 shards cannot be read, at most",
        ),
        (
            with_one_damaged_image,
            {"max_unreadable": 0},
            RunError,
            r"1 of \d+ samples cannot be read, at most 0%",
        ),
        (
            without_images,
            {},
            UserError,
            r"it has no jpg or jpeg or png or webp, only gif, txt",
        ),
        (
            lambda path: None,
            {},
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
    webdataset: dict,
    error: type,
    message: str,
) -> None:
    make(tmp_path / "0.tar")
    with pytest.raises(error, match=message) as caught:
        start(streamed(tmp_path / "0.tar", webdataset, train={"steps": 20}))
    assert "\n" not in str(caught.value)


def test_a_dry_run_names_the_shards_without_torch_and_refusals_are_one_line(
    run_py, write_job, streamed, shards: Path, tmp_path: Path
) -> None:
    (tmp_path / "torch.py").write_text("raise RuntimeError('torch was imported')")
    job = write_job(streamed(f"{shards}/*.tar", {"samples": 15}, train={"epochs": 2}))
    result = run_py(job, "--dry-run", env={"PYTHONPATH": str(tmp_path)})
    assert result.returncode == 0, result.stderr
    assert (
        f"stream of 3 shards: {shards}/0.tar to {shards}/2.tar; 15 samples as given"
        in result.stdout
    )
    assert "15 samples per epoch in 8 steps; 2 epochs = 16 steps" in (result.stdout)
    job = write_job(streamed("hf://datasets/a/b/*.tar"))
    result = run_py(job, "--dry-run", env={"HF_HUB_OFFLINE": "1"})
    assert result.returncode == 2 and len(result.stderr.strip().splitlines()) == 1, (
        result.stderr
    )
    assert (
        "datasets[0].url: hf://datasets/a/b/*.tar: the hub cannot be asked"
        in result.stderr
    )
    with serving(shards) as server:
        server.failures = [403]
        result = run_py(
            write_job(streamed(f"{server.address}/0.tar", {"token": "a-secret-token"}))
        )
    assert result.returncode == 2 and result.stderr.strip().splitlines()[-1].endswith(
        "the server answers 403 Forbidden. The token that was sent may not read it."
    )
    assert (
        "a-secret-token" not in result.stdout + result.stderr
        and not (tmp_path / "output" / "job").exists()
    )


@pytest.mark.slow
def test_epochs_of_unknown_length_are_read_through(
    start, streamed, shards: Path, said: list[str]
) -> None:
    url, train = f"{shards}/*.tar", {"epochs": 2, "lr_scheduler": "constant"}
    folder = start(streamed(url, train=train, save={"save_every_n_epochs": 1}))
    assert "read through 2 times: how many steps that are is not known" in said[0]
    assert [line["epoch"] for line in lines(folder / "metrics.jsonl")] == [0] * 8 + [
        1
    ] * 8
    status = json.loads((folder / "run.json").read_text())
    assert (
        status["status"] == "finished"
        and status["steps"] is None
        and status["step"] == 16
    )
    assert (folder / "job").is_dir() and (folder / "job_000000008").is_dir()
    start(streamed(url, train=train, save={"save_every_n_epochs": 1}))
    assert any(line.endswith("is complete at step 16: nothing to do.") for line in said)
    start(streamed(url, train={**train, "epochs": 3}))
    assert lines(folder / "metrics.jsonl")[-1]["step"] == 24
    with pytest.raises(
        ConfigErrors,
        match=r"optimizers\.vae\.lr_scheduler: 'cosine' needs the number of steps",
    ):
        start(
            streamed(url, train=train, optimizers={"vae": {"lr_scheduler": "cosine"}})
        )


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


@pytest.mark.slow
@pytest.mark.parametrize("readers", [1, 2])
def test_two_ranks_train_on_a_stream_what_one_trains(
    run_ranks, write_job, streamed, shards: Path, tmp_path: Path, readers: int
) -> None:
    found = []
    for processes in (1, 2):
        section = streamed(
            f"{shards}/*.tar",
            {"window": 4, "readers": readers},
            1,
            training_folder=f"of_{processes}",
            **GAN,
        )
        section["train"] |= {"steps": 6, "batch_size": 2 + readers % 2}
        fixed = {"adaptive_weight": False}  # which is that of each micro-batch
        section["discriminator"] = section["discriminator"] | fixed
        run_ranks(processes, write_job(section))
        found.append(lines(tmp_path / f"of_{processes}" / "job" / "metrics.jsonl"))
    assert [line["samples"] for line in found[0]] == [
        line["samples"] for line in found[1]
    ]
    for one, two in zip(*found, strict=True):
        for name in ("loss/vae", "loss_l1", "loss_kl", "grad_norm/vae"):
            assert two[name] == pytest.approx(one[name], rel=1e-4), (name, one["step"])
