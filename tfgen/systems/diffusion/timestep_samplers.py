"""Which steps to train on: uniformly drawn ones, or more of those with large losses.

Nichol & Dhariwal (2021), section 3.3, equation 18. Draws are functions of given uniform numbers, in float64: the same
numbers give the same steps as NumPy's `choice`, which published runs used.
"""

from __future__ import annotations

import tensorflow as tf

HISTORY = 10
UNIFORM_SHARE = 0.001


class UniformSampler:
    """Every step alike.

    Args:
      steps: T.
    """

    uses_losses = False

    def __init__(self, steps: int):
        self.steps = steps

    def weights(self) -> tf.Tensor:
        """float64 [T], proportional to the probabilities of the steps."""
        return tf.ones([self.steps], tf.float64)

    def draw(self, uniforms: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Steps and their importance weights, all 1: see `draw`."""
        return draw(self.weights(), uniforms)


class LossSecondMomentSampler(tf.Module):
    """Steps with probability proportional to sqrt(E[L_t^2]) over their last losses, mixed with a uniform share.

    Until every step has a full history all steps are alike.

    Args:
      steps: T.
      history: losses that are remembered for each step.
      uniform_share: share of the draws that are uniform, so that no step is forgotten.
    """

    uses_losses = True

    def __init__(self, steps: int, history: int = HISTORY, uniform_share: float = UNIFORM_SHARE):
        super().__init__(name="loss_second_moment_sampler")
        self.steps = steps
        self.uniform_share = uniform_share
        self.history = tf.Variable(tf.zeros([steps, history], tf.float64), trainable=False, name="history")
        self.counts = tf.Variable(tf.zeros([steps], tf.int32), trainable=False, name="counts")

    def warmed_up(self) -> tf.Tensor:
        """bool []: every step has a full history."""
        return tf.reduce_all(self.counts == self.history.shape[1])

    def weights(self) -> tf.Tensor:
        """float64 [T], proportional to the probabilities of the steps."""
        moments = tf.sqrt(tf.reduce_mean(tf.square(self.history), axis=1))  # [T]
        # Losses that are all 0 leave the uniform share.
        weights = tf.math.divide_no_nan(moments, tf.reduce_sum(moments)) * (1 - self.uniform_share)
        weights += self.uniform_share / self.steps
        return tf.where(self.warmed_up(), weights, tf.ones_like(weights))

    def draw(self, uniforms: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Steps and their importance weights: see `draw`."""
        return draw(self.weights(), uniforms)

    def update(self, t: tf.Tensor, losses: tf.Tensor) -> None:
        """Remembers losses, in their order; a full history forgets its oldest.

        A loss that is not finite is left out: it would make every weight NaN for as long as it is remembered, though
        the step that it belongs to is skipped.

        Args:
          t: int [N], steps; a step may occur many times.
          losses: floating point [N], before the importance weights; of all ranks in rank order.
        """
        losses = tf.convert_to_tensor(losses)
        finite = tf.math.is_finite(losses)
        t = tf.cast(tf.boolean_mask(t, finite), tf.int32)  # [M]
        losses = tf.cast(tf.boolean_mask(losses, finite), tf.float64)  # [M]
        capacity = self.history.shape[1]
        added = tf.math.bincount(t, minlength=self.steps, maxlength=self.steps)  # [T]
        shift = tf.maximum(self.counts + added - capacity, 0)  # [T], old and new losses that are forgotten
        # A loss goes behind those already there and those of the same step earlier in this batch.
        order = tf.argsort(t, stable=True)  # [M]
        t, losses = tf.gather(t, order), tf.gather(losses, order)
        earlier = tf.range(tf.size(t)) - tf.gather(tf.cumsum(added, exclusive=True), t)  # [M], of the same step
        slots = tf.gather(self.counts - shift, t) + earlier  # [M]
        remembered = slots >= 0
        kept = tf.minimum(tf.range(capacity) + shift[:, tf.newaxis], capacity - 1)  # [T, history]
        history = tf.gather(self.history, kept, batch_dims=1)  # from the end of the old losses on, to be overwritten
        places = tf.stack([tf.boolean_mask(t, remembered), tf.boolean_mask(slots, remembered)], axis=1)  # [., 2]
        self.history.assign(tf.tensor_scatter_nd_update(history, places, tf.boolean_mask(losses, remembered)))
        self.counts.assign(tf.minimum(self.counts + added, capacity))


def draw(weights: tf.Tensor, uniforms: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Inverts the cumulative distribution.

    Args:
      weights: float64 [T], positive; they need not sum to 1.
      uniforms: float64 [B], uniform in [0, 1).

    Returns:
      int32 [B], steps; float32 [B], importance weights 1 / (T p): their expectation is 1, and losses times them have
      the expectation of losses at uniformly drawn steps.

    Raises:
      ValueError: uniform numbers of another dtype: in float32 they tell thousands of steps apart unevenly.
    """
    uniforms = tf.convert_to_tensor(uniforms)
    if uniforms.dtype != tf.float64:
        raise ValueError(f"expected uniform numbers as float64, found {uniforms.dtype.name}")
    probabilities = weights / tf.reduce_sum(weights)  # [T]
    cumulative = tf.cumsum(probabilities)
    steps = tf.searchsorted(cumulative / cumulative[-1], uniforms, side="right")  # [B] int32
    importance = 1 / (tf.cast(tf.size(weights), tf.float64) * tf.gather(probabilities, steps))
    return steps, tf.cast(importance, tf.float32)
