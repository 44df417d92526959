"""Makes an accuracy-recovery adapter while the model is loaded, layer by layer, and
measures its effect.

It trains no LoRA on images: the adapter is computed from the error of each layer.
`type: ara` and `run.py ara` run it; its section is in `config`.
"""

from __future__ import annotations

import gc
import json
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from extensions.tools.ara.config import AraConfig
from jobs.process import BaseExtensionProcess
from toolkit.config.sections.model import ModelConfig
from toolkit.contracts.data import Size
from toolkit.contracts.model import DiffusionModel
from toolkit.data.batches.latent_cache import (
    CacheEntry,
    CachePair,
    ItemEncoder,
    encode_items,
    fill_texts,
)
from toolkit.data.scan.validation_split import scan_and_split
from toolkit.files.log import StatusLine
from toolkit.files.safetensors_io import is_own_file
from toolkit.files.tensor_cache import TensorCache
from toolkit.files.writing import require_own
from toolkit.memory.block_runner import BlockRunner
from toolkit.memory.quantization import MakeLowRank
from toolkit.models.families import model_bytes
from toolkit.models.loading import checked_family
from toolkit.system.device import DTYPES, check_device, pick_device, use_device
from toolkit.train.base_model import load_base_model
from toolkit.train.recovery import RecoveryMaker
from toolkit.train.sampling import SamplePrompt, Sampler
from toolkit.train.validation import Validator

logger = logging.getLogger(__name__)

PROMPT, SIDE, STEPS = "a photo of a mountain lake at noon", 512, 8
"""The image that is compared end to end."""

TIMESTEPS = 4
"""Noise levels at which layers see the images of `calibrate`."""


class AraProcess(BaseExtensionProcess):
    """Loads the model up to three times, one after the other: unquantized, quantized,
    and with the adapter.

    Example::

        python run.py ara output/recovery.safetensors --model models/qwen --qtype int4
    """

    section: AraConfig

    def run(self) -> None:
        super().run()
        section, model = self.section, self.section.quantized()
        self._family = checked_family(model)
        check_device(section.device, model_bytes(model))
        self._device = use_device(pick_device(section.device))
        self._dtype = DTYPES[section.dtype]
        self._stores = CachePair(TensorCache(None), TensorCache(None))
        self._status = StatusLine()
        images = []
        if section.measure:
            unquantized = model.model_copy(update={"quantize": False})
            images.append(self._image(self._load(unquantized)))
        moments: Mapping[str, Tensor] = {}
        if section.measure or section.calibrate:
            plain = self._load(model)
            if section.calibrate:
                moments = self._moments(plain)
            if section.measure:
                images.append(self._image(plain))
            del plain
        gc.collect()
        maker = RecoveryMaker(section.rank, moments)
        recovered = self._load(model, maker)
        errors = {kind: list(error) for kind, error in maker.by_kind().items()}
        if section.measure:
            whole, without, with_adapter = *images, self._image(recovered)
            errors["image"] = [
                _relative_error(without, whole),
                _relative_error(with_adapter, whole),
            ]
        self._status.finish()
        for kind, (before, after) in errors.items():
            logger.info(f"{kind}: error {before:.4f} -> {after:.4f}")
        metadata = {
            "qtype": model.qtype,
            "base_model": model.public_name(),
            "mean_errors": json.dumps(errors),
        }
        require_own(section.output_path(), is_own_file)
        maker.write(section.output_path(), metadata)
        logger.info(
            f"{section.output_path()}: use it with qtype: {model.qtype}|{section.output_path()}"
        )

    def _load(
        self, model: ModelConfig, make: MakeLowRank | None = None
    ) -> DiffusionModel:
        """A model whose transformer is loaded, ready to compute."""
        loaded = load_base_model(model, self._device, self._dtype, make=make)
        texts: list[Sequence[CacheEntry]] = []
        if self.section.measure:
            # before the transformer needs the memory
            self._sampler(loaded).encode(lambda *_: None, texts)
        if self.section.calibrate and make is None:
            self._calibration(loaded, texts)
        fill_texts(texts, loaded)
        loaded.unload_encoders()
        what = model.qtype if model.quantize else "the whole model"
        self._status.update(f"loading {what}")
        BlockRunner(loaded, self._device, self._dtype, "none", model.blocks_to_swap)
        return loaded

    def _sampler(self, model: DiffusionModel) -> Sampler:
        size = self._family.drawable(Size(SIDE, SIDE))
        prompt = SamplePrompt(PROMPT, "", size, seed=0, guidance_scale=1.0, steps=STEPS)
        return Sampler(model, [prompt], ItemEncoder(model, self._dtype), self._stores)

    def _image(self, model: DiffusionModel) -> Tensor:
        """Its latents, on the CPU."""
        return self._sampler(model).latents(0).cpu()

    def _calibration(
        self, model: DiffusionModel, later: list[Sequence[CacheEntry]] | None = None
    ) -> Validator:
        _, items, _ = scan_and_split(self.section.calibration(), self._family)
        images = items[: self.section.images]
        dataset = encode_items(
            images, model, lambda _: self._stores, self._dtype, later=later
        )
        return Validator(model, dataset, TIMESTEPS)

    def _moments(self, model: DiffusionModel) -> dict[str, Tensor]:
        """E[x_i^2] of the inputs of each layer that is quantized, over all tokens of
        the images of `calibrate`."""
        sums: dict[str, Tensor] = {}
        rows: dict[str, int] = defaultdict(int)

        def observe(name: str, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x_MI = inputs[0].detach().flatten(0, -2).float()
            squares_I = x_MI.square().sum(0)
            sums[name] = sums[name] + squares_I if name in sums else squares_I
            rows[name] += len(x_MI)

        names = self._family.linear_layers(self.section.model.files_folder())
        hooks = [
            model.network_module.get_submodule(name).register_forward_pre_hook(
                partial(observe, name)
            )
            for name in names
        ]
        self._status.update("calibrating")
        with torch.no_grad():
            self._calibration(model).losses()
        for hook in hooks:
            hook.remove()
        return {name: total / rows[name] for name, total in sums.items()}


def _relative_error(image: Tensor, whole: Tensor) -> float:
    """The distance of an image to the image of the unquantized model, divided by its
    norm."""
    return float((image - whole).norm() / whole.norm())
