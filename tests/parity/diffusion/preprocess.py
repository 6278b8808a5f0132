"""Recorded preparation of image files: decoding, crops, order of a folder, labels, shares of the ranks."""

from __future__ import annotations

import io
import itertools
import pathlib
import re
import tempfile
from typing import Any

import numpy as np
import PIL
from PIL import Image

from tests.parity.harness import Case, checker
from tfgen.data import crops, image_codec, lsun
from tfgen.data.listing import list_folder, number_classes, open_listed
from tfgen.data.pipeline import EvaluationBatches
from tfgen.data.prepared_folder import PreparedFolder, open_image_folder

ONE_ROUNDING = 1.2e-7  # of float32 values in [-1, 1]


@checker("diffusion", "preprocess*.npz")
def check(case: Case) -> None:
    config = case.json("config")
    images = {image["name"]: image for image in config["images"]}
    # Pillow decodes and resizes to the bit within a major version; between them a level may differ.
    same_pillow = PIL.__version__.split(".")[0] == config["pillow"].split(".")[0]
    for array in case.matching("*/bytes"):
        name = array.removesuffix("/bytes")
        check_image(case, name, images[name], {} if same_pillow else {"within": 1, "except_share": 1.0})
    for array in case.matching("*/in"):
        recorded = case[f"{array.removesuffix('in')}out"]
        case.equal(f"{array.removesuffix('in')}out", lsun.prepare(Image.fromarray(case[array]), len(recorded)))
    with tempfile.TemporaryDirectory() as folder:
        check_listing(case, case.json("listing"), pathlib.Path(folder))


def check_image(case: Case, name: str, image: dict[str, Any], tolerance: dict[str, Any]) -> None:
    content = case[f"{name}/bytes"].tobytes()
    opened = image_codec.open_image(io.BytesIO(content), crops.FORMATS)
    found = f"{opened.height}x{opened.width} {opened.mode}"
    case.equal(f"{name}: size and mode", found, expected=f"{image['height']}x{image['width']} {image['mode']}")
    case.equal(f"{name}/decoded", np.asarray(opened.convert("RGB")), **tolerance)
    with tempfile.TemporaryDirectory() as folder:
        pathlib.Path(folder, f"{name}.{image['ext']}").write_bytes(content)
        source = open_image_folder(folder, image["resolution"])
        crop = source.read(np.array([0]))["image"][0]  # [R, R, 3]
    case.equal(f"{name}/out_u8", crop, **tolerance)
    if f"{name}/out_f32" in case:
        # The library keeps bytes; what the network sees is formed from them in this way.
        values = crop.astype(np.float32) / np.float32(127.5) - np.float32(1)
        case.close(f"{name}/out_f32", values.transpose(2, 0, 1), ONE_ROUNDING + tolerance.get("within", 0) / 127.5)


def check_listing(case: Case, recorded: dict[str, Any], folder: pathlib.Path) -> None:
    for name in recorded["files"]:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2)).save(path, "PNG")
    listed = list_folder(folder)
    case.equal("listing: files", np.array(listed, str), expected=np.array(recorded["listed"], str))
    classes, labels = number_classes(listed)
    case.equal("listing: classes", labels, expected=recorded["classes"])
    numbers = sorted(recorded["class_names"].items(), key=lambda item: item[1])
    case.equal("listing: class names", np.array(classes), expected=np.array([name for name, _ in numbers]))
    # With the classes given, so that a recording of one class, or of as many as files, is no error here.
    source = PreparedFolder(open_listed(folder), 2, class_cond=True, class_names=classes)
    for key, shard in recorded["shards"].items():
        rank, ranks = map(int, key.split("/"))
        own = [int(index) for batch in EvaluationBatches(source, 1, rank, ranks) for index in batch["index"]]
        names = np.array([source.names[index] for index in own], str)
        case.equal(f"listing: shard {key}", names, expected=np.array(shard, str))
    for key, batches in recorded.items():
        match = re.fullmatch(r"deterministic_batch(\d+)_labels", key)
        if match:
            passes = itertools.repeat(EvaluationBatches(source, int(match[1]), drop_remainder=True))
            endless = itertools.chain.from_iterable(passes)
            found = [batch["label"].tolist() for batch in itertools.islice(endless, len(batches))]
            case.equal(f"listing: {key}", found, expected=batches)
    known = {"files", "listed", "classes", "class_names", "shards"}
    new = [key for key in recorded if key not in known and not key.startswith("deterministic_batch")]
    assert not new, f"the recorded listing has entries {new} that this checker does not know"
