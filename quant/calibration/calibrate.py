"""The second stage: run the fp32 bundle over prompts and timesteps, and write down what its products were fed.

No torch and no second implementation: the bundle's own pipeline makes clips, with reductions added to its transformer
graph. Every clip visits all timesteps of its run, and every step computes both halves of guidance where the bundle guides, so the
samples are stratified over timestep and over conditional/unconditional by construction.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields

import numpy as np
import onnx_ir as ir

from reelquant.quant.calibration.channels import Channels
from reelquant.quant.calibration.data import CalibrationData
from reelquant.quant.calibration.plan import CalibrationPlan
from reelquant.quant.calibration.ranges import CHANNEL, HIGH, HISTOGRAM, LOW, Provenance, Ranges, Samples
from reelquant.quant.calibration.watch import at_own_steps, sample_watched
from reelquant.quant.graph.attentions import attention_nodes
from reelquant.quant.graph.graph_files import WEIGHTS, load_graph
from reelquant.quant.graph.linears import linear_nodes
from reelquant.quant.graph.scratch_session import scratch_session
from reelquant.quant.passes.observe import observe
from reelquant.runtime.bundle import Bundle
from reelquant.runtime.bundle.manifest import Manifest
from reelquant.runtime.engines.options import EngineOptions
from reelquant.runtime.engines.session import Array, Feeds
from reelquant.runtime.errors import BadInput
from reelquant.runtime.models import model_of
from reelquant.runtime.pipeline import Pipeline
from reelquant.runtime.progress import SILENT, Progress


def calibrate(bundle: Bundle, data: CalibrationData, plan: CalibrationPlan, progress: Progress = SILENT) -> Ranges:
    """Observe the input of every linear of the transformer, and Q, K and V of every attention.

    Raises:
        BadInput: too few prompts or images, a prompt too long for the model, the bundle is already quantized, or clips of the
            plan's size cannot be made here.
    """
    manifest = bundle.manifest
    if manifest.precision != "fp32":
        raise BadInput(f"{bundle.path} is {manifest.precision}; calibrate the fp32 bundle that export wrote")
    data.first(plan.prompts)
    size = plan.clip_size(manifest.defaults, model_of(manifest))
    asked = data.requests(manifest.task, plan.prompts, plan.seed, plan.steps, size)
    requests = at_own_steps(asked, manifest.defaults)
    pipeline = Pipeline(bundle, EngineOptions(plan.engine))
    data.check_tokens(plan.prompts, pipeline.tokenizer)
    recorder = Recorder()
    weights = bundle.graph("transformer", "main").parent / WEIGHTS
    with scratch_session(observed_transformer(bundle), bundle.path, plan.engine, weights) as transformer:
        clips = sample_watched(pipeline, transformer, requests, recorder.see, progress, "calibrate")
    provenance = Provenance(
        task=manifest.task,
        seed=plan.seed,
        prompts=plan.prompts,
        data_sha256=data.digest(manifest.task, plan.prompts),
        steps=plan.steps,
        **asdict(size),
        engine=plan.engine,
        engine_version=pipeline.engine.version(),
        source_digest=bundle.digest,
        sampling=sampling_of(manifest, plan.steps),
    )
    return recorder.ranges(provenance, clips)


def sampling_of(manifest: Manifest, steps: int) -> str:
    """How clips of ``steps`` steps for calibration are sampled: bundles of the same networks can differ in it."""
    made = manifest.defaults
    own = f"timesteps {', '.join(map(str, made.timesteps))}" if made.timesteps else f"{made.steps} steps"
    at = own if made.few_steps else f"{steps} steps"
    return f"{manifest.scheduler['_class_name']}, guidance {made.guidance:g}, {at}"


def quantizable_values(model: ir.Model) -> list[str]:
    """The names of all values that a recipe may want to quantize, each once."""
    names = [linear.activation for linear in linear_nodes(model)]
    for attention in attention_nodes(model):
        names += [attention.query, attention.key, attention.value]
    return list(dict.fromkeys(names))


def hash_prompts(prompts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(prompts).encode()).hexdigest()


@dataclass
class Recorder:
    """Takes the observers' outputs (:func:`observed_transformer`) out of every run and keeps them."""

    timestep: list[Array] = field(default_factory=list)
    conditional: list[Array] = field(default_factory=list)
    prompts: list[Array] = field(default_factory=list)
    seen: dict[str, list[Array]] = field(default_factory=dict)
    totals: dict[str, Array] = field(default_factory=dict)
    runs: int = 0

    def see(self, clip: int, feeds: Feeds, results: dict[str, Array]) -> None:
        batch = len(feeds["timestep"])
        self.timestep.append(feeds["timestep"])
        self.conditional.append(np.arange(batch) >= batch // 2)  # the unconditional half comes first
        self.prompts.append(np.full(batch, clip, np.int64))
        for name in list(results):
            if name.endswith((LOW, HIGH)):
                self.seen.setdefault(name, []).append(results.pop(name))
            elif name.endswith(HISTOGRAM) or CHANNEL in name:
                # Lowest and highest of all runs; sums of everything else.
                merge = {CHANNEL + "low": np.minimum, CHANNEL + "high": np.maximum}.get(
                    name[name.rfind("::") :], np.add
                )
                found = results.pop(name)
                if name in self.totals:
                    merge(self.totals[name], found, out=self.totals[name])
                else:  # a copy: what an engine returns may hold all of its memory
                    self.totals[name] = np.array(found)
        self.runs += 1

    def ranges(self, provenance: Provenance, clips: Sequence[Array] = ()) -> Ranges:
        samples = Samples(np.concatenate(self.timestep), np.concatenate(self.conditional), np.concatenate(self.prompts))
        arrays = {name: np.concatenate(values).astype(np.float32) for name, values in self.seen.items()}
        histograms = {name.removesuffix(HISTOGRAM): v for name, v in self.totals.items() if name.endswith(HISTOGRAM)}
        observed = [name.removesuffix(CHANNEL + "mean") for name in self.totals if name.endswith(CHANNEL + "mean")]
        return Ranges(
            provenance,
            samples,
            low={name.removesuffix(LOW): array for name, array in arrays.items() if name.endswith(LOW)},
            high={name.removesuffix(HIGH): array for name, array in arrays.items() if name.endswith(HIGH)},
            channels={name: self._channels(name, histograms[name]) for name in observed},
            histograms=histograms,
            clips=tuple(clips),
        )

    def _channels(self, name: str, histogram: Array) -> Channels:
        # Taken out: moments of a large model are gigabytes.
        low, high, mean, second = (self.totals.pop(f"{name}{CHANNEL}{part.name}") for part in fields(Channels))
        rows = histogram.sum() / len(low)  # of all runs: a histogram counts every value
        second /= np.float32(rows)
        return Channels(low, high, (mean / self.runs).astype(np.float32), second)


def observed_transformer(bundle: Bundle) -> ir.Model:
    """The transformer's graph with observers.

    Raises:
        BundleError: a file was changed.
    """
    bundle.check_hashes(lambda name: name.startswith("transformer/"))
    model = load_graph(bundle.graph("transformer", "main"))
    observe(model, quantizable_values(model), {linear.activation: linear.shape[0] for linear in linear_nodes(model)})
    return model
