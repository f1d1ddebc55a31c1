"""What the base says on every training batch: a pull towards it on the answers, and tokens that are not to be learnt.

Before a batch is learnt, the tuned entries hold the base for one forward pass in eval mode (`Protection.base_in_place`;
an adapter's B is 0 then), so no second model is kept, nothing is recorded before training, and rows may be drawn,
changed and shared among processes in any way. It costs one forward pass a batch, and that base values which a form
keeps in host memory are sent to the device.

- `max_perplexity`: labels of tokens that the base did not expect become -100; `functional/token_masking.py`.
- `kl_to_base`: a term joins the loss of the model where the training step asks for it, so that whatever weighs that
  loss by tokens, over accumulated batches and processes, weighs the term alike; `importance/kl_to_base.py`. With both,
  it is of the tokens that are learnt.
"""

from collections.abc import Mapping, MutableMapping
from dataclasses import asdict
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from dowser_pl.distributed import collectives
from dowser_pl.distributed.limits import no_reading
from dowser_pl.errors import DowserError
from dowser_pl.functional.token_masking import unexpected
from dowser_pl.importance import probing_mode
from dowser_pl.importance.kl_to_base import KLToBase
from dowser_pl.masking import Protection, TunedModule
from dowser_pl.strategies.sharded import ShardedStrategy

__all__ = ["BaseReader"]


class BaseReader:
    """Has the base read every batch before it is learnt.

    Args:
        kl: how the loss pulls to what the base says; None = not at all.
        max_perplexity: of tokens that are learnt; None = all are.

    Attributes:
        masked: answer tokens of all processes so far that were left out of the loss.
        tokens: answer tokens of all processes so far.
    """

    def __init__(self, kl: KLToBase | None, max_perplexity: float | None) -> None:
        if max_perplexity is not None and not 1 <= max_perplexity < float("inf"):
            raise DowserError(
                f"got dowser.max_perplexity {max_perplexity}, expected a finite number of at least 1, which a "
                "perplexity always is. Fix: such as 2.5, or null to learn all tokens"
            )
        self.kl = kl if kl is not None and kl.weight else None
        self.max_perplexity = max_perplexity
        self.masked = self.tokens = 0
        self._hook: Any = None  # as long as the loss has not got its term
        self._term: Tensor | None = None

    @property
    def asked(self) -> list[str]:
        """The options for which it reads; none = it does not."""
        return [name for name, value in self._settings().items() if value is not None]

    @property
    def active(self) -> bool:
        """Whether there is anything to read for."""
        return bool(self.asked)

    def check(self, trainer: Trainer) -> None:
        """Refuse strategies that would not put whole matrices back.

        Raises:
            DowserError: saying what to set instead.
        """
        refused = no_reading(self.asked) if isinstance(trainer.strategy, ShardedStrategy) else None
        if refused is not None:
            raise DowserError(refused)

    def begin(self, whole: list[str], loaded: Mapping[str, Any] | None) -> None:
        """A run begins, or goes on from a checkpoint.

        Args:
            whole: what is trained without a mask.
            loaded: state of the callback in the checkpoint, whose `reader` is a `state_dict`; None = none is resumed.

        Raises:
            DowserError: if the model is not the base when its matrices are, or the checkpoint was trained otherwise.
        """
        if self.active and whole:
            raise DowserError(
                f"got {self._options} beside {len(whole)} parameters that are trained without a mask, whose base is "
                f"not kept (the first is {whole[0]}), expected matrices under the method alone. Set "
                f"--model.also_train [], or {self._off}"
            )
        without = {"kl_to_base": None, "max_perplexity": None, "masked": 0, "tokens": 0}
        was = dict(self._settings() | {"masked": 0, "tokens": 0} if loaded is None else loaded.get("reader", without))
        self.masked, self.tokens = was.pop("masked"), was.pop("tokens")
        if was != self._settings():
            raise DowserError(
                f"the checkpoint was trained with {was}, this run asks for {self._settings()}; resume with the same "
                "--dowser.kl_to_base and --dowser.max_perplexity"
            )

    def read(self, trainer: Trainer, module: TunedModule, entries: Protection, batch: Any) -> None:
        """Ask the base about a batch, and change its labels where tokens are not to be learnt.

        Args:
            trainer: its precision.
            module: the model.
            entries: its tuned matrices.
            batch: that the model is about to learn; its `labels` are replaced.

        Raises:
            DowserError: if the batch is none that can be read.
        """
        if not self.active:
            return
        if not isinstance(batch, MutableMapping) or "labels" not in batch:
            raise DowserError(
                f"got a training batch of {type(batch).__name__} without labels for {self._options}, expected a dict "
                f"of what the model takes, labels among it. Have the data module make such batches, or set {self._off}"
            )
        inputs = {key: value for key, value in batch.items() if key != "ids"}
        context = trainer.precision_plugin.forward_context
        with entries.base_in_place(), probing_mode(module.network), torch.no_grad(), context():
            logits = module.network(**inputs, use_cache=False).logits
        if self.max_perplexity is not None:
            batch["labels"] = self._masked(module.network, logits, batch["labels"], self.max_perplexity)
        if self.kl is not None:
            self._join(module.network, self.kl, _at_answers(module.network, logits, batch["labels"]), batch["labels"])

    def log(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Where the backward pass of a batch is done: log the term.

        Raises:
            DowserError: if the training step computed its loss without it.
        """
        if self.kl is None:
            return
        if self._term is None:
            raise DowserError(
                f"the training step of {type(pl_module).__name__} did not call its network with the labels of the "
                "batch, expected network(..., labels=batch['labels']).loss, which the term of dowser.kl_to_base joins. "
                "Set --dowser.kl_to_base null, or call it so"
            )
        pl_module.log("train/base_kl", self._term, batch_size=1, sync_dist=trainer.world_size > 1)
        self._term = None

    def unhook(self) -> None:
        """Let go of the model."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def told(self) -> dict[str, float]:
        """Numbers for the report, and a line where tokens were masked."""
        if not self.tokens:
            return {}
        share = self.masked / self.tokens
        rank_zero_info(
            f"{self.masked:,} of {self.tokens:,} answer tokens ({share:.1%}) were not learnt: their perplexity under "
            f"the base is above {self.max_perplexity}"
        )
        return {"masked_tokens": share}

    def state_dict(self) -> dict[str, Any]:
        """What was asked for and how much was masked; the base itself is with the entries."""
        return self._settings() | {"masked": self.masked, "tokens": self.tokens}

    def _settings(self) -> dict[str, Any]:
        return {"kl_to_base": None if self.kl is None else asdict(self.kl), "max_perplexity": self.max_perplexity}

    @property
    def _options(self) -> str:
        return " and ".join(f"dowser.{name}" for name in self.asked)

    @property
    def _off(self) -> str:
        return " and ".join(f"--dowser.{name} null" for name in self.asked)

    def _masked(self, network: Any, logits: Tensor, labels: Tensor, max_perplexity: float) -> Tensor:
        """(B, T) labels without those of unexpected tokens."""
        first = _first(network)
        places = (labels[:, first:] != -100).nonzero()
        places[:, 1] += first
        rows, columns = places.T
        found = unexpected(_at_answers(network, logits, labels), labels[rows, columns], rows, max_perplexity)
        masked, tokens = collectives.all_reduce_counts([int(found.sum()), len(found)])
        self.masked, self.tokens = self.masked + masked, self.tokens + tokens
        kept = labels.clone()
        kept[rows[found], columns[found]] = -100
        return kept

    def _join(self, network: Any, kl: KLToBase, base: Tensor, labels: Tensor) -> None:
        """Add the term to the loss of the next forward pass that is given these very labels."""
        self.unhook()

        def join(_: Any, __: Any, given: dict[str, Any], output: Any) -> Any:
            if given.get("labels") is labels:
                self.unhook()
                term = kl.term(base, _at_answers(network, output.logits, labels))
                output.loss = output.loss + kl.weight * term
                self._term = term.detach()
            return output

        self._hook = network.register_forward_hook(join, with_kwargs=True)


def _first(network: Any) -> int:
    """The first label of a row that anything predicts; in encoder-decoders a label is said at its own place."""
    return 0 if network.config.get_text_config().is_encoder_decoder else 1


def _at_answers(network: Any, logits: Tensor, labels: Tensor) -> Tensor:
    """(N, V) logits where the tokens with a label are to be told, row after row.

    Args:
        network: the model.
        logits: (B, T, V).
        labels: (B, T) int64, -100 = none.
    """
    first = _first(network)
    said: Tensor = logits[:, : logits.shape[1] - first][labels[:, first:] != -100]
    return said
