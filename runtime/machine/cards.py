"""GPUs that people render on: memory, bandwidth, and what their tensor cores multiply in a second.

Rates are dense (datasheets print them for half-empty matrices, twice as high), and those that add up in 32 bit, as TensorRT does: GeForce
cards are twice as fast where 16 bit will do for that.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from reelquant.runtime.errors import BadInput

_GIB = 1 << 30
_ECC = 1 / 16  # of GDDR memory, where error correction is on; HBM has room for it beside
CONTEXT = (
    512 << 20
)  # bytes that CUDA and the driver are taken to hold before anything is loaded; not measured on each card


@dataclass(frozen=True)
class Card:
    """``memory`` in GiB, of which ``ecc`` says that error correction takes its share; ``bandwidth`` in bytes a second; ``rates`` in
    operations a second by number format, a multiplication with its addition being two. ``source`` is where they stand.
    """

    name: str
    capability: tuple[int, int]
    memory: int
    ecc: bool
    bandwidth: float
    rates: Mapping[str, float]
    source: str

    @property
    def target(self) -> str:
        """As in ``--gpu``: "sm89"."""
        return f"sm{self.capability[0]}{self.capability[1]}"

    @property
    def free(self) -> int:
        """Bytes that engines can have on it, with nothing else running there."""
        return free_of(self.memory, self.ecc)

    def seconds(self, format: str, flops: float, moved: float) -> float | None:
        """The least time for work that reads and writes ``moved`` bytes and multiplies in ``format``: whichever takes longer, as neither can
        be faster than the card. None where its tensor cores do not have the format.

        Float32, and all that is not a number format of tensor cores, is taken at TF32's rate, half of fp16's on all of these.
        """
        rate = self.rates.get(format)
        if rate is None:
            if format in ("bf16", "fp8", "int8", "fp4") and flops:
                return None
            rate = self.rates["fp16"] / 2
        return max(moved / self.bandwidth, flops / rate)


def free_of(gibibytes: float, ecc: bool = True) -> int:
    """Bytes that engines can have of a card with so much memory."""
    return int(gibibytes * _GIB * (1 - _ECC if ecc else 1)) - CONTEXT


def _rates(fp16: float, fp8: float = 0, int8: float = 0, fp4: float = 0, bf16: bool = True) -> dict[str, float]:
    """From TFLOPS and TOPS; 0 where a card does not have the format."""
    found = {"fp16": fp16, "bf16": fp16 if bf16 else 0, "fp8": fp8, "int8": int8, "fp4": fp4}
    return {name: 1e12 * rate for name, rate in found.items() if rate}


_ADA = "NVIDIA Ada GPU Architecture, V2.01 (with L4 and L40), appendix A"
CARDS = {
    card.name: card
    for card in (
        Card("T4", (7, 5), 16, True, 320e9, _rates(65, int8=130, bf16=False), "NVIDIA T4 datasheet (2019)"),
        Card("RTX 3060", (8, 6), 12, False, 360e9, _rates(25.4, int8=101.5),
             "NVIDIA's launch figures of GeForce RTX 3060 (101 tensor TFLOPS for half-empty matrices, 16-bit sums) and GA102 whitepaper's ratios"),
        Card("L4", (8, 9), 24, True, 300e9, _rates(121, 242.5, 242.5), "NVIDIA L4 Tensor Core GPU datasheet (242, 485, 485 for half-empty matrices)"),
        Card("RTX 4090", (8, 9), 24, False, 1008e9, _rates(165.2, 330.3, 660.6), _ADA),
        Card("L40S", (8, 9), 48, True, 864e9, _rates(362, 733, 733), "NVIDIA L40S datasheet"),
        Card("RTX 5090", (12, 0), 32, False, 1792e9, _rates(209.5, 419, 838, 1676), "NVIDIA RTX Blackwell GPU Architecture, V1.1, appendix A"),
        Card("A100", (8, 0), 80, False, 2039e9, _rates(312, int8=624), "NVIDIA A100 80GB datasheet, SXM"),
        Card("H100", (9, 0), 80, False, 3350e9, _rates(989.4, 1978.9, 1978.9), "NVIDIA H100 Tensor Core GPU Architecture, SXM5"),
        Card("H200", (9, 0), 141, False, 4800e9, _rates(989.4, 1978.9, 1978.9), "NVIDIA H200 datasheet, SXM"),
        Card("B200", (10, 0), 180, False, 7700e9, _rates(2250, 4500, 4500, 9000), "NVIDIA Blackwell datasheet, HGX B200 (4.5, 9, 9 and 18 PFLOPS for half-empty matrices)"),
    )
}  # fmt: skip


def find_card(text: str) -> Card | None:
    """The card of a name such as "L4", "rtx-4090", "A100 80GB" or "H100 SXM"; None where it is not in the table, as its siblings are not."""
    asked = re.sub(r"nvidia|geforce|tesla|[^a-z0-9]", "", text.lower())
    for card in CARDS.values():
        name = re.escape(card.name.replace(" ", "").lower())
        if re.fullmatch(f"{name}(sxm\\d?)?({card.memory}gb?)?", asked):
            return card
    return None


def card_or_memory(text: str) -> tuple[Card | None, int]:
    """What a user calls a GPU, a card's name or "24GB": the card, if it was named, and the bytes that engines can have.

    Raises:
        BadInput: it is neither.
    """
    amount = re.fullmatch(r"(\d{1,4}(?:\.\d+)?)\s*(?:gb|gib|g)", text.strip().lower())
    if amount:
        return None, max(free_of(float(amount[1])), 0)
    card = find_card(text)
    if card is None:
        raise BadInput(f"unknown GPU {text[:40]!r}; give its memory, such as 24GB, or one of {', '.join(CARDS)}")
    return card, card.free
