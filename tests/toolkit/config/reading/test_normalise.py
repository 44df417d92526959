"""Old names, conflicts, keys without a value or effect, names that are not built yet;
`config.defaults`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.parts import needs_foreign_names, needs_part
from tests.processes import alarm
from tests.running import section_of
from tests.toolkit.config.conftest import trainer
from toolkit.config.reading import normalise
from toolkit.config.reading.validate import number_remedy
from toolkit.errors import UserError


def value_at(section: object, path: str) -> object:
    """The value of a key with dots, in a list the number of the entry."""
    for part in path.split("."):
        if isinstance(section, tuple | dict):
            section = section[int(part) if part.isdigit() else part]
        else:
            section = getattr(section, part)
    return section


@needs_foreign_names
@pytest.mark.parametrize(
    ("lines", "path", "value"),
    [
        ("network: {rank: 4}", "network.linear", 4),
        ("network: {rank: 4}", "network.linear_alpha", 4.0),
        ("network: {network_dim: 8, network_alpha: 2}", "network.linear_alpha", 2.0),
        ("network: {linear: 4, rank: 4}", "network.linear", 4),
        ("network: {linear: , rank: 4}", "network.linear", 4),
        ("train: {gradient_accumulation_steps: 4}", "train.gradient_accumulation", 4),
        ("train: {max_train_steps: 7}", "train.steps", 7),
        ("train: {learning_rate: 2e-4}", "train.lr", 2e-4),
        (
            "train: {optimizer: {name: AdamW8bit, lr: 3e-4, weight_decay: 0.1}}",
            "train.optimizer",
            "adamw8bit",
        ),
        (
            "train: {optimizer: {name: AdamW8bit, lr: 3e-4, weight_decay: 0.1}}",
            "train.lr",
            3e-4,
        ),
        (
            "train: {optimizer: {name: adamw, betas: [0, 0.5]}}",
            "train.optimizer_params",
            {"betas": [0, 0.5]},
        ),
        ("optimizer: {name: adafactor, lr: 2e-4}", "train.optimizer", "adafactor"),
        ("optimizer: lion8bit\ntrain: {lr: 1}", "train.optimizer", "lion8bit"),
        ("training: {steps: 12, epochs: 3}", "train.epochs", 3),
        ("train: {seed: 5}", "training_seed", 5),
        ("train: {seed: 0}\ntraining_seed: ", "training_seed", 0),
        (
            "model: {name_or_path: ./model, quantize: true, quantize_dtype: qint4}",
            "model.qtype",
            "int4",
        ),
        (
            "model: {name_or_path: ./model, quantize: true, qtype: FP8}",
            "model.qtype",
            "float8",
        ),
        (
            "model: {name_or_path: ./model, arch: 'qwen_image_edit_plus:2511'}",
            "model.arch",
            "qwen_image_edit_plus",
        ),
        (
            "model: {name_or_path: ./model, model_version: edit-2511}",
            "model.arch",
            "qwen_image_edit_plus",
        ),
        (
            "model: {name_or_path: Qwen/Qwen-Image, arch: original}",
            "model.arch",
            "qwen_image",
        ),
        ("save: {dtype: bf16}", "save.dtype", "bfloat16"),
        ("train: {dtype: fp32}", "train.dtype", "float32"),
        (
            "train: {gradient_checkpointing: auto}",
            "train.gradient_checkpointing",
            "auto",
        ),
        (
            "train: {gradient_checkpointing: 'false'}",
            "train.gradient_checkpointing",
            False,
        ),
        ("train: {lr: , steps: ''}", "train.lr", 1e-4),
        ("sample: ", "sample", None),
        ("resume: ''", "resume", "auto"),
        ("resume: never", "resume", "never"),
        ("resume: 340", "resume", 340),
        (
            "resume: ./output/x/state/step_000000340",
            "resume",
            "./output/x/state/step_000000340",
        ),
    ],
)
def test_what_is_written_reaches_the_field(
    section, lines: str, path: str, value: object
) -> None:
    assert value_at(section(*lines.splitlines()), path) == value


@pytest.mark.parametrize(
    ("line", "path", "value"),
    [
        ("train: {compile: true}", "train.compile.enabled", True),
        ("train: {compile: auto}", "train.compile.enabled", "auto"),
        (
            "train: {optimizer: {name: lion, lr: 3e-4, weight_decay: 0.1}}",
            "train.optimizer_params.weight_decay",
            0.1,
        ),
        (
            "network: {type: lycoris, network_kwargs: {algo: LoKr}}",
            "network.type",
            "lokr",
        ),
        (
            "network: {type: lycoris, network_kwargs: {algo: locon}}",
            "network.type",
            "lora",
        ),
        (
            "model: {name_or_path: Comfy-Org/Qwen-Image-2.1}",
            "model.name_or_path",
            "Qwen/Qwen-Image-2.1",
        ),
        (
            "model: {name_or_path: ./model, quantize: true, qtype: 'int4|a/b/c.safetensors'}",
            "model.qtype",
            "int4",
        ),
        ("sample: {prompts: [a cat --w 512]}", "sample.samples.0.width", 512),
        ("sample: {samples: [{prompt: a cat --w 512}]}", "sample.samples.0.width", 512),
        (
            "sample: {samples: [{prompt: a, ctrl_img_1: a.png}]}",
            "sample.samples.0.ctrl_img.0",
            "a.png",
        ),
        (
            "datasets: [{folder_path: photos, resolution: {width: 64, height: 96}}]",
            "datasets.0.resolution.0.width",
            64,
        ),
        (
            "sample: {prompts: [a], lora: a.safetensors}",
            "sample.lora.path",
            "a.safetensors",
        ),
    ],
)
def test_shapes_of_our_own_are_read_without_a_word_of_other_programs(
    section,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    line: str,
    path: str,
    value: object,
) -> None:
    monkeypatch.setattr(
        normalise, "foreign_keys", lambda: pytest.fail("other programs were asked")
    )
    (tmp_path / "a.png").touch()
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    assert value_at(section(line), path) == value


@needs_foreign_names
@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "network: {linear: 4, rank: 8}",
            "network.rank: 'rank' and 'linear' mean the same, but 8 and 4 were given.",
        ),
        (
            "network: {rank: 4, network_dim: 8}",
            "network.network_dim: 'network_dim' and 'rank' mean the same",
        ),
        (
            "training_seed: 1\ntrain: {seed: 2}",
            "train.seed: 'seed' and 'training_seed' mean the same",
        ),
        ("network: {rank: 0}", "network.rank: 0 is out of range: must be >= 1."),
        ("train: {batch_size: true}", "train.batch_size: true is not a number."),
        ("train: {lr: false}", "train.lr: false is not a number."),
        ("train: {steps: 1.5}", "train.steps: 1.5 is not a whole number."),
        ("train: {lr: .nan}", "train.lr: .nan is not a finite number."),
        ("train: {max_grad_norm: abc}", "train.max_grad_norm: 'abc' is not a number."),
        (
            "train: 7",
            "train: 7 is not a mapping of keys and values. Write 'train: {steps: 7}'.",
        ),
        (
            "network: lokr",
            "network: 'lokr' is not a mapping of keys and values. Write 'network: {type: lokr}'.",
        ),
        (
            "network: [{type: lora}, {linear: 4}]",
            "network: a list is not a mapping of keys and values. Remove the '- '",
        ),
        (
            "logging: true",
            "logging: true is not a mapping of keys and values. Write 'logging: {}' for its defaults.",
        ),
        ("datasets: []", "datasets: has 0 entries: must be at least 1."),
        ("datasets: ", "datasets: needs a value."),
        (
            "datasets: [{folder_path: ''}]",
            "datasets[0]: names no images. Give 'folder_path', or 'url'",
        ),
        (
            "datasets: [{folder_path: 12}]",
            'datasets[0].folder_path: 12 is not text. Put it in quotes: "12"',
        ),
        (
            "datasets: {folder_path: photos}",
            "datasets: a mapping is not a list. Begin each entry with '- ': '- fol",
        ),
        (
            "datasets: {-folder_path: a}",
            "datasets: a mapping is not a list. Write a space after the '-' of '-folder_p",
        ),
        (
            "datasets: [photos]",
            "datasets[0]: 'photos' is not a mapping of keys and values. Write '- folder_path: pho",
        ),
        (
            "sample: {samples: a temple}",
            "sample.samples: 'a temple' is not a list. Begin each entry with '- '.",
        ),
        (
            "train: {ema_config: true}",
            "train.ema_config: true is not a mapping of keys and values. Write 'ema_config:",
        ),
        (
            "network:\n  rank: 4# rank",
            "network.rank: '4# rank' is not a whole number. A comment begins with a",
        ),
        (
            "network: {rank: 4 // rank}",
            "network.rank: '4 // rank' is not a whole number. A comment begins with a",
        ),
        (
            "train: {lr: 1e-4//low}",
            "train.lr: '1e-4//low' is not a number. A comment begins with a space and '#'.",
        ),
        (
            "sample: {width: 64x64}",
            "sample.width: '64x64' is not a whole number. Write one number; where several may",
        ),
        (
            "datasets: [{folder_path: photos, resolution: 64 x 64}]",
            "datasets[0].resolution: '64 x 64' is not a whole",
        ),
        (
            "datasets: [{folder_path: photos, resolution: '512, 768'}]",
            "datasets[0].resolution: '512, 768' is not a whole number. Write [512, 768] where a list may stand.",
        ),
        (
            "datasets: [{folder_path: photos, resolution: '512,512'}]",
            "datasets[0].resolution: '512,512' is not a whole number. Write 512.",
        ),
        (
            "sample: {width: '512,768'}",
            "sample.width: '512,768' is not a whole number. Write [512, 768] where a list",
        ),
        (
            "train: {optimizer_params: 'weight_decay=0.1 eps=1e-8'}",
            "train.optimizer_params: 'weight_decay=0.1 eps=1e-8' is not a mapping of keys and values. Write "
            "'optimizer_params: {weight_decay: 0.1, eps: 1e-8}'.",
        ),
        (
            "train: {optimizer_params: none}",
            "train.optimizer_params: 'none' is not a mapping of keys and values. Write its",
        ),
        (
            "datasets: [{folder_path: [photos, more]}]",
            "datasets[0].folder_path: a list is not text. For several write an entry of 'datasets' for each: "
            "'- folder_path: photos', '- folder_path: more'",
        ),
        (
            "sample: {prompts: [{prompt: a cup, seed: 1}]}",
            "sample.prompts[0]: is a mapping, and 'prompts' are texts. Write it in 'samples' instead, with its keys: "
            "'- prompt: a cup'.",
        ),
        (
            "train: {optimizer: [adamw, lion]}",
            "train.optimizer: a list: is not a name. Use 'adamw' or",
        ),
        ("train: {LR: 3}", "train.LR: unknown key. Did you mean 'lr'?"),
        (
            "train: {steps: [4]}",
            "train.steps: a list is not one value. Write 4, without brackets or dash.",
        ),
        (
            "train: {steps: [4, 5]}",
            "train.steps: a list is not one value. Give one of them.",
        ),
        (
            "trigger_word: [a, b]",
            "trigger_word: a list is not text. Give one value; if the brackets or",
        ),
        (
            "resume: true",
            "resume: True is not a step. Write 'auto', 'never', a step number or the path of a state",
        ),
        ("device: 1", "device: 1 is not a valid device. Write 'cuda:1'."),
        (
            "model: {name_or_path: ./model, quantize: int8}",
            "model.quantize: 'int8' is neither true nor false. Write 'quantize: true' and 'qtype: int8'.",
        ),
        (
            "datasets: [{folder_path: photo}]",
            "datasets[0].folder_path: 'photo' does not exist",
        ),
        (
            "train: {steps: '2,000'}",
            "train.steps: '2,000' is not a whole number. Write 2000.",
        ),
        (
            "train: {steps: 2 000}",
            "train.steps: '2 000' is not a whole number. Write 2000.",
        ),
        (
            "train: {steps: 2.000}",
            "train.steps: 2.000 is 2, with decimals. Write 2000, or 2.",
        ),
        (
            "train: {steps: 1.5k}",
            "train.steps: '1.5k' is not a whole number. Write 1500.",
        ),
        (
            "sample: {width: 512px}",
            "sample.width: '512px' is not a whole number. Write 512.",
        ),
        ("train: {lr: '0,0001'}", "train.lr: '0,0001' is not a number. Write 0.0001."),
        ("train: {lr: 2*10^-4}", "train.lr: '2*10^-4' is not a number. Write 2e-4."),
        ("train: {lr: '2e-4,'}", "train.lr: '2e-4,' is not a number. Write 2e-4."),
        (
            "sample: {prompts: [{a photo: 'b'}]}",
            "sample.prompts[0]: a mapping is not text. A ': ' makes a key of what "
            'stands before it. Put the text in quotes: "a photo: b"',
        ),
        (
            "sample: {prompts: [[trigger]]}",
            "sample.prompts[0]: a list is not text. Give one value; if the brackets or",
        ),
        (
            "trigger_word: {a b}",
            "trigger_word: a mapping is not text. If it is one, put it in quotes, the brackets too.",
        ),
        (
            "network: {\u00a0linear: 4}",
            "network.\u00a0linear: unknown key. It holds U+00A0 (no-break space): type",
        ),
        (
            "network: linear:\u00a04",
            "network: 'linear:\\xa04' is not a mapping of keys and values. It holds U+00A0",
        ),
        (
            "train: {steps: \u201c9\u201d}",
            "train.steps: '\u201c9\u201d' is not a whole number. It holds U+201C (lef",
        ),
        (
            "network: {type: locon}",
            "network.type: 'locon' is unknown. Use 'lora' or 'dora' or",
        ),
        (
            "network: {type: lra}",
            "network.type: 'lra' is unknown. Did you mean 'lora'?",
        ),
        (
            "train: {blocks_to_swap: 3}",
            "train.blocks_to_swap: unknown key. It belongs in 'model'.",
        ),
        ("linear: 16", "linear: unknown key. It belongs in 'network'."),
        ("steps: 9", "steps: unknown key. It belongs in 'train'."),
        (
            "folder_path: photos",
            "folder_path: unknown key. It belongs in 'validation' or 'datasets[]'.",
        ),
        ("prompts: [a]", "prompts: unknown key. It belongs in 'sample'."),
        ("use_ema: true", "use_ema: unknown key. It belongs in 'train.ema_config'."),
        (
            "train: {trigger_word: x}",
            "train.trigger_word: unknown key. It belongs in the process, beside 'train'",
        ),
        (
            "train: {frobnicate: 3}",
            "train.frobnicate: unknown key. docs/config.md lists the keys of 'train'.",
        ),
        (
            "train: {clip_skip: 3}",
            "train.clip_skip: unknown key. kohya's 'clip_skip' is not supported: it concerns CLIP",
        ),
        (
            "train: {lr_warmup_steps: 10.5}",
            "train.lr_warmup_steps: 10.5 is neither a number of steps nor a frac",
        ),
        (
            "model: {name_or_path: ./model, lora_path: a}",
            "model.lora_path: 'a' is not supported yet. The nearest h",
        ),
        (
            "train: {weight_jitter: {a: 3}}",
            "train.weight_jitter: a mapping is not supported yet. Leave this key out.",
        ),
        (
            "model: {name_or_path: ./model, blocks_to_swap: -1}",
            "model.blocks_to_swap: -1 is out of range: must be",
        ),
        (
            "save: {push_to_hub: true}",
            "save.push_to_hub: needs a repository: set hf_repo_id, such as 'owner/name'.",
        ),
        ("slider: {loss: 3}", "slider: a mapping is not supported yet."),
        (
            "training: {epohcs: 3}",
            "training.epohcs: unknown key. Did you mean 'epochs'?",
        ),
        ("device: gpu", "device: 'gpu' is not a valid device. Write 'cuda'."),
        (
            "resume: latest",
            "resume: 'latest' is none of these. Write 'auto', 'never', a step number or the path of a",
        ),
    ],
)
def test_what_is_wrong_is_one_line_under_the_written_name(
    faults, line: str, message: str
) -> None:
    (found,) = faults(*line.splitlines())
    assert found.startswith(message)
    assert not found.endswith(("..", ":."))


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("9" * 200_000, ""),
        ("9," * 100_000, ""),
        ("8# " + "of the run " * 10_000, "A comment begins with a space and '#'."),
    ],
)
def test_a_text_that_is_too_long_for_a_number_is_not_searched(
    text: str, remedy: str
) -> None:
    with alarm(20):
        assert number_remedy(text, whole=True) == remedy


@needs_foreign_names
def test_harmless_values_of_what_is_not_built_pass_with_a_line_for_each_section(
    load,
) -> None:
    job = load(
        trainer(
            "datasets: [{folder_path: photos, flip_x: false, is_reg: false, loss_multiplier: 1.0, mask_path: ''}]",
            "train: {unload_text_encoder: false, noise_offset: 0.0}",
        )
    )
    assert [line.split("process[0].")[1] for line in job.warnings] == [
        "datasets[0].loss_multiplier: has no effect at this value.",
        "train.unload_text_encoder: has no effect at this value (same for noise_offset).",
    ]


@needs_foreign_names
def test_a_key_without_effect_is_one_warning_line(load) -> None:
    job = load(
        trainer(
            "model:",
            "  name_or_path: ./model",
            "  is_flux: false",
            "performance_log_every: 10",
        )
    )
    assert job.warnings == (
        "job.yaml:9:9: process[0].model.is_flux: has no effect at this value.",
        "job.yaml:10:7: process[0].performance_log_every: has no effect: metrics.jsonl has the times of every step.",
    )


@needs_part("tools.generate")
@pytest.mark.parametrize("strength", ["", ":0.5"])
def test_the_folder_of_a_run_stands_for_its_file(
    tmp_path: Path, tiny_model: Path, strength: str
) -> None:
    run = tmp_path / "my"
    run.mkdir()
    (run / "run.json").write_text("{}")
    save_file({"a": torch.zeros(1)}, run / "my.safetensors")
    section = section_of(
        "generate",
        ["--lora", f"{run}{strength}", "--prompt", "x", "--model", tiny_model],
    )
    assert list(section.lora) == [f"{run / 'my.safetensors'}{strength}"]


@needs_foreign_names
def test_where_the_text_encoder_runs_is_not_chosen(load) -> None:
    key = "text_encoder_cpu"
    (line,) = load(trainer(f"model: {{name_or_path: ./model, {key}: true}}")).warnings
    reason = "captions go through the text encoder layer by layer, on the device of the training"
    assert line.endswith(f"model.{key}: has no effect: {reason}.")


@needs_foreign_names
@needs_part("tools.generate")
def test_the_flag_for_it_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"The text encoder is read layer by layer. Leave it out\."
    ):
        section_of(
            "generate", ["--model", tmp_path, "--prompt", "x", "--text-encoder-cpu"]
        )


# ------------------------------------------------------------ config.defaults


JOB = """
job: extension
config:
  name: test
  defaults:
    datasets: [{folder_path: photos, num_repeats: 2}, {folder_path: photos}]
    model: {name_or_path: ./model, model_kwargs: {match_target_res: true}}
    train: {steps: 7, lr: 0.5, ema_config: {use_ema: true, ema_decay: 0.5}}
    validation: {fraction: 0.1, every: 5, timesteps: 3}
    stop_when: {below: 1, smooth: 4}
  process:
    - {type: sd_trainer, name: a}
    - type: sd_trainer
      name: b
      datasets: [{folder_path: photos}]
      train: {ema_config: {ema_decay: 0.9}, lr: 0}
      validation: {folder_path: photos}
      stop_when: {threshold: 2}
    - {type: drop_in, train: {steps: 1, mine: [1]}, datasets: none}
    - {type: writer, path: tiny}
"""


FROM_DEFAULTS = (
    # process, key of its section, its value in JOB
    (0, "datasets.0.num_repeats", 2),
    (0, "datasets.1.num_repeats", None),
    (0, "train.steps", 7),
    (0, "train.lr", 0.5),
    (0, "train.ema_config.ema_decay", 0.5),
    (0, "validation.fraction", 0.1),
    (0, "stop_when.below", 1),
    (0, "stop_when.smooth", 4),
    # mappings merge at every depth; a list and 0 replace
    (1, "datasets.0.num_repeats", None),
    (1, "train.steps", 7),
    (1, "train.lr", 0),
    (1, "train.ema_config.use_ema", True),
    (1, "train.ema_config.ema_decay", 0.9),
    (1, "stop_when.below", 2),
    (1, "stop_when.smooth", 4),
    # of two keys that exclude each other the process's wins
    (1, "validation.folder_path", "photos"),
    (1, "validation.fraction", None),
    (1, "validation.every", 5),
    (1, "validation.timesteps", 3),
    (3, "path", "tiny"),
)


@needs_foreign_names
def test_what_a_process_does_not_give_comes_from_the_defaults(load) -> None:
    """Also in a section that is not checked; one that knows no default is left alone."""
    processes = load(JOB).processes
    assert [len(each.section.datasets) for each in processes[:2]] == [2, 1]
    for process, key, value in FROM_DEFAULTS:
        found = value_at(processes[process].section, key)
        assert found == value, (process, key)
    raw = processes[2].raw
    assert raw["train"].items() >= {"steps": 1, "lr": 0.5, "mine": [1]}.items()
    assert raw["train"]["ema_config"] == {"use_ema": True, "ema_decay": 0.5}
    assert raw["datasets"] == "none"


@needs_foreign_names
def test_a_list_of_sections_that_is_replaced_is_told(load) -> None:
    (told,) = (line for line in load(JOB).warnings if "process[1].datasets" in line)
    assert told.endswith(
        "replaces the whole list of config.defaults.datasets, line 6; lists are not merged."
    )
    assert not [line for line in load(JOB).warnings if "process[0]" in line]


@needs_foreign_names
def test_a_default_is_known_though_every_process_that_knows_it_adds_to_it(
    load, mistakes
) -> None:
    """`writer` knows no `train`; both trainers have one of their own."""
    both = JOB.replace("name: a}", "name: a, train: {batch_size: 2}}")
    train = load(both).processes[0].section.train
    assert (train.batch_size, train.steps) == (2, 7)
    # it takes anything
    checked = "".join(
        line for line in both.splitlines(keepends=True) if "drop_in" not in line
    )
    assert mistakes(checked.replace("steps: 7", "stpes: 7")) == [
        "8:13: config.defaults.train.stpes: unknown key. Did you mean 'steps'?"
    ]


@needs_foreign_names
def test_the_defaults_of_one_process_are_not_changed_by_another(load) -> None:
    first, second = (
        load(JOB),
        load(
            JOB.replace("name: a}", "name: a, train: {ema_config: {use_ema: false}}}")
        ),
    )
    assert first.processes[1].raw == second.processes[1].raw


def test_a_key_without_a_value_is_told_with_what_is_taken(load) -> None:
    train = """train: {steps: , lr: null, skip_first_sample: , batch_size: "", optimizer: ''}"""
    empty = (
        train,
        "save:",
        "logging: {}",
        "network: {network_kwargs: {}}",
        'trigger_word: ""',
        "sample: {prompts: }",
    )
    counts = "has no value, and counts as not given:"
    assert [
        line.split("process[0].")[1] for line in load(trainer(*empty)).warnings
    ] == [
        f"train.steps: {counts} the default is 1000.",
        f"train.skip_first_sample: {counts} the default is false.",
        f"train.batch_size: {counts} the default is 1.",
        f"train.optimizer: {counts} the default is adamw.",
        f"save: {counts} the defaults of its keys are taken.",
        "logging: has no keys: the defaults of its keys are taken.",
        "sample: has no prompts: no images are generated. Give 'prompts'.",
        f"sample.prompts: {counts} the default is none.",
    ]


def test_equal_sizes_are_told_what_they_are_taken_for(load) -> None:
    [note] = load(
        trainer("datasets: [{folder_path: photos, resolution: [128, 128]}]")
    ).notes
    assert note.endswith(
        "resolution: [128, 128] is taken as one size, 128: the area of a square of 128 pixels, aspect ratio kept"
    )
    assert (
        load(trainer("datasets: [{folder_path: photos, resolution: [128]}]")).notes
        == ()
    )
