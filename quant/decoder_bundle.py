"""A bundle whose VAE decoder convolves in INT8, for engines that gain by it: OpenVINO on a CPU (docs/benchmarks.md).

Only the decoder, since every frame of a clip goes through it. Activations are static, per tensor and symmetric, filters
per output channel, to nearest; scales are the largest values of a few clips, the same in both graphs of the stream. The
decoder is then held against the bundle's own on clips that it was not calibrated on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from reelquant.quant.calibration.calibrate import hash_prompts
from reelquant.quant.calibration.data import CalibrationData
from reelquant.quant.calibration.ranges import HIGH, LOW
from reelquant.quant.calibration.watch import at_own_steps
from reelquant.quant.derive import Derivation, derive_bundle
from reelquant.quant.graph.convolutions import convolution_nodes
from reelquant.quant.graph.graph_files import load_mapped, save_graphs
from reelquant.quant.passes.mark_bf16 import PASS as BF16
from reelquant.quant.passes.mark_bf16 import mark_bf16
from reelquant.quant.passes.observe import observe
from reelquant.quant.passes.quantize_convolutions import quantize_convolutions
from reelquant.quant.sections import VAE_DECODER
from reelquant.runtime.bundle import Bundle
from reelquant.runtime.bundle.support import Support
from reelquant.runtime.engines.options import EngineOptions
from reelquant.runtime.engines.registry import open_onnx
from reelquant.runtime.engines.session import BF16_ALL, Array
from reelquant.runtime.errors import AccuracyError, BadInput, BundleError
from reelquant.runtime.files.atomic import check_free, scratch_folder
from reelquant.runtime.models.cogvideox.vae import VaeDecoder
from reelquant.runtime.pipeline import Pipeline
from reelquant.runtime.progress import SILENT, Progress
from reelquant.runtime.request import Request
from reelquant.runtime.sizes import Size

DECODER, PASS, INT8 = VAE_DECODER, "quantize_convolutions", "int8"
# Frames further than this from fp32's are refused, dB. The demo's are 46 dB away.
LEAST_PSNR = 35.0


@dataclass(frozen=True)
class DecoderTrial:
    """Scales are of the first ``prompts`` of ``data``, ``steps`` steps each; frames of the last ``held_out`` are compared.

    ``size`` is of all these clips, without it the bundle's. ``bf16``: what is not INT8 is computed in it where the CPU has units.
    """

    data: str = "general"
    prompts: int = 4
    held_out: int = 1
    steps: int = 10
    seed: int = 0
    engine: str = "openvino"
    size: Size | None = None
    bf16: bool = False

    def requests(self, task: str) -> tuple[list[Request], list[Request]]:
        """Those for scales, and those held out.

        Raises:
            BadInput: there are too few prompts, or images.
        """
        data = CalibrationData.load(self.data)
        usable = data.usable(task)
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
    check_decoder(bundle)
    check_free(out, replace_out)
    seen, unseen = trial.requests(bundle.manifest.task)
    bundle.check_hashes()  # before the sampling, not after it
    pipeline = Pipeline(bundle, EngineOptions(trial.engine))
    clips = []
    with progress.stage("sample", len(seen) + len(unseen)) as advance:
        for request in at_own_steps((*seen, *unseen), bundle.manifest.defaults):
            clips.append(pipeline.sample(request))
            advance()
    del pipeline
    prompts = hash_prompts([request.prompt for request in seen])
    facts = {**asdict(trial), "data": Path(trial.data).name, "prompts_sha256": prompts}
    with derive_bundle(bundle, out, [DECODER], replace_out, checked=True) as derived:
        convolve_in_int8(derived, clips[: len(seen)], clips[len(seen) :], trial.engine, facts, progress, trial.bf16)
    return Bundle.open(out)


def check_decoder(bundle: Bundle) -> None:
    """Raises:
    BadInput: the bundle computes in 16 bit, or its decoder is quantized already.
    """
    manifest = bundle.manifest
    if manifest.base != "fp32":
        raise BadInput(f"{bundle.path} computes in {manifest.base}; give a bundle whose base is fp32")
    if manifest.components[DECODER].formats:
        raise BadInput(f"the decoder of {bundle.path} is quantized already; start from the bundle it was made from")


def convolve_in_int8(
    derived: Derivation,
    seen: Sequence[Array],
    unseen: Sequence[Array],
    engine: str,
    trial: Mapping[str, Any],
    progress: Progress = SILENT,
    bf16: bool = False,
) -> float:
    """Write the decoder of a bundle in the making, and return how far its frames are from fp32's, dB.

    Scales are of the clips ``seen``, frames of those ``unseen``: scaled latents float32 [latent_frames, channels, h, w], decoded on
    ``engine``. ``trial`` says in the manifest what clips they are. With ``bf16`` all that is not INT8 is computed in that where the CPU
    has units for it, in this trial too.

    Raises:
        BundleError: a filter is infinite or NaN.
        AccuracyError: the frames are further off than ``LEAST_PSNR``.
    """
    bundle = derived.bundle
    largest = largest_fed(bundle, seen, derived.folder, engine, progress)
    models = derived.models(DECODER)
    counts = {graph: quantize_convolutions(model, largest) for graph, model in models.items()}
    if bf16:
        for model in models.values():
            mark_bf16(model, BF16_ALL)
    facts = _tried(derived, models, "INT8 convolutions take", unseen, engine, trial, progress)
    derived.formats(DECODER, {INT8: Support()})
    said = {BF16: BF16_ALL} if bf16 else {}
    derived.note(DECODER, {graph: {PASS: {"convolutions": count, **facts}, **said} for graph, count in counts.items()})
    return float(facts["psnr"])


def compute_in_bf16(
    derived: Derivation, unseen: Sequence[Array], engine: str, trial: Mapping[str, Any], progress: Progress = SILENT
) -> float:
    """As :func:`convolve_in_int8`, but all of the decoder in bf16 where the CPU has units for it, and nothing in INT8.

    Raises:
        AccuracyError: the frames are further off than ``LEAST_PSNR``.
    """
    models = derived.models(DECODER)
    for model in models.values():
        mark_bf16(model, BF16_ALL)
    facts = _tried(derived, models, "bf16 takes", unseen, engine, trial, progress)
    derived.note(DECODER, {graph: {BF16: BF16_ALL, "bf16_trial": facts} for graph in models})
    return float(facts["psnr"])


def _tried(
    derived: Derivation,
    models: Mapping[str, ir.Model],
    what: str,
    unseen: Sequence[Array],
    engine: str,
    trial: Mapping[str, Any],
    progress: Progress,
) -> dict[str, Any]:
    """Write ``models`` as the decoder, and say how far its frames of the latents ``unseen`` are from those of the bundle's own.

    Raises:
        AccuracyError: further than ``LEAST_PSNR``; the message begins with ``what`` took them there.
    """
    bundle, frames = derived.bundle, list[list[Array]]()
    part = derived.write(DECODER, models)
    with progress.stage("compare", 2 * len(unseen)) as advance:
        for side in (bundle.path, derived.folder):
            decoder = _decoder(bundle, {graph: side / file for graph, file in part.graphs.items()}, engine)
            frames.append([])
            for latents in unseen:
                frames[-1] += decoder.decode(latents)
                advance()
    psnr = frames_psnr(*frames)
    if not psnr >= LEAST_PSNR:
        raise AccuracyError(
            f"{what} the frames of {bundle.path} to {psnr:.1f} dB of fp32's, and {LEAST_PSNR:.0f} dB is the limit; keep this "
            "decoder in fp32"
        )
    return {"psnr": round(psnr, 2), "limit": LEAST_PSNR, "trial": dict(trial)}


def largest_fed(
    bundle: Bundle, clips: Sequence[Array], beside: Path, engine: str, progress: Progress = SILENT
) -> dict[str, float]:
    """The largest magnitude that every convolution is fed in these clips of scaled latents, by the convolution's name.

    Observed copies of the decoder's graphs lie beside ``beside`` for that time.

    Raises:
        BundleError: what one is fed is not finite.
    """
    graphs, observed = {}, {}
    for name in bundle.manifest.components[DECODER].graphs:
        graphs[name] = load_mapped(bundle.graph(DECODER, name))
        observed[name] = {found.name: found.activation for found in convolution_nodes(graphs[name])}
        observe(graphs[name], observed[name].values(), histograms=False)
    largest: dict[str, float] = {}
    with scratch_folder(beside, "observed") as folder, progress.stage("calibrate", len(clips)) as advance:
        files = save_graphs(folder / DECODER, graphs)
        decoder = _decoder(bundle, {name: folder / file for name, file in files.items()}, engine)
        for latents in clips:
            for graph, results in decoder.results(latents):
                for name, activation in observed[graph].items():
                    found = float(np.maximum(results[activation + HIGH], -results[activation + LOW]).max())
                    if not np.isfinite(found):
                        raise BundleError(
                            f"{name} of the decoder is fed values that are not finite; check the checkpoint"
                        )
                    largest[name] = max(largest.get(name, 0.0), found)
            advance()
    return largest


def frames_psnr(found: Sequence[Array], wanted: Sequence[Array]) -> float:
    """Of frames as they are shown, -1…1, all arrays (of one shape each) together, dB."""
    pairs = zip(found, wanted, strict=True)
    squares = [np.square(a.clip(-1, 1) - b.clip(-1, 1), dtype=np.float64).mean() for a, b in pairs]
    return float(10 * np.log10(4 / max(float(np.mean(squares)), 1e-20)))


def _decoder(bundle: Bundle, paths: Mapping[str, Path], engine: str) -> VaeDecoder:
    graphs = {name: open_onnx(engine, path) for name, path in paths.items()}
    return VaeDecoder(bundle, EngineOptions(engine), graphs=graphs)
