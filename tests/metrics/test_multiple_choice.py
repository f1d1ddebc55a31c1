import pytest

from dowser_pl.metrics import MultipleChoice
from dowser_pl.metrics.multiple_choice import chosen_letter


@pytest.mark.parametrize(
    ("prediction", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        (" B \n", "B"),
        ("(B)", "B"),
        ("( b )", "B"),
        ("[B] a dog", "B"),
        ("B.", "B"),
        ("B. A dog", "B"),
        ("b) a dog", "B"),
        ("B: a dog", "B"),
        ("B, because it barks", "B"),
        ("B\n\nBecause A is wrong", "B"),
        ("B \nor A", None),
        ('"B"', "B"),
        ("A.", "A"),
        ("**B**", "B"),
        ("The answer is B", "B"),
        ("The answer is B.", "B"),
        ("the correct answer is (b)", "B"),
        ("Answer: C", "C"),
        ("answer: c.", "C"),
        ("Option D", "D"),
        ("The answer is option D because it is red", "D"),
        ("The best choice would be A.", "A"),
        ("I would say (C), the dog", "C"),
        ("The answer is \\boxed{B}", "B"),
        ("The answer is B. Option B is a dog.", "B"),
        ("A dog", None),
        ("a dog", None),
        ("the answer is a dog", None),
        ("I am not sure", None),
        ("A or B", None),
        ("A, B", None),
        ("(A) or (B)", None),
        ("The answer is A or B", None),
        ("(A) is red, (C) is blue", "A"),
        ("either (A) or maybe (C)", None),
        ("Answer: A. No, answer: B.", None),
        ("Both", None),
        ("", None),
    ],
)
def test_letters(prediction: str, letter: str | None) -> None:
    assert chosen_letter(prediction) == letter


@pytest.mark.parametrize(
    ("prediction", "references", "right"),
    [
        ("B", ["B"], True),
        ("the answer is (b)", ["B"], True),
        ("A", ["(A)"], True),
        ("a", ["a."], True),
        ("A dog.", ["B", "a dog"], True),
        ("a dog", ["B"], False),
        ("A. a dog", ["B", "a dog"], False),
        ("I. Newton", ["C", "I. Newton"], True),
        ("B", ["A", "B"], False),
        ("A", ["A", "B"], True),
        ("", ["A", "a dog"], False),
        ("42", ["D", "42"], True),
        ("4", ["D", "4"], True),
    ],
)
def test_right_or_wrong(prediction: str, references: list[str], right: bool) -> None:
    metric = MultipleChoice()
    metric.update([prediction], [references])
    assert metric.compute() == float(right)


@pytest.mark.parametrize("reference", ["a dog", "", "1", "AB", "\u00c4"])
def test_reference_must_be_a_letter(reference: str) -> None:
    with pytest.raises(ValueError, match="expected the letter of the right option"):
        MultipleChoice().update(["A"], [[reference]])
