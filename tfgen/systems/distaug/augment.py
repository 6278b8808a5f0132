"""Augmentations that the network is conditioned on: which there are, how they are drawn, what they move.

Each augmentation type is a list of permutations of an image's T = H * W * C sub-pixels; token k of the type
names the k-th. A training image gets one token of each type in use. Its sub-pixels are permuted accordingly,
the coordinates move with them (so the network is told where each sub-pixel came from), and the tokens select
the rows of the learned start-of-sequence tables.

Source: Jun et al., "Distribution Augmentation for Generative Modeling", ICML 2020, section 3.

Everything here runs on the host in NumPy, in the thread that prepares batches.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np

from tfgen.data.source import ImageSpec
from tfgen.settings import SettingsError
from tfgen.systems.distaug.config import Config


@dataclasses.dataclass(frozen=True)
class ConditioningType:
    """One kind of augmentation.

    Attributes:
      name: of its table of start vectors in checkpoints, under `model/sos_token/` ("sos_rot", ...).
      rows: number of tokens; token 0 leaves the image as it is.
      source_index: maps tokens, integers [n], to int32 [n, T]: position t of the image augmented by token k
        shows sub-pixel `source_index(k)[t]` of the image before. None if tokens of this type move nothing.
    """

    name: str
    rows: int
    source_index: Callable[[np.ndarray], np.ndarray] | None


class Augmentations:
    """The augmentation types in use for images of one shape.

    Args:
      config: the system's settings.
      spec: shape of the images.

    Attributes:
      types: those in use, in the order of application; also when the network is not told about them
        (`use_unconditional_augmentation`).
      conditioning_rows: the network's tables of start vectors and their rows (`Config.conditioning_types`): one for
        each of `types`, or none at all. With none the network learns one start vector and is fed no tokens.
      identity_coordinates: int32 [1, 3, T]: image row, column and channel of every sequence position.

    Raises:
      SettingsError: images of this shape cannot be augmented so. Colour needs three channels, rotation and
        transposition need square images, the jigsaw needs sides that are multiples of its grid.
    """

    def __init__(self, config: Config, spec: ImageSpec):
        self._spec = spec
        self._unaugmented_rate = config.unaugmented_data_rate
        self._rand_augment_rate = config.rand_augment_rate
        self._permute_embeddings = config.permute_embeddings
        self.types = tuple(
            ConditioningType(name, rows, _permutations(name, config, spec))
            for name, rows in config.augmentation_types.items()
        )
        self.conditioning_rows = config.conditioning_types
        self.identity_coordinates = np.indices(spec.shape, np.int32).reshape(1, 3, spec.dims)

    # Drawing ------------------------------------------------------------------------------------------

    @staticmethod
    def horizontal_flips(generator: np.random.RandomState, count: int) -> np.ndarray:
        """Which of `count` images the flag `aug` mirrors: bool [count], each with probability 1/2.

        The original draws these before the tokens, from the same generator.
        """
        return generator.randint(2, size=count).astype(bool)

    def draw_tokens(
        self,
        generator: np.random.RandomState,
        count: int,
        dataset_labels: np.ndarray | None = None,
        keep: Callable[[np.ndarray], np.ndarray] = lambda rows: rows,
    ) -> np.ndarray:
        """Draws the augmentations of a training batch.

        A type with n tokens draws uniformly; or, with `unaugmented_data_rate` u and m types in use, token 0 with
        probability u^(1/m) and the others equally. `sos_aa` is 1 with probability `rand_augment_rate`. Types
        draw one after the other, each for all images, as the original does.

        Args:
          count: images to draw for. Over several ranks: the global batch, so that the tokens of an image do not
            depend on the number of ranks.
          dataset_labels: integers [kept], data set each kept image is from; only used, and then needed, by `sos_data`.
          keep: picks this rank's rows out of those drawn (`StepDraws.mine`); all by default.

        Returns:
          int32 [kept, K], one column for each of `types`.

        Raises:
          SettingsError: `sos_data` is in use but there are no labels.
        """
        columns = [self._column(kind, generator, count, dataset_labels, keep) for kind in self.types]
        if not columns:
            return np.zeros([len(keep(np.arange(count))), 0], np.int32)
        return np.stack(columns, axis=1).astype(np.int32)

    def _column(
        self,
        kind: ConditioningType,
        generator: np.random.RandomState,
        count: int,
        dataset_labels: np.ndarray | None,
        keep: Callable[[np.ndarray], np.ndarray],
    ) -> np.ndarray:
        if kind.name == "sos_data":
            if dataset_labels is None:
                raise SettingsError(
                    "--use_dataset_conditioning needs images of two data sets, but the batch does not say which each "
                    "image is from; name the second with --auxiliary_dataset, or drop --use_dataset_conditioning"
                )
            return np.asarray(dataset_labels)
        if kind.name == "sos_aa":
            return keep(generator.uniform(size=count) < self._rand_augment_rate)
        if self._unaugmented_rate is None or kind.rows == 1:
            return keep(generator.randint(kind.rows, size=count))
        unaugmented = self._unaugmented_rate ** (1 / len(self.types))
        others = (1 - unaugmented) / (kind.rows - 1)
        return keep(generator.choice(kind.rows, size=count, p=[unaugmented] + [others] * (kind.rows - 1)))

    def combinations(self) -> Iterator[tuple[int, ...]]:
        """Every combination of tokens, the last type varying fastest; one empty tuple if no type is in use.

        Raises:
          SettingsError: `sos_data` is in use; an image cannot be moved to another data set.
        """
        if any(kind.name == "sos_data" for kind in self.types):
            raise SettingsError(
                "evaluation by augmentation is not defined for data set conditioning, since no image exists in both "
                "data sets; evaluate without --aug_eval, or turn off --use_dataset_conditioning"
            )
        return itertools.product(*(range(kind.rows) for kind in self.types))

    # Applying -----------------------------------------------------------------------------------------

    def source_index(self, conditioning: np.ndarray) -> np.ndarray:
        """Composes the permutations of all types.

        Args:
          conditioning: integers [B, K], a token of each type.

        Returns:
          int32 [B, T]: position t of the augmented image shows sub-pixel `[b, t]` of the original image.

        Raises:
          ValueError: the wrong number of columns, or a token that its type does not have.
        """
        conditioning = np.asarray(conditioning)
        if conditioning.ndim != 2 or conditioning.shape[1] != len(self.types):
            names = ", ".join(kind.name for kind in self.types) or "none"
            raise ValueError(
                f"expected conditioning tokens [B, {len(self.types)}] (types: {names}), found {conditioning.shape}"
            )
        index = None
        for kind, column in zip(self.types, conditioning.T, strict=True):
            if column.size and not 0 <= column.min() <= column.max() < kind.rows:
                raise ValueError(
                    f"tokens of {kind.name} are 0 to {kind.rows - 1}, found {column.min()} to {column.max()}"
                )
            if kind.source_index is None:
                continue
            moved = kind.source_index(column)  # [B, T]
            index = moved if index is None else np.take_along_axis(index, moved, axis=1)
        if index is None:
            return np.tile(np.arange(self._spec.dims, dtype=np.int32), [len(conditioning), 1])
        return index

    def apply(self, tokens: np.ndarray, conditioning: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Augments a batch.

        Args:
          tokens: uint8 [B, T], images flattened row by row, channels last.
          conditioning: integers [B, K] as `draw_tokens` gives them.

        Returns:
          tokens: uint8 [B, T], the permuted images.
          coordinates: int32 [B, 3, T], row, column and channel that the sub-pixel at each position has in the
            image before; those of the position itself if `permute_embeddings` is off.
        """
        if tokens.shape != (len(conditioning), self._spec.dims):
            raise ValueError(
                f"expected images [{len(conditioning)}, {self._spec.dims}] (one a row of conditioning, each "
                f"{self._spec.height}x{self._spec.width}x{self._spec.channels}), found {tokens.shape}"
            )
        index = self.source_index(conditioning)
        if self._permute_embeddings:
            coordinates = self.identity_coordinates[0][:, index].transpose(1, 0, 2)  # [3, B, T] -> [B, 3, T]
        else:
            coordinates = self.identity_coordinates.repeat(len(tokens), axis=0)
        return np.take_along_axis(tokens, index, axis=1), coordinates


def random_orders(seed: int, count: int, dims: int) -> np.ndarray:
    """The fixed random generation orders of `sos_rd`: int32 [count, dims], one permutation a row."""
    generator = np.random.RandomState(seed)
    return np.array([generator.permutation(dims) for _ in range(count)], np.int32).reshape(count, dims)


@functools.cache
def lexicographic_permutations(size: int) -> np.ndarray:
    """All permutations of 0 .. size-1 in lexicographic order: int8 [size!, size]. Read-only."""
    flat = itertools.chain.from_iterable(itertools.permutations(range(size)))
    table = np.fromiter(flat, np.int8, math.factorial(size) * size).reshape(-1, size)
    table.flags.writeable = False
    return table


def _permutations(name: str, config: Config, spec: ImageSpec) -> Callable[[np.ndarray], np.ndarray] | None:
    """`ConditioningType.source_index` of the type called `name`."""
    position = np.arange(spec.dims, dtype=np.int32).reshape(spec.shape)  # [H, W, C]
    if name in ("sos_aa", "sos_data"):
        return None
    if name == "sos_rot":
        _require_square(spec, "--use_rotation")
        return _from_images([np.rot90(position, -turns) for turns in range(4)])  # clockwise
    if name == "sos_c":
        if spec.channels != 3:
            raise SettingsError(
                f"--use_color permutes red, green and blue, but the images are {spec.height}x{spec.width} with "
                f"{spec.channels} channel(s); train without --use_color"
            )
        return _from_images([position[:, :, channels] for channels in lexicographic_permutations(3)])
    if name == "sos_tr":
        _require_square(spec, "--use_transposition")
        return _from_images([position, position.transpose(1, 0, 2)])
    if name == "sos_rev":
        # Half a turn of the plane: the channels inside a pixel keep their order.
        return _from_images([position, position[::-1, ::-1]])
    if name == "sos_js":
        return _jigsaw(position, config.jigsaw_grid_size)
    if name == "sos_rd":
        orders = random_orders(
            config.randomly_determined_order_seed, config.randomly_determined_order_num_perms, spec.dims
        )
        return _from_images([position, *orders])
    raise AssertionError(name)


def _from_images(permuted_positions: list[np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """Look-up in a table with one row for each token."""
    table = np.stack([positions.ravel() for positions in permuted_positions])  # [rows, T]
    return lambda tokens: table[tokens]


def _jigsaw(position: np.ndarray, grid: int) -> Callable[[np.ndarray], np.ndarray]:
    """Tile i of the result is tile permutation_k(i) of the image, tiles being numbered row by row.

    Not a table of [(g * g)!, T] as for the other types, which for g = 3 would take gigabytes: a sub-pixel is
    found as "first position of its tile" plus "place within the tile".
    """
    height, width, _ = position.shape
    if height % grid or width % grid:
        raise SettingsError(
            f"--use_jigsaw cuts images into {grid}x{grid} equal tiles, which {height}x{width} does not allow; "
            "choose a --jigsaw_grid_size that divides both sides"
        )
    tile_height, tile_width = height // grid, width // grid
    first = position[::tile_height, ::tile_width, 0].ravel()  # [g * g]
    rows, columns = np.indices((height, width))
    tile = np.broadcast_to((rows // tile_height * grid + columns // tile_width)[:, :, None], position.shape).ravel()
    place = position.ravel() - first[tile]  # [T]
    arrangements = lexicographic_permutations(grid * grid)
    return lambda tokens: first[arrangements[tokens]][:, tile] + place


def _require_square(spec: ImageSpec, flag: str) -> None:
    if spec.height != spec.width:
        raise SettingsError(
            f"{flag} turns rows into columns and needs square images, but these are {spec.height}x{spec.width}; "
            f"crop them or train without {flag}"
        )
