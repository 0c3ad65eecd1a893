"""``reelquant quantize-decoder``: the VAE decoder in INT8."""

from __future__ import annotations

from pathlib import Path

import click

from reelquant.quant.commands.options import OUT, REPLACE
from reelquant.quant.decoder_bundle import DecoderTrial, quantize_decoder
from reelquant.runtime.bundle import Bundle
from reelquant.runtime.commands.options import (
    BUNDLE,
    JSON,
    QUIET,
    count_option,
    option_group,
    print_json,
    shown,
    size_option,
)
from reelquant.runtime.engines.registry import get_engine
from reelquant.runtime.progress import Progress
from reelquant.runtime.request import MAX_STEPS
from reelquant.runtime.sizes import Size


def _trial(
    data: str, prompts: int, held_out: int, steps: int, seed: int, size: Size | None, engine: str, bf16: bool
) -> DecoderTrial:
    return DecoderTrial(data, prompts, held_out, steps, seed, get_engine(engine).name, size, bf16)


_TRIAL = option_group(
    "trial",
    _trial,
    click.option(
        "--data", default=DecoderTrial.data, show_default=True, help="A calibration set by name, or a folder."
    ),
    count_option("--prompts", DecoderTrial.prompts, "Clips from which scales are taken."),
    count_option("--held-out", DecoderTrial.held_out, "Clips, of the last prompts, whose frames are compared."),
    count_option("--steps", DecoderTrial.steps, "Denoising steps of each clip.", most=MAX_STEPS),
    count_option("--seed", DecoderTrial.seed, "Seed of the first clip.", least=0),
    size_option("Size of the clips [default: BUNDLE's]."),
    click.option(
        "--engine",
        default=DecoderTrial.engine,
        show_default=True,
        metavar="NAME",
        help="The engine that renders the clips.",
    ),
    click.option("--bf16", is_flag=True, help="Compute the rest of it in bf16 where the CPU has units for that."),
)


@click.command("quantize-decoder")
@BUNDLE
@OUT
@_TRIAL
@REPLACE
@QUIET
@JSON
def decoder(
    bundle: Path,
    out: Path,
    trial: DecoderTrial,
    replace: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Quantize the VAE decoder's convolutions of BUNDLE (base fp32) to INT8 and write OUT. OpenVINO gains by it on a CPU;
    ONNX Runtime does not.
    """
    with Progress(shown(quiet)) as progress:
        made = quantize_decoder(Bundle.open(bundle), out, trial, replace, progress)
    facts = made.manifest.components["vae_decoder"].passes["next"]["quantize_convolutions"]
    if as_json:
        print_json({"path": str(out), **facts})
    else:
        click.echo(
            f"{out}: {facts['convolutions']} convolutions in INT8; frames are {facts['psnr']:.1f} dB from fp32's"
        )
