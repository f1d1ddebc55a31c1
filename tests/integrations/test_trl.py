"""TRL's trainers with our callback, as they are."""

import pytest
import torch
from datasets import Dataset

from dowser_pl.errors import DowserError
from dowser_pl.integrations import DowserCallback
from dowser_pl.methods import ModelDowser
from dowser_pl.patches import Patch
from dowser_pl.patches.loaded import apply_to_model
from tests.tiny_models import CHAT_TEMPLATE, tiny_llama, tiny_tokenizer
from tests.tiny_run import SMALL_PROBE

trl = pytest.importorskip("trl")

ASKED = {"prompt": [{"role": "user", "content": "what colour is the sky ?"}]}
SAID = {"chosen": [{"role": "assistant", "content": "blue"}], "rejected": [{"role": "assistant", "content": "red"}]}


def tokenizer():
    made = tiny_tokenizer()
    made.chat_template = CHAT_TEMPLATE
    return made


def made(kind, folder, callback, **options):
    settings = {"per_device_train_batch_size": 2, "max_steps": 3, "learning_rate": 1e-2, "weight_decay": 0.1}
    quiet = {"report_to": [], "disable_tqdm": True, "use_cpu": True, "bf16": False, "save_strategy": "no"}
    rows = [ASKED | (SAID if kind == "DPO" else {"completion": SAID["chosen"]})] * 8
    return getattr(trl, f"{kind}Trainer")(
        options.pop("model", None) or tiny_llama(),
        args=getattr(trl, f"{kind}Config")(str(folder), **settings, **quiet),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer(),
        callbacks=[callback],
        **options,
    )


@pytest.mark.slow
@pytest.mark.parametrize("update", ["dense", "compact"])
@pytest.mark.parametrize("kind", ["SFT", "DPO"])
def test_frozen_entries_keep_their_bits_and_the_patch_makes_the_tuned_model(tmp_path, kind, update):
    callback = DowserCallback(ModelDowser(0.1), probe=SMALL_PROBE, update=update)
    options = {"ref_model": tiny_llama()} if kind == "DPO" else {}
    trainer = made(kind, tmp_path, callback, **options)
    trainer.train()
    assert callback.counts[0].changed == 0 and callback.counts[1].changed > 0.5 * callback.counts[1].entries
    base, before = tiny_llama(), tiny_llama()
    with Patch.open(tmp_path / "patch.safetensors") as patch:
        apply_to_model(base, patch)
    for name, each in trainer.model.state_dict().items():
        assert torch.equal(each, base.state_dict()[name])
        mask = callback.entries.masks.get(name.removesuffix(".weight"), torch.zeros_like(each, dtype=torch.bool))
        assert torch.equal(each[~mask], before.state_dict()[name][~mask])


def test_adapters_are_refused_when_the_trainer_is_made(tmp_path):
    peft = pytest.importorskip("peft")
    with pytest.raises(DowserError, match=r"with adapters \(peft\), .*without peft_config"):
        made("SFT", tmp_path, DowserCallback(), peft_config=peft.LoraConfig(target_modules=["q_proj"]))
