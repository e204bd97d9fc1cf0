"""Memory that the training of a cell takes at its peak, in closed form. No torch here: the grid's jobs ask for it.

The network is run on paper: each operation says which of its tensors autograd keeps for the backward pass, once
each, as PyTorch does. What is alive then follows from going through the operations backwards: activations fall,
gradients of weights grow, and the buffers of one operation come on top. docs/memory.md says how far this is right.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from workflow.sizes import Sizes, Stack

WORD = {"float32": 4, "bfloat16": 2, "float16": 2}
QUANTISED = {"int8": 1.0, "bnb-int8": 1.0, "nf4": 0.52}  # bytes a weight of a block's linear map, with its scales
STATES = {"adamw": 8, "sgd": 4}  # bytes of optimiser state a trained number
BASE = 412_000_000  # resident bytes of Python, torch and transformers while a tiny network is trained (CPU)
GIB = 2**30


@dataclass(frozen=True)
class Kept:
    """What a method's module at a site keeps for its backward pass: the site's input, its output, numbers a token."""

    inputs: bool = False
    outputs: bool = False
    inner: int = 0


@dataclass(frozen=True)
class Learned:
    """What a method trains, as far as memory depends on it.

    parameters: trained ones, head left out; frozen: the method's own that are not. everything: the whole backbone
    is trained in place; weights: which of its parameters are, by site (`attn.q.bias`, `norm.weight`). sites: modules
    of the method's at linear sites; layers: indices of the blocks where those are, None for all; tokens: prompt
    tokens put before every text.
    """

    parameters: int = 0
    frozen: int = 0
    everything: bool = False
    weights: frozenset[str] = frozenset()
    sites: Mapping[str, Kept] = field(default_factory=dict)
    layers: frozenset[int] | None = None
    tokens: int = 0

    def trains(self, name: str) -> bool:
        return self.everything or name in self.weights


@dataclass(frozen=True)
class Setting:
    """How a cell is trained. batch: rows of one forward pass; length: tokens of a row (of an encoder's, in a network
    with two stacks); scored: tokens of a row that have a label, None for all of them. accumulated: gradients of
    earlier rows are there already. padded: batches come with a mask."""

    batch: int
    length: int = 0
    scored: int | None = None
    dtype: str = "float32"
    optimizer: str = "adamw"
    generation: bool = False
    labels: int = 2
    checkpointing: bool = False
    quantize: str | None = None
    accumulated: bool = False
    padded: bool = False
    device: Literal["cpu", "cuda"] = "cpu"


@dataclass(frozen=True)
class Estimate:
    """Bytes at the moment of the peak. What is not there at that moment counts as 0 in its line."""

    weights: int
    method: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    base: int

    @property
    def total(self) -> int:
        return sum(asdict(self).values())

    @property
    def lines(self) -> dict[str, int]:
        return asdict(self) | {"total": self.total}

    def gpus(self, gigabytes: float) -> int:
        """Cards of so many GB that hold it: a tenth is left for fragments, half a GiB for the driver's context."""
        usable = 0.9 * gigabytes * 1e9 - GIB / 2
        return max(1, math.ceil((self.total - self.base) / usable))


def estimate(sizes: Sizes, learned: Learned, setting: Setting) -> Estimate:
    """The peak of one training step after the first (the optimiser's states are there)."""
    word = WORD[setting.dtype]
    head = _head(sizes, setting)
    weights = _weights(sizes, setting, learned)
    states = STATES[setting.optimizer] * (learned.parameters + head)
    activations, logits, gradients = max(_Backward(sizes, learned, setting, head).moments(), key=sum)
    own = 4 * head + 4 * learned.parameters * (not learned.everything) + word * learned.frozen
    base = BASE if setting.device == "cpu" else 0
    return Estimate(*map(round, (weights, own, gradients, states, activations, logits, base)))


def kept(sizes: Sizes, learned: Learned, setting: Setting) -> float:
    """Bytes of the tensors that autograd keeps from the forward pass to the backward pass, the loss's included."""
    run = _Backward(sizes, learned, setting, 0)
    return sum(part.saved for part in run.parts) + run._loss()[0]


def _weights(sizes: Sizes, setting: Setting, learned: Learned) -> float:
    """The network's own parameters: trained ones in fp32, quantised ones by their code, others in the cell's type."""
    word = WORD[setting.dtype]
    if learned.everything:
        return 4 * sizes.parameters
    if setting.quantize is None:
        return word * sizes.parameters
    coded = sizes.linear_parameters
    return word * (sizes.parameters - coded) + QUANTISED[setting.quantize] * coded


def _head(sizes: Sizes, setting: Setting) -> int:
    """Numbers of the task head."""
    width = sizes.stacks[-1].width
    return 0 if setting.generation else (width**2 + width) * sizes.dense_head + (width + 1) * setting.labels


def learned_by(method: Any, backbone: Any) -> Learned:
    """What an attached method trains. Reads names and shapes only, so it also works on the meta device."""
    linears = {site: place.module for site, place in backbone.map_.linears.items()}
    weights = frozenset(
        f"{site.name}.{what}"
        for site, module in (backbone.map_.modules | linears).items()
        for what in ("weight", "bias")
        if getattr(getattr(module, what, None), "requires_grad", False)
    )
    everything = all(parameter.requires_grad for parameter in backbone.model.parameters())
    attached = {site: method.parts[name] for site in method.planned.sites if (name := _key(site)) in method.parts}
    layers = frozenset(site.layer for site in attached)
    own = [parameter for parameter in method.parts.parameters() if not parameter.requires_grad]
    own += method.parts.buffers()
    return Learned(
        parameters=sum(parameter.numel() for parameter in method.trained()),
        frozen=sum(tensor.numel() for tensor in own),
        everything=everything,
        weights=frozenset() if everything else weights,
        sites=dict(_kept_at(site, module, backbone.shape.linears) for site, module in attached.items()),
        layers=None if len(layers) == max(backbone.shape.layers.values()) else layers,
        tokens=backbone.slot_count,
    )


def _key(site: Any) -> str:
    return str(site).replace(".", "/")


def _kept_at(site: Any, module: Any, linears: Mapping) -> tuple[str, Kept]:
    """Site and what a module there keeps, told from the shapes of what it trains.

    A factor of a linear map (its rank is the smaller side) reads the site's input, a vector scales its output, or its
    input where only that fits. A module at the end of a branch or of a block reads the output of the last map before
    it, one in the place of an attention or of an activation gives the input of the map after it.
    """
    shapes = [tuple(parameter.shape) for parameter in module.parameters() if parameter.requires_grad]
    factors, vectors = ([shape for shape in shapes if (len(shape) > 1) is many] for many in (True, False))
    if site not in linears:
        place, inside = site.name.split(".")[0], "." in site.name
        site = site._replace(name=f"{place}.o" if place in ("attn", "cross") else "mlp.down")
        if inside:
            return site.name, Kept(inputs=True)
        inner = sum(math.prod(shape) // linears[site].out for shape in factors)
        return site.name, Kept(outputs=True, inner=inner)
    out = linears[site].out
    scales = any(shape == (out,) for shape in vectors)
    inner = sum(min(shape) for shape in factors) // 2
    return site.name, Kept(bool(factors) or bool(vectors) and not scales, scales, inner)


def guessed(everything: bool, trains: bool, settings: Mapping[str, Any], sizes: Sizes) -> Learned:
    """What a method trains as far as its plugin's literal metadata and a cell's settings tell; rather too much.

    everything: it trains pretrained matrices in place, and counts as training all of them. `rank` with `sites` is the
    count of a pair of factors, which is exact for LoRA. All others are taken to train one percent of the backbone
    through modules that keep the input and output of every linear map that `sites` names, or of all of them.
    """
    if not trains:
        return Learned()
    if everything:
        return Learned(sizes.parameters, everything=True)
    maps = [(name, size, stack) for stack in sizes.stacks for name, size in sizes.linears(stack).items()]
    named = [each for each in maps if each[0] in settings.get("sites", ())] or maps
    chosen, rank = settings.get("layers"), settings.get("rank")
    if isinstance(rank, int) and "sites" in settings:
        blocks = {stack: stack.blocks if chosen is None else len(chosen) for stack in sizes.stacks}
        trained = sum(blocks[stack] * rank * sum(size) for _, size, stack in named)
        kept = Kept(inputs=True, inner=rank)
    else:
        trained, kept = sizes.parameters // 100, Kept(inputs=True, outputs=True)
    layers = None if chosen is None else frozenset(chosen)
    return Learned(trained, sites={name: kept for name, *_ in named}, layers=layers)


class _Value:
    """A tensor on paper: its numbers, bytes a number, whether a gradient flows to it, whether it is kept already."""

    __slots__ = ("grad", "kept", "numbers", "size")

    def __init__(self, numbers: float, size: int, grad: bool, kept: bool = False):
        self.numbers, self.size, self.grad, self.kept = numbers, size, grad, kept


class _Pass:
    """Operations of a forward pass. `saved`: bytes kept so far; `peak`: the most that is alive while one of these
    operations runs backwards, gradients of weights left out."""

    def __init__(self, sizes: Sizes, learned: Learned, setting: Setting, active: bool = True):
        self.sizes, self.learned, self.setting = sizes, learned, setting
        self.word = WORD[setting.dtype]
        self.sites = learned.sites if active else {}
        self.autocast = self.word == 2
        self.mixed = self.autocast and (learned.everything or bool(learned.weights))
        self.cuda = setting.device == "cuda"
        self.saved = self.peak = self.stream = 0.0

    def keep(self, value: _Value) -> None:
        if not value.kept:
            value.kept = True
            self.saved += value.numbers * value.size

    def add(self, numbers: float, size: int) -> None:
        """Keep a tensor that nothing else refers to."""
        self.saved += numbers * size

    def note(self, *alive: _Value) -> None:
        """The backward of this operation holds gradients of these tensors, and that of the residual stream."""
        self.peak = max(self.peak, self.saved + self.stream + sum(value.numbers * value.size for value in alive))

    def cast(self, x: _Value) -> _Value:
        """What a 16-bit matrix product reads: a copy, where its input is fp32."""
        return _Value(x.numbers, self.word, x.grad) if self.autocast and x.size != self.word else x

    def linear(self, x: _Value, site: str, inp: int, out: int) -> _Value:
        trained, kept = self.learned.trains(f"{site}.weight"), self.sites.get(site)
        read = self.cast(x)
        if trained:
            self.keep(read)
            if self.mixed:
                self.add(inp * out, self.word)
        y = _Value(x.numbers / inp * out, self.word, x.grad or trained or self.learned.trains(f"{site}.bias"))
        if kept:
            if kept.inputs:
                self.keep(read)
            if kept.outputs:
                self.keep(y)
            self.add(x.numbers / inp * kept.inner, self.word)
            y = _Value(y.numbers, y.size, True)
        if y.grad:
            buffers = [_Value(inp * out, 4 + self.word * self.mixed, True)] if trained else []
            if self.setting.quantize and site != "lm_head":
                buffers.append(_Value(2 * inp * out, self.word, False))  # the weight, made again from its code
            self.note(read, y, *buffers)
        return y

    def norm(self, x: _Value, site: str, width: int) -> _Value:
        trained, rows = self.learned.trains(f"{site}.weight"), x.numbers / width
        biased, kind = self.learned.trains(f"{site}.bias"), self.sizes.norm
        size = x.size
        if kind == "layer":
            if self.autocast and self.cuda:  # the kernel wants fp32 there, and gives it
                x, size = _Value(x.numbers, 4, x.grad), 4
            if x.grad or trained or biased:
                self.keep(x)
                self.add(2 * rows, size)
        else:
            wide = x if x.size == 4 else _Value(x.numbers, 4, x.grad)
            if x.grad:
                self.keep(wide)
                self.add(rows, 4)
            if trained:
                self.add(x.numbers, 4 if kind == "rms_float" else size)
            if self.mixed and trained:
                size = 4
        y = _Value(x.numbers, size, x.grad or trained or biased)
        if y.grad:
            self.note(x, y)
        return y

    def dropout(self, x: _Value, on: bool) -> _Value:
        if not on:
            return x
        if x.grad:
            self.add(x.numbers, 1 if self.cuda else x.size)
        return _Value(x.numbers, x.size, x.grad)

    def residual(self, x: _Value, y: _Value) -> _Value:
        return _Value(x.numbers, max(x.size, y.size), x.grad or y.grad)

    def activation(self, x: _Value) -> _Value:
        y, copies = _Value(x.numbers, x.size, x.grad), self.sizes.activation
        if x.grad:
            self.keep(x if copies else y)
            self.add(max(0, copies - 1) * x.numbers, x.size)
            self.note(x, y)
        return y

    def times(self, a: _Value, b: _Value) -> _Value:
        if b.grad:
            self.keep(a)
        if a.grad:
            self.keep(b)
        y = _Value(a.numbers, a.size, a.grad or b.grad)
        if y.grad:
            self.note(a, b, y)
        return y

    def attention(self, q: _Value, k: _Value, v: _Value, stack: Stack, queries: int, keys: int) -> _Value:
        """queries, keys: tokens of one row. Fused kernels keep q, k, v, their output and one number a row of scores;
        the plain one keeps the probabilities."""
        grad, rows = q.grad or k.grad or v.grad, q.numbers / stack.attended
        scores = rows * stack.heads * (stack.window or keys)
        out = _Value(q.numbers, self.word, grad)
        if not grad:
            return out
        relative = self.learned.everything and (stack.part or stack.window)
        dropout = self.sizes.attention_dropout
        plain = not self.cuda and (dropout or relative) or self.sizes.attention != "sdpa"
        if not plain:
            if self.setting.padded and stack.kv_heads < stack.heads:
                k, v = (_Value(q.numbers, t.size, t.grad) for t in (k, v))
            for value in (q, k, v, out):
                self.keep(value)
            self.add(rows * stack.heads, 4)
            if self.setting.padded or stack.part:
                self.add(scores * (1 if stack.part else 1 / stack.heads), self.word)
            self.note(q, k, v, out)
            return out
        size = 4 if self.sizes.attention == "sdpa" else self.word
        for value, other in ((q, k), (k, q), (v, v)):
            if other.grad or value is v and (q.grad or k.grad):
                self.add(value.numbers, size)
        copies = 1 + dropout * (1 + (size / 4 if self.cuda else 1))
        self.add(copies * scores, size)
        if self.sizes.attention == "eager" and self.autocast and not self.sizes.relative:
            self.add(scores, 4)  # the softmax is in fp32
        if self.sizes.relative:  # scores of every token with every distance, both ways, before they are picked
            self.add(2 * rows * stack.heads * self.sizes.relative + q.numbers, size)
        self.note(_Value(2 * scores, size, True), q, k, v)
        return out


def _block(run: _Pass, stack: Stack, x: _Value, length: int, encoded: _Value | None, source: int) -> _Value:
    """One block over `length` tokens a row. encoded: what its cross-attention reads, `source` tokens a row."""
    sizes, d = run.sizes, stack.width
    run.stream = x.numbers * x.size if x.grad else 0.0
    y = x if sizes.post_norm else run.norm(x, "norm.attn", d)
    y = _attend(run, stack, "attn", y, y, length, length)
    x = _join(run, x, y, "norm.attn", d)
    if stack.cross:
        y = run.norm(x, "norm.cross", d)
        x = run.residual(x, run.dropout(_attend(run, stack, "cross", y, encoded, length, source), sizes.dropout))
    y = x if sizes.post_norm else run.norm(x, "norm.mlp", d)
    up = run.linear(y, "mlp.up", d, stack.ffn)
    gate = run.activation(run.linear(y, "mlp.gate", d, stack.ffn)) if sizes.gated else None
    up = run.times(gate, up) if gate else run.activation(up)
    y = run.linear(run.dropout(up, sizes.ffn_dropout), "mlp.down", stack.ffn, d)
    return _join(run, x, y, "norm.mlp", d)


def _attend(run: _Pass, stack: Stack, name: str, x: _Value, source: _Value, queries: int, keys: int) -> _Value:
    d, a, kv, sizes = stack.width, stack.attended, stack.kv_width, run.sizes
    q, k = run.linear(x, f"{name}.q", d, a), run.linear(source, f"{name}.k", d, kv)
    v = run.linear(source, f"{name}.v", d, kv)
    if sizes.qk_norms:
        q, k = run.norm(q, "norm.q", stack.head_dim), run.norm(k, "norm.k", stack.head_dim)
    if sizes.rotary:
        q, k = (_Value(t.numbers, t.size, t.grad) for t in (q, k))
    return run.linear(run.attention(q, k, v, stack, queries, keys), f"{name}.o", a, d)


def _join(run: _Pass, x: _Value, y: _Value, norm: str, width: int) -> _Value:
    """The end of a branch: norm, dropout, residual, in the order of the network."""
    if run.sizes.out_norms:
        y = run.norm(y, f"{norm}.out", width)
    if run.sizes.scaled and run.learned.everything:
        run.keep(y)
    x = run.residual(x, run.dropout(y, run.sizes.dropout))
    return run.norm(x, norm, width) if run.sizes.post_norm else x


@dataclass(frozen=True)
class _Part:
    """Bytes kept by a stretch of the network, the most alive while it runs backwards, gradients of its weights."""

    saved: float
    peak: float
    gradients: float


class _Backward:
    """The parts of a network in order, and what is alive at each moment of the backward pass."""

    def __init__(self, sizes: Sizes, learned: Learned, setting: Setting, head: int):
        self.sizes, self.learned, self.setting, self.head = sizes, learned, setting, head
        self.parts: list[_Part] = []
        self.encoder_parts = 0
        table = sizes.vocab * sizes.embedding
        self.table = table if learned.trains("embed.token.weight") else 0
        self.output = table if learned.trains("lm_head.weight") and setting.generation and sizes.vocab else 0
        inside = learned.parameters - self.table - (0 if sizes.tied else self.output)
        self.own = 0 if learned.everything else learned.parameters
        self.each = 4 * max(0, inside) / sizes.blocks
        self._forward()

    def moments(self) -> list[tuple[float, float, float]]:
        """(activations, logits, gradients of weights) at the moments that can be the peak."""
        whole = 4 * (self.learned.parameters + self.head)
        before = whole if self.setting.accumulated else 0
        kept, (held, rest) = sum(part.saved for part in self.parts), self._loss()
        found = [(kept, held + rest, before)]
        gradients = 4 * (self.output + self.head)
        found.append((kept, rest, max(before, gradients)))
        for part in reversed(self.parts):
            kept -= part.saved
            found.append((kept + part.peak, 0, max(before, gradients)))
            gradients += part.gradients
        return [*found, (4 * self.table, 0, max(before, whole - 4 * self.table * (not self.sizes.tied)))]

    def _loss(self) -> tuple[float, float]:
        """Bytes kept of the logits (log-probabilities in fp32), and of their gradients beside them."""
        if not self.setting.generation:
            return 0, 0
        rows = self.setting.batch * (self.setting.scored or self._length())
        numbers = rows * self.sizes.vocab
        return 4 * numbers, 8 * numbers

    def _length(self) -> int:
        return self.setting.length + self.learned.tokens

    def _forward(self) -> None:
        sizes, setting, learned = self.sizes, self.setting, self.learned
        encoded, source = None, 0
        for index, stack in enumerate(sizes.stacks):
            length = stack.tokens + learned.tokens if stack.tokens else self._length()
            if stack.part == "decoder":
                length = setting.scored or self._length()
            rows = setting.batch * length
            if not index or stack.part == "decoder":
                x = self._embed(stack, rows)
            elif stack.window:
                x = self._downsample(stack, x)
            x = self._blocks(stack, x, length, encoded, source)
            if stack.part == "encoder":
                x = self._final(stack, x)
                encoded, source = x, length
        if sizes.pooler and learned.everything:
            self.parts.append(_Part(x.numbers * x.size, 0, 0))  # the pooler reads a view of it
        if not sizes.post_norm:
            if sizes.kind == "decoder" or stack.part == "decoder":
                x = self._final(stack, x)
                scored = setting.batch * (setting.scored or length)
                if setting.generation:
                    self._logits(x, scored)
            else:
                self._final(stack, x)

    def _embed(self, stack: Stack, rows: float) -> _Value:
        run = _Pass(self.sizes, self.learned, self.setting)
        tables = any(map(self.learned.trains, ("embed.token.weight", "embed.position.weight", "embed.patch.weight")))
        added = self.learned.trains("embed.patch.bias") or bool(self.learned.tokens)
        x = _Value(rows * stack.width, 4 if run.mixed and tables else run.word, tables or added)
        if self.learned.trains("embed.patch.weight"):
            run.add(self.setting.batch * self.sizes.pixels, run.word)
        if self.sizes.embed_norm:
            x = run.norm(x, "embed.norm", stack.width)
        x = run.dropout(x, self.sizes.embed_dropout)
        run.note(x)
        self.parts.append(_Part(run.saved, run.peak, 0))
        return x

    def _downsample(self, stack: Stack, x: _Value) -> _Value:
        """Between two stages of Swin: four neighbours side by side, a norm, and a map to twice the width."""
        run = _Pass(self.sizes, self.learned, self.setting)
        joined = run.norm(_Value(x.numbers, x.size, x.grad), "norm.downsample", 2 * stack.width)
        x = run.linear(joined, "downsample", 2 * stack.width, stack.width)
        self.parts.append(_Part(run.saved, run.peak, 0))
        return x

    def _final(self, stack: Stack, x: _Value) -> _Value:
        run = _Pass(self.sizes, self.learned, self.setting)
        y = run.dropout(run.norm(x, "norm.final", stack.width), self.sizes.ffn_dropout)
        if stack.part == "encoder" or not self.setting.generation and not run.autocast:
            run.keep(y)  # cross-attention reads it, or a classifier reads a view of it
        self.parts.append(_Part(run.saved, run.peak, 0))
        return y

    def _logits(self, x: _Value, rows: float) -> None:
        run, width = _Pass(self.sizes, self.learned, self.setting), self.sizes.embedding
        run.linear(_Value(rows * width, x.size, x.grad), "lm_head", width, self.sizes.vocab)
        self.parts.append(_Part(run.saved, 0, 0))

    def _blocks(self, stack: Stack, x: _Value, length: int, encoded: _Value | None, source: int) -> _Value:
        """All blocks of a stack: equal ones are run on paper once.

        With checkpointing a block keeps only its input, and all of it is alive while it runs backwards (in Swin a
        whole stage is run again at once).
        """
        known: dict[tuple, tuple[_Part, bool, int]] = {}
        parts, first = [], x.numbers * x.size
        for layer in range(stack.blocks):
            active = self.learned.layers is None or layer in self.learned.layers
            key = (active, x.grad, x.size)
            if key not in known:
                known[key] = self._traced(stack, x, length, encoded, source, active)
            part, grad, size = known[key]
            parts.append(part)
            x = _Value(x.numbers, size, grad)
        if self.setting.checkpointing and stack.window:
            alive = first + sum(part.saved for part in parts) + max(part.peak for part in parts)
            parts = [_Part(first, alive, sum(part.gradients for part in parts))]
        if self.setting.checkpointing and stack.part:
            parts.append(_Part(4 * stack.heads * length**2, 0, 0))  # the relative biases of positions
        self.parts += parts
        return x

    def _traced(self, stack: Stack, x: _Value, length, encoded, source, active: bool) -> tuple[_Part, bool, int]:
        """One block: what it keeps and has alive, and whether and in which type its output has a gradient."""
        again = self.setting.checkpointing and not stack.window
        run = _Pass(self.sizes, self.learned, self.setting, active)
        read = encoded and _Value(encoded.numbers, encoded.size, encoded.grad, kept=True)
        y = _block(run, stack, _Value(x.numbers, x.size, x.grad, kept=again), length, read, source)
        if run.autocast and active:
            run.add(self.own / self.sizes.blocks, run.word)  # its parameters as the matrix products read them
        saved, peak = run.saved, run.peak
        if again:
            saved, peak = x.numbers * x.size, x.numbers * x.size + max(peak, run.saved)
        return _Part(saved, peak, self.each if active or self.learned.everything else 0), y.grad, y.size
