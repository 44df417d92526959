"""Captions and sample prompts of two kinds are told; of one kind they are not, as
people and models write them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from extensions.tools.lint.text_kinds import SENTENCES, TAGS, form_of, unlike, words_in
from tests.conftest import ROOT
from tests.running import section_of
from toolkit.config import load_job
from toolkit.config.sections.trainer import ImageTrainingSection
from toolkit.extension import discover

SHORT_TAGS = [
    "smiling, red coat",
    "close portrait, smiling, red coat, street at night",
    "full body, park",
    "sitting",
]
BOORU = [
    "1girl, solo, long hair, blue eyes, smile, outdoors, school uniform",
    "1girl, solo, looking at viewer, sitting, bench, park, blue sky",
    "1girl, short hair, red dress, standing, night, city lights",
]
SENTENCE = [
    "A woman in a red coat stands on a street at night.",
    "She sits on a bench in a park and reads a book.",
    "A close portrait of a woman who smiles into the camera.",
]
PROSE = [
    "The photograph shows a woman in her thirties who stands on a wet street at night, wearing a long red coat with a "
    "wide collar. Her hair is tied back, and the light of a shop window falls on the left side of her face. Behind "
    "her, out of focus, several people with umbrellas cross the road, and the reflections of traffic lights colour the "
    "asphalt in green and amber. The camera is at eye level, and the depth of field is shallow."
] * 3
INSTRUCTIONS = [
    "make it night",
    "remove the hat",
    "turn the jacket blue and keep everything else as it is",
]
CHINESE = [
    "一位穿着红色大衣的女子站在夜晚的街道上",
    "女子坐在公园的长椅上看书",
    "一位微笑的女子的特写",
]


@pytest.mark.parametrize(
    ("captions", "prompts"),
    [
        (
            SHORT_TAGS,
            ["portrait, smiling, natural light", "full body, standing in a street"],
        ),
        (SHORT_TAGS, SENTENCE),
        (SENTENCE, SHORT_TAGS),
        (BOORU, BOORU[::-1]),
        (BOORU, ["portrait, smiling, natural light"]),
        (PROSE, [PROSE[0].replace("woman", "man"), PROSE[0][:200]]),
        (
            INSTRUCTIONS,
            [
                "put her on a beach",
                "change the background to a snowy mountain at dawn with fog below",
            ],
        ),
        (CHINESE, ["一位穿着蓝色毛衣的女子在雪中行走"]),
        (["", "", ""], SENTENCE),
        (SENTENCE[:2], PROSE),
        (
            ["a cat"] * 3,
            [
                "a cat on a mat beside a window, in the evening sun, seen from above, with a red ball"
            ],
        ),
        # Several captions of each image, short and long: any of the two is a prompt as
        # they are.
        ([*SENTENCE, *PROSE], [SENTENCE[0], PROSE[0]]),
        # One odd caption among many makes no range.
        (SENTENCE * 10, SENTENCE),
    ],
)
def test_of_one_kind_nothing_is_told(captions: list[str], prompts: list[str]) -> None:
    assert unlike(captions, prompts) == []


def test_prompts_of_an_enhancer_are_told_where_people_wrote_the_captions() -> None:
    told = unlike(SENTENCE, [*PROSE[:2], SENTENCE[0]])
    expected = "captions have 12 words (the median), and 2 of 3 sample prompts have 83"
    assert told == [f"{expected}, which is far longer than nearly all of them"]
    assert unlike([*SENTENCE * 10, PROSE[0]], PROSE[:1]) != [], (
        "one long caption of thirty makes no difference"
    )


def test_short_prompts_are_told_where_a_model_wrote_the_captions() -> None:
    told = unlike(PROSE, ["portrait, smiling", "a woman in the snow"])
    expected = (
        "captions have 83 words (the median), and 2 of 2 sample prompts have 2 to 5"
    )
    assert told == [f"{expected}, which is far shorter than nearly all of them"]


def test_tags_against_sentences_are_told_both_ways() -> None:
    assert unlike(BOORU, [SENTENCE[0], "portrait"]) == [
        "captions are a list of tags, and 1 of 2 sample prompts is sentences"
    ]
    assert unlike(SENTENCE, BOORU) == [
        "captions are sentences, and 3 of 3 sample prompts are a list of tags"
    ]


@pytest.mark.parametrize(
    ("text", "words", "form"),
    [
        ("", 0, ""),
        (BOORU[0], 10, TAGS),
        (SENTENCE[0], 12, SENTENCES),
        (PROSE[0], 83, SENTENCES),
        ("a pipo mascot, without a hat, holding a balloon, waving, in a room", 13, ""),
        ("close portrait, smiling, red coat, street at night", 8, ""),
        (CHINESE[0], 9, SENTENCES),
        ("don't well-known", 2, ""),
    ],
)
def test_words_and_form_of_a_text(text: str, words: int, form: str) -> None:
    assert (words_in(text), form_of(text)) == (words, form)


def lint(path: Path) -> list[str]:
    from extensions.tools.lint.checks import run_checks
    from extensions.tools.lint.dataset import read_datasets

    section = section_of("lint", [str(path)])
    found = [
        finding
        for data in read_datasets(section, lambda *_: None)
        for finding in run_checks(data, section)
    ]
    return [
        f"{Path(finding.place).name}: {finding.message}"
        for finding in found
        if finding.check == "prompts"
    ]


def test_a_job_is_checked_without_its_trigger_word_and_its_regularisation(
    folder: Path, make_pictures, write_job, trainer
) -> None:
    """Captions of the folder: `ohwx man at place 0`. Those of regularisation images do
    not count."""
    reg = make_pictures(folder.parent / "reg", "a", "b", "c")
    for stem in "abc":
        (reg / f"{stem}.txt").write_text(PROSE[0])
    datasets = [
        {"folder_path": "photos", "resolution": 256},
        {"folder_path": str(reg), "is_reg": True, "resolution": 64},
    ]
    for prompt, expected in (
        ("[trigger] man in a room", []),
        (f"[trigger] {PROSE[0]}", ["photos: captions have 4 words (the median), and 1 of 1 sample prompts have 83, "
                                   "which is far longer than nearly all of them"]),
    ):  # fmt: skip
        job = write_job(
            trainer(
                folder,
                datasets=datasets,
                trigger_word="ohwx",
                sample={"prompts": [prompt]},
            )
        )
        assert lint(job) == expected


EXAMPLES = ROOT / "config" / "examples"


@pytest.mark.parametrize(
    "example", sorted(path.name for path in EXAMPLES.glob("*.yaml"))
)
def test_no_example_is_told(example: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the captions that are in the repository, or that the job's own processes
    write."""
    monkeypatch.chdir(ROOT)
    job = load_job(EXAMPLES / example, discover().find_config)
    for entry in job.processes:
        section = entry.section
        folders = [
            Path(one.folder_path)
            for one in getattr(section, "datasets", ())
            if not one.is_reg
        ]
        has_prompts = isinstance(section, ImageTrainingSection) and hasattr(
            section, "sample_pictures"
        )
        if not has_prompts or not all(folder.is_dir() for folder in folders):
            continue  # an autoencoder, or pictures that the job draws first
        captions = [
            file.read_text() for folder in folders for file in folder.rglob("*.txt")
        ]
        prompts = [item.prompt for item in section.sample_pictures()]
        assert captions and unlike(captions, prompts) == []
    assert yaml.safe_load((EXAMPLES / example).read_text())
