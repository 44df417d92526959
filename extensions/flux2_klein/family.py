"""FLUX.2 [klein] of 4 and of 9 billion weights, which draws from text and edits up to
four images, and the members of it that are distilled for few steps.

This module has facts; `model` loads and runs the parts. The sizes of the published
models are from their classes in diffusers and transformers. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass
from pathlib import Path

from toolkit.config.sections.model_files import INDEX, read_model_json
from toolkit.contracts.model import DynamicShift, LicenceTerms
from toolkit.models.families import EncoderSize
from toolkit.models.folder_family import DiffusersFamily, Joint, Qwen3Texts, part_config
from toolkit.models.recipes import Recipe

BLOCK_LISTS = ("transformer_blocks", "single_transformer_blocks")

DOUBLE_LAYERS = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "img_attn.proj": ("attn.to_out.0",),
    "img_mlp.0": ("ff.linear_in",),
    "img_mlp.2": ("ff.linear_out",),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "txt_attn.proj": ("attn.to_add_out",),
    "txt_mlp.0": ("ff_context.linear_in",),
    "txt_mlp.2": ("ff_context.linear_out",),
}

EMBEDDER = "time_guidance_embed.timestep_embedder"

LAYER_NAMES = {
    "img_in": ["x_embedder"],
    "txt_in": ["context_embedder"],
    "time_in.in_layer": [f"{EMBEDDER}.linear_1"],
    "time_in.out_layer": [f"{EMBEDDER}.linear_2"],
    "final_layer.linear": ["proj_out"],
    "single_blocks.*.linear1": ["single_transformer_blocks.*.attn.to_qkv_mlp_proj"],
    "single_blocks.*.linear2": ["single_transformer_blocks.*.attn.to_out"],
} | {
    f"double_blocks.*.{name}": [f"transformer_blocks.*.{part}" for part in parts]
    for name, parts in DOUBLE_LAYERS.items()
}
"""See `ModelFacts`. Without `final_layer.adaLN_modulation.1`, whose halves diffusers
has in the other order. Source: diffusers, lora_conversion_utils.py,
`_convert_non_diffusers_flux2_lora_to_diffusers`."""

NON_COMMERCIAL_TERMS = LicenceTerms(
    name="flux-non-commercial-license",
    link="https://huggingface.co/black-forest-labs/FLUX.2-klein-base-9B/blob/main/LICENSE.md",
    notice="This FLUX Model is licensed by Black Forest Labs Inc. under the FLUX "
    "Non-Commercial License. Copyright Black Forest Labs Inc. IN NO EVENT SHALL BLACK "
    "FOREST LABS INC. BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN "
    "ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH "
    "USE OF THIS MODEL.",
)
"""The licence of the members of 9 billion weights. Source: that text, as models derived
from them quote it."""

RECIPE = Recipe(
    lr=1e-4,
    lr_why="musubi-tuner and ai-toolkit write 1e-4",
    resolution=1024,
    resolution_why="musubi-tuner writes 1024, ai-toolkit 512, 768 and 1024",
    timestep_type="shift",
    levels_why="musubi-tuner shifts the levels by the size, by 3.16 at 1024 x 1024; "
    "ai-toolkit writes `weighted`",
    flow_shift=3.16,
    rank=32,
)


@dataclass(frozen=True)
class EmpiricalShift(DynamicShift):
    """FLUX.2's shift, which depends on the number of steps too.

    >>> round(EmpiricalShift().mu(tokens=4096, steps=50), 3)
    2.023
    """

    shift_terminal: float | None = None

    def mu(self, tokens: int, steps: int) -> float:
        """Linear in the steps, of which 10 and 200 are given; for large images without
        them. Source: diffusers, pipeline_flux2_klein.py, `compute_empirical_mu`."""
        at_200 = 0.00016927 * tokens + 0.45666666
        if tokens > 4300:
            return at_200
        at_10 = 8.73809524e-05 * tokens + 1.89833333
        return at_200 + (at_200 - at_10) / 190 * (steps - 200)


class Flux2KleinFamily(Qwen3Texts, DiffusersFamily):
    """See `ModelFamily`. The one of 4 billion weights.

    >>> FAMILY.of_title("FLUX.2-klein-9B").sample_steps
    4
    """

    arch = "flux2_klein"
    model_class = f"{__package__}.model:Flux2KleinModel"
    title = "FLUX.2-klein-base-4B"
    size = "4B"
    pipelines = ("Flux2KleinPipeline",)
    published = {  # noqa: RUF012
        f"black-forest-labs/FLUX.2-klein-{name}": f"FLUX.2-klein-{name}"
        for name in ("base-4B", "base-9B", "4B", "9B")
    }
    licence = "Apache-2.0"
    modelspec = ("FLUX.2-klein", "https://github.com/black-forest-labs/flux2")
    classes = {  # noqa: RUF012
        "transformer": "Flux2Transformer2DModel",
        "vae": "AutoencoderKLFlux2",
        "text_encoder": "Qwen3ForCausalLM",
    }
    settings = {  # noqa: RUF012
        "transformer/guidance_embeds": False,
        "transformer/patch_size": 1,
    }
    block_lists = BLOCK_LISTS
    layer_names = LAYER_NAMES
    lora_spelling = "diffusers"
    shapes_file = Path(__file__).with_name("shapes.json")
    size_multiple = 16
    # The VAE's 32 channels at an eighth of the size, 2 x 2 of them as one.
    latent_channels = 128
    latent_scale = 16
    patch = 1
    max_references = 4
    scales_references = True
    text_width_key = "joint_attention_dim"
    text_taps = (9, 18, 27)
    pads_text = True
    text_tokens = 12
    published_vae = EncoderSize(0, 84_046_372)
    empty_negative = ""
    recipes = dict.fromkeys(published.values(), RECIPE)
    guidance = 4.0
    sample_steps = 50

    def of_folder(self, folder: Path) -> Flux2KleinFamily:
        file = folder / INDEX
        index = read_model_json(file) if file.is_file() else {}
        heads = part_config(folder / "transformer").get("num_attention_heads")
        base = "" if index.get("is_distilled") else "base-"
        return self.of_title(
            f"FLUX.2-klein-{base}{'9B' if heads == HEADS_9B else '4B'}"
        )

    def of_title(self, title: str) -> Flux2KleinFamily:
        return MEMBERS.get(title, self)

    def joints(self, folder: Path) -> Iterator[Joint]:
        """The transformer reads several layers' features beside each other."""
        for joint in super().joints(folder):
            wants = joint.wants and joint.wants * len(self.text_taps)
            yield joint._replace(wants=wants)


HEADS_9B = 32
"""Attention heads of the members of 9 billion weights; the others have 24."""


class LargeFamily(Flux2KleinFamily):
    """The members of 9 billion weights.

    >>> LargeFamily().title
    'FLUX.2-klein-base-9B'
    """

    title = "FLUX.2-klein-base-9B"
    size = "9B"
    # Those of its size first: a warning names the first one.
    published = dict(  # noqa: RUF012
        sorted(
            Flux2KleinFamily.published.items(),
            key=lambda one: not one[1].endswith("9B"),
        )
    )
    licence = "FLUX Non-Commercial License"
    terms = NON_COMMERCIAL_TERMS
    # Qwen3-8B by its config.
    published_text = EncoderSize(6_945_767_424, 622_638_080, 622_329_856)
    published_text_sizes = (4096, 12288)


def distilled(family: Flux2KleinFamily) -> Flux2KleinFamily:
    """The member of the same size that is distilled for 4 steps without guidance.

    >>> distilled(FAMILY).title
    'FLUX.2-klein-4B'
    """
    member = copy(family)
    member.title = family.title.replace("base-", "")
    member.guidance = 1.0
    member.sample_sigmas = (1.0, 0.75, 0.5, 0.25)
    member.sample_steps = len(member.sample_sigmas)
    return member


FAMILY = Flux2KleinFamily()
LARGE_FAMILY = LargeFamily()
MEMBERS = {
    one.title: one
    for one in (FAMILY, LARGE_FAMILY, distilled(FAMILY), distilled(LARGE_FAMILY))
}
