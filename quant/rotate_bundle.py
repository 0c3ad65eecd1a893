"""An fp32 bundle whose attentions' values are rotated: the same clips, other activations to quantize."""

from __future__ import annotations

from dataclasses import replace as changed
from pathlib import Path

from reelquant.quant.graph.graph_files import load_mapped
from reelquant.quant.passes.rotate import rotate
from reelquant.quant.quantize import QUANTIZED, check_sources, write_component
from reelquant.runtime.bundle import Bundle, list_files, write_manifest
from reelquant.runtime.files.atomic import partial_folder
from reelquant.runtime.models import model_of


def rotate_bundle(bundle: Bundle, out: Path, replace: bool = False) -> Bundle:
    """Write ``out``: ``bundle`` (fp32) with its transformer rotated (:mod:`reelquant.quant.passes.rotate`).

    Raises:
        BadInput: it is not fp32, its heads have no Hadamard matrix, or ``out`` is taken.
        BundleError: a file was changed.
    """
    check_sources(bundle, None)
    bundle.check_hashes()
    manifest = bundle.manifest
    model = load_mapped(bundle.graph(QUANTIZED, "main"))
    count = rotate(model, model_of(manifest).head_dim)
    with partial_folder(out, replace) as folder:
        bundle.copy_files(folder, lambda name: not name.startswith((f"{QUANTIZED}/", "engines/")))
        passes = {"main": {"rotate": {"attentions": count}}}
        part = write_component(folder, QUANTIZED, {"main": model}, passes, manifest.components[QUANTIZED])
        components = {**manifest.components, QUANTIZED: part}
        write_manifest(folder, changed(manifest, components=components, engines={}, files=list_files(folder)))
    return Bundle.open(out)
