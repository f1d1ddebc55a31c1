"""bench.json, bench.md and the pictures."""

import json
import math
from dataclasses import replace
from statistics import mean, stdev

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from dowser_pl.bench import Bench, records, write_outputs
from dowser_pl.bench.grid import Plan
from dowser_pl.bench.processes import Ended
from dowser_pl.bench.records import Record, of_fit
from dowser_pl.bench.results import _ranks
from dowser_pl.metrics.likelihood import Perplexity
from dowser_pl.reporting import TaskScore
from dowser_pl.reporting.answers import write_answers
from tests.bench.fakes import FakeRunner, settings_of, write_report


def outputs(tmp_path, runner=None, only=(), **changes):
    bench = Bench(settings_of(tmp_path, **changes), only, tell=lambda line: None)
    bench.run(runner or FakeRunner())
    everything = Plan(bench.settings, tuple(bench.settings.methods.values()), bench.store)
    written = write_outputs(everything, {"command": ["python"], "versions": {}}, tmp_path / "copy.json")
    content = json.loads((tmp_path / "out" / "bench.json").read_text())
    return content, (tmp_path / "out" / "bench.md").read_text(), written


def test_the_numbers_and_the_table(tmp_path):
    content, text, written = outputs(tmp_path)
    assert (tmp_path / "copy.json").read_text() == (tmp_path / "out" / "bench.json").read_text()
    assert all(path.is_file() for path in written)
    assert content["command"] == ["python"] and content["cells"]["finished"] == content["cells"]["all"] == 32
    assert content["cells"]["seconds"] == 32 * 5.0
    assert content["methods"] == content["groups"]["shipped-digits-all"]["methods"]
    full = content["methods"]["Full"]
    assert set(full) == set(
        "chosen at_edge after tuning seeds failures downstream upstream h_score arithmetic_mean seconds drops drift "
        "trainable_share step_seconds peak_memory_bytes file_bytes steps against_first".split()
    )
    assert full["chosen"] == {"lr": 2e-4} and full["at_edge"] == {} and full["seeds"] == [1, 2]
    assert [point["setting"]["lr"] for point in full["tuning"]] == [1e-4, 2e-4, 4e-4, 8e-4]
    per_seed = [0.8, 0.81]
    assert full["downstream"]["per_seed"] == per_seed
    assert full["downstream"]["mean"] == pytest.approx(mean(per_seed))
    assert full["downstream"]["std"] == pytest.approx(stdev(per_seed))
    assert full["drops"]["colour"]["mean"] == pytest.approx(0.05)
    assert full["seconds"]["mean"] == 4.0 and full["peak_memory_bytes"] == 1000 and full["trainable_share"] == 0.1
    assert "| Full | lr 0.0002 | 0.805 ± .007 | 0.900 ± .000 |" in text
    assert "| base model |  | 0.000 | 0.950 | 0.000 |  |  | 0.475 |" in text
    level = content["groups"]["shipped-digits-all"]["matched"]
    assert set(level["upstream"]) == set(content["methods"]) and 0 < level["downstream"] < 0.81
    assert f"Upstream where downstream is {level['downstream']:.2f}, on the validation split" in text
    order = [text.index(f"\n| {name} |") for name in content["methods"]]
    assert order == sorted(order)
    h_scores = [method["h_score"]["mean"] for method in content["methods"].values()]
    assert h_scores == sorted(h_scores, reverse=True)


@pytest.mark.slow
def test_methods_take_turns_where_their_steps_are_timed(tmp_path):
    class Timed(FakeRunner):
        """Steps of Full take a second, of others two; the second round is thrice as slow."""

        def fit(self, options, folder):
            super().fit(options, folder)
            if folder.name.endswith("-cost"):
                assert options["--data.num_train"] == "64"
                file = folder / "run" / "report.json"
                report = json.loads(file.read_text())
                seconds = 7 * (1.0 if "-Full-" in folder.name else 2.0) * (3 if "seed_2" in folder.name else 1)
                report["seconds"]["fit"] = seconds
                file.write_text(json.dumps(report))

    runner = Timed()
    content, text, _ = outputs(tmp_path, runner, seeds=[1, 2, 3], cost={"data.num_train": 64})
    timed = [name.removeprefix("shipped-digits-all-") for name in runner.ran if name.endswith("-cost")]
    assert runner.ran[-len(timed) :] == [f"shipped-digits-all-{name}" for name in timed]  # when all is chosen
    assert [(name.split("-")[0], name.split("-")[-2]) for name in timed] == [
        (method, f"seed_{seed}") for seed in (1, 2, 3) for method in ("ModelDowser", "Full", "ModelTailor")
    ]
    found = {name: method["step_seconds"] for name, method in content["methods"].items()}
    assert found == {"Full": 1.0, "ModelDowser": 2.0, "ModelTailor": 2.0, "Dare": 1.0}  # the median of the rounds
    lines = {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if " s, " in line}
    assert "| 1 s, 1.00 |" in lines["Full"] and "| 2 s, 2.00 |" in lines["ModelTailor"]
    assert content["methods"]["Full"]["seconds"]["mean"] == 4.0  # of whole runs, as ever
    (other := tmp_path / "other").mkdir()
    _, without, _ = outputs(other)
    assert "a step |" in text and "a step |" not in without


def test_drift_stands_beside_the_scores_and_how_well_it_foretells_them(tmp_path):
    """The runs of `FakeRunner` drift the more, the more upstream they lose; what is merged has no drift."""
    content, text, _ = outputs(tmp_path)
    assert content["methods"]["Full"]["drift"]["mean"] == pytest.approx(0.02)
    assert content["methods"]["Dare"]["drift"] is None
    foretold = content["groups"]["shipped-digits-all"]["drift_foretells"]
    assert foretold == {"rank_correlation": pytest.approx(1.0), "runs": 22}
    assert "over 22 runs the rank correlation (Spearman) of KL to the base" in text and "lost is 1.00 (1 =" in text
    row = next(line for line in text.splitlines() if line.startswith("| Full | lr 0.0002 |"))
    assert row.split(" | ")[8] == "0.02"


class Answering(FakeRunner):
    """A runner whose runs keep their answers, those of merged models beside the scores of `validate`.

    Args:
        without: part of the folder name of a cell whose answers lead to other scores, as those of another run.
    """

    def __init__(self, without="nothing"):
        super().__init__()
        self.without = without

    def fit(self, options, folder):
        super().fit(options, folder)
        tasks = json.loads((folder / "run" / "report.json").read_text())["tasks"]
        self.answer(folder / "run", folder.name, {name: task["after"] for name, task in tasks.items()})

    def validate(self, options, folder):
        super().validate(options, folder)
        scores = {"digits": 0.5, "colour": 0.9, "sum": 0.7}
        self.answer(folder / "run" / "scores" / "version_0", folder.name, scores)

    def answer(self, folder, name, scores):
        off = 0.1 if self.without in name else 0.0
        rows = [
            {"task": task, "before": None, "after_score": score + sign * 0.02 + off}
            for task, score in scores.items()
            for sign in (1, -1, 1, -1)
        ]
        write_answers(rows, folder)


def test_every_method_is_compared_with_the_first_on_the_same_questions(tmp_path):
    content, text, _ = outputs(tmp_path, Answering())
    methods = content["methods"]
    first, *others = methods
    assert methods[first]["against_first"]["p"] is None and methods[first]["against_first"]["value"] == 0
    for name in others:
        told = methods[name]["against_first"]
        expected = methods[name]["h_score"]["mean"] - methods[first]["h_score"]["mean"]
        assert told["value"] == pytest.approx(expected, abs=1e-9) and 0 < told["p"] <= 1, name
    dare = methods["Dare"]["against_first"]
    assert dare["p"] == pytest.approx(3 * 2 / 4001) or dare["p"] == pytest.approx(2 * 2 / 4001)
    low, high = methods["Full"]["against_first"]["interval"]
    assert low < methods["Full"]["h_score"]["mean"] < high
    row = next(line for line in text.splitlines() if line.startswith("| Dare |"))
    assert row.split(" | ")[6] == f"{-dare['value']:.3f}, p {dare['p']:.2g}"


@pytest.mark.slow
def test_what_kept_no_answers_is_not_tested_and_nothing_is_where_that_is_the_first(tmp_path):
    content, text, _ = outputs(tmp_path, Answering(without="-Full-"))
    assert content["methods"]["Full"]["against_first"] is None
    row = next(line for line in text.splitlines() if line.startswith("| Full | lr 0.0002 |"))
    assert row.split(" | ")[5:7] == ["-", "-"]
    first = next(iter(content["methods"]))
    (tmp_path / "other").mkdir()
    content, _, _ = outputs(tmp_path / "other", Answering(without=f"-{first}-"))
    assert all(each["against_first"] is None for each in content["methods"].values())


def test_equal_values_share_their_rank():
    assert _ranks([0.3, 0.1, 0.3, 0.2, 0.3]) == [4.0, 1.0, 4.0, 2.0, 4.0]


def test_places_that_were_not_begun_are_left_out(tmp_path):
    bench = Bench(settings_of(tmp_path, tasks={"digits": {}, "icon": {}}), (), ["*-icon-*"], lambda line: None)
    bench.run(FakeRunner())
    everything = Plan(bench.settings, tuple(bench.settings.methods.values()), bench.store)
    write_outputs(everything, {})
    content = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert list(content["groups"]) == ["shipped-icon-all"] and content["cells"]["finished"] == 32
    text = (tmp_path / "out" / "bench.md").read_text()
    assert "## shipped, icon" in text and "shipped, digits" not in text
    assert not list((tmp_path / "out").glob("*digits*.png"))


def test_a_best_setting_at_the_edge_is_marked(tmp_path):
    content, text, _ = outputs(tmp_path, methods__Full__grid=[2e-4, 4e-4, 8e-4, 1.6e-3])
    assert content["methods"]["Full"]["at_edge"] == {"lr": "lowest"}
    assert "| Full | lr 0.0002\u2020 |" in text and "\u2020 at the edge of what was tried" in text
    assert content["methods"]["ModelTailor"]["at_edge"] == {"update_ratio": "highest"}


def test_nothing_is_marked_where_no_best_is_at_an_edge(tmp_path):
    _, text, _ = outputs(tmp_path, only=["Full"])
    assert "\u2020" not in text


def test_seeds_that_changed_nothing_are_told(tmp_path):
    """Three times one run has no spread; whoever lists what draws may have forgotten the order of the rows."""
    assert "every seed" not in outputs(tmp_path, only=["Full"], seeds=[1, 2])[1]
    (tmp_path / "same").mkdir()
    _, text, _ = outputs(tmp_path / "same", only=["Full"], seeds=[1, 3])
    assert "The same scores with every seed, of every task: Full. Does `seeded` name what draws there?" in text


def test_failures_and_what_is_not_finished_are_shown(tmp_path):
    runner = FakeRunner(fails=["Full-lr_0.0002-seed_1-test", "ModelTailor"])
    content, text, _ = outputs(tmp_path, runner, only=["Full", "ModelTailor"])
    assert content["cells"]["failed"] == 9
    assert list(content["methods"]["Full"]["failures"]) == ["Full lr 0.0002 seed 1 test"]
    assert "| Full | lr 0.0002 (1 of 2 seeds) | 0.810 |" in text
    assert "- Full lr 0.0002 seed 1 test: ValueError: the last line" in text
    assert "| ModelTailor | failed |" in text
    assert content["methods"]["ModelTailor"]["h_score"] is None
    assert "Not begun: ModelDowser, Dare." in text and "| ModelDowser |" not in text


def test_where_no_model_came_out_what_merges_models_has_failed_too(tmp_path):
    content, text, _ = outputs(tmp_path, FakeRunner(fails=["-Full-"]), only=["Full", "Dare"])
    assert content["methods"]["Dare"]["failures"] == {"Dare": "no setting of Full finished, whose models it merges"}
    assert "| Dare | failed |" in text


@pytest.mark.slow
def test_pictures(tmp_path):
    _, text, written = outputs(tmp_path, only=["Full"], depths=[None, 2], tasks={"digits": {}, "icon": {}})
    names = [path.name for path in written if path.suffix == ".png"]
    groups = ("", "-shipped-digits-last2", "-shipped-icon-all", "-shipped-icon-last2")
    assert names == [f"{kind}{group}.png" for group in groups for kind in ("trade_off", "tried")] + ["depth.png"]
    for name in names:
        assert f"![{name}]({name})" in text
        with Image.open(tmp_path / "out" / name) as picture:
            colours = picture.convert("RGB").getcolors(1 << 24)
            assert picture.width > 2000 and len(colours) > 50  # something is drawn


def test_adapters_are_a_share_of_the_matrices_they_stand_beside(tmp_path):
    write_report(tmp_path, 0.5, 0.9)  # 10 trainable and 90 frozen entries
    (tmp_path / "adapter").mkdir()
    pair = {"x.lora_A.weight": torch.zeros(2, 40), "x.lora_B.weight": torch.zeros(10, 2)}
    save_file(pair, tmp_path / "adapter" / "adapter_model.safetensors")
    assert of_fit(tmp_path, Ended(0, [1.0], 1.0, None)).trainable_share == 10 / 400


def test_one_depth_has_no_picture_of_depths(tmp_path):
    assert not any(path.name == "depth.png" for path in outputs(tmp_path, only=["Full"])[2])


def test_a_perplexity_is_on_the_scale_of_the_other_scores_of_a_cell():
    """Never above 1, whatever the number: here it doubled upstream and was halved downstream."""
    tasks = {
        "prose": TaskScore("upstream", "perplexity", 30.0, 60.0),
        "colour": TaskScore("upstream", "exact_match", 1.0, 0.9),
        "verse": TaskScore("downstream", "perplexity", 30.0, 15.0),
    }
    record = Record(tasks, {}, None, 1.0, None, None)
    assert record.mean("upstream") == pytest.approx((0.5 + 0.9) / 2) and record.mean("downstream") == 0.5
    assert record.mean("upstream", "before") == 1.0 and record.upstream_lost == pytest.approx(0.3)
    assert record.h_score == pytest.approx(2 * 0.7 * 0.5 / 1.2)


def test_what_texts_gained_is_known_where_the_answers_lead_to_the_perplexity():
    metric = Perplexity()
    said = {"before": [4.0, 9.0], "after": [5.5, 8.25]}
    rows = [{moment: metric.prediction([""], [nats[k]], [3 + k]) for moment, nats in said.items()} for k in (0, 1)]
    perplexities = [math.exp(sum(nats) / 7) for nats in said.values()]
    task = TaskScore("upstream", "perplexity", *(round(each, 6) for each in perplexities))
    found = records._scores(rows, task)
    assert found is not None and found.values == pytest.approx([-1.5, 0.75]) and found.tokens == [3, 4]
    other = replace(task, after=task.after * 1.001)
    assert records._scores(rows, other) is None and records._scores([rows[0], rows[1] | {"before": ""}], task) is None
    assert records._scores([], task) is None
