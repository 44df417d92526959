"""Batches of latents from a stream: the same numbers as the images in a folder have,
kept or not."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.toolkit.data.shard_server import png
from toolkit.contracts.data import BatchSpec, BucketedSample, CaptionRules, Sample, Size
from toolkit.data.batches.dataloader import BatchLoader, LatentBatch, stream_source
from toolkit.data.batches.latent_cache import CachePair, ItemEncoder, encode_items
from toolkit.data.batches.stream_latents import StreamLatents
from toolkit.data.streams.stream_dataset import StreamDataset
from toolkit.errors import RunError
from toolkit.files.tensor_cache import TensorCache

COLOURS = ("red", "green", "blue", "white", "black")


@pytest.fixture
def five(make_stream: Callable[..., StreamDataset]) -> Callable[..., StreamDataset]:
    """A stream of five images with the captions `a <colour>`."""

    def make(damaged: int = -1, **settings: Any) -> StreamDataset:
        files: dict[str, bytes] = {}
        for number, colour in enumerate(COLOURS):
            image = png(colour, (64, 48))
            files[f"{number}.png"] = (
                image[:50] + b"????" + image[54:] if number == damaged else image
            )
            files[f"{number}.txt"] = f"a {colour}".encode()
        return make_stream(
            files,
            multiple=32,
            resolution=64,
            **settings,
        )

    return make


def stores(folder: Path | None = None) -> CachePair:
    return CachePair(
        *(
            TensorCache(folder / name if folder else None)
            for name in ("latents", "text")
        )
    )


def latents_of(
    stream: StreamDataset, model: Any, kept: CachePair | None = None, **settings: Any
) -> StreamLatents:
    return StreamLatents(
        stream,
        model,
        ItemEncoder(model, torch.float32),
        7,
        kept or stores(),
        **settings,
    )


def batches(made: StreamLatents, count: int, size: int = 2) -> list[LatentBatch]:
    source = stream_source(made.stream, 7, size, made.load, workers=0)
    return list(
        source.load([found.spec for found in islice(source.iterate(None), count)])
    )


def test_a_batch_is_what_the_same_images_in_a_folder_give(
    five, fake_adapter, tmp_path: Path
) -> None:
    stream = five(caption_dropout_rate=0.4, trigger="tok")
    for batch in batches(latents_of(stream, fake_adapter()), 6):
        items = []
        for row, streamed in enumerate(batch.spec.samples):
            file = tmp_path / f"{row}.png"
            file.write_bytes(streamed.sample.image)
            rules = CaptionRules(0.4, trigger="tok")
            sample = Sample(
                str(file), streamed.sample.caption, 1, Size(64, 48), "", rules=rules
            )
            items.append(BucketedSample(sample, streamed.crop))
        cached = encode_items(items, fake_adapter(), lambda _: stores(), torch.float32)
        rows = tuple(range(len(items)))
        expected = BatchLoader(cached, 7).load(
            BatchSpec(batch.spec.epoch, rows, batch.spec.positions)
        )
        assert torch.equal(
            batch.latents_BCHW, expected.latents_BCHW
        ) and batch.latents_BCHW.shape[1:] == (3, 4, 8)
        assert torch.equal(batch.prompts.embeds_BLD, expected.prompts.embeds_BLD)
        assert batch.control_latents == expected.control_latents == ((),) * len(items)
        assert torch.equal(batch.loss_weight_B, expected.loss_weight_B)


def test_nothing_is_kept_unless_asked_for_but_few_texts_in_memory(
    five, fake_adapter, tmp_path: Path
) -> None:
    model = fake_adapter()
    batches(latents_of(five(), model, stores(tmp_path / "cache")), 9, size=5)
    assert (
        model.calls == {"images": 45, "prompts": 5}
        and not (tmp_path / "cache").exists()
    )


def test_what_is_kept_is_not_encoded_again_and_serves_a_folder(
    five, fake_adapter, tmp_path: Path
) -> None:
    kept, first, second = stores(tmp_path / "cache"), fake_adapter(), fake_adapter()
    plain = batches(latents_of(five(), fake_adapter()), 4)
    batches(latents_of(five(cache=True), first, kept), 4)
    again = batches(latents_of(five(cache=True), second, kept), 4)
    assert first.calls["images"] == 5 and not second.calls
    for one, other in zip(plain, again, strict=True):
        assert torch.equal(one.latents_BCHW, other.latents_BCHW)
        assert torch.equal(one.prompts.embeds_BLD, other.prompts.embeds_BLD)
    (tmp_path / "a.png").write_bytes(png("red", (64, 48)))
    item = again[0].spec.samples[0]
    sample = Sample(str(tmp_path / "a.png"), "a red", 1, Size(64, 48), "")
    encode_items(
        [BucketedSample(sample, item.crop)], second, lambda _: kept, torch.float32
    )
    assert not second.calls, "the image's bytes are the key"


def of_three_channels(model: Any) -> Any:
    """The model with a family that says of its latents what they are, and of prompts
    that 5 characters always fit."""
    latent_size = model.family.latent_size
    model.family = SimpleNamespace(
        sure_prompt=5,
        latent_channels=3,
        pixel_channels=3,
        latent_size=latent_size,
        text_sees_references=True,
    )
    return model


@pytest.mark.parametrize("keep", [False, True])
def test_a_damaged_image_is_named(five, fake_adapter, keep: bool) -> None:
    stream = five(damaged=2, cache=keep)
    with pytest.raises(
        RunError, match=r"0\.tar/2: its image .*\. Repair it, or remove"
    ):
        batches(latents_of(stream, of_three_channels(fake_adapter())), 1, size=5)


def test_a_caption_too_long_for_the_model_is_named(five, fake_adapter) -> None:
    model = of_three_channels(fake_adapter())
    model.prompt_error = lambda prompt, target, references: (
        "7 tokens, 6 fit" if prompt == "a black" else None
    )
    with pytest.raises(RunError) as caught:
        batches(latents_of(five(), model), 1, size=5)
    assert str(caught.value).endswith(
        "0.tar/4: its caption has 7 tokens, 6 fit. Shorten it, or remove the sample from its shard."
    )


def test_further_prompts_come_with_each_batch(five, fake_adapter) -> None:
    made = latents_of(
        five(),
        fake_adapter(),
        extra_prompts=lambda sample: {"class": sample.caption + " dog"},
    )
    (batch,) = batches(made, 1, size=5)
    assert (
        set(batch.extra_prompts) == {"class"}
        and batch.extra_prompts["class"].lengths == (4,) * 5
    )


def test_the_trial(five, fake_adapter) -> None:
    made = latents_of(five(), fake_adapter())
    trial = made.trial(3)
    assert (
        trial.latents_BCHW.shape == (3, 3, 8, 8)
        and len(trial) == 3
        and trial.halves()[1].latents_BCHW.shape[0] == 1
    )
