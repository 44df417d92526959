from dataclasses import replace
from pathlib import Path

import pytest
import torch

from toolkit.contracts.data import BatchSpec, CaptionRules, Mask, PromptEmbeds
from toolkit.data.batches.dataloader import BatchLoader, LatentBatch
from toolkit.data.batches.epoch_order import epoch_batches
from toolkit.data.batches.latent_cache import CachePair, encode_items
from toolkit.data.scan.captions import caption_for_use, drawn_caption
from toolkit.data.scan.folder import scan_datasets
from toolkit.data.scan.items import make_items
from toolkit.files.tensor_cache import TensorCache

SEED = 3


@pytest.fixture
def load_photos(tmp_path: Path, dataset, fake_adapter):
    """The photographs at 64 px on disk, encoded by the fake model; coffee and rocket
    are references too."""

    def load(**rules) -> tuple:
        scan = scan_datasets([dataset("config/examples/photos", num_repeats=3)], None)
        coffee, rocket = (
            s.image for s in scan.samples if Path(s.image).stem in ("coffee", "rocket")
        )
        controls = {"astronaut": (coffee, rocket), "chelsea": (rocket,)}
        samples = [
            s._replace(
                control_images=controls.get(Path(s.image).stem, ()),
                rules=CaptionRules(**rules),
                loss_weight=0.5,
            )
            for s in scan.samples
        ]
        items = make_items(samples, lambda _: (64,), 32)
        stores = CachePair(
            TensorCache(tmp_path / "latents"), TensorCache(tmp_path / "text")
        )
        adapter = fake_adapter()
        return BatchLoader(
            encode_items(items, adapter, lambda _: stores, torch.float32), SEED
        ), adapter

    return load


def all_specs(loader: BatchLoader, batch_size: int = 2, epoch: int = 0):
    return epoch_batches(loader.dataset.items, batch_size, SEED, epoch)


def test_a_batch_holds_what_its_spec_says(load_photos) -> None:
    loader, adapter = load_photos()
    adapter.unload_encoders()
    for batch_spec in all_specs(loader):
        batch = loader.load(batch_spec)
        samples = [loader.dataset.items[index].sample for index in batch_spec.items]
        bucket = loader.dataset.items[batch_spec.items[0]].crop.bucket
        assert batch.latents_BCHW.shape == (
            len(samples),
            3,
            bucket.height // 8,
            bucket.width // 8,
        )
        assert (
            batch.names == tuple(sample.image for sample in samples)
            and batch.spec == batch_spec
        )
        assert [len(references) for references in batch.control_latents] == [
            len(s.control_images) for s in samples
        ]
        assert batch.prompts.lengths == tuple(
            len(s.control_images) + len(s.caption.split()) + 1 for s in samples
        )
        assert batch.loss_weight_B.tolist() == [0.5] * len(samples)


def test_references_keep_their_slot_order_and_own_size(load_photos) -> None:
    loader, _ = load_photos()
    index = next(
        i
        for i, item in enumerate(loader.dataset.items)
        if len(item.sample.control_images) == 2
    )
    batch_spec = next(s for s in all_specs(loader, 1) if s.items == (index,))
    (references,) = loader.load(batch_spec).control_latents
    assert [tuple(latents.shape) for latents in references] == [(3, 4, 8), (3, 4, 8)]
    entries = loader.dataset.entries[index].references
    torch.testing.assert_close(references[1], entries[1].read(), rtol=0, atol=0)
    assert not torch.equal(references[0], references[1])


def test_each_use_has_one_of_the_captions_and_its_further_prompts(load_photos) -> None:
    """All are encoded before, each once; of two losses the prompts follow the caption,
    also where it is dropped."""
    loader, adapter = load_photos(dropout_rate=0.3)
    texts = ("one", "one two", "one two three")
    items = [
        item._replace(sample=item.sample._replace(captions=texts))
        for item in loader.dataset.items
    ]
    adapter.prompts.clear()
    stores = CachePair(TensorCache(None), TensorCache(None))
    encoded = encode_items(
        items, adapter, lambda _: stores, torch.float32,
        extra_prompts=lambda sample: {"of_class": f"{sample.caption} of class", "blank": ""},
    )  # fmt: skip
    plain = sorted(text for text, references in adapter.prompts if not references)
    assert plain == sorted(["", *texts, *(f"{text} of class" for text in texts)])
    adapter.unload_encoders()
    loader, seen = BatchLoader(encoded, SEED), set[tuple[int, bool]]()
    assert encoded.needs_text_encoder is False
    for batch_spec in all_specs(loader, 1):
        (index,), (position,) = batch_spec.items, batch_spec.positions
        drawn = drawn_caption(items[index].sample, SEED, 0, position)
        caption = caption_for_use(drawn, items[index].sample.rules, SEED, 0, position)
        batch, more = (
            loader.load(batch_spec),
            len(items[index].sample.control_images) + 1,
        )
        assert batch.prompts.lengths == (more + len(caption.split()),)
        assert batch.extra_prompts["of_class"].lengths == (
            more + len(drawn.split()) + 2,
        )
        assert batch.extra_prompts["blank"].lengths == (more,)
        seen.add((len(drawn.split()), bool(caption)))
    assert seen == {(count, kept) for count in (1, 2, 3) for kept in (True, False)}


def test_shuffled_captions_are_encoded_as_they_are_used(load_photos) -> None:
    loader, adapter = load_photos(shuffle_tokens=True, dropout_rate=0.3)
    expected = []
    for batch_spec in all_specs(loader, 1):
        loader.load(batch_spec)
        sample = loader.dataset.items[batch_spec.items[0]].sample
        caption = caption_for_use(
            sample.caption, sample.rules, SEED, 0, batch_spec.positions[0]
        )
        expected.append((caption, len(sample.control_images)))
    assert adapter.prompts == expected

    live = replace(loader, encode_prompt=lambda prompt, sample: torch.zeros(7, 4))
    assert live.load(batch_spec).prompts.lengths == (7,)


def test_a_batch_has_the_masks_of_its_items_and_ones_for_those_without(
    load_photos, tmp_path: Path, image
) -> None:
    loader, adapter = load_photos()
    items = loader.dataset.items
    bucket = items[0].crop.bucket
    alike = [index for index, item in enumerate(items) if item.crop.bucket == bucket][
        :2
    ]
    assert len(alike) == 2
    assert loader.load(BatchSpec(0, tuple(alike), (0, 1))).loss_mask_B1HW is None

    grey = image(tmp_path / "mask.png", colour="#333333")  # 51, a fifth of white
    sample = items[alike[1]].sample._replace(mask=Mask(str(grey)))
    masked = items[alike[1]]._replace(sample=sample)
    stores = CachePair(TensorCache(None), TensorCache(None))
    encoded = encode_items(
        [items[alike[0]], masked], adapter, lambda _: stores, torch.float32
    )
    mask_B1HW = (
        BatchLoader(encoded, SEED)
        .load(BatchSpec(0, (0, 1, 1), (0, 1, 2)))
        .loss_mask_B1HW
    )
    assert mask_B1HW.shape == (3, 1, bucket.height // 8, bucket.width // 8)
    torch.testing.assert_close(mask_B1HW.mean((1, 2, 3)), torch.tensor([1.0, 0.2, 0.2]))


# ------------------------------------------------------------ the batch


def batch(count: int) -> LatentBatch:
    """Items that carry their number everywhere; item i has i + 1 text tokens and i
    references."""
    return LatentBatch(
        latents_BCHW=torch.arange(count, dtype=torch.float32)[
            :, None, None, None
        ].expand(count, 2, 4, 4),
        prompts=PromptEmbeds.stack(
            [torch.full((i + 1, 3), float(i)) for i in range(count)]
        ),
        control_latents=tuple(
            tuple(torch.full((2, 4, 4), float(i)) for _ in range(i))
            for i in range(count)
        ),
        spec=BatchSpec(7, tuple(range(10, 10 + count)), tuple(range(20, 20 + count))),
        names=tuple(f"{i}.png" for i in range(count)),
        loss_weight_B=torch.arange(count, dtype=torch.float32),
        loss_mask_B1HW=torch.arange(count, dtype=torch.float32)[
            :, None, None, None
        ].expand(count, 1, 4, 4),
    )


@pytest.mark.parametrize(
    ("count", "sizes"), [(1, [1]), (2, [1, 1]), (3, [2, 1]), (4, [2, 2])]
)
def test_halves_hold_every_item_once_with_all_that_belongs_to_it(
    count: int, sizes: list[int]
) -> None:
    halves = batch(count).halves()
    assert [len(half) for half in halves] == sizes
    number = 0
    for half in halves:
        for row in range(len(half)):
            assert half.names[row] == f"{number}.png"
            assert (
                half.spec.epoch,
                half.spec.items[row],
                half.spec.positions[row],
            ) == (7, 10 + number, 20 + number)
            assert half.prompts.lengths[row] == number + 1
            assert len(half.control_latents[row]) == number
            for tensor in (half.latents_BCHW, half.loss_mask_B1HW, half.loss_weight_B):
                assert (tensor[row] == number).all()
            number += 1
    assert number == count


def test_a_batch_describes_its_size() -> None:
    assert batch(2).describe() == "latents (2, 2, 4, 4), 1 control image"
