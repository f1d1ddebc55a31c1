"""Weights of 4 and 8 bits and adapters beside them, planned from shapes: against bitsandbytes and a count by hand."""

import json

import pytest
import torch
from transformers import BitsAndBytesConfig

from dowser_pl.cli.main import main
from dowser_pl.methods import Lora, NullSpaceSettings
from dowser_pl.models import quantized
from dowser_pl.models.layers import decoder_layers
from dowser_pl.models.loading import load_model, skeleton
from dowser_pl.models.lora import LoraSettings
from dowser_pl.planning.memory import Placement
from dowser_pl.planning.model import decoder_of, sizes_of
from dowser_pl.planning.verb import plan_run
from tests.planning.test_verb import PlanAtStart
from tests.tiny_models import make_processor_folder, tiny_llava
from tests.tiny_run import TinyData, build_module, build_trainer

HIDDEN, MLP, LAYERS, VISION_HIDDEN, VISION_MLP, VISION_LAYERS = 64, 130, 3, 16, 24, 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    tiny_llava(hidden_size=HIDDEN, intermediate_size=MLP, head_dim=16).save_pretrained(path)
    make_processor_folder(path)
    return str(path)


def doubly(monkeypatch, double):
    monkeypatch.setattr(
        quantized,
        "BitsAndBytesConfig",
        lambda **options: BitsAndBytesConfig(**options, bnb_4bit_use_double_quant=double),
    )


def bytes_of(model):
    found = {name: (each.nbytes, each.dtype) for name, each in model.named_parameters()}
    return found | {name: quantized.scale_bytes(module) for name, module in model.named_modules()}


@pytest.mark.parametrize(("packing", "double"), [("none", False), ("4bit", False), ("4bit", True), ("8bit", False)])
def test_a_skeleton_has_the_bytes_that_bitsandbytes_packs(folder, packing, double, monkeypatch):
    doubly(monkeypatch, double)
    packed = load_model(folder, dtype="bfloat16", quantization=packing)
    planned = skeleton(folder, dtype="bfloat16", quantization=packing)
    assert bytes_of(planned) == bytes_of(packed) and (packing == "none") == (not any(map(scales, packed.modules())))
    first, second = (sizes_of(each, list(decoder_layers(each)), [], 0) for each in (planned, packed))
    assert first.weights == second.weights
    held = sum(each.nbytes for each in (*packed.parameters(), *packed.buffers()))
    assert sum(first.weights.values()) == held + sum(map(scales, packed.modules()))
    if packing == "8bit":  # a layer that has worked keeps its scales elsewhere
        before = sum(map(scales, packed.modules()))
        with torch.no_grad():
            packed(input_ids=torch.tensor([[5, 6, 7]]))
        assert sum(map(scales, packed.modules())) == before > 0


def scales(module):
    return quantized.scale_bytes(module)


def test_files_that_are_packed_already_are_planned_as_they_are(folder, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        doubly(patched, True)
        load_model(folder, dtype="bfloat16", quantization="4bit").save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path), dtype="bfloat16")
    assert any(quantized.scale_bytes(module) for module in loaded.modules())
    assert bytes_of(skeleton(str(tmp_path), dtype="bfloat16")) == bytes_of(loaded)


@pytest.mark.parametrize("double", [False, True])
def test_four_bits_as_counted_by_hand(folder, double, monkeypatch):
    """Half a byte an entry; a scale for 64 of them, of 4 bytes, or of 1 and 4 for every 256 scales; tables and mean."""
    doubly(monkeypatch, double)
    model = skeleton(folder, dtype="bfloat16", quantization="4bit")
    text = [(HIDDEN, HIDDEN)] * 2 + [(HIDDEN // 2, HIDDEN)] * 2 + [(MLP, HIDDEN)] * 3  # two heads of keys and values
    vision = [(VISION_HIDDEN, VISION_HIDDEN)] * 4 + [(VISION_MLP, VISION_HIDDEN)] * 2
    between = [(HIDDEN, VISION_HIDDEN), (HIDDEN, HIDDEN)]
    total = 0
    for rows, columns in text * LAYERS + vision * VISION_LAYERS + between:
        entries = rows * columns
        blocks = -(-entries // 64)
        total += entries // 2 + 16 * 4
        total += blocks + 4 * -(-blocks // 256) + 4 + 256 * 4 if double else 4 * blocks
    assert sizes_of(model, list(decoder_layers(model)), [], 0).weights["packed"] == total
    decoder = decoder_of(model, list(decoder_layers(model)), "bf16-true")
    assert decoder.unpacked_bytes == 2 * HIDDEN * MLP and decoder.itemsize == 2


@pytest.mark.slow
def test_a_run_over_four_bits_holds_what_was_planned(folder, tmp_path):
    """bfloat16: weights and scales, float32 values and moments of the adapters, directions once an input."""
    method, seen = Lora(NullSpaceSettings(rank=4, tokens=60)), PlanAtStart()
    options = {"lora": LoraSettings(r=2), "quantization": "4bit", "last_n_layers": 2}
    trainer = build_trainer(tmp_path, method, [seen], max_epochs=1, limit_val_batches=1, precision="bf16-true")
    module = build_module(folder, **options)
    trainer.fit(module, datamodule=TinyData())
    other = build_trainer(tmp_path / "other", method, max_epochs=1, precision="bf16-true")
    forms, _ = plan_run(other, build_module(folder, **options), TinyData(), Placement(), None, None, True)
    held, entries = forms["compact"].held, trainer.callbacks[0].entries
    everything = (*module.network.parameters(), *module.network.buffers())
    states = sum(map(quantized.scale_bytes, module.network.modules()))
    assert seen.plan.held.weights == sum(each.nbytes for each in everything) + states
    assert held.weights == pytest.approx(seen.plan.held.weights, rel=0.02), "the table of 16 values was bfloat16 there"
    sides = 2 * (4 * HIDDEN + 2 * (HIDDEN + HIDDEN // 2) + 3 * (HIDDEN + MLP))
    assert entries.num_trainable == 2 * sides and held.entries == entries.num_bytes()["values"] == 4 * 2 * sides
    assert held.moments == pytest.approx(seen.moments, rel=0.01) and held.moments >= 8 * 2 * sides
    assert held.gradients == pytest.approx(seen.gradients, rel=0.15)


@pytest.mark.slow
def test_the_preset_for_one_card_is_planned(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main("plan -c base -c model/world -c data/world -c method/qlora_null_space --json plan.json".split())
    out = capsys.readouterr().out
    assert " packed; " in out and "no rate was measured" in out, "hours are of 16 bits"
    forms = json.loads((tmp_path / "plan.json").read_text())["rows"]
    main("plan -c base -c model/world -c data/world -c method/lora_null_space --json plain.json".split())
    plain = json.loads((tmp_path / "plain.json").read_text())["rows"]
    assert forms.keys() == plain.keys()
    packed, whole = (each["compact"]["bytes"] for each in (forms, plain))
    assert packed["weights"] < whole["weights"] and packed["kept"] == whole["kept"]
    assert packed["moments"] == whole["moments"]


def test_what_packed_weights_cannot_do_is_refused(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = "plan -c base -c model/world -c data/world -c method/qlora_null_space -c strategy/fsdp2"
    with pytest.raises(SystemExit, match="packed weights are not sharded"):
        main([*command.split(), "--trainer.devices", "2"])
    with monkeypatch.context() as patched:
        doubly(patched, False)
        load_model(folder, quantization="4bit").save_pretrained(tmp_path / "packed")
    module = build_module(tmp_path / "packed")
    with pytest.raises(ValueError, match="got the packed weights of .*packed; plan for adapters"):
        plan_run(build_trainer(tmp_path), module, None, Placement(), 64, None, True)
