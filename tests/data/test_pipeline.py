import threading

import numpy as np
import pytest

from tfgen.data.arrays import ArraySource
from tfgen.data.errors import DataError
from tfgen.data.pipeline import EvaluationBatches, IndexStream, Prefetcher, minibatches
from tfgen.data.source import Source
from tfgen.randomness import host_generator


def source(count: int) -> ArraySource:
    return ArraySource(np.arange(count, dtype=np.uint8).reshape(-1, 1, 1).repeat(2, 1), "numbers")


# The index stream ---------------------------------------------------------------------------------------


def test_each_epoch_shows_every_image_once_but_for_the_remainder():
    stream = IndexStream(source(23), batch_size=3, ranks=2, seed=5)
    assert stream.steps_per_epoch == 3
    orders = []
    for epoch in range(3):
        steps = range(epoch * 3, epoch * 3 + 3)
        assert {stream.epoch(step) for step in steps} == {epoch}
        shown = np.concatenate([stream.global_indices(step) for step in steps])
        assert len(set(shown.tolist())) == 18
        assert shown.dtype == np.int64
        orders.append(shown)
    assert not np.array_equal(orders[0], orders[1])


def test_order_is_that_of_the_named_generator():
    stream = IndexStream(source(23), batch_size=3, ranks=2, seed=5)
    expected = minibatches(host_generator(5, "order", 1).permutation(23), 3, 2)
    np.testing.assert_array_equal(stream.global_indices(4), expected[1].reshape(-1))
    for rank in range(2):
        np.testing.assert_array_equal(stream.indices(4, rank), expected[1, rank])


def test_resuming_needs_no_history_and_seeds_differ():
    whole = IndexStream(source(23), 3, 2, seed=5)
    history = [whole.global_indices(step) for step in range(9)]
    for step in (8, 0, 5):  # a fresh stream, and one that jumps back and forth
        np.testing.assert_array_equal(IndexStream(source(23), 3, 2, seed=5).global_indices(step), history[step])
        np.testing.assert_array_equal(whole.global_indices(step), history[step])
    assert not np.array_equal(IndexStream(source(23), 3, 2, seed=6).global_indices(0), history[0])


def test_one_rank_with_a_double_batch_sees_the_same_images():
    two, one = IndexStream(source(23), 3, 2, seed=5), IndexStream(source(23), 6, 1, seed=5)
    for step in range(6):
        np.testing.assert_array_equal(two.global_indices(step), one.global_indices(step))


def test_too_few_images_for_a_batch_states_both_numbers():
    with pytest.raises(DataError, match=r"5 image\(s\) do not fill one batch of 6 \(3 per rank, 2 rank"):
        IndexStream(source(5), 3, 2, seed=0)


def test_a_source_may_choose_its_epoch():
    class Doubling(Source):
        name, spec = "doubling", source(4).spec

        def __len__(self):
            return 8

        @property
        def epoch_size(self):
            return 4

        def epoch_order(self, generator):
            return generator.permutation(4) * 2

        def read(self, indices):
            return {"image": np.zeros((len(indices), 2, 1, 1), np.uint8)}

    stream = IndexStream(Doubling(), 2, 1, seed=1)
    assert stream.steps_per_epoch == 2
    shown = np.concatenate([stream.indices(0, 0), stream.indices(1, 0)])
    assert sorted(shown.tolist()) == [0, 2, 4, 6]


# Evaluation ---------------------------------------------------------------------------------------------


def numbers(batches) -> list[list[int]]:
    return [batch["image"][:, 0, 0, 0].tolist() for batch in batches]


def test_evaluation_sees_each_image_once_over_all_ranks():
    first, second = (EvaluationBatches(source(11), 2, rank, 2) for rank in range(2))
    assert numbers(first) == [[0, 1], [4, 5], [8, 9]]
    assert numbers(second) == [[2, 3], [6, 7], [10]]
    assert numbers(first) == [[0, 1], [4, 5], [8, 9]]  # again
    assert [batch["index"].tolist() for batch in second] == numbers(second)


def test_evaluation_remainder_may_leave_a_rank_without_images():
    assert numbers(EvaluationBatches(source(9), 2, 1, 2)) == [[2, 3], [6, 7]]


def test_evaluation_drops_the_remainder_on_demand_and_heeds_the_limit():
    assert numbers(EvaluationBatches(source(11), 2, 1, 2, drop_remainder=True)) == [[2, 3], [6, 7]]
    assert numbers(EvaluationBatches(source(11), 4, limit=6)) == [[0, 1, 2, 3], [4, 5]]
    assert numbers(EvaluationBatches(source(11), 4, limit=99)) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    with pytest.raises(DataError, match=r"3 image\(s\) do not fill"):
        EvaluationBatches(source(11), 4, limit=3, drop_remainder=True)


# The prefetcher -----------------------------------------------------------------------------------------


def test_results_come_in_order_from_the_first():
    with Prefetcher(lambda step: step * step, first=3) as results:
        assert [next(results) for _ in range(50)] == [step * step for step in range(3, 53)]
        assert results.wait_seconds >= 0


def test_no_more_than_depth_results_are_made_ahead():
    calls = []
    reached = threading.Event()

    def record(step):
        calls.append(step)
        if step == 2:
            reached.set()
        return step

    with Prefetcher(record, 0, depth=2) as results:
        assert next(results) == 0
        assert reached.wait(10)
        assert calls == [0, 1, 2]


def test_exception_is_raised_after_the_results_before_it():
    def fail_at_two(step):
        if step == 2:
            raise KeyError("broken image")
        return step

    with Prefetcher(fail_at_two, 0, depth=5) as results:
        assert [next(results), next(results)] == [0, 1]
        for _ in range(2):
            with pytest.raises(KeyError, match="broken image"):
                next(results)


@pytest.mark.parametrize("taken", [0, 1])
def test_closing_ends_the_thread_whatever_it_is_doing(taken):
    results = Prefetcher(lambda step: step, 0)
    for _ in range(taken):
        next(results)
    results.close()
    assert not results._thread.is_alive()
    with pytest.raises(StopIteration):
        next(results)
    results.close()


def test_consumer_failure_closes():
    with pytest.raises(ZeroDivisionError), Prefetcher(lambda step: step, 0) as results:
        raise ZeroDivisionError
    assert not results._thread.is_alive()


def test_waiting_is_measured():
    release = threading.Event()

    def slow(step):
        if step == 1:
            assert release.wait(10)
        return step

    with Prefetcher(slow, 0) as results:
        next(results)
        threading.Timer(0.05, release.set).start()
        next(results)
        assert results.wait_seconds > 0.01


def test_depth_must_be_positive():
    with pytest.raises(ValueError, match="depth >= 1"):
        Prefetcher(lambda step: step, 0, depth=0)
