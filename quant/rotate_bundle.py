"""An fp32 bundle whose attentions' values are rotated: the same clips, other activations to quantize."""

from __future__ import annotations

from dataclasses import replace as changed
from pathlib import Path

from reelquant.quant.graph_files import load_graph, map_weights, save_graphs
from reelquant.quant.passes.rotate import rotate
from reelquant.quant.quantize import QUANTIZED, check_sources
from reelquant.quant.stats import graph_stats
from reelquant.runtime.atomic import partial_folder
from reelquant.runtime.bundle import Bundle, list_files, write_manifest


def rotate_bundle(bundle: Bundle, out: Path, replace: bool = False) -> Bundle:
    """Write ``out``: ``bundle`` (fp32) with its transformer rotated (:mod:`reelquant.quant.passes.rotate`).

    Raises:
        BadInput: it is not fp32, its heads have no Hadamard matrix, or ``out`` is taken.
        BundleError: a file was changed.
    """
    check_sources(bundle, None)
    bundle.check_hashes()
    manifest = bundle.manifest
    model = load_graph(bundle.graph(QUANTIZED, "main"))
    map_weights(model)
    count = rotate(model, int(manifest.transformer["attention_head_dim"]))
    with partial_folder(out, replace) as folder:
        bundle.copy_files(folder, lambda name: not name.startswith((f"{QUANTIZED}/", "engines/")))
        files = save_graphs(folder / QUANTIZED, {"main": model})
        before = manifest.components[QUANTIZED]
        part = changed(
            before,
            stats={"main": graph_stats(load_graph(folder / files["main"]))},
            passes={"main": {**before.passes.get("main", {}), "rotate": {"attentions": count}}},
        )
        components = {**manifest.components, QUANTIZED: part}
        write_manifest(folder, changed(manifest, components=components, engines={}, files=list_files(folder)))
    return Bundle.open(out)
