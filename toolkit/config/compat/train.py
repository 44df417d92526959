"""`train` as other programs write it."""

from __future__ import annotations

from dataclasses import replace

from pydantic import BaseModel

from toolkit.config.base import Entries, ForeignNames, refuse
from toolkit.config.compat import peer_names
from toolkit.config.located import Diagnostics, show
from toolkit.config.normalise import merge_aliases, merged, read_pairs

SCHEDULE_SPELLINGS = {
    "reduce_lr_on_plateau": "plateau",
    "reducelronplateau": "plateau",
    "steplr": "step",
    "exponentiallr": "exponential",
    "constantlr": "ConstantLR",
    "linearlr": "LinearLR",
    "cosineannealinglr": "CosineAnnealingLR",
}

OPTIMIZER_SPELLINGS = {
    "adamw_8bit": "adamw8bit",
    "adam_8bit": "adam8bit",
    "lion_8bit": "lion8bit",
    "prodigyopt": "prodigy",
    "adamw_schedule_free": "schedulefree_adamw",
    "adamwschedulefree": "schedulefree_adamw",
    "schedulefree": "schedulefree_adamw",
}

TIMESTEP_TYPE_SPELLINGS = {"qwen_shift": "model_shift", "qinglong_qwen": "qinglong_model"}

LOSS_SPELLINGS = {"l2": "mse", "l1": "mae"}

_OFFLOAD = ("gradient_checkpointing_offload", "gradient_checkpointing_cpu_offload")

_OF_COMPILE = {
    "compile_backend": "backend",
    "compile_mode": "mode",
    "compile_dynamic": "dynamic",
    "compile_fullgraph": "fullgraph",
    "compile_cache_size_limit": "cache_size_limit",
}
"""musubi-tuner's names -> keys of `compile`."""


def _nested_optimizer(section: type[BaseModel], entries: Entries, diagnostics: Diagnostics) -> Entries:
    """`optimizer: {name, lr, ...}` becomes `optimizer`, `lr` and `optimizer_params`; `..._args` likewise."""
    if (kind := entries.pop("lr_scheduler_type", None)) is not None:
        diagnostics.error(kind, f"{show(kind)}: {peer_names.MUSUBI['lr_scheduler_type'].remark}.")
        for key in ("lr_scheduler_args", "lr_scheduler_params"):  # they are those of that class
            entries.pop(key, None)
    for key in ("optimizer", "lr_scheduler"):
        if f"{key}_args" in entries:
            arguments = read_pairs(entries.pop(f"{key}_args"), diagnostics)
            entries[f"{key}_params"] = merged(entries.get(f"{key}_params"), arguments, diagnostics)
    optimizer = entries.get("optimizer")
    if optimizer is None or not isinstance(optimizer.value, dict):
        return entries
    parts = dict(entries.pop("optimizer").value)
    kinds = [parts.pop(key) for key in ("name", "type") if key in parts]
    for field, node in [("optimizer", kinds[0] if kinds else None), ("lr", parts.pop("lr", None))]:
        if node is not None:
            entries[field] = merge_aliases(entries.get(field), node, diagnostics)
    if parts:
        given = entries.get("optimizer_params")
        extra = given.value if given is not None and isinstance(given.value, dict) else {}
        entries["optimizer_params"] = replace(given or optimizer, value={**parts, **extra})
    return entries


def _memory_and_compile(section: type[BaseModel], entries: Entries, diagnostics: Diagnostics) -> Entries:
    """musubi-tuner's flat keys of `gradient_checkpointing` and `compile`."""
    _offloaded(entries, diagnostics)
    _compiled(entries, diagnostics)
    return entries


def _offloaded(entries: Entries, diagnostics: Diagnostics) -> None:
    """musubi-tuner's switch beside `gradient_checkpointing: true` as the level it stands for."""
    for key in _OFFLOAD:
        node = entries.pop(key, None)
        if node is None or node.value is False:
            continue
        given = entries.get("gradient_checkpointing")
        if node.value is not True:
            diagnostics.error(node, "write true or false.")
        elif given is not None and given.value is not True:
            entries["gradient_checkpointing"] = merge_aliases(given, replace(node, value="full_offload"), diagnostics)
        else:
            entries["gradient_checkpointing"] = replace(node, value="full_offload")


def _compiled(entries: Entries, diagnostics: Diagnostics) -> None:
    """`compile: true`, `false` or `auto` and musubi-tuner's flat keys as one section."""
    node = entries.get("compile")
    if node is not None and (isinstance(node.value, bool) or node.value == "auto"):
        entries["compile"] = node = replace(node, value={"enabled": node})
    for old, new in _OF_COMPILE.items():
        flat = entries.pop(old, None)
        if flat is not None and (node is None or isinstance(node.value, dict)):
            inside = node.value if node is not None else {}
            node = replace(node or flat, value={**inside, new: merge_aliases(inside.get(new), flat, diagnostics)})
            entries["compile"] = node


_KERNEL = "the attention kernel is chosen by PyTorch"

OPTIMIZER = ForeignNames(
    aliases={"learning_rate": "lr", "optimizer_type": "optimizer"},
    shapes={
        "lr_scheduler_type": "an error that names lr_scheduler",
        "optimizer_args": "optimizer_params, as a list of texts `name=value`",
        "lr_scheduler_args": "lr_scheduler_params, as a list of texts `name=value`",
    },
    reshapes=(_nested_optimizer,),
)

OPTIMIZATION = ForeignNames(
    aliases={
        "gradient_accumulation_steps": "gradient_accumulation",
        "max_train_steps": "steps",
        "max_train_epochs": "epochs",
        "mixed_precision": "dtype",
    },
    shapes={
        "seed": "training_seed of the process",
        "validation": "validation of the process",
        "stop_when": "stop_when of the process",
    },
)

TRAIN = ForeignNames(
    aliases={"unet_lr": "lr", "timestep_sampling": "timestep_type"},
    shapes={
        **dict.fromkeys(_OFFLOAD, "gradient_checkpointing: full_offload"),
        **{old: f"compile.{new}" for old, new in _OF_COMPILE.items()},
    },
    no_effect={
        **dict.fromkeys(("sdp", "xformers", "attention_backend", "sdpa", "flash_attn", "flash3"), _KERNEL),
        "split_attn": "captions of a batch are never padded",
        "persistent_data_loader_workers": "loaders always live as long as the run",
        "switch_boundary_every": "Qwen-Image has one stage",
        "audio_loss_multiplier": "it concerns audio",
        "bypass_guidance_embedding": "Qwen-Image has no guidance embedding",
        "text_encoder_lr": "the text encoder is not trained",
        "embedding_lr": "no embedding is trained",
        "adapter_lr": "no image adapter is trained",
        **dict.fromkeys(("refiner_lr", "train_refiner"), "there is no refiner"),
        **dict.fromkeys(("min_snr_gamma", "snr_gamma"), "it concerns models that predict noise"),
        "next_sample_timesteps": "it concerns timestep_type next_sample",
        "free_u": "it concerns Stable Diffusion",
        "ddp_gradient_as_bucket_view": "gradients are added up in buckets of their own, not by DistributedDataParallel",
        "ddp_static_graph": "gradients are added up once per step, not by DistributedDataParallel",
    },
    unsupported={
        **refuse(
            "unload_text_encoder force_consistent_noise do_differential_guidance do_guidance_loss "
            "inverted_mask_prior do_prior_divergence do_paramiter_swapping do_cfg merge_network_on_save "
            "single_item_batching max_loss_debug t0_loss_target do_fft_loss match_adapter_assist full_fp16 train_turbo "
            "show_turbo_outputs learnable_snr_gos do_signal_correction_noise do_batch_noise_correction "
            "do_signal_amplification adaptive_scaling_factor match_noise_norm short_and_long_captions "
            "short_and_long_captions_encoder_split standardize_images standardize_latents dynamic_noise_offset "
            "do_random_cfg correct_pred_norm t0_velocity_equiv_weight do_fft_velocity_equiv_weight blended_blur_noise "
            "do_guidance_loss_cfg_zero do_blank_stabilization",
            False,
        ),
        **refuse(
            "start_step min_denoising_steps prompt_dropout_prob noise_offset weight_jitter random_noise_multiplier "
            "random_noise_shift match_adapter_chance prompt_saturation_chance",
            0,
        ),
        **refuse(
            "noise_multiplier img_multiplier latent_multiplier optimal_noise_pairing_samples "
            "cfg_scale max_cfg_scale "
            "merge_network_on_save_strength target_noise_multiplier signal_correction_noise_scale "
            "noisy_latent_multiplier max_negative_prompts correct_pred_norm_multiplier pred_scaler "
            "target_norm_std_value latent_feature_loss_weight diffusion_feature_extractor_weight",
            1,
        ),
        **refuse("signal_amplification_strength", 0.5),
        **refuse("batch_noise_correction_scale", 0.1),
        **refuse("adapter_assist_type", "t2i"),
        **refuse("differential_guidance_scale guidance_loss_target", 3),
        **refuse(
            "guidance_loss_schedule max_loss validation_config "
            "latent_feature_extractor_path diffusion_feature_extractor_path adapter_assist_name_or_path "
            "negative_prompt cfg_rescale target_norm_std unconditional_prompt"
        ),
        "max_denoising_steps": (999, 1000),
        "num_train_timesteps": (1000,),
        "content_or_style_reg": ("balanced",),
        "loss_target": ("noise",),
        "inverted_mask_prior_multiplier": (0.5,),
        "paramiter_swapping_factor": (0.1,),
    },
    needs={
        "differential_guidance_scale": "do_differential_guidance",
        **dict.fromkeys(
            ("guidance_loss_target", "guidance_loss_schedule", "do_guidance_loss_cfg_zero"), "do_guidance_loss"
        ),
        **dict.fromkeys(("cfg_scale", "max_cfg_scale", "cfg_rescale"), "do_cfg"),
        "inverted_mask_prior_multiplier": "inverted_mask_prior",
        "paramiter_swapping_factor": "do_paramiter_swapping",
        "merge_network_on_save_strength": "merge_network_on_save",
        "signal_amplification_strength": "do_signal_amplification",
        "signal_correction_noise_scale": "do_signal_correction_noise",
        "batch_noise_correction_scale": "do_batch_noise_correction",
        "correct_pred_norm_multiplier": "correct_pred_norm",
        "target_norm_std_value": "target_norm_std",
        "adapter_assist_type": "adapter_assist_name_or_path",
        "latent_feature_loss_weight": "latent_feature_extractor_path",
        "diffusion_feature_extractor_weight": "diffusion_feature_extractor_path",
    },
    reshapes=(_memory_and_compile,),
)

EMA = ForeignNames(unsupported={"use_feedback": (False,), "param_multiplier": (1,)})

LR_GROUP = ForeignNames(aliases={"pattern": "match"})
