"""The MAM adapter: its two halves alone, and both in the paper's unified view, written out in float64."""

import pytest
import torch

from methods.adapter.mam_adapter import MAMAdapter
from methods.adapter.parallel_adapter import ParallelAdapter
from methods.base.contract import key
from methods.prompt.prefix_tuning import PrefixTuning
from tests.helpers import attach, backbone, batch, close, double, made, run
from workflow.count import count

NETWORKS = ["tiny-bert", "tiny-llama", "tiny-gpt2", "tiny-vit", "tiny-swin", "tiny-t5"]


def gated_prefix(key, value):
    """(1 - lambda) softmax(scores) v + lambda softmax(q P_k) P_v, every part of it explicit."""

    def attention(call, proceed):
        groups = call.q.shape[1] // call.k.shape[1]
        k, v, values = (t.repeat_interleave(groups, -3) for t in (key, value, call.v))
        own, prefix = call.scores(), call.scale * call.q @ k.mT
        mass = [s.exp().sum(-1, keepdim=True) for s in (own, prefix)]
        share = mass[1] / sum(mass)
        return (1 - share) * own.softmax(-1) @ values + share * prefix.softmax(-1) @ v

    return attention


class TestMAMAdapter:
    SETTINGS = {"tokens": 3, "mid_dim": 16, "size": 8}

    @pytest.mark.parametrize("side", ["right", "left", "none"])
    @pytest.mark.parametrize("name", NETWORKS)
    @torch.no_grad()
    def test_the_unified_view(self, name, side):
        """A gated sum in each attention and a scaled adapter in each feed-forward branch, from the stored state."""
        on, method = made(MAMAdapter, name, **self.SETTINGS)
        state, plain = method.state_dict(), double(name)
        for site in method.planned.sites:
            plain.attention(site, gated_prefix(*(state[f"{key(site)}.{n}"] for n in ("key", "value"))))
        for site in method.adapters.planned.sites:
            W1, b1, W2, b2 = (state[f"{key(site)}.{n}.{t}"] for n in ("down", "up") for t in ("weight", "bias"))
            plain.branch(
                site,
                "mlp",
                lambda x, y, residual, W1=W1, b1=b1, W2=W2, b2=b2: (
                    y + 4.0 * (torch.relu(residual @ W1.T + b1) @ W2.T + b2)
                ),
            )
        assert close(run(on, batch(name, side)), run(plain, batch(name, side)), 1e-9)

    def test_at_the_start_it_is_prefix_tuning(self):
        on, method = backbone("tiny-bert"), MAMAdapter.create(self.SETTINGS)
        attach(method, on)
        prefix = {k: v for k, v in method.state_dict().items() if k.endswith((".key", ".value"))}
        other, alone = backbone("tiny-bert"), PrefixTuning.create({"tokens": 3, "mid_dim": 16})
        attach(alone, other)
        alone.load_state_dict(prefix)
        alone.parts.train(False)
        method.parts.train(False)
        assert close(run(on, batch("tiny-bert")), run(other, batch("tiny-bert")), 1e-6)

    def test_without_the_prefix_it_is_the_parallel_adapter(self):
        on, method = made(MAMAdapter, "tiny-llama", **self.SETTINGS)
        for site in method.planned.sites:
            method.parts[key(site)].gate = 0.0
        other, alone = made(ParallelAdapter, "tiny-llama", size=8)
        alone.load_state_dict({k: v for k, v in method.state_dict().items() if "mlp" in k})
        assert close(run(on, batch("tiny-llama")), run(other, batch("tiny-llama")), 1e-12)

    def test_prefixes_and_adapters_are_stored_and_the_mlp_is_not(self):
        """0.48 % of RoBERTa-base, printed as 0.5; with E and MLP 15,391,520 in the place of 294,912."""
        counted = count("mam_adapter", "roberta-base", {"tokens": 16, "size": 16})
        assert counted["stored"] == counted["added_at_inference"] == counted["expected"]["added"] == 599_232
        assert counted["trained"] == 15_391_520 + 304_320 and counted["agrees"]

    @torch.no_grad()
    def test_folding_changes_nothing(self):
        on, method = made(MAMAdapter, "tiny-t5", **self.SETTINGS)
        before = run(on, batch("tiny-t5"))
        method.prepare_inference()
        assert close(run(on, batch("tiny-t5")), before, 1e-12)
