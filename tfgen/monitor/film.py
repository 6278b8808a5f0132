"""How samples come about, as an animated picture."""

from __future__ import annotations

import math
import os
from collections.abc import Callable

import numpy as np
from PIL import Image

from tfgen.files import atomic_path
from tfgen.monitor import grids

FRAMES = 60  # at most: an animation of a thousand steps would be watched by nobody
IMAGES = 16  # at most, in each frame
_FRAME_MS, _LAST_MS = 50, 2000


class Film:
    """Collects previews of samples that are being drawn: a frame now and then, evenly spaced.

    Memory does not grow with the number of steps: whenever there are twice as many frames as the film may have, every
    second one is dropped and from then on every second preview left out.

    Args:
      frames: at most, in the film.
      picture: of a frame, uint8 [height, width, C], from its images; see `grids`.
    """

    def __init__(self, frames: int = FRAMES, picture: Callable[[np.ndarray], np.ndarray] = grids.display_grid) -> None:
        self._most, self._picture = frames, picture
        self._frames: list[np.ndarray] = []
        self._interval, self._seen = 1, 0
        self._newest: Callable[[], np.ndarray] | None = None

    def add(self, preview: Callable[[], np.ndarray] | None) -> None:
        """Takes note of a preview, uint8 [B, H, W, C]; only those that become a frame are computed."""
        if preview is None:
            return
        self._newest = preview
        if self._seen % self._interval == 0:
            self._frames.append(preview()[:IMAGES])
        self._seen += 1
        if len(self._frames) == 2 * self._most:
            self._frames = self._frames[::2]
            self._interval *= 2

    def save(self, path: str | os.PathLike, system: str) -> None:
        """Writes the animation; the last preview stays for two seconds.

        Raises:
          ValueError: there was no preview.
        """
        if self._newest is None:
            raise ValueError(f"--gif: the samples of {system} show nothing while they are drawn; leave it out")
        chosen = self._frames[:: math.ceil(len(self._frames) / self._most)]
        frames = [self._pillow(frame) for frame in [*chosen, self._newest()[:IMAGES]]]
        with atomic_path(path) as temporary:
            frames[0].save(
                temporary,
                format="GIF",
                save_all=True,
                append_images=frames[1:],
                duration=[_FRAME_MS] * len(chosen) + [_LAST_MS],
                loop=0,
            )

    def _pillow(self, images: np.ndarray) -> Image.Image:
        grid = self._picture(images)
        return Image.fromarray(grid[..., 0] if grid.shape[-1] == 1 else grid)
