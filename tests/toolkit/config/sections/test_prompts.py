"""Flags in a sample's prompt: what is one, what it means, what stays text."""

from __future__ import annotations

import pytest

from tests.toolkit.config.conftest import trainer
from toolkit.config.reading.changes import read_changes
from toolkit.config.sections.prompts import split_flags
from toolkit.errors import ConfigErrors


def picture(section, prompt: str, keys: str = ""):
    """The one image of a sample section with this prompt."""
    quoted = prompt.replace("'", "''")
    return section(
        f"sample: {{samples: [{{prompt: '{quoted}'{keys}}}]}}"
    ).sample.sample_items()[0]


@pytest.mark.parametrize(
    "text",
    [
        "a sign -- hand painted",
        "well--known --well -known",
        "/data/my--set/x.png",
        "a--w 512",
        "--",
        "dash --w512 and ---w 5",
        "  spaces stay  ",
        "",
    ],
)
def test_two_dashes_alone_make_no_flag(text: str) -> None:
    assert split_flags(text) == (text, [])


def test_every_flag_of_the_other_trainers_means_its_key(section, tmp_path) -> None:
    (tmp_path / "a.png").touch()
    found = picture(
        section,
        "a cat  --w 512 --h 640 --s 12 --d 7 --l 2.5 --n blurry, dark --fs 3 --ci a.png",
    )
    assert found.prompt == "a cat"
    assert (found.width, found.height, found.sample_steps, found.seed) == (
        512,
        640,
        12,
        7,
    )
    assert (found.guidance_scale, found.neg, found.flow_shift, found.ctrl_img) == (
        2.5,
        "blurry, dark",
        3.0,
        ("a.png",),
    )
    longer = picture(
        section, "b --width 128 --height 96 --steps 3 --seed 0 --cfg 1 --ctrl_img a.png"
    )
    assert (longer.width, longer.height, longer.sample_steps, longer.seed) == (
        128,
        96,
        3,
        0,
    )
    assert (longer.guidance_scale, longer.ctrl_img) == (1.0, ("a.png",))


def test_a_negative_prompt_reaches_to_the_next_flag_whatever_dashes_it_has(
    section,
) -> None:
    found = picture(
        section, "a --n a low-res -- very bad, over--sharp --strange --W 512"
    )
    assert (found.neg, found.width) == (
        "a low-res -- very bad, over--sharp --strange",
        512,
    )
    assert picture(section, "a --n --w 512", ", seed: 3").neg == ""


def test_up_to_three_images_in_order_with_spaces_and_flags_in_quotes(
    section, tmp_path
) -> None:
    names = ["my photos/a b.png", "x --w 5.png", "it's.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = picture(
        section, 'a --ci my photos/a b.png --ci "x --w 5.png" --w 96 --ci it\'s.png'
    )
    assert (found.ctrl_img, found.width, found.prompt) == (tuple(names), 96, "a")
    numbered = picture(section, "a --ctrl_img_2 it's.png --ctrl_img_1 'x --w 5.png'")
    assert numbered.ctrl_img == ("x --w 5.png", "it's.png")


def test_flags_and_keys_may_say_the_same(section) -> None:
    assert picture(section, "a --w 512", ", width: 512").width == 512


def test_flags_that_ask_for_nothing_pass(section) -> None:
    assert picture(section, "a --m 1.0 --f 1 --ctrl_idx 0 --gr 0").prompt == "a"


@pytest.mark.parametrize(
    ("prompt", "keys", "message"),
    [
        (
            "a --w 512",
            ", width: 640",
            "--w: '--w' and 'width' mean the same, but 512 and 640 were given. Remove one o",
        ),
        ("a --w 512 --width 640", "", "--width: '--width' and '--w' mean the same"),
        ("a --w x", "", "--w: 'x' is not a whole number."),
        ("a --h 32", "", "--h: 32 is out of range: must be >= 64."),
        ("a --s 2.5", "", "--s: "),
        ("a --d -2", "", "--d: -2 is out of range: must be >= -1."),
        ("a --l much", "", "--l: 'much' is not a number."),
        ("a --fs 0", "", "--fs: 0 is out of range: must be >= 0.001."),
        ("a --w", "", "--w: needs a value."),
        ("a --w --h 64", "", "--w: needs a value."),
        ("a --ci", "", "--ci: needs a value."),
        (
            "a --w 512 on a mat",
            "",
            "--w: takes one number, and 'on a mat' follows it. Put the prompt's text before",
        ),
        ("a --ci no.png", "", "--ci: 'no.png' does not exist"),
        (
            "a --ci a --ci b --ci c --ci d --ci e --ci f --ci g --ci h --ci i --ci j --ci k",
            "",
            "--ci: has 11 entries: must be at most 10.",
        ),
        ("a --m 0.5", "", "--m: '0.5' is not supported yet. Leave this flag out."),
        ("a --of x", "", "--of: 'x' is not supported yet. Leave this flag out."),
    ],
)
def test_mistakes_in_flags_have_the_place_of_the_prompt(
    mistakes, prompt: str, keys: str, message: str
) -> None:
    found = mistakes(trainer("sample:", f"  samples: [{{prompt: '{prompt}'{keys}}}]"))
    assert len(found) == 1
    place, text = found[0].split(": process[0].sample.samples[0].prompt.")
    assert place == "9:28"
    assert text.startswith(message)


def test_unknown_flags_stay_in_the_prompt_with_one_warning(load) -> None:
    job = load(trainer("sample: {prompts: ['a --foo bar --foo --style loud --w 96']}"))
    (picture,) = job.processes[0].section.sample.sample_items()
    assert (picture.prompt, picture.width) == ("a --foo bar --foo --style loud", 96)
    (warning,) = job.warnings
    assert warning.endswith(
        "sample.prompts[0]: '--foo', '--style': no flag of a sample prompt, so it stays in the text."
    )


def test_a_flag_without_effect_is_told_and_is_no_part_of_the_prompt(load) -> None:
    job = load(trainer("sample: {prompts: ['a --g 3.5']}"))
    assert job.processes[0].section.sample.samples[0].prompt == "a"
    assert ["prompts[0].--g: has no effect: " in line for line in job.warnings] == [
        True
    ]


@pytest.mark.parametrize("key", ["prompts", "samples"])
def test_a_file_of_prompts_in_a_list_is_no_prompt(mistakes, key: str) -> None:
    (found,) = mistakes(
        trainer(f"sample: {{{key}: [a cat, prompts.txt, a sign with the word a.txt]}}")
    )
    what = "'prompts.txt' is the name of a file, and a list has the prompts themselves. Write 'prompts: prompts.txt'."
    assert found.endswith(f"sample.{key}[1]: {what}")


def test_a_file_of_prompts_that_git_lfs_did_not_download_is_named(
    mistakes, tmp_path
) -> None:
    (tmp_path / "prompts.txt").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    )
    (found,) = mistakes(trainer("sample: {prompts: prompts.txt}"))
    assert found.endswith(
        "sample.prompts: 'prompts.txt' is what Git LFS has in the place of a file that was not downloaded. "
        "Run 'git lfs pull' in its repository, or download the file by itself."
    )


def test_prompts_of_a_flag_beside_samples_get_the_flag_that_works(load) -> None:
    text = trainer("sample: {samples: [{prompt: a cat}]}")
    with pytest.raises(ConfigErrors) as refused:
        load(text, changes=read_changes(["sample.prompts=[a dog, 'b, é']"]))
    said = """Write: --set 'sample.samples=["a dog", "b, é"]'"""
    assert str(refused.value).endswith(said)
    (entry,) = load(text, changes=read_changes([said[14:-1]])).processes
    assert [item.prompt for item in entry.section.sample.sample_items()] == [
        "a dog",
        "b, é",
    ]
