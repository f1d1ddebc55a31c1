"""Adapters that begin in a part of their matrix: the base at first, the papers' training, an export of the base."""

import json

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from peft import PeftModel
from torch import nn

from dowser_pl.callbacks import Dowser
from dowser_pl.callbacks.dowser import masks
from dowser_pl.distributed.limits import no_training
from dowser_pl.importance import first_tokens
from dowser_pl.masking import HeldEntries
from dowser_pl.methods import Lora, LoraStart, NullSpaceSettings
from dowser_pl.models.loading import load_model
from dowser_pl.models.lora import LoraSettings
from tests.callbacks.test_lora import wide_folder  # noqa: F401 - a fixture
from tests.callbacks.test_lora_null_space import adapter_of, same_bits
from tests.tiny_models import save_tiny_llava
from tests.tiny_run import KillAt, Killed, TinyData, build_module, build_trainer

LORA = LoraSettings(r=6, alpha=12.0, dropout=0.1)
SMALL = {rule: LoraStart(rule, tokens=60) for rule in ("lora_null", "corda")}
FIRST, SECOND = "lora_A.weight", "lora_B.weight"
TOKENS = torch.randint(8, 90, (2, 7), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("model"))


def fit(folder, run, start=SMALL["lora_null"], ckpt_path=None, module_options=None, **options):
    trainer = build_trainer(run, Lora(start=start), limit_val_batches=1, **{"max_epochs": 1, **options})
    module = build_module(folder, **{"lora": LORA, **(module_options or {})})
    torch.manual_seed(0 if ckpt_path is None else 1)  # of dropout; a checkpoint brings its own
    trainer.fit(module, datamodule=TinyData(), ckpt_path=ckpt_path)
    return module, next(each for each in trainer.callbacks if isinstance(each, Dowser))


class Said(Callback):
    """What the model says before the first step, and before its adapters are merged."""

    def __init__(self):
        self.logits = {}

    def say(self, when, module):
        trains = module.network.training
        module.network.eval()
        with torch.no_grad():
            self.logits[when] = module.network(input_ids=TOKENS).logits
        module.network.train(trains)

    def on_train_start(self, trainer, pl_module):
        self.say("first", pl_module)

    def on_train_epoch_end(self, trainer, pl_module):
        self.say("last", pl_module)


@pytest.fixture
def pair():
    """W (5, 6), its B0 (5, 2) and A0 (2, 6), and an A (4, 6) and a B (5, 4) beside it."""
    generator = torch.Generator().manual_seed(0)
    weight, left, right = (torch.randn(shape, generator=generator) for shape in ((5, 6), (5, 2), (2, 6)))
    first, second = nn.Linear(6, 4, bias=False), nn.Linear(4, 5, bias=False)
    for part in (first, second):
        part.weight.data.normal_(generator=generator)
    starts = {"a": torch.cat([right, right]), "b": torch.cat([left, -left], dim=1)}
    return weight, left, right, first, second, starts, generator


@pytest.mark.parametrize("freeze", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steps_are_those_of_an_adapter_beside_what_the_base_keeps(pair, freeze, dtype):
    """AdamW with decay and clipping, two backward passes a step, against W - B0 A0 and B A in float64."""
    weight, left, right, first, second, starts, generator = pair
    for part in (first, second):
        part.to(dtype)
    rounded = {name: start.to(dtype).float() for name, start in starts.items()}
    entries = HeldEntries({"a": first.weight, "b": second.weight}, rounded, {"a": (0, 0 if freeze else 2), "b": (1, 2)})
    left, right = rounded["b"][:, :2].double(), rounded["a"][:2].double()
    residual, theirs = weight.double() - left @ right, [nn.Parameter(right.clone()), nn.Parameter(left.clone())]
    theirs[0].requires_grad_(not freeze)
    ours = torch.optim.AdamW(entries.parameters(), lr=0.1, weight_decay=0.1)
    other = torch.optim.AdamW([each for each in theirs if each.requires_grad], lr=0.1, weight_decay=0.1)
    torch.testing.assert_close(second.weight @ first.weight, torch.zeros(5, 6, dtype=dtype), rtol=0, atol=1e-6)
    near = {"rtol": 1e-3, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 0.1, "atol": 0.1}
    for _ in range(5):
        for _ in range(2):
            inputs, wanted = torch.randn(7, 6, generator=generator), torch.randn(7, 5, generator=generator)
            given = inputs.to(dtype)
            (inputs @ weight.T + second(first(given)).float() - wanted).square().sum().backward()
            said = inputs.double() @ (residual + theirs[1] @ theirs[0]).T
            (said - wanted.double()).square().sum().backward()
        entries.mask_gradients()
        norms = [torch.nn.utils.clip_grad_norm_(each, 1.0) for each in (entries.parameters(), theirs)]
        torch.testing.assert_close(norms[0].double(), norms[1], rtol=1e-2 if dtype == torch.float32 else 0.2, atol=0)
        for optimizer in (ours, other):
            optimizer.step()
            optimizer.zero_grad()
        entries.after_step()
        torch.testing.assert_close(first.weight[:2].double(), theirs[0].detach(), **near)
        torch.testing.assert_close(second.weight[:, :2].double(), theirs[1].detach(), **near)
        assert torch.equal(first.weight[2:].double(), right) and torch.equal(second.weight[:, 2:].double(), -left)
    assert freeze == torch.equal(first.weight[:2].double(), right)
    held, trained = entries.verify()
    assert (held.entries, held.changed) == ((12 if not freeze else 24) + 10, 0)
    assert (trained.entries, trained.changed) == (entries.num_trainable, (0 if freeze else 12) + 10)
    assert entries.num_bytes()["held"] == 4 * held.entries
    with torch.no_grad():  # as another callback might; in float32 the values that are trained are the matrix
        first.weight[3, 0] += 1
    if dtype == torch.float32:
        assert entries.verify()[0].changed == 1
    else:
        with pytest.raises(RuntimeError, match="does not hold the values that were trained"):
            entries.verify()
    entries.after_step()
    assert entries.verify()[0].changed == 0


def moment_of(base, name, rows):
    """The mean of h h^T of one matrix over the tokens of rows, each run alone, in float64."""
    taken = []
    hook = base.get_submodule(name).register_forward_pre_hook(lambda _, args: taken.append(args[0][0].double()))
    with torch.no_grad():
        for row in rows:
            base(input_ids=row.tokens[None])
    hook.remove()
    return (torch.cat(taken).T @ torch.cat(taken) / sum(map(len, taken))).numpy()


@pytest.mark.slow
@pytest.mark.parametrize("rule", SMALL)
def test_it_begins_as_the_base_and_is_exported_relative_to_it(model_folder, tmp_path, monkeypatch, rule):
    kept, said = [], Said()
    monkeypatch.setattr(masks, "first_tokens", lambda *args: kept.append(first_tokens(*args)) or kept[-1])
    rows = build_trainer(tmp_path).callbacks[0].rows
    module, dowser = fit(
        model_folder, tmp_path, SMALL[rule], export=True, callbacks=[said],
        rows=type(rows)(sources=["text"], per_source=20, num_tokens=8),
    )  # fmt: skip
    base = load_model(str(model_folder), dtype="float32").eval()
    plain = base.state_dict()
    with torch.no_grad():
        expected = base(input_ids=TOKENS).logits
        torch.testing.assert_close(said.logits["first"], expected, rtol=1e-4, atol=1e-5)
        merged = load_model(str(tmp_path / "model"), dtype="float32").eval()
        torch.testing.assert_close(merged(input_ids=TOKENS).logits, said.logits["last"], rtol=1e-3, atol=1e-4)
    assert not torch.allclose(expected, said.logits["last"], atol=1e-2), "the adapters do something"

    adapter, names = adapter_of(tmp_path), [name.partition(".lora_A.")[0] for name in module.adapters.sources]
    assert len(kept) == 1 and len(names) == 21 and len(adapter) == 42
    for name in names:
        first, second = (adapter[f"base_model.model.{name}.{part}"].double() for part in (FIRST, SECOND))
        assert first.shape[0] == second.shape[1] == 6
        weight, moment = plain[f"{name}.weight"].double().numpy(), moment_of(base, name, kept[0])
        if rule == "lora_null":
            least = np.linalg.eigh(moment)[1][:, :3]
            started = weight @ least @ least.T
        else:
            damped = moment + 0.01 * np.trace(moment) / len(moment) * np.eye(len(moment))
            outer, values, inner = np.linalg.svd(weight @ damped, full_matrices=False)
            started = outer[:, -3:] * values[-3:] @ inner[-3:] @ np.linalg.inv(damped)
        np.testing.assert_allclose(
            -2.0 * (second[:, 3:] @ first[3:]).numpy(), started, atol=2e-3 * np.abs(weight).max()
        )
        change = (merged.state_dict()[f"{name}.weight"] - plain[f"{name}.weight"]).double()
        torch.testing.assert_close(change, 2.0 * second @ first, rtol=1e-3, atol=1e-5)
        assert change.abs().max() > 1e-3
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["r"] == 6 and config["lora_alpha"] == 12
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(input_ids=TOKENS).logits, said.logits["last"], rtol=1e-3, atol=1e-5)
    held, trained = dowser.counts
    assert held.changed == 0 and held.entries == trained.entries == sum(each.numel() for each in adapter.values()) / 2
    assert not (tmp_path / "patch.safetensors").exists()


@pytest.mark.slow
def test_with_freeze_b_alone_is_trained(model_folder, tmp_path):
    _, dowser = fit(model_folder, tmp_path, LoraStart(tokens=60, freeze=True), export=True)
    for name, value in adapter_of(tmp_path).items():
        if FIRST in name:
            assert torch.equal(value[:3], value[3:]), name
        else:
            assert not torch.allclose(value[:, :3], -value[:, 3:], atol=1e-3), name
    assert dowser.counts[0].changed == 0


RUNS = {
    "32-true": {},
    "bf16-true": {"precision": "bf16-true"},
    "4bit": {"module_options": {"quantization": "4bit", "dtype": "float32"}},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "32-true")) for name in RUNS])
def test_a_resumed_run_ends_like_an_unbroken_one(model_folder, wide_folder, tmp_path, name):  # noqa: F811
    folder, options = wide_folder if name == "4bit" else model_folder, {"export": True, **RUNS[name]}
    _, dowser = fit(folder, tmp_path / "whole", **options)
    with pytest.raises(Killed):
        fit(folder, tmp_path / "cut", callbacks=[KillAt(4)], **options)
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    _, again = fit(folder, tmp_path / "cut", ckpt_path=last, **options)
    same_bits(adapter_of(tmp_path / "whole"), adapter_of(tmp_path / "cut"))
    assert again.counts == dowser.counts and again.frozen_digest == dowser.frozen_digest
    with pytest.raises(ValueError, match="trained with .*'lora_null'.* this run asks for .*'corda'"):
        fit(folder, tmp_path / "cut", SMALL["corda"], ckpt_path=last, **options)


@pytest.mark.slow
def test_a_checkpoint_alone_says_what_the_run_said(model_folder, tmp_path):
    """Loaded to be validated, where nothing is begun again."""
    said = Said()
    fit(model_folder, tmp_path, callbacks=[said])
    trainer, module = build_trainer(tmp_path, Lora(start=SMALL["lora_null"])), build_module(model_folder, lora=LORA)
    trainer.validate(module, datamodule=TinyData(), ckpt_path=tmp_path / "checkpoints" / "last.ckpt", verbose=False)
    with torch.no_grad():
        assert torch.equal(module.network.eval()(input_ids=TOKENS).logits, said.logits["last"])


@pytest.mark.slow
def test_what_it_cannot_do_is_refused(model_folder, tmp_path):
    with pytest.raises(ValueError, match="start.rule must be one of lora_null, corda, got 'pissa'"):
        LoraStart("pissa")
    with pytest.raises(ValueError, match="start.tokens .* at least 1; got 0"):
        LoraStart(tokens=0)
    for other in ({"null_space": NullSpaceSettings()}, {"preserve": 4}):
        with pytest.raises(ValueError, match=f"got {next(iter(other))} and start, expected one of them"):
            Lora(start=LoraStart(), **other)
    with pytest.raises(ValueError, match="Lora with start and update 'dense'"):
        fit(model_folder, tmp_path, update="dense")
    with pytest.raises(ValueError, match="got model.lora.r 5 .* even rank: .*--model.lora.r 6"):
        fit(model_folder, tmp_path, module_options={"lora": LoraSettings(r=5)})
    with pytest.raises(ValueError, match="got 50 directions for an adapter to begin in, .*--model.lora.r"):
        fit(model_folder, tmp_path, module_options={"lora": LoraSettings(r=100)})
    assert "got start with weights that are sharded" in no_training(Lora(start=LoraStart()), False, False, "compact")
