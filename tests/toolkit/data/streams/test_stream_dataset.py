"""A stream as the dataset of a job: captions, sizes, what is known before training,
what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import pytest

from tests.toolkit.data.shard_server import png, serving, write_shard, write_tar
from toolkit.config.sections.trainer import ImageTrainingSection
from toolkit.contracts.data import Size
from toolkit.data.scan.items import bucket_for
from toolkit.data.streams.stream_dataset import StreamDataset
from toolkit.errors import UserError
from toolkit.files.redact import redact_text

Make = Callable[..., StreamDataset]
ONE = {"0.png": png(), "0.txt": b"running"}


def of(url: object, **settings: Any) -> StreamDataset | None:
    section = {"type": "any", "datasets": [{"url": url, **settings}]}
    return StreamDataset.of(ImageTrainingSection.model_validate(section), 8)


@pytest.mark.parametrize(
    ("settings", "caption"),
    [
        ({}, "running"),
        ({"trigger": "tok"}, "tok running"),
        (
            {"caption_prefix": "a [trigger] girl", "trigger": "tok"},
            "a tok girl. running",
        ),
        ({"trigger_word": "own", "trigger": "tok"}, "own running"),
    ],
)
def test_captions_get_prefix_and_trigger_as_those_of_a_folder(
    make_stream: Make, settings: dict, caption: str
) -> None:
    stream = make_stream(ONE, **settings)
    assert stream.looked_at[0].caption == caption
    assert next(stream.reader(3, 1)(None))[0].caption == caption
    assert stream.sample(stream.looked_at[0]).caption == caption


def test_an_empty_caption_is_the_default_one(make_stream: Make) -> None:
    stream = make_stream({"0.png": png(), "0.txt": b" "}, default_caption="a girl")
    assert stream.looked_at[0].caption == "a girl"


def test_what_a_plan_says_of_it(tmp_path: Path) -> None:
    for number in range(3):
        write_shard(tmp_path / f"{number}.tar", 4, size=(64, 32))
    stream = of(f"{tmp_path}/{{0..2}}.tar", resolution=32, webdataset={"samples": 12})
    assert stream and stream.micro_batches(5) == 3
    plan = stream.plan()
    assert plan.lines() == (
        f"  stream of 3 shards: {tmp_path}/0.tar to {tmp_path}/2.tar; 12 samples as given\n"
        f"    first sample: {tmp_path}/0.tar/000, 64x32 pixels, caption '0/0'\n"
        "    batches of up to 32x32 pixels"
    )
    assert plan.to_json()["shards"] == 3 and plan.to_json()["samples"] == 12
    assert list(stream.hashes()) == ["1: 0.tar", "2: 1.tar", "3: 2.tar"]


def test_only_the_first_samples_are_read_before_training(tmp_path: Path) -> None:
    write_shard(tmp_path / "0.tar", 400, size=(64, 64))
    write_shard(tmp_path / "1.tar", 400)
    with serving(tmp_path) as server:
        stream = of([f"{server.address}/0.tar", f"{server.address}/1.tar"])
        assert stream and len(stream.looked_at) == 8
        assert [path for path, _ in server.requests] == ["/0.tar"]


def test_the_largest_size_is_no_smaller_than_that_of_any_image(
    make_stream: Make,
) -> None:
    stream = make_stream(ONE, resolution=100, multiple=32)
    sizes = [
        Size(width, height)
        for width in range(40, 400, 7)
        for height in range(100, 160, 7)
    ]
    buckets = [bucket_for(size, 100, 32).bucket for size in sizes]
    assert max(map(prod, buckets)) == prod(stream.largest) == 96 * 96
    assert make_stream(
        ONE, resolution=[{"width": 100, "height": 50}], multiple=8
    ).largest == Size(96, 48)


def test_a_batch_is_no_smaller_than_asked_for(make_stream: Make) -> None:
    stream = replace(make_stream(ONE, resolution=64), least_side=13)
    (item,) = stream.at_own_size([stream.looked_at[0]._replace(size=Size(64, 8))])
    assert item.crop.bucket == Size(64, 16) and item.crop.scaled == Size(128, 16)


@pytest.mark.parametrize(
    ("files", "keys", "message"),
    [
        (ONE, {}, "it has no json, only png, txt"),
        ({}, {}, "0.tar: holds no sample. Download or rebuild it"),
    ],
)
def test_a_wrong_key_is_told_with_those_that_are_there(
    tmp_path: Path, files: dict, keys: dict, message: str
) -> None:
    write_tar(tmp_path / "0.tar", files)
    with pytest.raises(UserError) as caught:
        of(str(tmp_path / "0.tar"), webdataset=keys)
    assert str(caught.value).startswith(
        f"datasets[0].url: {tmp_path}/0.tar"
    ) and message in str(caught.value)


def test_shards_that_are_missing_or_refused_are_told_in_one_line(
    tmp_path: Path,
) -> None:
    with pytest.raises(
        UserError, match=r"^datasets\[0\]\.url: .*nothing\.tar: no such file"
    ):
        of("nothing.tar")
    with serving(tmp_path) as server:
        server.failures = [403]
        with pytest.raises(
            UserError, match=r"answers 403 .* The token that was sent may not read it"
        ) as caught:
            of(f"{server.address}/0.tar", webdataset={"token": "very secret"})
        assert "very secret" not in str(caught.value)
        assert server.requests[-1][1]["Authorization"] == "Bearer very secret"
    assert redact_text("with very secret in it") == "with <redacted> in it"
