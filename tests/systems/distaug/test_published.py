from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tfgen.systems.distaug import published
from tfgen.systems.distaug.transformer import Transformer, token_losses
from tfgen.training import moments16
from tfgen.training.ema import Ema
from tfgen.training.optimizers import Adafactor, Adam

SIZES = {
    "height": 4,
    "width": 4,
    "channels": 3,
    "n_embd": 32,
    "n_head": 2,
    "n_layer": 2,
    "conditioning_rows": {"sos_rot": 4},
}


class Trained:
    """A network with averages and moments of its own; `steps` updates make all of them differ."""

    def __init__(self, steps: int = 0, packed: bool = False, **arguments):
        self.network = Transformer(**(SIZES | arguments))
        self.optimizer, self.ema = Adam(packed_moments=packed), Ema(0.9)
        variables = self.network.trainable_variables
        self.optimizer.build(variables)
        self.ema.build(variables)
        tokens = tf.constant(np.random.RandomState(0).randint(0, 256, [2, 48]), tf.int32)
        for _ in range(steps):
            with tf.GradientTape() as tape:
                logits = self.network(tokens, self.network.identity_coordinates, tf.constant([[1], [2]]))
                objective = tf.reduce_mean(token_losses(logits, tokens))
            self.optimizer.apply(tape.gradient(objective, variables), 1e-2)
            self.ema.update()

    def parts(self):
        return self.network, self.ema.averages, self.optimizer

    def bits(self) -> list[bytes]:
        variables = [*self.network.variables, *self.ema.averages, *self.optimizer.variables]
        return [variable.numpy().tobytes() for variable in variables]


@pytest.fixture(scope="module")
def trained() -> Trained:
    return Trained(steps=2)


@pytest.fixture
def file(trained, tmp_path):
    path = tmp_path / "model.npz"
    published.write(path, *trained.parts(), step=2, counters={"num_epochs:0": 7})
    return path


def test_writing_and_reading_changes_nothing(trained, file):
    fresh = Trained(seed=1)
    assert fresh.bits() != trained.bits()
    loaded = published.load_into(file, *fresh.parts())
    assert fresh.bits() == trained.bits()
    assert loaded.step == 2
    assert set(loaded.ignored) == {"Entropy:0", *published.COUNTERS}


def test_contents_of_a_file(trained, file):
    arrays = published.read(file)
    assert list(arrays) == published.array_names(trained.network)
    assert arrays["Entropy:0"].shape == (245760,)
    assert arrays["num_epochs:0"] == 7
    assert arrays["num_epochs:0"].dtype == arrays["global_step:0"].dtype == np.int64
    assert arrays["best_val_loss:0"] == 99999
    assert arrays["adam_beta/beta1_power:0"] == pytest.approx(0.9**3)
    for name, array in zip(("q_proj/w", "mlp_proj2/w", "attn_input/g"), ([32, 32], [128, 32], [32]), strict=True):
        for suffix in (":0", "/Adam:0", "/Adam_1:0", "/Ema/ema:0"):
            assert list(arrays[f"model/h1/{name}{suffix}"].shape) == array


def test_packed_moments_are_stored_as_words(tmp_path):
    trained, path = Trained(steps=1, packed=True), tmp_path / "packed.npz"
    published.write(path, *trained.parts())
    arrays = published.read(path)
    large, small = "model/we", "model/h0/q_proj/w"  # 8192 and 1024 elements
    assert arrays[f"{large}/Adam:0"].dtype == arrays[f"{large}/Adam_1:0"].dtype == np.float16
    assert arrays[f"{small}/Adam:0"].dtype == np.float32
    fresh = Trained(packed=True, seed=1)
    published.load_into(path, *fresh.parts())
    assert fresh.bits() == trained.bits()


@pytest.mark.parametrize("words", [np.uint16, np.float16])
def test_words_become_numbers_in_an_optimizer_that_does_not_pack(tmp_path, words):
    packed, path = Trained(steps=1, packed=True), tmp_path / "packed.npz"
    published.write(path, *packed.parts())
    arrays = published.read(path)
    arrays = {n: a.view(words) if a.dtype == np.float16 else a for n, a in arrays.items()}
    fresh = Trained(seed=1)
    published.load_into(arrays, *fresh.parts())
    index = [v.name for v in packed.network.trainable_variables].index("we:0")
    for mine, theirs in zip(fresh.optimizer.moments(index), packed.optimizer.moments(index), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_numbers_become_words_in_an_optimizer_that_packs(trained, file):
    packing = Trained(packed=True, seed=1)
    published.load_into(file, *packing.parts())
    index = [v.name for v in trained.network.trainable_variables].index("we:0")
    mean, variance = trained.optimizer.moments(index)
    expected = moments16.encode_mean(mean.numpy()), moments16.encode_variance(variance.numpy())
    found = packing.optimizer.first_moments[index].numpy(), packing.optimizer.second_moments[index].numpy()
    for word, one in zip(found, expected, strict=True):
        np.testing.assert_array_equal(word.view(np.uint16), one)


def test_weights_alone(trained, file):
    fresh = Trained(seed=1)
    loaded = published.load_into(file, fresh.network)
    for one, other in zip(fresh.network.variables, trained.network.variables, strict=True):
        np.testing.assert_array_equal(one, other)
    assert "model/we/Ema/ema:0" in loaded.ignored
    assert not any(moment.numpy().any() for moment in fresh.optimizer.first_moments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_layer": 3}, "lacks 64 of 226 variables: model/h2/attn_input/g:0, .* and 56 more; likely flags: n_layer$"),
        ({"conditioning_rows": {"sos_rot": 4, "sos_tr": 2}}, "model/sos_token/sos_tr:0.*flags: use_transposition$"),
        ({"conditioning_rows": None}, "model/sos_token/sos:0.*flags: .*use_unconditional_augmentation$"),
        ({"lookahead": True}, "lookahead_embedding/pos_emb_0:0.*flags: randomly_determined_order_use_lookahead$"),
        ({"mlp_multiple": 2.0}, r"mlp_proj1/w:0 \[32, 128\], expected \[32, 64\].*flags: mlp_multiple; n_embd$"),
        ({"height": 6}, r"pos_emb_0:0 \[4, 32\], expected \[6, 32\].*flags: dataset"),
    ],
)
def test_a_file_of_another_network_is_refused_and_nothing_is_changed(file, arguments, message):
    other = Trained(**arguments)
    before = other.bits()
    with pytest.raises(published.CheckpointError, match=message):
        published.load_into(file, *other.parts())
    assert other.bits() == before


def test_missing_averages_and_moments_are_named(trained, tmp_path):
    path = tmp_path / "weights.npz"
    published.write(path, trained.network)
    for parts, flags in (((trained.ema.averages,), "disable_ema_vars"), ((None, trained.optimizer), "optimizer")):
        with pytest.raises(published.CheckpointError, match=f"likely flags: {flags}$"):
            published.load_into(path, trained.network, *parts)


def test_another_optimizer_is_refused(trained, file):
    optimizer = Adafactor()
    optimizer.build(trained.network.trainable_variables)
    with pytest.raises(published.CheckpointError, match="hold Adam moments, but the optimizer is Adafactor"):
        published.load_into(file, trained.network, None, optimizer)


def test_files_that_cannot_be_read(tmp_path, file):
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    objects = tmp_path / "objects.npz"
    np.savez(objects, **{"model/we:0": np.array([Payload()], object)})
    with pytest.raises(published.CheckpointError, match="array 'model/we:0' cannot be read"):
        published.read(objects)
    assert not (tmp_path / "executed").exists()

    content = file.read_bytes()
    (tmp_path / "short.npz").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.npz").write_text("no checkpoint")
    for name in ("short", "text"):
        with pytest.raises(published.CheckpointError, match=f"{name}.npz cannot be read as an .npz checkpoint"):
            published.read(tmp_path / f"{name}.npz")
    with pytest.raises(published.CheckpointError, match=r"absent\.npz does not exist"):
        published.read(tmp_path / "absent.npz")
    with pytest.raises(published.CheckpointError, match=r"declares \d+ bytes of arrays, more than the 1000 allowed"):
        published.read(file, max_bytes=1000)


def test_wrong_types_are_refused(trained, file):
    arrays = published.read(file)
    for name, message in (("model/we:0", "expected float32"), ("model/we/Adam:0", "expected float32 or 16-bit words")):
        with pytest.raises(published.CheckpointError, match=f"{name} has type float64, {message}"):
            published.load_into(arrays | {name: arrays[name].astype(np.float64)}, *trained.parts())


def test_unknown_counters_are_refused(trained, tmp_path):
    with pytest.raises(published.CheckpointError, match="unknown counters"):
        published.write(tmp_path / "model.npz", trained.network, counters={"epoch": 1})
