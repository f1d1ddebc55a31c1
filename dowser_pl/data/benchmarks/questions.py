"""Layouts of questions with short answers: TextVQA, the VQA pair of files, A-OKVQA, VizWiz, GQA, OCR-VQA.

A layout turns the files of a benchmark into plain rows: `id`, `image` (below the folder of the pictures), `question`,
and what is right under `answers`; without that key nobody has answered.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from dowser_pl.data.benchmarks.files import Files
from dowser_pl.data.reading.json_rows import read_json
from dowser_pl.data.reading.sources import Row

_OCR_LINE = "Reference OCR token:"


def textvqa(files: Files) -> Iterator[Row]:
    """TextVQA 0.5.1: `data[]` with `question_id, image_id, question, answers` (ten texts); images `{image_id}.jpg`.

    OCR tokens, where the protocol writes them, are those of `TextVQA_Rosetta_OCR_v0.2_*.json` (by image), or of the
    question file that LLaVA ships (by image and question).
    """
    content = files.json("questions")
    version = content.get("dataset_version")
    files.check("questions", "0.5.1" if version in ("0.51", 0.51) else version, "0.5.1", "dataset_version")
    tokens = _ocr_tokens(files) if "ocr" in files.paths else None
    for entry in content["data"]:
        image, question = entry["image_id"], entry["question"]
        row = {"id": entry["question_id"], "image": f"{image}.jpg", "question": question}
        if tokens is not None:
            row["ocr"] = tokens.get((image, question.lower()), tokens.get((image, ""), ""))
        yield row | _answered(entry.get("answers"))


def _ocr_tokens(files: Files) -> dict[tuple[str, str], str]:
    """(image, question in lower case or nothing) -> the tokens, as the prompt has them."""
    path = files.paths["ocr"]
    if path.suffix != ".jsonl":
        return {(entry["image_id"], ""): ", ".join(entry["ocr_tokens"]) for entry in files.json("ocr")["data"]}
    found = {}
    for entry in json_lines(files, "ocr"):
        question, *lines = entry["text"].split("\n")
        read = [line.removeprefix(_OCR_LINE).strip() for line in lines if line.startswith(_OCR_LINE)]
        found[entry["question_id"], question.lower()] = "".join(read)
    return found


def vqa(files: Files) -> Iterator[Row]:
    """OK-VQA and VQAv2: `questions[]` and `annotations[]`, joined by `question_id`; ten answers with their text.

    The name of an image is the setting `image` with the number of the image in it.
    """
    content = files.json("questions")
    answers: dict[Any, Any] = {}
    if "annotations" in files.paths:
        annotated = files.json("annotations")
        answers = {str(entry["question_id"]): entry["answers"] for entry in annotated["annotations"]}
    if version := files.settings.get("version"):
        files.check("questions", content.get("info", {}).get("version"), version, "info.version")
    for entry in content["questions"]:
        number = entry["question_id"]
        if answers and str(number) not in answers:
            raise files.wrong("annotations", f"no answers to question {number}", "those to the same split's questions")
        image = files.settings["image"].format(year=files.settings[files.split], id=int(entry["image_id"]))
        row = {"id": number, "image": image, "question": entry["question"]}
        yield row | _answered(answers.get(str(number)))


def aokvqa(files: Files) -> Iterator[Row]:
    """A-OKVQA 1.0: a list with `question_id, image_id, question, direct_answers` (ten texts); images of COCO 2017.

    The options are not read: it is asked for direct answers. Questions for which the authors count none
    (`difficult_direct_answer`) are left out of the validation split, as in their own script.
    """
    for entry in files.json("questions"):
        if files.split == "val" and entry["difficult_direct_answer"]:
            continue
        row = {"id": entry["question_id"], "image": f"{entry['image_id']:012d}.jpg", "question": entry["question"]}
        yield row | _answered(entry.get("direct_answers"))


def vizwiz(files: Files) -> Iterator[Row]:
    """VizWiz: a list with `image, question, answers`; the name of the image is the id of its only question."""
    for entry in files.json("questions"):
        row = {"id": entry["image"], "image": entry["image"], "question": entry["question"]}
        yield row | _answered(entry.get("answers"))


def gqa(files: Files) -> Iterator[Row]:
    """GQA: an object of questions by id with `question, imageId, answer`; images `{imageId}.jpg`."""
    for number, entry in files.json("questions").items():
        row = {"id": number, "image": f"{entry['imageId']}.jpg", "question": entry["question"]}
        yield row | _answered([entry["answer"]] if "answer" in entry else None)


def ocrvqa(files: Files) -> Iterator[Row]:
    """OCR-VQA: an object by book with parallel `questions, answers`, `split` 1, 2 or 3, and `imageURL`.

    Images are `{book}{ending of the URL}`, as the official script saves them; others save all as `.jpg`. Questions have
    no ids of their own: theirs is `{book}/{place in the list}`, counted from 0.
    """
    wanted = files.settings[files.split]
    for book, entry in files.json("questions").items():
        if str(entry["split"]) != wanted:
            continue
        image = f"{book}{PurePosixPath(entry['imageURL']).suffix}"
        pairs = zip(entry["questions"], entry["answers"], strict=True)
        for place, (question, answer) in enumerate(pairs):
            yield {"id": f"{book}/{place}", "image": image, "question": question, "answers": [answer]}


def _answered(answers: Any) -> Row:
    texts = [each["answer"] if isinstance(each, dict) else each for each in answers or []]
    return {"answers": texts} if texts else {}


def json_lines(files: Files, key: str) -> Iterator[Row]:
    """The objects of a file of lines, or of a list."""
    yield from (row for _, row in read_json(files.paths[key]))
