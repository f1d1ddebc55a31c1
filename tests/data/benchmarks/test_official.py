"""Published benchmarks, from small files of their official layouts; what is expected is written out by hand."""

import json
import re

import pytest

from dowser_pl.data import ConversationData, Question, TaskFile
from dowser_pl.data.benchmarks import read_task
from dowser_pl.data.benchmarks.protocols import PROTOCOLS
from dowser_pl.data.benchmarks.sets import BENCHMARKS
from dowser_pl.data.images import open_image
from dowser_pl.data.rows import checked_tasks
from dowser_pl.errors import DowserError
from dowser_pl.metrics import build_metric
from tests.data.benchmarks import official_files

WORD = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
UNANSWERABLE = "When the provided information is insufficient, respond with 'Unanswerable'.\n" + WORD
TEN = ["red"] * 3 + ["blue"] * 7
DAKOTA = ["nous les gosses", "dakota", "clos culombu", *["dakota"] * 7]
TRAIN_OR_CAB = ["train"] * 2 + ["cab"] * 8
DOG, CAT = "A. dog\nB. cat", "A. cat\nB. dog"
CHART = 'Read the "chart"'


def words(question: Question) -> str:
    (user,) = question.messages
    return "".join(part["text"] for part in user["content"] if part["type"] == "text")


def asked(root, benchmark: str, **options):
    """(id, words, references, images below the folder of images) of every question."""
    task = read_task(TaskFile(benchmark=benchmark, root=str(root), **options))
    checked_tasks([task], labelled=bool(options.get("split") != "test"))
    return [(q.given.get("id"), words(q), q.references, q.given["images"]) for q in task.questions]


VQA = [
    (420000, f"What colour?\n{WORD}", TEN, ["COCO_val2014_000000000042.jpg"]),
    (730001, f"Which one?\n{WORD}", TEN, ["COCO_val2014_000000000073.jpg"]),
]
EXPECTED = {
    "textvqa": [
        (
            34602,
            f"What is the brand of this camera?\nReference OCR token: DAKOTA, DIGITAL\n{WORD}",
            DAKOTA,
            ["003a8ae2ef43b901.jpg"],
        ),
        (34603, f"what does the small white text spell?\n{WORD}", ["copenhagen"] * 10, ["5e2ab70b1ae25ec0.jpg"]),
    ],
    "okvqa": VQA,
    "aokvqa": [
        ("22MexNkBPpdZGX6sxbxVBH", f"What's awaited (here)?\n{WORD}", TRAIN_OR_CAB, ["000000000042.jpg"]),
        ("2ZfTFDBsnsBe7RBoTnoHJn", f"Who waits?\n{WORD}", ["man"] * 10, ["000000000073.jpg"]),
    ],
    "vizwiz": [
        (
            "VizWiz_val_00000000.jpg",
            f"Ok. There is another picture I hope it is a better one.\n{UNANSWERABLE}",
            ["unanswerable"] * 10,
            ["VizWiz_val_00000000.jpg"],
        )
    ],
    "gqa": [
        ("201307251", f"Is it overcast?\n{WORD}", ["no"], ["n161313.jpg"]),
        ("201640614", f"Who is wearing the dress?\n{WORD}", ["woman"], ["n235859.jpg"]),
    ],
    "ocrvqa": [
        (f"{book}/{place}", f"{question}\n{WORD}", [answer], [f"{book}.jpg"])
        for book, author in (("0761183272", "Author 0"), ("1490497323", "Author 1"))
        for place, (question, answer) in enumerate([("Who wrote this?", author), ("What is the genre?", "Crafts")])
    ],
    "mmbench": [
        (241, f"{CHART}\nWhich one?\n{DOG}\n{LETTER}", ["241", "B", "A. dog", "B. cat"]),
        (252, f"What?\nA. left\nB. right\nC. up\n{LETTER}", ["252", "A", "A. left", "B. right", "C. up"]),
        (1000241, f"{CHART}\nWhich one?\n{CAT}\n{LETTER}", ["241", "A", "A. cat", "B. dog"]),
    ],
    "iconqa": [
        (
            "68525",
            "Does this picture have symmetry?\nA. yes\nB. no",
            ["Answer: A"],
            ["test/choose_txt/68525/image.png"],
        )
    ],
    "imagenet_r": [
        (place, f"What is the object in the image?\n{WORD}", [name], [place])
        for place, name in (
            ("n01443537/art_0.jpg", "goldfish"),
            ("n01443537/toy_1.jpg", "goldfish"),
            ("n01484850/art_3.jpg", "great white shark"),
        )
    ],
    "scienceqa": [
        ("4", f"Which figure?\nA. chiasmus\nB. apostrophe\n{LETTER}", ["B", "apostrophe"], []),
        ("5", f"Context: A map.\nWhich state?\nA. Maine\nB. Ohio\n{LETTER}", ["A", "Maine"], ["5/image.png"]),
    ],
    "pope": [
        (f"{kind}/{number}", f"Is there a {kind}?\n{WORD}", [label], ["COCO_val2014_000000310196.jpg"])
        for kind in ("random", "popular", "adversarial")
        for number, label in ((1, "yes"), (2, "no"))
    ],
}
WRITE = {"okvqa": official_files.vqa}


@pytest.mark.parametrize("benchmark", EXPECTED)
def test_rows(benchmark, tmp_path):
    WRITE.get(benchmark, getattr(official_files, benchmark, None))(tmp_path)
    found = asked(tmp_path, benchmark)
    assert [row[: len(EXPECTED[benchmark][0])] for row in found] == EXPECTED[benchmark]


def test_every_benchmark_is_asked_by_llava_and_every_protocol_knows_its_benchmarks():
    assert set(PROTOCOLS["llava"]) == set(BENCHMARKS)
    for table in PROTOCOLS.values():
        assert set(table) <= set(BENCHMARKS)
        for protocol in table.values():
            build_metric(protocol.metric)


def test_vqav2_and_the_chinese_mmbench(tmp_path):
    official_files.vqa(tmp_path, "v2_")
    assert asked(tmp_path, "vqav2") == VQA
    official_files.mmbench(tmp_path, "mmbench_dev_cn_20231003.tsv")
    assert asked(tmp_path, "mmbench_cn")[1][1].endswith("C. up\n请直接回答选项字母。")


def test_a_question_of_the_test_split_is_open(tmp_path):
    official_files.put(
        tmp_path / "v2_OpenEnded_mscoco_test2015_questions.json",
        {"questions": [{"image_id": 1, "question": "What?", "question_id": 10}]},
    )
    official_files.draw(tmp_path / "test2015" / "COCO_test2015_000000000001.jpg")
    with pytest.raises(ValueError, match="no reference"):
        asked(tmp_path, "vqav2", split="test")
    task = read_task(TaskFile(benchmark="vqav2", root=str(tmp_path), split="test"), labelled=False)
    assert task.questions[0].references == []
    (tmp_path / "v2_OpenEnded_mscoco_test2015_questions.json").rename(
        tmp_path / "v2_OpenEnded_mscoco_test-dev2015_questions.json"
    )
    task = read_task(TaskFile(benchmark="vqav2", root=str(tmp_path), split="test-dev"), labelled=False)
    assert task.questions[0].given == {"images": ["COCO_test2015_000000000001.jpg"], "id": 10}


def test_instructblips_own_words(tmp_path):
    official_files.aokvqa(tmp_path)
    official_files.vqa(tmp_path)
    official_files.nocaps(tmp_path, 2)
    ids, said, answers, _ = zip(*asked(tmp_path, "aokvqa", protocol="instructblip"), strict=True)
    assert ids[0] == "22MexNkBPpdZGX6sxbxVBH" and answers[1] == ["man"] * 10
    assert list(said) == ["Question: what's awaited here? Short Answer:", "Question: who waits? Short Answer:"]
    assert asked(tmp_path, "okvqa", protocol="instructblip")[0][1] == "Question: what colour? Short Answer:"
    for domain, count in (("val", 2), ("in-domain", 1), ("near-domain", 1)):
        found = asked(tmp_path, "nocaps", protocol="instructblip", split=domain, metric="exact_match")
        assert [row[1] for row in found] == ["A short image caption."] * count
    assert found[0][0] == 0
    with pytest.raises(ValueError, match="got no row of split out-domain"):
        asked(tmp_path, "nocaps", split="out-domain")


def test_all_questions_of_aokvqa_are_trained_on(tmp_path):
    official_files.aokvqa(tmp_path, "train")
    data = ConversationData(root=str(tmp_path), train_benchmark=TaskFile(benchmark="aokvqa"), holdout=0)
    expected = [("What's awaited (here)?", "cab"), ("Why wait?", "train"), ("Who waits?", "man")]
    assert turns(data) == [(f"{question}\n{WORD}", answer) for question, answer in expected]


def test_pictures_are_decoded_when_they_are_asked_for(tmp_path):
    official_files.mmbench(tmp_path)
    task = read_task(TaskFile(benchmark="mmbench", root=str(tmp_path)))
    colours = [question.images[0].load().getpixel((0, 0)) for question in task.questions]
    assert colours == [(255, 0, 0), (0, 0, 255), (255, 0, 0)]
    official_files.gqa(tmp_path)
    (tmp_path / "images" / "n161313.jpg").write_text("no picture")
    assert len(read_task(TaskFile(benchmark="gqa", root=str(tmp_path))).questions) == 2


CAPTIONS = {
    "coco_caption": [
        (42, ["A thing 1 on 42.", "A thing 3 on 42.", "A thing 4 on 42."], "COCO_val2014_000000000042.jpg"),
        (73, ["A thing 0 on 73.", "A thing 2 on 73."], "COCO_val2014_000000000073.jpg"),
    ],
    "coco_karpathy": [(0, ["Caption 0 of 0 .", "Caption 1 of 0 ."], "val2014/COCO_val2014_000000000000.jpg")],
    "flickr30k": [("101.jpg", ["A man 1."] * 5, "101.jpg")],
    "flickr30k_token": [
        (f"10{number}.jpg", [f"Man {each} of {number} ." for each in range(5)], f"10{number}.jpg")
        for number in range(3)
    ],
    "nocaps": [(0, [f"A baby {number}." for number in range(10)], "0013ea2087020901.jpg")],
}
WRITE_CAPTIONS = {
    "coco_caption": official_files.coco,
    "coco_karpathy": official_files.karpathy,
    "flickr30k": official_files.flickr30k,
    "flickr30k_token": official_files.flickr30k,
    "nocaps": official_files.nocaps,
}
FIVE = PROTOCOLS["llava"]["coco_caption"].prompts


@pytest.mark.parametrize("benchmark", CAPTIONS)
def test_captions(benchmark, tmp_path):
    WRITE_CAPTIONS[benchmark](tmp_path)
    task = read_task(TaskFile(benchmark=benchmark, root=str(tmp_path)))
    found = [(q.given["id"], q.references, *q.given["images"]) for q in task.questions]
    assert found == CAPTIONS[benchmark]
    assert (task.metric, task.max_new_tokens) == ("cider", 128)
    assert all(words(question) in FIVE for question in task.questions)
    again = read_task(TaskFile(benchmark=benchmark, root=str(tmp_path)))
    assert [words(question) for question in again.questions] == [words(question) for question in task.questions]


def test_the_five_instructions_share_the_captions_about_equally():
    protocol = PROTOCOLS["llava"]["coco_caption"]
    counts = dict.fromkeys(FIVE, 0)
    for number in range(5000):
        counts[protocol.asked({"id": number})] += 1
    assert min(counts.values()) > 800


def test_records_are_asked_as_they_stand(tmp_path):
    official_files.put(
        tmp_path / "data" / "icon_vqa" / "test.jsonl",
        [{"id": "iconqa_0", "image": "iconqa_data/a.png", "text": "Even?\nA. yes\nB. no", "reference": "Answer: A"}],
        lines=True,
    )
    official_files.draw(tmp_path / "iconqa_data" / "a.png")
    assert asked(tmp_path, "dowser_iconqa") == [
        ("iconqa_0", "Even?\nA. yes\nB. no", ["Answer: A"], ["iconqa_data/a.png"])
    ]
    official_files.put(
        tmp_path / "UCIT" / "ImageNet-R" / "test.json",
        [{"question_id": "1", "image": "ImageNet-R/a.jpg", "text": "What?\nShort.", "answer": "Ant"}],
    )
    official_files.draw(tmp_path / "UCIT" / "datasets" / "ImageNet-R" / "a.jpg")
    assert asked(tmp_path, "ucit_imagenet_r") == [("1", "What?\nShort.", ["Ant"], ["ImageNet-R/a.jpg"])]


def test_lmms_eval_asks_in_its_own_words(tmp_path):
    official_files.textvqa(tmp_path)
    (tmp_path / "TextVQA_Rosetta_OCR_v0.2_val.json").unlink()  # it asks without
    first, second = asked(tmp_path, "textvqa", protocol="lmms-eval")
    assert (first[1], second[1]) == (
        f"What is the brand of this camera?\n{WORD}",
        f"What does the small white text spell?\n{WORD}",
    )
    official_files.mmbench(tmp_path)
    task = read_task(TaskFile(benchmark="mmbench", root=str(tmp_path), protocol="lmms-eval"))
    assert words(task.questions[0]) == f"{CHART} Which one? There are several options:\n{DOG}\n\n{LETTER}"
    assert words(task.questions[1]).startswith("What? There are several options:\nA. left\n")
    with pytest.raises(ValueError, match="protocol lmms-eval has no iconqa; it has textvqa, "):
        TaskFile(benchmark="iconqa", protocol="lmms-eval")


def test_the_tokens_of_llavas_own_question_file_come_first(tmp_path):
    official_files.textvqa(tmp_path)
    text = f"What is the brand of this camera?\nReference OCR token: D, 4\n{WORD}"
    row = {"question_id": "003a8ae2ef43b901", "image": "x.jpg", "text": text, "category": "default"}
    official_files.put(tmp_path / "llava_textvqa_val_v051_ocr.jsonl", [row], lines=True)
    first, second = asked(tmp_path, "textvqa")
    assert first[1] == text
    assert "OCR" not in second[1]


def test_what_is_missing_is_said_in_a_line_each(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        asked(tmp_path, "okvqa")
    first, *others = str(caught.value).split("\n")
    assert re.match(r"benchmark okvqa, split val, of okvqa.allenai.org: no file of questions at .*/OpenEnded_", first)
    assert [re.sub(" at .*", "", line).strip() for line in others] == [
        "no file of annotations",
        "no folder of images",
    ]


def test_other_versions_are_told_apart(tmp_path):
    official_files.put(tmp_path / "TextVQA_0.5_val.json", {})
    official_files.draw(tmp_path / "train_images" / "x.jpg")
    with pytest.raises(
        FileNotFoundError, match="of questions at .*TextVQA_0.5.1_val.json .*nearest there are TextVQA_0.5_val"
    ):
        asked(tmp_path, "textvqa", protocol="lmms-eval")
    official_files.textvqa(tmp_path)
    path = tmp_path / "TextVQA_0.5.1_val.json"
    whole = path.read_text()
    for version in ('"0.51"', "0.51"):
        path.write_text(whole.replace('"0.5.1"', version))
        assert len(asked(tmp_path, "textvqa")) == 2
    path.write_text(whole.replace('"0.5.1"', "0.5"))
    with pytest.raises(ValueError, match="has dataset_version '0.5', expected dataset_version '0.5.1'"):
        asked(tmp_path, "textvqa")
    official_files.vqa(tmp_path, "v2_", version="1.0")
    with pytest.raises(ValueError, match=r"info.version '1.0', expected info.version '2.0'"):
        asked(tmp_path, "vqav2")
    official_files.karpathy(tmp_path)
    with pytest.raises(ValueError, match="has dataset 'coco', expected dataset 'flickr30k'"):
        asked(tmp_path, "flickr30k", paths={"captions": "dataset_coco.json", "images": "val2014"})


def test_files_of_another_layout_or_of_no_json_are_refused_by_name(tmp_path):
    official_files.gqa(tmp_path)
    path = tmp_path / "testdev_balanced_questions.json"
    official_files.put(path, {"1": {"question": "What?"}})
    with pytest.raises(
        ValueError, match=r"testdev_balanced_questions.json is not in the layout .* KeyError: 'imageId'"
    ):
        asked(tmp_path, "gqa")
    path.write_text("<html>")
    with pytest.raises(ValueError, match=r"testdev_balanced_questions.json has no JSON: .* download it again"):
        asked(tmp_path, "gqa")


def edit(path, change, encoding="utf-8"):
    path.write_bytes(change(path.read_text(encoding="utf-8")).encode(encoding))


@pytest.mark.parametrize(
    ("choices", "answer"),
    [(2, -1), (2, 2), (2, True), (2, "0"), (0, 0), (30, 0), (30, 28)],
)
@pytest.mark.parametrize("use", ["ask", "train"])
def test_the_right_option_must_be_one_that_has_a_letter(choices, answer, use, tmp_path):
    official_files.iconqa(tmp_path)
    path = tmp_path / "iconqa_data" / "problems.json"
    problems = json.loads(path.read_text())
    for number in ("68525", "38284"):
        problems[number] |= {"choices": [f"option {each}" for each in range(choices)], "answer": answer}
    official_files.put(path, problems)
    told = rf"question (68525|38284) has {choices} options and the right one at place {answer!r}, expected 26 at most"
    with pytest.raises(DowserError, match=told):
        if use == "ask":
            asked(tmp_path, "iconqa")
        else:
            data = ConversationData(root=str(tmp_path), train_benchmark=TaskFile(benchmark="iconqa"), holdout=0)
            data.train_conversations()


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ("AB", "has the answer 'AB' in row 241, expected a letter of ABCDE"),
        ("b", "has the answer 'b' in row 241"),
        ("D", "question 241 has 2 options and the right one at place 3"),
    ],
)
def test_letters_of_mmbench_that_mean_no_option(found, message, tmp_path):
    official_files.mmbench(tmp_path)
    edit(tmp_path / "mmbench_dev_20230712.tsv", lambda text: text.replace("nan\tnan\tB", f"nan\tnan\t{found}", 1))
    with pytest.raises(DowserError, match=message):
        asked(tmp_path, "mmbench")


def test_turns_of_mmbench_share_a_picture_wherever_it_stands(tmp_path):
    official_files.mmbench(tmp_path)
    path = tmp_path / "mmbench_dev_20230712.tsv"
    head, first, second, turned = path.read_text().splitlines()
    path.write_text("\n".join([head, turned, second, first]) + "\n")
    rows = TaskFile(benchmark="mmbench", root=str(tmp_path)).official().questions()
    assert [row["id"] for _, row in rows] == [1000241, 252, 241] and len(rows._pictures) == 2
    pictures = [row["image"]["base64"] for _, row in rows]
    assert pictures[0] == pictures[2] == first.split("\t")[9] != pictures[1] == second.split("\t")[9]
    before = rows.digest
    path.write_text(path.read_text().replace(pictures[1], pictures[0]))
    assert TaskFile(benchmark="mmbench", root=str(tmp_path)).official().questions().digest != before
    path.write_text("\n".join([head, second.replace(pictures[1], "7")]) + "\n")
    with pytest.raises(DowserError, match=r"\(id 252\): cannot read the image"):
        checked_images(read_task(TaskFile(benchmark="mmbench", root=str(tmp_path))))


def checked_images(task):
    return [open_image(source, question.id) for question in task.questions for source in question.images]


@pytest.mark.parametrize("missing", ["", "nan", "NaN", "None", "NA", "N/A", "null", " "])
def test_options_end_where_the_scripts_read_nothing(missing, tmp_path):
    official_files.mmbench(tmp_path)
    path = tmp_path / "mmbench_dev_20230712.tsv"
    path.write_text(path.read_text().replace("right\tup\t", f"Na\t{missing}\tup"))
    assert words(read_task(TaskFile(benchmark="mmbench", root=str(tmp_path))).questions[1]) == (
        f"What?\nA. left\nB. Na\n{LETTER}"
    )


def test_marks_of_other_systems_change_no_row(tmp_path):
    """Byte order marks, line ends of Windows, U+2028 in a caption, and what a Mac leaves in folders."""
    official_files.flickr30k(tmp_path)
    edit(
        tmp_path / "results_20130124.token",
        lambda text: text.replace("Man 0 of 0", "Man\u2028 0\x85 of 0").replace("\n", "\r\n"),
        "utf-8-sig",
    )
    captions = [references for *_, references, _ in asked(tmp_path, "flickr30k_token")]
    assert (
        captions[0][0] == "Man\u2028 0\x85 of 0 ."
        and captions[1:] == [r for _, r, _ in CAPTIONS["flickr30k_token"]][1:]
    )
    official_files.imagenet_r(tmp_path)
    names = tmp_path / "imagenet-r" / "README.txt"
    names.write_text("n01443537 goldfish\nn01484850 great_white_shark\n", encoding="utf-8-sig")
    (tmp_path / "imagenet-r" / "n01443537" / ".DS_Store").write_bytes(b"x")
    assert asked(tmp_path, "imagenet_r") == EXPECTED["imagenet_r"]
    official_files.mmbench(tmp_path)
    edit(tmp_path / "mmbench_dev_20230712.tsv", lambda text: text.replace("\n", "\r\n"), "utf-8-sig")
    assert [row[:3] for row in asked(tmp_path, "mmbench")] == EXPECTED["mmbench"]


def test_files_that_are_no_text_or_have_other_numbers_are_refused_by_name(tmp_path):
    official_files.mmbench(tmp_path)
    path = tmp_path / "mmbench_dev_20230712.tsv"
    edit(path, lambda text: text.replace("dog", "d\xf6g"), "latin-1")
    with pytest.raises(DowserError, match=r"mmbench_dev_20230712.tsv is not in the layout .* UnicodeDecodeError"):
        asked(tmp_path, "mmbench")
    official_files.mmbench(tmp_path)
    edit(path, lambda text: text.replace("241", "first", 1))
    with pytest.raises(DowserError, match=r"tsv is not in the layout .* ValueError: invalid literal for int"):
        asked(tmp_path, "mmbench")
    official_files.ocrvqa(tmp_path)
    edit(tmp_path / "dataset.json", lambda text: text.replace('"Author 0"', '"Author 0", "One more"'))
    with pytest.raises(DowserError, match=r"dataset.json is not in the layout .* longer than argument 1"):
        asked(tmp_path, "ocrvqa")


def test_dead_images_are_one_line_or_left_out_and_counted(tmp_path):
    official_files.ocrvqa(tmp_path, "1490497323")
    with pytest.raises(ValueError) as caught:
        asked(tmp_path, "ocrvqa")
    assert "\n" not in str(caught.value)
    assert re.search("1 of 2 pictures are not in .*images, the first is 1490497323.gif.*URLs.*dead", str(caught.value))
    with pytest.warns(UserWarning, match="2 of 4 rows are left out"):
        task = read_task(TaskFile(benchmark="ocrvqa", root=str(tmp_path)), skip_bad_rows=True)
    assert (len(task.questions), task.left_out) == (2, 2)


def test_paths_replace_any_place(tmp_path):
    official_files.gqa(tmp_path / "a")
    (tmp_path / "a" / "images").rename(tmp_path / "pictures")
    (tmp_path / "a" / "testdev_balanced_questions.json").rename(tmp_path / "q.json")
    paths = {"questions": "q.json", "images": str(tmp_path / "pictures")}
    assert asked(tmp_path, "gqa", paths=paths) == EXPECTED["gqa"]
    with pytest.raises(ValueError, match="got paths of annotations, expected some of questions, images"):
        asked(tmp_path, "gqa", paths={"annotations": "x"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"benchmark": "textvq"}, "did you mean textvqa"),
        ({"benchmark": "gqa", "split": "val"}, "got split 'val', expected one of testdev"),
        ({"benchmark": "gqa", "protocol": "lava"}, "expected one of llava, instructblip, lmms-eval"),
        ({"benchmark": "gqa", "file": "x.json"}, "got file as well"),
        ({"benchmark": "gqa", "image_folder": "x"}, "got image_folder as well"),
        ({"name": "t"}, "a name and a file, or a benchmark"),
        ({"file": "t.json"}, "a name and a file, or a benchmark"),
        ({"name": "t", "file": "t.json", "root": "x"}, "but root"),
    ],
)
def test_what_a_task_may_name(options, message):
    with pytest.raises(ValueError, match=message):
        TaskFile(**options)


def test_options_of_a_task_go_before_those_of_the_protocol(tmp_path):
    official_files.scienceqa(tmp_path)
    own = {"metric": "multiple_choice", "max_new_tokens": 4, "prompt_suffix": "Now.", "limit": 1}
    task = read_task(TaskFile(name="s", benchmark="scienceqa_img", root=str(tmp_path), **own))
    (question,) = task.questions
    assert (task.name, task.metric, task.max_new_tokens) == ("s", "multiple_choice", 4)
    assert words(question) == f"Context: A map.\nWhich state?\nA. Maine\nB. Ohio\n{LETTER}\nNow."
    likeliest = read_task(TaskFile(benchmark="scienceqa", root=str(tmp_path), metric="choice_likelihood"))
    assert likeliest.questions[1].candidates == ["Maine", "Ohio"]
    assert "Maine" not in words(likeliest.questions[1])


def turns(data: ConversationData) -> list[tuple[str, str]]:
    rows = data.train_conversations()
    return [tuple("".join(p.get("text", "") for p in m["content"]) for m in row.messages) for row in rows]


def test_training_sets(tmp_path):
    official_files.iconqa(tmp_path)
    data = ConversationData(root=str(tmp_path), train_benchmark=TaskFile(benchmark="iconqa"), holdout=0)
    assert turns(data) == [("What time is it?\nA. 6:00 A.M.\nB. 6:00 P.M.", "Answer: B")]
    official_files.karpathy(tmp_path / "coco")
    benchmark = TaskFile(benchmark="coco_karpathy", root="coco")
    data = ConversationData(root=str(tmp_path), train_benchmark=benchmark, holdout=0)
    assert [said for _, said in turns(data)] == [f"Caption {each} of {image} ." for image in (1, 2) for each in (0, 1)]
    assert {question for question, _ in turns(data)} <= set(FIVE)
    assert all(row.images[0].path.is_file() for row in data.train_conversations())
    official_files.flickr30k(tmp_path)
    data = ConversationData(root=str(tmp_path), train_benchmark=TaskFile(benchmark="flickr30k", limit=2), holdout=0)
    assert [said for _, said in turns(data)] == ["A man 0.", "A man 2."]
    official_files.imagenet_r(tmp_path)
    benchmark = TaskFile(benchmark="imagenet_r", split="all")
    data = ConversationData(root=str(tmp_path), train_benchmark=benchmark, holdout=0)
    assert turns(data)[2] == (f"What is the object in the image?\n{WORD}", "great white shark")


def test_records_to_train_on(tmp_path):
    said = [{"from": "human", "value": "<image>\nBriefly."}, {"from": "gpt", "value": "A dog."}]
    row = {"id": "coco_1", "image": "COCO_train2014_1.jpg", "conversations": said}
    official_files.put(tmp_path / "coco-caption" / "train.json", [row])
    official_files.draw(tmp_path / "train2014" / "COCO_train2014_1.jpg")
    data = ConversationData(root=str(tmp_path), train_benchmark=TaskFile(benchmark="dowser_coco"), holdout=0)
    assert turns(data) == [("Briefly.", "A dog.")]


def test_what_cannot_be_trained_on(tmp_path):
    official_files.gqa(tmp_path)
    data = ConversationData(root=str(tmp_path), train_benchmark=TaskFile(benchmark="gqa"), holdout=0)
    with pytest.raises(ValueError, match="gqa has no split to train on"):
        data.train_conversations()
    data = ConversationData(train_benchmark=TaskFile(benchmark="gqa"), holdout=0)
    with pytest.raises(ValueError, match="no folder with its files is given"):
        data.train_conversations()
    with pytest.raises(ValueError, match="without train_file"):
        ConversationData("a.json", train_benchmark=TaskFile(benchmark="gqa"))


def test_a_set_without_rows_and_words_that_would_be_left_out_are_refused(tmp_path):
    official_files.put(tmp_path / "dataset_coco.json", {"dataset": "coco", "images": []})
    data = ConversationData(root=str(tmp_path), train_benchmark=TaskFile(benchmark="coco_karpathy"), holdout=0)
    told = "benchmark coco_karpathy: got no row of split {} in .*/dataset_coco.json, expected at least one"
    with pytest.raises(DowserError, match=told.format("train")):
        data.train_conversations()
    with pytest.raises(DowserError, match=told.format("test")):
        asked(tmp_path, "coco_karpathy")
    with pytest.raises(DowserError, match="in the words of its protocol, got prompt_suffix 'Now.' too"):
        ConversationData(train_benchmark=TaskFile(benchmark="iconqa", prompt_suffix="Now."), holdout=0)


def test_a_task_tells_its_protocol(tmp_path):
    official_files.textvqa(tmp_path)
    task = read_task(TaskFile(benchmark="textvqa", root=str(tmp_path), prompt_suffix="Now."))
    assert task.protocol == {
        "name": "llava (changed)",
        "benchmark": "textvqa",
        "split": "val",
        "prompts": ["{question}\nReference OCR token: {ocr}\n" + WORD],
        "prompt_suffix": "Now.",
        "ocr_tokens": True,
        "padding": "square",
    }
    other = read_task(TaskFile(benchmark="textvqa", root=str(tmp_path), protocol="lmms-eval"))
    assert (other.protocol["name"], other.protocol["ocr_tokens"]) == ("lmms-eval", False)


def test_a_limit_leaves_questions_of_mmbench_whole(tmp_path):
    official_files.mmbench(tmp_path)
    path = tmp_path / "mmbench_dev_20230712.tsv"
    head, first, second, turned = path.read_text().splitlines()
    others = [second.replace("252", str(number), 1) for number in range(300, 309)]
    path.write_text("\n".join([head, first, second, *others, turned]) + "\n")

    def ids(limit):
        task = TaskFile(benchmark="mmbench", root=str(tmp_path), limit=limit)
        return [question.given["id"] for question in read_task(task).questions]

    whole = ids(None)
    for limit in range(1, 13):
        found = ids(limit)
        assert (241 in found) == (1000241 in found) and abs(len(found) - limit) <= 2
        assert found == [number for number in whole if number in found]
