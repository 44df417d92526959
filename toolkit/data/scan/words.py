"""What captions and sample prompts will teach, judged by their words alone.

`word_findings` is the only function that other rooms call: the plan tells what it
finds, `lint` too, and with it the page's Check and `new`. The rules are cautious: they
know a few hundred words (`words.toml`), and where they cannot know, they are silent.

A caption names what may change. What nearly all captions name is learned under its own
words, and the trigger word alone does not draw it. A trigger word that the model knows
brings what it knows along. Captions of two forms, or prompts of another one, ask for
images in words that were not trained.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from functools import lru_cache
from os.path import basename
from pathlib import Path
from statistics import fmean, median, median_low
from textwrap import shorten
from typing import NamedTuple

from toolkit.contracts.data import PLACEHOLDERS, Sample
from toolkit.data.scan.found import count_of

TIMES, WORDS = 4, 30
"""A prompt has another length if it has TIMES the words of the longest captions, or the
shortest captions have TIMES its words, and if the difference is at least WORDS. The
longest and the shortest 10 % of the captions do not count."""

TAGS = "a list of tags"
SENTENCES = "sentences"

FEW_WORDS = 8
"""Shorter texts have no form: a tag, a title and a short sentence look alike."""

LEAST_CAPTIONS = 3
MOST = 0.8
"""Share of captions of one form from which on it counts as the form of all."""

LEAST = 8
"""Captions from which on it says something that nearly all have the same words."""

NEARLY_ALL = 0.85

LEAST_CUT = 100
"""Letters of captions from which on several do not have one length by chance."""

LOOKED_AT = 1000
"""So many captions are looked at, evenly spread over all of them."""

_TABLE = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
_KNOWN = {name: frozenset(text.split()) for name, text in _TABLE.items()}
_ORDINARY = _KNOWN["begins"] | _KNOWN["subjects"]
_NOT_A_COLOURS = _KNOWN["scene"] | _KNOWN["colours"] | _KNOWN["plain"]
_WIDE_FEATURE = re.compile(_TABLE["wide"])

# No vowel at all, letters that stand beside each other in hardly any language, or a
# number inside: `sks`, `ohwx`, `m4ya`.
_MADE_UP = re.compile(
    r"[b-df-hj-np-tv-xz]{3,}|(?=.{4})[a-z]+\d+[a-z]+|[a-z]*(?:[bcdfghjkmpqstvwz]x|x[jkqvz]|[cgpqvwxz]j|[bdfgkmp]q"
    r"|q[b-df-hj-np-tv-z]|v[bcfghjmpqw]|w[qvz])[a-z]*"
)
_ROMAN = re.compile("[ivxlcdm]+")
_QUOTED = re.compile("\"[^\"]*\"|'[^']*'(?!\\w)|“[^”]*”|‘[^’]*’|「[^」]*」|《[^》]*》")
"""Writing in an image."""

_WIDE = re.compile("[\u2e80-\U0003ffff]")
"""Letters of scripts without spaces; a word has about two."""

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_OPEN = re.compile(r"[\w,-]$")
"""The end of a text that goes on."""

_COMMAS = re.compile("[,，、;\n]")
_END = re.compile(r"[.!?](?=\s|$)|[。！？]")


def without_names(text: str, names: Sequence[str]) -> str:
    """A caption or prompt without trigger words and placeholders.

    >>> without_names("pipo, waving", ["pipo"])
    'waving'
    """
    for name in (*names, *PLACEHOLDERS):
        text = text.replace(name, " ") if name else text
    return text.strip(" ,")


def words_in(text: str) -> int:
    return len(_WORD.findall(_WIDE.sub(" ", text))) + len(_WIDE.findall(text)) // 2


def tags_of(captions: Sequence[str]) -> list[tuple[str, int]]:
    """The tags that several captions have, with the number of these captions; none
    where captions are not lists of tags. Captions are given without trigger words.

    >>> tags_of(["smiling, red coat", "red coat, park, smiling", "red coat, night"])
    [('red coat', 3), ('smiling', 2)]
    """
    lists = [
        dict.fromkeys(filter(None, map(str.strip, _COMMAS.split(text))))
        for text in captions
        if text
    ]
    are_tags = [
        len(tags) > 1
        and all(words_in(tag) <= 4 and not _END.search(tag) for tag in tags)
        for tags in lists
    ]
    counts = Counter(tag for tags in lists for tag in tags)
    if sum(are_tags) < MOST * len(lists):
        return []
    return [(tag, count) for tag, count in sorted(counts.items()) if count > 1]


@lru_cache(maxsize=2 * LOOKED_AT)
def form_of(text: str) -> str:
    """TAGS: at least five parts between commas, of at most two and a half words on
    average. SENTENCES: parts of at least five words on average, or two that end in a
    full stop. Empty: neither, or too short to say.

    >>> form_of("1girl, red hair, blue eyes, smile, outdoors, sky")
    'a list of tags'
    """
    if words_in(text) < FEW_WORDS:
        return ""
    ends = len(_END.findall(text))
    counts = map(words_in, _COMMAS.split(_END.sub(",", text)))
    parts = [count for count in counts if count]
    if ends < 2 and len(parts) >= 5 and fmean(parts) <= 2.5:
        return TAGS
    if fmean(parts) >= 5 or (ends >= 2 and words_in(text) >= 8 * ends):
        return SENTENCES
    return ""


def unlike(captions: Sequence[str], prompts: Sequence[str]) -> list[str]:
    """How the prompts differ from nearly all captions, in words; empty where they do
    not differ, or where there are too few captions. Both are given without trigger
    words."""
    captions = [text for text in captions if text]
    if len(captions) < LEAST_CAPTIONS:
        return []
    lengths = sorted(map(words_in, captions))
    messages = []
    aside = len(lengths) // 10
    shortest = lengths[aside]
    longest = lengths[-1 - aside]
    counts = [words_in(text) for text in prompts if text]
    far = {
        "longer": [n for n in counts if n >= max(TIMES * longest, longest + WORDS)],
        "shorter": [n for n in counts if n <= min(shortest / TIMES, shortest - WORDS)],
    }
    usual = f"captions have {median(lengths):.0f} words (the median)"
    for how, of_how in far.items():
        if of_how:
            words = " to ".join(map(str, sorted({min(of_how), max(of_how)})))
            messages.append(
                f"{usual}, and {len(of_how)} of {len(counts)} sample prompts have {words}, "
                f"which is far {how} than nearly all of them"
            )
    forms = list(map(form_of, captions))
    for form, other in ((TAGS, SENTENCES), (SENTENCES, TAGS)):
        count = list(map(form_of, prompts)).count(other)
        if count and forms.count(form) >= MOST * len(forms):
            are = "is" if count == 1 else "are"
            messages.append(
                f"captions are {form}, and {count} of {len(prompts)} sample prompts {are} {other}"
            )
    return messages


def usual_word(captions: Sequence[str]) -> tuple[str, int]:
    """The word with which at least four of five captions begin, and the number of these
    captions: a trigger word that was written by hand. ("", 0) where there is none, and
    for fewer than five captions.

    >>> usual_word(["maya on a beach"] * 5), usual_word(["maya on a beach"] * 4)
    (('maya', 5), ('', 0))
    """
    if len(captions) < 5:
        return "", 0
    begins = Counter(
        re.split(r"[\s,.;:]", text, maxsplit=1)[0] for text in captions[:1000]
    )
    ((word, _),) = begins.most_common(1)
    count = sum(text.startswith(word) for text in captions)
    is_common = not word or word.lower() in _ORDINARY
    return ("", 0) if is_common or count < 0.8 * len(captions) else (word, count)


# ------------------------------------------------------------ all that is found


class Caption(NamedTuple):
    """One of the captions of an image.

    >>> Caption("photos/01.jpg", "ohwx on a beach").shown
    "'ohwx on a beach' (01.jpg)"
    """

    image: str
    text: str

    @property
    def shown(self) -> str:
        text = self.text if len(self.text) <= 60 else f"{self.text[:60]}..."
        return f"{text!r} ({basename(self.image)})"


class WordFinding(NamedTuple):
    """What is wrong, how often, two examples, and what to do: one sentence.

    >>> WordFinding("forms", "2 of 9 captions are ...").images
    ()
    """

    check: str
    """The name of the check of `lint` that reports it."""

    message: str
    images: tuple[str, ...] = ()
    """The images whose captions it is about; empty: all."""


def word_findings(
    samples: Sequence[Sample], prompts: Sequence[str] = (), trigger: str = ""
) -> Iterator[WordFinding]:
    """What the words of captions and prompts would teach wrongly.

    samples: that are trained, without regularisation images. prompts: of the samples.
    trigger: of the job.
    """
    samples = samples[:: -(-len(samples) // LOOKED_AT) or 1]
    own = (sample.rules.trigger for sample in samples)
    names = list(dict.fromkeys(filter(None, (trigger, *own))))
    groups: dict[tuple[str, bool], dict[Caption, None]] = defaultdict(dict)
    for sample in samples:
        texts = groups[sample.rules.trigger, bool(sample.control_images)]
        texts |= dict.fromkeys(Caption(sample.image, text) for text in sample.texts)
    captions = [caption for group in groups.values() for caption in group]
    for name in names:
        yield from _known_trigger(name, captions)
    several = {sample.image for sample in samples if sample.captions}
    for (name, are_pairs), found in groups.items():
        group = [caption for caption in found if caption.text]
        if not (name or are_pairs):
            name, _ = usual_word([caption.text for caption in group])
        yield from _misspelt(group, name, names)
        yield from _forms(
            [one for one in group if one.image not in several], [name, *names]
        )
        yield from _cut(group)
        # One instruction for all pairs, and one caption for all images, are meant.
        same = Counter(caption.text for caption in group).most_common(1)
        are_same = not same or 2 * same[0][1] > len(group)
        if name and not (are_pairs or are_same) and len(group) >= LEAST:
            yield from _repeated(group, name)
    yield from _strange_words(prompts, captions, names)
    asked = [without_names(prompt, names) for prompt in prompts]
    for message in unlike([without_names(one.text, names) for one in captions], asked):
        yield WordFinding("prompts", message)


def _known_trigger(trigger: str, captions: Sequence[Caption]) -> Iterator[WordFinding]:
    """A trigger word that the model knows: an ordinary word or the name of people."""
    words = trigger.lower().split()
    parts = re.split(r"[\s_-]+", trigger.lower())
    what = ""
    if all(part in _ORDINARY | _KNOWN["wide_subjects"] for part in parts):
        what = "an ordinary word"
    elif words[:1] and words[0] in _KNOWN["names"]:
        if not any(map(is_made_up, words)):
            what = "a name that many people have"
    if what:
        found = [one for one in captions if trigger in one.text]
        yield WordFinding(
            "trigger_word",
            f"{trigger!r} is {what}, so that all the model knows of it is drawn with it: {_share(found, captions)}. "
            f"Choose a word without meaning, such as '{_without_vowels(trigger)}'",
        )


def _without_vowels(word: str) -> str:
    """
    >>> _without_vowels("woman"), _without_vowels("Emma Stone"), _without_vowels("猫")
    ('wmnx', 'mmstnx', 'ohwx')
    """
    letters = re.sub("[^b-df-hj-np-tv-xz]", "", word.lower())
    return f"{letters[:5]}x" if letters else "ohwx"


def _misspelt(
    captions: Sequence[Caption], trigger: str, names: Sequence[str]
) -> Iterator[WordFinding]:
    """Captions that have a word like the trigger word in its place."""
    found: dict[Caption, str] = {}
    if len(trigger) < 4 or " " in trigger:
        return
    for caption in captions:
        rest = caption.text.removeprefix(trigger)
        if trigger not in rest and (
            rest != caption.text or trigger not in caption.text
        ):
            if word := _near(rest, trigger, names):
                found[caption] = word
    if found:
        few = list(found)
        shown = " and ".join(
            f"{found[one]!r} in {basename(one.image)}" for one in few[:2]
        )
        have = "has" if len(few) == 1 else "have"
        yield WordFinding(
            "trigger",
            f"{len(few):,} of {len(captions):,} captions {have} a word like {trigger!r} in its place, {shown}: "
            f"write {trigger!r}, or change trigger_word",
            tuple(one.image for one in few),
        )


def _near(text: str, trigger: str, names: Sequence[str]) -> str:
    """The first word of a text that is probably a misspelt trigger word; empty: none.

    >>> _near("a photo of owhx woman", "ohwx", ()), _near("my char waves", "mychar", ())
    ('owhx', 'my char')
    """
    words: list[str] = re.findall(r"[\w'’-]+", text)
    plain = re.sub(r"[\W_]", "", trigger).lower()
    for index, word in enumerate(words):
        both = f"{word} {words[index + 1]}" if index + 1 < len(words) else word
        for written in (word, both):
            bare = re.sub(r"[\W_]", "", written).lower()
            if bare == plain and written.lower() != trigger.lower():
                return written
        bare = word.lower()
        is_place = index < 5 or is_made_up(bare)
        is_other = word in names or bare in _ORDINARY | _KNOWN["names"]
        if is_place and not is_other and _one_apart(bare, trigger.lower()):
            return word
    return ""


def _one_apart(word: str, other: str) -> bool:
    """Whether one letter is missing, wrong or exchanged with the next. Numbers and a
    final `s` are not mistakes.

    >>> [_one_apart("ohwx", word) for word in ("owhx", "ohx", "ohwxs", "ohw1", "ohwx")]
    [True, True, False, False, False]
    """
    short, long = sorted((word, other), key=len)
    stem, _, last = short.replace("-", "_").rpartition("_")  # `maya_a` and `maya_b`
    is_series = bool(stem) and len(last) == 1 and long.startswith(stem)
    if len(short) < 3 or f"{short}s" == long or is_series:
        return False
    if len(short) != len(long):
        return any(
            long[:i] + long[i + 1 :] == short and long[i].isalpha()
            for i in range(len(long))
        )
    unlike = [i for i in range(len(short)) if short[i] != long[i]]
    if any(letters[i].isdigit() for letters in (short, long) for i in unlike):
        return False
    if len(unlike) == 2:
        first, second = unlike
        return second == first + 1 and short[first : second + 1] == (
            long[second] + long[first]
        )
    return len(unlike) == 1


def _forms(captions: Sequence[Caption], names: Sequence[str]) -> Iterator[WordFinding]:
    """Captions of two forms, and captions that are far longer or shorter than most."""
    texts = {one: without_names(one.text, names) for one in captions}
    if len(texts) < LEAST:
        return
    tags = [one for one, text in texts.items() if form_of(text) == TAGS]
    alike = dict.fromkeys(one for one in texts if _begins_with_tags(texts[one]))
    sentences = [
        one
        for one, text in texts.items()
        if form_of(text) == SENTENCES and one not in alike
    ]
    how = "Write all of them as you will write prompts"
    if min(len(tags), len(sentences)) >= max(2, 0.1 * len(texts)):
        tags = list(dict.fromkeys((*tags, *alike)))
        fewer = min(tags, sentences, key=len)
        yield WordFinding(
            "forms",
            f"{len(tags):,} of {len(texts):,} captions are {TAGS}, such as {tags[0].shown}, and {len(sentences):,} are "
            f"{SENTENCES}, such as {sentences[0].shown}. {how}",
            tuple(one.image for one in fewer),
        )
        return
    counts = {one: words_in(text) for one, text in texts.items() if text}
    usual = median_low(counts.values()) if counts else 0
    far = [
        one
        for one, count in counts.items()
        if max(count, usual) >= max(6 * min(count, usual), min(count, usual) + 50)
    ]
    if len(far) >= max(2, 0.05 * len(counts)):
        yield WordFinding(
            "forms",
            f"{len(far):,} of {len(texts):,} captions have another length than most, whose median is {usual} words: "
            f"{counts[far[0]]} and {counts[far[1]]} words, such as {far[0].shown}. {how}",
            tuple(one.image for one in far),
        )


def _cut(captions: Sequence[Caption]) -> Iterator[WordFinding]:
    """Captions that all end at the greatest length, and there within a sentence: a
    program cut them."""
    most = max((len(one.text) for one in captions), default=0)
    cut = [one for one in captions if len(one.text) == most and _OPEN.search(one.text)]
    if most >= LEAST_CUT and len({one.text for one in cut}) >= max(
        LEAST_CAPTIONS, 0.1 * len(captions)
    ):
        yield WordFinding(
            "forms",
            f"{len(cut):,} of {len(captions):,} captions end at {most} letters and within a sentence, as if a program "
            f"had cut them: '...{cut[0].text[-20:]}' ({basename(cut[0].image)}). Write their ends",
            tuple(one.image for one in cut),
        )


def _begins_with_tags(text: str) -> bool:
    parts = _COMMAS.split(text)[:4]
    return len(parts) == 4 and all(words_in(part) <= 3 for part in parts)


def _repeated(captions: Sequence[Caption], trigger: str) -> Iterator[WordFinding]:
    """Features of the subject that nearly all captions name. Of a style there are
    none: what its captions repeat is the style."""
    together = "\n".join(caption.text for caption in captions).lower()
    name = re.escape(trigger.lower())
    if re.search(
        rf"{name}\W{{0,2}}\s*(?:art )?styled?\b|(?:style of|by) {name}|风格", together
    ):
        return
    features = {one: features_of(one.text, trigger) for one in captions}
    least = NEARLY_ALL * len(captions)
    counts = Counter(pair for pairs in features.values() for pair in pairs)
    phrases: dict[str, list[str]] = defaultdict(list)
    for (word, noun), count in counts.items():
        if count >= least:
            phrases[noun].append(word)
    told = {}
    for noun, words in phrases.items():
        has = [
            one
            for one, pairs in features.items()
            if all((word, noun) in pairs for word in words)
        ]
        told[" ".join(filter(None, (*words, noun)))] = has or captions
    if told:
        shares = ", ".join(
            f"{phrase!r} ({len(has):,} of {len(captions):,})"
            for phrase, has in list(told.items())[:5]
        )
        examples = " and ".join(
            basename(one.image) for one in next(iter(told.values()))[:2]
        )
        yield WordFinding(
            "repeated",
            f"nearly all captions name {shares}, such as {examples}: it is learned under these words, and {trigger!r} "
            "alone does not draw it. Leave out what belongs to the subject",
        )


def features_of(text: str, trigger: str = "") -> dict[tuple[str, str], None]:
    """The features in a caption, as pairs of a word and its noun. What follows the
    trigger word at once is its class.

    >>> list(features_of("ohwx woman, long black hair, a red scarf", "ohwx"))
    [('long', 'hair'), ('black', 'hair'), ('red', 'scarf')]
    """
    features = {("", match[0]): None for match in _WIDE_FEATURE.finditer(text)}
    trigger = trigger.lower()
    for part in re.split(r"[,.;:!?()\n]", text.lower().replace("_", " ")):
        part = part.replace(trigger.replace("_", " "), "|") if trigger else part
        words = re.findall(rf"\||{_WORD.pattern}", part)
        for index, noun in enumerate(words):
            is_feature = noun in _KNOWN["features"]
            is_alone = noun in _KNOWN["alone"]
            is_coloured = index and words[index - 1] in _KNOWN["colours"]
            if noun == "|" or not (is_feature or is_alone or is_coloured):
                continue
            begin = index
            while begin and index - begin < 3 and words[begin - 1] not in _STOPS:
                begin -= 1
            before = words[begin:index]
            if begin and words[begin - 1] == "|":
                continue
            if is_alone:
                before = ["", *before]
            elif not is_feature:
                before = [] if noun in _NOT_A_COLOURS else before[-1:]
            features |= dict.fromkeys((word, noun) for word in before)
    return features


_STOPS = _KNOWN["plain"] | {"|"}


def is_made_up(word: str) -> bool:
    """Whether a word looks like a trigger word.

    >>> [is_made_up(word) for word in ("ohwx", "sks", "m4ya", "sphinx", "hdr", "Iraq")]
    [True, True, True, False, False, False]
    """
    word = word.lower()
    parts = [part for part in re.split("[_-]", word) if len(part) > 2]
    return any(
        bool(_MADE_UP.fullmatch(part))
        and part not in _KNOWN["short"]
        and not _ROMAN.fullmatch(part)
        for part in parts
    )


def _strange_words(
    prompts: Sequence[str], captions: Sequence[Caption], names: Sequence[str]
) -> Iterator[WordFinding]:
    """Words of prompts that look like a trigger word, and that no caption has."""
    known = {
        word for one in captions for word in re.findall(r"[\w-]+", one.text.lower())
    }
    if len(captions) < LEAST_CAPTIONS:
        return
    found: dict[str, str] = {}
    for prompt in prompts:
        text = without_names(_QUOTED.sub(" ", prompt), names)
        near = [_near(text, name, names) for name in names if len(name) > 3]
        for word in (*near, *re.findall(r"[\w-]+", text)):
            is_written = word.isupper() and word not in near  # NASA, and writing
            if word and word.lower() not in known and not is_written:
                if word in near or is_made_up(word):
                    found.setdefault(word, prompt)
    if found:
        shown = " and ".join(
            f"{word!r} in {shorten(text, 60)!r}"
            for word, text in list(found.items())[:2]
        )
        own = f"Write {names[0]!r}" if names else "Give the job its 'trigger_word'"
        yield WordFinding(
            "prompts",
            f"{count_of(len(found), 'word')} in sample prompts, like a trigger word, in none of {len(captions):,} "
            f"captions: {shown}. {own}, or a word of the captions",
        )


def _share(some: Sequence[Caption], captions: Sequence[Caption]) -> str:
    """How many captions, with two of them."""
    shown = " and ".join(one.shown for one in some[:2])
    return f"it is in {len(some):,} of {len(captions):,} captions{shown and f', such as {shown}'}"
