"""The rows that the base of a run writes itself, written once and only if something asks: null space, replay, drift.

Those that are trained on and those that are held out are written apart; a row depends on its number alone, so neither
knows of the other. They are the same on every process. Where there is a cache, what was written is kept in it by all
that it depends on: tokens alone, since pictures are made again of the same streams and the same training pictures.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from PIL import Image

from dowser_pl.callbacks.dowser.importance import Precision, behaviour
from dowser_pl.distributed import collectives
from dowser_pl.errors import DowserError
from dowser_pl.files.atomic import write_atomically
from dowser_pl.importance import Prompt, digest, probing_mode
from dowser_pl.importance.base_outputs import current_logits
from dowser_pl.importance.pictures import MADE_OF_PICTURES, NUM_PICTURES, shrunken
from dowser_pl.importance.rows import Writers
from dowser_pl.importance.settings import Rows
from dowser_pl.masking import TunedModule
from dowser_pl.models.text_only import reads_images, tokenizer_of

__all__ = ["RowBank"]

_HELD_OUT = 8  # every so many of them for rows that are held out


@dataclass
class RowBank:
    """Rows of the base of one run.

    Args:
        precision: that the model computes in.
        module: the model.
        settings: which rows.
        cache_dir: where what was written is kept; None = nowhere.
        weights: content hash of the base, for the cache.
        pictures: `(number, seed)` -> pictures of the task, that rows are written after; None = there are none.
    """

    precision: Precision
    module: TunedModule
    settings: Rows
    cache_dir: Path | None
    weights: Callable[[], str]
    pictures: Callable[[int, int], Sequence[Image.Image]] | None = None

    @cached_property
    def used(self) -> list[Prompt]:
        """Rows to train with, of all sources in turns; the weights must be the base. All processes must ask."""
        return self._rows(held_out=False)

    @cached_property
    def held_out(self) -> list[Prompt]:
        """Rows that nothing is trained on, of all sources in turns."""
        return self._rows(held_out=True)

    def identity(self) -> str:
        """What the rows in use depend on beside the weights, as a digest; on every process."""
        writers = self._writers(held_out=False)
        return digest(self._parts(writers, writers.sources()))

    def expected(self, held_out: bool) -> list[tuple[str, int, list[Prompt]]]:
        """Tell of each source how many rows there will be, with some as long as they can get; nothing is written.

        Args:
            held_out: of the rows that are held out.
        """
        writers = self._writers(held_out)
        found: list[tuple[str, int, list[Prompt]]] = []
        for source in writers.sources():
            try:
                number, examples = writers.expected(source, self.settings.numbers(held_out))
            except (ValueError, TypeError, RuntimeError, LookupError, AttributeError):  # told when they are written
                continue
            if examples:
                found.append((source, number, examples))
        return found

    def remade(self, state: Sequence[Mapping[str, Any]], held_out: bool) -> list[Prompt]:
        """Rows of a checkpoint, with their pictures.

        Args:
            state: of each row what `tokens_of` says.
            held_out: whether they were held out.

        Raises:
            DowserError: if the training pictures, or what the processor makes of them, are no longer the same.
        """
        writers = self._writers(held_out)
        rows = []
        for each in state:
            lacks = each["kind"] in MADE_OF_PICTURES and not writers.pictures
            row = None if lacks else writers.remade(each["kind"], each["number"], each["tokens"])
            if row is None or not torch.equal(row.tokens, each["tokens"]) or digest_of(row) != each["image"]:
                raise DowserError(
                    f"row {each['number']} after {each['kind']!r} of the checkpoint was written after another picture "
                    "than is made for it now: the training pictures or the processor have changed. Resume with the "
                    "data, the model and the --dowser.rows that the run began with"
                )
            rows.append(row)
        return rows

    def _rows(self, held_out: bool) -> list[Prompt]:
        network = self.module.network
        writers = self._writers(held_out)
        sources = writers.sources()
        file = self._file(writers, sources, held_out)
        known = self._known(file, writers)
        which = "held-out rows" if held_out else "rows"
        how = "writes" if known is None else "wrote before:"
        rank_zero_info(f"The base {how} {which} after {', '.join(sources)}{self._unseen(sources)}")
        if known is not None:
            return known
        with probing_mode(network), self.precision.context():
            read = torch.no_grad()(partial(current_logits, network))
            rows = writers.in_turns(sources, self.settings.numbers(held_out), read)
        if {row.kind for row in rows} == set(sources):  # one that failed may do better another time
            collectives.from_rank_zero(partial(_keep, file, rows))
        return rows

    def _known(self, file: Path | None, writers: Writers) -> list[Prompt] | None:
        """Rows of the cache; None where there are none, or the processor places pictures otherwise than then."""
        written = collectives.from_rank_zero(partial(_read, file))
        if written is None:
            return None
        found = [writers.remade(kind, number, torch.tensor(tokens)) for kind, number, tokens in written]
        same = all(row.tokens.tolist() == tokens for row, (_, _, tokens) in zip(found, written, strict=True))
        if not same:
            rank_zero_warn(
                f"the processor places pictures otherwise than when {file} was written: rows are written anew"
            )
        return found if same else None

    def _writers(self, held_out: bool) -> Writers:
        openers, ending = getattr(self.module, "openers", lambda: None)(), self.module.ending()
        pictures = self._pictures(held_out)
        return Writers.of(self.module.network, self.module.processor, ending, self.settings, openers, pictures)

    def _pictures(self, held_out: bool) -> list[Image.Image]:
        """Training pictures, other ones for rows that are held out; the only one, where there is one, for both."""
        only = len(self._training_pictures) == 1
        return [each for n, each in enumerate(self._training_pictures) if only or (n % _HELD_OUT == 0) == held_out]

    @cached_property
    def _training_pictures(self) -> list[Image.Image]:
        wanted = self.settings.sources
        if wanted != "auto" and not {"train", "shuffle", "mosaic"} & set(wanted):
            return []
        if (ask := self.pictures) is None:
            return []
        # the first process' on all: a picture that one of them cannot read would make other rows there
        return collectives.from_rank_zero(lambda: [shrunken(each) for each in ask(NUM_PICTURES, self.settings.seed)])

    def _unseen(self, sources: Iterable[str]) -> str:
        """What is not looked at, where the model sees pictures and no row has one of the user's."""
        sees = reads_images(self.module.processor)
        if not sees or {"train", "shuffle", "mosaic"} & set(sources):
            return ""
        return "; what it does with pictures such as yours is not looked at: the data tells of no training pictures"

    def _file(self, writers: Writers, sources: Sequence[str], held_out: bool) -> Path | None:
        if self.cache_dir is None:
            return None
        weights = self.weights()
        parts = [weights, self._parts(writers, sources), held_out]
        return self.cache_dir / f"{weights[:12]}-rows-{digest(parts)}.json"

    def _parts(self, writers: Writers, sources: Sequence[str]) -> dict[str, Any]:
        """All that rows depend on beside the weights."""
        processor, pictures = self.module.processor, hashlib.sha256()
        tokenizer = tokenizer_of(processor)
        for picture in writers.pictures:
            pictures.update(repr(picture.size).encode() + picture.tobytes())
        return {
            "model": behaviour(self.module.network),
            "vocabulary": tokenizer.get_vocab(),
            "special": tokenizer.special_tokens_map,
            "images": getattr(getattr(processor, "image_processor", None), "to_dict", dict)(),
            "openers": None if writers.openers is None else asdict(writers.openers),
            "ending": asdict(self.module.ending()),
            "precision": self.precision.name,
            "rows": [self.settings.identity(), list(sources)],
            "pictures": pictures.hexdigest(),
        }


def tokens_of(row: Prompt) -> dict[str, Any]:
    """What a checkpoint holds of a row: its tokens, and of its picture no more than a digest."""
    return {"kind": row.kind, "number": row.number, "tokens": row.tokens, "image": digest_of(row)}


def digest_of(row: Prompt) -> str:
    """16 hexadecimal digits of the inputs of a row's picture; the same for all rows without one."""
    found = hashlib.sha256()
    for name, value in sorted(row.image.items()):
        found.update(f"{name}{tuple(value.shape)}{value.dtype}".encode() + value.contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def _keep(file: Path | None, rows: Sequence[Prompt]) -> None:
    if file is not None:
        content = [[row.kind, row.number, row.tokens.tolist()] for row in rows]
        write_atomically(file, json.dumps({"digest": digest(content), "rows": content}) + "\n")


def _read(file: Path | None) -> list[tuple[str, int, list[int]]] | None:
    """Rows of the cache; None where there are none, or not as they were written."""
    if file is None or not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["digest"] == digest(content["rows"]):
            return [(kind, number, tokens) for kind, number, tokens in content["rows"]]
    except (ValueError, KeyError, TypeError):
        pass
    rank_zero_warn(f"{file} is damaged: its rows are written anew")
    return None
