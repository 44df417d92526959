"""The YAML of a job as a form reads and edits it.

Values are read by key, and an edit leaves every other character of the text as it is,
comments included. An edit replaces the part of the text that `read_yaml` locates. The
result is read again, and the edit is refused unless exactly the one value has changed:
this happens with aliases, and with lists that contain comments. Keys and values are not
checked here: a dry run does that (`extensions.tools.ui.commands.check_job`).

The editor for jobs works on it (`extensions.tools.ui.views.new`).
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from difflib import SequenceMatcher
from itertools import pairwise
from typing import Any

from toolkit.config.reading.located import ConfigNode, Diagnostics, KeyPath
from toolkit.config.reading.yaml_reader import read_yaml, strip_json_comments
from toolkit.errors import ConfigErrors

PROMPTS = (("sample", "samples"), ("sample", "prompts"))
"""Keys that contain the prompts of a trainer's samples."""

_FLOW = re.compile(r"(?:[&!]\S+\s+)*[\[{]")


class JobText:
    r"""The text of a job. It is never changed: an edit returns a new object.

    >>> job = JobText("config:\n  process:\n  - train: {steps: 100}  # short\n")
    >>> steps = job.path("train.steps")
    >>> job.get(steps), job.set(steps, "200", is_text=False).text.splitlines()[2]
    ('100', '  - train: {steps: 200}  # short')
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.root: ConfigNode | None = None
        for form in (text, strip_json_comments(text)):  # of the same length
            with suppress(ConfigErrors):
                self.root = self.root or read_yaml(form, Diagnostics("job"))
        self._lines = [0, *(match.end() for match in re.finditer("\n", text))]

    def path(self, key: str) -> KeyPath:
        """The path of a key that is written as in docs/config.md.

        That is `config.name`, or a key of the process that trains, such as
        `datasets[].folder_path`, which means the first dataset.
        """
        if key.startswith("config."):
            return tuple(key.split("."))
        parts: list[str | int] = ["config", "process", self.trainer]
        for part in key.split("."):
            parts.append(part.removesuffix("[]"))
            if part.endswith("[]"):
                parts.append(0)
        return tuple(parts)

    @property
    def trainer(self) -> int:
        """Index of the last process that trains, or of the last process if none
        does."""
        processes = self._at(("config", "process"))
        listed = processes.value if processes else []
        if not isinstance(listed, list):
            listed = []
        trains = [i for i, node in enumerate(listed) if node.child("train") is not None]
        return trains[-1] if trains else max(0, len(listed) - 1)

    def _at(self, path: KeyPath) -> ConfigNode | None:
        if self.root is None:
            return None
        node, rest = self.root.find(path)
        return None if rest else node

    def get(self, path: KeyPath) -> str:
        """A value as a form shows it: a text without quotes, a list or mapping in one
        line. Empty: the key is not given."""
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
        """A value as plain Python. None: the key is not given."""
        node = self._at(path)
        return node.data() if node else None

    def leaves(self, in_lists: bool = False) -> dict[KeyPath, Any]:
        """Each value that is not a section, by its path. in_lists: the values of a list
        one by one."""
        return dict(_leaves(self.root.data(), (), in_lists)) if self.root else {}

    def prompts(self) -> list[str]:
        """The prompts of the samples, each in one line."""
        samples = self.data(self._prompts_path())
        if not isinstance(samples, list):
            return []
        prompts = []
        for sample in samples:
            prompt = sample.get("prompt") if isinstance(sample, dict) else sample
            prompts.append(" ".join(str(prompt or "").split()))
        return prompts

    def _prompts_path(self) -> KeyPath:
        """Path of the list of prompts that the job has, or of the key for a new one."""
        path: KeyPath = ()
        for keys in PROMPTS:
            path = self.path(".".join(keys))
            if isinstance(self.data(path), list):
                break
        return path

    def set(self, path: KeyPath, given: str, is_text: bool) -> JobText:
        """The text with a value set or added.

        given: the value as typed. is_text: it is the value itself. Otherwise it is read
        as YAML. Raises ValueError if the text cannot be edited without changing another
        value.
        """
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
        Raises ValueError as `set` does."""
        parent = self._at(path[:-1])
        while parent and len(parent.value) == 1 and len(path) > 4:
            path = path[:-1]
            parent = self._at(path[:-1])
        node = self._at(path)
        if parent is None or node is None:
            return self
        siblings = parent.value
        if isinstance(siblings, dict):
            siblings = siblings.values()
        begins = sorted(self._index(child) for child in siblings)
        begin = self._index(node)
        end = self._end(node)
        later = [other for other in begins if other > begin]
        line = self._line_of(begin)
        is_after_dash = self.text[line:begin].strip() and isinstance(path[-1], str)
        if _FLOW.match(self.text, parent.span[0]):
            if later:
                end = later[0]
            else:
                ends = [self._end(child) for child in siblings]
                begin = max([other for other in ends if other <= begin], default=begin)
        elif is_after_dash:  # the first key of an item
            end = later[0] if later else begin
        else:
            begin = line
            end = self._line_end(end) + 1
        return self._first_that_reads(
            path, None, [self.text[:begin] + self.text[end:]], removes=True
        )

    def set_prompts(self, given: Sequence[str]) -> JobText:
        """The text with these prompts. A sample whose prompt changes keeps its other
        keys. Raises ValueError as `set` does."""
        path = self._prompts_path()
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
        """The text with a prompt inserted into a block list, before the item at
        `index`."""
        node = self._at(path)
        assert node is not None
        near = node.value[max(0, index - 1)]
        item = {"prompt": prompt} if isinstance(near.value, dict) else prompt
        written = f"prompt: {_json(prompt)}" if item is not prompt else _json(prompt)
        line = self._line_of(self._index(near))
        dash = self.text.index("-", line) - line
        at = self._line_end(self._end(near)) if index else line - 1
        new = JobText(f"{self.text[:at]}\n{' ' * dash}- {written}{self.text[at:]}")
        if new.data(path) != [*node.data()[:index], item, *node.data()[index:]]:
            raise ValueError(prompt)
        return new

    def _with(self, path: KeyPath, form: str) -> str:
        """The text with a value at a path, replaced or added. It is not checked yet."""
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
            return self._replaced(begin, self._end(node), form)
        for part in reversed(rest[1:]):
            form = f"{{{part}: {form}}}" if isinstance(part, str) else f"[{form}]"
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
        """The text with another value from `begin` to `end`. A comment after the value
        keeps its column."""
        tail = self.text[end : self._line_end(end)]
        comment = re.match(r" +(?=#)", tail)
        space = ""
        if comment:
            space = " " * max(1, len(comment[0]) + end - begin - len(form))
            end += len(comment[0])
        before = " " if begin and self.text[begin - 1] == ":" else ""
        return self.text[:begin] + before + form + space + self.text[end:]

    def _in_place_of_block(self, node: ConfigNode, form: str) -> str:
        """The text with a value in the line of its key, in place of a block below it."""
        key = self._index(node)
        colon = key + len(str(node.path[-1])) + 1
        line_end = self._line_end(key)
        return f"{self.text[:colon]} {form}{self.text[colon:line_end]}{self.text[self._line_end(self._end(node)) :]}"

    def _first_that_reads(
        self, path: KeyPath, wanted: Any, texts: list[str], removes: bool = False
    ) -> JobText:
        """The first text that reads as the old values with this one change."""
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
        except (IndexError, KeyError, TypeError) as error:
            # The path leads through a value that is not a section.
            raise ValueError(path) from error
        for new in map(JobText, texts):
            if new.root is not None and repr(new.root.data()) == repr(expected):
                return new
        raise ValueError(path)

    def _index(self, node: ConfigNode) -> int:
        """Offset at which the key of a node, or an item of a list, begins."""
        return self._lines[node.key_at.line - 1] + node.key_at.column - 1

    def _end(self, node: ConfigNode) -> int:
        """Offset at which a value ends. Comments and empty lines after it do not count,
        although PyYAML includes them."""
        begin, end = node.span
        children = node.value.values() if isinstance(node.value, dict) else node.value
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
        newline = self.text.find("\n", index)
        return len(self.text) if newline < 0 else newline


def _leaves(data: Any, path: KeyPath, in_lists: bool) -> Iterator[tuple[KeyPath, Any]]:
    if isinstance(data, dict):
        for key, value in data.items():
            yield from _leaves(value, (*path, key), in_lists)
    elif isinstance(data, list) and (
        in_lists or all(isinstance(item, dict) for item in data)
    ):
        for index, value in enumerate(data):
            yield from _leaves(value, (*path, index), in_lists)
    else:
        yield path, data


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)  # JSON is YAML
