"""Compares captions with sample prompts: their length, and tags against sentences.

Users write captions of 5 to 20 words; prompt enhancers and captioning models write 60
to 250 words in sentences. A model that was trained on one kind is then prompted in the
other. Both rules are cautious: a prompt has to differ from nearly all captions. The
functions work on texts alone. `checks` calls them for the check `prompts`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from statistics import fmean, median

from toolkit.contracts.data import PLACEHOLDERS

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

_WIDE = re.compile("[\u2e80-\U0003ffff]")
"""Letters of scripts without spaces; a word has about two."""

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
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
            some = f"{len(of_how)} of {len(counts)} sample prompts have {words}"
            messages.append(
                f"{usual}, and {some}, which is far {how} than nearly all of them"
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
