"""The model card of a run: the base model, the settings, the samples and the use of its
LoRA, for the hub and for people. Its text is in `card.md.j2`.

It uploads nothing and removes no paths: `process` does. `process` calls `model_card`
with the LoRA files and samples that it uploads.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError, HTTPError, OfflineModeIsEnabled
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from extensions.tools.shared.run_job import training_section
from toolkit.config.sections.trainer import DiffusionSection
from toolkit.errors import UserError
from toolkit.files.safetensors_io import read_metadata
from toolkit.files.writing import readable_size, sha256_of
from toolkit.models.adapter_origin import named_families
from toolkit.models.families import ModelFamily, family_for
from toolkit.networks.lora_formats import read_tensors
from toolkit.train.run_reader import NetworkFile, RunInfo, SampleImage

logger = logging.getLogger(__name__)

UNREACHABLE = (HTTPError, OfflineModeIsEnabled, OSError)
"""Errors of the hub's library where the hub cannot be reached, or refuses."""


def model_card(
    run: RunInfo,
    section: DiffusionSection | None,
    repo: str,
    loras: Sequence[NetworkFile],
    samples: Sequence[tuple[str, SampleImage]],
    licence: str,
) -> str:
    """The text of README.md. section: `section_of` the run. repo: `owner/name`.
    samples: each with its name in the repository. licence: see `PublishConfig`."""
    family = family_of(section, loras)
    path = loras[-1].path
    values = {
        "data": _front_matter(section, family, samples, licence).to_yaml(),
        **{"run": run, "section": section, "family": family, "repo": repo},
        **{"loras": loras, "samples": samples, "file": path.name, "is_known": False},
    }
    if section:
        sizes = chain.from_iterable(data.resolution for data in section.datasets)
        values["sizes"] = sorted(set(map(str, sizes)))
    if section and family and family.published:
        makes_edits = _makes_edits(section, family)
        tensors, _ = read_tensors(path)
        of_lora = (".lora_A.weight", ".lora_B.weight")
        without_images = None if makes_edits else family.pipeline_without_images
        pipeline, attributes = without_images or (family.pipelines[0], {})
        prompts = (image.prompt for _, image in samples if image.prompt)
        values |= {
            "is_known": True,
            "only_lora": all(key.endswith(of_lora) for key in tensors),
            **{"pipeline": pipeline, "attributes": attributes},
            "makes_edits": makes_edits,
            "prompt": next(prompts, section.trigger_word or "what to generate"),
            "options": _options(family),
        }
    return _environment().get_template("card.md.j2").render(values)


def _options(family: ModelFamily) -> dict[str, Any]:
    """Arguments for which the pipeline's defaults do not suit the model. An empty
    negative prompt is a default, and FLUX.2 [klein]'s pipeline takes none."""
    if family.empty_negative:
        return {"negative_prompt": family.empty_negative}
    if family.sample_sigmas:
        return {"num_inference_steps": family.sample_steps, "guidance_scale": 0.0}
    return {}


def _environment() -> Environment:
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    templates.filters |= {
        "size": readable_size,
        "sha256": sha256_of,
        "json": partial(json.dumps, ensure_ascii=False),
    }
    return templates


def _front_matter(
    section: DiffusionSection | None,
    family: ModelFamily | None,
    samples: Sequence[tuple[str, SampleImage]],
    licence: str,
) -> ModelCardData:
    """The head of the card, which the hub reads."""
    facts: dict[str, Any] = {"tags": ["lora", "diffusers", "template:sd-lora"]}
    if section:
        facts["instance_prompt"] = section.trigger_word or None
        if not section.model.is_path():
            facts["base_model"] = section.model.name_or_path
        if family:
            makes_edits = _makes_edits(section, family)
            task = "image-to-image" if makes_edits else "text-to-image"
            facts["pipeline_tag"] = task
    if family and family.terms and not licence:
        facts["license"] = "other"
        facts["license_name"] = family.terms.name
        facts["license_link"] = family.terms.link
    elif section:
        facts["license"] = licence or licence_of(section)
    else:
        facts["license"] = licence or None
    widget = [
        {"text": image.prompt or " ", "output": {"url": name}}
        for name, image in samples
    ]
    return ModelCardData(**facts, widget=widget or None)


def family_of(
    section: DiffusionSection | None, loras: Sequence[NetworkFile]
) -> ModelFamily | None:
    """The family of the base model: by the run's section, else by the metadata of its
    files; None: not known."""
    try:
        if section:
            return family_for(section.model)
    except UserError as error:  # the model's folder was moved, or is another one now
        logger.debug("%s", error)
    if loras:
        return next(iter(named_families(read_metadata(loras[-1].path))), None)
    return None


def _makes_edits(section: DiffusionSection, family: ModelFamily) -> bool:
    """Whether the LoRA is used with images: it was trained with control images, or its
    model always has them."""
    return bool(
        family.min_references
        or any(data.control_path or data.control_suffix for data in section.datasets)
        or any(picture.ctrl_img for picture in section.sample_pictures())
    )


def section_of(run: RunInfo) -> DiffusionSection | None:
    """The section of the run; None where it is missing or cannot be read any more."""
    if run.config is None:
        return None
    try:
        return training_section(run, check_files=False)
    except UserError as error:
        logger.warning(
            f"{run.config}: cannot be read, so the model card has no settings: {str(error).splitlines()[0]}"
        )
        return None


def licence_of(section: DiffusionSection) -> str | None:
    """The licence in the base model's own card; None, which is logged, where the card
    has none."""
    model = section.model
    why = "its model card names none"
    try:
        if model.is_path():
            page = model.folder() / "README.md"
            data = ModelCard.load(page).data if page.is_file() else None
        else:
            name, revision = model.name_or_path, model.revision
            data = HfApi().model_info(name, revision=revision).card_data
        licence = getattr(data, "license", None)
        if licence:
            return str(licence)
    except (*UNREACHABLE, HFValidationError, ValueError) as error:
        why = type(error).__name__
    logger.info(
        f"the licence of {model.public_name()} is not known ({why}); set it with --licence"
    )
    return None
