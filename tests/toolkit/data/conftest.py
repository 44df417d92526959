"""Datasets made on the spot, a stand-in for the `datasets[]` section of a job, a model
family of a few lines."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d

from tests.toolkit.data.shard_server import write_tar
from toolkit.config.sections.dataset import ColumnsConfig
from toolkit.config.sections.trainer import ImageTrainingSection
from toolkit.contracts.data import Size
from toolkit.contracts.model import DiffusionModel
from toolkit.data.scan.folder import scan_datasets
from toolkit.data.streams.stream_dataset import StreamDataset
from toolkit.errors import DataErrors, RunError
from toolkit.models.qwen_image.family import FAMILY


def make_image(
    path: Path, width: int = 64, height: int = 48, colour: str = "red"
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), colour).save(path)
    return path


def make_images(paths: Iterable[Path]) -> None:
    """Makes an image at each of these paths."""
    for path in paths:
        make_image(path)


def refusal(*arguments, **options) -> DataErrors:
    """The errors with which `scan_datasets` refuses these arguments."""
    with pytest.raises(DataErrors) as caught:
        scan_datasets(*arguments, **options)
    return caught.value


def make_files(folder: Path, files: Mapping[str, str] | Iterable[str]) -> Path:
    """Makes files in a folder: an image for the name of one, else a text file. files:
    names, or name -> text."""
    texts = files if isinstance(files, Mapping) else dict.fromkeys(files, "")
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".png", ".jpg"):
            make_image(path)
        else:
            path.write_text(text)
    return folder


def make_dataset(folder: Path | str, **changes) -> SimpleNamespace:
    section = {
        "folder_path": str(folder),
        "num_repeats": None,
        "caption_ext": (".txt",),
        "default_caption": "",
        "captions_file": None,
        "columns": ColumnsConfig(),
        "captions": "one",
        "caption_prefix": "",
        "caption_dropout_rate": 0.0,
        "shuffle_tokens": False,
        "keep_tokens": 0,
        "trigger_word": None,
        "resolution": (512,),
        "control_path": (),
        "control_suffix": (),
        "image_suffix": "",
        "control_optional": False,
        "mask_path": None,
        "mask_suffix": "",
        "layers_suffix": "",
        "mask_optional": False,
        "alpha_mask": False,
        "mask_min_value": 0.0,
        "invert_mask": False,
        "flip_x": False,
        "is_reg": False,
        "background": "white",
    }
    assert set(changes) <= set(section)
    changes |= (
        {"columns": ColumnsConfig.model_validate(changes["columns"])}
        if "columns" in changes
        else {}
    )
    section |= changes
    key = "control_suffix" if section["control_suffix"] else "control_path"
    derived = {
        "canvas": changes.get("background", ""),
        "references": (key, section[key]),
        "place": str(folder),
    }
    return SimpleNamespace(**section, **derived)


class FakeModel(DiffusionModel):
    """The "VAE" averages 8 x 8 pixels, the "text encoder" hashes words. Counts its
    calls.

    Encoders that were dropped refuse to work.
    """

    family = FAMILY
    dynamic_shift = network_module = None

    def __init__(self, vae: str = "vae-1", text_encoder: str = "te-1") -> None:
        self.identities = {"vae": vae, "text_encoder": text_encoder}
        self.calls: Counter[str] = Counter()
        self.prompts: list[tuple[str, int]] = []
        self.dropped = False
        self.reference_scale = 1

    def cache_key(self, part: str) -> str:
        return self.identities[part]

    def reference_size(self, image: Size, target: Size) -> Size:
        long, short = 64 * self.reference_scale, 32 * self.reference_scale
        return Size(long, short) if image.width > image.height else Size(short, long)

    def encode_images(self, pixels_BCHW: Tensor) -> Tensor:
        self._work("images")
        return avg_pool2d(pixels_BCHW, 8)

    def encode_prompt(self, prompt: str, references: Sequence[Image.Image]) -> Tensor:
        self._work("prompts")
        self.prompts.append((prompt, len(references)))
        words = [f"<{image.size}>" for image in references] + prompt.split() + ["<end>"]
        return torch.tensor(
            [
                [byte / 255 for byte in hashlib.sha256(w.encode()).digest()[:4]]
                for w in words
            ]
        )

    def unload_encoders(self, keep=()) -> None:
        self.dropped = True

    def _work(self, kind: str) -> None:
        if self.dropped:
            raise RunError("the encoders were dropped")
        assert not torch.is_grad_enabled()
        self.calls[kind] += 1

    def _unused(self, *_: object) -> None:
        raise NotImplementedError

    decode_latents = predict_velocity = apply_cfg = blocks = lora_targets = (
        wrap_blocks
    ) = _unused
    hidden_size = head_dim = num_tokens = _unused


@pytest.fixture
def make_stream(tmp_path: Path) -> Callable[..., StreamDataset]:
    """The stream of one shard with these files, whose captions are texts; `settings`
    are keys of its entry."""

    def make(
        files: Mapping[str, bytes],
        multiple: int = 8,
        trigger: str = "",
        **settings: Any,
    ) -> StreamDataset:
        write_tar(tmp_path / "0.tar", files)
        entry = {
            "url": str(tmp_path / "0.tar"),
            "webdataset": {"label_key": "txt"},
            **settings,
        }
        section = ImageTrainingSection.model_validate(
            {"type": "any", "trigger_word": trigger, "datasets": [entry]}
        )
        stream = StreamDataset.of(section, multiple)
        assert stream
        return stream

    return make


@pytest.fixture
def image():
    return make_image


@pytest.fixture
def dataset():
    return make_dataset


@pytest.fixture
def fake_adapter():
    return FakeModel
