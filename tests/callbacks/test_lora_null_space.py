"""LoRA behind a null space: its gradient and its limits against float64, resumed bit by bit, plain at the end."""

import math

import pytest
import torch
from lightning.pytorch import Callback
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn

from dowser_pl.callbacks import Dowser
from dowser_pl.callbacks.dowser import masks
from dowser_pl.functional.null_space import directions_of
from dowser_pl.importance import first_tokens
from dowser_pl.importance.replay import Replay
from dowser_pl.masking import ProjectedEntries
from dowser_pl.methods import Lora, NullSpaceSettings
from dowser_pl.models.loading import load_model
from dowser_pl.models.lora import LoraSettings
from tests.callbacks.test_lora import wide_folder  # noqa: F401 - a fixture
from tests.tiny_models import save_tiny_llava
from tests.tiny_run import KillAt, Killed, TinyData, build_module, build_trainer

LORA = LoraSettings(r=4, alpha=8.0, dropout=0.1)
SMALL = NullSpaceSettings(eps=0.1, rank=8, tokens=60)
FIRST, SECOND = ".lora_A.", ".lora_B."


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("model"))


def fit(folder, run, null_space=SMALL, ckpt_path=None, module_options=None, **options):
    trainer = build_trainer(run, Lora(null_space), limit_val_batches=1, **{"max_epochs": 1, **options})
    module = build_module(folder, **{"lora": LORA, **(module_options or {})})
    torch.manual_seed(0 if ckpt_path is None else 1)  # of dropout; a checkpoint brings its own
    trainer.fit(module, datamodule=TinyData(), ckpt_path=ckpt_path)
    return module, next(each for each in trainer.callbacks if isinstance(each, Dowser))


def adapter_of(run):
    return load_file(run / "adapter" / "adapter_model.safetensors")


def same_bits(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def projection(found):
    """P in float64."""
    vectors, shares = found.vectors.double(), found.shares.double()
    return torch.eye(len(vectors), dtype=torch.float64) - vectors @ shares.diag() @ vectors.T


@pytest.fixture
def pair():
    """An A and a B of one matrix, and directions of some inputs."""
    generator = torch.Generator().manual_seed(0)
    first, second = nn.Linear(6, 3, bias=False), nn.Linear(3, 5, bias=False)
    for part in (first, second):
        part.weight.data.normal_(generator=generator)
    inputs = torch.randn(40, 6, generator=generator) * torch.tensor([5.0, 3.0, 1.0, 0.5, 0.1, 0.01])
    return first, second, directions_of(inputs.T @ inputs / 40, 0.2, 4), generator


def test_gradients_are_those_of_what_is_trained(pair):
    """Two backward passes are added; against autograd through B R P in float64."""
    first, second, directions, generator = pair
    raw, other = (part.weight.detach().double().requires_grad_() for part in (first, second))
    entries = ProjectedEntries({"a": first.weight, "b": second.weight}, {"a": directions})
    for _ in range(2):
        inputs, wanted = torch.randn(7, 6, generator=generator), torch.randn(7, 5, generator=generator)
        (second(first(inputs)) - wanted).square().sum().backward()
        (inputs.double() @ (raw @ projection(directions)).T @ other.T - wanted.double()).square().sum().backward()
    entries.mask_gradients()
    for found, expected in zip(entries.parameters(), (raw, other), strict=True):
        torch.testing.assert_close(found.grad.view_as(expected).double(), expected.grad, rtol=1e-5, atol=1e-4)


def test_an_optimizer_trains_what_is_behind_the_projection(pair):
    """Adam, with decay, on R: the adapter holds R P before the first step and after each."""
    first, second, directions, generator = pair
    raw, other = (nn.Parameter(part.weight.detach().double()) for part in (first, second))
    entries = ProjectedEntries({"a": first.weight, "b": second.weight}, {"a": directions})
    ours = torch.optim.AdamW(entries.parameters(), lr=0.1, weight_decay=0.1)
    theirs = torch.optim.AdamW([raw, other], lr=0.1, weight_decay=0.1)
    for _ in range(4):
        held = (raw @ projection(directions)).detach()
        torch.testing.assert_close(first.weight.detach().double(), held, rtol=1e-4, atol=1e-5)
        inputs = torch.randn(7, 6, generator=generator)
        second(first(inputs)).square().sum().backward()
        (inputs.double() @ (raw @ projection(directions)).T @ other.T).square().sum().backward()
        for optimizer in (ours, theirs):
            optimizer.step()
            optimizer.zero_grad()
        entries.after_step()
    torch.testing.assert_close(second.weight.detach().double(), other.detach(), rtol=1e-4, atol=1e-5)
    assert not torch.equal(entries.beside("a")["raw"], first.weight)
    assert entries.verify()[1].changed == 33
    with torch.no_grad():
        first.weight += 1
    with pytest.raises(RuntimeError, match="does not hold the values that were trained"):
        entries.verify()


def test_directions_of_other_inputs_are_refused(pair):
    first, second, directions, _ = pair
    with pytest.raises(ValueError, match="directions of 6 inputs for b of shape .5, 3."):
        ProjectedEntries({"a": first.weight, "b": second.weight}, {"b": directions})
    with pytest.raises(ValueError, match="directions of 6 inputs for c"):
        ProjectedEntries({"a": first.weight}, {"c": directions})


@pytest.mark.slow
def test_in_the_limit_no_adapter_moves_what_the_base_says_on_its_rows(model_folder, tmp_path, monkeypatch):
    """With all directions and eps near 0: inputs of the rows, taken from a base of its own, come to nothing."""
    kept = []
    monkeypatch.setattr(masks, "first_tokens", lambda *args: kept.append(first_tokens(*args)) or kept[-1])
    runs = {"strict": NullSpaceSettings(1e-6, None, 8), "free": None}
    modules = {name: fit(model_folder, tmp_path / name, runs[name])[0] for name in runs}
    base = load_model(str(model_folder), dtype="float32").eval()
    inputs = {}
    owners = sorted({name.partition(FIRST)[0] for name in modules["free"].adapters.sources})
    for name in owners:
        base.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: inputs.update({name: args[0][0].double()})
        )
    with torch.no_grad():
        base(input_ids=kept[0][0].tokens[None])
        assert len(kept) == len(kept[0]) == 1 and len(owners) == 21
        for name in owners:
            shares = {}
            for run, module in modules.items():
                adapted = module.network.get_submodule(name)
                first, second = (part["default"].weight.double() for part in (adapted.lora_A, adapted.lora_B))
                delta, taken = second @ first, inputs[name]
                shares[run] = float((taken @ delta.T).norm() / taken.norm() / delta.norm())
            assert shares["strict"] < 2e-3 < 2e-2 < shares["free"], (name, shares)


@pytest.mark.slow
def test_an_infinite_eps_is_plain_lora_bit_for_bit(model_folder, tmp_path):
    fit(model_folder, tmp_path / "plain", None, export=True)
    fit(model_folder, tmp_path / "open", NullSpaceSettings(math.inf, 8, 60), export=True)
    fit(model_folder, tmp_path / "behind", export=True)
    plain, behind = adapter_of(tmp_path / "plain"), adapter_of(tmp_path / "behind")
    same_bits(plain, adapter_of(tmp_path / "open"))
    assert not any(torch.equal(value, behind[name]) for name, value in plain.items())


@pytest.mark.slow
def test_peft_reads_the_adapters_and_says_the_same(model_folder, tmp_path):
    """Before they are merged the same bits; merged within rounding."""
    said, tokens = {}, torch.randint(8, 90, (2, 7), generator=torch.Generator().manual_seed(0))

    class Said(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            pl_module.network.eval()
            with torch.no_grad():
                said["last"] = pl_module.network(input_ids=tokens).logits
            pl_module.network.train()

    module, _ = fit(model_folder, tmp_path, export=True, callbacks=[Said()])
    loaded = PeftModel.from_pretrained(load_model(str(model_folder), dtype="float32"), tmp_path / "adapter").eval()
    with torch.no_grad():
        theirs, merged = loaded(input_ids=tokens).logits, module.network.eval()(input_ids=tokens).logits
        plain = load_model(str(model_folder), dtype="float32").eval()(input_ids=tokens).logits
    assert torch.equal(theirs, said["last"])
    torch.testing.assert_close(theirs, merged, rtol=1e-3, atol=1e-5)
    assert not torch.allclose(plain, theirs, atol=1e-3), "the adapters do something"


RUNS = {
    "32-true": {"accumulate_grad_batches": 1, "replay": Replay(rows=2)},
    "bf16-true": {"precision": "bf16-true"},
    "bf16-mixed": {"precision": "bf16-mixed"},
    "checkpointing": {"module_options": {"gradient_checkpointing": True}},
    "4bit": {"module_options": {"quantization": "4bit", "dtype": "float32"}},
}
QUICK = {"32-true"}


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in RUNS])
def test_a_resumed_run_ends_like_an_unbroken_one(model_folder, wide_folder, tmp_path, name):  # noqa: F811
    folder, options = wide_folder if name == "4bit" else model_folder, {"export": True, **RUNS[name]}
    _, dowser = fit(folder, tmp_path / "whole", **options)
    with pytest.raises(Killed):
        fit(folder, tmp_path / "cut", callbacks=[KillAt(4)], **options)
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(last, weights_only=True)
    assert not checkpoint["state_dict"], "the base is left out"
    _, again = fit(folder, tmp_path / "cut", ckpt_path=last, **options)
    same_bits(adapter_of(tmp_path / "whole"), adapter_of(tmp_path / "cut"))
    assert again.counts == dowser.counts and again.frozen_digest == dowser.frozen_digest
    for key, each in dowser.entries.directions.items():
        assert torch.equal(each.vectors, again.entries.directions[key].vectors)
    if name == "4bit":
        assert all(each.vectors.is_floating_point() for each in again.entries.directions.values())
        with pytest.raises(ValueError, match="trained with .*'rank': 8.* this run asks for .*'rank': 7"):
            fit(folder, tmp_path / "cut", NullSpaceSettings(0.1, 7, 60), ckpt_path=last, **options)


@pytest.mark.slow
def test_matrices_with_one_input_share_their_directions(model_folder, tmp_path):
    _, dowser = fit(model_folder, tmp_path)
    found = dowser.entries.directions
    assert len(found) == 21 and len({id(each) for each in found.values()}) == 12, "q k v, o, gate up, down of 3 layers"
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    state = next(each for key, each in checkpoint["callbacks"].items() if key.startswith("Dowser"))
    vectors = [entry["vectors"].data_ptr() for entry in state["entries"].values() if "vectors" in entry]
    assert len(vectors) == 21 and len(set(vectors)) == 12, "each is written once"
    raw = {name: entry["raw"] for name, entry in state["entries"].items() if "raw" in entry}
    assert raw.keys() == found.keys()
    for name, each in raw.items():
        expected = each.double() @ projection(found[name])
        torch.testing.assert_close(
            state["entries"][name]["values"].view_as(each).double(), expected, rtol=1e-4, atol=1e-6
        )


def test_what_it_cannot_do_is_refused(model_folder, tmp_path):
    with pytest.raises(ValueError, match="Lora with a null space and update 'dense'.*compact"):
        fit(model_folder, tmp_path, update="dense")
    with pytest.raises(ValueError, match="eps is in mean eigenvalues"):
        NullSpaceSettings(eps=0.0)
    with pytest.raises(ValueError, match="at least 1; got 0"):
        NullSpaceSettings(tokens=0)
    with pytest.raises(ValueError, match="set both"):
        fit(model_folder, tmp_path, module_options={"lora": None})
