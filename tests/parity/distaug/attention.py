"""Checkers of the attention patterns and of one layer in every mode."""

from __future__ import annotations

import hashlib
import json
import re

import numpy as np
import tensorflow as tf

from tests.parity.harness import Case, checker
from tfgen.ops.blocksparse import Pattern, attention
from tfgen.systems.distaug import published
from tfgen.systems.distaug.transformer import Block


@checker("distaug", "attention_block*.npz")
def check_block(case: Case) -> None:
    """One layer, its dense and its block-sparse form: both must be what the one path here computes."""
    settings = case.json("config")
    width = settings["n_embd"]
    x = tf.constant(case["x"])
    weights = case.under("var/")
    for name in sorted({name.rpartition("/")[0] for name in case.matching("*/*/*_out")}):
        form, mode = name.split("/")
        pattern = Pattern(mode, settings["n_ctx"], settings["local_attn_ctx"], settings["blocksize"])
        pattern.validate(block_form=form == "sparse")
        block = Block(
            index=int(re.fullmatch(r"model/h(\d+)/.*", next(iter(weights)))[1]),
            pattern=pattern,
            n_head=settings["n_head"],
            n_embd=width,
            qk_width=int(width * settings["qk_ratio"]),
            mlp_width=int(width * settings["mlp_multiple"]),
            stds=dict.fromkeys(("q_proj", "k_proj", "v_proj", "post_proj", "mlp_proj1", "mlp_proj2"), 0.0),
            resid_pdrop=0.0,
            seed=0,
        )
        for variable in block.trainable_variables:
            variable.assign(weights[published.published_name(variable)])
        n = block.attn_input(x)
        attended = attention(block.q_proj(n), block.k_proj(n), block.v_proj(n), pattern, block.n_head)
        case.close(f"{name}/attn_out", attended, 1e-4)
        case.close(f"{name}/block_out", block(x), 1e-4)


@checker("distaug", "attention_patterns*.npz")
def check_patterns(case: Case) -> None:
    for name in sorted({name.rpartition("/")[0] for name in case.matching("*/n*/*/*")}):
        form, sizes, mode = name.split("/")
        numbers = {key: int(value) for key, value in re.findall(r"(n|blk|loc)(\d+)", sizes)}
        pattern = Pattern(mode, numbers["n"], numbers["loc"], numbers.get("blk", 32))
        if form == "sparse":
            _check_blocks(case, name, pattern)
            _check_mask(case, f"{name}/", pattern.mask())
            _check_mask(case, f"{name}/token_order_", pattern.token_mask())
        else:
            _check_mask(case, f"{name}/", pattern.token_mask())
    _check_table(case)


def _check_blocks(case: Case, name: str, pattern: Pattern) -> None:
    layout = pattern.layout()
    if f"{name}/layout_bits" in case:
        case.equal(f"{name}/layout_bits", np.packbits(layout))
    if f"{name}/nblocks" in case:
        case.equal(f"{name}/nblocks", layout.sum())


def _check_mask(case: Case, prefix: str, mask: np.ndarray) -> None:
    packed = np.packbits(mask)
    computed = {
        "mask_bits": packed,
        "row_counts": mask.sum(axis=1),
        "sha256_packbits": np.array(hashlib.sha256(packed.tobytes()).hexdigest()),
    }
    for part, value in computed.items():
        if prefix + part in case:
            case.equal(prefix + part, value)


def _check_table(case: Case) -> None:
    table = case.json("table_json") if "table_json" in case else {"rows": []}
    for row in table["rows"]:
        recorded = dict(zip(table["columns"], row, strict=True))
        pattern = Pattern(recorded["mode"], recorded["n_ctx"], recorded["local_attn_ctx"], recorded["blocksize"])
        kept, blocks, length = int(pattern.mask().sum()), pattern.layout(), pattern.n_ctx
        computed = {
            "blocks": int(blocks.sum()),
            "kept_pairs": kept,
            "kept/causal": kept / (length * (length + 1) // 2),
            "blocks/all_blocks": float(blocks.mean()),
        }
        for column, value in computed.items():
            case.close(f"table {json.dumps(row[:4])} {column}", value, 1e-12, expected=recorded[column])
