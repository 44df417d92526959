"""Prompts and samples: shapes, and what an item takes from its section."""

from __future__ import annotations

import pytest


def test_prompts_become_samples(section) -> None:
    sample = section("sample: {prompts: [a, '', 'b -- c'], neg: false, seed: 5, walk_seed: true}").sample
    assert [item.prompt for item in sample.samples] == ["a", "", "b -- c"]
    assert [(item.seed, item.neg, item.width) for item in sample.pictures()] == [
        (5, "", 1024),
        (6, "", 1024),
        (7, "", 1024),
    ]


def test_an_item_outranks_its_section(section) -> None:
    sample = section(
        "sample: {neg: ugly, seed: 5, samples: [{prompt: a, neg: '', seed: 0, width: 512}, {prompt: b}]}"
    ).sample
    first, second = sample.pictures()
    assert (first.neg, first.seed, first.width) == ("", 0, 512)
    assert (second.neg, second.seed, second.width) == ("ugly", 5, 1024)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("prompts: [a], samples: [{prompt: b}]", "prompts: 'samples' is given as well. Keep one."),
        ("prompts: a", "prompts: is not a list. Write one prompt per line, each after '- '."),
        ("prompts: [a, 5]", 'prompts[1]: 5 is not text. Put it in quotes: "5"'),
        ("prompts: [null]", "prompts[0]: needs a value."),
        ("samples: [{seed: 1}]", "samples[0].prompt: is required."),
        ("samples: [{prompt: a, ctrl_img: none.png}]", "samples[0].ctrl_img: 'none.png' does not exist"),
        ("samples: [{prompt: a, ctrl_img_2: none.png}]", "samples[0].ctrl_img_2: 'none.png' does not exist"),
        ("samples: [{prompt: a, ctrl_img_1: photos}]", "samples[0].ctrl_img_1: 'photos' is not a file."),
        ("sampler: ddpm", "sampler: 'ddpm' cannot sample Qwen-Image. Use 'flowmatch'."),
        ("width: 32", "width: 32 is out of range: must be >= 64."),
        ("sample_steps: 0", "sample_steps: 0 is out of range: must be >= 1."),
        ("format: gif", "format: 'gif' is unknown."),
    ],
)
def test_mistakes_of_a_sample_section(faults, keys: str, message: str) -> None:
    (found,) = faults(f"sample: {{{keys}}}")
    assert found.startswith(f"sample.{message}")
