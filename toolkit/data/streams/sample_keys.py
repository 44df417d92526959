"""Which of the files of a sample in a shard is its image and which its caption.

`SampleKeys` has the keys of a job (`image_key`, `label_key`, `caption_key`), takes
image and caption out of a sample, and suggests other keys where a sample lacks them.
`stream_dataset` makes it and `webdataset` calls it for each sample. Images are not
decoded here. Imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from toolkit.data.pixels.images import IMAGE_SUFFIXES
from toolkit.data.scan.captions import LIST, caption_of
from toolkit.data.scan.columns import Unfit
from toolkit.files.unreadable import pointer

TEXTS = ("txt", "text", "transcript", "caption", "cap")
"""Extensions of files that are the text itself."""

JSON = ("json", "jsn")

CAPTIONS = ("caption", "text", "prompt", "description", "tags")
"""Keys under which other programs have captions in JSON."""


@dataclass(frozen=True)
class SampleKeys:
    """Which files of a sample are its image and its caption.

    >>> keys = SampleKeys(label="json", caption="prompt")
    >>> keys.caption_of({"json": b'{"prompt": "a red cat"}'})
    'a red cat'
    """

    image: tuple[str, ...] = ("jpg", "jpeg", "png", "webp")
    """Extensions; the first that is there is used."""

    label: str = "json"
    """Extension of the file with the caption: JSON where it ends with `json`, else the
    text itself."""

    caption: str = "prompt"
    """Key of the caption in the JSON."""

    def image_of(self, fields: dict[str, bytes]) -> bytes:
        """The encoded image of a sample: the first of the keys `image` that it has.
        fields: key -> bytes. Raises LookupError with the keys that are missing."""
        for key in self.image:
            if key in fields:
                return fields[key]
        raise LookupError(" or ".join(self.image))

    def caption_of(self, fields: dict[str, bytes]) -> str:
        """Raises LookupError with the keys that are missing, ValueError or
        RecursionError for a label that is not JSON, or not text. One that is an object
        or a list in a file of text is read as in a caption file."""
        if self.label not in fields:
            raise LookupError(self.label)
        cause = pointer(fields[self.label])
        if cause:
            raise ValueError(f"{cause.what}. {cause.remedy}")
        text: Any = fields[self.label].decode("utf-8-sig").strip()
        if last_part(self.label) in JSON:
            label = json.loads(text)
            if not isinstance(label, dict):
                raise ValueError("no object with keys")
            if self.caption not in label:
                raise LookupError(
                    f"{self.caption} in its {self.label} (whose keys are {', '.join(sorted(label))})"
                )
            text = label[self.caption]
            if not isinstance(text, str):
                raise ValueError(f"{self.caption} is not text")
        caption = caption_of(text, (self.caption,))
        if LIST in caption:
            raise Unfit("is a list of captions. Give each sample one")
        # JSON can hold half a surrogate pair, which no tokenizer reads
        caption.encode()
        return caption

    def remedy(self, key: str, fields: Mapping[str, bytes]) -> str:
        """The keys that would fit a sample with these files; empty where they do not tell
        it. key: of the sample."""
        has_image = any(image_key in fields for image_key in self.image)
        if not has_image:
            candidates = [
                field for field in fields if "." + last_part(field) in IMAGE_SUFFIXES
            ]
            kind = "image_key"
        elif self.label not in fields or last_part(self.label) in JSON:
            candidates = [
                field
                for field in fields
                if field != self.label and last_part(field) in (*TEXTS, *JSON)
            ]
            kind = "label_key"
        else:
            return ""
        if not candidates:
            key = self._caption_key(fields) if kind == "label_key" else ""
            return f"Set caption_key: {key}" if key else ""
        first = min(candidates)
        # whose name ends where that of the sample does
        if "." not in first or has_image:
            others = ", ".join(sorted(candidates)[1:])
            return f"Set {kind}: {first}" + (f" (or {others})" if others else "")
        names = f"A name ends at its first dot, and {first} stands behind that of {key.rpartition('/')[2]!r}"
        ways = f"Set {kind}: {first}, or take" if len(candidates) == 1 else "Take"
        return f"{names}. {ways} the dots out of the names"

    def _caption_key(self, fields: Mapping[str, bytes]) -> str:
        """The key of the label whose text is most likely the caption; empty where there
        is none."""
        try:
            label = json.loads(fields.get(self.label, b""))
        except (ValueError, RecursionError):
            return ""
        if not isinstance(label, dict):
            return ""
        texts = [key for key, value in label.items() if isinstance(value, str)]
        likely = [key for key in CAPTIONS if key in texts]
        return likely[0] if likely else texts[0] if len(texts) == 1 else ""


def last_part(extension: str) -> str:
    """The part of an extension after its last dot.

    >>> last_part("left.png"), last_part("png")
    ('png', 'png')
    """
    return extension.rpartition(".")[2]
