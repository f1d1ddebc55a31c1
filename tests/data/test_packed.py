"""Rows in one buffer."""

import pickle

import pytest

from dowser_pl.data.packed import PackedRows
from tests.data.builders import many_images, one_image, text_only


def test_rows_come_out_as_they_went_in():
    rows = [one_image(), many_images(), text_only()]
    packed = PackedRows(rows)
    assert len(packed) == 3
    assert list(packed) == rows
    assert packed[-1] == rows[-1]
    with pytest.raises(IndexError):
        packed[3]
    assert not PackedRows([])


def test_a_worker_gets_no_more_than_the_rows():
    """What the training set costs in a process that is handed it; as objects, one row would cost some 2 kB."""
    rows = [text_only() for _ in range(1000)]
    packed = PackedRows(rows)
    assert packed.sizes.tolist() == [len(pickle.dumps(row, protocol=pickle.HIGHEST_PROTOCOL)) for row in rows]
    assert len(pickle.dumps(packed)) < int(packed.sizes.sum()) + 8 * len(rows) + 2000
