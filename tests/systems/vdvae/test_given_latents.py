"""Samples from latents in a file."""

from __future__ import annotations

import numpy as np
import pytest

from tests.systems.vdvae import small
from tfgen.randomness import Key
from tfgen.settings import SettingsError
from tfgen.systems.vdvae.sampling import SampleOptions, posterior_noise

KEY = Key.create(3, "sample")


@pytest.fixture(scope="module")
def system():
    return small.system()


@pytest.fixture(scope="module")
def latents(system):
    """Those of five images, by name, with the noise that samples of images have."""
    inputs, _ = system.preprocessing.input_and_target(small.images(5))
    inferred = system.network.infer(inputs, posterior_noise(KEY))
    return {f"layer_{index:03d}": z.numpy() for index, z in enumerate(inferred.latents)}


def options_of(path, arrays, **settings):
    np.savez(path, **arrays)
    return SampleOptions(kind="given", latents_file=str(path), **settings)


def test_all_layers_give_the_reconstruction(system, latents, tmp_path):
    options = options_of(tmp_path / "z.npz", latents | {"rates": np.zeros(5)})
    drawn = system.sample(5, KEY, options)
    of_images = system.sample(5, KEY, SampleOptions(kind="reconstructions"), images=small.images(5))
    np.testing.assert_array_equal(drawn, of_images)
    assert system.images_wanted(0, 5, options).size == 0


def test_the_first_layers_give_the_partial_reconstruction(system, latents, tmp_path):
    two = {name: latents[name] for name in ("layer_000", "layer_001")}
    drawn = system.sample(5, KEY, options_of(tmp_path / "z.npz", two, temperature="0.7"))
    partial = SampleOptions(kind="partial", latents=2, temperature="0.7")
    np.testing.assert_array_equal(drawn, system.sample(5, KEY, partial, images=small.images(5)))


def test_one_row_serves_all_samples_at_any_batch_size(system, latents, tmp_path):
    one = {"layer_000": latents["layer_000"][:1]}
    many = system.sample(5, KEY, options_of(tmp_path / "one.npz", one))
    repeated = {"layer_000": np.repeat(one["layer_000"], 5, axis=0)}
    options = options_of(tmp_path / "five.npz", repeated, sample_batch=2)
    np.testing.assert_array_equal(many, system.sample(5, KEY, options))
    assert (many[0] != many[1]).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda z: {"layer_001": z["layer_001"]}, "none left out, found layer_001"),
        (lambda z: {"z": z["layer_000"]}, "found none"),
        (lambda z: z | {"layer_003": z["layer_002"]}, "layer_003"),
        (lambda z: z | {"layer_001": z["layer_001"][:2]}, r"layer_001 must be .* N = 5, found float32 \[2, "),
        (lambda z: z | {"layer_000": z["layer_000"][..., :1]}, r"layer_000 must be .*\[N, 1, 1, 2\]"),
        (lambda z: z | {"layer_000": z["layer_000"] * np.nan}, "finite"),
        (lambda z: z | {"layer_000": z["layer_000"].astype(int)}, "found int64"),
        (lambda z: {name: array[:0] for name, array in z.items()}, "at least 1"),
        (lambda z: {name: array[:3] for name, array in z.items()}, "has latents of 3 images: lower --count"),
    ],
)
def test_other_latents_are_refused(system, latents, tmp_path, change, message):
    with pytest.raises(SettingsError, match=message):
        system.sample(5, KEY, options_of(tmp_path / "z.npz", change(dict(latents))))


def damaged(path, compressed: bool) -> bytes:
    """A file of arrays whose first one no longer fits its checksum, or cannot be decompressed."""
    (np.savez_compressed if compressed else np.savez)(path, layer_000=np.random.RandomState(0).normal(size=(9, 99)))
    content = bytearray(path.read_bytes())
    content[500:900] = b"\xff" * 400
    return bytes(content)


def test_what_is_no_file_of_arrays(system, tmp_path):
    (tmp_path / "text.npz").write_text("no zip")
    (tmp_path / "empty.npz").write_bytes(b"")
    for compressed in (False, True):
        content = damaged(tmp_path / "whole.npz", compressed)
        (tmp_path / f"altered{compressed:d}.npz").write_bytes(content)
        (tmp_path / f"short{compressed:d}.npz").write_bytes(content[: len(content) // 2])
    np.savez(tmp_path / "objects.npz", layer_000=np.array([{}], object))
    names = ("nowhere", "text", "objects", "empty", "altered0", "altered1", "short0", "short1")
    for name in names:
        with pytest.raises(SettingsError, match=f"{name}.npz cannot be read"):
            system.sample(1, KEY, SampleOptions(kind="given", latents_file=str(tmp_path / f"{name}.npz")))
    with pytest.raises(SettingsError, match="needs --latents_file"):
        SampleOptions(kind="given")
    with pytest.raises(SettingsError, match="belongs to --kind=given"):
        SampleOptions(latents_file="z.npz")
