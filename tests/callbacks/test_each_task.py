"""What is put on a model for an evaluation is taken off, however that ends."""

from contextlib import contextmanager

import pytest

from dowser_pl.callbacks.each_task import EachTask
from tests.tiny_models import save_tiny_llava
from tests.tiny_run import TinyData, build_module, build_trainer


@pytest.mark.parametrize("fails", [False, True])
def test_what_was_put_on_is_taken_off(tmp_path, fails):
    on: list[bool] = []

    @contextmanager
    def put_on(network):
        on.append(True)
        yield
        on.append(False)

    def keep(task, answered):
        assert on == [True]
        if fails:
            raise RuntimeError("no room")

    trainer = build_trainer(tmp_path, callbacks=[EachTask(keep, put_on)])
    module = build_module(save_tiny_llava(tmp_path / "model"))
    if fails:
        with pytest.raises(RuntimeError, match="no room"):
            trainer.validate(module, TinyData(), verbose=False)
    else:
        trainer.validate(module, TinyData(), verbose=False)
    assert on == [True, False]
