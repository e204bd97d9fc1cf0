"""The one face of a pretrained network that methods and the harness see.

A method asks for sites and attaches functions to them; it never touches an attribute of a model family. All that
is attached is undone by `restore()`.
"""

from __future__ import annotations

import inspect
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from models.architectures import ARCHITECTURES
from models.attention import ReplacedAttention
from models.batch import Batch, ForwardState, Outputs, Phase
from models.head import Head
from models.intercept import Handle, Switch, intercept
from models.shape import BackboneShape, SiteId
from models.sites import Site, SiteMap
from workflow.errors import AtlasError


class Unsupported(Exception):
    """This backbone cannot host what was asked; the text is the reason of an `unsupported` result."""


@dataclass
class BlockCall:
    """One call of a block: `hidden` is its input (B, L, d); `proceed` runs it and returns (B, L', d).

    kwargs: every other argument by its name. causal: a token sees no later one. movable: tokens may be dropped
    or inserted. rest: what the block returned beside its output.
    """

    hidden: Tensor
    layer: SiteId
    state: ForwardState
    run: Callable[..., Any]
    kwargs: dict
    causal: bool = False
    movable: bool = True
    rest: tuple | None = None

    def proceed(
        self,
        hidden: Tensor | None = None,
        keep: Tensor | None = None,
        extra: Tensor | None = None,
        extra_as: Literal["query", "key", "both"] = "both",
    ) -> Tensor:
        """Run the block, on another input if one is given.

        keep: (B, k) indices of the tokens that take part. extra: (B or 1, P, d) tokens appended at the end; as
        "query" they see everything and nobody sees them, as "key" they are seen and see only the text, as "both"
        they are ordinary tokens. Not with a key/value cache.
        """
        hidden = self.hidden if hidden is None else hidden
        kwargs = dict(self.kwargs)
        if keep is not None or extra is not None:
            if not self.movable:
                raise Unsupported("tokens cannot be dropped or inserted in this architecture")
            if kwargs.get("past_key_values") is not None:
                raise Unsupported("tokens cannot be dropped or inserted with a key/value cache")
            mask, real = kwargs.get("attention_mask"), self.state.mask
            real = None if real is None else real.to(hidden.device)
            hidden, mask = _change_tokens(hidden, mask, real, self.causal, kwargs, keep, extra, extra_as)
            if mask is not None:
                kwargs["attention_mask"] = mask
        result = self.run(hidden, **kwargs)
        if isinstance(result, tuple):
            self.rest = result[1:]
            return result[0]
        return result


def _change_tokens(hidden, mask, real, causal, kwargs, keep, extra, extra_as):
    """Gather or append tokens in the hidden state, the 4-D mask and the rotary tables (in `kwargs`).

    real: (B, L) true at real tokens, or None. Appended tokens never see padding.
    """
    if mask is not None and mask.dim() != 4:
        raise Unsupported("tokens can be dropped or inserted only under a four-dimensional mask")
    rotary = kwargs.get("position_embeddings")
    batch, length, width = hidden.shape
    if keep is not None:
        hidden = hidden.take_along_dim(keep[..., None].expand(-1, -1, width), 1)
        if mask is not None:
            mask = mask.expand(batch, mask.shape[1], length, length)
            mask = mask.take_along_dim(keep[:, None, :, None], 2).take_along_dim(keep[:, None, None, :], 3)
        if rotary is not None:
            pick = keep[..., None].expand(-1, -1, rotary[0].shape[-1])
            kwargs["position_embeddings"] = tuple(t.expand(batch, -1, -1).take_along_dim(pick, 1) for t in rotary)
        real = None if real is None else real.take_along_dim(keep, 1)
        length = keep.shape[1]
    if extra is not None:
        if rotary is not None:
            raise Unsupported("tokens cannot be appended inside a rotary stack: they have no position")
        added = extra.shape[1]
        hidden = torch.cat([hidden, extra.expand(batch, -1, -1)], 1)
        total = length + added
        allowed = torch.ones(batch, 1, total, total, dtype=torch.bool, device=hidden.device)
        if mask is not None:
            if mask.dtype != torch.bool:
                raise Unsupported("tokens cannot be appended under an additive mask")
            allowed[..., :length, :length] = mask
        elif causal:
            allowed[..., :length, :length] = allowed[..., :length, :length].tril()
        if real is not None:
            allowed[..., length:, :length] = real[:, None, None, :]
        own = torch.eye(added, dtype=torch.bool, device=hidden.device)
        if extra_as == "query":
            allowed[..., :length, length:] = False
        elif extra_as == "key":
            allowed[..., length:, length:] = own
        mask = allowed
    return hidden, mask


class Backbone:
    """A frozen network, its task head, and the places where methods attach.

    model: the transformers network without a classifier (with its language-model head for generation);
    head: the trainable task head, or None when the network's own output layer is used.
    """

    def __init__(self, model: nn.Module, head: Head | None = None, tokenizer: Any = None, name: str = ""):
        self.model, self.head, self.tokenizer, self.name = model, head, tokenizer, name
        self.architecture = ARCHITECTURES[model.config.model_type].of(model.config)
        self.kind = self.architecture.kind
        self.map_ = SiteMap(model, self.architecture)
        self.base = self.map_.base
        self.shape: BackboneShape = self.map_.shape(self.kind, model.config.model_type)
        self.state = ForwardState()
        self.switch = Switch()
        self.restorable = True
        self._handles: list[Handle] = []
        self._originals: dict[nn.Parameter, Tensor] = {}
        self._unmerged: dict[nn.Parameter, Tensor] = {}
        self._swapped: list[tuple[nn.Module, str, nn.Parameter | None]] = []
        self._slots: list[tuple[int, Callable[[], Tensor]]] = []
        self._slots_hooked = False
        self._edited = False
        self._mixed: torch.dtype | None = None
        self._phase: Phase | None = None
        self._take_pooled = head is not None and head.pooling == "pooler"
        model.requires_grad_(False)

    # ---- sites -----------------------------------------------------------------------------------------------

    def sites(self, names: Iterable[str], layers: Iterable[int] | None = None, part: str | None = None) -> list[Site]:
        """The linear sites with these names, in model order."""
        return [self.map_.linears[s] for s in self.shape.find(names, layers, part)]

    def site(self, site: SiteId) -> Site:
        return self.map_.linears[site]

    def device_of(self, site: SiteId) -> torch.device:
        """Where a site is, or else its block: the blocks may be spread over several devices."""
        place = self.map_.linears.get(site)
        around = (self.map_.modules.get(s) for s in (site, site._replace(name="block")))
        modules = [m for m in around if m is not None] if place is None else [place.module]
        return next(p for module in modules for p in module.parameters()).device

    def modules(self, name: str, part: str | None = None) -> dict[SiteId, nn.Module]:
        """Modules at sites of this name (`block`, `norm.attn`, `attn.core`, `mlp.act`, `embed.token`, ...)."""
        found = {k: m for k, m in self.map_.modules.items() if k.name == name and (part is None or k.part == part)}
        if not found:
            raise Unsupported(f"{self.shape.architecture} has no site '{name}'")
        return found

    def norms(self) -> dict[SiteId, nn.Module]:
        """Every normalisation of the network, in model order."""
        return self.map_.norms

    def biases(self) -> dict[str, nn.Parameter]:
        """Every bias term by the name of its site; a fused projection's bias once."""
        found: dict[str, nn.Parameter] = {}
        for site in self.shape.biases:
            module = self.map_.linears[site].module if site in self.map_.linears else self.map_.modules[site]
            if all(p is not module.bias for p in found.values()):
                found[f"{site}.bias"] = module.bias
        return found

    # ---- attaching -------------------------------------------------------------------------------------------

    def intercept(self, module: nn.Module, function: Callable) -> Handle:
        """`function(proceed, *args, **kwargs)` around one module; undone by `restore()`."""
        handle = intercept(module, function, self.switch)
        self._handles.append(handle)
        return handle

    def map(self, site: Site, linear_map: nn.Module) -> Handle:
        """Put y = linear_map(x, base) in the place of y = base(x) at a linear site (of a fused weight: its slice)."""
        linear_map.site = site.id

        def mapped(proceed, x):
            if site.fused.of == 1:
                return _gated(linear_map, x, proceed)
            whole = proceed(x)

            def base(z):
                return site.take(whole if z is x else proceed(z))

            return site.put(whole, _gated(linear_map, x, base))

        return self.intercept(site.module, mapped)

    def after(self, site: SiteId, linear_map: nn.Module) -> Handle:
        """Put linear_map(y, base) behind a norm, the token or the patch embedding: y (..., d) is what comes out there.

        base(y) is y. Gate, `merged` and site are those of maps at linear sites; `fold` merges.
        """
        linear_map.site = site
        first = isinstance(self.map_.modules[site], nn.Conv2d)

        def run(proceed, *args, **kwargs):
            y = proceed(*args, **kwargs)
            if first:
                return _gated(linear_map, y.movedim(1, -1), _same).movedim(-1, 1)
            return _gated(linear_map, y, _same)

        return self.intercept(self.map_.modules[site], run)

    def branch(
        self, block: SiteId, name: Literal["attn", "mlp", "cross"], function: Callable, whole: bool = False
    ) -> None:
        """`function(x, y, residual) -> y` at the end of a branch of one block.

        x: input of the branch's first linear map (B, L, d); y: output of its last, before dropout, layer scale,
        output norm and residual; residual: input of the branch's norm, equal to x where norms come after the
        residual. In the attention of Swin all three are cut into windows, (B windows, window^2, d), and with `whole`
        they are images there too, (B, H W, d), row by row and without the padding of windows.
        """
        first = ("mlp.gate", "mlp.up") if name == "mlp" else (f"{name}.q",)
        last = self.map_.linears[block._replace(name="mlp.down" if name == "mlp" else f"{name}.o")].module
        first = next(self.map_.linears[s].module for n in first if (s := block._replace(name=n)) in self.map_.linears)
        stash: dict[str, Any] = {}
        windows, flat = self.architecture.windows and name == "attn", self.architecture.flat_mlp and name == "mlp"
        module, called = self.map_.modules[block._replace(name="block")], {}
        if windows or flat:
            self.intercept(module, _note_call(called))

        def remember(key):
            def run(proceed, x, *args, **kwargs):
                if stash.get("state") is not self.state:  # a recomputation may have stopped half-way
                    stash.clear()
                    stash["state"] = self.state
                stash.setdefault(key, x)
                return proceed(x, *args, **kwargs)

            return run

        def end(proceed, z):
            y = proceed(z)
            x = stash.pop("x")
            residual = stash.pop("residual", x)
            if windows and whole:
                x, y = (_images(t, called["size"], module) for t in (x, y))
                return _windows(function(x, y, residual), called["size"], module)
            if windows:
                residual = _windows(residual, called["size"], module)
            if flat:
                x, y, residual = (t.unflatten(0, called["shape"]) for t in (x, y, residual))
            out = function(x, y, residual)
            return out.flatten(0, 1) if flat else out

        self.intercept(first, remember("x"))
        norm = self.map_.norms.get(block._replace(name=f"norm.{name}"))
        if not self.architecture.post_norm and norm is not None:
            self.intercept(norm, remember("residual"))
        self.intercept(last, end)

    def around(self, site: SiteId | Literal["stack"], function: Callable[[BlockCall], Tensor]) -> None:
        """`function(call) -> (B, L, d)` around one block, or around the whole stack.

        Not calling `call.proceed` skips the block. The stack is run by its first block and the others pass
        through, which is right only where all blocks get the same arguments.
        """
        if site == "stack":
            self._around_stack(function)
            return
        self.intercept(self.map_.modules[site], self._block_function(site, function))

    def _block_function(self, site: SiteId, function: Callable[[BlockCall], Tensor]) -> Callable:
        block = type(self.map_.modules[site._replace(name="block")])
        names = list(inspect.signature(getattr(block, "_plain", block).forward).parameters)[1:]
        causal, movable = self.kind == "decoder", self.architecture.movable

        def run(proceed, *args, **kwargs):
            kwargs |= dict(zip(names, args, strict=False))
            hidden = kwargs.pop(names[0])
            call = BlockCall(hidden, site, self.state, proceed, kwargs, causal, movable)
            out = function(call)
            rest = self.architecture.skipped if call.rest is None else call.rest
            if rest is None:
                raise Unsupported(f"a block of {self.shape.architecture} cannot be skipped")
            return (out, *rest) if rest else out

        return run

    def _around_stack(self, function: Callable[[BlockCall], Tensor]) -> None:
        if not self.architecture.equal_blocks:
            raise Unsupported(f"the blocks of {self.shape.architecture} do not get equal arguments")
        blocks = list(self.modules("block").values())
        skipped = self.architecture.skipped
        running = []

        def first(call: BlockCall) -> Tensor:
            own, call.run = call.run, lambda hidden, **kwargs: whole(own, hidden, **kwargs)
            return function(call)

        def whole(own, hidden, **kwargs):
            running.append(True)
            try:
                for block in (own, *blocks[1:]):
                    out = block(hidden, **kwargs)
                    hidden = out[0] if isinstance(out, tuple) else out
            finally:
                running.pop()
            return out

        def other(proceed, hidden, *args, **kwargs):
            if running:
                return proceed(hidden, *args, **kwargs)
            return (hidden, *skipped) if skipped else hidden

        self.intercept(blocks[0], self._block_function(SiteId("", 0, "stack"), first))
        for block in blocks[1:]:
            self.intercept(block, other)

    def attention(self, site: SiteId, function: Callable) -> None:
        """`function(call, proceed) -> (B, H, L, D)` in the place of one attention (`attn.core`, `cross.core`)."""
        if not self.architecture.dispatches:
            raise Unsupported(f"{self.shape.architecture} computes its attention itself: it cannot be replaced")
        core, kind = self.map_.modules[site], site.name.split(".")[0]
        if "_attention" not in core.__dict__:
            projections = {n: self._projection(site._replace(name=f"{kind}.{n}")) for n in "qkv"}
            core.__dict__["_attention"] = ReplacedAttention(self, projections)
        core.__dict__["_attention"].functions.append(function)
        self._handles.append(_Entry(core, function))

    def _projection(self, site: SiteId) -> Callable[[Tensor], Tensor]:
        place = self.map_.linears[site]
        return lambda x: place.take(place.module(x))

    def slots(self, count: int, rows: Callable[[], Tensor]) -> None:
        """Insert `count` prompt tokens into every input; `rows()` gives their embeddings (P, d) or (B, P, d).

        Text: before the first real token, or after the leading special token of an encoder. Images: after the
        class token. Masks, positions, labels, pooling and the cache follow.
        """
        if self.architecture.first_slot is None:
            raise Unsupported(f"prompt tokens do not fit into the windows of {self.shape.architecture}")
        self._slots.append((count, rows))
        if self._slots_hooked:
            return
        self._slots_hooked = True
        if self.kind == "vision":
            self.intercept(self.map_.modules[SiteId("", -1, "embed")], self._insert_tokens)
        else:
            part = "encoder" if self.kind == "encoder_decoder" else ""
            self.intercept(self.map_.modules[SiteId(part, -1, "embed.token")], self._insert_rows)

    @property
    def slot_count(self) -> int:
        return sum(count for count, _ in self._slots) if self.switch.on else 0

    def _rows(self, batch: int, dtype: torch.dtype) -> Tensor:
        rows = [r if r.dim() == 3 else r.expand(batch, -1, -1) for r in (make() for _, make in self._slots)]
        return torch.cat(rows, 1).to(dtype)

    def _insert_tokens(self, proceed, *args, **kwargs):
        out = proceed(*args, **kwargs)
        first, count = self.architecture.first_slot, self.slot_count
        slots = torch.zeros(out.shape[0], out.shape[1] + count, dtype=torch.bool, device=out.device)
        slots[:, first : first + count] = True
        self.state.slots = slots
        return torch.cat([out[:, :first], self._rows(len(out), out.dtype), out[:, first:]], 1)

    def _insert_rows(self, proceed, ids):
        if self.state.slots is None or self.state.phase == "decode":
            return proceed(ids)
        index = ids - self.shape.vocab
        out = proceed(ids.masked_fill(index >= 0, 0))
        rows = self._rows(len(ids), out.dtype)
        picked = rows.take_along_dim(index.clamp_min(0)[..., None].expand(-1, -1, rows.shape[-1]), 1)
        return torch.where((index >= 0)[..., None], picked, out)

    def taps(self, layers: Iterable[int] | None = None, part: str = "", grad: bool = False) -> None:
        """Record outputs of blocks (raw, before a final norm) in `state.taps[SiteId(part, layer, "block")]`."""
        wanted = None if layers is None else set(layers)
        for site, module in self.modules("block", part).items():
            if wanted is None or site.layer in wanted:
                self._handles.append(_Hook(module.register_forward_hook(self._tap(site, grad))))

    def _tap(self, site: SiteId, grad: bool) -> Callable:
        def hook(module, args, output):
            out = output[0] if isinstance(output, tuple) else output
            if self.switch.on:
                self.state.taps[site] = out if grad else out.detach()

        return hook

    def widen_head(self, width: int, function: Callable[[Tensor, ForwardState], tuple[Tensor, Tensor]]) -> nn.Parameter:
        """Let the head read `width` more features; undone by `restore()`.

        `function(pooled, state)` gives what takes the place of the pooled vector (B, d) at the head's last map, and
        the further features (B, width). Their weights (labels, width), returned, belong to the head and need values.
        """
        if self.head is None:
            raise Unsupported(f"{self.shape.architecture} has no head here that could read more features")
        head = self.head
        with torch.device(head.out.weight.device):
            more = nn.Linear(width, head.out.out_features, bias=False)
        head.add_module("more", more)

        def read(proceed, pooled):
            pooled, further = function(pooled, self.state)
            return proceed(pooled) + more(head.dropout(further.to(more.weight.dtype)))

        self.intercept(head.out, read)
        self._handles.append(_Added(head, "more"))
        return more.weight

    # ---- changing the pretrained weights -----------------------------------------------------------------------

    def write(self, site: Site, weight: Tensor, bias: Tensor | None, merging: bool = False) -> None:
        """Write W and b of a site. The original is kept (while `restorable`) and comes back with `restore()`.

        With `merging`, what stood there before is kept instead and comes back with `unmerge()`; a linear map without
        a bias then gains one.
        """
        if merging:
            _keep(self._unmerged, site.module.parameters())
            if bias is not None and site.module.bias is None:
                self._swap(site.module, "bias", site.weight().new_zeros(len(bias) * site.fused.of))
        else:
            self._edit(site.module.parameters())
        site.write(weight, bias)

    @torch.no_grad()
    def fold(self, site: SiteId, linear_map: nn.Module) -> float:
        """Merge what `after` put behind a norm, the token or the patch embedding into its weights, until `unmerge()`.

        The map is affine, behind a norm of each channel alone. It may shift only a norm that has a bias, and a token
        embedding only where nothing scales its rows. A table that is tied to the output layer is untied. Returns the
        largest rounding error.
        """
        module, offset = self.map_.modules[site], self.architecture.norm_offset if site in self.map_.norms else 0.0
        weight, bias = module.weight.detach().float() + offset, getattr(module, "bias", None)

        def mapped(y: Tensor) -> Tensor:
            return _gated(linear_map, y, _same)

        if isinstance(module, nn.Embedding):
            wanted = {"weight": mapped(weight)}
            self._swap(module, "weight", wanted["weight"].to(module.weight.dtype))
        else:
            _keep(self._unmerged, module.parameters())
            rows = weight.flatten(1).T if weight.dim() > 1 else weight
            shift = mapped(torch.zeros_like(rows))
            wanted = {"weight": (mapped(rows) - shift).movedim(-1, 0).reshape(weight.shape) - offset}
            if bias is not None:
                wanted["bias"] = mapped(bias.detach().float())
            elif shift.any():
                raise ValueError(f"{site} has no bias that could take a shift")
            for name, values in wanted.items():
                getattr(module, name).copy_(values)
        return max((getattr(module, n).float() - values).abs().max().item() for n, values in wanted.items())

    def _swap(self, module: nn.Module, name: str, values: Tensor) -> None:
        """Give a module another parameter, until `unmerge()`."""
        self._swapped.append((module, name, getattr(module, name)))
        setattr(module, name, nn.Parameter(values, requires_grad=False))

    def train_weights(self, parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
        """Make these pretrained parameters trainable, in fp32 (originals are kept while `restorable`)."""
        chosen = [p for p in parameters if p is not None]
        if any(not p.is_floating_point() for p in chosen):
            raise Unsupported("quantised weights cannot be trained in place")
        self._edit(chosen)
        for parameter in chosen:
            if parameter.dtype != torch.float32 and parameter.device.type != "meta":
                self._mixed = parameter.dtype
                parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
        if self._mixed is not None:
            self._unify_norms()
        return chosen

    def _unify_norms(self) -> None:
        """Layer norms of which only one parameter is trained get the other in fp32 too: the kernels want one type."""
        for norm in (module for module in self.model.modules() if isinstance(module, nn.LayerNorm)):
            if len({p.dtype for p in norm.parameters()}) > 1:
                self._edit(norm.parameters())
                norm.float()

    def _edit(self, parameters: Iterable[nn.Parameter]) -> None:
        if self.restorable:
            _keep(self._originals, parameters)
        self._edited = True

    @torch.no_grad()
    def unmerge(self) -> None:
        """Copy back what stood at the merged sites, bit for bit."""
        for module, name, before in reversed(self._swapped):
            setattr(module, name, before)
        self._swapped.clear()
        for parameter, before in self._unmerged.items():
            parameter.copy_(before)
        self._unmerged.clear()

    def restore(self) -> None:
        """Undo everything that was attached or written."""
        for handle in reversed(self._handles):
            handle.remove()
        self._handles.clear()
        self._slots.clear()
        self._slots_hooked = False
        self.unmerge()
        for parameter, original in self._originals.items():
            parameter.data = original
        self._originals.clear()
        self._edited, self._mixed = False, None
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
            parameter.grad = None
        self.state = ForwardState()

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The pretrained function itself, whatever is attached. The forward state is put back at the end."""
        if self._edited or self._unmerged or self._swapped:
            raise Unsupported("the pretrained function is gone: its weights were changed")
        state, self.switch.on = self.state, False
        try:
            yield
        finally:
            self.switch.on, self.state = True, state

    # ---- running -----------------------------------------------------------------------------------------------

    def special_ids(self) -> tuple[int, ...]:
        """Ids of the tokens that open, close and part texts; none without a tokenizer, padding left out."""
        names = ("cls_token_id", "sep_token_id", "bos_token_id", "eos_token_id")
        found = (getattr(self.tokenizer, name, None) for name in names)
        return tuple(sorted({token for token in found if token is not None}))

    @property
    def device(self) -> torch.device:
        """The device of the embeddings, where batches go."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    def to(self, device: torch.device) -> Backbone:
        self.model.to(device)
        if self.head is not None:
            self.head.to(device)
        return self

    def autocast(self) -> AbstractContextManager:
        """Needed by a 16-bit network of which some weights are trained in fp32; nothing otherwise."""
        return nullcontext() if self._mixed is None else torch.autocast(self.device.type, self._mixed)

    def train(self, mode: bool = True) -> None:
        """Training or evaluation mode of the network and its head (dropout on or off)."""
        self.model.train(mode)
        if self.head is not None:
            self.head.train(mode)

    def gradient_checkpointing(self) -> None:
        """Recompute blocks in the backward pass, without dragging a graph through frozen embeddings."""
        self.model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        self.model.disable_input_require_grads()

    def compile(self, backend: str = "inductor") -> None:
        """Let torch.compile have each block, lengths left open; undone by `restore()`. Call it after attaching.

        Blocks of one make share their code, so that it takes no longer for a deep network, and a batch of another
        length needs no new code. What differs between passes (gradients or none, a mask or none) does. Generation
        runs as it is written: code that fills a cache would be made for each block.
        """
        if backend == "inductor" and shutil.which(os.environ.get("CXX", "g++")) is None:
            raise AtlasError("compile: true needs a C++ compiler", key="compile", mend="install g++ or set CXX")
        import torch._dynamo

        torch._dynamo.config.recompile_limit = max(32, torch._dynamo.config.recompile_limit)
        for block in self.modules("block").values():
            block.compile(dynamic=True, backend=backend)
            self._handles.append(_Compiled(block))

    def as_written(self) -> AbstractContextManager:
        """While open, compiled blocks run as they are written."""
        compiled = any(isinstance(handle, _Compiled) for handle in self._handles)
        return torch.compiler.set_stance("force_eager") if compiled else nullcontext()

    def forward(self, batch: Batch, phase: Phase | None = None) -> Outputs:
        """One pass: sets the forward state, inserts slots, builds masks and positions, pools, applies the head."""
        with self.autocast():
            return self._forward(batch, phase)

    def _forward(self, batch: Batch, phase: Phase | None) -> Outputs:
        training = torch.is_grad_enabled() and self.model.training
        phase = phase or ("train" if training else "evaluate")
        self.state = ForwardState(batch, batch.mask, None, phase, batch.prompt_length)
        if self.kind == "vision":
            out = self.model(pixel_values=batch.inputs["pixel_values"].to(self.dtype))
            return self._classify(out)
        batch = self._with_slots(batch)
        if self.kind == "encoder_decoder":
            return self._encode_decode(batch)
        arguments, labels = self._arguments(batch), batch.labels
        if self.head is None and labels is not None and batch.learned_from:
            scored = labels.shape[1] - batch.learned_from
            arguments["logits_to_keep"], labels = scored, labels[:, -scored:]
        out = self.model(**arguments)
        if self.head is not None:
            return self._classify(out)
        return Outputs(out.logits, None, out.get("past_key_values"), labels)

    def _classify(self, out) -> Outputs:
        hidden = out.last_hidden_state
        if self._take_pooled:
            left = self.state.batch.left_padded
            pooled = self.model.pooler(self.head_row(hidden)) if left else out.pooler_output
            return Outputs(self.head(pooled, self.state), hidden, None, self.state.batch.labels)
        return Outputs(self.head(hidden, self.state), hidden, None, self.state.batch.labels)

    def head_row(self, hidden: Tensor) -> Tensor:
        """(B, 1, d): the hidden state of each row's first real token."""
        index = self.state.mask.int().argmax(1).to(hidden.device)
        return hidden.take_along_dim(index[:, None, None].expand(-1, 1, hidden.shape[-1]), 1)

    def _encode_decode(self, batch: Batch) -> Outputs:
        if self.head is not None:
            raise Unsupported(f"{self.shape.architecture} is not run as a classifier: it generates")
        ids, mask = batch.inputs["input_ids"], self.state.mask
        out = self.model(input_ids=ids, attention_mask=mask.long(), labels=batch.labels, use_cache=False)
        return Outputs(out.logits, out.encoder_last_hidden_state, None, batch.labels)

    def _with_slots(self, batch: Batch) -> Batch:
        """Put ids beyond the vocabulary where the prompt goes, and move mask, types and labels along."""
        if not self._slots or not self.switch.on:
            return batch
        count, ids, mask = self.slot_count, batch.inputs["input_ids"], batch.inputs["attention_mask"]
        size, length = ids.shape
        start = mask.int().argmax(1, keepdim=True) + self.architecture.first_slot
        place = torch.arange(length + count, device=ids.device)[None]
        slots = (place >= start) & (place < start + count)
        source = torch.where(place < start, place, place - count).clamp(0, length - 1).expand(size, -1)

        def moved(values: Tensor, filler: Tensor | int) -> Tensor:
            return torch.where(slots, filler, values.gather(1, source))

        inputs = dict(batch.inputs)
        inputs["input_ids"] = moved(ids, self.shape.vocab + (place - start))
        inputs["attention_mask"] = moved(mask, 1)
        if "token_type_ids" in inputs:
            inputs["token_type_ids"] = moved(inputs["token_type_ids"], 0)
        labels = batch.labels
        if labels is not None and labels.dim() == 2 and self.kind == "decoder":
            labels = moved(labels, -100)
        prompt = None if batch.prompt_length is None else batch.prompt_length + count
        learned_from = batch.learned_from and batch.learned_from + count
        batch = replace(batch, inputs=inputs, labels=labels, prompt_length=prompt, learned_from=learned_from)
        self.state.batch, self.state.mask, self.state.slots = batch, inputs["attention_mask"].bool(), slots
        self.state.prompt_length = prompt
        return batch

    def _arguments(self, batch: Batch) -> dict[str, Any]:
        arguments = {k: v for k, v in batch.inputs.items() if k != "attention_mask"}
        if self.kind == "decoder":
            arguments["use_cache"] = False
        if batch.unpadded:
            return arguments
        if self.architecture.positions and (batch.left_padded or self.kind == "decoder"):
            arguments["position_ids"] = self.state.positions
        mask = self.state.mask
        if self.architecture.mask == "2d":
            arguments["attention_mask"] = mask.long()
            return arguments
        length = mask.shape[1]
        arguments["attention_mask"] = mask[:, None, None, :].expand(-1, 1, length, -1)
        if self.kind == "decoder":
            causal = torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
            own = torch.eye(length, dtype=torch.bool, device=mask.device)
            arguments["attention_mask"] = (arguments["attention_mask"] & causal) | own
        return arguments

    @torch.inference_mode()
    def generate(
        self, batch: Batch, tokens: int, stop: int | None = None, cached: bool = True, logits: Callable | None = None
    ) -> Tensor:
        """Greedy continuation: (B, new tokens) ids, `stop` repeated after a row has ended.

        Decoders want left padding. `logits(scores, state)` may change the scores (B, vocabulary) of each step.
        Without `cached` every step runs the whole text again: slow, for checking.
        """
        if self.kind not in ("decoder", "encoder_decoder"):
            raise Unsupported(f"an {self.kind} does not generate")
        with self.autocast(), self.as_written():
            if self.kind == "encoder_decoder":
                return self._generate_encoder_decoder(batch, tokens, stop, logits)
            return self._generate_decoder(batch, tokens, stop, cached, logits)

    def _generate_decoder(self, batch: Batch, tokens: int, stop: int | None, cached: bool, logits) -> Tensor:
        ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
        done = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
        new: list[Tensor] = []
        cache = full_mask = None
        for step in range(tokens):
            if step and cached:
                full_mask = torch.cat([full_mask, torch.ones_like(full_mask[:, :1])], 1)
                self.state = ForwardState(batch, full_mask.bool(), None, "decode", None, full_mask.shape[1] - 1)
                arguments = {"input_ids": new[-1][:, None], "attention_mask": full_mask, "past_key_values": cache}
                if self.architecture.positions:
                    arguments["position_ids"] = self.state.positions
                out = self.model(**arguments, use_cache=True)
            else:
                inputs = {"input_ids": torch.cat([ids, *(n[:, None] for n in new)], 1)}
                inputs["attention_mask"] = torch.cat([mask, mask.new_ones(len(mask), len(new))], 1)
                grown = replace(batch, inputs=inputs, labels=None)
                self.state = ForwardState(grown, grown.mask, None, "prefill", batch.prompt_length)
                grown = self._with_slots(grown)
                arguments = self._arguments(grown) | {"use_cache": cached, "logits_to_keep": 1}
                out = self.model(**arguments)
                full_mask = self.state.mask.long()
            cache = out.past_key_values if cached else None
            scores = out.logits[:, -1]
            scores = scores if logits is None else logits(scores, self.state)
            token = scores.argmax(-1).to(done.device)
            if stop is not None:
                token = torch.where(done, stop, token)
                done = done | (token == stop)
            new.append(token)
            if stop is not None and step % 8 == 7 and bool(done.all()):
                break
        return torch.stack(new, 1)

    def _generate_encoder_decoder(self, batch: Batch, tokens: int, stop: int | None, logits) -> Tensor:
        self.state = ForwardState(batch, batch.mask, None, "prefill", batch.prompt_length)
        batch = self._with_slots(batch)
        mask = self.state.mask.long()
        encoded = self.model.get_encoder()(input_ids=batch.inputs["input_ids"], attention_mask=mask)
        start = torch.full((len(mask), 1), self.model.config.decoder_start_token_id, device=mask.device)
        done, new = torch.zeros(len(mask), dtype=torch.bool, device=mask.device), [start[:, 0]]
        for step in range(tokens):
            ids = torch.stack(new, 1)
            out = self.model(encoder_outputs=encoded, attention_mask=mask, decoder_input_ids=ids, use_cache=False)
            scores = out.logits[:, -1] if logits is None else logits(out.logits[:, -1], self.state)
            token = scores.argmax(-1).to(done.device)
            if stop is not None:
                token = torch.where(done, stop, token)
                done = done | (token == stop)
            new.append(token)
            if stop is not None and step % 8 == 7 and bool(done.all()):
                break
        return torch.stack(new[1:], 1)

    # ---- calibration --------------------------------------------------------------------------------------------

    @contextmanager
    def inputs(self, sites: Iterable[Site], seen: Callable[[SiteId, Tensor], None]) -> Iterator[None]:
        """While open, `seen(site, rows)` gets the inputs (N, in) of linear sites, padding left out."""
        hooks = [site.module.register_forward_pre_hook(self._note_rows(site.id, seen)) for site in sites]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _note_rows(self, site: SiteId, seen: Callable[[SiteId, Tensor], None]) -> Callable:
        last = None

        def hook(module, args):
            nonlocal last
            if site.name in self.architecture.twice and last is self.state:
                return
            last = self.state
            rows, mask = args[0], self._seen(site)
            if mask is not None and rows.shape[:-1] in (mask.shape, mask.flatten().shape):
                rows = rows[mask.reshape(rows.shape[:-1])]
            seen(site, rows.reshape(-1, rows.shape[-1]).detach())

        return hook

    def _seen(self, site: SiteId) -> Tensor | None:
        """(B, L) true where the input of a site is a real token: in a decoder with its own inputs, where it learns."""
        if site.part != "decoder" or site.name in ("cross.k", "cross.v"):
            return self.state.mask
        labels = self.state.batch.labels
        return None if labels is None else labels != -100

    def weight_gradients(
        self, sites: Iterable[Site], batches: Iterable[Batch], loss: Callable[[Outputs, Batch], Tensor]
    ) -> dict[SiteId, Tensor]:
        """Mean gradient of the loss with respect to W (out, in) at each site, in fp32.

        Gradients are moved out of the network as soon as each is ready, so at most one is held twice.
        """
        sites = list(sites)
        if any(site.quantised for site in sites):
            raise Unsupported("quantised weights have no gradients")
        sums: dict[nn.Parameter, Tensor] = {}
        count = 0

        def collect(parameter):
            gradient = parameter.grad.float()
            sums[parameter] = gradient if parameter not in sums else sums[parameter].add_(gradient)
            parameter.grad = None

        weights = {site.module.weight: site.module.weight.requires_grad for site in sites}
        hooks = [w.requires_grad_(True).register_post_accumulate_grad_hook(collect) for w in weights]
        try:
            for batch in batches:
                loss(self.forward(batch, "train"), batch).backward()
                count += 1
        finally:
            for hook in hooks:
                hook.remove()
            for weight, trained in weights.items():
                weight.requires_grad_(trained)
        if self.head is not None:
            self.head.zero_grad(set_to_none=True)
        found = {s.id: s._view(sums[s.module.weight] / count, bias=False) for s in sites}
        return {k: (g.flatten(0, 1) if g.dim() == 3 else g) for k, g in found.items()}


def _note_call(called: dict[str, Any]) -> Callable:
    """Remember the batch size and length that a block is called with, and in Swin the height and width."""

    def run(proceed, hidden, *args, **kwargs):
        called["shape"], called["size"] = hidden.shape[:2], next(iter(args), None)
        return proceed(hidden, *args, **kwargs)

    return run


def _windows(x: Tensor, size: tuple[int, int], block: nn.Module) -> Tensor:
    """x (B, H W, d) as a block of Swin hands it to its attention: padded, shifted, (B windows, window^2, d)."""
    x, _ = block.maybe_pad(x.unflatten(1, size), *size)
    x, n = block.cyclic_shift(x), block.window_size
    return x.unflatten(2, (-1, n)).unflatten(1, (-1, n)).transpose(2, 3).reshape(-1, n * n, x.shape[-1])


def _images(x: Tensor, size: tuple[int, int], block: nn.Module) -> Tensor:
    """The inverse of `_windows`: (B windows, window^2, d) put together again, (B, H W, d), padding cut off."""
    n, (height, width) = block.window_size, size
    windows = (-1, -(-height // n), -(-width // n), n, n)
    x = x.reshape(*windows, x.shape[-1]).transpose(2, 3).flatten(3, 4).flatten(1, 2)
    return block.cyclic_shift(x, reverse=True)[:, :height, :width].flatten(1, 2)


def _keep(kept: dict[nn.Parameter, Tensor], parameters: Iterable[nn.Parameter]) -> None:
    """Copies of these parameters, unless they are kept already."""
    for parameter in parameters:
        if parameter not in kept:
            kept[parameter] = parameter.detach().clone()


def _same(x: Tensor) -> Tensor:
    return x


def _gated(linear_map: nn.Module, x: Tensor, base: Callable[[Tensor], Tensor]) -> Tensor:
    """The map's output, its contribution scaled by `linear_map.gate` (1 by default)."""
    if linear_map.merged:
        return base(x)
    y = linear_map(x, base)
    if isinstance(linear_map.gate, float) and linear_map.gate == 1.0:
        return y
    plain = base(x)
    return plain + linear_map.gate * (y - plain)


class _Entry:
    """A replaced attention, as a handle."""

    def __init__(self, core: nn.Module, function: Callable):
        self.core, self.function = core, function

    def remove(self) -> None:
        replaced = self.core.__dict__["_attention"]
        replaced.functions.remove(self.function)
        if not replaced.functions:
            del self.core.__dict__["_attention"]


class _Added:
    """A module that another one gained, as a handle."""

    def __init__(self, module: nn.Module, name: str):
        self.module, self.name = module, name

    def remove(self) -> None:
        delattr(self.module, self.name)


class _Compiled:
    """A compiled block, as a handle."""

    def __init__(self, block: nn.Module):
        self.block = block

    def remove(self) -> None:
        del self.block._compiled_call_impl


class _Hook:
    """A torch hook, as a handle."""

    def __init__(self, hook):
        self.remove = hook.remove
