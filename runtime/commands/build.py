"""``reelquant build``: compile a bundle's graphs for an engine."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from reelquant.runtime.build import build_bundle
from reelquant.runtime.bundle import Bundle
from reelquant.runtime.commands.options import (
    BUNDLE,
    CACHE,
    DYNAMIC,
    ENGINE,
    GPU,
    JSON,
    QUIET,
    THREADS,
    TILED,
    clips_option,
    print_json,
    shown,
)
from reelquant.runtime.engine import check_engine, is_compiled
from reelquant.runtime.engines.tensorrt.builder import BuildOptions
from reelquant.runtime.engines.tensorrt.flavor import FLAVORS
from reelquant.runtime.engines.tensorrt.stage import Verdict, Wanted, plan
from reelquant.runtime.engines.tensorrt.targets import parse_targets
from reelquant.runtime.errors import BadInput
from reelquant.runtime.progress import Progress
from reelquant.runtime.sizes import Size


@click.command()
@BUNDLE
@ENGINE
@GPU
@clips_option("Clips to build for, as often as there are sizes [default: the bundle's] (TensorRT).")
@DYNAMIC
@TILED
@click.option("--level", type=click.IntRange(0, 5), default=BuildOptions.level, show_default=True,
              help="TensorRT's builder optimization level.")  # fmt: skip
@CACHE
@click.option("--plan", "only_plan", is_flag=True, help="Say what would be built and why, and stop (TensorRT).")
@THREADS
@QUIET
@JSON
@click.pass_context
def build(
    context: click.Context,
    bundle: Path,
    engine: str,
    gpu: str,
    clips: tuple[Size, ...],
    dynamic: bool,
    tiled: bool,
    level: int,
    cache: Path | None,
    only_plan: bool,
    threads: int | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Compile every graph of BUNDLE for an engine, and record what was built.

    OpenVINO and ONNX Runtime compile when they load; for them every graph is compiled once, to see that it can be.
    """
    opened = Bundle.open(bundle)
    check_engine(engine)
    wanted = None
    if is_compiled(engine):
        options = BuildOptions(parse_targets(gpu, FLAVORS[engine]), level, threads)
        wanted = Wanted(clips, dynamic, tiled, options, cache, _hook(context, "static_copy"))
        if only_plan:
            _print_plan(plan(opened, FLAVORS[engine], wanted), as_json)
            return
        _lint(context, opened, wanted)
    elif only_plan or clips or dynamic or gpu != "current":
        raise BadInput(f"--plan, --clip, --dynamic and --gpu are TensorRT's; {engine} compiles when it loads a graph")
    with Progress(shown(quiet)) as progress:
        built = build_bundle(opened, engine, threads, progress, wanted)
    record = built.manifest.engines[engine]
    if as_json:
        print_json({"path": str(bundle), "engine": engine, **record})
        return
    for each in record.get("engines", []):
        found, name = each["evidence"], f"{each['component']}/{each['graph']}"
        click.echo(
            f"{name:20} {found['engine_bytes'] / 1e6:9.1f} MB, weights {found['weight_bytes'] / 1e6:9.1f} MB, "
            f"activations {found['activation_bytes'] / 1e6:9.1f} MB, attention {found['attention']}, "
            f"{found['build_seconds']:.1f} s{' (from the cache)' if each['from_cache'] else ''}"
        )
    click.echo(f"{bundle}: {len(record['build_seconds'])} graphs ready for {engine} {record['version']}")


def _print_plan(verdicts: list[Verdict], as_json: bool) -> None:
    if as_json:
        rows = [{"graph": v.job.name, "file": v.job.file, "state": v.state, "why": v.why} for v in verdicts]
        print_json({"engines": rows})
        return
    for verdict in verdicts:
        click.echo(f"{verdict.job.name:20} {verdict.state:8} {verdict.why}")


def _hook(context: click.Context, name: str) -> Callable[..., Any] | None:
    """What reads ONNX, which the runtime does not; None where the extra for it is not installed."""
    target: str = (context.find_root().obj or {}).get(name, "")
    module, _, function = target.partition(":")
    try:
        return getattr(import_module(module), function) if target else None
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] == "reelquant":
            raise
        return None


def _lint(context: click.Context, bundle: Bundle, wanted: Wanted) -> None:
    check = _hook(context, "lint")
    if check is None:
        click.echo("onnx-ir is not installed, so the builder alone judges the graphs, without lint", err=True)
        return
    for warning in check(bundle, wanted):
        click.echo(warning, err=True)
