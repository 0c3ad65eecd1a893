"""``reelquant quantize-decoder``: the VAE decoder in INT8."""

from __future__ import annotations

from pathlib import Path

import click

from reelquant.quant.commands.options import OUT, REPLACE
from reelquant.quant.decoder_bundle import DecoderTrial, quantize_decoder
from reelquant.runtime.bundle import Bundle
from reelquant.runtime.commands.options import BUNDLE, JSON, QUIET, print_json, shown
from reelquant.runtime.engines.registry import get_engine
from reelquant.runtime.progress import Progress
from reelquant.runtime.request import MAX_STEPS
from reelquant.runtime.sizes import parse_clip


@click.command("quantize-decoder")
@BUNDLE
@OUT
@click.option("--data", default=DecoderTrial.data, show_default=True, help="A set by name, or a folder.")
@click.option(
    "--prompts",
    type=click.IntRange(1),
    default=DecoderTrial.prompts,
    show_default=True,
    help="Clips from which scales are taken.",
)
@click.option(
    "--held-out",
    type=click.IntRange(1),
    default=DecoderTrial.held_out,
    show_default=True,
    help="Clips, of the last prompts, whose frames are compared.",
)
@click.option(
    "--steps",
    type=click.IntRange(1, MAX_STEPS),
    default=DecoderTrial.steps,
    show_default=True,
    help="Denoising steps of each clip.",
)
@click.option(
    "--seed", type=click.IntRange(0), default=DecoderTrial.seed, show_default=True, help="Seed of the first clip."
)
@click.option("--clip", metavar="FRAMESxHEIGHTxWIDTH", help="Size of the clips [default: BUNDLE's].")
@click.option(
    "--engine",
    default=DecoderTrial.engine,
    show_default=True,
    metavar="NAME",
    help="The engine that renders the clips.",
)
@REPLACE
@QUIET
@JSON
def decoder(
    bundle: Path,
    out: Path,
    data: str,
    prompts: int,
    held_out: int,
    steps: int,
    seed: int,
    clip: str | None,
    engine: str,
    replace: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Quantize the VAE decoder's convolutions of BUNDLE (base fp32) to INT8 and write OUT. OpenVINO gains by it on a CPU;
    ONNX Runtime does not.
    """
    size = parse_clip(clip) if clip else None
    trial = DecoderTrial(data, prompts, held_out, steps, seed, get_engine(engine).name, size)
    with Progress(shown(quiet)) as progress:
        made = quantize_decoder(Bundle.open(bundle), out, trial, replace, progress)
    facts = made.manifest.components["vae_decoder"].passes["next"]["quantize_convolutions"]
    if as_json:
        print_json({"path": str(out), **facts})
    else:
        click.echo(
            f"{out}: {facts['convolutions']} convolutions in INT8; frames are {facts['psnr']:.1f} dB from fp32's"
        )
