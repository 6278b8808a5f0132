import numpy as np
import pytest

from tfgen.data.arrays import ArraySource
from tfgen.data.errors import DataError
from tfgen.data.splitting import complete_splits, held_out_size


def source(count: int) -> ArraySource:
    return ArraySource(np.arange(count, dtype=np.uint8)[:, None, None].repeat(2, 1).repeat(2, 2), "numbers")


def members(part) -> list[int]:
    return part.read(np.arange(len(part)))["image"][:, 0, 0, 0].tolist()


def test_all_three_are_held_out_of_one_source_without_overlap():
    splits = complete_splits(source(40))
    parts = [members(splits.train), members(splits.valid), members(splits.test)]
    assert [len(part) for part in parts] == [32, 4, 4]
    assert sorted(parts[0] + parts[1] + parts[2]) == list(range(40))
    assert members(complete_splits(source(40)).valid) == parts[1]


def test_given_splits_are_kept():
    train, valid, test = source(40), source(5), source(6)
    assert complete_splits(train, valid, test).test is test
    assert complete_splits(train, valid).test is valid
    splits = complete_splits(train, None, test)
    assert splits.test is test
    assert len(splits.train) == 36
    assert not set(members(splits.train)) & set(members(splits.valid))


def test_sizes():
    assert [held_out_size(count) for count in (3, 99, 50_000, 10**6)] == [1, 9, 5_000, 10_000]
    with pytest.raises(DataError, match=r"2 image\(s\), too few"):
        complete_splits(source(2))
