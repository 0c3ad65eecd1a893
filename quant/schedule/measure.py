"""What a schedule comes to on clips that it was not fitted on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np

from reelquant.quant.evaluation.pictures import Pixels, psnr
from reelquant.quant.schedule.trajectories import Floats, Trajectory
from reelquant.runtime.errors import BadInput
from reelquant.runtime.pipeline import Pipeline
from reelquant.runtime.progress import SILENT, Progress
from reelquant.runtime.relative_l2 import relative_l2
from reelquant.runtime.sampling.denoise import denoise
from reelquant.runtime.sampling.schedule import Schedule
from reelquant.runtime.sampling.stepper import Work

Scorer = Callable[[str, Pixels], float]


class HeldOut:
    """Clips with every step computed, against which those of schedules are held.

    ``scorer`` says which share of what a prompt asks for a clip [frames, height, width, 3] shows, 0 to 1.
    """

    def __init__(self, pipeline: Pipeline, clips: Sequence[Trajectory], scorer: Scorer | None = None) -> None:
        self._pipeline, self._clips, self._scorer = pipeline, clips, scorer
        self._whole = [self._decoded(each, each.final) for each in clips]
        self._fidelity = self._score(self._whole)

    def measured(self, schedule: Schedule, progress: Progress = SILENT) -> dict[str, Any]:
        """PSNR in dB of the frames, mean, 5th percentile and least; relative L2 of the final latents, mean and most; the share of
        forwards that ran; fidelity where there is a scorer. Clips of which the schedule was ``given_up`` count in what ran, and not in
        how near clips are: they would be better than they are due to the schedule.
        """
        frames, errors, forwards = [], [], 0
        kept = []
        with progress.stage("measure", len(self._clips)) as advance:
            for each in self._clips:
                work = Work()
                conditioning = replace(each.conditioning, run=each.run())
                latents = denoise(self._pipeline.transformer(), conditioning, schedule=schedule, work=work)
                frames.append(self._decoded(each, latents))
                errors.append(relative_l2(latents, each.final))
                forwards += work.forwards
                kept.append(work.given_up_at is None)
                advance()
        given_up = len(kept) - sum(kept)
        if given_up == len(kept):
            kept = [True] * len(kept)
        psnrs = [
            psnr(*pair) for pair, is_kept in zip(zip(frames, self._whole, strict=True), kept, strict=True) if is_kept
        ]
        errors = [error for error, is_kept in zip(errors, kept, strict=True) if is_kept]
        found = {
            "psnr": round(float(np.mean(psnrs)), 2),
            "psnr_p5": round(float(np.percentile(psnrs, 5)), 2),
            "psnr_least": round(min(psnrs), 2),
            "rel_l2": float(np.mean(errors)),
            "rel_l2_most": max(errors),
            "forwards": forwards / (2 * schedule.steps * len(self._clips)),
            "clips": len(self._clips),
            "given_up": given_up,
        }
        if self._fidelity is not None:
            fidelity = self._score(frames)
            assert fidelity is not None
            found |= {"fidelity": round(fidelity, 4), "fidelity_change": round(fidelity - self._fidelity, 4)}
        return found

    def floor(self, other: Pipeline) -> float:
        """The PSNR in dB of the first clip, every step computed, on another engine: what engines alone make of a difference."""
        first = self._clips[0]
        conditioning = replace(first.conditioning, run=first.run())
        return round(psnr(self._decoded(first, denoise(other.transformer(), conditioning)), self._whole[0]), 2)

    def _decoded(self, clip: Trajectory, latents: Floats) -> Pixels:
        # Without the frames that CogVideoX 1.5 puts before a clip.
        kept = self._pipeline.model.geometry.latent_frames(clip.resolved.size)
        return self._pipeline.decode(latents[-kept:])

    def _score(self, frames: Sequence[Pixels]) -> float | None:
        if self._scorer is None:
            return None
        prompts = [each.resolved.request.prompt for each in self._clips]
        return float(np.mean([self._scorer(*pair) for pair in zip(prompts, frames, strict=True)]))


def load_scorer(where: str) -> Scorer:
    """The function ``"module:function"``: (prompt, frames uint8 [frames, height, width, 3]) → the share of what the prompt asks for
    that the clip shows, 0 to 1.

    Raises:
        BadInput: there is none such.
    """
    module, _, name = where.partition(":")
    try:
        found: Scorer = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise BadInput(
            f"there is no scorer {where!r} ({error}); give MODULE:FUNCTION, a function of a prompt and the frames of a clip"
        ) from error
    if not callable(found):
        raise BadInput(f"the scorer {where!r} is not a function; give MODULE:FUNCTION")
    return found
