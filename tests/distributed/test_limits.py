"""What `plan` says of weights that are sharded over devices is what `fit` does there."""

import json

import pytest

from dowser_pl.cli.main import main
from dowser_pl.planning.memory import Placement

PLAN = "plan -c base -c model/world -c data/world -c strategy/fsdp2 --json plan.json"
REFUSED = {
    "-c method/dare --dowser.checkpoint full": "got dowser.checkpoint full, and dowser.method Dare changes the model",
    "--dowser.checkpoint full --curve [0.05]": "got dowser.checkpoint full, and curve and budget change the model",
    "-c method/model_dowser --dowser.method.estimator weight": "weight_square is a float32 number per weight",
    "-c method/kl_to_base": "got dowser.kl_to_base with weights that are sharded over processes",
    "-c method/token_masking": "got dowser.max_perplexity with weights that are sharded over processes",
    "--model.optimizer bitsandbytes.optim.AdamW8bit": "AdamW8bit keeps its states in blocks",
}


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("devices", ["auto", "4"])
def test_forms_that_fit_refuses_are_not_listed(devices, tmp_path, capsys):
    main([*PLAN.split(), "-c", "method/model_dowser", "--trainer.devices", devices])
    out = capsys.readouterr().out
    assert set(json.loads((tmp_path / "plan.json").read_text())["rows"]) == {"compact"}
    assert "not listed, as `fit` refuses them" in out and "dense updates, 8-bit optimizers" in out


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dare", "spider", "lora"])
def test_all_kinds_of_methods_are_planned(method, tmp_path):
    main([*PLAN.split(), "-c", f"method/{method}", "--curve", "[]", "--trainer.devices", "4"])
    assert set(json.loads((tmp_path / "plan.json").read_text())["rows"]) == {"compact"}


def test_under_ddp_nothing_is_left_out(tmp_path, capsys):
    main([*PLAN.replace("fsdp2", "ddp").split(), "-c", "method/lora", "--trainer.devices", "4"])
    assert set(json.loads((tmp_path / "plan.json").read_text())["rows"]) == {"dense", "compact", "compact + 8-bit"}
    assert "not listed" not in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("options", REFUSED)
def test_what_fit_refuses_in_any_form_is_refused(options):
    with pytest.raises(SystemExit, match=REFUSED[options]):
        main([*PLAN.split(), *options.split()])


@pytest.mark.parametrize("name", ["FSDP2Strategy", "fsdp", "deepspeed_stage_3", "ModelParallelStrategy"])
def test_strategies_that_shard_are_known_by_name(name):
    assert Placement(name, 1).shards and not Placement(name, 1).sharded and Placement(name, 2).sharded
    assert not Placement("ddp", 2).shards
