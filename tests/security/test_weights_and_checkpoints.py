"""Weights are safetensors or GGUF and checkpoints are tensors: a pickle in their place is refused and never run."""

import json
import os
import pickle

import pytest
import torch
from safetensors.torch import save_file

from models.entries import ModelEntry, model
from models.load import load
from tests.helpers import attach, backbone, encoded, training
from workflow import registry


class Touch:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def pwned(tmp_path):
    return tmp_path / "pwned"


@pytest.fixture
def local(tmp_path):
    """A model entry of weights in a folder, which holds their configuration and nothing else yet."""
    folder = tmp_path / "weights"
    folder.mkdir()
    backbone("tiny-bert").model.config.save_pretrained(folder)
    tiny = model("tiny-bert")
    return ModelEntry(**vars(tiny) | {"name": "mine", "source": "local", "location": str(folder)}), folder


def test_the_weights_of_a_folder_are_loaded(local):
    entry, folder = local
    state = backbone("tiny-bert").model.state_dict()
    save_file(
        {name: tensor.contiguous() for name, tensor in state.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    loaded = load(entry).model.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt", "model.safetensors"])
def test_a_pickle_in_the_place_of_weights_is_refused(local, pwned, name):
    entry, folder = local
    (folder / name).write_bytes(pickle.dumps({"weight": Touch(pwned)}))
    with pytest.raises(Exception, match="(?i)safetensors|header|no file named"):
        load(entry)
    assert not pwned.exists()


def test_weights_may_be_indexed_only_to_safetensors(local, pwned):
    entry, folder = local
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": Touch(pwned)}))
    index = {"metadata": {}, "weight_map": {"weight": "pytorch_model.bin"}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(Exception, match="(?i)safetensors|header|no file named"):
        load(entry)
    assert not pwned.exists()


def test_code_beside_the_weights_is_not_run(local, pwned):
    entry, folder = local
    configuration = json.loads((folder / "config.json").read_text())
    configuration["auto_map"] = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
    (folder / "config.json").write_text(json.dumps(configuration))
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(pwned)!r})\nclass Config: pass\nclass Model: pass\n")
    state = backbone("tiny-bert").model.state_dict()
    save_file(
        {name: tensor.contiguous() for name, tensor in state.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    load(entry)
    assert not pwned.exists()


def test_a_pickle_in_the_place_of_a_checkpoint_is_dropped(tmp_path, pwned, capsys):
    checkpoint = tmp_path / "state" / "checkpoint.pt"
    checkpoint.parent.mkdir()
    torch.save({"format": 1, "step": Touch(pwned)}, checkpoint)
    plugin = registry.load_method(registry.methods()["lora"])
    on = backbone("tiny-bert")
    method = plugin.create({})
    context = training(on, method, encoded(), checkpoint=checkpoint)
    attach(method, on, context)
    context.run()
    assert "dropped a checkpoint that cannot be read" in capsys.readouterr().err
    assert not pwned.exists() and context.log.resumed == 0
