import functools
from pathlib import Path

import pytest
import torch
from PIL import Image

from toolkit.data.cache import TensorCache
from toolkit.data.dataloader import BatchLoader
from toolkit.data.file_hashes import file_digest
from toolkit.data.folder import scan_datasets
from toolkit.data.items import make_items
from toolkit.data.latent_cache import PROMPT_FORMAT, CachePair, EncodedDataset, ItemEncoder, encode_items, mask_weights
from toolkit.data.types import BatchSpec, CaptionRules
from toolkit.errors import DataErrors, RunError


@pytest.fixture
def items(tmp_path: Path, image, dataset):
    """a, b with captions and one reference each (equal bytes), c without either; 40 repeats."""
    for name, colour in (("a", "red"), ("b", "blue"), ("c", "green")):
        image(tmp_path / "40_x" / f"{name}.png", 64, 48, colour)
        if name != "c":
            image(tmp_path / "ref" / f"{name}.png", 90, 60, "white")
            (tmp_path / "40_x" / f"{name}.txt").write_text(f"picture {name}")
    paths = (str(tmp_path / "ref"),)
    scan = scan_datasets([dataset(tmp_path / "40_x", control_path=paths, control_optional=True)], None)
    return make_items(scan.samples, lambda _: (64,), 32)


def on_disk(folder: Path):
    stores = CachePair(TensorCache(folder / "latents"), TensorCache(folder / "text"))
    return lambda _: stores


def in_memory():
    stores = CachePair(TensorCache(None), TensorCache(None))
    return lambda _: stores


def with_rules(items, **rules):
    return [i._replace(sample=i.sample._replace(rules=CaptionRules(**rules))) for i in items]


def test_each_distinct_tensor_is_encoded_once(items, fake_adapter) -> None:
    adapter = fake_adapter()
    encoded = encode_items([*items, *items], adapter, in_memory(), torch.float32)
    assert adapter.calls == {"images": 3 + 1, "prompts": 3}  # the two references hold the same bytes
    assert adapter.prompts == [("picture a", 1), ("picture b", 1), ("", 0)]
    assert encoded.read(encoded.entries[0].latents).shape == (3, 4, 8)
    assert encoded.read(encoded.entries[0].references[0]).mean() == 1.0
    assert encoded.entries[2].references == () and not encoded.needs_text_encoder


def test_latents_are_those_of_the_bucket(items, fake_adapter) -> None:
    encoded = encode_items(items, fake_adapter(), in_memory(), torch.bfloat16)
    latents_CHW = encoded.read(encoded.entries[0].latents)
    assert latents_CHW.dtype == torch.bfloat16
    torch.testing.assert_close(latents_CHW[:, 0, 0].float(), torch.tensor([1.0, -1.0, -1.0]))


def test_a_second_run_calls_no_encoder(items, tmp_path: Path, fake_adapter) -> None:
    first = encode_items(items, fake_adapter(), on_disk(tmp_path / "cache"), torch.float32)
    adapter = fake_adapter()
    adapter.dropped = True
    second = encode_items(items, adapter, on_disk(tmp_path / "cache"), torch.float32)
    for one, two in zip(first.entries, second.entries, strict=True):
        for a, b in zip([*one.images(), *one.texts()], [*two.images(), *two.texts()], strict=True):
            torch.testing.assert_close(first.read(a), second.read(b), rtol=0, atol=0)


def test_broken_off_encoding_goes_on_where_it_stopped(items, tmp_path: Path, fake_adapter) -> None:
    class Halt(Exception):
        pass

    def halt(what: str, done: int, total: int) -> None:
        if (what, done) == ("latents", 2):
            raise Halt

    with pytest.raises(Halt):
        encode_items(items, fake_adapter(), on_disk(tmp_path / "cache"), torch.float32, halt)
    adapter = fake_adapter()
    encode_items(items, adapter, on_disk(tmp_path / "cache"), torch.float32)
    assert adapter.calls == {"images": 1, "prompts": 3}


def test_progress_counts_items(items, fake_adapter) -> None:
    seen = []
    encode_items(items, fake_adapter(), in_memory(), torch.float32, lambda *report: seen.append(report))
    assert seen == [(what, i, 3) for what in ("latents", "text embeddings") for i in (1, 2, 3)]


def test_empty_caption_is_cached_where_it_may_be_drawn(items, fake_adapter) -> None:
    adapter = fake_adapter()
    encode_items(with_rules(items, dropout_rate=0.1), adapter, in_memory(), torch.float32)
    # the references hold the same bytes, so a and b share the empty caption seen with them
    assert sorted(adapter.prompts) == [("", 0), ("", 1), ("picture a", 1), ("picture b", 1)]


def test_further_prompts_are_cached_with_the_control_images(items, fake_adapter) -> None:
    adapter = fake_adapter()
    encoded = encode_items(
        with_rules(items, shuffle_tokens=True),
        adapter,
        in_memory(),
        torch.float32,
        extra_prompts=lambda sample: {"of_class": sample.caption.replace("picture", "drawing"), "blank": ""},
    )
    assert sorted(adapter.prompts) == [("", 0), ("", 1), ("drawing a", 1), ("drawing b", 1)]
    assert encoded.needs_text_encoder  # for the shuffled captions, which are not among them
    spec = BatchSpec(0, (1,), (0,))
    batch = BatchLoader(encoded, 1, encode_prompt=lambda text, sample: torch.zeros(1, 4)).load(spec)
    for name, text in (("of_class", "drawing b"), ("blank", "")):
        with torch.no_grad():
            expected = adapter.encode_prompt(text, [Image.new("RGB", (90, 60))])
        assert torch.equal(batch.extra_prompts[name].embeds_BLD[0], expected)


def test_a_further_prompt_that_is_too_long_is_refused(items, fake_adapter) -> None:
    adapter = fake_adapter()
    adapter.prompt_error = lambda text, target, references: "too many tokens" if "long" in text else None
    with pytest.raises(DataErrors, match="its caption has too many tokens"):
        encode_items(items, adapter, in_memory(), torch.float32, extra_prompts=lambda sample: {"x": "long" * 999})


def test_shuffled_captions_are_not_cached(items, fake_adapter) -> None:
    adapter = fake_adapter()
    encoded = encode_items(with_rules(items, shuffle_tokens=True), adapter, in_memory(), torch.float32)
    assert adapter.calls == {"images": 4} and encoded.needs_text_encoder


def test_only_texts_seen_with_pictures_or_special_tokens_have_a_new_key(items, fake_adapter) -> None:
    """Entries of plain captions that an earlier version made are still used; others were made with other positions."""
    encoder, stores = ItemEncoder(fake_adapter(), torch.float32), in_memory()(None)
    made_before = functools.partial(encoder._key, "text_encoder", "text")
    with_picture, alone = items[0].sample, items[2].sample
    digests = [file_digest(path) for path in with_picture.control_images]
    assert encoder.text(alone, "a cat", stores).key == made_before(alone, [], prompt="a cat")
    for sample, source, prompt in ((with_picture, digests, "a cat"), (alone, [], "<|image_pad|>")):
        key = encoder.text(sample, prompt, stores).key
        assert key != made_before(sample, source, prompt=prompt)
        assert key == made_before(sample, source, prompt=prompt, format=PROMPT_FORMAT)


CHANGES = {
    "vae": ({"images": 4}, {}),
    "text_encoder": ({"prompts": 3}, {}),
    "dtype": ({"images": 4, "prompts": 3}, {"dtype": torch.float16}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_decides_the_result_is_in_the_key(items, tmp_path: Path, change: str, fake_adapter) -> None:
    calls, options = CHANGES[change]
    encode_items(items, fake_adapter(), on_disk(tmp_path / "cache"), torch.float32)
    adapter = fake_adapter(**({} if change == "dtype" else {change: "other"}))
    encode_items(items, adapter, on_disk(tmp_path / "cache"), options.get("dtype", torch.float32))
    assert adapter.calls == calls


def test_changed_files_and_captions_are_encoded_again(items, tmp_path: Path, image, fake_adapter) -> None:
    folder = on_disk(tmp_path / "cache")
    encode_items(items, fake_adapter(), folder, torch.float32)
    image(tmp_path / "ref" / "a.png", 90, 60, "black")
    adapter = fake_adapter()
    encode_items(items, adapter, folder, torch.float32)
    assert adapter.calls == {"images": 1, "prompts": 1}  # a's reference, and a's text seen with it

    other_caption = [items[0]._replace(sample=items[0].sample._replace(caption="new")), *items[1:]]
    adapter = fake_adapter()
    encode_items(other_caption, adapter, folder, torch.float32)
    assert adapter.prompts == [("new", 1)]

    other_background = [i._replace(sample=i.sample._replace(background="black")) for i in items]
    adapter = fake_adapter()
    encode_items(other_background, adapter, folder, torch.float32)
    assert adapter.calls == {"images": 5, "prompts": 2}  # c's text has no image


def test_another_size_needs_new_latents_only(items, tmp_path: Path, fake_adapter) -> None:
    encode_items(items, fake_adapter(), on_disk(tmp_path / "cache"), torch.float32)
    smaller = make_items([item.sample for item in items], lambda _: (32,), 32)
    adapter = fake_adapter()
    encode_items(smaller, adapter, on_disk(tmp_path / "cache"), torch.float32)
    assert adapter.calls == {"images": 3}


def test_another_reference_size_needs_new_reference_latents_only(items, tmp_path: Path, fake_adapter) -> None:
    encode_items(items, fake_adapter(), on_disk(tmp_path / "cache"), torch.float32)
    adapter = fake_adapter()
    adapter.reference_scale = 2
    encode_items(items, adapter, on_disk(tmp_path / "cache"), torch.float32)
    assert adapter.calls == {"images": 1}


def test_a_stored_entry_is_verified_once_however_often_it_is_used(items, monkeypatch, fake_adapter) -> None:
    reads, get = [], TensorCache.get
    monkeypatch.setattr(TensorCache, "get", lambda self, key: reads.append(key) or get(self, key))
    encode_items([*items] * 5, fake_adapter(), in_memory(), torch.float32)
    assert len(reads) == len(set(reads)) == 3 + 1 + 3


def test_a_moved_dataset_needs_nothing_new(items, tmp_path: Path, fake_adapter) -> None:
    encode_items(items, fake_adapter(), on_disk(tmp_path / "cache"), torch.float32)
    (tmp_path / "40_x").rename(tmp_path / "7_y")
    moved = [i._replace(sample=i.sample._replace(image=str(tmp_path / "7_y" / i.sample.name))) for i in items]
    adapter = fake_adapter()
    encode_items(moved, adapter, on_disk(tmp_path / "cache"), torch.float32)
    assert not adapter.calls


def test_damaged_entry_is_made_again_at_the_start(items, tmp_path: Path, fake_adapter) -> None:
    encode_items(items, fake_adapter(), on_disk(tmp_path / "cache"), torch.float32)
    victim = next((tmp_path / "cache" / "latents").rglob("*.safetensors"))
    victim.write_bytes(victim.read_bytes()[:-3])
    adapter = fake_adapter()
    encode_items(items, adapter, on_disk(tmp_path / "cache"), torch.float32)
    assert adapter.calls == {"images": 1}


def test_all_unreadable_pictures_are_named_once_the_others_are_done(items, tmp_path: Path, fake_adapter) -> None:
    for path in map(Path, (items[0].sample.image, items[1].sample.control_images[0])):
        torn = bytearray(path.read_bytes())
        torn[torn.index(b"IDAT") + 4] ^= 0xFF  # the header is whole
        path.write_bytes(torn)
    adapter = fake_adapter()
    with pytest.raises(RunError) as caught:
        encode_items(items, adapter, on_disk(tmp_path / "cache"), torch.float32)
    assert [line.split(": ")[0] for line in str(caught.value).splitlines()] == [
        f"latents of {items[0].sample.image}",
        f"latents of reference {items[1].sample.control_images[0]}",
    ]
    assert adapter.calls == {"images": 3}  # b, c and the reference of a


def test_entry_that_vanishes_during_the_run(items, tmp_path: Path, fake_adapter) -> None:
    adapter = fake_adapter()
    encoded = encode_items(items, adapter, on_disk(tmp_path / "cache"), torch.float32)
    entry = encoded.entries[0].latents
    before = encoded.read(entry)
    for path in (tmp_path / "cache").rglob("*.safetensors"):
        path.unlink()
    torch.testing.assert_close(EncodedDataset.read(entry), before, rtol=0, atol=0)
    adapter.unload_encoders()
    assert encoded.read(entry) is not None  # stored again by the read before
    with pytest.raises(RunError, match=r"latents of .*b\.png.*the encoders were dropped"):
        encoded.read(encoded.entries[1].latents)


# ---------------------------------------------------------------- flips and masks


@pytest.fixture
def halves(tmp_path: Path, dataset):
    """Items of `datasets[0]` with these changes: a target and a reference, each black left and white right, a mask."""
    for folder, size in (("data", (64, 32)), ("ref", (64, 32)), ("mask", (32, 16))):
        (tmp_path / folder).mkdir()
        picture = Image.new("RGB", size)
        picture.paste("white", (size[0] // 2, 0, *size))
        picture.save(tmp_path / folder / "a.png")

    def make(**changes):
        scan = scan_datasets([dataset(tmp_path / "data", **changes)], None)
        return make_items(scan.samples, lambda _: (64,), 32)

    return make


def test_target_references_and_mask_are_mirrored_together(halves, tmp_path: Path, fake_adapter) -> None:
    seen = []

    class Adapter(fake_adapter):
        def encode_prompt(self, prompt, references):
            seen.append([picture.getpixel((0, 0))[0] for picture in references])
            return super().encode_prompt(prompt, references)

    paths = {"control_path": (str(tmp_path / "ref"),), "mask_path": str(tmp_path / "mask")}
    items = halves(flip_x=True, **paths)
    encoded = encode_items(items, Adapter(), in_memory(), torch.float32)
    for plain, flipped in zip(encoded.entries[0].images(), encoded.entries[1].images(), strict=True):
        latents_CHW = encoded.read(plain)
        torch.testing.assert_close(encoded.read(flipped), latents_CHW.flip(-1))
        assert not torch.allclose(latents_CHW, latents_CHW.flip(-1))
    assert len(encoded.entries[0].images()) == 3
    assert seen == [[0], [255]]  # the text encoder sees the reference as it is used


def test_without_a_reference_mirrored_uses_share_their_text(halves, fake_adapter) -> None:
    adapter = fake_adapter()
    encode_items(halves(flip_x=True, flip_y=True), adapter, in_memory(), torch.float32)
    assert adapter.calls == {"images": 4, "prompts": 1}


def test_turning_flips_on_encodes_only_what_is_new(halves, tmp_path: Path, fake_adapter) -> None:
    encode_items(halves(), fake_adapter(), on_disk(tmp_path / "cache"), torch.float32)
    adapter = fake_adapter()
    encode_items(halves(flip_x=True), adapter, on_disk(tmp_path / "cache"), torch.float32)
    assert adapter.calls == {"images": 1}


def test_a_mask_is_cached_by_all_that_decides_it(halves, tmp_path: Path, monkeypatch, fake_adapter) -> None:
    made = []
    monkeypatch.setattr(
        "toolkit.data.latent_cache.mask_weights", lambda *args: made.append(args) or mask_weights(*args)
    )

    def encode(**changes) -> int:
        made.clear()
        items = halves(**{"mask_path": str(tmp_path / "mask"), **changes})
        encode_items(items, fake_adapter(), on_disk(tmp_path / "cache"), torch.float32)
        return len(made)

    assert (encode(), encode()) == (1, 0)
    for changes in ({"mask_min_value": 0.5}, {"invert_mask": True}, {"flip_x": True}):
        assert (encode(**changes), encode(**changes)) == (1, 0), changes
    Image.new("L", (32, 16), 9).save(tmp_path / "mask" / "a.png")
    assert (encode(), encode()) == (1, 0)
    Image.new("RGBA", (64, 32)).save(tmp_path / "data" / "a.png")
    (tmp_path / "mask" / "a.png").write_bytes((tmp_path / "data" / "a.png").read_bytes())
    assert encode() == 1
    assert encode(mask_path=None, alpha_mask=True) == 1  # the same bytes, read another way


def test_masks_that_leave_nothing_are_named_at_each_start(halves, tmp_path: Path, said, fake_adapter) -> None:
    for folder in ("data", "mask"):
        (tmp_path / folder / "b.png").write_bytes((tmp_path / folder / "a.png").read_bytes())
        (tmp_path / folder / "white.png").write_bytes((tmp_path / folder / "a.png").read_bytes())
    for name in "ab":
        Image.new("L", (32, 16)).save(tmp_path / "mask" / f"{name}.png")
    masks = {"mask_path": str(tmp_path / "mask")}
    line = "these count nowhere, so nothing is learned from their images: "
    line += ", ".join(f"mask of {tmp_path / 'data' / name}.png" for name in "ab")
    for _ in range(2):
        encode_items(halves(**masks), fake_adapter(), on_disk(tmp_path / "cache"), torch.float32)
    assert said == [line, line]
    encode_items(halves(**masks, mask_min_value=0.1), fake_adapter(), in_memory(), torch.float32)
    assert len(said) == 2


def test_a_mask_needs_no_encoder_to_be_made_again(halves, tmp_path: Path, fake_adapter) -> None:
    adapter = fake_adapter()
    encoded = encode_items(
        halves(mask_path=str(tmp_path / "mask")), adapter, on_disk(tmp_path / "cache"), torch.float32
    )
    adapter.unload_encoders()
    before = encoded.read(encoded.entries[0].mask)
    for path in (tmp_path / "cache").rglob("*.safetensors"):
        path.unlink()
    assert torch.equal(encoded.read(encoded.entries[0].mask), before)
