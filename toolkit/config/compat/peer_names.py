"""What the options of other trainers are called here: data for the reference page and for the hint at an unknown key.

musubi-tuner's are those of its command line (kohya's trainers share many of them), of the program that writes its
files for it, and of its dataset file. ai-toolkit's keys mostly have the same names here; those that have not are
listed with their place.
"""

from __future__ import annotations

from typing import NamedTuple


class ForeignOption(NamedTuple):
    """What an option of another program is here."""

    here: tuple[str, ...] = ()
    """Keys of a job, each with its place as the reference page writes it; none: there is no such key."""

    remark: str = ""
    """How the meaning differs, or why there is no such key."""

    harmless: bool = False
    """Whether it asks for nothing that is missing here: such a key is a note, wherever it stands."""

    tools: tuple[str, ...] = ()
    """Commands that do it, each as `run.py` takes it: `generate --interactive`."""


def _is(here: str, remark: str = "") -> ForeignOption:
    return ForeignOption(tuple(here.split()), remark)


def _none(remark: str) -> ForeignOption:
    return ForeignOption((), remark, harmless=True)


def _refused(remark: str) -> ForeignOption:
    return ForeignOption((), remark)


def _tool(command: str, here: str = "", remark: str = "") -> ForeignOption:
    return ForeignOption(tuple(here.split()), remark, tools=(command,))


_ONE_FOLDER = "one folder in diffusers layout, or a hub id, holds all parts"
_READ = "read from the model's own files"
_COMMAND = "nothing is started by a command line that could be added to"
_KERNEL = "PyTorch chooses the attention kernel"
_ENCODED = "images and captions are encoded one at a time, each once, before training; 0 would be an error there"
_COMPILES = "of `accelerate`; here the section `train.compile`"
_SAMPLES = "the key is for the images that are generated during training"
_LAYERED = "it concerns Qwen-Image-Layered, which cannot be trained here"
_ONE_FILE = "only LoRA files are uploaded, with a model card, to a model repository"
_LATENTS = "images are written, latents are not kept"
_RCM = "rcm_debug_save rcm_dilate_size rcm_kernel_size rcm_relative_threshold rcm_threshold"

MUSUBI: dict[str, ForeignOption] = {
    # the model
    "dit": _is("model.name_or_path", f"required, an empty value is an error; {_ONE_FOLDER}"),
    "vae": _is("model.name_or_path", f"required; {_ONE_FOLDER}"),
    "text_encoder": _is("model.name_or_path", f"required; {_ONE_FOLDER}"),
    "edit": _is("model.arch", _READ),
    "edit_plus": _is("model.arch", _READ),
    "model_version": _is("model.arch", _READ),
    "dit_dtype": _is("train.dtype", "bf16 unless another is given"),
    "mixed_precision": _is("train.dtype"),
    "fp8_base": _is("model.quantize model.qtype", "`qtype: float8`, with fp8_scaled that"),
    "fp8_scaled": _is("model.quantize model.qtype", "`qtype: fp8_scaled`"),
    "fp8_vl": _is("model.quantize_te model.qtype_te", "`qtype_te: float8`"),
    "blocks_to_swap": _is("model.blocks_to_swap", "0: none"),
    "base_weights": _is("model.base_loras", "empty: none"),
    "base_weights_multiplier": _is("model.base_loras[].multiplier"),
    "sdpa": _none(_KERNEL),
    "xformers": _none(_KERNEL),
    "flash_attn": _none(_KERNEL),
    "flash3": _none(_KERNEL),
    "sage_attn": _none(_KERNEL),
    "attn_mode": _none(_KERNEL),
    "split_attn": _none("captions of a batch are never padded"),
    "num_layers": _none(_READ),
    "img_in_txt_in_offloading": _none("these layers are small and stay on the device"),
    "block_swap_h2d_only": _none("frozen weights are only ever copied to the device"),
    "block_swap_ring_size": _none("two swapped blocks have room on the device"),
    "use_pinned_memory_for_block_swap": _none("swapped blocks always wait in pinned memory"),
    "disable_numpy_memmap": _none("files are read tensor by tensor"),
    "vae_dtype": _is("train.dtype", "one number type for all parts"),
    "vae_enable_tiling": _none("images are encoded one at a time"),
    "vae_tiling": _none("images are encoded one at a time"),
    "remove_first_image_from_target": _refused(_LAYERED),
    # the data
    "dataset_config": _is("datasets", "required; the datasets stand in the job itself"),
    "image_directory": _is("datasets[].folder_path"),
    "image_jsonl_file": _is(
        "datasets[].captions_file",
        "with the folder of its images in `folder_path`, and that of its control images in `control_path`",
    ),
    "general": _is("config.defaults", "for all processes; a list of datasets is replaced as a whole"),
    "batch_size": _is("train.batch_size", "one for all datasets"),
    "multiple_target": _refused(_LAYERED),
    "video_directory": _refused("videos cannot be trained here"),
    "video_jsonl_file": _refused("videos cannot be trained here"),
    "debug_dataset": _none("`--dry-run` prints what was found, with the sizes"),
    "qwen_image_edit_no_resize_control": _is(
        "model.model_kwargs.match_target_res", "the older name of no_resize_control"
    ),
    "qwen_image_edit_control_resolution": _is(
        "model.model_kwargs.match_target_res", "the older name of control_resolution"
    ),
    "resolution": _is(
        "datasets[].resolution",
        "there `[960, 544]` is one rectangle, which is `{width: 960, height: 544}` here; a list is a list of sizes",
    ),
    "caption_extension": _is("datasets[].caption_ext"),
    "control_directory": _is("datasets[].control_path", "one folder for each reference of an image, in slot order"),
    "control_resolution": _is("model.model_kwargs.match_target_res", "off: 1024 x 1024 pixels of area"),
    "no_resize_control": _is("model.model_kwargs.match_target_res", "references always get one of two areas"),
    "cache_directory": _is("datasets[].cache_latents_to_disk", "one cache for all runs, in the training folder"),
    "enable_bucket": _none("images are always grouped by size; one size for all is a rectangle as `resolution`"),
    "bucket_no_upscale": _none("images are enlarged only as far as sides of multiples of 32 demand"),
    "caching_latent_batch_size": _none(_ENCODED),
    "caching_latent_num_workers": _none(_ENCODED.split(";")[0]),
    "caching_teo_batch_size": _none(_ENCODED),
    "caching_teo_num_workers": _none(_ENCODED.split(";")[0]),
    "skip_existing": _none("what is cached is known by its content and never encoded twice"),
    "keep_cache": _none("nothing is removed from the cache"),
    "max_data_loader_n_workers": _is("datasets[].num_workers", "0: the main thread"),
    "persistent_data_loader_workers": _none("loaders always live as long as the run"),
    # length, learning rate, optimizer
    "max_train_steps": _is("train.steps", "0 is an error, unless epochs are given"),
    "max_train_epochs": _is("train.epochs", "0: `steps` decides"),
    "seed": _is("training_seed", "0: a random one, which is printed and recorded"),
    "gradient_accumulation_steps": _is("train.gradient_accumulation", "0 is an error"),
    "learning_rate": _is("train.lr", "0: nothing is learned, one warning"),
    "max_grad_norm": _is("train.max_grad_norm", "0: no clipping"),
    "lr_scheduler": _is("train.lr_scheduler"),
    "lr_scheduler_args": _is("train.lr_scheduler_params"),
    "lr_scheduler_type": _refused("classes of schedules are not loaded; give train.lr_scheduler one of its names"),
    "lr_warmup_steps": _is("train.lr_warmup_steps", "0: none; below 1 a share of all steps"),
    "lr_decay_steps": _is(
        "train.lr_decay_steps", "0: none; below 1 a share of all steps. There only warmup_stable_decay heeds it"
    ),
    "lr_scheduler_num_cycles": _is("train.lr_scheduler_num_cycles"),
    "lr_scheduler_power": _is("train.lr_scheduler_power"),
    "lr_scheduler_min_lr_ratio": _is("train.lr_scheduler_min_lr_ratio"),
    "lr_scheduler_timescale": _is("train.lr_scheduler_timescale"),
    "optimizer_type": _is("train.optimizer", "short names and dotted paths of classes"),
    "optimizer_args": _is(
        "train.optimizer_params", "a list of texts `name=value`; empty: the optimizer's own defaults"
    ),
    "ddp_timeout": _is("train.ddp_timeout", "minutes; 0: the library's default"),
    "ddp_gradient_as_bucket_view": _none("gradients are added up in buckets of their own"),
    "ddp_static_graph": _none("gradients are added up once per step"),
    "full_fp16": _refused("trained weights are float32, or bf16 with train.full_bf16"),
    "full_bf16": _is("train.full_bf16"),
    "fused_backward_pass": _is("train.fused_backward_pass"),
    "gradient_checkpointing": _is("train.gradient_checkpointing", "`auto` unless given"),
    "gradient_checkpointing_cpu_offload": _is("train.gradient_checkpointing", "`full_offload`"),
    "compile": _is("train.compile", "`true` is short for `enabled: true`"),
    "compile_backend": _is("train.compile.backend"),
    "compile_mode": _is("train.compile.mode"),
    "compile_dynamic": _is("train.compile.dynamic"),
    "compile_fullgraph": _is("train.compile.fullgraph"),
    "compile_cache_size_limit": _is("train.compile.cache_size_limit", "0: 32"),
    **{
        f"dynamo_{name}": _is(f"train.compile.{name}", _COMPILES)
        for name in ("backend", "mode", "dynamic", "fullgraph")
    },
    "cuda_allow_tf32": _is("train.cuda_allow_tf32"),
    "cuda_cudnn_benchmark": _is("train.cuda_cudnn_benchmark"),
    # noise levels
    "timestep_sampling": _is("train.timestep_type", "there `sigma` by default, here `sigmoid`"),
    "discrete_flow_shift": _is("train.discrete_flow_shift", "0 is an error with `timestep_type: shift`"),
    "sigmoid_scale": _is("train.sigmoid_scale"),
    "weighting_scheme": _is("train.weighting_scheme"),
    "logit_mean": _is("train.logit_mean", "0: the middle; above 0 less noise, as there"),
    "logit_std": _is("train.logit_std", "0 is an error"),
    "mode_scale": _is("train.mode_scale"),
    "min_timestep": _is("train.min_timestep"),
    "max_timestep": _is("train.max_timestep"),
    "preserve_distribution_shape": _is("train.preserve_distribution_shape"),
    "num_timestep_buckets": _is("train.num_timestep_buckets", "0: off"),
    "show_timesteps": _refused("noise levels are not plotted; metrics.jsonl has the mean of each step, `t_mean`"),
    "timestep_bucketing": _is("train.num_timestep_buckets", "a number of parts, not a switch"),
    # the network
    "network_module": _is("network.type", "networks.lora_qwen_image, networks.loha, networks.lokr"),
    "network_dim": _is("network.linear", "0 is an error"),
    "network_alpha": _is("network.linear_alpha", "there 1 by default, here `linear`; 0: no effect, one warning"),
    "network_dropout": _is("network.dropout", "0: off"),
    "network_args": _is("network", "a list of texts `name=value`; empty: none"),
    "loraplus_lr_ratio": _is("network.loraplus_lr_ratio"),
    "include_patterns": _is("network.include_patterns"),
    "exclude_patterns": _is("network.exclude_patterns"),
    "rank_dropout": _is("network.rank_dropout"),
    "module_dropout": _is("network.module_dropout"),
    "factor": _is("network.factor"),
    "conv_dim": _none("in network_args without effect: the transformer has no convolutions"),
    "conv_alpha": _none("in network_args without effect: the transformer has no convolutions"),
    "verbose": _none("in network_args without effect: the log has one level"),
    "scale_weight_norms": _is("network.scale_weight_norms", "0: off"),
    "network_weights": _is("network.pretrained_lora_path", "empty: from the start"),
    "dim_from_weights": _refused("network.linear is the rank, and a file of another one is brought to it"),
    # files
    "output_dir": _is("training_folder", "`output` unless given; the files go to `<training_folder>/<name>/`"),
    "output_name": _is("config.name", "required"),
    "resume": _is("resume", "empty: `auto`, resume from the newest good state of the run's folder"),
    "save_every_n_epochs": _is("save.save_every_n_epochs", "0: only the final file"),
    "save_every_n_steps": _is("save.save_every", "0: only the final file; above 0 it decides over epochs"),
    "save_last_n_epochs": _is("save.save_last_n_epochs", "0: all"),
    "save_last_n_steps": _is("save.max_step_saves_to_keep", "a number of files, not a distance in steps; 0: all"),
    "save_last_n_epochs_state": _is("save.max_states_to_keep", "a number of states"),
    "save_last_n_steps_state": _is("save.max_states_to_keep", "a number of states"),
    "save_state": _is("save.states", "a state is always saved unless `states` says less"),
    "save_state_on_train_end": _is("save.states", "`at_end`; there as well as others, here instead of them"),
    "save_precision": _is("save.dtype", "there float32 by default, here float16"),
    "mem_eff_save": _is("save.mem_eff_save"),
    "no_metadata": _is("save.no_metadata"),
    "training_comment": _is("meta.training_comment"),
    **{
        f"metadata_{name}": _is(f"meta.{name}", f"becomes `modelspec.{name}`")
        for name in ("title", "author", "description", "license", "tags")
    },
    "metadata_reso": _none("`modelspec.resolution` is that of the datasets"),
    "metadata_arch": _none("`modelspec.architecture` is that of the model"),
    "huggingface_repo_id": _tool("publish", "save.hf_repo_id", "needs `save.push_to_hub`"),
    "huggingface_repo_visibility": _tool("publish --private", "save.hf_private", "`private` is `true`"),
    "huggingface_token": _none("it comes from HF_TOKEN or `hf auth login`, never from a file"),
    "async_upload": _none("the upload follows the training"),
    **dict.fromkeys(
        ("huggingface_path_in_repo", "huggingface_repo_type", "save_state_to_huggingface", "resume_from_huggingface"),
        _refused(_ONE_FILE),
    ),
    # images
    "sample_every_n_steps": _is("sample.sample_every", "0: none at intervals"),
    "sample_every_n_epochs": _is("sample.sample_every_n_epochs", "0: none; above 0 it decides over steps"),
    "sample_at_first": _is("sample.sample_at_first train.skip_first_sample", "here a set is drawn unless skipped"),
    "sample_prompts": _is("sample.samples", "a list, or a text file with one prompt per line"),
    "negative_prompt": _tool("generate --negative", "sample.neg"),
    "image_size": _tool("generate --width --height", "sample.width sample.height", "there height first"),
    "infer_steps": _tool("generate --steps", "sample.sample_steps"),
    "guidance_scale": _tool("generate --cfg", "sample.guidance_scale"),
    "flow_shift": _tool("generate --flow-shift", "sample.flow_shift"),
    "control_image_path": _tool("generate --reference", "sample.samples[].ctrl_img"),
    "resize_control_to_image_size": _is("model.model_kwargs.match_target_res", "for training and pictures alike"),
    "resize_control_to_official_size": _is("model.model_kwargs.match_target_res", "off is the official size"),
    "text_encoder_cpu": _tool("generate --text-encoder-cpu", "model.text_encoder_cpu"),
    "lora_weight": _tool(
        "generate --lora", "model.base_loras", "merged into the model; `network.pretrained_lora_path` is trained on"
    ),
    "lora_multiplier": _tool("generate --lora", "model.base_loras[].multiplier", "`--lora FILE:0.8`"),
    # curves
    "logging_dir": _is("logging.logging_dir", "empty: no TensorBoard"),
    "log_with": _is("logging.log_with", "empty: TensorBoard when logging_dir is given"),
    "log_prefix": _is("logging.log_prefix", "empty: none; there is no time in the folder's name"),
    "log_tracker_name": _is("logging.log_tracker_name"),
    "log_tracker_config": _refused("give the keys `wandb_*` of `logging` instead"),
    "log_config": _is("logging.log_config"),
    "wandb_run_name": _is("logging.wandb_run_name"),
    "wandb_api_key": _is("logging.wandb_api_key", "empty: from the environment"),
    # generating with a finished file
    "prompt": _tool("generate --prompt", "sample.samples[].prompt"),
    "from_file": _tool("generate --prompts", "sample.samples", "a text file with one prompt per line"),
    "fp8": _tool("generate --quantize --qtype", "model.quantize model.qtype", "`qtype: float8`"),
    "fp8_fast": _none("the number type decides; products are never rounded further"),
    "device": _tool("generate --device", "device"),
    "save_path": _tool("generate --output", "training_folder", _SAMPLES),
    "mask_path": _is("datasets[].mask_path", "there it limits what is generated, here what is trained"),
    "interactive": _tool("generate --interactive"),
    "save_merged_model": _tool("merge --base --output"),
    "lycoris": _tool("generate --lora", remark="LoHa and LoKr files need no switch"),
    "output_type": _tool("generate --output", remark=_LATENTS),
    "latent_path": _refused(_LATENTS),
    "append_original_name": _none("a file's name begins with the prompt's number and words"),
    "bell": _none("nothing rings when a prompt is done"),
    "cfg_normalize": _none("always so, as in diffusers"),
    "embedded_cfg_scale": _none("the model has no embedded guidance"),
    "ckpt_dir": _refused(_ONE_FOLDER),
    **dict.fromkeys(("automatic_prompt_lang_for_layered", "output_layers"), _refused(_LAYERED)),
    **dict.fromkeys(_RCM.split(), _refused("references are not masked while an image is generated")),
    # what other programs do around it
    "additional_parameters": _refused(_COMMAND),
    "config_file": _refused("the job is the configuration"),
}
"""Option of musubi-tuner -> what it is here."""

AI_TOOLKIT: dict[str, ForeignOption] = {
    "network.linear_alpha": _is("network.linear_alpha", "honoured; there always `linear`"),
    "network.transformer_only": _none("always so: the layers of the blocks"),
    "network.conv": _none("the transformer has no convolutions"),
    "datasets[].resolution": _is("datasets[].resolution", "equal sizes count once; two unlike ones: a note"),
    "datasets[].control_path_1": _is("datasets[].control_path"),
    "datasets[].batch_size": _is("train.batch_size", "one for all datasets; 1: a note"),
    "datasets[].clip_image_path": _none("the model has no CLIP image encoder"),
    "train.gradient_accumulation_steps": _is(
        "train.gradient_accumulation",
        "averages, and `steps` counts optimizer steps; there it drops gradients, and `steps` counts micro-batches",
    ),
    "train.validation_config": _is("validation"),
    "train.min_denoising_steps": _is("train.min_timestep train.max_timestep", "places on a list of levels; here noise"),
    "train.max_denoising_steps": _is("train.min_timestep train.max_timestep", "places on a list of levels; here noise"),
    "train.prompt_dropout_prob": _is("datasets[].caption_dropout_rate"),
    "train.ema_config.use_num_updates": _is("train.ema_config.use_num_updates", "on unless switched off"),
    "model.quantize_kwargs": _none("every matrix of the blocks is quantized"),
    "model.lora_path": _is("model.base_loras"),
    "model.te_device": _is("model.text_encoder_cpu", "a switch: the CPU or where the model is"),
    "model.layer_offloading": _is("model.blocks_to_swap", "in whole blocks"),
    "model.compile": _is("train.compile", "`true` is short for `enabled: true`"),
    "sample.prompts": _is("sample.samples"),
    "sample.network_multiplier": _none("pictures are drawn with the network as it is saved"),
    "sample.samples[].ctrl_img_1": _is("sample.samples[].ctrl_img"),
    "logging.use_wandb": _is("logging.log_with"),
}
"""Key of ai-toolkit -> what it is here, where the name or the meaning differs."""


def nearest(place: str) -> str:
    """What to write instead of a key of ai-toolkit that is refused; empty where nothing comes near it."""
    here = AI_TOOLKIT.get(place, _none("")).here
    return f"The nearest here is {' and '.join(repr(key) for key in here)}." if here else ""


def idle(key: str, is_blank: bool = False) -> str:
    """Why an option of musubi-tuner asks for nothing here (one that is not there asks for nothing where it is blank);
    empty for all others."""
    peer = MUSUBI.get(key)
    is_refused = peer is not None and not (peer.here or peer.tools)
    return peer.remark if peer and (peer.harmless or (is_blank and is_refused)) else ""


def hint(key: str) -> str:
    """What to write instead of an unknown key that is an option of musubi-tuner; empty for any other."""
    peer = MUSUBI.get(key)
    if peer is None:
        return ""
    if not (peer.here or peer.tools):
        return f"musubi-tuner's {key!r} is not supported: {peer.remark}."
    sections = [place.removesuffix(f".{key}") for place in peer.here if place.endswith(f".{key}")]
    if sections:
        return f"It belongs in {' or '.join(map(repr, sections))}."
    ours = " and ".join(map(repr, peer.here))
    commands = " and ".join(f"'run.py {command}'" for command in peer.tools)
    return f"musubi-tuner's {key!r} is {' or '.join(filter(None, (ours, commands)))} here."
