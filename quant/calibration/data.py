"""What a bundle is calibrated on: a folder with ``prompts.txt`` and, for image-to-video, ``images/``."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path

from reelquant.runtime.errors import BadInput
from reelquant.runtime.request import Request
from reelquant.runtime.sampling.tokenizer import Tokenizer
from reelquant.runtime.sizes import Size

_IMAGES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class CalibrationData:
    """Prompts in file order and images in name order; image i goes with prompt i. ``before`` are prompts left out."""

    name: str
    prompts: tuple[str, ...]
    images: tuple[Path, ...]
    before: int = 0

    @classmethod
    def load(cls, name_or_path: str) -> CalibrationData:
        """Read a set that comes with reelquant (``general``, ``demo``) by name, or any such folder by path.

        Raises:
            BadInput: there is none such, or it has no prompts.
        """
        built_in = _built_in()
        folder = built_in.get(name_or_path, Path(name_or_path))
        try:
            text = (folder / "prompts.txt").read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(
                f"no calibration data in {name_or_path} ({error}); give one of {', '.join(built_in)}, "
                "or a folder with prompts.txt (one prompt a line) and images/"
            ) from error
        prompts = tuple(line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#"))
        images = tuple(sorted(f for f in (folder / "images").glob("*") if f.suffix.lower() in _IMAGES))
        return cls(name_or_path, prompts, images)

    def first(self, count: int) -> tuple[str, ...]:
        """The first ``count`` prompts.

        Raises:
            BadInput: there are fewer, or none are wanted.
        """
        if not 1 <= count <= len(self.prompts):
            raise BadInput(f"calibration data {self.name} has {len(self.prompts)} prompts; {count} cannot be used")
        return self.prompts[:count]

    def check_tokens(self, count: int, tokenizer: Tokenizer) -> None:
        """Hold the first ``count`` prompts against what the model reads, before any of them is rendered.

        Raises:
            BadInput: one is too long; the message says which, and what to do.
        """
        for number, prompt in enumerate(self.first(count), self.before + 1):
            try:
                tokenizer.encode(prompt)
            except BadInput as error:
                fits = [name for name in _built_in() if name != self.name and _reads_all(name, tokenizer)]
                other = f"--data {' or '.join(fits)}" if fits else "--data FOLDER, with prompts.txt"
                raise BadInput(
                    f"calibration data {self.name}, prompt {number}: {error}, or calibrate on a set that fits: {other}"
                ) from error

    def images_for(self, count: int) -> list[Path]:
        """One image for each of the first ``count`` prompts.

        Raises:
            BadInput: there are fewer.
        """
        if len(self.images) < count:
            raise BadInput(
                f"calibration data {self.name} has {len(self.images)} images for {count} prompts; give --data FOLDER with "
                "prompts.txt and images/, in it PNG, JPEG or WebP files, one for each prompt in the order of their names"
            )
        return list(self.images[:count])

    def digest(self, task: str, count: int) -> str:
        """sha256 of all that a calibration on the first ``count`` prompts reads: them and, for image-to-video, their images.

        Raises:
            BadInput: there are fewer.
        """
        images = self.images_for(count) if task == "i2v" else []
        read = [hashlib.sha256(prompt.encode()).hexdigest() for prompt in self.first(count)]
        read += [hashlib.sha256(image.read_bytes()).hexdigest() for image in images]
        return hashlib.sha256("\n".join(read).encode()).hexdigest()

    def usable(self, task: str) -> int:
        """How many prompts there are, for image-to-video with an image."""
        return min(len(self.prompts), len(self.images)) if task == "i2v" else len(self.prompts)

    def last(self, count: int, task: str) -> CalibrationData:
        """The set of the last ``count`` prompts, or of all if there are fewer: what a calibration on the first ones did not
        see. For image-to-video the last that have an image.
        """
        usable = self.usable(task)
        start = max(0, usable - count)
        return CalibrationData(self.name, self.prompts[start:usable], self.images[start:usable], start)

    def requests(
        self, task: str, prompts: int, seed: int, steps: int | None = None, size: Size | None = None
    ) -> list[Request]:
        """One clip for each of the first ``prompts``, with seeds from ``seed`` on; without ``steps`` and ``size``, of the bundle's.

        Raises:
            BadInput: there are fewer prompts, or for image-to-video images.
        """
        images = self.images_for(prompts) if task == "i2v" else [None] * prompts
        sides = asdict(size) if size is not None else {}
        return [
            Request(prompt, image, seed=seed + number, steps=steps, **sides)
            for number, (prompt, image) in enumerate(zip(self.first(prompts), images, strict=True))
        ]


def _reads_all(name: str, tokenizer: Tokenizer) -> bool:
    """Whether every prompt of a set that comes along is short enough."""
    try:
        for prompt in CalibrationData.load(name).prompts:
            tokenizer.encode(prompt)
    except BadInput:
        return False
    return True


def _built_in() -> dict[str, Path]:
    """Sets by name: in the wheel they lie beside the other packages, in a checkout beside ``quant/``."""
    root = Path(__file__).parents[2] / "calib_data"
    return {folder.name: folder for folder in sorted(root.glob("*")) if (folder / "prompts.txt").is_file()}
