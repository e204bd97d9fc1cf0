"""The sizes of a network as far as memory depends on them, read from a model entry's config. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, replace

from models.entries import ModelEntry


@dataclass(frozen=True)
class Stack:
    """A run of equal blocks.

    tokens: places of one image, 0 where a text's length decides; window: keys that one query sees, 0 for all of
    them; part: "encoder" or "decoder" of a network with both, else ""; cross: whether it attends to the encoder.
    """

    blocks: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    tokens: int = 0
    window: int = 0
    part: str = ""
    cross: bool = False

    @property
    def attended(self) -> int:
        """Width of all heads together."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head_dim


@dataclass(frozen=True)
class Sizes:
    """What a forward pass keeps depends on these.

    norm: "layer", "rms" or "rms_float" (a root mean square norm that computes in fp32 throughout); gated: a
    feed-forward with two input maps; activation: tensors of the width of the feed-forward that its activation keeps;
    attention: "sdpa" (the fused kernel) or "eager"; relative: distances that queries and keys are scored
    with; dropout, attention_dropout, ffn_dropout, embed_dropout: whether
    there is one; classes: extra tokens of an image; parameters: without a task head.
    """

    kind: str
    stacks: tuple[Stack, ...]
    vocab: int = 0
    positions: int = 0
    embedding: int = 0
    pixels: int = 0
    patch: int = 0
    norm: str = "layer"
    post_norm: bool = False
    out_norms: bool = False
    qk_norms: bool = False
    rotary: bool = False
    scaled: bool = False
    gated: bool = False
    activation: int = 1
    attention: str = "sdpa"
    relative: int = 0
    biases: str = "none"
    dropout: bool = False
    attention_dropout: bool = False
    ffn_dropout: bool = False
    embed_dropout: bool = False
    embed_norm: bool = False
    tied: bool = False
    dense_head: bool = False
    pooler: bool = False
    parameters: int = 0

    @property
    def blocks(self) -> int:
        return sum(stack.blocks for stack in self.stacks)

    @property
    def linear_parameters(self) -> int:
        """Weights of the linear maps inside blocks: what quantisation makes smaller."""
        return sum(stack.blocks * sum(i * o for i, o in self.linears(stack).values()) for stack in self.stacks)

    def linears(self, stack: Stack) -> dict[str, tuple[int, int]]:
        """(in, out) of the linear maps of one block, by site."""
        d, a, kv = stack.width, stack.attended, stack.kv_width
        found = {"attn.q": (d, a), "attn.k": (d, kv), "attn.v": (d, kv), "attn.o": (a, d)}
        if stack.cross:
            found |= {"cross.q": (d, a), "cross.k": (d, kv), "cross.v": (d, kv), "cross.o": (a, d)}
        if self.gated:
            found["mlp.gate"] = (d, stack.ffn)
        return found | {"mlp.up": (d, stack.ffn), "mlp.down": (stack.ffn, d)}


# What transformers takes where a configuration is silent, as far as it matters here.
_BERT = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
         "vocab_size": 30522, "max_position_embeddings": 512, "type_vocab_size": 2,
         "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}  # fmt: skip
_VIT = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "image_size": 224, "patch_size": 16}  # fmt: skip
_DECODER = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
            "vocab_size": 32000}  # fmt: skip
_DEFAULTS = {
    "bert": _BERT,
    "roberta": _BERT | {"vocab_size": 50265},
    "deberta-v2": _BERT
    | {
        "hidden_size": 1536,
        "intermediate_size": 6144,
        "num_hidden_layers": 24,
        "num_attention_heads": 24,
        "vocab_size": 128100,
        "type_vocab_size": 0,
    },  # fmt: skip
    "modernbert": {
        "hidden_size": 768,
        "intermediate_size": 1152,
        "num_hidden_layers": 22,
        "num_attention_heads": 12,
        "vocab_size": 50368,
    },  # fmt: skip
    "llama": _DECODER,
    "mistral": _DECODER | {"intermediate_size": 14336, "num_key_value_heads": 8},
    "qwen2": _DECODER | {"intermediate_size": 22016, "vocab_size": 151936},
    "qwen3": _DECODER | {"intermediate_size": 22016, "vocab_size": 151936, "head_dim": 128},
    "gemma": {
        "hidden_size": 3072,
        "intermediate_size": 24576,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "vocab_size": 256000,
        "head_dim": 256,
        "tie_word_embeddings": True,
    },  # fmt: skip
    "gemma3_text": {
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "vocab_size": 262208,
        "head_dim": 256,
        "tie_word_embeddings": True,
    },  # fmt: skip
    "gpt2": {
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "vocab_size": 50257,
        "n_positions": 1024,
        "resid_pdrop": 0.1,
        "attn_pdrop": 0.1,
        "embd_pdrop": 0.1,
        "tie_word_embeddings": True,
        "activation_function": "gelu_new",
    },  # fmt: skip
    "opt": {
        "hidden_size": 768,
        "ffn_dim": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "vocab_size": 50272,
        "max_position_embeddings": 2048,
        "dropout": 0.1,
        "tie_word_embeddings": True,
    },  # fmt: skip
    "bloom": {"hidden_size": 64, "n_layer": 2, "n_head": 8, "vocab_size": 250880, "tie_word_embeddings": True},
    "vit": _VIT,
    "deit": _VIT,
    "dinov2": _VIT | {"patch_size": 14, "mlp_ratio": 4},
    "swin": {
        "embed_dim": 96,
        "depths": [2, 2, 6, 2],
        "num_heads": [3, 6, 12, 24],
        "image_size": 224,
        "patch_size": 4,
        "window_size": 7,
        "mlp_ratio": 4.0,
    },  # fmt: skip
    "t5": {
        "d_model": 512,
        "d_kv": 64,
        "d_ff": 2048,
        "num_layers": 6,
        "num_heads": 8,
        "vocab_size": 32128,
        "dropout_rate": 0.1,
        "feed_forward_proj": "relu",
        "tie_word_embeddings": True,
    },  # fmt: skip
}
# Tensors that an activation keeps: several where it is written out in torch, its own output (0) for relu, else 1.
_KEPT_BY_ACTIVATION = {"gelu_new": 4, "gelu_fast": 4, "quick_gelu": 2, "relu": 0}


def of(entry: ModelEntry) -> Sizes:
    """The sizes of a model entry; those of an architecture that is not known here are read as its kind's usual ones."""
    usual = {"encoder": "bert", "decoder": "llama", "vision": "vit", "encoder_decoder": "t5"}[entry.kind]
    name = entry.architecture if entry.architecture in _DEFAULTS else usual
    sizes = _READERS[name](_DEFAULTS[name] | entry.config, name)
    sizes = replace(sizes, pooler=sizes.pooler and entry.pooling in (None, "pooler"))
    return replace(sizes, parameters=entry.parameters or _parameters(sizes))


def _first(config: dict, *names: str):
    return next((config[name] for name in names if config.get(name) is not None), None)


def _stack(config: dict) -> Stack:
    width, heads = _first(config, "n_embd", "hidden_size"), _first(config, "n_head", "num_attention_heads")
    return Stack(
        blocks=_first(config, "n_layer", "num_hidden_layers"),
        width=width,
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or width // heads,
        ffn=_first(config, "n_inner", "ffn_dim", "intermediate_size") or 4 * width,
    )


def _positions(config: dict) -> int:
    """Rows of an encoder's position tables, absolute and relative."""
    absolute = config["max_position_embeddings"] if config.get("position_biased_input", True) else 0
    return absolute + 2 * max(0, config.get("position_buckets", 0))


def _encoder(config: dict, name: str) -> Sizes:
    hidden = config["hidden_dropout_prob"] > 0
    return Sizes(
        kind="encoder",
        stacks=(_stack(config),),
        vocab=config["vocab_size"],
        positions=config["type_vocab_size"] + _positions(config),
        embedding=config["hidden_size"],
        post_norm=True,
        attention="eager" if name == "deberta-v2" else "sdpa",
        relative=2 * max(0, config.get("position_buckets", 0)),
        biases="all",
        dropout=hidden,
        attention_dropout=config["attention_probs_dropout_prob"] > 0,
        embed_dropout=hidden,
        embed_norm=True,
        dense_head=name != "bert",
        pooler=name == "bert",
    )


def _modernbert(config: dict, name: str) -> Sizes:
    return Sizes(
        kind="encoder",
        stacks=(_stack(config),),
        vocab=config["vocab_size"],
        embedding=config["hidden_size"],
        rotary=True,
        gated=True,
        embed_norm=True,
        dense_head=True,
    )


def _llama(config: dict, name: str) -> Sizes:
    return Sizes(
        kind="decoder",
        stacks=(_stack(config),),
        vocab=config["vocab_size"],
        embedding=config["hidden_size"],
        norm="rms_float" if name.startswith("gemma") else "rms",
        out_norms=name == "gemma3_text",
        qk_norms=name in ("gemma3_text", "qwen3"),
        rotary=True,
        gated=True,
        biases="qkv" if name == "qwen2" or config.get("attention_bias") else "none",
        tied=config.get("tie_word_embeddings", False),
    )


def _gpt(config: dict, name: str) -> Sizes:
    """GPT-2, OPT and Bloom: layer norms, biases everywhere, tied output."""
    hidden = _first(config, "resid_pdrop", "dropout", "hidden_dropout") or 0
    stack = _stack(config)
    return Sizes(
        kind="decoder",
        stacks=(stack,),
        vocab=config["vocab_size"],
        positions=_first(config, "n_positions", "max_position_embeddings") or 0,
        embedding=config.get("word_embed_proj_dim") or stack.width,
        post_norm=config.get("do_layer_norm_before") is False,
        activation=_KEPT_BY_ACTIVATION.get("relu" if name == "opt" else config.get("activation_function"), 1),
        attention="eager" if name == "bloom" else "sdpa",
        biases="all",
        dropout=hidden > 0,
        attention_dropout=(_first(config, "attn_pdrop", "attention_dropout") or 0) > 0,
        embed_dropout=config.get("embd_pdrop", 0) > 0,
        embed_norm=name == "bloom",
        tied=config["tie_word_embeddings"],
    )


def _vision(config: dict, name: str) -> Sizes:
    stack, gated = _stack(config), bool(config.get("use_swiglu_ffn"))
    places = (config["image_size"] // config["patch_size"]) ** 2 + (2 if name == "deit" else 1)
    ffn = stack.ffn if name != "dinov2" else int(stack.width * config["mlp_ratio"])
    if gated:
        ffn = (int(ffn * 2 / 3) + 7) // 8 * 8
    return Sizes(
        kind="vision",
        stacks=(replace(stack, tokens=places, ffn=ffn),),
        positions=places,
        embedding=stack.width,
        pixels=3 * config["image_size"] ** 2,
        patch=3 * config["patch_size"] ** 2,
        gated=gated,
        scaled=name == "dinov2",
        biases="all",
        dropout=config.get("hidden_dropout_prob", 0) > 0,
        attention_dropout=config.get("attention_probs_dropout_prob", 0) > 0,
        embed_dropout=config.get("hidden_dropout_prob", 0) > 0,
    )


def _swin(config: dict, name: str) -> Sizes:
    side = config["image_size"] // config["patch_size"]
    stacks = tuple(
        Stack(
            blocks=depth,
            width=width,
            heads=heads,
            kv_heads=heads,
            head_dim=width // heads,
            ffn=int(width * config["mlp_ratio"]),
            tokens=(side >> stage) ** 2,
            window=min(config["window_size"], side >> stage) ** 2,
        )
        for stage, (depth, heads) in enumerate(zip(config["depths"], config["num_heads"], strict=True))
        for width in [config["embed_dim"] << stage]
    )
    return Sizes(
        kind="vision",
        stacks=stacks,
        embedding=config["embed_dim"],
        pixels=3 * config["image_size"] ** 2,
        patch=3 * config["patch_size"] ** 2,
        biases="all",
        embed_norm=True,
    )


def _t5(config: dict, name: str) -> Sizes:
    encoder = Stack(
        blocks=config["num_layers"],
        width=config["d_model"],
        heads=config["num_heads"],
        kv_heads=config["num_heads"],
        head_dim=config["d_kv"],
        ffn=config["d_ff"],
        part="encoder",
    )
    decoder = replace(
        encoder, blocks=config.get("num_decoder_layers") or config["num_layers"], part="decoder", cross=True
    )
    gated, dropout = config["feed_forward_proj"].startswith("gated"), config["dropout_rate"] > 0
    acts = "gelu_new" if config["feed_forward_proj"] == "gated-gelu" else config["feed_forward_proj"]
    return Sizes(
        kind="encoder_decoder",
        stacks=(encoder, decoder),
        vocab=config["vocab_size"],
        embedding=config["d_model"],
        norm="rms",
        gated=gated,
        activation=_KEPT_BY_ACTIVATION.get(acts, 1),
        dropout=dropout,
        attention_dropout=dropout,
        ffn_dropout=dropout,
        embed_dropout=dropout,
        tied=config["tie_word_embeddings"],
    )


_READERS = {name: _llama for name in ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma3_text")} | {
    "bert": _encoder,
    "roberta": _encoder,
    "deberta-v2": _encoder,
    "modernbert": _modernbert,
    "gpt2": _gpt,
    "opt": _gpt,
    "bloom": _gpt,
    "vit": _vision,
    "deit": _vision,
    "dinov2": _vision,
    "swin": _swin,
    "t5": _t5,
}


def _parameters(sizes: Sizes) -> int:
    """Weights, biases, norms and tables; within a percent of the network's own count."""
    total = (sizes.vocab * (1 if sizes.tied or sizes.kind == "encoder" else 2) + sizes.positions) * sizes.embedding
    total += sizes.patch * sizes.embedding
    each = 2 if sizes.norm == "layer" else 1
    for stack in sizes.stacks:
        maps = sizes.linears(stack)
        biased = {"all": maps, "qkv": ("attn.q", "attn.k", "attn.v"), "none": ()}[sizes.biases]
        norms = (2 + stack.cross + 2 * sizes.out_norms) * each * stack.width
        total += stack.blocks * (sum(i * o for i, o in maps.values()) + sum(maps[name][1] for name in biased) + norms)
        if stack.window and stack is not sizes.stacks[-1]:
            total += 8 * stack.width**2 + 8 * stack.width  # the map between two stages and its norm
    return total + sizes.pooler * sizes.stacks[-1].width ** 2
