"""A dataset file of kohya-ss/sd-scripts (TOML, with `[[datasets.subsets]]`) -> a job.

The file says nothing of the model and of the training: those are this program's defaults. Source: sd-scripts, commit
48d368f (library/config_util.py, docs/config_README-en.md).
"""

from __future__ import annotations

import math
import re
from typing import Any

from extensions.compat.foreign_jobs import ForeignJobs
from extensions.compat.names import NAMES
from extensions.compat.nodes import at, made
from extensions.compat.table_reader import Level, TableReader
from toolkit.config.located import ConfigNode, show
from toolkit.errors import did_you_mean

MODEL = "Qwen/Qwen-Image-2512"
"""What is trained, as the file names none."""

BY_HAND = frozenset(
    ["image_dir", "metadata_file", "class_tokens", "num_repeats", "resolution", "enable_bucket", "batch_size",
     "flip_aug", "shuffle_caption", "keep_tokens", "caption_extension", "subsets"]
)  # fmt: skip
IDLE = re.compile(
    "min_bucket_reso|max_bucket_reso|bucket_reso_steps|bucket_no_upscale|cache_info|network_multiplier|debug_dataset|"
    "validation_seed|resize_interpolation|token_warmup_min|prior_loss_weight|custom_attributes"
)
"""Keys of how their program works, or without effect unless another is given."""


class _Reader(TableReader):
    program = "sd-scripts"
    rows = NAMES["kohya", ""]
    by_hand = BY_HAND
    silent = IDLE

    def output(self) -> ConfigNode:
        return self.default("output", f"output/{self.folder.resolve().name or 'lora'}")

    def read(self) -> None:
        message = f"a dataset file names no model and no training: {MODEL} and this program's defaults are taken"
        self.diagnostics.notes.append(message)
        self.set("model.name_or_path", self.default("model", MODEL))
        general = self.level(self.given.get("general"))
        self._known(general)
        datasets: list[dict[str, Any]] = []
        for item in self.tables(self.given.get("datasets")):
            inherited = general | self.level(item)
            self._known(inherited)
            self._batch(inherited.get("batch_size") or self.default("batch_size", 1))
            datasets += [self._dataset(inherited, subset) for subset in self.tables(inherited.get("subsets"))]
        self.process["datasets"] = datasets or [{"folder_path": self.missing("image_dir", "the folder of the images")}]

    def _known(self, given: Level) -> None:
        for key, node in given.items():
            row = self.rows.get(key)
            if row and row.how == "refused" and node.value not in (False, *row.passes):
                self.refuse(node, row)
            elif row is None and key not in BY_HAND and not IDLE.fullmatch(key):
                hint = did_you_mean(key, sorted({*BY_HAND, *self.rows}), list_all=False) or "Leave this key out."
                self.diagnostics.error(node, f"unknown key of {self.program}'s datasets. {hint}", at_key=True)

    def _batch(self, node: ConfigNode) -> None:
        first = self.process.setdefault("train", {}).setdefault("batch_size", node)
        if first.value != node.value:
            message = f"{show(node)}, and {show(first)} in another dataset: it is one for all here."
            self.diagnostics.error(node, message)

    def _dataset(self, inherited: Level, subset: ConfigNode) -> dict[str, Any]:
        own = self.level(subset)
        self._known(own)
        given = inherited | own
        dataset: dict[str, Any] = {"num_repeats": given.get("num_repeats") or self.default("num_repeats", 1)}
        table = given.get("metadata_file")
        if table is not None:
            dataset["captions_file"] = table
        else:
            dataset["caption_ext"] = given.get("caption_extension") or self.default("caption_extension", ".caption")
        if (folder := given.get("image_dir")) is not None or table is None:
            dataset["folder_path"] = folder or self.missing("image_dir", "the folder of the images", subset)
        dataset["default_caption"] = given.get("class_tokens")
        dataset["resolution"] = self._size(given, subset)
        if (shuffles := given.get("shuffle_caption")) is not None and shuffles.value is True:
            dataset |= {"shuffle_tokens": shuffles, "keep_tokens": given.get("keep_tokens")}
            if (separator := given.get("keep_tokens_separator")) is not None and separator.value != "":
                message = f"{show(separator)} is not supported with shuffle_caption: parts are separated by commas."
                self.diagnostics.error(separator, message)
        if (flips := given.get("flip_aug")) is not None and flips.value is True:
            dataset["flip_x"] = flips
            self.diagnostics.warn(flips, "each image is used as it is and mirrored here: twice as many uses.")
        for key, row in self.rows.items():
            if row.how == "is" and key in given:
                dataset[row.ours[0].rpartition(".")[2]] = given[key]
        return {key: value for key, value in dataset.items() if value is not None}

    def _size(self, given: Level, item: ConfigNode) -> Any:
        """With buckets the side of the square of that area, without them a rectangle."""
        node = given.get("resolution")
        if node is None:
            return self.missing("resolution", "a number of pixels, or [width, height]", item)
        sides = node.data() if isinstance(node.value, list) else [node.data()] * 2
        if len(sides) != 2 or not all(type(side) is int and 0 < side < 1e6 for side in sides):
            self.diagnostics.error(node, f"{show(node)} is not a size. Write one number of pixels, or [width, height].")
            return at(node, 512)
        bucket = given.get("enable_bucket")
        if bucket is not None and bucket.value is True:
            return at(node, math.isqrt(sides[0] * sides[1]))
        return {"width": made(node, sides[0]), "height": made(node, sides[1])}


def _reads(root: ConfigNode) -> bool:
    listed = root.value.get("datasets")
    items = listed.value if listed is not None and isinstance(listed.value, list) else []
    return any(isinstance(item.value, dict) and "subsets" in item.value for item in items)


JOBS = ForeignJobs(_reads, _Reader)
