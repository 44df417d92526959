"""The parts of `bench_interop.py` that need no other environment: ComfyUI's rules,
comparison, table and record."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import bench_interop
from benchmarks.interop import comfyui_rules
from benchmarks.interop.comparison import Cell, compare
from benchmarks.interop.files import WrittenFile
from benchmarks.interop.models import MODELS, linear_sizes, linear_weights
from benchmarks.interop.readers import READERS, read_ours
from benchmarks.interop.record import BLOCKS, metadata_of, rebuild, record, shapes_of
from benchmarks.interop.table import BEGIN, END, markdown, sign, write_between_marks
from benchmarks.interop.writers import of_lycoris, of_ours, spellings
from tests.golden_tables import golden, table
from toolkit.registry import FAMILIES

BLOCK = "transformer_blocks.0"


@pytest.fixture(scope="module", params=MODELS)
def title(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def weights(title: str) -> dict[str, Tensor]:
    return linear_weights(MODELS[title].build())


# ------------------------------------------------------------ ComfyUI's rules


def test_comfyui_finds_the_halves_of_a_fused_layer_without_a_prefix_alone() -> None:
    names = comfyui_rules.known_names(
        {f"{BLOCK}.img_mlp.gate_layer": 6, f"{BLOCK}.img_mlp.proj": 6}
    )
    whole = f"{BLOCK}.img_mlp.gate_up"
    assert names[f"diffusion_model.{whole}"].rows is None
    assert names[f"{BLOCK}.img_mlp.proj"] == comfyui_rules.Place(whole, slice(6, 12))
    assert names[f"transformer.{BLOCK}.img_mlp.gate_layer"] == comfyui_rules.Place(
        whole, slice(0, 6)
    )
    assert f"diffusion_model.{BLOCK}.img_mlp.proj" not in names
    assert whole not in names


READ_BY_COMFYUI = {
    "musubi": {"2509": "exact", "2.1": "shape"},
    "aitk": {"2509": "exact", "2.1": "shape"},
    "comfyui_fused": {"2.1": "exact"},
    "comfyui_bias": {"2509": "exact"},
    "bare_rank": {"2509": "exact", "2.1": "exact"},
    "bare_default": {"2509": "exact", "2.1": "exact"},
    "bare_dora": {"2509": "exact", "2.1": "exact"},
    "bare_loha": {"2509": "exact", "2.1": "exact"},
    "bare_lokr": {"2509": "exact", "2.1": "exact"},
    "transformer": {"2509": "exact", "2.1": "exact"},
    "onetrainer": {"2509": "nothing", "2.1": "nothing"},
}
"""Spelling -> title of a model that has it -> what comes of it."""


def test_comfyui_reads_each_spelling(
    title: str, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    outcomes = {}
    for file in spellings.write(MODELS[title], tmp_path):
        name = file.name.removeprefix("spelled_")
        if name in READ_BY_COMFYUI:
            reading = comfyui_rules.read(file.tensors(), weights)
            outcome = outcomes[name] = compare(reading.changes, file.meant).outcome
            assert bool(reading.unread) == (outcome != "exact"), name
    assert outcomes == {
        name: found[title] for name, found in READ_BY_COMFYUI.items() if title in found
    }


def test_comfyui_computes_the_other_kinds_as_lycoris(tmp_path: Path) -> None:
    model = MODELS["2509"]
    weights = linear_weights(model.build())
    kinds = ("glora", "oft", "boft", "dora_columns", "lokr_both", "full")
    for file in of_lycoris.write(model, tmp_path, kinds):
        assert (
            compare(
                comfyui_rules.read(file.tensors(), weights).changes, file.meant
            ).outcome
            == "exact"
        ), file.name


def test_comfyui_divides_norms_of_rows_by_the_norm_before_the_change(
    weights: dict[str, Tensor],
) -> None:
    stem, weight_OI = f"{BLOCK}.attn.to_q", weights[f"{BLOCK}.attn.to_q.weight"]
    down_RI, up_OR, magnitude_O1 = (
        torch.randn(2, 64),
        torch.randn(64, 2),
        torch.rand(64, 1) + 1,
    )
    tensors = {
        f"{stem}.lora_A.weight": down_RI,
        f"{stem}.lora_B.weight": up_OR,
        f"{stem}.dora_scale": magnitude_O1,
    }
    found = comfyui_rules.read(tensors, weights).changes[f"{stem}.weight"]
    wanted = (weight_OI + up_OR @ down_RI) * magnitude_O1 / weight_OI.norm(
        dim=1, keepdim=True
    ) - weight_OI
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_a_lokr_of_two_low_rank_factors_is_divided_by_the_rank_of_the_second(
    weights: dict[str, Tensor],
) -> None:
    stem = f"{BLOCK}.attn.to_q"
    first = {".lokr_w1_a": torch.randn(8, 2), ".lokr_w1_b": torch.randn(2, 8)}
    second = {".lokr_w2_a": torch.randn(8, 4), ".lokr_w2_b": torch.randn(4, 8)}
    tensors = {
        stem + end: t
        for end, t in {**first, **second, ".alpha": torch.tensor(2.0)}.items()
    }
    found = comfyui_rules.read(tensors, weights).changes[f"{stem}.weight"]
    product = torch.kron(
        first[".lokr_w1_a"] @ first[".lokr_w1_b"],
        second[".lokr_w2_a"] @ second[".lokr_w2_b"],
    )
    torch.testing.assert_close(found, 2 / 4 * product, rtol=1e-5, atol=1e-5)


def test_whole_weights_are_added_or_put_in_place(weights: dict[str, Tensor]) -> None:
    stem, weight_OI = f"{BLOCK}.attn.to_q", weights[f"{BLOCK}.attn.to_q.weight"]
    whole_OI = torch.randn_like(weight_OI)
    added = comfyui_rules.read({f"{stem}.diff": whole_OI}, weights).changes[
        f"{stem}.weight"
    ]
    put = comfyui_rules.read({f"{stem}.set_weight": whole_OI}, weights).changes[
        f"{stem}.weight"
    ]
    torch.testing.assert_close(added, whole_OI, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(put, whole_OI - weight_OI, rtol=1e-5, atol=1e-5)


def test_a_matrix_without_its_partner_fails_as_there(
    weights: dict[str, Tensor],
) -> None:
    with pytest.raises(KeyError):
        comfyui_rules.read(
            {f"{BLOCK}.attn.to_q.lora_B.weight": torch.randn(64, 2)}, weights
        )


# ------------------------------------------------------------ comparison, table, record


def test_a_cell_tells_strength_from_shape() -> None:
    meant = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0])}
    assert compare(meant, meant) == Cell("exact", 1.0, 0.0)
    assert compare({}, meant).outcome == "nothing"
    doubled = compare({name: 2 * tensor for name, tensor in meant.items()}, meant)
    assert (doubled.outcome, doubled.strength, doubled.error) == ("strength", 2.0, 1.0)
    part = compare({"a": meant["a"]}, meant)
    assert part.outcome == "shape"
    assert part.error == pytest.approx((9 / 14) ** 0.5)
    assert compare({**meant, "c": torch.ones(1)}, meant).outcome == "shape"


def test_a_table_joins_files_that_all_readers_take_alike(tmp_path: Path) -> None:
    files = [
        WrittenFile(name, "2.1", writer, name, tmp_path / "x", {}, ())
        for name, writer in (
            ("one", "peft 1"),
            ("two", "peft 1"),
            ("three", "peft 1"),
            ("four", "us"),
        )
    ]
    cells = [
        Cell("exact"),
        Cell("exact"),
        Cell("strength", 2.0, 1.0),
        Cell("refused", said="no"),
    ]
    matrix = {
        "ours": {file.place: cell for file, cell in zip(files, cells, strict=True)}
    }
    text = markdown(files, matrix)
    rest = " | –" * (len(READERS) - 1) + " |"
    assert f"| peft 1: one; two | ={rest}" in text
    assert f"| peft 1: three | x2{rest}" in text
    assert f"| us: four | R{rest}" in text
    assert sign(Cell("shape", 0.5, 0.314)) == "w 0.31"


def test_the_table_replaces_what_stands_between_its_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    write_between_marks(page, "new\n")
    assert page.read_text(encoding="utf-8") == f"before\n{BEGIN}\nnew\n{END}\nafter\n"
    page.write_text("nothing", encoding="utf-8")
    with pytest.raises(ValueError, match="lacks"):
        write_between_marks(page, "new\n")


def test_a_recorded_file_is_rebuilt_in_its_form(tmp_path: Path) -> None:
    files = list(spellings.write(MODELS["2.1"], tmp_path))
    matrix = {"ours": {file.place: Cell("exact") for file in files}}
    for file, case in zip(files, record(files, matrix)["cases"], strict=True):
        tensors, rebuilt = file.tensors(), rebuild(case)
        assert {key: (t.shape, t.dtype) for key, t in rebuilt.items()} == {
            key: (t.shape, t.dtype) for key, t in tensors.items()
        }
        assert metadata_of(case) == file.metadata()
        alphas = [key for key in tensors if key.endswith(".alpha")]
        assert all(rebuilt[key] == tensors[key] for key in alphas)


def test_only_a_whole_run_may_write(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench_interop.arguments(["--write", "--models", "2.1"])
    assert "--write needs all" in capsys.readouterr().err
    assert bench_interop.arguments(["--write"]).write


# ------------------------------------------------------------ our own files


@pytest.mark.slow
def test_our_files_are_written_and_mean_what_was_trained(
    title: str, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    model = MODELS[title]
    sizes = linear_sizes(model.build())
    files = list(of_ours.write(model, tmp_path))
    assert {"ours_lora", "ours_dora", "ours_loha", "ours_lokr"} <= {
        file.name for file in files
    }
    for file in files:
        assert (
            compare(read_ours(file, weights, sizes), file.meant).outcome == "exact"
        ), file.name


def test_the_models_have_the_blocks_that_keys_are_joined_over(title: str) -> None:
    assert MODELS[title].blocks == BLOCKS == MODELS[title].config["num_layers"]


def test_a_run_trains_the_layers_that_the_bench_takes_for_them(title: str) -> None:
    model = MODELS[title]
    transformer = model.build()
    family = FAMILIES.load(model.arch)
    trained = set(family.block_linears(1, dict(transformer.config)))
    assert trained == set(model.own_targets)


# ------------------------------------------------------------ the recorded matrix


@pytest.mark.slow
def test_the_rules_of_comfyui_agree_with_the_recorded_matrix(
    title: str, weights: dict[str, Tensor]
) -> None:
    """Whether anything is applied, by rule, to a file of the same form."""
    for case in golden("interop", model=title):
        outcome = case["cells"]["comfyui"][0]
        if outcome == "error":
            continue
        applied = comfyui_rules.read(rebuild(case), weights).changes
        is_nothing = not any(change.any() for change in applied.values())
        assert is_nothing == (outcome == "nothing"), case["name"]


def test_the_record_has_a_cell_of_every_reader_for_every_file() -> None:
    readers = table("interop")["readers"]
    assert readers.keys() == READERS.keys()
    for case in golden("interop"):
        assert case["cells"].keys() == readers.keys(), case["name"]
        assert len(shapes_of(case)) >= len(case["keys"]) and isinstance(
            case["numbers"], dict
        )
