"""The chains of training: where they begin, how they move, and what is kept of them from step to step."""

from __future__ import annotations

import tensorflow as tf

from tfgen.data.source import ImageSpec
from tfgen.randomness import Key
from tfgen.systems.ebm import hmc, replay, sampler
from tfgen.systems.ebm.config import Config
from tfgen.systems.ebm.replay import ReplayBuffer, Replayed
from tfgen.systems.ebm.sampler import Chain, Moves, StepEnergy
from tfgen.systems.ebm.training_settings import chain_of


def moves_of(config: Config, energy: StepEnergy, chain: Chain, key: Key) -> Moves:
    """How the chains of a run move: by Langevin steps, or with --hmc by Hamiltonian transitions.

    Args:
      energy: as the temperature has it.
      key: draws noise and momenta.
    """
    if config.hmc:
        transition = sampler.hamiltonian(energy, key.fold("hamiltonian"), config.hmc_step_size, config.hmc_leapfrogs)
        return sampler.TransitionMoves(transition, chain, sampler.drawn(key.fold("noise")))
    return sampler.FusedMoves(energy, chain, key.fold("noise"))


class Chains(tf.Module):
    """Chains of one rank. What they keep is the rank's own: no other rank has it.

    Args:
      config: settings of the run.
      spec: of the images.
      label_columns: values of a label; 0 for an unconditional network.

    Attributes:
      buffer: earlier samples, with --replay_batch; else None.
      previous: samples of the step before, float32 [batch_size, ...], with --pcd; else None.
      begun: bool scalar, whether `previous` holds any.
    """

    def __init__(self, config: Config, spec: ImageSpec, label_columns: int):
        super().__init__(name="chains")
        self._config, self._chain = config, chain_of(config)
        self.buffer: ReplayBuffer | None = None
        self.previous: tf.Variable | None = None
        if config.replay_batch:
            self.buffer = ReplayBuffer(
                config.replay_capacity,
                config.batch_size,
                spec.shape,
                tf.float32 if config.replay_float else tf.uint8,
                label_columns if config.replay_labels else 0,
                config.replay_truncates,
            )
        if config.pcd:
            zeros = tf.zeros([config.batch_size, *spec.shape])
            self.previous = tf.Variable(zeros, trainable=False, name="chains/previous")
            self.begun = tf.Variable(False, trainable=False, name="chains/begun")

    @property
    def buffered(self) -> int:
        """Images in the buffer; 0 without one."""
        return 0 if self.buffer is None else int(self.buffer.length)

    @property
    def batch_size(self) -> int | None:
        """Chains that every step must have; None where nothing is kept of them."""
        return self._config.batch_size if self.buffer is not None or self.previous is not None else None

    def starts(self, fresh: tf.Tensor, labels: tf.Tensor | None, key: Key) -> Replayed:
        """Where the chains of a step begin, float32 [B, ...], and their labels [B, K] or None.

        Args:
          fresh: chains that begin anew, float32 [B, ...].
          labels: of the images of the step.
        """
        config = self._config
        if self.buffer is not None:
            key = key.fold("replay")
            return self.buffer.starts(fresh, labels, key, high=config.rescale, restart=config.replay_restart)
        if self.previous is not None:
            return Replayed(tf.where(self.begun, self.previous, fresh), labels)
        return Replayed(fresh, labels)

    def moved(self, energy: StepEnergy, starts: tf.Tensor, key: Key) -> tf.Tensor:
        """The ends of chains on an energy, float32 [B, ...]. A gradient can go back unless they are Hamiltonian."""
        return sampler.run(starts, self._chain.steps, moves_of(self._config, energy, self._chain, key))

    def acceptance(self, energy: StepEnergy, images: tf.Tensor, key: Key) -> tf.Tensor:
        """Mean probability that one further Hamiltonian transition from the images is accepted: a scalar."""
        step = tf.constant(self._chain.steps)
        result = hmc.transition(
            lambda x: sampler.energy_and_gradient(energy, x, step),
            images,
            step_size=self._config.hmc_step_size,
            leapfrogs=self._config.hmc_leapfrogs,
            seed=sampler.philox_seed(key.fold("acceptance")),
            step=step,
            first_sample=key.first_sample,
        )
        return tf.reduce_mean(result.acceptance)

    def keep(self, ends: tf.Tensor, labels: tf.Tensor | None, take: tf.Tensor) -> None:
        """Keeps the ends of a step's chains for later ones; nothing where `take` (bool scalar) is False."""
        if self.buffer is not None:
            stored = ends if self._config.replay_float else replay.to_bytes(ends, self._config.rescale)
            self.buffer.add(stored, labels, take)
        if self.previous is not None:
            self.previous.assign(tf.where(take, ends, self.previous))
            self.begun.assign(take | self.begun)
