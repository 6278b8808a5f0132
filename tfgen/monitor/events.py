"""Records of a TensorBoard event file, as bytes.

Made from TensorBoard's own protocol messages rather than by `tf.summary`, whose writer cannot express the
session log that purges a killed process' events, and reports a full disk from a background thread.
"""

from __future__ import annotations

import io
import math
import struct
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.plugins.hparams import api as hparams_api
from tensorboard.plugins.image import metadata as image_metadata
from tensorboard.plugins.scalar import summary_v2 as scalar_summary
from tensorboard.plugins.text import summary_v2 as text_summary
from tensorboard.summary.writer.record_writer import RecordWriter
from tensorboard.util import tensor_util

from tfgen.monitor import grids

_HEADER_BYTES, _FOOTER_BYTES = 12, 4  # of a record: its length and that number's checksum; the checksum of the data


def file_start(first_step: int) -> bytes:
    """The first records of a file: its format, and the start of a session at `first_step`.

    From the second session of a folder on, the start makes TensorBoard forget all it has read at
    `first_step` or later.
    """
    session = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    return _record(file_version="brain.Event:2") + _record(step=first_step, session_log=session)


def before(contents: bytes, step: int) -> bytes:
    """An event file without its summaries at `step` or later, and up to a record that is cut short or damaged."""
    kept, at = [], 0
    while at + _HEADER_BYTES <= len(contents):
        (size,) = struct.unpack_from("<Q", contents, at)
        end = at + _HEADER_BYTES + size + _FOOTER_BYTES
        if end > len(contents):
            break
        try:
            event = event_pb2.Event.FromString(contents[at + _HEADER_BYTES : end - _FOOTER_BYTES])
        except DecodeError:
            break
        if not event.HasField("summary") or event.step < step:
            kept.append(contents[at:end])
        at = end
    return b"".join(kept)


def scalars(values: Mapping[str, float], step: int) -> bytes:
    """One event with a scalar per tag."""
    summary = summary_pb2.Summary()
    for tag, value in values.items():
        summary.MergeFrom(scalar_summary.scalar_pb(tag, float(value)))
    return _record(step=step, summary=summary)


def image(tag: str, picture: np.ndarray, step: int) -> bytes:
    """One picture, uint8 [H, W, C]."""
    height, width, _ = picture.shape
    contents = np.array([str(width).encode(), str(height).encode(), grids.encode_png(picture)], np.object_)
    summary = summary_pb2.Summary()
    summary.value.add(
        tag=tag,
        metadata=image_metadata.create_summary_metadata(display_name=None, description=None),
        tensor=tensor_util.make_tensor_proto(contents),
    )
    return _record(step=step, summary=summary)


def text(tag: str, markdown: str, step: int) -> bytes:
    """One text."""
    return _record(step=step, summary=text_summary.text_pb(tag, markdown))


def hyperparameters(trial: str, settings: Mapping[str, Any], step: int) -> bytes:
    """The run's row of the HPARAMS tab, labelled `trial`.

    There is no list of the columns (`hparams_config`): TensorBoard takes one list for the whole page, that
    of the first run it finds, and would hide the settings of other systems' runs. Without a list it shows
    every setting of every run, and every curve as a metric.
    """
    plain = {name: _hyperparameter(value) for name, value in settings.items()}
    return _record(step=step, summary=hparams_api.hparams_pb(plain, trial_id=trial))


def _hyperparameter(value: Any) -> bool | int | float | str:
    if isinstance(value, np.generic):
        value = value.item()
    # The tab's table is JSON: a number that JSON cannot express would leave the whole tab empty.
    if isinstance(value, (bool, str)) or (isinstance(value, (int, float)) and math.isfinite(value)):
        return value
    return str(value)


def _record(**fields: Any) -> bytes:
    event = event_pb2.Event(wall_time=time.time(), **fields)
    buffer = io.BytesIO()
    RecordWriter(buffer).write(event.SerializeToString())
    return buffer.getvalue()
