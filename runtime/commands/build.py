"""``reelquant build``: compile a bundle's graphs for an engine."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import click

from reelquant.runtime.bundle import Bundle
from reelquant.runtime.commands.options import (
    BUILD_SPEC,
    BUNDLE,
    ENGINE,
    JSON,
    QUIET,
    THREADS,
    print_json,
    shown,
)
from reelquant.runtime.engines.options import BuildSpec
from reelquant.runtime.engines.registry import get_engine
from reelquant.runtime.progress import Progress


@click.command()
@BUNDLE
@ENGINE
@BUILD_SPEC
@click.option("--plan", "only_plan", is_flag=True, help="Say what would be built and why, and stop (TensorRT).")
@THREADS
@QUIET
@JSON
def build(
    bundle: Path,
    engine: str,
    spec: BuildSpec,
    only_plan: bool,
    threads: int | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Compile every graph of BUNDLE for an engine, and record what was built.

    OpenVINO and ONNX Runtime compile when they load; for them every graph is compiled once, to see that it can be.
    """
    opened, builder, spec = Bundle.open(bundle), get_engine(engine), replace(spec, threads=threads)
    if only_plan:
        entries = builder.plan(opened, spec)
        if as_json:
            print_json({"engines": [asdict(entry) for entry in entries]})
        else:
            for entry in entries:
                click.echo(f"{entry.graph:20} {entry.state:8} {entry.why}")
        return
    with Progress(shown(quiet), says=not quiet) as progress:
        built = builder.build(opened, spec, progress)
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
