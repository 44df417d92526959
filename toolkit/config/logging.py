"""`logging`: what is printed; `metrics.jsonl` always has every step."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from toolkit.config.base import StrictModel


class LoggingConfig(StrictModel):
    """`logging`: what is printed. `metrics.jsonl` has a line for every optimizer step in any case."""

    log_every: int = Field(default=0, ge=0)
    """Optimizer steps between two progress lines where the output is no terminal; 0: a line every 10 s."""

    no_effect: ClassVar = {
        "verbose": "the log has one level",
        "use_ui_logger": "the web page reads metrics.jsonl",
        "project_name": "it concerns Weights & Biases, which is not supported yet",
        "run_name": "it concerns Weights & Biases, which is not supported yet",
    }
    unsupported: ClassVar = {
        "use_wandb": (False,),
        "logging_dir": (),
        "log_with": (),
        "log_prefix": (),
        "log_config": (False,),
        "log_tracker_name": (),
        "log_tracker_config": (),
        "wandb_api_key": (),
        "wandb_run_name": (),
        "wandb_project": (),
        "wandb_entity": (),
    }
