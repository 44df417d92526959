"""docs/coming_from.md: what the options of other programs are here."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from pydantic import BaseModel

from docs.config_page import distinct_sections, dotted, keys
from extensions.compat.names import PLACES, names, options
from toolkit.config.reading.foreign import NO_DEFAULT, ForeignName, foreign_keys
from toolkit.config.reading.reference import Models

_HEAD = """\
<!-- Written by docs/generate.py from the tables in extensions/compat, but for what stands below the mark "by hand". -->
# Coming from another program

A file of the first three of these programs runs as it is. `run.py FILE --dry-run` shows what it becomes,
`run.py import FILE` writes it as a job under the names of this program, with a comment behind each value that
says where it came from.

| from | what is read | more |
|---|---|---|
| musubi-tuner | training config (TOML) with its dataset file, a command in a file or pasted | below |
| ai-toolkit | its jobs (YAML, JSON) | [moving_from_ai_toolkit.md](moving_from_ai_toolkit.md), keys below |
| FluxFlow | files and flags of its training guide | [coming_from_fluxflow.md](coming_from_fluxflow.md) |
| ComfyUI | its files of weights: the transformer's as `model.name_or_path`, whose VAE and text encoder are found \
there | [models.md](models.md#single-file) |
| SimpleTuner, OneTrainer, diffusion-pipe, FlyMyAI, diffusers' script, DiffSynth-Studio, \
kohya-ss/sd-scripts | nothing: the keys that matter, by hand | \
[below](#programs-whose-files-are-not-read) |

## musubi-tuner

```bash
.venv/bin/python run.py job.toml --dry-run                # a training config; dataset_config names its datasets
.venv/bin/python run.py train.sh                          # a file whose first line is `accelerate launch ... --flags`
.venv/bin/python run.py import train.sh --output job.yaml # our job, each line with its origin; an existing file stays
.venv/bin/python run.py import "python src/musubi_tuner/qwen_image_train_network.py --dit ..."
.venv/bin/python run.py job.toml --map /old/disk=/data    # paths of another machine
```

- **A key that is left out means what it means there**: rank 4, alpha 1, learning rate 2e-6, 1600 steps, `sigma` noise
  levels, float32 files, only the final file. One line names the defaults that were taken where ours differ.
- The commands that encode latents and captions are not needed: the training does it, and knows files by their content.
  In advance: `run.py cache train.sh`. Pasted alone they are an error that says so: they do not name the folder
  of the training, where the cache is.
- All layers of the blocks are trained, as in musubi-tuner: its default pattern, meant to leave out modulation, matches
  no name.
- A script may assign variables and arrays above its command, and write `${NAME:-default}`. What a condition or a loop
  decides is not guessed: such a variable is an error with its name.
- `lr_decay_steps` counts for `warmup_stable_decay` alone, `lr_scheduler_min_lr_ratio` for that, `cosine_with_min_lr`
  and `rex`; for others they are left out with a line.
- `optimizer_type = "adafactor"` has `scale_parameter` unless its arguments say otherwise, as in musubi-tuner. Without
  `relative_step=False` it takes a learning rate of its own there; here that is an error with the remedy.
- `include_patterns` alone restricts nothing there, and is left out with a line; as a key of our `network` it does.
- `save_last_n_steps` is a distance in steps there; it becomes the number of files within it.
- `min_timestep` and `max_timestep` of `timestep_sampling = "sigma"` are places on a list that begins with the most
  noise: 1000 minus them is the noise.
- Sample images are 256 x 256 with 20 steps and guidance 4 unless their prompt says more; the shift of their noise
  levels is the model's own (there a fixed 14.5).
- `seed = 0` is a seed there and a random one here; a line says so. States of its runs are not read: `network_weights`
  goes on from a LoRA file.
- Without `network_module` and other `network_` keys the model itself is trained, as by `qwen_image_train.py`, and the
  transformer alone is written, in one file. `blocks_to_swap` then requires `fused_backward_pass`.
- Its other scripts are commands here: generating (`run.py generate`, with `--compile`, `--output_type`, `--latent_path`
  and `--blocks_to_swap`), captions, merging, averages, conversion, extraction. `run.py import` prints the command, and
  a file that begins with one runs. They and `network_weights` find the files of a run by the names that they have there
  (`OUT/NAME.safetensors`, `NAME-000003.safetensors`, `NAME-step00000012.safetensors`) in the folder `OUT/NAME`, and say
  so.
- Bucket sides are multiples of 32 (there 16), small images are not enlarged, control images are scaled to the area of
  `control_resolution` or of their image.
- An accumulation of gradients goes on in the next epoch (there the end of an epoch is a step), and images whose
  control images differ in shape share a batch (there not): fewer steps of the same images.
- Keys that a front end keeps in the same file (`training_mode`, `dataset_resolution_width`) are one line;
  those of SECourses' for samples (`sample_width`, `sample_cfg_scale` and so on) are the defaults of prompts,
  as in that program.
- A flag and a key of `--config_file` with unlike values are an error with both values (there the flag wins).

In a YAML job its names are read too, where the column says; elsewhere they are unknown, and the message says ours.

| there | here | in a YAML job | remark |
|---|---|---|---|
"""

_AI_TOOLKIT_HEAD = """
## ai-toolkit

The keys whose name or meaning differs most.

| there | here | in a YAML job | remark |
|---|---|---|---|
"""

_SAME_NAME = {
    "network.linear_alpha": "honoured; there always `linear`",
    "datasets[].resolution": "equal sizes count once; two unlike ones: a note",
}
"""Keys of ai-toolkit that are called the same here -> what differs."""


def page(models: Models) -> str:
    """The page. models: of the sections, by their process types."""
    return "".join(_parts(models))


def _parts(models: Models) -> Iterator[str]:
    sections, known = list(distinct_sections(models)), keys(models)
    yield _HEAD
    for key, (_, row) in options().items():
        yield _row(
            key,
            row,
            [_standing(key, path, section, row) for path, section in sections],
            known,
        )
    yield _AI_TOOLKIT_HEAD
    for place, remark in _SAME_NAME.items():
        yield f"| `{place}` | `{place}` | `{place.rpartition('.')[0]}` | {remark} |\n"
    for (program, group), rows in names().items():
        for key, row in rows.items() if program == "ai-toolkit" else ():
            if row.ours or (row.how == "only_accepts" and row.says):
                at = PLACES[group]
                standing = [
                    _standing(key, path, section, row)
                    for path, section in sections
                    if path == at
                ]
                yield _row(dotted(at, key), row, standing, known)


def _standing(key: str, path: str, section: type[BaseModel], row: ForeignName) -> str:
    """What becomes of another program's key where it is written in this section; empty:
    it is unknown there."""
    where, read = (
        f"`{path}`" if path else "the process",
        foreign_keys().rows(section).get(key),
    )
    if read is None:
        return (
            where
            if key in section.model_fields and dotted(path, key) in row.ours
            else ""
        )
    told = {
        "not_needed": ", no effect",
        "only_accepts": ", not supported yet",
    }
    return f"{where}{told.get(read.how, '')}"


def _row(
    name: str, row: ForeignName, standing: list[str], known: Mapping[str, bool]
) -> str:
    here = [
        f"`{key}`{'' if known[key] else ' (not supported yet)'}" for key in row.ours
    ]
    here += [f"`run.py {row.tool}`"] if row.tool else []
    theirs = (
        ""
        if row.default is NO_DEFAULT
        else f"left out, there: `{json.dumps(row.default)}`"
    )
    remark = "; ".join(filter(None, (row.says, theirs))).replace("|", "\\|")
    return f"| `{name}` | {', '.join(here)} | {'; '.join(dict.fromkeys(filter(None, standing)))} | {remark} |\n"
