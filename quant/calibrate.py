"""The second stage: run the fp32 bundle over prompts and timesteps, and write down what its products were fed.

No torch and no second implementation: the bundle's own pipeline makes clips, with reductions added to its transformer
graph. Every clip visits all timesteps of its run, and every step computes both halves of guidance, so the samples are
stratified over timestep and over conditional/unconditional by construction.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

import numpy as np
import onnx_ir as ir

from reelquant.quant.attentions import attention_nodes
from reelquant.quant.blockwise import blockwise
from reelquant.quant.calibration_data import CalibrationData
from reelquant.quant.calibration_plan import CalibrationPlan
from reelquant.quant.graph_files import WEIGHTS, load_graph
from reelquant.quant.linears import linear_nodes
from reelquant.quant.passes.observe import observe
from reelquant.quant.ranges import HIGH, LOW, Provenance, Ranges, Samples
from reelquant.quant.watch import sample_watched
from reelquant.runtime.atomic import link_or_copy, scratch_folder
from reelquant.runtime.bundle import Bundle
from reelquant.runtime.engine import Array, Feeds, Plan, engine_version, open_plan
from reelquant.runtime.engine_memory import ENGINE_MEMORY
from reelquant.runtime.errors import BadInput
from reelquant.runtime.memory import available_memory
from reelquant.runtime.pipeline import Pipeline
from reelquant.runtime.progress import SILENT, Progress

_SPARE = 2 << 30  # for activations and everything else


def calibrate(bundle: Bundle, data: CalibrationData, plan: CalibrationPlan, progress: Progress = SILENT) -> Ranges:
    """Observe the input of every linear of the transformer, and Q, K and V of every attention.

    Raises:
        BadInput: too few prompts or images, a prompt too long for the model, guidance is off, the bundle is already
            quantized, or clips of the plan's size cannot be made here.
    """
    manifest = bundle.manifest
    if manifest.precision != "fp32":
        raise BadInput(f"{bundle.path} is {manifest.precision}; calibrate the fp32 bundle that export wrote")
    if manifest.defaults.guidance <= 1:
        raise BadInput(f"{bundle.path} has guidance off, so it has no unconditional half to calibrate")
    prompts = data.first(plan.prompts)
    size = plan.clip_size(manifest.defaults, manifest.geometry, manifest.transformer, manifest.text_tokens)
    requests = data.requests(manifest.task, plan.prompts, plan.seed, plan.steps, size)
    pipeline = Pipeline(bundle, plan.engine)
    data.check_tokens(plan.prompts, pipeline.tokenizer)
    recorder = _Recorder()
    with _observed_transformer(bundle, plan.engine) as transformer:
        sample_watched(pipeline, transformer, requests, recorder.see, progress, "calibrate")
    provenance = Provenance(
        task=manifest.task,
        seed=plan.seed,
        prompts=plan.prompts,
        prompts_sha256=hash_prompts(prompts),
        steps=plan.steps,
        **asdict(size),
        engine=plan.engine,
        engine_version=engine_version(plan.engine),
        source_digest=bundle.digest,
    )
    return recorder.ranges(provenance)


def quantizable_values(model: ir.Model) -> list[str]:
    """The names of all values that a recipe may want to quantize, each once."""
    names = [linear.activation for linear in linear_nodes(model)]
    for attention in attention_nodes(model):
        names += [attention.query, attention.key, attention.value]
    return list(dict.fromkeys(names))


def hash_prompts(prompts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(prompts).encode()).hexdigest()


@dataclass
class _Recorder:
    """Takes the observers' outputs out of every run and keeps them."""

    timestep: list[Array] = field(default_factory=list)
    conditional: list[Array] = field(default_factory=list)
    prompts: list[Array] = field(default_factory=list)
    seen: dict[str, list[Array]] = field(default_factory=dict)

    def see(self, clip: int, feeds: Feeds, results: dict[str, Array]) -> None:
        batch = len(feeds["timestep"])
        self.timestep.append(feeds["timestep"])
        self.conditional.append(np.arange(batch) >= batch // 2)  # the unconditional half comes first
        self.prompts.append(np.full(batch, clip, np.int64))
        for name in list(results):
            if name.endswith((LOW, HIGH)):
                self.seen.setdefault(name, []).append(results.pop(name))

    def ranges(self, provenance: Provenance) -> Ranges:
        samples = Samples(np.concatenate(self.timestep), np.concatenate(self.conditional), np.concatenate(self.prompts))
        arrays = {name: np.concatenate(values).astype(np.float32) for name, values in self.seen.items()}
        return Ranges(
            provenance,
            samples,
            low={name.removesuffix(LOW): array for name, array in arrays.items() if name.endswith(LOW)},
            high={name.removesuffix(HIGH): array for name, array in arrays.items() if name.endswith(HIGH)},
        )


@contextmanager
def _observed_transformer(bundle: Bundle, engine: str) -> Iterator[Plan]:
    """Load the transformer with observers; its graph is rewritten into a scratch folder, its weights are linked.

    Where its weights would take most of the memory that is left, it runs one block at a time.
    """
    path = bundle.graph("transformer", "main")
    bundle.check_hashes(lambda name: name.startswith("transformer/"))
    model = load_graph(path)
    observe(model, quantizable_values(model))
    # Beside the bundle: on the same disk the weights can be linked, and need not be copied.
    with scratch_folder(bundle.path, "calibrate") as folder:
        observed = folder / "observed.onnx"
        ir.save(model, observed)
        link_or_copy(path.parent / WEIGHTS, observed.parent / WEIGHTS)
        if fits((path.parent / WEIGHTS).stat().st_size, engine):
            yield open_plan(engine, observed)
        else:
            with blockwise(observed, engine) as plan:
                yield plan


def fits(weights: int, engine: str) -> bool:
    """Whether ``engine`` can hold float32 ``weights`` (bytes) in memory here."""
    available = available_memory()
    return available is None or ENGINE_MEMORY[engine].high.weights * weights + _SPARE < available
