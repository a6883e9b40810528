"""Images that are read, and the codes of those that are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from conftest import encode
from masksim.errors import ImageError
from masksim.image import LoadedImage, load_image

Files = dict[str, tuple[Path, Any]]


def code_of(source: Any, **options: Any) -> str:
    """Return the code with which a source is refused."""
    with pytest.raises(ImageError) as caught:
        load_image(source, **options)
    assert caught.value.code in ImageError.codes
    assert caught.value.message
    return caught.value.code


def stored(image: Image.Image, format_: str = "PNG", **options: Any) -> LoadedImage:
    return load_image(encode(image, format_, **options))
