"""The published benchmarks that are read as they are downloaded: a table of where their files lie.

Places are those of the official archives, or of LLaVA's instructions for evaluation, below one folder; any can be
replaced. `{split}` stands for the split. Keys were read in the official code of each set or in several parsers of it.
Not seen in a file of the publisher itself: `dataset_version` of TextVQA and the README.txt of ImageNet-R, which are
known from the code of others alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from dowser_pl.data.benchmarks.captions import coco, karpathy, tokens
from dowser_pl.data.benchmarks.choices import classes, mmbench, pope, problems, records
from dowser_pl.data.benchmarks.files import Files
from dowser_pl.data.benchmarks.questions import aokvqa, gqa, ocrvqa, textvqa, vizwiz, vqa
from dowser_pl.data.reading.sources import Row
from dowser_pl.errors import DowserError, nearest_of


@dataclass(frozen=True)
class Benchmark:
    """One set: its files, splits and layout.

    Attributes:
        layout: files -> rows.
        files: what a file holds -> where it lies; several places with "|" between them. `images` is a folder.
        splits: split -> places that are others there, "" for what it lacks; the first split is the one to evaluate on.
        source: where it is to be had, for messages.
        settings: of the layout.
        optional: files that only some protocols want.
        hint: what to say where pictures are missing.
    """

    layout: Callable[[Files], Iterator[Row]]
    files: Mapping[str, str]
    splits: Mapping[str, Mapping[str, str]]
    source: str
    settings: Mapping[str, str] = field(default_factory=dict)
    optional: tuple[str, ...] = ()
    hint: str = ""

    def places(self, split: str, wanted: tuple[str, ...] = ()) -> dict[str, str]:
        """What a file of a split holds -> where it lies.

        Args:
            split: of the set.
            wanted: optional files that are wanted.
        """
        left_out = set(self.optional) - set(wanted)
        places = {key: place for key, place in {**self.files, **self.splits[split]}.items() if key not in left_out}
        return {key: place.format(split=split) for key, place in places.items() if place}


_COCO = "the MS COCO site (cocodataset.org)"
_VQA_YEARS = {
    "val": "val2014",
    "train": "train2014",
    "test": "test2015",
    "test-dev": "test2015",
    "image": "COCO_{year}_{id:012d}.jpg",
}
_KARPATHY = "Karpathy's caption_datasets.zip"
_TRAINED: dict[str, dict[str, str]] = {"test": {}, "val": {}, "train": {}}


def _below(file: str, *folders: str) -> str:
    """The places of a file, which some keep in a folder of that kind of files."""
    return "|".join([file, *(f"{folder}/{file}" for folder in folders)])


def _coco_images(folder: str) -> str:
    """The places of a folder of COCO's pictures, which other sets share."""
    return "|".join([_below(folder, "images", "coco", "../coco"), "images"])


def _images(folder: str) -> str:
    return "|".join([_below(folder, "images"), "images"])


def _vqa(source: str, prefix: str, answers: str, version: str = "") -> Benchmark:
    asked = prefix + "OpenEnded_mscoco_{split}%s_questions.json"
    files = {
        "questions": _below(asked % 2014, "questions", "Questions"),
        "annotations": _below(answers + "mscoco_{split}2014_annotations.json", "annotations", "Annotations"),
        "images": _coco_images("{split}2014"),
    }
    open_ones = {
        split: {
            "questions": _below(asked % 2015, "questions", "Questions"),
            "annotations": "",
            "images": _coco_images("test2015"),
        }
        for split in ("test", "test-dev")
    }
    splits: dict[str, dict[str, str]] = {"val": {}, "train": {}, **(open_ones if version else {})}
    return Benchmark(vqa, files, splits, source, {**_VQA_YEARS, "version": version})


def _mmbench(file: str) -> Benchmark:
    source = "download.openmmlab.com/mmclassification/datasets/mmbench"
    return Benchmark(mmbench, {"questions": file}, {"dev": {}, "test": {}}, source)


def _science(**settings: str) -> Benchmark:
    files = {"problems": "problems.json", "splits": "pid_splits.json", "images": "images/{split}|{split}"}
    source = "github.com/lupantech/ScienceQA"
    return Benchmark(problems, files, _TRAINED, source, {"image": "{id}/image.png", **settings})


def _records(source: str, test: str, train: str, images: str = ".", train_images: str = "") -> Benchmark:
    splits = {"test": {}, "train": {"rows": train, "images": train_images or images}}
    return Benchmark(records, {"rows": test, "images": images}, splits, source)


def _dowser(folder: str, test: str, images: str, train_images: str = "") -> Benchmark:
    source = "github.com/nguyendinhson-kaist/Model-Dowser, and the images of the set"
    rows = [f"data/{folder}/{name}|{folder}/{name}" for name in (test, "train.json")]
    return _records(source, rows[0], rows[1], images, train_images)


def _ucit(folder: str) -> Benchmark:
    source = "huggingface.co/datasets/HaiyangGuo/UCIT"
    rows = [f"UCIT/{folder}/{name}|{folder}/{name}" for name in ("test.json", "train.json")]
    return _records(source, rows[0], rows[1], "UCIT/datasets|datasets")


BENCHMARKS: dict[str, Benchmark] = {
    "textvqa": Benchmark(
        textvqa,
        {
            "questions": "TextVQA_0.5.1_{split}.json",
            "ocr": "llava_textvqa_val_v051_ocr.jsonl|TextVQA_Rosetta_OCR_v0.2_{split}.json",
            "images": _images("train_images"),
        },
        {
            "val": {},
            "train": {"ocr": "TextVQA_Rosetta_OCR_v0.2_train.json"},
            "test": {"ocr": "TextVQA_Rosetta_OCR_v0.2_test.json", "images": _images("test_images")},
        },
        "textvqa.org/dataset (version 0.5.1)",
        optional=("ocr",),
    ),
    "okvqa": _vqa("okvqa.allenai.org", "", ""),
    "aokvqa": Benchmark(
        aokvqa,
        {"questions": "aokvqa_v1p0_{split}.json", "images": "{split}2017"},
        {"val": {}, "train": {}, "test": {}},
        "github.com/allenai/aokvqa (version 1.0), images of COCO 2017",
    ),
    "vqav2": _vqa("visualqa.org (VQA v2.0)", "v2_", "v2_", "2.0"),
    "vizwiz": Benchmark(
        vizwiz,
        {"questions": "{split}.json|Annotations/{split}.json|annotations/{split}.json", "images": _images("{split}")},
        {"val": {}, "train": {}, "test": {}},
        "vizwiz.org",
    ),
    "gqa": Benchmark(
        gqa,
        {
            "questions": _below("testdev_balanced_questions.json", "questions", "questions1.2", "data/questions1.2"),
            "images": "images|data/images",
        },
        {"testdev": {}},
        "cs.stanford.edu/people/dorarad/gqa (version 1.2)",
    ),
    "ocrvqa": Benchmark(
        ocrvqa,
        {"questions": "dataset.json", "images": "images"},
        _TRAINED,
        "ocr-vqa.github.io",
        {"train": "1", "val": "2", "test": "3"},
        hint="Many URLs of the set are dead: `skip_bad_rows: true` leaves these questions out and counts them.",
    ),
    "mmbench": _mmbench("mmbench_{split}_20230712.tsv"),
    "mmbench_cn": _mmbench("mmbench_{split}_cn_20231003.tsv"),
    "coco_caption": Benchmark(
        coco,
        {"captions": "annotations/captions_{split}.json", "images": _coco_images("{split}")},
        {"val2014": {}, "train2014": {}, "val2017": {}, "train2017": {}},
        _COCO,
    ),
    "coco_karpathy": Benchmark(
        karpathy,
        {"captions": "dataset_coco.json", "images": ".|images|coco|../coco"},
        _TRAINED,
        f"{_KARPATHY} (images in train2014 and val2014)",
        {"dataset": "coco"},
    ),
    "flickr30k": Benchmark(
        karpathy,
        {"captions": "dataset_flickr30k.json", "images": "flickr30k-images|flickr30k_images|images"},
        _TRAINED,
        f"{_KARPATHY} and shannon.cs.illinois.edu/DenotationGraph",
        {"dataset": "flickr30k"},
    ),
    "flickr30k_token": Benchmark(
        tokens,
        {
            "captions": "results_20130124.token|flickr30k/results_20130124.token",
            "images": "flickr30k-images|flickr30k_images|images",
        },
        {"all": {}},
        "shannon.cs.illinois.edu/DenotationGraph",
    ),
    "nocaps": Benchmark(
        coco,
        {
            "captions": _below("nocaps_val_4500_captions.json", "annotations"),
            "images": _images("val"),
        },
        {"val": {}, "in-domain": {}, "near-domain": {}, "out-domain": {}},
        "nocaps.org",
        {"in-domain": "in", "near-domain": "near", "out-domain": "out"},
    ),
    "iconqa": Benchmark(
        problems,
        {
            "problems": "iconqa_data/problems.json|problems.json",
            "splits": "iconqa_data/pid_splits.json|pid_splits.json",
            "images": "iconqa_data/iconqa|iconqa",
        },
        _TRAINED,
        "iconqa.github.io",
        {"split": "choose_txt_{split}", "image": "{split}/choose_txt/{id}/image.png"},
    ),
    "imagenet_r": Benchmark(
        classes,
        {"names": "imagenet-r/README.txt|README.txt", "images": "imagenet-r|."},
        {"all": {}, "test": {"images": "imagenet-r/test|test"}, "train": {"images": "imagenet-r/train|train"}},
        "github.com/hendrycks/imagenet-r (imagenet-r.tar has no splits; train and test are folders that you make)",
    ),
    "scienceqa": _science(),
    "scienceqa_img": _science(pictures="only"),
    "pope": Benchmark(
        pope,
        {
            **{kind: _below(f"coco/coco_pope_{kind}.json", "output") for kind in ("random", "popular", "adversarial")},
            "images": _coco_images("val2014"),
        },
        {
            "all": {},
            "random": {"popular": "", "adversarial": ""},
            "popular": {"random": "", "adversarial": ""},
            "adversarial": {"random": "", "popular": ""},
        },
        "github.com/AoiDragon/POPE (output/coco), images of COCO val2014",
    ),
    "dowser_coco": _dowser("coco-caption", "test.jsonl", "val2014", "train2014"),
    "dowser_flickr30k": _dowser("flickr30k", "test.jsonl", "flickr30k|."),
    "dowser_iconqa": _dowser("icon_vqa", "test.jsonl", "."),
    "dowser_imagenet_r": _dowser("imagenet-r", "test.json", "UCIT/datasets|."),
    "ucit_flickr30k": _ucit("Flickr30k"),
    "ucit_iconqa": _ucit("IconQA"),
    "ucit_imagenet_r": _ucit("ImageNet-R"),
    "ucit_vizwiz": _ucit("VizWiz"),
    "ucit_arxivqa": _ucit("ArxivQA"),
    "ucit_clevr": _ucit("CLEVR-Math"),
}


def benchmark_named(name: str, split: str | None = None) -> Benchmark:
    """The benchmark of a name.

    Raises:
        DowserError: there is none, or it has no such split.
    """
    if name not in BENCHMARKS:
        near = nearest_of(name, {each: each for each in BENCHMARKS})
        raise DowserError(f"benchmark: got {name!r}{near}; there are {', '.join(BENCHMARKS)}.")
    found = BENCHMARKS[name]
    if split is not None and split not in found.splits:
        raise DowserError(f"benchmark {name}: got split {split!r}, expected one of {', '.join(found.splits)}.")
    return found
