"""A bundle's networks as a pipeline holds them: opened when first used, and kept or given up after use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from reelquant.runtime.bundle import Bundle
from reelquant.runtime.engines.device_memory import StageMemory, check_room, kept_bytes
from reelquant.runtime.engines.engine import Engine
from reelquant.runtime.engines.options import EngineOptions
from reelquant.runtime.engines.session import Session
from reelquant.runtime.models.cogvideox.stages import Stage
from reelquant.runtime.models.cogvideox.vae import VaeDecoder, VaeEncoder
from reelquant.runtime.monitor import Monitor
from reelquant.runtime.sizes import Size

T = TypeVar("T")


class Networks:
    """With ``keep`` they stay for the next clip, but for what a run needs; else memory holds one at a time, of the VAE one graph. None is
    as the memory of the engine's device allows (:meth:`make_room`), and kept on an engine that has none of its own.

    ``transformer`` is a session in the place of the bundle's own.
    """

    def __init__(
        self,
        bundle: Bundle,
        engine: Engine,
        options: EngineOptions,
        tiled: bool = False,
        keep: bool | None = None,
        transformer: Session | None = None,
    ) -> None:
        self._bundle, self._engine, self._options, self._tiled = bundle, engine, options, tiled
        self._wanted, self._keep = keep, keep is not False
        self._admitted: dict[str, StageMemory] = {}  # what the networks that may be loaded take of the device
        self._given = transformer
        self._loaded: dict[str, object] = {}

    @property
    def loaded(self) -> frozenset[str]:
        """The names of those in memory."""
        return frozenset(self._loaded)

    def make_room(self, size: Size, stages: Sequence[Stage]) -> None:
        """Before a clip, or a part of one, of these ``stages``: see that the engine's device has the memory for it and, where nobody said,
        whether networks are kept. Those that were kept for other clips are given up where this one takes more.

        Raises:
            BadInput: it has not, and the message says what would fit; or nothing was built for this size.
        """
        needs = self._engine.clip_memory(self._bundle, size, self._tiled, self._own(stages))
        if needs is None:
            return
        admitted = self._admitted
        if all(each.name in admitted and each.alone <= admitted[each.name].alone for each in needs.stages):
            return
        self._loaded.clear()
        free, asked = self._engine.free_memory(self._options), {each.name: each for each in needs.stages}
        self._keep = check_room(needs.stages, free, self._wanted, needs.ways)
        if kept_bytes((admitted | asked).values()) <= free:  # beside those of other clips
            asked = admitted | asked
        self._admitted = asked if self._keep else {}

    def _own(self, stages: Sequence[Stage]) -> Sequence[Stage]:
        return [stage for stage in stages if self._given is None or stage.component != "transformer"]

    def text_encoder(self, monitor: Monitor) -> Session:
        return self._load("text_encoder", monitor, lambda: self._session("text_encoder"))

    def transformer(self, monitor: Monitor) -> Session:
        if self._given is not None:
            return self._given
        return self._load("transformer", monitor, lambda: self._session("transformer"))

    def vae_encoder(self, monitor: Monitor) -> VaeEncoder:
        return self._load(
            "vae_encoder", monitor, lambda: VaeEncoder(self._bundle, self._options, self._tiled, self._keep)
        )

    def vae_decoder(self, monitor: Monitor) -> VaeDecoder:
        return self._load("vae_decoder", monitor, self._new_decoder)

    def check_decoder(self, monitor: Monitor) -> None:
        """See that the decoder's files are whole: it is opened last, and after hours is late to find them damaged.

        Raises:
            BundleError: a file was changed.
        """
        if "vae_decoder" not in self._loaded:
            with monitor.loading():
                self._bundle.check_hashes(lambda name: name.startswith("vae_decoder/"))

    def done_with(self, *names: str) -> None:
        """Give networks up; of those that are kept, what their runs needed."""
        for name in names:
            network = self._loaded.get(name) if self._keep else self._loaded.pop(name, None)
            if isinstance(network, Session):
                network.rest()

    def _new_decoder(self) -> VaeDecoder:
        return VaeDecoder(self._bundle, self._options, self._tiled, keep=self._keep)

    def _session(self, component: str) -> Session:
        return self._engine.open_component(self._bundle, component, self._options, "main")["main"]

    def _load(self, name: str, monitor: Monitor, load: Callable[[], T]) -> T:
        if name not in self._loaded:
            with monitor.loading():
                self._loaded[name] = load()
        loaded: T = self._loaded[name]  # type: ignore[assignment]
        return loaded
