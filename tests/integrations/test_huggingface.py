"""The Hugging Face Trainer with our callback: what moves, what is kept, how it goes on, and what is refused."""

import gc
import json
import shutil
from dataclasses import replace

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch import Trainer as LightningTrainer
from peft import LoraConfig, get_peft_model
from torch.utils.data import DataLoader, SequentialSampler
from transformers import (
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from dowser_pl.callbacks import Dowser
from dowser_pl.errors import DowserError
from dowser_pl.integrations import DowserCallback, Protectable, choose_masks, measure_importance
from dowser_pl.integrations.trainer_checkpoint import FILE
from dowser_pl.integrations.trainer_forms import CompactForm
from dowser_pl.masking import CompactEntries
from dowser_pl.methods import Lora, Magnitude, ModelDowser, NullSpace, WandaLike
from dowser_pl.patches import Patch
from dowser_pl.patches.loaded import apply_to_model
from tests.tiny_models import VOCABULARY, tiny_llama, tiny_llava, tiny_tokenizer
from tests.tiny_run import FEW_ROWS, SMALL_PROBE

LENGTH = 12
ROWS = torch.randint(8, len(VOCABULARY), (8, LENGTH), generator=torch.Generator().manual_seed(0))
DATA = [{"input_ids": row, "labels": row} for row in ROWS.tolist()]


@pytest.fixture(scope="module", autouse=True)
def _collecting_little():
    """Every Trainer collects garbage when it begins, which takes seconds where all tests have been imported."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


class InOrder(Trainer):
    """Rows as they come."""

    def _get_train_sampler(self, train_dataset=None):
        return SequentialSampler(train_dataset)


def settings(folder, kind=TrainingArguments, **options):
    usual = {"per_device_train_batch_size": 2, "num_train_epochs": 1, "learning_rate": 1e-2, "weight_decay": 0.1}
    quiet = {"report_to": [], "disable_tqdm": True, "use_cpu": True, "save_strategy": "no", "logging_strategy": "no"}
    return kind(str(folder), **usual | quiet | options)


def dowser(method=None, **options):
    return DowserCallback(method or ModelDowser(0.1), probe=SMALL_PROBE, **options)


def trainer_of(folder, callback, *others, model=None, kind=InOrder, resources=None, **options):
    callbacks = [*([callback] if callback else []), *others]
    return kind(
        model=model or tiny_llama(),
        args=settings(folder, Seq2SeqTrainingArguments if kind is Seq2SeqTrainer else TrainingArguments, **options),
        train_dataset=DATA,
        processing_class=tiny_tokenizer(),
        callbacks=callbacks,
        **resources or {},
    )


def state_of(model):
    return {name: each.clone() for name, each in model.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def masks():
    return dict(choose_masks(measure_importance(tiny_llama(), tiny_tokenizer(), probe=SMALL_PROBE), ModelDowser(0.1)))


class Watching(TrainerCallback):
    """Compares frozen entries with the base after every step, and masks with those of a script."""

    def __init__(self, masks, base):
        self.masks, self.base, self.steps = masks, base, 0

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.steps += 1
        for name, each in model.state_dict().items():
            mask = self.masks.get(name.removesuffix(".weight"), torch.zeros_like(each, dtype=torch.bool))
            assert torch.equal(each[~mask], self.base[name][~mask]), name


@pytest.mark.parametrize(
    ("update", "optim"),
    [
        *(("dense", name) for name in ("adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "rmsprop", "adagrad")),
        *(("compact", name) for name in ("adamw_torch", "adamw_torch_fused", "sgd")),
    ],
)
def test_frozen_entries_keep_their_bits_after_every_step_of_any_optimizer(tmp_path, masks, update, optim):
    callback, base = dowser(update=update), state_of(tiny_llama())
    watching = Watching(masks, base)
    trainer = trainer_of(tmp_path, callback, watching, optim=optim)
    trainer.train()
    frozen, trained = callback.counts
    assert watching.steps == 4 and frozen.changed == 0 and trained.changed > 0.9 * trained.entries
    assert trained.entries == sum(int(mask.sum()) for mask in masks.values())
    assert callback.frozen_digest["before"] == callback.frozen_digest["after"]
    assert all(torch.equal(callback.entries.masks[name], mask) for name, mask in masks.items())
    if optim.startswith("adamw"):
        moments = sum(each.numel() for kept in trainer.optimizer.state.values() for each in kept.values() if each.dim())
        whole = sum(mask.numel() for mask in masks.values())
        assert moments == 2 * (trained.entries if update == "compact" else whole)


@pytest.mark.parametrize("kind", [Trainer, Seq2SeqTrainer])
def test_the_patch_beside_the_model_makes_the_tuned_model_of_the_base(tmp_path, kind):
    trainer = trainer_of(tmp_path, dowser(), kind=kind)
    trainer.train()
    base = tiny_llama()
    with Patch.open(tmp_path / "patch.safetensors") as patch:
        assert "ModelDowser" in json.dumps(patch.head["method"])
        apply_to_model(base, patch)
    assert same(state_of(base), state_of(trainer.model)) and not same(state_of(base), state_of(tiny_llama()))


class Own(LightningModule):
    """What the Trainer does, in Lightning."""

    def __init__(self):
        super().__init__()
        self.llm = tiny_llama()
        self.protectable = Protectable(self.llm, tiny_tokenizer())

    def training_step(self, batch, batch_idx):
        return self.llm(input_ids=batch, labels=batch, num_items_in_batch=torch.tensor(2 * (LENGTH - 1))).loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.protectable.parameters(), lr=1e-2, weight_decay=0.1)


@pytest.mark.parametrize("update", ["compact", "dense"])
def test_masks_and_weights_are_those_of_lightning_for_the_same_order_of_rows(tmp_path, update):
    module, other = Own(), Dowser(ModelDowser(0.1), SMALL_PROBE, None, update=update, checkpoint="full", rows=FEW_ROWS)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    LightningTrainer(
        default_root_dir=tmp_path, callbacks=[other], max_epochs=1, enable_checkpointing=False, **quiet
    ).fit(module.train(), DataLoader(ROWS, batch_size=2))
    callback = dowser(update=update)
    trainer = trainer_of(tmp_path, callback, optim="adamw_torch", lr_scheduler_type="constant", max_grad_norm=0.0)
    trainer.train()
    assert all(torch.equal(callback.entries.masks[name], other.entries.masks[name]) for name in other.entries.masks)
    assert callback.frozen_digest["before"]
    assert same(state_of(trainer.model), state_of(module.llm))


def test_it_clips_by_the_norm_of_what_is_trained(tmp_path, masks):
    class Norms(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            self.clipped = {n: model.get_submodule(n).weight.grad.clone() for n in masks}

    twin = tiny_llama().train()
    twin(input_ids=ROWS[:2], labels=ROWS[:2]).loss.backward()
    expected = {name: twin.get_submodule(name).weight.grad * mask for name, mask in masks.items()}
    norm = torch.stack([each.norm() for each in expected.values()]).norm()
    norms = Norms()
    trainer = trainer_of(
        tmp_path, dowser(), norms, max_steps=1, max_grad_norm=0.5, logging_strategy="steps", logging_steps=1
    )
    trainer.train()
    assert trainer.state.log_history[0]["grad_norm"] == pytest.approx(float(norm), rel=1e-4)
    for name, each in expected.items():
        torch.testing.assert_close(norms.clipped[name], each * 0.5 / norm, rtol=1e-4, atol=1e-7)


class Told(TrainerCallback):
    """What a logger such as TensorBoard's is told, which is listed before callbacks of users."""

    def __init__(self):
        self.norms = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.norms += [logs["grad_norm"]] if "grad_norm" in logs else []


@pytest.mark.parametrize("most", [0.0, 0.5])
@pytest.mark.parametrize("reentrant", [None, True, False])
def test_loggers_are_told_the_norm_of_what_is_trained_in_the_compact_form(tmp_path, masks, most, reentrant):
    twin = tiny_llama().train()
    for rows in (ROWS[:1], ROWS[1:2]):
        twin(input_ids=rows, labels=rows, num_items_in_batch=torch.tensor(2 * (LENGTH - 1))).loss.backward()
    expected = torch.stack([(twin.get_submodule(name).weight.grad * mask).norm() for name, mask in masks.items()])
    options = {"gradient_checkpointing": reentrant is not None}
    options |= {} if reentrant is None else {"gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
    told, base = Told(), state_of(tiny_llama())
    trainer = trainer_of(
        tmp_path, None, told, dowser(update="compact"), max_steps=1, max_grad_norm=most, optim="sgd", weight_decay=0.0,
        per_device_train_batch_size=1, gradient_accumulation_steps=2, logging_strategy="steps", logging_steps=1,
        **options,
    )  # fmt: skip
    trainer.train()
    norm = float(expected.norm())
    assert norm > 0.5 and told.norms == [trainer.state.log_history[0]["grad_norm"]]
    assert told.norms[0] == pytest.approx(norm, rel=1e-4)
    moved = torch.cat([(each - base[name]).flatten() for name, each in trainer.model.state_dict().items()]).norm()
    assert float(moved) == pytest.approx(1e-2 * (norm if most == 0 else most), rel=1e-3)
    assert all(each.grad is None for each in trainer.model.parameters())


def test_a_norm_in_half_precision_is_told_without_the_scale_of_its_gradients():
    model = tiny_llama().requires_grad_(False)
    weights = {"q": model.model.layers[0].self_attn.q_proj.weight.requires_grad_(True)}
    entries = CompactEntries(weights, {"q": torch.ones_like(weights["q"], dtype=torch.bool)})
    optimizer = torch.optim.SGD(weights.values(), lr=0.1)
    optimizer.scaler = type("Scaler", (), {"get_scale": lambda _: 8.0})()
    form = CompactForm(model, entries, optimizer, {})
    (8.0 * model(input_ids=ROWS[:1], labels=ROWS[:1]).loss).backward()
    (shown,) = (each.grad for each in model.parameters() if each.grad is not None)
    (values,) = entries.parameters()
    assert float(shown.norm()) == pytest.approx(float(values.grad.norm()) / 8, rel=1e-6)
    form.close()
    assert all(each.grad is None for each in model.parameters())


def test_both_forms_train_the_same(tmp_path):
    ends, norms = [], []
    for update in ("dense", "compact"):
        trainer = trainer_of(
            tmp_path, dowser(update=update), per_device_train_batch_size=1, gradient_accumulation_steps=2,
            max_grad_norm=0.1, optim="adamw_torch", logging_strategy="steps", logging_steps=1,
        )  # fmt: skip
        trainer.train()
        ends.append(torch.cat([each.detach().flatten() for each in trainer.model.parameters()]))
        norms.append([row["grad_norm"] for row in trainer.state.log_history if "grad_norm" in row])
    assert len(norms[0]) == 4 and norms[1] == pytest.approx(norms[0], rel=1e-4)
    base = torch.cat([each.detach().flatten() for each in tiny_llama().parameters()])
    assert float((ends[1] - ends[0]).norm()) < 1e-4 * float((ends[0] - base).norm())


def test_accumulated_gradients_are_those_of_a_larger_batch(tmp_path):
    ends = []
    for batch, steps in ((4, 1), (2, 2), (1, 4)):
        trainer = trainer_of(
            tmp_path, dowser(), per_device_train_batch_size=batch, gradient_accumulation_steps=steps, optim="sgd"
        )
        trainer.train()
        assert trainer.state.global_step == 2
        ends.append(torch.cat([each.flatten() for each in trainer.model.parameters()]).detach())
    base = torch.cat([each.flatten() for each in tiny_llama().parameters()])
    for each in ends[1:]:
        assert float((each - ends[0]).norm()) < 1e-4 * float((ends[0] - base).norm().detach())


@pytest.mark.parametrize("update", ["dense", "compact"])
@pytest.mark.parametrize("settings_of_run", [{"bf16": True}, {"model": "bf16"}])
def test_half_precision_holds(tmp_path, settings_of_run, update):
    options = dict(settings_of_run)
    model = tiny_llama().to(torch.bfloat16) if options.pop("model", None) else tiny_llama()
    base, callback = state_of(model), dowser(update=update)
    trainer = trainer_of(tmp_path, callback, model=model, **options)
    trainer.train()
    assert callback.counts[0].changed == 0 and callback.counts[1].changed > 0
    fresh = tiny_llama().to(model.dtype)
    autocast = torch.bfloat16 if options.get("bf16") else None
    expected = choose_masks(
        measure_importance(fresh, tiny_tokenizer(), probe=SMALL_PROBE, autocast=autocast), ModelDowser(0.1)
    )
    assert all(torch.equal(callback.entries.masks[name], mask) for name, mask in expected.items())
    assert {
        name.removesuffix(".weight") for name, each in state_of(model).items() if not each.equal(base[name])
    } <= set(expected)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_of_both_kinds_gives_the_weights_of_none(tmp_path, reentrant):
    plain = trainer_of(tmp_path, dowser(), optim="sgd")
    plain.train()
    kept = trainer_of(
        tmp_path,
        dowser(),
        optim="sgd",
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": reentrant},
    )
    kept.train()
    assert same(state_of(plain.model), state_of(kept.model))


def test_the_importance_pass_takes_no_random_numbers_from_training(tmp_path):
    class Drawing(TrainerCallback):
        def on_epoch_begin(self, args, state, control, **kwargs):
            self.found = torch.get_rng_state()

    found = []
    for callback in (dowser(), dowser(Magnitude(0.1)), None):
        drawing = Drawing()
        trainer_of(tmp_path, callback, drawing, max_steps=1).train()
        found.append(drawing.found)
    assert found[0].equal(found[1]) and found[0].equal(found[2])


MODELS = {"llama": tiny_llama, "llava": lambda: tiny_llava().to(torch.bfloat16)}


@pytest.mark.slow
@pytest.mark.parametrize("update", ["dense", "compact"])
@pytest.mark.parametrize("family", MODELS)
def test_it_goes_on_from_a_checkpoint_bit_for_bit_without_a_second_importance_pass(
    tmp_path, monkeypatch, family, update
):
    """Llava's files have other names than the loaded model; its weights are in half precision."""
    options = {"save_strategy": "steps", "save_steps": 2, "num_train_epochs": 2}
    whole = trainer_of(tmp_path / "whole", dowser(update=update), model=MODELS[family](), **options)
    whole.train()
    monkeypatch.setattr("dowser_pl.integrations.huggingface.measure_importance", None)
    callback = dowser(update=update)
    again = trainer_of(tmp_path / "whole", callback, model=MODELS[family](), **options)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert again.state.global_step == 8 and callback.counts[0].changed == 0
    assert same(state_of(whole.model), state_of(again.model))
    base = MODELS[family]()
    with Patch.open(tmp_path / "whole" / "patch.safetensors") as patch:
        apply_to_model(base, patch)
    assert same(state_of(base), state_of(again.model))


@pytest.mark.slow
@pytest.mark.parametrize("update", ["dense", "compact"])
def test_the_best_model_is_the_one_in_the_patch(tmp_path, update):
    class SecondStepIsBest(InOrder):
        def evaluate(self, *args, **kwargs):
            metrics = super().evaluate(*args, **kwargs)
            return metrics | {"eval_loss": float(self.state.global_step != 2)}

    for family, build in MODELS.items():
        folder, callback = tmp_path / family, dowser(update=update)
        each = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
        trainer = trainer_of(
            folder, callback, model=build(), kind=SecondStepIsBest, load_best_model_at_end=True, save_total_limit=2,
            resources={"eval_dataset": DATA[:2]}, **each,
        )  # fmt: skip
        trainer.train()
        assert trainer.state.best_model_checkpoint.endswith("checkpoint-2")
        saved = type(trainer.model).from_pretrained(folder / "checkpoint-2", dtype="auto")
        assert same(state_of(saved), state_of(trainer.model))
        base = build()
        with Patch.open(folder / "patch.safetensors") as patch:
            apply_to_model(base, patch)
        assert same(state_of(base), state_of(saved))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    trainer_of(folder, dowser(), max_steps=2, save_strategy="steps", save_steps=2).train()
    return folder


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": ModelDowser(0.2)}, "this run asks for"),
        ({"probe": replace(SMALL_PROBE, num_prompts=2)}, "this run asks for"),
        ({"update": "compact"}, "this run asks for"),
        ({"last_n_layers": 1}, "that doesn't match the size"),
    ],
)
def test_other_settings_are_not_gone_on_with(stopped, options, message):
    callback = DowserCallback(**{"method": ModelDowser(0.1), "probe": SMALL_PROBE} | options)
    with pytest.raises(ValueError, match=message):  # of other matrices the optimizer's state is loaded before, by torch
        trainer_of(stopped, callback).train(resume_from_checkpoint=True)


def test_a_changed_checkpoint_or_one_without_masks_is_not_gone_on_with(stopped, tmp_path):
    for number, spoil in enumerate(
        (lambda file: file.write_bytes(_flipped(file.read_bytes())), lambda file: file.unlink())
    ):
        folder = tmp_path / str(number)
        shutil.copytree(stopped, folder)
        spoil(folder / "checkpoint-2" / FILE)
        with pytest.raises(DowserError, match="is damaged|has no dowser.safetensors: masks are never computed"):
            trainer_of(folder, dowser()).train(resume_from_checkpoint=True)


def _flipped(data):
    return data[:-5] + bytes([data[-5] ^ 1]) + data[-4:]


def test_another_base_in_the_checkpoint_is_not_gone_on_with(stopped, tmp_path):
    shutil.copytree(stopped, tmp_path / "run")
    other = tiny_llama()
    with torch.no_grad():
        other.lm_head.weight += 1
    other.save_pretrained(tmp_path / "run" / "checkpoint-2")
    with pytest.raises(DowserError, match="frozen entries are not those that the run of"):
        trainer_of(tmp_path / "run", dowser()).train(resume_from_checkpoint=True)


def test_a_checkpoint_elsewhere_is_found_where_the_settings_name_it(stopped, tmp_path):
    path = str(stopped / "checkpoint-2")
    with pytest.raises(DowserError, match="or is named by TrainingArguments"):
        trainer_of(tmp_path, dowser(), max_steps=3).train(resume_from_checkpoint=path)
    trainer = trainer_of(tmp_path, dowser(), max_steps=3, resume_from_checkpoint=path)
    trainer.train(resume_from_checkpoint=path)
    assert trainer.state.global_step == 3
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2}
    trainer_of(tmp_path / "other", dowser(), learning_rate=1e-3, **options).train()
    mixed = trainer_of(stopped, dowser(), resume_from_checkpoint=str(tmp_path / "other" / "checkpoint-2"))
    with pytest.raises(DowserError, match="holds other values than .*the run goes on from another checkpoint"):
        mixed.train(resume_from_checkpoint=path)


def test_a_checkpoint_without_an_optimizer_is_gone_on_with_as_without_us(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2, "save_only_model": True}
    trainer_of(tmp_path, dowser(update="compact"), max_steps=2, **options).train()
    callback = dowser(update="compact")
    trainer_of(tmp_path, callback, max_steps=3, **options).train(resume_from_checkpoint=True)
    assert callback.counts[0].changed == 0


@pytest.mark.parametrize("update", ["dense", "compact"])
def test_a_model_that_was_trained_already_is_refused_and_one_that_was_not_keeps_its_masks(
    tmp_path, monkeypatch, update
):
    class Interrupted(TrainerCallback):
        on = True

        def on_step_begin(self, *args, **kwargs):
            if self.on:
                raise KeyboardInterrupt

    interrupted = Interrupted()
    trainer = trainer_of(tmp_path, dowser(update=update), interrupted)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    interrupted.on = False
    monkeypatch.setattr("dowser_pl.integrations.huggingface.measure_importance", None)
    trainer.train()
    assert trainer.state.global_step == 4
    with pytest.raises(DowserError, match="was trained under a DowserCallback already"):
        trainer.train()


class Stopped(TrainerCallback):
    """Somebody presses Ctrl-C."""

    def __init__(self, after):
        self.after = after

    def on_substep_end(self, args, state, control, **kwargs):
        self.on_step_end(args, state, control)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.after:
            raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("update", ["dense", "compact"])
def test_a_stopped_run_leaves_nothing_to_the_next_over_its_model(tmp_path, update, held):
    """Masks of both would let the entries move that are in both, and weight decay hide it."""
    model, options = tiny_llama(), {"gradient_accumulation_steps": 2, "weight_decay": 0.0, "optim": "sgd"}
    first = trainer_of(tmp_path, dowser(update=update), Stopped(0), model=model, **options)
    with pytest.raises(KeyboardInterrupt):
        first.train()
    model.zero_grad()
    if not held:
        del first
        gc.collect()
    callback = dowser(WandaLike(0.3), update=update)
    trainer_of(tmp_path, callback, model=model, **options).train()
    alone = trainer_of(tmp_path, dowser(WandaLike(0.3), update=update), **options)
    alone.train()
    assert same(state_of(model), state_of(alone.model))


@pytest.mark.parametrize("after", [2, 9])
def test_a_model_that_another_callback_trained_is_refused_unless_it_goes_on(tmp_path, after):
    model, options = tiny_llama(), {"save_strategy": "steps", "save_steps": 1}
    first = trainer_of(tmp_path, dowser(), Stopped(after), model=model, **options)
    if after < 4:
        with pytest.raises(KeyboardInterrupt):
            first.train()
    else:
        first.train()
    with pytest.raises(DowserError, match=r"under a DowserCallback already, .*save_pretrained\(\) it and load that"):
        trainer_of(tmp_path / "other", dowser(), model=model).train()
    again = trainer_of(tmp_path, dowser(), model=model, **options)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    whole = trainer_of(tmp_path / "whole", dowser())
    whole.train()
    assert same(state_of(model), state_of(whole.model))


def test_wrong_orders_are_told_before_training(tmp_path):
    late = trainer_of(tmp_path, None)
    late.add_callback(dowser())
    with pytest.raises(DowserError, match=r"got DowserCallback from add_callback, .*callbacks=\[DowserCallback"):
        late.train()
    with pytest.raises(DowserError, match="got two DowserCallbacks for one model"):
        trainer_of(tmp_path, dowser(), dowser()).train()

    class Writing(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **kwargs):
            with torch.no_grad():
                model.model.layers[0].self_attn.q_proj.weight += 1

    for update in ("dense", "compact"):
        with pytest.raises(DowserError, match="another callback wrote weights after .*Fix: list it before Dowser"):
            trainer_of(tmp_path, dowser(update=update), Writing()).train()
    before = dowser()
    trainer_of(tmp_path, None, Writing(), before).train()
    assert before.counts[0].changed == 0

    class Freezing(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **kwargs):
            model.requires_grad_(False)
            model.lm_head.weight.requires_grad_(True)

    with pytest.raises(DowserError, match="no gradient reached any of"):
        trainer_of(tmp_path, dowser(), Freezing()).train()


def test_what_cannot_work_is_refused_when_the_trainer_is_made(tmp_path, monkeypatch):
    def adapted():
        return get_peft_model(tiny_llama(), LoraConfig(target_modules=["q_proj"]))

    def inside():
        model = tiny_llama()
        model._hf_peft_config_loaded = True  # by add_adapter
        return model

    for build in (adapted, inside):
        with pytest.raises(DowserError, match=r"with adapters \(peft\)"):
            trainer_of(tmp_path, dowser(), model=build())
    with pytest.raises(DowserError, match=r"got no processor, .*Trainer\(processing_class="):
        Trainer(tiny_llama(), settings(tmp_path), train_dataset=DATA, callbacks=[dowser()])
    with pytest.raises(DowserError, match="got restore_callback_states"):
        trainer_of(tmp_path, dowser(), restore_callback_states_from_checkpoint=True)
    quantized = tiny_llama()
    quantized.model.layers[0].self_attn.q_proj.weight = torch.nn.Parameter(
        torch.zeros(4, 4, dtype=torch.uint8), requires_grad=False
    )
    with pytest.raises(DowserError, match="is in 4 or 8 bits"):
        trainer_of(tmp_path, dowser(), model=quantized)
    for kind in ("FSDP", "DEEPSPEED"):
        fake = type("State", (), {"distributed_type": f"DistributedType.{kind}", "mixed_precision": "no"})
        monkeypatch.setattr("dowser_pl.integrations.trainer_checks.AcceleratorState", fake)
        with pytest.raises(DowserError, match=f"got a Trainer with {kind}, .*Fix: DDP"):
            trainer_of(tmp_path, dowser())


def test_optimizers_that_would_train_something_else_are_refused(tmp_path):
    def given(make):
        model = tiny_llama()
        return trainer_of(tmp_path, dowser(), model=model, resources={"optimizers": (make(model), None)})

    with pytest.raises(DowserError, match="got a SGD that leaves out 21 of the 21 matrices"):
        given(lambda model: torch.optim.SGD([model.lm_head.weight])).train()
    with pytest.raises(DowserError, match="got LBFGS, which asks for several losses"):
        given(lambda model: torch.optim.LBFGS(model.parameters())).train()

    class ScheduleFree(torch.optim.SGD):
        def eval(self):
            """Weights become those of the average."""

        def train(self):
            """And back."""

    with pytest.raises(DowserError, match="got ScheduleFree, which holds other weights while it trains"):
        given(lambda model: ScheduleFree(model.parameters())).train()
    trainer = given(lambda model: torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.5))  # all of it
    trainer.train()
    assert torch.equal(trainer.model.lm_head.weight, tiny_llama().lm_head.weight)


def test_optimizers_that_take_no_entries_are_refused_in_the_compact_form(tmp_path):
    for optim in ("adagrad", "adafactor"):
        with pytest.raises(DowserError, match=r"with update 'compact', expected one of .*Fix: .*update='dense'"):
            trainer_of(tmp_path, dowser(update="compact"), optim=optim).train()
    with pytest.raises(DowserError, match="got update 'sparse', expected"):
        dowser(update="sparse")


def _untold():
    return tiny_llama()


def test_a_model_made_anew_is_refused(tmp_path):
    trainer = Trainer(
        args=settings(tmp_path),
        model_init=_untold,
        train_dataset=DATA,
        processing_class=tiny_tokenizer(),
        callbacks=[dowser()],
    )
    with pytest.raises(DowserError, match="makes its model anew when training begins"):
        trainer.train()


@pytest.mark.parametrize("method", [Lora(), NullSpace(), ModelDowser])
def test_methods_that_decide_at_another_time_are_refused(method):
    with pytest.raises(DowserError, match="expected a method that chooses entries before training"):
        DowserCallback(method)


def test_weights_that_moved_are_told_before_they_are_kept(tmp_path):
    class Moving(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            with torch.no_grad():
                model.model.layers[0].self_attn.q_proj.weight += 1

    trainer = trainer_of(tmp_path, dowser(), Moving(), save_strategy="steps", save_steps=1)
    with pytest.raises(RuntimeError, match="frozen entries changed during training"):
        trainer.train()


@pytest.mark.parametrize("method", [WandaLike(0.2), Magnitude(0.3)])
def test_other_methods_that_choose_before_training_hold(tmp_path, method):
    callback = dowser(method)
    trainer_of(tmp_path, callback, max_steps=1).train()
    assert callback.counts[0].changed == 0 and callback.counts[1].changed > 0
