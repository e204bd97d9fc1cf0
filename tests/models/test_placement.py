"""A network spread over devices: planned by bytes, the same to the last bit, and everything where it belongs."""

import itertools

import pytest
import torch

from methods.adapter.houlsby import Houlsby
from methods.lowrank.lora import LoRA
from models.entries import model as model_entry
from models.load import load
from models.placement import plan, spread
from models.shape import SiteId
from tests.helpers import (
    EVERY,
    VISION,
    assert_cache_changes_nothing,
    attach,
    backbone,
    batch,
    copies,
    gradients,
    images,
    run,
    same,
    text,
    training,
)
from tests.places import branches, lora, prefixes, prompt
from workflow.train import task_loss

CPUS = ("cpu", "cpu", "cpu")
PAIR = ("cpu", "meta")  # a tensor on meta cannot come back, and none can meet one on the CPU
ONE_WAY = [name for name in EVERY if name != "tiny-t5"]  # its tied output layer is back on the first device


def spread_out(name, devices=CPUS, **more):
    on = backbone(name, **more)
    spread(on, devices)
    return on


class TestPlan:
    def test_equal_blocks_are_shared_out_equally(self):
        assert plan([1] * 6, (0, 0), [9, 9, 9]) == [0, 0, 1, 1, 2, 2]

    def test_embeddings_count_on_the_first_device_and_the_output_layer_on_the_last(self):
        assert plan([1] * 6, (2, 0), [9, 9]) == [0, 0, 1, 1, 1, 1]
        assert plan([1] * 6, (0, 4), [9, 9]) == [0, 0, 0, 0, 0, 1]

    def test_a_larger_device_gets_more(self):
        assert plan([1] * 6, (0, 0), [20, 10]) == [0, 0, 0, 0, 1, 1]

    def test_one_device_gets_everything(self):
        assert plan([1, 2, 3], (4, 5), [15]) == [0, 0, 0]

    def test_no_other_cut_leaves_the_fullest_device_emptier(self):
        rng = torch.Generator().manual_seed(0)
        for _ in range(20):
            blocks = torch.randint(1, 20, (7,), generator=rng).tolist()
            first, last, *capacities = torch.randint(1, 30, (5,), generator=rng).tolist()
            capacities = [90 + c for c in capacities]

            def fullest(places, blocks=blocks, ends=(first, last), capacities=capacities):
                used = [ends[0], 0, ends[1]]
                for place, size in zip(places, blocks, strict=True):
                    used[place] += size
                return max(u / c for u, c in zip(used, capacities, strict=True))

            contiguous = (p for p in itertools.product(range(3), repeat=7) if list(p) == sorted(p))
            found = plan(blocks, (first, last), capacities)
            assert found == sorted(found)
            assert fullest(found) == min(map(fullest, contiguous))

    def test_what_does_not_fit_is_an_error(self):
        assert plan([6, 6], (0, 0), [6, 6]) == [0, 1]
        with pytest.raises(MemoryError, match="do not fit into .* on 2 devices"):
            plan([7, 5], (0, 0), [6, 6])


@pytest.mark.parametrize("name", EVERY)
class TestSameNumbers:
    def test_outputs(self, name):
        assert torch.equal(run(spread_out(name), batch(name)), run(backbone(name), batch(name)))

    def test_gradients_with_and_without_checkpointing(self, name):
        whole, parted = backbone(name), spread_out(name)
        wanted = gradients(whole, batch(name), list(lora(whole).parts.parameters()))
        parameters = list(lora(parted).parts.parameters())
        assert all(map(torch.equal, wanted, gradients(parted, batch(name), parameters)))
        parted.gradient_checkpointing()
        assert all(map(torch.equal, wanted, gradients(parted, batch(name), parameters)))


@pytest.mark.parametrize("kind", [LoRA, Houlsby])
def test_a_training_ends_with_the_same_weights(kind):
    states = []
    for on in (backbone("tiny-bert"), spread_out("tiny-bert")):
        method = kind()
        context = training(on, method)
        attach(method, on, context)
        context.run()
        states.append(method.state_dict() | copies(on.head))
    assert same(*states)


def test_generation_with_a_cache():
    whole = backbone("tiny-llama", "generation")
    parted = spread_out("tiny-llama", task="generation")
    given = text("tiny-llama", "left")
    assert_cache_changes_nothing(parted, given)
    assert torch.equal(parted.generate(given, 5), whole.generate(given, 5))


class TestTwoDevices:
    """The CPU and the meta device: operations across the two raise, and nothing can come back."""

    @pytest.mark.parametrize("name", ONE_WAY)
    def test_tensors_follow_and_stay(self, name):
        on = backbone(name)
        first = next(iter(on.modules("block")))
        before = {k: p.data_ptr() for k, p in on.map_.modules[first].named_parameters()}
        spread(on, PAIR)
        for side in ("none",) if name in VISION else ("right", "left"):
            out = on.forward(batch(name, side))
            assert out.logits.device.type == "meta" and out.logits.shape[0] == 3
        assert {k: p.data_ptr() for k, p in on.map_.modules[first].named_parameters()} == before
        last = list(on.modules("block"))[-1]
        assert (on.device_of(first).type, on.device_of(last).type, on.device.type) == ("cpu", "meta", "cpu")

    @pytest.mark.parametrize("pooling", ["cls", "mean", "last", "pooler"])
    @pytest.mark.parametrize("side", ["right", "left"])
    def test_every_pooling_reads_the_mask_beside_it(self, pooling, side):
        on = spread_out("tiny-bert", PAIR, pooling=pooling)
        prompt(on)
        assert on.forward(text("tiny-bert", side)).logits.device.type == "meta"

    @pytest.mark.parametrize("name", ["tiny-bert", "tiny-llama", "tiny-vit"])
    def test_what_is_attached_is_made_where_its_site_is(self, name):
        on = spread_out(name, PAIR)
        method = LoRA.create({"rank": 2, "sites": ("attn.q", "mlp.down")})
        method.planned = method.plan(on.shape)
        method.attach(on, None)
        adapter = Houlsby()
        adapter.attach(on, None)
        prefixes(on), prompt(on)
        for site, module in method.maps().items():
            assert all(p.device.type == PAIR[site.layer] for p in module.parameters())
        for site in adapter.planned.sites:
            module = adapter.parts[str(site).replace(".", "/")]
            assert all(p.device.type == PAIR[site.layer] for p in module.parameters())
        given = images(name) if name in VISION else text(name)
        assert on.forward(given).logits.device.type == "meta"

    def test_prompts_are_left_out_of_the_mean_beside_it(self):
        on = spread_out("tiny-vit", PAIR, pooling="mean")
        prompt(on)
        assert on.forward(images("tiny-vit")).logits.device.type == "meta"

    def test_dropping_tokens_reads_the_mask_beside_it(self):
        on = spread_out("tiny-bert", PAIR)

        def keep(call):
            first = torch.zeros(3, 2, dtype=torch.long, device=call.hidden.device)
            out = call.proceed(keep=first, extra=call.hidden[:1, :2], extra_as="query")
            return call.hidden + out.mean(1, keepdim=True)

        for layer in range(2):
            on.around(SiteId("", layer, "block"), keep)
        assert on.forward(text("tiny-bert")).logits.device.type == "meta"

    def test_labels_meet_the_scores(self):
        on, given = spread_out("tiny-bert", PAIR), text("tiny-bert")
        assert task_loss(on.forward(given), given).device.type == "meta"

    def test_a_tied_output_layer_stays_with_its_table(self):
        tied = spread_out("tiny-gpt2", PAIR, task="generation").model
        assert tied.lm_head.weight is tied.transformer.wte.weight and tied.lm_head.weight.device.type == "cpu"
        untied = spread_out("tiny-llama", PAIR, task="generation").model
        assert untied.lm_head.weight.device.type == "meta" and untied.model.embed_tokens.weight.device.type == "cpu"


class TestLoading:
    def test_several_devices_spread_the_blocks(self):
        parted = load(model_entry("tiny-llama"), devices=PAIR)
        assert [parted.device_of(site).type for site in parted.modules("block")] == ["cpu", "meta"]

    @pytest.mark.parametrize("quantize", [None, "int8"])
    def test_the_numbers_are_those_of_one_device(self, quantize):
        entry = model_entry("tiny-llama")
        whole, cpus = load(entry, quantize=quantize), load(entry, devices=CPUS, quantize=quantize)
        assert torch.equal(run(cpus, text("tiny-llama")), run(whole, text("tiny-llama")))

    def test_one_device_changes_nothing(self):
        on = load(model_entry("tiny-llama"), devices=("cpu",))
        assert not any(module._forward_pre_hooks for module in on.model.modules())


def test_adapters_at_branches_work_on_spread_blocks():
    found = []
    for on in (spread_out("tiny-t5"), backbone("tiny-t5")):
        torch.manual_seed(0)
        branches(on)
        found.append(run(on, text("tiny-t5")))
    assert torch.equal(*found)
