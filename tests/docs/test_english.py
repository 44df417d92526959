"""Turns of phrase that a native speaker would not write stay out of messages,
docstrings and pages.

A list, not taste: each of these was common once.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.processes import output_of

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
INSTEAD = {
    r"(?<![Tt]here) (is|are) no (?!longer|such|need|more|one\b|other)": "is not a, are not",
    r"\b[Kk]nows no\b": "does not support, has no",
    r"\bgoes (with|without)\b": "requires, cannot be combined with",
    r"\bas there\b(?! (is|are)\b)(?=[.,;:)]|$)": "as in, with the name of the program",
    r"(?<!`)\banew\b": "again, from the beginning, re-",
    r"\b[Mm]end(s|ed)? (it|them|that|the)\b": "fix",
    r"\b(is|are) there twice\b": "appear twice, duplicate",
    r"\b(asks?|asking) for nothing\b": "has no effect",
    r"\bcounts? nowhere\b": "is ignored",
    r"\bwithout a word\b": "silently",
    r"\AOf ": "the thing first",
}
"""Pattern -> what to write."""

ONE_WORD = {
    r"\b[Rr]eference images?\b": "control image",
    r"(?<![\w`./-])[Rr]eferences\b(?![/_`])": "control images",
    r"\b([Ww]hich|[Cc]hoose a|earlier|later|best|compare|this) checkpoints?\b": "LoRA file, which other programs load",
}
"""The same of a thing that has one word (docs/glossary.md), in what users read.
`--reference` is another thing."""

OF_DEVELOPERS = (
    *(
        "docs/architecture.md",
        "docs/correctness.md",
        "docs/extending.md",
        "docs/extensions.md",
        "docs/internals.md",
    ),
    *("docs/measured.md", "docs/reliability.md", "CHANGELOG.md", "CONTRIBUTING.md"),
)
"""Pages about the code, whose names say `references`."""

ROW = re.compile(r"^\| .*", re.MULTILINE)
CODE = re.compile(r"""\{[%{].*?[%}]\}|class="[^"]*"|"\w+":""")
"""Of templates and JSON."""


def found(text: str, patterns: Iterable[str] = INSTEAD) -> list[str]:
    return [
        hit.group()
        for pattern in patterns
        for hit in re.finditer(pattern, text, re.MULTILINE)
    ]


def files(*patterns: str) -> list[Path]:
    return [
        ROOT / name
        for name in output_of("git", "ls-files", *patterns).splitlines()
        if not name.startswith(("tests/", "benchmarks/"))
    ]


def test_each_phrase_is_found_and_what_is_english_is_not() -> None:
    wrong = (
        "x is no LoRA",
        "keys are no names",
        "a goes with b",
        "as there.",
        "begins anew",
        "Mend it.",
        "Of the images",
    )
    right = (
        "There is no mask.",
        "is no longer here",
        "as there is none",
        "the end",
        "a box of it",
    )
    assert [text for text in wrong if not found(text)] == []
    assert [text for text in right if found(text)] == []


def test_a_second_word_for_a_thing_is_found_and_another_thing_is_not() -> None:
    second = (
        "3 reference images",
        "references: none",
        "Choose a checkpoint.",
        "which checkpoint to use",
        "no references",
    )
    other = (
        "give `--reference`",
        "close to the reference",
        "in `aligned/references`",
        "resumes from its last checkpoint",
    )
    assert [text for text in second if not found(text, ONE_WORD)] == []
    assert [text for text in other if found(text, ONE_WORD)] == []


def told(tree: ast.Module, is_config: bool) -> Iterator[tuple[int, str, bool]]:
    """Line and text of each message and docstring, and whether users read it: a
    message, or the description of a key, which the help and docs/config.md show."""
    nodes = list(ast.walk(tree))
    documented = [node for node in nodes if isinstance(node, DOCUMENTED)]
    quiet = {
        id(node.body[0].value)
        for node in documented
        if node.body and isinstance(node.body[0], ast.Expr)
    }
    if not is_config:
        quiet |= {
            id(line.value)
            for node in documented
            for line in node.body
            if isinstance(line, ast.Expr)
        }
    for node in nodes:
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and " " in node.value
        ):
            yield node.lineno, node.value, id(node) not in quiet


def test_messages_and_docstrings_are_free_of_them() -> None:
    wrong = []
    for path in files("*.py"):
        for line, text, is_read in told(
            ast.parse(path.read_text(encoding="utf-8")), "config" in path.as_posix()
        ):
            hits = found(text)
            if is_read and "[a-z" not in text and "|" not in text:
                hits += found(text, ONE_WORD)
            wrong += [f"{path.relative_to(ROOT)}:{line}: {hit!r}" for hit in hits]
    assert wrong == []


def test_a_thing_has_one_word_in_guides() -> None:
    wrong = []
    for path in files("*.md", "*.yaml", "*.html", "*.j2", "*/texts.json"):
        if str(path.relative_to(ROOT)) not in OF_DEVELOPERS:
            text = CODE.sub("", path.read_text(encoding="utf-8"))
            # rows of benchmarks
            prose = (
                ROW.sub("", text)
                if path.name in ("memory.md", "multi_gpu.md")
                else text
            )
            wrong += [
                f"{path.relative_to(ROOT)}: {hit!r}" for hit in found(prose, ONE_WORD)
            ]
    assert wrong == []


def test_pages_are_free_of_them() -> None:
    pages = [*files("*.md"), *files("*.yaml"), *files("*.html")]
    assert [
        f"{page.relative_to(ROOT)}: {hit!r}"
        for page in pages
        for hit in found(page.read_text())
    ] == []
