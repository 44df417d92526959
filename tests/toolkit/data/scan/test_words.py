"""Captions and sample prompts of two kinds are told; of one kind they are not, as
people and models write them."""

from __future__ import annotations

import pytest

from toolkit.contracts.data import CaptionRules, Sample, Size
from toolkit.data.scan.captions import inject_trigger
from toolkit.data.scan.words import (
    SENTENCES,
    TAGS,
    WordFinding,
    form_of,
    unlike,
    word_findings,
    words_in,
)

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


# ------------------------------------------------------------ whole sets of captions

PLACES = (
    "on a beach at sunset",
    "in a busy street at night",
    "beside a window",
    "in a forest",
    "on a red sofa",
    "in a kitchen",
    "under a bridge in the rain",
    "at a wooden desk",
    "in front of a white wall",
    "on a snowy hill",
    "in a library",
)
POSES = (
    "smiling",
    "looking to the left",
    "sitting with crossed legs",
    "close-up of the face",
    "seen from behind",
    "laughing",
    "full body, walking",
)
CLOTHES = (
    "a black coat",
    "a blue t-shirt",
    "a red dress",
    "a green hoodie and jeans",
    "a grey suit",
    "a white blouse",
    "a yellow raincoat",
    "a denim jacket",
)
THINGS = (
    "a lighthouse",
    "two horses",
    "an old car",
    "a bowl of fruit",
    "a portrait of a girl with red hair",
    "a city skyline",
    "a fox in the snow",
    "a ship",
    "an empty street",
    "a mountain lake",
    "a castle",
    "a vase of tulips",
)
PLACES_ZH = (
    "在海边",
    "在夜晚的街道上",
    "坐在窗边看书",
    "在森林里散步",
    "坐在红色沙发上",
    "在厨房里做饭",
    "站在雨中的桥下",
    "在图书馆里",
)
CLOTHES_ZH = ("黑色外套", "蓝色衬衫", "红色连衣裙", "灰色西装", "白色毛衣")
BOORU_TAGS = (
    "smile, outdoors, blue sky",
    "sitting, indoors, window, book",
    "night, city lights, standing, red coat",
    "school uniform, classroom, looking at viewer",
    "swimsuit, beach, ocean, laughing",
    "kimono, festival, lantern, from side",
    "close-up, simple background, white background, blush",
    "running, park, sneakers, sweat, day",
)


def drawn(template: str, count: int = 30) -> list[str]:
    """Captions of a template: its lists have lengths without a common factor."""
    return [
        template.format(
            n=i,
            place=PLACES[i % 11],
            pose=POSES[i % 7],
            wear=CLOTHES[i % 8],
            thing=THINGS[(5 * i) % 12],
            place_zh=PLACES_ZH[i % 8],
            wear_zh=CLOTHES_ZH[i % 5],
            tags=BOORU_TAGS[(3 * i) % 8],
        )
        for i in range(count)
    ]


def made(captions: list[str], trigger: str = "", pairs: bool = False) -> list[Sample]:
    controls = ("before.png",) if pairs else ()
    rules = CaptionRules(trigger=trigger)
    texts = (inject_trigger(text, trigger) for text in captions)
    return [
        Sample(f"photos/{i:02}.png", text, 1, Size(9, 9), "photos", controls, rules)
        for i, text in enumerate(texts)
    ]


def found(
    captions: list[str],
    trigger: str = "",
    prompts: tuple[str, ...] = (),
    pairs: bool = False,
) -> list[WordFinding]:
    return list(word_findings(made(captions, trigger, pairs), prompts, trigger))


LONG = (
    "The photograph shows {wear} worn by a woman named ohwx, {place}, {pose}. Soft, natural light falls from the left, "
    "and the background is slightly out of focus, with warm tones and fine details in the fabric. The composition is "
    "balanced, the camera is at eye level, and the mood is calm and candid, as in a documentary picture of daily life."
)

SOUND: dict[str, tuple[list[str], str, tuple[str, ...], bool]] = {
    "a character in short tags": (
        drawn("{pose}, {wear}, {place}"),
        "ohwx",
        ("[trigger], smiling, on a horse",),
        False,
    ),
    "a character in sentences": (
        drawn("A photo of ohwx woman wearing {wear} {place}, {pose}."),
        "ohwx",
        ("ohwx woman as an astronaut on Mars",),
        False,
    ),
    "all begin with the word by hand": (
        drawn("ohwx, {pose}, {wear}, {place}"),
        "",
        ("ohwx, in a café",),
        False,
    ),
    "booru tags with quality tags": (
        drawn("masterpiece, best quality, 1girl, solo, {tags}"),
        "mychar",
        ("mychar, 1girl, solo, forest, sunlight",),
        False,
    ),
    "booru tags with underscores": (
        [
            text.replace("city lights", "city_lights")
            for text in drawn("mychar, 1girl, {tags}")
        ],
        "mychar",
        ("mychar, 1girl, looking_at_viewer",),
        False,
    ),
    "tags and a sentence": (
        drawn("1girl, solo, {tags}, mychar. She is {place}, {pose}."),
        "mychar",
        (),
        False,
    ),
    "an enhancer's captions": (
        drawn(LONG),
        "ohwx",
        (LONG.format(wear="a spacesuit", place="on Mars", pose="waving"),),
        False,
    ),
    "a style": (
        drawn("{thing}, in zwk style, flat colours, black outlines"),
        "zwk",
        ("a dragon, in zwk style",),
        False,
    ),
    "a style whose word is in front": (
        drawn("{thing}"),
        "zwkstyle",
        ("[trigger] a dragon",),
        False,
    ),
    "a style without a word": (
        drawn("watercolor painting of {thing}, loose brush strokes, white paper"),
        "",
        ("watercolor painting of a dragon",),
        False,
    ),
    "pairs with one instruction": (
        ["remove the red hat"] * 30,
        "",
        ("remove the red hat",),
        True,
    ),
    "pairs with many instructions": (
        drawn("replace the background: the person is {place}"),
        "",
        ("add black long hair",),
        True,
    ),
    "pairs with a word": (
        drawn("xray_edit: show {thing}"),
        "xray_edit",
        ("xray_edit: show a dog",),
        True,
    ),
    "Chinese": (
        drawn("一位女子穿着{wear_zh}{place_zh}"),
        "ohwx",
        ("ohwx 一位女子在雪中行走",),
        False,
    ),
    "Chinese with a Chinese word": (
        drawn("林小满，穿着{wear_zh}，{place_zh}"),
        "林小满",
        ("林小满，在太空站",),
        False,
    ),
    "one caption for all": (
        ["a photo of a ohwx man with black hair"] * 30,
        "ohwx",
        ("[trigger] in Rome",),
        False,
    ),
    "no caption at all": (
        [""] * 30,
        "ohwx",
        ("[trigger] man in Rome, 35mm, HDR",),
        False,
    ),
    "few images": (
        drawn("woman with long black hair, {wear}", 5),
        "ohwx",
        ("[trigger] in Rome",),
        False,
    ),
    "pairs that all add one thing": (
        drawn("xray_edit: add a red scarf, {place}"),
        "xray_edit",
        (),
        True,
    ),
    "tags, with and without a sentence": (
        [
            *drawn("mychar, 1girl, solo, long sleeves, {tags}", 15),
            *drawn(
                "mychar, 1girl, solo, {tags}. She is {place}. She is {pose}, and waves to a friend.",
                15,
            ),
        ],
        "mychar",
        (),
        False,
    ),
    "writing in a prompt": (
        drawn("ohwx, {place}"),
        "ohwx",
        ("ohwx with a sign that says 'xkcd'",),
        False,
    ),
    "a piece of clothing with its colour": (
        drawn("a woman in a ohwx red dress, {place}"),
        "ohwx",
        (),
        False,
    ),
    "two characters": (
        drawn("maya_a and maya_b, {place}"),
        "maya_a",
        ("maya_b in Rome",),
        False,
    ),
    "a piece of clothing": (
        drawn("a woman in a red ohwx dress, {place}"),
        "ohwx",
        ("a man in a green ohwx dress",),
        False,
    ),
    "other languages": (
        drawn("zdjęcie ohwx kobieta, {n}, Schmuckstück, Strand"),
        "ohwx",
        ("ohwx w lesie, Fachwerkhaus, przemysł, fjord, vfx, 35mm f1.8",),
        False,
    ),
    "an object": (
        drawn("ohwx backpack {place}, product photo, white light"),
        "ohwx",
        ("ohwx backpack on the moon",),
        False,
    ),
    "a dog": (
        drawn("{pose}, {place}, ohwx dog"),
        "ohwx",
        ('ohwx dog beside a sign that says "XKCD"',),
        False,
    ),
    "features that change": (
        [
            f"ohwx woman with {hair} hair, {text}"
            for hair, text in zip(
                ("long black", "short red", "blonde", "tied back") * 8,
                drawn("{wear}"),
                strict=False,
            )
        ],
        "ohwx",
        ("ohwx woman with pink hair",),
        False,
    ),
    "short and long words": (
        [
            text[: 20 + 4 * i]
            for i, text in enumerate(drawn("{pose}, {wear}, {place}, soft light"))
        ],
        "ohwx",
        (),
        False,
    ),
}


@pytest.mark.parametrize("name", SOUND)
def test_nothing_is_told_of_a_sound_set(name: str) -> None:
    assert found(*SOUND[name]) == []


def with_hair(captions: list[str]) -> list[str]:
    return [
        text
        if i in (3, 17)
        else text.replace("ohwx woman", "ohwx woman with long black hair")
        for i, text in enumerate(captions)
    ]


WOMAN = drawn("A photo of ohwx woman wearing {wear} {place}, {pose}.")
TAGGED = drawn("1girl, solo, {tags}")
FAULTY: dict[str, tuple[tuple[list[str], str, tuple[str, ...]], str, str, int]] = {
    "a feature in sentences": (
        (with_hair(WOMAN), "ohwx", ()),
        "repeated",
        "nearly all captions name 'long black hair' (28 of 30), such as 00.png and 01.png: it is learned",
        0,
    ),
    "a feature in booru tags": (
        ([f"{text}, long_hair, blue_eyes" for text in TAGGED], "mychar", ()),
        "repeated",
        "'long hair' (30 of 30), 'blue eyes' (30 of 30)",
        0,
    ),
    "a feature by a colour": (
        ([f"{text}, with a red balloon" for text in WOMAN], "ohwx", ()),
        "repeated",
        "'red balloon' (30",
        0,
    ),
    "a feature alone, by hand": (
        (drawn("ohwx, {wear}, round glasses, {place}"), "", ()),
        "repeated",
        "'round glasses'",
        0,
    ),
    "a feature in Chinese": (
        (drawn("一位黑色长发的女子穿着{wear_zh}{place_zh}"), "ohwx", ()),
        "repeated",
        "'黑色长发' (30 of 30)",
        0,
    ),
    "a misspelt word": (
        (
            [
                text.replace("ohwx", "owhx") if i in (4, 9) else text
                for i, text in enumerate(WOMAN)
            ],
            "ohwx",
            (),
        ),
        "trigger",
        "2 of 30 captions have a word like 'ohwx' in its place, 'owhx' in 04.png and 'owhx' in 09.png: write",
        2,
    ),
    "a word in two": (
        (["my char, smiling", *drawn("mychar, {wear}")], "mychar", ()),
        "trigger",
        "'my char' in 00.png",
        1,
    ),
    "a misspelt key": (
        (WOMAN, "ohxw", ()),
        "trigger",
        "30 of 30 captions have a word like 'ohxw'",
        30,
    ),
    "a prompt with another word": (
        (drawn("mychar, {wear}"), "mychar", ("a photo of ohwx woman in Rome",)),
        "prompts",
        "in none of 30 captions: 'ohwx' in 'a photo of ohwx woman in Rome'. Write 'mychar'",
        0,
    ),
    "a prompt with a misspelt word": (
        (drawn("pipolo, {wear}"), "pipolo", ("pipollo in Rome",)),
        "prompts",
        "'pipollo' in",
        0,
    ),
    "a prompt without a word in the job": (
        (drawn("{wear}, {place}"), "", ("sks man",)),
        "prompts",
        "Give the job its 'trigger_word'",
        0,
    ),
    "an ordinary word": (
        (drawn("{wear}, {place}"), "woman", ()),
        "trigger_word",
        "so that all the model knows of it is drawn with it: it is in 30 of 30 captions, such",
        0,
    ),
    "a name": (
        (drawn("{wear}, {place}"), "Emma Stone", ()),
        "trigger_word",
        "'Emma Stone' is a name that many people have",
        0,
    ),
    "a Chinese word": (
        (drawn("{wear_zh}，{place_zh}"), "女孩", ()),
        "trigger_word",
        "'女孩' is an ordinary word",
        0,
    ),
    "tags and sentences": (
        ([*drawn("ohwx, 1girl, solo, {tags}", 20), *WOMAN[:10]], "ohwx", ()),
        "forms",
        "20 of 30 captions are a list of tags, such as 'ohwx, 1girl, solo",
        10,
    ),
    "what to do about tags and sentences": (
        ([*drawn("ohwx, 1girl, solo, {tags}", 20), *WOMAN[:10]], "ohwx", ()),
        "forms",
        "Write all of them as you will write prompts",
        10,
    ),
    "cut at one length": (
        ([text[:120] for text in drawn(LONG)], "", ()),
        "forms",
        "25 of 30 captions end at 120 letters and within a sentence, as if a program had cut them: '...atural light ",
        25,
    ),
    "short and an enhancer's": (
        ([*drawn("ohwx, {wear}", 25), *drawn(LONG, 5)], "ohwx", ()),
        "forms",
        "5 of 30 captions have another length than most, whose median is 3 words",
        5,
    ),
}


@pytest.mark.parametrize("name", FAULTY)
def test_a_planted_fault_is_told_and_nothing_else(name: str) -> None:
    given, check, message, images = FAULTY[name]
    (finding,) = found(*given)
    assert finding.check == check
    assert message in finding.message
    assert len(finding.images) == images


def test_three_of_many_captions_of_the_greatest_length_are_not_cut() -> None:
    whole = [f"{text[:90]}." for text in drawn(LONG, 40)]
    cut = [text[:120] for text in drawn(LONG, 40) if text[119].isalpha()][:3]
    assert [one.check for one in found([*whole, *cut], "")] == []
    assert [one.check for one in found([*whole[:20], *cut], "")] == ["forms"]


def test_of_many_captions_some_are_looked_at() -> None:
    captions = drawn("{wear}, round glasses", 20_000)
    (finding,) = found(captions, "ohwx")
    assert "'round glasses' (1,000 of 1,000)" in finding.message


def test_the_word_of_another_dataset_is_not_a_misspelt_one() -> None:
    both = drawn("lirna and lisna, {place}")
    samples = [*made(both, "lirna"), *made(drawn("{place}, {wear}"), "lisna")]
    assert list(word_findings(samples)) == []
    assert [one.check for one in found(both, "lirna")] == ["trigger"]
