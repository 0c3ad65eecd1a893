"""The third stage: fp32 bundle + ranges + recipe → a bundle whose transformer is quantized."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from reelquant.quant.graph_files import load_graph, map_weights, save_graphs
from reelquant.quant.passes.insert_qdq import insert_qdq
from reelquant.quant.ranges import Ranges
from reelquant.quant.recipe import Recipe
from reelquant.quant.stats import graph_stats
from reelquant.runtime.atomic import partial_folder
from reelquant.runtime.bundle import Bundle, list_files, write_manifest
from reelquant.runtime.errors import BadInput

QUANTIZED = "transformer"


def quantize_bundle(bundle: Bundle, ranges: Ranges, recipe: Recipe, out: Path, replace_out: bool = False) -> Bundle:
    """Write ``out``: the bundle with its transformer's linears in the recipe's numerics, all else copied.

    Raises:
        BadInput: the ranges are of another bundle, a rule of the recipe matches nothing, or ``out`` is taken.
        BundleError: a file of the bundle was changed.
    """
    manifest = bundle.manifest
    if ranges.provenance.source_digest != bundle.digest:
        raise BadInput(f"these ranges are not of {bundle.path}; run: reelquant calibrate {bundle.path} RANGES")
    bundle.check_hashes()
    model = load_graph(bundle.graph(QUANTIZED, "main"))
    map_weights(model)
    report = insert_qdq(model, ranges, recipe)
    if not report.quantized:
        raise BadInput(f"recipe {recipe.name} quantizes no linear of {bundle.path}")
    with partial_folder(out, replace_out) as folder:
        bundle.copy_files(folder, lambda name: not name.startswith(f"{QUANTIZED}/"))
        files = save_graphs(folder / QUANTIZED, {"main": model})
        component = replace(
            manifest.components[QUANTIZED],
            graphs=files,
            stats={"main": graph_stats(load_graph(folder / files["main"]))},
            passes={**manifest.components[QUANTIZED].passes, "insert_qdq": report.counts()},
        )
        write_manifest(
            folder,
            replace(
                manifest,
                precision=recipe.name,
                components={**manifest.components, QUANTIZED: component},
                quantization={
                    "recipe": recipe.name,
                    "recipe_sha256": recipe.digest,
                    "rules": [[rule.match, rule.numerics] for rule in recipe.rules],
                    "ranges_sha256": ranges.digest,
                    "ranges": ranges.summary,
                    "source_bundle": bundle.digest,
                    "families": {family: dict(counts) for family, counts in sorted(report.families.items())},
                    "skipped": report.skipped,
                },
                tools={**manifest.tools, "onnx_ir": version("onnx_ir")},
                engines={},
                files=list_files(folder),
            ),
        )
    return Bundle.open(out)
