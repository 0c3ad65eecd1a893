"""A picture → the pixels and the tensor that CogVideoX is conditioned on, and its tensors → pixels again."""

from __future__ import annotations

import io
import os
import re
import stat
import warnings
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from reelquant.runtime.errors import AccuracyError, BadInput

# A file's path, a Pillow image, or uint8 RGB [height, width, 3].
Picture: TypeAlias = str | os.PathLike[str] | Image.Image | NDArray[np.uint8]
FORMATS = ("PNG", "JPEG", "WEBP")
PNG_END = b"IEND\xaeB`\x82"
MAX_FILE_BYTES = 64 * 2**20
# Below the 89 million where Pillow begins to warn of a decompression bomb.
MAX_PIXELS = 40_000_000
# As Path writes one: a second slash is lost. A scheme of one letter is a disk of Windows.
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def load_image(picture: Picture, height: int, width: int, what: str = "the image") -> NDArray[np.uint8]:
    """A PNG, JPEG or WebP file, a Pillow image or an array as uint8 RGB [height, width, 3], resized as diffusers'
    VideoProcessor does.

    EXIF orientation is applied, transparency becomes white, an animation gives its first frame. The aspect ratio is
    not kept: Lanczos straight to ``height`` x ``width``. ``what`` names a picture without a name in messages.

    Raises:
        BadInput: there is no such file, it is not a whole image of at most 40 megapixels and 64 MiB, the array is
            not uint8 [height, width, 3], or the Pillow image's values have no fixed range.
    """
    if isinstance(picture, str | os.PathLike):
        image = _read(Path(picture))
    elif isinstance(picture, Image.Image):
        image = _converted(picture, what)
    else:
        image = Image.fromarray(checked_pixels(picture, what, 3))
    return np.asarray(image.resize((width, height), Image.Resampling.LANCZOS))


def checked_pixels(array: Any, what: str, sides: int) -> NDArray[np.uint8]:
    """Return ``array`` when it is uint8 RGB with so many ``sides``, [height, width, 3] or [frames, height, width, 3].

    Raises:
        BadInput: it is not; the message says how to make it so.
    """
    wanted, other = "uint8 [height, width, 3]", "a Pillow image"
    if sides == 4:
        wanted, other = "uint8 [frames, height, width, 3]", "a list of pictures"
    if not isinstance(array, np.ndarray):
        raise BadInput(f"{what} is a {type(array).__name__}; give a path, {other}, or an array {wanted}")
    if array.dtype != np.uint8:
        remedy = "from values in 0…1: (255 * x).round().astype('uint8')"
        raise BadInput(f"{what} is an array of {array.dtype}; give {wanted}, {remedy}")
    if array.ndim != sides or array.shape[-1] != 3 or not array.size:
        raise BadInput(f"{what} is an array of shape {list(array.shape)}; give {wanted}")
    return array


def _read(path: Path) -> Image.Image:
    readable_file(path, "image", MAX_FILE_BYTES)
    too_many = f"image {path} has more than {MAX_PIXELS // 10**6} megapixels; make it smaller first"
    try:
        data = path.read_bytes()
        with warnings.catch_warnings():
            # What Pillow warns of (odd EXIF, odd palettes) it can decode, but for its bomb warning: our limit is lower.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise BadInput(too_many)
                if image.format == "PNG" and PNG_END not in data:
                    raise ValueError("it has no end")  # which Pillow does not miss once the last row is there
                image.load()
                return _rgb(ImageOps.exif_transpose(image))
    except BadInput:
        raise
    except Image.DecompressionBombError as error:
        raise BadInput(too_many) from error
    except UnidentifiedImageError as error:
        raise BadInput(f"{path} is not a PNG, JPEG or WebP image; convert it to one of these") from error
    except Exception as error:  # Pillow's decoders raise a dozen classes on damaged files
        raise BadInput(f"image {path} is damaged or cut short ({error}); export or download it again") from error


def _converted(picture: Image.Image, what: str) -> Image.Image:
    if picture.mode in ("F", "I"):
        # Pillow would clip them at 255, and make black of 0…1.
        raise BadInput(
            f"{what} is a Pillow image of mode {picture.mode}, whose values may mean anything; "
            "make them 0…255 and give an image of mode L or RGB"
        )
    if not picture.width or not picture.height:
        raise BadInput(f"{what} is a Pillow image of {picture.height}x{picture.width}; give one that shows something")
    try:
        return _rgb(ImageOps.exif_transpose(picture))
    except Exception as error:  # Pillow reads a file when its pixels are first asked for
        raise BadInput(f"{what} cannot be read ({error}); open it again, or give its path") from error


def to_model(frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    """uint8 [f, h, w, 3] → float32 [1, 3, f, h, w] in -1…1."""
    scaled = frames.astype(np.float32) / 127.5 - 1
    return np.ascontiguousarray(scaled.transpose(3, 0, 1, 2)[None])


def from_model(x: NDArray[np.float32], first: int = 0) -> NDArray[np.uint8]:
    """float32 [1, 3, f, h, w], -1…1 and clipped to that → uint8 [f, h, w, 3], rounded half to even.

    ``first`` is the number in its clip of the first of them, for the error.

    Raises:
        AccuracyError: a value is NaN or infinite.
    """
    _, channels, frames, height, width = x.shape
    clip = np.empty((frames, height, width, channels), np.uint8)
    for i in range(frames):
        frame = x[0, :, i].transpose(1, 2, 0)
        if not np.isfinite(frame).all():
            raise AccuracyError(
                f"frame {first + i} of the decoded clip has NaN or infinite values; the clip cannot be used"
            )
        clip[i] = np.rint(np.clip(frame * 0.5 + 0.5, 0, 1) * 255)
    return clip


def readable_file(path: Path, what: str, most: int) -> Path:
    """Return ``path`` when it is a regular file of 1 to ``most`` bytes; ``what`` names its kind in messages.

    Raises:
        BadInput: it is not, or it cannot be read.
    """
    try:
        found = path.stat()  # before opening: that would wait forever on a pipe
        if stat.S_ISREG(found.st_mode):
            path.open("rb").close()
    except FileNotFoundError as error:
        todo = "download it, and name the file" if URL.match(str(path)) else "check the name"
        raise BadInput(f"{what} {path} does not exist; {todo}") from error
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        why = getattr(error, "strerror", None) or error
        raise BadInput(f"{what} {path} cannot be read: {why}; check the name and its permissions") from error
    if stat.S_ISDIR(found.st_mode):
        raise BadInput(f"{what} {path} is a folder; name a file in it")
    if not stat.S_ISREG(found.st_mode):
        raise BadInput(f"{what} {path} is a device or pipe; name a regular file")
    if found.st_size == 0:
        raise BadInput(f"{what} {path} is empty; export or download it again")
    if found.st_size > most:
        raise BadInput(f"{what} {path} has {found.st_size} bytes, more than the {most} allowed; make it smaller first")
    return path


def _rgb(image: Image.Image) -> Image.Image:
    transparent = image.info.get("transparency")
    if image.mode.startswith("I"):
        # Pillow's own conversion clips 16-bit grey at 255.
        grey = np.asarray(image).astype(np.uint32)
        alpha = np.where(grey == transparent, 0, 255) if isinstance(transparent, int) else np.full_like(grey, 255)
        image = Image.fromarray(np.stack([(grey + 128) // 257, alpha], -1).astype(np.uint8))
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    opaque = Image.new("RGB", image.size, "white")
    opaque.paste(image, mask=image.getchannel("A"))
    return opaque
