"""A bundle whose VAE decoder convolves in INT8, for engines that gain by it: OpenVINO on a CPU (docs/benchmarks.md).

Only the decoder, since every frame of a clip goes through it. Activations are static, per tensor and symmetric, filters
per output channel, to nearest; scales are the largest values of a few clips, the same in both graphs of the stream. The
decoder is then held against the bundle's own on clips that it was not calibrated on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from reelquant.quant.calibrate import hash_prompts
from reelquant.quant.calibration_data import CalibrationData
from reelquant.quant.convolutions import convolution_nodes
from reelquant.quant.graph_files import load_mapped, save_graphs
from reelquant.quant.passes.observe import observe
from reelquant.quant.passes.quantize_convolutions import quantize_convolutions
from reelquant.quant.quantize import write_component
from reelquant.quant.ranges import HIGH, LOW
from reelquant.runtime.atomic import check_free, partial_folder, scratch_folder
from reelquant.runtime.bundle import Bundle, list_files, write_manifest
from reelquant.runtime.engine import Array, Feeds, Plan, open_plan
from reelquant.runtime.errors import AccuracyError, BadInput, BundleError
from reelquant.runtime.pipeline import Pipeline
from reelquant.runtime.progress import SILENT, Progress
from reelquant.runtime.request import Request
from reelquant.runtime.sizes import Size

DECODER, PASS = "vae_decoder", "quantize_convolutions"
# Frames further than this from fp32's are refused, dB. The demo's are 43 dB away.
LEAST_PSNR = 35.0


@dataclass(frozen=True)
class DecoderTrial:
    """Scales are of the first ``prompts`` of ``data``, ``steps`` steps each; frames of the last ``held_out`` are compared.

    ``size`` is of all these clips, without it the bundle's.
    """

    data: str = "general"
    prompts: int = 4
    held_out: int = 1
    steps: int = 10
    seed: int = 0
    engine: str = "openvino"
    size: Size | None = None

    def requests(self, task: str) -> tuple[list[Request], list[Request]]:
        """Those for scales, and those held out.

        Raises:
            BadInput: there are too few prompts, or images.
        """
        data = CalibrationData.load(self.data)
        usable = min(len(data.prompts), len(data.images)) if task == "i2v" else len(data.prompts)
        if usable < self.prompts + self.held_out:
            what = "prompts with an image" if task == "i2v" else "prompts"
            more = f"{self.prompts} are for scales and {self.held_out} to compare"
            raise BadInput(f"calibration data {self.data} has {usable} {what}, and {more}; add some, or take fewer")
        last = data.last(self.held_out, task)
        return (
            data.requests(task, self.prompts, self.seed, self.steps, self.size),
            last.requests(task, self.held_out, self.seed + self.prompts, self.steps, self.size),
        )


def quantize_decoder(
    bundle: Bundle, out: Path, trial: DecoderTrial, replace_out: bool = False, progress: Progress = SILENT
) -> Bundle:
    """Write ``out``: ``bundle`` with its VAE decoder's convolutions in INT8; what was lost stands in the manifest.

    Raises:
        BadInput: the bundle computes in 16 bit, its decoder is quantized already, a clip cannot be made, or ``out`` is taken.
        BundleError: a file was changed, or a filter is infinite or NaN.
        AccuracyError: the frames are further off than ``LEAST_PSNR``; nothing is written.
    """
    manifest = bundle.manifest
    before = manifest.components[DECODER]
    if manifest.base != "fp32":
        raise BadInput(f"{bundle.path} computes in {manifest.base}; give a bundle whose base is fp32")
    if any(PASS in passes for passes in before.passes.values()):
        raise BadInput(f"the decoder of {bundle.path} is quantized already; start from the bundle it was made from")
    check_free(out, replace_out)
    seen, unseen = trial.requests(manifest.task)
    bundle.check_hashes()
    pipeline = Pipeline(bundle, trial.engine)
    clips = []
    with progress.stage("sample", len(seen) + len(unseen)) as advance:
        for request in (*seen, *unseen):
            sampled = pipeline.sample(request, pipeline.settings(request))
            clips.append(sampled / np.float32(manifest.vae["scaling_factor"]))
            advance()
    del pipeline
    with partial_folder(out, replace_out) as folder:
        high = {graph: bundle.graph(DECODER, graph) for graph in before.graphs}
        largest = largest_fed(high, clips[: len(seen)], folder, trial.engine, progress)
        models = {graph: load_mapped(path) for graph, path in high.items()}
        counts = {graph: quantize_convolutions(model, largest) for graph, model in models.items()}
        part = write_component(folder, DECODER, models, {}, before)
        written = {graph: folder / file for graph, file in part.graphs.items()}
        psnr = _psnr(high, written, clips[len(seen) :], trial.engine, progress)
        if not psnr >= LEAST_PSNR:
            raise AccuracyError(
                f"INT8 convolutions take the frames of {bundle.path} to {psnr:.1f} dB of fp32's, and {LEAST_PSNR:.0f} dB is "
                "the limit; keep this decoder in fp32"
            )
        prompts = hash_prompts([request.prompt for request in seen])
        made = {**asdict(trial), "data": Path(trial.data).name, "prompts_sha256": prompts}
        facts = {"psnr": round(psnr, 2), "limit": LEAST_PSNR, "trial": made}
        passes = {
            graph: {**before.passes.get(graph, {}), PASS: {"convolutions": count, **facts}}
            for graph, count in counts.items()
        }
        bundle.copy_files(folder, lambda name: not name.startswith((f"{DECODER}/", "engines/")))
        components = {**manifest.components, DECODER: replace(part, passes=passes)}
        write_manifest(folder, replace(manifest, components=components, engines={}, files=list_files(folder)))
    return Bundle.open(out)


def stream(plans: Mapping[str, Plan], latents: Array) -> Iterator[tuple[str, Feeds, dict[str, Array]]]:
    """Run a decoder's graphs over unscaled ``latents`` [latent_frames, channels, h, w]: of each chunk the graph's name, what it
    was fed and what it answered.
    """
    values = np.ascontiguousarray(np.moveaxis(latents, 1, 0)[None])
    caches: dict[str, Array] = {}
    start = 0
    while start < values.shape[2]:
        name, frames = ("next", 2) if start else ("first", 3)
        feeds = {"latents": np.ascontiguousarray(values[:, :, start : start + frames]), **caches}
        results = plans[name].run(feeds)
        yield name, feeds, results
        caches = {key.removeprefix("next_"): value for key, value in results.items() if key.startswith("next_cache")}
        start += frames


def largest_fed(
    paths: Mapping[str, Path], clips: Sequence[Array], beside: Path, engine: str, progress: Progress = SILENT
) -> dict[str, float]:
    """The largest magnitude that every convolution is fed in these clips of unscaled latents, by the convolution's name.

    ``paths`` are the decoder's graphs by name; observed copies of them lie beside ``beside`` for that time.

    Raises:
        BundleError: what one is fed is not finite.
    """
    graphs, observed = {}, {}
    for name, path in paths.items():
        graphs[name] = load_mapped(path)
        observed[name] = {found.name: found.activation for found in convolution_nodes(graphs[name])}
        observe(graphs[name], observed[name].values(), histograms=False)
    largest: dict[str, float] = {}
    with scratch_folder(beside, "observed") as folder, progress.stage("calibrate", len(clips)) as advance:
        files = save_graphs(folder / DECODER, graphs)
        plans = {name: open_plan(engine, folder / file) for name, file in files.items()}
        for latents in clips:
            for graph, _, results in stream(plans, latents):
                for name, activation in observed[graph].items():
                    found = float(np.maximum(results[activation + HIGH], -results[activation + LOW]).max())
                    if not np.isfinite(found):
                        raise BundleError(
                            f"{name} of the decoder is fed values that are not finite; check the checkpoint"
                        )
                    largest[name] = max(largest.get(name, 0.0), found)
            advance()
    return largest


def _psnr(
    high: Mapping[str, Path], low: Mapping[str, Path], clips: Sequence[Array], engine: str, progress: Progress
) -> float:
    """Of the frames of these clips as they are shown, -1…1, all together, dB."""
    sides: list[list[Array]] = []
    with progress.stage("compare", 2 * len(clips)) as advance:
        for graphs in (high, low):
            plans = {name: open_plan(engine, path) for name, path in graphs.items()}
            frames: list[Array] = []
            for latents in clips:
                frames += [results["frames"].clip(-1, 1) for _, _, results in stream(plans, latents)]
                advance()
            sides.append(frames)
    squares = [np.square(a - b, dtype=np.float64).mean() for a, b in zip(*sides, strict=True)]
    return float(10 * np.log10(4 / max(float(np.mean(squares)), 1e-20)))
