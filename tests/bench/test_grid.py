"""Which cells there are, in which order, and what they are told to do."""

from dataclasses import replace

import pytest

from dowser_pl.bench.cells import Cell, Group
from dowser_pl.bench.command_lines import commands, digest, folder_digest, required
from dowser_pl.bench.grid import Plan, groups
from dowser_pl.bench.records import Failure, Record
from dowser_pl.errors import DowserError
from dowser_pl.reporting import TaskScore
from tests.bench.fakes import settings_of

GROUP = Group("shipped", "digits", None)


class Known:
    """H-scores by name of a method and setting; None = failed."""

    def __init__(self, scores):
        self.scores = scores

    def record(self, cell: Cell):
        score = self.scores.get((cell.method, *dict(cell.setting).values()), "open")
        if score in (None, "open") or cell.split == "test":
            return None
        tasks = {role: TaskScore(role, "exact_match", 0.0, score) for role in ("upstream", "downstream")}
        return Record(tasks, {"wall": 1.0}, None, 1.0, None, None)

    def failure(self, cell: Cell):
        failed = self.scores.get((cell.method, *dict(cell.setting).values()), "open") is None
        return Failure("it did not work") if failed else None


def plan_of(tmp_path, scores, only=(), **changes) -> Plan:
    settings = settings_of(tmp_path, **changes)
    return Plan(settings, settings.with_bases(only), Known(scores))


FULL = {("Full", 1e-4): 0.1, ("Full", 2e-4): 0.5, ("Full", 4e-4): 0.3, ("Full", 8e-4): 0.2}


def test_first_the_learning_rates_on_validation_data(tmp_path):
    plan = plan_of(tmp_path, {})
    cells = plan.cells()
    assert [(cell.method, cell.rate) for cell in cells[:5]] == [
        ("ModelDowser", 1e-3), ("ModelDowser", 2e-3), ("ModelDowser", 4e-3), ("ModelDowser", 8e-3), ("Full", 1e-4),
    ]  # fmt: skip
    assert {(cell.split, cell.seed) for cell in cells} == {("validation", 0)}
    assert plan.unknown() == {"ModelDowser": 2, "Full": 2, "Dare": 10, "ModelTailor": 10}


def test_what_is_timed_waits_for_all_choices_and_is_counted(tmp_path):
    plan = plan_of(tmp_path, {}, cost={})
    assert not any(cell.split == "cost" for cell in plan.cells())
    assert plan.unknown() == {"ModelDowser": 4, "Full": 4, "Dare": 10, "ModelTailor": 12}


def test_a_timed_run_is_as_short_for_all_and_its_model_is_not_kept(tmp_path):
    plan = plan_of(tmp_path, FULL, cost={"trainer.max_epochs": 1}, methods__Full__options={"trainer.max_epochs": 9})
    timed = Cell(GROUP, "Full", (("lr", 2e-4),), 1, "cost")
    (line,) = commands(plan.settings, timed, "run", None)
    assert line[len(line) - line[::-1].index("--trainer.max_epochs")] == "1"
    assert not plan.needed(timed) and plan.needed(replace(timed, split="validation", seed=0))


def test_places_are_chosen_by_patterns_of_their_names(tmp_path):
    settings = settings_of(tmp_path, worlds={"shipped": "a", "outlier": "b"}, tasks={"digits": {}, "icon": {}})
    known = Plan(settings, settings.with_bases(["Full"]), Known({}), ["outlier-digits-all"])
    assert {cell.group for cell in known.cells()} == {Group("outlier", "digits", None)} and len(known.cells()) == 4
    assert known.unknown() == {"Full": 2}
    both = [Group("shipped", "icon", None), Group("outlier", "icon", None)]
    assert groups(settings, ["*-icon-*"]) == both == groups(settings, ["outlier-icon-all", "shipped-icon-all"])
    with pytest.raises(DowserError, match="got --in icon, expected one of: shipped-digits-all, .*, or a pattern such"):
        groups(settings, ["icon"])


def test_then_the_best_on_test_data_over_seeds(tmp_path):
    plan = plan_of(tmp_path, FULL, only=["Full"])
    full = plan.settings.methods["Full"]
    assert plan.choice(GROUP, full).setting == (("lr", 2e-4),)
    assert plan.choice(GROUP, full).edges == {}
    assert [(cell.rate, cell.seed, cell.split) for cell in plan.cells()[4:]] == [(2e-4, 1, "test"), (2e-4, 2, "test")]
    assert not plan.unknown().total()


def test_a_best_at_the_edge_is_marked_and_a_failed_one_is_not_chosen(tmp_path):
    plan = plan_of(tmp_path, FULL | {("Full", 1e-4): 0.9})
    assert plan.choice(GROUP, plan.settings.methods["Full"]).edges == {"lr": "lowest"}
    plan = plan_of(tmp_path, FULL | {("Full", 8e-4): 0.9})
    assert plan.choice(GROUP, plan.settings.methods["Full"]).edges == {"lr": "highest"}
    plan = plan_of(tmp_path, FULL | {("Full", 2e-4): None})
    choice = plan.choice(GROUP, plan.settings.methods["Full"])
    assert choice.setting == (("lr", 4e-4),) and choice.failed == 1


def full_rates(plan):
    return [cell.rate for cell in plan.tuning(GROUP, plan.settings.methods["Full"])]


def test_a_grid_is_widened_a_step_at_a_time_until_its_best_is_inside(tmp_path):
    scores = FULL | {("Full", 8e-4): 0.9}
    plan = plan_of(tmp_path, scores, only=["Dare"], widen=2)
    assert full_rates(plan) == [1e-4, 2e-4, 4e-4, 8e-4, 1.6e-3]
    assert plan.choice(GROUP, plan.settings.methods["Full"]) is None
    assert {cell.method for cell in plan.cells()} == {"Full"}, "nothing is tested or merged before the choice"
    inside = plan_of(tmp_path, scores | {("Full", 1.6e-3): 0.8}, only=["Dare"], widen=2)
    assert full_rates(inside) == [1e-4, 2e-4, 4e-4, 8e-4, 1.6e-3]
    choice = inside.choice(GROUP, inside.settings.methods["Full"])
    assert choice.setting == (("lr", 8e-4),) and choice.edges == {}
    assert {cell.rate for cell in inside.cells() if cell.method == "Dare"} == {8e-4, 1.6e-3}
    higher = scores | {("Full", 1.6e-3): 1.0, ("Full", 3.2e-3): 1.1}
    beyond = plan_of(tmp_path, higher, widen=2)
    assert full_rates(beyond)[-1] == 3.2e-3
    choice = beyond.choice(GROUP, beyond.settings.methods["Full"])
    assert choice.setting == (("lr", 3.2e-3),) and choice.edges == {"lr": "highest"}, "no more than twice"
    failed = plan_of(tmp_path, scores | {("Full", 1.6e-3): None}, widen=2)
    assert failed.choice(GROUP, failed.settings.methods["Full"]).failed == 1


def test_a_grid_is_widened_downwards_and_ratios_stay_below_one(tmp_path):
    lowest = plan_of(tmp_path, FULL | {("Full", 1e-4): 0.9}, widen=1)
    assert full_rates(lowest)[-1] == 5e-5
    ratios = {("Dare", rate, ratio): 0.1 for rate in (2e-4, 4e-4) for ratio in (0.1, 0.2, 0.4, 0.8)}
    plan = plan_of(tmp_path, FULL | ratios | {("Dare", 4e-4, 0.8): 0.9}, only=["Dare"], widen=1)
    tried = [dict(cell.setting) for cell in plan.tuning(GROUP, plan.settings.methods["Dare"])]
    assert tried[8:] == [{"lr": 8e-4, "update_ratio": 0.8}, {"lr": 4e-4, "update_ratio": 0.9}]
    low = plan_of(tmp_path, FULL | ratios | {("Dare", 2e-4, 0.1): 0.9}, only=["Dare"], widen=1)
    tried = [dict(cell.setting) for cell in low.tuning(GROUP, low.settings.methods["Dare"])]
    assert tried[8:] == [{"lr": 2e-4, "update_ratio": 0.05}]


def test_all_entries_are_no_edge(tmp_path):
    """A ratio of 1 may be best, as where nothing is gained by taking moves back; beyond it lies nothing."""
    grid = {"update_ratio": [0.4, 0.8, 0.9, 1.0]}
    ratios = {("Dare", rate, ratio): ratio / 10 for rate in (2e-4, 4e-4) for ratio in grid["update_ratio"]}
    plan = plan_of(tmp_path, FULL | ratios, only=["Dare"], widen=2, methods__Dare__grid=grid)
    dare = plan.settings.methods["Dare"]
    assert dict(plan.choice(GROUP, dare).setting) == {"lr": 2e-4, "update_ratio": 1.0}
    assert plan.choice(GROUP, dare).edges == {} and len(plan.tuning(GROUP, dare)) == 8


def test_after_another_only_the_higher_learning_rate_is_an_edge(tmp_path):
    """Lower ones were tried by that method itself."""
    for rate, edges in ((2e-4, {}), (4e-4, {"lr": "highest"})):
        scores = {("Dare", each, ratio): 0.1 for each in (2e-4, 4e-4) for ratio in (0.1, 0.2, 0.4, 0.8)}
        plan = plan_of(tmp_path, FULL | scores | {("Dare", rate, 0.2): 0.9}, only=["Dare"])
        assert plan.choice(GROUP, plan.settings.methods["Dare"]).edges == edges


def test_a_tie_goes_to_the_lower_learning_rate(tmp_path):
    plan = plan_of(tmp_path, FULL | {("Full", 4e-4): 0.5})
    assert plan.choice(GROUP, plan.settings.methods["Full"]).setting == (("lr", 2e-4),)


def test_after_another_its_best_learning_rate_and_the_next(tmp_path):
    plan = plan_of(tmp_path, FULL, only=["Dare"])
    dare = [cell for cell in plan.cells() if cell.method == "Dare"]
    assert [tuple(dict(cell.setting).values()) for cell in dare] == [
        (rate, ratio) for rate in (2e-4, 4e-4) for ratio in (0.1, 0.2, 0.4, 0.8)
    ]
    assert required(plan.settings, dare[0]) == Cell(GROUP, "Full", (("lr", 2e-4),), 0, "validation")


def test_above_the_grid_the_tuned_model_is_trained_as_well(tmp_path):
    plan = plan_of(tmp_path, FULL | {("Full", 8e-4): 0.9}, only=["Dare"])
    cells = plan.cells()
    extra = Cell(GROUP, "Full", (("lr", 1.6e-3),), 0, "validation")
    first = next(place for place, cell in enumerate(cells) if cell.method == "Dare" and cell.rate == 1.6e-3)
    assert cells[first - 1] == extra
    assert plan.choice(GROUP, plan.settings.methods["Full"]).setting == (("lr", 8e-4),)


def test_where_all_settings_failed_nothing_follows(tmp_path):
    plan = plan_of(tmp_path, dict.fromkeys(FULL), only=["Dare"])
    assert plan.choice(GROUP, plan.settings.methods["Full"]) is None
    assert [cell.method for cell in plan.cells()] == ["Full"] * 4
    assert not plan.unknown().total()


def test_groups_are_all_combinations(tmp_path):
    plan = plan_of(tmp_path, {}, depths=[None, 2], tasks={"digits": {}, "icon": {}})
    assert {cell.group.slug for cell in plan.cells()} == {
        "shipped-digits-all", "shipped-digits-last2", "shipped-icon-all", "shipped-icon-last2",
    }  # fmt: skip
    assert len({cell.slug for cell in plan.cells()}) == len(plan.cells()) == 32


def test_the_commands_of_a_cell_that_trains(tmp_path):
    settings = settings_of(tmp_path, methods__ModelDowser__options={"dowser.probe.num_prompts": 8})
    cell = Cell(GROUP, "ModelDowser", (("lr", 2e-3),), 5, "test")
    ((verb, *rest),) = commands(settings, cell, "there", None)
    assert verb == "fit"
    configs = [value.rpartition("configs/")[2] for option, value in zip(rest[::2], rest[1::2], strict=True)][:2]
    assert configs == ["model/world.yaml", "method/model_dowser.yaml"]
    options = dict(zip(rest[4::2], rest[5::2], strict=True))
    assert options == {
        "--trainer.max_epochs": "1",
        "--model.path": "embedded:world",
        "--model.last_n_layers": "null",
        "--data.split": "test",
        "--data.downstream": "digits",
        "--seed_everything": "5",
        "--data.seed": "5",
        "--dowser.probe.num_prompts": "8",
        "--model.optimizer.lr": "0.002",
        "--export.enabled": "true",
        "--trainer.default_root_dir": "there",
    }


def test_the_commands_of_a_cell_that_merges(tmp_path):
    settings = settings_of(tmp_path, methods__Dare__options={"rescale": False})
    cell = Cell(GROUP, "Dare", (("lr", 2e-4), ("update_ratio", 0.4)), 5, "test")
    merge, patch, validate = commands(settings, cell, "there", "tuned/model")
    shared = "merge --base embedded:world --tuned tuned/model --method Dare --cast --method.rescale false"
    shared += " --method.update_ratio 0.4 --method.seed 5 --out there"
    assert " ".join(merge) == f"{shared}/model --json there/merge.json"
    assert " ".join(patch) == f"{shared}/patch.safetensors"
    assert validate[0] == "validate" and "there/model" in validate and "--model.optimizer.lr" not in validate


def test_a_world_that_is_a_folder_counts_by_its_content(tmp_path):
    world = tmp_path / "world"
    world.mkdir()
    cell = Cell(GROUP, "Full", (("lr", 2e-4),), 5, "test")

    def now():
        folder_digest.cache_clear()  # a bench reads it once
        return digest(settings_of(tmp_path, worlds={"shipped": str(world)}), cell)

    (world / "model.safetensors").write_bytes(b"weights")
    first = now()
    assert now() == first
    (world / "model.safetensors").write_bytes(b"Weights")
    second = now()
    (world / "model.safetensors").rename(world / "other.safetensors")
    assert len({first, second, now()}) == 3


def test_the_digest_is_that_of_what_decides_the_result(tmp_path):
    cell = Cell(GROUP, "Full", (("lr", 2e-4),), 5, "test")
    dare = Cell(GROUP, "Dare", (("lr", 2e-4), ("update_ratio", 0.4)), 5, "test")
    own = tmp_path / "own.yaml"
    own.write_text("trainer: {max_epochs: 3} # a comment")
    config = [str(own)]

    def both(**changes):
        settings = settings_of(tmp_path, fit=config, **changes)
        return digest(settings, cell), digest(settings, dare)

    first = both()
    assert both(folder=str(tmp_path / "elsewhere"), seeds=[7], keep=True) == first
    own.write_text("trainer:\n  max_epochs: 3")
    assert both() == first
    changed = both(methods__Full__options={"model.warmup_ratio": 0.1})  # of the model that is merged
    assert changed[0] != first[0] and changed[1] != first[1]
    own.write_text("trainer: {max_epochs: 4}")
    changed = both()
    assert changed[0] != first[0] and changed[1] != first[1]
