"""The generated pages are fresh, and name every key of the project's and the peers'
tables."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Annotated

import pytest
import yaml
from jsonschema import Draft202012Validator
from pydantic import TypeAdapter

from docs.config_page import about, distinct_sections
from docs.generate import pages, section_models
from tests.conftest import ROOT
from tests.toolkit.config.conftest import trainer
from toolkit.config.reading.base import descriptions
from toolkit.config.reading.foreign import foreign_keys
from toolkit.config.reading.located import Diagnostics
from toolkit.config.reading.reference import schema
from toolkit.config.reading.yaml_reader import read_yaml


def test_the_generated_pages_are_fresh() -> None:
    for path, text in pages().items():
        assert path.read_text(encoding="utf-8") == text, (
            f"{path.name} is stale: run python docs/generate.py"
        )


def test_every_field_is_described() -> None:
    for name, model in section_models().items():
        for key, definition in schema({name: model})["$defs"].items():
            for field, properties in definition.get("properties", {}).items():
                assert properties.get("description"), (
                    f"{key}.{field} has no description"
                )


SECTIONS = {
    path: section
    for path, section in distinct_sections(section_models())
    if section.__module__.startswith("toolkit.config.sections.") and path
}


@pytest.mark.parametrize("path", SECTIONS)
def test_a_section_shows_an_example_that_it_accepts(path: str) -> None:
    _, example = about(SECTIONS[path])
    assert example, f"{SECTIONS[path].__name__} has no example in its docstring"
    ((key, value),) = yaml.safe_load(example).items()
    assert key == path.rpartition(".")[2].removesuffix("[]")
    for entry in value if path.endswith("[]") else [value]:
        SECTIONS[path].model_validate(entry)


def test_defaults_are_as_their_fields_would_read_them() -> None:
    """Defaults are not validated, so each is what validation would return: a list, not
    a path; 0.0, not 0."""
    unlike, asked = [], 0
    for path, section in distinct_sections(section_models()):
        for name, field in section.model_fields.items():
            default = (
                None
                if field.is_required()
                else field.get_default(call_default_factory=True, validated_data={})
            )
            if default is not None:
                asked += 1
                kind = (
                    Annotated[field.annotation, *field.metadata]
                    if field.metadata
                    else field.annotation
                )
                read = TypeAdapter(kind).validate_python(default)
                unlike += (
                    []
                    if repr(read) == repr(default)
                    else [f"{path}.{name}: {default!r} -> {read!r}"]
                )
    assert unlike == [] and asked > 400


def ranges(schema: dict) -> list[dict]:
    """The kinds of number a value may be."""
    return [
        part
        for part in schema.get("anyOf", [schema])
        if part.get("type") in ("integer", "number")
    ]


def holds_zero(kind: dict) -> bool:
    return kind.get("minimum", -1) <= 0 <= kind.get("maximum", 1) and not (
        kind.get("exclusiveMinimum", -1) >= 0 or kind.get("exclusiveMaximum", 1) <= 0
    )


def test_every_number_that_may_be_zero_says_what_zero_does() -> None:
    silent, asked = [], 0
    for path, section in distinct_sections(section_models()):
        properties = section.model_json_schema()["properties"]
        for name, text in descriptions(section).items():
            if any(map(holds_zero, ranges(properties[name]))):
                asked += 1
                silent += (
                    []
                    if re.search(r"(?<![\d.])0(?![\d.]\d)", text)
                    else [f"{path}.{name}"]
                )
    assert silent == [] and asked > 40


def test_no_name_of_another_program_is_a_key_of_the_section() -> None:
    """And each key without effect has a reason."""
    for path, section in distinct_sections(section_models()):
        rows = foreign_keys().rows(section)
        assert [
            name
            for name, row in rows.items()
            if row.how == "not_needed" and not row.says.strip()
        ] == [], path
        assert not rows.keys() & section.model_fields.keys(), path
        assert {row.field for row in rows.values() if row.how == "renamed_to"} <= set(
            section.model_fields
        ), path


def test_the_schema_names_old_keys() -> None:
    definitions = schema(section_models())["$defs"]
    assert definitions["NetworkConfig"]["properties"]["rank"]["deprecated"] is True
    old = definitions["TrainConfig"]["properties"]["gradient_accumulation_steps"]
    assert (old["minimum"], old["type"]) == (1, ["integer", "string"])


@pytest.fixture(scope="module")
def faults() -> Callable[[str], list[str]]:
    """The places of a job that the published schema refuses."""
    text = (ROOT / "docs" / "job.schema.json").read_text(encoding="utf-8")
    assert text.count("\n") < 3000
    validator = Draft202012Validator(json.loads(text))

    def of(job: str) -> list[str]:
        data = read_yaml(job, Diagnostics("job")).data()
        return [error.json_path for error in validator.iter_errors(data)]

    return of


def test_the_schema_accepts_every_example(faults: Callable[[str], list[str]]) -> None:
    refused, seen = {}, 0
    for path in sorted((ROOT / "config").rglob("*.y*ml")):
        text = path.read_text(encoding="utf-8")
        if re.search("^job:", text, re.MULTILINE):  # else another program's
            seen += 1
            if found := faults(text):
                refused[path.name] = found
    assert refused == {} and seen > 20


TRAINS = """job: extension
config:
  name: maya
  process:
    - type: sd_trainer
      datasets: [{folder_path: images}]
      network: {type: lora}
      train: {steps: 20, lr: 1e-4, cuda_allow_tf32: false}
      model: {name_or_path: Qwen/Qwen-Image}
"""
PROCESS = "$.config.process[0]"


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("steps: 20", "steps: ${STEPS:-3}", []),
        ("lr: 1e-4", "lr: ${LR}", []),
        ("_tf32: false", "_tf32: ${TF}", []),
        ("type: lora", "type: ${KIND}", []),
        ("steps: 20", "steps: x", [f"{PROCESS}.train.steps"]),
        ("steps: 20", "steps: -1", [f"{PROCESS}.train.steps"]),
        ("steps: 20", "stesp: 20", [f"{PROCESS}.train"]),
        ("type: lora", "type: lroa", [f"{PROCESS}.network.type"]),
        ("      model: {name_or_path: Qwen/Qwen-Image}\n", "", [PROCESS]),
        ("name_or_path: Qwen/Qwen-Image", "quantize: true", [f"{PROCESS}.model"]),
        (
            "  process:\n    - type: sd_trainer\n      datasets: [{folder_path: images}]",
            "  defaults: {datasets: [{folder_path: images}]}\n  process:\n    - type: sd_trainer",
            [],
        ),
        (
            "{name_or_path: Qwen/Qwen-Image}",
            "{quantize: true}\n  defaults: {model: {name_or_path: x}}",
            [],
        ),
    ],
)  # fmt: skip
def test_the_schema_refuses_what_no_job_may_have(
    faults: Callable[[str], list[str]], old: str, new: str, found: list[str]
) -> None:
    assert old in TRAINS
    assert faults(TRAINS.replace(old, new)) == found


def test_the_page_shows_default_range_and_old_names() -> None:
    """Of the text that a test above compares with what is generated."""
    page = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    assert "| `linear: 16` | Rank r of each adapted layer" in page
    assert "(from 1; also `rank`, `network_dim`) |" in page
    assert re.search(
        r"^\| `training_seed: 0` \| .* musubi-tuner: `seed`\) \|$", page, re.MULTILINE
    )


# The keys of shared tables: section -> names. A known name is a field, another name of
# one, a key without effect, or refused as "not supported yet"; it is never "unknown".
KNOWN = {
    "": "training_folder device trigger_word training_seed resume network save datasets train model sample "
    "logging performance_log_every log_dir sqlite_db_path first_sample embedding adapter optimizer "
    "training",
    "network": "type linear linear_alpha rank alpha conv conv_alpha dropout network_kwargs transformer_only "
    "lokr_full_rank lokr_factor pretrained_lora_path layer_offloading loraplus_lr_ratio include_patterns "
    "exclude_patterns rank_dropout module_dropout factor scale_weight_norms network_dim network_alpha "
    "network_dropout network_args network_weights",
    "save": "dtype save_every max_step_saves_to_keep save_format push_to_hub hf_repo_id hf_private also "
    "save_every_n_epochs save_last_n_epochs save_last_n_steps no_metadata mem_eff_save save_every_n_steps "
    "save_state",
    "logging": "log_every verbose use_wandb use_ui_logger project_name run_name logging_dir log_with log_prefix "
    "wandb_api_key wandb_run_name",
    "sample": "sampler sample_every sample_start_step width height neg seed walk_seed guidance_scale sample_steps "
    "network_multiplier format num_frames fps prompts samples sample_every_n_epochs sample_every_n_steps "
    "sample_at_first",
    "train": "steps epochs batch_size gradient_accumulation gradient_accumulation_steps lr unet_lr text_encoder_lr "
    "optimizer optimizer_params lr_scheduler lr_scheduler_params max_grad_norm dtype noise_scheduler "
    "timestep_type content_or_style min_denoising_steps max_denoising_steps linear_timesteps "
    "linear_timesteps2 loss_type train_unet train_text_encoder gradient_checkpointing xformers "
    "skip_first_sample force_first_sample disable_sampling unload_text_encoder cache_text_embeddings "
    "ema_config reg_weight noise_offset do_differential_guidance differential_guidance_scale "
    "do_guidance_loss guidance_loss_target diff_output_preservation diff_output_preservation_multiplier "
    "diff_output_preservation_class blank_prompt_preservation blank_prompt_preservation_multiplier "
    "bypass_guidance_embedding min_snr_gamma validation_config seed max_train_steps max_train_epochs "
    "learning_rate lr_warmup_steps lr_decay_steps lr_scheduler_num_cycles lr_scheduler_power "
    "lr_scheduler_min_lr_ratio optimizer_type optimizer_args timestep_sampling discrete_flow_shift "
    "sigmoid_scale weighting_scheme logit_mean logit_std mode_scale min_timestep max_timestep "
    "num_timestep_buckets compile full_bf16 gradient_checkpointing_cpu_offload fused_backward_pass "
    "ddp_timeout",
    "train.ema_config": "use_ema ema_decay use_num_updates",
    "model": "name_or_path revision arch is_qwen quantize quantize_te qtype qtype_te quantize_dtype "
    "accuracy_recovery_adapter low_vram layer_offloading auto_memory layer_offloading_transformer_percent "
    "layer_offloading_text_encoder_percent extras_name_or_path vae_path dtype vae_dtype lora_path "
    "assistant_lora_path inference_lora_path model_kwargs compile block_compile compile_mode "
    "compile_dynamic compile_fullgraph cache_size_limit is_v2 is_xl is_flux is_v_pred blocks_to_swap "
    "base_loras base_weights fp8_base fp8_scaled fp8_vl",
    "datasets": "folder_path num_repeats resolution caption_ext default_caption trigger_word caption_dropout_rate "
    "shuffle_tokens keep_tokens control_path control_path_1 control_path_2 control_path_10 "
    "control_optional cache_latents cache_latents_to_disk cache_text_embeddings background num_workers "
    "mask_path mask_min_value alpha_mask invert_mask is_reg flip_x flip_y loss_multiplier network_weight "
    "controls buckets batch_size prefetch_factor",
}


@pytest.mark.parametrize("section", KNOWN)
def test_every_key_of_the_tables_is_known(mistakes, section: str) -> None:
    """A mapping is wrong for nearly every key, so each of them is either silent or says
    what it wants."""
    lines = [f"{name}: {{_: 1}}" for name in KNOWN[section].split()]
    *outer, last = section.split(".")
    if last:
        opening = {"datasets": ["datasets:", "  -"]}.get(last, [f"{last}:"])
        lines = opening + [f"    {line}" for line in lines]
        if outer:
            lines = [f"{outer[0]}:", *(f"  {line}" for line in lines)]
    found = mistakes(trainer(*lines))
    prefix = ": process[0]." + (
        section.replace("datasets", "datasets[0]") + "." if section else ""
    )
    unknown = [
        line
        for line in found
        if "unknown key" in line and not line.split(": ")[1].endswith("._")
    ]
    assert unknown == []
    assert any(prefix in line for line in found)
