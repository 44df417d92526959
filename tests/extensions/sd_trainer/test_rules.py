"""Combinations of keys of an `sd_trainer` section: one row each, with every finding
that it leads to.

`E` is an error, `W` a warning; a row without findings is a job that nothing is said
about.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import save_file

from extensions.sd_trainer.config import SdTrainerConfig
from tests.findings import errors, warnings
from tests.processes import several
from toolkit.config.reading.field_types import PER_PARAMETER_OPTIMIZERS
from toolkit.config.reading.process import JobContext
from toolkit.optim.optimizer_args import ELEMENTWISE, OPTIMIZERS

PUBLISHED = "Qwen/Qwen-Image-Edit-2509"
"""60 blocks; none of its files are here."""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    Path("other").mkdir()
    Path("kept.txt").write_text("a dog\n")
    Path("page.safetensors").write_text("<html>")
    save_file({}, "lora.safetensors")


def section(text: str) -> SdTrainerConfig:
    """The section with these keys, a mapping in YAML's flow style without its
    braces."""
    keys: dict[str, Any] = yaml.safe_load("{" + text + "}")
    keys["model"] = {"name_or_path": PUBLISHED, **keys.get("model", {})}
    return SdTrainerConfig.model_validate(
        {"type": "sd_trainer", "datasets": [{"folder_path": "photos"}], **keys}
    )


def findings(text: str) -> list[str]:
    """All of them: `E train.lr: message`."""
    asked = section(text)
    found = [("E", one) for one in errors(asked)] + [
        ("W", one) for one in warnings(asked)
    ]
    return [
        f"{severity} {'.'.join(map(str, one.key))}: {one.message}"
        for severity, one in found
    ]


def check(text: str, *expected: str) -> None:
    found = findings(text)
    assert len(found) == len(expected), (text, found)
    for beginning in expected:
        assert any(line.startswith(beginning) for line in found), (beginning, found)


WITH_REG = "datasets: [{folder_path: photos}, {folder_path: photos, is_reg: true}]"
FULL = "network: {type: full}"
ONE = "samples: [{prompt: a}]"
BLANK = "blank_prompt_preservation: true"
OF_CLASS = "diff_output_preservation: true"
IN_BACKWARD = "fused_backward_pass: true, optimizer: adafactor, max_grad_norm: 0"
TURBO = "model: {name_or_path: Qwen/Qwen-Image-2.1-Turbo}"
EAGER = "compile: {enabled: true, backend: eager}"

ROWS: list[tuple[str, ...]] = [
    ("",),
    (
        "datasets: [{folder_path: photos}, {folder_path: photos, control_path: other, is_reg: true}], "
        "model: {name_or_path: Qwen/Qwen-Image-Edit}",
    ),
    (
        f"{TURBO}, sample: {{{ONE}}}",
        "W model.name_or_path: Qwen-Image-2.1-Turbo is distilled for 8 steps, and training undoes that. Train on Qwen/",
    ),
    (
        f"{TURBO}, train: {{assistant: lora.safetensors}}, sample: {{sample_steps: 8, guidance_scale: 1, "
        "samples: [{prompt: a, sample_steps: 12, guidance_scale: 4}]}",
        "W sample.samples.0.sample_steps: 12: Qwen-Image-2.1-Turbo is distilled for its 8 noise levels, which",
        "W sample.samples.0.guidance_scale: 4: Qwen-Image-2.1-Turbo is distilled for 1; with more, images wash",
    ),
    (
        f"{FULL}, sample: {{lora: lora.safetensors, {ONE}}}",
        "E sample.lora: network.type 'full' trains the weights that this file changes",
    ),
    (
        f"train: {{disable_sampling: true}}, sample: {{lora: lora.safetensors, {ONE}}}",
        "E sample.lora: there are no samples that need it. Remove it, or give prompts.",
    ),
    ("model: {transformer_path: none.safetensors}", "E model.transformer_path: none.safetensors does not exist"),
    ("model: {text_encoder_path: none.safetensors}", "E model.text_encoder_path: none.safetensors does not exist"),
    (
        FULL + ", model: {vae_path: none.safetensors}",
        "E model.vae_path: none.safetensors does not exist",
        "E model.vae_path: network.type 'full' saves the encoders of the model folder",
    ),
    (f"sample: {{vae_path: none.safetensors, {ONE}}}", "E sample.vae_path: none.safetensors does not exist"),
    (f"sample: {{vae_path: lora.safetensors, {ONE}}}", "E sample.vae_path: lora.safetensors: has no decoder.conv_in."),
    (
        f"sample: {{vae_path: me/decoder, {ONE}}}",
        "E sample.vae_path: 'me/decoder' is not in the hub cache. Run 'hf download me/decoder' first, or give a file.",
    ),
    (
        "sample: {vae_path: lora.safetensors}",
        "W sample: has no prompts",
        "E sample.vae_path: there are no samples that need it. Remove it, or give prompts.",
        "E sample.vae_path: lora.safetensors: has no decoder.conv_in.",
    ),
    (
        f"train: {{disable_sampling: true}}, sample: {{vae_path: lora.safetensors, {ONE}}}",
        "E sample.vae_path: there are no samples that need it. Remove it, or give prompts.",
        "E sample.vae_path: lora.safetensors: has no decoder.conv_in.",
    ),
    (
        f"sample: {{vae_path: none.safetensors, {ONE}}}",
        "E sample.vae_path: none.safetensors does not exist",
    ),
    ("model: {arch: qwen_image}", f"E model.arch: 'qwen_image', but {PUBLISHED} is 'qwen_image_edit_plus'. Leave"),
    # ---------------------------------------- the model itself, or an adapter
    (f"{FULL}, model: {{quantize: true}}", "E model.quantize: network.type 'full' trains the weights, and quantized"),
    ("network: {type: full, pretrained_lora_path: photos}", "E network.pretrained_lora_path: network.type 'full' has",
     "E network.pretrained_lora_path: 'photos' is not a file."),
    (f"{FULL}, model: {{blocks_to_swap: 5}}", "E model.blocks_to_swap: blocks that are trained can be swapped only"),
    *((f"{FULL}, model: {{blocks_to_swap: 5}}, train: {{{IN_BACKWARD}, gradient_accumulation: {count}}}", *found)
      for count, found in ((1, ()), (2, ("E model.blocks_to_swap: blocks that are trained can be swapped only",)))),
    (f"{FULL}, model: {{blocks_to_swap: 60}}, train: {{{IN_BACKWARD}}}", "E model.blocks_to_swap: 60 is more than the"),
    ("network: {type: full, scale_weight_norms: 1}", "E network.scale_weight_norms: network.type 'full' has no adapt",
     "W network.scale_weight_norms: has no effect: network.type 'full' trains the model itself."),
    (f"{FULL}, train: {{full_bf16: true, dtype: fp16}}", "E train.full_bf16: requires 'dtype: bf16', but dtype is fl"),
    (f"{FULL}, train: {{full_bf16: true, fused_backward_pass: true}}, save: {{mem_eff_save: true}}",),
    ("network: {type: full, linear: 8, dropout: 0.1}", "W network.linear: has no effect", "W network.dropout: has no"),
    ("train: {full_bf16: true}", "E train.full_bf16: needs 'network: {type: full}': adapter weights are always float"),
    ("save: {mem_eff_save: true}", "W save.mem_eff_save: has no effect without 'network: {type: full}'."),
    ("save: {layout: single_file}", "W save.layout: has no effect without 'network: {type: full}': an ada"),
    (f"{FULL}, save: {{layout: single_file, mem_eff_save: true}}", "E save.mem_eff_save: writes model folders."),
    (f"{FULL}, save: {{layout: single_file}}",),
    ("network: {linear_alpha: 0}", "W network.linear_alpha: 0 disables the adapter."),
    ("network: {dropout: 1}", "W network.dropout: 1 zeroes every input of the adapter"),
    ("train: {gradient_checkpointing: block_offload}",),
    ("train: {gradient_checkpointing: block_offload, compile: {enabled: true}}",
     "E train.gradient_checkpointing: 'gradient_checkpointing: block_offload' moves what they save, and a compiled b"),
    ("train: {gradient_checkpointing: block_offload}, network: {type: ia3}",
     "E train.gradient_checkpointing: 'block_offload' works with network.type lora, dora, loha, lokr, not with ia3."),
    ("network: {type: loha, loraplus_lr_ratio: 4}", "E network.loraplus_lr_ratio: network.type 'loha' has no up matr"),
    (f"{FULL}, name: state", "E name: 'state' is a folder of every run"),
    # ---------------------------------------- optimizer, learning rate
    ("train: {fused_backward_pass: true}",),
    ("train: {fused_backward_pass: true, dtype: fp16}", "E train.fused_backward_pass: does not work with 'dtype: flo"),
    (f"{FULL}, train: {{full_bf16: true, optimizer: prodigy, lr: 1}}", "E train.full_bf16: updates one parameter at "),
    *((f"train: {{fused_backward_pass: true, optimizer: {name}}}", "E train.fused_backward_pass: updates one parame")
      for name in ("lion8bit", "schedulefree_adamw", "torch.optim.NAdam")),
    ("train: {optimizer: prodigy, lr: 1}, network: {loraplus_lr_ratio: 4}", "E network.loraplus_lr_ratio: optimizer"),
    ("train: {optimizer: schedulefree_adamw}, network: {scale_weight_norms: 1}", "E network.scale_weight_norms: opti"),
    ("train: {lr: 0}", "W train.lr: 0 means that nothing is trained."),
    ("train: {optimizer: prodigy, lr: 0.01}", "W train.optimizer: prodigy estimates the learning rate itself"),
    ("train: {optimizer: prodigyopt.Prodigy, lr: 0.01}", "W train.optimizer: prodigyopt.Prodigy estimates the"),
    ("train: {lr: 0.0005}",),
    ("train: {lr: 0.01}", "W train.lr: 0.01 is high for a large model: above 0.0005 its images tend to burn."),
    (f"train: {{lr: 0.01}}, {FULL}",),
    ("train: {lr: 1}", "W train.lr: 1 is unusually high for adamw; training is likely to diverge."),
    ("train: {lr: 0.02, optimizer: AdamW8bit}", "W train.lr: 0.02 is unusually high for adamw8bit"),
    ("train: {lr: 11, optimizer: prodigy}", "W train.lr: 11 is unusually high for prodigy"),
    ("train: {lr: 1, optimizer: sgd}",),
    ("train: {ema_config: {use_ema: true, ema_decay: 1}}", "W train.ema_config.ema_decay: 1 sets no limit: files are"),
    ("train: {ema_config: {use_ema: true, ema_decay: 0.9999}}",),
    ("train: {ema_config: {use_ema: false, ema_decay: 1}}",),
    # ---------------------------------------- schedule, length
    ("train: {lr_decay_steps: 5}", "W train.lr_decay_steps: has no effect: lr_scheduler constant ignores it."),
    ("train: {steps: 5, epochs: 2}", "W train.steps: has no effect: 'epochs: 2' takes precedence."),
    ("train: {epochs: 2}",),
    # ---------------------------------------- prior preservation
    (f"train: {{{OF_CLASS}, diff_output_preservation_class: dog}}", "E train.diff_output_preservation: replaces the "),
    (f"trigger_word: zxq, train: {{{OF_CLASS}, diff_output_preservation_class: dog}}",),
    (f"trigger_word: zxq, train: {{{OF_CLASS}}}", "W train.diff_output_preservation_class: is not set, so the trigge"),
    (f"{FULL}, train: {{{BLANK}}}", "E train.blank_prompt_preservation: needs the model without its adapter"),
    (f"train: {{{BLANK}, blank_prompt_preservation_multiplier: 0}}", "W train.blank_prompt_preservation_multiplier: 0"),
    ("train: {blank_prompt_preservation_multiplier: 2}", "W train.blank_prompt_preservation_multiplier: has no effec"),
    ("train: {diff_output_preservation_class: dog}", "W train.diff_output_preservation_class: has no effect without"),
    # ---------------------------------------- trigger words
    (
        "trigger_word: 'zibo '",
        "W trigger_word: 'zibo ' begins or ends with a space, so that captions with 'zibo' get it twice. Write 'zibo'.",
    ),
    ("trigger_word: 'No'", "W trigger_word: is read as the word 'No', which is put in front of each caption."),
    ("trigger_word: <trigger>", "W trigger_word: is read as the word '<trigger>'"),
    ("datasets: [{folder_path: ./photos, trigger_word: none}]", "W datasets.0.trigger_word: is read as the word"),
    ("trigger_word: nora",),
    ("trigger_word: ''",),
    # ---------------------------------------- noise levels
    ("train: {timestep_type: shift, discrete_flow_shift: 0}", "E train.discrete_flow_shift: 0 would train without any"),
    ("train: {min_timestep: 500, max_timestep: 500}", "E train.min_timestep: 500 is not below max_timestep 500."),
    ("train: {timestep_type: qinglong_flux, content_or_style: style}", "E train.content_or_style: does not work with"),
    ("train: {num_timestep_buckets: 10}, datasets: [{url: a.tar}]", "E train.num_timestep_buckets: a stream needs"),
    # ---------------------------------------- memory, compiling
    ("model: {blocks_to_swap: 59}",),
    ("model: {blocks_to_swap: 60}", "E model.blocks_to_swap: 60 is more than the model allows: it has 60 blocks, of"),
    ("model: {blocks_to_swap: 1}", "W model.blocks_to_swap: 1 saves no memory"),
    ("model: {qtype: int4}", "W model.qtype: has no effect without 'quantize: true'."),
    ("model: {accuracy_recovery_adapter: a/b/c.safetensors}", "W model.accuracy_recovery_adapter: has no effect with"),
    ("model: {qtype_te: float8}", "W model.qtype_te: has no effect without 'quantize_te: true'."),
    ("model: {quantize: true, qtype: int2}", "W model.qtype: int2 without an accuracy recovery adapter leaves weights"),
    *((f"model: {{quantize: true, qtype: {qtype}, accuracy_recovery_adapter: a/b/{name}.safetensors}}", *found)
      for qtype, name, *found in (
          ("int4", "qwen_image_edit_2509_torchao_uint3", "W model.accuracy_recovery_adapter: was made for uint3"),
          ("uint3", "qwen_image_edit_2509_torchao_uint3"),
          ("int4", "ara-int8", "W model.accuracy_recovery_adapter: was made for int8, and cannot correct the errors"),
          ("int8", "ara_qint8"), ("float8", "Adapter.FP8"), ("int4", "int8_to_int4"), ("int4", "my_print3"))),
    *((f"train: {{{EAGER}, gradient_checkpointing: {level}}}, network: {{{dropout}: 0.1}}", "E train.compile.backend: ")
      for level in ("auto", "full") for dropout in ("dropout", "rank_dropout", "module_dropout")),
    (f"train: {{{EAGER}, gradient_checkpointing: none}}, network: {{dropout: 0.1}}",),
    ("train: {compile: {enabled: true, backend: aot_eager}}, network: {dropout: 0.1}",),
    ("train: {compile: {enabled: false, mode: max-autotune}}", "W train.compile.mode: has no effect with 'enabled: f"),
    ("train: {compile: {enabled: true, backend: eager, mode: max-autotune}}", "W train.compile.mode: has no effect: o"),
    # ---------------------------------------- files of weights
    *((row, f"E {key}: 'page.safetensors' cannot be read as a safetensors file (it is a web page).") for row, key in (
        ("model: {base_loras: [{path: page.safetensors}]}", "model.base_loras.0.path"),
        ("network: {pretrained_lora_path: page.safetensors}", "network.pretrained_lora_path"),
        ("train: {assistant: {path: page.safetensors}}", "train.assistant.path"),
        (f"sample: {{lora: page.safetensors, {ONE}}}", "sample.lora.path"))),
    # ---------------------------------------- images
    (WITH_REG,),
    ("datasets: [{folder_path: photos, is_reg: true}]", "W datasets.0.is_reg: true for every dataset: all images hold"),
    # ---------------------------------------- samples
    ("sample: {samples: [{prompt: a}], guidance_scale: 75}", "W sample.guidance_scale: 75 is far above"),
    ("sample: {samples: [{prompt: a}], guidance_scale: 7.5}",),
    ("sample: {samples: [{prompt: a, sample_steps: 1000}]}", "W sample.samples.0.sample_steps: 1000 steps for each"),
    ("sample: {samples: [{prompt: a}], sample_steps: 100}",),
    # ---------------------------------------- compilers
    ("train: {compile: {enabled: true, backend: nosuch}}", "W train.compile.backend: PyTorch itself has no backend 'n"),
    ("train: {compile: {enabled: false, backend: nosuch}}", "W train.compile.backend: has no effect with 'enabled: f"),
    ("train: {compile: {enabled: true, backend: eager}}",),
    ("network: {type: lycoris}",),
    *((f"datasets: [{{folder_path: photos, {key}}}]", f"W datasets.0.{key.split(':')[0]}: has no effect without a mask")
      for key in ("mask_min_value: 0.1", "invert_mask: true", "mask_optional: true")),
    ("datasets: [{folder_path: photos, mask_path: none}]", "E datasets.0.mask_path: 'none' does not exist"),
    ("datasets: [{folder_path: photos, mask_path: ./photos/}]", "E datasets.0.mask_path: is the same folder as"),
    ("datasets: [{folder_path: photos, mask_path: other, alpha_mask: true}]", "E datasets.0.mask_path: 'mask_path' an"),
    ("datasets: [{folder_path: photos, control_path: [other, ./photos/]}]", "W datasets.0.control_path.1: is the same"),
    ("datasets: [{folder_path: photos, resolution: [960, 544]}]", "W datasets.0.resolution: [960, 544] are two sizes"),
    *((f"datasets: [{{folder_path: photos, resolution: {sizes}}}]",)
      for sizes in ("512", "[512]", "[512, 768, 1024]", "[{width: 960, height: 544}]")),
    # ---------------------------------------- samples
    ("sample: {samples: [{prompt: a, ctrl_img: no.png}]}", "E sample.samples.0.ctrl_img.0: 'no.png' does"),
    ("train: {force_first_sample: true}", "W train.force_first_sample: has no effect without a 'sample' section."),
    (f"sample: {{{ONE}, sample_at_first: true}}, train: {{skip_first_sample: true}}",
     "E sample.sample_at_first: 'sample_at_first: true' and 'skip_first_sample: true' contradict each other. Remove"),
    (f"sample: {{{ONE}, sample_at_first: false}}, train: {{force_first_sample: true}}",
     "E train.force_first_sample: 'force_first_sample: true' and 'sample_at_first: false' contradict each other."),
    (f"sample: {{{ONE}}}, train: {{skip_first_sample: true, force_first_sample: true}}", "E train.force_first_sample"),
    (f"sample: {{{ONE}, sample_at_first: false}}, train: {{skip_first_sample: false}}", "E train.skip_first_sample: "),
    (f"sample: {{{ONE}}}, train: {{force_first_sample: true, disable_sampling: true}}", "E train.force_first_sample"),
    ("sample: {width: 100, samples: [{prompt: a, height: 70}]}",
     "W sample.width: the model cannot generate 100 pixels; images will be generated at 96.",
     "W sample.samples.0.height: the model cannot generate 70 pixels; images will be generated at 64."),
    ("datasets: [{folder_path: photos, control_path: [other, other, other]}]",),
    ("datasets: [{folder_path: photos, control_path: [other, other, other, other]}]",
     "E datasets.0.control_path: has 4 control images, and Qwen-Image-Edit-2509 takes at most 3. Shorten control"),
    ("datasets: [{folder_path: photos, control_path: [other, other, other, other], control_optional: true}]",),
    # ---------------------------------------- validation, what is measured
    *((f"stop_when: {{metric: {metric}, below: 1}}", f"E stop_when.metric: '{metric}' {fault}") for metric, fault in (
        ("validation/loss", "needs the section 'validation'"),
        ("validation/loss_t0.125", "needs the section 'validation'"),
        ("max_norm/keys_scaled", "is not a metric of this run"),
        ("los", "is not a metric of this run. Did you mean 'loss'?"),
        ("loss_recon", "is not a metric of this run. Known names: grad_norm, loss, lr, t_mean."))),
    *((f"train: {{lr_scheduler: plateau, lr_scheduler_params: {{metric: {metric}}}}}, {validation}", *found)
      for metric, validation, *found in (
          ("loss", ""), ("validation/loss", "validation: {fraction: 0.5, every: 5}"),
          ("validation/loss", "", "E train.lr_scheduler_params: 'validation/loss' needs the section 'validation'"),
          ("grad_norm", "", "E train.lr_scheduler_params: 'grad_norm' is not a metric of this run"))),
    *((f"validation: {{fraction: 0.5, {every}}}, stop_when: {{below: 1, {stop}}}, train: {{{train}}}", *found)
      for every, stop, train, *found in (
          ("every: 0", "metric: validation/loss, smooth: 2", "", "W stop_when.smooth: will never trigger: it needs 2"),
          ("every: 100", "metric: validation/loss, smooth: 12", "", "W stop_when.smooth: will never trigger: it needs"),
          ("every: 100", "metric: validation/loss, smooth: 11", ""),
          ("every: 100", "metric: validation/loss, smooth: 12", "epochs: 3"),
          ("every: 0", "metric: loss", ""))),
    *((f"{validation}stop_when: {{{stop}}}", *found) for validation, stop, *found in (
        ("validation: {fraction: 0.5, every: 5}, ", "metric: validation/loss"),
        ("validation: {fraction: 0.5, every: 5}, ", "metric: validation/loss, smooth: 3",
         "W stop_when.smooth: has no effect without 'below'."),
        ("", "metric: validation/loss", "E stop_when.metric: 'validation/loss' needs the section 'validation'"),
        ("validation: {fraction: 0.5}, ", "metric: validation/loss", "E stop_when.metric: needs validations d"),
        ("", "metric: grad_norm", "E stop_when.below: is not set. Set it, or 'metric: validation/loss', which ne"))),
    ("validation: {folder_path: ./photos}", "W validation.folder_path: './photos' is also trained on"),
    ("validation: {folder_path: other}",),
    # ---------------------------------------- files
    ("train: {compile: {fullgraph: true}}, network: {type: boft, network_kwargs: {constraint: 0.1}}",
     "E train.compile.fullgraph: cannot be combined with network_kwargs.constraint, which looks at values."),
    ("train: {compile: {fullgraph: true}}, network: {type: boft}",),
    # ---------------------------------------- one process
    ("train: {parallel: fsdp, ddp_timeout: 5}", "W train.parallel: has no effect with one process.",
     "W train.ddp_timeout: has no effect with one process. Start several with torchrun."),
]  # fmt: skip


def test_what_is_said_about_a_section() -> None:
    for row in ROWS:
        check(*row)


SHARED = "parallel: fsdp, gradient_accumulation: 4"
WITH_TWO: list[tuple[str, ...]] = [
    ("train: {ddp_timeout: 60}",),
    ("train: {fused_backward_pass: true}", "E train.fused_backward_pass: updates each parameter before the"),
    (f"train: {{{SHARED}}}",),
    (f"train: {{{SHARED}, full_bf16: true}}, {FULL}",),
    *((f"train: {{{SHARED}, optimizer: {name}}}, {FULL}",) for name in ELEMENTWISE),
    *((f"train: {{{SHARED}, lr: 1e-6, optimizer: {name}}}, {FULL}", f"E train.optimizer: '{name}' may need whole")
      for name in ("adafactor", "adamw8bit", "torch.optim.Muon")),
    *((f"train: {{lr: 1e-6, optimizer: {name}}}, {FULL}",) for name in ("adafactor", "torch.optim.Muon")),  # with ddp
    (f"train: {{{SHARED}}}, save: {{mem_eff_save: true}}, {FULL}",),
    *((f"train: {{{SHARED}, gradient_checkpointing: {level}}}",
       "E train.gradient_checkpointing: is not supported with 'parallel: fsdp'. Use full_offload, or remove")
      for level in ("offload_attention", "block_offload")),
    (f"train: {{{SHARED}, batch_size: 2}}", "E train.batch_size: 2: 'train.parallel: fsdp' needs 1"),
    ("train: {parallel: fsdp, gradient_accumulation: 3}", "E train.gradient_accumulation: 3: 'train.parallel: fsdp' n"),
    (f"train: {{{SHARED}, compile: {{enabled: true}}}}", "E train.compile: does not work with 'train.parallel: fsdp'"),
    (f"train: {{{SHARED}}}, network: {{type: dora}}", "E network.type: 'dora' computes with whole weights"),
    (f"train: {{{SHARED}}}, network: {{type: boft}}", "E network.type: 'boft' computes with whole weights"),
    (f"train: {{{SHARED}}}, network: {{type: lycoris-full}}",),
    *((f"train: {{{SHARED}}}, model: {{{key}: {value}}}", f"E model.{key}: does not work with 'train.parallel: fsdp'")
      for key, value in (("quantize", "true"), ("modulation_table", "true"), ("blocks_to_swap", 5))),
]  # fmt: skip


def test_what_is_said_where_two_processes_run_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with several(monkeypatch, 2):
        for row in WITH_TWO:
            check(*row)


def test_what_accelerate_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    told = "W train.dtype: bfloat16 takes precedence over accelerate's --mixed"
    for asked, dtype, *expected in (
        ("fp16", "bf16", told),
        ("bf16", "bf16"),
        ("no", "fp32"),
    ):
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", asked)
        check(f"train: {{dtype: {dtype}}}", *expected)


def test_any_number_that_the_section_logs_may_end_the_run() -> None:
    keys = "validation: {fraction: 0.5, every: 5}, network: {scale_weight_norms: 1}"
    numbers = section(keys).logged_numbers()
    assert {"lr", "t_mean", "max_norm/keys_scaled", "validation/loss_t0.875"} <= set(
        numbers
    )
    for metric in numbers:
        check(f"{keys}, stop_when: {{metric: {metric}, below: 1}}")


def test_each_key_says_by_itself_whether_a_first_set_is_generated() -> None:
    for keys, first in (
        (f"sample: {{{ONE}}}", True),
        (f"sample: {{{ONE}, sample_at_first: true}}", True),
        (f"sample: {{{ONE}, sample_at_first: false}}", False),
        (f"sample: {{{ONE}}}, train: {{skip_first_sample: true}}", False),
        (f"sample: {{{ONE}}}, train: {{force_first_sample: true}}", True),
        (
            f"sample: {{{ONE}, sample_at_first: false}}, train: {{skip_first_sample: true}}",
            False,
        ),
        (
            f"sample: {{{ONE}, sample_at_first: true}}, train: {{skip_first_sample: false}}",
            True,
        ),
    ):
        assert section(keys).draws_first() is first, keys
        check(keys)


def test_samples_without_prompts_are_told() -> None:
    check(
        "sample: {sample_every: 2}",
        "W sample: has no prompts: no images are generated. Give 'prompts'.",
    )


def test_the_run_folder_is_the_jobs_or_the_processs_below_it() -> None:
    asked = section("")
    assert asked.run_folder(JobContext("hero")) == Path("output/hero")
    assert asked.outputs(JobContext("hero")) == {Path.cwd() / "output" / "hero"}
    assert asked.model_copy(update={"name": "second"}).run_folder(
        JobContext("hero")
    ) == Path("output/hero/second")


def test_optimizers_that_step_one_by_one_are_known() -> None:
    assert set(PER_PARAMETER_OPTIMIZERS) < set(OPTIMIZERS)
