"""`type: cache`: computes the latents and text embeddings of a job's datasets, and nothing else."""

from toolkit.extension import Extension


class CacheExtension(Extension):
    uid = "cache"
    name = "Cache"

    @classmethod
    def get_config(cls) -> type:
        from extensions.cache.config import CacheConfig

        return CacheConfig

    @classmethod
    def get_process(cls) -> type:
        from extensions.cache.process import CacheProcess

        return CacheProcess


AI_TOOLKIT_EXTENSIONS = [CacheExtension]
