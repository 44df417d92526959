"""Extensions in ai-toolkit's shape, and what they miss."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from extensions.compat.ai_toolkit_process import INSTEAD
from jobs import ExtensionJob
from toolkit.config import load_job
from toolkit.errors import RunError
from toolkit.extension import discover

INIT = """
    from toolkit.extension import Extension

    class Theirs(Extension):
        uid = "theirs"
        name = "Theirs"

        @classmethod
        def get_process(cls):
            from .process import Theirs
            return Theirs

    AI_TOOLKIT_EXTENSIONS = [Theirs]
"""
"""The shape of its extensions/example and extensions_built_in/dataset_tools (commit
27a03a91)."""


@pytest.fixture
def run(
    write_extension: Callable[..., Path], write_job: Callable[..., Path]
) -> Callable[[str], None]:
    """Runs a process of these lines."""

    def run_lines(process: str) -> None:
        extensions = discover([write_extension("theirs", INIT, process=process).parent])
        job = load_job(
            write_job({"type": "theirs", "save_path": "out"}), extensions.find_config
        )
        ExtensionJob(job, extensions).run()

    return run_lines


def test_an_extension_in_its_shape_runs(run: Callable[[str], None], capsys) -> None:
    run("""
        from collections import OrderedDict
        from typing import TYPE_CHECKING
        import torch
        from jobs.process import BaseExtensionProcess
        if TYPE_CHECKING:
            from jobs import ExtensionJob

        class Theirs(BaseExtensionProcess):
            def __init__(self, process_id: int, job: "ExtensionJob", config: OrderedDict):
                super().__init__(process_id, job, config)
                self.save_path = self.get_conf("save_path", required=True)
                self.device = self.get_conf("device", default="cpu", as_type=torch.device)
            def run(self):
                super().run()
                print(self.__class__.__name__, self.save_path, self.device, self.raw_process_config["type"])
    """)
    assert capsys.readouterr().out.splitlines()[-1] == "Theirs out cpu theirs"


def test_all_that_an_extension_misses_is_told_with_what_to_use_here(
    run: Callable[[str], None],
) -> None:
    with pytest.raises(RunError) as caught:
        run("""
            import json
            from jobs.process import BaseExtensionProcess, BaseSDTrainProcess
            from toolkit.config_modules import ModelConfig, SaveConfig
            from toolkit.sampler import get_sampler
            from toolkit import train
        """)
    assert str(caught.value).split("which this program is not and has not:\n")[
        1
    ].splitlines() == [
        f"    jobs.process (BaseSDTrainProcess): here {INSTEAD['jobs.process']}",
        f"    toolkit.config_modules (ModelConfig, SaveConfig): here {INSTEAD['toolkit.config_modules']}",
        "    toolkit.sampler (get_sampler)",
    ]


def test_what_is_missing_elsewhere_is_not_told_as_its_own(
    run: Callable[[str], None],
) -> None:
    with pytest.raises(RunError, match="No module named 'gone'") as caught:
        run("import gone")
    assert "ai-toolkit" not in str(caught.value)
