"""InstructBLIP whose Q-Former is tuned: masked, tailored, with all else as it was."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from dowser_pl.callbacks import Dowser
from dowser_pl.data import Conversation, Task
from dowser_pl.methods import Full, Layer, ModelDowser, ModelTailor
from dowser_pl.models.loading import load_model
from dowser_pl.reporting import read_report
from tests.tiny_models import save_tiny_instructblip, tiny_instructblip
from tests.tiny_run import SMALL_PROBE, TinyData, build_module, build_trainer, pictures, turn

QUESTIONS = ("what colour is it ?", "is it red ?", "what is the colour of this square ?")


class Asked(TinyData):
    """Pictures with instructions of different lengths."""

    def __init__(self, batch_size: int = 2) -> None:
        super().__init__(batch_size=batch_size)
        self.chat_template = "instructblip"

    def train_conversations(self) -> list[Conversation]:
        return [
            Conversation(f"row {i}", [turn("user", QUESTIONS[i % 3], True), turn("assistant", colour)], [image])
            for i, (colour, image) in enumerate(pictures(self.num_rows))
        ]

    def evaluation_tasks(self) -> list[Task]:
        return super().evaluation_tasks()[:1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model = tiny_instructblip()
    torch.nn.init.normal_(model.query_tokens, std=0.5, generator=torch.Generator().manual_seed(0))  # zeros in a new one
    return save_tiny_instructblip(tmp_path_factory.mktemp("model"), model)


def fit(folder, out, method, data=None, also_train=(), **options):
    trainer = build_trainer(out, method, limit_val_batches=1, **{"max_epochs": 1, "export": True, **options})
    module = build_module(folder, lr=2e-2, targets=["qformer"], also_train=list(also_train))
    torch.manual_seed(0)  # the Q-Former has dropout
    trainer.fit(module, datamodule=data or Asked())
    return module, next(each for each in trainer.callbacks if isinstance(each, Dowser))


def check_all_else_is_the_base(folder, out, dowser):
    """By the files: entries outside of the masks, and every tensor that is no matrix of the Q-Former."""
    before, after = (load_file(each / "model.safetensors") for each in (folder, out / "model"))
    assert before.keys() == after.keys()
    moved = 0
    for key, tensor in before.items():
        name = key.removesuffix(".weight")
        if name in dowser.entries.masks:
            mask = dowser.entries.masks[name]
            assert torch.equal(after[key][~mask].view(torch.uint8), tensor[~mask].view(torch.uint8)), key
            moved += int((after[key] != tensor).sum())
        else:
            assert torch.equal(after[key].view(torch.uint8), tensor.view(torch.uint8)), key
    report = read_report(out)
    assert report.frozen.changed == 0 and report.frozen_digest["before"] == report.frozen_digest["after"]
    assert report.trainable.changed == moved > 0
    return moved


@pytest.mark.parametrize("update", ["compact", "dense"])
def test_a_tenth_of_the_qformer_is_trained_and_nothing_else(folder, tmp_path, update):
    probe = replace(SMALL_PROBE, noise_images=True)
    _, dowser = fit(folder, tmp_path, ModelDowser(0.1), probe=probe, update=update)
    assert len(dowser.entries.masks) == 24 and all("qformer.encoder.layer." in name for name in dowser.entries.masks)
    for name in dowser.entries.masks:
        mask = dowser.entries.masks[name]
        assert int(mask.sum()) == round(0.1 * mask.numel())
    check_all_else_is_the_base(folder, tmp_path, dowser)


def test_prompts_without_pictures_are_refused_before_they_are_written(folder, tmp_path):
    with pytest.raises(ValueError, match=r"24 matrices of the Q-Former .* first qformer.*noise_images true"):
        fit(folder, tmp_path, ModelDowser(0.1))


def naive_grams(module, layers):
    """Of one unpadded row after the other, so that every position of an input is a real one."""
    data = Asked(batch_size=1)
    data.processor = module.processor
    data.setup("fit")
    sums, counts = dict.fromkeys(layers, 0.0), dict.fromkeys(layers, 0)
    for row in data.calibration_dataloader():
        row.pop("ids")
        assert bool(row["attention_mask"].all()) and bool(row["qformer_attention_mask"].all())
        taken = {}
        handles = [layer.register_forward_pre_hook(partial(keep, taken, name)) for name, layer in layers.items()]
        with torch.no_grad():
            module.network.eval()(**row)
        for handle in handles:
            handle.remove()
        for name, value in taken.items():
            tokens = value.flatten(0, 1).double()
            sums[name], counts[name] = sums[name] + tokens.T @ tokens, counts[name] + len(tokens)
    return {name: (total / counts[name]).float() for name, total in sums.items()}


def keep(taken, name, module, given):
    taken[name] = given[0]


@pytest.mark.slow
def test_tailored_by_the_inputs_of_the_rows_that_are_learnt(folder, tmp_path):
    method = ModelTailor(0.1)
    tuned, _ = fit(folder, tmp_path / "full", Full(), Asked(batch_size=3))
    module, dowser = fit(folder, tmp_path / "tailored", method, Asked(batch_size=3))
    layers, base = tuned.tuned_layers(), load_model(str(folder), dtype="float32")
    grams = naive_grams(tuned, layers)
    errors = wanted = 0.0
    for name, layer in module.tuned_layers().items():
        before = base.get_submodule(name).weight.detach()
        seen = Layer(name, before, tuned=layers[name].weight.detach(), input_gram=grams[name])
        mask = method.mask(seen)
        assert (dowser.entries.masks[name] != mask).float().mean() < 0.02, name
        moved = method.merge(seen, mask) - before
        errors += float((layer.weight.detach() - before - moved).square().sum())
        wanted += float(moved.square().sum())
    assert errors < 1e-3 * wanted
    moved = check_all_else_is_the_base(folder, tmp_path / "tailored", dowser)
    assert moved <= 0.1 * sum(layer.weight.numel() for layer in layers.values()) + len(layers)


def test_parts_beside_the_masked_matrices_train_whole(folder, tmp_path):
    """What is between picture and text, Q-Former included, but for the matrices that have a mask."""
    _, dowser = fit(folder, tmp_path, ModelTailor(0.1), Asked(batch_size=3), ["projector"])
    before, after = (load_file(each / "model.safetensors") for each in (folder, tmp_path / "model"))
    for key, tensor in before.items():
        name = key.removesuffix(".weight")
        if name in dowser.entries.masks:
            mask = dowser.entries.masks[name]
            assert torch.equal(after[key][~mask], tensor[~mask]), key
        elif key.startswith(("vision_model.", "language_model.")):
            assert torch.equal(after[key], tensor), key
    assert not torch.equal(after["query_tokens"], before["query_tokens"])
    assert not torch.equal(after["language_projection.weight"], before["language_projection.weight"])
