"""Writes a ComfyUI workflow next to a finished LoRA: `<name>_comfyui.json` from text, `<name>_comfyui_edit.json` with
control images. Dropped into ComfyUI's window it loads the model, the LoRA at strength 1, and the settings of the job's
first sample.

The format is the one of ComfyUI's own files (version 0.4: nodes, links, positions), without subgraphs, which old
versions do not know. Nodes, file names and the order of widgets: ComfyUI 0.29.0 and comfyui-workflow-templates 0.11.97
(tests/extensions/sd_trainer/comfyui_nodes.json). Imports no torch.

    write_workflows(Path("output/maya/maya.safetensors"), section, edits=False, plain=True)
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from toolkit.config.model_files import single_files
from toolkit.config.output import SamplePicture
from toolkit.config.sections import DiffusionSection
from toolkit.data.captions import inject_trigger
from toolkit.data.types import Size
from toolkit.files.writing import atomic_write, read_object
from toolkit.models.families import LARGE_MODEL_BLOCKS, family_for, title_of
from toolkit.models.folder_family import dynamic_shift
from toolkit.models.interface import ModelFacts
from toolkit.models.loading import model_folder

logger = logging.getLogger(__name__)

FROM_TEXT, WITH_IMAGES = "_comfyui", "_comfyui_edit"
"""What follows the name of the LoRA in the names of the two files."""

MARK = "atelier"
"""Key in `extra` of a workflow: the digest of all else in it. Where it does not fit, somebody else wrote the file."""

MOST_IMAGES = 3
"""Control images that have a node: TextEncodeQwenImageEditPlus has three inputs, that of 2.1 more."""


class ModelFiles(NamedTuple):
    """Names of the files of a model as Comfy-Org publishes them."""

    diffusion_model: str
    text_encoder: str
    vae: str


_QWEN25 = ("qwen_2.5_vl_7b_fp8_scaled.safetensors", "qwen_image_vae.safetensors")

FILES = {
    "Qwen-Image": ModelFiles("qwen_image_fp8_e4m3fn.safetensors", *_QWEN25),
    "Qwen-Image-2512": ModelFiles("qwen_image_2512_fp8_e4m3fn.safetensors", *_QWEN25),
    "Qwen-Image-Edit": ModelFiles("qwen_image_edit_fp8_e4m3fn.safetensors", *_QWEN25),
    "Qwen-Image-Edit-2509": ModelFiles("qwen_image_edit_2509_fp8_e4m3fn.safetensors", *_QWEN25),
    "Qwen-Image-Edit-2511": ModelFiles("qwen_image_edit_2511_fp8mixed.safetensors", *_QWEN25),
    "Qwen-Image-2.1": ModelFiles(
        "qwen_image_2.1_int8_convrot.safetensors",
        "qwen3vl_8b_int8_convrot.safetensors",
        "qwen_image_2.1_vae_bf16.safetensors",
    ),
}
"""Title of a model -> its files, as in ComfyUI's templates."""

NO_WORKFLOW = {
    "Qwen-Image-Layered": "open ComfyUI's template for Qwen-Image-Layered",
    "Qwen-Image-2.1-Turbo": "open ComfyUI's template for Qwen-Image-2.1-Turbo, which has its noise levels",
}
"""Title of a model without a workflow here -> what to do instead."""

ENCODERS = {
    "Qwen-Image-Edit": "TextEncodeQwenImageEdit",
    "Qwen-Image-Edit-2509": "TextEncodeQwenImageEditPlus",
    "Qwen-Image-Edit-2511": "TextEncodeQwenImageEditPlus",
    "Qwen-Image-2.1": "TextEncodeQwenImage21",
}
"""Title -> the node that encodes a prompt; of the others CLIPTextEncode. That of 2509 and 2511 puts the words around a
prompt that they were trained with, also without an image."""

Slot = tuple[int, int, str]
"""An output: id of its node, place among the outputs, type."""


def write_workflows(file: Path, section: DiffusionSection, edits: bool, plain: bool) -> list[Path]:
    """Writes the workflows of a LoRA file next to it, and returns their paths; none for a model that is smaller than a
    published one, or not known to ComfyUI, which is logged.

    edits, plain: whether some images were trained with control images, and without. Never raises for a disk that
    refuses: the LoRA is saved.
    """
    family, folder = family_for(section.model), model_folder(section.model)
    if family.block_count(folder) < LARGE_MODEL_BLOCKS:
        return []
    title = title_of(section.model, family)
    if title not in FILES:
        logger.info(f"no ComfyUI workflow for {title}: {NO_WORKFLOW.get(title, 'its files there are not known')}.")
        return []
    written = []
    for ending, with_images in ((FROM_TEXT, False), (WITH_IMAGES, True)):
        wanted = edits and family.max_references > 0 if with_images else plain and not family.min_references
        path = file.with_name(f"{file.stem}{ending}.json")
        if not wanted:
            continue
        if path.exists() and not is_own(path):
            logger.warning(f"{path} is not from this program, so it stays as it is, and no workflow is written there.")
            continue
        contents = workflow(file.name, section, title, with_images, _shift(section, with_images))
        try:
            with atomic_write(path) as temporary:
                temporary.write_text(json.dumps(contents, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        except OSError as error:
            logger.warning(f"{path.name} was not written: {error.strerror or error}")
            continue
        written.append(path)
    return written


def _shift(section: DiffusionSection, with_images: bool) -> float:
    """The factor by which the job's own samples shift their noise levels, by the size of the image."""
    picture, family = _picture(section, with_images), family_for(section.model)
    if picture and picture.flow_shift:
        return picture.flow_shift
    size = Size(picture.width, picture.height) if picture else SIDE
    steps = (picture.sample_steps if picture else None) or family.sample_steps
    tokens = family.tokens(family.latent_size(size))
    return round(math.exp(dynamic_shift(model_folder(section.model)).mu(tokens, steps)), 2)


SIDE = Size(1024, 1024)
"""Size of the image where a job has no samples."""


def is_own(path: Path) -> bool:
    """Whether a file is a workflow as this program wrote it, unchanged."""
    found = read_object(path)
    extra = found.get("extra")
    return isinstance(extra, dict) and extra.get(MARK) == _digest(found)


def _digest(contents: dict[str, Any]) -> str:
    rest = {key: value for key, value in contents.items() if key != "extra"}
    return sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()[:32]


def _picture(section: DiffusionSection, with_images: bool) -> SamplePicture | None:
    """The sample that a workflow takes its settings from: the first of its kind, else the first."""
    pictures = section.sample_pictures()
    return next((one for one in pictures if bool(one.ctrl_img) == with_images), next(iter(pictures), None))


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
        outputs: Sequence[tuple[str, str]],
        widgets: Sequence[Any] = (),
        title: str = "",
    ) -> list[Slot]:
        """Adds a node and its incoming links, and returns its outputs. outputs: names and types."""
        node = len(self.nodes) + 1
        slots = []
        for place, (name, source) in enumerate(inputs.items()):
            link = None
            if source:
                link = len(self.links) + 1
                self.links.append([link, source[0], source[1], node, place, source[2]])
                self.nodes[source[0] - 1]["outputs"][source[1]]["links"].append(link)
            slots.append({"name": name, "type": source[2] if source else "IMAGE", "link": link})
        ends = [
            {"name": name, "type": of, "links": [], "slot_index": place} for place, (name, of) in enumerate(outputs)
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
        filled = {"properties": {"Node name for S&R": kind}, "widgets_values": list(widgets)}
        self.nodes.append({**shown, "inputs": slots, "outputs": ends, **named, **filled})
        return [(node, place, of) for place, (_, of) in enumerate(outputs)]

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


def workflow(file: str, section: DiffusionSection, title: str, with_images: bool, shift: float) -> dict[str, Any]:
    """The workflow of a LoRA file as ComfyUI reads it.

    file: its name. title: a key of `FILES`. shift: factor of the noise levels, as ModelSamplingAuraFlow has it.
    """
    picture, family, graph = _picture(section, with_images), family_for(section.model), _Graph()
    of_model = _files(section, title)
    is_21, encoder = title == "Qwen-Image-2.1", ENCODERS.get(title, "CLIPTextEncode")
    guidance = family.guidance if picture is None or picture.guidance_scale is None else picture.guidance_scale
    steps = (picture.sample_steps if picture else None) or family.sample_steps
    width, height = (picture.width, picture.height) if picture else SIDE
    prompt = _text(section, picture.prompt if picture else section.trigger_word or "a photo")
    negative = _text(section, picture.neg if picture else "")

    graph.add("MarkdownNote", (0, -60), (320, 420), {}, [], [_note(file, section, title, family, with_images)])
    (model,) = graph.add(
        "UNETLoader", (360, 0), (360, 82), {}, [("MODEL", "MODEL")], [of_model.diffusion_model, "default"]
    )
    (clip,) = graph.add(
        "CLIPLoader", (360, 140), (360, 106), {}, [("CLIP", "CLIP")], [of_model.text_encoder, "qwen_image", "default"]
    )
    (vae,) = graph.add("VAELoader", (360, 300), (360, 58), {}, [("VAE", "VAE")], [of_model.vae])
    for place, (name, strength) in enumerate([*_base_loras(section), (file, 1.0)]):
        at = (760, -140 * len(section.model.base_loras) + 140 * place)
        (model,) = graph.add(
            "LoraLoaderModelOnly", at, (340, 82), {"model": model}, [("MODEL", "MODEL")], [name, strength]
        )
    if not is_21:
        (model,) = graph.add(
            "ModelSamplingAuraFlow", (1140, 0), (300, 58), {"model": model}, [("MODEL", "MODEL")], [shift]
        )
    if guidance > 1 and not is_21:
        (model,) = graph.add("CFGNorm", (1140, 110), (300, 82), {"model": model}, [("patched_model", "MODEL")], [1.0])

    images = _images(graph, picture, family) if with_images else []
    if is_21:
        inputs = {"clip": clip, "vae": vae}
        inputs |= {f"images.image_{number}": image for number, image in enumerate(images, start=1)}
        ends = [("positive", "CONDITIONING"), ("negative", "CONDITIONING"), ("latent", "LATENT")]
        positive, negated, _ = graph.add(
            encoder, (760, 140), (340, 300), inputs, ends, [prompt, negative, _reference_side(section, width * height)]
        )
    else:
        positive, negated = (
            _encoded(graph, encoder, title, text, clip, vae, images, row)
            for row, text in enumerate((prompt, negative or family.empty_negative))
        )
    empty = "EmptyLatentImage" if is_21 else "EmptySD3LatentImage"
    (latent,) = graph.add(empty, (1140, 250), (300, 106), {}, [("LATENT", "LATENT")], [width, height, 1])
    sampled = {"model": model, "positive": positive, "negative": negated, "latent_image": latent}
    seed = picture.seed if picture else 42
    settings = [seed, "fixed", steps, guidance, "euler", "simple", 1.0]
    (latent,) = graph.add("KSampler", (1480, 0), (300, 262), sampled, [("LATENT", "LATENT")], settings)
    (image,) = graph.add("VAEDecode", (1480, 310), (300, 46), {"samples": latent, "vae": vae}, [("IMAGE", "IMAGE")], [])
    graph.add("SaveImage", (1820, 0), (420, 460), {"images": image}, [], [file.removesuffix(".safetensors")])
    return graph.to_json()


def _encoded(
    graph: _Graph, encoder: str, title: str, text: str, clip: Slot, vae: Slot, images: Sequence[Slot], row: int
) -> Slot:
    """The conditioning of a prompt, or (row 1) of the negative one."""
    inputs = {"clip": clip}
    if encoder != "CLIPTextEncode" and images:
        names = ["image"] if encoder == "TextEncodeQwenImageEdit" else [f"image{n}" for n in range(1, MOST_IMAGES + 1)]
        inputs |= {"vae": vae, **dict(zip(names, images, strict=False))}
    name, at = ("negative prompt", (760, 360)) if row else ("prompt", (760, 140))
    ends = [("CONDITIONING", "CONDITIONING")]
    (found,) = graph.add(encoder, at, (340, 180), inputs, ends, [text], name)
    if images and title == "Qwen-Image-Edit-2511":  # its control images are modulated at t = 0
        method, at = "FluxKontextMultiReferenceLatentMethod", (760, 680 if row else 580)
        (found,) = graph.add(method, at, (340, 58), {"conditioning": found}, ends, ["index_timestep_zero"])
    return found


def _images(graph: _Graph, picture: SamplePicture | None, family: ModelFacts) -> list[Slot]:
    """A node for each control image of a sample; one without."""
    names = [Path(path).name for path in picture.ctrl_img] if picture else []
    found = []
    for place, name in enumerate((names or ["control image.png"])[: min(MOST_IMAGES, family.max_references)]):
        ends = [("IMAGE", "IMAGE"), ("MASK", "MASK")]
        title = f"control image {place + 1}"
        found.append(graph.add("LoadImage", (360, 420 + 380 * place), (360, 330), {}, ends, [name, "image"], title)[0])
    return found


def _files(section: DiffusionSection, title: str) -> ModelFiles:
    """The names of the model's files: those that the job gives as single files, else the published ones."""
    own = {part: file.name for part, file in single_files(section.model).items() if file.suffix == ".safetensors"}
    published = FILES[title]
    return ModelFiles(
        own.get("transformer", published.diffusion_model),
        own.get("text_encoder", published.text_encoder),
        own.get("vae", published.vae),
    )


def _base_loras(section: DiffusionSection) -> Iterator[tuple[str, float]]:
    for lora in section.model.base_loras:
        yield Path(lora.path).name, lora.multiplier


def _text(section: DiffusionSection, text: str) -> str:
    return inject_trigger(text, section.trigger_word, add=False)


def _reference_side(section: DiffusionSection, pixels: int) -> int:
    """Side of the square that a control image of 2.1 is scaled to, in steps of 32. pixels: of the target."""
    area = section.model.model_kwargs.reference_area() or pixels
    return max(32, round(math.sqrt(area) / 32) * 32)


def _note(file: str, section: DiffusionSection, title: str, family: ModelFacts, with_images: bool) -> str:
    """What the reader of a workflow does first."""
    of_model, pictures = _files(section, title), section.sample_pictures()
    prompts = [_text(section, one.prompt) for one in pictures if bool(one.ctrl_img) == with_images][1:9]
    lines = [
        f"## {file.removesuffix('.safetensors')}",
        f"A LoRA of {title}. Put the files here, then press R:",
        *(f"- `models/loras/{name}`" for name in (*(name for name, _ in _base_loras(section)), file)),
        f"- `models/diffusion_models/{of_model.diffusion_model}`",
        f"- `models/text_encoders/{of_model.text_encoder}`",
        f"- `models/vae/{of_model.vae}`",
        "",
        "Other files of the same model fit too: choose them in the loaders.",
    ]
    if section.trigger_word:
        lines.append(f"The prompt needs the trigger word: `{section.trigger_word}`.")
    if with_images:
        lines.append("Choose your picture in each node named *control image*.")
    if prompts:
        lines += ["", "Other prompts of the job:", *(f"- {prompt}" for prompt in prompts)]
    return "\n".join(lines)
