"""How clips of a bundle are sampled where a request does not say: what an export is told beside its checkpoint."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from reelquant.export.checkpoint import Checkpoint
from reelquant.runtime.bundle.manifest import Defaults
from reelquant.runtime.errors import BadInput
from reelquant.runtime.models.cogvideox.schedulers import with_class
from reelquant.runtime.request import MAX_STEPS, check_guidance
from reelquant.runtime.sizes import Size


@dataclass(frozen=True)
class Sampling:
    """``timesteps`` are those of every step, of a model that was distilled to them. What is None is as the pipelines have it, or,
    of ``scheduler`` ("ddim" or "dpm"), as the checkpoint has.
    """

    steps: int | None = None
    timesteps: tuple[int, ...] | None = None
    guidance: float | None = None
    scheduler: str | None = None

    def scheduler_config(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """The config of the scheduler that the bundle samples with.

        Raises:
            BadInput: there is none of that name.
        """
        config = checkpoint.config("scheduler")
        return config if self.scheduler is None else with_class(config, self.scheduler)

    def defaults(self, checkpoint: Checkpoint, size: Size | None) -> Defaults:
        """The defaults of a bundle of ``checkpoint``: of the size it was trained at, or of ``size``.

        Raises:
            BadInput: the model cannot make that size, or take these steps.
        """
        model = checkpoint.model
        chosen = model.checked(size or checkpoint.trained_size)
        made: dict[str, Any] = {**asdict(chosen), "fps": model.fps}
        if self.guidance is not None:
            check_guidance(self.guidance)
            made["guidance"] = self.guidance
        steps, scheduler = self.steps, model.scheduler(self.scheduler, self.timesteps)
        if scheduler.listed is not None:
            if steps not in (None, len(scheduler.listed)):
                raise BadInput(
                    f"{steps} steps, and {len(scheduler.listed)} timesteps: each timestep is a step; leave out --steps"
                )
            steps = len(scheduler.listed)
            made["timesteps"] = list(scheduler.listed)
        if steps is not None:
            if not 1 <= steps <= MAX_STEPS:
                raise BadInput(f"{steps} steps is not from 1 to {MAX_STEPS}; 50 is usual")
            scheduler.startable(steps)
            made["steps"] = steps
        return Defaults(**made)


AS_TRAINED = Sampling()
