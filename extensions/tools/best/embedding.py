"""Image and text embeddings of CLIP and DINOv2, and distances of samples by them.

A model is loaded frozen, from a folder or from the hub; nothing is trained. `best`
compares samples with the training images, and with their prompts where the model reads
text.

Shape suffixes: N images or texts, D width of an embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from toolkit.config.sections.model_files import quantization_fault
from toolkit.data.pixels.images import over_white, to_tensor
from toolkit.errors import UserError
from toolkit.models.hub import download_encoder
from toolkit.models.loading import NO_CODE, reading
from toolkit.system.device import check_device

KEY = "embedder"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's, where the model's files name none."""


class Embedder:
    """A frozen CLIP or DINOv2.

    Example::

        embedder = Embedder("facebook/dinov2-base", "cpu", torch.device("cpu"))
        distance(embedder.images(samples), embedder.images(photos))
    """

    def __init__(self, name: str, device: str, at: torch.device) -> None:
        """Loads the model. name: hub id or folder. device: the `device` key of the
        section. at: the device that it stands for.

        Raises UserError for a model that is neither a CLIP nor a DINOv2, and RunError
        for files that cannot be used.
        """
        from transformers import AutoConfig, AutoModel, AutoTokenizer
        from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

        folder = Path(name).expanduser()
        if not folder.is_dir():
            folder = download_encoder(name, KEY)
        files = folder.glob("*.safetensors")
        check_device(device, sum(file.stat().st_size for file in files))
        fault = quantization_fault(folder, KEY)
        if fault:
            raise UserError(f"{KEY}: {fault}")
        with reading(folder):
            config = AutoConfig.from_pretrained(folder, **NO_CODE)
        if config.model_type not in ("clip", "dinov2"):
            raise UserError(
                f"{KEY}: {name!r} is {config.model_type!r}. Give a CLIP or a DINOv2."
            )
        with reading(folder):
            model: Any = AutoModel.from_pretrained(
                folder, use_safetensors=True, **NO_CODE
            )
            self.reads_text = config.model_type == "clip"
            if self.reads_text:
                self._tokenizer = AutoTokenizer.from_pretrained(folder, **NO_CODE)
        self._model = model.requires_grad_(False).eval().to(at)
        self._at = at
        # 224 is the side of DINOv2's preprocessor. The model interpolates its positions
        # of 518.
        self._side = config.vision_config.image_size if self.reads_text else 224
        clip = OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
        self._normalisation = clip if self.reads_text else (MEAN, STD)

    @torch.no_grad()
    def images(self, pictures: Sequence[Image.Image]) -> Tensor:
        """The embeddings [N, D] of the squares in the middle of images, each of length
        1."""
        rows = []
        for picture in pictures:
            pixels = self._pixels(picture)
            if self.reads_text:
                rows.append(self._model.get_image_features(pixel_values=pixels))
            else:
                rows.append(self._model(pixel_values=pixels).last_hidden_state[:, 0])
        return _units(rows)

    @torch.no_grad()
    def texts(self, prompts: Sequence[str]) -> Tensor:
        """The embeddings [N, D] of prompts, each of length 1, by a CLIP. A prompt is cut
        off at the length that it reads."""
        rows = []
        for prompt in prompts:
            ids = self._tokenizer(
                prompt, truncation=True, max_length=77, return_tensors="pt"
            )
            rows.append(self._model.get_text_features(**ids.to(self._at)))
        return _units(rows)

    def _pixels(self, picture: Image.Image) -> Tensor:
        side = min(picture.size)
        left = (picture.width - side) // 2
        top = (picture.height - side) // 2
        square = over_white(picture).crop((left, top, left + side, top + side))
        resized = square.resize((self._side, self._side), Image.Resampling.BICUBIC)
        values = to_tensor(resized) / 2 + 0.5
        mean, std = map(torch.tensor, self._normalisation)
        standard = (values - mean[:, None, None]) / std[:, None, None]
        return standard[None].to(self._at)


def _units(rows: Sequence[Any]) -> Tensor:
    """[N, D], each of length 1. rows: tensors [1, D], or outputs of a model that have
    one."""
    tensors = (row if isinstance(row, Tensor) else row.pooler_output for row in rows)
    units = [functional.normalize(row.float().cpu(), dim=-1) for row in tensors]
    return torch.cat(units)


def distance(samples_ND: Tensor, images_ND: Tensor) -> float:
    """1 - the mean cosine of all pairs, in [0, 2]. Source: Ruiz et al. 2022,
    arXiv:2208.12242, section 4.1 (DINO and CLIP-I scores).

    >>> distance(torch.eye(2), torch.eye(2))
    0.5
    """
    return 1 - float((samples_ND @ images_ND.T).mean())


def adherence(samples_ND: Tensor, prompts_ND: Tensor) -> float:
    """The mean cosine of samples and their own prompts, in [-1, 1]. Source: as in
    `distance` (CLIP-T)."""
    return float((samples_ND * prompts_ND).sum(1).mean())
