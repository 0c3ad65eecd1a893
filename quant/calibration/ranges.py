"""Ranges: what calibration saw. The lowest and highest value of every observed tensor, sample by sample; over all samples
the magnitudes of its values, and of what linears read the statistics of every channel; and the clips it sampled.

A sample is one row of the batch of one forward: one prompt, at one timestep, with or without its text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from reelquant.quant.calibration.channels import BINS, Channels
from reelquant.runtime.errors import BundleError
from reelquant.runtime.files.atomic import partial_folder
from reelquant.runtime.sizes import Size

# A tensor's name and one of these: the outputs of an observed graph, and the keys of ranges.safetensors.
LOW, HIGH, HISTOGRAM, CHANNEL = "::low", "::high", "::histogram", "::channel_"
_SAMPLE = "sample::"
_CLIP = "clip::"
_VERSION = 5  # 2: attentions too; 3: histograms and channels; 4: a digest of images too; 5: clips


@dataclass(frozen=True)
class Provenance:
    """Where ranges come from: enough to make them again, and to see that they belong to a bundle. ``data_sha256`` is of the
    prompts and, for image-to-video, of the images; ``sampling`` is how the bundle's defaults had the clips sampled.
    """

    task: str
    seed: int
    prompts: int
    data_sha256: str
    steps: int
    frames: int
    height: int
    width: int
    engine: str
    engine_version: str
    source_digest: str
    sampling: str = ""

    @property
    def size(self) -> Size:
        """Of the clips that were sampled."""
        return Size(self.frames, self.height, self.width)


@dataclass(frozen=True, eq=False)
class Samples:
    """What each sample was: ``timestep`` int64, ``conditional`` bool and ``prompt`` (its number, from 0) int64."""

    timestep: NDArray[np.int64]
    conditional: NDArray[np.bool_]
    prompt: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.timestep)


@dataclass(frozen=True, eq=False)
class Ranges:
    """``low`` and ``high``: tensor name → float32 [samples]. ``channels`` and ``histograms`` (int64, as
    :mod:`reelquant.quant.calibration.channels` bins them) are of some of these tensors or of none; recipes say which they need.
    ``clips``: scaled latents float32 [latent_frames, channels, h, w] of each prompt, or none; the VAE's decoder is calibrated on
    them.

    Raises:
        BundleError: arrays that do not fit each other, or a value that is infinite or NaN.
    """

    provenance: Provenance
    samples: Samples
    low: Mapping[str, NDArray[np.float32]]
    high: Mapping[str, NDArray[np.float32]]
    channels: Mapping[str, Channels] = field(default_factory=dict)
    histograms: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    clips: tuple[NDArray[np.float32], ...] = ()

    def __post_init__(self) -> None:
        for name, kind in (("timestep", "int64"), ("conditional", "bool"), ("prompt", "int64")):
            _check_array(f"sample array {name}", getattr(self.samples, name), kind, len(self.samples))
        if not len(self.samples) or not self.low:
            raise BundleError("the ranges are empty; calibrate again")
        if self.low.keys() != self.high.keys():
            raise BundleError(f"low and high are not of the same tensors: {sorted(self.low.keys() ^ self.high.keys())}")
        if self.samples.prompt.min() < 0 or self.samples.prompt.max() >= self.provenance.prompts:
            raise BundleError(f"the samples name a prompt beyond the {self.provenance.prompts} of the provenance")
        for tensor, low in self.low.items():
            high = self.high[tensor]
            for array in (low, high):
                _check_array(f"range of {tensor}", array, "float32", len(self.samples))
            if not np.all(np.isfinite(low) & np.isfinite(high) & (low <= high)):
                raise BundleError(
                    f"range of {tensor} is infinite, not a number, or upside down; "
                    "see that the graph runs without overflow, and calibrate again"
                )
        if unknown := (self.channels.keys() | self.histograms.keys()) - self.low.keys():
            raise BundleError(f"channels or a histogram of {min(unknown)}, which has no range")
        for tensor, histogram in self.histograms.items():
            _check_array(f"histogram of {tensor}", histogram, "int64", BINS)
        for number, clip in enumerate(self.clips):
            if clip.dtype != np.float32 or clip.ndim != 4 or not np.isfinite(clip).all():
                raise BundleError(
                    f"clip {number} is {clip.dtype} {list(clip.shape)}, not finite float32 [frames, channels, h, w]"
                )

    def absmax(self, tensor: str) -> float:
        """The largest magnitude of ``tensor`` over all samples.

        Raises:
            KeyError: it was not observed.
        """
        return float(max(self.high[tensor].max(), -self.low[tensor].min()))

    @property
    def summary(self) -> str:
        """One line for people: how many prompts, steps and samples."""
        made = self.provenance
        return (
            f"{len(self.low)} tensors over {len(self.samples)} samples: {made.prompts} prompts, {made.sampling or f'{made.steps} steps'}, "
            f"seed {made.seed}, on {made.engine} {made.engine_version}"
        )

    @property
    def digest(self) -> str:
        """sha256 of the provenance and of every array with its name, dtype and shape."""
        digest = hashlib.sha256(json.dumps(asdict(self.provenance), sort_keys=True).encode())
        for key, array in sorted(self._arrays().items()):
            digest.update(f"\n{key} {array.dtype} {'x'.join(map(str, array.shape))}\n".encode())
            digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
        return digest.hexdigest()

    def save(self, path: Path, replace: bool = False) -> None:
        """Write the folder ``path``: ``ranges.json`` and ``ranges.safetensors``, both or neither.

        Raises:
            BadInput: ``path`` exists and is not to be replaced, or cannot be written.
        """
        facts = {
            "version": _VERSION,
            "digest": self.digest,
            "samples": len(self.samples),
            "tensors": len(self.low),
            "clips": len(self.clips),
            "provenance": asdict(self.provenance),
        }
        with partial_folder(path, replace) as folder:
            # Through memory: writing to a file itself, safetensors reports a full disk without its errno.
            (folder / "ranges.safetensors").write_bytes(save(self._arrays()))
            (folder / "ranges.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Ranges:
        """Read the folder that :meth:`save` wrote.

        Raises:
            BundleError: missing, damaged, changed since it was written, or of another version.
        """
        try:
            facts = json.loads((path / "ranges.json").read_text(encoding="utf-8"))
            if facts["version"] != _VERSION:
                raise BundleError(f"version {facts['version']!r}, and this reelquant reads {_VERSION}; calibrate again")
            arrays: dict[str, NDArray[Any]] = load_file(path / "ranges.safetensors")
            samples = Samples(*(arrays.pop(_SAMPLE + name) for name in Samples.__dataclass_fields__))
            low = {key.removesuffix(LOW): arrays.pop(key) for key in list(arrays) if key.endswith(LOW)}
            high = {key.removesuffix(HIGH): arrays.pop(key) for key in list(arrays) if key.endswith(HIGH)}
            histograms = {
                key.removesuffix(HISTOGRAM): arrays.pop(key) for key in list(arrays) if key.endswith(HISTOGRAM)
            }
            first = CHANNEL + fields(Channels)[0].name
            channels = {
                name: Channels(*(arrays.pop(f"{name}{CHANNEL}{part.name}") for part in fields(Channels)))
                for name in [key.removesuffix(first) for key in arrays if key.endswith(first)]
            }
            clips = tuple(arrays.pop(f"{_CLIP}{number}") for number in range(facts["clips"]))
            ranges = cls(Provenance(**facts["provenance"]), samples, low, high, channels, histograms, clips)
            if arrays or ranges.digest != facts["digest"]:
                raise BundleError("its content does not match its digest; copy it again, or calibrate again")
        except BundleError as error:
            raise BundleError(f"ranges {path}: {error}") from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise BundleError(f"ranges {path} are missing or damaged ({error}); run calibrate again") from error
        return ranges

    def _arrays(self) -> dict[str, NDArray[Any]]:
        arrays: dict[str, NDArray[Any]] = {
            _SAMPLE + name: getattr(self.samples, name) for name in Samples.__dataclass_fields__
        }
        arrays |= {tensor + LOW: array for tensor, array in self.low.items()}
        arrays |= {tensor + HIGH: array for tensor, array in self.high.items()}
        arrays |= {tensor + HISTOGRAM: array for tensor, array in self.histograms.items()}
        arrays |= {f"{_CLIP}{number}": clip for number, clip in enumerate(self.clips)}
        for tensor, channels in self.channels.items():
            arrays |= {f"{tensor}{CHANNEL}{part.name}": getattr(channels, part.name) for part in fields(Channels)}
        return {key: np.ascontiguousarray(array) for key, array in arrays.items()}


def _check_array(what: str, array: NDArray[Any], kind: str, length: int) -> None:
    if array.dtype != np.dtype(kind) or array.shape != (length,):
        raise BundleError(f"{what} is {array.dtype} {list(array.shape)}, not {kind} [{length}]")
