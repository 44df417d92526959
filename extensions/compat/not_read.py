"""Files and commands of programs that are not read: each is known by its keys and
answered with one line, which says whose it is and where its main keys are explained.

It converts nothing. The loader finds `FILES` through `toolkit.registry` for a file that
is not a job, and `process_type` for a type that no extension has; `command` calls it
for scripts and files of variables.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from extensions.compat.foreign_jobs import ForeignJobs
from extensions.compat.musubi import flat
from extensions.compat.nodes import entries
from toolkit.config.reading.located import ConfigNode, Diagnostics, SourceLocation

PAGE = "docs/coming_from.md"

KEYS: dict[str, tuple[frozenset[str], ...]] = {
    "a config of SimpleTuner": (
        frozenset({"model_family", "model_type"}),
        frozenset({"model_family", "data_backend_config"}),
    ),
    "a config of OneTrainer": (
        frozenset({"model_type", "training_method"}),
        frozenset({"model_type", "base_model_name"}),
    ),
    "a config of diffusion-pipe": (
        frozenset({"dataset", "micro_batch_size_per_gpu"}),
        frozenset({"dataset", "output_dir", "epochs"}),
    ),
    "a dataset file of diffusion-pipe": (
        frozenset({"directory", "resolutions"}),
        frozenset({"directory", "enable_ar_bucket"}),
    ),
    "a config of axolotl": (
        frozenset({"base_model", "sequence_len"}),
        frozenset({"base_model", "micro_batch_size"}),
    ),
    "a config of DiffSynth-Studio": (
        frozenset({"dataset_base_path", "lora_target_modules"}),
    ),
    "a config of FlyMyAI's trainer": (
        # data_config's keys
        frozenset({"img_dir", "caption_type", "max_train_steps"}),
        frozenset({"img_dir", "caption_dropout_rate", "pretrained_model_name_or_path"}),
    ),
    "a config of kohya's GUI": (
        frozenset({"LoRA_type"}),
        frozenset({"LyCORIS_preset"}),
        frozenset({"pretrained_model_name_or_path", "max_resolution"}),
        frozenset({"pretrained_model_name_or_path", "model_list"}),
    ),
    "a config of kohya's sd-scripts": (
        frozenset({"pretrained_model_name_or_path", "train_data_dir"}),
        frozenset({"pretrained_model_name_or_path", "dataset_config"}),
        frozenset({"pretrained_model_name_or_path", "network_module"}),
        frozenset({"pretrained_model_name_or_path", "output_name"}),
    ),
}
"""Whose file it is -> keys, all of which the files of one kind have; the first that
fits counts."""

SLIDERS = (
    "slider",
    "slider_old",
    "concept_slider",
    "image_reference_slider_trainer",
    "ultimate_slider_trainer",
)
"""Process types of ai-toolkit 27a03a9 that train sliders."""

_DIFFUSERS = re.compile(r"train_(?:dreambooth|text_to_image)\w*\.py")
"""The scripts of its examples."""

_FLAGS = {
    "--dataset_base_path": "DiffSynth-Studio",
    "--deepspeed": "diffusion-pipe",
    "--config-path": "OneTrainer",
    "--model_family": "SimpleTuner",
}
"""Flag of a script that several programs call `train.py` -> whose it is."""

_VARIABLES = re.compile(
    r"^\s*(?:export\s+)?(?:MODEL_FAMILY|DATA_BACKEND_CONFIG|DATALOADER_CONFIG|TRAINER_EXTRA_ARGS)=",
    re.M,
)
"""In a `config.env` of SimpleTuner."""


def refuse_script(
    script: str, at: SourceLocation, words: Sequence[str], diagnostics: Diagnostics
) -> None:
    """Raises ConfigErrors for a command of these programs. words: what stands behind
    the script."""
    if _DIFFUSERS.fullmatch(script):
        diagnostics.fatal(at, (), not_read_message("a command of diffusers' example"))
    if script == "train.py":
        for flag in _FLAGS.keys() & {word.partition("=")[0] for word in words}:
            diagnostics.fatal(at, (), not_read_message(f"a command of {_FLAGS[flag]}"))


def refuse_variables(text: str, diagnostics: Diagnostics) -> None:
    """Raises ConfigErrors for a file of variables of these programs."""
    variable = _VARIABLES.search(text)
    if variable is not None:
        line = text.count("\n", 0, variable.start()) + 1
        message = not_read_message("a file of variables of SimpleTuner")
        diagnostics.fatal(SourceLocation(line, 1), (), message)


def not_read_message(whose: str) -> str:
    """The message for a file that is not read, with the page that says what its keys
    are called here. whose: words such as `whose_file` returns.
    """
    if whose.endswith("axolotl"):
        return f"is {whose}, which trains language models, and is not read."
    return f"is {whose}, which is not read. {PAGE} says what its main keys are here."


def process_type(kind: str) -> str:
    """The message about a process type of a program, which is not here; empty for other
    types."""
    if kind not in SLIDERS:
        return ""
    return f"{kind!r} is ai-toolkit's training of sliders, which is not here. 'sd_trainer' trains a LoRA on images."


def whose_file(root: ConfigNode) -> str:
    """Whose file it is, in words, such as "a config of DiffSynth-Studio". The result is
    empty for other files."""
    given = {key.lstrip("-") for key in flat(root)}
    for whose, groups in KEYS.items():
        if any(keys <= given for keys in groups):
            return whose
    if _has_subsets(root):
        return "a dataset file of kohya's sd-scripts"
    return ""


def _has_subsets(root: ConfigNode) -> bool:
    listed = root.value.get("datasets")
    items = listed.value if listed and isinstance(listed.value, list) else []
    return any("subsets" in entries(item) for item in items)


def _refuse(
    root: ConfigNode,
    folder: Path,
    name: str | None,
    diagnostics: Diagnostics,
    moved: Mapping[str, str],
) -> ConfigNode:
    diagnostics.fatal(root.value_at, (), not_read_message(whose_file(root)))


FILES = ForeignJobs(lambda root: bool(whose_file(root)), _refuse)
