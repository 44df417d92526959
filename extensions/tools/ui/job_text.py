"""The YAML of a job as a form sees it: values by key, and edits that leave every other
character as it stands.

An edit splices the text at the places that `read_yaml` gives, and is kept only if the
result reads as the old values with this one change. Where that cannot be done (an
alias, a list with comments within), it is refused.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from itertools import pairwise
from typing import Any

from toolkit.config.reading.located import ConfigNode, Diagnostics, KeyPath
from toolkit.config.reading.yaml_reader import read_yaml
from toolkit.errors import ConfigErrors

PROMPTS = (("sample", "samples"), ("sample", "prompts"))
"""Keys that hold a trainer's prompts."""

_FLOW = re.compile(r"(?:[&!]\S+\s+)*[\[{]")


class JobText:
    """One state of the text."""

    def __init__(self, text: str) -> None:
        self.text = text
        try:
            self.root: ConfigNode | None = read_yaml(text, Diagnostics("job"))
        except ConfigErrors:
            self.root = None
        self._lines = [0, *(match.end() for match in re.finditer("\n", text))]

    def path(self, key: str) -> KeyPath:
        """The path of a key as in the reference: `config.name`, or a key of the process
        that trains, such as `datasets[].folder_path` (of the first dataset)."""
        if key.startswith("config."):
            return tuple(key.split("."))
        parts = []
        for part in key.split("."):
            parts.append(
                (part.removesuffix("[]"), 0) if part.endswith("[]") else (part,)
            )
        return (
            "config",
            "process",
            self.trainer,
            *(each for part in parts for each in part),
        )

    @property
    def trainer(self) -> int:
        """Index of the process that trains; of the last where none does."""
        found = self._at(("config", "process"))
        if found and isinstance(found.value, list):
            listed = found.value
        else:
            listed = []
        trains = []
        for index, node in enumerate(listed):
            if node.child("train") is not None:
                trains.append(index)
        return trains[-1] if trains else max(0, len(listed) - 1)

    def _at(self, path: KeyPath) -> ConfigNode | None:
        if self.root is None:
            return None
        node, rest = self.root.find(path)
        return None if rest else node

    def get(self, path: KeyPath) -> str:
        """A value as a form shows it: text without quotes, a list or mapping in one
        line; empty: not given."""
        node = self._at(path)
        if node is None or node.value is None:
            return ""
        if not isinstance(node.value, dict | list):
            return node.value if isinstance(node.value, str) else node.text
        written = self.text[slice(*node.span)]
        if _FLOW.match(written) and "\n" not in written:
            return written
        return _json(node.data())

    def data(self, path: KeyPath) -> Any:
        """A value as plain Python; None: not given."""
        node = self._at(path)
        return node.data() if node else None

    def prompts(self) -> list[str]:
        """The prompts of the samples, each in one line."""
        items = (self.data(self.path(".".join(path))) for path in PROMPTS)
        listed = next((found for found in items if isinstance(found, list)), [])
        said = (
            item.get("prompt") if isinstance(item, dict) else item for item in listed
        )
        return [" ".join(str(each or "").split()) for each in said]

    def set(self, path: KeyPath, given: str, is_text: bool) -> JobText:
        """The text with a value set in its section. given: as typed, text or YAML.
        Raises ValueError where the text cannot be changed without changing more."""
        given = " ".join(given.split())
        wanted: Any = given
        read = None if is_text else JobText(f"value: {given}")
        if read is not None and read.root is not None and len(read.root.value) == 1:
            wanted = read.data(("value",))
        forms = [given, _json(wanted)] if given else ['""']
        node = self._at(path)
        if (
            node
            and isinstance(node.value, str)
            and not node.plain
            and isinstance(wanted, str)
        ):
            forms.reverse()  # quotes stay
        return self._first_that_reads(
            path, wanted, [self._with(path, form) for form in forms]
        )

    def remove(self, path: KeyPath) -> JobText:
        """The text without a key, and without a section that contained only this key.
        Raises ValueError as `set`."""
        while (
            (parent := self._at(path[:-1])) and len(parent.value) == 1 and len(path) > 4
        ):
            path = path[:-1]
        node = self._at(path)
        if parent is None or node is None:
            return self
        if isinstance(parent.value, dict):
            own = parent.value.values()
        else:
            own = parent.value
        begins = sorted(self._index(child) for child in own)
        begin = self._index(node)
        end = self._end(node)
        later = [each for each in begins if each > begin]
        line = self._line_of(begin)
        if _FLOW.match(self.text, parent.span[0]):
            before = max(
                [self._end(child) for child in own if self._end(child) <= begin],
                default=begin,
            )
            begin, end = (begin, later[0]) if later else (before, end)
        elif self.text[line:begin].strip() and isinstance(
            path[-1], str
        ):  # the first key behind a dash
            begin, end = (begin, later[0]) if later else (begin, begin)
        else:
            begin = line
            end = self._line_end(end) + 1
        return self._first_that_reads(
            path, None, [self.text[:begin] + self.text[end:]], removes=True
        )

    def set_prompts(self, given: Sequence[str]) -> JobText:
        """The text with these prompts; existing ones keep their other keys. Raises
        ValueError as `set`."""
        paths = [self.path(".".join(path)) for path in PROMPTS]
        path = next(
            (each for each in paths if isinstance(self.data(each), list)), paths[1]
        )
        node = self._at(path)
        old = self.prompts()
        if not given or not old or node is None or _FLOW.match(self.text, node.span[0]):
            if given:
                return self.set(path, _json([*given]), False)
            return self.remove(path)
        changed = self
        for kind, first, last, new_first, new_last in reversed(
            SequenceMatcher(None, old, given).get_opcodes()
        ):
            if kind == "equal":
                continue
            common = min(last - first, new_last - new_first)
            for offset in range(common):
                item = (*path, first + offset)
                item = (*item, "prompt") if isinstance(self.data(item), dict) else item
                changed = changed.set(item, given[new_first + offset], True)
            for index in reversed(range(first + common, last)):
                changed = changed.remove((*path, index))
            for prompt in reversed(given[new_first + common : new_last]):
                changed = changed._with_item(path, first + common, prompt)
        return changed

    def _with_item(self, path: KeyPath, index: int, prompt: str) -> JobText:
        """The text with a prompt inserted into a block list before the item at this
        index."""
        node = self._at(path)
        assert node is not None
        near = node.value[max(0, index - 1)]
        item = {"prompt": prompt} if isinstance(near.value, dict) else prompt
        if isinstance(item, dict):
            written = f"prompt: {_json(prompt)}"
        else:
            written = _json(prompt)
        line = self._line_of(self._index(near))
        dash = self.text.index("-", line) - line
        at = self._line_end(self._end(near)) if index else line - 1
        new = JobText(f"{self.text[:at]}\n{' ' * dash}- {written}{self.text[at:]}")
        if new.data(path) != [*node.data()[:index], item, *node.data()[index:]]:
            raise ValueError(prompt)
        return new

    def _with(self, path: KeyPath, form: str) -> str:
        """The text with a value at a path, replaced or added; whether it reads is still
        to be seen."""
        if self.root is None:
            return ""
        node, rest = self.root.find(path)
        begin = node.span[0]
        if not rest:
            if isinstance(node.value, dict | list) and not _FLOW.match(
                self.text, begin
            ):
                return self._in_place_of_block(node, form)
            if node.aliased:
                begin = self.text.index("*", self._index(node))
            else:
                begin = begin
            return self._replaced(begin, self._end(node), form)
        for part in reversed(rest[1:]):
            if isinstance(part, str):
                form = f"{{{part}: {form}}}"
            else:
                form = f"[{form}]"
        entry = f"{rest[0]}: {form}"
        if node.value is None:
            return self._replaced(begin, begin, f"{{{entry}}}")
        if not isinstance(node.value, dict):
            return ""
        if _FLOW.match(self.text, begin):
            at = len(self.text[: node.span[1] - 1].rstrip())
            return (
                f"{self.text[:at]}{', ' if node.value else ''}{entry}{self.text[at:]}"
            )
        at = self._line_end(self._end(node))
        return f"{self.text[:at]}\n{' ' * (node.value_at.column - 1)}{entry}{self.text[at:]}"

    def _replaced(self, begin: int, end: int, form: str) -> str:
        """A comment behind the value keeps its column."""
        tail = self.text[end : self._line_end(end)]
        comment = re.match(r" +(?=#)", tail)
        space = ""
        if comment:
            space = " " * max(1, len(comment[0]) + end - begin - len(form))
            end += len(comment[0])
        if begin and self.text[begin - 1] == ":":
            before = " "
        else:
            before = ""
        return self.text[:begin] + before + form + space + self.text[end:]

    def _in_place_of_block(self, node: ConfigNode, form: str) -> str:
        """A value in one line behind its key, instead of a block below it."""
        key = self._index(node)
        colon = key + len(str(node.path[-1])) + 1
        line_end = self._line_end(key)
        return f"{self.text[:colon]} {form}{self.text[colon:line_end]}{self.text[self._line_end(self._end(node)) :]}"

    def _first_that_reads(
        self, path: KeyPath, wanted: Any, texts: list[str], removes: bool = False
    ) -> JobText:
        """The first text that has the old values but for this one."""
        if self.root is None or "config" not in self.root.value:
            raise ValueError("no job")
        expected = copy.deepcopy(self.root.data())
        place: Any = expected
        try:
            for part, following in pairwise(path):
                if isinstance(place, dict) and place.get(part) is None:
                    place[part] = [{}] if isinstance(following, int) else {}
                place = place[part]
            if removes:
                del place[path[-1]]
            else:
                place[path[-1]] = wanted
        except (
            IndexError,
            KeyError,
            TypeError,
        ) as error:  # the path leads through a value that is not a section
            raise ValueError(path) from error
        for new in map(JobText, texts):
            if new.root is not None and repr(new.root.data()) == repr(expected):
                return new
        raise ValueError(path)

    def _index(self, node: ConfigNode) -> int:
        """Offset at which its key, or an item of a list, begins."""
        return self._lines[node.key_at.line - 1] + node.key_at.column - 1

    def _end(self, node: ConfigNode) -> int:
        """Offset at which a value ends, without the comments and empty lines that
        PyYAML includes."""
        begin, end = node.span
        if isinstance(node.value, dict):
            children = node.value.values()
        else:
            children = node.value
        if node.aliased:
            alias = re.compile(r"\*[^\s,\]}]+").search(self.text, self._index(node))
            return alias.end() if alias else end
        if (
            isinstance(node.value, dict | list)
            and node.value
            and not _FLOW.match(self.text, begin)
        ):
            return max(self._end(child) for child in children)
        return begin + len(self.text[begin:end].rstrip())

    def _line_of(self, index: int) -> int:
        return self.text.rfind("\n", 0, index) + 1

    def _line_end(self, index: int) -> int:
        found = self.text.find("\n", index)
        return len(self.text) if found < 0 else found


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)  # JSON is YAML
