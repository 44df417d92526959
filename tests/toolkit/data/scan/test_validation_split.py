"""Which images are measured and not trained on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from toolkit.contracts.data import CaptionRules
from toolkit.data.scan.validation_split import (
    ValidationSplit,
    as_measured,
    scan_and_split,
)
from toolkit.errors import DataErrors, UserError

FAMILY = SimpleNamespace(
    size_multiple=32,
    sure_prompt=500,
    max_references=3,
    longest_side=None,
    prompt_error=lambda *_: None,
)


def section(
    *datasets,
    fraction: float | None = None,
    own=None,
    trigger: str = "",
) -> SimpleNamespace:
    """What `scan_and_split` asks of a job; `own` is the dataset of a validation
    folder."""
    validation = SimpleNamespace(
        fraction=fraction,
        folder_path=own and own.folder_path,
        timesteps=4,
        dataset=lambda datasets: own,
    )
    given = validation if fraction or own else None
    return SimpleNamespace(
        datasets=datasets,
        streamed=None,
        reads_captions=True,
        trigger_word=trigger,
        validation=given,
        model=None,
    )


@pytest.fixture
def folder(image, tmp_path: Path):
    """A folder of ten images with captions."""

    def make(name: str = "3_photos", count: int = 10) -> Path:
        for index in range(count):
            image(tmp_path / name / f"p{index}.png", 64 + 32 * index, 64)
            (tmp_path / name / f"p{index}.txt").write_text(f"photo {index}")
        return tmp_path / name

    return make


def names(validation_split: ValidationSplit) -> list[str]:
    return [item.sample.name for item in validation_split.items]


def test_without_the_section_everything_is_trained_on(folder, dataset) -> None:
    scan, items, validation_split = scan_and_split(section(dataset(folder())), FAMILY)
    assert (len(scan.samples), len(items), validation_split) == (10, 10, None)


def test_a_fraction_is_taken_out_of_the_training_and_at_least_one(
    folder, dataset
) -> None:
    images = dataset(folder())
    shares = {0.01: 1, 0.1: 1, 0.14: 1, 0.16: 2, 0.3: 3, 0.5: 5}
    for fraction, count in shares.items():
        scan, items, split = scan_and_split(section(images, fraction=fraction), FAMILY)
        assert len(split.items) == count and split.from_training, fraction
        assert len(items) == len(scan.samples) == 10 - count, fraction
        assert {item.sample.name for item in items}.isdisjoint(names(split))
        told = f"validation: {count} image{'s' * (count > 1)} held out"
        assert told in split.notes[0]


def test_regularisation_images_stay_and_one_image_is_left_to_train_on(
    folder, dataset
) -> None:
    few = dataset(folder("a", 2))
    job = section(few, dataset(folder("b"), is_reg=True), fraction=0.5)
    _, items, split = scan_and_split(job, FAMILY)
    assert len(items) == 11 and [
        Path(item.sample.image).parent.name for item in split.items
    ] == ["a"]
    assert len(scan_and_split(section(few, fraction=0.5), FAMILY)[1]) == 1
    with pytest.raises(UserError, match="none would be left to train on"):
        scan_and_split(section(dataset(folder("c", 1)), fraction=0.5), FAMILY)


def test_an_image_goes_at_all_its_sizes_mirrors_and_in_all_datasets(
    folder, dataset
) -> None:
    path = folder()
    link = path.with_name("link")
    link.symlink_to(path)
    twice = section(
        dataset(path, resolution=(64, 96), flip_x=True), dataset(link), fraction=0.2
    )
    scan, items, validation_split = scan_and_split(twice, FAMILY)
    assert len(set(names(validation_split))) == 2
    # two sizes of the first dataset, one of the second; no mirrors
    assert len(validation_split.items) == 2 * (2 + 1)
    assert not any(item.sample.flip for item in validation_split.items)
    assert len(items) == 8 * (2 * 2 + 1)
    assert {sample.name for sample in scan.samples}.isdisjoint(names(validation_split))


def test_the_draw_does_not_depend_on_the_order_or_the_place_of_the_datasets(
    folder, dataset, tmp_path: Path
) -> None:
    one, two = dataset(folder("a")), dataset(folder("b"))
    _, _, first = scan_and_split(section(one, two, fraction=0.25), FAMILY)
    _, _, second = scan_and_split(section(two, one, fraction=0.25), FAMILY)
    (tmp_path / "moved").mkdir()
    for name in ("a", "b"):
        (tmp_path / name).rename(tmp_path / "moved" / name)
    moved = (dataset(tmp_path / "moved" / name) for name in ("a", "b"))
    _, _, third = scan_and_split(section(*moved, fraction=0.25), FAMILY)
    chosen = [
        sorted("/".join(Path(i.sample.image).parts[-2:]) for i in h.items)
        for h in (first, second, third)
    ]
    assert chosen[0] == chosen[1] == chosen[2]


def test_more_images_leave_what_was_drawn_unless_they_take_its_place(
    folder, dataset
) -> None:
    """Drawn by a key of its own for each image: nothing shifts."""
    few, many = folder("a", 10), folder("a", 10)
    before = names(scan_and_split(section(dataset(few), fraction=0.3), FAMILY)[2])
    folder("a", 20)
    after = names(scan_and_split(section(dataset(many), fraction=0.3), FAMILY)[2])
    new = [name for name in after if int(name[1:-4]) >= 10]
    assert len(set(before) - set(after)) <= len(new)


def test_they_are_measured_as_they_are(folder, dataset) -> None:
    shuffled = dataset(
        folder(),
        caption_dropout_rate=0.9,
        shuffle_tokens=True,
        keep_tokens=1,
    )
    _, items, validation_split = scan_and_split(
        section(shuffled, fraction=0.1, trigger="maya"), FAMILY
    )
    sample = validation_split.items[0].sample
    assert sample.caption.startswith("maya")
    assert (sample.rules, sample.repeats) == (CaptionRules(trigger="maya"), 1)
    heavy = items[0]._replace(sample=items[0].sample._replace(loss_weight=3.0))
    assert as_measured(heavy).sample.loss_weight == 1.0
    assert items[0].sample.rules.dropout_rate == 0.9


def test_a_dataset_that_is_held_out_whole_is_counted_nowhere(folder, dataset) -> None:
    others = dataset(folder("b", 3))
    drawn = (
        scan_and_split(section(alone, others, fraction=0.25), FAMILY)
        for alone in (dataset(folder(f"only{index}", 1)) for index in range(40))
    )
    scan, items, _ = next(
        found
        for found in drawn
        if Path(found[2].items[0].sample.image).parent.name != "b"
    )
    assert [Path(found.folder).name for found in scan.folders] == ["b"]
    assert {item.sample.dataset for item in items} == {1}


def test_a_folder_of_its_own_takes_nothing_from_the_training(folder, dataset) -> None:
    own = dataset(folder("val", 2), resolution=(64, 96), caption_dropout_rate=0.5)
    scan, items, validation_split = scan_and_split(
        section(dataset(folder()), own=own), FAMILY
    )
    assert (len(scan.samples), len(items)) == (10, 10)
    assert (len(validation_split.items), validation_split.from_training) == (4, False)
    assert {item.sample.rules for item in validation_split.items} == {CaptionRules()}
    assert validation_split.notes[0].endswith(
        "val, 2 images; 16 forward passes each time"
    )


def test_mistakes_in_the_folder_are_all_named(folder, dataset) -> None:
    own = folder("val", 3)
    for name in ("p0.png", "p2.png"):
        (own / name).write_bytes(b"no picture")
    with pytest.raises(DataErrors) as caught:
        scan_and_split(section(dataset(folder()), own=dataset(own)), FAMILY)
    assert [Path(mistake.place).name for mistake in caught.value.errors] == [
        "p0.png",
        "p2.png",
    ]
