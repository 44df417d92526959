"""SimpleTuner: LoRAs in its two formats, by the saver and the converter that its hooks
call."""

from __future__ import annotations

import json
from enum import Enum

import diffusers
import safetensors.torch
import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from diffusers.training_utils import _collate_lora_metadata
from harness import base_weights, build, changes, drawn, write_all
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict
from simpletuner.helpers.training.lora_format import convert_diffusers_to_comfyui

RANK, ALPHA = 4, 2
KINDS = {
    "lora": {},
    "alpha_is_rank": {"lora_alpha": RANK},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "pissa": {"init_lora_weights": "pissa"},
}


def write(job, weights, folder):
    return [
        one(job, weights, folder, kind, form)
        for form in ("diffusers", "comfyui")
        for kind in KINDS
    ]


@torch.no_grad()
def one(job, weights, folder, kind, form):
    torch.manual_seed(0)
    transformer = build(job, weights)
    settings = {
        "r": RANK,
        "lora_alpha": ALPHA,
        "target_modules": job["targets"],
        **KINDS[kind],
    }
    transformer.add_adapter(LoraConfig(**settings))
    normal = drawn(f"simpletuner {job['model']} {kind}")
    for name, parameter in sorted(transformer.named_parameters()):
        if ".lora_A." in name or ".lora_B." in name:
            parameter.copy_(normal(*parameter.shape))
    for module in transformer.modules():
        if isinstance(module, LoraLayer) and KINDS[kind].get("use_dora"):
            norms = module.get_base_layer().weight.norm(dim=1)
            module.lora_magnitude_vector["default"].weight.copy_(
                norms * (1 + normal(len(norms), std=0.1))
            )
    metadata = _collate_lora_metadata({"transformer": transformer})
    place = folder / f"{form}_{kind}"
    pipeline = getattr(diffusers, job["pipeline"])
    options = (
        {}
        if form == "diffusers"
        else {"save_function": comfyui_saver(metadata), "safe_serialization": True}
    )
    pipeline.save_lora_weights(
        place,
        transformer_lora_layers=get_peft_model_state_dict(transformer),
        **metadata,
        **options,
    )
    transformer.fuse_lora()
    meant = changes(base_weights(transformer), weights)
    path = place / "pytorch_lora_weights.safetensors"
    return {
        "name": f"{form}_{kind}",
        "what": f"lora_format {form}: {kind}",
        "path": str(path),
        "meant": meant,
    }


def comfyui_saver(metadata):
    """What its model class gives the pipeline for `lora_format: comfyui`."""
    settings = metadata["transformer_lora_adapter_metadata"]

    def save(tensors, filename):
        said = json.dumps(settings, indent=2, sort_keys=True, default=plain)
        header = {"format": "pt", LORA_ADAPTER_METADATA_KEY: said}
        converted = convert_diffusers_to_comfyui(tensors, adapter_metadata=settings)
        safetensors.torch.save_file(converted, filename, metadata=header)

    return save


def plain(value):
    return value.value if isinstance(value, Enum) else sorted(value, key=str)


write_all(write)
