"""The names of other programs: one row per key or flag, for the reader, the hints, the pages and the tests.

`NAMES[program, section][key]`. section: the class of our section in which the name may be written (`PLACES`); "" none:
such a name is unknown wherever it stands, and the message says what it is here; "flags" the commands of tools.
"musubi" is musubi-tuner's command line (kohya's trainers share many options), its dataset file and the program that
writes its files, at commit 30c658c; each option has one row. "ai-toolkit": commit 27a03a9; its keys mostly have the
same names here. "other": several programs, or earlier versions of this one. A new place of an option is a change of its
row, never a second one. "kohya" (sd-scripts and its GUI), "diffusers" (its scripts): what neither file nor command
is read of. Literals, since a table in YAML takes 15 to 100 times as long to load.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from pydantic import BaseModel

from toolkit.config.reading.field_types import slot_names
from toolkit.config.reading.foreign import ForeignName

Names = dict[str, ForeignName]


def is_(ours: str, says: str = "", **more: Any) -> ForeignName:
    """Another name of a key: the value means the same."""
    return ForeignName("is", tuple(ours.split()), says, **more)


def near(ours: str, says: str = "", **more: Any) -> ForeignName:
    """Another key does something like it; no value can be carried over."""
    return ForeignName("near", tuple(ours.split()), says, **more)


def shaped(ours: str, says: str = "", **more: Any) -> ForeignName:
    """A function of `shapes.py` turns it into our keys."""
    return ForeignName("shaped", tuple(ours.split()), says, **more)


def idle(says: str, ours: str = "", **more: Any) -> ForeignName:
    """Asks for nothing that is missing here: a note says why."""
    return ForeignName("idle", tuple(ours.split()), says, **more)


def refused(*passes: Any, ours: str = "", says: str = "", **more: Any) -> ForeignName:
    """Known and not supported. passes: the values that have no effect."""
    return ForeignName("refused", tuple(ours.split()), says, passes=passes, **more)


def absent(says: str) -> ForeignName:
    """There is no such thing here."""
    return ForeignName("absent", (), says)


def each(keys: str, row: ForeignName) -> Names:
    """Keys, separated by spaces, of which the same is true."""
    return dict.fromkeys(keys.split(), row)


def same(place: str, keys: str) -> Names:
    """Keys that have the same name here, at a place of ours."""
    return {key: is_(f"{place}.{key}") for key in keys.split()}


PLACES = {
    **dict.fromkeys(("TrainingSection", "ModelSection", "LintConfig", "ReportConfig"), ""),
    **dict.fromkeys(("OptimizerConfig", "OptimizationConfig", "TrainConfig"), "train"),
    **{f"{place.title()}Config": place for place in ("model", "network", "validation", "sample", "save", "logging")},
    "ModelKwargs": "model.model_kwargs",
    "NetworkKwargs": "network.network_kwargs",
    "DatasetConfig": "datasets[]",
    "EmaConfig": "train.ema_config",
    "LrGroupConfig": "train.lr_groups[]",
    "StopWhenConfig": "stop_when",
    "SampleItem": "sample.samples[]",
}
"""Class of a section -> its place in a process."""

_OWN_PAGES = "pages of this program are always replaced, other files never"
_ONE_FOLDER = "one folder in diffusers layout, or a hub id, holds all parts"
_LAYER_BY_LAYER = "captions go through the text encoder layer by layer, on the device of the training"
_ENCODED = "images and captions are encoded one at a time, each once, before training"
_CONTROL = "model.model_kwargs.control_resolution"
_VAE = "the VAE works in bands of rows, which gives the pixels of the whole image"
_KERNEL = "PyTorch chooses the attention kernel"
_FAMILY = "only Qwen-Image models and what is made from them can be trained. Give such a model, and leave this key out."

NAMES: dict[tuple[str, str], Names] = {
    ("other", "ReportConfig"): {"overwrite": idle(_OWN_PAGES)},
    ("other", "LintConfig"): {
        "overwrite": idle(_OWN_PAGES),
        "duplicate_bits": idle("copies are compared as images: see least_likeness"),
    },
    ("other", "TrainingSection"): {
        "log_dir": shaped("logging.logging_dir"),
        **each("performance_log_every torch_profiler", idle("metrics.jsonl has the times of every step")),
        "sqlite_db_path": idle("metrics.jsonl and events.jsonl are in the run's folder"),
        "training": shaped("train", "train, as {steps, epochs}"),
        "stop_condition": is_("stop_when"),
    },
    ("other", "ModelSection"): {
        **each("guidance embedding decorator adapter slider", refused()),
    },
    ("other", "ModelConfig"): {
        "ara": is_("model.accuracy_recovery_adapter"),
        "quantize_dtype": is_("model.qtype"),
        "quantize_te_dtype": is_("model.qtype_te"),
        "flux_cfg": idle("this trains Qwen-Image"),
    },
    ("other", "ModelKwargs"): {
        "kv_cache": refused(False),
        "use_comfy_weights": idle("the weights are those of `name_or_path`"),
    },
    ("other", "NetworkKwargs"): {
        "full_if_contains": refused(),
        # lycoris-lora 4.1.3, `create_lycoris`.
        "constrain": is_("network.network_kwargs.constraint"),
        **each(
            "conv_dim conv_alpha use_tucker use_cp use_conv_cp disable_conv_cp",
            idle("the transformer has no convolutions"),
        ),
        "bypass_mode": idle("what is added to the weight is computed, with any base"),
        **each("train_norm use_scalar decompose_both unbalanced_factorization rank_dropout_scale", refused(False)),
        "dora_wd": refused(False, says="`network: {type: dora}` is a DoRA of a plain LoRA"),
    },
    ("other", "DatasetConfig"): {
        "fixed_prompt_prefix": is_("datasets[].caption_prefix"),
        "persistent_workers": idle("loaders always live as long as the run"),
    },
    ("other", "ValidationConfig"): {"every_n_steps": is_("validation.every")},
    ("other", "OptimizationConfig"): {
        "validation": shaped("validation", "validation of the process"),
        "stop_when": shaped("stop_when", "stop_when of the process"),
    },
    ("other", "EmaConfig"): {
        "power_averages": idle("it was removed; `run.py post_hoc_ema` averages the files of a run"),
    },
    ("other", "TrainConfig"): {
        "gradient_checkpointing_offload": shaped(
            "train.gradient_checkpointing", "gradient_checkpointing: full_offload"
        ),
        "content_or_style_reg": refused("balanced"),
    },
    ("other", "LrGroupConfig"): {"pattern": is_("train.lr_groups[].match")},
    ("other", "StopWhenConfig"): {
        "loss_name": is_("stop_when.metric"),
        "threshold": is_("stop_when.below"),
    },
    ("other", "SampleConfig"): {"discrete_flow_shift": is_("sample.flow_shift")},
    ("other", "SampleItem"): {"discrete_flow_shift": is_("sample.samples[].flow_shift")},
    ("ai-toolkit", "TrainingSection"): {
        "optimizer": shaped(
            "train.optimizer train.lr train.optimizer_params",
            "train.optimizer, train.lr and train.optimizer_params, as {name, lr, ...}",
        ),
    },
    ("ai-toolkit", "ModelConfig"): {
        "compile": shaped("train.compile", "train.compile, where `true` is short for `enabled: true`"),
        "block_compile": shaped("train.compile.enabled"),
        "compile_mode": shaped("train.compile.mode"),
        "compile_dynamic": shaped("train.compile.dynamic"),
        "compile_fullgraph": shaped("train.compile.fullgraph"),
        "cache_size_limit": shaped("train.compile.cache_size_limit"),
        **each(
            "is_flux is_xl is_v2 is_v3 is_v_pred is_pixart is_pixart_sigma is_auraflow is_lumina2 is_ssd is_vega",
            idle("this trains Qwen-Image", on=_FAMILY),
        ),
        **each(
            "use_flux_cfg use_text_encoder_1 use_text_encoder_2 experimental_xl refiner_name_or_path",
            idle("this trains Qwen-Image"),
        ),
        **each("dtype te_dtype", idle("train.dtype decides")),
        "attn_masking": idle("captions of a batch are never padded"),
        "refiner_start_at": idle("there is no refiner"),
        "latent_space_version": idle("the cache knows a VAE by its weights"),
        "text_encoder_bits": idle("quantize_te and qtype_te decide"),
        **each(
            "layer_offloading auto_memory layer_offloading_transformer_percent",
            shaped("model.blocks_to_swap", "that share of the blocks; whole blocks wait in main memory"),
        ),
        "layer_offloading_text_encoder_percent": idle("captions are encoded before the training"),
        **each("split_model_over_gpus in_context", refused(False)),
        "lora_path": refused(ours="model.base_loras"),
        "assistant_lora_path": shaped("train.assistant", "train.assistant, a file; off in samples there and here"),
        **each(
            "inference_lora_path unconditional_lora_path "
            "te_name_or_path unet_path only_if_contains ignore_if_contains unet_sample_size "
            "vae_device model_paths",
            refused(),
        ),
        "extras_name_or_path": shaped(
            "model.name_or_path", "`name_or_path`, where that is a file: then it is `transformer_path`"
        ),
        "quantize_kwargs": refused(says="every matrix of the blocks is quantized"),
        "te_device": idle(_LAYER_BY_LAYER),
        "split_model_other_module_param_count_scale": refused(0.3, needs="split_model_over_gpus"),
    },
    ("ai-toolkit", "NetworkConfig"): {
        "rank": is_("network.linear"),
        "alpha": is_("network.linear_alpha"),
        "lokr_factor": is_("network.factor"),
        "split_multistage_loras": idle("Qwen-Image has one stage"),
        **each("conv conv_alpha", idle("the transformer has no convolutions")),
        "old_lokr_format": idle("LoKr files are written in the current form only"),
        "lorm": refused(),
        "transformer_only": refused(True, says="always so: the layers of the blocks"),
        **each("all_layers layer_offloading", refused(False)),
    },
    ("ai-toolkit", "NetworkKwargs"): {
        "lokr_full_rank": shaped("network.lokr_full_rank"),
        "factor": shaped("network.factor"),
        "transformer_only": refused(True),
    },
    ("ai-toolkit", "DatasetConfig"): {
        "caption_type": is_("datasets[].caption_ext"),
        **dict.fromkeys(slot_names("control_path"), shaped("datasets[].control_path")),
        "control_transparent_color": shaped("datasets[].background", "background, as [red, green, blue] of 0 to 255"),
        "buckets": idle("images are always grouped by size"),
        "bucket_tolerance": idle("sides are always multiples of 32"),
        "prefetch_factor": idle("batches are small, everything is encoded before"),
        "full_size_control_images": idle("control images always keep their own size"),
        **each("fps do_i2v auto_frame_count trim_auto_frame_count_tail", idle("it concerns videos")),
        **each("do_audio audio_preserve_pitch audio_normalize", idle("it concerns audio")),
        **each(
            "clip_image_path cache_clip_vision_to_disk clip_image_from_same_folder clip_image_augmentations "
            "clip_image_shuffle_augmentations",
            idle("the model has no CLIP image encoder"),
        ),
        **each(
            "cache_tensors_to_disk load_image_when_caching_latents cache_latents_num_workers",
            idle("what is cached is encoded one at a time, each once"),
        ),
        "fast_image_size": idle("the size of an image is always read from its header"),
        "replay_transforms": idle("control images are flipped with their image"),
        "debug": idle("the log has one level"),
        **each("use_short_captions short_and_long_captions", idle("a caption is one text file")),
        **each(
            "dataset_path random_triggers replacements augments augmentations controls unconditional_path "
            "inpaint_path poi extra_values",
            refused(),
        ),
        "diff_output_preservation_class": refused(needs="diff_output_preservation"),
        **each(
            "prior_reg random_crop random_scale square_crop control_from_same_folder standardize_images "
            "diff_output_preservation shuffle_augmentations",
            refused(False),
        ),
        "batch_size": refused(1, ours="train.batch_size", says="one for all datasets; 1: a note"),
        "guidance_type": refused("targeted"),
        **each("network_weight scale random_triggers_max num_frames", refused(1)),
        "token_dropout_rate": refused(0),
        "num_controls_from_same_folder": refused(0, 1),
        "shrink_video_to_frames": refused(True, False),
        "type": refused("image"),
    },
    ("ai-toolkit", "ValidationConfig"): {
        "validate_every_n_steps": is_("validation.every"),
        **dict.fromkeys(slot_names("control_path"), shaped("validation.control_path")),
    },
    ("ai-toolkit", "OptimizationConfig"): {
        "gradient_accumulation_steps": is_(
            "train.gradient_accumulation",
            "averages, and `steps` counts optimizer steps; there it drops gradients, and `steps` counts micro-batches",
        ),
    },
    ("ai-toolkit", "TrainConfig"): {
        "unet_lr": is_("train.lr"),
        **each("sdp attention_backend", idle(_KERNEL)),
        "switch_boundary_every": idle("Qwen-Image has one stage"),
        "audio_loss_multiplier": idle("it concerns audio"),
        "bypass_guidance_embedding": idle("Qwen-Image has no guidance embedding"),
        "text_encoder_lr": idle("the text encoder is not trained"),
        "embedding_lr": idle("no embedding is trained"),
        "adapter_lr": idle("no image adapter is trained"),
        **each("refiner_lr train_refiner", idle("there is no refiner")),
        **each("min_snr_gamma snr_gamma", idle("it concerns models that predict noise")),
        "next_sample_timesteps": idle("it concerns timestep_type next_sample"),
        "free_u": idle("it concerns Stable Diffusion"),
        **each(
            "unload_text_encoder force_consistent_noise "
            "inverted_mask_prior do_prior_divergence do_paramiter_swapping do_cfg merge_network_on_save "
            "single_item_batching max_loss_debug t0_loss_target do_fft_loss match_adapter_assist train_turbo "
            "show_turbo_outputs learnable_snr_gos do_signal_correction_noise do_batch_noise_correction "
            "do_signal_amplification adaptive_scaling_factor match_noise_norm short_and_long_captions "
            "short_and_long_captions_encoder_split standardize_images standardize_latents "
            "dynamic_noise_offset do_random_cfg correct_pred_norm t0_velocity_equiv_weight "
            "do_fft_velocity_equiv_weight blended_blur_noise do_blank_stabilization",
            refused(False),
        ),
        **each(
            "do_differential_guidance do_guidance_loss",
            refused(False, says="the loss here has one target, the model's own; more steps do what it speeds up"),
        ),
        "do_guidance_loss_cfg_zero": refused(False, needs="do_guidance_loss"),
        **each(
            "start_step noise_offset weight_jitter random_noise_multiplier random_noise_shift "
            "match_adapter_chance prompt_saturation_chance",
            refused(0),
        ),
        "min_denoising_steps": refused(
            0, ours="train.min_timestep train.max_timestep", says="places on a list of levels; here noise"
        ),
        "prompt_dropout_prob": refused(0, ours="datasets[].caption_dropout_rate"),
        **each(
            "noise_multiplier img_multiplier latent_multiplier optimal_noise_pairing_samples "
            "target_noise_multiplier noisy_latent_multiplier max_negative_prompts pred_scaler",
            refused(1),
        ),
        **each("cfg_scale max_cfg_scale", refused(1, needs="do_cfg")),
        "merge_network_on_save_strength": refused(1, needs="merge_network_on_save"),
        "signal_correction_noise_scale": refused(1, needs="do_signal_correction_noise"),
        "correct_pred_norm_multiplier": refused(1, needs="correct_pred_norm"),
        "target_norm_std_value": refused(1, needs="target_norm_std"),
        "latent_feature_loss_weight": refused(1, needs="latent_feature_extractor_path"),
        "diffusion_feature_extractor_weight": refused(1, needs="diffusion_feature_extractor_path"),
        "signal_amplification_strength": refused(0.5, needs="do_signal_amplification"),
        "batch_noise_correction_scale": refused(0.1, needs="do_batch_noise_correction"),
        "adapter_assist_type": refused("t2i", needs="adapter_assist_name_or_path"),
        "differential_guidance_scale": refused(3, needs="do_differential_guidance"),
        "guidance_loss_target": refused(3, needs="do_guidance_loss"),
        "guidance_loss_schedule": refused(needs="do_guidance_loss"),
        **each(
            "max_loss latent_feature_extractor_path diffusion_feature_extractor_path "
            "adapter_assist_name_or_path negative_prompt target_norm_std unconditional_prompt",
            refused(),
        ),
        "validation_config": refused(ours="validation"),
        "cfg_rescale": refused(needs="do_cfg"),
        "max_denoising_steps": refused(
            999, 1000, ours="train.min_timestep train.max_timestep", says="places on a list of levels; here noise"
        ),
        "num_train_timesteps": refused(1000),
        "loss_target": refused("noise"),
        "inverted_mask_prior_multiplier": refused(0.5, needs="inverted_mask_prior"),
        "paramiter_swapping_factor": refused(0.1, needs="do_paramiter_swapping"),
    },
    ("ai-toolkit", "EmaConfig"): {
        "use_feedback": refused(False),
        "param_multiplier": refused(1),
    },
    ("ai-toolkit", "SampleConfig"): {
        "fps": idle("it concerns videos"),
        "refiner_start_at": idle("there is no refiner"),
        "adapter_conditioning_scale": idle("there is no image adapter"),
        "network_multiplier": refused(1, says="images are generated with the network that is saved"),
        "num_frames": refused(1),
        "guidance_rescale": refused(0),
        "do_cfg_norm": refused(False),
        "extra_values": refused(),
    },
    ("ai-toolkit", "SampleItem"): {
        "fps": idle("it concerns videos"),
        **each("network_multiplier num_frames", refused(1, "1", "1.0")),  # its page writes text
        **each("guidance_rescale ctrl_idx", refused(0)),
        "do_cfg_norm": refused(False),
    },
    ("ai-toolkit", "SaveConfig"): {
        "save_format": idle("an adapter is always one safetensors file, a whole model a diffusers folder"),
    },
    ("ai-toolkit", "LoggingConfig"): {
        "project_name": is_("logging.wandb_project"),
        "run_name": is_("logging.wandb_run_name"),
        "use_wandb": shaped("logging.log_with", "log_with: wandb, or all when logging_dir is given"),
        "verbose": idle("the log has one level"),
        "use_ui_logger": idle("metrics.jsonl has every step"),
    },
    ("musubi", "ModelConfig"): {
        "model_version": is_("model.arch"),
        "fp8_base": shaped("model.quantize model.qtype", "quantize with qtype float8, with fp8_scaled that"),
        "fp8_scaled": shaped("model.quantize model.qtype", "quantize with qtype fp8_scaled"),
        "fp8_vl": shaped("model.quantize_te model.qtype_te", "quantize_te with qtype_te float8"),
        "base_weights": shaped("model.base_loras", "base_loras, as a list of paths; empty: none"),
        "base_weights_multiplier": shaped("model.base_loras[].multiplier", "base_loras, as a list of multipliers"),
        "vae_dtype": idle("train.dtype decides, for all parts", "train.dtype"),
        "attn_mode": idle(_KERNEL),
    },
    ("musubi", "NetworkConfig"): {
        "network_dim": is_("network.linear", "0 is an error", default=4),
        "network_alpha": is_(
            "network.linear_alpha", "here `linear` unless given; 0: no effect, one warning", default=1
        ),
        "network_dropout": is_("network.dropout", "0: off"),
        "network_weights": is_("network.pretrained_lora_path", "empty: from the start"),
        "network_args": shaped("network", "keys of this section, as a list of texts `name=value`; empty: none"),
        "network_module": shaped(
            "network.type", "type: networks.lora_qwen_image, networks.loha, networks.lokr; lycoris.kohya, with its algo"
        ),
    },
    ("musubi", "DatasetConfig"): {
        "caption_extension": is_(
            "datasets[].caption_ext", "images without such a file are left out there; here a warning names them"
        ),
        "image_directory": is_("datasets[].folder_path"),
    },
    ("musubi", "OptimizerConfig"): {
        "learning_rate": is_("train.lr", "0: nothing is learned, one warning", default=2e-6),
        "optimizer_type": is_("train.optimizer", "short names and dotted paths of classes"),
        "lr_scheduler_type": shaped(
            "", "classes of schedules are not loaded; give train.lr_scheduler one of its names"
        ),
        "optimizer_args": shaped(
            "train.optimizer_params",
            "optimizer_params, as a list of texts `name=value`; empty: the optimizer's own defaults",
        ),
        "lr_scheduler_args": shaped(
            "train.lr_scheduler_params", "lr_scheduler_params, as a list of texts `name=value`"
        ),
    },
    ("musubi", "OptimizationConfig"): {
        "max_train_steps": is_("train.steps", "0 is an error, unless epochs are given", default=1600),
        "max_train_epochs": is_("train.epochs", "0: `steps` decides"),
        "mixed_precision": is_("train.dtype"),
        "seed": shaped("training_seed", "training_seed of the process"),
    },
    ("musubi", "TrainConfig"): {
        "timestep_sampling": is_("train.timestep_type", "here `sigmoid` unless given", default="sigma"),
        "gradient_checkpointing_cpu_offload": shaped(
            "train.gradient_checkpointing", "gradient_checkpointing: full_offload"
        ),
        "compile_backend": shaped("train.compile.backend", "compile.backend"),
        "compile_mode": shaped("train.compile.mode", "compile.mode"),
        "compile_dynamic": shaped("train.compile.dynamic", "compile.dynamic"),
        "compile_fullgraph": shaped("train.compile.fullgraph", "compile.fullgraph"),
        "compile_cache_size_limit": shaped("train.compile.cache_size_limit", "compile.cache_size_limit; 0: 32"),
        **each("xformers sdpa flash_attn flash3", idle(_KERNEL)),
        "split_attn": idle("captions of a batch are never padded"),
        "persistent_data_loader_workers": idle("loaders always live as long as the run"),
        "ddp_gradient_as_bucket_view": idle(
            "gradients are added up in buckets of their own, not by DistributedDataParallel"
        ),
        "ddp_static_graph": idle("gradients are added up once per step, not by DistributedDataParallel"),
        "full_fp16": refused(False, says="trained weights are float32, or bf16 with train.full_bf16"),
    },
    ("musubi", "TrainingSection"): {"dataset_config": shaped("datasets", "the file is read, with its defaults")},
    ("musubi", "SampleConfig"): {
        "sample_every_n_steps": is_("sample.sample_every", "0: none at intervals"),
        "sample_prompts": shaped(
            "sample.samples", "as prompts: a list, a text file with one prompt per line, or its JSON or TOML"
        ),
    },
    ("musubi", "SaveConfig"): {
        "save_every_n_steps": is_(
            "save.save_every", "0: only the final file; above 0 it decides over epochs", default=0
        ),
        "save_last_n_steps": is_(
            "save.max_step_saves_to_keep", "a number of files, not a distance in steps; 0: all", default=0
        ),
        "save_precision": is_("save.dtype", "here float16 unless given", default="float32"),
        "save_state": idle("a state is saved each time unless 'states' says less", "save.states"),
        "save_state_on_train_end": idle(
            "a state is saved each time unless 'states' says less: 'at_end' is instead of the others, there as well",
            "save.states",
        ),
    },
    ("musubi", "LoggingConfig"): {
        "log_tracker_config": refused(says="give the keys `wandb_*` of `logging` instead"),
    },
    ("musubi", ""): {
        **same(
            "train",
            "lr_scheduler lr_scheduler_num_cycles lr_scheduler_power lr_scheduler_min_lr_ratio "
            "lr_scheduler_timescale full_bf16 fused_backward_pass cuda_allow_tf32 cuda_cudnn_benchmark "
            "sigmoid_scale weighting_scheme mode_scale min_timestep max_timestep preserve_distribution_shape",
        ),
        **same("network", "loraplus_lr_ratio include_patterns exclude_patterns rank_dropout module_dropout factor"),
        **same("save", "mem_eff_save no_metadata"),
        **same("logging", "log_tracker_name log_config wandb_run_name"),
        "dit": near(
            "model.name_or_path model.transformer_path",
            "the model folder it lies in; a file that lies alone is `transformer_path`, beside the published model",
        ),
        **{
            key: near(f"model.name_or_path model.{key}_path", f"as `dit`; a file that lies alone is `{key}_path`")
            for key in ("vae", "text_encoder")
        },
        **each("edit edit_plus", near("model.arch", "read from the model's own files")),
        "dit_dtype": near("train.dtype", "bf16 unless another is given"),
        "blocks_to_swap": is_("model.blocks_to_swap", "0: none"),
        "sage_attn": idle(_KERNEL),
        "num_layers": idle("read from the model's own files"),
        "img_in_txt_in_offloading": idle("these layers are small and stay on the device"),
        "block_swap_h2d_only": idle("frozen weights are only ever copied to the device"),
        "block_swap_ring_size": idle("two swapped blocks have room on the device"),
        "use_pinned_memory_for_block_swap": idle("swapped blocks always wait in pinned memory"),
        "disable_numpy_memmap": idle("files are read tensor by tensor"),
        **each("vae_enable_tiling vae_tiling", idle(_VAE)),
        "remove_first_image_from_target": near(
            "model.model_kwargs.composite_target", "true is `composite_target: false`"
        ),
        "multiple_target": near(
            "datasets[].layers_suffix", "true is `layers_suffix: _`: the layers `a_0.png`, `a_1.png`"
        ),
        "output_layers": near("sample.layers", "it counts the layers without the image itself"),
        "automatic_prompt_lang_for_layered": absent("a prompt is never written for a sample; give one"),
        "image_jsonl_file": is_("datasets[].captions_file", "without `folder_path` it names the images"),
        "general": near("config.defaults", "for all processes; a list of datasets is replaced as a whole"),
        "batch_size": near("train.batch_size", "one for all datasets"),
        **each("video_directory video_jsonl_file", absent("videos cannot be trained here")),
        "debug_dataset": idle("`--dry-run` prints what was found, with the sizes"),
        **each(
            "target_frames frame_extraction frame_stride frame_sample max_frames source_fps",
            absent("videos cannot be trained here"),
        ),
        **each(
            "fp_latent_window_size fp_1f_clean_indices fp_1f_target_index fp_1f_no_post",
            idle("it concerns FramePack"),
        ),
        **each(
            "task t5 fp8_t5 clip dit_high_noise timestep_boundary offload_inactive_dit one_frame "
            "force_v2_1_time_embedding text_encoder1 text_encoder2 fp8_llm image_encoder "
            "latent_window_size bulk_decode f1",
            absent("it concerns another model, and only Qwen-Image models can be trained here"),
        ),
        **each("vae_chunk_size vae_spatial_tile_sample_min_size vae_cache_cpu", idle(_VAE)),
        **each(
            "num_processes num_machines num_cpu_threads_per_process multi_gpu gpu_ids main_process_port "
            "extra_accelerate_launch_args dynamo_use_fullgraph dynamo_use_dynamic",
            idle("several processes are started by torchrun (docs/multi_gpu.md)"),
        ),
        "num_repeats": is_("datasets[].num_repeats", "1 also where the folder's name begins with a number", default=1),
        "flux_kontext_no_resize_control": near(_CONTROL, "the older name of no_resize_control"),
        "qwen_image_edit_no_resize_control": near(_CONTROL, "the older name of no_resize_control"),
        "qwen_image_edit_control_resolution": near(_CONTROL, "the older name of control_resolution"),
        "resolution": is_(
            "datasets[].resolution",
            "there `[960, 544]` is one rectangle, which is `{width: 960, height: 544}` here; a list is a list of sizes",
            default=[960, 544],
        ),
        "control_directory": is_(
            "datasets[].control_path",
            "`a.png`, then `a_0.png`, `a_1.png` and so on, for `a.jpg`, as in musubi-tuner; other endings are listed",
        ),
        "control_resolution": near(
            f"{_CONTROL} model.model_kwargs.match_target_res",
            "the side of a square of that area; left out, there: control images follow their image, `match_target_res`",
        ),
        "no_resize_control": near(_CONTROL, "control images are always scaled to an area; the side of its square"),
        "cache_directory": near("datasets[].cache_latents_to_disk", "one cache for all runs, in the training folder"),
        "enable_bucket": idle("images are always grouped by size; one size for all is a rectangle as `resolution`"),
        "bucket_no_upscale": idle("images are enlarged only as far as sides of multiples of 32 demand"),
        **each("caching_latent_batch_size caching_teo_batch_size", idle(f"{_ENCODED}; 0 would be an error there")),
        **each("caching_latent_num_workers caching_teo_num_workers", idle(_ENCODED)),
        "skip_existing": idle("what is cached is known by its content and never encoded twice"),
        "keep_cache": idle("nothing is removed from the cache"),
        "max_data_loader_n_workers": is_("datasets[].num_workers", "0: the main thread"),
        "gradient_accumulation_steps": is_("train.gradient_accumulation", "0 is an error"),
        "max_grad_norm": is_("train.max_grad_norm", "0: no clipping"),
        "lr_warmup_steps": is_("train.lr_warmup_steps", "0: none; below 1 a share of all steps"),
        "lr_decay_steps": is_(
            "train.lr_decay_steps", "0: none; below 1 a share of all steps. There only warmup_stable_decay heeds it"
        ),
        "ddp_timeout": is_("train.ddp_timeout", "minutes; 0: the library's default"),
        "gradient_checkpointing": is_("train.gradient_checkpointing", "`auto` unless given"),
        "compile": is_("train.compile", "`true` is short for `enabled: true`"),
        **{
            f"dynamo_{key}": near(f"train.compile.{key}", "of `accelerate`; here the section `train.compile`")
            for key in ("backend", "mode", "dynamic", "fullgraph")
        },
        "discrete_flow_shift": is_(
            "train.discrete_flow_shift", "0 is an error with `timestep_type: shift`", default=1.0
        ),
        "logit_mean": is_("train.logit_mean", "0: the middle; above 0 less noise, as in musubi-tuner"),
        "logit_std": is_("train.logit_std", "0 is an error"),
        "num_timestep_buckets": is_("train.num_timestep_buckets", "0: off"),
        "show_timesteps": absent("noise levels are not plotted; metrics.jsonl has the mean of each step, `t_mean`"),
        "timestep_bucketing": near("train.num_timestep_buckets", "a number of parts, not a switch"),
        **each("conv_dim conv_alpha", idle("the transformer has no convolutions")),
        "verbose": idle("the log has one level"),
        "scale_weight_norms": is_("network.scale_weight_norms", "0: off"),
        "dim_from_weights": absent("network.linear is the rank, and a file of another one is brought to it"),
        "output_dir": is_("training_folder", "`output` unless given; the files go to `<training_folder>/<name>/`"),
        "output_name": is_("config.name", "required"),
        "resume": near("resume", "states of that program are not read; a run goes on from its own"),
        "save_every_n_epochs": is_("save.save_every_n_epochs", "0: only the final file"),
        "save_last_n_epochs": is_("save.save_last_n_epochs", "0: all"),
        **each(
            "save_last_n_epochs_state save_last_n_steps_state", near("save.max_states_to_keep", "a number of states")
        ),
        "training_comment": is_("meta.training_comment"),
        **{
            f"metadata_{key}": is_(f"meta.{key}", f"becomes `modelspec.{key}`")
            for key in ("title", "author", "description", "license", "tags")
        },
        "metadata_reso": idle("`modelspec.resolution` is that of the datasets"),
        "metadata_arch": idle("`modelspec.architecture` is that of the model"),
        "huggingface_repo_id": is_("save.hf_repo_id", "needs `save.push_to_hub`", tool="publish"),
        "huggingface_repo_visibility": near("save.hf_private", "`private` is `true`", tool="publish --private"),
        "huggingface_token": idle("it comes from HF_TOKEN or `hf auth login`, never from a file"),
        "async_upload": idle("the upload follows the training"),
        **each(
            "huggingface_path_in_repo huggingface_repo_type save_state_to_huggingface resume_from_huggingface",
            absent("only LoRA files are uploaded, with a model card, to a model repository"),
        ),
        "sample_every_n_epochs": is_("sample.sample_every_n_epochs", "0: none; above 0 it decides over steps"),
        "sample_at_first": is_("sample.sample_at_first train.skip_first_sample", "here a set is drawn unless skipped"),
        "negative_prompt": near("sample.neg", tool="generate --negative"),
        "image_size": near("sample.width sample.height", "there height first", tool="generate --height --width"),
        "infer_steps": near("sample.sample_steps", tool="generate --steps"),
        "guidance_scale": near("sample.guidance_scale", tool="generate --cfg"),
        "flow_shift": near("sample.flow_shift", tool="generate --flow-shift"),
        "control_image_path": near("sample.samples[].ctrl_img", tool="generate --reference"),
        "resize_control_to_image_size": near("model.model_kwargs.match_target_res", "for training and images alike"),
        "resize_control_to_official_size": near("model.model_kwargs.match_target_res", "off is the official size"),
        "text_encoder_cpu": idle(_LAYER_BY_LAYER),
        "lora_weight": near(
            "model.base_loras",
            "merged into the model; `network.pretrained_lora_path` is trained on",
            tool="generate --lora",
        ),
        "lora_multiplier": near("model.base_loras[].multiplier", "`--lora FILE:0.8`", tool="generate --lora"),
        "logging_dir": is_("logging.logging_dir", "empty: no TensorBoard"),
        "log_with": is_("logging.log_with", "empty: TensorBoard when logging_dir is given"),
        "log_prefix": is_("logging.log_prefix", "empty: none; there is no time in the folder's name"),
        "wandb_api_key": is_("logging.wandb_api_key", "empty: from the environment"),
        "prompt": near("sample.samples[].prompt", tool="generate --prompt"),
        "from_file": near("sample.samples", "a text file with one prompt per line", tool="generate --prompts"),
        "fp8": near("model.quantize model.qtype", "`qtype: float8`", tool="generate --quantize --qtype"),
        "fp8_fast": idle("the number type decides; products are never rounded further"),
        "device": is_("device", tool="generate --device"),
        "save_path": near(
            "training_folder", "the key is for the images that are generated during training", tool="generate --output"
        ),
        "mask_path": near("datasets[].mask_path", "there it limits what is generated, here what is trained"),
        "interactive": near("", tool="generate --interactive"),
        "save_merged_model": near("", tool="merge --base --output"),
        "lycoris": near("", "LoHa and LoKr files need no switch", tool="generate --lora"),
        "output_type": near("", tool="generate --output-type"),
        "latent_path": near("", "safetensors files only", tool="generate --latent-path"),
        "append_original_name": idle("a file's name begins with the prompt's number and words"),
        "bell": idle("nothing rings when a prompt is done"),
        "cfg_normalize": idle("always so, as in diffusers"),
        "embedded_cfg_scale": idle("the model has no embedded guidance"),
        "ckpt_dir": absent(_ONE_FOLDER),
        **each(
            "rcm_debug_save rcm_dilate_size rcm_kernel_size rcm_relative_threshold rcm_threshold",
            absent("control images are not masked while an image is generated"),
        ),
        "additional_parameters": absent("nothing is started by a command line that could be added to"),
        "config_file": absent("the job is the configuration"),
    },
    # Keys that are never read: they become an error that says what they are here.
    ("kohya", ""): {
        "image_dir": near("datasets[].folder_path"),
        "train_data_dir": near("datasets[].folder_path"),
        "reg_data_dir": near("datasets[].is_reg", "a dataset with that folder, and `is_reg: true`"),
        **each("metadata_file in_json", near("datasets[].captions_file")),
        "conditioning_data_dir": near("datasets[].control_path"),
        "class_tokens": near("datasets[].default_caption"),
        "dataset_repeats": near("datasets[].num_repeats"),
        "shuffle_caption": near("datasets[].shuffle_tokens"),
        "keep_tokens_separator": near("datasets[].keep_tokens", "a number of tags"),
        "enable_wildcard": near("datasets[].captions", "`lines`: one line of the file for each use"),
        "caption_dropout_every_n_epochs": near("datasets[].caption_dropout_rate", "a share of the uses"),
        "flip_aug": near("datasets[].flip_x", "every image is used twice, once mirrored"),
        "masked_loss": near("datasets[].mask_path datasets[].alpha_mask"),
        **each("color_aug face_crop_aug_range", absent("images are mirrored at most, never changed otherwise")),
        **each(
            "caption_separator secondary_separator caption_tag_dropout_rate token_warmup_min token_warmup_step",
            absent("tags are separated by commas and used from the first step on"),
        ),
        **each(
            "min_bucket_reso max_bucket_reso bucket_reso_steps max_resolution",
            near("datasets[].resolution", "the area of an image; buckets follow from it"),
        ),
        "pretrained_model_name_or_path": near("model.name_or_path"),
        "lowram": near("model.low_vram"),
        "train_batch_size": near("train.batch_size"),
        "prior_loss_weight": near("train.reg_weight"),
        "lr_warmup": near("train.lr_warmup_steps"),
        "epoch": near("train.epochs"),
        **each("use_8bit_adam use_lion_optimizer", near("train.optimizer", "a name, such as `adamw8bit`")),
        **each("cache_text_encoder_outputs cache_text_encoder_outputs_to_disk", near("train.cache_text_embeddings")),
        "LoRA_type": near("network.type"),
        "sample_sampler": near("sample.sampler"),
        "network_train_unet_only": absent("only the transformer is ever trained"),
        **each(
            "network_train_text_encoder_only learning_rate_te stop_text_encoder_training",
            absent("the text encoder is not trained"),
        ),
        **each("clip_skip max_token_length weighted_captions", absent("it concerns CLIP, which Qwen-Image has not")),
        **each("v2 v_parameterization", absent("it concerns Stable Diffusion, and only Qwen-Image models are trained")),
        **each(
            "noise_offset_random_strength multires_noise_iterations multires_noise_discount ip_noise_gamma "
            "ip_noise_gamma_random_strength adaptive_noise_scale zero_terminal_snr scale_v_pred_loss_like_noise_pred "
            "v_pred_like_loss debiased_estimation_loss",
            absent("it concerns models that predict noise"),
        ),
        "save_model_as": absent("a LoRA is always one safetensors file"),
        **each("vae_batch_size no_half_vae", absent(_ENCODED)),
        "mem_eff_attn": absent(_KERNEL),
    },
    ("diffusers", ""): {
        "instance_data_dir": near("datasets[].folder_path"),
        "class_data_dir": near("datasets[].is_reg", "a dataset with that folder, and `is_reg: true`"),
        "instance_prompt": near("datasets[].default_caption"),
        "random_flip": near("datasets[].flip_x"),
        "center_crop": absent("images are cropped to the bucket of their shape, around the middle"),
        "num_train_epochs": near("train.epochs"),
        "lora_alpha": near("network.linear_alpha"),
        "lora_dropout": near("network.dropout"),
        **each("validation_prompt num_validation_images", near("sample.samples", "as prompts, a list")),
        "checkpointing_steps": near("save.save_every"),
        "checkpoints_total_limit": near("save.max_states_to_keep"),
        "report_to": near("logging.log_with"),
    },
    # Flags of its scripts on our commands: "is" the key of any tool that has it, else what to write instead.
    ("musubi", "flags"): {
        **each("output_file save_path save_to", is_("output")),
        "image_dir": is_("folder"),
        "output_format": is_("format"),
        "max_new_tokens": is_("max_tokens"),
        "negative_prompt": is_("negative"),
        "infer_steps": is_("steps"),
        "guidance_scale": is_("cfg"),
        "control_image_path": is_("reference"),
        "from_file": is_("prompts"),
        "lora_weight": is_("lora"),
        "new_rank": is_("rank"),
        "save_precision": is_("dtype"),
        **each(
            "dit vae text_encoder",
            absent(
                "Write --model FOLDER, which has all parts, and for a file --transformer-path, --vae-path and so on."
            ),
        ),
        "model_path": is_("model"),
        **each("image_size size", absent("Write --height H --width W.")),
        **each("lora_multiplier ratios", absent("Write the strength behind the file: --lora FILE:0.8.")),
        "models": absent("Write --lora FILE:0.8 FILE:0.5."),
        "edit": absent("Whether a model edits is read from its files. Leave it out, and give --reference."),
        "text_encoder_cpu": absent("The text encoder is read layer by layer. Leave it out."),
        "resize_control_to_image_size": absent("Write --match-target-res."),
        "resize_control_to_official_size": absent("That is the default. Leave it out."),
        "attn_mode": absent("PyTorch chooses the attention kernel. Leave it out."),
        "fp8": absent("Write --quantize --qtype float8."),
        "fp8_scaled": absent("Write --quantize --qtype fp8_scaled."),
        "fp8_vl": absent("Write --quantize float8."),
        "no_sort": absent("The files are always put in the order of their steps. Leave it out."),
    },
}

ROWS: dict[str, tuple[str, ForeignName]] = {
    key: (section, row)
    for (program, section), rows in NAMES.items() if program == "musubi" and section != "flags"
    for key, row in rows.items()
}  # fmt: skip
"""Option of musubi-tuner -> the class of the section that accepts it unchanged, and its row."""


@cache
def rows_of(section: type[BaseModel]) -> Names:
    """The names that may be written in a section; of two programs with one name the first has it."""
    found: Names = {}
    for cls in reversed(section.__mro__):
        for (_, name), rows in NAMES.items():
            if name == cls.__name__:
                found = found | rows | found
    return found
