"""Run every rule: over one graph, or over a bundle as it would be built."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import onnx_ir as ir

from reelquant.quant.graph.graph_files import load_graph
from reelquant.quant.lint import attention_rules, graph_rules, parser_rules, qdq_rules, target_rules
from reelquant.quant.lint.finding import Finding, LintContext
from reelquant.runtime.bundle import Bundle
from reelquant.runtime.engines.options import BuildSpec
from reelquant.runtime.engines.tensorrt.stage import engine_profiles
from reelquant.runtime.errors import BundleError

RULES: dict[str, Callable[[LintContext], Iterator[Finding]]] = {
    "operators": graph_rules.operators,
    "mixed types": graph_rules.mixed_types,
    "volumes": graph_rules.volumes,
    "casts": parser_rules.casts,
    "dimensions": parser_rules.dimensions,
    "shapes from data": parser_rules.shapes_from_data,
    "convolutions": parser_rules.convolutions,
    "resizes": parser_rules.resizes,
    "attention operators": parser_rules.attention_operators,
    "blocks": parser_rules.blocks,
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
    context = LintContext(model, targets, symbols or {})
    return [finding for rule in RULES.values() for finding in rule(context)]


def lint_bundle(bundle: Bundle, spec: BuildSpec) -> dict[str, list[Finding]]:
    """The findings of every graph and size that a build would compile; graphs without any are left out."""
    found: dict[str, list[Finding]] = {}
    for component, graph, profile in engine_profiles(bundle.manifest, spec):
        findings = lint(load_graph(bundle.graph(component, graph)), spec.gpus, profile.most)
        known = found.setdefault(f"{component}/{graph}", [])
        known += [finding for finding in findings if finding not in known]
    return {name: findings for name, findings in found.items() if findings}


def refuse_what_lint_finds(bundle: Bundle, spec: BuildSpec) -> list[str]:
    """Stop before a build that would fail; return the warnings.

    Raises:
        BundleError: a rule is broken; the message names the first, and how many more there are.
    """
    said = [(name, finding) for name, findings in lint_bundle(bundle, spec).items() for finding in findings]
    faults = [(name, finding) for name, finding in said if not finding.warning]
    if faults:
        name, finding = faults[0]
        more = f" (and {len(faults) - 1} more: reelquant lint)" if len(faults) > 1 else ""
        raise BundleError(f"{bundle.path}: {name}: {finding}{more}")
    return [f"{name}: {finding}" for name, finding in said]
