import functools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
from PIL import Image

from tests.toolkit.data.pixels.test_colours import gama
from toolkit.config.sections.dataset import DatasetConfig
from toolkit.contracts.data import (
    BatchSpec,
    CaptionRules,
    Focus,
    Mask,
    ResizeCrop,
    Size,
)
from toolkit.data.batches import latent_cache
from toolkit.data.batches.dataloader import BatchLoader
from toolkit.data.batches.latent_cache import (
    PROMPT_FORMAT,
    CachePair,
    CacheStores,
    EncodedDataset,
    ItemEncoder,
    encode_items,
    mask_weights,
)
from toolkit.data.pixels.images import (
    flip_image,
    open_image,
    resize_cover_crop,
    to_tensor,
)
from toolkit.data.scan.fingerprint import file_digest
from toolkit.data.scan.folder import scan_datasets
from toolkit.data.scan.items import bucket_for, make_items
from toolkit.errors import DataErrors, RunError
from toolkit.files.tensor_cache import TensorCache


@pytest.fixture
def items(tmp_path: Path, image, dataset):
    """a, b with captions and one reference each (equal bytes), c without either; 40
    repeats."""
    for name, colour in (("a", "red"), ("b", "blue"), ("c", "green")):
        image(tmp_path / "40_x" / f"{name}.png", 64, 48, colour)
        if name != "c":
            image(tmp_path / "ref" / f"{name}.png", 90, 60, "white")
            (tmp_path / "40_x" / f"{name}.txt").write_text(f"picture {name}")
    paths = (str(tmp_path / "ref"),)
    scan = scan_datasets(
        [dataset(tmp_path / "40_x", control_path=paths, control_optional=True)], None
    )
    return make_items(scan.samples, lambda _: (64,), 32)


@pytest.fixture
def encode(tmp_path: Path, fake_adapter) -> Callable[..., tuple[EncodedDataset, Any]]:
    """Encodes items into the cache of the test, or into memory, and returns what is
    encoded and the model."""

    def run(
        items,
        *arguments,
        in_memory: bool = False,
        adapter=None,
        dtype=torch.float32,
        **options,
    ):
        adapter = adapter or fake_adapter()
        folders = (
            (None, None)
            if in_memory
            else (tmp_path / "cache" / "latents", tmp_path / "cache" / "text")
        )
        stores = CachePair(*map(TensorCache, folders))
        return encode_items(
            items, adapter, lambda _: stores, dtype, *arguments, **options
        ), adapter

    return run


@pytest.mark.parametrize("place", ["40_x/a.png", "ref/a.png"])
def test_latents_of_an_older_reading_are_not_used(
    items, tmp_path: Path, encode, place: str, monkeypatch
) -> None:
    """The image has a gamma of 1, which an earlier version took as sRGB, and cached under
    the hash of the file."""
    path = tmp_path / place
    whole = path.read_bytes()
    path.write_bytes(whole[:33] + gama(1.0) + whole[33:])
    monkeypatch.setattr(latent_cache, "image_digest", file_digest)
    before, _ = encode(items)
    monkeypatch.undo()
    after, adapter = encode(items)
    is_image = place.startswith("40")
    # the text encoder sees references
    wanted = {"images": 1} if is_image else {"images": 1, "prompts": 1}
    assert adapter.calls == wanted
    keys = [
        [entry.key for entry in found.entries[1].images()[: 2 if is_image else 1]]
        for found in (before, after)
    ]
    assert keys[0] == keys[1], "what is sRGB keeps its key"


def test_an_image_of_a_stream_has_the_entry_of_the_same_file_in_a_folder(
    items, tmp_path: Path, fake_adapter
) -> None:
    path = tmp_path / "40_x/a.png"
    encoder, stores = (
        ItemEncoder(fake_adapter(), torch.float32),
        CachePair(TensorCache(None), TensorCache(None)),
    )
    for chunk in (b"", gama(1.0)):
        whole = path.read_bytes()
        path.write_bytes(whole[:33] + chunk + whole[33:])
        assert (
            encoder.latents(items[0], stores).key
            == encoder.latents(items[0], stores, path.read_bytes()).key
        )


def with_sample(items, **changes):
    return [item._replace(sample=item.sample._replace(**changes)) for item in items]


def test_each_distinct_tensor_is_encoded_once_and_of_its_bucket(
    items, encode, monkeypatch
) -> None:
    reads, get = [], TensorCache.get
    monkeypatch.setattr(
        TensorCache, "get", lambda self, key: reads.append(key) or get(self, key)
    )
    encoded, adapter = encode([*items, *items], in_memory=True, dtype=torch.bfloat16)
    assert len(reads) == len(set(reads)) == 3 + 1 + 3
    # the two references hold the same bytes
    assert adapter.calls == {
        "images": 3 + 1,
        "prompts": 3,
    }
    assert adapter.prompts == [("picture a", 1), ("picture b", 1), ("", 0)]
    latents_CHW = encoded.entries[0].latents.read()
    assert latents_CHW.shape == (3, 4, 8) and latents_CHW.dtype == torch.bfloat16
    torch.testing.assert_close(
        latents_CHW[:, 0, 0].float(), torch.tensor([1.0, -1.0, -1.0])
    )
    assert encoded.entries[0].references[0].read().mean() == 1.0
    assert encoded.entries[2].references == () and not encoded.needs_text_encoder


def test_a_second_run_calls_no_encoder_and_needs_nothing_where_the_dataset_was_moved(
    items, tmp_path: Path, encode, fake_adapter
) -> None:
    first, _ = encode(items)
    (tmp_path / "40_x").rename(tmp_path / "7_y")
    moved = [*items]
    for number, item in enumerate(items):
        moved[number] = item._replace(
            sample=item.sample._replace(image=str(tmp_path / "7_y" / item.sample.name))
        )
    adapter = fake_adapter()
    adapter.dropped = True
    second, _ = encode(moved, adapter=adapter)
    for one, two in zip(first.entries, second.entries, strict=True):
        for a, b in zip(
            [*one.images(), *one.texts()], [*two.images(), *two.texts()], strict=True
        ):
            torch.testing.assert_close(a.read(), b.read(), rtol=0, atol=0)


def test_broken_off_encoding_goes_on_where_it_stopped(items, encode) -> None:
    seen = []

    def halt(what: str, done: int, total: int) -> None:
        seen.append((what, done, total))
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode(items, halt)
    _, adapter = encode(items, lambda *report: seen.append(report))
    assert adapter.calls == {"images": 1, "prompts": 3}
    names = (
        ["latents"] * 2
        + ["latents in the cache"] * 2
        + ["latents"]
        + ["text embeddings"] * 3
    )
    assert seen == [
        (name, number, 3)
        for name, number in zip(names, (1, 2, 1, 2, 3, 1, 2, 3), strict=True)
    ]


def test_empty_caption_is_cached_where_it_may_be_drawn(items, encode) -> None:
    dropped = with_sample(items, rules=CaptionRules(dropout_rate=0.1))
    _, adapter = encode(dropped, in_memory=True)
    # the references hold the same bytes, so a and b share the empty caption seen with
    # them
    expected = [("", 0), ("", 1), ("picture a", 1), ("picture b", 1)]
    assert sorted(adapter.prompts) == expected


def test_damaged_entry_is_made_again_at_the_start(
    items, tmp_path: Path, encode
) -> None:
    encode(items)
    victim = next((tmp_path / "cache" / "latents").rglob("*.safetensors"))
    victim.write_bytes(victim.read_bytes()[:-3])
    assert encode(items)[1].calls == {"images": 1}


def test_entry_that_vanishes_during_the_run(
    items, image, tmp_path: Path, encode
) -> None:
    """A mask needs no encoder to be made again."""
    mask = Mask(str(image(tmp_path / "mask.png", colour="#333333")))
    encoded, adapter = encode(with_sample(items, mask=mask))
    entry, masked = encoded.entries[0].latents, encoded.entries[0].mask
    before = entry.read(), masked.read()
    for path in (tmp_path / "cache").rglob("*.safetensors"):
        path.unlink()
    torch.testing.assert_close(entry.read(), before[0], rtol=0, atol=0)
    adapter.unload_encoders()
    assert entry.read() is not None  # stored again by the read before
    assert torch.equal(masked.read(), before[1])
    with pytest.raises(
        RunError, match=r"latents of .*b\.png.*the encoders were dropped"
    ):
        encoded.entries[1].latents.read()


def test_further_prompts_are_cached_with_the_control_images_and_shuffled_captions_are_not(
    items, encode
) -> None:
    encoded, adapter = encode(
        with_sample(items, rules=CaptionRules(shuffle_tokens=True)),
        in_memory=True,
        extra_prompts=lambda sample: {
            "of_class": sample.caption.replace("picture", "drawing"),
            "blank": "",
        },
    )
    assert sorted(adapter.prompts) == [
        ("", 0),
        ("", 1),
        ("drawing a", 1),
        ("drawing b", 1),
    ]
    # for the shuffled captions, which are not among them
    assert encoded.needs_text_encoder
    spec = BatchSpec(0, (1,), (0,))
    batch = BatchLoader(
        encoded, 1, encode_prompt=lambda text, sample: torch.zeros(1, 4)
    ).load(spec)
    for name, text in (("of_class", "drawing b"), ("blank", "")):
        with torch.no_grad():
            expected = adapter.encode_prompt(text, [Image.new("RGB", (90, 60))])
        assert torch.equal(batch.extra_prompts[name].embeds_BLD[0], expected)


def test_a_further_prompt_that_is_too_long_is_refused(
    items, encode, fake_adapter
) -> None:
    adapter = fake_adapter()
    adapter.prompt_error = lambda text, target, references: (
        "too many tokens" if "long" in text else None
    )
    with pytest.raises(DataErrors, match="its caption has too many tokens"):
        encode(items, adapter=adapter, extra_prompts=lambda sample: {"x": "long" * 999})


def test_only_texts_seen_with_pictures_or_special_tokens_have_a_new_key(
    items, fake_adapter
) -> None:
    """Entries of plain captions that an earlier version made are still used; others
    were made with other positions."""
    encoder, stores = (
        ItemEncoder(fake_adapter(), torch.float32),
        CachePair(TensorCache(None), TensorCache(None)),
    )
    made_before = functools.partial(
        encoder._key, "text_encoder", "text", store=stores.text
    )
    with_picture, alone = items[0], items[2]
    digests = [file_digest(path) for path in with_picture.sample.control_images]
    assert encoder.text(alone, "a cat", stores).key == made_before(
        alone.sample, [], prompt="a cat"
    )
    for item, source, prompt in (
        (with_picture, digests, "a cat"),
        (alone, [], "<|image_pad|>"),
    ):
        key = encoder.text(item, prompt, stores).key
        assert key != made_before(item.sample, source, prompt=prompt)
        assert key == made_before(
            item.sample, source, prompt=prompt, format=PROMPT_FORMAT
        )


def test_a_family_may_see_references_in_the_size_of_the_vae(
    items, fake_adapter, monkeypatch
) -> None:
    """The encoder and the VAE then agree on how many tokens an image has, whatever the
    target's size makes of it."""
    model, seen = fake_adapter(), []
    encoder, stores = (
        ItemEncoder(model, torch.float32),
        CachePair(TensorCache(None), TensorCache(None)),
    )
    monkeypatch.setattr(type(model.family), "text_at_reference_size", True)
    encode_prompt = model.encode_prompt
    model.encode_prompt = lambda prompt, images: (
        seen.append([i.size for i in images]) or encode_prompt(prompt, images)
    )
    keys = []
    for model.reference_scale in (1, 2):
        entry = encoder.text(items[0], "a cat", stores)
        keys.append(entry.key)
        entry.encode()
        sizes = [(p.shape[-1], p.shape[-2]) for p in encoder.reference_pixels(items[0])]
        assert seen[-1] == sizes and sizes
    assert keys[0] != keys[1]


@pytest.fixture
def half_clear(tmp_path: Path, dataset):
    """An image and its reference, both red on the left and clear on the right,
    mirrored."""
    for folder in ("x", "ref"):
        (tmp_path / folder).mkdir()
        left_red = Image.new("RGBA", (64, 32), (0, 0, 255, 0))
        left_red.paste((255, 0, 0, 255), (0, 0, 32, 32))
        left_red.save(tmp_path / folder / "a.png")
    found = dataset(tmp_path / "x", control_path=(str(tmp_path / "ref"),), flip_x=True)
    return [
        item
        for item in make_items(
            scan_datasets([found], None).samples, lambda _: (64,), 32
        )
        if item.sample.flip
    ]


def test_transparency_is_trained_where_the_model_has_it(
    half_clear, fake_adapter, monkeypatch
) -> None:
    """The text encoder gets it over white; a background that is given is under it
    everywhere."""
    model, seen = fake_adapter(), []
    stores = CachePair(TensorCache(None), TensorCache(None))
    plain = ItemEncoder(model, torch.float32)
    (item,) = half_clear
    white, black = (
        item._replace(sample=item.sample._replace(background=name))
        for name in ("white", "black")
    )
    keys = [plain.latents(one, stores).key for one in (item, white, black)]
    assert keys[0] == keys[1] != keys[2]
    monkeypatch.setattr(type(model.family), "pixel_channels", 4)
    encode_prompt = model.encode_prompt
    model.encode_prompt = lambda prompt, images: (
        seen.append(images) or encode_prompt(prompt, images)
    )
    encoder = ItemEncoder(model, torch.float32)
    keys = [encoder.latents(one, stores).key for one in (item, white)]
    assert keys[0] != keys[1]
    for one, clear in (
        (item, [0, 0, 0, -1]),
        (white, [1, 1, 1, 1]),
        (black, [-1, -1, -1, 1]),
    ):
        tensors = (encoder.pixels(one), *encoder.reference_pixels(one))
        latents = (encoder.latents(one, stores), *encoder.references(one, stores))
        for pixels_PHW, latents_CHW in zip(
            tensors, (e.tensors()["tensor"] for e in latents), strict=True
        ):
            assert (
                pixels_PHW[:, 4, -4].tolist()
                == latents_CHW[:, 0, -1].tolist()
                == [1, -1, -1, 1]
            )
            left = [(value + 1) * 127.5 for value in pixels_PHW[:, 4, 4].tolist()]
            assert left[3] == (clear[3] + 1) * 127.5 and (
                left[3] == 0 or left == [(v + 1) * 127.5 for v in clear]
            )
        encoder.text(one, "a cat", stores).encode()
        (image,) = seen[-1]
        assert (image.mode, image.getpixel((60, 4))) == ("RGB", (255, 0, 0))
        assert image.getpixel((4, 4)) == (
            (0, 0, 0) if one is black else (255, 255, 255)
        )


def test_what_decides_the_result_is_in_the_key(
    items, tmp_path: Path, image, encode, fake_adapter
) -> None:
    """Each change alone, and the encoders it calls for."""
    larger = fake_adapter()
    larger.reference_scale = 2
    encode(items)
    caption = [
        items[0]._replace(sample=items[0].sample._replace(caption="new")),
        *items[1:],
    ]
    upper = items[0].crop.at(Focus(0.5, 0))
    for changed, options, calls in (
        (items, {"adapter": fake_adapter(vae="other")}, {"images": 4}),
        (items, {"adapter": fake_adapter(text_encoder="other")}, {"prompts": 3}),
        (items, {"adapter": larger}, {"images": 1}),
        (items, {"dtype": torch.float16}, {"images": 4, "prompts": 3}),
        (caption, {}, {"prompts": 1}),
        ([items[0]._replace(crop=upper), *items[1:]], {}, {"images": 1}),
        (
            with_sample(items, background="black"),
            {},
            {"images": 4, "prompts": 2},
        ),  # c's text has no image
        (
            make_items([item.sample for item in items], lambda _: (32,), 32),
            {},
            {"images": 3},
        ),
    ):
        assert encode(changed, **options)[1].calls == calls
    image(tmp_path / "ref" / "a.png", 90, 60, "black")
    # a's reference, and a's text seen with it
    assert encode(items)[1].calls == {
        "images": 1,
        "prompts": 1,
    }


def test_all_unreadable_pictures_are_named_once_the_others_are_done(
    items, encode, fake_adapter
) -> None:
    for path in map(Path, (items[0].sample.image, items[1].sample.control_images[0])):
        torn = bytearray(path.read_bytes())
        torn[torn.index(b"IDAT") + 4] ^= 0xFF  # the header is whole
        path.write_bytes(torn)
    adapter = fake_adapter()
    with pytest.raises(RunError) as caught:
        encode(items, adapter=adapter)
    assert [line.split(": ")[0] for line in str(caught.value).splitlines()] == [
        f"latents of {items[0].sample.image}",
        f"latents of control image {items[1].sample.control_images[0]}",
    ]
    assert adapter.calls == {"images": 3}  # b, c and the reference of a


# ---------------------------------------------------------------- flips and masks


@pytest.fixture
def halves(tmp_path: Path, dataset):
    """Items of `datasets[0]` with these changes: a target and a reference, each black
    left and white right, a mask."""
    for folder, size in (("data", (64, 32)), ("ref", (64, 32)), ("mask", (32, 16))):
        (tmp_path / folder).mkdir()
        picture = Image.new("RGB", size)
        picture.paste("white", (size[0] // 2, 0, *size))
        picture.save(tmp_path / folder / "a.png")

    def make(**changes):
        scan = scan_datasets([dataset(tmp_path / "data", **changes)], None)
        return make_items(scan.samples, lambda _: (64,), 32)

    return make


def test_target_references_and_mask_are_mirrored_together(
    halves, tmp_path: Path, encode, fake_adapter
) -> None:
    seen = []

    class Adapter(fake_adapter):
        def encode_prompt(self, prompt, references):
            seen.append([picture.getpixel((0, 0))[0] for picture in references])
            return super().encode_prompt(prompt, references)

    paths = {
        "control_path": (str(tmp_path / "ref"),),
        "mask_path": str(tmp_path / "mask"),
    }
    encoded, _ = encode(halves(flip_x=True, **paths), adapter=Adapter())
    for plain, flipped in zip(
        encoded.entries[0].images(), encoded.entries[1].images(), strict=True
    ):
        latents_CHW = plain.read()
        torch.testing.assert_close(flipped.read(), latents_CHW.flip(-1))
        assert not torch.allclose(latents_CHW, latents_CHW.flip(-1))
    assert len(encoded.entries[0].images()) == 3
    assert seen == [[0], [255]]  # the text encoder sees the reference as it is used


def test_flips_encode_only_what_is_new_and_share_their_text_without_a_reference(
    halves, encode
) -> None:
    assert encode(halves())[1].calls == {"images": 1, "prompts": 1}
    assert encode(halves(flip_x=True))[1].calls == {"images": 1}
    assert encode(halves(flip_x=True), in_memory=True)[1].calls == {
        "images": 2,
        "prompts": 1,
    }


def test_a_mask_is_cached_by_all_that_decides_it(
    halves, tmp_path: Path, monkeypatch, encode
) -> None:
    made = []
    monkeypatch.setattr(
        "toolkit.data.batches.latent_cache.mask_weights",
        lambda *args: made.append(args) or mask_weights(*args),
    )

    def count(**changes) -> int:
        made.clear()
        encode(halves(**{"mask_path": str(tmp_path / "mask"), **changes}))
        return len(made)

    assert (count(), count()) == (1, 0)
    for changes in ({"mask_min_value": 0.5}, {"invert_mask": True}, {"flip_x": True}):
        assert (count(**changes), count(**changes)) == (1, 0), changes
    Image.new("L", (32, 16), 9).save(tmp_path / "mask" / "a.png")
    assert (count(), count()) == (1, 0)
    Image.new("RGBA", (64, 32)).save(tmp_path / "data" / "a.png")
    (tmp_path / "mask" / "a.png").write_bytes(
        (tmp_path / "data" / "a.png").read_bytes()
    )
    assert count() == 1
    # the same bytes, read another way
    assert count(mask_path=None, alpha_mask=True) == 1


def test_masks_that_leave_nothing_are_named_at_each_start(
    halves, tmp_path: Path, said, encode
) -> None:
    for folder in ("data", "mask"):
        (tmp_path / folder / "b.png").write_bytes(
            (tmp_path / folder / "a.png").read_bytes()
        )
        (tmp_path / folder / "white.png").write_bytes(
            (tmp_path / folder / "a.png").read_bytes()
        )
    for name in "ab":
        Image.new("L", (32, 16)).save(tmp_path / "mask" / f"{name}.png")
    masks = {"mask_path": str(tmp_path / "mask")}
    line = "these masks are black everywhere, so nothing is learned from their images: "
    line += ", ".join(f"mask of {tmp_path / 'data' / name}.png" for name in "ab")
    for _ in range(2):
        encode(halves(**masks))
    assert said == [line, line]
    encode(halves(**masks, mask_min_value=0.1), in_memory=True)
    assert len(said) == 2


def test_each_dataset_says_what_outlives_the_run(
    tmp_path: Path, image, dataset
) -> None:
    image(tmp_path / "data" / "a.png")
    # entries over one folder
    outlive = {
        None: (True, True),
        True: (True, True),
        "latents": (True, False),
        "text": (False, True),
        False: (False, False),
    }
    datasets = [DatasetConfig(folder_path="data", cache=given) for given in outlive]
    stores = CacheStores(tmp_path / "out")
    scan = scan_datasets([dataset(tmp_path / "data")] * len(outlive), None)
    of_sample = stores.of_samples(SimpleNamespace(datasets=datasets))
    for sample, expected in zip(scan.samples, outlive.values(), strict=True):
        for store, outlives in zip(of_sample(sample), expected, strict=True):
            key = f"{sample.dataset}{id(store)}"
            store.put(key, {"a": torch.zeros(1)})
            assert store.get(key) is not None
            assert (
                bool(list((tmp_path / "out" / "_cache").rglob(f"{key}.safetensors")))
                is outlives
            )


def test_what_an_earlier_version_cached_is_still_used(
    items, fake_adapter, tmp_path: Path
) -> None:
    adapter, stores = (
        fake_adapter(),
        CachePair(TensorCache(tmp_path), TensorCache(tmp_path)),
    )
    adapter.cache_keys = lambda part: ("as before",)
    before = ItemEncoder(adapter, torch.float32).latents(items[0], stores)
    before.encode()
    adapter.cache_keys = lambda part: ("as now", "as before")
    encoder = ItemEncoder(adapter, torch.float32)
    assert encoder.latents(items[0], stores).key == before.key
    made_now = encoder.latents(items[1], stores)
    adapter.cache_keys = lambda part: ("as now",)
    assert (
        ItemEncoder(adapter, torch.float32).latents(items[1], stores).key
        == made_now.key
    )


PLAIN = ResizeCrop(Size(32, 16), 0, 0, Size(32, 16))
ROTATED = 6
"""EXIF: to be turned by a quarter."""


def weights(
    path: Path, crop: ResizeCrop = PLAIN, flip: bool = False, **mask
) -> torch.Tensor:
    weights_1HW = mask_weights(Mask(path, **mask), crop, flip, 8)
    assert weights_1HW.dtype == torch.float32 and weights_1HW.shape[0] == 1
    return weights_1HW[0]


def two_halves(
    mode: str, left: object, right: object, size: tuple[int, int] = (32, 16)
) -> Image.Image:
    picture = Image.new(mode, size, left)
    picture.paste(right, (size[0] // 2, 0, *size))
    return picture


@pytest.fixture
def save(tmp_path: Path):
    def save(picture: Image.Image, suffix: str = "png", **options) -> Path:
        path = tmp_path / f"mask.{suffix}"
        picture.save(path, **options)
        return path

    return save


def test_a_latent_pixel_has_the_mean_of_its_64_pixels(save) -> None:
    picture = Image.new("L", (32, 16), 0)
    # of the first block half, of the second a quarter
    picture.paste(255, (0, 0, 12, 4))
    picture.paste(51, (24, 8, 32, 16))  # the last block is a fifth white
    torch.testing.assert_close(
        weights(save(picture)), torch.tensor([[0.5, 0.25, 0, 0], [0, 0, 0, 0.2]])
    )


def test_a_latent_pixel_is_as_large_as_the_family_says(save) -> None:
    mask = Mask(save(two_halves("L", 255, 0)))
    assert mask_weights(mask, PLAIN, False, 16).tolist() == [[[1, 0]]]


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("orientation", [1, ROTATED])
@pytest.mark.parametrize("size", [(150, 90), (64, 64), (37, 201)])
def test_a_mask_goes_the_way_of_its_image(
    tmp_path: Path, size, orientation: int, flip: bool
) -> None:
    """A grey image as its own mask: the weights are the means of exactly the pixels
    that are encoded."""
    path = tmp_path / "a.png"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.effect_noise(size, 90).save(path, exif=exif)
    picture = open_image(path)
    crop = bucket_for(Size(*picture.size), 96, 32)
    pixels_3HW = to_tensor(flip_image(resize_cover_crop(picture, crop), flip))
    expected_HW = (torch.nn.functional.avg_pool2d(pixels_3HW, 8)[0] + 1) / 2
    torch.testing.assert_close(weights(path, crop, flip), expected_HW)


def test_a_mask_of_another_size_is_stretched_over_its_image(save) -> None:
    picture = two_halves("L", 255, 0, (320, 400))
    assert weights(save(picture)).mean(0).tolist() == pytest.approx(
        [1, 1, 0, 0], abs=0.1
    )


def wide_grey() -> Image.Image:
    return Image.fromarray(
        numpy.repeat(
            numpy.array([[65535] * 16 + [0] * 16], dtype=numpy.uint16), 16, axis=0
        )
    )


def clear_right(mode: str, *colour: int) -> Image.Image:
    return two_halves(mode, (*colour, 255), (*colour, 0))


def grey() -> Image.Image:
    return two_halves("L", 255, 51)


WHITE = (255, 255, 255)
AS_OPACITY = {"alpha": True}
OTHERWISE = {"alpha": True, "inverted": True, "min_value": 0.5}
WEIGHTS: dict[str, tuple[Callable[[], Image.Image], dict, dict, list[float]]] = {
    # what: (picture, how it is saved, keys of the mask, the weights of each row)
    "bilevel": (lambda: two_halves("1", 1, 0), {}, {}, [1, 1, 0, 0]),
    "black and white": (lambda: two_halves("L", 255, 0), {}, {}, [1, 1, 0, 0]),
    "16 bits": (wide_grey, {}, {}, [1, 1, 0, 0]),
    "palette": (lambda: two_halves("RGB", WHITE, (0, 0, 0)).quantize(4), {}, {}, [1, 1, 0, 0]),
    "colour": (lambda: two_halves("RGB", WHITE, (0, 0, 0)), {}, {}, [1, 1, 0, 0]),
    "white on nothing": (lambda: clear_right("RGBA", *WHITE), {}, {}, [1, 1, 0, 0]),
    "grey on nothing": (lambda: clear_right("LA", 255), {}, {}, [1, 1, 0, 0]),
    "grey": (grey, {}, {}, [1, 1, 0.2, 0.2]),
    "at least 0.1": (lambda: two_halves("L", 255, 0), {}, {"min_value": 0.1}, [1, 1, 0.1, 0.1]),
    "at least 1": (lambda: two_halves("L", 255, 0), {}, {"min_value": 1.0}, [1, 1, 1, 1]),
    "inverted": (grey, {}, {"inverted": True}, [0, 0, 0.8, 0.8]),
    "inverted, at least 0.5": (grey, {}, {"inverted": True, "min_value": 0.5}, [0.5, 0.5, 0.9, 0.9]),
    "opacity, RGBA": (lambda: clear_right("RGBA", 9, 9, 9), {}, AS_OPACITY, [1, 1, 0, 0]),
    "opacity, LA": (lambda: two_halves("LA", (0, 255), (255, 0)), {}, AS_OPACITY, [1, 1, 0, 0]),
    "opacity, palette": (lambda: two_halves("P", 1, 0), {"transparency": 0}, AS_OPACITY, [1, 1, 0, 0]),
    "opacity, 16-bit grey": (wide_grey, {"transparency": 0}, AS_OPACITY, [1, 1, 0, 0]),
    "opacity, none": (lambda: two_halves("RGB", "red", "blue"), {}, AS_OPACITY, [1, 1, 1, 1]),
    "opacity, otherwise": (lambda: clear_right("RGBA", 9, 9, 9), {}, OTHERWISE, [0.5, 0.5, 1, 1]),
}  # fmt: skip


@pytest.mark.parametrize("what", WEIGHTS)
def test_whatever_a_picture_holds_white_is_one_and_black_or_nothing_the_least(
    save, what: str
) -> None:
    picture, saved, mask, row = WEIGHTS[what]
    found = weights(save(picture(), **saved), **mask)
    assert found.tolist() == [pytest.approx(row, rel=1e-6, abs=0)] * 2


def test_opacity_is_turned_as_its_image_is(save) -> None:
    exif = Image.Exif()
    exif[0x0112] = ROTATED  # a quarter clockwise: what is left comes to the top
    path = save(clear_right("RGBA", 9, 9, 9), exif=exif)
    turned = weights(path, ResizeCrop(Size(16, 32), 0, 0, Size(16, 32)), alpha=True)
    assert turned.tolist() == [[1.0, 1.0]] * 2 + [[0.0, 0.0]] * 2
