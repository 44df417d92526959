"""`type: cache` and `run.py cache`: encodes the datasets of a job as training would. An
interrupted run resumes.

It takes no training step. The cache has the format and the keys of a training
job, which then reads it. The plan is in `plan`, the section in `config`.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from extensions.tools.cache.config import CacheCommand, CacheConfig
from jobs.job import ExtensionJob
from jobs.process import BaseExtensionProcess
from toolkit.config.sections.trainer import DiffusionSection
from toolkit.contracts.data import Sample
from toolkit.data.batches.latent_cache import (
    CacheEntry,
    CacheStores,
    ItemEncoder,
    encode_items,
    fill_texts,
)
from toolkit.data.scan.directory import ScanCache
from toolkit.data.scan.validation_split import scan_and_split
from toolkit.extension import discover
from toolkit.files.log import StatusLine
from toolkit.files.writing import CACHE_FOLDER, readable_size, remove
from toolkit.memory.quantization import quantizer
from toolkit.models.families import model_bytes
from toolkit.models.kept import MODELS, kept_entries
from toolkit.models.loading import checked_family, load_model
from toolkit.system.device import DTYPES, check_device, pick_device, use_device
from toolkit.train.base_model import kept_name
from toolkit.train.sampling import Sampler, sample_prompts

logger = logging.getLogger(__name__)

KINDS = ("latents", "text")
"""The folders of the cache, in the order of `CachePair`."""

Keys = dict[str, set[str]]
"""Kind -> keys of entries."""


class CacheProcess(BaseExtensionProcess):
    """Fills `<training_folder>/_cache`. A training job with the same datasets and model
    then encodes nothing.

    Example::

        python run.py cache config/my_char.yaml
    """

    section: CacheConfig | CacheCommand

    def run(self) -> None:
        super().run()
        given = self.section
        processes: list[Any] = [self]
        if isinstance(given, CacheCommand):
            processes = ExtensionJob(given.job_config(), discover()).process
        used: dict[Path, Keys] = {}
        for process in processes:
            section = process.section
            if not isinstance(section, DiffusionSection):
                continue
            folder = Path(section.training_folder).expanduser()
            keys = used.setdefault(folder, defaultdict(set))
            for kind, key in self._encode(section, folder, process):
                keys[kind].add(key)
            if section.model.keeps_quantized():  # its files exist now
                dtype = DTYPES[section.weights_dtype()]
                device = pick_device(section.device, quiet=True)
                keys[MODELS].add(kept_name(section.model, dtype, device.type))
        for folder, keys in used.items():
            self._account(folder, keys)

    def _encode(
        self, section: DiffusionSection, folder: Path, process: Any
    ) -> Iterator[tuple[str, str]]:
        """Encodes missing entries. Yields kind and key of every entry on disk that the
        section uses. process: of the section; one that trains knows its further
        prompts."""
        family = checked_family(section.model)
        check_device(section.device, model_bytes(section.model))
        status = StatusLine()
        scan_cache = ScanCache.beside(section.training_folder)
        _, trained, validation_split = scan_and_split(section, family, scan_cache)
        scan_cache.save()
        items = (*trained, *(validation_split.items if validation_split else ()))
        device = use_device(pick_device(section.device))
        dtype = DTYPES[section.train.dtype]
        model = load_model(section.model, device, dtype, quantizer)
        stores = CacheStores(folder).on_disk

        def preserved(sample: Sample) -> Mapping[str, str]:
            return section.train.preserved_prompts(
                sample.caption, section.trigger_words()
            )

        process.model = model  # as it is when a training encodes
        texts: list[Sequence[CacheEntry]] = []
        dataset = encode_items(
            items,
            model,
            lambda _: stores,
            dtype,
            status.count,
            process.extra_prompts
            if hasattr(type(process), "extra_prompts")
            else preserved,
            workers=self.section.workers,
            verify=not self.section.skip_existing,
            later=texts,
        )
        pictures = () if section.train.disable_sampling else section.sample_pictures()
        prompts = sample_prompts(pictures, section.trigger_word, family)
        sampler = Sampler(model, prompts, ItemEncoder(model, dtype), stores)
        sampler.encode(status.count, texts)
        fill_texts(
            texts,
            model,
            status.count,
            self.section.workers,
            verify=not self.section.skip_existing,
        )
        scan_cache.save()  # now with the file hashes
        more = " and the sample prompts" if prompts else ""
        status.finish(f"cached {len(items)} items{more} in {folder / CACHE_FOLDER}")
        for entry in (
            *chain.from_iterable(each.images() for each in dataset.entries),
            *chain.from_iterable(each.texts() for each in dataset.entries),
            *sampler.entries(),
        ):
            yield KINDS[stores.index(entry.store)], entry.key

    def _account(self, folder: Path, used: Keys) -> None:
        """Logs the size of the cache, and with `prune` deletes unused entries."""
        unused = 0
        prunes = self.section.prune and not self.section.keep
        for kind, store in zip(KINDS, CacheStores(folder).on_disk, strict=True):
            sizes = store.sizes()
            rest = sizes.keys() - used[kind]
            unused += len(rest)
            logger.info(
                f"{kind}: {_amount(sizes[key] for key in sizes.keys() & used[kind])} used, "
                f"{_amount(sizes[key] for key in rest)} not used by this job"
            )
            for key in rest if prunes else ():
                store.remove(key)
        for entry in kept_entries(folder / CACHE_FOLDER):
            is_used = entry.folder.name in used[MODELS]
            unused += not is_used
            by_it = "used" if is_used else "not used by this job"
            logger.info(
                f"models: {entry.model} ({readable_size(entry.bytes)}) {by_it}, in {entry.folder}"
            )
            if prunes and not is_used:
                remove(entry.folder)
        if prunes and unused:
            logger.info(f"{unused} entries deleted")


def _amount(sizes: Iterable[int]) -> str:
    """Number and size of entries."""
    entry_sizes = list(sizes)
    return f"{len(entry_sizes)} entries ({readable_size(sum(entry_sizes))})"
