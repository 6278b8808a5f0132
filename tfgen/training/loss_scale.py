"""Loss scaling for float16 compute."""

from __future__ import annotations

import tensorflow as tf

from tfgen.training.recipe import LossScaleSettings

BACKOFF = 0.5
# The growth itself knows no limit. Beyond this, 1 / scale is no normal float32 and devices may flush it to zero.
CEILING = 2.0**126


class LossScale(tf.Module):
    """The factor on the objective that lifts small gradients into the range of float16.

    Micikevicius et al., arXiv:1710.03740, section 3.2. Multiply the objective by `scale` and hand `1 / scale` to
    `clip_by_global_norm`. The scale is part of the checkpoint, so that a resumed run continues with it.

    Attributes:
      scale: float32 scalar variable.

    Raises:
      ValueError: a setting that is not positive.
    """

    def __init__(self, settings: LossScaleSettings):
        super().__init__(name="loss_scale")
        for field in ("initial", "minimum"):
            if not 0 < getattr(settings, field) < float("inf"):
                raise ValueError(f"the loss scale's {field} is {getattr(settings, field)}, expected a positive number")
        if not 1 <= settings.growth < float("inf"):
            raise ValueError(f"the loss scale's growth is {settings.growth}, expected a factor of at least 1")
        self.settings = settings
        self.scale = tf.Variable(settings.initial, dtype=tf.float32, trainable=False, name="loss_scale")

    def update(self, loss_is_finite: tf.Tensor, norm_is_finite: tf.Tensor) -> None:
        """Reacts to one step. Call it on skipped steps too, with the same arguments on every rank.

        Args:
          loss_is_finite: bool scalar. If False the forward pass itself failed, of which the scale is not the
            cause, and the scale stays unless `settings.loss_counts`.
          norm_is_finite: bool scalar, of the norm that `clip_by_global_norm` reports.
        """
        if not self.settings.dynamic:
            return
        if self.settings.loss_counts:
            loss_is_finite, norm_is_finite = tf.constant(True), norm_is_finite & loss_is_finite
        scale = self.scale.read_value()
        grown = tf.minimum(scale * self.settings.growth, CEILING)
        backed_off = tf.where(scale > self.settings.minimum, scale * BACKOFF, scale)
        self.scale.assign(tf.where(loss_is_finite, tf.where(norm_is_finite, grown, backed_off), scale))
