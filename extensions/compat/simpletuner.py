"""A config of SimpleTuner (`config.json`), with the dataset file it names -> a job.

Each key goes to where the table of names has it. A key that is left out means what it means there: where ours would be
another, their default goes in, and one line names those. Source: SimpleTuner, commit bc8e6ab7 (field registry,
DATALOADER.md, helpers/models/qwen_image/model.py).
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from extensions.compat.foreign_jobs import ForeignJobs
from extensions.compat.names import NAMES
from extensions.compat.nodes import at, made, their, tree
from toolkit.config.foreign import NO_DEFAULT
from toolkit.config.located import ConfigNode, Diagnostics, show
from toolkit.config.yaml_reader import map_paths, read_text, read_yaml
from toolkit.errors import ConfigErrors, did_you_mean

Level = dict[str, ConfigNode]

ROWS = NAMES["simpletuner", ""]
_their = partial(their, whose="SimpleTuner's default")
"""A default of theirs."""

FLAVOURS = {
    "v1.0": "Qwen/Qwen-Image",
    "v2.0": "Qwen/Qwen-Image-2512",
    "edit-v1": "Qwen/Qwen-Image-Edit",
    "edit-v2": "Qwen/Qwen-Image-Edit-2509",
    "edit-v2+": "Qwen/Qwen-Image-Edit-2509",
    "edit-v3": "Qwen/Qwen-Image-Edit-2511",
}
"""`model_flavour` -> hub id."""

FLAVOUR = "v2.0"
"""The default of a qwen_image."""

LAYERS = ("attn.to_k", "attn.to_q", "attn.to_v", "attn.to_out.0")
"""What a LoRA trains there, unless `lora_type` is lycoris."""

PRECISIONS = {
    "int8-quanto": "int8",
    "int4-quanto": "int4",
    "int2-quanto": "int2",
    "fp8-quanto": "float8",
    "int8-torchao": "int8",
    "int4-torchao": "int4",
    "fp8-torchao": "float8",
}
"""`base_model_precision` -> `model.qtype`."""

OPTIMIZERS = {
    "adamw_bf16": "adamw",
    "optimi-adamw": "adamw",
    "optimi-lion": "lion",
    "bnb-adamw8bit": "adamw8bit",
    "bnb-adamw8bit-paged": "adamw8bit",
    "bnb-lion8bit": "lion8bit",
    "bnb-lion8bit-paged": "lion8bit",
    "adamw_schedulefree": "schedulefree_adamw",
}
"""Their names that ours do not have -> ours."""

HOUSEKEEPING = re.compile(
    "cache_|compress_|delete_|disable_|skip_|preserve_|write_|vae_|hash_|id$|hub_|push_|tracker_|tracking_|report_to|"
    "webhook|num_eval_images|validation_(?:guidance_rescale|lycoris_strength|preview|on_startup|using)|metadata_|"
    "offload_during_startup|quantize_via|minimum_|maximum_|target_downsample_size|aspect_bucket|"
    "strict_epoch_limit|dataloader_prefetch|.*_workers$|.*batch_size$|allow_|attention_mechanism|resume_from|"
    "conditioning_(?:type|image_embeds)|dataset_type|type$|default$|allow_tf32|ignore_|max_workers|overrides?_"
)
"""Keys of how their program works, not of what is trained."""

BY_HAND = frozenset(
    [
        "model_family",
        "model_flavour",
        "model_type",
        "lora_type",
        "data_backend_config",
        "output_dir",
        "optimizer",
        "base_model_precision",
        "text_encoder_1_precision",
        "flow_schedule_shift",
        "max_train_steps",
        "num_train_epochs",
        "caption_dropout_probability",
        "validation_prompt",
        "validation_resolution",
        "user_prompt_library",
        "resolution",
        "resolution_type",
        "train_batch_size",
        "model_kwargs",
    ]
)
"""Keys of which more than the table has to be said."""

OF_DATASETS = (
    "instance_data_dir", "repeats", "resolution", "resolution_type", "crop", "crop_aspect", "crop_style",
    "caption_strategy", "instance_prompt", "prepend_instance_prompt", "only_instance_prompt", "is_regularisation_data",
    "is_regularization_data", "conditioning_data", "disabled", "caption_dropout_probability", "probability",
)  # fmt: skip


class _Reader:
    """Reads one file."""

    def __init__(
        self, root: ConfigNode, folder: Path, name: str | None, diagnostics: Diagnostics, moved: Mapping[str, str]
    ) -> None:
        self.root, self.folder, self.name, self.diagnostics, self.moved = root, folder, name, diagnostics, moved
        written = {key.lstrip("-"): _typed(node) for key, node in root.value.items()}
        self.given = {key: node for key, node in written.items() if _says_something(node, key)}
        self.process: dict[str, Any] = {"type": "sd_trainer"}
        self.defaults: dict[str, Any] = {}

    def job(self) -> ConfigNode:
        """The whole job."""
        self._model()
        for key, node in self.given.items():
            if key not in BY_HAND:
                self._put(key, node)
        for key, row in ROWS.items():
            if key not in self.given and row.default is not NO_DEFAULT and row.how == "is":
                self._default(key, row.default)
        self._training()
        self._samples()
        self.process["datasets"] = self._datasets()
        if self.defaults:
            taken = ", ".join(f"{key} {value}" for key, value in self.defaults.items())
            self.diagnostics.warn(self.root, f"left out, and therefore as in SimpleTuner: {taken}.")
        output = self.given.get("output_dir", self._theirs("output_dir", "simpletuner-results"))
        path = Path(str(output.value))
        self.process["training_folder"] = at(output, str(path.parent))
        name = at(output, self.name or path.name)
        return tree({"job": "extension", "config": {"name": name, "process": [self.process]}}, self.root)

    # ------------------------------------------------------------ keys

    def _put(self, key: str, node: ConfigNode) -> None:
        row = ROWS.get(key)
        if row and row.how == "is":
            self._set(row.ours[0], node)
        elif row and row.how == "idle":
            self.diagnostics.warn(node, f"has no effect: {row.says}.")
        elif not HOUSEKEEPING.match(key):
            known = [*ROWS, *BY_HAND]
            hint = row.says if row else did_you_mean(key, known, list_all=False)
            self.diagnostics.error(node, f"{show(node)} is not supported. {hint or 'Leave this key out.'}", at_key=True)

    def _set(self, place: str, value: Any) -> None:
        *above, last = place.split(".")
        to = self.process
        for part in above:
            to = to.setdefault(part, {})
        to[last] = value

    def _theirs(self, key: str, value: Any) -> ConfigNode:
        self.defaults[key] = value
        return _their(key, value)

    def _default(self, key: str, value: Any) -> None:
        self._set(ROWS[key].ours[0], self._theirs(key, value))

    def _choice(self, key: str, choices: Mapping[str, str], also: Sequence[str] = ()) -> ConfigNode | None:
        """One of their names as ours; None where it is left out or has an error."""
        node = self.given.get(key)
        if node is None or node.value in also:
            return node
        if str(node.value) not in choices:
            known = did_you_mean(str(node.value), [*choices, *also])
            self.diagnostics.error(node, f"{show(node)} is not supported here. {known}")
            return None
        return at(node, choices[str(node.value)])

    def _model(self) -> None:
        family = self.given["model_family"]
        if family.value != "qwen_image":
            self.diagnostics.error(family, f"{show(family)} cannot be trained here: it is of another family.")
        if "pretrained_model_name_or_path" not in self.given:
            flavour = self.given.get("model_flavour") or self._theirs("model_flavour", FLAVOUR)
            model = FLAVOURS.get(str(flavour.value))
            if model is None:
                self.diagnostics.error(flavour, f"{show(flavour)} is unknown. {did_you_mean('', list(FLAVOURS))}")
            self._set("model.name_or_path", at(flavour, model or str(flavour.value)))
        kind = self.given.get("model_type") or self._theirs("model_type", "full")
        if kind.value == "full":
            self._set("network.type", kind)
        elif (kwargs := self.given.get("lora_type")) and kwargs.value != "standard":
            message = "is not read: its layers are in lycoris_config. Write network: {type: lokr, ...} in a job."
            self.diagnostics.error(kwargs, f"{show(kwargs)} {message}")
        else:
            self._set("network.network_kwargs.only_if_contains", [_their("", layer) for layer in LAYERS])
            self.defaults["layers"] = "to_k, to_q, to_v, to_out.0 of images"
        if match := self.given.get("model_kwargs"):
            self._set("model.model_kwargs", match)
        for key, switch, qtype in (
            ("base_model_precision", "quantize", "qtype"),
            ("text_encoder_1_precision", "quantize_te", "qtype_te"),
        ):
            precision = self._choice(key, PRECISIONS, ("no_change",))
            if precision and precision.value != "no_change":
                self._set(f"model.{switch}", at(precision, True))
                self._set(f"model.{qtype}", precision)

    def _training(self) -> None:
        optimizer = self.given.get("optimizer") or self._theirs("optimizer", "adamw_bf16")
        self._set("train.optimizer", at(optimizer, OPTIMIZERS.get(str(optimizer.value), optimizer.value)))
        steps, epochs = self.given.get("max_train_steps"), self.given.get("num_train_epochs")
        if steps is not None and steps.value:
            self._set("train.steps", steps)
        else:
            self._set("train.epochs", epochs if epochs and epochs.value else self._theirs("num_train_epochs", 1))
        shift = self.given.get("flow_schedule_shift") or self._theirs("flow_schedule_shift", 3.0)
        self._set("train.timestep_type", at(shift, "shift" if shift.value else "sigmoid"))
        if shift.value:
            self._set("train.discrete_flow_shift", shift)
        self._set("train.batch_size", self.given.get("train_batch_size") or self._theirs("train_batch_size", 4))

    def _samples(self) -> None:
        prompts = [self.given[key] for key in ("validation_prompt",) if key in self.given]
        library = self.given.get("user_prompt_library")
        if library is not None and (root := self._file(library)) is not None:
            prompts += root.value.values() if isinstance(root.value, dict) else []
        if not prompts:
            self._set("train.disable_sampling", made(self.root, True))
            for key in [key for key, row in ROWS.items() if row.ours and row.ours[0].startswith("sample.")]:
                self.defaults.pop(key, None)
            self.process.pop("sample", None)
            return
        size = self.given.get("validation_resolution") or self._theirs("validation_resolution", "256")
        sides = re.fullmatch(r"(\d+)(?:x(\d+))?(,.*)?", str(size.value).replace(" ", ""))
        if sides is None:
            self.diagnostics.error(size, f"{show(size)} is not a size. Write one number of pixels, or 1024x768.")
            return
        if sides[3]:
            self.diagnostics.warn(size, f"samples are made in the first size alone: {sides[1]}x{sides[2] or sides[1]}.")
        self._set("sample.width", at(size, int(sides[1])))
        self._set("sample.height", at(size, int(sides[2] or sides[1])))
        self._set("sample.samples", [{"prompt": prompt} for prompt in prompts])

    # ------------------------------------------------------------ the dataset file

    def _file(self, node: ConfigNode) -> ConfigNode | None:
        """The root of a JSON file; None where it cannot be read, which is told."""
        places = (Path(os.path.expanduser(str(node.value))), self.folder / str(node.value))
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            self.diagnostics.error(node, f"{show(node)} does not exist (working directory: {Path.cwd()}).")
            return None
        found, root = Diagnostics(str(path)), None
        with suppress(ConfigErrors):  # which are in `found`
            root = read_yaml(_as_mapping(read_text(path, found)), found)
        self.diagnostics.include(found)
        return map_paths(root, self.moved) if root is not None else None

    def _datasets(self) -> list[Any]:
        node = self.given["data_backend_config"]
        root = self._file(node)
        if root is None:
            return [{"folder_path": node}]
        listed = root.value.get(LIST)
        if listed is None or not isinstance(listed.value, list):
            self.diagnostics.error(root, "is not a list of datasets.")
            return [{"folder_path": node}]
        entries = [item for item in listed.value if isinstance(item.value, dict) and not _is_on(item, "disabled")]
        by_id = {str(item.value["id"].value): item for item in entries if "id" in item.value}
        images = [item for item in entries if _text(item, "dataset_type", "image") == "image"]
        if not images:
            self.diagnostics.error(listed, "has no dataset of images.")
        return [self._dataset(item, by_id) for item in images] or [{"folder_path": node}]

    def _dataset(self, item: ConfigNode, by_id: Mapping[str, ConfigNode]) -> dict[str, Any]:
        given: Level = {key: node for key, node in item.value.items() if _says_something(node)}
        for key, node in given.items():
            if key not in OF_DATASETS and not HOUSEKEEPING.match(key):
                hint = did_you_mean(key, OF_DATASETS, list_all=False) or "Leave this key out."
                self.diagnostics.error(node, f"{show(node)} is not supported. {hint}", at_key=True)
        dataset: dict[str, Any] = {"folder_path": self._folder_of(item)}
        repeats = given.get("repeats")
        dataset["num_repeats"] = at(repeats, int(repeats.value) + 1) if repeats else _their("num_repeats", 1)
        dropout = given.get("caption_dropout_probability") or self.given.get("caption_dropout_probability")
        dataset["caption_dropout_rate"] = dropout or self._theirs("caption_dropout_probability", 0.1)
        dataset["resolution"] = self._size(given)
        if _is_on(item, "is_regularisation_data") or _is_on(item, "is_regularization_data"):
            dataset["is_reg"] = made(item, True)
        if (chance := given.get("probability")) and chance.value != 1:
            self.diagnostics.error(chance, f"{show(chance)} is not supported. Give 'repeats' instead.")
        dataset |= self._captions(item, given)
        wanted = given.get("conditioning_data")
        for slot in (wanted.value if isinstance(wanted.value, list) else [wanted]) if wanted else ():
            if str(slot.value) in by_id:
                dataset.setdefault("control_path", []).append(self._folder_of(by_id[str(slot.value)]))
            else:
                self.diagnostics.error(slot, f"{show(slot)} is the id of no dataset in this file.")
        return dataset

    def _folder_of(self, item: ConfigNode) -> ConfigNode:
        kind, folder = _text(item, "type", "local"), item.value.get("instance_data_dir")
        if kind != "local":
            self.diagnostics.error(
                item.value["type"], f"{kind!r} is not read here. Download it, and write type: local."
            )
        if folder is None:
            if kind == "local":
                self.diagnostics.error(
                    item, "is required: the folder of the images.", path=(*item.path, "instance_data_dir")
                )
            return made(item, ".")
        return folder

    def _captions(self, item: ConfigNode, given: Level) -> dict[str, Any]:
        strategy, prompt = _text(item, "caption_strategy", "textfile"), given.get("instance_prompt")
        if strategy in ("filename", "parquet", "webshart"):
            remedy = "Write .txt files ('run.py caption' does), or a table for 'captions_file'."
            self.diagnostics.error(given["caption_strategy"], f"captions by {strategy} are not read here. {remedy}")
        elif strategy == "instanceprompt" or _is_on(item, "only_instance_prompt"):
            if prompt is None:
                self.diagnostics.error(
                    item, "is required for this caption_strategy.", path=(*item.path, "instance_prompt")
                )
            return {"default_caption": prompt, "caption_ext": [made(item, ".instanceprompt")]}
        elif prompt is not None and _is_on(item, "prepend_instance_prompt"):
            return {"trigger_word": prompt}
        return {}

    def _size(self, given: Level) -> Any:
        """Its area as the side of a square, or with square crops that square."""
        node = given.get("resolution") or self.given.get("resolution") or self._theirs("resolution", 1024)
        kind = given.get("resolution_type") or self.given.get("resolution_type")
        side = float(node.value) if isinstance(node.value, int | float) else 0.0
        if side <= 0:
            self.diagnostics.error(node, f"{show(node)} is not a size. Write a number of pixels.")
            return node
        if kind is not None and kind.value == "area":
            side = math.sqrt(side * 1e6)
        elif kind is not None and kind.value == "pixel":
            self.diagnostics.warn(kind, "images have at most this number squared in pixels here, not a side of it.")
        crop, aspect = given.get("crop"), given.get("crop_aspect")
        value = at(node, round(side))
        if crop and crop.value is True and (aspect is None or aspect.value == "square"):
            return {"width": value, "height": value}
        return value


LIST = "datasets"


def _as_mapping(text: str) -> str:
    """JSON whose root is a list as a mapping with it, on the same lines: a root is always a mapping here."""
    with suppress(ValueError):
        if isinstance(json.loads(text), list):
            return f'{{"{LIST}": {text.rstrip()}}}'
    return text


def _typed(node: ConfigNode) -> ConfigNode:
    """A number or switch that is written as text, as their examples have it."""
    if isinstance(node.value, str):
        with suppress(ValueError):
            value = json.loads(node.value.lower())
            if isinstance(value, bool | int | float):
                return at(node, value)
    return node


def _says_something(node: ConfigNode, key: str = "") -> bool:
    """Whether a key asks for anything: their configs write many with no value, with "None" or switched off."""
    is_off = node.value is False and not (key in ROWS and ROWS[key].how == "is")
    return not node.is_blank and not is_off and node.value not in ("", "None", "none")


def _text(item: ConfigNode, key: str, default: str) -> str:
    node = item.value.get(key)
    return str(node.value) if node is not None else default


def _is_on(item: ConfigNode, key: str) -> bool:
    node = item.value.get(key)
    return node is not None and node.value in (True, "true")


def _reads(root: ConfigNode) -> bool:
    return {"model_family", "data_backend_config"} <= {key.lstrip("-") for key in root.value}


JOBS = ForeignJobs(_reads, _Reader)
