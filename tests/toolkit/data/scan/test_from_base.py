"""Which images the base model makes, what is refused and what is told, without a
run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from extensions.sd_trainer.config import SdTrainerConfig
from toolkit.config.reading.process import JobContext
from toolkit.config.sections.dataset import DatasetConfig, FromBaseConfig
from toolkit.contracts.data import BaseImage, Size
from toolkit.data.scan.captions import CaptionError
from toolkit.data.scan.from_base import (
    base_images,
    made_folders,
    not_made_yet,
    place_of,
    read_prompts,
    write_base_image,
)
from toolkit.data.scan.items import make_items, refuse_long_captions
from toolkit.errors import DataErrors
from toolkit.models.families import family_for

SIZE = Size(64, 64)


@pytest.fixture
def section(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    def make(text: str, **dataset: object) -> SdTrainerConfig:
        Path("prompts.txt").write_text(text, encoding="utf-8")
        given = {
            "from_base": {"prompts": "prompts.txt"},
            "resolution": 64,
            "is_reg": True,
            **dataset,
        }
        model = {"name_or_path": str(tiny_model)}
        return SdTrainerConfig(
            type="sd_trainer", trigger_word="zxq", datasets=[given], model=model
        )

    return make


def seeds(*prompts: str, **keys: object) -> dict[tuple[str, int], int]:
    """(prompt, its use) -> seed."""
    made, found = FromBaseConfig(prompts="p.txt", **keys), {}
    for image in base_images(made, prompts, SIZE, "base", family_for_edit()):
        found[image.prompt, sum(prompt == image.prompt for prompt, _ in found)] = (
            image.seed
        )
    return found


def family_for_edit():
    from toolkit.config.sections.model import ModelConfig

    return family_for(ModelConfig(name_or_path="Qwen/Qwen-Image-Edit-2509"))


def test_fewer_prompts_than_images_are_used_again_with_other_seeds() -> None:
    found = seeds("a", "b", count=5)
    assert list(found) == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2)]
    assert len(set(found.values())) == 5
    assert list(seeds("a", "b", count=1)) == [("a", 0)]
    assert list(seeds("a", "b")) == [("a", 0), ("b", 0)]


def test_a_prompt_that_is_added_leaves_the_images_of_the_others() -> None:
    before, after = seeds("a", "b"), seeds("new", "b", "a")
    assert before.items() <= after.items()
    assert not set(seeds("a", "b", seed=1).values()) & set(before.values())


def test_all_that_decides_an_image_is_in_its_name() -> None:
    image = BaseImage("base", "a", "", SIZE, 1, 2, 4.0)
    others = [
        image._replace(base="other"),
        image._replace(prompt="b"),
        image._replace(negative="n"),
        image._replace(size=Size(64, 96)),
        image._replace(seed=2),
        image._replace(steps=3),
        image._replace(guidance_scale=3.0),
    ]
    assert len({place_of("output", each) for each in (image, *others)}) == 8
    assert place_of("output", image).parent == Path("output/_cache/from_base/base")


def test_a_prompt_is_a_line_as_an_editor_shows_it(tmp_path: Path) -> None:
    """Prompt enhancers write such characters; a caption has them too (`captions:
    lines`)."""
    file = tmp_path / "p.txt"
    for text, prompts in (
        ("\ufeff# all\r\n\r\n a cat \r\n", ["a cat"]),
        (
            "\ufeffa cat\u2028and a dog\r\n\x0ba\x85b\rc\n",
            ["a cat\u2028and a dog", "a\x85b", "c"],
        ),
    ):
        file.write_bytes(text.encode())
        assert read_prompts(str(file)) == prompts
    file.write_text("# nothing\n\n")
    with pytest.raises(CaptionError) as caught:
        read_prompts(str(file))
    assert (
        caught.value.reason
        == "holds no prompt. Write one per line; '#' begins a line that is left out"
    )


def test_a_file_without_prompts_is_refused_by_the_plan(section) -> None:
    with pytest.raises(DataErrors, match=r"prompts\.txt: holds no prompt"):
        section("\n").plan(JobContext("job"))


def test_what_is_rarely_meant_is_told_by_the_plan_and_lint(
    section, tmp_path: Path
) -> None:
    job = section("a zxq cat\na dog --w 64 --n blurred\n(a tree:1.3)\n")
    _, faults = made_folders(job, family_for(job.model))
    told = [message for _, message in faults]
    assert told[0] == (
        "1 prompt with 'zxq', whose meaning the base model does not know: 'a zxq cat'. "
        "Write what it is an example of instead"
    )
    assert told[1] == (
        "1 prompt with flags, which are part of the text here: 'a dog --w 64 --n blurred'. "
        "Give 'neg', 'sample_steps' and 'guidance_scale' of 'from_base', and 'resolution'"
    )
    assert "weights" in told[2] and len(told) == 3
    plan = job.plan(JobContext("job"))
    assert [f"warning: prompts.txt: {message}" for message in told] == [
        note for note in plan.notes if note.startswith("warning: prompts.txt")
    ]


@pytest.mark.parametrize(
    ("keys", "key", "message"),
    [
        (
            {"folder_path": "."},
            "folder_path",
            "cannot be combined with 'from_base', which has no files.",
        ),
        (
            {"caption_ext": "txt"},
            "caption_ext",
            "cannot be combined with 'from_base', which has no files.",
        ),
        (
            {"is_reg": False},
            "is_reg",
            "images of the base model are regularisation images.",
        ),
        (
            {"from_base": {"prompts": "none.txt"}},
            "from_base.prompts",
            "'none.txt' does not exist",
        ),
    ],
)
def test_what_does_not_go_with_it_is_refused(
    section, keys: dict, key: str, message: str
) -> None:
    found = list(section("a cat\n", **keys).datasets[0].check(JobContext("job")))
    assert [
        ".".join(map(str, each.key)) for each in found if each.severity == "error"
    ] == [key]
    assert found[0].message.startswith(message)


def test_a_count_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        DatasetConfig(from_base={"prompts": "p.txt", "count": 0})


def test_an_image_that_was_cut_off_is_made_again(section) -> None:
    found = section("a cat\na dog\n")
    (folder,), _ = made_folders(found, family_for_edit())
    items = make_items(folder.samples, lambda _: (64,), 16)
    first, second = (Path(item.sample.image) for item in items)
    for path in (first, second):
        write_base_image(path, Image.new("RGB", (64, 64)), "a")
    assert not_made_yet(items) == {}
    for size in (second.stat().st_size - 1, 5, 0):
        os.truncate(second, size)
        assert list(not_made_yet(items)) == [str(second)]


def test_a_prompt_that_is_too_long_is_named_by_its_file(section) -> None:
    """Its images are not there yet."""
    found = section(
        "short\n" + "word " * 100, from_base={"prompts": "prompts.txt", "count": 6}
    )
    (folder,), _ = made_folders(found, family_for_edit())
    items = make_items(folder.samples, lambda _: (64,), 16)
    with pytest.raises(DataErrors) as caught:
        refuse_long_captions(
            items,
            lambda text, target, references: "too much." if len(text) > 99 else None,
        )
    begin = ("word " * 100)[:40]
    assert str(caught.value) == f"prompts.txt: its prompt {begin!r}... has too much."
