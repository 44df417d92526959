"""The model card of a run: the base model, the settings, the samples and the use of its
LoRA, for the hub and for people.

It uploads nothing and removes no paths: `process` does. `process` calls `model_card`
with the LoRA files and samples that it uploads.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from huggingface_hub import HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
)

from extensions.tools.shared.run_job import training_section
from toolkit.config.sections.trainer import DiffusionSection
from toolkit.errors import UserError
from toolkit.files.safetensors_io import read_metadata
from toolkit.files.writing import readable_size, sha256_of
from toolkit.models.adapter_origin import named_families
from toolkit.models.families import ModelFamily, family_for
from toolkit.networks.lora_formats import read_tensors
from toolkit.networks.programs import PROGRAMS, program_findings
from toolkit.train.run_reader import NetworkFile, RunInfo, SampleImage

logger = logging.getLogger(__name__)


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
    trigger = section.trigger_word if section else ""
    family = family_of(section, loras)
    terms = family.terms if family and (not licence) else None
    tasks = ("text-to-image", "image-to-image")
    data = ModelCardData(
        base_model=section.model.name_or_path
        if section and not section.model.is_path()
        else None,
        license="other"
        if terms
        else licence or (licence_of(section) if section else None),
        license_name=terms.name if terms else None,
        license_link=terms.link if terms else None,
        pipeline_tag=tasks[_makes_edits(section, family)]
        if section and family
        else None,
        tags=["lora", "diffusers", "template:sd-lora"],
        instance_prompt=trigger or None,
        widget=[
            {"text": image.prompt or " ", "output": {"url": name}}
            for name, image in samples
        ]
        or None,
    )
    lines = ["---", data.to_yaml().rstrip("\n"), "---", "", f"# {run.name}", ""]
    lines += [
        f"A LoRA for {section.model.public_name()}." if section else "A LoRA.",
        "",
    ]
    if family:
        asked = family.terms
        if asked:
            lines += [
                f"**{asked.display}**. {asked.notice} [Licence]({asked.link}).",
                "",
            ]
    if trigger:
        lines += [f"**Trigger word**: `{trigger}`", ""]
    for name, image in samples:
        lines += [f"![{(image.prompt or 'sample').replace(chr(10), ' ')}]({name})", ""]
    lines += ["## Files", "", "| file | step | size | sha256 |", "|---|---|---|---|"]
    for lora in loras:
        step = "" if lora.step is None else str(lora.step)
        lines.append(
            f"| {lora.path.name} | {step} | {readable_size(lora.size)} | `{sha256_of(lora.path)}` |"
        )
    lines += [
        "",
        "## Use",
        "",
        *_usage(section, family, repo, loras[-1].path, samples),
        "",
    ]
    if section:
        lines += [
            "## Training",
            "",
            "| | |",
            "|---|---|",
            *(f"| {key} | {value} |" for key, value in settings(section, run)),
        ]
    return "\n".join(lines).rstrip("\n") + "\n"


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


def _usage(
    section: DiffusionSection | None,
    family: ModelFamily | None,
    repo: str,
    path: Path,
    samples: Sequence[tuple[str, SampleImage]],
) -> list[str]:
    """How the file is loaded: with a pipeline of diffusers, where diffusers has one for
    the model and reads the file."""
    file = path.name
    if not (section and family and family.published):
        return [
            f"`run.py generate --lora {file} --model FOLDER --prompt TEXT`, in the program it was made with."
        ]
    comfy = "In ComfyUI: put the file into `models/loras`."
    in_diffusers = list(program_findings(PROGRAMS["diffusers"], *read_tensors(path)))
    if in_diffusers:
        return [f"{comfy} {in_diffusers[0].message}"]
    prompt = next(
        (image.prompt for _, image in samples if image.prompt),
        section.trigger_word or "what to generate",
    )
    model = section.model.name_or_path
    of_folder = ""
    if section.model.is_path():
        model = f"path/to/{section.model.public_name()}"
        of_folder = "  # the folder of the base model"
    image = 'image=[load_image("input.png")], ' if _makes_edits(section, family) else ""
    pipeline, attributes = (None if image else family.pipeline_without_images) or (
        family.pipelines[0],
        {},
    )
    return [
        f"{comfy} With diffusers:",
        "",
        "```python",
        "import torch",
        f"from diffusers import {pipeline}",
        *(["from diffusers.utils import load_image"] if image else []),
        "",
        f'pipe = {pipeline}.from_pretrained("{model}", dtype=torch.bfloat16){of_folder}',
        f'pipe.load_lora_weights("{repo}", weight_name="{file}")',
        *(f"pipe.{name} = {json.dumps(value)}" for name, value in attributes.items()),
        "if torch.cuda.is_available():",
        "    pipe.enable_model_cpu_offload()",
        f'images = pipe({image}prompt={json.dumps(prompt, ensure_ascii=False)}, negative_prompt=" ").images',
        "```",
    ]


def _makes_edits(section: DiffusionSection, family: ModelFamily) -> bool:
    """Whether the LoRA is used with images: it was trained with control images, or its
    model always has them."""
    controls = False
    for dataset in section.datasets:
        if dataset.control_path or dataset.control_suffix:
            controls = True
    return bool(
        family.min_references
        or controls
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


def settings(section: DiffusionSection, run: RunInfo) -> Iterator[tuple[str, object]]:
    """Names and values of the training in the card."""
    network = section.network
    train = section.train
    yield (
        "network",
        f"{network.type}, rank {network.linear}, alpha {network.linear_alpha:g}",
    )
    yield "steps", run.step if run.step is not None else train.steps
    yield (
        "optimizer",
        f"{train.optimizer}, learning rate {train.lr:g}, {train.lr_scheduler}",
    )
    yield "batch", f"{train.batch_size} x {train.gradient_accumulation}"
    sizes: set[str] = set()
    for dataset in section.datasets:
        sizes.update(map(str, dataset.resolution))
    yield "resolution", ", ".join(sorted(sizes))
    if section.model.quantize:
        yield "base in", section.model.qtype
    if run.samples:
        yield "images seen", run.samples
    if run.best_loss is not None:
        yield "lowest validation loss", f"{run.best_loss:.4f} at step {run.best_step}"


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
            data = (
                HfApi()
                .model_info(model.name_or_path, revision=model.revision)
                .card_data
            )
        licence = getattr(data, "license", None)
        if licence:
            return str(licence)
    except (
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        HTTPError,
        OSError,
        ValueError,
    ) as error:
        why = type(error).__name__
    logger.info(
        f"the licence of {model.public_name()} is not known ({why}); set it with --licence"
    )
    return None
