"""Reference values of AdapterHub's package `adapters`: writes reference.safetensors beside this file.

It runs in an environment of its own, because adapters 1.3.0 requires transformers ~=4.57.6:

    python3.11 -m venv adapterhub
    adapterhub/bin/pip install adapters==1.3.0 transformers==4.57.6 torch==2.13.0
    adapterhub/bin/python tests/methods/adapterhub/make.py

In the file: `base/NETWORK/name`, the weights of the tiny networks of models/tiny.yaml; `in/name`, the inputs;
`CASE/NETWORK/w/name`, the trained weights of one method on one network; `CASE/NETWORK/out`, the last hidden state (T5:
the logits) in float64. Weights are random multiples of 1/64 and stored as int8, 64 times as large; orthogonal matrices
are stored in float64. The metadata tell the versions and how many parameters each method
trains.
"""

import json
from importlib.metadata import version
from pathlib import Path

import adapters
import torch
import transformers
import yaml
from safetensors.torch import save_file

HERE = Path(__file__).parent
NETWORKS = {
    "tiny-bert": lambda config: transformers.BertModel(config, add_pooling_layer=False),
    "tiny-llama": transformers.LlamaModel,
    "tiny-t5": transformers.T5ForConditionalGeneration,
    "tiny-vit": lambda config: transformers.ViTModel(config, add_pooling_layer=False),
}
TIED = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")


def prefix(**settings):
    return adapters.PrefixTuningConfig(prefix_length=3, **settings)


POSITIONS = {"prefix_positions": 2, "suffix_positions": 2, "r": 3, "dropout": 0.0}
CASES = {
    "houlsby": (adapters.DoubleSeqBnConfig(reduction_factor=4), ("tiny-bert", "tiny-llama", "tiny-vit")),
    "pfeiffer": (adapters.SeqBnConfig(reduction_factor=4), ("tiny-bert", "tiny-vit")),
    "parallel_adapter": (adapters.ParBnConfig(reduction_factor=4), ("tiny-bert", "tiny-llama", "tiny-vit")),
    "adapter_plus": (adapters.AdapterPlusConfig(reduction_factor=4, stochastic_depth=0.0), ("tiny-bert", "tiny-vit")),
    "compacter": (adapters.CompacterConfig(reduction_factor=4, non_linearity="gelu_new"), ("tiny-bert",)),
    "compacter_default": (adapters.CompacterConfig(reduction_factor=4), ("tiny-bert",)),
    "compacter_pp": (
        adapters.CompacterPlusPlusConfig(reduction_factor=4, non_linearity="gelu_new", original_ln_before=False),
        ("tiny-bert",),
    ),
    "compacter_pp_default": (adapters.CompacterPlusPlusConfig(reduction_factor=4), ("tiny-bert",)),
    "prefix_flat": (prefix(flat=True), ("tiny-bert", "tiny-llama", "tiny-t5")),
    "prefix_tuning": (prefix(bottleneck_size=6), ("tiny-bert", "tiny-t5")),
    "mam_adapter": (
        adapters.ConfigUnion(prefix(bottleneck_size=6), adapters.ParBnConfig(reduction_factor=4)),
        ("tiny-bert",),
    ),
    "prompt_tuning": (adapters.PromptTuningConfig(prompt_length=4, combine="prefix_after_bos"), ("tiny-bert",)),
    "ia3": (adapters.IA3Config(), ("tiny-bert", "tiny-t5")),
    "ia3_linear_branch": (adapters.IA3Config(intermediate_lora=False, output_lora=True), ("tiny-llama",)),
    "loreft": (adapters.LoReftConfig(**POSITIONS), ("tiny-bert", "tiny-llama")),
    "loreft_tied": (adapters.LoReftConfig(**POSITIONS | {"tied_weights": True}), ("tiny-bert",)),
    "loreft_short": (
        adapters.LoReftConfig(**POSITIONS | {"prefix_positions": 3, "suffix_positions": 3}),
        ("tiny-bert",),
    ),
    "direft": (adapters.DiReftConfig(**POSITIONS), ("tiny-bert", "tiny-llama")),
    "lora": (adapters.LoRAConfig(r=4, alpha=8), ("tiny-bert", "tiny-llama")),
}


def network(name):
    """The network with its configuration, every weight random."""
    sizes = yaml.safe_load((HERE.parents[2] / "models" / "tiny.yaml").read_text())["sizes"][name]
    config = transformers.AutoConfig.for_model(sizes["architecture"], **sizes["config"])
    config._attn_implementation = "eager"
    model = NETWORKS[name](config).eval()
    torch.manual_seed(1)
    for parameter in model.parameters():
        fill(parameter)
    return model


@torch.no_grad()
def fill(parameter):
    """Normal(0, 0.3) for matrices, 0.7 for the factors of Compacter, a tenth of noise on vectors."""
    noise = torch.randn(parameter.shape)
    value = (0.3, 0.7)[parameter.dim() == 3] * noise if parameter.dim() > 1 else parameter + 0.1 * noise
    parameter.copy_(rounded(value))


def rounded(value):
    return (64 * value).round().clamp(-127, 127) / 64


def packed(value):
    return (64 * value.detach()).to(torch.int8)


def inputs():
    rng = torch.Generator().manual_seed(2)
    mask = torch.ones(3, 7, dtype=torch.long)
    mask[1, 4:] = mask[2, 5:] = 0
    return {
        "input_ids": torch.randint(5, 97, (3, 7), generator=rng) * mask,
        "attention_mask": mask,
        "labels": torch.randint(5, 97, (3, 3), generator=rng),
        "pixel_values": torch.randn(1, 3, 16, 16, generator=rng).half(),
    }


def given(name, batch):
    if name == "tiny-vit":
        return {"pixel_values": batch["pixel_values"].double()}
    return {k: batch[k] for k in ("input_ids", "attention_mask") + (("labels",) if name == "tiny-t5" else ())}


def trained(model):
    """The weights that the method trains, an orthogonal matrix as it is used; and how many numbers are trained."""
    found = {name: p for name, p in model.named_parameters() if p.requires_grad}
    count = sum(p.numel() for p in found.values())
    for name, parameter in found.items():
        if name.endswith("lora_B") and parameter.shape[-1] == 1:  # scales of (IA)^3, positive
            with torch.no_grad():
                parameter.copy_(rounded(0.5 + torch.rand(parameter.shape)))
        elif "parametrizations" not in name:
            fill(parameter)
    stored = {}
    for name, parameter in found.items():
        if "parametrizations" in name:
            name = name.replace(".parametrizations.weight.original", ".weight")
            stored[name] = model.get_submodule(name.removesuffix(".weight")).weight.detach().clone()
        else:
            stored[name.split("prefix_tunings.")[-1]] = packed(parameter)
    return stored, count


def main():
    torch.set_default_dtype(torch.float64)
    batch, tensors, counts = inputs(), {}, {}
    for name in NETWORKS:
        state = network(name).state_dict()
        tensors |= {
            f"base/{name}/{k}": packed(v) for k, v in state.items() if k not in TIED and "position_ids" not in k
        }
    tensors |= {f"in/{k}": v for k, v in batch.items()}
    for case, (config, names) in CASES.items():
        for name in names:
            model = network(name)
            adapters.init(model)
            torch.manual_seed(3)
            model.add_adapter("a", config=config)
            model.train_adapter("a")
            weights, counts[f"{case}/{name}"] = trained(model)
            with torch.no_grad():
                out = model.eval()(**given(name, batch))
            tensors[f"{case}/{name}/out"] = out.logits if name == "tiny-t5" else out.last_hidden_state
            tensors |= {f"{case}/{name}/w/{k}": v for k, v in weights.items()}
            print(f"{case}/{name}", counts[f"{case}/{name}"], *weights, sep="\n    ")
    versions = {package: version(package) for package in ("adapters", "transformers", "torch")}
    metadata = {"versions": json.dumps(versions), "counts": json.dumps(counts)}
    save_file({k: v.contiguous().clone() for k, v in tensors.items()}, HERE / "reference.safetensors", metadata)


if __name__ == "__main__":
    main()
