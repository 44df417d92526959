"""A file or a command line of FluxFlow's training guide -> a job: each step of
`training.pipeline.steps` becomes a process, its values nodes that keep their line and
column. What each key becomes: `extensions.compat.fluxflow_keys`.

The reader does not train. The core finds it through `toolkit.registry`, for a file with
the sections of the guide and for the guide's flags on the command line.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import gcd
from pathlib import Path
from types import MappingProxyType
from typing import Any

from extensions.compat.fluxflow_flags import with_entry, with_flags, without
from extensions.compat.fluxflow_keys import (
    DATA,
    OUTPUT,
    SECTIONS,
    STEPS,
    TRAINING,
    keys,
    tables,
)
from extensions.compat.fluxflow_optimizers import RoleOptimizers
from extensions.compat.fluxflow_sections import DATASETS, kind_of, section_of
from extensions.compat.keys import not_a_flag
from extensions.compat.nodes import at, entries, node_at, tree
from toolkit.config.reading.located import ConfigNode, Diagnostics, odd_characters, show
from toolkit.config.reading.normalise import merge_aliases
from toolkit.config.reading.validate import validate
from toolkit.config.reading.yaml_reader import scalar_kind, scalar_value
from toolkit.errors import did_you_mean
from toolkit.files.run_files import CHECKPOINT_PARTS, SAVED_LEARNING_RATES
from toolkit.files.safetensors_io import METADATA, read_header
from toolkit.system.nvidia import half_precision

Level = dict[str, ConfigNode]
"""Key -> value of one place: the sections at the top, `pipeline.defaults`, or a
step."""

MARKS = frozenset({TRAINING, DATA, OUTPUT})
"""A file without `job` and `config` that has one of these is the guide's."""

AT_TOP = (
    "optimizers",
    "schedulers",
    "optimizer_config",
    "scheduler_config",
    "optimization",
    "model_checkpoint",
)
"""Keys of `training` that the guide, or an example of its repository, also has outside
of it."""

SAME = {
    "train_diff": "train_diff_full",
    "use_tt2m": "use_webdataset",
    "tt2m_token": "webdataset_token",
}
"""Other name -> the key that means the same."""

MODES = ("train_vae", "train_diff_full")
"""A step that names one of them takes none of them from `training`."""

SWITCHES = (*MODES, "gan_training", "train_spade", "use_lpips", "train_reconstruction")
"""What says what a step trains."""

CONFIG = "config.json"
PART = "vae"
"""A file of the autoencoder's folder; and that folder in the folder of a model."""

DEFAULT_OUTPUT = "outputs/flux"
DEFAULT_STEP = "train"
DEFAULT_LR = 5e-7
DEFAULT_SHARDS = "hf://datasets/jackyhate/text-to-image-2M/data_512_2M/*.tar"
"""The set TTI-2M."""

LPIPS_BACKBONE = "~/.cache/torch/hub/checkpoints/vgg16-397923af.pth"
OWN_FOLDERS = ("graph", "samples", "_cache")
"""Names of the guide's folders beside those of the steps."""

METRICS = {"loss_total": "loss"}
"""Names of losses that are others here."""

SMALL_IMAGE = 64
"""Side in pixels below which latents have a quarter of it instead of an eighth."""


class _Guide:
    """A `toolkit.config.reading.foreign.KeptFile`."""

    keeps_text = True

    def reads(self, root: ConfigNode) -> bool:
        return not {"job", "config"} & root.value.keys() and bool(
            MARKS & root.value.keys()
        )

    def with_flags(
        self,
        root: ConfigNode | None,
        flags: Mapping[str, Sequence[str]],
        diagnostics: Diagnostics,
    ) -> ConfigNode:
        if root is not None and not self.reads(root):
            given = ", ".join(f"--{flag}" for flag in flags)
            remedies = {flag: not_a_flag(flag) for flag in flags}
            listed = "".join(
                f" --{flag}: {remedy}" for flag, remedy in remedies.items() if remedy
            )
            message = f"{given}: only applies to a file of FluxFlow's guide (data:, training:), and this is a job."
            diagnostics.fatal(root.value_at, (), f"{message}{listed}")
        return with_flags(root, flags, diagnostics)

    def as_job(
        self,
        root: ConfigNode,
        folder: Path,
        name: str | None,
        diagnostics: Diagnostics,
        moved: Mapping[str, str] = MappingProxyType({}),
    ) -> ConfigNode:
        return _Reader(root, folder, name, diagnostics).job()

    def renamed(self, root: ConfigNode, name: str) -> ConfigNode:
        given = [root.find((section, "output_path")) for section in (TRAINING, OUTPUT)]
        paths = [str(node.value) for node, missing in given if not missing]
        parent = Path(next(iter(paths), DEFAULT_OUTPUT)).parent
        root, _ = without(root, "output_path")
        path = replace(root, value=str(parent / name), path=(OUTPUT, "output_path"))
        return with_entry(root, OUTPUT, "output_path", path)


GUIDE = _Guide()


@dataclass(frozen=True)
class _Step:
    """A step with all that it takes from elsewhere."""

    name: ConfigNode
    node: ConfigNode
    values: Level
    given: Level
    """What it says itself."""

    dataset: ConfigNode
    optimizers: RoleOptimizers

    def get(self, key: str, default: Any = None) -> Any:
        """The plain value of a key."""
        node = self.values.get(key)
        return default if node is None else node.value

    def on(self, key: str) -> bool:
        """Whether a switch is on."""
        return self.get(key) is True

    @property
    def trains_flow(self) -> bool:
        return self.on("train_diff_full")

    @property
    def trains_vae(self) -> bool:
        """`train_vae` or `gan_training`; without a flow model also what only an
        autoencoder has."""
        implied = (
            ()
            if self.trains_flow
            else ("train_spade", "use_lpips", "train_reconstruction")
        )
        return self.adversarial or any(self.on(key) for key in ("train_vae", *implied))

    @property
    def adversarial(self) -> bool:
        """Whether a discriminator is trained; beside a flow model only where the step
        says so or trains the VAE."""
        meant = (
            not self.trains_flow or self.on("train_vae") or "gan_training" in self.given
        )
        return self.on("gan_training") and meant

    @property
    def only_adversarial(self) -> bool:
        """The guide's two spellings of adversarial training without reconstruction."""
        explicit = self.get("train_reconstruction") is False
        return self.adversarial and (explicit or not self.on("train_vae"))

    def has_length(self) -> bool:
        """Whether the number of its steps is known before the data are read: that of a
        stream need not be."""
        return "url" not in self.dataset.value or not {
            "webdataset_size",
            "max_steps",
        }.isdisjoint(self.values)

    def roles(self) -> tuple[str, ...]:
        """What learns."""
        learns = {
            "flow": self.trains_flow,
            "text_encoder": self.trains_flow and not self.on("freeze_text_encoder"),
            "vae": self.trains_vae,
            "discriminator": self.adversarial,
        }
        return tuple(role for role, is_trained in learns.items() if is_trained)


@dataclass
class _Start:
    """The newest weights of each part before a step."""

    vae: str = ""
    flow: str = ""
    vae_is_newer: bool = False
    """Than that of the flow model's folder."""


class _Reader:
    """Reads one file."""

    def __init__(
        self, root: ConfigNode, folder: Path, name: str | None, diagnostics: Diagnostics
    ) -> None:
        self.root = root
        self.folder = folder
        self.diagnostics = diagnostics
        self.wrong: set[str] = set()
        """Keys with a value that was left out."""
        self.shared = self._sections()
        self.out = self._output(name)
        self.rates: dict[str, ConfigNode] = {}
        """From `preserve_lr`: role -> its saved rate."""

    def job(self) -> ConfigNode:
        """The whole job."""
        steps = self._steps()
        start = self._checkpoint()
        processes = []
        for number, step in enumerate(steps, 1):
            of_several = "last" if number == len(steps) else "step"
            place = "only" if len(steps) == 1 else of_several
            process = self._process(step, start, place)
            if process is not None:
                processes.append(tree(process, step.node))
        if not processes:
            self.diagnostics.raise_errors()
        config = {"name": self.out[1], "process": processes}
        return tree({"job": "extension", "config": config}, self.root)

    # ------------------------------------------------------------ places

    def _sections(self) -> Level:
        """The keys of `data`, `model`, `training` and `output` as one level; errors of
        the top level are reported."""
        shared: Level = {}
        for key, node in self.root.value.items():
            if key in AT_TOP:
                for inner, child in self._level(
                    replace(self.root, value={key: node}), TRAINING
                ).items():
                    self._add(shared, inner, child)
            elif key not in SECTIONS:
                belongs = _places(key)
                if belongs:
                    hint = f"It belongs in {belongs}."
                else:
                    hint = did_you_mean(key, SECTIONS)
                self.diagnostics.error(
                    node, f"unknown key. {odd_characters(key) or hint}", at_key=True
                )
            elif isinstance(node.value, dict):
                for inner, child in self._level(node, key).items():
                    self._add(shared, inner, child)
            elif not node.is_blank:
                self.diagnostics.error(
                    node, f"{show(node)} is not a mapping of keys and values."
                )
        return shared

    def _add(self, level: Level, key: str, node: ConfigNode) -> None:
        level[key] = merge_aliases(level.get(key), node, self.diagnostics)

    def _level(self, node: ConfigNode, place: str) -> Level:
        """The values of a mapping under the names of the guide's keys; what is wrong is reported
        and left out."""
        model = section_of(place)
        given: Level = {}
        for key, child in node.value.items():
            if key not in model.model_fields:
                self._unknown(child, key, list(model.model_fields))
            elif not child.is_blank:
                given[key] = child
                if key in ("use_tt2m", "tt2m_token"):
                    self.diagnostics.warn(
                        child, f"is an old name. Write {SAME[key]!r}."
                    )
        section, checked = validate(model, replace(node, value=given), self.diagnostics)
        refused = given.keys() - checked.value.keys()
        self.wrong |= {key.removeprefix("--") for key in refused}
        level: Level = {}
        for key, child in checked.value.items():
            value = getattr(section, key)
            if kind_of(key) in ("texts", "names"):
                value = child.value if isinstance(child.value, list) else [child]
            elif kind_of(key) == "mapping":
                value = child.value
            self._add(level, SAME.get(key, key), replace(child, value=value))
        return level

    def _unknown(self, node: ConfigNode, key: str, known: Sequence[str]) -> None:
        without_effect, not_here = tables()["without_effect"], tables()["not_here"]
        if key in without_effect or (node.is_blank and key in not_here):
            if not node.is_blank:
                self.diagnostics.warn(node, f"has no effect: {without_effect[key]}.")
            return
        if key in not_here:
            self.diagnostics.error(node, f"{not_here[key]}.", at_key=True)
            return
        belongs = _places(key)
        if key in tables()["other_grammars"]:
            hint = f"Write '{tables()['other_grammars'][key]}'."
        elif belongs:
            hint = f"It belongs in {belongs}."
        else:
            hint = odd_characters(key) or did_you_mean(key, known, list_all=False)
        self.diagnostics.error(node, f"unknown key. {hint}", at_key=True)

    def _output(self, name: str | None) -> tuple[ConfigNode, ConfigNode]:
        """The folder above the results, and their folder's name."""
        node = self.shared.get("output_path") or node_at(self.root, DEFAULT_OUTPUT)
        path = Path(os.path.normpath(node.value))
        if not path.name or path.name == "..":
            self.diagnostics.error(
                node, f"{show(node)} has no name. Give a folder, such as outputs/run1."
            )
            path = Path(DEFAULT_OUTPUT)
        return at(node, str(path.parent)), at(node, name or path.name)

    # ------------------------------------------------------------ steps

    def _steps(self) -> list[_Step]:
        """The steps of the pipeline, or the one of a file without."""
        pipeline = self.shared.get("pipeline")
        if pipeline is None:
            node = self.root.child(TRAINING) or self.root
            given = {
                key: child
                for key, child in self.shared.items()
                if STEPS in keys()[key].places
            }
            step = self._step(node_at(node, DEFAULT_STEP), node, {}, given, pipeline)
            return [step] if step else []
        known = ("steps", "defaults", "datasets", "default_dataset")
        for key, child in pipeline.value.items():
            if key not in known:
                self._unknown(child, key, known)
            elif (
                key in ("defaults", "datasets")
                and not child.is_blank
                and not isinstance(child.value, dict)
            ):
                self.diagnostics.error(
                    child, f"{show(child)} is not a mapping of keys and values."
                )
        listed = pipeline.child("steps")
        if listed is None or not isinstance(listed.value, list) or not listed.value:
            remedy = "Give 'training.pipeline.steps', a list with at least one entry."
            self.diagnostics.error(
                listed or pipeline, f"No pipeline steps defined. {remedy}"
            )
            return []
        common = pipeline.child("defaults")
        defaults = self._level(common, STEPS) if common and entries(common) else {}
        steps = [self._listed_step(entry, defaults, pipeline) for entry in listed.value]
        return [step for step in steps if step is not None]

    def _listed_step(
        self, node: ConfigNode, defaults: Level, pipeline: ConfigNode
    ) -> _Step | None:
        if not isinstance(node.value, dict):
            self.diagnostics.error(
                node,
                f"{show(node)} is not a mapping. Write '- name: vae_warmup' and its keys.",
            )
            return None
        given = self._level(node, STEPS)
        name = given.get("name")
        if name is None:
            if not self.diagnostics.reported((*node.path, "name")):
                message = "is required: it names the step's folder and files."
                self.diagnostics.error(node, message, path=(*node.path, "name"))
            name = node_at(node, f"step{node.path[-1]}")
        elif name.value in OWN_FOLDERS:
            self.diagnostics.error(
                name,
                f"{show(name)} is the name of another folder of the results. Take another.",
            )
        elif re.search(r"[/\\\x00-\x1f]", name.value) or name.value.strip(" .") == "":
            remedy = "Leave out '/', '\\' and control characters."
            self.diagnostics.error(
                name,
                f"{show(name)} cannot be the name of a folder and of files. {remedy}",
            )
            name = node_at(node, f"step{node.path[-1]}")
        return self._step(name, node, defaults, given, pipeline)

    def _step(
        self,
        name: ConfigNode,
        node: ConfigNode,
        defaults: Level,
        given: Level,
        pipeline: ConfigNode | None,
    ) -> _Step | None:
        """The step, or None where it trains nothing. given: what it says itself."""
        of_pipeline = {**defaults, **given}
        shared = {
            key: child
            for key, child in self.shared.items()
            if key not in ("name", "pipeline")
        }
        if any(mode in of_pipeline for mode in MODES):
            shared = {key: child for key, child in shared.items() if key not in MODES}
        dataset = self._named_dataset(of_pipeline.get("dataset"), pipeline)
        values = {**shared, **dataset, **of_pipeline}
        optimizers = RoleOptimizers(
            self.folder, [given, defaults, self.shared], self.diagnostics
        )
        step = _Step(
            name,
            node,
            self._frozen(values),
            given,
            self._dataset(values, node),
            optimizers,
        )
        return step if self._learns(step) else None

    def _frozen(self, values: Level) -> Level:
        """`freeze: [vae]` as `freeze_vae`, and so on."""
        switches = {
            "vae": "freeze_vae",
            "flow": "freeze_flow",
            "flow_processor": "freeze_flow",
            "text_encoder": "freeze_text_encoder",
        }
        alone = ("compressor", "expander", "decoder", "discriminator", "D_img")
        listed = values.get("freeze")
        names = {item.value: item for item in listed.value} if listed else {}
        if "compressor" in names and {"expander", "decoder"} & names.keys():
            names = {**names, "vae": names["compressor"]}
        for name, item in names.items():
            if name in switches:
                values = {**values, switches[name]: replace(item, value=True)}
            elif name not in alone:
                self.diagnostics.error(
                    item,
                    f"{show(item)} is not a known part. {did_you_mean(name, [*switches, *alone])}",
                )
            elif name != "compressor" and "vae" not in names:
                remedy = "Freeze 'vae' or 'compressor', or leave it out."
                self.diagnostics.error(
                    item, f"{show(item)} cannot be frozen by itself. {remedy}"
                )
        if "unfreeze" in values:
            self.diagnostics.warn(
                values["unfreeze"],
                "has no effect: nothing stays frozen from one step to the next.",
            )
        return values

    def _learns(self, step: _Step) -> bool:
        """Whether the step trains something, and freezes nothing that it trains; if
        not, that is reported."""
        trained = {"freeze_vae": step.trains_vae, "freeze_flow": step.trains_flow}
        for key, is_trained in trained.items():
            if step.on(key) and is_trained:
                self.diagnostics.error(
                    step.values[key],
                    "Cannot freeze and train the same component. Remove one.",
                )
                return False
            if step.on(key) and not step.trains_flow:
                part = key.removeprefix("freeze_")
                self.diagnostics.warn(
                    step.values[key],
                    f"Freezing {part}: step {step.name.value!r} does not load it.",
                )
        if step.roles():
            return True
        if self.wrong & {*SWITCHES, *SAME}:
            return False
        remedy = (
            "Give 'train_vae: true', 'gan_training: true' or 'train_diff_full: true'."
        )
        self.diagnostics.error(
            step.node, f"step {step.name.value!r} trains nothing. {remedy}"
        )
        return False

    # ------------------------------------------------------------ datasets

    def _named_dataset(
        self, chosen: ConfigNode | None, pipeline: ConfigNode | None
    ) -> Level:
        """The keys of the entry of `pipeline.datasets` that a step uses, under the
        names of `data`."""
        if pipeline is None:
            return {}
        chosen = chosen or pipeline.child("default_dataset")
        known = entries(pipeline.child("datasets"))
        if chosen is None or chosen.is_blank:
            return {}
        node = known.get(chosen.value)
        if node is None:
            none = "There is no 'training.pipeline.datasets'."
            hint = did_you_mean(str(chosen.value), known) if known else none
            self.diagnostics.error(
                chosen, f"{show(chosen)} is not a dataset of the pipeline. {hint}"
            )
            return {}
        if not isinstance(node.value, dict):
            self.diagnostics.error(
                node, f"{show(node)} is not a mapping of keys and values."
            )
            return {}
        level = self._level(node, DATASETS)
        if "image_folder" in level:
            self._add(level, "data_path", level.pop("image_folder"))
        kind = level.pop("type", None)
        if kind is not None and kind.value not in ("local", "webdataset"):
            self.diagnostics.error(
                kind,
                f"{show(kind)} is not a kind of dataset. Write local or webdataset.",
            )
        elif kind is not None:
            level["use_webdataset"] = replace(kind, value=kind.value == "webdataset")
        return level

    @staticmethod
    def _resolution(values: Level) -> Any:
        """The resolution of an entry of `datasets`."""
        size = values.get("img_size", 1024)
        smaller = values.get("reduced_min_sizes")
        if smaller is None:
            return size
        side = size if isinstance(size, int) else size.value
        return sorted({side, *(min(sides) for sides in smaller.value)})

    def _dataset(self, values: Level, step: ConfigNode) -> ConfigNode:
        """The entry of `datasets`."""
        folder = values.get("data_path")
        shards = values.get("webdataset_url")
        switch = values.get("use_webdataset")
        streamed = switch.value if switch else shards is not None and folder is None
        place = (switch or shards or step) if streamed else (folder or step)
        entry: dict[str, Any] = {
            "resolution": self._resolution(values),
            "num_workers": values.get("workers", 1),
            "caption_prefix": values.get("fixed_prompt_prefix"),
            "caption_dropout_rate": values.get("cfg_dropout_prob"),
        }
        if streamed:
            if folder is not None and folder.path[:1] == (switch or folder).path[:1]:
                self.diagnostics.warn(folder, "has no effect beside 'use_webdataset'.")
            entry = {
                "url": shards or DEFAULT_SHARDS,
                "webdataset": self._shards(values),
                **entry,
            }
        else:
            if folder is None:
                message = "is required: a folder of images, or 'use_webdataset: true' with 'webdataset_url'."
                self.diagnostics.error(
                    self.root.child(DATA) or self.root,
                    message,
                    path=(DATA, "data_path"),
                )
            entry = {
                "folder_path": folder,
                "captions_file": values.get("captions_file"),
                **entry,
            }
        return tree(entry, place)

    def _shards(self, values: Level) -> dict[str, Any]:
        is_default_set = "webdataset_url" not in values
        return {
            "image_key": values.get(
                "webdataset_image_key", ["jpg" if is_default_set else "png"]
            ),
            "label_key": values.get("webdataset_label_key", "json"),
            "caption_key": values.get("webdataset_caption_key", "prompt"),
            "token": values.get("webdataset_token"),
            "samples": values.get("webdataset_size"),
        }

    # ------------------------------------------------------------ start

    def _checkpoint(self) -> _Start:
        """What `model_checkpoint` brings."""
        node = self.shared.get("model_checkpoint")
        if node is None:
            if "preserve_lr" in self.shared and self.shared["preserve_lr"].value:
                self.diagnostics.warn(
                    self.shared["preserve_lr"],
                    "has no effect without 'model_checkpoint'.",
                )
            return _Start()
        path = Path(node.value).expanduser()
        parent, name = self.out
        results = Path(parent.value).expanduser().resolve() / name.value
        if path.resolve().is_relative_to(results):
            self.diagnostics.warn(
                node,
                "is this job's own result: the same job goes on from its last state.",
            )
            return _Start()
        folder, fault = checkpoint_folder(path)
        if folder is None:
            self.diagnostics.error(node, f"{show(node)} {fault}")
            self.wrong.add("model_checkpoint")
            return _Start()
        self._read_rates(node, path)
        self._compare_size(node, folder)
        is_flow = (folder / "model_index.json").is_file() and (
            folder / "transformer"
        ).is_dir()
        return _Start(str(folder), str(folder) if is_flow else "")

    def _read_rates(self, node: ConfigNode, path: Path) -> None:
        switch = self.shared.get("preserve_lr")
        if switch is None or not switch.value:
            return
        file = path.parent / SAVED_LEARNING_RATES
        try:
            rates = json.loads(file.read_text(encoding="utf-8"))
            self.rates = {role: at(switch, float(rate)) for role, rate in rates.items()}
        except (
            OSError,
            ValueError,
            TypeError,
            AttributeError,
            RecursionError,
        ) as error:
            self.diagnostics.error(
                switch,
                f"{file} cannot be read ({error}). Leave this out, or restore the file.",
            )

    def _compare_size(self, node: ConfigNode, folder: Path) -> None:
        """A note where `vae_dim` says another size than the checkpoint has."""
        wanted = self.shared.get("vae_dim")
        files = (folder / PART / CONFIG, folder / CONFIG)
        file = next((file for file in files if file.is_file()), None)
        if wanted is None or file is None:
            return
        try:
            widths = json.loads(file.read_text(encoding="utf-8")).get(
                "block_out_channels"
            )
        except (OSError, ValueError, AttributeError, RecursionError):
            return
        wanted_widths = sized(wanted.value)["block_out_channels"]
        if isinstance(widths, list) and widths not in (
            wanted_widths,
            wanted_widths[1:],
        ):
            self.diagnostics.warn(
                wanted,
                f"has no effect: the autoencoder of {node.value} has the widths {widths}.",
            )

    # ------------------------------------------------------------ a process

    def _process(self, step: _Step, start: _Start, place: str) -> dict[str, Any] | None:
        parent, _ = self.out
        common = {
            "name": step.name,
            "training_folder": parent,
            "training_seed": step.values.get("seed"),
            "train": self._train(step),
            "optimizers": self._optimizers(step),
            "save": {
                "save_every": self._steps_of(step, "checkpoint_save_interval"),
                "fluxflow_files": place,
            },
            "logging": {
                "log_every": self._steps_of(step, "log_interval"),
                "diagrams": step.values.get("generate_diagrams"),
            },
            "stop_when": self._stop(step),
            "datasets": [step.dataset],
        }
        folder = f"{parent.value}/[name]/{step.name.value}/{step.name.value}"
        if step.only_adversarial and not step.on("train_vae"):
            self.diagnostics.warn(
                step.values["gan_training"],
                f"step {step.name.value!r} is read as adversarial training only, as 'train_vae: true' with "
                "'train_reconstruction: false' is: encoder and decoder learn, no pixels are compared.",
            )
        if step.trains_flow and not start.vae and "model_checkpoint" in self.wrong:
            return None  # what it needs is what the checkpoint would have brought
        if step.trains_flow:
            process = self._flow(step, start)
            start.flow = folder
            start.vae_is_newer = False
            if step.trains_vae or not start.vae:
                start.vae = folder
        else:
            process = self._autoencoder(step, start)
            start.vae = folder
            start.vae_is_newer = bool(start.flow)
        return {**process, **common}

    def _train(self, step: _Step) -> dict[str, Any]:
        values = step.values
        batches = values.get("max_steps")
        steps = batches and at(
            batches, max(1, batches.value // step.get("training_steps", 1))
        )
        if batches and "n_epochs" in values:
            self.diagnostics.warn(
                values["n_epochs"],
                f"has no effect: 'max_steps: {batches.value}' is the length of step {step.name.value!r}.",
            )
        dtype: Any = "float32"
        if step.on("use_fp16"):
            name, reason = half_precision()
            dtype = at(values["use_fp16"], name)
            self.diagnostics.warn(values["use_fp16"], reason)
        ema = {
            "use_ema": values.get("use_ema", True),
            "ema_decay": values.get("ema_decay"),
        }
        return {
            "batch_size": values.get("batch_size", 2),
            "gradient_accumulation": values.get("training_steps"),
            "epochs": None if steps else values.get("n_epochs", 1),
            "steps": steps,
            "lr": self._lr(step),
            **self._schedule(step),
            "max_grad_norm": values.get("initial_clipping_norm"),
            "dtype": dtype,
            "ema_config": ema,
        }

    def _schedule(self, step: _Step) -> dict[str, Any]:
        if step.has_length():
            return {
                "lr_scheduler": "CosineAnnealingLR",
                "lr_scheduler_params": {
                    "eta_min_factor": step.values.get("lr_min", 0.1)
                },
            }
        note = "the rate stays as it is: how many samples the stream has is not known. Give 'webdataset_size' or "
        self.diagnostics.warn(
            step.dataset,
            f"step {step.name.value!r}: {note}'max_steps' for it to fall.",
        )
        return {"lr_scheduler": "constant"}

    def _lr(self, step: _Step) -> Any:
        if "lr" in step.values:
            return step.values["lr"]
        given = [
            role
            for role in step.roles()
            if "lr" in step.optimizers.optimizer(role) or role in self.rates
        ]
        if len(given) < len(step.roles()):
            note = f"step {step.name.value!r} has no 'lr': {DEFAULT_LR:g}, at which random weights hardly move."
            self.diagnostics.warn(
                step.node, f"{note} The guide's for an autoencoder are 1e-5 to 5e-5."
            )
        return DEFAULT_LR

    def _optimizers(self, step: _Step) -> dict[str, Any]:
        roles = step.roles()
        step.optimizers.check(step.given, roles, step.name.value)
        lr = step.get("lr", DEFAULT_LR)
        flow_lr = (
            _number(
                step.optimizers.optimizer("flow")
                .get("lr", node_at(step.node, lr))
                .value
            )
            or lr
        )
        entries = {}
        for role in roles:
            entry = step.optimizers.entry(
                role, step.values.get("lr_min"), step.node, step.has_length()
            )
            if role == "text_encoder":
                entry.setdefault("lr", flow_lr / 10)
            if role in self.rates:
                entry["lr"] = self.rates[role]
            entries[role] = entry
        return entries

    def _steps_of(self, step: _Step, key: str) -> ConfigNode | None:
        """A number of batches as optimizer steps, rounded up."""
        batches = step.get(key)
        if batches is None:
            return None
        steps, rest = divmod(batches, step.get("training_steps", 1))
        return at(step.values[key], steps + 1 if rest else steps)

    def _stop(self, step: _Step) -> dict[str, Any] | None:
        node = step.values.get("stop_condition")
        if node is None:
            return None
        for key, child in node.value.items():
            if key not in ("loss_name", "threshold"):
                self._unknown(child, key, ("loss_name", "threshold"))
        missing = [key for key in ("loss_name", "threshold") if node.child(key) is None]
        for key in missing:
            self.diagnostics.error(node, "is required.", path=(*node.path, key))
        if missing:
            return None
        metric = node.value["loss_name"]
        ours = at(metric, METRICS.get(str(metric.value), metric.value))
        return {"metric": ours, "below": node.value["threshold"]}

    # ------------------------------------------------------------ the two trainers

    def _autoencoder(self, step: _Step, start: _Start) -> dict[str, Any]:
        model: dict[str, Any] = {}
        if start.vae:
            model["name_or_path"] = start.vae
        else:
            model |= {"class_name": "AutoencoderKL", "config": self._size(step)}
        model["spade"] = step.values.get("train_spade")
        if self._freezes_encoder(step):
            model["train"] = at(step.values["freeze"], "decoder")
        elif start.flow:
            model["train"] = "decoder"
            note = "only the decoder is trained: the flow model knows the latents of the encoder as it is."
            self.diagnostics.warn(step.node, f"step {step.name.value!r}: {note}")
        return {
            "type": "vae_trainer",
            "model": model,
            "losses": self._losses(step),
            "discriminator": self._discriminator(step),
            "sample": self._sample(
                step, {"images": step.values.get("test_image_address")}
            ),
        }

    def _flow(self, step: _Step, start: _Start) -> dict[str, Any]:
        model, text = self._flow_parts(step, start)
        model |= self._latents(step, start)
        process: dict[str, Any] = {
            "type": "flow_trainer",
            "model": {**model, "text_encoder": text},
            "sample": self._prompts(step),
        }
        if step.trains_vae:
            autoencoder = {
                "train": "decoder" if self._freezes_encoder(step) else "all",
                "spade": step.values.get("train_spade"),
                "losses": self._losses(step),
                "discriminator": self._discriminator(step),
            }
            process["autoencoder"] = tree(
                autoencoder, step.values.get("train_vae", step.node)
            )
        return process

    def _flow_parts(
        self, step: _Step, start: _Start
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The transformer, and the text encoder."""
        values = step.values
        text: dict[str, Any] = {"train": not step.on("freeze_text_encoder")}
        if start.flow:
            return {"name_or_path": start.flow}, text
        text["projection_dim"] = values.get("text_embedding_dim", 1024)
        pretrained = values.get("pretrained_bert_model")
        tokenizer = values.get("tokenizer_name")
        if pretrained is not None:
            text |= {"name_or_path": pretrained, "tokenizer": tokenizer}
        else:
            text |= {"config": dict(RANDOM_TEXT_ENCODER), "train": True}
            self._refuse_frozen_noise(step)
        if pretrained is None and tokenizer is not None:
            note = "has no effect without 'pretrained_bert_model': random weights get a tokenizer of the captions."
            self.diagnostics.warn(tokenizer, note)
        transformer = {
            "class_name": "SD3Transformer2DModel",
            "config": transformer_size(values),
        }
        return {"prediction": "flow", "transformer": transformer}, text

    def _latents(self, step: _Step, start: _Start) -> dict[str, Any]:
        """The autoencoder that encodes the images."""
        if start.vae:
            return {"vae": start.vae} if not start.flow or start.vae_is_newer else {}
        if step.trains_vae and not self._freezes_encoder(step):
            new = {"class_name": "AutoencoderKL", "config": self._size(step)}
            return {"new_vae": new}
        message = (
            f"step {step.name.value!r} has no autoencoder to encode the images with. Train one with it or before "
            "it (train_vae: true), or give 'model.model_checkpoint'."
        )
        self.diagnostics.error(step.node, message)
        return {}

    def _prompts(self, step: _Step) -> dict[str, Any] | None:
        """`sample` of a flow model: each caption at each size."""
        captions = step.get("sample_captions", ())
        sizes = [
            {"width": width, "height": height}
            for width, height in step.get("sample_sizes", ())
        ]
        prompts = [
            {"prompt": caption, **size}
            for caption in captions
            for size in sizes or [{}]
        ]
        side = max(SMALL_IMAGE, step.get("img_size", 1024))
        drawn = {"samples": prompts, "width": side, "height": side, "sample_steps": 50}
        if not step.get("cfg_dropout_prob"):
            # without dropped captions there is nothing to guide away from
            drawn["guidance_scale"] = 1.0
        return self._sample(step, drawn) if prompts else None

    def _refuse_frozen_noise(self, step: _Step) -> None:
        if step.on("freeze_text_encoder"):
            message = (
                "a text encoder with random weights is to learn: captions would be noise. Leave this out, or give "
                "'model.pretrained_bert_model'."
            )
            self.diagnostics.error(step.values["freeze_text_encoder"], message)

    def _size(self, step: _Step) -> dict[str, Any]:
        """Arguments of an AutoencoderKL; of small images with a level less."""
        arguments = sized(step.get("vae_dim", 128))
        if step.get("img_size", 1024) >= SMALL_IMAGE:
            return arguments
        of_levels = ("block_out_channels", "down_block_types", "up_block_types")
        return arguments | {key: arguments[key][1:] for key in of_levels}

    @staticmethod
    def _freezes_encoder(step: _Step) -> bool:
        node = step.values.get("freeze")
        return node is not None and "compressor" in [item.value for item in node.value]

    def _losses(self, step: _Step) -> dict[str, Any]:
        values = step.values
        pixels: dict[str, Any] = {"l1": 0, "reconstruction": 1}
        for name in ("mse", "contrast", "color", "histogram"):
            key = f"{name}_weight"
            pixels[name] = values.get(key, keys()[key].default)
        same = ("kl_warmup_steps", "kl_free_bits", "kl_reduction")
        kl: dict[str, Any] = {"kl": values.get("kl_beta")}
        kl |= {key: values.get(key) for key in same}
        if step.only_adversarial:
            pixels = dict.fromkeys(pixels, 0)
            kl = kl if "kl_beta" in step.given else {"kl": 0}
        elif step.on("use_lpips"):
            switch = values["use_lpips"]
            pixels["lpips"] = values.get("lambda_lpips", at(switch, 0.1))
            pixels["lpips_backbone"] = values.get(
                "lpips_backbone", at(switch, os.path.expanduser(LPIPS_BACKBONE))
            )
        adversarial = values.get("lambda_adv") if step.adversarial else None
        return {**pixels, **kl, "adversarial": adversarial}

    def _discriminator(self, step: _Step) -> dict[str, Any] | None:
        if not step.adversarial:
            return None
        values = step.values
        width = step.get("feature_maps_dim_disc", 8)
        return {
            "channels": at(values.get("feature_maps_dim_disc", step.node), 4 * width),
            "layers": 3 if step.get("img_size", 1024) >= SMALL_IMAGE else 2,
            "adaptive_weight": False,
            "r1_gamma": values.get("r1_gamma"),
            "r1_interval": values.get("r1_interval"),
            "instance_noise": values.get("instance_noise_std"),
            "instance_noise_decay": values.get("instance_noise_decay"),
        }

    def _sample(self, step: _Step, drawn: dict[str, Any]) -> dict[str, Any] | None:
        """`sample`, at each save or at each so many of them; none where none are
        wanted."""
        every = step.get("samples_per_checkpoint", 1)
        if not every or step.on("no_samples"):
            return None
        saves = self._steps_of(step, "checkpoint_save_interval")
        interval = saves and at(saves, saves.value * every)
        return {
            **drawn,
            "sample_every": interval,
            "sample_at_first": False,
            "format": "png",
            "overview": True,
        }


RANDOM_TEXT_ENCODER = {
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
}
"""Arguments of a BertModel with random weights: small, as it has the captions of one
dataset to learn from."""


def transformer_size(values: Mapping[str, ConfigNode]) -> dict[str, int]:
    """Arguments of a transformer for `feature_maps_dim`: four times it is the width, an
    eighth of it the number of layers, 4 to 16."""
    node = values.get("feature_maps_dim")
    dim = 128 if node is None else int(node.value)
    width = max(32, 4 * dim // 8 * 8)
    head = next(size for size in (64, 32, 16, 8) if width % size == 0)
    layers = min(16, max(4, dim // 8))
    return {
        "num_layers": layers,
        "num_attention_heads": width // head,
        "attention_head_dim": head,
    }


CHANNEL_STEP = 8
"""Channels of an autoencoder that `sized` makes are multiples of it."""


def sized(vae_dim: int) -> dict[str, Any]:
    """Arguments of an `AutoencoderKL` of this width, with latents of an eighth of the
    image's sides.

    vae_dim: channels of the two deepest of four levels, at least 1; half and a quarter
    of it are those of the others, each rounded down to a multiple of 8. An image of the
    full size meets the fewest channels, since that is where the memory goes. Latents
    have an eighth of it as channels, at least 4 and at most 16.
    """
    widths = [
        max(CHANNEL_STEP, vae_dim // share // CHANNEL_STEP * CHANNEL_STEP)
        for share in (4, 2, 1, 1)
    ]
    return {
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "layers_per_block": 2,
        "latent_channels": min(16, max(4, vae_dim // 8)),
        "norm_num_groups": gcd(*widths)
        // 4,  # at least four channels a group: one alone would lose its mean
    }


def checkpoint_folder(path: Path) -> tuple[Path | None, str]:
    """The folder with the model that a checkpoint of the guide's name leads to, or why
    there is none."""
    if path.is_dir():
        parts = (path / CONFIG, path / PART / CONFIG, path / "model_index.json")
        if not any(part.is_file() for part in parts):
            return None, "is not the folder of a model."
        return path, ""
    if not path.is_file():
        return None, f"does not exist (working directory: {Path.cwd()})."
    try:
        with path.open("rb") as file:
            header = read_header(file)
    except (OSError, ValueError) as error:
        return None, f"is not a safetensors file ({error})."
    of_this_program = header.get(METADATA, {}).get(CHECKPOINT_PARTS)
    if of_this_program is None:
        names = {name.partition(".")[0] for name in header if name != METADATA}
        theirs = sorted(
            names
            & {
                "compressor",
                "expander",
                "flow_processor",
                "diffuser",
                "text_encoder",
                "D_img",
            }
        )
        if theirs:
            held = ", ".join(theirs)
            return (
                None,
                f"holds weights of FluxFlow's own architecture ({held}), which differs: train them again.",
            )
        return (
            None,
            "was not written by a step of this program: give the folder of a model.",
        )
    folder = path.parent / str(json.loads(of_this_program)["folder"])
    if not folder.is_dir():
        return (
            None,
            f"belongs to the folder '{folder}', which is not there: restore it, or give a folder.",
        )
    return folder, ""


def _number(value: Any) -> int | float | None:
    """A number, also one in quotes; None for anything else."""
    if isinstance(value, str) and scalar_kind(value.strip()) in ("int", "float"):
        value = scalar_value(value.strip())
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    return None


def _places(key: str) -> str:
    """Where a key of the guide belongs; empty for one that it does not have."""
    named = {STEPS: f"'{TRAINING}.pipeline.steps[]'"}
    places = keys()[key].places if key in keys() else ()
    return " or ".join(named.get(place, repr(place)) for place in places)
