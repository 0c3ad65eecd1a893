"""TensorRT-RTX engines of a public variant at its own size, built without a GPU: memory, bytes and seconds of each.

    python -m benchmarks.engines --like cogvideox-2b --layers 2 --json
    python -m benchmarks.engines --like cogvideox-2b --network transformer --precision fp16 --precision fp8 --json

Weights are random, FP8's ranges are of the graph itself on random inputs. Each build is a process of its own, whose peak
memory is the kernel's figure; ``again_seconds`` is the same build once more, from the cache. ``activation_bytes`` and
``weight_bytes`` are from the builder's log. For the VAE: whole frames, and tiles.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from benchmarks.random_checkpoint import write_checkpoint
from benchmarks.variants import VARIANTS, Variant
from reelquant.export.checkpoint import Checkpoint
from reelquant.export.models.cogvideox.graphs import SAMPLES, transformer_inputs
from reelquant.export.trace_bundle import trace_bundle
from reelquant.quant.calibration.calibrate import Recorder, observed_transformer
from reelquant.quant.calibration.ranges import Provenance, Ranges
from reelquant.quant.graph.blockwise import blockwise
from reelquant.quant.quantize import quantize_bundle
from reelquant.quant.recipe import Recipe
from reelquant.runtime.bundle import Bundle
from reelquant.runtime.bundle.support import BASES
from reelquant.runtime.engines.options import BuildSpec, parse_gpus
from reelquant.runtime.engines.registry import get_engine
from reelquant.runtime.engines.tensorrt.flavor import RTX
from reelquant.runtime.engines.tensorrt.stage import build_engines
from reelquant.runtime.sizes import Size

NETWORKS = ("transformer", "vae_decoder")
_FOLDERS = {"transformer": "transformer", "vae_decoder": "vae", "vae_encoder": "vae", "text_encoder": "text_encoder"}


def fp32_bundle(work: Path, name: str, variant: Variant, networks: tuple[str, ...]) -> Bundle:
    """The named networks of a random checkpoint, traced; made once and kept in ``work``."""
    out = work / f"{name}-{'-'.join(networks)}-fp32"
    if not (out / "manifest.json").exists():
        checkpoint = work / name
        if not (checkpoint / "model_index.json").exists():  # written last
            checkpoint = work / f"{name}-{'-'.join(networks)}"
            write_checkpoint(checkpoint, variant, only=tuple(sorted({_FOLDERS[network] for network in networks})))
        trace_bundle(Checkpoint(checkpoint, name), out, networks=networks)
    return Bundle.open(out)


def random_ranges(bundle: Bundle) -> Ranges:
    """What the transformer's products are fed when it runs on seeded random inputs, one block in memory at a time."""
    path = bundle.graph("transformer", "main")
    observed = path.with_name("observed.onnx")
    recorder = Recorder()
    try:
        ir.save(observed_transformer(bundle), observed)
        inputs = transformer_inputs(bundle.manifest.transformer, SAMPLES[1])
        feeds = {name: value.numpy() for name, value in inputs.items()}
        with blockwise(observed, "onnxruntime") as plan:
            recorder.see(0, feeds, plan.run(feeds))
    finally:
        observed.unlink(missing_ok=True)
    made = Provenance("t2v", 1, 1, "", 1, 9, 64, 32, "onnxruntime", get_engine("onnxruntime").version(), bundle.digest)
    return recorder.ranges(made)


def in_precision(fp32: Bundle, precision: str, base: str) -> Bundle:
    """The bundle in a base or by a recipe, made once and kept beside ``fp32``."""
    out = fp32.path.with_name(f"{fp32.path.name.removesuffix('-fp32')}-{precision}")
    if not (out / "manifest.json").exists():
        if precision in BASES:
            quantize_bundle(fp32, None, None, out, base=precision)
        else:
            recipe = Recipe.load(precision)
            # An engine and its time are the same however weights are rounded, and GPTQ takes minutes at full depth.
            recipe = replace(recipe, method=replace(recipe.method, rounding="nearest"))
            quantize_bundle(fp32, random_ranges(fp32), recipe, out, base=base)
    return Bundle.open(out)


def build(path: str, clip: str, gpus: str, tiled: bool, cache: str) -> list[dict[str, Any]]:
    """Build all engines of a bundle, twice; the evidence of those of its graphs, and the seconds of the second time."""
    size = Size.parse(clip)
    spec = BuildSpec((size,), False, tiled, parse_gpus(gpus), cache=Path(cache))
    built = build_engines(Bundle.open(Path(path)), RTX, spec)
    began = time.monotonic()
    build_engines(built, RTX, spec)
    again = round(time.monotonic() - began, 3)
    return [
        {
            "graph": f"{each['component']}/{each['graph']}",
            "profile": each["profile"],
            "tensor_bytes": each["tensor_bytes"],
            **each["evidence"],
            "again_seconds": again,
        }
        for each in built.manifest.engines[RTX.engine]["engines"]
        if each["component"] in built.manifest.components
    ]


def built_apart(bundle: Bundle, clip: str, gpus: str, tiled: bool, cache: Path) -> list[dict[str, Any]]:
    """As :func:`build`, in a new process, with its peak of memory."""
    code = (
        "import json, resource, sys; from benchmarks import engines\n"
        "rows = engines.build(*json.loads(sys.argv[1]))\n"
        "peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "print(json.dumps([{**row, 'peak_rss_bytes': peak} for row in rows]))"
    )
    arguments = json.dumps([str(bundle.path), clip, gpus, tiled, str(cache)])
    done = subprocess.run([sys.executable, "-c", code, arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"building {bundle.path} failed ({done.returncode}): {done.stderr[-800:]}")
    rows: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--like", choices=VARIANTS, default="cogvideox-2b")
    parser.add_argument("--layers", type=int, help="transformer blocks (default: the variant's)")
    parser.add_argument("--network", action="append", choices=NETWORKS, help="default: both")
    parser.add_argument("--precision", action="append", help="fp16, bf16, or a recipe (default: fp16, bf16, fp8)")
    parser.add_argument("--base", choices=BASES, default="fp16", help="of recipes")
    parser.add_argument("--size", default="49x480x720", help="FRAMESxHEIGHTxWIDTH")
    parser.add_argument("--gpu", default="sm89")
    parser.add_argument("--work", type=Path, default=Path("build/random"), help="where bundles are kept")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    Size.parse(arguments.size)
    variant, name = VARIANTS[arguments.like], arguments.like
    if arguments.layers:
        variant, name = variant.layers(arguments.layers), f"{name}-{arguments.layers}"
    rows = []
    for network in arguments.network or NETWORKS:
        fp32 = fp32_bundle(arguments.work, name, variant, (network,))
        for precision in arguments.precision or ("fp16", "bf16", "fp8"):
            if network != "transformer" and precision not in BASES:
                continue  # recipes are of the transformer
            bundle = in_precision(fp32, precision, arguments.base)
            for tiled in (False,) if network == "transformer" else (False, True):
                for row in built_apart(bundle, arguments.size, arguments.gpu, tiled, arguments.work / "engines"):
                    rows.append({"precision": precision, "tiled": tiled, **row})
                    if not arguments.json:
                        print(
                            f"{row['graph']:18} {precision:5} {'tiles' if tiled else 'whole':6} "
                            f"activations {row['activation_bytes'] / 1e6:9.1f} MB, weights {row['weight_bytes'] / 1e6:9.1f} MB, "
                            f"engine {row['engine_bytes'] / 1e6:9.1f} MB, attention {row['attention']}, "
                            f"{row['build_seconds']:.1f} s, again {row['again_seconds']:.2f} s, "
                            f"peak {row['peak_rss_bytes'] / 1e9:.2f} GB",
                            flush=True,
                        )
    if arguments.json:
        print(json.dumps({"checkpoint": name, "clip": arguments.size, "gpu": arguments.gpu, "rows": rows}))


if __name__ == "__main__":
    main()
