"""Small data sets in the layouts of the library `datasets`."""

from __future__ import annotations

import io
from typing import Any

import pytest
from PIL import Image

from tests.data.builders import picture

datasets = pytest.importorskip("datasets")
SAID = [{"from": "human", "value": "<image>\nWhat colour?"}, {"from": "gpt", "value": "red"}]


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def colours(count: int) -> list[dict[str, Any]]:
    """LLaVA rows with their pictures in them; each picture is another."""
    shown = [{"bytes": png(picture((i, 0, 0))), "path": None} for i in range(count)]
    return [{"id": f"{i:03}", "image": image, "conversations": SAID} for i, image in enumerate(shown)]


def features(**more: Any) -> Any:
    text = datasets.Value("string")
    turns = datasets.List({"from": text, "value": text})
    return datasets.Features({"id": text, "image": datasets.Image(), "conversations": turns} | more)
