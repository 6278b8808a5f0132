import numpy as np
import pytest
import tensorflow as tf

from tfgen.training.gradients import FLOAT16_MAX, clip_by_global_norm, global_norm

INF, NAN = np.inf, np.nan


def _clip(arrays, max_norm, **options):
    """Gradients as float64 arrays, norm and usable as Python values."""
    clipped = clip_by_global_norm([tf.constant(a, tf.float32) for a in arrays], max_norm, **options)
    return [g.numpy().astype(np.float64) for g in clipped.gradients], float(clipped.norm), bool(clipped.usable)


def _norm(arrays) -> float:
    return float(np.sqrt(sum((np.asarray(a, np.float64) ** 2).sum() for a in arrays)))


def test_norm_is_over_all_tensors_in_float32() -> None:
    random = np.random.RandomState(0)
    arrays = [random.normal(size=shape) for shape in ([7, 5], [3], [])]
    np.testing.assert_allclose(global_norm([tf.constant(a, tf.float32) for a in arrays]), _norm(arrays), rtol=1e-6)
    halves = [tf.constant([60000.0, 60000.0], tf.float16)]  # the squares overflow float16
    np.testing.assert_allclose(global_norm(halves), _norm([[60000, 60000]]), rtol=1e-3)


@pytest.mark.parametrize("non_finite", ["zero", "clamp"])
@pytest.mark.parametrize(("max_norm", "factor"), [(6.5, 0.5), (13.0, 1.0), (100.0, 1.0), (None, 1.0), (0, 1.0)])
def test_clips_to_the_bound_and_leaves_smaller_gradients(
    non_finite: str, max_norm: float | None, factor: float
) -> None:
    arrays = [[3.0, -4.0], [[12.0]]]  # norm 13
    gradients, norm, usable = _clip([np.multiply(a, 8) for a in arrays], max_norm, scale=0.125, non_finite=non_finite)
    assert usable
    assert norm == pytest.approx(13.0, rel=1e-6)
    for gradient, array in zip(gradients, arrays, strict=True):
        np.testing.assert_allclose(gradient, np.multiply(array, factor), rtol=1e-6)


@pytest.mark.parametrize(("bad", "reported"), [(INF, INF), (-INF, INF), (NAN, NAN)])
def test_zero_reports_the_overflow_and_steps_with_the_rest(bad: float, reported: float) -> None:
    gradients, norm, usable = _clip([[6.0, bad], [-8.0]], 5.0, scale=1.0, non_finite="zero")
    np.testing.assert_equal(norm, reported)
    assert usable
    np.testing.assert_allclose(gradients[0], [3.0, 0.0], rtol=1e-6)
    np.testing.assert_allclose(gradients[1], [-4.0], rtol=1e-6)


def test_clamp_limits_scaled_entries_before_the_norm() -> None:
    scale = 2.0**-10
    gradients, norm, usable = _clip([[INF, -INF, NAN], [1e6, 512.0]], None, scale=scale, non_finite="clamp")
    limited = [[FLOAT16_MAX, -FLOAT16_MAX, 0.0], [FLOAT16_MAX, 512.0]]
    assert usable
    assert norm == pytest.approx(_norm(limited) * scale, rel=1e-6)
    for gradient, array in zip(gradients, limited, strict=True):
        np.testing.assert_allclose(gradient, np.multiply(array, scale), rtol=1e-6)


def test_finite_entries_whose_squares_overflow_are_unusable() -> None:
    gradients, norm, usable = _clip([[1e30, 1.0]], 1.0, non_finite="zero")
    assert (norm, usable) == (INF, False)
    np.testing.assert_array_equal(gradients[0], [0.0, 0.0])


def test_slices_are_summed_and_halves_become_float32() -> None:
    slices = tf.IndexedSlices(tf.constant([[1.0, 2.0], [3.0, 4.0]]), tf.constant([2, 2]), tf.constant([3, 2]))
    clipped = clip_by_global_norm([slices, tf.constant([1.5], tf.float16)], None, non_finite="zero")
    np.testing.assert_array_equal(clipped.gradients[0], [[0, 0], [0, 0], [4, 6]])
    assert [g.dtype for g in clipped.gradients] == [tf.float32, tf.float32]
    assert float(clipped.norm) == pytest.approx(_norm([[4.0, 6.0, 1.5]]), rel=1e-6)


@pytest.mark.parametrize("non_finite", ["zero", "clamp"])
def test_same_bits_in_a_function(non_finite: str) -> None:
    gradients = [tf.random.stateless_normal([257, 31], [1, 2]), tf.constant([NAN, 2.0, -INF])]

    def clip(scale):
        return clip_by_global_norm(gradients, 1.0, scale=scale, non_finite=non_finite)

    eager, traced = clip(tf.constant(0.5)), tf.function(clip)(tf.constant(0.5))
    for one, other in zip(eager.gradients, traced.gradients, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


@pytest.mark.parametrize("non_finite", ["zero", "clamp", "skip"])
def test_without_scale_and_bound_gradients_pass_untouched(non_finite: str) -> None:
    """However large they are; and a graph has no product for them."""
    gradients, norm, usable = _clip([[3e10, -4e10], [0.0]], None, non_finite=non_finite)
    limit = FLOAT16_MAX if non_finite == "clamp" else 1e11
    assert usable
    assert norm == pytest.approx(min(5e10, 2**0.5 * limit), rel=1e-6)
    np.testing.assert_array_equal(gradients[0], np.clip(np.array([3e10, -4e10], np.float32), -limit, limit))

    def multiplications(**options) -> int:
        clip = tf.function(lambda g: clip_by_global_norm([g], None, non_finite=non_finite, **options).gradients)
        graph = clip.get_concrete_function(tf.TensorSpec([2])).graph
        return sum(
            node.op == "Mul" and graph.get_tensor_by_name(f"{node.name}:0").shape == [2]
            for node in graph.as_graph_def().node
        )

    assert multiplications() == 0
    assert multiplications(scale=tf.constant(0.5)) == 1


@pytest.mark.parametrize("bad", [INF, NAN, 1.0])
def test_zero_in_a_function(bad: float) -> None:
    arrays = [tf.constant([6.0, bad]), tf.constant([-8.0])]

    def clip(scale):
        return clip_by_global_norm(arrays, 5.0, scale=scale, non_finite="zero")

    eager, traced = clip(1.0), tf.function(clip)(1.0)
    assert bool(traced.usable)
    np.testing.assert_array_equal(eager.norm, traced.norm)
    for one, other in zip(eager.gradients, traced.gradients, strict=True):
        np.testing.assert_array_equal(one, other)
        assert np.isfinite(other).all()


def test_refuses() -> None:
    gradient = tf.constant([1.0])
    with pytest.raises(ValueError, match="max_norm is -1"):
        clip_by_global_norm([gradient], -1.0, non_finite="zero")
    with pytest.raises(ValueError, match="'zero', 'clamp' or 'skip'"):
        clip_by_global_norm([gradient], 1.0, non_finite="drop")
    with pytest.raises(ValueError, match=r"1 of 2 variables \(indices \[1\]\).*UnconnectedGradients.ZERO"):
        clip_by_global_norm([gradient, None], 1.0, non_finite="zero")
