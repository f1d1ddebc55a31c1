"""Settings of the importance pass, and of the rows that the model writes itself."""

from dataclasses import asdict, dataclass
from typing import Literal, get_args

from dowser_pl.errors import DowserError

__all__ = ["Probe", "Rows", "Source"]

# What decides how many prompts there are, where they are computed and what is kept: not what the factors of one are.
# Rows have an identity of their own.
_NO_IDENTITY = ("inputs", "num_prompts", "target_overlap", "max_prompts", "keep", "batch_size")


@dataclass(frozen=True)
class Probe:
    """How the importance pass looks at the model (arXiv 2602.04509, section 3 and appendix).

    The paper asks 64 prompts with 8 probes each. One probe for each of 128 prompts is as good at less than half the
    passes, because prompts differ more than probes do (`benchmarks/compare_estimators.py`).

    Args:
        num_prompts: synthetic prompts the model writes (the paper's N); `auto` = as many as it takes for two
            halves of them to agree on `target_overlap` of the mask.
        num_probes: Rademacher vectors per prompt (the paper's R). More prompts help more than more probes.
        num_tokens: length of a prompt with its prefix; shorter where the model ends its text itself.
        min_prefix: fewest random tokens after BOS.
        max_prefix: most random tokens after BOS.
        temperature: of the sampling.
        top_p: nucleus of the sampling.
        repetition_penalty: of the sampling.
        noise_images: put one image of uniform noise before the text of every prompt.
        positions: whose logits are probed: the `last` position (as published) or `all` of a prompt at once.
        target_overlap: Jaccard index of the masks of two halves of the prompts at which `auto` stops.
        max_prompts: where `auto` stops at the latest.
        keep: what the cache holds: what the method's estimator `needed`, or `all`: every prompt on its own, for
            `authors` with any group and for `paper`. `auto`: all, where the file stays below 256 MiB.
        batch_size: prompts per forward pass; changes memory and speed, not the result.
        seed: of prefixes, sampling, noise and probes.
        inputs: what the model is asked: `prompts`, texts that it writes after a few random tokens (as published); or
            `rows`, those of `dowser.rows`, with pictures where it sees them, whose lengths and sampling are set there.
        form: what of a prompt is probed: `paper`, all of it, written after an image where it has one; or `authors`, as
            their release (6efd4e1) does: what the model wrote alone, after token 1 where the tokenizer has no BOS. An
            image is normal noise as the model sees it there, put before a text that was written without it.
    """

    num_prompts: int | Literal["auto"] = 128
    num_probes: int = 1
    num_tokens: int = 64
    min_prefix: int = 1
    max_prefix: int = 5
    temperature: float = 0.9
    top_p: float = 0.9
    repetition_penalty: float = 1.05
    noise_images: bool = False
    positions: Literal["last", "all"] = "last"
    target_overlap: float = 0.9
    max_prompts: int = 1024
    keep: Literal["auto", "needed", "all"] = "auto"
    batch_size: int = 16
    seed: int = 0
    inputs: Literal["prompts", "rows"] = "prompts"
    form: Literal["paper", "authors"] = "paper"

    @property
    def most_prompts(self) -> int:
        """The prompts that are asked, or that `auto` asks at the latest."""
        return self.max_prompts if self.num_prompts == "auto" else self.num_prompts

    def __post_init__(self) -> None:
        for name in ("num_prompts", "num_probes", "batch_size", "min_prefix", "max_prompts"):
            value = getattr(self, name)
            if value != "auto" and (isinstance(value, str) or value < 1):
                raise DowserError(f"probe.{name} must be at least 1, got {value}")
        if self.max_prefix < self.min_prefix:
            raise DowserError(f"probe.max_prefix ({self.max_prefix}) must not be below min_prefix ({self.min_prefix})")
        if self.num_tokens < self.max_prefix + 2:
            raise DowserError(
                f"probe.num_tokens must leave room for BOS, the prefix and one written token: "
                f"at least {self.max_prefix + 2}, got {self.num_tokens}"
            )
        if not self.temperature > 0 or not 0 < self.top_p <= 1 or not self.repetition_penalty > 0:
            raise DowserError(
                "probe.temperature and repetition_penalty must be above 0 and top_p in (0, 1], got "
                f"{self.temperature}, {self.repetition_penalty} and {self.top_p}"
            )
        if not 0 < self.target_overlap < 1:
            raise DowserError(f"probe.target_overlap is a Jaccard index in (0, 1), got {self.target_overlap}")
        if self.inputs not in ("prompts", "rows") or (self.inputs == "rows" and self.noise_images):
            raise DowserError(
                f"probe.inputs is prompts or rows, got {self.inputs} with noise_images {self.noise_images}; rows have "
                "pictures of noise where --dowser.rows.sources has noise"
            )
        if self.form not in ("paper", "authors") or (self.inputs == "rows" and self.form != "paper"):
            raise DowserError(
                f"probe.form is paper or authors, and of prompts alone, got {self.form} with inputs {self.inputs}"
            )
        if self.positions not in ("last", "all") or self.keep not in ("auto", "needed", "all"):
            raise DowserError(
                "probe.positions is last or all, and probe.keep auto, needed or all; got "
                f"{self.positions} and {self.keep}"
            )

    def identity(self) -> dict[str, object]:
        """The settings that one prompt's factors depend on; how many prompts there are is not among them."""
        found = {name: value for name, value in asdict(self).items() if name not in _NO_IDENTITY}
        return found if self.form != "paper" else {name: value for name, value in found.items() if name != "form"}


Source = Literal["text", "chat", "turn", "noise", "blank", "train", "shuffle", "mosaic"]


@dataclass(frozen=True)
class Rows:
    """Which rows the model writes.

    Args:
        sources: what rows are written after: `text`, `chat`, `turn`, `noise`, `blank`, `train`, `shuffle`, `mosaic`;
            `auto` = all but `blank` that there is what it takes for.
        per_source: rows of each source. Those with pictures are held in host memory as the processor makes them, for
            LLaVA-1.5 1.3 MiB each; there are fewer of them where a source would take more than 384 MiB.
        num_tokens: most tokens that are written after what a row starts with.
        temperature: of the sampling.
        held_out: share of every source that nothing is trained on.
        batch_size: rows with pictures that are written together; changes memory and speed, not the result.
        seed: of prefixes, pictures and sampling.
    """

    sources: list[Source] | Literal["auto"] = "auto"
    per_source: int = 256
    num_tokens: int = 32
    temperature: float = 1.0
    held_out: float = 0.1
    batch_size: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        if self.sources != "auto" and (not self.sources or set(self.sources) - set(get_args(Source))):
            raise DowserError(
                f"rows.sources: got {self.sources}, expected auto or some of {', '.join(get_args(Source))}"
            )
        if min(self.per_source, self.num_tokens, self.batch_size) < 1:
            raise DowserError(
                "rows.per_source, num_tokens and batch_size must be at least 1; got "
                f"{self.per_source}, {self.num_tokens} and {self.batch_size}"
            )
        if not self.temperature > 0 or not 0 < self.held_out < 1 or not self.numbers(held_out=True):
            raise DowserError(
                "rows.temperature must be above 0, and rows.held_out a share in (0, 1) that is at least one row of "
                f"per_source; got {self.temperature} and {self.held_out} of {self.per_source}"
            )

    def identity(self) -> dict[str, object]:
        """What rows depend on, for JSON."""
        return {name: value for name, value in asdict(self).items() if name not in ("batch_size", "sources")}

    def numbers(self, held_out: bool) -> list[int]:
        """Numbers of the rows of a source that are held out, or of all others, whatever `per_source` is."""
        share = self.held_out
        out = [int((n + 1) * share + 1e-9) > int(n * share + 1e-9) for n in range(self.per_source)]
        return [number for number, is_out in enumerate(out) if is_out == held_out]
