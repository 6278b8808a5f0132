"""Images of a trained run: many of them for Inception score and Fréchet distance, and a film of chains.

Du & Mordatch, arXiv:1903.08689, section 4.1 and table 1. Chains of many calls of the sampler go on in a buffer of a
thousand images, in which new ones begin now and then; several checkpoints of a run may take turns.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Protocol

import numpy as np
import tensorflow as tf

from tfgen.data.errors import DataError
from tfgen.data.source import Source
from tfgen.files import atomic_path, write_text
from tfgen.metrics import inception
from tfgen.metrics.frechet import frechet_distance
from tfgen.monitor import grids
from tfgen.monitor.film import Film
from tfgen.randomness import Key
from tfgen.restore import read_network
from tfgen.settings import FLAGS_FILE, SettingsError
from tfgen.systems.base import TaskRun
from tfgen.systems.ebm import preprocess, sampler
from tfgen.systems.ebm.networks import EnergyNetwork, Weights
from tfgen.systems.ebm.replay import ReplayBuffer
from tfgen.systems.ebm.tasks import calls
from tfgen.systems.ebm.tasks.calls import MaskedMoves
from tfgen.systems.ebm.tasks.options import EvaluateOptions
from tfgen.training.run_folder import RunFolder
