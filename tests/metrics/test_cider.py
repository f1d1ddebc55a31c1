# ruff: noqa: RUF001 - the marks of other scripts are what is read
import pytest
import torch
from pycocoevalcap.cider.cider import Cider as CocoCider

from dowser_pl.metrics import Cider
from dowser_pl.metrics.cider import tokenise

PREDICTIONS = ["A red circle on the left.", "two blue squares", "a dog's bowl", "nothing like it"]
REFERENCES = [
    ["a red circle to the left", "one red circle on the left"],
    ["two blue squares"],
    ["the bowl of a dog", "A dog's bowl!", "bowl"],
    ["three green stars, and a moon"],
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [  # what Stanford's PTBTokenizer as wrapped by pycocoevalcap gave
        ("A dog's bowl, isn't it? Don't know.", "a dog 's bowl is n't it do n't know"),
        ('U.S. flag & 1,000 people; e.g. "big" one', "u.s. flag & 1,000 people e.g. big one"),
        ("red - blue -- green ... end\u2026", "red blue green end"),
        ("John's o'clock 'quoted' text", "john 's o'clock quoted text"),
        ("well-known 10:30 a.m.", "well-known 10:30 a.m."),
        ("a 1/2 eaten apple", "a 1/2 eaten apple"),
        ("It\u2019s a cat\u2019s \u201ctoy\u201d", "it 's a cat 's toy"),
        ("you're they've we'd I'm he'll", "you 're they 've we 'd i 'm he 'll"),
        ("t-shirts cost $3.50 or 50% off", "t-shirts cost $ 3.50 or 50 % off"),
        ("a wave.on top", "a wave.on top"),
        ("Mr. Jones (left) cannot see St. Ives, vs. me.", "mr. jones -lrb- left -rrb- can not see st. ives vs. me"),
        ("plan B. and t.v. or U.S", "plan b. and t.v. or u.s"),
        ("[x] {y} gonna, lemme; wannabe.", "-lsb- x -rsb- -lcb- y -rcb- gon na lem me wannabe"),
    ],
)
def test_tokens_are_those_of_the_published_tokenizer(text: str, expected: str) -> None:
    assert tokenise(text) == expected


def published(predictions: list[str], references: list[list[str]]) -> float:
    truth = {row: [tokenise(caption) for caption in captions] for row, captions in enumerate(references)}
    return float(CocoCider().compute_score(truth, {i: [tokenise(p)] for i, p in enumerate(predictions)})[0])


def test_equals_pycocoevalcap() -> None:
    metric = Cider()
    metric.update(PREDICTIONS[:1], REFERENCES[:1])
    metric.update(PREDICTIONS[1:], REFERENCES[1:])
    assert metric.compute().item() == pytest.approx(published(PREDICTIONS, REFERENCES), rel=1e-6)


def test_a_perfect_caption_is_worth_ten() -> None:
    metric = Cider()
    captions = ["a red circle on the left", "two blue squares in a row", "some green star over there"]
    metric.update(captions, [[caption] for caption in captions])
    assert metric.compute().item() == pytest.approx(10)


def test_empty_prediction_scores_zero() -> None:
    metric = Cider()
    metric.update(["", "two blue squares in a row"], [["a red circle"], ["two blue squares in a row"]])
    assert metric.compute().item() == pytest.approx(5)


def test_order_does_not_matter() -> None:
    forward, backward = Cider(), Cider()
    forward.update(PREDICTIONS, REFERENCES)
    backward.update(PREDICTIONS[::-1], REFERENCES[::-1])
    assert torch.equal(forward.compute(), backward.compute())


def test_any_text_survives_the_tensor_state() -> None:
    metric = Cider()
    odd = "caf\u00e9 \u732b\nline \U0001f600 \ud800"
    metric.update([odd, "b"], [[odd], ["b"]])
    assert metric.compute() > 0


def test_one_image_is_refused() -> None:
    metric = Cider()
    metric.update(["a dog"], [["a dog"]])
    with pytest.raises(ValueError, match="at least 2"):
        metric.compute()


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_no_image_is_refused() -> None:
    with pytest.raises(ValueError, match=r"got 0 image"):
        Cider().compute()


def test_references_without_words_are_refused() -> None:
    with pytest.raises(ValueError, match="row 1"):
        Cider().update(["a", "b"], [["a"], ["...", ""]])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "\u092c\u093f\u0932\u094d\u0932\u0940 \u0939\u0948\u0964",
            "\u092c\u093f\u0932\u094d\u0932\u0940 \u0939\u0948",
        ),
        ("\u0642\u0650\u0637\u0629\u060c \u0643\u0644\u0628\u061f", "\u0642\u0650\u0637\u0629 \u0643\u0644\u0628"),
        ("cafe\u0301 noir", "caf\u00e9 noir"),
        ("\uff23\uff21\uff34\u3000\uff13\uff0c\uff10\uff10\uff10", "cat 3,000"),
    ],
    ids=["Hindi", "Arabic", "decomposed", "full width"],
)
def test_vowel_signs_and_width_make_no_words(text: str, expected: str) -> None:
    assert tokenise(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("这只猫，很好。", "这 只 猫 很 好"),
        ("iPhone手机 3.5寸", "iphone 手 机 3.5 寸"),
        ("この「赤い」ソファー！", "こ の 赤 い ソ フ ァ ー"),
        ("ลูกแมว", "ล ู ก แ ม ว"),
        ("빨간 고양이.", "빨간 고양이"),
        ("ﾃｽﾄ。", "ﾃ ｽ ﾄ"),
    ],
)
def test_scripts_without_spaces_are_counted_by_characters(text: str, expected: str) -> None:
    assert tokenise(text) == expected


@pytest.mark.parametrize(
    ("near", "captions"),
    [
        ("一只白猫坐在沙发上", ["一只白色的猫坐在沙发上。", "两只狗在草地上奔跑。", "桌子上有一个苹果。"]),
        ("白い猫がソファに座る", ["白い猫がソファに座っている。", "犬が芝生を走る。", "机の上にりんごがある。"]),
        ("แมวขาวนั่งบนโซฟา", ["แมวสีขาวนั่งอยู่บนโซฟา", "สุนัขวิ่งบนสนามหญ้า", "มีแอปเปิ้ลบนโต๊ะ"]),
    ],
)
def test_a_near_caption_without_spaces_is_worth_something(near: str, captions: list[str]) -> None:
    metric = Cider()
    metric.update([near, "", ""], [[caption] for caption in captions])
    assert metric.compute() > 0.5
    metric.reset()
    metric.update(captions[1:] + captions[:1], [[caption] for caption in captions])
    assert metric.compute() < 0.5


def test_captions_that_are_all_the_same_are_refused() -> None:
    metric = Cider()
    metric.update(["a dog"] * 3, [["a dog"]] * 3)
    with pytest.raises(ValueError, match="captions of all 3 images consist of the same words"):
        metric.compute()
