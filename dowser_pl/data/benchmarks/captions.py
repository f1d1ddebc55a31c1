"""Layouts of pictures with captions: COCO's own, NoCaps, Karpathy's splits, and Flickr30k's list of tokens.

Rows have `id`, `image` and `captions`; see `questions.py`.
"""

from __future__ import annotations

from collections.abc import Iterator

from dowser_pl.data.benchmarks.files import Files
from dowser_pl.data.reading.sources import Row


def coco(files: Files) -> Iterator[Row]:
    """COCO captions and NoCaps: `images[]` with `id, file_name`, and `annotations[]` with `image_id, caption`.

    Splits of NoCaps by domain are those of its images whose `domain` begins with the setting of that name.
    """
    content, domain = files.json("captions"), files.settings.get(files.split, "")
    captions: dict[str, list[str]] = {}
    for entry in content.get("annotations", []):
        captions.setdefault(str(entry["image_id"]), []).append(entry["caption"])
    for entry in content["images"]:
        if domain and not entry["domain"].startswith(domain):
            continue
        number, row = str(entry["id"]), {"id": entry["id"], "image": entry["file_name"]}
        yield row | ({"captions": captions[number]} if number in captions else {})


def karpathy(files: Files) -> Iterator[Row]:
    """Karpathy's splits: `images[]` with `filename`, for COCO `filepath` and `cocoid`, `split`, and `sentences[].raw`.

    The split "train" has those of "restval" as well, as papers on COCO have it.
    """
    content = files.json("captions")
    files.check("captions", content.get("dataset"), files.settings["dataset"], "dataset")
    wanted = {files.split, "restval"} if files.split == "train" else {files.split}
    for entry in content["images"]:
        if entry["split"] in wanted:
            image = "/".join(part for part in (entry.get("filepath"), entry["filename"]) if part)
            captions = [sentence["raw"] for sentence in entry["sentences"]]
            yield {"id": entry.get("cocoid", entry["filename"]), "image": image, "captions": captions}


def tokens(files: Files) -> Iterator[Row]:
    """Flickr30k's `results_20130124.token`: lines of `{image}#{number}`, a tab, and a caption."""
    captions: dict[str, list[str]] = {}
    lines = files.paths["captions"].read_text(encoding="utf-8-sig").rstrip("\n").split("\n")
    for number, line in enumerate(lines, 1):  # splitlines() would break captions at marks such as U+2028
        place, tab, caption = line.partition("\t")
        image, mark, _ = place.rpartition("#")
        if not (tab and mark):
            raise files.wrong("captions", f"{line[:60]!r} in line {number}", "name.jpg#0, a tab, and a caption")
        captions.setdefault(image, []).append(caption)
    for image, said in captions.items():
        yield {"id": image, "image": image, "captions": said}
