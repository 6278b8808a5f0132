"""RandAugment: a few random operations of a fixed strength on each training image.

Sources: Cubuk et al., "RandAugment: Practical automated data augmentation with a reduced search space",
2019; the operations are those of Cubuk et al., "AutoAugment", CVPR 2019. Here they follow the code that the
published DistAug models were trained with, peculiarities included, since those are part of the distribution
the models learned; the comments name them.

Operations take and return uint8 images [B, H, W, 3]. Where TensorFlow Addons has the same arithmetic, its
function is used.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfgen.data.source import ImageSpec
from tfgen.settings import SettingsError

with warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)  # "TensorFlow Addons has ended development", twice
    import tensorflow_addons.image as tfa_image

MAX_LEVEL = 10


@dataclasses.dataclass(frozen=True)
class Constants:
    """Strength of the operations that have no natural unit, and the grey of uncovered areas.

    Attributes:
      cutout: half the side, in pixels, of the square cut out at level 10.
      translate: shift in pixels at level 10.
      fill: value of pixels that come from outside the image or are cut out, in 0..255.
    """

    cutout: int = 20
    translate: int = 50
    fill: int = 128


# Operations -------------------------------------------------------------------------------------------------


def blend(degenerate: tf.Tensor, images: tf.Tensor, factor: float) -> tf.Tensor:
    """Goes from `degenerate` (factor 0) to `images` (factor 1) and beyond; uint8 [B, H, W, 3].

    Truncates where `tfa.image.blend` rounds.
    """
    if factor == 0.0:
        return degenerate
    if factor == 1.0:
        return images
    base = tf.cast(degenerate, tf.float32)
    blended = base + factor * (tf.cast(images, tf.float32) - base)
    if not 0.0 < factor < 1.0:
        blended = tf.clip_by_value(blended, 0.0, 255.0)
    return tf.cast(blended, tf.uint8)


def auto_contrast(images: tf.Tensor) -> tf.Tensor:
    """Stretches each channel of each image to 0..255."""
    values = tf.cast(images, tf.float32)
    low = tf.reduce_min(values, axis=[1, 2], keepdims=True)  # [B, 1, 1, 3]
    high = tf.reduce_max(values, axis=[1, 2], keepdims=True)
    scale = 255.0 / tf.where(high > low, high - low, 1.0)
    stretched = tf.clip_by_value(values * scale - low * scale, 0.0, 255.0)
    return tf.where(high > low, tf.cast(stretched, tf.uint8), images)


def equalize(images: tf.Tensor) -> tf.Tensor:
    """Flattens the histogram of each channel of each image."""
    return tfa_image.equalize(images)


def invert(images: tf.Tensor) -> tf.Tensor:
    """255 - v."""
    return 255 - images


def posterize(images: tf.Tensor, bits: int) -> tf.Tensor:
    """Keeps the upper `bits` bits. A shift by 8 is taken as one by 7: 0 bits behave as 1 bit."""
    shift = tf.constant(min(8 - bits, 7), tf.uint8)
    return tf.bitwise.left_shift(tf.bitwise.right_shift(images, shift), shift)


def solarize(images: tf.Tensor, threshold: int) -> tf.Tensor:
    """Inverts values from `threshold` up. It is a uint8: 256 (level 10) wraps to 0 and inverts every pixel."""
    return tf.where(images < threshold % 256, images, 255 - images)


def solarize_add(images: tf.Tensor, addition: int) -> tf.Tensor:
    """Adds `addition` to values below 128."""
    added = tf.clip_by_value(tf.cast(images, tf.int32) + addition, 0, 255)
    return tf.where(images < 128, tf.cast(added, tf.uint8), images)


def color(images: tf.Tensor, factor: float) -> tf.Tensor:
    """Blends with the grey image: 0 is grey, 1 no change."""
    return blend(tf.image.grayscale_to_rgb(tf.image.rgb_to_grayscale(images)), images, factor)


def contrast(images: tf.Tensor, factor: float) -> tf.Tensor:
    """Blends with one constant grey, which depends on the number of pixels rather than on their mean.

    The original divides the sum of the histogram, that is the pixel count, by 256: level 4 for 32x32 images.
    """
    grey = min(images.shape[1] * images.shape[2] // 256, 255)
    return blend(tf.fill(tf.shape(images), tf.constant(grey, tf.uint8)), images, factor)


def brightness(images: tf.Tensor, factor: float) -> tf.Tensor:
    """Blends with black."""
    return blend(tf.zeros_like(images), images, factor)


def sharpness(images: tf.Tensor, factor: float) -> tf.Tensor:
    """Blends with a smoothed image, whose outermost pixels are those of the image itself.

    `tfa.image.sharpness` differs by its rounding `blend`.
    """
    height, width, channels = images.shape[1:]
    kernel = tf.constant([[1, 1, 1], [1, 5, 1], [1, 1, 1]], tf.float32) / 13.0
    kernel = tf.tile(kernel[:, :, None, None], [1, 1, channels, 1])
    # Padded only so that images narrower than the filter pass: the border is replaced.
    smooth = tf.nn.depthwise_conv2d(tf.cast(images, tf.float32), kernel, strides=[1, 1, 1, 1], padding="SAME")
    smooth = tf.cast(tf.clip_by_value(smooth, 0.0, 255.0), tf.uint8)
    interior = np.zeros([1, height, width, 1], bool)
    interior[:, 1:-1, 1:-1] = True
    return blend(tf.where(interior, smooth, images), images, factor)


# The geometric operations take the nearest input pixel (halves away from zero). x counts columns, y rows.


def rotate(images: tf.Tensor, degrees: tf.Tensor, fill: int) -> tf.Tensor:
    """Rotates by `degrees`, float32 [B], about the centre; counter-clockwise where positive."""
    return tfa_image.rotate(images, degrees * (math.pi / 180.0), fill_value=float(fill))


def shear_x(images: tf.Tensor, slope: tf.Tensor, fill: int) -> tf.Tensor:
    """Pixel (x, y) of the result is (x + slope * y, y) of the image; `slope` float32 [B]."""
    return _affine(images, 1, slope, 0, 0, 1, 0, fill)


def shear_y(images: tf.Tensor, slope: tf.Tensor, fill: int) -> tf.Tensor:
    """Pixel (x, y) of the result is (x, slope * x + y) of the image; `slope` float32 [B]."""
    return _affine(images, 1, 0, 0, slope, 1, 0, fill)


def translate_x(images: tf.Tensor, pixels: tf.Tensor, fill: int) -> tf.Tensor:
    """Pixel (x, y) of the result is (x + pixels, y) of the image: moves left where positive; float32 [B]."""
    return _affine(images, 1, 0, pixels, 0, 1, 0, fill)


def translate_y(images: tf.Tensor, pixels: tf.Tensor, fill: int) -> tf.Tensor:
    """Pixel (x, y) of the result is (x, y + pixels) of the image: moves up where positive; float32 [B]."""
    return _affine(images, 1, 0, 0, 0, 1, pixels, fill)


def _affine(
    images: tf.Tensor,
    xx: tf.Tensor | float,
    xy: tf.Tensor | float,
    x0: tf.Tensor | float,
    yx: tf.Tensor | float,
    yy: tf.Tensor | float,
    y0: tf.Tensor | float,
    fill: int,
) -> tf.Tensor:
    """Pixel (x, y) of the result is (xx x + xy y + x0, yx x + yy y + y0) of the image; each number or [B]."""
    count = tf.shape(images)[0]
    entries = [tf.broadcast_to(tf.cast(value, tf.float32), [count]) for value in (xx, xy, x0, yx, yy, y0, 0, 0)]
    return tfa_image.transform(images, tf.stack(entries, axis=1), fill_value=float(fill))


def cutout(images: tf.Tensor, half_size: int, centre: tf.Tensor, fill: int) -> tf.Tensor:
    """Fills the square from centre - half_size up to, not including, centre + half_size.

    Args:
      centre: int32 [B, 2], row and column.
    """
    return tfa_image.cutout(images, (2 * half_size, 2 * half_size), offset=centre, constant_values=fill)


# Strengths ------------------------------------------------------------------------------------------------------

# In the order in which the original numbers them.
OPERATIONS = (
    *("AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "Color", "Contrast"),
    *("Brightness", "Sharpness", "ShearX", "ShearY", "TranslateX", "TranslateY", "Cutout", "SolarizeAdd"),
)


def level_argument(operation: str, level: float, constants: Constants = Constants()) -> float | None:
    """Strength of `operation` at `level`, in 0..10.

    Returns:
      degrees (Rotate), slope (ShearX, ShearY) or pixels (TranslateX, TranslateY), to be taken with either sign;
      bits kept (Posterize), threshold (Solarize), addend (SolarizeAdd), half the side in pixels (Cutout), all
      four integers; blending factor (Color, Contrast, Brightness, Sharpness); None for the other three.

    Raises:
      ValueError: no such operation or level.
    """
    if not 0 <= level <= MAX_LEVEL:
        raise ValueError(f"levels of RandAugment are 0 to {MAX_LEVEL}, found {level}")
    share = level / MAX_LEVEL
    match operation:
        case "AutoContrast" | "Equalize" | "Invert":
            return None
        case "Rotate":
            return share * 30.0
        case "ShearX" | "ShearY":
            return share * 0.3
        case "TranslateX" | "TranslateY":
            return share * constants.translate
        case "Posterize":
            return int(share * 4)
        case "Solarize":
            return int(share * 256)
        case "SolarizeAdd":
            return int(share * 110)
        case "Cutout":
            return int(share * constants.cutout)
        case "Color" | "Contrast" | "Brightness" | "Sharpness":
            return share * 1.8 + 0.1
    raise ValueError(f"no RandAugment operation {operation!r}; there are {', '.join(OPERATIONS)}")


_PLAIN: dict[str, Callable[..., tf.Tensor]] = {"AutoContrast": auto_contrast, "Equalize": equalize, "Invert": invert}
_UNSIGNED: dict[str, Callable[..., tf.Tensor]] = {
    "Posterize": posterize,
    "Solarize": solarize,
    "SolarizeAdd": solarize_add,
    "Color": color,
    "Contrast": contrast,
    "Brightness": brightness,
    "Sharpness": sharpness,
}
_SIGNED: dict[str, Callable[..., tf.Tensor]] = {
    "Rotate": rotate,
    "ShearX": shear_x,
    "ShearY": shear_y,
    "TranslateX": translate_x,
    "TranslateY": translate_y,
}


def apply_operation(
    images: tf.Tensor,
    operation: str,
    level: float,
    sign: tf.Tensor,
    centre: tf.Tensor,
    constants: Constants = Constants(),
) -> tf.Tensor:
    """Applies one operation to all images.

    Args:
      images: uint8 [B, H, W, 3].
      sign: float32 [B], +1 or -1, of the strength of geometric operations.
      centre: int32 [B, 2], row and column of the square that Cutout fills.

    Returns:
      uint8 [B, H, W, 3].
    """
    argument: Any = level_argument(operation, level, constants)
    if operation in _PLAIN:
        return _PLAIN[operation](images)
    if operation in _UNSIGNED:
        return _UNSIGNED[operation](images, argument)
    if operation in _SIGNED:
        return _SIGNED[operation](images, argument * sign, constants.fill)
    return cutout(images, argument, centre, constants.fill)


# The policy -----------------------------------------------------------------------------------------------------


class RandAugmentDraws(NamedTuple):
    """The random choices for a batch.

    Attributes:
      operation: int32 [B, n], index into `OPERATIONS`.
      sign: float32 [B, n], +1 or -1.
      centre: int32 [B, n, 2], row and column of the centre of the square that Cutout fills.
    """

    operation: np.ndarray
    sign: np.ndarray
    centre: np.ndarray

    def rows(self, keep: Callable[[np.ndarray], np.ndarray]) -> RandAugmentDraws:
        """Those of some of the images: `keep` picks rows of an array (`StepDraws.mine`)."""
        return RandAugmentDraws(*map(keep, self))


class RandAugment:
    """`n` operations in sequence, each any of the 16 with equal probability, all of level `m`.

    Args:
      n: operations for each image (`rand_augment_n`).
      m: their level, 0..10 (`rand_augment_m`).
      spec: shape of the images.
      constants: strengths at level 10.

    Raises:
      SettingsError: the images are grey.
    """

    def __init__(self, n: int, m: int, spec: ImageSpec, constants: Constants = Constants()):
        if spec.channels != 3:
            raise SettingsError(
                f"--rand_augment changes the colours of RGB images, but these are {spec.height}x{spec.width} with "
                f"{spec.channels} channel(s); train without --rand_augment"
            )
        self.n, self.m, self.spec, self.constants = n, m, spec, constants
        # One traced function for all operations and all numbers of images.
        self._function = tf.function(
            self._operate,
            autograph=False,  # no control flow on tensors; AutoGraph cannot read `match`
            input_signature=[
                tf.TensorSpec([], tf.int32),
                tf.TensorSpec([None, *spec.shape], tf.uint8),
                tf.TensorSpec([None], tf.float32),
                tf.TensorSpec([None, 2], tf.int32),
            ],
        )

    def _operate(self, number: tf.Tensor, images: tf.Tensor, sign: tf.Tensor, centre: tf.Tensor) -> tf.Tensor:
        def branch(name: str) -> Callable[[], tf.Tensor]:
            return lambda: apply_operation(images, name, self.m, sign, centre, self.constants)

        return tf.switch_case(number, [branch(name) for name in OPERATIONS])

    def draw(self, generator: np.random.RandomState, count: int) -> RandAugmentDraws:
        """Draws for `count` images; over several ranks, for the global batch (then `RandAugmentDraws.rows`).

        The original also draws a probability of applying each operation, and ignores it.
        """
        operation = generator.randint(len(OPERATIONS), size=[count, self.n])
        sign = np.where(generator.uniform(size=[count, self.n]) >= 0.5, 1.0, -1.0)
        rows = generator.randint(self.spec.height, size=[count, self.n])
        columns = generator.randint(self.spec.width, size=[count, self.n])
        centre = np.stack([rows, columns], axis=-1)
        return RandAugmentDraws(operation.astype(np.int32), sign.astype(np.float32), centre.astype(np.int32))

    def apply(self, images: np.ndarray, draws: RandAugmentDraws, where: np.ndarray | None = None) -> np.ndarray:
        """Applies the drawn operations, on the CPU.

        Args:
          images: uint8 [B, H, W, 3].
          draws: of `draw`, for B images.
          where: bool [B], the images to change; all by default.

        Returns:
          uint8 [B, H, W, 3], a function of the arguments.
        """
        result = np.array(images)
        wanted = np.ones(len(images), bool) if where is None else np.asarray(where, bool)
        # Beside an accelerator that is busy with the training step: small images are not worth the trip.
        with tf.device("/CPU:0"):
            for i in range(self.n):
                # All images that take the same operation go through it together.
                for number in np.unique(draws.operation[wanted, i]):
                    rows = np.flatnonzero(wanted & (draws.operation[:, i] == number))
                    result[rows] = self._function(number, result[rows], draws.sign[rows, i], draws.centre[rows, i])
        return result


# The AutoAugment policy for ImageNet, "v0": each image takes one line, each operation (name, probability, level) of it
# with its probability, with Constants(cutout=100, translate=250). The training code carries it beside RandAugment and
# offers no flag that selects it; so does this library.
AUTOAUGMENT_V0 = (
    (("Equalize", 0.8, 1), ("ShearY", 0.8, 4)),
    (("Color", 0.4, 9), ("Equalize", 0.6, 3)),
    (("Color", 0.4, 1), ("Rotate", 0.6, 8)),
    (("Solarize", 0.8, 3), ("Equalize", 0.4, 7)),
    (("Solarize", 0.4, 2), ("Solarize", 0.6, 2)),
    (("Color", 0.2, 0), ("Equalize", 0.8, 8)),
    (("Equalize", 0.4, 8), ("SolarizeAdd", 0.8, 3)),
    (("ShearX", 0.2, 9), ("Rotate", 0.6, 8)),
    (("Color", 0.6, 1), ("Equalize", 1.0, 2)),
    (("Invert", 0.4, 9), ("Rotate", 0.6, 0)),
    (("Equalize", 1.0, 9), ("ShearY", 0.6, 3)),
    (("Color", 0.4, 7), ("Equalize", 0.6, 0)),
    (("Posterize", 0.4, 6), ("AutoContrast", 0.4, 7)),
    (("Solarize", 0.6, 8), ("Color", 0.6, 9)),
    (("Solarize", 0.2, 4), ("Rotate", 0.8, 9)),
    (("Rotate", 1.0, 7), ("TranslateY", 0.8, 9)),
    (("ShearX", 0.0, 0), ("Solarize", 0.8, 4)),
    (("ShearY", 0.8, 0), ("Color", 0.6, 4)),
    (("Color", 1.0, 0), ("Rotate", 0.6, 2)),
    (("Equalize", 0.8, 4), ("Equalize", 0.0, 8)),
    (("Equalize", 1.0, 4), ("AutoContrast", 0.6, 2)),
    (("ShearY", 0.4, 7), ("SolarizeAdd", 0.6, 7)),
    (("Posterize", 0.8, 2), ("Solarize", 0.6, 10)),
    (("Solarize", 0.6, 8), ("Equalize", 0.6, 1)),
    (("Color", 0.8, 6), ("Rotate", 0.4, 5)),
)
