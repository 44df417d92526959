"""`save`: the LoRA files of a run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field

from toolkit.config.base import StrictModel
from toolkit.config.compat.output import SAVE
from toolkit.config.field_types import Dtype


class SaveConfig(StrictModel):
    """`save`: when the LoRA is written, and how."""

    dtype: Dtype = "float16"
    """Number type of the LoRA file, or of the model folder; with network.type full and no value: bfloat16."""

    save_every: int = Field(default=250, ge=0)
    """Optimizer steps between two saves; 0: only the final file. Where it is given and above 0 it decides, else
    `save_every_n_epochs` where that is given."""

    save_every_n_epochs: int = Field(default=0, ge=0)
    """Epochs between two saves: at the first optimizer step that has completed the epoch. 0: only the final file."""

    max_step_saves_to_keep: int = Field(default=5, ge=0)
    """How many step files to keep, the newest by step number; the final file is not counted. 0: all."""

    save_last_n_epochs: int | None = Field(default=None, ge=0)
    """With `save_every_n_epochs`, how many of its files to keep. 0: all. Not given: `max_step_saves_to_keep`."""

    max_states_to_keep: int = Field(default=2, ge=0)
    """How many states (all that a resume needs) to keep, the newest by step. 0: all."""

    mem_eff_save: bool = False
    """Of network.type full: write each tensor straight from the model, without a copy of all in CPU memory; training
    waits meanwhile. The state is copied all the same."""

    also: tuple[Literal["raw", "merged_lora"], ...] = ()
    """`raw`: with EMA, also write the trained weights themselves as `<name>_<step>_raw.safetensors`. `merged_lora`:
    beside a DoRA, LoHa or LoKr also the plain LoRA that comes nearest, `<name>_<step>_lora.safetensors`, which loads
    in ComfyUI and diffusers; its error is printed and stands in its metadata. It is made beside the training, on the
    CPU: of the published model in seconds for a LoKr, in minutes for a LoHa or DoRA. A `best` file has none."""

    merged_lora_rank: int = Field(default=64, ge=1)
    """Largest rank of a layer of `merged_lora`; its file grows in proportion, its error falls. A LoHa of rank r is
    held whole by r * r."""

    no_metadata: bool = False
    """Write nothing about the training (and nothing of `meta`) into the files, only what loading them needs."""

    foreign: ClassVar = SAVE

    def interval(self) -> tuple[int, int]:
        """(optimizer steps, epochs) between two saves, of which at most one is above 0."""
        if "save_every_n_epochs" not in self.model_fields_set:
            return self.save_every, 0
        if "save_every" in self.model_fields_set and self.save_every:
            return self.save_every, 0
        return 0, self.save_every_n_epochs

    def files_to_keep(self) -> int:
        """How many files of the interval stay; 0: all."""
        if self.interval()[1] and self.save_last_n_epochs is not None:
            return self.save_last_n_epochs
        return self.max_step_saves_to_keep

    def unused_keys(self) -> Iterator[tuple[str, str]]:
        """Keys given that the rest of the section makes no use of, and why."""
        steps, epochs = self.interval()
        if steps and self.save_every_n_epochs:
            yield "save_every_n_epochs", f"has no effect: 'save_every: {steps}' decides. Leave one of them out."
        if not epochs and self.save_last_n_epochs is not None:
            yield "save_last_n_epochs", "has no effect: nothing is saved by epochs. Use max_step_saves_to_keep."
