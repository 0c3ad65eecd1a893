"""``reelquant generate``: one clip."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from reelquant.runtime.bundle import Bundle
from reelquant.runtime.commands.options import (
    BUNDLE,
    ENGINE_OPTIONS,
    JSON,
    QUIET,
    TILED,
    end_with_flaws,
    print_json,
    say_engine,
    say_unknown,
    shown,
    size_option,
    timesteps_option,
)
from reelquant.runtime.engines.options import EngineOptions
from reelquant.runtime.engines.precision_notes import note_of
from reelquant.runtime.errors import BadInput
from reelquant.runtime.media.writers import check_output
from reelquant.runtime.pipeline import Pipeline
from reelquant.runtime.progress import Progress
from reelquant.runtime.remake import read_remake
from reelquant.runtime.request import STRENGTH, Request
from reelquant.runtime.sampling.latents import SUFFIX
from reelquant.runtime.sizes import Size

STAGES = ("load", "text", "encode", "denoise", "decode", "write")  # the last is what was left to write after decoding


@click.command()
@BUNDLE
@click.argument("prompt", required=False)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="FILE.mp4, .gif, .png or .npy")
@click.option(
    "--like",
    type=click.Path(path_type=Path),
    help="Make this clip of BUNDLE again; what is given beside it (PROMPT, --seed, …) is changed.",
)
@click.option("--image", type=click.Path(path_type=Path), help="First frame, for image-to-video.")
@click.option("--video", type=click.Path(path_type=Path), help="A clip to start from (.mp4 or .npy).")
@click.option("--strength", type=float, help=f"How much of --video is made anew, 0 to 1 [default: {STRENGTH}].")
@click.option("--negative-prompt", help="What to steer away from.")
@click.option("--seed", type=int, help="Same seed, bundle and engine: same frames [default: a new one each time].")
@click.option("--steps", type=int, help="Denoising steps [default: the bundle's].")
@timesteps_option("Steps at these timesteps, from high to low [default: the bundle's].")
@click.option(
    "--guidance", type=float, help="Guidance scale; 1 turns it off and halves the work [default: the bundle's]."
)
@click.option(
    "--schedule",
    metavar="NAME|FILE",
    help='Compute fewer steps: a schedule of BUNDLE, or a file of one (.json) [default: "exact", all of them].',
)
@size_option("Size of the clip [default: the bundle's].")
@click.option(
    "--scheduler", type=click.Choice(["ddim", "dpm"], case_sensitive=False), help="Sampler [default: the checkpoint's]."
)
@click.option("--latents", type=click.Path(path_type=Path), help="Also keep the latents, FILE.npz, for decode.")
@click.option("--embeddings", type=click.Path(path_type=Path), help="Folder of prompts' embeddings, used and filled.")
@TILED
@ENGINE_OPTIONS
@QUIET
@JSON
@click.pass_context
def generate(
    context: click.Context,
    bundle: Path,
    prompt: str | None,
    output: Path,
    like: Path | None,
    image: Path | None,
    video: Path | None,
    strength: float | None,
    negative_prompt: str | None,
    seed: int | None,
    steps: int | None,
    timesteps: tuple[int, ...] | None,
    guidance: float | None,
    schedule: str | None,
    size: Size | None,
    scheduler: str | None,
    latents: Path | None,
    embeddings: Path | None,
    tiled: bool,
    options: EngineOptions,
    quiet: bool,
    as_json: bool,
) -> None:
    """Render a clip of PROMPT from BUNDLE, or make the clip --like FILE again."""
    began = time.monotonic()
    check_output(output)
    if latents:
        check_output(latents, (SUFFIX,))
    opened = Bundle.open(bundle)
    remake = read_remake(like, opened) if like else None
    if remake:
        tiled = tiled or remake.tiled
        options = replace(
            options,
            engine=options.engine or remake.engine,
            threads=options.threads or remake.threads,
            batch=options.batch or remake.batch,
        )
    elif prompt is None:
        raise BadInput(
            "there is no PROMPT; describe the clip in a sentence or two, or name a clip to make again: --like FILE"
        )
    pipeline = Pipeline(opened, options, embeddings, tiled, keep=False, size=size)
    engine = pipeline.engine
    say_engine(pipeline.engine_note, quiet)
    note = note_of(opened.manifest, engine.precision_notes())
    if note and note.disappoints and sys.stderr.isatty() and not (quiet or as_json):
        click.echo(f"{note.precision} on this CPU, with {engine.name}: {note.text}", err=True)
    asked: dict[str, Any] = {
        "prompt": prompt, "image": image, "negative_prompt": negative_prompt, "seed": seed, "steps": steps,
        "guidance": guidance, "scheduler": scheduler, "video": video, "strength": strength,
        "schedule": schedule, "timesteps": timesteps, **(asdict(size) if size else {}),
    }  # fmt: skip
    like_request = remake.request if remake else Request("")
    if steps is not None or timesteps is not None:  # either stands in the place of both
        like_request = replace(like_request, steps=None, timesteps=None)
    request = replace(like_request, **{k: v for k, v in asked.items() if v is not None})
    resolved = pipeline.resolve(request)  # what is refused is refused before anything is said or done
    if remake and size is None and not remake.is_of(resolved):
        if image is None and video is None:
            raise BadInput(
                f"the image or video is another than {like} was made from (its pixels at the clip's size differ); "
                "give that one with --image or --video"
            )
        if not quiet:
            click.echo(f"{like} was made from another image or video: frames will differ", err=True)
    if remake and not quiet:
        made, here = f"{remake.engine} {remake.engine_version}", f"{engine.name} {engine.version()}"
        if made != here:
            click.echo(f"{like} was made with {made}, and this is {here}: frames may differ", err=True)
        if remake.decoded:
            click.echo(f"{like} was decoded apart, with {json.dumps(remake.decoded)}: frames may differ", err=True)
    for said in resolved.notes if not quiet else ():
        click.echo(said, err=True)
    if remake and schedule is None and (resolved.schedule.digest if resolved.schedule else None) != remake.schedule:
        raise BadInput(
            f"{like} was made by another schedule of that name; give that one: --schedule FILE.json, or --schedule exact"
        )
    unknown = pipeline.tokenizer.unknown_words(f"{request.prompt}\n{request.negative_prompt}")
    say_unknown(unknown, quiet or as_json)
    with Progress(shown(quiet)) as progress:
        clip = pipeline.render(resolved, output, progress, latents)
    seconds = {stage: round(clip.seconds.get(stage, 0.0), 4) for stage in STAGES}
    seconds["total"] = round(time.monotonic() - began, 4)
    if as_json:
        print_json(
            {
                "clip": str(output),
                "frames": clip.size.frames,
                "fps": clip.fps,
                "width": clip.size.width,
                "height": clip.size.height,
                "forwards": clip.provenance["forwards"],
                "schedule": clip.provenance.get("schedule"),
                "schedule_note": resolved.schedule_note,
                "steps": clip.provenance["steps"],
                "timesteps": clip.provenance["timesteps"],
                "steps_note": resolved.steps_note,
                "seed": clip.provenance["seed"],
                "engine": engine.name,
                "precision": pipeline.bundle.manifest.precision,
                "unknown_words": unknown,
                "precision_here": asdict(note) if note else None,
                "seconds": seconds,
                "device_seconds": engine.device_seconds(),
                "peak_rss_bytes": peak_rss_bytes(),
                "flaws": clip.flaws,
                "sha256_frames": clip.sha256,
            }
        )
    else:
        click.echo(f"{output}: {clip.size.frames} frames, seed {clip.provenance['seed']}, {seconds['total']:.1f} s")
    end_with_flaws(context, clip.flaws, output)


def peak_rss_bytes() -> int | None:
    """The most memory this process has held, None where the system does not say; getrusage gives KiB, on macOS bytes."""
    try:
        import resource  # which Windows lacks
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
