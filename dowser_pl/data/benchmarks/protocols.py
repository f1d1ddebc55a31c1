"""How a benchmark is asked and scored, as tables: one under each name that papers compare under.

- `llava`: the scripts and instructions of LLaVA-1.5 (github.com/haotian-liu/LLaVA, c121f04). For the sets that it does
  not have, those of the fork that Model-Dowser published with its data (6efd4e1): OK-VQA and OCR-VQA by a single word
  or phrase, the five instructions for captions, IconQA with "Answer: B" for an answer, and ImageNet-R. VizWiz' second
  line, and the layout of ScienceQA's question, are as others quote LLaVA's own question files, which were not seen.
- `instructblip`: the instructions of InstructBLIP's evaluation (github.com/salesforce/LAVIS, 506965b,
  lavis/projects/instructblip), which has COCO, NoCaps and OK-VQA; all other captions and short answers are asked in the
  same words. Questions are written as its `blip_question` does. It writes answers by five beams with penalties.
- `lmms-eval`: the task files of lmms-eval (75571cf). It has no OCR-VQA and no ImageNet-R; its IconQA scores answers
  that its data set alone has. Where a task sets no number of new tokens, it is the 1024 of its model `llava_hf`.

All answer greedily. `llava` pads pictures to squares, as these scripts do of a model whose `image_aspect_ratio` is
"pad", LLaVA-1.5's; the others leave them to the processor. Captions are scored by CIDEr without Java, in place of the
seven numbers of lmms-eval.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from string import Formatter, ascii_uppercase
from zlib import crc32

from dowser_pl.data.reading.sources import Row
from dowser_pl.errors import DowserError

DEFAULT = "llava"
PADDINGS = ("square", "processor")
"""Pictures for a processor that cuts out the centre (LLaVA-1.5's): padded to a square with its mean colour before, as
the original LLaVA does in training and evaluation; or cut, as the processor's own settings have it."""


@dataclass(frozen=True)
class Protocol:
    """How one benchmark is asked and scored.

    Attributes:
        prompts: templates of the question with the fields `question`, `Question` (its first letter a capital, all
            others small), `plain_question` (small letters, without the marks `.!"()*#:;~`), `hint`, `options` (lettered
            lines) and `ocr`. A line whose fields are all empty is left out. Of several, the id of the question decides
            which one it is asked by.
        metric: see `TaskFile`.
        max_new_tokens: how long an answer may be.
        answer: template of the right answer of a question with options, with `letter` and `text`; "" = both count.
        padding: what becomes of pictures that a processor would cut the margins off: see `PADDINGS`.
    """

    prompts: tuple[str, ...]
    metric: str
    max_new_tokens: int
    answer: str = ""
    padding: str = "processor"

    @property
    def reads_ocr(self) -> bool:
        """Whether questions are asked with OCR tokens."""
        return any("{ocr}" in prompt for prompt in self.prompts)

    def asked(self, row: Row, with_options: bool = True) -> str:
        """The words of a question.

        Args:
            row: of a layout.
            with_options: whether its options are written.
        """
        prompt = self.prompts[crc32(str(row["id"]).encode()) % len(self.prompts)]
        question = row.get("question", "")
        options = [f"{letter}. {text}" for letter, text in zip(ascii_uppercase, row.get("options", []), strict=False)]
        fields = {
            "question": question,
            "Question": question.capitalize(),
            "plain_question": question.lower().translate(_MARKS).rstrip(),
            "hint": row.get("hint", ""),
            "ocr": row.get("ocr", ""),
            "options": "\n".join(options) if with_options else "",
        }
        return "\n".join(_lines(prompt, fields))

    def right(self, row: Row) -> list[str]:
        """The references of a question; none where nobody has answered it."""
        if "captions" in row or "answers" in row:
            return [str(each) for each in (row["captions"] if "captions" in row else row["answers"])]
        if "answer" not in row:
            return []
        letter, text = ascii_uppercase[row["answer"]], str(row["options"][row["answer"]])
        return [self.answer.format(letter=letter, text=text)] if self.answer else [letter, text]


def checked_padding(padding: str | None) -> str | None:
    """The same padding, if it is one of `PADDINGS` or None.

    Raises:
        DowserError: it is not.
    """
    if padding not in (None, *PADDINGS):
        raise DowserError(f"padding: got {padding!r}, expected {' or '.join(PADDINGS)}.")
    return padding


_MARKS = str.maketrans("", "", '.!"()*#:;~')


def _lines(prompt: str, fields: Mapping[str, str]) -> list[str]:
    lines = []
    for line in prompt.split("\n"):
        named = [name for _, name, _, _ in Formatter().parse(line) if name]
        if not named or any(fields[name] for name in named):
            lines.append(line.format(**fields).strip())
    return lines


_WORD = "Answer the question using a single word or phrase."
_UNANSWERABLE = f"When the provided information is insufficient, respond with 'Unanswerable'.\n{_WORD}"
_LETTER = "Answer with the option's letter from the given choices directly."
_CAPTIONS = (
    "Provide a short description of the image.",
    "Briefly describe the content of the image.",
    "Give a brief summary of what you see.",
    "Write a short description for the image.",
    "Describe the image as simply as possible with a sentence or phrase.",
)
_ONE_SENTENCE = "Provide a one-sentence caption for the provided image."
_BRIEFLY = "Describe the image briefly."
_SEVERAL = "{hint} {question} There are several options:\n{options}\n\n"
_OBJECT = f"What is the object in the image?\n{_WORD}"


def _asked(prompt: str, metric: str, tokens: int, answer: str = "") -> Protocol:
    return Protocol((prompt,), metric, tokens, answer)


_SHORT = "{question}\n" + _WORD
_SHORT_ANSWER = "Question: {plain_question} Short Answer:"
_LLAVA_CAPTION = Protocol(_CAPTIONS, "cider", 128)
_LLAVA_OPTIONS = "{hint}\n{question}\n{options}\n"
_SCIENCE = "Context: {hint}\n{question}\n{options}\n" + _LETTER
_UCIT = _asked("{question}", "exact_match_lower", 256)
_UCIT_CAPTION = _asked("{question}", "cider", 256)

_RECORDS: dict[str, Protocol] = {
    "dowser_coco": _asked("{question}", "cider", 128),
    "dowser_flickr30k": _asked("{question}", "cider", 128),
    "dowser_iconqa": _asked("{question}", "exact_match_lower", 128),
    "dowser_imagenet_r": _asked("{question}", "exact_match_lower", 128),
    "ucit_flickr30k": _UCIT_CAPTION,
    "ucit_vizwiz": _UCIT_CAPTION,
    **dict.fromkeys(("ucit_iconqa", "ucit_imagenet_r", "ucit_arxivqa", "ucit_clevr"), _UCIT),
}
_CAPTION_SETS = ("coco_caption", "coco_karpathy", "flickr30k", "flickr30k_token", "nocaps")

_LLAVA: dict[str, Protocol] = {
    "textvqa": _asked("{question}\nReference OCR token: {ocr}\n" + _WORD, "vqa", 128),
    "okvqa": _asked(_SHORT, "vqa", 128),
    "aokvqa": _asked(_SHORT, "aokvqa", 128),
    "vqav2": _asked(_SHORT, "vqa", 128),
    "vizwiz": _asked("{question}\n" + _UNANSWERABLE, "vqa", 128),
    "gqa": _asked(_SHORT, "gqa", 128),
    "ocrvqa": _asked(_SHORT, "exact_match_lower", 128),
    "mmbench": _asked(_LLAVA_OPTIONS + _LETTER, "mmbench", 1024),
    "mmbench_cn": _asked(_LLAVA_OPTIONS + "请直接回答选项字母。", "mmbench", 1024),
    **dict.fromkeys(_CAPTION_SETS, _LLAVA_CAPTION),
    "iconqa": _asked("{question}\n{options}", "exact_match_lower", 128, "Answer: {letter}"),
    "imagenet_r": _asked(_OBJECT, "exact_match_lower", 128),
    "scienceqa": _asked(_SCIENCE, "scienceqa", 1024),
    "scienceqa_img": _asked(_SCIENCE, "scienceqa", 1024),
    "pope": _asked(_SHORT, "pope", 128),
    **_RECORDS,
}
PROTOCOLS: dict[str, dict[str, Protocol]] = {
    "llava": {name: replace(asked, padding="square") for name, asked in _LLAVA.items()},
    "instructblip": {
        **dict.fromkeys(("okvqa", "vqav2"), _asked(_SHORT_ANSWER, "vqa", 10)),
        "gqa": _asked(_SHORT_ANSWER, "gqa", 10),
        "aokvqa": _asked(_SHORT_ANSWER, "aokvqa", 10),
        **dict.fromkeys(_CAPTION_SETS, _asked("A short image caption.", "cider", 80)),
    },
    "lmms-eval": {
        "textvqa": _asked("{Question}\n" + _WORD, "vqa", 1024),
        "okvqa": _asked("{question}\n" + _UNANSWERABLE, "vqa", 1024),
        "vqav2": _asked(_SHORT, "vqa", 16),
        "vizwiz": _asked("{Question}\n" + _UNANSWERABLE, "vqa", 1024),
        "gqa": _asked(_SHORT, "exact_match_unpunctuated", 16),
        "mmbench": _asked(_SEVERAL + _LETTER, "mmbench", 1024),
        "mmbench_cn": _asked(_SEVERAL + "请直接使用所提供的选项字母作为答案回答。", "mmbench", 256),
        **dict.fromkeys(_CAPTION_SETS, _asked(_ONE_SENTENCE, "cider", 64)),
        "coco_karpathy": _asked(_BRIEFLY, "cider", 64),
        "scienceqa": _asked(_SCIENCE, "scienceqa_prefix", 16),
        "scienceqa_img": _asked(_SCIENCE, "scienceqa_prefix", 16),
        "pope": _asked(_SHORT, "exact_match_lower", 128),
    },
}


def protocol_named(name: str, benchmark: str) -> Protocol:
    """How a benchmark is asked under a protocol.

    Raises:
        DowserError: there is no such protocol, or it does not have this benchmark.
    """
    if name not in PROTOCOLS:
        raise DowserError(f"protocol: got {name!r}, expected one of {', '.join(PROTOCOLS)}.")
    table = PROTOCOLS[name]
    if benchmark not in table:
        raise DowserError(
            f"protocol {name} has no {benchmark}; it has {', '.join(table)}. Choose another protocol for this one."
        )
    return table[benchmark]
