"""Sites of a loaded network: find the modules that the architecture table names, read and write their weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.architectures import Architecture, Fused
from models.quantise import QuantisedLinear
from models.shape import BackboneShape, BlockShape, LinearShape, SiteId


@dataclass(frozen=True)
class Site:
    """A linear map at one place: W (out, in) and bias (out,) of `module`, or of a slice of its fused weight."""

    id: SiteId
    module: nn.Module
    fused: Fused
    head_dim: int

    @property
    def transposed(self) -> bool:
        return self.fused.layout == "columns"

    @property
    def quantised(self) -> bool:
        return isinstance(self.module, QuantisedLinear)

    @property
    def shape(self) -> LinearShape:
        if self.quantised:
            rows, columns = self.module.out_features, self.module.in_features
        else:
            rows, columns = self.module.weight.shape[::-1] if self.transposed else self.module.weight.shape
        return LinearShape(rows // self.fused.of, columns, self.module.bias is not None)

    def _view(self, tensor: Tensor, bias: bool) -> Tensor:
        """This site's entries of a weight or bias (or of the module's output, last axis), as a view."""
        of, index = self.fused.of, self.fused.index
        if of == 1:
            return tensor.T if self.transposed and not bias else tensor
        if self.fused.layout == "heads":
            return tensor.unflatten(0, (-1, of, self.head_dim))[:, index]
        if self.transposed and not bias:
            return tensor.chunk(of, dim=1)[index].T
        return tensor.chunk(of, dim=0)[index]

    def weight(self) -> Tensor:
        """W as (out, in), without grad; a view where the layout allows, a new tensor where it is quantised."""
        stored = self.module.unpacked() if self.quantised else self.module.weight.detach()
        view = self._view(stored, bias=False)
        return view.flatten(0, 1) if view.dim() == 3 else view

    def bias(self) -> Tensor | None:
        """b as (out,), without grad, or None."""
        return None if self.module.bias is None else self._view(self.module.bias.detach(), bias=True).reshape(-1)

    @torch.no_grad()
    def write(self, weight: Tensor, bias: Tensor | None) -> None:
        """Store W (out, in) and b (out,), cast once to the module's type, or quantised again."""
        stored = self.module.unpacked() if self.quantised else self.module.weight
        view = self._view(stored, bias=False)
        view.copy_(weight.reshape(view.shape))
        if self.quantised:
            self.module.write(stored)
        if bias is not None:
            if self.module.bias is None:
                raise ValueError(f"site {self.id} has no bias to write to")
            view = self._view(self.module.bias, bias=True)
            view.copy_(bias.reshape(view.shape))

    def take(self, output: Tensor) -> Tensor:
        """This site's part (..., out) of the module's output."""
        if self.fused.of == 1:
            return output
        if self.fused.layout == "heads":
            return output.unflatten(-1, (-1, self.fused.of, self.head_dim))[..., self.fused.index, :].flatten(-2)
        return output.chunk(self.fused.of, dim=-1)[self.fused.index]

    def put(self, output: Tensor, part: Tensor) -> Tensor:
        """The module's output with this site's part replaced; out of place."""
        if self.fused.of == 1:
            return part
        if self.fused.layout == "heads":
            pieces = list(output.unflatten(-1, (-1, self.fused.of, self.head_dim)).unbind(-2))
            pieces[self.fused.index] = part.unflatten(-1, (-1, self.head_dim))
            return torch.stack(pieces, dim=-2).flatten(-3)
        pieces = list(output.chunk(self.fused.of, dim=-1))
        pieces[self.fused.index] = part
        return torch.cat(pieces, dim=-1)


def _find(root: nn.Module, path: str) -> nn.Module | None:
    """The submodule at the first of the `|`-separated paths that exists, or None."""
    for option in path.split("|"):
        try:
            return root.get_submodule(option)
        except AttributeError:
            continue
    return None


class SiteMap:
    """All sites of one network, in model order.

    linears: SiteId -> Site; modules: SiteId -> module (blocks, norms, attention cores, embeddings, ...).
    """

    def __init__(self, model: nn.Module, architecture: Architecture):
        self.architecture = architecture
        self.model, self.base = model, _bare(model, architecture)
        self.linears: dict[SiteId, Site] = {}
        self.modules: dict[SiteId, nn.Module] = {}
        self.norms: dict[SiteId, nn.Module] = {}
        for name, path in architecture.outside.items():
            stages = len(self.base.get_submodule(path.split(".{s}.")[0])) if "{s}" in path else 0
            for stage in range(stages):
                self._outside(name, path.format(s=stage), stage)
            if not stages:
                self._outside(name, path)
        for part, stack in architecture.stacks.items():
            for layer, block in enumerate(self._blocks(stack.blocks)):
                self._block(part, layer, block, stack)

    def _blocks(self, path: str) -> list[nn.Module]:
        if "{s}" not in path:
            return list(self.base.get_submodule(path))
        head, tail = path.split(".{s}.")
        return [block for stage in self.base.get_submodule(head) for block in stage.get_submodule(tail)]

    def _outside(self, name: str, path: str, layer: int = -1) -> None:
        module = _find(self.base, path)
        if module is None:
            return
        part, _, rest = name.partition(".")
        site = SiteId(part, layer, rest) if part in self.architecture.stacks else SiteId("", layer, name)
        self.modules[site] = module
        if isinstance(module, nn.Linear):
            self.linears[site] = Site(site, module, Fused(path), 1)
        if "norm" in site.name:
            self.norms[site] = module

    def _block(self, part: str, layer: int, block: nn.Module, stack) -> None:
        self.modules[SiteId(part, layer, "block")] = block
        core = _find(block, stack.modules["attn.core"])
        for name, path in stack.modules.items():
            if (module := _find(block, path)) is not None:
                self.modules[SiteId(part, layer, name)] = module
        for name, path in stack.linears.items():
            fused = path if isinstance(path, Fused) else Fused(path)
            if (module := _find(block, fused.path)) is not None:
                site = SiteId(part, layer, name)
                self.linears[site] = Site(site, module, fused, _head_dim(core))
        for name, path in stack.norms.items():
            module = _find(block, path)
            if module is not None and not isinstance(module, nn.Identity):  # the first norm of ModernBERT is none
                site = SiteId(part, layer, name)
                self.norms[site] = self.modules[site] = module

    def shape(self, kind: str, model_type: str) -> BackboneShape:
        """Sizes for methods to count with; reads shapes only, so it works on the meta device."""
        config = self.base.config
        linears = {k: s.shape for k, s in self.linears.items()}
        blocks = {
            (k.part, k.layer): self._block_shape(k, module) for k, module in self.modules.items() if k.name == "block"
        }
        table = next((m for k, m in self.modules.items() if k.name == "embed.token"), None)
        names: dict[int, list[str]] = {}
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            names.setdefault(id(parameter), []).append(name)
        return BackboneShape(
            kind=kind,
            architecture=model_type,
            parts=tuple(self.architecture.stacks),
            blocks=blocks,
            linears=linears,
            norms={k: (m.weight.numel(), getattr(m, "bias", None) is not None) for k, m in self.norms.items()},
            biases=self._biases(),
            embedding_width=table.embedding_dim if table is not None else next(iter(blocks.values())).width,
            vocab=table.num_embeddings if table is not None else 0,
            tokens=_tokens(config),
            parameters=sum(p.numel() for p in self.model.parameters()),
            tied=tuple((first, other) for first, *others in names.values() for other in others),
            layers={part: sum(k[0] == part for k in blocks) for part in self.architecture.stacks},
            first_slot=self.architecture.first_slot,
            dispatches=self.architecture.dispatches,
            appendable=self.architecture.movable and not self.architecture.rotary,
        )

    def _biases(self) -> dict[SiteId, int]:
        sites = {k: s.shape.out for k, s in self.linears.items() if s.shape.bias}
        sites |= {k: m.bias.numel() for k, m in self.norms.items() if getattr(m, "bias", None) is not None}
        for site in (SiteId("", -1, "embed.patch"), SiteId("", -1, "conv")):
            if site in self.modules and self.modules[site].bias is not None:
                sites[site] = self.modules[site].bias.numel()
        return sites

    def _block_shape(self, key: SiteId, block: nn.Module) -> BlockShape:
        def size(name):
            site = self.linears.get(SiteId(key.part, key.layer, name))
            return site.shape if site else LinearShape(0, 0, False)

        head_dim = _head_dim(self.modules[SiteId(key.part, key.layer, "attn.core")])
        q, k, up = size("attn.q"), size("attn.k"), size("mlp.up")
        return BlockShape(q.inp, q.out // head_dim, k.out // head_dim, head_dim, up.out)


def _bare(model: nn.Module, architecture: Architecture) -> nn.Module:
    """The network below a task head: paths of the table start here."""
    return model if architecture.kind == "encoder_decoder" else model.base_model


def _head_dim(core: nn.Module) -> int:
    for name in ("head_dim", "attention_head_size", "key_value_proj_dim"):
        if hasattr(core, name):
            return getattr(core, name)
    raise AttributeError(f"{type(core).__name__} does not tell the size of its heads")


def _tokens(config) -> int:
    if hasattr(config, "image_size"):
        return (config.image_size // config.patch_size) ** 2
    if config.model_type == "roberta":  # its positions start behind the padding id
        return config.max_position_embeddings - config.pad_token_id - 1
    for name in ("max_position_embeddings", "n_positions"):
        if getattr(config, name, None):
            return getattr(config, name)
    return 0
