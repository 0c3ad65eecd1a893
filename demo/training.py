"""What both trainers share: one resumable loop, with averaged weights, the learning-rate curve and a progress line."""

from __future__ import annotations

import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch

Made = TypeVar("Made")
Stage = TypeVar("Stage")


@cache
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def cosine(step: int, share: float, rate: float, warmup: int) -> float:
    """Linear warm-up over ``warmup`` steps, then a half cosine, by the ``share`` that is done, to a hundredth of ``rate``."""
    if step < warmup:
        return rate * (step + 1) / warmup
    return rate * (0.01 + 0.99 * (1 + math.cos(math.pi * min(share, 1.0))) / 2)


def share_done(state: dict[str, Any], steps: int, limit: float | None) -> float:
    """How much is done, from 0: of the stage by its steps, or of the network's ``limit`` in seconds, if that is more."""
    by_time = state["seconds"] / limit if limit else 0.0
    return max(float(state["step"] / steps), float(by_time))


class Ema:
    """An exponential moving average of a module's parameters; early on it follows faster (``(1+n)/(10+n)``)."""

    def __init__(self, module: torch.nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.shadow = {k: v.detach().clone() for k, v in module.state_dict().items()}

    def update(self, module: torch.nn.Module) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.shadow.values()), list(module.state_dict().values()), 1 - decay)

    def copy_to(self, module: torch.nn.Module) -> None:
        module.load_state_dict(self.shadow)


Optimizers = list[torch.optim.Optimizer]


def step_all(optimizers: Optimizers, module: torch.nn.Module, rate: float) -> None:
    """One clipped step of every optimizer at ``rate``; gradients are cleared after it."""
    torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()


def save_state(path: Path, state: dict[str, Any], module: torch.nn.Module, optimizers: Optimizers, ema: Ema) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(
        {
            "state": state,
            "module": module.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            "ema": ema.shadow,
            "updates": ema.updates,
        },
        partial,
    )
    os.replace(partial, path)


def load_state(path: Path, module: torch.nn.Module, optimizers: Optimizers, ema: Ema) -> dict[str, Any] | None:
    """Fill the objects from ``path`` and return the loop's state, or None when there is nothing to resume."""
    if not path.exists():
        return None
    saved = torch.load(path, map_location=device(), weights_only=True)
    module.load_state_dict(saved["module"])
    for optimizer, values in zip(optimizers, saved["optimizers"], strict=True):
        optimizer.load_state_dict(values)
    ema.shadow, ema.updates = saved["ema"], saved["updates"]
    return dict(saved["state"])


class Training:
    """A network's training by stages: after so many steps each, ``every``, all of it is in ``path``, and a new one goes on from there.

    ``decay`` is that of the averaged weights, ``limit`` the seconds after which training ends, whatever steps and stages
    were left.
    """

    def __init__(
        self,
        path: Path,
        module: torch.nn.Module,
        optimizers: Optimizers,
        decay: float,
        limit: float | None,
        every: int = 100,
    ) -> None:
        self.every = every
        self.path, self.module, self.optimizers, self.limit = path, module, optimizers, limit
        self.ema = Ema(module, decay)
        state = load_state(path, module, optimizers, self.ema)
        self.state: dict[str, Any] = state or {"stage": 0, "step": 0, "seconds": 0.0}
        self._progress = Progress(path.stem)

    def left(self, stages: Sequence[Stage]) -> Iterator[Stage]:
        """The stages that are not done yet; each counts as done when the next one is asked for."""
        while self.state["stage"] < len(stages):
            yield stages[self.state["stage"]]
            self.state = {**self.state, "stage": self.state["stage"] + 1, "step": 0}
            self._save()

    def run(self, steps: int, rate: float, warmup: int, loss_of: Callable[[int], torch.Tensor]) -> None:
        """The steps of one stage that are left: ``loss_of`` each is made small, at a rate of at most ``rate``."""
        while (share := share_done(self.state, steps, self.limit)) < 1:
            began = time.monotonic()
            loss = loss_of(self.state["step"])
            loss.backward()
            step_all(self.optimizers, self.module, cosine(self.state["step"], share, rate, warmup))
            self.ema.update(self.module)
            self.state["step"] += 1
            self.state["seconds"] += time.monotonic() - began
            self._progress(self.state, steps, loss.detach())
            if self.state["step"] % self.every == 0:
                self._save()

    def finish(self) -> float:
        """Put the averaged weights into the network; the seconds that its training took."""
        self.ema.copy_to(self.module)
        self.module.eval()
        return float(self.state["seconds"])

    def _save(self) -> None:
        save_state(self.path, self.state, self.module, self.optimizers, self.ema)


def ahead(make: Callable[[int], Made], places: Iterable[int]) -> Generator[Made]:
    """``make`` of each place, in order, made by all cores while others are used; only a few at once, since clips are large."""
    depth = 2 * (os.cpu_count() or 1)
    with ThreadPoolExecutor(depth) as pool:
        made: deque[Future[Made]] = deque()
        for place in places:
            made.append(pool.submit(make, place))
            if len(made) > depth:
                yield made.popleft().result()
        while made:
            yield made.popleft().result()


class Progress:
    """One line on stderr every 20 steps: step, smoothed loss, seconds left in the stage.

    ``loss`` may be a tensor: it is read for that line alone, since reading it waits for the device.
    """

    def __init__(self, name: str) -> None:
        self.name, self.loss, self.last, self.pace = name, torch.zeros(()), time.monotonic(), 0.0

    def __call__(self, state: dict[str, Any], steps: int, loss: torch.Tensor | float) -> None:
        now = time.monotonic()
        first = self.pace == 0.0
        self.pace = now - self.last if first else 0.9 * self.pace + 0.1 * (now - self.last)
        loss = torch.as_tensor(loss)
        self.loss = loss if first else 0.95 * self.loss + 0.05 * loss
        self.last = now
        if state["step"] % 20 == 0 or state["step"] == steps:
            left = self.pace * (steps - state["step"])
            print(
                f"{self.name} stage {state['stage']} step {state['step']}/{steps} loss {float(self.loss):.4f} "
                f"{self.pace:.2f} s/step, {left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )
