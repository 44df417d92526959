"""Instructions of other programs in prompts and captions, which are plain text in this
program: weights, LoRAs, choices, wildcards; and what language models leave in them.

The same rules apply to captions and to prompts of samples. The scan (`folder_check`),
the plan and `lint` warn with them; no text is changed.

Sources of the spellings: AUTOMATIC1111's stable-diffusion-webui,
modules/prompt_parser.py (at 0674fabd) and modules/extra_networks.py: weights, brackets
that alternate, BREAK, LoRAs; modules/images.py, `save_txt`: parameters. sd-scripts,
library/train_util.py, `enable_wildcard`: `{a|b}`, `keep_tokens_separator`: `|||`.
sd-dynamic-prompts: `__name__`. NovelAI's documentation, "Strengthening & Weakening
Vectors": `{{a}}`, `1.2::a::`. Midjourney's, "Parameter List": `--ar 16:9`. ComfyUI,
comfy/sd1_clip.py: `embedding:name`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from toolkit.errors import in_series


class Syntax(NamedTuple):
    """One kind of instruction, or of what a language model leaves.

    >>> weights = SYNTAX[0]
    >>> weights.pattern.search("a (red:1.2) cup")[0], weights.remedy
    ('(red:1.2)', 'Remove the weight and its brackets')
    """

    name: str
    signs: tuple[str, ...]
    """Pieces in lower case, one of which is in all that the pattern finds: in plain text
    looking for them takes a fraction of the time of the pattern."""

    pattern: re.Pattern[str]
    remedy: str
    whose: str = "other programs"


MODELS = "language models"

_NUMBER = r"-?(?:[0-9](?:\.[0-9]+)?|\.[0-9]+)"
"""A weight, below 10: not the minutes of `(at 12:30)`."""

LORA_TAG = re.compile(
    r"<(?i:lora|lyco|hypernet)[:=][^<>\n]+>|(?<!\w)(?i:lora|lyco|hypernet):[\w./\\-]+:-?\d*[.,]?\d+%?"
    r"|[(\[{](?i:lora|lyco|hypernet):[^()\[\]{}:\n]+:[^()\[\]{}:\n]+[)\]}]"
)
"""The first alternative is that of the source, the others are slips of it."""

SYNTAX = (
    Syntax(
        "weights",
        ("(", "[", "{{", "::"),
        # Before the colon no digit: `(ratio 1:4)` is text. In brackets with two colons,
        # words take turns by step.
        re.compile(
            rf"\([^()\n]*[^()\s\d]:{_NUMBER}\)|\[[^\[\]\n:]*:[^\[\]\n:]*:{_NUMBER}\]|\(\([^()\n]+\)\)"
            rf"|\{{\{{[^{{}}\n|]+\}}\}}|\[\[[^\[\]\n|]+\]\]|(?<![\w.]){_NUMBER}::[^:\n]+::"
        ),
        "Remove the weight and its brackets",
    ),
    Syntax(
        "LoRAs",
        ("lora", "lyco", "hypernet"),
        LORA_TAG,
        "Remove the name of the LoRA",
    ),
    Syntax(
        "embeddings",
        ("embedding:",),
        re.compile(r"\b(?i:embedding):[\w./-]*\w"),
        "Remove the name of the embedding",
    ),
    Syntax(
        "parameters",
        ("negative prompt: ", "steps: "),
        # What a picture was made with, as it is saved beside it.
        re.compile(
            r"(?<![^\n])Negative prompt: |\bSteps: [0-9]+, (?:Sampler|Schedule type|CFG scale): "
        ),
        "Remove all that follows the prompt",
    ),
    Syntax(
        "flags",
        ("--",),
        re.compile(
            r"(?<!\S)--(?:ar|aspect|v|version|niji|stylize|style|chaos|sref|cref|iw|weird|tile)\b"
        ),
        "Remove all flags",
    ),
    Syntax(
        "separators",
        ("|||",),
        re.compile(r"\|\|\|"),
        "Write a comma instead",
    ),
    Syntax(
        "choices",
        ("|",),
        re.compile(r"\{[^{}\n]*\|[^{}\n]*\}|\[[^\[\]\n]*\|[^\[\]\n]*\]"),
        "Write one of the alternatives, or, for captions, each in a line of its own with 'captions: lines'",
    ),
    Syntax(
        "wildcards",
        ("__",),
        re.compile(r"(?<!\w)__[A-Za-z0-9*](?:[\w/*. -]*[A-Za-z0-9*])?__(?!\w)"),
        "Write the word that the wildcard stands for",
    ),
    Syntax(
        "escaped brackets",
        ("\\",),
        re.compile(r"\\[()\[\]{}]"),
        "Remove the backslashes",
    ),
    Syntax(
        "BREAK",
        ("break",),
        # Not the word on a sign: between other words in capitals it is text.
        re.compile(r"(?<![^\s,])(?<![A-Z]{2} )BREAK(?![^\s,])(?! [A-Z]{2})"),
        "Remove BREAK",
    ),
    # What follows is looked for at the beginning of a line, where not stated otherwise.
    Syntax(
        "thoughts and tokens",  # anywhere
        ("<", "[inst]", "[/inst]", "think▷"),
        re.compile(
            r"</?(?i:think(?:ing)?|s|caption|answer|response|assistant|image|output)>|<\|[\w ]+\|>|\[/?INST\]"
            r"|<(?:start|end)_of_turn>|◁/?think▷"
        ),
        "Remove them, and all that is thought",
        MODELS,
    ),
    Syntax(
        "refusals",
        (
            "sorry",
            "unable",
            "not able",
            "afraid",
            "apologi",
            "i can",
            "i do",
            "i won",
            " ai",
            " large ",
            "unfortunately",
            "please ",
            "no image ",
            "no picture ",
            "[your caption",
            *("leid", "ich kann ", "désolé", "je ne peux", "lo siento", "no puedo"),
            *("抱歉", "对不起", "作为", "我无法", "申し訳"),
        ),
        re.compile(
            r"(?<![^\n])[\"'\u200b]*(?i:i(?:['’]m| am) (?:sorry|unable|not able|afraid)|sorry[,.]|i apologi[sz]e"
            r"|i (?:can(?:['’]t|not| not)|do(?:n['’]t| not)|won['’]t)\b|as an? (?:ai|large language)\b"
            r"|unfortunately, i\b|please (?:provide|upload|share) "
            # German, French, Spanish, Chinese, Japanese
            r"|(?:es tut mir leid|ich kann (?:dieses|das|ihnen|dir|leider|nicht)|(?:je suis )?désolé|je ne peux pas"
            r"|lo siento|no puedo)\b|(?:很|非常)?抱歉|对不起|作为(?:一个|一名)?(?:ai|人工智能)|我无法|申し訳)"
            r"|(?i:\bno (?:image|picture) (?:was|is|has been) \w+|\[your caption)"
        ),
        "Write the caption of the image",
        MODELS,
    ),
    Syntax(
        "error messages",
        (
            "error",
            "exception",
            "traceback",
            "fatal",
            "none",
            "null",
            "nan",
            "undefined",
            "n/a",
            "cuda ",
            "rate limit ",
            "bad gateway",
            "unavailable",
            "too many ",
            "timed out",
        ),
        re.compile(
            r"(?<![^\n])\W*(?i:(?:error|exception|traceback|fatal)\b *(?:[:(]|\d{3}|code)"
            r"|(?:none|null|nan|undefined|n/a)(?![^\n]))"
            r"|(?i:\b[a-z]+error: |\bcuda (?:error|out of memory)|\brate limit (?:exceeded|reached)"
            r"|\binternal server error|\bbad gateway|\bservice unavailable|\btoo many requests|\btimed out\b)"
        ),
        "Write the caption of the image",
        MODELS,
    ),
    Syntax(
        "introductions and offers",
        (
            "sure",
            "certainly",
            "of course",
            "absolutely",
            "okay",
            "alright",
            "great",
            "understood",
            "caption",
            "description",
            "prompt",
            "answer",
            "assistant",
            "output",
            "tags",
            "title",
            "describe ",
            "let me know if",
            "i hope this",
            "user",
            "human",
            " need to ",
            "would you like ",
            "feel free to",
            " you provided",
            " you shared",
        ),
        re.compile(
            r"(?<![^\n])[\"'*_#> ]*(?i:(?:sure|certainly|of course|absolutely|okay|alright|great|understood)[,!.:]"
            r"|(?:below is|this is) (?:an?|the|your) [^\n]{0,30}?\b(?:caption|description)\b"
            r"|(?:image |detailed |short |final )?(?:captions?|description|prompt|answer|output|tags|title)\W*:"
            r"|(?:assistant|user|human)\W*:|the user (?:wants|asks|asked|is asking)\b"
            r"|(?:we|i) need to (?:describe|caption|write)\b"
            r"|(?:describe|caption) (?:this|the) (?:image|picture|photo))"
            r"|\b(?i:here(?:['’]s| is| are) (?:an?|the|your|my|some) [^\n]{0,40}?"
            r"\b(?:captions?|descriptions?|prompts?|tags for)\b"
            r"|would you like (?:me|a (?:\w+ )?(?:caption|description))|let me know if|i hope this"
            r"|feel free to|the (?:image|picture) you (?:provided|shared)"
            r"|note: this (?:caption|description))"
        ),
        "Remove them",
        MODELS,
    ),
    Syntax(
        "Markdown",
        ("`", "~~~", "**", "--", "-*", "# ", "> ", "- ", "* ", "• ", "1. "),
        re.compile(
            r"```|\*\*[^*\n]+\*\*"
            r"|(?<![^\n])(?:~~~|`[^`\n]+`(?![^\n]))"
            r"|(?<![^\n])(?:#{1,6} \w|> \w|[-*]{3,}(?![^\n])|[*•-] [^\n]+\n+[*•-] |1\. [^\n]+\n+2\. )"
        ),
        "Write plain text",
        MODELS,
    ),
)

_SHOWN = 60


class Marks(NamedTuple):
    """The instructions of one kind in some texts.

    >>> (marks,) = marks_in(["a cup", "a (red:1.2) cup"])
    >>> marks.first, marks.texts
    ('(red:1.2)', (1,))
    """

    syntax: Syntax
    first: str
    """The beginning of the first, as it is written."""

    texts: tuple[int, ...]
    """Places of the texts that have any."""


def marks_in(texts: Sequence[str]) -> list[Marks]:
    """The instructions in some texts, for each kind that occurs.

    >>> [(marks.syntax.name, marks.first) for marks in marks_in(["a (red:1.2) cup", "a {big|small} cup"])]
    [('weights', '(red:1.2)'), ('choices', '{big|small}')]
    """
    together = "\n".join(texts)
    folded = together.lower()
    kinds = []
    for syntax in SYNTAX:
        # one search in 100,000 captions instead of one in each
        has_sign = any(sign in folded for sign in syntax.signs)
        if not (has_sign and syntax.pattern.search(together)):
            continue
        matches = [syntax.pattern.search(text) for text in texts]
        places = tuple(place for place, match in enumerate(matches) if match)
        first = next(filter(None, matches), None)
        if first:
            kinds.append(Marks(syntax, first[0][:_SHOWN], places))
    return kinds


def in_words(marks_list: Sequence[Marks], counted: bool = False) -> str:
    """The words of a warning: examples, kinds, their meaning in this program, remedies.
    counted: with the number of texts of each kind."""
    parts = [
        [marks for marks in marks_list if marks.syntax.whose == whose]
        for whose in ("other programs", MODELS)
    ]
    return ". ".join(_sentence(part, counted) for part in parts if part)


def _sentence(marks_list: Sequence[Marks], counted: bool) -> str:
    whose = marks_list[0].syntax.whose
    shown = ", ".join(repr(marks.first) for marks in marks_list)
    names = [
        f"{marks.syntax.name} ({len(marks.texts):,})" if counted else marks.syntax.name
        for marks in marks_list
    ]
    remedies = ". ".join(dict.fromkeys(marks.syntax.remedy for marks in marks_list))
    return f"{shown}: {in_series(names)} of {whose} are plain text here. {remedies}"


def lines_of(text: str) -> Iterator[str]:
    """Warnings about syntax of other programs in a caption: one line for each kind,
    with the first place and the remedy. Nothing for plain text."""
    for marks in marks_in([text]):
        yield (
            f"{marks.first!r}, which is trained as plain text here "
            f"({marks.syntax.name} of {marks.syntax.whose}). {marks.syntax.remedy}"
        )
