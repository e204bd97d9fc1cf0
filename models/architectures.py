"""Module paths of the sites, by architecture. Data only: no torch here.

Paths in `linears`, `norms` and `modules` start at a block; `outside` starts at the bare model. A fused
projection is a `Fused(path, index, of, layout)`: slice `index` of `of` equal parts (or of the parts given by
`sizes` attributes), laid out as rows, as columns of a transposed weight (Conv1D), or interleaved by head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Fused:
    path: str
    index: int = 0
    of: int = 1
    layout: str = "rows"  # rows | columns (weight stored as (in, out)) | heads ((heads, of, head_dim, in))


@dataclass(frozen=True)
class Stack:
    """One stack of blocks. `blocks` may hold {s} for stages, counted through from 0 over all stages."""

    blocks: str
    linears: dict[str, str | Fused]
    norms: dict[str, str]
    modules: dict[str, str]


@dataclass(frozen=True)
class Architecture:
    """What the networks of one `model_type` have in common.

    post_norm: a branch's residual is its own input, not the input of the norm before it.
    pooling: what a classifier reads; head: "linear" or "dense" (dense, tanh, linear).
    mask: "4d" where a ready (B, 1, 1 or L, L) mask may be passed, else the 2-D one.
    positions: the network takes `position_ids`; else it finds the positions by itself.
    first_slot: number of leading special tokens that stay before prompt tokens; None: no place for prompt tokens.
    dispatches: attention goes through transformers' registry of attention functions, so it can be replaced.
    equal_blocks: all blocks get the same arguments and follow directly on one another.
    movable: between blocks tokens may be dropped or inserted.
    rotary: queries and keys are rotated by their positions.
    skipped: what a block returns beside its hidden state where it is skipped; None: it cannot be skipped.
    windows: the attention sees windows instead of texts or images.
    flat_mlp: the feed-forward sees (B L, d) instead of (B, L, d).
    norm_offset: norms multiply by this number plus their weight.
    twice: linear maps that are called again in each pass, on relative positions instead of tokens.
    variant: fields that depend on a network's configuration.
    """

    kind: str
    stacks: dict[str, Stack]
    outside: dict[str, str]
    post_norm: bool = False
    pooling: str = "cls"
    head: str = "linear"
    head_bias: bool = True
    first_slot: int | None = 0
    mask: str = "2d"
    positions: bool = True
    dispatches: bool = True
    equal_blocks: bool = True
    movable: bool = True
    rotary: bool = False
    skipped: tuple | None = ()
    windows: bool = False
    flat_mlp: bool = False
    norm_offset: float = 0.0
    twice: tuple[str, ...] = ()
    variant: Callable[[Any], dict[str, Any]] | None = None
    options: dict = field(default_factory=dict)

    def of(self, config: Any) -> Architecture:
        """The record of one network, given its transformers configuration."""
        return self if self.variant is None else replace(self, **self.variant(config))


def _layer_types(config: Any) -> dict[str, Any]:
    """Blocks with full and with sliding attention get different masks (and in some networks other rotations)."""
    return {"equal_blocks": len(set(config.layer_types)) == 1}


_BERT_STACK = Stack(
    blocks="encoder.layer",
    linears={
        "attn.q": "attention.self.query",
        "attn.k": "attention.self.key",
        "attn.v": "attention.self.value",
        "attn.o": "attention.output.dense",
        "mlp.up": "intermediate.dense",
        "mlp.down": "output.dense",
    },
    norms={"norm.attn": "attention.output.LayerNorm", "norm.mlp": "output.LayerNorm"},
    modules={"attn": "attention", "attn.core": "attention.self", "mlp.act": "intermediate.intermediate_act_fn"},
)
BERT = Architecture(
    kind="encoder",
    stacks={"": _BERT_STACK},
    outside={
        "embed.token": "embeddings.word_embeddings",
        "embed.position": "embeddings.position_embeddings",
        "embed.type": "embeddings.token_type_embeddings",
        "embed.norm": "embeddings.LayerNorm",
        "embed": "embeddings",
        "pool": "pooler.dense",
    },
    post_norm=True,
    pooling="pooler",
    first_slot=1,
    mask="4d",
)
ROBERTA = replace(
    BERT,
    outside={k: v for k, v in BERT.outside.items() if k != "pool"},
    pooling="cls",
    head="dense",
    positions=False,
    options={"add_pooling_layer": False},
)

_LLAMA_STACK = Stack(
    blocks="layers",
    linears={
        "attn.q": "self_attn.q_proj",
        "attn.k": "self_attn.k_proj",
        "attn.v": "self_attn.v_proj",
        "attn.o": "self_attn.o_proj",
        "mlp.gate": "mlp.gate_proj",
        "mlp.up": "mlp.up_proj",
        "mlp.down": "mlp.down_proj",
    },
    norms={"norm.attn": "input_layernorm", "norm.mlp": "post_attention_layernorm"},
    modules={"attn": "self_attn", "attn.core": "self_attn", "mlp": "mlp", "mlp.act": "mlp.act_fn"},
)
LLAMA = Architecture(
    kind="decoder",
    stacks={"": _LLAMA_STACK},
    outside={"norm.final": "norm", "embed.token": "embed_tokens"},
    pooling="last",
    head_bias=False,
    mask="4d",
    rotary=True,
)
GEMMA = replace(LLAMA, norm_offset=1.0)
_QK_NORMS = {"norm.q": "self_attn.q_norm", "norm.k": "self_attn.k_norm"}
MISTRAL = replace(LLAMA, mask="2d")
QWEN2 = replace(MISTRAL, variant=_layer_types)
QWEN3 = replace(QWEN2, stacks={"": replace(_LLAMA_STACK, norms={**_LLAMA_STACK.norms, **_QK_NORMS})})
GEMMA3 = replace(
    QWEN2,
    norm_offset=1.0,
    stacks={
        "": replace(
            _LLAMA_STACK,
            norms={
                "norm.attn": "input_layernorm",
                "norm.attn.out": "post_attention_layernorm",
                "norm.mlp": "pre_feedforward_layernorm",
                "norm.mlp.out": "post_feedforward_layernorm",
                **_QK_NORMS,
            },
        )
    },
)

VIT = Architecture(
    kind="vision",
    stacks={
        "": Stack(
            blocks="layers",
            linears={
                "attn.q": "attention.q_proj",
                "attn.k": "attention.k_proj",
                "attn.v": "attention.v_proj",
                "attn.o": "attention.o_proj",
                "mlp.up": "mlp.fc1",
                "mlp.down": "mlp.fc2",
            },
            norms={"norm.attn": "layernorm_before", "norm.mlp": "layernorm_after"},
            modules={"attn": "attention", "attn.core": "attention", "mlp": "mlp", "mlp.act": "mlp.activation_fn"},
        )
    },
    outside={
        "norm.final": "layernorm",
        "embed.patch": "embeddings.patch_embeddings.projection",
        "embed": "embeddings",
    },
    first_slot=1,
    options={"add_pooling_layer": False},
)
SWIN = replace(
    VIT,
    stacks={"": replace(VIT.stacks[""], blocks="encoder.layers.{s}.blocks")},
    outside={
        "norm.final": "layernorm",
        "norm.downsample": "encoder.layers.{s}.downsample.norm",
        "downsample": "encoder.layers.{s}.downsample.reduction",
        "embed.norm": "embeddings.norm",
        "embed.patch": "embeddings.patch_embeddings.projection",
        "embed": "embeddings",
    },
    pooling="mean",
    first_slot=None,
    equal_blocks=False,
    movable=False,
    skipped=(None,),
    windows=True,
)


def _t5_stack(part: str, mlp: int) -> Stack:
    attn, ff = "layer.0.SelfAttention", f"layer.{mlp}.DenseReluDense"
    linears = {f"attn.{n}": f"{attn}.{n}" for n in "qkvo"}
    norms = {"norm.attn": "layer.0.layer_norm", "norm.mlp": f"layer.{mlp}.layer_norm"}
    modules = {"attn": "layer.0", "attn.core": attn, "mlp": f"layer.{mlp}", "mlp.act": f"{ff}.act"}
    if part == "decoder":
        linears |= {f"cross.{n}": f"layer.1.EncDecAttention.{n}" for n in "qkvo"}
        norms |= {"norm.cross": "layer.1.layer_norm"}
        modules |= {"cross": "layer.1", "cross.core": "layer.1.EncDecAttention"}
    linears |= {"mlp.gate": f"{ff}.wi_0", "mlp.up": f"{ff}.wi_1|{ff}.wi", "mlp.down": f"{ff}.wo"}
    return Stack(blocks=f"{part}.block", linears=linears, norms=norms, modules=modules)


T5 = Architecture(
    kind="encoder_decoder",
    stacks={"encoder": _t5_stack("encoder", 1), "decoder": _t5_stack("decoder", 2)},
    outside={
        "encoder.norm.final": "encoder.final_layer_norm",
        "encoder.embed.token": "encoder.embed_tokens",
        "decoder.norm.final": "decoder.final_layer_norm",
        "decoder.embed.token": "decoder.embed_tokens",
    },
    pooling="mean",
    positions=False,
    equal_blocks=False,
    movable=False,
    skipped=None,
)
DEBERTA = replace(
    ROBERTA,
    stacks={
        "": replace(
            _BERT_STACK,
            linears=_BERT_STACK.linears
            | {
                "attn.q": "attention.self.query_proj",
                "attn.k": "attention.self.key_proj",
                "attn.v": "attention.self.value_proj",
            },
        )
    },
    outside={
        **ROBERTA.outside,
        "embed.project": "embeddings.embed_proj",
        "embed.relative": "encoder.rel_embeddings",
        "norm.relative": "encoder.LayerNorm",
        "conv": "encoder.conv.conv",
        "norm.conv": "encoder.conv.LayerNorm",
    },
    mask="2d",
    positions=True,
    dispatches=False,
    movable=False,
    skipped=(None,),
    twice=("attn.q", "attn.k"),
    variant=lambda config: {"equal_blocks": not getattr(config, "conv_kernel_size", 0)},  # it follows the first block
    options={},
)
MODERNBERT = Architecture(
    kind="encoder",
    stacks={
        "": Stack(
            blocks="layers",
            linears={
                "attn.q": Fused("attn.Wqkv", 0, 3),
                "attn.k": Fused("attn.Wqkv", 1, 3),
                "attn.v": Fused("attn.Wqkv", 2, 3),
                "attn.o": "attn.Wo",
                "mlp.gate": Fused("mlp.Wi", 0, 2),
                "mlp.up": Fused("mlp.Wi", 1, 2),
                "mlp.down": "mlp.Wo",
            },
            norms={"norm.attn": "attn_norm", "norm.mlp": "mlp_norm"},
            modules={"attn": "attn", "attn.core": "attn", "mlp": "mlp", "mlp.act": "mlp.act"},
        )
    },
    outside={
        "norm.final": "final_norm",
        "embed.token": "embeddings.tok_embeddings",
        "embed.norm": "embeddings.norm",
        "embed": "embeddings",
    },
    pooling="mean",
    head="dense",
    first_slot=1,
    rotary=True,
    variant=_layer_types,
)
OPT = Architecture(
    kind="decoder",
    stacks={
        "": Stack(
            blocks="decoder.layers",
            linears={
                **{f"attn.{n}": f"self_attn.{n}_proj" for n in "qkv"},
                "attn.o": "self_attn.out_proj",
                "mlp.up": "fc1",
                "mlp.down": "fc2",
            },
            norms={"norm.attn": "self_attn_layer_norm", "norm.mlp": "final_layer_norm"},
            modules={"attn": "self_attn", "attn.core": "self_attn", "mlp.act": "activation_fn"},
        )
    },
    outside={
        "norm.final": "decoder.final_layer_norm",
        "embed.token": "decoder.embed_tokens",
        "embed.position": "decoder.embed_positions",
        "embed.project": "decoder.project_in",
        "head.project": "decoder.project_out",
    },
    pooling="last",
    head_bias=False,
    mask="4d",
    flat_mlp=True,
    variant=lambda config: {"post_norm": not config.do_layer_norm_before},
)
BLOOM = Architecture(
    kind="decoder",
    stacks={
        "": Stack(
            blocks="h",
            linears={
                "attn.q": Fused("self_attention.query_key_value", 0, 3, "heads"),
                "attn.k": Fused("self_attention.query_key_value", 1, 3, "heads"),
                "attn.v": Fused("self_attention.query_key_value", 2, 3, "heads"),
                "attn.o": "self_attention.dense",
                "mlp.up": "mlp.dense_h_to_4h",
                "mlp.down": "mlp.dense_4h_to_h",
            },
            norms={"norm.attn": "input_layernorm", "norm.mlp": "post_attention_layernorm"},
            modules={"attn": "self_attention", "attn.core": "self_attention", "mlp": "mlp", "mlp.act": "mlp.gelu_impl"},
        )
    },
    outside={
        "norm.final": "ln_f",
        "embed.token": "word_embeddings",
        "embed.norm": "word_embeddings_layernorm",
    },
    pooling="last",
    head_bias=False,
    positions=False,
    dispatches=False,
    movable=False,
    skipped=(None,),
)
DEIT = replace(VIT, first_slot=2)
DINOV2 = replace(
    VIT,
    stacks={
        "": replace(
            VIT.stacks[""],
            blocks="encoder.layer",
            linears={
                **{f"attn.{n}": f"attention.{n}_proj" for n in "qkvo"},
                "mlp.gate": "mlp.gate_proj",
                "mlp.up": "mlp.fc1|mlp.up_proj",
                "mlp.down": "mlp.fc2|mlp.down_proj",
            },
            norms={"norm.attn": "norm1", "norm.mlp": "norm2"},
            modules=VIT.stacks[""].modules
            | {
                "mlp.act": "mlp.activation_fn|mlp.act_fn",
                "scale.attn": "layer_scale1",
                "scale.mlp": "layer_scale2",
            },
        )
    },
    options={},
)
GPT2 = Architecture(
    kind="decoder",
    stacks={
        "": Stack(
            blocks="h",
            linears={
                "attn.q": Fused("attn.c_attn", 0, 3, "columns"),
                "attn.k": Fused("attn.c_attn", 1, 3, "columns"),
                "attn.v": Fused("attn.c_attn", 2, 3, "columns"),
                "attn.o": Fused("attn.c_proj", layout="columns"),
                "mlp.up": Fused("mlp.c_fc", layout="columns"),
                "mlp.down": Fused("mlp.c_proj", layout="columns"),
            },
            norms={"norm.attn": "ln_1", "norm.mlp": "ln_2"},
            modules={"attn": "attn", "attn.core": "attn", "mlp": "mlp", "mlp.act": "mlp.act"},
        )
    },
    outside={"norm.final": "ln_f", "embed.token": "wte", "embed.position": "wpe"},
    pooling="last",
    head_bias=False,
    mask="4d",
)

ARCHITECTURES: dict[str, Architecture] = {
    "bert": BERT,
    "roberta": ROBERTA,
    "llama": LLAMA,
    "mistral": MISTRAL,
    "qwen2": QWEN2,
    "qwen3": QWEN3,
    "gemma": GEMMA,
    "gemma3_text": GEMMA3,
    "vit": VIT,
    "swin": SWIN,
    "t5": T5,
    "gpt2": GPT2,
    "deberta-v2": DEBERTA,
    "modernbert": MODERNBERT,
    "opt": OPT,
    "bloom": BLOOM,
    "deit": DEIT,
    "dinov2": DINOV2,
}
