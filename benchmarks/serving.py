"""What a clip takes: diffusers, eager and compiled, and this project's engines, on one machine from the same noise.

    python -m benchmarks.serving demo/checkpoints/t2v --data demo --steps 8
    python -m benchmarks.serving CogVideoX-2b --device cuda --engine tensorrt-rtx --gpu current --compile \\
        --precision fp16 --precision fp8 --steps 50 --one-at-a-time --json

Every runner makes the clip once to warm up and then --turns times; they take turns, or with --one-at-a-time each is done
before the next is loaded, for GPUs that do not hold two. Seconds are medians, with the least and the most; ratios are to
diffusers eager. A clip begins with its prompt and ends with frames uint8 in host memory, for all; the noise of each step is drawn within it.
--compile gives diffusers what its own guides do: to_q, to_k and to_v as one product, torch.compile of transformer and decoder, on a GPU with
max-autotune. ``gpu_bytes`` is what of the GPU is taken after a clip, by all that is loaded. Differences are relative L2 to diffusers eager in float32 where --device is cpu, else in the dtype that
the checkpoint is stored in: of the prompt's embeddings, of the last latents, and of the frames of diffusers' latents.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from benchmarks.same_noise import Floats, Sampling, load_diffusers
from reelquant.export.checkpoint import Checkpoint
from reelquant.export.road import ExportPlan, export_checkpoint
from reelquant.export.sampling import AS_TRAINED
from reelquant.runtime.bundle import Bundle
from reelquant.runtime.engines.options import BuildSpec, EngineOptions, parse_gpus
from reelquant.runtime.engines.registry import DEFAULT_ENGINE
from reelquant.runtime.errors import BadInput, ReelquantError
from reelquant.runtime.monitor import Monitor
from reelquant.runtime.pipeline import Pipeline
from reelquant.runtime.relative_l2 import relative_l2
from reelquant.runtime.sizes import Size

PROMPT = "a red circle moves right on a white background"
STAGES = ("text", "encode", "denoise", "decode")
_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16}


@dataclass
class Made:
    """Of one clip: seconds by stage, last latents, and embeddings of the prompt."""

    seconds: dict[str, float]
    text: Floats
    latents: Floats


class Diffusers:
    """The checkpoint's own pipeline, compiled on request."""

    def __init__(self, checkpoint: Path, sampling: Sampling, device: str, dtype: torch.dtype, compiled: bool) -> None:
        self._sampling, self._device, self._dtype = sampling, device, dtype
        self._pipe = load_diffusers(checkpoint, dtype).to(device)
        if compiled:
            options: dict[str, Any] = {"mode": "max-autotune"} if device == "cuda" else {}
            self._pipe.transformer.fuse_qkv_projections()
            self._pipe.transformer = torch.compile(self._pipe.transformer, fullgraph=True, **options)
            self._pipe.vae.decode = torch.compile(self._pipe.vae.decode, **options)

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def clip(self) -> Made:
        seconds = dict.fromkeys(STAGES, 0.0)  # the image is encoded within "denoise"
        arguments = self._sampling.arguments(self._dtype)
        with self._timed(seconds, "text"):
            text, negative = self._pipe.encode_prompt(
                self._sampling.prompt,
                negative_prompt="",
                device=self._device,
                max_sequence_length=self._pipe.transformer.config.max_text_seq_length,
            )
        with self._timed(seconds, "denoise"):
            embeds = {"prompt_embeds": text, "negative_prompt_embeds": negative}
            latents = self._pipe(**embeds, **arguments).frames
        frames = self._sampling.geometry.latent_shape(self._sampling.size)[0]
        kept = latents[:, -frames:]
        with self._timed(seconds, "decode"):
            video = self._pipe.decode_latents(kept)
            video.clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8).permute(0, 2, 3, 4, 1).cpu()
        return Made(seconds, text[0].float().cpu().numpy(), kept[0].float().cpu().numpy())

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def frames(self, latents: Floats) -> Floats:
        video = self._pipe.decode_latents(torch.from_numpy(latents)[None].to(self._device, self._dtype))
        # As a clip is saved: what the network says beyond white and black is cut off.
        return np.asarray(video[0].clamp(-1, 1).float().cpu().numpy().transpose(1, 2, 3, 0), np.float32)

    def _timed(self, seconds: dict[str, float], stage: str) -> Timed:
        return Timed(seconds, stage, torch.cuda.synchronize if self._device == "cuda" else lambda: None)


@dataclass
class Timed:
    """Adds a block's seconds to ``seconds[stage]``; ``wait`` returns when the device has done its work."""

    seconds: dict[str, float]
    stage: str
    wait: Callable[[], None]
    _began: float = 0.0

    def __enter__(self) -> None:
        self.wait()
        self._began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.wait()
        self.seconds[self.stage] += time.perf_counter() - self._began


class Ours:
    """A bundle on an engine."""

    def __init__(self, bundle: Bundle, engine: str, sampling: Sampling) -> None:
        self._pipeline = Pipeline(bundle, EngineOptions(engine))
        self._sampling = sampling

    def clip(self) -> Made:
        monitor, began = Monitor(), time.perf_counter()
        request = self._sampling.resolved(self._pipeline)
        drawn = time.perf_counter() - began
        latents = self._pipeline.sample(request, monitor)
        self._pipeline.decode(latents, monitor)
        seconds = {stage: monitor.seconds.get(stage, 0.0) for stage in STAGES}
        seconds["denoise"] += drawn
        return Made(seconds, self._pipeline.encode_prompt(self._sampling.prompt, guided=False)[0], latents)

    def frames(self, latents: Floats) -> Floats:
        return self._pipeline.decode(latents).astype(np.float32) / 127.5 - 1


@dataclass
class Measured:
    """What a runner did; ``frames`` are of the reference's latents, ``gpu_bytes`` of a GPU what was taken after its last clip."""

    turns: list[Made] = field(default_factory=list)
    gpu_bytes: int | None = None
    frames: Floats | None = None


Runners = dict[str, Callable[[], Diffusers | Ours]]


def measure(runners: Runners, turns: int, apart: bool) -> dict[str, Measured]:
    """Let every runner make the clip; the first is the reference."""
    found = {name: Measured() for name in runners}
    reference = next(iter(runners))
    for group in [[name] for name in runners] if apart else [list(runners)]:
        loaded = {name: runners[name]() for name in group}
        for turn in range(turns + 1):
            for name, runner in loaded.items():
                print(f"{name}: {f'clip {turn} of {turns}' if turn else 'warms up'}", file=sys.stderr)
                made = runner.clip()
                if turn:
                    found[name].turns.append(made)
                if torch.cuda.is_available():
                    free, total = torch.cuda.mem_get_info()
                    found[name].gpu_bytes = total - free
        for name, runner in loaded.items():
            found[name].frames = runner.frames(found[reference].turns[-1].latents)
        del loaded, runner
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return found


def rows(found: dict[str, Measured], steps: int) -> Iterator[dict[str, Any]]:
    reference = next(iter(found.values()))
    eager = statistics.median(sum(made.seconds.values()) for made in reference.turns)
    for name, each in found.items():
        clips = [sum(made.seconds.values()) for made in each.turns]
        step = [made.seconds["denoise"] / steps for made in each.turns]
        first, last = reference.turns[-1], each.turns[-1]
        assert each.frames is not None and reference.frames is not None
        yield {
            "runner": name,
            "seconds_per_clip": statistics.median(clips),
            "seconds_per_clip_spread": [min(clips), max(clips)],
            "ratio": statistics.median(clips) / eager,
            "seconds_per_step": statistics.median(step),
            "gpu_bytes": each.gpu_bytes,
            "stages": {stage: statistics.median(made.seconds[stage] for made in each.turns) for stage in STAGES},
            "difference": {
                "text": relative_l2(last.text, first.text),
                "latents": relative_l2(last.latents, first.latents),
                "frames": relative_l2(each.frames, reference.frames),
            },
        }


def prepare(arguments: argparse.Namespace, checkpoint: Checkpoint, size: Size) -> dict[str, Bundle]:
    """A bundle for each precision, in ``--work``; stages that were done there before are not done again."""
    work = arguments.work / f"{checkpoint.name.replace('/', '-')}-{size}"
    spec = BuildSpec(gpus=parse_gpus(arguments.gpu))
    bundles = {}
    for precision in arguments.precision or ["fp32"]:
        plan = ExportPlan(precision, arguments.engine, size, data=arguments.data, spec=spec)
        out = work / f"{precision}-{arguments.engine}"
        bundles[precision] = export_checkpoint(str(checkpoint.path), out, plan, work / "stages", replace=True)
    return bundles


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise BadInput(f"torch {torch.__version__} finds no CUDA device here; use --device cpu, or run it on a GPU")
    checkpoint = Checkpoint.open(arguments.checkpoint)
    defaults = AS_TRAINED.defaults(checkpoint, Size.parse(arguments.size) if arguments.size else None)
    size = defaults.size
    bundles = prepare(arguments, checkpoint, size)
    sampling = Sampling.random(checkpoint.task, arguments.prompt, size, arguments.steps, checkpoint.geometry)
    stored = _DTYPES.get(checkpoint.stored_dtype, torch.float32)
    dtype = stored if arguments.device == "cuda" else torch.float32
    runners: Runners = {"diffusers eager": lambda: Diffusers(checkpoint.path, sampling, arguments.device, dtype, False)}
    if arguments.compile:
        runners["diffusers compiled"] = lambda: Diffusers(checkpoint.path, sampling, arguments.device, dtype, True)
    for precision, bundle in bundles.items():
        runners[f"{precision} on {arguments.engine}"] = lambda b=bundle: Ours(b, arguments.engine, sampling)  # type: ignore[misc]
    found = measure(runners, arguments.turns, arguments.one_at_a_time)
    return {
        "checkpoint": checkpoint.name,
        "clip": f"{size}",
        "steps": arguments.steps,
        "device": torch.cuda.get_device_name() if arguments.device == "cuda" else "cpu",
        "torch": torch.__version__,
        "diffusers_dtype": str(dtype),
        "rows": list(rows(found, arguments.steps)),
    }


def table(result: dict[str, Any]) -> str:
    lines = [
        "| runner | seconds per clip (least–most) | ratio | seconds per step | text, latents, frames: difference |",
        "|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        least, most = row["seconds_per_clip_spread"]
        difference = ", ".join(f"{value:.2g}" for value in row["difference"].values())
        lines.append(
            f"| {row['runner']} | {row['seconds_per_clip']:.2f} ({least:.2f}–{most:.2f}) | {row['ratio']:.2f} "
            f"| {row['seconds_per_step']:.3f} | {difference} |"
        )
    return "\n".join(lines)


def main(given: list[str] | None = None) -> NoReturn:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="a folder, or a hub id")
    parser.add_argument("--precision", action="append", help="as export's (default: fp32)")
    parser.add_argument("--engine", default=DEFAULT_ENGINE)
    parser.add_argument("--gpu", default="current", help="what TensorRT builds for")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="diffusers'")
    parser.add_argument("--compile", action="store_true", help="diffusers compiled, too")
    parser.add_argument("--size", help="FRAMESxHEIGHTxWIDTH (default: the checkpoint's)")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--one-at-a-time", action="store_true", help="load each when the one before is done")
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--data", default="general", help="calibration set")
    parser.add_argument("--work", type=Path, default=Path("build/serving"))
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args(given)
    try:
        result = run(arguments)
    except ReelquantError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    print(json.dumps(result) if arguments.json else table(result))
    sys.exit(0)


if __name__ == "__main__":
    main()
