"""SSF and AdaLink: their formulas written as hooks on named modules or on given embeddings, and published counts."""

import copy

import pytest
import torch
import torch.nn.functional as F

from methods.adapter.adalink import AdaLink
from methods.adapter.ssf import SSF
from models.shape import SiteId
from tests.helpers import attach, backbone, batch, close, images, run, text
from workflow.count import count


def double(name, method):
    """The method on a network in float64, all its parameters away from their start; and the network alone."""
    on = backbone(name, dtype=torch.float64)
    plain = copy.deepcopy(on)
    attach(method, on)
    method.parts.double()
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in method.parts.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=rng, dtype=torch.float64))
    return on, plain


def hook(model, path, gamma, beta):
    """Scale and shift what the module at this path returns; of convolutions (B, d, H, W) the second axis."""

    def scaled(module, args, out):
        wide = (None, slice(None), None, None) if out.dim() == 4 else ...
        out = out * gamma[wide]
        return out if beta is None else out + beta[wide]

    model.get_submodule(path).register_forward_hook(scaled)


VIT = {"attn.q": "attention.q_proj", "attn.k": "attention.k_proj", "attn.v": "attention.v_proj"}
VIT |= {"attn.o": "attention.o_proj", "mlp.up": "mlp.fc1", "mlp.down": "mlp.fc2"}
VIT |= {"norm.attn": "layernorm_before", "norm.mlp": "layernorm_after"}
PATCH = {"embed.patch": "embeddings.patch_embeddings.projection", "norm.final": "layernorm"}
LLAMA = {f"attn.{n}": f"self_attn.{n}_proj" for n in "qkvo"} | {
    f"mlp.{n}": f"mlp.{n}_proj" for n in ("gate", "up", "down")
}
LLAMA |= {"norm.attn": "input_layernorm", "norm.mlp": "post_attention_layernorm"}
BERT = {"attn.q": "attention.self.query", "attn.k": "attention.self.key", "attn.v": "attention.self.value"}
BERT |= {"attn.o": "attention.output.dense", "norm.attn": "attention.output.LayerNorm"}
BERT |= {"mlp.up": "intermediate.dense", "mlp.down": "output.dense", "norm.mlp": "output.LayerNorm"}
PATHS = {
    "tiny-vit": {f"{i}.{k}": f"layers.{i}.{v}" for i in range(2) for k, v in VIT.items()} | PATCH,
    "tiny-llama": {f"{i}.{k}": f"layers.{i}.{v}" for i in range(2) for k, v in LLAMA.items()} | {"norm.final": "norm"},
    "tiny-bert": {f"{i}.{k}": f"encoder.layer.{i}.{v}" for i in range(2) for k, v in BERT.items()}
    | {"embed.norm": "embeddings.LayerNorm"},
}


class TestSSF:
    @pytest.mark.parametrize("name", PATHS)
    def test_as_hooks_on_named_modules(self, name):
        method = SSF()
        on, plain = double(name, method)
        pairs = {key.replace("/", "."): pair for key, pair in method.parts.items()}
        assert pairs.keys() == PATHS[name].keys()
        for site, path in PATHS[name].items():
            hook(plain.base, path, pairs[site].gamma, pairs[site].beta)
        given = batch(name)
        assert close(run(on, given), run(plain, given), 1e-10)

    @pytest.mark.parametrize("name", ["tiny-bert", "tiny-gemma3", "tiny-swin", "tiny-t5"])
    def test_with_ones_and_zeros_it_is_the_network(self, name):
        on, given, method = backbone(name), batch(name), SSF.create({"std": 0.0})
        before = run(on, given)
        attach(method, on)
        assert torch.equal(run(on, given), before)

    def test_the_start(self):
        on, method = backbone("tiny-bert"), SSF()
        attach(method, on)
        gammas = torch.cat([p.detach() for n, p in method.parts.named_parameters() if n.endswith("gamma")])
        betas = torch.cat([p.detach() for n, p in method.parts.named_parameters() if n.endswith("beta")])
        assert len(gammas) == len(betas) == 608
        for values, mean in ((gammas, 1.0), (betas, 0.0)):
            assert values.mean().item() == pytest.approx(mean, abs=0.003)
            assert values.std().item() == pytest.approx(0.02, rel=0.1)

    def test_an_rms_norm_gets_no_shift(self):
        method = SSF()
        attach(method, backbone("tiny-llama"))
        missing = {key for key, pair in method.parts.items() if pair.beta is None}
        assert missing == {"0/norm/attn", "0/norm/mlp", "1/norm/attn", "1/norm/mlp", "norm/final"}

    def test_nothing_of_it_is_decayed(self):
        method = SSF()
        attach(method, backbone("tiny-vit"))
        (group,) = method.parameter_groups({"weight_decay": 0.1})
        assert group["weight_decay"] == 0.0 and len(group["params"]) == 2 * (2 * 8 + 2)

    @pytest.mark.parametrize("name", ["tiny-vit", "tiny-llama"])
    def test_the_merged_weights_are_those_of_the_paper(self, name):
        """W' = diag(gamma) W, b' = gamma b + beta; in Llama, which has no biases, b' = beta until it is unmerged."""
        on, method = backbone(name), SSF()
        attach(method, on)
        site, pair = on.site(SiteId("", 1, "mlp.up")), method.parts["1/mlp/up"]
        W, b = site.weight().clone(), torch.zeros(64) if site.bias() is None else site.bias().clone()
        method.merge()
        assert close(site.weight(), torch.diag(pair.gamma) @ W, 1e-6)
        assert close(site.bias(), pair.gamma * b + pair.beta, 1e-6)
        method.unmerge()
        assert torch.equal(site.weight(), W) and (site.bias() is None) == (name == "tiny-llama")


class TestAdaLink:
    SETTINGS = {"rank": 4}

    @staticmethod
    def adapted(method, e):
        """e' token by token."""
        link, out = method.parts["link"], torch.empty_like(e)
        for place in torch.cartesian_prod(*(torch.arange(n) for n in e.shape[:-1])):
            row = e[tuple(place)]
            out[tuple(place)] = row + link.W_up.T @ link.f(link.W_down.T @ row)
        return out

    @pytest.mark.parametrize("activation", ["identity", "gelu"])
    @pytest.mark.parametrize("name", ["tiny-bert", "tiny-llama", "tiny-gemma3", "tiny-gpt2"])
    @torch.no_grad()
    def test_as_embeddings_given_to_the_network(self, name, activation):
        method = AdaLink.create(self.SETTINGS | {"activation": activation})
        on, plain = double(name, method)
        ids = text(name, "none").inputs["input_ids"]
        e = plain.base.get_input_embeddings()(ids)
        expected = plain.base(inputs_embeds=self.adapted(method, e)).last_hidden_state
        assert close(on.base(input_ids=ids).last_hidden_state, expected, 1e-10)

    @torch.no_grad()
    def test_in_an_encoder_decoder_the_encoder_alone_is_adapted(self):
        method = AdaLink.create(self.SETTINGS)
        on, plain = double("tiny-t5", method)
        given = text("tiny-t5", "none")
        ids, labels = given.inputs["input_ids"], given.labels.clamp_min(0)
        e = plain.model.get_encoder().embed_tokens(ids)
        expected = plain.model(inputs_embeds=self.adapted(method, e), decoder_input_ids=labels).logits
        assert close(on.model(input_ids=ids, decoder_input_ids=labels).logits, expected, 1e-9)

    @torch.no_grad()
    def test_patches(self):
        """The projection as a matrix on unfolded patches, then the adapter, for each patch."""
        method = AdaLink.create(self.SETTINGS)
        on, plain = double("tiny-vit", method)
        pixels = images("tiny-vit").inputs["pixel_values"].double()
        conv = plain.base.embeddings.patch_embeddings.projection
        e = F.unfold(pixels, 4, stride=4).transpose(1, 2) @ conv.weight.flatten(1).T + conv.bias
        found = on.base.embeddings.patch_embeddings.projection(pixels).flatten(2).transpose(1, 2)
        assert close(found, self.adapted(method, e), 1e-10)

    @torch.no_grad()
    def test_the_merged_table_leaves_a_tied_output_layer_alone(self):
        method = AdaLink.create(self.SETTINGS)
        on = backbone("tiny-gpt2", "generation")
        attach(method, on)
        method.parts["link"].W_up.normal_(generator=torch.Generator().manual_seed(0))
        table, head = on.base.get_input_embeddings(), on.model.get_output_embeddings().weight
        E, link = table.weight.detach().clone(), method.parts["link"]
        method.merge()
        assert close(table.weight, E + E @ link.W_down @ link.W_up) and torch.equal(head, E)
        method.unmerge()
        assert table.weight is head

    def test_with_an_activation_it_does_not_merge(self):
        method = AdaLink.create(self.SETTINGS | {"activation": "relu"})
        assert AdaLink.mergeable and not method.mergeable
        attach(method, backbone("tiny-bert"))
        assert len(method.kept()) == 2
        with pytest.raises(TypeError, match="does not merge"):
            method.merge()


EXACT = [
    ("ssf", "vit-b16", {}, 205_824, "by its formula: 0.28M with a head of 100 classes"),
    ("ssf", "vit-l16", {}, 11 * 2 * 24 * 1024 + 4 * 1024, "22 d L + 4 d"),
    ("adalink", "bert-base", {}, 98_304, "by its formula, r = 64"),
    ("adalink", "llama-7b", {}, 524_288, "half of the 1.05M of two modalities"),
    ("adalink", "opt-350m", {}, 65_536, "embeddings narrower than the network"),
    ("adalink", "t5-large", {}, 131_072, "the encoder alone"),
]


class TestCounts:
    @pytest.mark.parametrize(("method", "model", "settings", "published", "source"), EXACT)
    def test_attached_and_closed_form_meet_the_count(self, method, model, settings, published, source):
        counted = count(method, model, settings)
        assert counted["trained"] == counted["expected"]["trained"] == published, source
        assert counted["agrees"] and counted["added_at_inference"] == 0

    def test_ssf_as_it_is_printed(self):
        """V-PETL Bench prints 0.21M, the paper 0.28M with CIFAR's head."""
        counted = count("ssf", "vit-b16", {}, labels=100)
        assert f"{counted['trained'] / 1e6:.2f}" == "0.21"
        assert counted["head"] == 76_900 and f"{(counted['trained'] + counted['head']) / 1e6:.2f}" == "0.28"
