"""`type: cache`: computes the latents and text embeddings of a job's datasets, and nothing else."""

from toolkit.extension import Extension


class CacheExtension(Extension):
    uid = "cache"
    name = "Cache"
    purpose = "encode the images and captions of a job before it trains; see and prune the cache"

    @classmethod
    def get_config(cls) -> type:
        from extensions.cache.config import CacheConfig

        return CacheConfig

    @classmethod
    def get_command(cls) -> type:
        from extensions.cache.config import CacheCommand

        return CacheCommand

    @classmethod
    def get_process(cls) -> type:
        from extensions.cache.process import CacheProcess

        return CacheProcess


AI_TOOLKIT_EXTENSIONS = [CacheExtension]
