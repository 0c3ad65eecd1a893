"""CogVideoX as the rest of the runtime sees it: the one place that reads its Hugging Face configs.

2b, 5b, 5b-I2V, 1.5-5B and 1.5-5B-I2V differ in what stands in these configs, and in nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from reelquant.runtime.errors import BadInput, BundleError
from reelquant.runtime.models.cogvideox.geometry import Geometry
from reelquant.runtime.models.cogvideox.guidance import dynamic_scale
from reelquant.runtime.models.cogvideox.positions import LEARNED, check_positions, position_inputs
from reelquant.runtime.models.cogvideox.schedulers import Scheduler, scheduler_from_config, with_class
from reelquant.runtime.models.cogvideox.tiles import Tiling, tilings
from reelquant.runtime.sizes import Size

if TYPE_CHECKING:
    from reelquant.runtime.bundle import Bundle
    from reelquant.runtime.bundle.manifest import Manifest

Floats = NDArray[np.float32]
Config = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class CogVideoX:
    """One model. ``text_tokens`` is how many tokens of text it reads, padding included; ``transformer``, ``vae`` and
    ``scheduler_config`` are the checkpoint's own configs.
    """

    NAME = "cogvideox"

    geometry: Geometry
    text_tokens: int
    transformer: Config
    vae: Config
    scheduler_config: Config

    @classmethod
    def of(cls, manifest: Manifest) -> CogVideoX:
        """A bundle's."""
        return cls(manifest.geometry, manifest.text_tokens, manifest.transformer, manifest.vae, manifest.scheduler)

    @classmethod
    def of_configs(cls, transformer: Config, vae: Config, scheduler: Config) -> CogVideoX:
        """A checkpoint's."""
        geometry = Geometry(
            spatial=2 ** (len(vae["block_out_channels"]) - 1),
            temporal=int(vae["temporal_compression_ratio"]),
            patch=transformer["patch_size"],
            patch_t=transformer.get("patch_size_t") or 1,
            latent_channels=vae["latent_channels"],
            max_frames=max(161 if transformer.get("patch_size_t") else 49, transformer["sample_frames"]),
        )
        return cls(geometry, int(transformer["max_text_seq_length"]), transformer, vae, scheduler)

    def check(self, where: Path) -> None:
        """Raises:
        BundleError: a field that every clip needs is not what it must be.
        """
        scale = self.vae.get("scaling_factor")
        if type(scale) not in (int, float) or not scale:
            raise BundleError(f"{where} has the scaling_factor {scale!r}; export the bundle again")

    # The transformer.

    @property
    def text_width(self) -> int:
        return int(self.transformer["text_embed_dim"])

    @property
    def heads(self) -> int:
        return int(self.transformer["num_attention_heads"])

    @property
    def head_dim(self) -> int:
        return int(self.transformer["attention_head_dim"])

    @property
    def has_learned_positions(self) -> bool:
        return bool(self.transformer.get("use_learned_positional_embeddings"))

    def attention_tokens(self, size: Size) -> int:
        """Text and video together, which attend to one another."""
        return self.text_tokens + self.geometry.video_tokens(size)

    def constants(self, bundle: Bundle, shape: tuple[int, ...]) -> dict[str, Floats]:
        """The inputs that no step and no prompt changes, for latents of ``shape`` [latent_frames, channels, h, w].

        Raises:
            BundleError: the file of learned positions was changed.
        """
        learned = bundle.path / LEARNED if LEARNED in bundle.manifest.files else None
        if learned:
            bundle.check_hashes(lambda name: name == LEARNED)
        fixed = position_inputs(self.transformer, self.text_tokens, shape, learned)
        if self.transformer.get("ofs_embed_dim"):
            fixed["ofs"] = np.full(1, 2, np.float32)  # the one value that the pipelines give it
        return fixed

    # Sizes.

    @property
    def trained_size(self) -> Size:
        """What it says that it was trained on, in pixels; a 1.5's is a bound of its positions, and larger."""
        config, cell = self.transformer, self.geometry.spatial
        height, width = int(config["sample_height"]) * cell, int(config["sample_width"]) * cell
        return Size(int(config["sample_frames"]), height, width)

    @property
    def fps(self) -> int:
        """Frames a second, as the checkpoints' authors save their examples."""
        return 16 if self.geometry.patch_t > 1 else 8

    def checked(self, size: Size) -> Size:
        """Return ``size`` when the model can make it.

        Raises:
            BadInput: it cannot; the message says what it can.
        """
        size = self.geometry.checked(size)
        check_positions(self.transformer, *self.geometry.latent_shape(size)[2:])
        return size

    def smaller(self, size: Size) -> Iterator[Size]:
        """Ever smaller sizes that the model can make."""
        for each in self.geometry.smaller(size):
            try:
                yield self.checked(each)
            except BadInput:  # it has no positions for that size
                continue

    # The way from noise to latents.

    def scheduler(self, name: str | None = None, timesteps: Iterable[int] | None = None) -> Scheduler:
        """The checkpoint's own, or the one that is called "ddim" or "dpm", with runs at ``timesteps`` where they are given.

        Raises:
            BadInput: the name is neither, or there can be no run at those timesteps.
            BundleError: the config has a value that is not supported.
        """
        made = scheduler_from_config(self.scheduler_config if name is None else with_class(self.scheduler_config, name))
        return made if timesteps is None else made.at(timesteps)

    def guidance(self, scale: float, dynamic: bool, steps: int) -> Callable[[int], float]:
        """The guidance scale at a training timestep of a run of ``steps``."""
        return (lambda timestep: dynamic_scale(scale, timestep, steps)) if dynamic else (lambda timestep: scale)

    # The VAE.

    @property
    def scale(self) -> float:
        """The transformer's latents are the VAE's times this."""
        return float(self.vae["scaling_factor"])

    @property
    def image_scale(self) -> float:
        """As :attr:`scale`, of an image to start from: the 1.5 image-to-video checkpoint was trained on images' latents
        divided by the factor.
        """
        return 1 / self.scale if self.vae.get("invert_scale_latents") else self.scale

    def decodes(self, shape: tuple[int, ...]) -> bool:
        """Whether the VAE decodes latents of ``shape`` [latent_frames, channels, h, w]: an odd number of frames, from 3."""
        return shape[1] == self.geometry.latent_channels and shape[0] >= 3 and shape[0] % 2 == 1

    def tilings(self, half: str = "decoder") -> tuple[Tiling, Tiling]:
        """How rows and columns are tiled, of the ``decoder`` or the ``encoder``.

        Raises:
            BundleError: the bundle was made before the VAE's own size was kept.
        """
        return tilings(self.vae.get("sample_height"), self.vae.get("sample_width"), self.geometry.spatial, half)
