import numpy as np
import pytest

from tfgen.data.arrays import ArraySource
from tfgen.data.errors import DataError
from tfgen.data.pipeline import IndexStream
from tfgen.systems.distaug.mixing import MixedSource, draw_mixture, take_without_replacement


def source(name: str, count: int, level: int = 0, side: int = 2) -> ArraySource:
    images = np.full((count, side, side, 3), level, np.uint8)
    images[:, 0, 0, 0] = np.arange(count)
    return ArraySource(images, name, labels=np.zeros(count, np.int64))


def mixed(fraction=0.5, seed=3, main=40, auxiliary=90, **options) -> MixedSource:
    return MixedSource(source("main", main), source("auxiliary", auxiliary, 255), fraction, seed, **options)


def generators(seed: int) -> tuple[np.random.RandomState, list[np.random.RandomState]]:
    return np.random.RandomState(seed), [np.random.RandomState(seed) for _ in range(2)]


def request_by_request(counts, size, seed):
    """The original's behaviour, one request at a time."""
    generator = np.random.RandomState(seed)
    order, position, taken = generator.permutation(size), 0, []
    for count in counts:
        if position + count > size:
            order, position = generator.permutation(size), 0
        taken += order[position : position + count].tolist()
        position += count
    return taken


@pytest.mark.parametrize("size", [5, 7, 40])
def test_taking_passes_over_what_is_too_few_for_a_request(size):
    for seed in range(20):
        counts = np.random.RandomState(seed).randint(0, 6, 30)
        taken = take_without_replacement(np.random.RandomState(seed), size, counts)
        assert taken.tolist() == request_by_request(counts, size, seed)


def test_taking_nothing_and_too_much():
    assert take_without_replacement(np.random.RandomState(0), 5, np.array([], np.int64)).tolist() == []
    assert take_without_replacement(np.random.RandomState(0), 5, np.array([0, 0])).tolist() == []
    with pytest.raises(DataError, match="6 different images of a set that has 5"):
        take_without_replacement(np.random.RandomState(0), 5, np.array([1, 6]))


def test_draws_do_not_depend_on_later_requests():
    ids, items = generators(42)
    all_datasets, all_items = draw_mixture(np.full(9, 8), [40, 90], [0.5, 0.5], ids, items)
    ids, items = generators(42)
    for first in range(0, 72, 24):
        datasets, drawn = draw_mixture(np.full(3, 8), [40, 90], [0.5, 0.5], ids, items)
        np.testing.assert_array_equal(datasets, all_datasets[first : first + 24])
        if first == 0:
            np.testing.assert_array_equal(drawn, all_items[:24])
    for request in all_datasets.reshape(9, 8):
        assert sorted(request) == request.tolist()  # grouped by data set


def test_epoch_draws_both_sets_without_repeating():
    data = mixed(0.5)
    order = data.epoch_order(np.random.RandomState(1))
    assert (len(data), data.epoch_size, len(order)) == (130, 40, 40)
    assert len(set(order.tolist())) == 40
    shares = [
        (mixed(fraction, main=4000, auxiliary=250).epoch_order(np.random.RandomState(1)) >= 4000).mean()
        for fraction in (0.0, 0.25, 1.0)
    ]
    np.testing.assert_allclose(shares, [0, 0.25, 1], atol=0.03)


def test_a_small_auxiliary_set_is_shown_again_once_all_have_come():
    order = mixed(1.0, main=40, auxiliary=15).epoch_order(np.random.RandomState(1))
    for first in (0, 15):
        assert sorted(order[first : first + 15].tolist()) == list(range(40, 55))


def test_epoch_is_a_function_of_both_seeds():
    def order(run_seed, mixer_seed):
        return mixed(0.5, mixer_seed).epoch_order(np.random.RandomState(run_seed)).tolist()

    assert order(1, 3) == order(1, 3)
    assert order(1, 3) != order(2, 3)
    assert order(1, 3) != order(1, 4)


def test_ranks_see_different_images():
    stream = IndexStream(mixed(0.5), batch_size=5, ranks=2, seed=0)
    assert stream.steps_per_epoch == 4
    for step in range(8):
        assert not set(stream.indices(step, 0).tolist()) & set(stream.indices(step, 1).tolist())


def test_read_tells_the_data_set():
    batch = mixed().read(np.array([129, 0, 40, 39]))
    assert batch["dataset"].tolist() == [1, 0, 1, 0]
    assert batch["dataset"].dtype == np.int32
    assert batch["image"][:, 0, 0, 0].tolist() == [89, 0, 0, 39]
    assert batch["image"][:, 1, 1, 1].tolist() == [255, 0, 255, 0]
    assert set(batch) == {"image", "dataset"}
    assert mixed().spec.num_classes is None


def test_subset_keeps_the_first_images():
    assert len(mixed(subset_size=10)) == 50
    assert len(mixed(subset_size=1000)) == 130
    assert max(mixed(1.0, subset_size=10).epoch_order(np.random.RandomState(0))) == 49


def test_images_of_two_sizes_cannot_be_mixed():
    with pytest.raises(DataError, match=r"\(2, 2, 3\) \(main\) and \(3, 3, 3\) \(other\)"):
        MixedSource(source("main", 4), source("other", 4, side=3), 0.5, 0)
    with pytest.raises(DataError, match=r"within \[0, 1\], found 1.5"):
        mixed(1.5)
