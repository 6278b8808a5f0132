"""dSprites (Matthey et al., 2017): which of its images a run learns, and what their labels are.

The archive has one image for each combination of its latent values [N, 6]: colour, shape (1, 2, 3), scale (0.5 to 1),
rotation (0 to 2 pi), and position x and y (0 to 1).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

import numpy as np

SHAPE, SCALE, ROTATION, X, Y = range(1, 6)  # columns of the latent values

# Values that subsets are fixed at.
_CENTRE, _SMALLEST, _TURN, _FIRST_SHAPE = 16 / 31, 0.5, 30 * math.pi / 39, 1
_PLACE = {X: _CENTRE, Y: _CENTRE}


def _shape(latents: np.ndarray) -> np.ndarray:
    return np.eye(3)[latents[:, SHAPE].astype(np.int64) - 1]


def _scale(latents: np.ndarray) -> np.ndarray:
    return latents[:, SCALE : SCALE + 1]


def _rotation(latents: np.ndarray) -> np.ndarray:
    return np.stack([np.cos(latents[:, ROTATION]), np.sin(latents[:, ROTATION])], axis=1)


def _position(latents: np.ndarray) -> np.ndarray:
    return latents[:, X : Y + 1]


def _moved_position(latents: np.ndarray) -> np.ndarray:
    return _position(latents) + 0.5


@dataclasses.dataclass(frozen=True)
class Mode:
    """What a run learns of dSprites.

    Attributes:
      labels: float64 [n, columns] of latent values [n, 6].
      fixed: latent values, by column, that all of its images have.
      repeats: how often the images are gone through in an epoch.
    """

    labels: Callable[[np.ndarray], np.ndarray]
    fixed: Mapping[int, float] = dataclasses.field(default_factory=dict)
    repeats: int = 1

    def rows(self, latents: np.ndarray) -> np.ndarray:
        """Rows of the archive, int64, in order, not repeated."""
        kept = np.ones(len(latents), bool)
        for column, value in self.fixed.items():
            kept &= np.isclose(latents[:, column], value, rtol=0.0, atol=1e-6)
        return np.flatnonzero(kept)

    def described(self) -> str:
        """The fixed values, for messages: "shape 1 and scale 0.5"."""
        names = {SHAPE: "shape", SCALE: "scale", ROTATION: "rotation", X: "x", Y: "y"}
        return " and ".join(f"{names[column]} {value:.4g}" for column, value in sorted(self.fixed.items()))


# By flag; the first that is set wins, and "" is for none.
MODES: Mapping[str, Mode] = {
    "dshape_only": Mode(_shape, _PLACE | {SCALE: _SMALLEST, ROTATION: _TURN}, 10_000),
    "dpos_only": Mode(_moved_position, {SHAPE: _FIRST_SHAPE, SCALE: _SMALLEST, ROTATION: _TURN}, 100),
    "dsize_only": Mode(_scale, _PLACE | {SHAPE: _FIRST_SHAPE, ROTATION: _TURN}, 10_000),
    "drot_only": Mode(_rotation, _PLACE | {SHAPE: _FIRST_SHAPE, SCALE: _SMALLEST}, 100),
    "cond_size": Mode(_scale),
    "cond_shape": Mode(_shape),
    "cond_pos": Mode(_position),
    "cond_rot": Mode(_rotation),
    "": Mode(_shape),
}
_RESTRICTED = {SHAPE: _FIRST_SHAPE, ROTATION: 0.0}


def mode(flag: str, restricted: bool = False) -> Mode:
    """The mode of a flag of `MODES`.

    Args:
      restricted: only images of the first shape, without rotation (--dsprites_restrict).
    """
    chosen = MODES[flag]
    return dataclasses.replace(chosen, fixed={**chosen.fixed, **_RESTRICTED}) if restricted else chosen
