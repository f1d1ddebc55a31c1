"""Pictures as squares: what a processor that cuts out the centre gets to see."""

import base64
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import InstructBlipProcessor, PaliGemmaProcessor
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from dowser_pl.data import ConversationData, TaskFile
from dowser_pl.data.encoders import square_colour
from dowser_pl.data.images import Decoding, ImageFile, open_image
from dowser_pl.errors import DowserError
from tests.data.benchmarks import official_files
from tests.data.builders import build_llava, build_tokenizer, chat_template
from tests.data.test_families import SIZE, gemma3, idefics3, internvl, llava_next
from tests.data.test_pixels import published

MEAN = (122, 116, 104)  # of CLIP, as the original LLaVA rounds it: int(255 x)


def noise(width, height):
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(("width", "height"), [(7, 4), (4, 7), (5, 5), (8, 1)])
def test_the_picture_lies_in_the_middle(width, height, tmp_path):
    given = noise(width, height)
    given.save(tmp_path / "a.png")
    padded = np.asarray(open_image(ImageFile(tmp_path / "a.png", Decoding(square=MEAN)), "row"))
    side = max(width, height)
    expected = np.empty((side, side, 3), dtype=np.uint8)
    expected[:] = MEAN
    top, left = (side - height) // 2, (side - width) // 2
    expected[top : top + height, left : left + width] = np.asarray(given)
    assert np.array_equal(padded, expected)


def test_a_strip_whose_square_is_too_large_is_refused(tmp_path):
    Image.new("RGB", (200, 1)).save(tmp_path / "a.png")
    assert open_image(ImageFile(tmp_path / "a.png", Decoding(max_pixels=200)), "row").size == (200, 1)
    with pytest.raises(DowserError, match="200 x 1 pixels padded to a square exceed max_image_pixels=200"):
        open_image(ImageFile(tmp_path / "a.png", Decoding(max_pixels=200, square=MEAN)), "row")


TEMPLATE = chat_template()


def llava():
    """A processor with the settings of the published one: the shorter edge is resized, and the centre cut out."""
    processor = build_llava(TEMPLATE)
    processor.image_processor.size = {"shortest_edge": 16}
    return processor


PROCESSORS = {
    "llava": llava,
    "llava_next": lambda: llava_next(TEMPLATE),
    "idefics3": lambda: idefics3(TEMPLATE),
    "gemma3": lambda: gemma3(TEMPLATE),
    "internvl": lambda: internvl(TEMPLATE),
    "qwen2_5_vl": published,
    "instructblip": lambda: InstructBlipProcessor(
        BlipImageProcessorPil(size=SIZE), build_tokenizer(), build_tokenizer(), num_query_tokens=2
    ),
    "paligemma": lambda: PaliGemmaProcessor(SiglipImageProcessorPil(size=SIZE, image_seq_length=4), build_tokenizer()),
}


@pytest.mark.parametrize("family", PROCESSORS)
def test_only_processors_that_lose_the_margins_get_squares(family):
    """Whether two pictures that differ in their margins alone are one to the processor."""
    processor = PROCESSORS[family]()
    one, other = Image.new("RGB", (96, 48)), Image.new("RGB", (96, 48))
    other.paste("white", (0, 0, 12, 48))
    seen = [processor.image_processor(images=[each], return_tensors="pt")["pixel_values"] for each in (one, other)]
    assert (square_colour(processor) is not None) == torch.equal(*map(torch.as_tensor, seen)) == (family == "llava")


@pytest.fixture
def sets(tmp_path):
    """GQA and MMBench with pictures that are no squares, and files of one's own."""
    official_files.gqa(tmp_path / "gqa")
    official_files.mmbench(tmp_path / "mmbench")
    for path in (tmp_path / "gqa" / "images").iterdir():
        noise(40, 20).save(path.with_suffix(".png"))
        path.with_suffix(".png").rename(path)
    noise(20, 40).save(tmp_path / "own.png")
    held = io.BytesIO()
    noise(20, 40).save(held, "PNG")
    said = {"question": "what ?", "answer": "red"}
    rows = [{"image": "own.png", **said}, {"image": {"base64": base64.b64encode(held.getvalue()).decode()}, **said}]
    (tmp_path / "own.json").write_text(json.dumps(rows))
    turns = [{"from": "human", "value": "<image>\nwhat ?"}, {"from": "gpt", "value": "red"}]
    (tmp_path / "train.json").write_text(json.dumps([{"image": "own.png", "conversations": turns}]))
    return tmp_path


def build(sets, *tasks, **options):
    data = ConversationData(str(sets / "train.json"), root=str(sets), tasks=list(tasks), holdout=0, **options)
    data.processor = llava()
    data.setup("fit")
    return data


def pixels(data):
    return [torch.cat([batch["inputs"]["pixel_values"] for batch in loader]) for loader in data.val_dataloader()]


def test_the_original_llava_and_the_processor(sets):
    """The picture as transformers itself pads it, `do_pad`, and as the processor cuts it."""
    own = TaskFile("own", str(sets / "own.json"), role="downstream")
    gqa = {"benchmark": "gqa", "root": "gqa"}
    tasks = [TaskFile(**gqa), TaskFile(**gqa, name="cut", protocol="lmms-eval"), own]
    tasks += [TaskFile(**gqa, name="changed", padding="processor"), TaskFile("padded", own.file, padding="square")]
    data = build(sets, *tasks)
    plain = data.processor.image_processor
    padding = LlavaImageProcessorPil.from_dict({**plain.to_dict(), "do_pad": True})

    def seen(images, *places):
        return images([Image.open(place).convert("RGB") for place in places], return_tensors="pt")["pixel_values"]

    official, mine = sorted((sets / "gqa" / "images").iterdir()), [sets / "own.png"] * 2
    expected = [seen(padding, *official), seen(plain, *official), seen(plain, *mine), seen(plain, *official)]
    for found, wanted in zip(pixels(data), [*expected, seen(padding, *mine)], strict=True):
        assert torch.equal(found, wanted)
    assert not torch.equal(expected[0], expected[1])
    told = [(task.protocol.get("name"), task.protocol["padding"]) for task in data.tasks]
    assert told == [
        ("llava", "square"),
        ("lmms-eval", "processor"),
        (None, "processor"),
        ("llava (changed)", "processor"),
        (None, "square"),
    ]


def test_the_data_module_decides_for_all_rows(sets):
    gqa = TaskFile(benchmark="gqa", root="gqa", role="downstream")
    train = []
    for padding in (None, "processor", "square"):
        data = build(sets, gqa, padding=padding)
        train.append(next(iter(data.train_dataloader()))["pixel_values"])
        asked = {None: ("llava", "square"), "processor": ("llava (changed)", "processor")}
        told = data.tasks[0].protocol
        assert (told["name"], told["padding"]) == asked.get(padding, ("llava", "square"))
    assert torch.equal(train[0], train[1]) and not torch.equal(train[0], train[2])
    with pytest.raises(DowserError, match="padding: got 'pad', expected square or processor"):
        ConversationData("a.json", padding="pad")
    with pytest.raises(DowserError, match="padding: got 'pad', expected square or processor"):
        TaskFile("own", "a.json", padding="pad")


def test_a_benchmark_to_train_on_and_what_is_held_out_of_it_follow_the_protocol(tmp_path):
    official_files.iconqa(tmp_path)
    content = json.loads((tmp_path / "iconqa_data" / "pid_splits.json").read_text())
    content["choose_txt_train"] = ["38284", "68525"]
    (tmp_path / "iconqa_data" / "pid_splits.json").write_text(json.dumps(content))
    for pid in content["choose_txt_train"]:
        place = tmp_path / "iconqa_data" / "iconqa" / "train" / "choose_txt" / pid / "image.png"
        place.parent.mkdir(exist_ok=True)
        noise(40, 20).save(place)
    sizes = {}
    for padding in (None, "processor"):
        benchmark = TaskFile(benchmark="iconqa", padding=padding)
        data = ConversationData(root=str(tmp_path), train_benchmark=benchmark, holdout=0.5)
        data.processor = llava()
        data.setup("fit")
        (task,) = data.tasks
        rows = [*data.train_conversations(), *task.questions]
        sizes[padding] = {open_image(row.images[0], "row").size for row in rows}, task.protocol["padding"]
        assert len(rows) == 2
        assert {each.size for each in data.training_pictures(2, 0)} == sizes[padding][0]
    assert sizes == {None: ({(40, 40)}, "square"), "processor": ({(40, 20)}, "processor")}
