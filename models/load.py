"""Build a backbone: with its pretrained weights, with random ones, or on the meta device for counting."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from models import gguf, quantise
from models.architectures import ARCHITECTURES
from models.backbone import Backbone, Unsupported
from models.entries import ModelEntry
from models.head import Head
from models.placement import spread
from models.sites import SiteMap
from models.words import HashTokenizer
from workflow.errors import AtlasError

Weights = Literal["pretrained", "random", "meta"]


def folder(entry: ModelEntry) -> Path | str:
    """Where the weights are: a local folder, or the hub id. A missing package or folder is one clear error.

    A GGUF file is converted once, and the folder with the converted weights is in the cache.
    """
    if entry.source == "package":
        files = packaged(entry)
        return gguf.converted(files, Path(entry.location).stem) if entry.location.endswith(".gguf") else files[0]
    if entry.source == "none":
        raise AtlasError(
            f"'{entry.name}' is here for its sizes: it has no weights",
            file=entry.file,
            key=f"sizes.{entry.name}.source",
            mend="choose another model; this one can be counted (`python -m workflow count`) and its costs measured",
        )
    if entry.source in ("local", "project"):
        path = Path(__file__).parent / entry.location if entry.source == "project" else Path(entry.location)
        if not path.is_dir():
            raise AtlasError(
                f"no folder with the weights of '{entry.name}'", file=path, mend="set `location` in models/"
            )
        _refuse_pickles(path)
        return path
    return entry.location


def _refuse_pickles(folder: Path) -> None:
    """An index of weights may name any file, and transformers would read one that is no safetensors as a pickle."""
    for index in folder.glob("*.safetensors.index.json"):
        try:
            parts = json.loads(index.read_text())["weight_map"].values()
        except (ValueError, KeyError, AttributeError) as problem:
            raise AtlasError("this is no index of weights", file=index, mend="copy the weights again") from problem
        if other := next((part for part in parts if not str(part).endswith(".safetensors")), None):
            mend = "convert the weights to safetensors"
            raise AtlasError(f"'{other}' is no safetensors file", file=index, key="weight_map", mend=mend)


def packaged(entry: ModelEntry) -> tuple[Path, ...]:
    """The folder or the file inside the package; the pieces of the file, in order, where several packages hold it."""
    return tuple(_installed(entry, place) for place in entry.parts or (entry.location,))


def _installed(entry: ModelEntry, place: str) -> Path:
    package, _, inside = place.partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None:
        pip = entry.location.partition("/")[0].replace("_", "-")
        raise AtlasError(f"model '{entry.name}' needs the package {pip}", mend=f"pip install {pip}=={entry.revision}")
    return Path(spec.origin).parent / inside


def configuration(entry: ModelEntry):
    """The transformers configuration of an entry, from the YAML alone."""
    from transformers import AutoConfig

    return AutoConfig.for_model(entry.architecture, **entry.config)


def load(
    entry: ModelEntry,
    task: str = "classification",
    labels: int = 2,
    weights: Weights = "pretrained",
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    seed: int = 0,
    quantize: str | None = None,
    devices: Sequence[str | torch.device] = (),
) -> Backbone:
    """The backbone of a model entry for a kind of task (`classification`, `regression`, `generation`).

    With `weights="random"` (and for `source: random`) the weights come from `seed`; with "meta" there are none.
    quantize: how the linear maps inside the blocks are stored (`models.quantise.SCHEMES`), packed after loading.
    devices: in the place of `device`, where the blocks are spread over several (`models.placement`).
    """
    if quantize:
        quantise.check(quantize)
    architecture = ARCHITECTURES[entry.architecture]
    generation = task == "generation"
    if generation and architecture.kind not in ("decoder", "encoder_decoder"):
        raise AtlasError(
            f"model '{entry.name}' cannot generate: it is of kind {architecture.kind}", mend="use a decoder"
        )
    dtype = dtype or getattr(torch, entry.dtype)
    pooling = entry.pooling or architecture.pooling
    options = {} if generation else dict(architecture.options)
    if entry.architecture == "bert" and pooling != "pooler":
        options["add_pooling_layer"] = False
    if entry.source == "random" and weights == "pretrained":
        weights = "random"
    auto = _auto(architecture, generation)
    if weights == "pretrained":
        model = _pretrained(entry, auto, options | _attention(architecture), dtype)
        tokenizer = _tokenizer(entry, architecture.kind)
    else:
        options |= _attention(architecture)
        model = _from_configuration(configuration(entry), auto, options, dtype, weights, seed)
        tokenizer = None if architecture.kind == "vision" else HashTokenizer(model.config.vocab_size)
    head = None if generation else new_head(entry, model.config, task, labels, seed, meta=weights == "meta")
    backbone = Backbone(model, head, tokenizer, entry.name)
    if weights == "meta":
        return backbone
    devices = devices or (device,)
    if quantize:
        pack(backbone, quantize, torch.device(devices[0]))
    if len(devices) > 1:
        spread(backbone, devices)
        return backbone
    return backbone.to(torch.device(devices[0]))


def new_head(entry: ModelEntry, config, task: str, labels: int, seed: int, meta: bool = False) -> Head:
    """The head of a network for classes or for one score, with values from `seed`, on the CPU."""
    architecture = ARCHITECTURES[entry.architecture]
    with torch.device("meta" if meta else "cpu"):
        head = Head(
            _width(config),
            1 if task == "regression" else labels,
            entry.pooling or architecture.pooling,
            architecture.head == "dense",
            architecture.head_bias,
            _dropout(config),
        )
    if not meta:
        head.initialise(torch.Generator().manual_seed(seed))
    return head


def pack(backbone: Backbone, scheme: str, device: torch.device) -> None:
    """Pack the linear sites inside the blocks, block by block. `backbone.shape` stays that of the plain network."""
    modules = {site.module for site in backbone.map_.linears.values()}
    for block in backbone.modules("block").values():
        linears = [module for module in block.modules() if module in modules]
        for module in linears:
            if not isinstance(module, torch.nn.Linear):
                name, architecture = type(module).__name__, backbone.shape.architecture
                raise Unsupported(f"the linear maps of {architecture} are {name}, stored transposed: not quantised")
        quantise.quantise(block, linears, scheme, device)
    backbone.map_ = SiteMap(backbone.model, backbone.architecture)


def _auto(architecture, generation: bool):
    import transformers

    if architecture.kind == "encoder_decoder":
        return transformers.AutoModelForSeq2SeqLM
    return transformers.AutoModelForCausalLM if generation else transformers.AutoModel


def _attention(architecture) -> dict[str, str]:
    """The project's attention, or the library's own where that one would be given a mask it does not understand."""
    from models.attention import NAME

    return {"attn_implementation": NAME if architecture.dispatches else "eager"}


def _pretrained(entry: ModelEntry, auto, options: dict, dtype: torch.dtype):
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    options |= {"dtype": dtype, "use_safetensors": True}
    return _from_pretrained(entry, "weights", auto, options)


def _from_pretrained(entry: ModelEntry, what: str, auto, options: dict):
    where = folder(entry)
    revision = {"revision": entry.revision} if entry.source == "hub" else {}
    try:
        return auto.from_pretrained(where, trust_remote_code=False, **revision, **options)
    except OSError as problem:
        fetch = "run `snakemake fetch --config grid=FILE` where there is a network"
        hint = fetch if entry.source == "hub" else "reinstall the package"
        first = str(problem).splitlines()[0]
        raise AtlasError(f"{what} of '{entry.name}' cannot be loaded: {first}", file=where, mend=hint) from problem


def _from_configuration(config, auto, options: dict, dtype: torch.dtype, weights: Weights, seed: int):
    if weights == "meta":
        from transformers.initialization import no_init_weights

        with no_init_weights(), torch.device("meta"):  # drawing nothing takes half of the time
            model = auto.from_config(config, dtype=dtype, **options)
        model.tie_weights()
        return _untied(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _untied(auto.from_config(config, dtype=dtype, **options))


def _untied(model):
    """T5 v1.1 has an output layer of its own, but transformers ties it unless it is in a checkpoint."""
    if getattr(model.config, "scale_decoder_outputs", True) is False:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    return model


def _tokenizer(entry: ModelEntry, kind: str):
    if kind == "vision":
        return None
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers import AutoTokenizer

    return _from_pretrained(entry, "the tokenizer", AutoTokenizer, {})


def _width(config) -> int:
    if config.model_type == "swin":
        return config.embed_dim * 2 ** (len(config.depths) - 1)
    return getattr(config, "word_embed_proj_dim", config.hidden_size)  # OPT-350m ends in the width of its embeddings


def _dropout(config) -> float:
    value = getattr(config, "classifier_dropout", None)
    return value if value is not None else getattr(config, "hidden_dropout_prob", 0.0)


def fingerprint(entry: ModelEntry) -> str:
    """sha256 over the weight files of a local source; for the hub the commit; for random ones the config."""
    if entry.source == "hub":
        return _commit(entry)
    if entry.source == "random":
        return hashlib.sha256(entry.identity.encode()).hexdigest()[:16]
    if entry.location.endswith(".gguf"):
        return gguf.sha256(packaged(entry))[:16]
    digest = hashlib.sha256()
    for path in sorted(folder(entry).glob("*.safetensors")):
        with path.open("rb") as file:
            while chunk := file.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()[:16]


def _commit(entry: ModelEntry) -> str:
    """The commit that the hub's cache holds for a revision; the revision itself where the cache does not know."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(entry.location, "config.json", revision=entry.revision)
    return Path(found).parent.name if isinstance(found, str) else entry.revision
