import json

import pytest
from transformers import AutoImageProcessor, Qwen2VLImageProcessorPil

from dowser_pl.patches.tuned_folder import write_image_settings
from tests.patches.samples import fingerprints, save_base

KINDS = {
    "of the hub": ({"min_pixels": 64, "max_pixels": 1024}, {"max_pixels": 512, "min_pixels": 64}),
    "of today": (
        {"size": {"shortest_edge": 64, "longest_edge": 1024}},
        {"size": {"shortest_edge": 64, "longest_edge": 512}},
    ),
    "both": (
        {"size": {"shortest_edge": 64, "longest_edge": 1024}, "min_pixels": 64, "max_pixels": 1024},
        {"size": {"shortest_edge": 64, "longest_edge": 512}, "min_pixels": 64, "max_pixels": 512},
    ),
}


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_what_a_run_changed_is_written_and_nothing_else(tmp_path, kind, nested):
    before, after = KINDS[kind]
    before = {"image_processor_type": "Qwen2VLImageProcessor", **before, "patch_size": 4, "merge_size": 2, "odd": 1e-05}
    path = tmp_path / ("processor_config.json" if nested else "preprocessor_config.json")
    path.write_text(json.dumps({"image_processor": before, "z": 1} if nested else before, indent=3))
    images = Qwen2VLImageProcessorPil.from_pretrained(str(tmp_path))
    untouched = fingerprints(tmp_path)
    write_image_settings(tmp_path, images)
    assert fingerprints(tmp_path) == untouched
    changed = Qwen2VLImageProcessorPil.from_dict({**images.to_dict(), "max_pixels": 512})
    assert changed.size["longest_edge"] == 512
    write_image_settings(tmp_path, changed)
    written = json.loads(path.read_text())
    assert written == ({"image_processor": before | after, "z": 1} if nested else before | after)
    loaded = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    assert dict(loaded.size) == {"shortest_edge": 64, "longest_edge": 512}


def test_a_folder_without_settings_is_left_alone(tmp_path):
    base = save_base(tmp_path / "base")
    images = AutoImageProcessor.from_pretrained(base, backend="pil")
    before = fingerprints(base)
    write_image_settings(base, images)
    assert fingerprints(base) == before
    (base / "processor_config.json").unlink()
    before = fingerprints(base)
    write_image_settings(base, images)
    assert fingerprints(base) == before
