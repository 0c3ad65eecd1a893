"""An fp32 bundle whose attentions' values are rotated: the same clips, other activations to quantize."""

from __future__ import annotations

from pathlib import Path

from reelquant.quant.derive import derive_bundle
from reelquant.quant.passes.rotate import rotate
from reelquant.quant.quantize import QUANTIZED, check_sources
from reelquant.runtime.bundle import Bundle
from reelquant.runtime.models import model_of


def rotate_bundle(bundle: Bundle, out: Path, replace: bool = False) -> Bundle:
    """Write ``out``: ``bundle`` (fp32) with its transformer rotated (:mod:`reelquant.quant.passes.rotate`).

    Raises:
        BadInput: it is not fp32, its heads have no Hadamard matrix, or ``out`` is taken.
        BundleError: a file was changed.
    """
    check_sources(bundle, None)
    with derive_bundle(bundle, out, [QUANTIZED], replace) as derived:
        models = derived.models(QUANTIZED)
        count = rotate(models["main"], model_of(bundle.manifest).head_dim)
        derived.note(QUANTIZED, {"main": {"rotate": {"attentions": count}}})
        derived.write(QUANTIZED, models)
    return Bundle.open(out)
