"""Typos are answered at once, in few lines, with what was meant; what is right is let through."""

import sys
from pathlib import Path
from types import ModuleType

import pytest
from lightning.pytorch import LightningDataModule

from dowser_pl.__main__ import main
from dowser_pl.cli.arguments import resolve_configs, shipped
from dowser_pl.cli.spelling import check_model, check_spelling, words_of
from dowser_pl.errors import DowserError

YAML = """\
model:
  path: embedded:world
  {model}
data: {{class_path: {data}, init_args: {{batch_size: 4}}}}
dowser:
  method:
    class_path: Random
    init_args: {{{ratio}: 0.1}}
{other}
"""
RIGHT = {"model": "dtype: float32", "data": "WorldData", "ratio": "update_ratio", "other": "curve: [0.1]"}


@pytest.fixture
def stays_light(monkeypatch):
    """Fails if the training command line would be loaded."""
    fake = ModuleType("dowser_pl.cli.main")
    fake.main = lambda _: pytest.fail("torch would be loaded now")
    monkeypatch.setitem(sys.modules, "dowser_pl.cli.main", fake)


def write(folder: Path, **wrong: str) -> str:
    (folder / "my.yaml").write_text(YAML.format(**RIGHT | wrong))
    return str(folder / "my.yaml")


TYPOS = {
    "a verb": ("fti -c quickstart", "Did you mean 'fit'?"),
    "a verb that is offline": ("reprot runs/a", "Did you mean 'report'?"),
    "a name after -c": ("fit -c quickstrat", "did you mean quickstart?"),
    "a name in a folder": ("fit -c method/darre", "did you mean method/dare?"),
    "an abbreviation": ("fit -c quickstart --trainer.max_epoch 1", "did you mean --trainer.max_epochs?"),
    "an option": ("plan -c quickstart --trainer.presicion 32-true", "did you mean --trainer.precision?"),
    "an option with =": ("fit -c quickstart --model.dytpe=float32", "did you mean --model.dtype?"),
    "a group": ("fit -c quickstart --trianer.max_epochs 1", "did you mean --trainer.max_epochs?"),
    "no group": ("fit -c quickstart --max_epochs 1", "did you mean --trainer.max_epochs?"),
    "another name": ("fit -c quickstart --learning_rate 1", "did you mean --model.optimizer.lr?"),
    "an option of the method": ("fit -c quickstart --dowser.method.update_rato 1", "--dowser.method.update_ratio?"),
    "an option of the data": ("fit -c quickstart --data.batch_sise 4", "did you mean --data.batch_size?"),
    "an option of the optimizer": (
        "fit -c quickstart --model.optimizer.wieght_decay 1",
        "--model.optimizer.weight_dec",
    ),
    "settings": ("fit -c quickstart --dowser.probe.num_promts 4", "did you mean --dowser.probe.num_prompts?"),
    "a method": ("fit -c quickstart --dowser.method Randm", "there is no class Randm; did you mean Random?"),
    "a data set": ("fit -c quickstart --data WorldDate", "did you mean WorldData?"),
    "an optimizer": ("fit -c quickstart --model.optimizer AdanW", "did you mean AdamW?"),
    "a schedule": ("fit -c quickstart --model.scheduler cosin", "did you mean cosine?"),
    "a schedule of torch": ("fit -c quickstart --model.scheduler StepLT", "did you mean StepLR?"),
    "an option of a schedule": (
        "fit -c quickstart --model.scheduler StepLR --model.scheduler.step_sise 3",
        "did you mean --model.scheduler.step_size?",
    ),
    "a class path": ("fit -c quickstart --model.optimizer torch.optim.SDG", "did you mean torch.optim.SGD?"),
    "our class path": ("fit -c quickstart --dowser.method dowser_pl.methods.Spyder", "dowser_pl.methods.Spider?"),
    "our class path, of no known name": ("fit -c quickstart --data dowser_pl.data.JsonlDat", "dowser_pl.data has "),
    "a strategy": ("fit -c quickstart --trainer.strategy fsdp3", "there is no fsdp3; did you mean fsdp or fsdp2 "),
    "an accelerator": ("fit -c quickstart --trainer.accelerator gpuu", "there is no gpuu; did you mean gpu?"),
    "a module": ("fit -c quickstart --dowser.method nowhere_at_all.Mine", "there is no module 'nowhere_at_all'"),
    "a callback": ("fit -c quickstart --trainer.callbacks+=EarlyStoping", "did you mean EarlyStopping?"),
    "a choice": ("fit -c quickstart --model.dtype flot32", "or float16; did you mean float32?"),
    "a number": ("fit -c quickstart --trainer.max_epochs ten", "got ten, expected a whole number or null"),
    "yes or no": ("fit -c quickstart --model.gradient_checkpointing maybe", "got maybe, expected true or false"),
    "a seed": ("fit -c quickstart --seed_everything -1", "--seed_everything: got -1, expected at least 0"),
    "no batches": ("fit -c quickstart --trainer.accumulate_grad_batches 0", "got 0, expected at least 1"),
    "never": ("fit -c quickstart --trainer.check_val_every_n_epoch=0", "got 0, expected at least 1"),
    "a norm": ("fit -c quickstart --trainer.gradient_clip_val -1", "got -1, expected at least 0"),
    "a share": ("fit -c quickstart --dowser.method.update_ratio ten", "got ten, expected a number"),
    "no value": ("fit -c quickstart --trainer.max_epochs --overwrite true", "--trainer.max_epochs: expected a value"),
    "a word too many": ("fit -c quickstart runs/mine", "not understood: runs/mine. Help: python -m dowser_pl fit --he"),
    "no model": ("fit --trainer.max_epochs 1", "there is no model: set --model.path"),
    "nothing": ("fit", "there is no model: set --model.path"),
    "no verb": ("--trainer.max_epochs 1", "there is no verb, expected one of: fit,"),
}


@pytest.mark.parametrize("typo", TYPOS)
def test_a_typo_on_the_command_line(typo, stays_light, capsys):
    line, meant = TYPOS[typo]
    assert main(line.split()) == 2
    out, error = capsys.readouterr()
    assert out == "" and meant in error
    assert error.startswith("error: ") and error.count("\n") <= 5
    assert not any(noise in error for noise in ("usage:", "Namespace", "<class", "Traceback"))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"model": "dytpe: float32"}, ":3: there is no key model.dytpe; did you mean model.dtype?"),
        ({"model": "dtype: flot32"}, ":3: model.dtype: got flot32, expected auto, "),
        ({"model": "lora: {rnk: 4}"}, ":3: there is no key model.lora.rnk; did you mean model.lora.r?"),
        ({"data": "WorldDaat"}, ":4: data.class_path: there is no class WorldDaat; did you mean WorldData?"),
        ({"ratio": "update_rato"}, ":8: there is no key dowser.method.init_args.update_rato; did you mean "),
        ({"other": "trainr: {max_epochs: 1}"}, ":9: there is no key trainr; did you mean trainer?"),
        ({"other": "trainer:\n  max_epochs: x"}, ":10: trainer.max_epochs: got x, expected a whole number or null"),
        (
            {"other": "trainer:\n  gradient_clip_val: -0.5"},
            ":10: trainer.gradient_clip_val: got -0.5, expected at least 0",
        ),
        ({"other": "trainer: {"}, ":10: this is no YAML: "),
        ({"other": "\tcurve: 1"}, ":9: this is no YAML: "),
    ],
)
def test_a_typo_in_a_file_is_told_with_its_line(wrong, said, tmp_path, stays_light, capsys):
    path = write(tmp_path, **wrong)
    assert main(["fit", "-c", path]) == 2
    error = capsys.readouterr().err
    assert f"{path}{said}" in error and error.count("\n") <= 5


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name.startswith("paper/") else [])
        for name in shipped()
        if not name.startswith("bench/")
    ],
)
@pytest.mark.parametrize("verb", ["fit", "plan"])
def test_shipped_files_are_let_through(name, verb):
    check_spelling(verb, resolve_configs(["-c", "quickstart", "-c", name]))


@pytest.mark.parametrize(
    "line",
    [
        "--model.optimizer.lr=1e-3 --model.optimizer.init_args.betas [0.9,0.95] --model.targets+=mlp",
        "--model.optimizer.lr 1e-3 --model.warmup_ratio .1 --trainer.max_time 00:01:00:00 --trainer.devices 2",
        "--trainer.callbacks+=tests.slow_down.SlowDown --trainer.callbacks.init_args.pause_after=3",
        "--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor=loss --trainer.logger false",
        "--trainer.strategy dowser_pl.strategies.FSDP2 --trainer.strategy.init_args.anything 1 --trainer.precision 16",
        "--dowser.method tests.methods.test_methods.Mine --dowser.method.own_option 3 --dowser.cache_dir null",
        "--dowser.method dowser_pl.ModelDowser --dowser.method.estimator paper --dowser.probe.num_prompts auto",
        '--data ConversationData --data.init_args.tasks [{"file":"a.json"}] --data.train_file a.json',
        "--data tests.cli.test_spelling.Loose --data.anything 1 --data.help ConversationData",
        "--data.help WorldData --print_config --model.lora.r 4 --curve [0.1] --curve+=0.2 --ckpt_path last",
        "--model other.yaml --seed_everything true --overwrite true --trainer.limit_train_batches 0.5",
        "--trainer.gradient_clip_val null --trainer.max_steps -1 --trainer.fast_dev_run 1 --print_config=skip_null",
        "--model.scheduler torch.optim.lr_scheduler.StepLR --trainer.val_check_interval 0.5",
    ],
)
def test_what_is_right_is_let_through(line):
    check_spelling("fit", line.split())


class Strict(LightningDataModule):
    def __init__(self, files: int = 1):
        super().__init__()


class Loose(LightningDataModule):
    def __init__(self, **settings):
        super().__init__()
        self.settings = dict(**settings)


@pytest.mark.parametrize(("name", "closed"), [("Strict", True), ("Loose", False), ("NotWrittenDown", False)])
def test_what_a_class_of_the_users_takes_is_read_where_it_can_be(name, closed, tmp_path):
    path = write(tmp_path, data=f"tests.cli.test_spelling.{name}")
    if closed:
        with pytest.raises(DowserError, match=r"my.yaml:4: there is no key data.init_args.batch_size"):
            check_spelling("fit", ["-c", path])
    else:
        check_spelling("fit", ["-c", path])
    check_spelling("fit", ["--data", f"tests.cli.test_spelling.{name}", "--data.files", "2"])


def test_lists_of_settings_are_read_too(tmp_path):
    path = tmp_path / "tasks.yaml"
    path.write_text(
        "data:\n  class_path: ConversationData\n  init_args:\n    tasks:\n    - {file: a}\n    - {flie: b}\n"
    )
    with pytest.raises(DowserError, match=r"tasks.yaml:6: there is no key data.init_args.tasks.flie"):
        check_spelling("fit", ["-c", str(path)])


def test_what_a_verb_does_not_have():
    check_spelling("plan", ["--tokens", "100"])
    with pytest.raises(DowserError, match="there is no option --tokens"):
        check_spelling("fit", ["--tokens", "100"])
    with pytest.raises(DowserError, match="there is no option --ckpt_path"):
        check_spelling("probe", ["--ckpt_path", "last"])


@pytest.mark.parametrize("line", ["--model.path x", "--model x.yaml", "--print_config", "--data.help WorldData", "-h"])
def test_a_model_is_asked_for_where_one_is_needed(line):
    check_model(line.split())


def test_words_have_their_places(tmp_path):
    path = write(tmp_path)
    words = list(words_of(["-c", path, "--curve", "[0.1]", "--model.dtype=auto"]))
    assert [(word.name, word.value, word.where) for word in words[:2]] == [
        ("model", None, f"{path}:1: "),
        ("model.path", "embedded:world", f"{path}:2: "),
    ]
    assert [(word.name, word.value, word.where) for word in words[-2:]] == [
        ("curve", None, ""),
        ("model.dtype", "auto", ""),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "trainer: {<<: {max_epochs: 3}, max_steps: 4}",
        "some: &some {max_epochs: 3}\ntrainer:\n  <<: *some\n",
        "trainer: &again {callbacks: [*again]}",
        "trainer: {default_root_dir: 2024-13-45}",
        "trainer: {default_root_dir: !!python/name:os.path x}",
    ],
)
def test_what_yaml_can_do_is_no_typo(text, tmp_path):
    """What cannot be read is left to the parser, which says so; `some` itself is a key that there is not."""
    (tmp_path / "own.yaml").write_text(text)
    line = ["-c", "quickstart", "-c", str(tmp_path / "own.yaml")]
    if text.startswith("some"):
        with pytest.raises(DowserError, match="there is no key some"):
            check_spelling("fit", resolve_configs(line))
    else:
        check_spelling("fit", resolve_configs(line))


def test_classes_of_ones_own_may_register_strategies():
    """Known only when they are imported."""
    line = [
        "-c",
        "configs/quickstart.yaml",
        "--trainer.strategy",
        "fsdp3",
        "--dowser.method=tests.own_classes.LargestMove",
    ]
    check_spelling("fit", line)
    with pytest.raises(DowserError, match="there is no fsdp3"):
        check_spelling("fit", line[:-1])
