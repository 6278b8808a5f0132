import io
import warnings

import numpy as np
import pytest
from PIL import Image

from tests.data.images import BAD, damaged_inside, encode, pixels, png_header
from tests.seeds import SEED
from tfgen.data import crops
from tfgen.data.image_codec import UnusableImageError

TAKEN_HERE = {
    "cmyk.jpg",
    "rgb16.png",
    "rgba.png",
    "grey_alpha.png",
    "palette_alpha.png",
    "alpha.webp",
    "film.gif",
    "animation.png",
}


def noise(seed: int, height: int, width: int, mode: str = "RGB") -> Image.Image:
    image = Image.fromarray(np.random.RandomState(seed).randint(0, 256, (height, width, 3)).astype(np.uint8))
    if mode in ("RGBA", "LA"):
        image = image.convert(mode)
        image.putalpha(
            Image.fromarray(np.random.RandomState(seed + 1).randint(0, 256, (height, width)).astype(np.uint8))
        )
    return image.convert(mode)


def halved(levels: np.ndarray) -> np.ndarray:
    """Means of pairs of columns, then of pairs of rows, each rounded half up, as Pillow's box filter takes them."""
    columns = levels.astype(int)
    columns = (columns[:, ::2] + columns[:, 1::2] + 1) // 2
    return ((columns[::2] + columns[1::2] + 1) // 2).astype(np.uint8)


# Pixels -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 8])
def test_powers_of_two_are_means_of_blocks(size):
    image = noise(SEED % 1000, 8 * size, 8 * size)
    expected = np.asarray(image)
    for _ in range(3):
        expected = halved(expected)
    np.testing.assert_array_equal(crops.prepare(image, size), expected)


@pytest.mark.parametrize("extra", range(4))
@pytest.mark.parametrize("tall", [False, True])
def test_the_crop_is_the_middle(extra, tall):
    height, width = (8 + extra, 8) if tall else (8, 8 + extra)
    image = noise(1, height, width)
    top, left = (extra // 2, 0) if tall else (0, extra // 2)
    np.testing.assert_array_equal(crops.prepare(image, 8), np.asarray(image)[top : top + 8, left : left + 8])


@pytest.mark.parametrize(
    ("width", "resized", "left"),
    [(6, 4, 0), (10, 8, 2), (7, 5, 1)],  # 4.5 and 7.5 round to even; 5.25 down
)
def test_sizes_are_rounded_half_to_even(width, resized, left):
    image = noise(2, 4, width)
    whole = np.asarray(image.resize((resized, 3), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(crops.prepare(image, 3), whole[:, left : left + 3])


def test_halving_rounds_sizes_down_and_small_images_grow():
    image = noise(3, 19, 35)
    half = image.resize((17, 9), Image.Resampling.BOX)
    whole = np.asarray(half.resize((9, 5), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(crops.prepare(image, 5), whole[:, 2:7])
    assert crops.prepare(image, 64).shape == (64, 64, 3)


def expected_crop(image: Image.Image, size: int) -> np.ndarray:
    """The rule in the words of the specification."""
    width, height = image.size
    while min(width, height) >= 2 * size:
        width, height = width // 2, height // 2
        image = image.resize((width, height), Image.BOX)
    scale = size / min(width, height)
    image = image.resize((round(width * scale), round(height * scale)), Image.BICUBIC)
    array = np.array(image.convert("RGB"))
    top, left = (array.shape[0] - size) // 2, (array.shape[1] - size) // 2
    return array[top : top + size, left : left + size]


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "LA", "RGBA", "CMYK"])
@pytest.mark.parametrize("case", range(8))
def test_random_sizes(mode, case):
    random = np.random.RandomState([SEED & 0xFFFFFFFF, case])
    height, width, size = (int(number) for number in random.randint(1, [90, 90, 40]))
    image = noise(case, height, width, mode)
    crop = crops.prepare(image, size)
    assert (crop.shape, crop.dtype) == ((size, size, 3), np.uint8)
    np.testing.assert_array_equal(crop, expected_crop(image, size))
    np.testing.assert_array_equal(
        crops.prepare(image, size, convert_first=True), expected_crop(image.convert("RGB"), size)
    )


def test_palettes_keep_their_colours_unless_converted_first():
    image = Image.new("P", (40, 40))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata(np.random.RandomState(0).randint(0, 2, 1600).tolist())
    colours = {(255, 0, 0), (0, 0, 255)}
    assert {tuple(colour) for colour in crops.prepare(image, 7).reshape(-1, 3).tolist()} <= colours
    blended = {tuple(colour) for colour in crops.prepare(image, 7, convert_first=True).reshape(-1, 3).tolist()}
    assert not blended <= colours


def test_opacity_weights_colours_unless_converted_first():
    image = Image.new("RGBA", (4, 4), (0, 0, 255, 255))
    image.putpixel((0, 0), (255, 0, 0, 0))  # invisible red
    assert crops.prepare(image, 1)[0, 0].tolist() == [0, 0, 255]
    assert crops.prepare(image, 1, convert_first=True)[0, 0, 0] > 0


def test_a_palette_with_transparency_gives_no_warning():
    image = noise(4, 9, 9).quantize(8)
    stream = io.BytesIO(encode(image, transparency=bytes([0, 128, 255])))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        crop = crops.read(stream, 4)
    np.testing.assert_array_equal(crop, expected_crop(image, 4))


# Files --------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", sorted(BAD.keys() - TAKEN_HERE - {"notes.txt"}))
def test_unusable_files(name):
    content, reason = BAD[name]
    reason = {"text.png": "not a PNG, JPEG, BMP, WEBP, GIF image", "bomb.png": "12000x12000 pixels"}.get(name, reason)
    with pytest.raises(UnusableImageError, match=reason):
        crops.inspect(io.BytesIO(content), 4)


@pytest.mark.parametrize("name", sorted(TAKEN_HERE))
def test_files_that_other_sources_refuse(name):
    content, _ = BAD[name]
    crops.inspect(io.BytesIO(content), 4)
    assert crops.read(io.BytesIO(content), 4).shape == (4, 4, 3)


def test_first_picture_of_an_animation():
    content = encode(Image.new("L", (5, 6), 7), "GIF", save_all=True, append_images=[Image.new("L", (5, 6), 200)])
    assert (crops.read(io.BytesIO(content), 4) == 7).all()


def test_headers_are_enough(monkeypatch):
    for kind in ("PNG", "JPEG", "GIF"):
        content = encode(pixels(1, 64, 64), kind)
        with monkeypatch.context() as patch:
            patch.setattr(crops.image_codec, "load_pixels", lambda image: pytest.fail("decoded"))
            crops.inspect(io.BytesIO(content), 4)
        with pytest.raises(UnusableImageError, match=r"(?i)truncated"):
            crops.inspect(io.BytesIO(content[: -len(content) // 4]), 4)


def test_damage_that_only_decoding_shows():
    crops.inspect(io.BytesIO(damaged_inside(1)), 4)
    with pytest.raises(UnusableImageError, match="truncated or damaged"):
        crops.read(io.BytesIO(damaged_inside(1)), 4)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_would_take_too_much_memory():
    with pytest.raises(UnusableImageError, match="9000x10000 pixels, expected 1 to 89478485"):
        crops.inspect(io.BytesIO(png_header(10_000, 9_000)), 64)
    narrow = io.BytesIO(png_header(1_000_000, 2))
    with pytest.raises(UnusableImageError, match="too narrow: 2x1000000 pixels with the shorter side resized to 256"):
        crops.inspect(narrow, 256)
    crops.inspect(narrow, 8)
