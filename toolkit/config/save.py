"""`save`: the LoRA files of a run."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from toolkit.config.base import StrictModel
from toolkit.config.choices import Dtype


class SaveConfig(StrictModel):
    """`save`: when the LoRA is written, and how."""

    dtype: Dtype = "float16"
    """Number type of the LoRA file."""

    save_every: int = Field(default=250, ge=0)
    """Optimizer steps between two saves; 0: only the final file."""

    max_step_saves_to_keep: int = Field(default=5, ge=0)
    """How many step files to keep, the newest by step number; the final file is not counted. 0: all."""

    max_states_to_keep: int = Field(default=2, ge=0)
    """How many states (all that a resume needs) to keep, the newest by step. 0: all."""

    also: tuple[Literal["raw"], ...] = ()
    """`raw`: with EMA, also write the trained weights themselves as `<name>_<step>_raw.safetensors`."""

    aliases: ClassVar = {"save_every_n_steps": "save_every"}
    no_effect: ClassVar = {
        "save_state": "the state is always saved",
        "save_format": "a LoRA is always one safetensors file",
        "hf_repo_id": "nothing is uploaded",
        "hf_private": "nothing is uploaded",
    }
    unsupported: ClassVar = {
        "push_to_hub": (False,),
        "save_every_n_epochs": (0,),
        "save_last_n_steps": (0,),
        "save_last_n_epochs": (0,),
        "no_metadata": (False,),
        "mem_eff_save": (False,),
    }
