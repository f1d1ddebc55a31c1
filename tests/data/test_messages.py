"""The formats of conversations that people have."""

import pytest

from dowser_pl.data.images import ImageFile, ImageText
from dowser_pl.data.messages import MessageReader, check_order
from tests.data.builders import IMAGE, picture, turn


@pytest.fixture
def reader(tmp_path):
    for name in ("a.png", "b.png"):
        picture().save(tmp_path / name)
    return MessageReader(tmp_path)


def names(images):
    return [image.path.name for image in images]


def test_llava(reader):
    row = {
        "id": "1",
        "image": "a.png",
        "conversations": [
            {"from": "system", "value": "be brief"},
            {"from": "human", "value": "<image>\nWhat?"},
            {"from": "gpt", "value": "Red."},
        ],
    }
    messages, images = reader.read("row 1", row)
    assert messages == [turn("system", "be brief"), turn("user", IMAGE, "What?"), turn("assistant", "Red.")]
    assert names(images) == ["a.png"]


def test_several_images_in_their_places(reader):
    said = [{"from": "human", "value": "one <image> two <image>\n?"}, {"from": "gpt", "value": "no"}]
    messages, images = reader.read("row 1", {"image": ["b.png", "a.png"], "conversations": said})
    assert messages[0] == turn("user", "one ", IMAGE, " two ", IMAGE, "\n?")
    assert names(images) == ["b.png", "a.png"]


def test_space_inside_a_turn_is_kept(reader):
    code = [{"type": "text", "text": "\ndef f():\n"}, {"type": "text", "text": "    return 1\n"}]
    said = [{"from": "human", "value": "<image>\n<image>\nis it? \n<image> "}, {"from": "gpt", "value": code}]
    messages, _ = reader.read("row 1", {"image": ["a.png"] * 3, "conversations": said})
    assert messages[0] == turn("user", IMAGE, IMAGE, "is it?", IMAGE)
    assert messages[1] == turn("assistant", "def f():\n", "    return 1")


def test_an_image_of_nulls_is_none(reader):
    said = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "no"}]
    assert reader.read("row 1", {"image": {"bytes": None, "path": None}, "messages": said})[1] == []


@pytest.mark.parametrize("empty", [None, []])
def test_empty_columns_of_an_exported_table(reader, empty):
    said = [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": "no"}]
    row = {"images": empty, "image": "a.png", "conversations": empty, "messages": said}
    assert names(reader.read("row 1", row)[1]) == ["a.png"]


def test_base64_that_says_so_may_be_short(reader):
    content = [{"type": "image", "base64": "AAAA"}, {"type": "text", "text": "?"}]
    row = {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "x"}]}
    assert reader.read("row 1", row)[1] == [ImageText("AAAA")]


def test_images_without_a_place_come_first(reader):
    said = [{"from": "system", "value": "s"}, {"from": "human", "value": "what?"}, {"from": "gpt", "value": "no"}]
    messages, images = reader.read("row 1", {"image": ["a.png", "b.png"], "conversations": said})
    assert messages[1] == turn("user", IMAGE, IMAGE, "what?")
    assert len(images) == 2


def test_text_only(reader):
    messages, images = reader.read(
        "row 1", {"image": None, "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    )
    assert messages == [turn("user", "a"), turn("assistant", "b")]
    assert images == []


def test_parts_with_their_own_images(reader):
    parts = [
        {"type": "image", "path": "b.png"},
        {"type": "text", "text": "and"},
        {"type": "image", "base64": "data:image/png;base64,AAAA"},
        {"type": "image_url", "image_url": {"url": "a.png"}},
        {"type": "image_url", "image_url": "a.png"},
    ]
    row = {
        "messages": [
            {"role": "user", "content": parts},
            {"role": "assistant", "content": [{"type": "text", "text": "x"}]},
        ]
    }
    messages, images = reader.read("row 1", row)
    assert messages[0] == turn("user", IMAGE, "and", IMAGE, IMAGE, IMAGE)
    assert [type(image) for image in images] == [ImageFile, ImageText, ImageFile, ImageFile]


def test_open_parts_take_the_image_column_in_order(reader):
    content = [{"type": "image"}, {"type": "text", "text": "vs"}, {"type": "image"}]
    row = {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "x"}]}
    _, images = reader.read("row 1", {**row, "images": ["b.png", {"path": "a.png"}]})
    assert names(images) == ["b.png", "a.png"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conversations": []}, "at least one turn"),
        (
            {"conversations": None, "question": "?"},
            r"at least one turn, got the keys \['conversations', 'id', 'question'\]",
        ),
        ({"conversations": [{"from": "human", "value": "hi"}]}, "no assistant turn"),
        ({"conversations": [{"from": "bird", "value": "hi"}]}, "turn 1 has the role 'bird', expected one of"),
        ({"conversations": ["hi"]}, "turn 1 has the role None"),
        (
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": " "}]},
            "turn 2 is empty: expected text or an image",
        ),
        ({"conversations": [{"from": "human", "value": None}]}, "turn 1: expected text or parts"),
        ({"conversations": [{"from": "human", "value": [{"type": "audio"}]}]}, "turn 1: got a part of type 'audio'"),
        ({"image": ["a.png", "b.png"]}, "got 2 images, expected 1: one per <image>.*Remove the surplus"),
        ({"image": None}, "got 0 images, expected 1: one per <image>.*Add the missing"),
        ({"image": "c.png"}, r"no image at .*c\.png"),
        ({"image": 3}, "an image must be a path, a URL or base64 text, got '3'"),
    ],
)
def test_bad_rows(reader, changes, message):
    good = [{"from": "human", "value": "<image> a"}, {"from": "gpt", "value": "b"}]
    row = {"id": "1", "conversations": good, **changes}
    with pytest.raises(ValueError, match=f"^row 1:? ?.*{message}"):
        reader.read("row 1", row)


@pytest.mark.parametrize(
    "roles",
    [
        ["assistant", "user"],
        ["user", "user", "assistant"],
        ["user", "assistant", "user"],
        ["user", "system", "assistant"],
    ],
)
def test_turns_out_of_order(roles):
    with pytest.raises(ValueError, match="row 1: the turns are out of order"):
        check_order("row 1", roles)


def test_verify_decodes_at_once(reader):
    (reader.folder / "a.png").write_bytes(b"no")
    row = {"image": "a.png", "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    reader.read("row 1", row)
    with pytest.raises(ValueError, match="row 1: cannot read the image"):
        MessageReader(reader.folder, verify=True).read("row 1", row)


def parts(*texts):
    return [{"type": "text", "text": text} if isinstance(text, str) else text for text in texts]


def asked(content, answer, **changes):
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": answer}], **changes}


@pytest.mark.parametrize("answer", ["Use the <image> tag.", parts("Use the <image> tag.")])
def test_the_placeholder_in_an_answer_is_text(reader, answer):
    messages, images = reader.read("row 1", asked("how?", answer, image="a.png"))
    assert messages == [turn("user", IMAGE, "how?"), turn("assistant", "Use the <image> tag.")]
    assert names(images) == ["a.png"]
    messages, images = reader.read("row 1", asked("how?", answer))
    assert messages == [turn("user", "how?"), turn("assistant", "Use the <image> tag.")]
    assert images == []
    messages, _ = reader.read("row 1", asked("how <image>?", answer, image="a.png"))
    assert messages == [turn("user", "how ", IMAGE, "?"), turn("assistant", "Use the <image> tag.")]


def test_the_placeholder_in_a_question_whose_images_have_parts_is_text(reader):
    own = parts({"type": "image", "path": "a.png"}, "does <image> close itself?")
    assert reader.read("row 1", asked(own, "no"))[0][0] == turn("user", IMAGE, "does <image> close itself?")
    following = parts({"type": "image"}, "does <image> close itself?")
    messages, _ = reader.read("row 1", asked(following, "no", images=["a.png"]))
    assert messages[0] == turn("user", IMAGE, "does <image> close itself?")
    messages, _ = reader.read("row 1", asked(following, "no", images=["a.png", "b.png"]))
    assert messages[0] == turn("user", IMAGE, "does ", IMAGE, " close itself?")


@pytest.mark.parametrize("text", ["<image>\nwhat?", "what?\n<image>", "<image>"])
def test_a_placeholder_beside_the_image_part_that_it_repeats(reader, text):
    with pytest.raises(ValueError, match="row 1: each of its images has a part of its own.*Remove the placeholder"):
        reader.read("row 1", asked(parts({"type": "image"}, text), "no", images=["a.png"]))


def test_an_image_in_an_answer(reader):
    with pytest.raises(ValueError, match="row 1: an assistant turn shows an image"):
        reader.read("row 1", asked("draw", parts({"type": "image", "path": "a.png"})))
    with pytest.raises(ValueError, match="row 1: an assistant turn shows an image"):
        reader.read("row 1", asked("draw", parts("here", {"type": "image"}), images=["a.png"]))


@pytest.mark.parametrize(
    "value", [None, 5, True, ["a"], {"type": "text", "text": None}, {"type": "text"}, {"type": "text", "text": 3}]
)
def test_what_is_no_text_is_never_cast(reader, value):
    for said in (asked([value], "a"), asked("q", [value]), asked([{"type": "image", "path": "a.png"}, value], "a")):
        with pytest.raises(ValueError, match=r"row 1: turn \d: expected text or parts of type text"):
            reader.read("row 1", said)


def test_keys_that_a_table_has_filled_with_null(reader):
    said = [
        {"from": None, "role": "user", "value": None, "content": [{"type": "image", "text": None, "path": "a.png"}]}
    ]
    said.append({"from": None, "role": "assistant", "value": None, "content": "a", "weight": None})
    assert reader.read("row 1", {"messages": said})[0] == [turn("user", IMAGE), turn("assistant", "a")]
