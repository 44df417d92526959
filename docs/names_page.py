"""docs/coming_from.md: what the main options of other programs are here."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from docs.config_page import keys
from extensions.compat.names import options
from toolkit.config.reading.foreign import NO_DEFAULT, ForeignName
from toolkit.config.reading.reference import Models

_HEAD = """\
<!-- Written by docs/generate.py from the tables in extensions/compat, but for what stands below the mark "by hand". -->
# Coming from another program

A file of the first three of these programs runs as it is. `run.py FILE --dry-run` shows what it becomes, and
`run.py import FILE` writes it as a job, with a comment behind each value that says where it came from.

| from | what is read |
|---|---|
| musubi-tuner | training config (TOML) with its dataset file, a command in a file or pasted: [below](#musubi-tuner) |
| ai-toolkit | its jobs (YAML, JSON): [moving_from_ai_toolkit.md](moving_from_ai_toolkit.md) |
| FluxFlow | files and flags of its training guide: [coming_from_fluxflow.md](coming_from_fluxflow.md) |
| ComfyUI | its files of weights, as `model.name_or_path`: [models.md](models.md#single-file) |
| SimpleTuner, OneTrainer, diffusion-pipe, FlyMyAI, diffusers' script, DiffSynth-Studio, \
kohya-ss/sd-scripts | nothing: [the keys that matter, by hand](#programs-whose-files-are-not-read) |

## musubi-tuner

```bash
.venv/bin/python run.py job.toml --dry-run                # a training config; dataset_config names its datasets
.venv/bin/python run.py train.sh                          # a file whose first line is `accelerate launch ... --flags`
.venv/bin/python run.py import train.sh --output job.yaml # our job, each line with its origin; an existing file stays
.venv/bin/python run.py import "python src/musubi_tuner/qwen_image_train_network.py --dit ..."
.venv/bin/python run.py job.toml --map /old/disk=/data    # paths of another machine
```

- **A key that is left out means what it means there**: rank 4, alpha 1, learning rate 2e-6, 1600 steps, `sigma` noise
  levels, float32 files, only the final file. One line names the defaults that differ from ours.
- The commands that encode latents and captions are not needed. In advance: `run.py cache train.sh`.
- All layers of the blocks are trained, as in musubi-tuner, whose default pattern matches no name.
- A script may assign variables and arrays above its command. A variable that a condition or a loop decides is an error.
- `lr_decay_steps` counts for `warmup_stable_decay` alone, `lr_scheduler_min_lr_ratio` for that, `cosine_with_min_lr`
  and `rex`; `include_patterns` alone restricts nothing there. Each is left out with a line.
- `adafactor` has `scale_parameter`; without `relative_step=False`, which would take its own rate, it is an error.
- `save_last_n_steps` becomes the number of files within that distance.
- `min_timestep` and `max_timestep` of `timestep_sampling = "sigma"`: 1000 minus them is the noise.
- Sample images are 256 x 256 with 20 steps and guidance 4 unless their prompt says more; their shift is the model's.
- `seed = 0` is a seed there and a random one here. States are not read: `network_weights` goes on from a LoRA file.
- Without `network_` keys the model itself is trained, as by `qwen_image_train.py`, and written in one file.
  `blocks_to_swap` then requires `fused_backward_pass`.
- Its other scripts are commands here: generating, captions, merging, averages, conversion, extraction. `run.py import`
  prints the command, and a file that begins with one runs. Files of a run are found in `OUT/NAME`.
- Bucket sides are multiples of 32 (there 16), small images are not enlarged, control images are scaled to the area of
  `control_resolution` or of their image.
- Accumulation goes on in the next epoch, and images whose control images differ in shape share a batch: fewer steps
  of the same images.
- A flag and a key of `--config_file` with unlike values are an error (there the flag wins).

The main keys. Others have the same name here, have no effect, or are refused with the reason: `run.py import` says it
of each, and [config.md](config.md) names those that a YAML job accepts.

| there | here | remark |
|---|---|---|
"""

_MAIN = (
    *("dit", "vae", "text_encoder", "dit_dtype", "mixed_precision"),
    *("fp8_base", "fp8_scaled", "fp8_vl", "blocks_to_swap", "base_weights"),
    *("network_module", "network_dim", "network_alpha", "network_dropout"),
    *("network_args", "network_weights", "dataset_config", "image_directory"),
    *("control_directory", "image_jsonl_file", "caption_extension", "resolution"),
    *("num_repeats", "batch_size", "no_resize_control", "max_train_steps"),
    *("max_train_epochs", "gradient_accumulation_steps", "learning_rate"),
    *("optimizer_type", "optimizer_args", "timestep_sampling", "discrete_flow_shift"),
    *("gradient_checkpointing_cpu_offload", "seed", "sample_prompts"),
    *("sample_every_n_steps", "output_dir", "output_name", "save_every_n_steps"),
    *("save_last_n_steps", "save_precision", "huggingface_repo_id"),
)


def page(models: Models) -> str:
    """The page. models: of the sections, by their process types."""
    return "".join(_parts(models))


def _parts(models: Models) -> Iterator[str]:
    known, rows = keys(models), options()
    yield _HEAD
    for key in _MAIN:
        yield _row(key, rows[key][1], known)


def _row(name: str, row: ForeignName, known: Mapping[str, bool]) -> str:
    here = [
        f"`{key}`{'' if known[key] else ' (not supported yet)'}" for key in row.ours
    ]
    theirs = (
        ""
        if row.default is NO_DEFAULT
        else f"left out, there: `{json.dumps(row.default)}`"
    )
    remark = "; ".join(filter(None, (row.says, theirs))).replace("|", "\\|")
    return f"| `{name}` | {', '.join(here)} | {remark} |\n"
