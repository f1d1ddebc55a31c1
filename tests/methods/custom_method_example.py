from torch import Tensor

from dowser_pl import Layer, Reference, Scored


class QuietInputs(Scored):
    """Train the entries that the quietest inputs of a matrix enter by."""

    reference = Reference("Quiet inputs", "nobody yet", 2026)
    needs = frozenset({"activation"})

    def __init__(self, update_ratio: float = 0.1) -> None:
        super().__init__(update_ratio, scope="matrix")

    def score(self, layer: Layer) -> Tensor:  # (O, I), the lowest are trained
        return layer.measured("activation").mean(dim=0).expand_as(layer.weight)
