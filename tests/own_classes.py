"""A package as a user writes it, beside nothing of ours: a method, metrics, a schedule and a data module."""

import sys
from pathlib import Path

METHOD = '''\
from dowser_pl.methods import Reference, Scored


class LargestMove(Scored):
    """Train the largest weights.

    Args:
        update_ratio: trainable share.
        power: of the weights.
    """

    reference = Reference("Of one's own", "Somebody", 2026)

    def __init__(self, update_ratio: float = 0.25, power: float = 1.0, scope: str = "layer") -> None:
        super().__init__(update_ratio, scope)
        self.power = power

    def score(self, layer):
        return 1 / (1 + layer.weight.float().abs() ** self.power)
'''
METRICS = '''\
import torch
from torchmetrics import Metric


class Contains(Metric):
    """Share of answers in which something right stands."""

    full_state_update = False

    def __init__(self, casefold: bool = False) -> None:
        super().__init__()
        self.casefold = casefold
        self.add_state("total", default=torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("count", default=torch.zeros(()), dist_reduce_fx="sum")

    def update(self, predictions, references):
        for answer, right in zip(predictions, references, strict=True):
            if "?" in right:
                raise ValueError("nobody knows")
            fold = str.casefold if self.casefold else str
            self.total += any(fold(each) in fold(answer) for each in right)
            self.count += 1

    def compute(self):
        return self.total / self.count


class Each(Contains):
    """It also tells the score of each row."""

    def row_scores(self, predictions, references):
        return [float(any(each in answer for each in right)) for answer, right in zip(predictions, references)]


class Lower(Contains):
    higher_is_better = False


class Stateless(Metric):
    def update(self, predictions, references):
        self.last = predictions

    def compute(self):
        return torch.zeros(())


class OneArgument(Contains):
    def update(self, predictions):
        pass


class Needs(Contains):
    def __init__(self, vocabulary) -> None:
        super().__init__()


class Texts(Contains):
    def update(self, predictions, references):
        self.total += sum(answer == right.strip() for answer, right in zip(predictions, references))


class Many(Contains):
    def compute(self):
        return torch.zeros(2)


class Negative(Contains):
    def compute(self):
        return -self.total
'''
SCHEDULE = """\
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class Ramp(LRScheduler):
    def __init__(self, optimizer: Optimizer, steps: int = 4) -> None:
        self.steps = steps
        super().__init__(optimizer)

    def get_lr(self):
        return [rate * min(1.0, self._step_count / self.steps) for rate in self.base_lrs]
"""
DATA = '''\
from dowser_pl.data import Conversation, MultimodalData, Question, Task


def turn(role, text):
    return {"role": role, "content": [{"type": "text", "text": text}]}


class Colours(MultimodalData):
    """Text alone: which colour?

    Args:
        num_rows: to train on.
    """

    def __init__(self, num_rows: int = 8) -> None:
        super().__init__(batch_size=4, eval_batch_size=4)
        self.num_rows = num_rows

    def train_conversations(self):
        turns = [turn("user", "what colour is it ?"), turn("assistant", "red")]
        return [Conversation(f"row {number}", turns) for number in range(self.num_rows)]

    def evaluation_tasks(self):
        asked = [Question(f"q {number}", [turn("user", "what colour is it ?")], [], ["red"]) for number in range(4)]
        return [
            Task("mine", "downstream", "my_package.metrics.Contains", asked, 3),
            Task("kept", "upstream", "exact_match", asked, 3),
        ]
'''
MODULES = {"__init__": "", "methods": METHOD, "metrics": METRICS, "schedules": SCHEDULE, "data": DATA}


def write_package(folder: Path) -> Path:
    """`my_package` in a folder; one of an earlier test is forgotten."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_package"]:
        del sys.modules[name]
    package = folder / "my_package"
    package.mkdir()
    for name, text in MODULES.items():
        (package / f"{name}.py").write_text(text)
    return package
