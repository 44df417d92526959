"""Writes a ComfyUI workflow next to a finished LoRA: `<name>_comfyui.json` from text,
`<name>_comfyui_edit.json` with control images. Dropped into ComfyUI's window it loads
the model, the LoRA at strength 1, and the settings of the job's first sample.

The format is the one of ComfyUI's own files (version 0.4: nodes, links, positions),
without subgraphs, which old versions do not know. Nodes and the order of their widgets:
ComfyUI 0.29.0 (tests/extensions/sd_trainer/comfyui_nodes.json). Imports no torch.

    write_workflows(Path("output/maya/maya.safetensors"), section, edits=False, plain=True)
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from toolkit.config.sections.model_files import single_files
from toolkit.config.sections.output import SamplePicture
from toolkit.config.sections.trainer import DiffusionSection
from toolkit.contracts.data import Size
from toolkit.data.scan.captions import inject_trigger
from toolkit.files.run_files import WORKFLOWS
from toolkit.files.writing import atomic_write, read_object
from toolkit.models.comfyui import CLIP_TYPE, MODELS, WITHOUT, ComfyModel
from toolkit.models.families import LARGE_MODEL_BLOCKS, family_for, title_of
from toolkit.models.folder_family import dynamic_shift
from toolkit.models.loading import model_folder

logger = logging.getLogger(__name__)

MARK = "atelier"
"""Key in `extra` of a workflow: the digest of all else in it. Where it does not match,
another program wrote or changed the file."""

SIDE = 1024
"""Side of the image where a job has no samples."""

MOST_PROMPTS = 8
"""Further prompts that the note lists."""

Slot = tuple[int, int, str]
"""An output: id of its node, place among the outputs, type."""


def write_workflows(
    file: Path, section: DiffusionSection, edits: bool, plain: bool
) -> list[Path]:
    """Writes the workflows of a LoRA file next to it, and returns their paths; none for
    a model that is smaller than a published one, or not known to ComfyUI, which is
    logged.

    edits, plain: whether some images were trained with control images, and without.
    Never raises for a disk that refuses: the LoRA is saved.
    """
    family = family_for(section.model)
    folder = model_folder(section.model)
    if family.block_count(folder) < LARGE_MODEL_BLOCKS:
        return []
    title = title_of(section.model, family)
    if title not in MODELS:
        logger.info(
            f"no ComfyUI workflow for {title}: {WITHOUT.get(title, 'its files there are not known')}."
        )
        return []
    written = []
    for ending, with_images in zip(WORKFLOWS, (False, True), strict=True):
        wanted = (
            edits and family.max_references > 0
            if with_images
            else plain and not family.min_references
        )
        path = file.with_name(f"{file.stem}{ending}")
        if not wanted:
            continue
        if path.exists() and not is_own(path):
            logger.warning(
                f"{path} is not from this program, so it stays as it is, and no workflow is written there."
            )
            continue
        shift = _shift(section, _picture(section, with_images))
        contents = workflow(file.name, section, title, with_images, shift)
        try:
            with atomic_write(path) as temporary:
                temporary.write_text(
                    json.dumps(contents, indent=1, ensure_ascii=False) + "\n",
                    encoding="utf-8",
                )
        except OSError as error:
            logger.warning(f"{path.name} was not written: {error.strerror or error}")
            continue
        written.append(path)
        logger.info(
            f"for ComfyUI: {path} (drop it into the window: docs/use_your_lora.md)"
        )
    return written


def _shift(section: DiffusionSection, picture: SamplePicture) -> float:
    """The factor by which the job's own samples shift their noise levels, by the size
    of the image."""
    if picture.flow_shift:
        return picture.flow_shift
    family = family_for(section.model)
    tokens = family.tokens(family.latent_size(Size(picture.width, picture.height)))
    steps = picture.sample_steps or family.sample_steps
    return round(
        math.exp(dynamic_shift(model_folder(section.model)).mu(tokens, steps)), 2
    )


def is_own(path: Path) -> bool:
    """Whether a file is a workflow as this program wrote it, unchanged: the digest in
    it is the digest of its contents."""
    contents = read_object(path)
    extra = contents.get("extra")
    return isinstance(extra, dict) and extra.get(MARK) == _digest(contents)


def _digest(contents: dict[str, Any]) -> str:
    rest = {key: value for key, value in contents.items() if key != "extra"}
    return sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()[:32]


def _picture(section: DiffusionSection, with_images: bool) -> SamplePicture:
    """The sample that a workflow takes its settings from: the first of its kind, else
    the first; of a job without samples one with the model's own settings."""
    pictures = section.pictures_alone()
    of_kind = [one for one in pictures if bool(one.ctrl_img) == with_images]
    if pictures:
        return (of_kind or pictures)[0]
    return SamplePicture(
        prompt=section.trigger_word or "a photo",
        width=SIDE,
        height=SIDE,
        neg="",
        seed=42,
        guidance_scale=None,
        sample_steps=None,
    )


@dataclass
class _Graph:
    """Nodes and links of a workflow, as they are added."""

    nodes: list[dict[str, Any]] = field(default_factory=list)
    links: list[list[Any]] = field(default_factory=list)

    def add(
        self,
        kind: str,
        at: tuple[int, int],
        size: tuple[int, int],
        inputs: Mapping[str, Slot],
        outputs: str,
        widgets: Sequence[Any] = (),
        title: str = "",
    ) -> list[Slot]:
        """Adds a node and its incoming links, and returns its outputs. outputs: their
        types, each after its name where it has another one: `name:TYPE`."""
        node = len(self.nodes) + 1
        slots = []
        for place, (name, source) in enumerate(inputs.items()):
            link = None
            if source:
                link = len(self.links) + 1
                self.links.append([link, source[0], source[1], node, place, source[2]])
                self.nodes[source[0] - 1]["outputs"][source[1]]["links"].append(link)
            slots.append(
                {"name": name, "type": source[2] if source else "IMAGE", "link": link}
            )
        ends: list[dict[str, Any]] = [
            {
                "name": one.partition(":")[0],
                "type": one.rpartition(":")[2],
                "links": [],
                "slot_index": place,
            }
            for place, one in enumerate(outputs.split())
        ]
        named = {"title": title} if title else {}
        shown = {
            "id": node,
            "type": kind,
            "pos": list(at),
            "size": list(size),
            "flags": {},
            "order": node - 1,
            "mode": 0,
        }
        filled = {
            "properties": {"Node name for S&R": kind},
            "widgets_values": list(widgets),
        }
        self.nodes.append(
            {**shown, "inputs": slots, "outputs": ends, **named, **filled}
        )
        return [(node, end["slot_index"], end["type"]) for end in ends]

    def to_json(self) -> dict[str, Any]:
        """The whole file, with its mark."""
        contents: dict[str, Any] = {
            "last_node_id": len(self.nodes),
            "last_link_id": len(self.links),
            "nodes": self.nodes,
            "links": self.links,
            "groups": [],
            "config": {},
            "version": 0.4,
        }
        return {**contents, "extra": {MARK: _digest(contents)}}


def workflow(
    file: str, section: DiffusionSection, title: str, with_images: bool, shift: float
) -> dict[str, Any]:
    """The workflow of a LoRA file as ComfyUI reads it.

    file: its name. title: a key of `MODELS`. shift: factor of the noise levels, as
    ModelSamplingAuraFlow has it.

    Example::

        contents = workflow("mira.safetensors", section, "Qwen-Image", False, 2.2)
        path.write_text(json.dumps(contents))
    """
    picture = _picture(section, with_images)
    family = family_for(section.model)
    guidance = (
        family.guidance if picture.guidance_scale is None else picture.guidance_scale
    )
    comfy = _with_own_files(MODELS[title], section)
    graph = _Graph()
    add = graph.add
    note = _note(file, section, title, comfy, with_images)
    add("MarkdownNote", (0, -60), (320, 420), {}, "", [note])
    files = [comfy.diffusion_model, "default"]
    (model,) = add("UNETLoader", (360, 0), (360, 82), {}, "MODEL", files)
    files = [comfy.text_encoder, CLIP_TYPE, "default"]
    (clip,) = add("CLIPLoader", (360, 140), (360, 106), {}, "CLIP", files)
    (vae,) = add("VAELoader", (360, 300), (360, 58), {}, "VAE", [comfy.vae])
    loras = [*_base_loras(section), (file, 1.0)]
    for place, lora in enumerate(loras, start=1 - len(loras)):
        at, inputs = (760, 140 * place), {"model": model}  # the last is at the sampler
        (model,) = add("LoraLoaderModelOnly", at, (340, 82), inputs, "MODEL", lora)
    if comfy.is_shifted:
        inputs = {"model": model}
        (model,) = add("ModelSamplingAuraFlow", (1140, 0), (300, 58), inputs, "MODEL", [shift])  # fmt: skip
        if guidance > 1:
            inputs = {"model": model}
            (model,) = add("CFGNorm", (1140, 110), (300, 82), inputs, "patched_model:MODEL", [1.0])  # fmt: skip
    images = _images(graph, comfy, picture) if with_images else {}
    positive, negative = _encoded(
        graph,
        comfy,
        (
            _text(section, picture.prompt),
            _text(section, picture.neg) or family.empty_negative,
        ),
        (clip, vae),
        images,
        _reference_side(section, picture.width * picture.height),
    )
    size = [picture.width, picture.height, 1]
    (noise,) = add(comfy.empty_latent, (1140, 250), (300, 106), {}, "LATENT", size)
    steps = picture.sample_steps or family.sample_steps
    (sampled,) = add(
        "KSampler",
        (1480, 0),
        (300, 262),
        {
            "model": model,
            "positive": positive,
            "negative": negative,
            "latent_image": noise,
        },
        "LATENT",
        [picture.seed, "fixed", steps, guidance, "euler", "simple", 1.0],
    )
    inputs = {"samples": sampled, "vae": vae}
    (image,) = add("VAEDecode", (1480, 310), (300, 46), inputs, "IMAGE")
    name = file.removesuffix(".safetensors")
    add("SaveImage", (1820, 0), (420, 460), {"images": image}, "", [name])
    return graph.to_json()


def _encoded(
    graph: _Graph,
    comfy: ComfyModel,
    texts: tuple[str, str],
    encoders: tuple[Slot, Slot],
    images: Mapping[str, Slot],
    side: int,
) -> tuple[Slot, Slot]:
    """The conditioning of the prompt, and of the negative one. encoders: the text
    encoder and the VAE. side: of a control image, where a node scales it."""
    clip, vae = encoders
    inputs = (
        {"clip": clip, "vae": vae, **images}
        if images or comfy.encodes_both
        else {"clip": clip}
    )
    if comfy.encodes_both:
        both = "positive:CONDITIONING negative:CONDITIONING latent:LATENT"
        positive, negative, _ = graph.add(
            comfy.encoder, (760, 140), (340, 300), inputs, both, [*texts, side]
        )
        return positive, negative
    ends = "CONDITIONING"
    conditioning = []
    for row, (title, text) in enumerate(
        zip(("prompt", "negative prompt"), texts, strict=True)
    ):
        (slot,) = graph.add(
            comfy.encoder,
            (760, 140 + 220 * row),
            (340, 180),
            inputs,
            ends,
            [text],
            title,
        )
        if images and comfy.reference_method:
            name = "FluxKontextMultiReferenceLatentMethod"
            at = (760, 580 + 100 * row)
            (slot,) = graph.add(
                name,
                at,
                (340, 58),
                {"conditioning": slot},
                ends,
                [comfy.reference_method],
            )
        conditioning.append(slot)
    return conditioning[0], conditioning[1]


def _images(
    graph: _Graph, comfy: ComfyModel, picture: SamplePicture
) -> dict[str, Slot]:
    """A node for each control image of a sample, by the input it is for; one
    without."""
    names = [Path(path).name for path in picture.ctrl_img]
    slots = dict[str, Slot]()
    for place, (given, name) in enumerate(
        zip(comfy.images, names or ["control image.png"], strict=False)
    ):
        at = (360, 420 + 380 * place)
        title = f"control image {place + 1}"
        slots[given] = graph.add(
            "LoadImage", at, (360, 330), {}, "IMAGE MASK", [name, "image"], title
        )[0]
    return slots


def _with_own_files(comfy: ComfyModel, section: DiffusionSection) -> ComfyModel:
    """The same with the names of the single files that the job gives."""
    file_names = {
        part: file.name
        for part, file in single_files(section.model).items()
        if file.suffix == ".safetensors"
    }
    return replace(
        comfy,
        diffusion_model=file_names.get("transformer", comfy.diffusion_model),
        text_encoder=file_names.get("text_encoder", comfy.text_encoder),
        vae=file_names.get("vae", comfy.vae),
    )


def _base_loras(section: DiffusionSection) -> Iterator[tuple[str, float]]:
    for lora in section.model.base_loras:
        yield Path(lora.path).name, lora.multiplier


def _text(section: DiffusionSection, text: str) -> str:
    return inject_trigger(text, section.trigger_word, add=False)


def _reference_side(section: DiffusionSection, pixels: int) -> int:
    """Side of the square that a control image is scaled to, in steps of 32. pixels: of
    the target."""
    area = section.model.model_kwargs.reference_area() or pixels
    return max(32, round(math.sqrt(area) / 32) * 32)


def _note(
    file: str,
    section: DiffusionSection,
    title: str,
    comfy: ComfyModel,
    with_images: bool,
) -> str:
    """What the reader of a workflow does first."""
    pictures = [
        one for one in section.sample_pictures() if bool(one.ctrl_img) == with_images
    ]
    loras = [name for name, _ in _base_loras(section)]
    loras.append(file)
    lines = [
        f"## {file.removesuffix('.safetensors')}",
        f"A LoRA of {title}. Put the files here, then press R:",
        *(f"- `models/loras/{name}`" for name in loras),
        f"- `models/diffusion_models/{comfy.diffusion_model}`",
        f"- `models/text_encoders/{comfy.text_encoder}`",
        f"- `models/vae/{comfy.vae}`",
        "",
        "Other files of the same model fit too: choose them in the loaders.",
    ]
    if section.trigger_word:
        lines.append(f"The prompt needs the trigger word: `{section.trigger_word}`.")
    if with_images:
        lines.append("Choose your picture in each node named *control image*.")
    others = [_text(section, one.prompt) for one in pictures[1 : 1 + MOST_PROMPTS]]
    if others:
        lines += [
            "",
            "Other prompts of the job:",
            *(f"- {prompt}" for prompt in others),
        ]
    return "\n".join(lines)
