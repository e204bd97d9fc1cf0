"""Quantised bases: linear maps whose frozen weight is stored in 8 or 4 bits, for methods trained on top of it.

int8: W ≈ q s with q (out, in) in [-127, 127] and one scale s a row; nothing but torch, on every device.
nf4: QLoRA's 4-bit NormalFloat in blocks of 64 with 8-bit scales (Dettmers et al., 2023, arXiv:2305.14314).
bnb-int8: LLM.int8(), whose activations are quantised too, but for columns of outliers (Dettmers et al., 2022,
arXiv:2208.07339). The last two are bitsandbytes'.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workflow.errors import AtlasError

BITSANDBYTES = "bitsandbytes==0.50.2"
OUTLIER = 6.0


class QuantisedLinear(nn.Module):
    """y = W x + b with W (out, in) stored packed: in `weight`, of an integer type, and the scales beside it.

    All that is stored is a parameter without gradient, so that copies of a module's parameters restore it.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.dtype = linear.weight.dtype
        for name, tensor in self.packed(linear.weight.detach()).items():
            self.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
        self.bias = linear.bias

    def packed(self, weight: Tensor) -> dict[str, Tensor]:
        """What is stored for W (out, in), by name; shapes and types depend on the shape of W alone."""
        raise NotImplementedError

    def unpacked(self) -> Tensor:
        """W (out, in) as it acts, in the type that the network was loaded in; without grad."""
        raise NotImplementedError

    def product(self, x: Tensor) -> Tensor:
        """W x for x (..., in), differentiable in x."""
        raise NotImplementedError

    @torch.no_grad()
    def write(self, weight: Tensor) -> None:
        """Quantise W (out, in) into the place of the present one."""
        for name, tensor in self.packed(weight.to(self.dtype)).items():
            getattr(self, name).copy_(tensor)

    def forward(self, x: Tensor) -> Tensor:
        y = self.product(x)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class _RowProduct(torch.autograd.Function):
    """x (q s)^T. Both passes rebuild q s, so that the graph keeps no copy of W."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, q: Tensor, scale: Tensor) -> Tensor:
        return F.linear(x, _rows(q, scale, x.dtype))

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return gradient @ _rows(*ctx.saved_tensors, gradient.dtype), None, None


def _rows(q: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return q.to(dtype) * scale.to(dtype)


class Int8Linear(QuantisedLinear):
    """W = q s: `weight` q (out, in) int8, `scale` s (out, 1) in the network's type."""

    def packed(self, weight: Tensor) -> dict[str, Tensor]:
        scale = weight.abs().amax(1, keepdim=True) / 127
        scale = torch.where(scale == 0, 1, scale)
        q = (weight.float() / scale.float()).round().clamp(-127, 127)
        return {"weight": q.to(torch.int8), "scale": scale}

    def unpacked(self) -> Tensor:
        return _rows(self.weight.detach(), self.scale.detach(), self.dtype)

    def product(self, x: Tensor) -> Tensor:
        return _RowProduct.apply(x, self.weight, self.scale)


class NF4Linear(QuantisedLinear):
    """`weight`: two 4-bit codes a byte; `absmax`: an 8-bit code of each block's scale less `offset`; `nested`: the
    scales of those codes, one in 256. Seen as int8, as T5 casts its inputs to the type of any other weight.
    """

    def __init__(self, linear: nn.Linear):
        functional, device = _bitsandbytes("functional"), linear.weight.device
        super().__init__(linear)
        self.register_buffer("levels", functional.get_4bit_type("nf4", device=device), persistent=False)
        self.register_buffer("nested_levels", functional.create_dynamic_map().to(device), persistent=False)

    def packed(self, weight: Tensor) -> dict[str, Tensor]:
        codes, state = _bitsandbytes("functional").quantize_4bit(
            weight.contiguous(), blocksize=64, compress_statistics=True, quant_type="nf4"
        )
        found = {"weight": codes.view(torch.int8), "absmax": state.absmax, "nested": state.state2.absmax}
        return found | {"offset": state.offset}

    def _state(self):
        """The parts as bitsandbytes wants them."""
        state = _bitsandbytes("functional").QuantState
        nested = state(self.nested, code=self.nested_levels, blocksize=256, dtype=torch.float32)
        shape = torch.Size((self.out_features, self.in_features))
        return state(self.absmax, shape, self.levels, 64, "nf4", self.dtype, self.offset, nested)

    def unpacked(self) -> Tensor:
        codes = self.weight.detach().view(torch.uint8)
        return _bitsandbytes("functional").dequantize_4bit(codes, self._state()).to(self.dtype)

    def product(self, x: Tensor) -> Tensor:
        return _bitsandbytes("autograd._functions").MatMul4Bit.apply(
            x, self.weight.view(torch.uint8), None, None, self._state()
        )


class LLMInt8Linear(QuantisedLinear):
    """W = q s / 127: `weight` q (out, in) int8, `scale` s (out,) float32."""

    def packed(self, weight: Tensor) -> dict[str, Tensor]:
        q, scale, _ = _bitsandbytes("functional").int8_vectorwise_quant(weight.half())
        return {"weight": q, "scale": scale}

    def unpacked(self) -> Tensor:
        return (self.weight.detach().float() * self.scale.detach()[:, None] / 127).to(self.dtype)

    def product(self, x: Tensor) -> Tensor:
        functions = _bitsandbytes("autograd._functions")
        state = functions.MatmulLtState(CB=self.weight, SCB=self.scale)
        state.has_fp16_weights, state.threshold, state.is_training = False, OUTLIER, self.training
        return functions.matmul(x, self.weight, state=state)


SCHEMES: dict[str, type[QuantisedLinear]] = {"int8": Int8Linear, "nf4": NF4Linear, "bnb-int8": LLMInt8Linear}


def _bitsandbytes(module: str):
    try:
        found = importlib.import_module(f"bitsandbytes.{module}")
    except ImportError as problem:
        raise AtlasError(
            "quantize: nf4 and bnb-int8 need the package bitsandbytes", mend=f"pip install {BITSANDBYTES}"
        ) from problem
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)  # it warns of a cast at every call
    return found


def check(scheme: str) -> None:
    """An AtlasError for an unknown scheme or a missing package."""
    if scheme not in SCHEMES:
        raise AtlasError(f"unknown quantize '{scheme}'", key="quantize", mend=f"use one of {', '.join(SCHEMES)}")
    if scheme != "int8":
        _bitsandbytes("functional")


def quantise(block: nn.Module, linears: Iterable[nn.Linear], scheme: str, device: torch.device) -> None:
    """Replace these linear maps of a block, packed on `device`; the block stays where it is.

    At most one block is held twice. A device that cannot do it is an AtlasError.
    """
    wanted, home = set(linears), next(block.parameters()).device
    block.to(device)
    try:
        for name, module in list(block.named_modules()):
            if module in wanted:
                block.set_submodule(name, SCHEMES[scheme](module))
    except torch.OutOfMemoryError:
        raise
    except (NotImplementedError, RuntimeError) as problem:
        raise AtlasError(
            f"quantize: {scheme} does not work on {device}: {str(problem).splitlines()[0]}", mend="use quantize: int8"
        ) from problem
    block.to(home)


def base_bytes(model: nn.Module) -> int:
    """Bytes of all stored weights of a network, scales included; a tied table counts once."""
    return sum(p.numel() * p.element_size() for p in model.parameters())
