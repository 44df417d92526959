"""`datasets[]` and `validation` as other programs write them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pydantic import BaseModel

from toolkit.config.base import Entries, ForeignNames, each, refuse
from toolkit.config.field_types import gather_slots, slot_names
from toolkit.config.located import Diagnostics


def _dataset(section: type[BaseModel], entries: Entries, diagnostics: Diagnostics) -> Entries:
    """`control_path_1..3` become one list, a colour of three numbers becomes "#rrggbb"."""
    gather_slots(entries, "control_path", diagnostics)
    colour = entries.pop("control_transparent_color", None)
    if colour is not None and "background" not in entries:
        if rgb := _rgb(colour.data()):
            entries["background"] = replace(colour, value=rgb)
        else:
            diagnostics.error(colour, "is not a valid colour. Write [red, green, blue], each 0 to 255.")
    elif colour is not None:
        diagnostics.error(colour, "'background' is given as well. Remove one of them.", at_key=True)
    return entries


def _rgb(value: Any) -> str:
    parts = value if isinstance(value, list) else []
    if len(parts) != 3 or not all(type(part) is int and 0 <= part <= 255 for part in parts):
        return ""
    return "#" + "".join(f"{part:02x}" for part in parts)


def _validation(section: type[BaseModel], entries: Entries, diagnostics: Diagnostics) -> Entries:
    gather_slots(entries, "control_path", diagnostics)
    return entries


DATASET = ForeignNames(
    aliases={
        "caption_type": "caption_ext",
        "caption_extension": "caption_ext",
        "image_directory": "folder_path",
        "fixed_prompt_prefix": "caption_prefix",
    },
    shapes=dict.fromkeys(slot_names("control_path"), "control_path")
    | {"control_transparent_color": "background, as [red, green, blue] of 0 to 255"},
    no_effect={
        "buckets": "images are always grouped by size",
        "bucket_tolerance": "sides are always multiples of 32",
        "prefetch_factor": "batches are small, everything is encoded before",
        "persistent_workers": "loaders always live as long as the run",
        "full_size_control_images": "references always keep their own size",
        **each("fps do_i2v auto_frame_count trim_auto_frame_count_tail", "it concerns videos"),
        **each("do_audio audio_preserve_pitch audio_normalize", "it concerns audio"),
        **each(
            "clip_image_path cache_clip_vision_to_disk clip_image_from_same_folder clip_image_augmentations "
            "clip_image_shuffle_augmentations",
            "the model has no CLIP image encoder",
        ),
        **each(
            "cache_tensors_to_disk load_image_when_caching_latents cache_latents_num_workers",
            "what is cached is encoded one at a time, each once",
        ),
        "fast_image_size": "the size of an image is always read from its header",
        "replay_transforms": "references are flipped with their image",
        "debug": "the log has one level",
        **dict.fromkeys(("use_short_captions", "short_and_long_captions"), "a caption is one text file"),
    },
    unsupported={
        **refuse(
            "dataset_path random_triggers replacements augments augmentations controls unconditional_path inpaint_path "
            "poi extra_values diff_output_preservation_class"
        ),
        **refuse(
            "prior_reg random_crop random_scale square_crop control_from_same_folder standardize_images "
            "diff_output_preservation shuffle_augmentations",
            False,
        ),
        **refuse("batch_size", 1),
        **refuse("guidance_type", "targeted"),
        **refuse("network_weight scale random_triggers_max num_frames", 1),
        "token_dropout_rate": (0,),
        "num_controls_from_same_folder": (0, 1),
        "shrink_video_to_frames": (True, False),
        "type": ("image",),
    },
    needs={"diff_output_preservation_class": "diff_output_preservation"},
    reshapes=(_dataset,),
)

VALIDATION = ForeignNames(
    aliases={"every_n_steps": "every", "validate_every_n_steps": "every"},
    shapes=dict.fromkeys(slot_names("control_path"), "control_path"),
    reshapes=(_validation,),
)
