"""What the keys and flags of other programs are here: one row for each, in a table for
each program.

To add a name of another program:
1. Take its table below (`MUSUBI_TUNER`, `KOHYA` and so on), or write one and list it in
   `NAMES`.
2. Take the section in it where the name may be written, by the class of our section
   (`PLACES` says where each stands). A name in the section "" may stand nowhere: it is
   unknown, and the message says what it is here.
3. Write its row with one of the seven functions under "Kinds of rows". Each shows a
   row, a job, and what comes of it.
4. An option of musubi-tuner has one row: a new place of it is a change of that row,
   never a second one.
5. Run `docs/generate.py`, which writes docs/coming_from.md, docs/config.md and the
   schema from these tables.
6. Run tests/extensions/compat/test_names.py. It checks that the keys and flags of ours
   in each row exist, that each row is in a section that can read it, and that no key of
   ours is called unknown. test_keys.py shows the messages.

The tables are read by the rewriter (`keys.py`), the hints of unknown keys, the pages
and the tests. They are literals, since a table in YAML takes 15 to 100 times as long to
load.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from pydantic import BaseModel

from toolkit.config.reading.field_types import slot_names
from toolkit.config.reading.foreign import NO_DEFAULT, ForeignName

Names = dict[str, ForeignName]
"""Name in another program -> what it is here."""

# ------------------------------------------------------------ kinds of rows


def renamed_to(
    ours: str, note: str = "", *, default: Any = NO_DEFAULT, tool: str = ""
) -> ForeignName:
    """A key of ours has another name there; the value means the same, and no line is
    printed.

    Row: `"learning_rate": renamed_to("train.lr", "0: nothing is learned, one warning",
    default=2e-6)` Job: `train: {learning_rate: 2e-4}` is read as `train: {lr: 2e-4}`.

    ours: our keys, separated by spaces, each with its place. note: how the meaning
    differs, for the page. default: what they take where the key is left out, if that is
    not what we take. tool: the command that does it too, and flags.
    """
    return ForeignName("is", tuple(ours.split()), note, tool=tool, default=default)


def converted_to(ours: str, note: str = "") -> ForeignName:
    """A function of `shapes.py` converts the value, because our keys have another form.

    Row: `"block_compile": converted_to("train.compile.enabled")`
    Job: `model: {block_compile: true}` is read as `train: {compile: {enabled: true}}`.

    note: the form that is read, for the page.
    """
    return ForeignName("shaped", tuple(ours.split()), note)


def use_instead(ours: str, note: str = "", *, tool: str = "") -> ForeignName:
    """A key of ours does something like it, but no value can be carried over: an error
    names ours.

    Row: `"image_dir": use_instead("datasets[].folder_path")` Job: `image_dir: photos`
    ends with "unknown key. kohya's 'image_dir' is 'datasets[].folder_path' here."

    tool: the command that does it, with its flags; where `ours` is empty no key does.
    """
    return ForeignName("near", tuple(ours.split()), note, tool=tool)


def not_needed(reason: str, ours: str = "", *, error_when_on: str = "") -> ForeignName:
    """What it asks for is always so here, or never matters: a warning says why, and the
    job runs.

    Row: `"attn_masking": not_needed("captions of a batch are never padded")` Job:
    `model: {attn_masking: true}` warns "has no effect: captions of a batch are never
    padded."

    ours: keys that decide about it, for the page. error_when_on: makes it an error with
    this text unless it is false.
    """
    return ForeignName("idle", tuple(ours.split()), reason, on=error_when_on)


def supported_only_as(
    *values: Any, nearest: str = "", reason: str = "", only_with: str = ""
) -> ForeignName:
    """Only values that change nothing are accepted, with a warning; any other is an
    error.

    Row: `"num_frames": supported_only_as(1)` Job: `sample: {num_frames: 1}` warns "has
    no effect at this value.", and `num_frames: 8` ends with "8 is not supported yet.
    Leave this key out."

    nearest: our closest key, for the error. reason: the end of the error. only_with:
    the switch in the same section that this key refines; if the switch is off, any
    value is accepted with a warning.
    """
    return ForeignName(
        "refused", tuple(nearest.split()), reason, passes=values, needs=only_with
    )


def unsupported(
    *, nearest: str = "", reason: str = "", only_with: str = ""
) -> ForeignName:
    """`supported_only_as` without such a value: an error unless it is left empty.

    Row: `"lora_path": unsupported(nearest="model.base_loras")` Job: `model: {lora_path:
    a}` ends with "'a' is not supported yet. The nearest here is 'model.base_loras'."
    """
    return supported_only_as(nearest=nearest, reason=reason, only_with=only_with)


def no_counterpart(reason: str) -> ForeignName:
    """There is nothing like it here: an error says why.

    Row: `"clip_skip": no_counterpart("it concerns CLIP, which Qwen-Image has not")`
    Job: `clip_skip: 2` ends with "unknown key. kohya's 'clip_skip' is not supported: it
    concerns CLIP, ..."
    """
    return ForeignName("absent", (), reason)


def for_each(keys: str, row: ForeignName) -> Names:
    """One row for several keys, separated by spaces: `**for_each("xformers sdpa",
    not_needed(_KERNEL))`."""
    return dict.fromkeys(keys.split(), row)


def same_names(place: str, keys: str) -> Names:
    """Keys, separated by spaces, that have the same name here: `**same_names("save",
    "no_metadata")`."""
    return {key: renamed_to(f"{place}.{key}") for key in keys.split()}


# ------------------------------------------------------------ where names are written

PLACES = {
    **dict.fromkeys(
        ("TrainingSection", "ModelSection", "LintConfig", "ReportConfig"), ""
    ),
    **dict.fromkeys(("OptimizerConfig", "OptimizationConfig", "TrainConfig"), "train"),
    **{
        f"{place.title()}Config": place
        for place in ("model", "network", "validation", "sample", "save", "logging")
    },
    "ModelKwargs": "model.model_kwargs",
    "NetworkKwargs": "network.network_kwargs",
    "DatasetConfig": "datasets[]",
    "EmaConfig": "train.ema_config",
    "LrGroupConfig": "train.lr_groups[]",
    "StopWhenConfig": "stop_when",
    "SampleItem": "sample.samples[]",
}
"""Class of a section -> its place in a process."""

# ------------------------------------------------------------ reasons that several rows
# give

_OWN_PAGES = "pages of this program are always replaced, other files never"
_ONE_FOLDER = "one folder in diffusers layout, or a hub id, holds all parts"
_LAYER_BY_LAYER = (
    "captions go through the text encoder layer by layer, on the device of the training"
)
_ENCODED = "images and captions are encoded one at a time, each once, before training"
_CONTROL = "model.model_kwargs.control_resolution"
_VAE = "the VAE works in bands of rows, which gives the pixels of the whole image"
_KERNEL = "PyTorch chooses the attention kernel"
_FAMILY = "only Qwen-Image models and what is made from them can be trained. Give such a model, and leave this key out."

# ------------------------------------------------------------ the tables, one for each
# program

OTHER_PROGRAMS: dict[str, Names] = {
    "ReportConfig": {"overwrite": not_needed(_OWN_PAGES)},
    "LintConfig": {
        "overwrite": not_needed(_OWN_PAGES),
        "duplicate_bits": not_needed(
            "copies are compared as images: see least_likeness"
        ),
    },
    "TrainingSection": {
        "log_dir": converted_to("logging.logging_dir"),
        **for_each(
            "performance_log_every torch_profiler",
            not_needed("metrics.jsonl has the times of every step"),
        ),
        "sqlite_db_path": not_needed(
            "metrics.jsonl and events.jsonl are in the run's folder"
        ),
        "training": converted_to("train", "train, as {steps, epochs}"),
        "stop_condition": renamed_to("stop_when"),
    },
    "ModelSection": {
        **for_each("guidance embedding decorator adapter slider", unsupported()),
    },
    "ModelConfig": {
        "ara": renamed_to("model.accuracy_recovery_adapter"),
        "quantize_dtype": renamed_to("model.qtype"),
        "quantize_te_dtype": renamed_to("model.qtype_te"),
        "flux_cfg": not_needed("this trains Qwen-Image"),
    },
    "ModelKwargs": {
        "kv_cache": supported_only_as(False),
        "use_comfy_weights": not_needed("the weights are those of `name_or_path`"),
    },
    "NetworkKwargs": {
        "full_if_contains": unsupported(),
        # lycoris-lora 4.1.3, `create_lycoris`.
        "constrain": renamed_to("network.network_kwargs.constraint"),
        **for_each(
            "conv_dim conv_alpha use_tucker use_cp use_conv_cp disable_conv_cp",
            not_needed("the transformer has no convolutions"),
        ),
        "bypass_mode": not_needed(
            "what is added to the weight is computed, with any base"
        ),
        **for_each(
            "train_norm use_scalar decompose_both unbalanced_factorization rank_dropout_scale",
            supported_only_as(False),
        ),
        "dora_wd": supported_only_as(
            False, reason="`network: {type: dora}` is a DoRA of a plain LoRA"
        ),
    },
    "DatasetConfig": {
        "fixed_prompt_prefix": renamed_to("datasets[].caption_prefix"),
        "persistent_workers": not_needed("loaders always live as long as the run"),
    },
    "ValidationConfig": {"every_n_steps": renamed_to("validation.every")},
    "OptimizationConfig": {
        "validation": converted_to("validation", "validation of the process"),
        "stop_when": converted_to("stop_when", "stop_when of the process"),
    },
    "EmaConfig": {
        "power_averages": not_needed(
            "it was removed; `run.py post_hoc_ema` averages the files of a run"
        ),
    },
    "TrainConfig": {
        "gradient_checkpointing_offload": converted_to(
            "train.gradient_checkpointing", "gradient_checkpointing: full_offload"
        ),
        "content_or_style_reg": supported_only_as("balanced"),
    },
    "LrGroupConfig": {"pattern": renamed_to("train.lr_groups[].match")},
    "StopWhenConfig": {
        "loss_name": renamed_to("stop_when.metric"),
        "threshold": renamed_to("stop_when.below"),
    },
    "SampleConfig": {"discrete_flow_shift": renamed_to("sample.flow_shift")},
    "SampleItem": {"discrete_flow_shift": renamed_to("sample.samples[].flow_shift")},
}
"""Names that several programs have, or that earlier versions of this one had."""

AI_TOOLKIT: dict[str, Names] = {
    "TrainingSection": {
        "optimizer": converted_to(
            "train.optimizer train.lr train.optimizer_params",
            "train.optimizer, train.lr and train.optimizer_params, as {name, lr, ...}",
        ),
    },
    "ModelConfig": {
        "compile": converted_to(
            "train.compile", "train.compile, where `true` is short for `enabled: true`"
        ),
        "block_compile": converted_to("train.compile.enabled"),
        "compile_mode": converted_to("train.compile.mode"),
        "compile_dynamic": converted_to("train.compile.dynamic"),
        "compile_fullgraph": converted_to("train.compile.fullgraph"),
        "cache_size_limit": converted_to("train.compile.cache_size_limit"),
        **for_each(
            "is_flux is_xl is_v2 is_v3 is_v_pred is_pixart is_pixart_sigma is_auraflow is_lumina2 is_ssd is_vega",
            not_needed("this trains Qwen-Image", error_when_on=_FAMILY),
        ),
        **for_each(
            "use_flux_cfg use_text_encoder_1 use_text_encoder_2 experimental_xl refiner_name_or_path",
            not_needed("this trains Qwen-Image"),
        ),
        **for_each("dtype te_dtype", not_needed("train.dtype decides")),
        "attn_masking": not_needed("captions of a batch are never padded"),
        "refiner_start_at": not_needed("there is no refiner"),
        "latent_space_version": not_needed("the cache knows a VAE by its weights"),
        "text_encoder_bits": not_needed("quantize_te and qtype_te decide"),
        **for_each(
            "layer_offloading auto_memory layer_offloading_transformer_percent",
            converted_to(
                "model.blocks_to_swap",
                "that share of the blocks; whole blocks wait in main memory",
            ),
        ),
        "layer_offloading_text_encoder_percent": not_needed(
            "captions are encoded before the training"
        ),
        **for_each("split_model_over_gpus in_context", supported_only_as(False)),
        "lora_path": unsupported(nearest="model.base_loras"),
        "assistant_lora_path": converted_to(
            "train.assistant", "train.assistant, a file; off in samples there and here"
        ),
        **for_each(
            "inference_lora_path unconditional_lora_path "
            "te_name_or_path unet_path only_if_contains ignore_if_contains unet_sample_size "
            "vae_device model_paths",
            unsupported(),
        ),
        "extras_name_or_path": converted_to(
            "model.name_or_path",
            "`name_or_path`, where that is a file: then it is `transformer_path`",
        ),
        "quantize_kwargs": unsupported(
            reason="every matrix of the blocks is quantized"
        ),
        "te_device": not_needed(_LAYER_BY_LAYER),
        "split_model_other_module_param_count_scale": supported_only_as(
            0.3, only_with="split_model_over_gpus"
        ),
    },
    "NetworkConfig": {
        "rank": renamed_to("network.linear"),
        "alpha": renamed_to("network.linear_alpha"),
        "lokr_factor": renamed_to("network.factor"),
        "split_multistage_loras": not_needed("Qwen-Image has one stage"),
        **for_each(
            "conv conv_alpha", not_needed("the transformer has no convolutions")
        ),
        "old_lokr_format": not_needed(
            "LoKr files are written in the current form only"
        ),
        "lorm": unsupported(),
        "transformer_only": supported_only_as(
            True, reason="always so: the layers of the blocks"
        ),
        **for_each("all_layers layer_offloading", supported_only_as(False)),
    },
    "NetworkKwargs": {
        "lokr_full_rank": converted_to("network.lokr_full_rank"),
        "factor": converted_to("network.factor"),
        "transformer_only": supported_only_as(True),
    },
    "DatasetConfig": {
        "caption_type": renamed_to("datasets[].caption_ext"),
        **dict.fromkeys(
            slot_names("control_path"), converted_to("datasets[].control_path")
        ),
        "control_transparent_color": converted_to(
            "datasets[].background", "background, as [red, green, blue] of 0 to 255"
        ),
        "buckets": not_needed("images are always grouped by size"),
        "bucket_tolerance": not_needed("sides are always multiples of 32"),
        "prefetch_factor": not_needed(
            "batches are small, everything is encoded before"
        ),
        "full_size_control_images": not_needed(
            "control images always keep their own size"
        ),
        **for_each(
            "fps do_i2v auto_frame_count trim_auto_frame_count_tail",
            not_needed("it concerns videos"),
        ),
        **for_each(
            "do_audio audio_preserve_pitch audio_normalize",
            not_needed("it concerns audio"),
        ),
        **for_each(
            "clip_image_path cache_clip_vision_to_disk clip_image_from_same_folder clip_image_augmentations "
            "clip_image_shuffle_augmentations",
            not_needed("the model has no CLIP image encoder"),
        ),
        **for_each(
            "cache_tensors_to_disk load_image_when_caching_latents cache_latents_num_workers",
            not_needed("what is cached is encoded one at a time, each once"),
        ),
        "fast_image_size": not_needed(
            "the size of an image is always read from its header"
        ),
        "replay_transforms": not_needed("control images are flipped with their image"),
        "debug": not_needed("the log has one level"),
        **for_each(
            "use_short_captions short_and_long_captions",
            not_needed("a caption is one text file"),
        ),
        **for_each(
            "dataset_path random_triggers replacements augments augmentations controls unconditional_path "
            "inpaint_path poi extra_values",
            unsupported(),
        ),
        "diff_output_preservation_class": unsupported(
            only_with="diff_output_preservation"
        ),
        **for_each(
            "prior_reg random_crop random_scale square_crop control_from_same_folder standardize_images "
            "diff_output_preservation shuffle_augmentations",
            supported_only_as(False),
        ),
        "batch_size": supported_only_as(
            1, nearest="train.batch_size", reason="one for all datasets; 1: a note"
        ),
        "guidance_type": supported_only_as("targeted"),
        **for_each(
            "network_weight scale random_triggers_max num_frames", supported_only_as(1)
        ),
        "token_dropout_rate": supported_only_as(0),
        "num_controls_from_same_folder": supported_only_as(0, 1),
        "shrink_video_to_frames": supported_only_as(True, False),
        "type": supported_only_as("image"),
    },
    "ValidationConfig": {
        "validate_every_n_steps": renamed_to("validation.every"),
        **dict.fromkeys(
            slot_names("control_path"), converted_to("validation.control_path")
        ),
    },
    "OptimizationConfig": {
        "gradient_accumulation_steps": renamed_to(
            "train.gradient_accumulation",
            "averages, and `steps` counts optimizer steps; there it drops gradients, and `steps` counts micro-batches",
        ),
    },
    "TrainConfig": {
        "unet_lr": renamed_to("train.lr"),
        **for_each("sdp attention_backend", not_needed(_KERNEL)),
        "switch_boundary_every": not_needed("Qwen-Image has one stage"),
        "audio_loss_multiplier": not_needed("it concerns audio"),
        "bypass_guidance_embedding": not_needed("Qwen-Image has no guidance embedding"),
        "text_encoder_lr": not_needed("the text encoder is not trained"),
        "embedding_lr": not_needed("no embedding is trained"),
        "adapter_lr": not_needed("no image adapter is trained"),
        **for_each("refiner_lr train_refiner", not_needed("there is no refiner")),
        **for_each(
            "min_snr_gamma snr_gamma",
            not_needed("it concerns models that predict noise"),
        ),
        "next_sample_timesteps": not_needed("it concerns timestep_type next_sample"),
        "free_u": not_needed("it concerns Stable Diffusion"),
        **for_each(
            "unload_text_encoder force_consistent_noise "
            "inverted_mask_prior do_prior_divergence do_paramiter_swapping do_cfg merge_network_on_save "
            "single_item_batching max_loss_debug t0_loss_target do_fft_loss match_adapter_assist train_turbo "
            "show_turbo_outputs learnable_snr_gos do_signal_correction_noise do_batch_noise_correction "
            "do_signal_amplification adaptive_scaling_factor match_noise_norm short_and_long_captions "
            "short_and_long_captions_encoder_split standardize_images standardize_latents "
            "dynamic_noise_offset do_random_cfg correct_pred_norm t0_velocity_equiv_weight "
            "do_fft_velocity_equiv_weight blended_blur_noise do_blank_stabilization",
            supported_only_as(False),
        ),
        **for_each(
            "do_differential_guidance do_guidance_loss",
            supported_only_as(
                False,
                reason="the loss here has one target, the model's own; more steps do what it speeds up",
            ),
        ),
        "do_guidance_loss_cfg_zero": supported_only_as(
            False, only_with="do_guidance_loss"
        ),
        **for_each(
            "start_step noise_offset weight_jitter random_noise_multiplier random_noise_shift "
            "match_adapter_chance prompt_saturation_chance",
            supported_only_as(0),
        ),
        "min_denoising_steps": supported_only_as(
            0,
            nearest="train.min_timestep train.max_timestep",
            reason="places on a list of levels; here noise",
        ),
        "prompt_dropout_prob": supported_only_as(
            0, nearest="datasets[].caption_dropout_rate"
        ),
        **for_each(
            "noise_multiplier img_multiplier latent_multiplier optimal_noise_pairing_samples "
            "target_noise_multiplier noisy_latent_multiplier max_negative_prompts pred_scaler",
            supported_only_as(1),
        ),
        **for_each("cfg_scale max_cfg_scale", supported_only_as(1, only_with="do_cfg")),
        "merge_network_on_save_strength": supported_only_as(
            1, only_with="merge_network_on_save"
        ),
        "signal_correction_noise_scale": supported_only_as(
            1, only_with="do_signal_correction_noise"
        ),
        "correct_pred_norm_multiplier": supported_only_as(
            1, only_with="correct_pred_norm"
        ),
        "target_norm_std_value": supported_only_as(1, only_with="target_norm_std"),
        "latent_feature_loss_weight": supported_only_as(
            1, only_with="latent_feature_extractor_path"
        ),
        "diffusion_feature_extractor_weight": supported_only_as(
            1, only_with="diffusion_feature_extractor_path"
        ),
        "signal_amplification_strength": supported_only_as(
            0.5, only_with="do_signal_amplification"
        ),
        "batch_noise_correction_scale": supported_only_as(
            0.1, only_with="do_batch_noise_correction"
        ),
        "adapter_assist_type": supported_only_as(
            "t2i", only_with="adapter_assist_name_or_path"
        ),
        "differential_guidance_scale": supported_only_as(
            3, only_with="do_differential_guidance"
        ),
        "guidance_loss_target": supported_only_as(3, only_with="do_guidance_loss"),
        "guidance_loss_schedule": unsupported(only_with="do_guidance_loss"),
        **for_each(
            "max_loss latent_feature_extractor_path diffusion_feature_extractor_path "
            "adapter_assist_name_or_path negative_prompt target_norm_std unconditional_prompt",
            unsupported(),
        ),
        "validation_config": unsupported(nearest="validation"),
        "cfg_rescale": unsupported(only_with="do_cfg"),
        "max_denoising_steps": supported_only_as(
            999,
            1000,
            nearest="train.min_timestep train.max_timestep",
            reason="places on a list of levels; here noise",
        ),
        "num_train_timesteps": supported_only_as(1000),
        "loss_target": supported_only_as("noise"),
        "inverted_mask_prior_multiplier": supported_only_as(
            0.5, only_with="inverted_mask_prior"
        ),
        "paramiter_swapping_factor": supported_only_as(
            0.1, only_with="do_paramiter_swapping"
        ),
    },
    "EmaConfig": {
        "use_feedback": supported_only_as(False),
        "param_multiplier": supported_only_as(1),
    },
    "SampleConfig": {
        "fps": not_needed("it concerns videos"),
        "refiner_start_at": not_needed("there is no refiner"),
        "adapter_conditioning_scale": not_needed("there is no image adapter"),
        "network_multiplier": supported_only_as(
            1, reason="images are generated with the network that is saved"
        ),
        "num_frames": supported_only_as(1),
        "guidance_rescale": supported_only_as(0),
        "do_cfg_norm": supported_only_as(False),
        "extra_values": unsupported(),
    },
    "SampleItem": {
        "fps": not_needed("it concerns videos"),
        **for_each(
            "network_multiplier num_frames", supported_only_as(1, "1", "1.0")
        ),  # its page writes text
        **for_each("guidance_rescale ctrl_idx", supported_only_as(0)),
        "do_cfg_norm": supported_only_as(False),
    },
    "SaveConfig": {
        "save_format": not_needed(
            "an adapter is always one safetensors file, a whole model a diffusers folder"
        ),
    },
    "LoggingConfig": {
        "project_name": renamed_to("logging.wandb_project"),
        "run_name": renamed_to("logging.wandb_run_name"),
        "use_wandb": converted_to(
            "logging.log_with", "log_with: wandb, or all when logging_dir is given"
        ),
        "verbose": not_needed("the log has one level"),
        "use_ui_logger": not_needed("metrics.jsonl has every step"),
    },
}
"""ai-toolkit, commit 27a03a9, whose keys mostly have the same names here."""

MUSUBI_TUNER: dict[str, Names] = {
    "ModelConfig": {
        "model_version": renamed_to("model.arch"),
        "fp8_base": converted_to(
            "model.quantize model.qtype",
            "quantize with qtype float8, with fp8_scaled that",
        ),
        "fp8_scaled": converted_to(
            "model.quantize model.qtype", "quantize with qtype fp8_scaled"
        ),
        "fp8_vl": converted_to(
            "model.quantize_te model.qtype_te", "quantize_te with qtype_te float8"
        ),
        "base_weights": converted_to(
            "model.base_loras", "base_loras, as a list of paths; empty: none"
        ),
        "base_weights_multiplier": converted_to(
            "model.base_loras[].multiplier", "base_loras, as a list of multipliers"
        ),
        "vae_dtype": not_needed("train.dtype decides, for all parts", "train.dtype"),
        "attn_mode": not_needed(_KERNEL),
    },
    "NetworkConfig": {
        "network_dim": renamed_to("network.linear", "0 is an error", default=4),
        "network_alpha": renamed_to(
            "network.linear_alpha",
            "here `linear` unless given; 0: no effect, one warning",
            default=1,
        ),
        "network_dropout": renamed_to("network.dropout", "0: off"),
        "network_weights": renamed_to(
            "network.pretrained_lora_path", "empty: from the start"
        ),
        "network_args": converted_to(
            "network",
            "keys of this section, as a list of texts `name=value`; empty: none",
        ),
        "network_module": converted_to(
            "network.type",
            "type: networks.lora_qwen_image, networks.loha, networks.lokr; lycoris.kohya, with its algo",
        ),
    },
    "DatasetConfig": {
        "caption_extension": renamed_to(
            "datasets[].caption_ext",
            "images without such a file are left out there; here a warning names them",
        ),
        "image_directory": renamed_to("datasets[].folder_path"),
    },
    "OptimizerConfig": {
        "learning_rate": renamed_to(
            "train.lr", "0: nothing is learned, one warning", default=2e-6
        ),
        "optimizer_type": renamed_to(
            "train.optimizer", "short names and dotted paths of classes"
        ),
        "lr_scheduler_type": converted_to(
            "",
            "classes of schedules are not loaded; give train.lr_scheduler one of its names",
        ),
        "optimizer_args": converted_to(
            "train.optimizer_params",
            "optimizer_params, as a list of texts `name=value`; empty: the optimizer's own defaults",
        ),
        "lr_scheduler_args": converted_to(
            "train.lr_scheduler_params",
            "lr_scheduler_params, as a list of texts `name=value`",
        ),
    },
    "OptimizationConfig": {
        "max_train_steps": renamed_to(
            "train.steps", "0 is an error, unless epochs are given", default=1600
        ),
        "max_train_epochs": renamed_to("train.epochs", "0: `steps` decides"),
        "mixed_precision": renamed_to("train.dtype"),
        "seed": converted_to("training_seed", "training_seed of the process"),
    },
    "TrainConfig": {
        "timestep_sampling": renamed_to(
            "train.timestep_type", "here `sigmoid` unless given", default="sigma"
        ),
        "gradient_checkpointing_cpu_offload": converted_to(
            "train.gradient_checkpointing", "gradient_checkpointing: full_offload"
        ),
        "compile_backend": converted_to("train.compile.backend", "compile.backend"),
        "compile_mode": converted_to("train.compile.mode", "compile.mode"),
        "compile_dynamic": converted_to("train.compile.dynamic", "compile.dynamic"),
        "compile_fullgraph": converted_to(
            "train.compile.fullgraph", "compile.fullgraph"
        ),
        "compile_cache_size_limit": converted_to(
            "train.compile.cache_size_limit", "compile.cache_size_limit; 0: 32"
        ),
        **for_each("xformers sdpa flash_attn flash3", not_needed(_KERNEL)),
        "split_attn": not_needed("captions of a batch are never padded"),
        "persistent_data_loader_workers": not_needed(
            "loaders always live as long as the run"
        ),
        "ddp_gradient_as_bucket_view": not_needed(
            "gradients are added up in buckets of their own, not by DistributedDataParallel"
        ),
        "ddp_static_graph": not_needed(
            "gradients are added up once per step, not by DistributedDataParallel"
        ),
        "full_fp16": supported_only_as(
            False, reason="trained weights are float32, or bf16 with train.full_bf16"
        ),
    },
    "TrainingSection": {
        "dataset_config": converted_to(
            "datasets", "the file is read, with its defaults"
        )
    },
    "SampleConfig": {
        "sample_every_n_steps": renamed_to(
            "sample.sample_every", "0: none at intervals"
        ),
        "sample_prompts": converted_to(
            "sample.samples",
            "as prompts: a list, a text file with one prompt per line, or its JSON or TOML",
        ),
    },
    "SaveConfig": {
        "save_every_n_steps": renamed_to(
            "save.save_every",
            "0: only the final file; above 0 it decides over epochs",
            default=0,
        ),
        "save_last_n_steps": renamed_to(
            "save.max_step_saves_to_keep",
            "a number of files, not a distance in steps; 0: all",
            default=0,
        ),
        "save_precision": renamed_to(
            "save.dtype", "here float16 unless given", default="float32"
        ),
        "save_state": not_needed(
            "a state is saved each time unless 'states' says less", "save.states"
        ),
        "save_state_on_train_end": not_needed(
            "a state is saved each time unless 'states' says less: 'at_end' is instead of the others, there as well",
            "save.states",
        ),
    },
    "LoggingConfig": {
        "log_tracker_config": unsupported(
            reason="give the keys `wandb_*` of `logging` instead"
        ),
    },
    "": {
        **same_names(
            "train",
            "lr_scheduler lr_scheduler_num_cycles lr_scheduler_power lr_scheduler_min_lr_ratio "
            "lr_scheduler_timescale full_bf16 fused_backward_pass cuda_allow_tf32 cuda_cudnn_benchmark "
            "sigmoid_scale weighting_scheme mode_scale min_timestep max_timestep preserve_distribution_shape",
        ),
        **same_names(
            "network",
            "loraplus_lr_ratio include_patterns exclude_patterns rank_dropout module_dropout factor",
        ),
        **same_names("save", "mem_eff_save no_metadata"),
        **same_names("logging", "log_tracker_name log_config wandb_run_name"),
        "dit": use_instead(
            "model.name_or_path model.transformer_path",
            "the model folder it lies in; a file that lies alone is `transformer_path`, beside the published model",
        ),
        **{
            key: use_instead(
                f"model.name_or_path model.{key}_path",
                f"as `dit`; a file that lies alone is `{key}_path`",
            )
            for key in ("vae", "text_encoder")
        },
        **for_each(
            "edit edit_plus",
            use_instead("model.arch", "read from the model's own files"),
        ),
        "dit_dtype": use_instead("train.dtype", "bf16 unless another is given"),
        "blocks_to_swap": renamed_to("model.blocks_to_swap", "0: none"),
        "sage_attn": not_needed(_KERNEL),
        "num_layers": not_needed("read from the model's own files"),
        "img_in_txt_in_offloading": not_needed(
            "these layers are small and stay on the device"
        ),
        "block_swap_h2d_only": not_needed(
            "frozen weights are only ever copied to the device"
        ),
        "block_swap_ring_size": not_needed(
            "two swapped blocks have room on the device"
        ),
        "use_pinned_memory_for_block_swap": not_needed(
            "swapped blocks always wait in pinned memory"
        ),
        "disable_numpy_memmap": not_needed("files are read tensor by tensor"),
        **for_each("vae_enable_tiling vae_tiling", not_needed(_VAE)),
        "remove_first_image_from_target": use_instead(
            "model.model_kwargs.composite_target", "true is `composite_target: false`"
        ),
        "multiple_target": use_instead(
            "datasets[].layers_suffix",
            "true is `layers_suffix: _`: the layers `a_0.png`, `a_1.png`",
        ),
        "output_layers": use_instead(
            "sample.layers", "it counts the layers without the image itself"
        ),
        "automatic_prompt_lang_for_layered": no_counterpart(
            "a prompt is never written for a sample; give one"
        ),
        "image_jsonl_file": renamed_to(
            "datasets[].captions_file", "without `folder_path` it names the images"
        ),
        "general": use_instead(
            "config.defaults",
            "for all processes; a list of datasets is replaced as a whole",
        ),
        "batch_size": use_instead("train.batch_size", "one for all datasets"),
        **for_each(
            "video_directory video_jsonl_file",
            no_counterpart("videos cannot be trained here"),
        ),
        "debug_dataset": not_needed(
            "`--dry-run` prints what was found, with the sizes"
        ),
        **for_each(
            "target_frames frame_extraction frame_stride frame_sample max_frames source_fps",
            no_counterpart("videos cannot be trained here"),
        ),
        **for_each(
            "fp_latent_window_size fp_1f_clean_indices fp_1f_target_index fp_1f_no_post",
            not_needed("it concerns FramePack"),
        ),
        **for_each(
            "task t5 fp8_t5 clip dit_high_noise timestep_boundary offload_inactive_dit one_frame "
            "force_v2_1_time_embedding text_encoder1 text_encoder2 fp8_llm image_encoder "
            "latent_window_size bulk_decode f1",
            no_counterpart(
                "it concerns another model, and only Qwen-Image models can be trained here"
            ),
        ),
        **for_each(
            "vae_chunk_size vae_spatial_tile_sample_min_size vae_cache_cpu",
            not_needed(_VAE),
        ),
        **for_each(
            "num_processes num_machines num_cpu_threads_per_process multi_gpu gpu_ids main_process_port "
            "extra_accelerate_launch_args dynamo_use_fullgraph dynamo_use_dynamic",
            not_needed("several processes are started by torchrun (docs/multi_gpu.md)"),
        ),
        "num_repeats": renamed_to(
            "datasets[].num_repeats",
            "1 also where the folder's name begins with a number",
            default=1,
        ),
        "flux_kontext_no_resize_control": use_instead(
            _CONTROL, "the older name of no_resize_control"
        ),
        "qwen_image_edit_no_resize_control": use_instead(
            _CONTROL, "the older name of no_resize_control"
        ),
        "qwen_image_edit_control_resolution": use_instead(
            _CONTROL, "the older name of control_resolution"
        ),
        "resolution": renamed_to(
            "datasets[].resolution",
            "there `[960, 544]` is one rectangle, which is `{width: 960, height: 544}` here; a list is a list of sizes",
            default=[960, 544],
        ),
        "control_directory": renamed_to(
            "datasets[].control_path",
            "`a.png`, then `a_0.png`, `a_1.png` and so on, for `a.jpg`, as in musubi-tuner; other endings are listed",
        ),
        "control_resolution": use_instead(
            f"{_CONTROL} model.model_kwargs.match_target_res",
            "the side of a square of that area; left out, there: control images follow their image, `match_target_res`",
        ),
        "no_resize_control": use_instead(
            _CONTROL,
            "control images are always scaled to an area; the side of its square",
        ),
        "cache_directory": use_instead(
            "datasets[].cache_latents_to_disk",
            "one cache for all runs, in the training folder",
        ),
        "enable_bucket": not_needed(
            "images are always grouped by size; one size for all is a rectangle as `resolution`"
        ),
        "bucket_no_upscale": not_needed(
            "images are enlarged only as far as sides of multiples of 32 demand"
        ),
        **for_each(
            "caching_latent_batch_size caching_teo_batch_size",
            not_needed(f"{_ENCODED}; 0 would be an error there"),
        ),
        **for_each(
            "caching_latent_num_workers caching_teo_num_workers", not_needed(_ENCODED)
        ),
        "skip_existing": not_needed(
            "what is cached is known by its content and never encoded twice"
        ),
        "keep_cache": not_needed("nothing is removed from the cache"),
        "max_data_loader_n_workers": renamed_to(
            "datasets[].num_workers", "0: the main thread"
        ),
        "gradient_accumulation_steps": renamed_to(
            "train.gradient_accumulation", "0 is an error"
        ),
        "max_grad_norm": renamed_to("train.max_grad_norm", "0: no clipping"),
        "lr_warmup_steps": renamed_to(
            "train.lr_warmup_steps", "0: none; below 1 a share of all steps"
        ),
        "lr_decay_steps": renamed_to(
            "train.lr_decay_steps",
            "0: none; below 1 a share of all steps. There only warmup_stable_decay heeds it",
        ),
        "ddp_timeout": renamed_to(
            "train.ddp_timeout", "minutes; 0: the library's default"
        ),
        "gradient_checkpointing": renamed_to(
            "train.gradient_checkpointing", "`auto` unless given"
        ),
        "compile": renamed_to("train.compile", "`true` is short for `enabled: true`"),
        **{
            f"dynamo_{key}": use_instead(
                f"train.compile.{key}",
                "of `accelerate`; here the section `train.compile`",
            )
            for key in ("backend", "mode", "dynamic", "fullgraph")
        },
        "discrete_flow_shift": renamed_to(
            "train.discrete_flow_shift",
            "0 is an error with `timestep_type: shift`",
            default=1.0,
        ),
        "logit_mean": renamed_to(
            "train.logit_mean", "0: the middle; above 0 less noise, as in musubi-tuner"
        ),
        "logit_std": renamed_to("train.logit_std", "0 is an error"),
        "num_timestep_buckets": renamed_to("train.num_timestep_buckets", "0: off"),
        "show_timesteps": no_counterpart(
            "noise levels are not plotted; metrics.jsonl has the mean of each step, `t_mean`"
        ),
        "timestep_bucketing": use_instead(
            "train.num_timestep_buckets", "a number of parts, not a switch"
        ),
        **for_each(
            "conv_dim conv_alpha", not_needed("the transformer has no convolutions")
        ),
        "verbose": not_needed("the log has one level"),
        "scale_weight_norms": renamed_to("network.scale_weight_norms", "0: off"),
        "dim_from_weights": no_counterpart(
            "network.linear is the rank, and a file of another one is brought to it"
        ),
        "output_dir": renamed_to(
            "training_folder",
            "`output` unless given; the files go to `<training_folder>/<name>/`",
        ),
        "output_name": renamed_to("config.name", "required"),
        "resume": use_instead(
            "resume", "states of that program are not read; a run goes on from its own"
        ),
        "save_every_n_epochs": renamed_to(
            "save.save_every_n_epochs", "0: only the final file"
        ),
        "save_last_n_epochs": renamed_to("save.save_last_n_epochs", "0: all"),
        **for_each(
            "save_last_n_epochs_state save_last_n_steps_state",
            use_instead("save.max_states_to_keep", "a number of states"),
        ),
        "training_comment": renamed_to("meta.training_comment"),
        **{
            f"metadata_{key}": renamed_to(f"meta.{key}", f"becomes `modelspec.{key}`")
            for key in ("title", "author", "description", "license", "tags")
        },
        "metadata_reso": not_needed("`modelspec.resolution` is that of the datasets"),
        "metadata_arch": not_needed("`modelspec.architecture` is that of the model"),
        "huggingface_repo_id": renamed_to(
            "save.hf_repo_id", "needs `save.push_to_hub`", tool="publish"
        ),
        "huggingface_repo_visibility": use_instead(
            "save.hf_private", "`private` is `true`", tool="publish --private"
        ),
        "huggingface_token": not_needed(
            "it comes from HF_TOKEN or `hf auth login`, never from a file"
        ),
        "async_upload": not_needed("the upload follows the training"),
        **for_each(
            "huggingface_path_in_repo huggingface_repo_type save_state_to_huggingface resume_from_huggingface",
            no_counterpart(
                "only LoRA files are uploaded, with a model card, to a model repository"
            ),
        ),
        "sample_every_n_epochs": renamed_to(
            "sample.sample_every_n_epochs", "0: none; above 0 it decides over steps"
        ),
        "sample_at_first": renamed_to(
            "sample.sample_at_first train.skip_first_sample",
            "here a set is drawn unless skipped",
        ),
        "negative_prompt": use_instead("sample.neg", tool="generate --negative"),
        "image_size": use_instead(
            "sample.width sample.height",
            "there height first",
            tool="generate --height --width",
        ),
        "infer_steps": use_instead("sample.sample_steps", tool="generate --steps"),
        "guidance_scale": use_instead("sample.guidance_scale", tool="generate --cfg"),
        "flow_shift": use_instead("sample.flow_shift", tool="generate --flow-shift"),
        "control_image_path": use_instead(
            "sample.samples[].ctrl_img", tool="generate --reference"
        ),
        "resize_control_to_image_size": use_instead(
            "model.model_kwargs.match_target_res", "for training and images alike"
        ),
        "resize_control_to_official_size": use_instead(
            "model.model_kwargs.match_target_res", "off is the official size"
        ),
        "text_encoder_cpu": not_needed(_LAYER_BY_LAYER),
        "lora_weight": use_instead(
            "model.base_loras",
            "merged into the model; `network.pretrained_lora_path` is trained on",
            tool="generate --lora",
        ),
        "lora_multiplier": use_instead(
            "model.base_loras[].multiplier", "`--lora FILE:0.8`", tool="generate --lora"
        ),
        "logging_dir": renamed_to("logging.logging_dir", "empty: no TensorBoard"),
        "log_with": renamed_to(
            "logging.log_with", "empty: TensorBoard when logging_dir is given"
        ),
        "log_prefix": renamed_to(
            "logging.log_prefix", "empty: none; there is no time in the folder's name"
        ),
        "wandb_api_key": renamed_to(
            "logging.wandb_api_key", "empty: from the environment"
        ),
        "prompt": use_instead("sample.samples[].prompt", tool="generate --prompt"),
        "from_file": use_instead(
            "sample.samples",
            "a text file with one prompt per line",
            tool="generate --prompts",
        ),
        "fp8": use_instead(
            "model.quantize model.qtype",
            "`qtype: float8`",
            tool="generate --quantize --qtype",
        ),
        "fp8_fast": not_needed(
            "the number type decides; products are never rounded further"
        ),
        "device": renamed_to("device", tool="generate --device"),
        "save_path": use_instead(
            "training_folder",
            "the key is for the images that are generated during training",
            tool="generate --output",
        ),
        "mask_path": use_instead(
            "datasets[].mask_path",
            "there it limits what is generated, here what is trained",
        ),
        "interactive": use_instead("", tool="generate --interactive"),
        "save_merged_model": use_instead("", tool="merge --base --output"),
        "lycoris": use_instead(
            "", "LoHa and LoKr files need no switch", tool="generate --lora"
        ),
        "output_type": use_instead("", tool="generate --output-type"),
        "latent_path": use_instead(
            "", "safetensors files only", tool="generate --latent-path"
        ),
        "append_original_name": not_needed(
            "a file's name begins with the prompt's number and words"
        ),
        "bell": not_needed("nothing rings when a prompt is done"),
        "cfg_normalize": not_needed("always so, as in diffusers"),
        "embedded_cfg_scale": not_needed("the model has no embedded guidance"),
        "ckpt_dir": no_counterpart(_ONE_FOLDER),
        **for_each(
            "rcm_debug_save rcm_dilate_size rcm_kernel_size rcm_relative_threshold rcm_threshold",
            no_counterpart("control images are not masked while an image is generated"),
        ),
        "additional_parameters": no_counterpart(
            "nothing is started by a command line that could be added to"
        ),
        "config_file": no_counterpart("the job is the configuration"),
    },
}
"""musubi-tuner, commit 30c658c: its command line, which shares many options with
kohya's trainers, its dataset file, and the program that writes its files."""

KOHYA: dict[str, Names] = {
    "": {
        "image_dir": use_instead("datasets[].folder_path"),
        "train_data_dir": use_instead("datasets[].folder_path"),
        "reg_data_dir": use_instead(
            "datasets[].is_reg", "a dataset with that folder, and `is_reg: true`"
        ),
        **for_each("metadata_file in_json", use_instead("datasets[].captions_file")),
        "conditioning_data_dir": use_instead("datasets[].control_path"),
        "class_tokens": use_instead("datasets[].default_caption"),
        "dataset_repeats": use_instead("datasets[].num_repeats"),
        "shuffle_caption": use_instead("datasets[].shuffle_tokens"),
        "keep_tokens_separator": use_instead(
            "datasets[].keep_tokens", "a number of tags"
        ),
        "enable_wildcard": use_instead(
            "datasets[].captions", "`lines`: one line of the file for each use"
        ),
        "caption_dropout_every_n_epochs": use_instead(
            "datasets[].caption_dropout_rate", "a share of the uses"
        ),
        "flip_aug": use_instead(
            "datasets[].flip_x", "every image is used twice, once mirrored"
        ),
        "masked_loss": use_instead("datasets[].mask_path datasets[].alpha_mask"),
        **for_each(
            "color_aug face_crop_aug_range",
            no_counterpart("images are mirrored at most, never changed otherwise"),
        ),
        **for_each(
            "caption_separator secondary_separator caption_tag_dropout_rate token_warmup_min token_warmup_step",
            no_counterpart(
                "tags are separated by commas and used from the first step on"
            ),
        ),
        **for_each(
            "min_bucket_reso max_bucket_reso bucket_reso_steps max_resolution",
            use_instead(
                "datasets[].resolution", "the area of an image; buckets follow from it"
            ),
        ),
        "pretrained_model_name_or_path": use_instead("model.name_or_path"),
        "lowram": use_instead("model.low_vram"),
        "train_batch_size": use_instead("train.batch_size"),
        "prior_loss_weight": use_instead("train.reg_weight"),
        "lr_warmup": use_instead("train.lr_warmup_steps"),
        "epoch": use_instead("train.epochs"),
        **for_each(
            "use_8bit_adam use_lion_optimizer",
            use_instead("train.optimizer", "a name, such as `adamw8bit`"),
        ),
        **for_each(
            "cache_text_encoder_outputs cache_text_encoder_outputs_to_disk",
            use_instead("train.cache_text_embeddings"),
        ),
        "LoRA_type": use_instead("network.type"),
        "sample_sampler": use_instead("sample.sampler"),
        "network_train_unet_only": no_counterpart(
            "only the transformer is ever trained"
        ),
        **for_each(
            "network_train_text_encoder_only learning_rate_te stop_text_encoder_training",
            no_counterpart("the text encoder is not trained"),
        ),
        **for_each(
            "clip_skip max_token_length weighted_captions",
            no_counterpart("it concerns CLIP, which Qwen-Image has not"),
        ),
        **for_each(
            "v2 v_parameterization",
            no_counterpart(
                "it concerns Stable Diffusion, and only Qwen-Image models are trained"
            ),
        ),
        **for_each(
            "noise_offset_random_strength multires_noise_iterations multires_noise_discount ip_noise_gamma "
            "ip_noise_gamma_random_strength adaptive_noise_scale zero_terminal_snr scale_v_pred_loss_like_noise_pred "
            "v_pred_like_loss debiased_estimation_loss",
            no_counterpart("it concerns models that predict noise"),
        ),
        "save_model_as": no_counterpart("a LoRA is always one safetensors file"),
        **for_each("vae_batch_size no_half_vae", no_counterpart(_ENCODED)),
        "mem_eff_attn": no_counterpart(_KERNEL),
    },
}
"""sd-scripts and its front end. Nothing of them is read: each name becomes an error
that says what it is here."""

DIFFUSERS: dict[str, Names] = {
    "": {
        "instance_data_dir": use_instead("datasets[].folder_path"),
        "class_data_dir": use_instead(
            "datasets[].is_reg", "a dataset with that folder, and `is_reg: true`"
        ),
        "instance_prompt": use_instead("datasets[].default_caption"),
        "random_flip": use_instead("datasets[].flip_x"),
        "center_crop": no_counterpart(
            "images are cropped to the bucket of their shape, around the middle"
        ),
        "num_train_epochs": use_instead("train.epochs"),
        "lora_alpha": use_instead("network.linear_alpha"),
        "lora_dropout": use_instead("network.dropout"),
        **for_each(
            "validation_prompt num_validation_images",
            use_instead("sample.samples", "as prompts, a list"),
        ),
        "checkpointing_steps": use_instead("save.save_every"),
        "checkpoints_total_limit": use_instead("save.max_states_to_keep"),
        "report_to": use_instead("logging.log_with"),
    },
}
"""The training scripts of diffusers, of which nothing is read either."""

FLAGS_OF_MUSUBI_TUNER: Names = {
    **for_each("output_file save_path save_to", renamed_to("output")),
    "image_dir": renamed_to("folder"),
    "output_format": renamed_to("format"),
    "max_new_tokens": renamed_to("max_tokens"),
    "negative_prompt": renamed_to("negative"),
    "infer_steps": renamed_to("steps"),
    "guidance_scale": renamed_to("cfg"),
    "control_image_path": renamed_to("reference"),
    "from_file": renamed_to("prompts"),
    "lora_weight": renamed_to("lora"),
    "new_rank": renamed_to("rank"),
    "save_precision": renamed_to("dtype"),
    **for_each(
        "dit vae text_encoder",
        no_counterpart(
            "Write --model FOLDER, which has all parts, and for a file --transformer-path, --vae-path and so on."
        ),
    ),
    "model_path": renamed_to("model"),
    **for_each("image_size size", no_counterpart("Write --height H --width W.")),
    **for_each(
        "lora_multiplier ratios",
        no_counterpart("Write the strength behind the file: --lora FILE:0.8."),
    ),
    "models": no_counterpart("Write --lora FILE:0.8 FILE:0.5."),
    "edit": no_counterpart(
        "Whether a model edits is read from its files. Leave it out, and give --reference."
    ),
    "text_encoder_cpu": no_counterpart(
        "The text encoder is read layer by layer. Leave it out."
    ),
    "resize_control_to_image_size": no_counterpart("Write --match-target-res."),
    "resize_control_to_official_size": no_counterpart(
        "That is the default. Leave it out."
    ),
    "attn_mode": no_counterpart("PyTorch chooses the attention kernel. Leave it out."),
    "fp8": no_counterpart("Write --quantize --qtype float8."),
    "fp8_scaled": no_counterpart("Write --quantize --qtype fp8_scaled."),
    "fp8_vl": no_counterpart("Write --quantize float8."),
    "no_sort": no_counterpart(
        "The files are always put in the order of their steps. Leave it out."
    ),
}
"""Flags of musubi-tuner's scripts on the commands of our tools. `renamed_to` names the
flag of any tool that has it; `no_counterpart` says what to write instead."""

NAMES: dict[tuple[str, str], Names] = {
    **{("other", section): rows for section, rows in OTHER_PROGRAMS.items()},
    **{("ai-toolkit", section): rows for section, rows in AI_TOOLKIT.items()},
    **{("musubi", section): rows for section, rows in MUSUBI_TUNER.items()},
    **{("kohya", section): rows for section, rows in KOHYA.items()},
    **{("diffusers", section): rows for section, rows in DIFFUSERS.items()},
    ("musubi", "flags"): FLAGS_OF_MUSUBI_TUNER,
}
"""(program, class of the section, "" or "flags") -> its rows."""

ROWS: dict[str, tuple[str, ForeignName]] = {
    key: (section, row)
    for section, rows in MUSUBI_TUNER.items()
    for key, row in rows.items()
}
"""Option of musubi-tuner -> the class of the section that accepts it unchanged, and its
row."""


@cache
def rows_of(section: type[BaseModel]) -> Names:
    """The names that may be written in a section; of two programs with one name the
    first has it."""
    names: Names = {}
    for cls in reversed(section.__mro__):
        for (_, class_name), rows in NAMES.items():
            if class_name == cls.__name__:
                names = names | rows | names
    return names
