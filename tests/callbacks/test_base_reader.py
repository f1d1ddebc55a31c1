"""The pull to the base and masked tokens in whole runs: every loss, gradient and label computed again in float64."""

from dataclasses import replace

import pytest
import torch
from lightning.pytorch import Callback
from torch.func import functional_call

from dowser_pl.callbacks import Checkpoints, Dowser, RandomState
from dowser_pl.cli.trainer import DowserTrainer
from dowser_pl.errors import DowserError
from dowser_pl.importance.kl_to_base import KLToBase
from dowser_pl.methods import Full, HalfFineTuning, Lora, Magnitude, MoFO, NullSpace, Spider
from dowser_pl.models.loading import load_model
from dowser_pl.models.lora import LoraSettings
from dowser_pl.models.quantized import keep_as_loaded
from dowser_pl.module import MultimodalModule
from tests.callbacks.test_lora import wide_folder  # noqa: F401 - a fixture
from tests.tiny_models import save_tiny_llava
from tests.tiny_run import FEW_ROWS, SMALL_PROBE, KillAt, Killed, TinyData, build_module

KL, LIMIT = KLToBase(weight=1.5, temperature=3.0), 40.0
LORA = LoraSettings(r=4, alpha=8.0, dropout=0.0)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("model"))


class LongData(TinyData):
    """Answers of one word to nine."""

    def train_conversations(self):
        rows = super().train_conversations()
        for index, row in enumerate(rows):
            row.messages[1]["content"][0]["text"] += " and red" * (index % 5)
        return rows


class Labels(Callback):
    """Before all others: the labels as the data have them."""

    labels = None

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.labels = batch["labels"].clone()


class Steps(Callback):
    """The pull of every batch, and the gradient that the optimizer is given."""

    def __init__(self):
        self.kl, self.gradients = [], []

    def on_train_batch_end(self, trainer, *_):
        self.kl.append(trainer.callback_metrics.get("train/base_kl"))

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        parameters = [each for group in optimizer.param_groups for each in group["params"]]
        self.gradients.append([each.grad.clone() for each in parameters])


class Oracle(Callback):
    """Behind all others: labels, loss and gradient again, in float64 beside a second copy of the base.

    It shares no line with what it checks: probabilities by softmax, the loss a sum over tokens that is divided at last.
    """

    def __init__(self, folder, kl, limit, before):
        self.base = load_model(str(folder), dtype="float32").double().requires_grad_(False)
        self.kl, self.limit, self.before = kl, limit, before
        self.loss, self.tokens, self.leaves = 0.0, 0, {}
        self.masked = self.labels = self.steps = 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values")}
        inputs["pixel_values"] = inputs["pixel_values"].double()
        expected = self.before.labels[:, 1:].clone()
        base = self.base(**inputs).logits[:, :-1]
        for row, said in zip(base.softmax(-1), expected, strict=True) if self.limit is not None else ():
            perplexities = {i: float(1 / row[i, token]) for i, token in enumerate(said.tolist()) if token != -100}
            for i, perplexity in perplexities.items():
                if perplexity > self.limit and not (
                    min(perplexities.values()) > self.limit and perplexity == min(perplexities.values())
                ):
                    said[i] = -100
                    self.masked += 1
        assert torch.equal(batch["labels"][:, 1:], expected)
        self.labels += int((self.before.labels[:, 1:] != -100).sum())
        if not self.leaves:
            entries = pl_module.protected
            self.leaves = {n: each.detach().double().requires_grad_() for n, each in entries.weights.items()}
        now = functional_call(self.base, self.weights(pl_module), kwargs=inputs).logits[:, :-1]
        at = expected != -100
        self.loss = self.loss - now.log_softmax(-1)[at].gather(1, expected[at][:, None]).sum()
        if self.kl is not None:
            p, q = ((each / self.kl.temperature).softmax(-1) for each in (base[at], now[at]))
            self.loss = self.loss + self.kl.weight * self.kl.temperature**2 * (p * (p.log() - q.log())).sum()
        self.tokens += int(at.sum())

    def weights(self, pl_module):
        """Of the base's matrices as they are now, by their parameters' names."""
        if pl_module.adapters is None:
            return {f"{name}.weight": leaf for name, leaf in self.leaves.items()}
        held = dict(self.base.named_parameters())
        scale = pl_module.lora.alpha / pl_module.lora.r
        names = [name.removesuffix(".lora_A.default") for name in self.leaves if name.endswith(".lora_A.default")]
        moves = {n: self.leaves[f"{n}.lora_B.default"] @ self.leaves[f"{n}.lora_A.default"] for n in names}
        return {f"{name}.weight": held[f"{name}.weight"] + scale * moves[name] for name in names}

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        (self.loss / self.tokens).backward()
        entries = pl_module.protected
        trained = {id(each): each for group in optimizer.param_groups for each in group["params"]}
        wanted = [leaf.grad[entries.masks[name]] for name, leaf in self.leaves.items() if entries.masks[name].any()]
        assert len(trained) == len(wanted)
        for ours, theirs in zip(entries.parameters(), wanted, strict=True):
            got = trained[id(ours)].grad.double()
            if got.dim() == 2:  # dense
                got = got[got != 0] if got.numel() != theirs.numel() else got.flatten()
            torch.testing.assert_close(got, theirs, rtol=1e-3, atol=2e-5 * float(theirs.abs().max()))
        self.expected = float(self.loss.detach() / self.tokens)
        self.loss, self.tokens, self.leaves, self.steps = 0.0, 0, {}, self.steps + 1

    def on_train_batch_end(self, trainer, *_):
        if not self.leaves:
            assert float(trainer.callback_metrics["train/loss"]) == pytest.approx(self.expected, rel=1e-4)


def fit(folder, model_folder, kl, limit=None, method=None, module=None, **options):
    """Six steps of two rows, or as many as the options say."""
    forms = {"update": options.pop("update", "compact"), "rows": FEW_ROWS, "drift": False}
    first, callbacks = options.pop("first", ()), options.pop("callbacks", ())
    data, ckpt_path = options.pop("data", None), options.pop("ckpt_path", None)
    held = {"kl_to_base": kl, "max_perplexity": limit}
    dowser, steps = Dowser(method or Magnitude(0.2), SMALL_PROBE, None, **forms, **held), Steps()
    trainer = DowserTrainer(
        callbacks=[*first, dowser, Checkpoints(str(folder / "checkpoints"), 1), RandomState(), steps, *callbacks],
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        **{"max_epochs": 1, **options},
    )
    module = module or build_module(model_folder, lr=1e-2)
    trainer.fit(module, datamodule=data or LongData(), ckpt_path=ckpt_path)
    return module, steps, dowser


def weights(module):
    return {name: each.clone() for name, each in module.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(each, other[name]) for name, each in one.items())


CASES = {
    "kl": {"kl": KL, "method": Full()},
    "kl at temperature 1": {"kl": KLToBase(0.7, 1.0), "method": Full()},
    "masked": {"kl": None, "limit": LIMIT, "method": Full()},
    "both": {"kl": KL, "limit": LIMIT},
    "both dense": {"kl": KL, "limit": LIMIT, "update": "dense"},
    "both spider": {"kl": KL, "limit": LIMIT, "method": Spider()},
    "both mofo": {"kl": KL, "limit": LIMIT, "method": MoFO()},
    "both half": {"kl": KL, "limit": LIMIT, "method": HalfFineTuning()},
    "both lora": {"kl": KL, "limit": LIMIT, "method": Lora(), "lora": LORA},
    "both accumulated": {"kl": KL, "limit": LIMIT, "accumulate_grad_batches": 4},
    "a limit that no token is below": {"kl": KL, "limit": 1.0},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_every_step_is_that_of_the_equations(tmp_path, model_folder, name):
    options = dict(CASES[name])
    module = build_module(model_folder, lr=1e-2, lora=options.pop("lora", None))
    before = Labels()
    oracle = Oracle(model_folder, options["kl"], options.get("limit"), before)
    dowser = fit(tmp_path, model_folder, module=module, first=[before], callbacks=[oracle], **options)[2]
    assert oracle.steps == (2 if "accumulated" in name else 6)
    reader = dowser.reader
    if "limit" in options:
        assert (reader.masked, reader.tokens) == (oracle.masked, oracle.labels)
        assert 0 < reader.masked < reader.tokens
        assert dowser.diagnostics["masked_tokens"] == oracle.masked / oracle.labels
    else:
        assert reader.masked == reader.tokens == 0 and "masked_tokens" not in dowser.diagnostics


@pytest.mark.slow
@pytest.mark.parametrize("update", ["compact", "dense"])
def test_off_changes_no_bit_nor_does_reading_alone(tmp_path, model_folder, update):
    options = {"update": update}
    without = weights(fit(tmp_path / "a", model_folder, None, **options)[0])
    module, steps, _ = fit(tmp_path / "b", model_folder, KLToBase(weight=0.0), **options)
    assert same(without, weights(module)) and steps.kl[-1] is None
    module, _, dowser = fit(tmp_path / "c", model_folder, None, 1e30, **options)
    assert same(without, weights(module)) and dowser.diagnostics["masked_tokens"] == 0.0
    assert not same(without, weights(fit(tmp_path / "d", model_folder, KL, **options)[0]))
    assert not same(without, weights(fit(tmp_path / "e", model_folder, None, LIMIT, **options)[0]))


@pytest.mark.parametrize("update", ["compact", "dense"])
def test_frozen_entries_are_the_base_bit_for_bit(tmp_path, model_folder, update):
    base = load_model(str(model_folder), dtype="float32").state_dict()
    module, _, dowser = fit(tmp_path, model_folder, KL, LIMIT, update=update)
    masks = {f"{name}.weight": mask for name, mask in dowser.entries.masks.items()}
    for name, now in module.network.state_dict().items():
        moved = now != base[name]
        assert not (moved & ~masks[name]).any() if name in masks else not moved.any(), name
        assert name not in masks or moved.any(), name
    assert dowser.counts[0].changed == 0 and dowser.frozen_digest["before"] == dowser.frozen_digest["after"]


def test_it_holds_the_model_to_its_base(tmp_path, model_folder):
    options = {"method": Full(), "data": TinyData(), "max_epochs": 2}
    free = fit(tmp_path / "a", model_folder, KLToBase(weight=1e-9), **options)[1]
    held = fit(tmp_path / "b", model_folder, KLToBase(weight=10.0), **options)[1]
    assert float(held.kl[0]) < 1e-6  # nothing was learnt yet
    assert 0 < float(held.kl[-1]) < 0.5 * float(free.kl[-1])
    for one, other in zip(held.gradients[0], free.gradients[0], strict=True):  # of the base itself it pulls nowhere
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


RUNS = {
    "compact": {},
    "dense": {"update": "dense"},
    "accumulated": {"accumulate_grad_batches": 2, "data": LongData(16)},
    "null space": {"method": NullSpace(rank=4, tokens=200)},
    "bf16-true": {"precision": "bf16-true", "method": Full()},
    "lora": {"method": Lora(), "lora": replace(LORA, dropout=0.1)},
    "4bit": {"method": Lora(), "lora": replace(LORA, dropout=0.1), "quantization": "4bit", "dtype": "float32"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_killed_run_ends_with_the_same_bits(tmp_path, model_folder, wide_folder, name):  # noqa: F811
    base = wide_folder if name == "4bit" else model_folder

    def go(folder, **more):
        options = dict(RUNS[name])
        made = {key: options.pop(key) for key in ("lora", "quantization", "dtype") if key in options}
        torch.manual_seed(1 if "ckpt_path" in more else 0)  # of dropout; a checkpoint brings its own
        return fit(tmp_path / folder, base, KL, LIMIT, module=build_module(base, lr=1e-2, **made), **options, **more)

    whole, _, dowser = go("whole")
    with pytest.raises(Killed):
        go("cut", callbacks=[KillAt(3)])
    resumed, _, again = go("cut", ckpt_path=tmp_path / "cut" / "checkpoints" / "last.ckpt")
    assert same(weights(whole), weights(resumed))
    assert again.diagnostics == dowser.diagnostics and dowser.diagnostics["masked_tokens"] > 0


@pytest.mark.slow
def test_resuming_with_other_settings_is_refused(tmp_path, model_folder):
    last = tmp_path / "checkpoints" / "last.ckpt"
    with pytest.raises(Killed):
        fit(tmp_path, model_folder, KL, LIMIT, callbacks=[KillAt(2)])
    for kl, limit in [(None, LIMIT), (KL, None), (replace(KL, weight=2.0), LIMIT), (KL, 3.0), (None, None)]:
        with pytest.raises(DowserError, match=r"resume with the same --dowser.kl_to_base and --dowser.max_perplexity"):
            fit(tmp_path, model_folder, kl, limit, ckpt_path=last)
    with pytest.raises(Killed):
        fit(tmp_path / "without", model_folder, None, callbacks=[KillAt(2)])
    with pytest.raises(DowserError, match=r"was trained with .'kl_to_base': None.*asks for .*'temperature': 3.0"):
        fit(tmp_path / "without", model_folder, KL, ckpt_path=tmp_path / "without" / "checkpoints" / "last.ckpt")


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_precisions_and_gradient_checkpointing_go_on(tmp_path, model_folder, precision):
    module = build_module(model_folder, lr=1e-2, gradient_checkpointing=True)
    _, steps, dowser = fit(tmp_path, model_folder, KL, LIMIT, Full(), module, precision=precision)
    assert float(steps.kl[0]) < 1e-6 < float(steps.kl[-1]) < 10
    assert all(torch.isfinite(each).all() for step in steps.gradients for each in step)
    assert 0 < dowser.reader.masked < dowser.reader.tokens


class Quantized(Callback):
    """What the packed base without adapters says on a batch, of a copy of its own."""

    def __init__(self, folder, bits):
        self.base = load_model(str(folder), dtype="float32", quantization=bits)
        keep_as_loaded(self.base)  # as beside adapters
        self.expected = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        inputs = {key: value for key, value in batch.items() if key != "ids"}
        now = pl_module.network
        hook = now._forward_hooks.popitem()  # the one that waits for these labels
        with torch.no_grad():  # on a CPU 8 bits multiply otherwise in training
            base, current = self.base.eval()(**inputs), now(**inputs)
        now._forward_hooks[hook[0]] = hook[1]
        at = batch["labels"][:, 1:] != -100
        p, q = ((each.logits[:, :-1][at].double() / KL.temperature).softmax(-1) for each in (base, current))
        self.expected.append(float((p * (p / q).log()).sum(-1).mean()) * KL.temperature**2)


@pytest.mark.slow
@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_adapters_are_held_to_the_packed_base(tmp_path, wide_folder, bits):  # noqa: F811
    module = build_module(wide_folder, lr=1e-2, lora=LORA, quantization=bits, dtype="float32")
    other = Quantized(wide_folder, bits)
    steps = fit(tmp_path, wide_folder, KL, None, Lora(), module, callbacks=[other])[1]
    assert [float(each) for each in steps.kl] == pytest.approx(other.expected, rel=1e-3, abs=1e-5)
    assert other.expected[-1] > 1e-3


@pytest.mark.parametrize(("kl", "limit", "got"), [(KL, None, "kl_to_base"), (None, 2.5, "max_perplexity")])
def test_parts_without_a_mask_are_refused(tmp_path, model_folder, kl, limit, got):
    module = build_module(model_folder, also_train=["projector"])
    with pytest.raises(
        DowserError, match=rf"got dowser.{got} beside 4 parameters.*also_train \[\], or --dowser.{got} null"
    ):
        fit(tmp_path, model_folder, kl, limit, module=module)


class OwnLoss(MultimodalModule):
    """A loss that the model does not compute."""

    def training_step(self, batch, batch_idx):
        labels, inputs = batch["labels"], {key: batch[key] for key in ("input_ids", "attention_mask", "pixel_values")}
        logits = self.network(**inputs).logits[:, :-1]
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())


def test_a_training_step_that_the_pull_cannot_join_is_refused(tmp_path, model_folder):
    def module():
        return OwnLoss(str(model_folder), optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2))

    with pytest.raises(DowserError, match=r"OwnLoss did not call its network with the labels.*kl_to_base null"):
        fit(tmp_path / "a", model_folder, KL, module=module())
    dowser = fit(tmp_path / "b", model_folder, None, LIMIT, module=module())[2]  # labels are its own
    assert 0 < dowser.reader.masked < dowser.reader.tokens


class Listed(LongData):
    """Batches that are no dict."""

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        return list(batch.items())


def test_batches_without_labels_are_refused(tmp_path, model_folder):
    with pytest.raises(DowserError, match="training batch of list without labels for dowser.kl_to_base and dowser.max"):
        fit(tmp_path, model_folder, KL, 2.5, data=Listed())
