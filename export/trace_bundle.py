"""The first stage: a checkpoint in, a bundle of fp32 graphs out."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx_ir as ir

from reelquant.export.caches import check_in_place
from reelquant.export.checkpoint import Checkpoint
from reelquant.export.models.cogvideox.graphs import COMPONENTS, Graph, component_graphs
from reelquant.export.parity import check_parity, rounding_error
from reelquant.export.passes.attach_weights import attach_weights, fold_transposed_weights
from reelquant.export.passes.early_caches import compute_caches_early
from reelquant.export.passes.name_by_module import name_by_module
from reelquant.export.passes.optimize import optimize
from reelquant.export.sampling import AS_TRAINED, Sampling
from reelquant.export.trace import trace
from reelquant.export.weights import open_weights
from reelquant.quant.graph.graph_files import lay_out_graphs
from reelquant.quant.graph.graph_stats import graph_stats
from reelquant.quant.passes.store_weights import FORMATS, storage_of, store_weights
from reelquant.runtime.bundle import TOKENIZER, Bundle, list_files, write_manifest
from reelquant.runtime.bundle.manifest import Component, Manifest
from reelquant.runtime.files.atomic import npy_bytes, partial_folder
from reelquant.runtime.machine.memory import give_back_at_once
from reelquant.runtime.models.cogvideox.positions import LEARNED
from reelquant.runtime.progress import SILENT, Progress
from reelquant.runtime.sizes import Size

_VAE_KEYS = ("scaling_factor", "invert_scale_latents", "sample_height", "sample_width")
_PREFIX = {"text_encoder": "encoder", "transformer": "transformer", "vae_encoder": "network", "vae_decoder": "network"}


def trace_bundle(
    source: str | Checkpoint,
    out: Path,
    size: Size | None = None,
    replace: bool = False,
    progress: Progress = SILENT,
    text_weights: str = "fp32",
    networks: Sequence[str] = COMPONENTS,
    sampling: Sampling = AS_TRAINED,
) -> Bundle:
    """Trace every network of a checkpoint, check each graph against torch, and write an fp32 bundle.

    ``size`` and ``sampling`` become the bundle's defaults; its graphs serve every size. LoRA are the checkpoint's own. The text
    encoder's weights are stored as ``text_weights`` says: fp32, bf16 or int8. A bundle of fewer ``networks`` renders
    nothing, but each of its graphs can be quantized, built and measured.

    Raises:
        BundleError: the checkpoint cannot be used.
        BadInput: the model cannot make the size or take the steps, or ``out`` exists and ``replace`` is not set.
        AccuracyError: a graph differs from torch.
    """
    checkpoint = source if isinstance(source, Checkpoint) else Checkpoint.open(source)
    defaults = sampling.defaults(checkpoint, size)
    if {"text_encoder", "transformer"} <= set(networks):  # a part of a checkpoint may lack the rest
        checkpoint.check_content()
    with partial_folder(out, replace) as folder:
        components = {}
        with progress.stage("trace", total=len(networks)) as advance:
            for name in networks:
                components[name] = trace_component(checkpoint, name, folder, text_weights)
                advance()
        # Its own save hides a full disk.
        (folder / TOKENIZER).write_text(checkpoint.tokenizer.to_str(pretty=True), encoding="utf-8")
        _write_learned_positions(checkpoint, folder)
        vae = checkpoint.config("vae")
        manifest = Manifest(
            task=checkpoint.task,
            precision="fp32",
            defaults=defaults,
            geometry=checkpoint.geometry,
            text_tokens=checkpoint.text_tokens,
            transformer=checkpoint.config("transformer"),
            vae={key: vae.get(key) for key in _VAE_KEYS},
            scheduler=sampling.scheduler_config(checkpoint),
            components=components,
            source=checkpoint.source,
            tools=tool_versions(),
            files=list_files(folder),
        )
        write_manifest(folder, manifest)
    return Bundle.open(out)


def tool_versions() -> dict[str, str]:
    """What decides how a traced graph looks: the packages, and a digest of this package's own source."""
    versions = {name: version(name) for name in ("reelquant", "torch", "diffusers", "transformers", "onnxscript")}
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(file.read_bytes())
    return {**versions, "exporter": digest.hexdigest()[:16]}


def text_storage(manifest: Manifest) -> str:
    """How a bundle stores its text encoder's weights."""
    return storage_of(manifest.components["text_encoder"].formats)


def trace_component(checkpoint: Checkpoint, name: str, folder: Path, text_weights: str = "fp32") -> Component:
    """Trace one network into ``folder/name``, and check each of its graphs against torch.

    Raises:
        BundleError: its weights do not fit its config.
        AccuracyError: a graph differs from torch.
    """
    give_back_at_once()  # weights come and go by the hundred, in two threads
    models: dict[str, ir.Model] = {}
    passes: dict[str, Any] = {}
    graphs = list(component_graphs(checkpoint, name, text_weights))
    for graph in graphs:
        with _uncollected():
            models[graph.spec.name], passes[graph.spec.name] = _traced(graph, name)
        if name == "text_encoder":
            stored = _store_weights(graph, models[graph.spec.name], text_weights)
            passes[graph.spec.name]["store_weights"] = stored
    files, weights = lay_out_graphs(folder / name, models)
    # Weights are written as the check comes to them: it then reads them from memory, and large ones not twice from disk.
    parity = {
        graph.spec.name: check_parity(graph, folder / files[graph.spec.name], name, prepare=weights.write)
        for graph in graphs
    }
    weights.finish()
    return Component(
        graphs=files,
        formats=FORMATS[text_weights] if name == "text_encoder" else {},
        stats={graph: graph_stats(model) for graph, model in models.items()},
        passes=passes,
        parity=parity,
    )


def _traced(graph: Graph, component: str) -> tuple[ir.Model, dict[str, Any]]:
    """The graph as it will be saved, and what each pass changed."""
    model = trace(graph.spec, graph.samples[0])
    counts: dict[str, Any] = {"traced_nodes": sum(1 for _ in model.graph)}
    counts["attached_weights"] = attach_weights(model, graph.spec.weights())
    counts["transposed_weights"] = fold_transposed_weights(model)
    counts["folded_nodes"] = optimize(model)
    counts["named_weights"] = name_by_module(model, _PREFIX[component])
    if component.startswith("vae"):
        counts["early_caches"] = compute_caches_early(model)
        check_in_place(model)
    return model, counts


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without Python's garbage collector, which goes through millions of live objects again and again while tracing."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.collect()


def _store_weights(graph: Graph, model: ir.Model, storage: str) -> dict[str, Any]:
    """Let ``model`` store its weights as ``storage``; say of how many, and how far its outputs are from float32's."""
    counts = store_weights(model, storage)
    if storage == "fp32":
        return {"storage": storage}
    return {"storage": storage, **counts, "relative_l2": rounding_error(graph.spec, graph.samples[0])}


def _write_learned_positions(checkpoint: Checkpoint, folder: Path) -> None:
    """CogVideoX-5b-I2V's positions, float32 [text_tokens + video_tokens, width], which the runtime maps into memory."""
    if checkpoint.model.has_learned_positions:
        stored = open_weights(checkpoint.path / "transformer")["patch_embed.pos_embedding"]
        (folder / LEARNED).write_bytes(npy_bytes(stored.read()[0]))
