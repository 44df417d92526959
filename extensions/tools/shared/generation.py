"""Generates images with a model and LoRA files, whose strengths may differ per image.

All texts are encoded before the transformer is loaded, and then their encoder is freed.
Small images come first, and images that exist already are not generated again. What an
image shows is decided by its settings alone (`image_files.Settings`). Prompts are not
read here: `picture_config` does that.

`generate` and `grid` draw their images with a `PictureMaker`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from extensions.tools.shared.image_files import (
    LATENTS,
    picture_name,
    read_latents,
    write_latents,
    write_picture,
)
from extensions.tools.shared.keys import split_strength
from extensions.tools.shared.picture_config import LIGHTNING_SHIFT, PicturesConfig
from extensions.tools.shared.run_job import decoder_note
from toolkit.config.sections.model import ModelConfig
from toolkit.config.sections.model_files import ModelFolder
from toolkit.config.sections.output import SampleItem
from toolkit.contracts.model import DiffusionModel, ModelFacts
from toolkit.data.batches.latent_cache import (
    CacheEntry,
    CachePair,
    ItemEncoder,
    fill_texts,
)
from toolkit.data.scan.captions import inject_trigger
from toolkit.errors import RunError, UserError
from toolkit.files.log import StatusLine
from toolkit.files.tensor_cache import TensorCache
from toolkit.files.writing import free_space, readable_size, sha256_of
from toolkit.flow.sampler import resampled
from toolkit.memory.block_runner import BlockRunner
from toolkit.memory.compiling import Programs, check_backend, decide_compiling
from toolkit.memory.offload import BlockSwap
from toolkit.models.families import model_bytes
from toolkit.models.loading import base_hashes, checked_family
from toolkit.models.vae_files import VAE_ENCODER
from toolkit.networks.applied import AppliedAdapters
from toolkit.networks.lora_formats import LayerDelta, load_adapter_file
from toolkit.system.device import (
    DTYPES,
    check_device,
    is_out_of_memory,
    pick_device,
    use_device,
)
from toolkit.train.base_model import load_base_model
from toolkit.train.sampling import SamplePrompt, Sampler, drawn, write_layers

logger = logging.getLogger(__name__)

FILES_IN_MEMORY = 4
"""LoRA files that are kept in memory in float32. The least recently used one is dropped
and read again when it is needed."""


@dataclass(frozen=True)
class LoraFile:
    """A LoRA file with its strength.

    Example::

        lora = LoraFile.of("output/my_character.safetensors:0.8")
        lora.strength  # 0.8
    """

    path: str
    strength: float
    sha256: str

    @classmethod
    def of(cls, text: str, strength: float | None = None) -> LoraFile:
        """Reads `FILE[:STRENGTH]`. strength: takes precedence over the one in the
        text."""
        path, written_strength = split_strength(text)
        chosen = written_strength if strength is None else strength
        return cls(path, chosen, sha256_of(Path(path).expanduser()))


@dataclass(frozen=True)
class Picture:
    """An image to generate.

    Example::

        picture = maker.picture(item, seed=42, cfg=4.0, loras=[lora])
        print(picture.name)  # the name of its file, with a hash of all settings
    """

    prompt: SamplePrompt
    loras: tuple[LoraFile, ...]
    settings: dict[str, Any]
    """`extensions.tools.shared.image_files.Settings`."""

    @property
    def name(self) -> str:
        """Name of its file."""
        return picture_name(self.settings)

    @property
    def cost(self) -> int:
        """Pixels that all its passes compute. Cheap images are generated first, so that
        many are seen soon."""
        width, height = self.prompt.size
        return width * height * self.prompt.steps * (1 + self.prompt.guided)


class PictureMaker:
    """Generates images by the keys of a section.

    Example::

        loras = [LoraFile.of(text) for text in section.lora]
        maker = PictureMaker(section, [lora.path for lora in loras])
        item = section.items()[0]
        maker.make([maker.picture(item, 42, maker.cfg_of(item), loras)])
    """

    def __init__(
        self,
        section: PicturesConfig,
        loras: Sequence[str],
        suffixes: Sequence[str] = (".png",),
    ) -> None:
        """Reads the LoRA files. The model is loaded when it is needed. loras: all files
        that images may use. suffixes: the files of each image, .png and LATENTS.

        Raises UserError for a LoRA of another model, for a LoRA whose model is unknown,
        and for a device that does not exist.
        """
        self.config: ModelConfig = section.found_model()
        if section.model is None:
            note = decoder_note(Path(split_strength(section.lora[0])[0]).expanduser())
            if note:
                logger.info(note)
        self.section = section = section.model_copy(update={"model": self.config})
        self.family: ModelFacts = checked_family(self.config)
        check_device(section.device, model_bytes(self.config))
        self.files = tuple(dict.fromkeys(loras))
        family = checked_family(self.config)
        folder = self.config.files_folder()
        layers = family.every_linear_layer(folder)
        weights = family.weight_shapes(folder)
        read = partial(load_adapter_file, layers=layers, weights=weights)

        @lru_cache(FILES_IN_MEMORY)
        def changes(path: str) -> dict[str, LayerDelta]:
            return read(Path(path).expanduser())

        self.changes: Callable[[str], dict[str, LayerDelta]] = changes
        """The changes of a file. Not all files of a long run fit into memory
        together."""
        for path in self.files:
            self.changes(path)
        self.folder = Path(section.output).expanduser()
        self._suffixes = tuple(suffixes)
        self.base: dict[str, str] = {
            part: digest[:16]
            for part, digest in base_hashes(self.config).items()
            if part != VAE_ENCODER
        }
        self.keeps_encoders = False
        """Whether the text encoder stays once prompts are encoded, for further ones."""
        self._status = StatusLine()
        self._stores = CachePair(TensorCache(None), TensorCache(None))
        self._model: DiffusionModel | None = None
        self._adapters: AppliedAdapters | None = None
        self._programs = Programs()
        self._in_use: list[tuple[str, float]] = []

    def cfg_of(self, item: SampleItem, given: float | None = None) -> float:
        """The guidance scale of an item: its own, else the given one, else the model's
        default."""
        if item.guidance_scale is not None:
            return item.guidance_scale
        if given is not None:
            return given
        return 1.0 if self.section.lightning else self.family.guidance

    def picture(
        self, item: SampleItem, seed: int, cfg: float, loras: Sequence[LoraFile] = ()
    ) -> Picture:
        """An image of one item. Settings that the item does not give come from the
        section. Raises UserError for a size that the model cannot generate."""
        section = self.section
        fast = section.lightning
        shift = section.flow_shift
        if fast and "flow_shift" not in section.model_fields_set:
            shift = LIGHTNING_SHIFT
        steps = item.sample_steps or section.steps or fast or self.family.sample_steps
        negative = section.negative if item.neg is None else item.neg
        references = item.ctrl_img or section.reference
        prompt = SamplePrompt(
            prompt=inject_trigger(item.prompt, section.trigger_word, add=False),
            negative=inject_trigger(negative, section.trigger_word, add=False),
            size=section.size_of(item, self.family),
            seed=seed,
            guidance_scale=cfg,
            steps=steps,
            levels=() if fast else resampled(self.family.sample_sigmas, steps),
            references=tuple(Path(path).expanduser() for path in references),
            flow_shift=item.flow_shift or shift,
            stretched=not fast,
            layers=(item.layers or section.layers) if self.family.stacks_layers else 0,
        )
        settings: dict[str, Any] = {
            "prompt": prompt.prompt,
            "negative": prompt.negative,
            "width": prompt.size.width,
            "height": prompt.size.height,
            "seed": seed,
            "cfg": float(cfg),
            "steps": prompt.steps,
            "flow_shift": prompt.flow_shift,
            "lightning": fast,
            "reference": [
                {"path": str(path), "sha256": sha256_of(Path(path).expanduser())}
                for path in references
            ],
            "lora": [asdict(lora) for lora in loras],
            "model": self.config.model_dump(mode="json", exclude_unset=True),
            "base": self.base,
            "dtype": section.dtype,
        }
        if prompt.levels:
            settings["levels"] = list(prompt.levels)
        if prompt.layers:
            settings["layers"] = prompt.layers
        return Picture(prompt, tuple(loras), settings)

    def make(
        self,
        pictures: Sequence[Picture],
        after_each: Callable[[Picture, Path], None] = lambda *_: None,
    ) -> int:
        """Writes the images that do not exist yet, the cheapest first, and returns how
        many. after_each: called with each image and its first file."""
        by_name = {picture.name: picture for picture in pictures}
        wanted = [
            picture
            for picture in by_name.values()
            if self.section.overwrite
            or not all(path.exists() for path in self._paths(picture))
        ]
        there = len(by_name) - len(wanted)
        if there:
            logger.info(
                f"{there} of these images exist in {self.folder} already (--overwrite generates them again)"
            )
        todo = sorted(wanted, key=lambda picture: picture.cost)
        if not todo:
            return 0
        sizes = [(p.prompt.size.width, p.prompt.size.height) for p in todo]
        note = ModelFolder(self.config.files_folder()).size_note(sizes)
        if note:
            logger.warning(note)
        self._check_room(todo)
        with _advice():
            self._draw(todo, after_each)
        return len(todo)

    def _paths(self, picture: Picture) -> list[Path]:
        """The files of an image. The first one is shown to the user."""
        path = self.folder / picture.name
        return [path.with_suffix(suffix) for suffix in self._suffixes]

    def _draw(
        self, todo: Sequence[Picture], after_each: Callable[[Picture, Path], None]
    ) -> None:
        """Generates and writes the images. All texts and control images are encoded
        before the transformer is loaded."""
        device = use_device(pick_device(self.section.device))
        dtype = DTYPES[self.section.dtype]
        qtype = self.config.qtype if self.config.quantize else ""
        if self._model is None:
            logger.info(f"device {device}, {self.section.dtype}")
            check_backend(self.section.compile, device, qtype)
            self._model = load_base_model(self.config, device, dtype)
        model = self._model

        def watch(index: int, step: int, steps: int) -> bool:
            self._status.update(f"image {index + 1}/{len(todo)} step {step}/{steps}")
            return False

        prompts = [picture.prompt for picture in todo]
        sampler = Sampler(
            model, prompts, ItemEncoder(model, dtype), self._stores, watch=watch
        )
        texts: list[Sequence[CacheEntry]] = []
        sampler.encode(self._status.count, texts)
        fill_texts(texts, model, self._status.count, stays=self.keeps_encoders)
        self._status.finish()
        if not self.keeps_encoders:
            model.unload_encoders(keep=model.family.encoder_parts["vae"])
        if self._adapters is None:
            self._adapters = AppliedAdapters(
                model.network_module, map(self.changes, self.files), device
            )
            reason = model.enable_modulation_cache(BlockSwap)
            if reason:
                logger.info(f"model.modulation_table: not possible here, {reason}")
            is_compiled = decide_compiling(self.section.compile, device, qtype)
            compiling = (
                self.section.compile.for_sizes(len(todo) > 1) if is_compiled else None
            )
            runner = BlockRunner(
                model, device, dtype, "none", self.config.blocks_to_swap, compiling
            )
            self._programs = runner.programs

        for index, picture in enumerate(todo):
            chosen = [(lora.path, lora.strength) for lora in picture.loras]
            if chosen != self._in_use:
                self._adapters.use(
                    [(self.changes(path), strength) for path, strength in chosen]
                )
                self._in_use = chosen
            latents_BCHW = self._programs.whole(sampler.latents, index)
            paths = self._paths(picture)
            for path in paths:
                if path.suffix == LATENTS:
                    write_latents(
                        path, latents_BCHW, picture.settings, self.section.metadata
                    )
                else:
                    image = drawn(model, latents_BCHW, picture.prompt.layers)
                    write_picture(path, image, picture.settings, self.section.metadata)
                    write_layers(path.parent, path.stem, image, picture.prompt.layers)
            self._status.finish()
            logger.info(f"{index + 1}/{len(todo)} {paths[0]}")
            after_each(picture, paths[0])

    def decode(self, files: Sequence[Path]) -> None:
        """Writes the images of files with latents, named after them. Images that exist
        are kept unless `overwrite`. Only the VAE of the model is loaded."""
        device = use_device(pick_device(self.section.device))
        dtype = DTYPES[self.section.dtype]
        model = load_base_model(self.config, device, dtype)
        for file in files:
            path = self.folder / f"{file.stem}.png"
            if path.exists() and not self.section.overwrite:
                logger.info(f"{path} exists already (--overwrite writes it again)")
                continue
            latents_BCHW, settings = read_latents(file)
            layers = int(settings.get("layers", 0))
            with _advice():
                image = drawn(model, latents_BCHW, layers)
            write_picture(
                path, image, settings, self.section.metadata and bool(settings)
            )
            write_layers(path.parent, path.stem, image, layers)
            logger.info(f"{path}")

    def _check_room(self, todo: Sequence[Picture]) -> None:
        """Raises UserError where the disk has no room for the images, which take at
        most 3 bytes per pixel, and latents 1."""
        per_pixel = sum(1 if suffix == LATENTS else 3 for suffix in self._suffixes)
        sizes = [picture.prompt.size for picture in todo]
        needed = per_pixel * sum(size.width * size.height for size in sizes)
        free = free_space(self.folder)
        if free < needed:
            need = f"{len(todo)} images take up to {readable_size(needed)}"
            raise UserError(
                f"{self.folder}: {need}, the disk has {readable_size(free)} free. Give another folder."
            )


@contextmanager
def _advice() -> Iterator[None]:
    """Turns an error of memory that runs out into a RunError that says what to do."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        remedy = "Give --quantize with a smaller --qtype, --blocks-to-swap, --low-vram, or a smaller size."
        reason = next(iter(str(error).splitlines()), "")
        details = f" ({reason})" if reason else ""
        raise RunError(f"out of memory{details}. {remedy}") from error
