"""Which of the files of a sample in a shard is its image and which its caption. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass

from toolkit.data.images import IMAGE_SUFFIXES

TEXTS = ("txt", "text", "transcript", "caption", "cap")
"""Extensions of files that are the text itself."""

JSON = ("json", "jsn")


@dataclass(frozen=True)
class SampleKeys:
    """Which files of a sample are its image and its caption."""

    image: tuple[str, ...] = ("jpg", "jpeg", "png", "webp")
    """Extensions; the first that is there is used."""

    label: str = "json"
    """Extension of the file with the caption: the text itself, or JSON where it ends with `json` or has an object."""

    caption: str = "prompt"
    """Key of the caption in the JSON."""

    def image_of(self, fields: dict[str, bytes]) -> bytes:
        """Raises LookupError with the keys that are missing."""
        if not (found := [fields[key] for key in self.image if key in fields]):
            raise LookupError(" or ".join(self.image))
        return found[0]

    def caption_of(self, fields: dict[str, bytes]) -> str:
        """Raises LookupError with the keys that are missing, ValueError or RecursionError for a label that is not JSON,
        or not text."""
        if self.label not in fields:
            raise LookupError(self.label)
        text = fields[self.label].decode("utf-8-sig").strip()
        kind = last_part(self.label)
        if kind in TEXTS or not (kind in JSON or text.startswith("{")):
            return text
        label = json.loads(text)
        if not isinstance(label, dict):
            raise ValueError("no object with keys")
        if self.caption not in label:
            raise LookupError(f"{self.caption} in its {self.label} (whose keys are {', '.join(sorted(label))})")
        if not isinstance(label[self.caption], str):
            raise ValueError(f"{self.caption} is not text")
        label[self.caption].encode()  # JSON can hold half a surrogate pair, which no tokenizer reads
        return label[self.caption].strip()

    def remedy(self, key: str, fields: Collection[str]) -> str:
        """What the keys would have to be for a sample with these fields, as far as names tell it. key: the sample's."""
        if not any(each in fields for each in self.image):
            found = [field for field in fields if "." + last_part(field) in IMAGE_SUFFIXES]
            kind = "image_key"
        elif self.label not in fields or last_part(self.label) in JSON:
            found = [field for field in fields if field != self.label and last_part(field) in (*TEXTS, *JSON)]
            kind = "label_key"
        else:
            return ""
        if not found:
            return ""
        first = min(found)
        if "." not in first:
            return f"set {kind}: {first}"
        names = f"a name ends at its first dot, and {first} stands behind that of {key.rpartition('/')[2]!r}"
        ways = f"Set {kind}: {first}, or take" if len(found) == 1 else "Take"
        return f"{names}. {ways} the dots out of the names"


def last_part(extension: str) -> str:
    """What is behind the last dot of an extension, which may have several."""
    return extension.rpartition(".")[2]
