"""Sparse and coarse adapters: SparseAdapter, MoSA and Bi-AdaptFormer, each against what it says it saves."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from methods.adapter.bi_adapter import BiAdapter, QLinear, codes_of
from methods.adapter.houlsby import Houlsby
from methods.adapter.mosa import MoSA, Up
from methods.adapter.sparse_adapter import SparseAdapter
from methods.base.masked import entries
from models.backbone import Unsupported
from tests.helpers import attach, backbone, batch, close, differ, run, same, trained, training
from workflow import toy
from workflow.count import attached, count
from workflow.train import task_loss

PLAIN = {"size": 8, "train_norms": False, "std": 0.1}


def random(*size, seed=0):
    return torch.empty(size, dtype=torch.float64).normal_(generator=torch.Generator().manual_seed(seed))


def sparse(**settings):
    return SparseAdapter.create({"base_settings": PLAIN, "examples": 8} | settings)


def dense(method):
    """Every matrix as it is used."""
    return {name: getattr(*place).detach().clone() for name, place in method.matrices.items()}


class TestSparseAdapter:
    def test_nothing_pruned_is_the_base(self):
        found = [trained(method, lr=0.01, weight_decay=0.1) for method in (sparse(q=0.0), Houlsby.create(PLAIN))]
        outputs = [run(context.backbone, batch("tiny-bert")) for context in found]
        assert torch.equal(*outputs)

    def test_what_is_left_keeps_its_start_and_the_rest_is_zero(self):
        (method, base), on = (sparse(), Houlsby.create(PLAIN)), [backbone("tiny-bert") for _ in range(2)]
        for m, o in zip((method, base), on, strict=True):
            attach(m, o)
        starts, N = dict(base.parts.named_parameters()), 4 * 2 * 8 * 32
        kept = {name: matrix != 0 for name, matrix in dense(method).items()}
        assert sum(int(mask.sum()) for mask in kept.values()) == N - math.ceil(0.4 * N)
        assert all(torch.equal(matrix, starts[name] * kept[name]) for name, matrix in dense(method).items())

    def test_snip_ranks_by_the_gradient_of_the_loss(self):
        """|w dL/dw| by a plain backward pass of Houlsby's adapters over the same two batches, ranked over all."""
        method, base = sparse(), Houlsby.create(PLAIN)
        attach(method, backbone("tiny-bert"))
        on = backbone("tiny-bert")
        context = attach(base, on)
        base.parts.train(False)
        for given in context.batches(n=2):
            task_loss(on.forward(given), given).backward()
        scores = {n: (p * p.grad).abs().detach() for n, p in base.parts.named_parameters() if p.dim() == 2}
        limit = torch.cat([s.flatten() for s in scores.values()]).sort().values[math.ceil(0.4 * 2048) - 1]
        assert all(torch.equal(matrix != 0, scores[name] > limit) for name, matrix in dense(method).items())

    def test_training_is_that_of_masked_matrices(self):
        """Houlsby's adapters, with masks on weights and gradients: the same after steps with weight decay."""
        method = sparse()
        attach(method, backbone("tiny-bert"))
        masks = {name: (matrix != 0).float() for name, matrix in dense(method).items()}

        class Masked(Houlsby):
            def initialise(self, on, ctx):
                super().initialise(on, ctx)
                for name, parameter in self.parts.named_parameters():
                    parameter.data *= masks.get(name, 1.0)

            def on_gradients(self, step, ctx):
                for name, parameter in self.parts.named_parameters():
                    parameter.grad *= masks.get(name, 1.0)

        recipe = {"lr": 0.01, "weight_decay": 0.5, "max_steps": 5}
        ours, theirs = trained(sparse(), **recipe).method, trained(Masked.create(PLAIN), **recipe).method
        expected = dict(theirs.parts.named_parameters())
        assert all(close(matrix, expected[name], 1e-6) for name, matrix in dense(ours).items())
        assert any(differ(matrix, dense(method)[name]) for name, matrix in dense(ours).items())
        assert all((matrix[masks[name] == 0] == 0).all() for name, matrix in dense(ours).items())

    @pytest.mark.parametrize("pruner", ["mag", "rand", "snip"])
    def test_a_stored_mask_comes_back(self, pruner):
        context = trained(sparse(pruner=pruner))
        on, fresh = backbone("tiny-bert"), sparse(pruner="rand")
        attach(fresh, on, training(on, fresh, seed=7))
        assert any(differ(matrix, dense(context.method)[name]) for name, matrix in dense(fresh).items())
        on.head.load_state_dict(context.backbone.head.state_dict())
        fresh.load_state_dict(context.method.state_dict())
        assert torch.equal(run(on, batch("tiny-bert")), run(context.backbone, batch("tiny-bert")))

    def test_a_resumed_run_gets_its_mask_and_its_values(self):
        context, on, fresh = trained(sparse()), backbone("tiny-bert"), sparse(pruner="rand")
        again = attach(fresh, on)
        fresh.load_training_state(context.method.training_state())
        again.load_weights(context.weights())
        assert torch.equal(run(on, batch("tiny-bert")), run(context.backbone, batch("tiny-bert")))

    def test_magnitude_keeps_the_largest(self):
        method = sparse(pruner="mag", q=0.5)
        attach(method, backbone("tiny-bert"))
        base = Houlsby.create(PLAIN)
        attach(base, backbone("tiny-bert"))
        starts = torch.cat([p.detach().abs().flatten() for p in base.parts.parameters() if p.dim() == 2])
        left = torch.cat([matrix.abs().flatten() for matrix in dense(method).values()])
        assert left[left > 0].min() >= starts.sort().values[len(starts) // 2]

    def test_around_lora_it_merges(self):
        context = trained(SparseAdapter.create({"base": "lora", "pruner": "rand"}), lr=0.05)
        expected = run(context.backbone, batch("tiny-bert"))
        context.method.merge()
        context.backbone.switch.on = False
        assert close(run(context.backbone, batch("tiny-bert")), expected)

    def test_scores_that_are_all_zero_are_refused(self):
        with pytest.raises(Unsupported, match="snip scores of lora are zero: choose pruner rand"):
            attach(SparseAdapter.create({"base": "lora"}), backbone("tiny-bert"))

    def test_an_unknown_pruner_is_an_error(self):
        with pytest.raises(ValueError, match="no pruner 'grasp'"):
            attach(sparse(pruner="grasp"), backbone("tiny-bert"))

    def test_a_base_without_matrices_of_its_own_is_refused(self):
        shape = backbone("tiny-bert").shape
        assert "no matrices" in SparseAdapter.create({"base": "bitfit"}).supports(shape, None)
        assert "no matrices" in SparseAdapter.create({"base": "vera"}).supports(shape, None)

    def test_counts(self):
        """RoBERTa-base, two adapters of 64 a block, q = 0.4; biases are not pruned. Masks take a bit an entry."""
        settings = {"base_settings": {"train_norms": False}}
        counted, N = count("sparse_adapter", "roberta-base", settings), 24 * 2 * 64 * 768
        assert counted["trained"] == counted["added_at_inference"] == 1_415_577 + 19_968
        assert counted["stored"] == 1_415_577 + 19_968 + N // 8 and counted["agrees"]

    def test_large_sparse(self):
        """A bottleneck twice as large, half of it pruned, has as many kept entries."""
        large = {"q": 0.5, "base_settings": {"size": 128, "train_norms": False}}
        biases = 24 * (128 + 768)
        assert count("sparse_adapter", "roberta-base", large)["trained"] - biases == 24 * 2 * 64 * 768


class Copies(nn.Module):
    """The authors' form of the up-projection: whole copies, each with a mask for its gradient."""

    def __init__(self, up):
        super().__init__()
        self.copies = nn.ModuleList(nn.Linear(*up.weight.shape[::-1]).double() for _ in up.biases)
        self.masks = [(up.owner == i).double() for i in range(len(up.biases))]
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def merged(self):
        weights, biases = zip(*((copy.weight, copy.bias) for copy in self.copies), strict=True)
        return sum(weights) / len(weights), sum(biases) / len(biases)


class TestMoSA:
    def up(self, n=4):
        made = Up(6, 10, n).double()
        with torch.no_grad():
            made.initialise(torch.Generator().manual_seed(0))
        return made

    @pytest.mark.parametrize("n", [1, 3, 4, 7])
    def test_every_entry_has_one_owner(self, n):
        owner = self.up(n).owner
        sizes = [int((owner == i).sum()) for i in range(n)]
        assert sum(sizes) == 60 and max(sizes) - min(sizes) <= 1

    def test_one_matrix_seen_through_masks_trains_like_whole_copies_with_masked_gradients(self):
        ours = self.up()
        theirs, x, target = Copies(ours), random(4, 6), random(4, 10, seed=1)
        optimizers = [torch.optim.Adam(module.parameters(), 0.05) for module in (ours, theirs)]
        for parameter in (*ours.parameters(), *theirs.parameters()):
            parameter.grad = torch.zeros_like(parameter)  # zeros and not None: momentum moves what does not run too
        for step in range(6):
            i, j = step % 4, (step * 3 + 1) % 4
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=False)
            ours.runs = (i, j)
            (ours(torch.cat([x, x])) - torch.cat([target, target])).square().sum().backward()
            sum((theirs.copies[k](x) - target).square().sum() for k in (i, j)).backward()
            for copy, mask in zip(theirs.copies, theirs.masks, strict=True):
                copy.weight.grad *= mask
            for optimizer in optimizers:
                optimizer.step()
        for mine, expected in zip(ours.merged(), theirs.merged(), strict=True):
            assert close(mine, expected, 1e-12) and expected.abs().max() > 0.01
        assert all(close(ours.module(k)[0], theirs.copies[k].weight, 1e-12) for k in range(4))
        assert close(ours.eval()(x), F.linear(x, *theirs.merged()), 1e-12)

    def test_entries_of_other_modules_stay_zero_and_merging_divides(self):
        method = trained(MoSA(), lr=0.05).method
        for module in method.parts.values():
            pieces = [module.up.module(i)[0] for i in range(4)]
            assert all((piece[module.up.owner != i] == 0).all() for i, piece in enumerate(pieces))
            assert close(4 * module.up.merged()[0], sum(pieces), 1e-6) and sum(pieces).abs().max() > 0

    def test_the_adapter_is_beside_the_feed_forward_and_reads_the_residual_stream(self):
        method = MoSA.create({"scale": 0.3})
        on = backbone("tiny-vit")
        attach(method, on)
        method.parts.train(False)
        module = next(iter(method.parts.values()))
        x, y, residual = (random(2, 5, 32, seed=k).float() for k in range(3))
        with torch.no_grad():
            module.up.weight.normal_(generator=torch.Generator().manual_seed(0))
        normed = (residual - residual.mean(-1, keepdim=True)) / (residual.var(-1, False, keepdim=True) + 1e-6).sqrt()
        hidden = F.gelu(normed @ module.down.weight.T)
        assert close(method.combine(module, x, y, residual), y + 0.3 * hidden @ module.up.weight.T / 4, 1e-4)

    def test_one_module_without_dropout_has_no_divergence(self):
        method, on, given = MoSA.create({"modules": 1, "dropout": 0.0}), backbone("tiny-vit"), batch("tiny-vit")
        context = attach(method, on)
        method.parts.train(True)
        assert close(context.loss(context.forward(given), given), task_loss(on.forward(given), given), 1e-6)

    def test_the_loss_is_that_of_two_passes(self):
        """Two passes after one another, each with its modules; targets of the divergences do not learn."""
        method, on, given = MoSA.create({"dropout": 0.0, "consistency": 0.7}), backbone("tiny-vit"), batch("tiny-vit")
        context = attach(method, on)
        for k, module in enumerate(method.parts.values()):
            with torch.no_grad():
                module.up.weight.normal_(generator=torch.Generator().manual_seed(k))
            module.up.runs = (k % 4, k + 1)
        method.parts.train(True)
        found = context.loss(context.forward(given), given)
        gradients = torch.autograd.grad(found, method.trained(), allow_unused=True)
        runs, logits = [module.up.runs for module in method.parts.values()], []
        for turn in (0, 1):
            for module, pair in zip(method.parts.values(), runs, strict=True):
                module.up.runs = (pair[turn],) * 2
            logits.append(on.forward(batch_of_twice(given)).logits[: len(given)])
        p, q = (out.softmax(-1) for out in logits)
        kl = (q.detach() * (q.detach() / p).log()).sum() + (p.detach() * (p.detach() / q).log()).sum()
        expected = F.cross_entropy(logits[0], given.labels) + 0.7 * kl / len(given) / 2
        assert close(found, expected, 1e-5)
        again = torch.autograd.grad(expected, method.trained(), allow_unused=True)
        for one, two in zip(gradients, again, strict=True):
            assert close(one, two, 1e-4)

    def test_a_regression_is_refused(self):
        shape, task = backbone("tiny-bert").shape, toy.task("tiny-bert")
        assert MoSA().supports(shape, task) is None
        assert "regression" in MoSA().supports(shape, replace(task, kind="regression"))

    def test_what_is_stored_is_the_adapter(self):
        context = trained(MoSA(), lr=0.05)
        on, fresh = backbone("tiny-bert"), MoSA()
        attach(fresh, on)
        on.head.load_state_dict(context.backbone.head.state_dict())
        fresh.load_state_dict(context.method.state_dict())
        fresh.parts.train(False)
        assert close(run(on, batch("tiny-bert")), run(context.backbone, batch("tiny-bert")), 1e-5)

    @pytest.mark.parametrize(("size", "stored"), [(64, 1_208_064), (16, 322_752)])
    def test_counts(self, size, stored):
        counted = count("mosa", "vit-b16", {"size": size})
        assert counted["stored"] == counted["added_at_inference"] == counted["expected"]["added"] == stored
        assert counted["trained"] == stored + 3 * 12 * 768 and counted["agrees"]


def batch_of_twice(given):
    inputs = {name: torch.cat([values, values]) for name, values in given.inputs.items()}
    return replace(given, inputs=inputs, labels=torch.cat([given.labels, given.labels]))


class TestBiAdapter:
    def layer(self, bits, inp=7, out=9):
        made = QLinear(inp, out, bits).double()
        made.codes = codes_of(bits)
        with torch.no_grad():
            made.weight.copy_(random(out, inp, seed=bits) + 0.3)
        return made

    def test_the_codes_are_medians_of_their_cells(self):
        assert close(codes_of(1), torch.tensor([-0.67449, 0.67449]).double(), 1e-5)
        assert close(codes_of(2), torch.tensor([-1.26572, -0.37775, 0.37775, 1.26572]).double(), 1e-5)
        codes = codes_of(3)
        assert len(codes) == 8 and close(codes, -codes.flip(0), 1e-12)

    def test_one_bit_has_two_values(self):
        layer = self.layer(1)
        W = layer(torch.eye(7, dtype=torch.float64)).T
        mean, std = layer.weight.mean(), layer.weight.std()
        two = torch.stack([mean - 0.6744898 * std, mean + 0.6744898 * std])
        assert close(W.unique().round(decimals=9).unique(), two, 1e-6)
        assert torch.equal(mean < W, layer.weight >= mean)

    @pytest.mark.parametrize("bits", [1, 2, 4])
    def test_each_entry_takes_the_nearest_code(self, bits):
        layer, W = self.layer(bits), self.layer(bits)(torch.eye(7, dtype=torch.float64)).T
        mean, std, codes = layer.weight.mean().item(), layer.weight.std().item(), codes_of(bits).tolist()
        for place, w in enumerate(layer.weight.flatten().tolist()):
            z = (w - mean) / (std + 1e-5)
            nearest = min(codes, key=lambda code: abs(code - z))
            assert W.flatten()[place].item() == pytest.approx(nearest * std + mean, abs=1e-9)

    @pytest.mark.parametrize("bits", [1, 2])
    def test_the_gradient_goes_straight_through_and_through_the_statistics(self, bits):
        """dL/dw = g + <g, q - z> z / (n - 1), up to the 1e-5 beside the deviation."""
        layer, x, g_out = self.layer(bits), random(4, 7), random(4, 9, seed=5)
        layer(x).backward(g_out)
        g, W = g_out.T @ x, layer.weight.detach()
        z = (W - W.mean()) / W.std()
        q = codes_of(bits)[(z[..., None] - codes_of(bits)).abs().argmin(-1)]
        expected = g + (g * (q - z)).sum() * z / (W.numel() - 1)
        assert close(layer.weight.grad, expected, 1e-3 * expected.abs().max())

    @pytest.mark.parametrize("bits", [1, 2, 4, 8])
    def test_packing(self, bits):
        layer, fresh, x = self.layer(bits), self.layer(bits), random(4, 7)
        packed, statistics = layer.pack()
        assert packed.dtype == torch.uint8 and len(packed) == math.ceil(63 * bits / 8) and len(statistics) == 2
        nn.init.zeros_(fresh.weight)
        fresh.unpack(packed, statistics)
        assert close(fresh(x), layer(x), 1e-9)
        assert all(torch.equal(a, b) for a, b in zip(fresh.pack(), (packed, statistics), strict=True))

    def test_the_first_code_of_a_byte_is_in_its_lowest_bits(self):
        layer = self.layer(2, inp=4, out=1)
        layer.stored = (torch.tensor([[3, 0, 2, 1]]), torch.zeros(()), torch.ones(()))
        assert layer.pack()[0].tolist() == [3 + 2 * 16 + 1 * 64]

    def test_the_adapter_is_beside_the_feed_forward_and_reads_the_residual_stream(self):
        method, on = BiAdapter.create({"scale": 0.1}), backbone("tiny-vit")
        attach(method, on)
        method.parts.train(False)
        module = next(iter(method.parts.values()))
        x, y, residual = (random(2, 5, 32, seed=k).float() for k in range(3))
        W = [layer(torch.eye(layer.weight.shape[1])).T for layer in (module.down, module.up)]
        expected = y + 0.1 * torch.einsum("ds,bls->bld", W[1], (residual @ W[0].T).clamp_min(0))
        assert close(method.combine(module, x, y, residual), expected)

    @pytest.mark.parametrize(("size", "bytes_"), [(32, 73_920), (1, 2_496)])
    def test_bytes(self, size, bytes_):
        """72.2 KB and 2.4 KB on ViT-B: with the heads the published 212.9 KB (and, with heads of one bit, 6.8 KB)."""
        _, method = attached("bi_adapter", "vit-b16", {"size": size})
        assert sum(t.numel() * t.element_size() for t in method.state_dict().values()) == bytes_
        assert count("bi_adapter", "vit-b16", {"size": size})["trained"] == 12 * 2 * 768 * size

    def test_what_is_loaded_computes_the_same_and_is_stored_the_same(self):
        context = trained(BiAdapter(), lr=0.01)
        on, fresh = backbone("tiny-bert"), BiAdapter()
        attach(fresh, on)
        fresh.parts.train(False)
        on.head.load_state_dict(context.backbone.head.state_dict())
        state = context.method.state_dict()
        fresh.load_state_dict(state)
        assert close(run(on, batch("tiny-bert")), run(context.backbone, batch("tiny-bert")), 1e-5)
        assert same(fresh.state_dict(), state)
        with pytest.raises(KeyError, match="0/mlp.down.codes"):
            fresh.load_state_dict({k: v for k, v in state.items() if k != "0/mlp.down.codes"})

    def test_bits_that_do_not_fill_a_byte_are_refused(self):
        assert "3 bits" in BiAdapter.create({"bits": 3}).supports(backbone("tiny-bert").shape, None)


def test_a_mask_is_packed_a_bit_an_entry():
    method = sparse(pruner="rand")
    attach(method, backbone("tiny-bert"))
    for name, place in method.matrices.items():
        kept = entries(*place)
        bits = [(int(byte) >> k) & 1 for byte in kept.packed() for k in range(8)]
        assert bits[: kept.shape.numel()] == (getattr(*place) != 0).int().flatten().tolist(), name
