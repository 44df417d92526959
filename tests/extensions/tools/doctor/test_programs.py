"""`doctor --for PROGRAM` against the matrix: what each program was seen to do with the files of every writer."""

from __future__ import annotations

import json

import pytest

from benchmarks.interop.record import metadata_of, rebuild
from tests.conftest import ROOT
from toolkit.networks.adapter_settings import CONFIG_FILE
from toolkit.networks.programs import PROGRAMS, findings_for

MATRIX = json.loads((ROOT / "tests" / "golden" / "interop.json").read_text(encoding="utf-8"))
CASES = [case for case in MATRIX["cases"] if case["strength_in_file"]]
"""Files that hold all of their strength: what is nowhere in a file nobody can tell."""

READER_OF = {
    "comfyui": "comfyui",
    "diffusers": "diffusers_pipeline",
    "diffsynth": "diffsynth",
    "mflux": "mflux",
    "simpletuner": "simpletuner",
    "musubi": "musubi",
}
"""Program of `--for` -> its reader in the matrix. Of Nunchaku there is none: it needs a GPU."""


DAMAGED = {"spelled_kohya_none": "alpha_lost"}
"""Files that doctor takes for damaged whatever the program: no trainer writes kohya's names without an alpha."""


@pytest.mark.parametrize("program", READER_OF)
def test_a_file_is_sound_for_a_program_exactly_where_that_applies_it_as_it_is_meant(program: str) -> None:
    wrong = {}
    for case in CASES:
        tensors, metadata = rebuild(case), metadata_of(case)
        if "adapter_config" in case:
            metadata[CONFIG_FILE] = json.dumps(case["adapter_config"])
        found = [one for one in findings_for(PROGRAMS[program], tensors, metadata) if one.severity == "error"]
        seen = case["cells"][READER_OF[program]]
        if case["name"] in DAMAGED:
            assert DAMAGED[case["name"]] in [one.check for one in found]
        elif (not found) != (seen[0] == "exact"):
            wrong[f"{case['model']} {case['name']}"] = (seen[:3], [one.check for one in found])
    assert wrong == {}
    assert len(CASES) >= 100
