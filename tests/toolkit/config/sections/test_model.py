"""`model`: base LoRAs in every shape they are written in."""

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from tests.parts import needs_foreign_names
from tests.quantized import QUANTIZED, SDNQ
from tests.toolkit.config.conftest import trainer
from toolkit.config.sections.stored_quantization import UNNAMED, quantized_by

A, B = "a.safetensors", "b.safetensors"


FILE = "owner/repo/folder/recovery.safetensors"


@pytest.fixture(autouse=True)
def lora_files(tmp_path: Path) -> None:
    for name in (A, B):
        save_file({}, tmp_path / name)


@pytest.fixture
def loras(section):
    """(path, multiplier) of what a `model` section with these keys merges; both files
    are there."""

    def loras(keys: str) -> list[tuple[str, float]]:
        model = section(f"model: {{name_or_path: ./model, {keys}}}").model
        return [(lora.path, lora.multiplier) for lora in model.base_loras]

    return loras


@needs_foreign_names
@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("base_loras: []", []),
        ("base_loras: ", []),
        (
            f"base_loras: [{{path: {A}, multiplier: 0.5}}, {{path: {B}}}]",
            [(A, 0.5), (B, 1.0)],
        ),
        (f"base_loras: [{A}, {{path: {B}, multiplier: -1}}]", [(A, 1.0), (B, -1.0)]),
        (f"base_loras: {A}", [(A, 1.0)]),
        (f"base_loras: {{path: {A}, multiplier: 2}}", [(A, 2.0)]),
        (
            f"base_weights: [{A}, {B}], base_weights_multiplier: [0.5, 2]",
            [(A, 0.5), (B, 2.0)],
        ),
        (
            f"base_weights: [{A}, {B}], base_weights_multiplier: [0.5]",
            [(A, 0.5), (B, 1.0)],
        ),
        (f"base_weights: {A}, base_weights_multiplier: 0.25", [(A, 0.25)]),
        (f"base_weights: [{A}]", [(A, 1.0)]),
        ("base_weights: , base_weights_multiplier: 1", []),
        (f"base_weights: [], base_loras: [{A}]", [(A, 1.0)]),
    ],
)
def test_base_loras_as_people_write_them(
    loras, keys: str, expected: list[tuple[str, float]]
) -> None:
    assert loras(keys) == expected


@needs_foreign_names
@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("base_loras: [{multiplier: 1}]", "model.base_loras[0].path: "),
        (
            "base_loras: [{path: none.safetensors}]",
            "model.base_loras[0].path: 'none.safetensors' does not exist",
        ),
        (
            "base_loras: [none.safetensors]",
            "model.base_loras[0]: 'none.safetensors' does not exist",
        ),
        (
            "base_loras: photos",
            "model.base_loras: 'photos' is not a file. Give a LoRA file; its strength is a key, 'multiplier'.",
        ),
        (
            "base_weights: [none.safetensors]",
            "model.base_weights[0]: 'none.safetensors' does not exist",
        ),
        (
            "base_loras: [{path: a.safetensors, strength: 1}]",
            "model.base_loras[0].strength: unknown key.",
        ),
        (
            "base_loras: [{path: a.safetensors, multiplier: a}]",
            "model.base_loras[0].multiplier: 'a' is not a number.",
        ),
        (
            "base_loras: [{path: a.safetensors, multiplier: .inf}]",
            "model.base_loras[0].multiplier: ",
        ),
        (
            "base_loras: [{path: a.safetensors, multiplier: true}]",
            "model.base_loras[0].multiplier: true is not a number.",
        ),
        (
            "base_loras: [a.safetensors], base_weights: [a.safetensors]",
            "model.base_weights: 'base_loras' is given as well.",
        ),
        (
            "base_weights: [a.safetensors], base_weights_multiplier: [1, 2]",
            "model.base_weights_multiplier: 2 multipliers for 1 of base_weights. Give one for each file.",
        ),
        (
            "base_weights: [a.safetensors], base_weights_multiplier: [much]",
            "model.base_weights_multiplier[0]: 'much' is not a number.",
        ),
        (
            "quantize: true, qtype: int3",
            "model.qtype: 'int3' is unknown. Did you mean 'uint3'?",
        ),
        (
            f"quantize: true, qtype: 'orbit3|{FILE}'",
            "model.qtype: 'orbit3' is unknown. Use 'int8' or ",
        ),
        ("quantize: true, qtype: 'int4|'", "model.qtype: needs a file after '|'."),
        (
            "quantize: true, qtype: 'int4|none.safetensors'",
            "model.qtype: 'none.safetensors' does not exist",
        ),
        (
            "quantize: true, accuracy_recovery_adapter: ./a/b/none.safetensors",
            "model.accuracy_recovery_adapter: './a/b/none.safetensors' does not exist",
        ),
        (
            "quantize_te: true, qtype_te: 'int4|a.safetensors'",
            "model.qtype_te: 'int4|a.safetensors': only the transfo",
        ),
        (
            f"quantize: true, qtype: 'int4|{FILE}', accuracy_recovery_adapter: a/b/c.safetensors",
            "model.qtype: 'qtype' and 'accuracy_recovery_adapter' mean the same",
        ),
        (
            "fp8_base: true, quantize: false",
            "model.fp8_base: 'fp8_base' and 'quantize' mean the same",
        ),
        (
            "fp8_base: false, fp8_scaled: true",
            "model.fp8_scaled: 'fp8_scaled: true' and 'fp8_base: false' contradict",
        ),
        (
            "fp8_scaled: true, quantize: true, qtype: int4",
            "model.fp8_scaled: 'fp8_scaled' and 'qtype' mean the same",
        ),
        ("fp8_base: yes please", "model.fp8_base: write true or false."),
        (
            "quantized_products: int8",
            "model.quantized_products: int8 takes weights with int8 codes, and these are not quantized. "
            "Write 'quantize: true' and 'qtype: int8'.",
        ),
        (
            "quantized_products: fp8, quantize: true, qtype: fp8_scaled",
            "model.quantized_products: fp8 takes weights with float8 codes, and these are 'fp8_scaled'. "
            "Write 'quantize: true' and 'qtype: float8'.",
        ),
        (
            "quantized_products: int8, quantize: true, accuracy_recovery_adapter: auto",
            "model.quantized_products: accuracy_recovery_adapter corrects the errors of weights alone. Leave one",
        ),
        (
            "quantized_products: true, quantize: true",
            "model.quantized_products: true: is not a name. Use 'int8' or 'fp8' or false.",
        ),
    ],
)
def test_what_is_wrong_is_said_at_its_place(faults, keys: str, message: str) -> None:
    found = faults(f"model: {{name_or_path: ./model, {keys}}}")
    assert len(found) == 1
    assert found[0].startswith(message)


@needs_foreign_names
@pytest.mark.parametrize("value", ["true", "1", "yes", "'true'"])
@pytest.mark.parametrize("key", ["is_flux", "is_xl"])
def test_a_switch_of_another_family_is_refused_when_it_is_on(
    faults, key: str, value: str
) -> None:
    (line,) = faults(f"model: {{name_or_path: ./model, {key}: {value}}}")
    assert (
        line.startswith(f"model.{key}: ")
        and "the models that it stands for cannot be trained" in line
    )


@needs_foreign_names
@pytest.mark.parametrize("value", ["false", "0"])
def test_a_switch_of_another_family_is_a_note_when_it_is_off(load, value: str) -> None:
    (line,) = load(
        trainer(f"model: {{name_or_path: ./model, is_flux: {value}}}")
    ).warnings
    assert line.endswith("model.is_flux: has no effect at this value.")


def test_a_model_that_an_earlier_process_writes_is_not_looked_for(load) -> None:
    tiny = "- {type: writer, path: output/tiny}"
    text = trainer("model: {name_or_path: output/tiny}").replace(
        "process:\n", f"process:\n    {tiny}\n"
    )
    assert load(text).warnings == ()


@needs_foreign_names
def test_what_has_no_effect_is_told(load) -> None:
    keys = "base_loras: [{path: a.safetensors, multiplier: 0}], base_weights_multiplier: [2]"
    first, second = load(trainer(f"model: {{name_or_path: ./model, {keys}}}")).warnings
    assert first.endswith("model.base_loras[0].multiplier: 0: the file is not used.")
    assert second.endswith(
        "model.base_weights_multiplier: has no effect without base_weights."
    )


# ------------------------------------------------------------ quantization


@needs_foreign_names
@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("quantize: true", {"qtype": "int8", "accuracy_recovery_adapter": None}),
        ("quantize: true, qtype: qint2", {"qtype": "int2"}),
        ("quantize: true, qtype: FP8_scaled", {"qtype": "fp8_scaled"}),
        (
            "quantize_te: true, qtype_te: fp8_scaled",
            {"quantize_te": True, "qtype_te": "fp8_scaled"},
        ),
        ("fp8_base: true, fp8_scaled: true", {"quantize": True, "qtype": "fp8_scaled"}),
        ("fp8_scaled: true", {"quantize": True, "qtype": "fp8_scaled"}),
        ("fp8_base: true", {"quantize": True, "qtype": "float8"}),
        ("fp8_base: true, fp8_scaled: false", {"quantize": True, "qtype": "float8"}),
        (
            "fp8_base: false, fp8_scaled: false, fp8_vl: false",
            {"quantize": False, "quantize_te": False},
        ),
        (
            "fp8_vl: true",
            {"quantize": False, "quantize_te": True, "qtype_te": "float8"},
        ),
        (
            f"quantize: true, qtype: 'uint3|{FILE}'",
            {"qtype": "uint3", "accuracy_recovery_adapter": FILE},
        ),
        (
            f"quantize: true, qtype: 'qint4|{FILE}'",
            {"qtype": "int4", "accuracy_recovery_adapter": FILE},
        ),
        (
            f"quantize: true, quantize_dtype: 'int4 | {FILE}'",
            {"qtype": "int4", "accuracy_recovery_adapter": FILE},
        ),
        (
            f"quantize: true, qtype: int2, accuracy_recovery_adapter: {FILE}",
            {"qtype": "int2", "accuracy_recovery_adapter": FILE},
        ),
        (
            "quantize: true, qtype: int4, accuracy_recovery_adapter: auto",
            {"qtype": "int4", "accuracy_recovery_adapter": "auto"},
        ),
        (
            "quantize: true, qtype: 'uint4|auto'",
            {"qtype": "uint4", "accuracy_recovery_adapter": "auto"},
        ),
    ],
)
def test_quantization_as_people_write_it(section, keys: str, expected: dict) -> None:
    model = section(f"model: {{name_or_path: ./model, {keys}}}").model
    assert {key: getattr(model, key) for key in expected} == expected


@pytest.mark.parametrize("words", QUANTIZED)
def test_method_and_number_type_are_named(words: str) -> None:
    assert (
        quantized_by({"_class_name": "X", "quantization_config": QUANTIZED[words]})
        == words
    )


@pytest.mark.parametrize(
    "config", [{}, {"quantization_config": None}, {"quantization_config": {}}]
)
def test_a_part_without_an_entry_is_not_quantized(config: dict[str, Any]) -> None:
    assert quantized_by(config) == ""
    assert quantized_by({"text_config": config}) == ""


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"group_size": 64, "bits": 4}, f"{UNNAMED} (4 bits)"),  # MLX
        ({"load_in_4bit": True}, "bitsandbytes (4 bits)"),  # before it was named
        ({"quant_method": 3}, UNNAMED),
        ({"quant_method": "torchao", "quant_type": {"default": "int8wo"}}, "torchao"),
        ("sdnq", UNNAMED),
        ([1], UNNAMED),
    ],
)
def test_an_entry_that_says_less_is_named_as_far_as_it_goes(
    said: Any, words: str
) -> None:
    assert quantized_by({"quantization_config": said}) == words


def test_the_entry_of_the_language_model_counts_as_in_transformers() -> None:
    assert (
        quantized_by({"text_config": {"quantization_config": SDNQ}}) == "sdnq (uint4)"
    )
    assert quantized_by({"text_config": None}) == ""
