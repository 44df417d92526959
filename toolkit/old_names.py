"""Modules that moved: extensions written for 0.2 import them by their old names and get
the same modules.

`MOVED` is the table. `import toolkit.old_names` makes the old names importable;
`toolkit.extension` does so before it imports an extension.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_FOLDERS = {
    "toolkit.config.reading": (
        "base field_types findings foreign loader located normalise process redacted_copy reference "
        "toml_reader tool validate yaml_faults yaml_reader"
    ),
    "toolkit.config.sections": (
        "dataset few_step hub_dataset model model_files network output prompts stored_quantization train"
    ),
    "toolkit.data.pixels": "alignment avif colours conversion images tiff",
    "toolkit.data.scan": (
        "captions columns directory fingerprint folder folder_check folder_tables found foreign_syntax "
        "from_base items masks moved partners repeats tables validation_split"
    ),
    "toolkit.data.streams": "counts parquet_shards sample_keys shards stream_dataset webdataset",
    "toolkit.data.batches": "dataloader epoch_order image_data latent_cache stream_latents",
}
"""Folder -> its modules that were in the folder around it."""

MOVED = {
    **{
        f"{folder.rpartition('.')[0]}.{module}": f"{folder}.{module}"
        for folder, modules in _FOLDERS.items()
        for module in modules.split()
    },
    "toolkit.data.cache": "toolkit.files.tensor_cache",
    "toolkit.data.pairs": "toolkit.data.scan.folder_check",
    "toolkit.data.threads": "toolkit.system.read_ahead",
    "toolkit.data.types": "toolkit.contracts.data",
    "toolkit.models.interface": "toolkit.contracts.model",
    "toolkit.networks.interface": "toolkit.contracts.network",
    "toolkit.networks.kinds": "toolkit.contracts.network_kinds",
    "toolkit.optim.lr_groups": "toolkit.train.lr_groups",
    "toolkit.train.interface": "toolkit.contracts.training",
}
"""Old name -> name. `toolkit.config.sections` was a module: its folder still gives what
was in it."""


class _OldNames(MetaPathFinder, Loader):
    """Finds a module by its old name: the module itself, so that each of its classes
    exists once."""

    def find_spec(
        self, fullname: str, path: object = None, target: object = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = import_module(MOVED[spec.name])
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """The module ran when it was imported; the import system has just given it
        another spec."""
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state


sys.meta_path.append(_OldNames())
