"""Jobs of other programs: what each of their options is here. The lists are theirs,
written down by hand."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from docs.config_page import distinct_sections, keys
from docs.generate import section_models
from docs.names_page import page
from extensions.compat.keys import KEYS
from extensions.compat.names import NO_SECTION, PLACES, names, options
from extensions.compat.shapes import SHAPES
from tests.conftest import ROOT
from tests.toolkit.config.conftest import trainer
from toolkit.config.reading.foreign import ForeignName
from toolkit.config.reading.normalise import field_names, other_names
from toolkit.config.reading.tool import ToolConfig, tool_parser
from toolkit.errors import ConfigErrors
from toolkit.extension import discover

FIELDS_OF_THE_GUI = (
    "dit vae text_encoder dataset_config output_dir output_name max_train_steps max_train_epochs seed blocks_to_swap "
    "gradient_accumulation_steps max_data_loader_n_workers learning_rate max_grad_norm lr_warmup_steps lr_decay_steps "
    "network_dim network_alpha network_dropout scale_weight_norms save_every_n_epochs save_every_n_steps "
    "save_last_n_epochs save_last_n_steps caching_latent_batch_size caching_latent_num_workers caching_teo_batch_size "
    "discrete_flow_shift logit_mean logit_std sample_every_n_steps sample_every_n_epochs ddp_timeout network_weights "
    "base_weights resume logging_dir log_with log_prefix wandb_api_key optimizer_args network_args "
    "additional_parameters fp8_vl fp8_base fp8_scaled sdpa gradient_checkpointing save_state no_metadata dit_dtype "
    "timestep_sampling weighting_scheme optimizer_type lr_scheduler split_attn"
)
"""Every field that the guide of musubi-tuner's front end explains."""

COMMAND_LINE = (
    "network_dim network_alpha network_dropout loraplus_lr_ratio include_patterns exclude_patterns rank_dropout "
    "module_dropout factor scale_weight_norms network_weights base_weights base_weights_multiplier max_train_steps "
    "max_train_epochs learning_rate lr_scheduler lr_warmup_steps lr_decay_steps lr_scheduler_num_cycles "
    "lr_scheduler_power lr_scheduler_min_lr_ratio optimizer_type optimizer_args timestep_sampling discrete_flow_shift "
    "sigmoid_scale weighting_scheme logit_mean logit_std mode_scale min_timestep max_timestep num_timestep_buckets "
    "save_every_n_steps save_every_n_epochs save_last_n_steps save_last_n_epochs save_state no_metadata "
    "sample_every_n_steps sample_every_n_epochs sample_at_first fp8_base fp8_scaled fp8_vl blocks_to_swap "
    "gradient_checkpointing_cpu_offload compile compile_backend compile_mode compile_dynamic compile_fullgraph "
    "compile_cache_size_limit full_bf16 fused_backward_pass mem_eff_save logging_dir log_with log_prefix "
    "wandb_run_name wandb_api_key network_module network_args verbose output_dir output_name cuda_allow_tf32 "
    "cuda_cudnn_benchmark timestep_bucketing split_attn dataset_config dit vae text_encoder edit mixed_precision "
    "sdpa xformers flash_attn flash3 persistent_data_loader_workers max_data_loader_n_workers seed "
    "gradient_checkpointing max_grad_norm negative_prompt image_size infer_steps guidance_scale flow_shift "
    "lora_weight lora_multiplier control_image_path resize_control_to_image_size resize_control_to_official_size "
    "text_encoder_cpu num_layers show_timesteps block_swap_h2d_only block_swap_ring_size metadata_reso metadata_arch "
    "huggingface_repo_id huggingface_token async_upload resume_from_huggingface sage_attn full_fp16 dynamo_backend "
    "disable_numpy_memmap use_pinned_memory_for_block_swap vae_dtype img_in_txt_in_offloading prompt from_file "
    "output_type save_path lycoris save_merged_model interactive"
)
"""The options that musubi-tuner's guides name for this model."""

AI_TOOLKIT_KEYS = {
    "": "training_seed performance_log_every logging",
    "model": "low_vram",
    "sample": "sample_start_step",
    "network": "network_kwargs",
    "network.network_kwargs": "only_if_contains ignore_if_contains",
    "train": (
        "lr_scheduler lr_scheduler_params optimizer_params max_grad_norm timestep_type content_or_style loss_type "
        "skip_first_sample disable_sampling unload_text_encoder"
    ),
    "datasets[]": "default_caption mask_path alpha_mask is_reg flip_x num_repeats",
}
"""Section -> keys of jobs of ai-toolkit beside those of the tests' own jobs."""

OPTIONS = {key: row for key, (_, row) in options().items()}

SECTIONS = dict(reversed(list(distinct_sections(section_models()))))

KNOWN = keys(section_models())


def test_every_option_has_ours_beside_it_or_a_reason() -> None:
    for name in {*FIELDS_OF_THE_GUI.split(), *COMMAND_LINE.split()}:
        row = OPTIONS[name]
        assert row.ours or row.tool or row.says, name


def test_the_page_has_the_main_options_with_ours_and_a_remark() -> None:
    rows = re.findall(r"(?m)^\| `(\w+)` \| (.*) \| (.*) \|$", page(section_models()))
    assert len(rows) > 35
    for name, here, remark in rows:
        row = OPTIONS[name]
        assert row.ours and all(f"`{place}`" in here for place in row.ours)
        assert row.says.replace("|", "\\|") in remark


ROWS = [
    (program, "" if group == NO_SECTION else group, key, row)
    for (program, group), rows in names().items()
    for key, row in rows.items()
    if group != "flags"
]


COLUMNS = {
    "renamed_to": {"note", "command", "left_out_there"},
    "converted_to": {"note"},
    "use_instead": {"note", "command"},
    "not_needed": {"nearest"},
    "only_accepts": {"nearest", "note"},
    "no_counterpart": set(),
}
"""First column of a row of names.toml -> the others that it may have."""


def test_the_file_has_the_columns_that_its_head_explains_and_each_name_once() -> None:
    text = (ROOT / "extensions/compat/names.toml").read_text(encoding="utf-8")
    for (program, section), rows in tables_of(text).items():
        for key, (how, *others) in rows.items():
            assert set(others) <= COLUMNS[how], (program, section, key)
        listed = [name for keys_ in rows for name in keys_.split()]
        assert len(listed) == len(set(listed)), (program, section)
    head = text.partition("\n[")[0]
    explained = set(re.findall(r"^# \| (\w+) ", head, re.MULTILINE)) - {"column"}
    assert explained == {*COLUMNS, *set().union(*COLUMNS.values())}


def tables_of(text: str) -> dict[tuple[str, str], dict[str, dict]]:
    """(program, section) -> key -> its columns, in their order."""
    return {
        (program, section): rows
        for program, sections in tomllib.loads(text).items()
        for section, rows in sections.items()
    }


def test_what_a_name_is_here_is_a_key() -> None:
    assert [
        (key, place)
        for _, _, key, row in ROWS
        for place in row.ours
        if place not in KNOWN
    ] == []


def test_a_name_that_is_read_where_it_stands_is_read_into_what_its_row_says() -> None:
    """The place of its section is that of the key that it is another name of; what is
    shaped has a function there."""
    for _, section, key, row in ROWS:
        if section and row.how == "renamed_to":
            assert row.ours[0].rpartition(".")[0] == PLACES[section], key
        assert not section or row.how not in ("use_instead", "no_counterpart"), key
        assert row.how != "converted_to" or section in {
            *SHAPES,
            "OptimizationConfig",
            "NetworkKwargs",
        }, key


def test_an_option_has_one_row() -> None:
    """A flat list of options has one place for each: otherwise a value lands where the
    first row says."""
    keys = [key for program, _, key, _ in ROWS if program == "musubi-tuner"]
    assert sorted(keys) == sorted(OPTIONS)


def test_a_name_of_programs_that_are_not_read_hides_none_that_is() -> None:
    """Such a name becomes an error: it is neither a key of ours nor one that is
    read."""
    unread = {
        key
        for program in ("kohya", "diffusers")
        for key in names()[program, NO_SECTION]
    }
    read = {key for program, _, key, _ in ROWS if program not in ("kohya", "diffusers")}
    assert not unread & (read | {key.rpartition(".")[2] for key in KNOWN})


def test_each_name_is_of_the_class_of_a_section() -> None:
    classes = {
        cls.__name__
        for _, section in distinct_sections(section_models())
        for cls in section.__mro__
    }
    assert {name for _, name in names()} - {
        NO_SECTION,
        "flags",
    } == PLACES.keys() and PLACES.keys() | SHAPES.keys() <= classes


def flags() -> dict[str, set[str]]:
    """Tool -> the flags of its command."""
    extensions = discover()
    found = {}
    for uid in extensions.tools():
        model = extensions.find_command(uid)
        assert model is not None and issubclass(model, ToolConfig)
        found[uid] = set(tool_parser(uid, model)._option_string_actions)
    return found


FLAGS = flags()


@pytest.mark.parametrize(
    "command", sorted({row.tool for row in OPTIONS.values() if row.tool})
)
def test_a_command_that_does_it_exists_with_its_flags(command: str) -> None:
    tool, *given = command.split()
    assert set(given) <= FLAGS[tool]


def is_denied(row: ForeignName) -> bool:
    return not (row.ours or row.tool) and row.how != "not_needed"


def test_nothing_is_denied_that_exists() -> None:
    """No key of a job, flag, tool or process type has the name of an option that is
    said to have no counterpart."""
    names = {place.rpartition(".")[2] for place, works in KNOWN.items() if works}
    names |= {
        flag.lstrip("-").replace("-", "_") for flags in FLAGS.values() for flag in flags
    }
    names |= section_models().keys() | FLAGS.keys()
    assert {name for name, row in OPTIONS.items() if is_denied(row)} & names == set()


def test_every_tool_for_finished_files_is_named_by_some_option() -> None:
    """A tool that nobody who comes from elsewhere is told of was forgotten in the
    table, or is one of these."""
    named = {row.tool.split()[0] for row in OPTIONS.values() if row.tool}
    not_there = {
        "align",
        "ara",
        "best",
        "diagrams",
        "doctor",
        "download",
        "grid",
        "inspect",
        "lint",
        "new",
    } | {
        "queue",
        "report",
        "ui",
    }
    not_there |= {"datasets", "jobs", "runs"}
    # separate programs there
    scripts = {
        "cache",
        "caption",
        "convert",
        "extract",
        "post_hoc_ema",
        "resize",
    }
    assert set(FLAGS) - named - not_there - scripts == set(), (
        "give it to the option of musubi-tuner that does the same"
    )


def test_keys_of_ai_toolkit_are_those_of_its_sections() -> None:
    for path, text in AI_TOOLKIT_KEYS.items():
        for key in text.split():
            assert key in {
                *field_names(SECTIONS[path]),
                *other_names(SECTIONS[path], KEYS),
            }, (path, key)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            "output_name: x",
            "output_name: unknown key. musubi-tuner's 'output_name' is 'config.name' here.",
        ),
        (
            "network: {lr_warmup_steps: 1}",
            "network.lr_warmup_steps: unknown key. It belongs in 'train'.",
        ),
        (
            "network: {max_train_steps: 1}",
            "network.max_train_steps: unknown key. musubi-tuner's 'max_train_steps' is",
        ),
        (
            "sample: {image_size: 1}",
            "sample.image_size: unknown key. musubi-tuner's 'image_size' is 'sample.width' an",
        ),
        (
            "train: {config_file: a}",
            "train.config_file: unknown key. musubi-tuner's 'config_file' is not supported: t",
        ),
        (
            "datasets: [{image_jsonl_file: a, folder_path: photos}]",
            "datasets[0].image_jsonl_file: unknown key. musubi",
        ),
        (
            "save: {huggingface_repo_id: me/x}",
            "save.huggingface_repo_id: unknown key. musubi-tuner's 'huggingface_rep",
        ),
        (
            "sample: {interactive: true}",
            "sample.interactive: unknown key. musubi-tuner's 'interactive' is 'run.py gen",
        ),
        (
            "datasets: [{folder_path: photos, flip_aug: true}]",
            "datasets[0].flip_aug: unknown key. kohya's 'flip_aug' is 'datasets[].flip_x' h",
        ),
        (
            "datasets: [{folder_path: photos, class_tokens: a}]",
            "datasets[0].class_tokens: unknown key. kohya's 'class_tokens' is 'datasets[]",
        ),
        (
            "train: {train_data_dir: a}",
            "train.train_data_dir: unknown key. kohya's 'train_data_dir' is 'datasets[].folde",
        ),
        (
            "train: {v2: true}",
            "train.v2: unknown key. kohya's 'v2' is not supported: it concerns Stable Diffusion",
        ),
        (
            "instance_prompt: a",
            "instance_prompt: unknown key. diffusers' 'instance_prompt' is 'datasets[].default_capti",
        ),
        (
            "train: {metadata_title: a}",
            "train.metadata_title: unknown key. musubi-tuner's 'metadata_title' is 'meta.t",
        ),
    ],
)
def test_an_option_in_a_place_where_it_is_unknown_is_told_its_name(
    faults, lines: str, message: str
) -> None:
    (found,) = faults(lines)
    assert found.startswith(message)


def test_an_option_outside_of_any_process_is_told_its_name_too(mistakes) -> None:
    (found,) = mistakes(trainer().replace("config:", "learning_rate: 1\nconfig:", 1))
    assert found.endswith(
        "learning_rate: unknown key. musubi-tuner's 'learning_rate' is 'train.lr' here."
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "train: {min_denoising_steps: 10}",
            "10 is not supported yet. The nearest here is 'train.min_timestep' and",
        ),
        ("train: {noise_offset: 0.1}", "0.1 is not supported yet. Leave this key out."),
        (
            "train: {do_guidance_loss: true}",
            "not supported yet. Leave this key out: the loss here has one target",
        ),
        (
            "model: {name_or_path: ./model, assistant_lora_path: a}",
            "model.assistant_lora_path: 'a' does not exist",
        ),
        (
            "model: {name_or_path: ./model, inference_lora_path: a}",
            "model.inference_lora_path: 'a' does not exist",
        ),
        (
            "train: {optimizer: automagic2}",
            "'automagic2' is not supported. Use 'prodigy' with 'lr: 1', which ad",
        ),
        (
            "train: {optimizer: prodigy8bit}",
            "'prodigy8bit' is not supported. Use 'prodigy', whose state",
        ),
        (
            "model: {name_or_path: ./model, qtype: convrot8}",
            "'convrot8' is not supported. Use 'int8'.",
        ),
        (
            "model: {name_or_path: ./model, qtype: convrot4}",
            "'convrot4' is not supported. Use 'int4', or 'uint4' with",
        ),
        (
            "model: {name_or_path: ./model, qtype: uint9}",
            "'uint9' is unknown. Did you mean",
        ),
    ],
)
def test_a_refused_key_is_told_what_comes_near(faults, line: str, message: str) -> None:
    (found,) = faults(line)
    assert message in found


def test_a_refused_key_of_the_defaults_too(mistakes) -> None:
    text = trainer().replace(
        "  process:",
        "  defaults: {train: {noise_offset: 0.1, validation_config: {a: 1}}}\n  process:",
    )
    assert [line.split(" is not supported yet. ")[1] for line in mistakes(text)] == [
        "Leave this key out.", "The nearest here is 'validation'.",
    ]  # fmt: skip


def test_no_hint_for_what_no_program_has() -> None:
    assert KEYS.hint("linear_alpa") == ""


@pytest.mark.parametrize(
    ("lines", "place", "value"),
    [
        ("train: {mixed_precision: bf16}", "train.dtype", "bfloat16"),
        ("save: {save_precision: bf16}", "save.dtype", "bfloat16"),
        ("datasets: [{image_directory: photos}]", "datasets.0.folder_path", "photos"),
        (
            "datasets: [{folder_path: photos, caption_extension: .caption}]",
            "datasets.0.caption_ext",
            (".caption",),
        ),
        ("network: {network_module: networks.loha}", "network.type", "loha"),
        ("network: {network_module: networks.lora_qwen_image}", "network.type", "lora"),
    ],
)
def test_names_that_are_accepted_where_they_belong(
    section, lines: str, place: str, value: object
) -> None:
    found = section(lines)
    for part in place.split("."):
        found = found[int(part)] if part.isdigit() else getattr(found, part)
    assert found == value


HARMLESS = [
    "train: {sdpa: true}",
    "network: {sdpa: true}",
    "train: {persistent_data_loader_workers: true}",
    "save: {save_state: true}",
    "save: {save_state_on_train_end: true}",
    "datasets: [{folder_path: photos, enable_bucket: true}]",
    "datasets: [{folder_path: photos, bucket_no_upscale: false}]",
    "datasets: [{folder_path: photos, keep_cache: true}]",
    "train: {skip_existing: true}",
    "train: {caching_teo_batch_size: 0}",
    "caching_latent_num_workers: 4",
    "network: {conv_dim: 4}",
    "train: {async_upload: true}",
]


@pytest.mark.parametrize("line", HARMLESS)
def test_what_asks_for_nothing_is_a_note_wherever_it_stands(load, line: str) -> None:
    job = load(trainer(line))
    (note,) = job.warnings
    assert ": has no effect: " in note
    assert job.processes[0].section == load(trainer()).processes[0].section


def test_an_option_that_is_not_there_asks_for_nothing_where_it_is_empty(load) -> None:
    assert load(trainer("train: {additional_parameters: ''}")).warnings == ()


def test_a_harmless_key_of_the_defaults_is_a_note_too(load) -> None:
    job = load(
        trainer().replace(
            "  process:", "  defaults: {train: {skip_existing: true}}\n  process:"
        )
    )
    (note,) = job.warnings
    assert "config.defaults.train.skip_existing: has no effect: what is cached" in note


def test_a_class_of_a_schedule_is_one_error_without_its_arguments(faults) -> None:
    lines = "train: {lr_scheduler_type: torch.optim.lr_scheduler.StepLR, lr_scheduler_args: [step_size=10]}"
    (found,) = faults(lines)
    assert found.startswith(
        "train.lr_scheduler_type: 'torch.optim.lr_scheduler.StepLR': classes of schedules are not"
    )


# ------------------------------------------------------------ ai-toolkit's keys that
# ask for nothing

UI_JOB = """\
performance_log_every: 10
sqlite_db_path: ./aitk_db.db
network: {type: lora, linear: 32, linear_alpha: 32, conv: 16, conv_alpha: 16, lokr_full_rank: true, lokr_factor: -1,
          network_kwargs: {ignore_if_contains: []}}
save: {dtype: bf16, save_every: 250, max_step_saves_to_keep: 4, save_format: diffusers, push_to_hub: false}
datasets:
  - {folder_path: photos, mask_path: null, mask_min_value: 0, default_caption: '', caption_ext: txt,
     caption_dropout_rate: 0.05, cache_latents_to_disk: false, is_reg: false, network_weight: 1,
     resolution: [512, 768, 1024], controls: [], shrink_video_to_frames: true, num_frames: 1, flip_x: false,
     flip_y: false, num_repeats: 1, do_i2v: true, do_audio: false, auto_frame_count: false}
train:
  {batch_size: 1, bypass_guidance_embedding: true, steps: 3000, gradient_accumulation: 1, train_unet: true,
   train_text_encoder: false, gradient_checkpointing: true, noise_scheduler: flowmatch, optimizer: adamw8bit,
   timestep_type: weighted, content_or_style: balanced, optimizer_params: {weight_decay: 1e-4},
   unload_text_encoder: false, cache_text_embeddings: false, lr: 0.0001, ema_config: {use_ema: false, ema_decay: 0.99},
   skip_first_sample: false, force_first_sample: false, disable_sampling: false, dtype: bf16,
   diff_output_preservation: false, diff_output_preservation_multiplier: 1.0, diff_output_preservation_class: person,
   switch_boundary_every: 1, loss_type: mse, audio_loss_multiplier: 1.0}
logging: {log_every: 1, use_ui_logger: true}
model: {name_or_path: ./model, quantize: true, qtype: qfloat8, quantize_te: true, qtype_te: qfloat8,
        arch: "qwen_image_edit_plus", low_vram: true, model_kwargs: {match_target_res: false, kv_cache: false},
        compile: false, layer_offloading: false, layer_offloading_text_encoder_percent: 1,
        layer_offloading_transformer_percent: 0.7}
"""
"""Every key that ai-toolkit's user interface writes for this model
(ui/src/app/jobs/new, jobConfig.ts, options.tsx)."""


def test_the_job_of_its_user_interface_has_only_notes(load) -> None:
    """One line has all keys without effect, so that another one is seen."""
    job = load(trainer(*UI_JOB.splitlines()))
    idle, other = (line.split("process[0].")[1] for line in job.warnings)
    keys = [
        "performance_log_every", "sqlite_db_path", "network.conv", "network.conv_alpha", "save.save_format",
        "datasets[].network_weight", "datasets[].shrink_video_to_frames", "datasets[].num_frames",
        "datasets[].flip_y", "datasets[].do_i2v", "datasets[].do_audio", "datasets[].auto_frame_count",
        "train.bypass_guidance_embedding", "train.unload_text_encoder", "train.switch_boundary_every",
        "train.audio_loss_multiplier", "logging.use_ui_logger", "model.model_kwargs.kv_cache",
        "model.layer_offloading_text_encoder_percent",
    ]  # fmt: skip
    assert idle == (
        f"performance_log_every: {len(keys)} keys have no effect: {', '.join(keys)}. docs/config.md says why."
    )
    assert other.startswith("train.diff_output_preservation_class: ")
    assert job.processes[0].section.train.optimizer == "adamw8bit"


@pytest.mark.parametrize(
    ("lines", "blocks"),
    [
        ("layer_offloading: true", 5),
        ("layer_offloading: true, layer_offloading_transformer_percent: 0.5", 3),
        (
            "layer_offloading: true, layer_offloading_transformer_percent: 0.3",
            0,
        ),  # two save no memory
        ("layer_offloading: true, layer_offloading_transformer_percent: 0", 0),
        ("auto_memory: true, blocks_to_swap: 4", 4),
        ("layer_offloading: false, layer_offloading_transformer_percent: 0.5", 0),
    ],
)
def test_a_share_of_the_layers_is_a_number_of_blocks(
    load, lines: str, blocks: int
) -> None:
    Path("model/transformer/config.json").write_text('{"num_layers": 6}')
    config = load(trainer(f"model: {{name_or_path: ./model, {lines}}}"))
    assert config.processes[0].section.model.blocks_to_swap == blocks
    told = [
        line
        for line in config.warnings
        if "of 6 blocks, which wait in main memory." in line
    ]
    assert len(told) == (blocks > 0 and "blocks_to_swap" not in lines)


def test_a_strength_of_1_in_samples_asks_for_nothing_as_its_page_writes_it(
    load,
) -> None:
    config = load(
        trainer('sample: {samples: [{prompt: a, network_multiplier: "1.0"}]}')
    )
    assert any(
        "samples[0].network_multiplier: has no effect" in line
        for line in config.warnings
    )


def test_a_share_that_is_none_is_an_error(load) -> None:
    with pytest.raises(ConfigErrors) as error:
        load(
            trainer(
                "model: {name_or_path: ./model, layer_offloading: true, layer_offloading_transformer_percent: 50}"
            )
        )
    assert (
        "layer_offloading_transformer_percent: 50 is not a share. Write a number from 0 to 1."
        in str(error.value)
    )


def test_neutral_values_of_a_section_are_one_line(load) -> None:
    (note,) = load(
        trainer(
            "train: {unload_text_encoder: false, weight_jitter: 0, noise_offset: 0.0}"
        )
    ).warnings
    assert note.endswith(
        "train.unload_text_encoder: has no effect at this value (same for weight_jitter, noise_offset)."
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "train: {do_guidance_loss: true, guidance_loss_target: 4}",
            ["do_guidance_loss: true is not supported yet."],
        ),
        (
            "train: {weight_jitter: 0.1, noise_offset: 4}",
            ["weight_jitter: 0.1 is not supported yet.", "noise_offset: 4 is not"],
        ),
    ],
)
def test_what_asks_for_something_is_still_refused(
    faults, line: str, message: list[str]
) -> None:
    found = faults(line)
    assert len(found) == len(message)
    assert all(
        text.startswith(f"train.{start}")
        for text, start in zip(found, message, strict=True)
    )


@pytest.mark.parametrize(
    "line",
    [
        "train: {weight_jitter: 0.0, switch_boundary_every: 1, audio_loss_multiplier: 1.0}",
        "datasets: [{folder_path: photos, auto_frame_count: false, do_i2v: false, do_audio: false, "
        "audio_preserve_pitch: false, audio_normalize: false, batch_size: 1}]",
        "model: {name_or_path: ./model, is_flux: false}",
    ],
    ids=["train", "datasets", "model"],
)
def test_its_defaults_of_what_is_not_here_are_notes(load, line: str) -> None:
    """Source: ai-toolkit, toolkit/config_modules.py."""
    job = load(trainer(line))
    assert all("no effect" in note for note in job.warnings)
    assert job.processes[0].section == load(trainer()).processes[0].section


# ------------------------------------------------------------ the recipes of its
# guides, each name where it belongs

LORA = """\
model: {name_or_path: ./model, fp8_base: true, fp8_scaled: true, fp8_vl: true}
datasets: [{image_directory: photos, caption_extension: .txt, num_workers: 2}]
network: {network_module: networks.lora_qwen_image, network_dim: 16, network_args: [loraplus_lr_ratio=16, verbose=True]}
train:
  sdpa: true
  mixed_precision: bf16
  timestep_sampling: shift
  weighting_scheme: none
  discrete_flow_shift: 2.2
  optimizer_type: torch.optim.AdamW
  learning_rate: 5e-5
  gradient_checkpointing: true
  persistent_data_loader_workers: true
  max_train_epochs: 16
  seed: 42
save: {save_every_n_epochs: 1}
"""

LOKR = """\
model: {name_or_path: ./model, blocks_to_swap: 0}
network: {network_module: networks.lokr, network_dim: 32, network_alpha: 16, network_args: "factor=4 rank_dropout=0.1"}
train: {timestep_sampling: qwen_shift, lr_scheduler: rex, lr_warmup_steps: 0.1, num_timestep_buckets: 4,
        cuda_allow_tf32: true, cuda_cudnn_benchmark: true, optimizer_args: [weight_decay=0.01, 'betas=0.9,0.999']}
logging: {logging_dir: logs, log_prefix: experiment_}
"""

FULL = """\
network: {type: full}
train:
  mixed_precision: bf16
  full_bf16: true
  fused_backward_pass: true
  optimizer_type: adafactor
  optimizer_args: [relative_step=False, scale_parameter=False, warmup_init=False]
  learning_rate: 1e-6
  max_grad_norm: 0
  lr_scheduler: constant_with_warmup
  lr_warmup_steps: 10
save: {save_every_n_epochs: 1, mem_eff_save: true}
"""


def test_the_recipe_of_a_lora(load) -> None:
    job = load(trainer(*LORA.splitlines()))
    section = job.processes[0].section
    assert [line.split("process[0].")[1].split(":")[0] for line in job.warnings] == [
        "network.network_args[1].verbose", "train.sdpa", "train.persistent_data_loader_workers",
    ]  # fmt: skip
    assert (
        section.network.type,
        section.network.linear,
        section.network.loraplus_lr_ratio,
    ) == ("lora", 16, 16)
    assert (section.model.qtype, section.model.qtype_te, section.train.lr) == (
        "fp8_scaled",
        "float8",
        5e-5,
    )
    assert (section.train.timestep_type, section.train.discrete_flow_shift) == (
        "shift",
        2.2,
    )
    assert (section.train.epochs, section.training_seed, section.save.interval()) == (
        16,
        42,
        (0, 1),
    )


def test_the_recipe_of_a_lokr(load) -> None:
    job = load(trainer(*LOKR.splitlines()))
    section = job.processes[0].section
    assert job.warnings == ()
    assert (
        section.network.type,
        section.network.factor,
        section.network.linear_alpha,
    ) == ("lokr", 4, 16)
    assert (section.train.timestep_type, section.train.lr_warmup_steps) == (
        "model_shift",
        0.1,
    )
    assert section.logging.trackers() == ("tensorboard",)


def test_the_recipe_of_full_finetuning(load) -> None:
    job = load(trainer(*FULL.splitlines()))
    section = job.processes[0].section
    assert job.warnings == ()
    assert (section.train.optimizer, section.train.lr, section.train.max_grad_norm) == (
        "adafactor",
        1e-6,
        0,
    )
    assert (
        section.train.fused_backward_pass
        and section.train.full_bf16
        and section.save.mem_eff_save
    )
