"""Small files in the official layouts of published benchmarks, as they are downloaded and unpacked."""

import base64
import io
import json
from pathlib import Path
from typing import Any

from tests.data.builders import picture

TEN = [
    {"answer_id": number, "answer": text, "answer_confidence": "yes"}
    for number, text in enumerate(["red"] * 3 + ["blue"] * 7)
]


def put(path: Path, content: Any, lines: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, content)) if lines else json.dumps(content), encoding="utf-8")


def draw(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture().save(path)


def base64_picture(colour: str) -> str:
    file = io.BytesIO()
    picture(colour).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def textvqa(root: Path) -> None:
    entries = [
        {"question_id": 34602, "image_id": "003a8ae2ef43b901", "question": "What is the brand of this camera?"},
        {"question_id": 34603, "image_id": "5e2ab70b1ae25ec0", "question": "what does the small white text spell?"},
    ]
    answers = [["nous les gosses", "dakota", "clos culombu", *["dakota"] * 7], ["copenhagen"] * 10]
    data = [{**entry, "answers": each, "flickr_300k_url": "x"} for entry, each in zip(entries, answers, strict=True)]
    put(root / "TextVQA_0.5.1_val.json", {"dataset_name": "textvqa", "dataset_version": "0.5.1", "data": data})
    ocr = [{"image_id": "003a8ae2ef43b901", "ocr_tokens": ["DAKOTA", "DIGITAL"]}]
    ocr += [{"image_id": "5e2ab70b1ae25ec0", "ocr_tokens": []}]
    put(root / "TextVQA_Rosetta_OCR_v0.2_val.json", {"data": ocr})
    draw(*(root / "train_images" / f"{entry['image_id']}.jpg" for entry in entries))


def vqa(root: Path, prefix: str = "", version: str = "2.0", split: str = "val", images: Path | None = None) -> None:
    questions = [{"image_id": 42, "question": "What colour?", "question_id": 420000}]
    questions += [{"image_id": 73, "question": "Which one?", "question_id": 730001}]
    annotations = [
        {"question_id": q["question_id"], "image_id": q["image_id"], "answers": TEN} for q in questions[::-1]
    ]
    info = {"version": version}
    year = f"{split}2014"
    put(root / f"{prefix}OpenEnded_mscoco_{year}_questions.json", {"info": info, "questions": questions})
    put(root / f"{prefix}mscoco_{year}_annotations.json", {"info": info, "annotations": annotations})
    draw(*((images or root / year) / f"COCO_{year}_{number:012d}.jpg" for number in (42, 73)))


def aokvqa(root: Path, split: str = "val", images: Path | None = None) -> None:
    rows = [
        {"question_id": "22MexNkBPpdZGX6sxbxVBH", "image_id": 42, "question": "What's awaited (here)?"},
        {"question_id": "2EK8nK2hYpsGZjRTdAg8rR", "image_id": 73, "question": "Why wait?"},
        {"question_id": "2ZfTFDBsnsBe7RBoTnoHJn", "image_id": 73, "question": "Who waits?"},
    ]
    answers = [["train"] * 2 + ["cab"] * 8, ["train"] * 10, ["man"] * 10]
    for row, direct, difficult in zip(rows, answers, (False, True, False), strict=True):
        row |= {"split": split, "choices": ["skateboarder", "train", "delivery", "cab"], "correct_choice_idx": 3}
        row |= {"direct_answers": direct, "difficult_direct_answer": difficult, "rationales": ["A train would ..."] * 3}
    put(root / f"aokvqa_v1p0_{split}.json", rows)
    draw(*((images or root / f"{split}2017") / f"{number:012d}.jpg" for number in (42, 73)))


def vizwiz(root: Path) -> None:
    rows = [{"image": "VizWiz_val_00000000.jpg", "question": "Ok. There is another picture I hope it is a better one."}]
    rows[0] |= {"answers": [{"answer_confidence": "yes", "answer": "unanswerable"}] * 10, "answerable": 0}
    put(root / "Annotations" / "val.json", rows)
    draw(root / "val" / "VizWiz_val_00000000.jpg")


def gqa(root: Path) -> None:
    questions = {
        "201307251": {"question": "Is it overcast?", "imageId": "n161313", "answer": "no", "fullAnswer": "No, clear."},
        "201640614": {"question": "Who is wearing the dress?", "imageId": "n235859", "answer": "woman"},
    }
    put(root / "testdev_balanced_questions.json", questions)
    draw(root / "images" / "n161313.jpg", root / "images" / "n235859.jpg")


def ocrvqa(root: Path, *dead: str) -> None:
    books = {}
    for number, (book, split, end) in enumerate(
        [("0761183272", 3, "jpg"), ("1490497323", 3, "gif"), ("076118", 1, "jpg")]
    ):
        url = f"http://ecx.images-amazon.com/images/I/{number}.{end}"
        books[book] = {"imageURL": url, "questions": ["Who wrote this?", "What is the genre?"], "split": split}
        books[book]["answers"] = [f"Author {number}", "Crafts"]
        if book not in dead:
            draw(root / "images" / f"{book}.jpg")
    put(root / "dataset.json", books)


HEAD = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "source", "l2-category"]


def mmbench(root: Path, name: str = "mmbench_dev_20230712.tsv") -> None:
    red, blue = base64_picture("red"), base64_picture("blue")
    rows = [
        ["241", "Which one?", 'Read the ""chart""', "dog", "cat", "nan", "nan", "B", "x", red, "s", "y"],
        ["252", "What?", "nan", "left", "right", "up", "", "A", "x", blue, "s", "y"],
        ["1000241", "Which one?", 'Read the ""chart""', "cat", "dog", "nan", "nan", "A", "x", "241", "s", "y"],
    ]
    for row in rows:
        row[2] = f'"{row[2]}"'
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_text("\n".join("\t".join(row) for row in [HEAD, *rows]) + "\n", encoding="utf-8")


def coco(root: Path, year: str = "val2014") -> None:
    images = [
        {"id": 42, "file_name": f"COCO_{year}_000000000042.jpg"},
        {"id": 73, "file_name": f"COCO_{year}_000000000073.jpg"},
    ]
    annotations = [
        {"id": n, "image_id": i, "caption": f"A thing {n} on {i}."} for n, i in enumerate([73, 42, 73, 42, 42])
    ]
    put(root / "annotations" / f"captions_{year}.json", {"images": images, "annotations": annotations})
    draw(*(root / year / image["file_name"] for image in images))


DOMAINS = ("near-domain", "in-domain", "out-domain")


def nocaps(root: Path, count: int = 1) -> None:
    names = [f"{number:04d}ea2087020901" for number in range(13, 13 + count)]
    images = [
        {
            "id": number,
            "file_name": f"{name}.jpg",
            "open_images_id": name,
            "domain": DOMAINS[number % 3],
        }
        for number, name in enumerate(names)
    ]
    annotations = [
        {"id": 10 * image + n, "image_id": image, "caption": f"A {('baby', 'dog')[image % 2]} {n}."}
        for image in range(count)
        for n in range(10)
    ]
    put(root / "nocaps_val_4500_captions.json", {"images": images, "annotations": annotations})
    draw(*(root / "val" / f"{name}.jpg" for name in names))


def karpathy(root: Path, *more: str) -> None:
    images = []
    parts = [("test", "val2014"), ("restval", "val2014"), ("train", "train2014"), ("val", "val2014")]
    for number, (split, folder) in enumerate([*parts, *((split, "val2014") for split in more)]):
        name = f"COCO_{folder}_{number:012d}.jpg"
        sentences = [{"raw": f"Caption {each} of {number} .", "tokens": []} for each in range(2)]
        images.append({"filepath": folder, "filename": name, "split": split, "cocoid": number, "sentences": sentences})
        draw(root / folder / name)
    put(root / "dataset_coco.json", {"dataset": "coco", "images": images})


def flickr30k(root: Path, *more: str) -> None:
    images = [
        {"filename": f"10{number}.jpg", "imgid": number, "split": split, "sentences": [{"raw": f"A man {number}."}] * 5}
        for number, split in enumerate(["train", "test", "train", *more])
    ]
    put(root / "dataset_flickr30k.json", {"dataset": "flickr30k", "images": images})
    lines = [f"10{number}.jpg#{each}\tMan {each} of {number} ." for number in range(3) for each in range(5)]
    (root / "results_20130124.token").write_text("\n".join(lines) + "\n", encoding="utf-8")
    draw(*(root / "flickr30k-images" / image["filename"] for image in images))


def iconqa(root: Path) -> None:
    problems = {
        "68525": {"question": "Does this picture have symmetry?", "choices": ["yes", "no"], "answer": 0},
        "38284": {"question": "What time is it?", "choices": ["6:00 A.M.", "6:00 P.M."], "answer": 1},
        "999": {"question": "Pick.", "choices": ["a.png", "b.png"], "answer": 1, "ques_type": "choose_img"},
    }
    put(root / "iconqa_data" / "problems.json", problems)
    splits = {
        "choose_txt_test": ["68525"],
        "choose_txt_train": ["38284"],
        "choose_img_test": ["999"],
        "test": ["68525", "999"],
    }
    put(root / "iconqa_data" / "pid_splits.json", splits)
    for split, pid in (("test", "68525"), ("train", "38284")):
        draw(root / "iconqa_data" / "iconqa" / split / "choose_txt" / pid / "image.png")


def imagenet_r(root: Path) -> None:
    draw(
        *(
            root / "imagenet-r" / place
            for place in ("n01443537/art_0.jpg", "n01443537/toy_1.jpg", "n01484850/art_3.jpg")
        )
    )
    header = "ImageNet-R\n\nIt has renditions of 200 classes.\n\n"
    (root / "imagenet-r" / "README.txt").write_text(f"{header}n01443537 goldfish\nn01484850 great_white_shark\n")


def scienceqa(root: Path) -> None:
    problems = {
        "4": {
            "question": "Which figure?",
            "choices": ["chiasmus", "apostrophe"],
            "answer": 1,
            "hint": "",
            "image": None,
        },
        "5": {
            "question": "Which state?",
            "choices": ["Maine", "Ohio"],
            "answer": 0,
            "hint": "A map.",
            "image": "image.png",
        },
        "6": {"question": "Other?", "choices": ["a", "b"], "answer": 0, "hint": "", "image": "image.png"},
    }
    put(root / "problems.json", problems)
    put(root / "pid_splits.json", {"test": ["4", "5"], "train": ["6"]})
    draw(root / "images" / "test" / "5" / "image.png", root / "images" / "train" / "6" / "image.png")


def pope(root: Path) -> None:
    for kind in ("random", "popular", "adversarial"):
        name = "COCO_val2014_000000310196.jpg"
        rows = [
            {"question_id": n, "image": name, "text": f"Is there a {kind}?", "label": label}
            for n, label in ((1, "yes"), (2, "no"))
        ]
        put(root / "coco" / f"coco_pope_{kind}.json", rows, lines=True)
    draw(root / "val2014" / "COCO_val2014_000000310196.jpg")


def record_files(root: Path) -> None:
    """The four sets that Model-Dowser published in its repository, beside the pictures that they name."""
    for name, test, folder, place in (
        ("coco-caption", "test.jsonl", "coco/{coco}", "COCO_{coco}_00000000004{n}.jpg"),
        ("flickr30k", "test.jsonl", "flickr30k", "images/100712981{n}.jpg"),
        ("icon_vqa", "test.jsonl", "iconqa", "iconqa_data/iconqa/{split}/choose_txt/6852{n}/image.png"),
        ("imagenet-r", "test.json", "ucit", "ImageNet-R/{split}/n01784675/graffiti_{n}.jpg"),
    ):
        rows: dict[str, list[Any]] = {"train": [], "test": []}
        for n, split in enumerate(["train", "train", "test", "test"]):
            names = {"n": n, "split": split, "coco": "train2014" if split == "train" else "val2014"}
            row = {"id": n, "image": place.format(**names)}
            draw(root / folder.format(**names) / row["image"])
            said = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": f"A square {n}."}]
            right = {"answer": "Centipede"} if name == "imagenet-r" else {"reference": [f"A square {n}.", "A square."]}
            rows[split].append(row | ({"conversations": said} if split == "train" else {"text": "What is it?"} | right))
        put(root / "Model-Dowser" / "data" / name / "train.json", rows["train"])
        put(root / "Model-Dowser" / "data" / name / test, rows["test"], lines=test == "test.jsonl")
