"""The formulas of the scaling note against the collectives of two processes, counted one by one."""

import json
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from torch import distributed

from dowser_pl.callbacks.dowser import importance
from dowser_pl.callbacks.dowser.masks import MaskBuilder
from dowser_pl.importance import Probe
from dowser_pl.models.layers import find_layers
from tests.distributed.counting import Counting, CountSteps, Traffic
from tests.distributed.fits import fit
from tests.distributed.harness import run
from tests.tiny_models import save_tiny_llava, tiny_llava

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import scaling

PROBE = Probe(num_prompts=64, num_probes=1, num_tokens=12, batch_size=32)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def sizes():
    model = tiny_llava()
    layers = find_layers(model, None, ["attn", "mlp"])
    shapes = tuple(tuple(layer.weight.shape) for layer in layers.values())
    # query, key and value read one tensor, gate and up another
    inputs = sum(
        i
        for name, (_, i) in zip(layers, shapes, strict=True)
        if name.rsplit(".")[-1] not in ("k_proj", "v_proj", "up_proj")
    )
    return scaling.Sizes(shapes, inputs, sum(weight.numel() for weight in model.parameters()), 3)


def each_kind():
    with Counting() as counting:
        distributed.all_reduce(torch.zeros(10))
        distributed.broadcast(torch.zeros(5), 0)
        distributed.all_gather([torch.zeros(3), torch.zeros(3)], torch.zeros(3))
        distributed.all_gather_into_tensor(torch.zeros(6), torch.zeros(3))
        distributed.reduce_scatter_tensor(torch.zeros(3), torch.zeros(6))
        distributed.barrier()
    return counting.traffic


def counted(folder, model, **options):
    """Traffic of every training batch, and of parts of the importance pass."""
    parts = {
        "prompts": (importance.ImportanceRunner, "_prompts"),
        "factors": (importance, "measure"),
        "all": (MaskBuilder, "masks"),
    }
    with Counting() as counting, ExitStack() as stack:
        steps = CountSteps(counting)
        passes = {name: stack.enter_context(counting.within(*part)) for name, part in parts.items()}
        fit(folder, model, callbacks=(steps,), max_epochs=1, probe=PROBE, **options)
    return steps.batches, passes


def told(traffic: Traffic) -> scaling.Traffic:
    return {kind: (count, traffic.bytes[kind]) for kind, count in traffic.messages.items()}


@pytest.mark.slow
def test_every_kind_of_collective_is_counted():
    for traffic in run(each_kind):
        assert traffic.messages == {"all_gather": 2, "all_reduce": 1, "broadcast": 1, "reduce_scatter": 1, "barrier": 1}
        assert +traffic.bytes == {"all_reduce": 40, "all_gather": 24, "reduce_scatter": 24, "broadcast": 20}


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_of_compact_ddp_is_what_the_note_says(model_folder, sizes, tmp_path, accumulate):
    options = {"accumulate_grad_batches": accumulate, "gradient_clip_val": 1.0, "num_rows": 16}
    for batches, _ in run(counted, tmp_path, model_folder, **options):
        assert len(batches) == 4
        for first in range(0, 4, accumulate):
            step = sum(batches[first : first + accumulate], Traffic())
            assert told(step) == scaling.ddp_step(sizes, 0.1, accumulate)


@pytest.mark.slow
def test_the_importance_pass_under_ddp_is_what_the_note_says(model_folder, sizes, tmp_path):
    for _, passes in run(counted, tmp_path, model_folder):
        messages, handed = scaling.factors(sizes, 2, 64)["all_gather"]
        assert passes["factors"].messages == {"all_gather": messages}
        assert handed <= passes["factors"].bytes["all_gather"] <= handed + 600 * len(sizes.matrices)  # names and shapes
        masks = passes["all"] - passes["factors"] - passes["prompts"]
        messages, handed = scaling.masks(sizes)["broadcast"]
        assert masks.messages == {"broadcast": messages}
        assert handed <= masks.bytes["broadcast"] <= handed + 700 * len(sizes.matrices)


@pytest.mark.slow
def test_a_step_of_dense_ddp_hands_over_whole_gradients(model_folder, sizes, tmp_path):
    for batches, _ in run(counted, tmp_path, model_folder, update="dense"):
        assert batches[-1].bytes["all_reduce"] == scaling.ddp_dense_step(sizes, 4)


def test_the_shapes_are_those_of_the_models():
    seven, seventy, many = scaling.MODELS.values()
    assert [round(sizes.weights / 1e9, 1) for sizes in (seven, seventy, many)] == [6.7, 70.6, 405.8]
    assert seven.entries(0.1) == pytest.approx(0.1 * seven.tuned, rel=1e-6)


def test_rings_send_what_they_send():
    """Four processes of 100 bytes each: an all-reduce passes 3 quarters twice."""
    assert scaling.on_the_links({"all_reduce": (1, 100)}, 4) == 150
    assert scaling.on_the_links({"all_gather": (1, 100)}, 4) == 300
    assert scaling.on_the_links({"reduce_scatter": (1, 100)}, 4) == 75


def test_the_table_and_the_file_have_the_same_numbers(tmp_path, capsys):
    assert scaling.main(["--ranks", "8", "--json", str(tmp_path / "n.json")]) == 0
    printed = capsys.readouterr().out
    content = json.loads((tmp_path / "n.json").read_text())
    assert len(printed.splitlines()) == 2 + len(content["rows"]) == 2 + 3 * 8
    assert content["command"][:2] == ["python", "benchmarks/scaling.py"]
    step = next(row for row in content["rows"] if row["part"] == "step, DDP compact")
    assert step["handed"] == 16 + 4 * 224 + 4 * scaling.MODELS["7B"].entries(0.1)
