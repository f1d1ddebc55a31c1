"""The importance pass with its cache: what is reused, what is measured, what is refused."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from dowser_pl.callbacks.dowser import importance
from dowser_pl.callbacks.dowser.importance import ImportancePass, ImportanceRunner, Precision
from dowser_pl.callbacks.dowser.rows import RowBank
from dowser_pl.importance import (
    FACTORS,
    PRODUCTS,
    Factors,
    Prompt,
    Request,
    Rows,
    load_factors,
    measure,
    probing_mode,
    read_head,
    save_factors,
)
from dowser_pl.methods import Layer, ModelDowser, split_half
from tests.tiny_models import save_tiny_llava
from tests.tiny_run import SMALL_PROBE, build_module, build_trainer

PROBE = replace(SMALL_PROBE, num_prompts=8, num_probes=1, batch_size=4, keep="needed")


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def module(model_folder):
    module = build_module(model_folder)
    module.configure_model()
    return module


@pytest.fixture
def measured(monkeypatch):
    """The numbers of the prompts that were measured, in order."""
    numbers: list[int] = []

    def spy(model, layers, prompts, settings, statistics, first, *rest):
        numbers.extend(range(first, first + len(prompts)))
        return measure(model, layers, prompts, settings, statistics, first, *rest)

    monkeypatch.setattr(importance, "measure", spy)
    return numbers


def run(module, folder, probe=PROBE, method=None, factors_file=None, layers=None):
    method = method or ModelDowser(0.1)
    layers = layers or module.tuned_layers()

    def agree(factors):
        return split_half(method, [Layer(n, layers[n].weight.detach(), **factors.layers[n]) for n in layers])

    precision = Precision("32-true")
    runner = ImportanceRunner(precision, module, layers, probe, RowBank(precision, module, Rows(), None, str))
    return ImportancePass(runner, method, agree).run(folder, factors_file)


def masks(module, factors, method):
    layers = module.tuned_layers()
    return {n: method.mask(Layer(n, layers[n].weight.detach(), **s)) for n, s in factors.layers.items()}


def assert_same(first, second, tolerance=0.0):
    assert set(first.layers) == set(second.layers) and first.num_prompts == second.num_prompts
    for name, statistics in first.layers.items():
        for statistic, value in statistics.items():
            torch.testing.assert_close(value, second.layers[name][statistic], rtol=tolerance, atol=tolerance)


def test_any_ratio_and_scope_comes_from_one_file_with_the_same_masks(module, tmp_path, measured):
    fresh = run(module, tmp_path)
    assert measured == list(range(8)) and set(fresh.seconds) == {"prompts", "probes"}
    for method in (ModelDowser(0.1), ModelDowser(0.5), ModelDowser(0.1, scope="model")):
        again = run(module, tmp_path, method=method)
        assert_same(fresh.factors, again.factors)
        assert again.seconds == {} and again.path == fresh.path
        direct = masks(module, fresh.factors, method)
        assert all(torch.equal(mask, direct[name]) for name, mask in masks(module, again.factors, method).items())
    assert measured == list(range(8))


def test_more_prompts_continue_the_file_and_fewer_are_read_from_it(module, tmp_path, measured):
    run(module, tmp_path / "grown")
    measured.clear()
    grown = run(module, tmp_path / "grown", replace(PROBE, num_prompts=18))
    assert measured == list(range(8, 18))
    fresh = run(module, tmp_path / "fresh", replace(PROBE, num_prompts=18))
    assert_same(grown.factors, fresh.factors)
    assert grown.path.read_bytes() == fresh.path.read_bytes()
    measured.clear()
    fewer = run(module, tmp_path / "grown", replace(PROBE, num_prompts=12))
    assert measured == [] and fewer.factors.num_prompts == 12
    assert_same(fewer.factors, fresh.factors.first(12))
    run(module, tmp_path / "grown", replace(PROBE, num_prompts=20))
    assert measured == [16, 17, 18, 19], "the last group, of two prompts, is measured again as a whole"


@pytest.mark.parametrize("keep", ["all", "auto"])
def test_everything_kept_serves_both_published_estimators_and_any_group(module, tmp_path, measured, keep):
    stored = run(module, tmp_path, replace(PROBE, keep=keep))
    measured.clear()
    for method in (ModelDowser(estimator="paper"), ModelDowser(), ModelDowser(group_size=2)):
        from_file = run(module, tmp_path, method=method)
        assert from_file.path == stored.path and measured == []
        direct = run(module, tmp_path / str(len(measured)), method=method)
        expected = masks(module, direct.factors, method)
        assert all(torch.equal(mask, expected[name]) for name, mask in masks(module, from_file.factors, method).items())
        measured.clear()


def test_a_large_file_holds_what_was_needed_only(module, tmp_path, monkeypatch):
    small = run(module, tmp_path / "small", replace(PROBE, keep="auto"))
    monkeypatch.setattr(importance, "_SMALL", 1000)
    large = run(module, tmp_path / "large", replace(PROBE, keep="auto"))
    assert read_head(small.path)["prompts_per_row"] == 1 and read_head(large.path)["prompts_per_row"] == 4
    assert large.path.stat().st_size < small.path.stat().st_size / 3
    assert_same(large.factors, replace(small.factors, layers=_only(small.factors.layers, large.factors.layers)))


def _only(layers, wanted):
    return {name: {s: layers[name][s] for s in statistics} for name, statistics in wanted.items()}


def test_what_the_file_does_not_hold_is_measured(module, tmp_path, measured):
    run(module, tmp_path)
    for method in (ModelDowser(estimator="paper"), ModelDowser(group_size=2), ModelDowser(estimator="weight")):
        measured.clear()
        run(module, tmp_path, method=method)
        assert measured == list(range(8))
    measured.clear()
    run(module, tmp_path, method=ModelDowser(estimator="weight"))
    assert measured == []
    for number in (9, 3, 1):
        measured.clear()
        run(module, tmp_path, replace(PROBE, num_prompts=number), ModelDowser(estimator="weight"))
        assert measured == list(range(number)), "a sum over prompts is neither continued nor cut"
    for number in (9, 3, 1):
        measured.clear()
        run(module, tmp_path, replace(PROBE, num_prompts=number), ModelDowser(estimator="weight"))
        assert measured == []
    with pytest.raises(ValueError, match="sums over 1 prompts, which serve no other number: expected 8"):
        stored = run(module, tmp_path, replace(PROBE, num_prompts=1), ModelDowser(estimator="weight")).path
        run(module, None, method=ModelDowser(estimator="weight"), factors_file=stored)


@pytest.mark.parametrize("keep", ["auto", "needed"])
def test_a_file_that_holds_enough_serves_whatever_would_be_written(module, tmp_path, measured, monkeypatch, keep):
    """A large file holds what was needed only; a smaller request would keep everything, but needs nothing more."""
    probe = replace(PROBE, num_prompts=16, keep=keep)
    monkeypatch.setattr(importance, "_SMALL", 1000)
    large = run(module, tmp_path, probe)
    monkeypatch.undo()
    measured.clear()
    spied = importance.measure
    monkeypatch.setattr(importance, "measure", lambda *_: pytest.fail("probed again"))
    last = {name: layer for name, layer in module.tuned_layers().items() if ".layers.2." in name}
    assert_same(run(module, tmp_path, replace(probe, num_prompts=8)).factors, large.factors.first(8))
    assert run(module, tmp_path, probe, layers=last).path == large.path
    assert run(module, None, probe, layers=last, factors_file=large.path).factors.num_prompts == 16
    monkeypatch.setattr(importance, "measure", spied)


def test_the_file_with_the_most_prompts_is_chosen(module, tmp_path, measured):
    run(module, tmp_path)
    run(module, tmp_path, replace(PROBE, num_prompts=24, keep="all"))
    measured.clear()
    assert run(module, tmp_path, replace(PROBE, num_prompts=20)).factors.num_prompts == 20
    assert measured == []


def test_prompts_that_are_cached_are_never_dropped(module, tmp_path, measured):
    """Asking for a number that cuts a group measures the rest of it, and keeps what is there."""
    method = ModelDowser(group_size=3)
    path = run(module, tmp_path, replace(PROBE, num_prompts=66), method).path
    before = path.read_bytes()
    measured.clear()
    ten = run(module, tmp_path, replace(PROBE, num_prompts=10), method)
    assert measured == [9] and path.read_bytes() == before
    fresh = run(module, tmp_path / "fresh", replace(PROBE, num_prompts=10), method)
    assert_same(ten.factors, fresh.factors, tolerance=1e-6)  # some CPUs round a row alone otherwise than ten at once
    measured.clear()
    auto = run(module, tmp_path, replace(PROBE, num_prompts="auto", target_overlap=0.99, max_prompts=66), method)
    assert measured == [] and auto.factors.num_prompts == 66 and path.read_bytes() == before


@pytest.mark.parametrize("group_size", [3, 5, 32, 48])
def test_auto_asks_whole_groups(module, tmp_path, group_size):
    auto = replace(PROBE, num_prompts="auto", target_overlap=0.01)
    found = run(module, tmp_path, auto, ModelDowser(group_size=group_size))
    assert found.factors.num_prompts % group_size == 0 and found.agreement is not None
    with pytest.raises(ValueError, match="got max_prompts 4 and groups of"):
        run(module, tmp_path / "new", replace(auto, max_prompts=4), ModelDowser(group_size=max(group_size, 4)))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_factors_are_float32_in_every_precision(module, model_folder, precision):
    module = build_module(model_folder)
    module.configure_model()
    trainer = build_trainer(model_folder, precision=precision)
    module = trainer.precision_plugin.convert_module(module)
    request = Request(frozenset(FACTORS) | frozenset(PRODUCTS), 1)
    probe = replace(PROBE, num_probes=2)
    computed = Precision.of(trainer, module.network)
    bank = RowBank(computed, module, Rows(), None, str)
    factors = ImportanceRunner(computed, module, module.tuned_layers(), probe, bank).grow(Factors({}, 0), 8, request)
    for name, statistics in factors.layers.items():
        assert set(statistics) == request.statistics
        for statistic, value in statistics.items():
            assert value.dtype == torch.float32 and float(value.sum()) > 0, (name, statistic)


def test_small_gradients_survive_half_precision(module):
    """Reduced in float16 under autocast, their squares would be zeros, and nothing would tell."""
    layers = module.tuned_layers()
    prompts = [Prompt(torch.tensor([1, *range(10, 20)])), Prompt(torch.tensor([1, *range(20, 30)]))]
    head = module.network.get_output_embeddings().weight
    found = []
    for enabled in (False, True):
        with torch.no_grad():
            head.mul_(1e-3)
        with probing_mode(module.network), torch.autocast("cpu", torch.float16, enabled=enabled):
            found.append(measure(module.network, layers, prompts, PROBE))
        with torch.no_grad():
            head.mul_(1e3)
    for name, statistics in found[0].layers.items():
        for statistic, value in statistics.items():
            other = found[1].layers[name][statistic]
            assert other.dtype == torch.float32 and float((other - value).norm() / value.norm()) < 0.1


def test_a_file_of_all_layers_serves_the_last_ones(module, model_folder, tmp_path, measured):
    every = run(module, tmp_path)
    measured.clear()
    last = {name: layer for name, layer in module.tuned_layers().items() if ".layers.2." in name}
    few = run(module, tmp_path, layers=last)
    assert measured == [] and set(few.factors.layers) == set(last)
    assert_same(few.factors, replace(every.factors, layers={name: every.factors.layers[name] for name in last}))


@pytest.mark.slow
def test_auto_asks_prompts_until_halves_agree_whatever_the_cache_holds(module, tmp_path, measured, capsys, caplog):
    auto = replace(PROBE, num_prompts="auto", target_overlap=0.85, max_prompts=256)
    first = run(module, tmp_path / "a", auto)
    number = first.factors.num_prompts
    assert number in (64, 128, 256) and measured == list(range(number))
    assert first.agreement.overlap >= 0.85
    assert read_head(first.path)["notes"]["agreement"] == first.agreement.as_dict()
    run(module, tmp_path / "b", replace(PROBE, num_prompts=300))
    measured.clear()
    assert_same(run(module, tmp_path / "b", auto).factors, first.factors)
    assert measured == []
    less = run(module, tmp_path / "a", replace(auto, max_prompts=40, target_overlap=0.99))
    assert less.factors.num_prompts == 40


def test_auto_needs_rows_that_can_be_split(module, tmp_path):
    with pytest.raises(ValueError, match="num_prompts auto compares two halves"):
        run(module, tmp_path, replace(PROBE, num_prompts="auto"), ModelDowser(estimator="token"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, r"another model or of other settings \(probe.seed: got 0, expected 1\)"),
        ({"num_prompts": 12}, "holds 8 prompts in rows of 4, expected 12; set --dowser.probe.num_prompts 8"),
        ({"positions": "all"}, r"probe.positions: got 'last', expected 'all'"),
    ],
)
def test_a_named_file_that_does_not_belong_is_refused(module, tmp_path, change, message, measured):
    path = run(module, tmp_path).path
    assert_same(run(module, None, factors_file=path).factors, run(module, None, factors_file=path).factors)
    with pytest.raises(ValueError, match=message):
        run(module, None, replace(PROBE, **change), factors_file=path)
    with pytest.raises(ValueError, match="means of 4 prompts, expected 2"):
        run(module, None, method=ModelDowser(group_size=2), factors_file=path)
    with pytest.raises(ValueError, match="there is no importance file .*typo.safetensors; the verb `probe` writes one"):
        run(module, None, factors_file=tmp_path / "typo.safetensors")
    assert measured == list(range(8))


@pytest.mark.parametrize("content", ["null", "[]", "{", '{"format": 3}'])
def test_a_file_with_a_strange_head_is_no_use_and_no_harm(module, tmp_path, measured, content, caplog):
    path = run(module, tmp_path).path
    save_file({"x": torch.ones(1)}, tmp_path / f"{path.name[:12]}-0000.safetensors", {"dowser_pl_importance": content})
    run(module, tmp_path)
    assert "-0000.safetensors.corrupt, and not used" in caplog.text
    save_file({"x": torch.ones(1)}, path, {"dowser_pl_importance": content})
    measured.clear()
    run(module, tmp_path)
    assert measured == list(range(8)) and f"{path.name}.corrupt, and not used" in caplog.text


def test_a_foreign_file_in_its_place_is_refused(module, tmp_path):
    path = run(module, tmp_path).path
    notes = read_head(path)
    factors = load_factors(path, notes["identity"], module.tuned_layers(), ["activation", "abs_gradient"])
    save_factors(factors, path, notes["identity"] | {"weights": "another model"})
    with pytest.raises(ValueError, match="weights: got 'another model', expected"):
        run(module, tmp_path)


def flipped(content, offset, bit=0):
    changed = bytearray(content)
    changed[offset] ^= 1 << bit
    return bytes(changed)


def without_digests(path):
    """The file as an earlier version wrote it."""
    with safe_open(path, framework="pt") as file:
        head = json.loads(file.metadata()["dowser_pl_importance"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - a file, no dict
    del head["digests"], head["sha256"]
    save_file(tensors, path, {"dowser_pl_importance": json.dumps(head)})


DAMAGES = {
    "a bit of a tensor": (lambda path, whole: path.write_bytes(flipped(whole, -9)), "has digest"),
    "the sign of a value": (lambda path, whole: path.write_bytes(flipped(whole, -1, 7)), "has digest"),
    "a number in the head": (
        lambda path, whole: path.write_bytes(whole.replace(b'num_prompts\\":8', b'num_prompts\\":9', 1)),
        "its head is not what was written",
    ),
    "a setting it depends on": (
        lambda path, whole: path.write_bytes(whole.replace(b'32-true', b'33-true', 1)),
        "its head is not what was written",
    ),
    "cut in half": (lambda path, whole: path.write_bytes(whole[: len(whole) // 2]), "not a readable importance cache"),
    "cut in the header": (lambda path, whole: path.write_bytes(whole[:5]), "not a readable importance cache"),
    "empty": (lambda path, whole: path.write_bytes(b""), "not a readable importance cache"),
    "of an earlier version": (lambda path, whole: without_digests(path), "carries no digests"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file_is_set_aside_and_measured_anew(module, tmp_path, measured, name, caplog):
    damage, said = DAMAGES[name]
    first = run(module, tmp_path)
    whole = first.path.read_bytes()
    damage(first.path, whole)
    damaged = first.path.read_bytes()
    assert damaged != whole
    measured.clear()
    again = run(module, tmp_path)
    assert measured == list(range(8))
    assert_same(first.factors, again.factors)
    (line,) = [record.getMessage() for record in caplog.records if record.name == "dowser_pl"]
    assert said in line and f"it is now {first.path.name}.corrupt, and not used" in line
    assert first.path.read_bytes() == whole
    assert first.path.with_name(f"{first.path.name}.corrupt").read_bytes() == damaged
    measured.clear()
    run(module, tmp_path)
    assert measured == []


def test_of_two_files_that_serve_the_damaged_one_is_left_out(module, tmp_path, measured, caplog):
    more = run(module, tmp_path, replace(PROBE, num_prompts=12)).path
    few = run(module, tmp_path, replace(PROBE, num_prompts=8), method=ModelDowser(0.2)).path
    assert few == more
    copy = more.with_name(f"{more.name[:12]}-0000.safetensors")
    copy.write_bytes(more.read_bytes())
    more.write_bytes(flipped(more.read_bytes(), -9))
    measured.clear()
    assert run(module, tmp_path, replace(PROBE, num_prompts=12)).path == copy
    assert measured == [] and caplog.text.count(".corrupt") == 1


def test_a_named_file_that_is_damaged_is_an_error_that_names_the_tensor(module, tmp_path, measured, caplog):
    path = run(module, tmp_path).path
    whole = path.read_bytes()
    measured.clear()
    path.write_bytes(flipped(whole, -9))
    with pytest.raises(ValueError, match=r"is damaged \(.*(activation|abs_gradient) has digest .* expected"):
        run(module, None, factors_file=path)
    path.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="not a readable importance cache"):
        run(module, None, factors_file=path)
    path.write_bytes(whole)
    without_digests(path)
    run(module, None, factors_file=path)
    assert f"{path} carries no digests" in caplog.text
    assert measured == [] and [each.name for each in tmp_path.iterdir()] == [path.name]


def test_remains_of_an_interrupted_write_and_damaged_neighbours_do_no_harm(module, tmp_path, measured):
    path = run(module, tmp_path).path
    (tmp_path / f".{path.name}.tmp").write_bytes(b"half")
    (tmp_path / f"{path.name[:12]}-0000.safetensors").write_bytes(b"half")
    measured.clear()
    run(module, tmp_path)
    assert measured == []
    run(module, tmp_path, replace(PROBE, seed=1))
    assert measured == list(range(8))


def test_it_says_why_a_file_of_the_same_weights_does_not_serve(module, tmp_path, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(importance, "rank_zero_info", said.append)
    run(module, tmp_path)
    run(module, tmp_path, replace(PROBE, seed=5, num_tokens=14))
    (line,) = (line for line in said if "same weights" in line)
    assert "probe.num_tokens: got 12, expected 14; probe.seed: got 0, expected 5" in line


CHANGES = {
    "the same": (lambda module: None, 1),
    "the same weights in another folder": (lambda module: setattr(module.network.config, "_name_or_path", "x"), 1),
    "another dtype": (lambda module: module.network.to(torch.bfloat16), 2),
    "one bit of one weight": (lambda module: module.network.lm_head.weight.data[0, 0].mul_(-1), 2),
    "rotary settings": (lambda module: module.network.config.text_config.rope_parameters.update(rope_theta=5.0), 2),
    "attention": (lambda module: module.network.set_attn_implementation("eager"), 2),
    "attention of a part": (lambda module: module.network.model.language_model.set_attn_implementation("eager"), 2),
    "how it generates": (lambda module: setattr(module.network.generation_config, "no_repeat_ngram_size", 1), 1),
    "vocabulary": (lambda module: module.processor.tokenizer.add_tokens(["news"]), 2),
    "special tokens": (lambda module: setattr(module.processor.tokenizer, "bos_token", "red"), 2),
}


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
def test_the_cache_knows_what_the_factors_depend_on(model_folder, tmp_path, change):
    alter, num_files = CHANGES[change]
    for act in (lambda module: None, alter):
        module = build_module(model_folder)
        module.configure_model()
        act(module)
        run(module, tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == num_files


@pytest.mark.parametrize("threads", [2, 3])
def test_masks_do_not_depend_on_the_number_of_threads(module, tmp_path, threads):
    one = masks(module, run(module, tmp_path / "1").factors, ModelDowser(0.1))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        several = masks(module, run(module, tmp_path / "n").factors, ModelDowser(0.1))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(mask, several[name]) for name, mask in one.items())
