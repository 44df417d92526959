"""`type: cache`: encodes the datasets of a job as training would, and stops. An interrupted run resumes."""

from __future__ import annotations

from pathlib import Path

from extensions.cache.config import CacheConfig
from jobs.process import BaseExtensionProcess
from toolkit.data.latent_cache import CacheStores, encode_items
from toolkit.data.scan_cache import ScanCache
from toolkit.data.validation_split import scan_and_split
from toolkit.device import DTYPES, check_device, pick_device, use_device
from toolkit.log import StatusLine
from toolkit.memory.quantization import quantizer
from toolkit.models.families import model_bytes
from toolkit.models.loading import checked_family, load_model


class CacheProcess(BaseExtensionProcess):
    """Fills `<training_folder>/_cache`; a training job with the same datasets and model then encodes nothing."""

    section: CacheConfig

    def run(self) -> None:
        super().run()
        section = self.section
        check_device(section.device, model_bytes(section.model))
        status = StatusLine()
        scan_cache = ScanCache.beside(section.training_folder)
        _, trained, validation_split = scan_and_split(section, checked_family(section.model), scan_cache)
        scan_cache.save()
        items = (*trained, *(validation_split.items if validation_split else ()))
        device = use_device(pick_device(section.device))
        dtype = DTYPES[section.train.dtype]
        model = load_model(section.model, device, dtype, quantizer)
        folder = Path(section.training_folder).expanduser()
        stores = CacheStores(folder).on_disk
        encode_items(
            items,
            model,
            lambda _: stores,
            dtype,
            lambda what, done, total: status.update(f"{what} {done}/{total}"),
            lambda sample: section.train.preserved_prompts(sample.caption, sample.rules.trigger),
        )
        scan_cache.save()  # now with the file hashes
        status.finish(f"cached {len(items)} items in {folder / '_cache'}")
