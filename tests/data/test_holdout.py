"""Rows kept back for the report."""

import pytest

from dowser_pl.data import Question
from dowser_pl.data.holdout import MAX_QUESTIONS, holdout_task, split_rows


def rows(num_images, per_image=1):
    return [
        (f"row {i}-{j}", {"id": f"{i}-{j}", "image": f"{i}.png", "conversations": [j]})
        for i in range(num_images)
        for j in range(per_image)
    ]


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


def test_task():
    questions = [Question("a", [], [], ["one two three"]), Question("b", [], [], ["one"])]
    task = holdout_task(questions)
    assert (task.name, task.role, task.metric, task.max_new_tokens) == ("holdout", "downstream", "exact_match", 22)
