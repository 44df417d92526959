"""The keys and flags of FluxFlow's training guide, and what each is here: one table for
the reader of its files, the command line and docs/coming_from_fluxflow.md. Imports
nothing heavy: `run.py --help` reads it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

from toolkit.errors import UserError, did_you_mean

Kind = Literal[
    "switch", "whole", "number", "text", "texts", "mapping", "names", "sizes"
]

DATA = "data"
MODEL = "model"
TRAINING = "training"
OUTPUT = "output"
SECTIONS = (DATA, MODEL, TRAINING, OUTPUT)

STEPS = "steps"
"""Stands for an entry of `training.pipeline.steps`, and for
`training.pipeline.defaults`."""


@dataclass(frozen=True)
class Key:
    """A key of the guide. It is a flag as well, `--<name>`, unless it holds a
    mapping.

    >>> KEYS["use_webdataset"].is_flag
    True
    >>> KEYS["data_path"].here
    '`datasets[].folder_path`'
    """

    kind: Kind
    places: tuple[str, ...]
    """Sections that may hold it."""

    here: str
    """What it is here, for the page: a key of the process in backticks, or a
    sentence."""

    least: float = -math.inf
    """Smallest number that means something."""

    most: float = math.inf
    """Largest number."""

    default: Any = None
    """The value where nothing is given, for the page."""

    @property
    def is_flag(self) -> bool:
        """Whether it can be given on the command line."""
        return self.kind not in ("mapping", "names", "sizes")


_STEP = (TRAINING, STEPS)
_ANY = (TRAINING, DATA, STEPS)
_OUT = (TRAINING, OUTPUT, STEPS)

KEYS: dict[str, Key] = {
    # data
    "data_path": Key("text", (DATA,), "`datasets[].folder_path`"),
    "captions_file": Key("text", (DATA,), "`datasets[].captions_file`"),
    "fixed_prompt_prefix": Key("text", (DATA,), "`datasets[].caption_prefix`"),
    "use_webdataset": Key(
        "switch", (DATA,), "`datasets[].url` instead of `folder_path`", default=False
    ),
    "webdataset_token": Key(
        "text",
        (DATA,),
        "`datasets[].webdataset.token`; the variable `HF_TOKEN` is better",
    ),
    "webdataset_url": Key(
        "texts", (DATA,), "`datasets[].url`, one or a list", default="the set TTI-2M"
    ),
    "webdataset_image_key": Key(
        "texts",
        (DATA,),
        "`datasets[].webdataset.image_key`",
        default="png; of TTI-2M jpg",
    ),
    "webdataset_label_key": Key(
        "text", (DATA,), "`datasets[].webdataset.label_key`", default="json"
    ),
    "webdataset_caption_key": Key(
        "text", (DATA,), "`datasets[].webdataset.caption_key`", default="prompt"
    ),
    "webdataset_size": Key(
        "whole", (DATA,), "`datasets[].webdataset.samples`", 1, 10**12
    ),
    "use_tt2m": Key("switch", (DATA,), "`use_webdataset`, with a warning"),
    "tt2m_token": Key("text", (DATA,), "`webdataset_token`, with a warning"),
    "img_size": Key(
        "whole",
        (DATA, MODEL, *_STEP),
        "`datasets[].resolution`",
        32,
        16_384,
        default=1024,
    ),
    "reduced_min_sizes": Key(
        "sizes",
        (DATA,),
        "`datasets[].resolution`, beside `img_size`: each image at each of them",
    ),
    "batch_size": Key("whole", _ANY, "`train.batch_size`", 1, default=2),
    "workers": Key("whole", _ANY, "`datasets[].num_workers`", 0, default=1),
    "cfg_dropout_prob": Key(
        "number", _ANY, "`datasets[].caption_dropout_rate`", 0, 1, default=0
    ),
    # model
    "model_checkpoint": Key(
        "text",
        (MODEL, TRAINING),
        "`model.name_or_path`, of a flow step perhaps `model.vae`",
    ),
    "vae_dim": Key(
        "whole",
        (MODEL,),
        "`model.config` of an AutoencoderKL, see below",
        8,
        4096,
        default=128,
    ),
    "text_embedding_dim": Key(
        "whole",
        (MODEL,),
        "`model.text_encoder.projection_dim`",
        8,
        65_536,
        default=1024,
    ),
    "feature_maps_dim": Key(
        "whole", (MODEL,), "`model.transformer.config`, see below", 8, 4096, default=128
    ),
    "feature_maps_dim_disc": Key(
        "whole", (MODEL,), "`discriminator.channels`, four times it", 1, 1024, default=8
    ),
    "pretrained_bert_model": Key("text", (MODEL,), "`model.text_encoder.name_or_path`"),
    "tokenizer_name": Key(
        "text",
        (MODEL, DATA, TRAINING),
        "`model.text_encoder.tokenizer`, with `pretrained_bert_model`",
    ),
    # how long, how fast
    "n_epochs": Key("whole", _STEP, "`train.epochs`", 1, 999_999_999, default=1),
    "max_steps": Key(
        "whole",
        _STEP,
        "`train.step_limit`, in batches of the whole step",
        1,
        999_999_999,
    ),
    "training_steps": Key(
        "whole", _STEP, "`train.gradient_accumulation`", 1, 100_000, default=1
    ),
    "lr": Key(
        "number",
        _STEP,
        "`train.lr`, the rate of every role without its own",
        0,
        1000,
        default=5e-7,
    ),
    "lr_min": Key(
        "number",
        _STEP,
        "`lr_scheduler_params.eta_min_factor` of every role",
        0,
        1,
        default=0.1,
    ),
    "preserve_lr": Key(
        "switch",
        _STEP,
        "rates from `lr_sav.json` beside `model_checkpoint`",
        default=False,
    ),
    "optim_sched_config": Key("text", _STEP, "`optimizers`, from a JSON file"),
    "use_fp16": Key("switch", _STEP, "`train.dtype`, see below", default=False),
    "initial_clipping_norm": Key(
        "number", _STEP, "`train.max_grad_norm`, of each role", 0, default=1.0
    ),
    "use_ema": Key("switch", _STEP, "`train.ema_config.use_ema`", default=True),
    "ema_decay": Key(
        "number", _STEP, "`train.ema_config.ema_decay`", 0, 1, default=0.999
    ),
    "seed": Key("whole", (DATA, TRAINING), "`training_seed`", 0, 2**32 - 1),
    # what is trained
    "train_vae": Key(
        "switch",
        _STEP,
        "`type: vae_trainer`; with `train_diff` joint training",
        default=False,
    ),
    "train_diff": Key("switch", _STEP, "`type: flow_trainer`", default=False),
    "train_diff_full": Key("switch", _STEP, "the same as `train_diff`", default=False),
    "train_spade": Key("switch", _STEP, "`model.spade`", default=False),
    "gan_training": Key("switch", _STEP, "the section `discriminator`", default=False),
    "train_reconstruction": Key(
        "switch", _STEP, "false: only `losses.adversarial` is above 0", default=True
    ),
    "use_lpips": Key("switch", _STEP, "`losses.lpips`", default=False),
    "freeze_vae": Key("switch", _STEP, "an error where the step trains it"),
    "freeze_flow": Key("switch", _STEP, "an error where the step trains it"),
    "freeze_text_encoder": Key("switch", _STEP, "`model.text_encoder.train: false`"),
    # losses
    "kl_beta": Key("number", _STEP, "`losses.kl`", 0, 1e6, default=1e-4),
    "kl_warmup_steps": Key("whole", _STEP, "`losses.kl_warmup_steps`", 0, default=5000),
    "kl_free_bits": Key("number", _STEP, "`losses.kl_free_bits`", 0, 1e6, default=0),
    "kl_reduction": Key(
        "text", _STEP, "`losses.kl_reduction`, mean or sum", default="mean"
    ),
    "mse_weight": Key("number", _STEP, "`losses.mse`", 0, 1e6, default=0.1),
    "contrast_weight": Key("number", _STEP, "`losses.contrast`", 0, 1e6, default=0.1),
    "color_weight": Key("number", _STEP, "`losses.color`", 0, 1e6, default=0.05),
    "histogram_weight": Key(
        "number", _STEP, "`losses.histogram`", 0, 1e6, default=0.02
    ),
    "lambda_lpips": Key(
        "number", _STEP, "`losses.lpips` with `use_lpips`", 0, 1e6, default=0.1
    ),
    "lpips_backbone": Key(
        "text", _STEP, "`losses.lpips_backbone`", default="where PyTorch's hub keeps it"
    ),
    "lambda_adv": Key("number", _STEP, "`losses.adversarial`", 0, 1e6, default=0.5),
    "r1_gamma": Key("number", _STEP, "`discriminator.r1_gamma`", 0, 1e6, default=5.0),
    "r1_interval": Key("whole", _STEP, "`discriminator.r1_interval`", 1, default=16),
    "instance_noise_std": Key(
        "number", _STEP, "`discriminator.instance_noise`", 0, 10, default=0.01
    ),
    "instance_noise_decay": Key(
        "number", _STEP, "`discriminator.instance_noise_decay`", 0, 1, default=0.9999
    ),
    # files
    "output_path": Key(
        "text",
        (OUTPUT, TRAINING),
        "`training_folder`/`config.name`",
        default="outputs/flux",
    ),
    "checkpoint_save_interval": Key(
        "whole", _OUT, "`save.save_every`, in batches", 0, 999_999_999
    ),
    "samples_per_checkpoint": Key(
        "whole", _OUT, "`sample.sample_every`, in saves; 0: no samples", 0, default=1
    ),
    "sample_captions": Key("texts", (*_OUT, DATA), "`sample.samples[].prompt`"),
    "sample_sizes": Key(
        "sizes", _OUT, "`width` and `height` of `sample.samples[]`: 512 or [768, 512]"
    ),
    "no_samples": Key("switch", _OUT, "true: `sample` is left out", default=False),
    "test_image_address": Key("texts", (*_OUT, DATA), "`sample.images`"),
    "log_interval": Key(
        "whole", _OUT, "`logging.log_every`, in batches", 0, 999_999_999
    ),
    "generate_diagrams": Key("switch", _OUT, "`logging.diagrams`", default=False),
    # what only a file can say
    "optimizers": Key("mapping", _STEP, "`optimizers`"),
    "schedulers": Key(
        "mapping", _STEP, "`optimizers.<role>.lr_scheduler` and `lr_scheduler_params`"
    ),
    "optimizer_config": Key("mapping", _STEP, "the same as `optimizers`"),
    "scheduler_config": Key("mapping", _STEP, "the same as `schedulers`"),
    "optimization": Key(
        "mapping", _STEP, "`optimizers` and `schedulers` in one mapping"
    ),
    "stop_condition": Key(
        "mapping", _STEP, "`stop_when`: `loss_name` is `metric`, `threshold` is `below`"
    ),
    "dataset": Key(
        "text", (STEPS,), "the entry of `training.pipeline.datasets` that the step uses"
    ),
    "freeze": Key(
        "names",
        _STEP,
        "as `freeze_vae` and so on; `compressor` alone: `model.train: decoder`",
    ),
    "unfreeze": Key(
        "names", _STEP, "no effect: nothing stays frozen from step to step"
    ),
    "pipeline": Key(
        "mapping", (TRAINING,), "`config.process`: each of `steps` is a process"
    ),
    "name": Key("text", (STEPS,), "`name` of the process"),
    "description": Key("text", (STEPS,), "no effect"),
}

NOT_FLAGS = ("dataset", "name", "description")
"""Texts that only a step in a file has."""

OTHER_GRAMMARS = {
    "transition_on": "stop_condition: {loss_name: loss_recon, threshold: 0.02}",
    "transition_criteria": "stop_condition: {loss_name: loss_recon, threshold: 0.02}",
    "duration_epochs": "n_epochs: 10",
    "train_flow": "train_diff_full: true",
    "freeze_modules": "freeze_vae: true",
}
"""Keys of other descriptions of the pipeline -> the guide's spelling."""

ARCHITECTURE = (
    "chooses among architectures of FluxFlow, and there are none here. Remove it"
)
NOT_HERE = {
    "model_type": ARCHITECTURE,
    "baseline_activation": ARCHITECTURE,
    "baseline_vae_width_mult": ARCHITECTURE,
    "baseline_vae_depth_mult": ARCHITECTURE,
    "baseline_flow_blocks": ARCHITECTURE,
    "baseline_flow_ffn_expansion": ARCHITECTURE,
    "checkpoint_interval": "unknown key. Write 'checkpoint_save_interval', in batches",
    "sample_interval": "unknown key. Write 'samples_per_checkpoint', in saves",
}
"""Keys of the example files of FluxFlow's repository that are refused -> why, and the
remedy."""

WITHOUT_EFFECT = {
    "channels": "images have three",
    "webdataset_samples_per_shard": "'webdataset_size' is the number of all samples",
    "dataloader_max_retries": "a connection that breaks is opened again",
    "dataloader_retry_delay": "a connection that breaks is opened again",
    "checkpoint_dir": "the folder follows from 'output_path'",
    "sample_dir": "the folder follows from 'output_path'",
    "log_level": "everything is logged",
    "log_file": "the log is log.txt in the folder of each step",
}
"""Keys of these files that change nothing here -> why."""

FLAGS = {
    name: key for name, key in KEYS.items() if key.is_flag and name not in NOT_FLAGS
}


def names_in(place: str) -> list[str]:
    """The keys that may stand in a section, or in STEPS."""
    return [name for name, key in KEYS.items() if place in key.places]


HELP = (
    "FluxFlow",
    "The flags of FluxFlow's training guide (--data_path, --train_vae, ...) make a job without a file, or change "
    "one of its files: docs/coming_from_fluxflow.md",
)
"""The heading and the text of the flags in `run.py --help`."""


def split_flags(
    argv: Sequence[str], own_options: Sequence[str]
) -> tuple[dict[str, list[str]], list[str]]:
    """The guide's flags with the texts behind them, and all other arguments.
    own_options: the program's own options.

    A switch has no text, or `true` or `false`. Raises UserError for all flags that
    neither knows, one that is given twice, and one without its value.
    """
    unknown: list[str] = []
    flags: dict[str, list[str]] = {}
    rest: list[str] = []
    waiting = list(argv)
    while waiting:
        token = waiting.pop(0)
        name, equals, value = token.removeprefix("--").partition("=")
        if token == "--":  # what follows are file names
            rest += [token, *waiting]
            break
        # two letters behind one dash are two short options
        if re.match(r"-[a-z]{2}", token) and f"-{token}" in own_options:
            unknown.append(f"{token}: unknown flag. Did you mean '-{token}'?")
            continue
        if not token.startswith("--") or (
            name not in FLAGS and any(o.startswith(f"--{name}") for o in own_options)
        ):
            rest.append(token)
            continue
        if name not in FLAGS:
            hint = (
                _near_own(name, own_options)
                or _not_a_flag(name)
                or _near(name, own_options)
            )
            unknown.append(f"--{name}: unknown flag. {hint}")
            continue
        if name in flags:
            raise UserError(f"--{name}: is given twice. Remove one of them.")
        flags[name] = [value] if equals else _values(FLAGS[name].kind, waiting)
        if not flags[name] and FLAGS[name].kind != "switch":
            raise UserError(f"--{name}: needs a value.")
    if unknown:
        raise UserError("\n".join(unknown))
    return flags, rest


def _values(kind: Kind, waiting: list[str]) -> list[str]:
    """The texts that belong to a flag, taken from what follows it."""
    values: list[str] = []
    while waiting and not waiting[0].startswith("--"):
        if kind == "switch" and waiting[0].lower() not in ("true", "false"):
            break
        values.append(waiting.pop(0))
        if kind != "texts":
            break
    return values


def _near_own(name: str, own_options: Sequence[str]) -> str:
    """The program's own option that is nearly a flag; empty where none is."""
    known = [
        option.removeprefix("--")
        for option in own_options
        if option.startswith("--") and "_" not in option
    ]
    near = get_close_matches(name.replace("_", "-"), known, n=1, cutoff=0.8)
    return f"Did you mean '--{near[0]}'?" if near else ""


def _not_a_flag(name: str) -> str:
    # here: it reads the whole table of names
    from extensions.compat.keys import (
        not_a_flag,
    )

    return not_a_flag(name)


def _near(name: str, own_options: Sequence[str]) -> str:
    known = [*FLAGS]
    for option in own_options:
        if option.startswith("--") and "_" not in option:
            known.append(option.removeprefix("--"))
    hint = did_you_mean(name, known, list_all=False)
    if hint.startswith("Did you mean"):
        return hint.replace("'", "'--", 1)
    return "run.py --help lists the program's own options, docs/coming_from_fluxflow.md the guide's flags."


def page_rows() -> Iterator[str]:
    """The rows of the table in docs/coming_from_fluxflow.md."""
    for name, key in KEYS.items():
        flag = f"`--{name}`" if name in FLAGS else ""
        default = "" if key.default is None else str(key.default)
        if key.kind == "switch":
            default = default.lower()
        places = ", ".join(
            "a step" if place == STEPS else f"`{place}`" for place in key.places
        )
        yield f"| `{name}` | {flag} | {places} | {default} | {key.here} |"
