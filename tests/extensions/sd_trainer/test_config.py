"""The trainer's section: jobs of other programs, missing files, contradictions,
notes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from extensions.sd_trainer.config import SdTrainerConfig
from tests.parts import needs_foreign_names
from toolkit.config import JobConfig, load_job
from toolkit.errors import ConfigErrors

SEED_001 = """\
job: extension
config:
  name: "qwen_character_lora"
  process:
    - type: 'sd_trainer'
      training_folder: "output"
      device: cuda:0
      trigger_word: "maya_char"  # Change to your trigger
      network:
        type: "lora"
        linear: 16
        linear_alpha: 16
      save:
        dtype: float16
        save_every: 340  # Every epoch (3400 / 10)
        max_step_saves_to_keep: 10
      datasets:
        - folder_path: "photos"
          caption_ext: "txt"
          caption_dropout_rate: 0.05
          shuffle_tokens: false
          cache_latents_to_disk: true
          resolution: [1024, 1024]
      train:
        batch_size: 1
        steps: 3400
        gradient_accumulation_steps: 4
        train_unet: true
        train_text_encoder: false  # CRITICAL: Must be false
        gradient_checkpointing: true
        noise_scheduler: "flowmatch"  # CRITICAL: Qwen-specific
        optimizer: "adamw8bit"
        lr: 0.0002  # Community-tested optimal
        ema_config:
          use_ema: true
          ema_decay: 0.999
        dtype: bf16
      model:
        name_or_path: "Qwen/Qwen-Image-Edit-2509"
        is_qwen: true  # CRITICAL: Flag for Qwen handling
        quantize: true
        quantize_dtype: "int8"
      sample:
        sampler: "flowmatch"
        sample_every: 340  # Every epoch
        width: 1024
        height: 1024
        prompts:
          - "maya_char, portrait, smiling, high quality"
          - "maya_char, realistic_body, detailed skin"
        neg: "low quality, blurry, artifacts"
        guidance_scale: 3.5
        sample_steps: 28
"""

STEPS_COUNT = (
    "train.gradient_accumulation_steps: steps, save_every and sample_every count optimizer steps of 4 micro-batches; "
    "with this key ai-toolkit counts micro-batches. steps: 3400 is 13,600 micro-batches; there it would stop after "
    "3,400, which are 850 optimizer steps."
)
QUIET = SEED_001.replace("gradient_accumulation_steps", "gradient_accumulation")
"""The same job, of which there is nothing to say."""

# The keys of ai-toolkit's published job for Qwen-Image-Edit-2509.
AI_TOOLKIT_2509 = """\
---
job: extension
config:
  name: "my_first_qwen_image_edit_2509_lora_v1"
  process:
    - type: 'diffusion_trainer'
      training_folder: "output"
      device: cuda:0
      network: {type: "lora", linear: 16, linear_alpha: 16}
      save: {dtype: float16, save_every: 250, max_step_saves_to_keep: 4}
      datasets:
        - folder_path: "photos"
          control_path: ["photos", "photos", "photos"]
          caption_ext: "txt"
          caption_dropout_rate: 0.05
          resolution: [512, 768, 1024]
      train:
        batch_size: 1
        cache_text_embeddings: true
        steps: 3000
        gradient_accumulation: 1
        timestep_type: "weighted"
        train_unet: true
        train_text_encoder: false
        gradient_checkpointing: true
        noise_scheduler: "flowmatch"
        optimizer: "adamw8bit"
        lr: 1e-4
        dtype: bf16
      model:
        name_or_path: "Qwen/Qwen-Image-Edit-2509"
        arch: "qwen_image_edit_plus"
        quantize: true
        qtype: "uint3|ostris/accuracy_recovery_adapters/qwen_image_edit_2509_torchao_uint3.safetensors"
        quantize_te: true
        qtype_te: "qfloat8"
        low_vram: true
      sample:
        sampler: "flowmatch"
        sample_every: 250
        width: 1024
        height: 1024
        samples:
          - prompt: "do the thing to it"
            ctrl_img_1: "photos/a.png"
            ctrl_img_2: "photos/a.png"
            ctrl_img_3: "photos/a.png"
        neg: ""
        seed: 42
        walk_seed: true
        guidance_scale: 3
        sample_steps: 25
meta:
  name: "[name]"
  version: '1.0'
"""


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], JobConfig]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"")

    def load(text: str) -> JobConfig:
        (tmp_path / "job.yaml").write_text(text, encoding="utf-8")
        return load_job("job.yaml", lambda name: SdTrainerConfig)

    return load


def faults(load: Callable[[str], JobConfig], text: str) -> list[str]:
    with pytest.raises(ConfigErrors) as caught:
        load(text)
    return [
        line.split(": process[0].", 1)[1] for line in str(caught.value).splitlines()
    ]


@needs_foreign_names
def test_seed_001_loads_with_only_paths_changed(load) -> None:
    job = load(SEED_001)
    section = job.processes[0].section
    # ai-toolkit counts otherwise with this key
    assert [line.split("process[0].", 1)[1] for line in job.warnings] == [STEPS_COUNT]
    assert section.network.linear == 16
    assert section.train.gradient_accumulation == 4
    assert section.model.qtype == "int8"
    assert section.datasets[0].resolution == (1024,)
    assert (section.save.dtype, section.train.dtype) == ("float16", "bfloat16")
    assert section.train.ema_config.use_ema
    assert [item.prompt[:9] for item in section.sample.samples] == ["maya_char"] * 2


@needs_foreign_names
def test_the_published_2509_job_of_ai_toolkit_loads(load) -> None:
    job = load(AI_TOOLKIT_2509)
    section = job.processes[0].section
    assert job.meta == {
        "name": "my_first_qwen_image_edit_2509_lora_v1",
        "version": "1.0",
    }
    assert (section.model.qtype, section.model.qtype_te, section.train.lr) == (
        "uint3",
        "float8",
        1e-4,
    )
    assert (
        section.model.recovery_name()
        == "qwen_image_edit_2509_torchao_uint3.safetensors"
    )
    assert section.datasets[0].control_path == ("photos",) * 3
    assert section.sample.samples[0].ctrl_img == ("photos/a.png",) * 3
    assert section.datasets[0].cache is True


@needs_foreign_names
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            'folder_path: "photos"',
            'folder_path: "none"',
            "datasets[0].folder_path: 'none' does not exist (working",
        ),
        (
            'folder_path: "photos"',
            "folder_path: photos/a.png",
            "datasets[0].folder_path: 'photos/a.png' is not a fol",
        ),
        (
            "caption_ext:",
            "control_path: none\n          caption_ext:",
            "datasets[0].control_path: 'none' does not",
        ),
        (
            "Qwen/Qwen-Image-Edit-2509",
            "./none",
            "model.name_or_path: './none' does not exist (working directory: ",
        ),
        (
            "Qwen/Qwen-Image-Edit-2509",
            "a/b/c",
            "model.name_or_path: 'a/b/c' does not exist",
        ),
        (
            "Qwen/Qwen-Image-Edit-2509",
            "photos",
            "model.name_or_path: 'photos' holds no model_index.json.",
        ),
        (
            "Qwen/Qwen-Image-Edit-2509",
            "Qwen",
            "model.name_or_path: 'Qwen' is neither a folder nor a hub id (working",
        ),
        (
            "steps: 3400",
            "steps: 0",
            "train.steps: 0 optimizer steps. Set steps or epochs to a value above 0.",
        ),
        (
            "linear: 16",
            "pretrained_lora_path: no.safetensors",
            "network.pretrained_lora_path: 'no.safetensors' does",
        ),
        (
            "train_text_encoder: false",
            "train_text_encoder: true",
            "train.train_text_encoder: true is not supported: the text encoder is frozen",
        ),
        (
            "train_unet: true",
            "train_unet: false",
            "train.train_unet: false trains nothing",
        ),
        (
            "is_qwen: true",
            "arch: qwen_image_layered",
            "model.arch: 'qwen_image_layered', but Qwen/Qwen-Image-Edit-2509 is 'qwen_image_edit_plus'. Leave it out",
        ),
        (
            "steps: 3400",
            "steps: 9\n        timestep_type: qinglong_flux\n        content_or_style: style",
            "train.content_or_style: does not work with timestep_type 'qinglong_flux'.",
        ),
        (
            "shuffle_tokens: false",
            "shuffle_tokens: true\n          cache_text_embeddings: true",
            "datasets[0].cache_text_embeddings: keeps text embeddings, and with 'shuffle_tokens: true' a caption",
        ),
    ],
)
def test_mistakes_that_need_the_file_system_or_several_keys(
    load, old: str, new: str, message: str
) -> None:
    (found,) = faults(load, SEED_001.replace(old, new))
    assert found.startswith(message)


@needs_foreign_names
def test_epochs_may_stand_for_steps(load) -> None:
    section = (
        load(SEED_001.replace("steps: 3400", "steps: 0\n        epochs: 10"))
        .processes[0]
        .section
    )
    assert (section.train.steps, section.train.epochs) == (0, 10)


@needs_foreign_names
def test_what_is_allowed_but_learns_nothing_is_noted(load) -> None:
    text = QUIET.replace("lr: 0.0002", "lr: 0").replace(
        "linear_alpha: 16", "linear_alpha: 0"
    )
    assert load(text.replace("quantize: true", "quantize: false")).warnings == (
        "job.yaml:12:9: process[0].network.linear_alpha: 0 disables the adapter.",
        "job.yaml:33:9: process[0].train.lr: 0 means that nothing is trained.",
        "job.yaml:42:9: process[0].model.quantize_dtype: has no effect without 'quantize: true'.",
    )


@needs_foreign_names
def test_curly_quotes_that_become_a_part_of_a_value_are_one_warning_each(load) -> None:
    text = QUIET.replace(
        'trigger_word: "maya_char"', "trigger_word: \u201cmaya_char\u201d"
    )
    text = text.replace(
        '- "maya_char, portrait', '- "maya_char says \u201chi\u201d, portrait'
    )
    (line,) = load(text).warnings
    assert (
        "trigger_word: the curly quotes are a part of the value. It holds U+201C"
        in line
    )


def test_the_number_type_of_files_and_weights_depends_on_what_is_trained(load) -> None:
    def section(
        kind: str, save: str = "", train: str = "dtype: bf16"
    ) -> SdTrainerConfig:
        text = f"name: a, process: [{{type: sd_trainer, datasets: [{{folder_path: photos}}], network: {{type: {kind}}}"
        model = "model: {name_or_path: Qwen/Qwen-Image-Edit-2509}"
        job = f"{{job: extension, config: {{{text}, save: {{{save}}}, train: {{{train}}}, {model}}}]}}}}"
        return load(job).processes[0].section

    assert (section("lora").save.dtype, section("full").save.dtype) == (
        "float16",
        "bfloat16",
    )
    assert section("FullRank", "save_every: 3").save.dtype == "bfloat16"
    assert section("full", "dtype: fp32").save.dtype == "float32"
    assert (section("lora").weights_dtype(), section("full").weights_dtype()) == (
        "bfloat16",
        "float32",
    )
    assert (
        section("full", train="dtype: bf16, full_bf16: true").weights_dtype()
        == "bfloat16"
    )
