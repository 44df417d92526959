"""`sample`, `save`, `logging` and `stop_when` as other programs write them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pydantic import BaseModel

from toolkit.config.compat.foreign import Entries, ForeignNames, refuse
from toolkit.config.compat.prompt_flags import read_flags
from toolkit.config.control_slots import gather_slots, slot_names
from toolkit.config.diagnostics import Diagnostics
from toolkit.config.located import ConfigNode, show

# ------------------------------------------------------------ sample


def _sample_item(section: type[BaseModel], entries: Entries, diagnostics: Diagnostics) -> Entries:
    """Flags in the prompt become keys, `ctrl_img_1..3` one list."""
    read_flags(entries, diagnostics)
    gather_slots(entries, "ctrl_img", diagnostics)
    return entries


def _sample(section: type[BaseModel], entries: Entries, diagnostics: Diagnostics) -> Entries:
    """`prompts` become `samples`."""
    given = [entries.pop(key) for key in ("prompts", "sample_prompts") if key in entries]
    given += [entries["samples"]] if "samples" in entries and entries["samples"].data() != [] else []
    if len(given) > 1:
        diagnostics.error(given[0], f"{str(given[1].path[-1])!r} is given as well. Remove one of them.", at_key=True)
    elif given and given[0] is not entries.get("samples"):
        entries["samples"] = _items(given[0], diagnostics)
    return entries


def _items(prompts: ConfigNode, diagnostics: Diagnostics) -> ConfigNode:
    """A list of prompts, or a file of them, as a list of samples."""
    if isinstance(prompts.value, str) and prompts.value.lower().endswith(".txt"):
        lines = _lines(prompts, diagnostics)
    elif isinstance(prompts.value, list):
        lines = prompts.value
    else:
        remedy = "Write one prompt per line, each after '- ', or give a text file (.txt) with one prompt per line."
        diagnostics.error(prompts, f"is not a list. {remedy}")
        lines = []
    return replace(prompts, value=[replace(line, value={"prompt": line}) for line in lines])


def _lines(file: ConfigNode, diagnostics: Diagnostics) -> list[ConfigNode]:
    """The prompts of a text file; blank lines and those that begin with `#` are left out."""
    path = Path(file.value).expanduser()
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        diagnostics.error(file, f"{show(file)} cannot be read ({reason}; working directory: {Path.cwd()}).")
        return []
    prompts = [
        replace(file, value=line.strip(), path=(*file.path, f"{path.name}:{number}"), text=line.strip(), plain=False)
        for number, line in enumerate(lines, start=1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if not prompts:
        diagnostics.error(
            file, f"{show(file)} holds no prompt. Write one per line; '#' begins a line that is left out."
        )
    return prompts


_PICTURE_UNSUPPORTED = {
    **refuse("network_multiplier num_frames", 1),
    **refuse("guidance_rescale", 0),
    **refuse("do_cfg_norm", False),
}

SAMPLE = ForeignNames(
    aliases={"sample_every_n_steps": "sample_every", "discrete_flow_shift": "flow_shift"},
    shapes={
        "prompts": "samples, as a list of prompts, or as a text file with one prompt per line",
        "sample_prompts": "the same as prompts",
    },
    no_effect={"fps": "it concerns videos"},
    unsupported=_PICTURE_UNSUPPORTED,
    reshapes=(_sample,),
)

SAMPLE_ITEM = ForeignNames(
    aliases={"discrete_flow_shift": "flow_shift"},
    shapes=dict.fromkeys(slot_names("ctrl_img"), "ctrl_img"),
    no_effect={"fps": "it concerns videos"},
    unsupported={**_PICTURE_UNSUPPORTED, "ctrl_idx": (0,)},
    reshapes=(_sample_item,),
)

# ------------------------------------------------------------ save


def _save(section: type[BaseModel], entries: Entries, diagnostics: Diagnostics) -> Entries:
    """Tells that `save_last_n_steps` counts files where it looks like a distance in steps, as musubi-tuner's is."""
    last = entries.get("save_last_n_steps")
    if last is not None and isinstance(last.value, int) and last.value >= 100:
        diagnostics.warn(last, f"{last.value} files are kept: it is their number, not a distance in steps.")
    return entries


SAVE = ForeignNames(
    aliases={
        "save_every_n_steps": "save_every",
        "save_last_n_steps": "max_step_saves_to_keep",
        "save_precision": "dtype",
    },
    no_effect={
        "save_state": "the state is always saved",
        "save_format": "an adapter is always one safetensors file, a whole model a diffusers folder",
        **dict.fromkeys(("hf_repo_id", "hf_private"), "nothing is uploaded"),
    },
    unsupported={"push_to_hub": (False,)},
    reshapes=(_save,),
)

# ------------------------------------------------------------ logging, stop_when


def _logging(section: type[BaseModel], entries: Entries, diagnostics: Diagnostics) -> Entries:
    """`use_wandb` becomes `log_with`."""
    use = entries.pop("use_wandb", None)
    if use is None:
        return entries
    wanted = {"true": True, "false": False}.get(str(use.value).lower())
    given = entries.get("log_with")
    if wanted is None:
        diagnostics.error(use, f"{show(use)} is neither true nor false.")
    elif given is None or (given.from_defaults and not use.from_defaults):
        folder = entries.get("logging_dir")
        has_folder = folder is not None and folder.value not in (0, False)
        names = {True: "all" if has_folder else "wandb", False: "auto"}
        entries["log_with"] = replace(use, value=names[wanted])
    elif wanted != (str(given.value).lower() in ("wandb", "all")) and use.from_defaults == given.from_defaults:
        diagnostics.error(use, f"{show(use)} contradicts 'log_with: {given.value}'. Keep log_with.", at_key=True)
    return entries


LOGGING = ForeignNames(
    aliases={"project_name": "wandb_project", "run_name": "wandb_run_name"},
    shapes={"use_wandb": "log_with: wandb, or all when logging_dir is given"},
    no_effect={"verbose": "the log has one level", "use_ui_logger": "the web page reads metrics.jsonl"},
    unsupported={"log_tracker_config": ()},
    reshapes=(_logging,),
)

STOP_WHEN = ForeignNames(aliases={"loss_name": "metric", "threshold": "below"})
