"""Uses that would train, save or score the wrong thing without a word: done right, or refused before the first step."""

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging
from safetensors.torch import load_file, save_file

from dowser_pl.methods import Dare, Full, Lora, Magnitude, ModelDowser, Spider
from dowser_pl.models.lora import LoraSettings
from dowser_pl.module import MultimodalModule
from tests.callbacks.test_compact import adamw, assert_equal, fit, weights_of
from tests.tiny_models import save_tiny_llava
from tests.tiny_run import TinyData, build_module, build_trainer


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("model"))


def last(folder):
    return folder / "checkpoints" / "last.ckpt"


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", ["compact", "full"])
def test_a_model_that_loaded_a_checkpoint_is_not_scored(model_folder, tmp_path, checkpoint):
    fit(model_folder, tmp_path, checkpoint=checkpoint)
    module = build_module(model_folder)
    trainer = build_trainer(tmp_path / "again", Magnitude(0.1), max_epochs=1)
    trainer.validate(module, datamodule=TinyData(), ckpt_path=last(tmp_path), verbose=False)
    with pytest.raises(ValueError, match="holds the weights of a checkpoint, and masks are never computed on tuned"):
        trainer.fit(module, datamodule=TinyData())


@pytest.mark.slow
def test_a_fitted_module_takes_its_checkpoint_again(model_folder, tmp_path):
    """fit, validate the last checkpoint, go on from it: on one module, as in a notebook."""
    trainer, module, _ = fit(model_folder, tmp_path, max_epochs=2)
    tuned = weights_of(module)
    for _ in range(2):
        trainer.validate(module, datamodule=TinyData(), ckpt_path=last(tmp_path), verbose=False)
        assert_equal(weights_of(module), tuned)
    more = build_trainer(tmp_path, Magnitude(0.1), max_epochs=3, limit_val_batches=1)
    more.fit(module, datamodule=TinyData(), ckpt_path=last(tmp_path))
    assert more.global_step == 18


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({}, {"precision": "bf16-true"}, "from float32 weights, .* loaded in bfloat16, .* and the same --trainer.prec"),
        ({"precision": "bf16-true"}, {}, "trained in bfloat16 weights, this run has torch.float32"),
        (
            {"checkpoint": "full"},
            {"checkpoint": "full", "precision": "bf16-true"},
            "trained in float32 weights, this run has torch.bfloat16",
        ),
        (
            {"module_options": {"also_train": ["lm_head"]}},
            {"module_options": {"also_train": ["embeddings"]}},
            r"trained \['model.lm_head.weight'\] without a mask, this run would train \['model.*embed_tokens",
        ),
    ],
)
@pytest.mark.parametrize("update", ["compact", "dense"])
def test_resuming_in_another_way_is_refused_before_training(model_folder, tmp_path, first, second, message, update):
    fit(model_folder, tmp_path, update=update, **first)
    with pytest.raises(ValueError, match=message):
        fit(model_folder, tmp_path / "b", update=update, ckpt_path=last(tmp_path), max_epochs=2, **second)


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", ["compact", "full"])
def test_half_precision_files_of_another_kind_resume_bit_by_bit(tmp_path, checkpoint):
    """float16 files trained in bfloat16: values that float16 cannot hold must not pass through it."""
    folder = save_tiny_llava(tmp_path / "half", dtype=torch.float16)
    options = {"precision": "bf16-true", "checkpoint": checkpoint, "optimizer": tiny_steps}
    options["module_options"] = {"also_train": ["projector"]}
    _, whole, _ = fit(folder, tmp_path / "whole", max_epochs=2, **options)
    fit(folder, tmp_path / "cut", max_epochs=1, **options)
    trainer = build_trainer(tmp_path / "score", Magnitude(0.1), precision="bf16-true")
    module = MultimodalModule(str(folder), optimizer=tiny_steps, also_train=["projector"])
    trainer.validate(module, datamodule=TinyData(), ckpt_path=last(tmp_path / "whole"), verbose=False)
    assert_equal(weights_of(module), weights_of(whole))


def tiny_steps(parameters):
    return torch.optim.SGD(parameters, lr=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("update", ["compact", "dense"])
def test_a_matrix_without_a_trainable_entry_stays_out(tmp_path, update):
    folder = save_tiny_llava(tmp_path / "model")
    module = build_module(folder)
    trainer = build_trainer(tmp_path, Magnitude(0.1, scope="model"), update=update, max_epochs=1, gradient_clip_val=1.0)
    module.configure_model()
    name, layer = next(iter(module.tuned_layers().items()))
    layer.weight.data.mul_(1e4)
    trainer.fit(module, datamodule=TinyData())
    entries = trainer.callbacks[0].entries
    assert int(entries.masks[name].sum()) == 0 and entries.num_trainable == 2304
    assert trainer.callbacks[0].counts[1].changed > 0
    assert layer.weight.requires_grad, "as it was"


@pytest.mark.parametrize(
    "callback",
    [lambda: EMAWeightAveraging(decay=0.5), lambda: StochasticWeightAveraging(swa_lrs=1e-3)],
    ids=["EMA", "SWA"],
)
def test_averages_of_weights_are_refused(model_folder, tmp_path, callback):
    with pytest.raises(ValueError, match="writes averaged weights into the model behind the optimizer"):
        fit(model_folder, tmp_path, callbacks=[callback()])


def test_a_writer_of_trainable_entries_is_found_out(model_folder, tmp_path):
    class Halve(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            for name, layer in pl_module.tuned_layers().items():
                layer.weight.data[trainer.callbacks[0].entries.masks[name]] *= 0.5

    with pytest.raises(RuntimeError, match="does not hold the values that were trained: another callback writes"):
        fit(model_folder, tmp_path, callbacks=[Halve()])


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", [ModelDowser(0.1), Magnitude(0.1), Full(), Spider(), Lora()], ids=lambda m: type(m).__name__
)
def test_a_base_that_is_no_numbers_is_refused_in_the_same_words_by_all(tmp_path, method):
    """In a tensor that no method tunes."""
    folder = save_tiny_llava(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("layers.0.mlp.fc1.bias"))
    weights[name][1] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    module = build_module(folder, lora=LoraSettings(r=2) if isinstance(method, Lora) else None)
    with pytest.raises(
        ValueError, match=r"no finite numbers in 1 of 73 tensors: \S*layers.0.mlp.fc1.bias \(1 NaN and 0"
    ):
        build_trainer(tmp_path, method).fit(module, datamodule=TinyData())


def test_an_optimizer_over_whole_matrices_is_refused(model_folder, tmp_path):
    class Mine(MultimodalModule):
        def configure_optimizers(self):
            return torch.optim.AdamW(each for each in self.parameters() if each.requires_grad)

    trainer = build_trainer(tmp_path, Magnitude(0.1), max_epochs=1)
    with pytest.raises(ValueError, match="leave out .* 21 of the 21 parameters.*and train 21 matrices past it"):
        trainer.fit(Mine(str(model_folder)), datamodule=TinyData())


def test_a_checkpoint_is_not_trained_on_without_its_masks(model_folder, tmp_path):
    fit(model_folder, tmp_path)
    trainer = Trainer(max_epochs=2, logger=False, accelerator="cpu", default_root_dir=tmp_path / "b")
    with pytest.raises(ValueError, match="trained under the masks of the callback Dowser, and this trainer has none"):
        trainer.fit(build_module(model_folder), datamodule=TinyData(), ckpt_path=last(tmp_path))


def test_a_narrower_model_is_told_the_precision_it_needs(model_folder, tmp_path):
    fit(model_folder, tmp_path)
    trainer = build_trainer(tmp_path / "b", Magnitude(0.1))
    narrow = MultimodalModule(str(model_folder), dtype="bfloat16", optimizer=adamw)
    with pytest.raises(ValueError, match="loaded in bfloat16, which has lost .* Give --model.dtype float32"):
        trainer.validate(narrow, datamodule=TinyData(), ckpt_path=last(tmp_path), verbose=False)


def test_a_run_stopped_in_its_backward_pass_leaves_a_module_that_can_be_fitted(model_folder, tmp_path):
    module = build_module(model_folder)
    module.configure_model()
    for layer in module.tuned_layers().values():
        layer.weight.grad = torch.ones_like(layer.weight)
    trainer = build_trainer(tmp_path, ModelDowser(0.1), max_epochs=1)
    trainer.fit(module, datamodule=TinyData())
    assert trainer.callbacks[0].counts[1].changed > 0


@pytest.mark.slow
def test_a_trainer_that_leaves_the_end_of_a_run_out_is_found_out(model_folder, tmp_path, monkeypatch):
    """A checkpoint of the last step leaves nothing to train; what is merged or written then would be missing."""
    done = build_trainer(tmp_path, Dare(0.3), max_epochs=1, callbacks=[EndOnly()])
    done.fit(build_module(model_folder), datamodule=TinyData())
    monkeypatch.setattr("tests.tiny_run.DowserTrainer", Trainer)
    plain = build_trainer(tmp_path, Dare(0.3), max_epochs=1)
    with pytest.raises(ValueError, match="no step left, and Trainer returned before the end .*DowserTrainer"):
        plain.fit(build_module(model_folder), datamodule=TinyData(), ckpt_path=tmp_path / "end.ckpt")


class EndOnly(Callback):
    """A checkpoint at the end of training."""

    def on_train_end(self, trainer, pl_module):
        trainer.save_checkpoint(f"{trainer.default_root_dir}/end.ckpt")


@pytest.mark.parametrize("ratio", [0.0, 1e-9])
def test_a_run_in_which_nothing_would_move_is_refused_before_the_probe(model_folder, tmp_path, ratio, monkeypatch):
    monkeypatch.setattr("dowser_pl.callbacks.dowser.importance.measure", lambda *_: pytest.fail("probed"))
    trainer = build_trainer(tmp_path, ModelDowser(ratio))
    with pytest.raises(ValueError, match=f"update_ratio {ratio}, with which no entry of any matrix may move"):
        trainer.fit(build_module(model_folder), datamodule=TinyData())


def test_a_part_beside_the_matrices_may_be_all_that_is_trained(model_folder, tmp_path):
    trainer = build_trainer(tmp_path, Magnitude(0.0), max_steps=1)
    module = build_module(model_folder, also_train=["projector"])
    trainer.fit(module, datamodule=TinyData())
    assert trainer.global_step == 1
