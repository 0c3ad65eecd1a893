"""Run every rule: over one graph, or over a bundle as it would be built."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import onnx_ir as ir

from reelquant.quant.graph_files import load_graph
from reelquant.quant.lint import attention_rules, graph_rules, qdq_rules, target_rules
from reelquant.quant.lint.finding import Finding, Subject
from reelquant.runtime.bundle import Bundle
from reelquant.runtime.engines.tensorrt.stage import Wanted, engine_profiles
from reelquant.runtime.errors import BundleError

RULES: dict[str, Callable[[Subject], Iterator[Finding]]] = {
    "operators": graph_rules.operators,
    "mixed types": graph_rules.mixed_types,
    "volumes": graph_rules.volumes,
    "scales": qdq_rules.scales,
    "zero points": qdq_rules.zero_points,
    "stored types": qdq_rules.stored_types,
    "product formats": qdq_rules.product_formats,
    "attention Q/DQ": attention_rules.attention_qdq,
    "attention type": attention_rules.attention_type,
    "attention shape": attention_rules.attention_shape,
    "GPU formats": target_rules.formats,
}


def lint(model: ir.Model, targets: tuple[str, ...] = (), symbols: Mapping[str, int] | None = None) -> list[Finding]:
    """Everything in ``model`` that TensorRT would refuse or leave unfused, for these GPUs and at this size."""
    subject = Subject(model, targets, symbols or {})
    return [finding for rule in RULES.values() for finding in rule(subject)]


def lint_bundle(bundle: Bundle, wanted: Wanted) -> dict[str, list[Finding]]:
    """The findings of every graph and size that a build would compile; graphs without any are left out."""
    found: dict[str, list[Finding]] = {}
    for component, graph, profile in engine_profiles(bundle.manifest, wanted):
        findings = lint(load_graph(bundle.graph(component, graph)), wanted.options.targets, profile.most)
        if findings:
            found.setdefault(f"{component}/{graph}", findings)
    return found


def refuse_what_lint_finds(bundle: Bundle, wanted: Wanted) -> None:
    """Stop before a build that would fail.

    Raises:
        BundleError: a rule is broken; the message names the first, and how many more there are.
    """
    found = lint_bundle(bundle, wanted)
    for name, findings in found.items():
        more = sum(map(len, found.values())) - 1
        raise BundleError(
            f"{bundle.path}: {name}: {findings[0]}" + (f" (and {more} more: reelquant lint)" if more else "")
        )
