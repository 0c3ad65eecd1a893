"""``reelquant quantize``: a recipe applied, with a budget or a search before it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from reelquant.quant.calibration.ranges import Ranges
from reelquant.quant.commands.options import GATE, OUT, REPLACE, trial_options
from reelquant.quant.evaluation.teacher import Trial
from reelquant.quant.graph.graph_files import load_graph
from reelquant.quant.quantize import check_sources, quantize_bundle
from reelquant.quant.recipe import Recipe, built_in_recipes
from reelquant.quant.search.budget import Budget
from reelquant.quant.search.explain import as_json as table_json
from reelquant.quant.search.explain import as_table, explain
from reelquant.quant.search.search import SearchResult, search
from reelquant.quant.search.strengths import search_strengths
from reelquant.runtime.bundle import Bundle
from reelquant.runtime.commands.options import BUNDLE, JSON, QUIET, lower, print_json, shown
from reelquant.runtime.engines.engine import REFERENCE_ENGINE
from reelquant.runtime.engines.registry import get_engine, installed_engine
from reelquant.runtime.files.atomic import check_free
from reelquant.runtime.progress import Progress


@click.command()
@BUNDLE
@click.argument("ranges", type=click.Path(path_type=Path))
@OUT
@click.option(
    "--recipe",
    default="int8",
    show_default=True,
    callback=lower,
    help=f"{', '.join(built_in_recipes())}, or a .toml file.",
)
@click.option(
    "--base",
    default="fp32",
    show_default=True,
    callback=lower,
    help="What is not quantized computes in: fp32, fp16, bf16.",
)
@click.option("--budget", metavar="LIMIT", help="Leave high what it takes: rel_l2<=0.02, size<=900MB or seconds<=1.5.")
@click.option("--search-strength", is_flag=True, help="Search the balancing strength of every layer first.")
@click.option("--explain", "explained", is_flag=True, help="Print every linear: numerics, why, measured error.")
@GATE
@trial_options("gate-")
@click.option(
    "--engine",
    metavar="NAME",
    help="The engine that will run OUT: there OUT is judged, and timed for a budget of seconds [default: openvino where it is "
    "installed, else onnxruntime].",
)
@REPLACE
@QUIET
@JSON
def quantize(
    bundle: Path,
    ranges: Path,
    out: Path,
    recipe: str,
    base: str,
    budget: str | None,
    search_strength: bool,
    explained: bool,
    gate: bool,
    trial: Trial,
    engine: str | None,
    replace: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Quantize the transformer of BUNDLE (fp32) with RANGES by a recipe, see what it lost, and write the bundle OUT.

    OUT/recipe.toml is the recipe, as a budget or a search made it.
    """
    wanted = Budget.parse(budget) if budget else None
    source, seen, chosen = Bundle.open(bundle), Ranges.load(ranges), Recipe.load(recipe)
    made = seen.provenance
    runs = get_engine(engine) if engine else installed_engine()
    size = made.size
    trial = dataclasses.replace(trial, size=size, engine=runs.accuracy_engine)
    check_free(out, replace)
    recorded = found = None
    with Progress(shown(quiet)) as progress:
        if wanted or search_strength:
            check_sources(source, seen)
            recorded = trial.record(source, progress)
            if search_strength:
                chosen = search_strengths(source, seen, chosen, recorded, REFERENCE_ENGINE, progress)
            if wanted:
                found = search(source, seen, chosen, wanted, recorded, trial.engine, base, progress)
                chosen = found.recipe
        held = trial if gate else None
        result = quantize_bundle(source, seen, chosen, out, replace, base, held, recorded, trial.engine, progress)
    _report(source, result, chosen, wanted, found, explained, as_json)


def _report(
    source: Bundle,
    result: Bundle,
    chosen: Recipe,
    budget: Budget | None,
    found: SearchResult | None,
    explained: bool,
    as_json: bool,
) -> None:
    """Say what was quantized, and what it lost."""
    quantization = result.manifest.quantization
    assert quantization is not None
    part, verdict = result.manifest.components["transformer"], quantization["gate"]
    counts = part.passes["main"]["insert_qdq"]
    errors = verdict["linears"] if verdict else {}
    lines = explain(load_graph(source.graph("transformer", "main")), chosen, quantization["skipped"], errors)
    if as_json:
        facts = {"recipe": chosen.name, **counts, "stats": part.stats["main"], "gate": verdict}
        if found:
            facts["budget"] = {"limit": str(budget), "rel_l2": found.rel_l2, "high": found.high, "alone": found.errors}
        print_json(
            {"path": str(result.path), **facts, "linears": table_json(lines)}
            if explained
            else {"path": str(result.path), **facts}
        )
        return
    if explained:
        click.echo(as_table(lines))
    if found:
        click.echo(
            f"{budget}: {len(found.high)} of {len(found.errors)} products left high; relative L2 {found.rel_l2:.5f}"
        )
    lost = "not gated"
    if verdict:
        steps_run = f"{len(verdict['runs'])} steps on {verdict['engine']}"
        lost = f"relative L2 {verdict['rel_l2']:.4f} at worst over {steps_run}"
    if verdict and verdict["dead"]:
        click.echo(f"fed nothing but zeros, so dead: {', '.join(verdict['dead'])}", err=True)
    fates = f"{counts['quantized']} linears quantized, {counts['kept_high']} kept high, {counts['skipped']} skipped"
    click.echo(f"{result.path}: {fates}; {lost}")
