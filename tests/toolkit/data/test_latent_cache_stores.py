from pathlib import Path
from types import SimpleNamespace

import torch

from toolkit.data.folder import scan_datasets
from toolkit.data.latent_cache import CacheStores


def test_flags_decide_what_outlives_the_run(tmp_path: Path, image, dataset) -> None:
    image(tmp_path / "data" / "a.png")
    kept = SimpleNamespace(cache_latents=True, cache_latents_to_disk=True, cache_text_embeddings=None)
    passing = SimpleNamespace(cache_latents=True, cache_latents_to_disk=False, cache_text_embeddings=False)
    section = SimpleNamespace(datasets=(kept, passing), requested_text_cache=lambda d: d.cache_text_embeddings)
    stores = CacheStores(tmp_path / "out")
    # two entries over one folder, whose flags differ
    scan = scan_datasets([dataset(tmp_path / "data")] * 2, None)
    of_sample = stores.of_samples(section)
    for sample, outlives in zip(scan.samples, (True, False), strict=True):
        for store in of_sample(sample):
            key = f"{outlives}{id(store)}"
            store.put(key, {"a": torch.zeros(1)})
            assert store.get(key) is not None
            assert bool(list((tmp_path / "out" / "_cache").rglob(f"{key}.safetensors"))) is outlives
