"""Graphics cards and what they do per second, as their makers publish it. Imports no
torch.

`bf16_tflops` are dense products in bfloat16, summed in float32. Published figures are
often others: "tensor TFLOPS" and "AI TOPS" count sparse weights, which doubles them; AI
TOPS are of 8 bits (GeForce 40) or 4 bits (GeForce 50); and GeForce cards sum half as
fast in float32 as in float16, professional cards equally fast. A GeForce 40 card
therefore has an eighth of its AI TOPS, a GeForce 50 card a sixteenth; a professional
card half of its sparse tensor TFLOPS.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from toolkit.errors import UserError

GB_S_PER_LANE = {4: 1.969, 5: 3.938}
"""PCI Express generation -> 10^9 bytes per second and lane in each direction."""


@dataclass(frozen=True)
class Card:
    """A graphics card.

    >>> Card("RTX 4070", 12, 58.2, 504, (4, 16), "...").called
    'an RTX 4070'
    """

    name: str
    memory_gb: int
    bf16_tflops: float
    """10^12 operations per second."""

    memory_gb_s: float
    """10^9 bytes per second of its memory."""

    pcie: tuple[int, int]
    """Generation and lanes."""

    source: str
    cuda_names: str = ""
    """Regular expression of the names that the driver gives it; empty: `name`, with the
    usual words before it."""

    @property
    def called(self) -> str:
        """The name with its article.

        >>> asked_card("4090").called
        'an RTX 4090'
        """
        return f"{'a' if self.name[0] in 'BG' else 'an'} {self.name}"

    @property
    def bus_gb_s(self) -> float:
        """10^9 bytes per second from main memory to the card, by the standard: the rate
        of a lane of its PCIe generation, times its lanes. Raises KeyError for a
        generation that is not in `GB_S_PER_LANE`."""
        generation, lanes = self.pcie
        return GB_S_PER_LANE[generation] * lanes


_GA102 = "NVIDIA Ampere GA102 GPU Architecture V2.0, specifications: BF16 with FP32 accumulate"
_GA106 = "NVIDIA, GeForce RTX 3060 specifications: 28 SMs, 1.78 GHz; 512 operations per SM and cycle as in GA102"
_ADA = "NVIDIA Ada GPU Architecture V2.01, Appendix A: BF16 with FP32 accumulate"
_RTX_40 = (
    "NVIDIA, GeForce RTX 40 series, compare specifications: an eighth of the AI TOPS"
)
_RTX_50 = (
    "NVIDIA, GeForce RTX 50 series, compare specifications: a sixteenth of the AI TOPS"
)
_BLACKWELL = "NVIDIA RTX Blackwell GPU Architecture, Table 3: BF16 with FP32 accumulate"
_BLACKWELL_PRO = (
    "NVIDIA RTX Blackwell PRO GPU Architecture V1.0, Table 4: BF16 with FP32 accumulate"
)
_PRO = "NVIDIA RTX {} data sheet: half of the sparse tensor performance"
_DATA_SHEET = "NVIDIA {} data sheet: BFLOAT16 Tensor Core without sparsity"

CARDS = (
    Card("RTX 3060", 12, 25.5, 360, (4, 16), _GA106),
    Card("RTX 3070", 8, 40.6, 448, (4, 16), _GA102),
    Card("RTX 3080", 10, 59.5, 760, (4, 16), _GA102),
    Card("RTX 3090", 24, 71.2, 936, (4, 16), _BLACKWELL),
    Card("RTX 4060", 8, 30.2, 272, (4, 8), _RTX_40),
    Card("RTX 4060 Ti", 16, 44.1, 288, (4, 8), _RTX_40),
    Card("RTX 4070", 12, 58.2, 504, (4, 16), _RTX_40),
    Card("RTX 4070 SUPER", 12, 71, 504, (4, 16), _RTX_40),
    Card("RTX 4070 Ti SUPER", 16, 88.2, 672, (4, 16), _RTX_40),
    Card("RTX 4080", 16, 97.5, 717, (4, 16), _ADA),
    Card("RTX 4080 SUPER", 16, 104.5, 736, (4, 16), _RTX_40),
    Card("RTX 4090", 24, 165.2, 1008, (4, 16), _ADA),
    Card("RTX 5060 Ti", 16, 47.4, 448, (5, 8), _RTX_50),
    Card("RTX 5070", 12, 61.8, 672, (5, 16), _RTX_50),
    Card("RTX 5070 Ti", 16, 87.9, 896, (5, 16), _RTX_50),
    Card("RTX 5080", 16, 112.6, 960, (5, 16), _RTX_50),
    Card("RTX 5090", 32, 209.5, 1792, (5, 16), _BLACKWELL),
    Card("RTX A400", 4, 10.8, 96, (4, 8), _PRO.format("A400")),
    Card(
        "RTX A2000",
        6,
        31.9,
        288,
        (4, 16),
        _PRO.format("A2000"),
        r"(NVIDIA )?RTX A2000( 12GB)?",
    ),
    Card("RTX A4000", 16, 76.7, 448, (4, 16), _PRO.format("A4000")),
    Card("RTX A5000", 24, 111.1, 768, (4, 16), _PRO.format("A5000")),
    Card("RTX A6000", 48, 154.8, 768, (4, 16), _GA102),
    Card(
        "RTX 6000 Ada",
        48,
        364,
        960,
        (4, 16),
        _BLACKWELL_PRO,
        r"(NVIDIA )?RTX 6000 Ada Generation",
    ),
    Card(
        "RTX PRO 6000",
        96,
        503.8,
        1792,
        (5, 16),
        _BLACKWELL_PRO,
        r"(NVIDIA )?RTX PRO 6000 Blackwell Workstation Edition",
    ),
    Card("A10", 24, 125, 600, (4, 16), _DATA_SHEET.format("A10")),
    Card("A10G", 24, 70, 600, (4, 16), _DATA_SHEET.format("A10G")),
    Card("L4", 24, 121, 300, (4, 16), _DATA_SHEET.format("L4")),
    Card("L40", 48, 181, 864, (4, 16), _DATA_SHEET.format("L40")),
    Card("L40S", 48, 362, 864, (4, 16), _DATA_SHEET.format("L40S")),
    Card(
        "A100 40 GB",
        40,
        312,
        1555,
        (4, 16),
        _DATA_SHEET.format("A100"),
        r"(NVIDIA )?A100-(SXM4|PCIE)-40GB",
    ),
    Card(
        "A100 80 GB",
        80,
        312,
        2039,
        (4, 16),
        _DATA_SHEET.format("A100"),
        r"(NVIDIA )?A100(-SXM4-80GB|-PCIE-80GB| 80GB PCIe)",
    ),
    Card("H100 PCIe", 80, 756, 2000, (5, 16), _DATA_SHEET.format("H100")),
    Card(
        "H100",
        80,
        989,
        3350,
        (5, 16),
        _DATA_SHEET.format("H100"),
        r"(NVIDIA )?H100( 80GB HBM3)?",
    ),
    Card("H200", 141, 989, 4800, (5, 16), _DATA_SHEET.format("H200")),
    Card("B200", 180, 2250, 8000, (5, 16), _DATA_SHEET.format("DGX B200")),
)

ASSUMED = {
    4: "RTX A400",
    6: "RTX A2000",
    8: "RTX 4060",
    10: "RTX 3080",
    12: "RTX 4070",
    16: "RTX 4060 Ti",
    24: "RTX 4090",
    32: "RTX 5090",
    40: "A100 40 GB",
    48: "L40S",
    80: "H100",
    96: "RTX PRO 6000",
    141: "H200",
}
"""GB -> the card that is meant where only the memory is known: a well-known one of that
size."""


def card_here(cuda_name: str) -> Card | None:
    """The card that the driver calls by this name; None: it is not in the table.

    Names are compared as a whole: an RTX 4070 Ti is another card than an RTX 4070, and
    so is a laptop's.

    >>> card_here("NVIDIA GeForce RTX 4090").memory_gb
    24
    >>> card_here("NVIDIA GeForce RTX 4090 Laptop GPU") is None
    True
    """
    for card in CARDS:
        pattern = card.cuda_names or rf"(NVIDIA )?(GeForce )?{re.escape(card.name)}"
        if re.fullmatch(pattern, cuda_name):
            return card
    return None


def assumed_card(memory_gb: int) -> Card:
    """The card that is meant by so many GB. Of a size that the table lacks it is a GPU
    of that size, as fast as the card of the next smaller one.

    >>> assumed_card(24).name, assumed_card(20).name
    ('RTX 4090', 'GPU of 20 GB')
    """
    size = max((size for size in ASSUMED if size <= memory_gb), default=min(ASSUMED))
    card = next(card for card in CARDS if card.name == ASSUMED[size])
    if size == memory_gb:
        return card
    return replace(card, name=f"GPU of {memory_gb} GB", memory_gb=memory_gb)


def asked_card(text: str, key: str = "--card") -> Card:
    """The card of `--card`, or of a key: its name, with or without maker and series, or
    GB. Raises UserError for another one.

    >>> asked_card("rtx4090").name, asked_card("24").name
    ('RTX 4090', 'RTX 4090')
    """
    wanted = _short(text)
    for card in CARDS:
        # Shops write the memory behind the name: another size of that name is another
        # card.
        if wanted in (_short(card.name), f"{_short(card.name)}{card.memory_gb}gb"):
            return card
    if present := card_here(text):
        return present
    size = re.fullmatch(r"(?:gpu of )?(\d{1,3})\s*(gb)?", text.strip(), re.IGNORECASE)
    if size and int(size[1]):
        return assumed_card(int(size[1]))
    near = [
        card.name for card in CARDS if wanted and _short(card.name).startswith(wanted)
    ]
    offer = f"Did you mean {' or '.join(map(repr, near))}? " if near else ""
    raise UserError(
        f"{key}: {text!r} is not in the table of cards. {offer}Give its memory in GB, such as 12, or one of: "
        f"{', '.join(card.name for card in CARDS)}."
    )


def _short(name: str) -> str:
    """A card's name without its maker and series, in small letters without spaces:
    "4090" for "GeForce RTX 4090"."""
    return re.sub(r"nvidia|geforce|rtx|[^a-z0-9]", "", name.lower())
