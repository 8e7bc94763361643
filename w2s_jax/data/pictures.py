"""Folders of PNG and JPEG pictures, one for each class, read by Pillow."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from w2s_jax.core.errors import InputError, first_line, listed
from w2s_jax.core.files import contents

SUFFIXES = (".png", ".jpg", ".jpeg")
_FORMATS = ("PNG", "JPEG")
#: Pillow's modes -> those that pictures are converted to. Others have transparency or more bits.
_MODES = {"1": "L", "L": "L", "RGB": "RGB", "P": "RGB", "YCbCr": "RGB", "CMYK": "RGB"}


def has_pictures(folder: Path) -> bool:
    """Return whether a folder has a folder with a picture."""
    return any(
        path.suffix.lower() in SUFFIXES for inner in _folders(folder) for path in contents(inner)
    )


def read_pictures(folder: Path, size: int | None = None) -> Iterator[tuple[str, np.ndarray, str]]:
    """Yield (where, pixels, class) of each picture, class by class in alphabetical order.

    Args:
      folder: with a folder of pictures for each class. Other files are ignored.
      size: pixels of a side, to which pictures are resized (antialiased, without keeping the
        ratio of their sides); None: as they are.

    Raises:
      InputError: Pillow is not installed, a class has no picture, a picture cannot be read, or it
        is neither greyscale nor colour of 8 bits.
    """
    if importlib.util.find_spec("PIL") is None:
        raise InputError(
            f"{folder}: PNG and JPEG pictures are read by Pillow, which is not installed; "
            "pip install 'w2s_jax[images]'"
        )
    for inner in _folders(folder):
        paths = contents(inner)
        chosen = [path for path in paths if path.suffix.lower() in SUFFIXES]
        if not chosen:
            found = listed([path.name for path in paths], "nothing")
            raise InputError(
                f"{folder}, {inner.name}: the folder of a class has no {', '.join(SUFFIXES)} file; "
                f"it contains {found}"
            )
        for path in chosen:
            where = f"{folder}, {inner.name}/{path.name}"
            yield where, _pixels(path, where, size), inner.name


def _folders(folder: Path) -> list[Path]:
    return [path for path in contents(folder) if path.is_dir()] if folder.is_dir() else []


def _pixels(path: Path, where: str, size: int | None) -> np.ndarray:
    """Return a picture as it is shown, uint8 [H, W] or [H, W, 3]."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with path.open("rb") as stored, Image.open(stored, formats=_FORMATS) as opened:
            opened.load()
            # Cameras turn a picture by a tag.
            picture: Any = ImageOps.exif_transpose(opened)
            mode = picture.mode
            if mode not in _MODES or "transparency" in picture.info:
                what = "has transparency" if mode in _MODES else f"is of mode {mode!r}"
                raise InputError(
                    f"{where}: the picture {what}; allowed: greyscale or RGB, of 8 bits, without "
                    "transparency"
                )
            picture = picture.convert(_MODES[mode])
            if size is not None:
                picture = picture.resize((size, size), Image.Resampling.BILINEAR)
            return np.asarray(picture)
    except InputError:
        raise
    except UnidentifiedImageError as error:
        raise InputError(f"{where}: is not a PNG or JPEG image") from error
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError and others
        raise InputError(f"{where}: cannot be read as an image ({first_line(error)})") from error
