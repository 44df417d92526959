import pytest

from tests.golden_tables import golden
from toolkit.data.types import Size
from toolkit.models.qwen_image.sizes import condition_size, reference_size

ANY_TARGET = Size(512, 512)


@pytest.mark.parametrize("case", golden("edit_image_sizes"), ids=lambda case: f"{case['width']}x{case['height']}")
def test_both_sizes_of_a_reference_are_those_of_diffusers(case: dict) -> None:
    image = Size(case["width"], case["height"])
    assert condition_size(image) == (case["condition_width"], case["condition_height"])
    assert reference_size(image, ANY_TARGET, 1024 * 1024) == (case["vae_width"], case["vae_height"])


@pytest.mark.parametrize("match_target", [False, True])
def test_reference_sizes_are_those_of_ai_toolkit(match_target: bool) -> None:
    for case in golden("edit_train_packing", match_target_res=match_target):
        target = Size(case["target_width"], case["target_height"])
        controls = [Size(*control) for control in case["controls"]]
        assert [[*condition_size(image)] for image in controls] == case["condition_sizes_wh"]
        area = 0 if match_target else 1024 * 1024
        assert [[*reference_size(image, target, area)] for image in controls] == case["vae_sizes_wh"]


def test_a_sliver_keeps_a_side_of_32() -> None:
    assert reference_size(Size(10000, 10), Size(128, 128), 0).height == 32
