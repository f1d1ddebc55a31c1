"""Models of scripts that DDP, FSDP2 or accelerate have wrapped: refused with one error, or right."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import distributed
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from dowser_pl.errors import DowserError
from dowser_pl.integrations import choose_masks, drift, evaluate, measure_importance, train_only
from tests.distributed.harness import run
from tests.tiny_models import CHAT_TEMPLATE, tiny_llama, tiny_tokenizer
from tests.tiny_run import SMALL_PROBE, TinyTextData

TOKENS = torch.tensor([[5, 9, 11, 20]])
TASKS = TinyTextData().evaluation_tasks()


def with_template():
    made = tiny_tokenizer()
    made.chat_template = CHAT_TEMPLATE
    return made


def measured(model):
    return measure_importance(model, with_template(), probe=SMALL_PROBE)


def trained(model, masks, run_by=None):
    with train_only(model, masks) as entries:
        optimizer = torch.optim.SGD(entries.parameters(), lr=0.1)
        for _ in range(2):
            (run_by or model)(input_ids=TOKENS, labels=TOKENS).loss.backward()
            optimizer.step()
            optimizer.zero_grad()


def refused(*calls):
    """What each says, which must be ours."""
    said = []
    for call in calls:
        with pytest.raises(DowserError) as caught:
            call()
        said.append(str(caught.value))
    return said


def in_one_process(function):
    """In a group of one, as scripts have it that are started by `torchrun` on one GPU."""
    if not distributed.is_initialized():
        distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    return function()


def of_ddp():
    """What a wrapped model is answered, and whether its inner model is measured as it was before."""
    model, tokenizer = tiny_llama(), with_template()
    masks = choose_masks(measured(model))
    wrapped = DistributedDataParallel(model)
    said = refused(
        lambda: measured(wrapped),
        lambda: trained(wrapped, masks),
        lambda: evaluate(wrapped, tokenizer, TASKS),
        lambda: drift(wrapped, tokenizer, tiny_llama()),
        lambda: drift(tiny_llama(), tokenizer, wrapped),
    )
    inner = choose_masks(measured(wrapped.module))
    asked = evaluate(wrapped.module, tokenizer, TASKS)["colour"].rows
    same = all(torch.equal(inner[name], masks[name]) for name in masks)
    return said, same, len(asked), refused(lambda: trained(model, masks), lambda: trained(model, masks, wrapped))


def of_shards():
    """What a sharded model is answered, whatever was measured before it was."""
    model, tokenizer = tiny_llama(), with_template()
    importance = measured(model)
    masks = choose_masks(importance)
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    found = [
        lambda: measured(model),
        lambda: choose_masks(importance),
        lambda: importance.scores(next(iter(masks))),
        lambda: evaluate(model, tokenizer, TASKS),
        lambda: drift(model, tokenizer, tiny_llama()),
        lambda: drift(tiny_llama(), tokenizer, model),
    ]
    if distributed.get_world_size() == 1:
        found += [lambda: trained(model, masks), lambda: trained(model, dict(masks))]
    return refused(*found)


def of_two_processes():
    """Masks and numbers of a plain model on each of two processes, and what training there is answered."""
    model, tokenizer = tiny_llama(), with_template()
    masks = choose_masks(measured(model))
    other = tiny_llama()
    with torch.no_grad():
        other.model.layers[0].mlp.up_proj.weight += 0.1
    numbers = evaluate(model, tokenizer, TASKS)["colour"].rows, drift(other, tokenizer, model, per_source=4).to_json()
    return {name: mask.clone() for name, mask in masks.items()}, numbers, refused(lambda: trained(model, masks))


@pytest.mark.slow
def test_ddp_is_refused_and_what_it_wraps_is_measured():
    (found,) = run(in_one_process, of_ddp, ranks=1)
    for said, same, count, inside in [found, *run(in_one_process, of_ddp)]:
        if said is not found[0]:
            assert "got 2 processes" in said.pop(1)
        assert all("got DistributedDataParallel, expected" in each and "give its .module" in each for each in said)
        assert same and count == 4
        assert all("wrapped in DistributedDataParallel" in each or "got 2 processes" in each for each in inside)


@pytest.mark.slow
def test_shards_are_refused_at_every_call():
    (found,) = run(in_one_process, of_shards, ranks=1)
    assert len(found) == 8
    for said in [found, *run(in_one_process, of_shards)]:
        assert all("whose weights are sharded over processes, expected whole ones" in each for each in said)


@pytest.mark.slow
def test_two_processes_get_the_masks_and_numbers_of_one():
    model, tokenizer = tiny_llama(), with_template()
    masks, rows = choose_masks(measured(model)), evaluate(model, tokenizer, TASKS)["colour"].rows
    first, second = run(of_two_processes)
    for found, numbers, said in (first, second):
        assert all(torch.equal(found[name], masks[name]) for name in masks)
        assert numbers[0] == rows and numbers[1] == first[1][1]
        assert "got 2 processes, expected one" in said[0]


@pytest.fixture
def accelerate():
    """Whose settings are those of the whole process; a Trainer of another test may have made its own."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.slow
@pytest.mark.usefixtures("accelerate")
def test_what_accelerate_has_prepared_for_half_precision_is_asked_for_and_then_right():
    tokenizer, base = with_template(), tiny_llama()
    model = Accelerator(cpu=True, mixed_precision="bf16").prepare(tiny_llama())
    said = refused(lambda: measured(model), lambda: drift(model, tokenizer, base))
    assert all("accelerate has prepared for mixed precision" in each for each in said)
    options = {"probe": SMALL_PROBE, "autocast": torch.bfloat16}
    masks = choose_masks(measure_importance(model, tokenizer, **options))
    expected = choose_masks(measure_importance(base, tokenizer, **options))
    assert all(torch.equal(masks[name], expected[name]) for name in expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert drift(model, tokenizer, base, per_source=4).agreement > 0.9
    assert evaluate(model, tokenizer, TASKS)["colour"].count == 4
    AcceleratorState._reset_state(reset_partial_state=True)
    plain = choose_masks(measured(Accelerator(cpu=True, mixed_precision="no").prepare(tiny_llama())))
    assert all(torch.equal(mask, plain[name]) for name, mask in choose_masks(measured(base)).items())
