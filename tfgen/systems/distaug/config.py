"""Settings of DistAug: every flag of the original training script, with its name, default and meaning.

Letters of the notation: B batch, T context length = H * W * C sub-pixels, E `n_embd`, L `n_layer`,
S = int(E * `qk_ratio`) width of queries and keys, I = int(E * `mlp_multiple`) width of the MLP, V vocabulary,
s `local_attn_ctx`.
"""

from __future__ import annotations

import dataclasses
import math

from tfgen.data.source import ImageSpec
from tfgen.settings import SettingsError, check_values, flag

# Attention modes and the pairs (query q, key k) that they keep. The strided pattern of Child et al. 2019, section 4.2,
# is `b` in some layers and `bT` in others.
ATTENTION_MODES = {
    "a": "k <= q",
    "a_all": "all pairs",
    "b": "0 <= q - k < s",
    "bT": "k <= q and (q - k) mod s = 0",
    "c": "same pairs as bT, for a context that is no multiple of s",
    "b0": "k <= q within chunks of T / s tokens",
    "b_all": "all pairs within a block of 32",
    "bT_all": "all pairs within a block of 32 of the strided order",
}

_LARGEST_SEED = 2**32 - 1  # of numpy.random.RandomState
_NEVER_READ = "the original parses it and never reads it"


@dataclasses.dataclass(frozen=True)
class Config:
    """Every setting of a DistAug run.

    Values are checked one by one on construction and against each other by `check`; `validate` adds the data set.
    All of them raise `SettingsError`.
    """

    out_dir: str = flag("$HOME/dist-aug", "Root folder of outputs.", group="Where outputs go (--run is simpler)")
    desc: str = flag("test", "Run name, a folder below out_dir.")

    dataset: str = flag(
        "cifar10",
        "Images to learn: cifar10, imagenet32, imagenet64, digits, photos, the path of an array file or image folder, "
        "or any TensorFlow Datasets name.",
        group="Data",
    )
    datapoints: int | None = flag(None, "CIFAR-10 only: number of training images kept.", minimum=1)
    test_size: int | None = flag(
        None, "CIFAR-10 only: validation images split off the 50,000 (None: 5,000).", minimum=1, maximum=49_999
    )
    auxiliary_dataset: str | None = flag(None, "Second data set that is mixed in.")
    auxiliary_dataset_fraction: float = flag(
        0.5, "Probability that a training image comes from the auxiliary set.", minimum=0.0, maximum=1.0
    )
    auxiliary_dataset_subset_size: int | None = flag(
        None, "Number of auxiliary training images kept, from the first.", minimum=1
    )
    auxiliary_dataset_seed: int = flag(42, "Seed of the mixer.", minimum=0, maximum=_LARGEST_SEED)
    use_imagenet_fraction: float = flag(1.0, "Share of ImageNet.", unused=_NEVER_READ)

    n_embd: int = flag(512, "Width of the residual stream (E).", minimum=1, group="Network")
    n_ctx: int = flag(256, "Context length (T); must equal height x width x channels of the images.", minimum=1)
    n_head: int = flag(8, "Attention heads.", minimum=1)
    n_layer: int = flag(6, "Layers (L).", minimum=1)
    mlp_multiple: float = flag(4.0, "Width of the MLP as a multiple of n_embd.", minimum=0.0)
    qk_ratio: float = flag(1.0, "Width of queries and keys as a multiple of n_embd.", minimum=0.0)
    attention_layers: str = flag(
        "a",
        f"Comma list of attention modes ({', '.join(ATTENTION_MODES)}), cycled over the layers; "
        "n_layer must be a multiple of its length.",
    )
    local_attn_ctx: int = flag(64, "Stride and window of the sparse attention modes, in sub-pixels (s).", minimum=1)
    blocksparse_op: bool = flag(False, "Block-sparse attention; otherwise dense masked attention.")
    blocksize: int = flag(64, "Side of the blocks of block-sparse attention.", choices=(8, 16, 32, 64))
    no_vocab_rounding: bool = flag(
        False, "Keep the vocabulary as it is; otherwise it is rounded up to a multiple of 128 (256 stays 256)."
    )
    activation: str = flag("quick_gelu", "Activation function.", unused="the activation is always x * sigmoid(1.702 x)")

    embd_pdrop: float = flag(
        0.1, "Dropout rate of embeddings and output matrix.", minimum=0.0, below=1.0, group="Regularisation"
    )
    resid_pdrop: float = flag(0.1, "Dropout rate of both branches of every layer.", minimum=0.0, below=1.0)
    l2_loss: float = flag(0.0, "Decoupled weight decay coefficient, a multiple of the learning rate.", minimum=0.0)
    dropout_broadcast_dims: str | None = flag(None, "Axes that share a dropout mask.", unused=_NEVER_READ)

    pos_embd_std: float = flag(
        0.007,
        "Standard deviation of the position embeddings of each axis, times sqrt(3).",
        minimum=0.0,
        group="Initial weights",
    )
    w_embd_std: float = flag(0.013, "Standard deviation of token and start-of-sequence embeddings.", minimum=0.0)
    mlp_w1: float = flag(0.125, "Variance of the first MLP matrix, times E.", minimum=0.0)
    mlp_w2: float = flag(0.125, "Variance of the second MLP matrix, times 2 I L.", minimum=0.0)
    qk_w: float = flag(0.125, "Variance of the query and key matrices, times E.", minimum=0.0)
    v_w: float = flag(0.125, "Variance of the value matrix, times E.", minimum=0.0)
    post_w: float = flag(0.125, "Variance of the attention output matrix, times 2 E L.", minimum=0.0)
    logits_w: float = flag(
        0.125, "Variance of the output matrix, times E; 0 starts at 8 bits per sub-pixel.", minimum=0.0
    )
    preconv_w: float = flag(0.125, "Variance of a convolution.", unused="the network has no convolution")

    use_rotation: bool = flag(False, "Rotate images by multiples of 90 degrees.", group="Augmentation and conditioning")
    use_color: bool = flag(False, "Permute the colour channels.")
    use_transposition: bool = flag(False, "Swap rows and columns.")
    use_reverse: bool = flag(False, "Rotate by 180 degrees (channels keep their order).")
    use_jigsaw: bool = flag(False, "Permute the tiles of a grid.")
    jigsaw_grid_size: int = flag(2, "Tiles along each side of the jigsaw.", minimum=1, maximum=3)
    use_randomly_determined_order: bool = flag(False, "Permute all sub-pixels, in one of a few fixed random ways.")
    randomly_determined_order_num_perms: int = flag(3, "Number of random permutations beside the identity.", minimum=1)
    randomly_determined_order_seed: int = flag(42, "Seed of the permutations.", minimum=0, maximum=_LARGEST_SEED)
    randomly_determined_order_use_lookahead: bool = flag(
        False, "Add a second set of position embeddings, of the position to be predicted."
    )
    rand_augment: bool = flag(False, "RandAugment on training images (RGB only).")
    rand_augment_conditioning: bool = flag(False, "Condition on whether RandAugment was applied.")
    rand_augment_rate: float = flag(
        0.95, "Probability that RandAugment is applied (only with conditioning).", minimum=0.0, maximum=1.0
    )
    rand_augment_n: int = flag(1, "RandAugment operations applied in sequence.", minimum=1)
    rand_augment_m: int = flag(2, "RandAugment magnitude, 0 to 10.", minimum=0, maximum=10)
    aug: bool = flag(False, "Plain horizontal flip with probability 1/2, never conditioned on.")
    permute_embeddings: bool = flag(True, "Move the position embeddings with the pixels.")
    unaugmented_data_rate: float | None = flag(
        None, "Probability that an image stays as it is; None: tokens are uniform.", minimum=0.0, maximum=1.0
    )
    use_dataset_conditioning: bool = flag(
        False, "Condition on which data set an image came from.", negative="no_dataset_conditioning"
    )
    use_unconditional_augmentation: bool = flag(
        False, "Augment without conditioning: a single start-of-sequence vector is used."
    )
    aug_seed: int = flag(314, "Seed of the augmentation tokens.", minimum=0, maximum=_LARGEST_SEED)
    use_linf_pgd: bool = flag(False, "Adversarial augmentation.", unused="the original has no code for it")

    optimizer: str = flag("bs_adam", "Optimizer.", choices=("bs_adam", "bs_adafactor"), group="Optimisation")
    n_batch: int = flag(128, "Images per rank and update.", minimum=1)
    lr: float = flag(0.0005, "Peak learning rate.", minimum=0.0)
    lr_offset: int = flag(0, "Updates subtracted from the step before the schedule.")
    warmup_iters: int = flag(5000, "Updates of linear warm-up.", minimum=0)
    decay_lr_linearly: bool = flag(False, "Linear instead of cosine decay.")
    total_epochs: int = flag(100, "Length of the run and of the decay, in epochs.", minimum=1)
    exit_after_n_epochs: int | None = flag(None, "End the run earlier, after this many epochs.", minimum=1)
    beta2: float = flag(0.999, "Decay of the second moment (that of the first is 0.9).", minimum=0.0, below=1.0)
    max_grad_norm: float | None = flag(1.0, "Clip of the gradients' global norm; 0 or None for none.", minimum=0.0)
    weights_beta: float = flag(0.999, "Decay of the averaged weights, per update.", minimum=0.0, maximum=1.0)
    disable_ema_vars: bool = flag(False, "No averaged weights: evaluate and sample with the raw ones.")
    seed: int = flag(42, "Seed of initial weights, data order and dropout.", minimum=0)

    float16: bool = flag(False, "Half-precision compute.", group="Precision, memory and ranks")
    dynamic_loss_scaling: bool = flag(False, "Adapt the loss scale to overflows (with float16).")
    fp16_loss_scale: float = flag(2.0**16, "Loss scale at the start.", minimum=1.0)
    min_loss_scale: float = flag(2.0**10, "The loss scale is not halved at or below this value.", minimum=1.0)
    fp16_mean_var: bool = flag(False, "16-bit Adam moments.")
    fp16_allreduce: bool = flag(False, "Sum gradients across ranks in float16.")
    merge_layer_allreduce: int = flag(
        0, "Layers whose gradients are reduced together; 0 for all at the end.", minimum=0
    )
    recompute: bool = flag(False, "Recompute each layer in the backward pass: less memory, same numbers.")
    fp32_gains_biases: bool = flag(False, "Gains and biases in float32.", unused="they always are")
    fp16_loss_freq: int = flag(1000, "Loss-scale interval.", unused=_NEVER_READ)

    iters_per_log: int = flag(500, "Updates between log lines.", minimum=1, group="Logging, saving and evaluation")
    epochs_per_save: int = flag(1, "Epochs between checkpoints.", minimum=1)
    epochs_per_eval: int = flag(1, "Epochs between evaluations.", minimum=1)
    epochs_per_backup: int = flag(1, "Epochs between backups.", unused=_NEVER_READ)
    eval_after_n_examples: int | None = flag(
        None,
        "Evaluate each time this many more images have been seen; evaluation and saving per epoch and "
        "exit_after_n_epochs are then off.",
        minimum=1,
    )
    skip_initial_evals: bool = flag(False, "No evaluation before the first update.")
    eval_and_exit: bool = flag(False, "Evaluate once and exit.")
    eval_test: bool = flag(False, "Evaluate the test set once and exit.")
    eval_start_idx: int = flag(0, "First image evaluated.", unused=_NEVER_READ)
    eval_n_examples: int = flag(100_000, "Images evaluated.", unused=_NEVER_READ)
    aug_eval: str | None = flag(
        None, "Evaluate every combination of augmentations on this split and exit.", choices=("train", "valid", "test")
    )
    aug_eval_n_examples: int | None = flag(None, "Images of aug_eval, from the first.", minimum=1)
    restore_path: str = flag("", "Checkpoint (.npz) of the original code to start from.")

    sample_and_exit: bool = flag(False, "Sample once and exit.", group="Sampling")
    sample_during_eval: bool = flag(False, "Sample at the start and at every evaluation.")
    # The original stops when the samples cannot be shared out evenly over the ranks, as the one sample of the preset
    # `sample-during-eval-8gpu` never can. Here a sample depends on its index only: any number goes with any ranks.
    samples_to_generate: int = flag(4, "Samples in all, over all ranks.", minimum=1)
    sample_batch: int = flag(4, "Samples drawn at a time on one rank.", minimum=1)
    sample_grid_dim: int = flag(4, "Side of the sample grid.", unused=_NEVER_READ)
    sample_f16: bool = flag(False, "Sample in half precision.", unused=_NEVER_READ)
    temperature: float = flag(1.0, "Logits are divided by it when sampling.", above=0.0)

    def __post_init__(self) -> None:
        check_values(self)

    # Derived -------------------------------------------------------------------------------------------

    @property
    def modes(self) -> tuple[str, ...]:
        """Attention mode of each of the L layers."""
        pattern = self.attention_layers.split(",")
        return tuple(pattern[layer % len(pattern)] for layer in range(self.n_layer))

    @property
    def key_width(self) -> int:
        """S, width of all queries or keys of a token."""
        return int(self.n_embd * self.qk_ratio)

    @property
    def mlp_width(self) -> int:
        """I, width of the MLP's hidden layer."""
        return int(self.n_embd * self.mlp_multiple)

    @property
    def vocabulary(self) -> int:
        """V, number of token values the network predicts. The values of a byte, with or without rounding."""
        return 256

    @property
    def augmentation_types(self) -> dict[str, int]:
        """Augmentation types in use and their numbers of tokens, in the order in which they are applied."""
        rows = {
            "sos_rot": (self.use_rotation, 4),
            "sos_c": (self.use_color, 6),
            "sos_tr": (self.use_transposition, 2),
            "sos_rev": (self.use_reverse, 2),
            "sos_js": (self.use_jigsaw, math.factorial(self.jigsaw_grid_size**2)),
            "sos_aa": (self.rand_augment_conditioning, 2),
            "sos_rd": (self.use_randomly_determined_order, self.randomly_determined_order_num_perms + 1),
            "sos_data": (self.use_dataset_conditioning, 2),
        }
        return {name: count for name, (used, count) in rows.items() if used}

    @property
    def conditioning_types(self) -> dict[str, int]:
        """Tables of start-of-sequence vectors and their rows; empty when the single vector `sos` is used."""
        return {} if self.use_unconditional_augmentation else self.augmentation_types

    # Checks --------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raises `SettingsError` for settings that contradict each other, whatever the images are."""
        if self.dataset == "imagenet32cifar":
            raise SettingsError(
                "--dataset=imagenet32cifar does not exist; to mix ImageNet-32 into CIFAR-10 use "
                "--dataset=cifar10 --auxiliary_dataset=imagenet32, as the presets c10_15m_ss_i32_cond and _nocond do"
            )
        self._check_network()
        self._check_augmentation()

    def _check_network(self) -> None:
        pattern = self.attention_layers.split(",")
        for mode in pattern:
            if mode not in ATTENTION_MODES:
                raise SettingsError(
                    f"--attention_layers={self.attention_layers}: no attention mode {mode!r}; "
                    f"the modes are {', '.join(ATTENTION_MODES)}"
                )
        if self.n_layer % len(pattern):
            raise SettingsError(
                f"--n_layer={self.n_layer} is no multiple of the {len(pattern)} modes in "
                f"--attention_layers={self.attention_layers}"
            )
        for what, width in (("n_embd", self.n_embd), ("int(n_embd * qk_ratio)", self.key_width)):
            if width % self.n_head or not width:
                raise SettingsError(f"{what} = {width} cannot be split evenly into --n_head={self.n_head} heads")
        if not self.mlp_width:
            raise SettingsError(f"--mlp_multiple={self.mlp_multiple} leaves an MLP of width 0")
        self._check_attention(set(pattern))

    def _check_attention(self, modes: set[str]) -> None:
        context, stride, block = self.n_ctx, self.local_attn_ctx, self.blocksize
        if self.blocksparse_op and context % block:
            raise SettingsError(f"--n_ctx={context} is no multiple of --blocksize={block} (needed by --blocksparse_op)")
        if self.blocksparse_op and "b" in modes and stride % block:
            raise SettingsError(
                f"--local_attn_ctx={stride} is no multiple of --blocksize={block} "
                "(needed by attention mode b with --blocksparse_op)"
            )
        for mode in sorted(modes & {"bT", "b0"}):
            if context % stride:
                raise SettingsError(
                    f"--n_ctx={context} is no multiple of --local_attn_ctx={stride} (needed by attention mode {mode})"
                )
            if self.blocksparse_op and (context // stride) % block:
                raise SettingsError(
                    f"n_ctx / local_attn_ctx = {context // stride} is no multiple of --blocksize={block} "
                    f"(needed by attention mode {mode} with --blocksparse_op)"
                )
        for mode in sorted(modes & {"b_all", "bT_all"}):
            if (context, stride, block) != (1024, 32, 32):
                raise SettingsError(
                    f"attention mode {mode} needs --n_ctx=1024 --local_attn_ctx=32 --blocksize=32, "
                    f"found {context}, {stride}, {block}"
                )

    def _check_augmentation(self) -> None:
        if self.rand_augment_conditioning and self.use_unconditional_augmentation:
            raise SettingsError(
                "--rand_augment_conditioning contradicts --use_unconditional_augmentation: "
                "add --no_rand_augment_conditioning for RandAugment without conditioning"
            )
        if self.use_dataset_conditioning and self.auxiliary_dataset is None:
            raise SettingsError(
                "--use_dataset_conditioning needs a second data set to tell apart: add --auxiliary_dataset=NAME"
            )
        if self.auxiliary_dataset_subset_size is not None and self.auxiliary_dataset is None:
            raise SettingsError("--auxiliary_dataset_subset_size needs --auxiliary_dataset=NAME")
        if self.aug_eval is not None and self.use_dataset_conditioning:
            raise SettingsError("--aug_eval cannot choose a data set: it does not work with --use_dataset_conditioning")

    def validate(self, spec: ImageSpec) -> None:
        """Raises `SettingsError` for settings that contradict each other or the images."""
        self.check()
        height, width, channels = spec.shape
        size = f"images of {self.dataset} are {height}x{width}x{channels}"
        if self.n_ctx != spec.dims:
            raise SettingsError(f"--n_ctx={self.n_ctx}, but {size}: expected --n_ctx={spec.dims}")
        if (self.use_rotation or self.use_transposition) and height != width:
            raise SettingsError(f"--use_rotation and --use_transposition need square images, but {size}")
        if self.use_color and channels != 3:
            raise SettingsError(f"--use_color needs images with 3 channels, but {size}")
        if self.use_jigsaw and (height % self.jigsaw_grid_size or width % self.jigsaw_grid_size):
            raise SettingsError(f"--jigsaw_grid_size={self.jigsaw_grid_size} does not divide the sides: {size}")
        if self.rand_augment and channels != 3:
            raise SettingsError(f"--rand_augment needs images with 3 channels, but {size}")


def parameter_count(config: Config, spec: ImageSpec) -> int:
    """Number of trainable parameters, from the settings alone."""
    width, key_width, mlp_width = config.n_embd, config.key_width, config.mlp_width
    tables = config.vocabulary + sum(spec.shape)  # rows of token and position embeddings
    tables += sum(config.conditioning_types.values()) or 1
    if config.randomly_determined_order_use_lookahead:
        tables += sum(spec.shape)
    queries_and_keys = 2 * (width + 1) * key_width
    values_and_output = 2 * (width + 1) * width
    mlp = (width + 1) * mlp_width + (mlp_width + 1) * width
    norms = 2 * 2 * width
    output = 2 * width + width * config.vocabulary
    return tables * width + config.n_layer * (norms + queries_and_keys + values_and_output + mlp) + output
