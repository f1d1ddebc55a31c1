"""Rows kept back for the report."""

import pytest

from dowser_pl.data import ConversationData, Question, TaskFile
from dowser_pl.data.conversations import MAX_QUESTIONS, holdout_task
from dowser_pl.data.conversations import split_rows as split_numbers
from tests.data.benchmarks import official_files
from tests.data.builders import build_llava, build_tokenizer, chat_template


def rows(num_images, per_image=1):
    return [
        (f"row {i}-{j}", {"id": f"{i}-{j}", "image": f"{i}.png", "conversations": [j]})
        for i in range(num_images)
        for j in range(per_image)
    ]


def split_rows(rows, fraction):
    return tuple([rows[number] for number in numbers] for numbers in split_numbers(rows, range(len(rows)), fraction))


def test_split_is_whole_disjoint_and_the_same_every_time():
    given = rows(200)
    kept, held = split_rows(given, 0.1)
    assert len(held) == 20
    assert sorted(kept + held) == sorted(given)
    assert (kept, held) == split_rows(given, 0.1)


def test_rows_of_one_image_stay_together():
    kept, held = split_rows(rows(50, per_image=4), 0.1)
    assert len(held) == 20
    assert not {row["image"] for _, row in kept} & {row["image"] for _, row in held}


def test_images_inside_messages_count_too():
    def row(image, number):
        part = {"type": "image", "path": image}
        return f"row {number}", {"id": number, "messages": [{"role": "user", "content": [part, {"text": str(number)}]}]}

    kept, held = split_rows([row("a.png" if i < 5 else "b.png", i) for i in range(10)], 0.1)
    assert (len(kept), len(held)) == (5, 5)


def test_rows_that_share_one_of_several_images_stay_together():
    shown = [["a", "b"], ["c"], ["b", "d"], ["e"], ["d"], ["c", "f"], ["g"], ["f"], "e", "g"]
    given = [(f"row {n}", {"id": n, "image": images, "conversations": [n]}) for n, images in enumerate(shown)]
    for fraction in (0.1, 0.3, 0.5, 0.7, 0.9):
        kept, held = split_rows(given, fraction)
        assert not {image for _, row in kept for image in row["image"]} & {
            image for _, row in held for image in row["image"]
        }
        assert len(kept) + len(held) == 10 and kept and held


def test_captions_of_a_picture_are_all_learnt_or_all_held_out(tmp_path):
    official_files.flickr30k(tmp_path, *["train"] * 6)
    for limit in (None, 17):
        benchmark = TaskFile(benchmark="flickr30k", limit=limit)
        data = ConversationData(root=str(tmp_path), train_benchmark=benchmark, holdout=0.4)
        data.processor = build_llava(chat_template())
        data.setup("fit")
        rows = data.train_conversations(), data.tasks[0].questions
        learnt, held = ({row.images[0].path for row in each} for each in rows)
        assert learnt and held and not learnt & held
        assert sum(map(len, rows)) == (limit or 40)


def test_text_rows_are_told_apart_by_their_words_not_their_id():
    given = [(f"row {i}", {"id": i, "conversations": ["same"]}) for i in range(4)] + rows(4)
    kept, held = split_rows(given, 0.5)
    same = [row for _, row in held if row["conversations"] == ["same"]]
    assert len(same) in (0, 4)
    assert kept


def test_at_least_one_and_at_most_five_hundred():
    assert len(split_rows(rows(3), 0.01)[1]) == 1
    assert len(split_rows(rows(MAX_QUESTIONS * 3), 0.9)[1]) == MAX_QUESTIONS


def test_one_image_cannot_be_split():
    with pytest.raises(ValueError, match="Cannot hold out a part of 5 training rows with 1 different images"):
        split_rows(rows(1, per_image=5), 0.1)


ANSWERS = {  # in words each is one, but for the last
    "Chinese": "这张图片里有一只白色的小猫坐在红色的沙发上看着窗外的小鸟。",
    "Thai": "ในภาพมีลูกแมวสีขาวนั่งอยู่บนโซฟาสีแดง",
    "formula": r"\frac{d}{dx}\left(\int_{0}^{x}e^{-t^{2}}\,dt\right)=e^{-x^{2}}",
    "serial number": "CMAU4451238-22G1-7781-0042-AX9917-55120",
    "JSON": '{"invoice":"A-1192","total":"1,204.50","date":"2024-03-18"}' * 8,
    "English": "a white kitten sits on a red sofa",
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
@pytest.mark.parametrize("tokenizer", [None, build_tokenizer()], ids=["bytes", "tokens"])
def test_every_answer_has_room(answer, tokenizer):
    task = holdout_task([Question("a", [], [], ["one"]), Question("b", [], [], [answer])], tokenizer)
    assert (task.name, task.role, task.metric) == ("holdout", "downstream", "exact_match")
    needed = len(build_tokenizer()(answer)["input_ids"]) + 1  # its end
    assert needed <= task.max_new_tokens <= max(2 * len(answer.encode()) + 16, 128)


def test_room_is_twice_the_longest_answer_and_has_an_end():
    assert holdout_task([Question("a", [], [], ["ab"])]).max_new_tokens == 20
    assert holdout_task([Question("a", [], [], ["x" * 90])]).max_new_tokens == 128
    assert holdout_task([Question("a", [], [], ["x" * 200])]).max_new_tokens == 216
    assert holdout_task([Question("a", [], [], ["x" * 9000])]).max_new_tokens == 1024
