"""`doctor --for PROGRAM` against the matrix: what each program was seen to do with the
files of every writer."""

from __future__ import annotations

import json
import re
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.interop.record import metadata_of, rebuild
from tests.conftest import ROOT
from tests.running import run_tool
from toolkit.networks import programs
from toolkit.networks.adapter_health import health, layers_of
from toolkit.networks.adapter_settings import CONFIG_FILE
from toolkit.networks.lora_formats import read_tensors
from toolkit.networks.programs import PROGRAMS, findings_for

MATRIX = json.loads(
    (ROOT / "tests" / "golden" / "interop.json").read_text(encoding="utf-8")
)
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
"""Program of `--for` -> its reader in the matrix. Of Nunchaku there is none: it needs a
GPU."""


DAMAGED = {"spelled_kohya_none": "alpha_lost"}
"""Files that doctor takes for damaged whatever the program: no trainer writes kohya's
names without an alpha."""


@pytest.mark.slow
def test_a_file_is_sound_for_a_program_exactly_where_that_applies_it_as_it_is_meant(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is found in the file itself is found once for all programs."""
    wrong = {}
    for case in CASES:
        tensors, metadata = rebuild(case), metadata_of(case)
        if "adapter_config" in case:
            metadata[CONFIG_FILE] = json.dumps(case["adapter_config"])
        read = layers_of(tensors)
        sound = {
            given: read.sound(metadata if given else {}) for given in (True, False)
        }
        monkeypatch.setattr(
            read, "sound", lambda given, sound=sound: sound[bool(given)]
        )
        for name, known in (("health", health(tensors, metadata)), ("layers_of", read)):
            monkeypatch.setattr(programs, name, lambda *_, known=known: known)
        for program, reader in READER_OF.items():
            found = findings_for(PROGRAMS[program], tensors, metadata)
            checks = [one.check for one in found if one.severity == "error"]
            seen = case["cells"][reader]
            if case["name"] in DAMAGED:
                assert DAMAGED[case["name"]] in checks
            elif (not checks) != (seen[0] == "exact"):
                wrong[f"{program}: {case['model']} {case['name']}"] = seen[:3], checks
    assert wrong == {}
    assert len(CASES) >= 100


OWN = {
    "lora": {".lora_A.weight": (4, 64), ".lora_B.weight": (64, 4)},
    "loha": {
        ".hada_w1_a": (64, 4),
        ".hada_w1_b": (4, 64),
        ".hada_w2_a": (64, 4),
        ".hada_w2_b": (4, 64),
    },
    "lokr": {".lokr_w1": (4, 4), ".lokr_w2": (16, 16)},
    "dora": {
        ".lora_A.weight": (4, 64),
        ".lora_B.weight": (64, 4),
        ".dora_scale": (1, 64),
    },
    "diag-oft": {".oft_blocks": (8, 8, 8)},
}


def test_what_doctor_says_to_do_makes_the_program_load_the_file(tmp_path: Path) -> None:
    """Each conversion is made once, for all programs that are told of it."""
    stem = "base_model.model.transformer_blocks.0.attn.to_q"
    made: dict[str, tuple[dict[str, torch.Tensor], dict[str, str]]] = {}
    for kind, program in product(OWN, READER_OF):
        torch.manual_seed(0)
        tensors = {
            stem + end: 0.1 * torch.randn(shape) for end, shape in OWN[kind].items()
        }
        tensors[f"{stem}.alpha"] = torch.tensor(4.0)
        found = findings_for(PROGRAMS[program], tensors, {})
        wrong = (one for one in found if one.check in ("not_loaded", "dora"))
        remedies = " ".join(one.remedy for one in wrong)
        if "run.py merge" in remedies:
            assert kind in ("dora", "diag-oft"), program
            continue
        form = re.search(r"run\.py convert (FILE|LORA) OUT --to (\w+)\.", remedies)
        assert form, (kind, program)
        name = f"{kind}_{form[1]}_{form[2]}"
        if name not in made:
            file, lora, out = (
                tmp_path / f"{name}_{part}.safetensors"
                for part in ("FILE", "LORA", "out")
            )
            save_file(tensors, file)
            if "run.py resize FILE LORA --rank 64" in remedies:
                run_tool("resize", [file, lora, "--rank", 64])
            source = file if form[1] == "FILE" else lora
            run_tool("convert", [source, out, "--to", form[2]])
            made[name] = read_tensors(out)
        left = findings_for(PROGRAMS[program], *made[name])
        assert not [one for one in left if one.severity == "error"], (kind, program)
