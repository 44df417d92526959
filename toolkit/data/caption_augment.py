"""Caption augmentation: the trigger word once at the scan, dropout and shuffling at each use."""

from __future__ import annotations

from collections.abc import Callable

from toolkit import seeding
from toolkit.interfaces import CaptionRules

_PLACEHOLDERS = ("[trigger]", "[name]")


def inject_trigger(caption: str, trigger: str | None, add: bool = True) -> str:
    """Puts the trigger word for `[trigger]` and `[name]`; with `add`, in front of a caption without it.

    Same strings as ai-toolkit's `toolkit/prompt_utils.py:inject_trigger_into_prompt`.
    """
    trigger = trigger or ""
    for placeholder in _PLACEHOLDERS:
        caption = caption.replace(placeholder, trigger)
    if add and trigger and trigger not in caption:
        return f"{trigger} {caption}"
    return caption


def caption_for_use(caption: str, rules: CaptionRules, seed: int, epoch: int, position: int) -> str:
    """The caption of one use: empty (the trigger too) when dropped, else shuffled as the rules say.

    All random numbers are keyed by (seed, epoch, position), so no other setting changes them.
    """
    if seeding.uniform(seed, "caption_dropout", epoch, position) < rules.dropout_rate:
        return ""
    if not rules.shuffle_tokens:
        return caption
    return _shuffle(caption, rules, lambda part: seeding.key(seed, "shuffle_tokens", epoch, position, part))


def _shuffle(caption: str, rules: CaptionRules, draw: Callable[[int], int]) -> str:
    """Sorts the comma-separated tags by their random keys; kept tags and the trigger stay in place."""
    prefix = ""
    if rules.trigger and caption.startswith(f"{rules.trigger} "):
        prefix, caption = f"{rules.trigger} ", caption.removeprefix(f"{rules.trigger} ")
    parts = [part for part in map(str.strip, caption.split(",")) if part]
    free = [
        index
        for index, part in enumerate(parts)
        if index >= rules.keep_tokens and not (rules.trigger and rules.trigger in part)
    ]
    shuffled = list(parts)
    for place, source in zip(free, sorted(free, key=draw), strict=True):
        shuffled[place] = parts[source]
    return prefix + ", ".join(shuffled)
