"""A config of diffusion-pipe, in TOML, with its dataset file, as a job."""

from __future__ import annotations

from math import isqrt
from typing import Any

from extensions.compat.foreign_jobs import ForeignJobs
from extensions.compat.nodes import at, entries, tree
from extensions.compat.trainer_file import ByTable, Level, level_of
from toolkit.config.reading.located import ConfigNode

MARKS = frozenset({"dataset", "output_dir", "micro_batch_size_per_gpu", "optimizer"})

MODEL = "Qwen/Qwen-Image"
"""The rest of a model whose files are given alone."""

OPTIMIZERS = {
    "adamw_optimi": "adamw",
    "adamw8bitkahan": "adamw8bit",
    "schedulefreeadamw": "schedulefree_adamw",
}
"""`optimizer.type` in small letters -> ours."""


class _Reader(ByTable):
    whose = "diffusion-pipe"

    def trains_adapter(self) -> bool:
        return "adapter.type" in self.given

    def by_hand(self) -> ConfigNode:
        self.put(
            "model.name_or_path",
            "model.diffusers_path",
            self.value("model.diffusers_path", MODEL),
        )
        self.quantized("model.transformer_dtype", {"float8": "float8"})
        flux = "flux_shift" if self.value("model.flux_shift") else "sigmoid"
        uniform = self.value("model.timestep_sample_method") == "uniform"
        levels = "uniform" if uniform else flux
        self.shifted("model.shift", self.value("model.shift", 1), levels)
        self.put("network.type", "adapter.type", self.value("adapter.type", "full"))
        self._optimizer()
        if "max_step_saves_to_keep" not in self.process["save"]:
            self.put("save.max_step_saves_to_keep", "save", 0)
        self.prompts([])
        node = self.given.get("dataset")
        if node is None:
            self.need("dataset", "the file with the datasets")
        else:
            self._datasets(self.file_of(node, "directory"))
        return self.name_and_folder("output_dir", self.value("output_dir", "output"))

    def _optimizer(self) -> None:
        kind = self.value("optimizer.type", "adamw").lower()
        params = self.process.setdefault("train", {}).setdefault("optimizer_params", {})
        if kind == "adamw_optimi":
            for name, value in (("betas", [0.9, 0.99]), ("weight_decay", 0.0)):
                params.setdefault(name, self.their(name, value))
        self.put("train.optimizer", "optimizer.type", OPTIMIZERS.get(kind, kind))

    def _datasets(self, file: Level) -> None:
        listed = file.get("directory")
        shared = {key: node for key, node in file.items() if key != "directory"}
        items = listed.value if listed and isinstance(listed.value, list) else []
        if not items:
            self.need("dataset", "a file with at least one [[directory]]")
        for item in items:
            given = {**shared, **entries(item)}
            dataset: dict[str, Any] = {}
            self.process.setdefault("datasets", []).append(dataset)
            self.read("dataset", level_of(at(item, given)), dataset)
            if "mask_path" in dataset:
                dataset["mask_optional"] = True
            if "resolutions" in given:
                self._size(given, dataset)

    def _size(self, given: Level, dataset: dict[str, Any]) -> None:
        node = given["resolutions"]
        sizes = node.data() if isinstance(node.value, list) else [node.value]
        sides = [size if isinstance(size, list) else [size, size] for size in sizes]
        if any(type(side) is not int for pair in sides for side in pair[:2]):
            self.refuse(node, "is not a list of sizes. Write [1024], or [[1280, 720]].")
            return
        sizes = [isqrt(pair[0] * pair[1]) for pair in sides]
        buckets = given.get("enable_ar_bucket")
        if buckets is None or not buckets.value:
            sizes = [{"width": size, "height": size} for size in sizes]
        dataset["resolution"] = tree(sizes, node)


def _reads(root: ConfigNode) -> bool:
    model = entries(root.value.get("model"))
    return "type" in model and not MARKS.isdisjoint(root.value)


FILES = ForeignJobs(_reads, _Reader, _Reader.whose)
