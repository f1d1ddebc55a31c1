"""Settings of the importance pass, with the published values as defaults."""

from dataclasses import asdict, dataclass

__all__ = ["Probe"]


@dataclass(frozen=True)
class Probe:
    """How the importance pass looks at the model (arXiv 2602.04509, section 3 and appendix).

    Args:
        num_prompts: synthetic prompts the model writes (the paper's N).
        num_probes: Rademacher vectors per prompt (the paper's R). More prompts help more than more probes.
        num_tokens: length of a prompt with its prefix; shorter where the model ends its text itself.
        min_prefix: fewest random tokens after BOS.
        max_prefix: most random tokens after BOS.
        temperature: of the sampling.
        top_p: nucleus of the sampling.
        repetition_penalty: of the sampling.
        noise_images: put one image of uniform noise before the text of every prompt.
        batch_size: prompts per forward pass; changes memory and speed, not the result.
        seed: of prefixes, sampling, noise and probes.
    """

    num_prompts: int = 64
    num_probes: int = 8
    num_tokens: int = 64
    min_prefix: int = 1
    max_prefix: int = 5
    temperature: float = 0.9
    top_p: float = 0.9
    repetition_penalty: float = 1.05
    noise_images: bool = False
    batch_size: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_prompts", "num_probes", "batch_size", "min_prefix"):
            if getattr(self, name) < 1:
                raise ValueError(f"probe.{name} must be at least 1, got {getattr(self, name)}")
        if self.max_prefix < self.min_prefix:
            raise ValueError(f"probe.max_prefix ({self.max_prefix}) must not be below min_prefix ({self.min_prefix})")
        if self.num_tokens < self.max_prefix + 2:
            raise ValueError(
                f"probe.num_tokens must leave room for BOS, the prefix and one written token: "
                f"at least {self.max_prefix + 2}, got {self.num_tokens}"
            )
        if not self.temperature > 0 or not 0 < self.top_p <= 1 or not self.repetition_penalty > 0:
            raise ValueError(
                "probe.temperature and repetition_penalty must be above 0 and top_p in (0, 1], got "
                f"{self.temperature}, {self.repetition_penalty} and {self.top_p}"
            )

    def identity(self) -> dict[str, object]:
        """The settings that the factors depend on; the compute batch is not among them."""
        return {name: value for name, value in asdict(self).items() if name != "batch_size"}
