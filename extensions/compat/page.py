"""docs/coming_from.md: what the options of other programs are here."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from pydantic import BaseModel

from extensions.compat.keys import OPTIONS
from extensions.compat.names import NAMES, PLACES
from toolkit.config.foreign import NO_DEFAULT, ForeignName, foreign_keys
from toolkit.config.reference import Models, distinct_sections, dotted, keys

_HEAD = """\
<!-- Written by docs/generate.py from extensions/compat/names.py. -->
# Coming from another program

What you have runs as it is. `python run.py FILE --dry-run` shows what it becomes, `python run.py import FILE` writes it
as a job under the names of this program, with a comment behind each value that says where it came from.

| from | what is read | more |
|---|---|---|
| musubi-tuner | training config (TOML) with its dataset file, a command in a file or pasted | below |
| SimpleTuner | `config.json` or `config.env` with its dataset file, local images of Qwen-Image models | below |
| OneTrainer | training config (JSON) with its concepts and samples, Qwen-Image | below |
| diffusion-pipe | training config (TOML) of `type = 'qwen_image'` with its dataset file | below |
| diffusers | a command of `train_dreambooth_lora_qwen_image.py`, in a file or pasted | below |
| DiffSynth-Studio | a command of `qwen_image/model_training/train.py` or its `training_args.json`, the table | below |
| kohya-ss/sd-scripts | dataset file (TOML), folders and metadata | below |
| ai-toolkit | its jobs (YAML, JSON) | [moving_from_ai_toolkit.md](moving_from_ai_toolkit.md), keys below |
| FluxFlow | files and flags of its training guide | [coming_from_fluxflow.md](coming_from_fluxflow.md) |
| ComfyUI | its files of weights: the transformer's as `model.name_or_path`, whose VAE and text encoder are found \
there | [models.md](models.md#single-file) |

## musubi-tuner

```bash
python run.py job.toml --dry-run                # a training config; dataset_config names its datasets
python run.py train.sh                          # a file whose first line is `accelerate launch ... --flags`
python run.py import train.sh --output job.yaml # our job, each line with its origin; an existing file stays
python run.py import "python src/musubi_tuner/qwen_image_train_network.py --dit ..."
python run.py job.toml --map /old/disk=/data    # paths of another machine, in tables too
```

- **A key that is left out means what it means there**: rank 4, alpha 1, learning rate 2e-6, 1600 steps, `sigma` noise
  levels, float32 files, only the final file. One line names the defaults that were taken where ours differ.
- The commands that encode latents and captions are not needed: the training does it, and knows files by their content.
- All layers of the blocks are trained, as there: its default pattern that should leave out modulation matches no name.
- A script may assign variables and arrays above its command, and write `${NAME:-default}`. What a condition or a loop
  decides is not guessed: such a variable is an error with its name.
- `lr_decay_steps` counts for `warmup_stable_decay` alone, `lr_scheduler_min_lr_ratio` for that, `cosine_with_min_lr`
  and `rex`; for others they are left out with a line.
- `optimizer_type = "adafactor"` has `scale_parameter` unless its arguments say otherwise, as there. Without
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
  transformer alone is written, in one file. `blocks_to_swap` goes with `fused_backward_pass` then.
- Its other scripts are commands here: generating (`run.py generate`, with `--compile`, `--output_type`, `--latent_path`
  and `--blocks_to_swap`), captions, merging, averages, conversion, extraction. `run.py import` prints the command, and
  a file that begins with one runs.
- Bucket sides are multiples of 32 (there 16), small images are not enlarged, references are scaled to the area of
  `control_resolution` or of their image.
- An accumulation of gradients goes on in the next epoch (there the end of an epoch is a step), and images whose
  references differ in shape share a batch (there not): fewer steps of the same images.
- Keys that a front end keeps in the same file (`training_mode`, `dataset_resolution_width`) are one line;
  those of SECourses' for samples (`sample_width`, `sample_cfg_scale` and so on) are the defaults of prompts, as there.
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

_SIMPLETUNER_HEAD = """
## SimpleTuner

`python run.py config/config.json` reads a config with `model_family: qwen_image`, and the file of its
`data_backend_config`; `config.env` of older versions as well, with the flags of `TRAINER_EXTRA_ARGS`. A key that is
left out means what it means there, and one line names those defaults.

- `repeats: 9` are 10 uses of each image: there 0 means once.
- A LoRA trains `to_k`, `to_q`, `to_v` and `to_out.0` of the images, as there. `lora_type: lycoris` is read with its
  file: `lokr`, `loha` and `lora`, on `Attention`, `FeedForward` or both. One `factor` is for all layers here.
- `flow_schedule_shift` is `timestep_type: shift`; 0 is `sigmoid`.
- Datasets of `conditioning_data` are the control images in this order. `crop: true` with a square is a rectangle here.
- `caption_strategy: instanceprompt` is a `default_caption`, `filename` is `caption_from_name`;
  `prepend_instance_prompt` a trigger word. Captions from parquet files are refused. A text file with several lines is
  one caption here, there several.
- A dataset without `caption_strategy` has its file names as captions, as there. What has a `conditioning_type` is
  references.
- Optimizers have their arguments of there: `optimi-adamw` betas of 0.9 and 0.99 and no weight decay. `max_grad_norm`
  limits each number of a gradient there unless `grad_clip_method` is `norm`: without that nothing is clipped here.
- Keys of caches, trackers and the hub say nothing here, nor do the others at the values that its page writes; they are
  left out without a line.

| there | here | in a YAML job | remark |
|---|---|---|---|
"""

_ONETRAINER_HEAD = """
## OneTrainer

`python run.py job.json` reads a config with `model_type: QWEN`, its concepts and its samples, inline or in their
files. A key that is left out means what it means there, and one line names those defaults: 200 steps of warm-up, alpha
1, 100 epochs.

- `LOGIT_NORMAL` is `timestep_type: sigmoid`, with `timestep_shift` `shift`, with `dynamic_timestep_shifting`
  `qwen_shift`; `noising_weight: 0.5` is `sigmoid_scale: 1.5`. `UNIFORM` is read without a shift, others are refused.
- `balancing` is `num_repeats`, as a whole number. Images that do not fill a batch are used all the same (there not).
- Of several resolutions each image is used at each (there at one, drawn by chance).
- `offload_fraction` is a share of the blocks: `blocks_to_swap`. With `FINE_TUNE` it needs `fused_back_pass`, which is
  `fused_backward_pass`; weights in `BFLOAT_16` are `full_bf16`, and the transformer alone is written, in one file.
- Masks are `-masklabel.png` beside the images, as there. Augmentations but `enable_random_flip`, tag dropout and
  concepts for prior prediction are refused.
- Samples and files that are made by the clock are made every 250 steps, and a line says so.

| there | here | in a YAML job | remark |
|---|---|---|---|
"""

_DIFFUSION_PIPE_HEAD = """
## diffusion-pipe

`python run.py config.toml` reads a config with `type = 'qwen_image'`, and the file of its `dataset`. A run is named
after the last part of `output_dir`, and its files lie there instead of in a folder with the time.

- The LoRA is on every matrix of the blocks with alpha = rank, as there; without `[adapter]` the model is trained, in
  bf16 where the optimizer allows it, and the transformer alone is written, in one file.
- Each image is used at every one of `resolutions`, as there. Its shape is the nearest one, not one of
  `num_ar_buckets`; sides are multiples of 32. Without `enable_ar_bucket` it is a square.
- A shape with too few images for a batch is dropped there; here all images are used.
- `num_repeats` is a whole number here. Images without a caption are skipped there, and named as errors here.
- References of `control_path` are scaled to the area of their image, and need not have its shape.
- The LoRA is trained in float32 and written in `save_dtype`; there are states with each save.
- The rate of `cosine` and `linear` ends with the run; with a warm-up it is not at its end there.

| there | here | in a YAML job | remark |
|---|---|---|---|
"""

_DIFFUSERS_HEAD = """
## diffusers

`python run.py train.sh`, or `run.py import "accelerate launch train_dreambooth_lora_qwen_image.py ..."`: a command of
its example, with the variables that are assigned above it. A flag that is left out means what it means there, and one
line names those defaults: rank and alpha 4, batches of 4, 512 pixels, float32 without `--mixed_precision`.

- All images have `instance_prompt`, whatever lies beside them. With `--dataset_name` and `--caption_column` captions
  are read as in any folder here; the dataset has to be on this machine.
- Images are cut to a square at their middle (there by chance without `center_crop`); `use_aspect_ratio_buckets` makes
  `resolution` an area. `random_flip` doubles the uses of each image: there it mirrors half of them by chance.
- Images that do not fill a batch are used all the same (there not).
- `lr_scheduler constant` has no warm-up, as there; the others have 500 steps of it.
- The adapter begins as peft's default does; there one factor is drawn from a normal distribution of width 1 / rank.
- `bnb_quantization_config_path` is `int8`, or `int4` for nf4 and fp4. `scale_lr` counts one GPU.
- Class images have to be there. Samples are drawn without guidance, as there.

| there | here | in a YAML job | remark |
|---|---|---|---|
"""

_DIFFSYNTH_HEAD = """
## DiffSynth-Studio

`python run.py train.sh`, or `run.py import "accelerate launch examples/qwen_image/model_training/train.py ..."`: LoRA
and full training of the models of the family. A flag that is left out means what it means there.

- The table of `dataset_metadata_path` has columns `image`, `prompt` and `edit_image` (one or a list). It names all
  images that are used, as long as it lies in `dataset_base_path`.
- Images of one area are put into buckets; there each has its own shape. Smaller ones are not enlarged, as there.
- The first 5 steps have a third of the learning rate, gradients are not clipped, each epoch saves a file: as there.
- Noise levels are those of a sampling run, with the loss weighed by a bell. There the shift is e^0.8 for every size,
  here the model's own, 2.0 at 1024 x 1024.
- The LoRA is trained in float32 (there in bfloat16) and written in bfloat16. `save_steps` counts optimizer steps.
- Text encoder and VAE are those of the folder or hub id that the transformer's entry names.
- One `lora_target_modules` is a pattern of whole names, several are ends of names, none is every layer of the blocks.
- A command of `--task sft:data_process` above one of `sft:train` gives the dataset; alone both are refused. Direct
  distillation, ControlNets, EliGen and layers are refused.

| there | here | in a YAML job | remark |
|---|---|---|---|
"""

_KOHYA_HEAD = """
## kohya-ss/sd-scripts

It trains no Qwen-Image. What it reads of a dataset is read here: folders named `40_ohwx person`, `.caption` files,
metadata in `.json` and `.jsonl`, and its dataset file: `python run.py import dataset.toml --output job.yaml` writes a
job with its datasets, this program's defaults, and a model that you may change.

- Each `[[datasets.subsets]]` is a dataset; `class_tokens` is the `default_caption`, the extension `.caption` unless
  another is given. `keep_tokens` counts parts between commas, as there.
- An image without a caption in a folder `40_ohwx person` has an empty one here, and `ohwx person` there: give
  `default_caption`.
- With `enable_bucket` `resolution` is an area, without it one rectangle, as there. Sides are multiples of 32.
- `flip_aug` doubles the uses of each image: there it mirrors half of them by chance.

| there | here | in a YAML job | remark |
|---|---|---|---|
"""

_SAME_NAME = {
    "network.linear_alpha": "honoured; there always `linear`",
    "datasets[].resolution": "equal sizes count once; two unlike ones: a note",
    "train.ema_config.use_num_updates": "on unless switched off",
}
"""Keys of ai-toolkit that are called the same here -> what differs."""


def page(models: Models) -> str:
    """The page. models: of the sections, by their process types."""
    return "".join(_parts(models))


def _parts(models: Models) -> Iterator[str]:
    sections, known = list(distinct_sections(models)), keys(models)
    yield _HEAD
    for key, row in OPTIONS.items():
        yield _row(key, row, [_standing(key, path, section, row) for path, section in sections], known)
    heads = {"simpletuner": _SIMPLETUNER_HEAD, "onetrainer": _ONETRAINER_HEAD, "diffusion-pipe": _DIFFUSION_PIPE_HEAD}
    heads |= {"diffusers": _DIFFUSERS_HEAD, "diffsynth": _DIFFSYNTH_HEAD, "kohya": _KOHYA_HEAD}
    for program, head in heads.items():
        yield head
        for key, row in NAMES[program, ""].items():
            yield _row(key, row, [], known)
    yield _AI_TOOLKIT_HEAD
    for place, remark in _SAME_NAME.items():
        yield f"| `{place}` | `{place}` | `{place.rpartition('.')[0]}` | {remark} |\n"
    for (program, group), rows in NAMES.items():
        for key, row in rows.items() if program == "ai-toolkit" else ():
            if row.ours or (row.how == "refused" and row.says):
                at = PLACES[group]
                standing = [_standing(key, path, section, row) for path, section in sections if path == at]
                yield _row(dotted(at, key), row, standing, known)


def _standing(key: str, path: str, section: type[BaseModel], row: ForeignName) -> str:
    """What becomes of another program's key where it is written in this section; empty: it is unknown there."""
    where, read = f"`{path}`" if path else "the process", foreign_keys().rows(section).get(key)
    if read is None:
        return where if key in section.model_fields and dotted(path, key) in row.ours else ""
    told = {"idle": f", no effect{', refused unless false' if read.on else ''}", "refused": ", not supported yet"}
    return f"{where}{told.get(read.how, '')}"


def _row(name: str, row: ForeignName, standing: list[str], known: Mapping[str, bool]) -> str:
    here = [f"`{key}`{'' if known[key] else ' (not supported yet)'}" for key in row.ours]
    here += [f"`run.py {row.tool}`"] if row.tool else []
    theirs = "" if row.default is NO_DEFAULT else f"left out, there: `{json.dumps(row.default)}`"
    remark = "; ".join(filter(None, (row.says, theirs))).replace("|", "\\|")
    return f"| `{name}` | {', '.join(here)} | {'; '.join(dict.fromkeys(filter(None, standing)))} | {remark} |\n"
