"""Names of the `train` section that other trainers know and that are no fields here."""

from __future__ import annotations

from typing import Any

NO_EFFECT: dict[str, str] = {
    "sdp": "the attention kernel is chosen by PyTorch",
    "xformers": "the attention kernel is chosen by PyTorch",
    "attention_backend": "the attention kernel is chosen by PyTorch",
    "sdpa": "the attention kernel is chosen by PyTorch",
    "flash_attn": "the attention kernel is chosen by PyTorch",
    "flash3": "the attention kernel is chosen by PyTorch",
    "split_attn": "captions of a batch are never padded",
    "persistent_data_loader_workers": "loaders always live as long as the run",
    "bypass_guidance_embedding": "Qwen-Image has no guidance embedding",
    "text_encoder_lr": "the text encoder is not trained",
    "embedding_lr": "no embedding is trained",
    "adapter_lr": "no image adapter is trained",
    "refiner_lr": "there is no refiner",
    "train_refiner": "there is no refiner",
    "min_snr_gamma": "it concerns models that predict noise",
    "snr_gamma": "it concerns models that predict noise",
    "next_sample_timesteps": "it concerns timestep_type next_sample",
    "free_u": "it concerns Stable Diffusion",
    "ddp_gradient_as_bucket_view": "gradients are added up in buckets of their own, not by DistributedDataParallel",
    "ddp_static_graph": "gradients are added up once per step, not by DistributedDataParallel",
}
"""Name -> why it does nothing."""

_OFF = (False,)
_NONE = (0,)
_ONE = (1,)

UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    # ai-toolkit
    "unload_text_encoder": _OFF,
    "start_step": _NONE,
    "min_denoising_steps": _NONE,
    "max_denoising_steps": (999, 1000),
    "num_train_timesteps": (1000,),
    "content_or_style_reg": ("balanced",),
    "loss_target": ("noise",),
    "prompt_dropout_prob": _NONE,
    "noise_offset": _NONE,
    "noise_multiplier": _ONE,
    "img_multiplier": _ONE,
    "latent_multiplier": _ONE,
    "force_consistent_noise": _OFF,
    "optimal_noise_pairing_samples": _ONE,
    "do_differential_guidance": _OFF,
    "differential_guidance_scale": (3,),
    "do_guidance_loss": _OFF,
    "guidance_loss_target": (3,),
    "guidance_loss_schedule": (),
    "diff_output_preservation": _OFF,
    "diff_output_preservation_multiplier": _ONE,
    "diff_output_preservation_class": (),
    "blank_prompt_preservation": _OFF,
    "blank_prompt_preservation_multiplier": _ONE,
    "inverted_mask_prior": _OFF,
    "inverted_mask_prior_multiplier": (0.5,),
    "do_prior_divergence": _OFF,
    "do_paramiter_swapping": _OFF,
    "paramiter_swapping_factor": (0.1,),
    "do_cfg": _OFF,
    "cfg_scale": _ONE,
    "merge_network_on_save": _OFF,
    "single_item_batching": _OFF,
    "max_loss": (),
    "max_loss_debug": _OFF,
    "t0_loss_target": _OFF,
    "do_fft_loss": _OFF,
    "validation_config": (),
    "match_adapter_assist": _OFF,
    "latent_feature_extractor_path": (),
    "diffusion_feature_extractor_path": (),
    # musubi-tuner
    "lr_scheduler_type": (),
    "full_fp16": _OFF,
}
"""Name -> the values that ask for nothing."""
