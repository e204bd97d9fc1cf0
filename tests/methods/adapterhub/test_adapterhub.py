"""AdapterHub's package `adapters` 1.3.0: its recorded outputs and counts (see make.py), reached with its weights.

The package requires transformers ~=4.57.6, so it is not here itself.
"""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from methods.adapter.adapter_plus import AdapterPlus
from methods.adapter.compacter import Compacter
from methods.adapter.compacter_pp import CompacterPlusPlus
from methods.adapter.houlsby import Houlsby
from methods.adapter.mam_adapter import MAMAdapter
from methods.adapter.parallel_adapter import ParallelAdapter
from methods.adapter.pfeiffer import Pfeiffer
from methods.base.contract import key
from methods.lowrank.lora import LoRA
from methods.prompt.direft import DiReFT
from methods.prompt.ia3 import IA3
from methods.prompt.loreft import LoReFT
from methods.prompt.p_tuning_v2 import PTuningV2
from methods.prompt.prefix_tuning import PrefixTuning
from models.batch import Batch
from tests.helpers import attach, backbone, close, differ

EXACT = 1e-6
WITHIN = {"tiny-llama": 1e-5}  # its norms and angles are fp32 whatever the type of the network
FILE = Path(__file__).parent / "reference.safetensors"
TIED = {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"}
POOLER = {"pooler.dense.weight", "pooler.dense.bias"}
OF_VIT = (
    ("encoder.layer.", "layers."),
    ("attention.attention.query", "attention.q_proj"),
    ("attention.attention.key", "attention.k_proj"),
    ("attention.attention.value", "attention.v_proj"),
    ("attention.output.dense", "attention.o_proj"),
    ("intermediate.dense", "mlp.fc1"),
    ("output.dense", "mlp.fc2"),
)


def unpacked(tensor):
    return tensor.double() / 64 if tensor.dtype == torch.int8 else tensor


def names(file):
    return file.keys()  # a safetensors file is no dictionary


def recorded(prefix):
    """The tensors whose names begin so, by the rest of their names."""
    with safe_open(FILE, "pt") as file:
        return {k.removeprefix(prefix): unpacked(file.get_tensor(k)) for k in names(file) if k.startswith(prefix)}


def count(case):
    with safe_open(FILE, "pt") as file:
        return json.loads(file.metadata()["counts"])[case]


class Weights(dict):
    def of(self, *parts):
        """The one tensor whose name has all these parts."""
        (found,) = (value for name, value in self.items() if all(part in name for part in parts))
        return found

    def at(self, site):
        """Those of the site's block."""
        block = re.compile(rf"(?:layer|layers|block)\.{site.layer}\.")
        return Weights({k: v for k, v in self.items() if k.startswith(site.part) and _first(k, block)})


def _first(name, block):
    """The first number in a name is the block's; those behind it number layers inside."""
    found = re.search(r"(?:layer|layers|block)\.\d+\.", name)
    return found is not None and block.fullmatch(found[0]) is not None


def network(name):
    """The network of the project with the recorded weights, in float64."""
    on, state = backbone(name, dtype=torch.float64), recorded(f"base/{name}/")
    if name == "tiny-vit":
        for old, new in OF_VIT:
            state = {k.replace(old, new): v for k, v in state.items()}
    missing, unexpected = on.model.load_state_dict(state, strict=False)
    assert set(missing) <= TIED | POOLER and not unexpected
    return on


def given(name):
    tensors = recorded("in/")
    if name == "tiny-vit":
        return Batch({"pixel_values": tensors["pixel_values"].double()}, None)
    labels = tensors["labels"] if name == "tiny-t5" else None
    return Batch({k: tensors[k] for k in ("input_ids", "attention_mask")}, labels)


@torch.no_grad()
def output(on, batch):
    """What is recorded, at real tokens: the last hidden state, of T5 the scores."""
    out = on.forward(batch)
    return out.logits if on.kind == "encoder_decoder" else out.hidden


def real(name):
    return slice(None) if name in ("tiny-vit", "tiny-t5") else recorded("in/")["attention_mask"].bool()


def compare(plugin, case, name, copy, **settings):
    """Our output and theirs at real tokens, with their weights in our modules; the counts must be equal."""
    on, method, weights = network(name), plugin.create(settings), Weights(recorded(f"{case}/{name}/w/"))
    attach(method, on)
    method.parts.double().train(False)
    with torch.no_grad():
        copy(method, weights)
    assert sum(p.numel() for p in method.trained()) == count(f"{case}/{name}")
    keep, theirs = real(name), recorded(f"{case}/{name}/out")[""]
    assert differ(theirs[keep], output(network(name), given(name))[keep], 1e-2)
    return output(on, given(name))[keep], theirs[keep]


def bottlenecks(method, weights):
    for site in method.planned.sites:
        block = {k: v for k, v in weights.at(site).items() if "adapters.a." in k}
        theirs = Weights({k: v for k, v in block.items() if ("attention" in k) == (site.name == "attn")})
        module = method.parts[key(site)]
        if hasattr(module.down, "s"):
            for ours, part in ((module.down, "adapter_down"), (module.up, "adapter_up")):
                for parameter, suffix in ((ours.s, "W_left"), (ours.t, "W_right"), (ours.b, ".b")):
                    parameter.copy_(theirs.of(f"{part}.", suffix))
            method.parts["rule"].A.copy_(weights.of("phm_rule"))
            continue
        for ours, part in ((module.down, "adapter_down"), (module.up, "adapter_up")):
            ours.weight.copy_(theirs.of(part, "weight"))
            ours.bias.copy_(theirs.of(part, "bias"))
        if hasattr(module, "gamma"):
            module.gamma.copy_(theirs.of("scaling"))


PLACES = {"encoder/attn": "encoder_prefix", "decoder/attn": "self_prefix", "decoder/cross": "cross_prefix"}


def place(site):
    return PLACES.get(f"{site.part}/{site.name.split('.')[0]}", "self_prefix")


def prefixes(method, weights):
    """Slice l of what their tables give is layer l: keys, then values."""
    for site in method.planned.sites:
        module, name, layer = method.parts[key(site)], place(site), site.layer
        heads, length, width = module.key.shape
        if not hasattr(module, "up"):
            rows = weights.of(name, "control_trans").view(length, -1, 2, heads, width)[:, layer]
            module.key.copy_(rows[:, 0].transpose(0, 1))
            module.value.copy_(rows[:, 1].transpose(0, 1))
            continue
        rows = slice(2 * layer * heads * width, 2 * (layer + 1) * heads * width)
        module.table.rows.copy_(weights.of(name, "wte"))
        module.table.down.weight.copy_(weights.of(name, "control_trans.0.weight"))
        module.table.down.bias.copy_(weights.of(name, "control_trans.0.bias"))
        module.up.weight.copy_(weights.of(name, "control_trans.2.weight")[rows])
        module.up.bias.copy_(weights.of(name, "control_trans.2.bias")[rows])


def mixed(method, weights):
    prefixes(method, weights)
    bottlenecks(method.adapters, weights)


def subspaces(method, weights):
    for site in method.planned.sites:
        for unit, edit in enumerate(method.parts[key(site)]):
            theirs = Weights({k: v for k, v in weights.at(site).items() if f"units.{unit}." in k})
            low, W = (edit.R, edit.W) if hasattr(edit, "R") else (edit.W2, edit.W1)
            low.copy_(theirs.of("projection.weight"))
            W.copy_(theirs.of("learned_source.weight"))
            edit.b.copy_(theirs.of("learned_source.bias"))


SITES = {
    "attn.q": ("query", "q_proj"),
    "attn.k": (r"self\.key", "k_proj", r"SelfAttention\.k\b"),
    "attn.v": (r"self\.value", "v_proj", r"SelfAttention\.v\b"),
    "cross.k": (r"EncDecAttention\.k\b",),
    "cross.v": (r"EncDecAttention\.v\b",),
    "mlp.up": (r"intermediate\.dense",),
    "mlp.down": ("up_proj", r"DenseReluDense\.wi"),
}


def at(site, weights):
    pattern = re.compile("|".join(SITES[site.name]))
    return Weights({k: v for k, v in weights.at(site).items() if pattern.search(k)})


def scales(method, weights):
    for site in method.planned.sites:
        method.parts[key(site)].l.copy_(at(site, weights).of("lora_B")[:, 0])


def factors(method, weights):
    for site in method.planned.sites:
        method.parts[key(site)].A.copy_(at(site, weights).of("lora_A"))
        method.parts[key(site)].B.copy_(at(site, weights).of("lora_B"))


PREFIX = {"tokens": 3, "mid_dim": 6}
ENDS = {"rank": 3, "prefix": 2, "suffix": 2, "tied": False}
EQUAL = [
    ("houlsby", Houlsby, bottlenecks, {"size": 8, "activation": "silu", "train_norms": False}),
    ("pfeiffer", Pfeiffer, bottlenecks, {"reduction": 4}),
    ("parallel_adapter", ParallelAdapter, bottlenecks, {"size": 8}),
    ("adapter_plus", AdapterPlus, bottlenecks, {"size": 8}),
    ("compacter", Compacter, bottlenecks, {"reduction": 4, "train_norms": False}),
    ("compacter_pp", CompacterPlusPlus, bottlenecks, {"reduction": 4, "train_norms": False}),
    ("prefix_flat", PTuningV2, prefixes, {"tokens": 3}),
    ("prefix_tuning", PrefixTuning, prefixes, PREFIX),
    ("mam_adapter", MAMAdapter, mixed, PREFIX | {"size": 8}),
    ("ia3", IA3, scales, {}),
    ("ia3_linear_branch", IA3, scales, {}),
    ("loreft", LoReFT, subspaces, ENDS),
    ("loreft_tied", LoReFT, subspaces, ENDS | {"tied": True}),
    ("direft", DiReFT, subspaces, ENDS),
    ("lora", LoRA, factors, {"rank": 4, "alpha": 8.0}),
]
APART = {("ia3", "tiny-bert"), ("prefix_flat", "tiny-t5"), ("prefix_tuning", "tiny-t5")}
BEFORE_THE_ACTIVATION = {"sites": ("attn.k", "attn.v", "mlp.up")}


def networks(case):
    with safe_open(FILE, "pt") as file:
        return [name for found, name in (k.split("/") for k in json.loads(file.metadata()["counts"])) if found == case]


CASES = [
    pytest.param(plugin, case, name, copy, settings, id=f"{case}-{name}")
    for case, plugin, copy, settings in EQUAL
    for name in networks(case)
    if (case, name) not in APART
]


@pytest.mark.parametrize(("plugin", "case", "name", "copy", "settings"), CASES)
def test_the_same_output_and_count(plugin, case, name, copy, settings):
    ours, theirs = compare(plugin, case, name, copy, **settings)
    assert close(ours, theirs, WITHIN.get(name, EXACT))


def shifted(method, on, site):
    """Their prefix in T5 written out: relative positions count it as the first keys, which moves the text's keys."""
    stack = on.model.encoder if site.part == "encoder" else on.model.decoder
    table = stack.block[0].layer[0].SelfAttention

    def attention(call, proceed):
        keys, values = method.parts[key(site)].rows()
        text, prefix = call.scores(), call.scale * call.q @ keys.mT
        if site.name == "attn.core":
            length, more = text.shape[-1], keys.shape[-2]
            bias = table.compute_bias(length, length + more)
            text = text - table.compute_bias(length, length) + bias[..., more:]
            prefix = prefix + bias[..., :more]
        shares = torch.cat([prefix, text], -1).softmax(-1)
        return shares @ torch.cat([values.expand(len(call.v), -1, -1, -1), call.v], -2)

    return attention


@pytest.mark.parametrize(
    ("case", "plugin", "settings"), [("prefix_flat", PTuningV2, {"tokens": 3}), ("prefix_tuning", PrefixTuning, PREFIX)]
)
def test_a_prefix_in_t5_moves_the_relative_positions_there(case, plugin, settings):
    methods = []
    ours, theirs = compare(plugin, case, "tiny-t5", lambda m, w: (prefixes(m, w), methods.append(m)), **settings)
    assert differ(ours, theirs)
    plain, (method,) = network("tiny-t5"), methods
    for site in method.planned.sites:
        plain.attention(site, shifted(method, plain, site))
    assert close(output(plain, given("tiny-t5")), theirs, EXACT)


def test_ia3_in_bert_scales_before_the_activation():
    """Theirs is ours at the first map's output; in T5, whose activation is ReLU, positive scales pass through it."""
    ours, theirs = compare(IA3, "ia3", "tiny-bert", scales, **BEFORE_THE_ACTIVATION)
    assert close(ours, theirs, EXACT)


class InThePlaceOfPfeiffer(CompacterPlusPlus):
    def combine(self, module, x, y, residual):
        norm = self.backbone.norms()[module.site._replace(name="norm.mlp")]
        return y + module(norm(y + residual))


@pytest.mark.parametrize(
    ("case", "plugin"), [("compacter_default", Compacter), ("compacter_pp_default", InThePlaceOfPfeiffer)]
)
def test_compacter_has_the_exact_gelu_there(monkeypatch, case, plugin):
    """And Compacter++ stands where Pfeiffer's adapter does, reading the normed sum."""
    gelu = torch.nn.functional.gelu
    both = {"reduction": 4, "train_norms": False}
    ours, theirs = compare(plugin, case, "tiny-bert", bottlenecks, **both)
    assert differ(ours, theirs, 1e-5)
    monkeypatch.setattr(torch.nn.functional, "gelu", lambda x, approximate="none": gelu(x))
    ours, theirs = compare(plugin, case, "tiny-bert", bottlenecks, **both)
    assert close(ours, theirs, EXACT)


def test_reft_in_short_prompts_gives_the_overlap_to_the_suffix():
    """With three and three places theirs leaves one and three of four tokens, two and three of five; ours two, two."""
    keep, found = real("tiny-bert"), {}
    for prefix in (1, 2, 3):
        settings = ENDS | {"prefix": prefix, "suffix": 3}
        found[prefix], theirs = compare(LoReFT, "loreft_short", "tiny-bert", subspaces, **settings)
    row = torch.arange(3)[:, None].expand(keep.shape)[keep]
    for text, prefix in ((0, 3), (1, 1), (2, 2)):
        assert close(found[prefix][row == text], theirs[row == text], EXACT)
    assert differ(found[3][row == 1], theirs[row == 1])


def test_prompt_tokens_are_placed_behind_the_embeddings_there():
    """In BERT: text keeps its positions, and the prompt has none and passes no norm; it follows [CLS] as ours does."""
    (rows,) = recorded("prompt_tuning/tiny-bert/w/").values()
    assert rows.numel() == count("prompt_tuning/tiny-bert")
    on, batch = network("tiny-bert"), given("tiny-bert")
    ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
    with torch.no_grad():
        text = on.model.embeddings(ids)
    joined = torch.cat([text[:, :1], rows.expand(3, -1, -1), text[:, 1:]], 1)
    hook = on.model.embeddings.register_forward_hook(lambda *_: joined)
    longer, seen = (torch.cat([torch.ones(3, 4, dtype=torch.long), t], 1) for t in (ids, mask))
    found = output(on, Batch({"input_ids": longer, "attention_mask": seen}, None))
    hook.remove()
    keep = seen.bool()
    assert close(found[keep], recorded("prompt_tuning/tiny-bert/out")[""][keep], EXACT)
