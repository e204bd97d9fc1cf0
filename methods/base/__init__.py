"""The contract of a method and its building blocks. Names are imported on first use, so that nothing heavy
is loaded by looking at this package."""

from importlib import import_module

_WHERE = {
    "contract": ("Method", "Plan", "Count", "Phase", "Step", "StepResult", "MergeReport", "Context"),
    "settings": ("LinearSettings", "WrapperSettings"),
    "maps": ("LinearMap", "LinearMethod"),
    "factors": ("FactorMethod", "OffsetMethod", "SplitMap"),
    "bottleneck": ("Bottleneck", "BottleneckMethod", "ParallelBottleneckMethod"),
    "prompts": ("KVPrefix", "InputPrompt", "PromptMethod"),
    "positions": ("PositionMethod", "places"),
    "prefix": ("AttentionMethod", "Prefix", "attentions", "prompt_attention"),
    "shared": ("SharedMethod", "kaiming_uniform", "constant"),
    "wrapper": ("Wrapper",),
}
_MODULES = {name: module for module, names in _WHERE.items() for name in names}
__all__ = sorted(_MODULES)


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module 'methods.base' has no attribute '{name}'")
    return getattr(import_module(f"methods.base.{_MODULES[name]}"), name)
