"""`type: cache`: encodes the datasets of a job as training would, and stops. What broke off goes on where it was."""

from __future__ import annotations

from pathlib import Path

from extensions.cache.config import CacheConfig
from jobs.process import BaseExtensionProcess
from toolkit.data.encode import encode_items
from toolkit.data.held_out import scan_job
from toolkit.data.manifest import Manifest
from toolkit.data.stores import CacheStores
from toolkit.device import DTYPES, pick_device
from toolkit.log import StatusLine
from toolkit.memory.quantize import quantizer
from toolkit.models.opening import checked_family, open_adapter


class CacheProcess(BaseExtensionProcess):
    """Fills `<training_folder>/_cache`; a training job with the same datasets and model then encodes nothing."""

    section: CacheConfig

    def run(self) -> None:
        super().run()
        section = self.section
        status = StatusLine()
        manifest = Manifest.beside(section.training_folder)
        _, trained, held_out = scan_job(section, checked_family(section.model), manifest)
        manifest.save()
        items = (*trained, *(held_out.items if held_out else ()))
        device = pick_device(section.device)
        dtype = DTYPES[section.train.dtype]
        adapter = open_adapter(section.model, device, dtype, quantizer)
        folder = Path(section.training_folder).expanduser()
        stores = CacheStores(folder).on_disk
        encode_items(
            items, adapter, lambda _: stores, dtype, lambda what, done, total: status.update(f"{what} {done}/{total}")
        )
        manifest.save()  # by now it knows the digests as well
        status.finish(f"cached {len(items)} items in {folder / '_cache'}")
