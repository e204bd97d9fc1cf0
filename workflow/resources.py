"""What a cell's job asks of the scheduler, from the size of its model. The grid's `resources` win over these."""

from __future__ import annotations

_WIDTH = ("hidden_size", "n_embd", "d_model", "embed_dim")
_DEPTH = ("num_hidden_layers", "n_layer", "num_layers", "depths")
BASE_MEMORY = 3000  # MB: Python, torch, tokenised data
BYTES_PER_PARAMETER = 24  # fp32 weights, gradients, two moments, and half as much again for activations
BASE_MINUTES = 60
MINUTES_PER_100M = 60  # more for every hundred million parameters


def estimate(config: dict) -> dict[str, int]:
    """mem_mb and runtime (minutes) of a first attempt, from the model's configuration."""
    parameters = approximate_parameters(config)
    return {
        "mem_mb": BASE_MEMORY + round(parameters * BYTES_PER_PARAMETER / 1e6),
        "runtime": BASE_MINUTES + round(parameters / 1e8 * MINUTES_PER_100M),
    }


def approximate_parameters(config: dict) -> int:
    """12 d^2 a block and the embeddings: right to a factor of two for every family, enough to ask for memory by."""
    width = next((config[name] for name in _WIDTH if name in config), 768)
    depth = next((config[name] for name in _DEPTH if name in config), 12)
    blocks = sum(depth) if isinstance(depth, list) else depth
    return 12 * width**2 * blocks + config.get("vocab_size", 0) * width
