"""SimpleTuner: what `init_lora` makes of a file, by the functions that its model class
calls.

Its settings are the defaults (rank 16, alpha as the rank), its targets the layers that
the file is of.
"""

from __future__ import annotations

from harness import base_weights, build, main
from peft import LoraConfig
from safetensors.torch import load_file
from simpletuner.helpers.training.adapter import load_lora_weights
from simpletuner.helpers.training.lora_format import (
    peft_lora_config_kwargs_from_state_dict,
)

RANK = 16


def apply(job, file, weights):
    transformer = build(job, weights)
    tensors = load_file(file["path"])
    use_dora = any(
        "lora_magnitude_vector" in key or "dora_scale" in key for key in tensors
    )
    settings = peft_lora_config_kwargs_from_state_dict(
        tensors, prefix_to_strip="transformer."
    )
    rank = settings.pop("r", RANK)
    alpha = settings.pop("lora_alpha", rank)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        init_lora_weights=True,
        target_modules=file["layers"],
        use_dora=use_dora,
        **settings,
    )
    transformer.add_adapter(config)
    load_lora_weights(
        {"transformer": transformer},
        file["path"],
        use_dora=use_dora,
        state_dict=tensors,
    )
    transformer.fuse_lora()
    return base_weights(transformer)


main(apply)
