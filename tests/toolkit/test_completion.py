"""Completion in shells: the scripts, in a shell itself where it is here."""

import shutil
import subprocess
from pathlib import Path

import pytest

from run import main
from tests.parts import needs_part
from toolkit.completion import SHELLS

FILE = "my job.yaml"
ASK = """
source {script}
ask() {{
    COMP_WORDS=(atelier "$@"); COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))
    _atelier; echo "${{COMPREPLY[@]}}"
}}
ask gener; ask --dry; ask generate --promp; ask my; ask new x --gp; ask generate my
"""


@needs_part("tools.generate")
def test_bash_completes_tools_their_flags_and_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(FILE).touch()
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "script"
    script.write_text(capsys.readouterr().out)
    asked = ["bash", "-c", ASK.format(script=script)]
    found = subprocess.run(asked, capture_output=True, text=True)
    assert (found.stdout.splitlines(), found.stderr) == (
        ["generate", "--dry-run", "--prompt --prompts", FILE, "--gpu", FILE],
        "",
    )


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_can_read_its_script(shell: str, tmp_path: Path, capsys) -> None:
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    assert main(["completion", shell]) == 0
    script = tmp_path / "script"
    script.write_text(capsys.readouterr().out)
    assert subprocess.run([shell, "-n", script]).returncode == 0


def test_another_shell_is_a_mistake_that_names_the_three(capsys) -> None:
    with pytest.raises(SystemExit) as left:
        main(["completion", "tcsh"])
    assert left.value.code == 2
    assert "choose from 'bash', 'zsh', 'fish'" in capsys.readouterr().err
