"""Animations of samples that are being drawn."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tfgen.monitor.film import FRAMES, IMAGES, Film


def images(level: int, count: int = 2, channels: int = 3) -> np.ndarray:
    return np.full([count, 8, 8, channels], level, np.uint8)


def frames_of(path) -> list[np.ndarray]:
    with Image.open(path) as picture:
        found = []
        for number in range(picture.n_frames):
            picture.seek(number)
            found.append((np.asarray(picture.convert("L")), picture.info["duration"]))
    return found


@pytest.mark.parametrize("channels", [1, 3])
def test_a_frame_a_step_and_the_last_one_stays(tmp_path, channels):
    film = Film()
    for level in (0, 100, 200):
        film.add(lambda level=level: images(level, channels=channels))
    film.save(tmp_path / "film.gif", "diffusion")
    frames = frames_of(tmp_path / "film.gif")
    # Pillow merges equal frames that follow each other: the last step is shown once, for longer.
    assert [frame[20, 20] for frame, _ in frames] == [0, 100, 200]
    assert frames[-1][1] > frames[0][1]


def test_many_steps_become_few_frames_evenly_spaced(tmp_path):
    film, computed = Film(), []
    for step in range(1000):

        def preview(step=step):
            computed.append(step)
            return images(step // 4, count=IMAGES + 5)

        film.add(preview)
    film.save(tmp_path / "film.gif", "diffusion")
    assert len(computed) < 6 * FRAMES
    levels = [int(frame[20, 20]) for frame, _ in frames_of(tmp_path / "film.gif")]
    assert FRAMES // 2 <= len(levels) <= FRAMES + 1
    assert levels[-1] == 999 // 4
    assert np.ptp(np.diff(levels[:-1])) <= 2  # levels are rounded


def test_nothing_to_show_is_said(tmp_path):
    film = Film()
    film.add(None)
    with pytest.raises(ValueError, match=r"--gif: the samples of vdvae show nothing .*leave it out"):
        film.save(tmp_path / "film.gif", "vdvae")
    assert not (tmp_path / "film.gif").exists()


def test_pictures_of_another_kind_and_number(tmp_path):
    film = Film(2, lambda frame: frame[0])
    for step in range(4):
        film.add(lambda step=step: images(50 * step))
    film.save(tmp_path / "film.gif", "ebm")
    frames = frames_of(tmp_path / "film.gif")
    assert frames[0][0].shape == (8, 8)
    assert [int(frame[0, 0]) for frame, _ in frames] == [0, 100, 150]
