"""What the keys about samples and saves of an `sd_trainer` section say together: before which step the first set is
drawn, and what has no effect. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from toolkit.config.node import Key
from toolkit.config.process import Finding

_OF_INTERVALS = ("sample_every", "sample_every_n_epochs", "sample_start_step", "sample_at_first")


def check_samples(section: Any) -> Iterable[Finding]:
    """Keys that contradict each other about the first set."""
    wanted, unwanted = list(_for_first(section)), list(_against_first(section))
    for key, text in wanted[:1]:
        for _, other in unwanted[:1]:
            yield Finding(key, f"{text!r} and {other!r} contradict each other. Leave one of them out.")
    if section.train.force_first_sample and section.train.disable_sampling:
        message = "'force_first_sample: true' and 'disable_sampling: true' contradict each other. Leave one out."
        yield Finding(("train", "force_first_sample"), message)
    if section.first_sample and not section.first_sample.samples:
        message = "holds no prompts. Give its own 'prompts' or 'samples': none are taken over from 'sample'."
        yield Finding(("first_sample",), message)


def _for_first(section: Any) -> Iterator[tuple[Key, str]]:
    train = section.train
    if section.sample and section.sample.sample_at_first:
        yield ("sample", "sample_at_first"), "sample_at_first: true"
    if train.force_first_sample:
        yield ("train", "force_first_sample"), "force_first_sample: true"
    if section.first_sample:
        yield ("first_sample",), "first_sample"
    if "skip_first_sample" in train.model_fields_set and not train.skip_first_sample:
        yield ("train", "skip_first_sample"), "skip_first_sample: false"


def _against_first(section: Any) -> Iterator[tuple[Key, str]]:
    if section.train.skip_first_sample:
        yield ("train", "skip_first_sample"), "skip_first_sample: true"
    if section.sample and section.sample.sample_at_first is False:
        yield ("sample", "sample_at_first"), "sample_at_first: false"


def note_samples_and_saves(section: Any) -> Iterable[Finding]:
    """Keys that are given and do nothing."""
    for name, part in (("save", section.save), ("sample", section.sample)):
        for key, message in part.without_effect() if part else ():
            yield Finding((name, key), message)
    for key in _OF_INTERVALS if section.first_sample else ():
        if key in section.first_sample.model_fields_set:
            yield Finding(("first_sample", key), "has no effect: these pictures are drawn once, before step 1.")
    if section.train.force_first_sample and not section.sample:
        yield Finding(("train", "force_first_sample"), "has no effect without a 'sample' section.")
