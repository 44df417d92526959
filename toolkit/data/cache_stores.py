"""The caches of encoder outputs of a job: on disk beside the runs, shared by jobs, or in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from toolkit.config.sections import DatasetsSection
from toolkit.data.cache import TensorCache
from toolkit.data.latent_cache import CachePair
from toolkit.data.scan_cache import CACHE_FOLDER
from toolkit.interfaces import Sample


class CacheStores:
    """The caches of a job. The flags of each dataset decide whether its entries are cached on disk."""

    def __init__(self, training_folder: Path) -> None:
        root = training_folder / CACHE_FOLDER
        self._disk = CachePair(TensorCache(root / "latents"), TensorCache(root / "text"))
        self._memory = CachePair(TensorCache(None), TensorCache(None))

    def of_samples(self, section: DatasetsSection) -> Callable[[Sample], CachePair]:
        """The caches of each sample of `section.datasets`, by the flags of its dataset."""
        by_dataset = [
            CachePair(
                latents=self._at(dataset.cache_latents and dataset.cache_latents_to_disk).latents,
                text=self._at(section.requested_text_cache(dataset) is not False).text,
            )
            for dataset in section.datasets
        ]
        return lambda sample: by_dataset[sample.dataset]

    def _at(self, outlives_the_run: bool) -> CachePair:
        return self._disk if outlives_the_run else self._memory

    @property
    def on_disk(self) -> CachePair:
        """The caches on disk, for sample prompts and `cache` processes."""
        return self._disk
