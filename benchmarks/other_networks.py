"""What 8 bit would do to the networks that stay high: the VAE's decoder and the text encoder.

    make peers && python -m benchmarks.other_networks --json

``vae``: the decoder of one chunk with INT8 convolutions, by NNCF (all of them) and as ``reelquant quantize-decoder`` makes
them, calibrated on the chunk or its clip (of the 2B-sized one: random latents and weights), against fp32: time in
turns, medians and the spread of the ratio, and what the frames lose. ``text_encoder``: weights stored as ``export
--text-weights`` does: bytes, time, and the relative L2 of the embeddings and of the transformer's velocity that follows.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.engines import fp32_bundle
from benchmarks.peers import PYTHON, hand_over, quantized_by
from benchmarks.variants import VARIANTS
from demo.fidelity import tasks
from reelquant.quant.decoder_bundle import frames_psnr, largest_fed
from reelquant.quant.evaluation.teacher import Difference, Trial
from reelquant.quant.graph.graph_files import load_mapped, save_graphs
from reelquant.quant.passes.quantize_convolutions import quantize_convolutions
from reelquant.quant.passes.store_weights import STORAGES, store_weights
from reelquant.runtime import load_pipeline
from reelquant.runtime.bundle import Bundle
from reelquant.runtime.engines.registry import open_onnx
from reelquant.runtime.tune.timing import in_turns, ratios


def compared(taken: Sequence[float], base: Sequence[float]) -> dict[str, Any]:
    ratio, *spread = ratios(taken, base)
    return {"seconds_ratio": round(ratio, 3), "spread": [round(one, 3) for one in spread]}


def vae(
    name: str,
    bundle: Bundle,
    latents: NDArray[np.float32],
    peers: Path,
    repeats: int,
    wanted: Sequence[tuple[str, str]],
) -> list[dict[str, Any]]:
    """``latents`` are of one clip, scaled [5, channels, h, w]; its second and last chunk is timed and compared.

    ``wanted`` are quantizers and the engines that run what they make.
    """
    graph = bundle.graph("vae_decoder", "next")
    chunks = latents.swapaxes(0, 1)[None] / np.float32(bundle.manifest.vae["scaling_factor"])
    results = open_onnx("openvino", bundle.graph("vae_decoder", "first")).run({"latents": chunks[:, :, :3]})
    unscaled = chunks[:, :, 3:]
    caches = {key.removeprefix("next_"): value for key, value in results.items() if key.startswith("next_")}
    sample = {"latents": np.ascontiguousarray(unscaled), **caches}
    rows = []
    with TemporaryDirectory() as folder:
        work = Path(folder)
        hand_over(work, graph, [sample], linears=())
        ours = load_mapped(graph)
        quantize_convolutions(ours, largest_fed(bundle, [latents], work / "graphs", "openvino"))
        save_graphs(work / "ours", {"next": ours})
        made = {"nncf": quantized_by("nncf", "int8", work, peers), "reelquant": work / "ours" / "next.onnx"}
        for quantizer, engine in wanted:
            high, low = open_onnx(engine, graph), open_onnx(engine, made[quantizer])
            taken = in_turns({"high": (high, sample), "low": (low, sample)}, repeats)
            psnr = frames_psnr([low.run(sample)["frames"]], [high.run(sample)["frames"]])
            row = {"network": f"{name} vae_decoder", "quantizer": quantizer, "precision": "int8", "engine": engine}
            rows.append({**row, "psnr": round(psnr, 1), **compared(taken["low"], taken["high"])})
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


def text_encoder(bundle: Bundle, repeats: int) -> list[dict[str, Any]]:
    tokenizer = load_pipeline(bundle.path, "onnxruntime").tokenizer
    captions = [task.scene.caption for task in tasks(8)]
    ids = np.stack([np.asarray(tokenizer.encode(caption), np.int64).reshape(-1) for caption in captions])
    feeds = {"input_ids": ids}
    step = Trial("demo", prompts=1, steps=2).record(bundle)[0]
    transformer = open_onnx("openvino", bundle.graph("transformer", "main"))
    rows = []
    with TemporaryDirectory() as folder:
        plans, sizes = {}, {}
        for storage in STORAGES:
            model = load_mapped(bundle.graph("text_encoder", "main"))
            store_weights(model, storage)
            save_graphs(Path(folder) / storage, {"main": model})
            sizes[storage] = sum(path.stat().st_size for path in (Path(folder) / storage).iterdir())
            plans[storage] = open_onnx("openvino", Path(folder) / storage / "main.onnx")
        taken = in_turns({key: (plan, feeds) for key, plan in plans.items()}, repeats)
        embeds = {storage: plan.run(feeds)["embeds"] for storage, plan in plans.items()}
        velocity = {}
        for storage, found in embeds.items():
            text = np.ascontiguousarray(found[:2])
            velocity[storage] = transformer.run({**{n: step.feeds[n] for n in transformer.inputs}, "text": text})[
                "velocity"
            ]
    for storage in STORAGES[1:]:
        row = {"network": "demo-t2v text_encoder", "precision": storage, "bytes_ratio": sizes[storage] / sizes["fp32"]}
        row["embeds_rel_l2"] = Difference.of(embeds[storage], embeds["fp32"]).rel_l2
        row["velocity_rel_l2"] = Difference.of(velocity[storage], velocity["fp32"]).rel_l2
        rows.append({**row, **compared(taken[storage], taken["fp32"])})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundles", type=Path, default=Path("build"), help="where make export put demo-t2v-fp32")
    parser.add_argument("--work", type=Path, default=Path("build/quantizers"), help="keeps the random VAE")
    parser.add_argument("--peers", type=Path, default=PYTHON, help="made by make peers")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    demo = Bundle.open(arguments.bundles / "demo-t2v-fp32")
    last = Trial("demo", prompts=1, steps=10).record(demo)[-1]
    latents = last.feeds["latents"][0]
    large = fp32_bundle(arguments.work, "cogvideox-2b", VARIANTS["cogvideox-2b"], ("vae_decoder",))
    noise = np.random.default_rng(0).standard_normal((5, 16, 16, 24), dtype=np.float32)
    noise *= np.float32(large.manifest.vae["scaling_factor"])
    on_openvino = [("nncf", "openvino"), ("reelquant", "openvino")]
    everywhere = [*on_openvino, ("reelquant", "onnxruntime")]
    rows = vae("demo-t2v", demo, latents, arguments.peers, arguments.repeats, everywhere)
    rows += vae("cogvideox-2b", large, noise, arguments.peers, max(3, arguments.repeats // 5), on_openvino)
    rows += text_encoder(demo, arguments.repeats)
    print(json.dumps({"rows": rows}, indent=1) if arguments.json else "\n".join(map(str, rows)))


if __name__ == "__main__":
    main()
