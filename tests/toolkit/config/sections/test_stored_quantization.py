"""The words for how a part's weights are quantized, from the entries that the programs
write."""

from __future__ import annotations

from typing import Any

import pytest

from tests.quantized import QUANTIZED, SDNQ
from toolkit.config.sections.stored_quantization import UNNAMED, quantized_by


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
