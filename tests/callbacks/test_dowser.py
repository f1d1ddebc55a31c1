import hashlib

import pytest
import torch
from lightning.pytorch import Callback

from dowser_pl.callbacks import Dowser
from dowser_pl.callbacks.dowser import importance
from dowser_pl.methods import Full, HalfFineTuning, Magnitude, ModelDowser, Random
from dowser_pl.models.layers import find_blocks
from dowser_pl.models.loading import load_model
from dowser_pl.reporting import read_report
from tests.tiny_models import save_tiny_llava
from tests.tiny_run import TinyData, build_module, build_trainer


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("model"))


def bits(weight: torch.Tensor) -> torch.Tensor:
    return weight.detach().view(torch.int16 if weight.element_size() == 2 else torch.int32)


def values_of(checkpoint):
    """What a checkpoint holds of the tuned matrices."""
    callbacks = torch.load(checkpoint, weights_only=True)["callbacks"]
    return [entry["values"] for entry in callbacks["Dowser"]["entries"].values()]


def dowser_of(trainer):
    return next(c for c in trainer.callbacks if isinstance(c, Dowser))


def fit(model_folder, folder, method, lr=1e-2, weight_decay=0.1, module_options=None, **options):
    trainer = build_trainer(folder, method, limit_val_batches=1, **{"max_epochs": 1, **options})
    module = build_module(model_folder, lr, weight_decay, **(module_options or {}))
    trainer.fit(module, datamodule=TinyData())
    return trainer, module, dowser_of(trainer)


SETTINGS = {
    "plain": {},
    "accumulation": {"accumulate_grad_batches": 2},
    "clip by norm": {"gradient_clip_val": 0.1},
    "clip by value": {"gradient_clip_val": 1e-4, "gradient_clip_algorithm": "value"},
    "bf16-mixed": {"precision": "bf16-mixed"},
    "bf16-true": {"precision": "bf16-true"},
    "checkpointing": {"module_options": {"gradient_checkpointing": True}},
    "last layer": {"module_options": {"last_n_layers": 1, "targets": ["mlp"]}},
}


QUICK = {("compact", name) for name in ("plain", "accumulation", "clip by norm", "bf16-true", "last layer")}
QUICK |= {("dense", name) for name in ("plain", "bf16-mixed")}
CASES = [(update, setting) for update in ("compact", "dense") for setting in SETTINGS]


@pytest.mark.parametrize(
    ("update", "setting"), [pytest.param(*each, marks=[pytest.mark.slow] * (each not in QUICK)) for each in CASES]
)
@pytest.mark.parametrize(
    "method", [ModelDowser(0.1), pytest.param(Random(0.3), marks=pytest.mark.slow)], ids=["ModelDowser", "Random"]
)
def test_frozen_entries_keep_their_bits(model_folder, tmp_path, method, update, setting):
    _, module, dowser = fit(model_folder, tmp_path, method, update=update, **SETTINGS[setting])
    base = load_model(str(model_folder), dtype="float32").to(module.network.dtype)
    tuned_names = set()
    for name, layer in module.tuned_layers().items():
        original = base.get_submodule(name).weight
        mask = dowser.entries.masks[name]
        assert int(mask.sum()) == round(method.update_ratio * mask.numel())
        assert torch.equal(bits(layer.weight)[~mask], bits(original)[~mask]), name
        assert not torch.equal(layer.weight[mask], original[mask]), name
        tuned_names.add(f"{name}.weight")
    for name, parameter in module.network.named_parameters():  # all that is not tuned is untouched
        if name not in tuned_names:
            assert torch.equal(bits(parameter), bits(base.get_parameter(name))), name
    frozen, trainable = dowser.counts
    assert frozen.changed == 0 and trainable.changed > 0


def test_without_the_restore_weight_decay_moves_frozen_entries(model_folder, tmp_path, monkeypatch):
    """The check at the end of training can fail."""
    monkeypatch.setattr(Dowser, "_after_step", lambda *_: None)
    with pytest.raises(RuntimeError, match="[1-9][0-9]* of 20736 frozen entries changed during training"):
        fit(model_folder, tmp_path, Magnitude(0.1), update="dense")


def test_a_callback_that_writes_a_frozen_entry_is_found_out(model_folder, tmp_path):
    class Writer(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            name, mask = next(iter(dowser_of(trainer).entries.masks.items()))
            first = (~mask).nonzero()[0].tolist()
            pl_module.network.get_submodule(name).weight.data[tuple(first)] += 1

    with pytest.raises(RuntimeError, match="some of 20736 frozen entries changed during training"):
        fit(model_folder, tmp_path, Magnitude(0.1), callbacks=[Writer()])


def test_parts_trained_without_a_mask_are_told(model_folder, tmp_path):
    _, module, dowser = fit(model_folder, tmp_path, Random(0.1), module_options={"also_train": ["lm_head"]})
    report = read_report(tmp_path)
    assert report.diagnostics["entries_trained_without_a_mask"] == module.network.lm_head.weight.numel()
    assert report.frozen.changed == 0 and dowser.counts[1].changed > 0


def test_full_trains_everything(model_folder, tmp_path):
    _, _, dowser = fit(model_folder, tmp_path, Full())
    frozen, trainable = dowser.counts
    assert frozen.entries == 0 and trainable.changed > 0.9 * trainable.entries


def test_clipping_sees_the_masked_gradient(model_folder, tmp_path):
    """The norm that is clipped is that of the trainable entries, so a frozen giant cannot silence them."""
    norms = []

    class Spy(Dowser):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            for weight in self.entries.weights.values():
                weight.grad[~self.entries.masks[next(n for n, w in self.entries.weights.items() if w is weight)]] = 1e6
            super().on_before_optimizer_step(trainer, pl_module, optimizer)
            norms.append(torch.cat([w.grad.flatten() for w in self.entries.weights.values()]).norm().item())

    trainer = build_trainer(tmp_path, max_epochs=1, limit_val_batches=1, gradient_clip_val=0.5)
    trainer.callbacks[0] = Spy(Magnitude(0.1), cache_dir=None, update="dense")
    trainer.fit(build_module(model_folder), datamodule=TinyData())
    assert norms and all(norm < 1e3 for norm in norms)


def test_the_cache_is_used_once_and_gives_the_same_masks(model_folder, tmp_path, monkeypatch):
    options = {"cache_dir": str(tmp_path / "cache"), "max_steps": 1}
    _, _, first = fit(model_folder, tmp_path / "a", ModelDowser(0.1), **options)
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 1
    monkeypatch.setattr(importance, "measure", lambda *_: pytest.fail("probed again"))
    _, _, second = fit(model_folder, tmp_path / "b", ModelDowser(0.1), **options)
    for name, mask in first.entries.masks.items():
        assert torch.equal(mask, second.entries.masks[name])
    _, _, third = fit(model_folder, tmp_path / "c", ModelDowser(0.2, estimator="paper"), **options)
    assert third.entries.num_trainable > second.entries.num_trainable


def test_a_model_with_other_weights_is_probed_again(model_folder, tmp_path):
    options = {"cache_dir": str(tmp_path / "cache"), "max_steps": 1}
    fit(model_folder, tmp_path / "a", ModelDowser(0.1), **options)
    fit(save_tiny_llava(tmp_path / "other", seed=1), tmp_path / "b", ModelDowser(0.1), **options)
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 2


def test_a_damaged_cache_is_set_aside(model_folder, tmp_path):
    options = {"cache_dir": str(tmp_path / "cache"), "max_steps": 1}
    fit(model_folder, tmp_path / "a", ModelDowser(0.1), **options)
    (file,) = (tmp_path / "cache").glob("*.safetensors")
    whole = file.read_bytes()
    file.write_bytes(whole[:100])
    fit(model_folder, tmp_path / "b", ModelDowser(0.1), **options)
    assert file.read_bytes() == whole and (tmp_path / "cache" / f"{file.name}.corrupt").read_bytes() == whole[:100]


def digest(module) -> str:
    sha = hashlib.sha256()
    for value in module.network.state_dict().values():
        sha.update(value.contiguous().view(-1).view(torch.uint8).numpy())
    return sha.hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize("stop_after", [1, 3, 6])
def test_a_resumed_run_ends_like_an_unbroken_one(model_folder, tmp_path, monkeypatch, stop_after):
    """6 steps an epoch: killed inside an epoch, and just after its last step."""
    _, whole, _ = fit(model_folder, tmp_path / "whole", ModelDowser(0.1), max_epochs=2)

    class Killed(BaseException):
        pass

    class KillAfter(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == stop_after:
                raise Killed

    with pytest.raises(Killed):
        fit(model_folder, tmp_path / "cut", ModelDowser(0.1), max_epochs=2, callbacks=[KillAfter()])
    monkeypatch.setattr(importance, "measure", lambda *_: pytest.fail("probed tuned weights"))
    trainer = build_trainer(tmp_path / "cut", ModelDowser(0.1), max_epochs=2, limit_val_batches=1)
    resumed = build_module(model_folder)
    trainer.fit(resumed, datamodule=TinyData(), ckpt_path=tmp_path / "cut" / "checkpoints" / "last.ckpt")
    assert digest(resumed) == digest(whole)
    dowser = dowser_of(trainer)
    assert dowser.counts[0].changed == 0 and dowser.counts[1].changed > 0


def test_resuming_with_another_method_is_refused(model_folder, tmp_path):
    fit(model_folder, tmp_path, ModelDowser(0.1), max_steps=2)
    trainer = build_trainer(tmp_path, ModelDowser(0.2))
    with pytest.raises(ValueError, match=r"'update_ratio': 0.1.* this run asks for .*'update_ratio': 0.2"):
        trainer.fit(build_module(model_folder), datamodule=TinyData(), ckpt_path=tmp_path / "checkpoints/last.ckpt")


def test_a_checkpoint_without_masks_is_refused(model_folder, tmp_path):
    fit(model_folder, tmp_path, ModelDowser(0.1), max_steps=2)
    path = tmp_path / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=False)
    checkpoint["callbacks"] = {k: v for k, v in checkpoint["callbacks"].items() if "Dowser" not in k}
    torch.save(checkpoint, path)
    trainer = build_trainer(tmp_path, ModelDowser(0.1))
    with pytest.raises(ValueError, match="holds no masks.*never computed on weights that were already tuned"):
        trainer.fit(build_module(model_folder), datamodule=TinyData(), ckpt_path=path)


def test_a_checkpoint_is_plain_data(model_folder, tmp_path):
    """Loads without unpickling code, with masks in bits and in global coordinates."""
    fit(model_folder, tmp_path, ModelDowser(0.1), max_steps=2)
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    (state,) = (v for k, v in checkpoint["callbacks"].items() if "Dowser" in k)
    entry = next(iter(state["entries"].values()))
    assert entry["mask"].dtype == torch.uint8
    assert sum(e["values"].numel() for e in state["entries"].values()) == 2304


def test_a_loss_that_is_not_a_number_stops_and_keeps_the_checkpoint(model_folder, tmp_path):
    class Poisoned(TinyData):
        def train_dataloader(self):
            loader = super().train_dataloader()
            encode = loader.collate_fn

            def collate(rows):
                batch = encode(rows)
                if any("row 7" in row for row in batch["ids"]):
                    batch["pixel_values"] = batch["pixel_values"] * float("nan")
                return batch

            loader.collate_fn = collate
            return loader

    trainer = build_trainer(tmp_path, Magnitude(0.1), max_epochs=1, limit_val_batches=1)
    with pytest.raises(ValueError, match=r"the loss is nan at step \d.*row 7"):
        trainer.fit(build_module(model_folder), datamodule=Poisoned())
    kept = tmp_path / "checkpoints" / "last.ckpt"
    if trainer.global_step:
        assert values_of(kept) and all(bool(torch.isfinite(values).all()) for values in values_of(kept))


def test_an_infinite_gradient_stops_before_it_reaches_the_weights(model_folder, tmp_path):
    class Overflow(Callback):
        def on_after_backward(self, trainer, pl_module):
            if trainer.global_step == 3:
                trainer.optimizers[0].param_groups[0]["params"][0].grad.fill_(float("inf"))

    with pytest.raises(ValueError, match="a gradient is not finite at step 3"):
        fit(model_folder, tmp_path, Magnitude(0.1), callbacks=[Overflow()])
    kept = tmp_path / "checkpoints" / "last.ckpt"
    assert torch.load(kept, weights_only=True)["global_step"] == 3
    assert values_of(kept) and all(bool(torch.isfinite(values).all()) for values in values_of(kept))


@pytest.mark.parametrize("options", [{"precision": "16-true"}, {"module_options": {"dtype": "float16"}}])
def test_float16_weights_are_refused(model_folder, tmp_path, options):
    with pytest.raises(ValueError, match="would train float16 weights"):
        fit(model_folder, tmp_path, Magnitude(0.1), **options)


def test_a_model_that_was_tuned_is_not_scored_again(model_folder, tmp_path):
    trainer, module, _ = fit(model_folder, tmp_path, Magnitude(0.1))
    trainer.fit_loop.max_epochs = 2
    with pytest.raises(ValueError, match="tuned by an earlier fit"):
        trainer.fit(module, datamodule=TinyData())


def test_tuned_weights_are_not_scored_by_a_new_callback_or_by_probe(model_folder, tmp_path, monkeypatch):
    _, module, _ = fit(model_folder, tmp_path, ModelDowser(0.1), max_steps=2)
    monkeypatch.setattr(importance, "measure", lambda *_: pytest.fail("probed tuned weights"))
    for options in ({"max_epochs": 1}, {"limit_train_batches": 0}):
        with pytest.raises(ValueError, match="tuned by an earlier fit"):
            build_trainer(tmp_path / "new", ModelDowser(0.1), **options).fit(module, datamodule=TinyData())
    path = tmp_path / "checkpoints" / "last.ckpt"
    trainer = build_trainer(tmp_path / "probe", ModelDowser(0.1), limit_train_batches=0)
    trainer.fit(build_module(model_folder), datamodule=TinyData(), ckpt_path=path)


def test_a_fit_without_evaluation_is_refused_before_training(model_folder, tmp_path):
    trainer = build_trainer(tmp_path, Magnitude(0.1), limit_val_batches=0)
    with pytest.raises(ValueError, match="limit_val_batches 0"):
        trainer.fit(build_module(model_folder), datamodule=TinyData())


@pytest.mark.parametrize("scope", ["layer", "model"])
def test_a_shared_budget_trains_its_share_of_all_matrices_together(model_folder, tmp_path, scope):
    _, module, dowser = fit(model_folder, tmp_path, ModelDowser(0.1, scope=scope))
    shares = {name: float(mask.float().mean()) for name, mask in dowser.entries.masks.items()}
    assert max(shares.values()) > 0.12 and min(shares.values()) < 0.08, "matrices compete"
    assert dowser.counts[0].changed == 0
    numel = {name: mask.numel() for name, mask in dowser.entries.masks.items()}
    groups: dict[str, list[str]] = {}
    for name, block in find_blocks(module.network, module.tuned_layers()).items():
        groups.setdefault(block if scope == "layer" else "", []).append(name)
    assert len(groups) == (3 if scope == "layer" else 1)
    for names in groups.values():
        chosen = sum(int(dowser.entries.masks[name].sum()) for name in names)
        assert chosen == round(0.1 * sum(numel[name] for name in names))


def test_the_report_says_how_well_the_prompts_agree(model_folder, tmp_path):
    fit(model_folder, tmp_path, ModelDowser(0.1, group_size=1))
    diagnostics = read_report(tmp_path).diagnostics
    assert diagnostics["prompts"] == 4
    assert 0 < diagnostics["split_half_overlap"] < 1 and 0 < diagnostics["split_half_rank_correlation"] < 1
    assert 0 < diagnostics["mask_overlap_with_magnitude"] < 1


@pytest.mark.parametrize("update", ["compact", "dense"])
def test_half_of_the_matrices_train_whole_and_the_others_keep_their_bits(model_folder, tmp_path, update):
    _, module, dowser = fit(model_folder, tmp_path, HalfFineTuning(seed=3), update=update)
    base, tuned = load_model(str(model_folder), dtype="float32"), module.tuned_layers()
    moved = {n for n, layer in tuned.items() if not torch.equal(layer.weight, base.get_submodule(n).weight)}
    assert moved == HalfFineTuning(seed=3).trained(tuned) and 9 <= len(moved) <= 12, "2 of 4 and 1 or 2 of 3, thrice"
    trained = sum(tuned[name].weight.numel() for name in moved)
    frozen, trainable = dowser.counts
    assert trainable.entries == trained and trainable.changed > 0.9 * trained and frozen.changed == 0
    assert frozen.entries == sum(layer.weight.numel() for layer in tuned.values()) - trained
