"""Numbers of the command line and of configurations."""

import pytest

from dowser_pl.cli.arguments import check_numbers, joined_numbers


@pytest.mark.parametrize("number", ["-1e-3", "-2.5E+4", "-.5e-1", "-1.e3", "-3", "-0.25", "-inf", "-.inf", "-nan"])
def test_a_negative_number_is_the_value_of_the_option_before_it(number):
    assert joined_numbers(["fit", "--model.optimizer.lr", number, "--x"]) == [
        "fit",
        f"--model.optimizer.lr={number}",
        "--x",
    ]


@pytest.mark.parametrize(
    "args",
    [
        ["fit", "-c", "base", "--a", "1e-3"],
        ["--a=2", "-1e-3"],
        ["merge", "-1e-3"],
        ["--a", "-b"],
        ["--a", "-e3"],
        ["--a", "-1e-3x"],
        ["-1e-3"],
        [],
    ],
)
def test_other_arguments_stay(args):
    assert joined_numbers(args) == args


def test_joining_twice_is_joining_once():
    once = joined_numbers(["--a", "-1e-3", "--b", "-2"])
    assert joined_numbers(once) == once == ["--a=-1e-3", "--b=-2"]


def inside(value):
    return {"optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": value, "betas": [0.9, 0.99]}}}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), -1e-3, 0, 0.0])
def test_a_learning_rate_that_teaches_nothing(value):
    with pytest.raises(ValueError, match=r"--model\.optimizer\.lr is .*, expected a .* Fix: "):
        check_numbers({"model": inside(value)})


@pytest.mark.parametrize(
    ("settings", "option"),
    [
        ({"dowser": {"method": {"init_args": {"update_ratio": float("nan")}}}}, "--dowser.method.update_ratio"),
        ({"curve": [0.1, float("nan")]}, "--curve"),
        ({"trainer": {"gradient_clip_val": float("inf")}}, "--trainer.gradient_clip_val"),
        ({"trainer": {"callbacks": [{"init_args": {"x": float("nan")}}]}}, "--trainer.callbacks.x"),
        ({"model": {"optimizer": {"init_args": {"betas": (0.9, float("nan"))}}}}, "--model.optimizer.betas"),
    ],
)
def test_numbers_that_are_none(settings, option):
    with pytest.raises(ValueError, match=f"{option} is .*expected a finite number"):
        check_numbers(settings)


def test_what_is_a_number_may_stay():
    check_numbers({"model": inside(1e-5), "seed_everything": 0, "trainer": {"max_steps": -1, "logger": False}})
    check_numbers({"trainer": {"callbacks": [{"class_path": "Mine", "init_args": {"threshold": float("inf")}}]}})


def test_what_a_class_of_the_users_own_takes_is_its_own_affair():
    own = {"class_path": "my_data.Mine", "init_args": {"limit": float("inf"), "lr": -1}}
    check_numbers({"data": own, "dowser": {"method": own}})
    with pytest.raises(ValueError, match="--data.limit is inf"):
        check_numbers({"data": own | {"class_path": "dowser_pl.data.ConversationData"}})
    with pytest.raises(ValueError, match=r"--model.optimizer.limit is inf"):
        check_numbers({"model": {"optimizer": own}})
