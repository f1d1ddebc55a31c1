"""The loop: resuming, failures, what is deleted, what is run again."""

import json

import pytest

from dowser_pl.bench import Bench
from dowser_pl.bench.processes import Ended
from tests.bench.fakes import FakeRunner, settings_of


def run(tmp_path, runner=None, only=(), retry=False, **changes):
    """The names of the cells that ran, and the bench."""
    runner, lines = runner or FakeRunner(), []
    bench = Bench(settings_of(tmp_path, **changes), only, tell=lines.append)
    bench.run(runner, retry)
    return runner.ran, bench, lines


def test_everything_runs_once_and_a_finished_bench_runs_nothing(tmp_path):
    ran, bench, lines = run(tmp_path)
    # 8 learning rates; twice 8 settings after Full; 4 methods on 2 seeds
    assert len(ran) == len(set(ran)) == 8 + 16 + 8
    assert lines[0].startswith("[ 1/32] ModelDowser lr 0.001 seed 0 validation: D .75 U .85 H .80 (5 s")
    assert "left" in lines[0] and "left" not in lines[-1]
    assert all(line.startswith("finished") for line in bench.listing())
    again, _, _ = run(tmp_path)
    assert again == []


@pytest.mark.parametrize("stop_at", [1, 5, 13, 30])
def test_an_interruption_loses_one_cell(tmp_path, stop_at):
    runner = FakeRunner(stop_at=stop_at)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, runner)
    assert len(runner.ran) == stop_at
    resumed, _, _ = run(tmp_path)
    assert resumed[0] == runner.ran[-1]
    assert not set(resumed) & set(runner.ran[:-1])
    assert len(resumed) == 32 - stop_at + 1


def test_a_failure_is_written_down_and_retried_when_asked_to(tmp_path):
    ran, bench, lines = run(tmp_path, FakeRunner(fails=["Full-lr_0.0002-seed_1-test"]))
    failed = json.loads((bench.store.path(cell_of(bench, "Full", seed=1)) / "failed.json").read_text())
    assert failed["reason"].endswith("ValueError: the last line")
    assert any("Full lr 0.0002 seed 1 test: FAILED" in line for line in lines)
    dare = bench.store.failure(cell_of(bench, "Dare", seed=1))  # it has nothing to merge
    assert dare.reason == "it merges the model of Full lr 0.0002 seed 1 test, which failed"
    assert not any("Dare" in name and "seed_1-test" in name for name in ran)
    assert run(tmp_path)[0] == []
    assert [name.split("-")[3] for name in run(tmp_path, retry=True)[0]] == ["Full", "Dare"]


def test_a_failure_names_the_signal_that_its_log_cannot(tmp_path):
    class Killed(FakeRunner):
        def __call__(self, lines, folder):
            super().__call__(lines, folder)
            return Ended(-9, [], 1.0, None)

    _, bench, _ = run(tmp_path, Killed(), only=["ModelDowser"])
    reason = bench.store.failure(bench.plan.cells()[0]).reason
    assert reason.endswith(
        "ValueError: the last line\nthe process was killed by signal 9, as the system does when memory runs out"
    )


def test_a_run_that_leaves_no_report_failed(tmp_path):
    class Silent(FakeRunner):
        def fit(self, options, folder):
            pass

    _, bench, _ = run(tmp_path, Silent(), only=["Full"])
    assert all("report.json" in bench.store.failure(cell).reason for cell in bench.plan.cells())


def test_what_has_other_options_is_run_again_and_nothing_else(tmp_path):
    run(tmp_path)
    ran, _, _ = run(tmp_path, methods__ModelDowser__options={"model.warmup_ratio": 0.1})
    assert len(ran) == 6 and all("ModelDowser" in name for name in ran)
    ran, _, _ = run(tmp_path, methods__Full__options={"model.warmup_ratio": 0.1})
    assert {name.split("-")[3] for name in ran} == {"ModelDowser", "Full", "Dare"}  # the first changed back
    ran, _, _ = run(tmp_path, methods__Full__options={"model.warmup_ratio": 0.1}, seeds=[1, 2, 3])
    assert all(name.endswith("seed_3-test") for name in ran) and len(ran) == 4


def test_only_some_methods(tmp_path):
    ran, _, _ = run(tmp_path, only=["Dare"])
    assert {name.split("-")[3] for name in ran} == {"Full", "Dare"}


def test_big_files_go_when_no_later_cell_needs_them(tmp_path):
    _, bench, _ = run(tmp_path)
    assert not list((tmp_path / "out").glob("cells/*/run/model"))
    assert not list((tmp_path / "out").glob("cells/*/run/checkpoints"))
    assert len(list((tmp_path / "out").glob("cells/*/cell.json"))) == 32
    record = bench.store.record(cell_of(bench, "Full", seed=1))
    assert record.file_bytes == 30  # the patch, measured before it was deleted


def test_keep_keeps(tmp_path):
    run(tmp_path, only=["Full"], keep=True)
    assert len(list((tmp_path / "out").glob("cells/*/run/model"))) == 6


def test_a_model_that_was_deleted_is_trained_again_for_a_method_that_comes_later(tmp_path):
    run(tmp_path, only=["Full"], methods__Dare=None, methods__ModelTailor=None)
    ran, _, _ = run(tmp_path, only=["Dare"])
    full = [name for name in ran if "-Full-" in name]
    assert full == [
        "shipped-digits-all-Full-lr_0.0002-seed_0-validation", "shipped-digits-all-Full-lr_0.0004-seed_0-validation",
        *(f"shipped-digits-all-Full-lr_0.0002-seed_{seed}-test" for seed in (1, 2)),
    ]  # fmt: skip


def test_some_methods_first_and_all_later_runs_nothing_twice(tmp_path):
    first, _, _ = run(tmp_path, only=["Full"])
    second, _, _ = run(tmp_path)
    assert not set(first) & set(second) and len(first) + len(second) == 32
    assert not list((tmp_path / "out").glob("cells/*/run/model"))


def test_what_a_merge_costs_and_reaches(tmp_path):
    _, bench, _ = run(tmp_path, only=["Dare"])
    record = bench.store.record(cell_of(bench, "Dare", seed=1))
    assert record.seconds == {"probe": 1.0, "fit": 3.0, "merge": 2.0, "evaluate": 2.0, "wall": 5.0}
    assert record.training_seconds == 6.0
    assert record.trainable_share == 0.25 and record.file_bytes == 20 and record.peak_memory_bytes == 2000
    assert record.tasks["colour"].before == 1.0 and record.tasks["colour"].after == 0.9
    assert record.mean("upstream") == pytest.approx(0.8) and record.h_score == pytest.approx(2 * 0.5 * 0.8 / 1.3)


def test_two_benches_in_one_folder_are_refused(tmp_path):
    class Nosy(FakeRunner):
        def __call__(self, lines, folder):
            with pytest.raises(ValueError, match="another bench is running in"):
                run(tmp_path)
            return super().__call__(lines, folder)

    run(tmp_path, Nosy(), only=["ModelDowser"])


def test_a_damaged_record_is_named(tmp_path):
    _, bench, _ = run(tmp_path, only=["Full"])
    file = bench.store.path(cell_of(bench, "Full", seed=1)) / "cell.json"
    file.write_text("{")
    with pytest.raises(ValueError, match=r"cell.json is damaged .* delete its folder"):
        run(tmp_path, only=["Full"])


def test_a_configuration_that_is_not_there_is_told_as_that_also_where_results_are(tmp_path):
    run(tmp_path, only=["Full"])
    with pytest.raises(ValueError, match=r"^there is no configuration file 'method/ful'.*did you mean method/full"):
        run(tmp_path, only=["Full"], methods__Full__config="method/ful")


def cell_of(bench, method, seed):
    return next(cell for cell in bench.plan.cells() if (cell.method, cell.seed, cell.split) == (method, seed, "test"))
