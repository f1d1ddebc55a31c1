"""What people try first, under each kind of trainer: right, or one error before the first step, never at the end."""

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch import Trainer as LightningTrainer
from torch import nn
from torch.utils.data import DataLoader
from transformers import CLIPImageProcessorPil, GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

from dowser_pl.callbacks import Dowser
from dowser_pl.errors import DowserError
from dowser_pl.integrations import DowserCallback, Protectable, choose_masks, measure_importance, train_only
from dowser_pl.methods import ModelDowser
from tests.tiny_models import VOCABULARY, tiny_llama, tiny_tokenizer
from tests.tiny_run import FEW_ROWS, SMALL_PROBE

ROWS = torch.randint(8, len(VOCABULARY), (4, 12), generator=torch.Generator().manual_seed(0))


class Steps(TrainerCallback):
    """How many steps a Trainer began."""

    begun = 0

    def on_step_begin(self, *args, **kwargs):
        self.begun += 1


def under_trainer(folder, model, steps, processor=None, callback=None, **options):
    callback = callback or DowserCallback(ModelDowser(0.1), probe=SMALL_PROBE, **options)
    quiet = {"report_to": [], "disable_tqdm": True, "use_cpu": True, "save_strategy": "no", "logging_strategy": "no"}
    trainer = Trainer(
        model,
        TrainingArguments(str(folder), per_device_train_batch_size=2, max_steps=2, learning_rate=1e-2, **quiet),
        train_dataset=[{"input_ids": row, "labels": row} for row in ROWS.tolist()],
        processing_class=processor or tiny_tokenizer(),
        callbacks=[steps, callback],
    )
    trainer.train()
    return callback


def tied_matrices():
    model = tiny_llama()
    model.model.layers[1].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    return model


def gpt2():
    config = GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2)
    return GPT2LMHeadModel(config)


def of_fewer_tokens():
    model = tiny_llama()
    model.resize_token_embeddings(50)
    return model


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        (lambda: nn.DataParallel(tiny_llama()), {}, r"got DataParallel, .*give its \.module"),
        (lambda: torch.compile(tiny_llama()), {}, r"got OptimizedModule, .*give its \._orig_mod"),
        (lambda: tiny_llama().model, {}, "got LlamaModel without a head"),
        (tied_matrices, {}, "got tied weights: .*Fix: untie them"),
        (gpt2, {}, "in a Conv1D, expected every matrix"),
        (of_fewer_tokens, {}, r"has 46 tokens without an embedding: .*Fix: take the tokenizer that belongs"),
        (tiny_llama, {"processor": CLIPImageProcessorPil()}, "got a CLIPImageProcessorPil as the processor"),
        (tiny_llama, {"targets": "q_proj"}, "got targets='q_proj', expected a list"),
        (tiny_llama, {"last_n_layers": 9}, "got last_n_layers=9, expected 1 to 3"),
    ],
)
def test_a_trainer_is_told_before_its_first_step(tmp_path, build, options, message):
    steps = Steps()
    with pytest.raises(DowserError, match=message):
        under_trainer(tmp_path, build(), steps, **options)
    assert not steps.begun


def test_settings_that_are_none_are_told_at_once():
    with pytest.raises(
        DowserError, match=r"got the probe 16, expected a Probe\. Fix: such as Probe\(num_prompts=128\)"
    ):
        DowserCallback(probe=16)
    with pytest.raises(DowserError, match="got the probe 16"):
        measure_importance(tiny_llama(), tiny_tokenizer(), probe=16)


def with_dropout():
    model = tiny_llama().train()
    model.model.layers[0].mlp.act_fn = nn.Sequential(model.model.layers[0].mlp.act_fn, nn.Dropout(0.5))
    return model


def with_tied_head():
    model = tiny_llama()
    model.config.tie_word_embeddings = True
    model.lm_head.weight = model.model.embed_tokens.weight
    return model


def recomputing():
    model = tiny_llama().train()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    return model


@pytest.mark.slow
@pytest.mark.parametrize("update", ["dense", "compact"])
@pytest.mark.parametrize(
    "build", [with_dropout, with_tied_head, recomputing, lambda: tiny_llama().requires_grad_(False)]
)
def test_a_model_in_an_odd_state_is_measured_as_it_is_in_evaluation_and_trained(tmp_path, build, update):
    callback = under_trainer(tmp_path, build(), Steps(), update=update)
    expected = choose_masks(measure_importance(build().eval(), tiny_tokenizer(), probe=SMALL_PROBE), ModelDowser(0.1))
    assert all(torch.equal(callback.entries.masks[name], mask) for name, mask in expected.items())
    assert callback.counts[0].changed == 0 and callback.counts[1].changed > 0.9 * callback.counts[1].entries


def test_a_learning_rate_that_moves_nothing_is_told(tmp_path, caplog):
    model = tiny_llama().to(torch.bfloat16)
    for weight in model.parameters():
        weight.data.mul_(1e4)  # the next number of which is too far
    under_trainer(tmp_path, model, Steps())
    assert "No entry changed: the learning rate of 0.01 moves none" in caplog.text


class Own(LightningModule):
    def __init__(self, processor=None):
        super().__init__()
        self.llm = tiny_llama()
        self.protectable = Protectable(self.llm, processor)

    def training_step(self, batch, batch_idx):
        return self.llm(input_ids=batch, labels=batch).loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.protectable.parameters(), lr=1e-2)


class Detached(Own):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx).detach().requires_grad_(True)


class Replaced(Own):
    def on_fit_start(self):
        self.llm = tiny_llama()


class Late(LightningModule):
    def configure_model(self):
        self.llm = tiny_llama()
        self.protectable = Protectable(self.llm, tiny_tokenizer())

    training_step, configure_optimizers = Own.training_step, Own.configure_optimizers


class Begun(Callback):
    """Whether a fit began."""

    fit = False

    def on_fit_start(self, trainer, pl_module):
        self.fit = True


@pytest.mark.parametrize("update", ["compact", "dense"])
@pytest.mark.parametrize(
    ("build", "in_setup", "message"),
    [
        (lambda: Own(None), True, "got no processor, expected that of the model"),
        (Late, True, r"it lacks(.|\n)*Fix: self\.protectable = dowser_pl\.Protectable\(model, processor\)"),
        (lambda: Detached(tiny_tokenizer()), False, "no gradient reached any of 21 matrices"),
        (lambda: Replaced(tiny_tokenizer()), False, "compute the loss with the very model that is protected"),
    ],
)
def test_a_lightning_trainer_is_told_in_setup_or_at_its_first_step(tmp_path, build, in_setup, message, update):
    begun, dowser = (
        Begun(),
        Dowser(ModelDowser(0.1), SMALL_PROBE, None, checkpoint="full", rows=FEW_ROWS, update=update),
    )
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = LightningTrainer(
        default_root_dir=tmp_path, callbacks=[begun, dowser], max_epochs=1, enable_checkpointing=False, **quiet
    )
    with pytest.raises(DowserError, match=message):
        trainer.fit(build(), DataLoader(ROWS, batch_size=2))
    assert begun.fit != in_setup and trainer.global_step <= 1


def test_a_loop_is_told_when_it_begins_or_at_its_first_step():
    model = tiny_llama()
    masks = choose_masks(measure_importance(model, tiny_tokenizer(), probe=SMALL_PROBE))
    name = next(iter(masks))
    with train_only(model, masks), pytest.raises(DowserError, match="in a block of train_only already"):
        train_only(model, masks).__enter__()
    with pytest.raises(DowserError, match="got masks of torch.float32, expected bools"):
        train_only(model, {name: masks[name].float()}).__enter__()
    with pytest.raises(DowserError, match="no gradient reached any of 21"), train_only(model, masks) as trained:
        optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
        tiny_llama()(input_ids=ROWS, labels=ROWS).loss.backward()  # another model
        optimizer.step()
    with train_only(model, masks):  # the block before is over
        pass
