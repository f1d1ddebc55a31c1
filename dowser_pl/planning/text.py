"""A memory plan in words: lines before a run, a table of the forms, cards it fits, and what would make it smaller."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from dowser_pl.planning.memory import Matrix, Sizes
from dowser_pl.planning.model import MemoryPlan
from dowser_pl.planning.written import WrittenRows

__all__ = ["CARDS", "GIB", "HELD_BACK", "fits", "lines", "readable", "savings", "smallest_card", "table"]


CARDS = (8, 12, 16, 24, 40, 48, 80, 141)
"""GB as cards are sold, taken as 2**30 bytes."""
HELD_BACK = 0.05
"""Share of a card that the driver, the libraries and fragments take."""
_FUSED = ("Adam", "AdamW", "SGD", "Adagrad")  # of torch, which can step without a copy of all parameters
GIB = 2**30


def fits(total: int, card: int) -> bool:
    """Whether `total` bytes fit on a card of `card` GB."""
    return total <= (1 - HELD_BACK) * card * GIB


def smallest_card(total: int) -> int | None:
    """The smallest of `CARDS` that is large enough; None if none is."""
    return next((card for card in CARDS if fits(total, card)), None)


def savings(plan: MemoryPlan) -> dict[str, MemoryPlan]:
    """What can be set -> the plan with it alone; only what makes it smaller."""
    before = plan.held.total
    return {setting: other for setting, other in _alternatives(plan) if other.held.total < before}


def _alternatives(plan: MemoryPlan) -> Iterator[tuple[str, MemoryPlan]]:
    if plan.form == "dense":
        yield "--dowser.update compact", replace(plan, form="compact")
    if plan.batch is not None:
        if not plan.batch.gradient_checkpointing:
            yield (
                "--model.gradient_checkpointing true",
                replace(plan, batch=replace(plan.batch, gradient_checkpointing=True)),
            )
        if plan.batch.rows > 1:
            yield (
                "--data.batch_size 1, with --trainer.accumulate_grad_batches",
                replace(plan, batch=replace(plan.batch, rows=1)),
            )
    if plan.optimizer.copies and plan.optimizer.name in _FUSED:
        yield "--model.optimizer.fused true", replace(plan, optimizer=replace(plan.optimizer, copies=0))
    if "float32" in plan.sizes.weights:
        decoder = None if plan.decoder is None else replace(plan.decoder, itemsize=2, cast_bytes=0)
        yield "--trainer.precision bf16-true", replace(plan, sizes=_in_16_bits(plan.sizes), decoder=decoder)


def _in_16_bits(sizes: Sizes) -> Sizes:
    def half(matrices: tuple[Matrix, ...]) -> tuple[Matrix, ...]:
        return tuple(replace(each, itemsize=2) for each in matrices)

    weights = dict(sizes.weights)
    weights["bfloat16"] = weights.get("bfloat16", 0) + weights.pop("float32") // 2
    return Sizes(weights, half(sizes.matrices), half(sizes.whole), sizes.layer_bytes // 2)


_WORDS = {
    "entries": "trainable values",
    "gathered": "gathered layer",
    "base": "base copy",
    "kept": "kept by method",
    "buckets": "DDP buckets",
}
_ESTIMATED = ("activations", "workspace")


def lines(plan: MemoryPlan) -> list[str]:
    """The form that will run: bytes by kind, their sum, and a warning where the device has less."""
    held = plan.held
    kinds = [f"{_word(kind)} {readable(value)}" for kind, value in held.kinds.items() if value]
    text = [
        f"Memory planned per device, {plan.form}, {plan.optimizer.name}: {readable(held.total)}",
        "  " + ", ".join(kinds),
    ]
    if held.host:
        kinds_there = "base values, masks and the best model so far" if plan.best else "base values and masks"
        text.append(f"  and {readable(held.host)} of {kinds_there} in host memory")
    text += [f"  {note}" for note in _notes(plan)]
    if plan.card_bytes is not None and held.total > plan.card_bytes:
        advice = "; ".join(savings(plan)) or "tune fewer layers (--model.last_n_layers)"
        text.append(
            f"  WARNING: that is more than the {readable(plan.card_bytes)} of this device, so it will likely run out "
            f"of memory. Set {advice}"
        )
    return text


def table(rows: Mapping[str, MemoryPlan]) -> list[str]:
    """The forms side by side, the cards they fit on, and what would make each smaller.

    Args:
        rows: name -> plan, of the same model and batch.
    """
    held = {name: plan.held for name, plan in rows.items()}
    kinds = [kind for kind in next(iter(held.values())).kinds if any(each.kinds[kind] for each in held.values())]
    text = [f"{'per device':<24}" + "".join(f"{name:>18}" for name in rows)]
    for kind in kinds:
        text.append(_row(_word(kind), [_or_dash(each.kinds[kind]) for each in held.values()]))
    text.append(_row("total", [readable(each.total) for each in held.values()]))
    text.append(_row("host memory beside", [_or_dash(each.host) for each in held.values()]))
    text.append("")
    for card in CARDS:
        text.append(_row(f"{card} GB card", ["fits" if fits(each.total, card) else "-" for each in held.values()]))
    text.append("")
    notes = [note for plan in rows.values() for note in _notes(plan)]
    text += dict.fromkeys(notes)
    if any(plan.placement.shards for plan in rows.values()):
        text.append(
            "not listed, as `fit` refuses them where weights are sharded over devices: dense updates, 8-bit optimizers "
            "(bitsandbytes)"
        )
    if any(each.activations or each.workspace for each in held.values()):
        text.append(
            "activations and workspace are estimates and never held at once: the larger counts; 5 % of a card is held "
            "back"
        )
    return [*text, *_advice(rows)]


def readable(value: int) -> str:
    """Bytes as GiB, or as MiB below one."""
    return f"{value / GIB:.2f} GiB" if value >= GIB else f"{value / 2**20:.2f} MiB"


def _or_dash(value: int) -> str:
    return readable(value) if value else "-"


def _advice(rows: Mapping[str, MemoryPlan]) -> list[str]:
    text = []
    for name, plan in rows.items():
        card = smallest_card(plan.held.total)
        for setting, smaller in savings(plan).items():
            other = smallest_card(smaller.held.total)
            where = f"a {other} GB card" if other else "still no card of the list"
            if other != card or card is None:
                text.append(f"{name} with {setting}: {readable(smaller.held.total)}, {where}")
    if any(smallest_card(plan.held.total) is None for plan in rows.values()):
        text.append("what fits on no card: tune fewer layers (--model.last_n_layers) or shorter rows as well")
    return text


def _notes(plan: MemoryPlan) -> list[str]:
    notes = []
    if plan.batch is None or plan.decoder is None:
        notes.append("activations are not estimated: the config of the model does not tell the sizes of its decoder")
    else:
        checkpointing = "with" if plan.batch.gradient_checkpointing else "without"
        notes.append(
            f"activations for {plan.batch.rows} x {plan.batch.tokens:,} tokens in {plan.decoder.layers} layers, "
            f"{checkpointing} gradient checkpointing"
        )
    notes += [note for each in plan.written for note in _of_rows(plan, each)]
    if not plan.optimizer.known:
        notes.append(f"the states of {plan.optimizer.name} are not known: two of float32 are assumed")
    if plan.placement.sharded:
        notes.append(
            f"not counted under {plan.placement.strategy}: what is gathered beside a decoder layer (embeddings, head, "
            "vision tower)"
        )
        if not plan.placement.ours:
            notes.append(f"`fit` does not take {plan.placement.strategy}; use -c strategy/fsdp2")
    return notes


def _of_rows(plan: MemoryPlan, written: WrittenRows) -> list[str]:
    if written.unknown:
        return [f"{written.use}: what is kept of rows is not counted: {written.unknown}"]
    notes = [
        f"{written.use} keeps {written.count:,} rows that the base writes: {readable(written.host)} of host memory "
        f"({readable(written.pictures)} of it pictures) and {readable(written.checkpoint)} of each checkpoint"
    ]
    if written.step is not None:
        recomputed = next(step for step in plan.steps)
        notes.append(
            f"{written.use} computes {written.step.rows} x {written.step.tokens:,} tokens in a step, "
            f"{readable(plan.activations_of(recomputed))} of activations; the larger of it and the batch counts"
        )
    return notes


def _word(kind: str) -> str:
    return _WORDS.get(kind, kind) + (" (estimate)" if kind in _ESTIMATED else "")


def _row(name: str, cells: list[str]) -> str:
    return f"{name:<24}" + "".join(f"{cell:>18}" for cell in cells)
