"""Alike items are one group; the batch, the held-out picture and the sample that the model sees most of."""

from __future__ import annotations

import pytest

from extensions.sd_trainer.memory_items import Group, Largest, Sizes, group_items
from tests.extensions.sd_trainer.test_memory_plan import item, section
from toolkit.contracts import Item
from toolkit.models.qwen_edit.footprint import footprint

PIXELS = 1024 * 1024


def sizes(*items: Item, held_out: tuple[Item, ...] = (), area: float = 1.0, **parts) -> Sizes:
    job = section(**parts)
    return Sizes(job, footprint(job.model.folder()), group_items(job, items, held_out), area)


def test_alike_items_are_one_group() -> None:
    """However many images there are, a plan looks at each once."""
    items = [*[item(repeats=3) for _ in range(50)], item(512), item(references=2)]
    groups = group_items(section(), items, held_out=[item()])
    assert [(group.bucket, group.references, group.held_out, group.count, group.uses) for group in groups] == [
        ((1024, 1024), 1, False, 50, 150),
        ((512, 512), 1, False, 1, 9),
        ((1024, 1024), 2, False, 1, 9),
        ((1024, 1024), 1, True, 1, 9),
    ]
    assert isinstance(groups[0], Group)


def test_tokens_are_those_of_all_pictures_and_texts() -> None:
    largest = Largest(images=2, pixels=PIXELS, references=2, reference_pixels=PIXELS // 4, text_tokens=100)
    assert sizes(item()).tokens(largest) == 2 * (4096 + 2 * 1024 + 100)


def test_a_batch_has_no_more_images_than_its_bucket_has_uses() -> None:
    found = sizes(item(references=0, repeats=2), item(512, references=0, repeats=9))
    assert [found.batch(most).images for most in (1, 2)] == [1, 2]
    assert found.batch(4).images == 2  # two of the large ones are more than four of the small ones
    assert found.batch(9).images == 9


def test_references_follow_their_target_where_they_should() -> None:
    follows = {"model_kwargs": {"match_target_res": True}}
    assert sizes(item(512)).batch(1).reference_pixels == PIXELS
    assert sizes(item(512), model=follows).batch(1).reference_pixels == 512 * 512
    assert sizes(item(512), model=follows, area=0.25).batch(1).reference_pixels == 256 * 256


def test_what_is_held_out_is_not_in_a_batch() -> None:
    found = sizes(item(512), held_out=(item(), item(256)))
    assert found.batch(1).pixels == 512 * 512
    assert found.held_out().pixels == PIXELS
    assert sizes(item(repeats=1), held_out=(item(),)).batch(4).images == 1
    assert sizes(item()).held_out() is None


@pytest.mark.parametrize(("disabled", "count"), [(False, 2), (True, 0)])
def test_samples_are_drawn_one_at_a_time(disabled: bool, count: int) -> None:
    sample = {"samples": [{"prompt": "a"}, {"prompt": "b" * 300, "width": 512}], "width": 1024, "height": 1024}
    found = sizes(item(), sample=sample, train={"disable_sampling": disabled}).samples()
    assert [(one.images, one.pixels) for one in found] == [(1, PIXELS), (1, PIXELS // 2)][:count]
    assert [one.reference_pixels for one in found] == [0, 0][:count]  # nothing of them is encoded
    assert not found or found[1].text_tokens - found[0].text_tokens == 99
