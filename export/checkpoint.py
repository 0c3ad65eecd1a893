"""A CogVideoX checkpoint in diffusers layout: found, checked, and loaded as fp32 modules."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import tokenizers
import torch

from reelquant.export.lora import Lora, merged
from reelquant.export.network import Network, fake_mode
from reelquant.export.weights import PICKLED, Finite, Weight, check_fit, check_whole, open_weights
from reelquant.runtime.bundle import hash_file
from reelquant.runtime.errors import BadInput, BundleError, MissingExtra
from reelquant.runtime.models.cogvideox.family import CogVideoX
from reelquant.runtime.models.cogvideox.geometry import Geometry
from reelquant.runtime.models.cogvideox.schedulers import scheduler_from_config
from reelquant.runtime.sizes import Size

_AGAIN = "download the checkpoint again"
_T5_TWINS = ("shared.weight", "encoder.embed_tokens.weight")
_CONVERT = "convert the checkpoint to safetensors: save_pretrained(..., safe_serialization=True)"
_FOLDERS = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")
_PIPELINES = {
    "CogVideoXPipeline": "t2v",
    "CogVideoXImageToVideoPipeline": "i2v",
    "CogVideoXVideoToVideoPipeline": "t2v",
}
_CLASSES = {
    "transformer": "CogVideoXTransformer3DModel",
    "vae": "AutoencoderKLCogVideoX",
    "text_encoder": "T5EncoderModel",
}
# What an export reads of the configs without asking whether it is there.
_NUMBERS = {
    "transformer": ("in_channels", "out_channels", "patch_size", "sample_frames", "sample_height", "sample_width",
                    "max_text_seq_length", "text_embed_dim", "attention_head_dim"),
    "vae": ("latent_channels", "temporal_compression_ratio", "scaling_factor"),
}  # fmt: skip
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w.-]+(/[\w.-]+)*)?")
# Latent height and width that the public checkpoints are trained at, by whether they take frames in pairs (1.5).
_TRAINED = {False: (60, 90), True: (96, 170)}


@dataclass(frozen=True)
class Checkpoint:
    """A local checkpoint folder and the name the user gave it; ``loras`` are added to its transformer's weights."""

    path: Path
    name: str
    loras: tuple[Lora, ...] = ()

    @classmethod
    def open(cls, source: str, loras: Sequence[str] = ()) -> Checkpoint:
        """Find a checkpoint: a folder, or a hub id (``owner/name``, with ``@revision`` if wanted).

        Each of ``loras`` is a file, or ``FILE:SCALE``.

        Raises:
            BundleError: not found, not CogVideoX, pickled weights, or code in it.
            BadInput: a LoRA cannot be read, or is not one of this transformer.
        """
        path = Path(source)
        if not path.is_dir():
            if path.exists() or not _HUB_ID.fullmatch(source):
                raise BundleError(
                    f"{source} is neither a checkpoint folder nor a hub id such as zai-org/CogVideoX-2b; check the name"
                )
            path = _download(source)
        checkpoint = cls(path, Path(os.path.abspath(source)).name if Path(source).is_dir() else source)
        checkpoint._check()
        if not loras:
            return checkpoint
        weights = {name: weight.shape for name, weight in open_weights(path / "transformer").items()}
        return replace(checkpoint, loras=tuple(Lora.open(each, weights) for each in loras))

    def config(self, folder: str) -> dict[str, Any]:
        """One component's config as a dict.

        Raises:
            BundleError: it is missing or not JSON.
        """
        if folder != "scheduler":
            return _read_json(self.path / folder / "config.json")
        config = _read_json(self.path / folder / "scheduler_config.json")
        named = _read_json(self.path / "model_index.json").get("scheduler")
        # What the pipeline takes, whatever class saved the settings.
        if isinstance(named, list) and named and isinstance(named[-1], str):
            config["_class_name"] = named[-1]
        return config

    @cached_property
    def task(self) -> str:
        """``t2v`` or ``i2v``, from the pipeline's class and the transformer's input channels."""
        pipeline = _read_json(self.path / "model_index.json").get("_class_name")
        task = _PIPELINES.get(str(pipeline))
        if task is None:
            raise BundleError(f"{self.path} is a {pipeline}; reelquant reads {', '.join(_PIPELINES)}")
        transformer = self.config("transformer")
        wanted = transformer["out_channels"] * (2 if task == "i2v" else 1)
        if transformer["in_channels"] != wanted:
            raise BundleError(
                f"{self.path}: a {pipeline} needs {wanted} in_channels, its transformer has {transformer['in_channels']}"
            )
        return task

    @cached_property
    def model(self) -> CogVideoX:
        """The model as the runtime sees it."""
        return CogVideoX.of_configs(self.config("transformer"), self.config("vae"), self.config("scheduler"))

    @property
    def geometry(self) -> Geometry:
        return self.model.geometry

    @property
    def text_tokens(self) -> int:
        """How many tokens of text the transformer reads, padding included."""
        return self.model.text_tokens

    @cached_property
    def stored_dtype(self) -> str:
        """In what most of the transformer's values are stored, as safetensors names it: F32, F16, BF16."""
        counts: Counter[str] = Counter()
        for stored in open_weights(self.path / "transformer").values():
            counts[stored.dtype] += stored.count
        return counts.most_common(1)[0][0]

    @cached_property
    def tokenizer(self) -> tokenizers.Tokenizer:
        """The tokenizer as transformers builds it, from the checkpoint's own file or its sentencepiece model.

        A checkpoint's ``tokenizer.json`` is not taken as it is: transformers changes a T5 tokenizer's rules while
        loading it, and the pipelines' token ids are those of the changed rules.

        Raises:
            BundleError: it cannot be read.
        """
        from transformers import AutoTokenizer

        try:
            loaded = AutoTokenizer.from_pretrained(self.path / "tokenizer", local_files_only=True)
            rules: tokenizers.Tokenizer = loaded.backend_tokenizer
        except Exception as error:  # transformers and its readers raise a dozen classes on damaged files
            why = " ".join(f"{type(error).__name__} {error}".split())[:300]
            raise BundleError(f"cannot read {self.path / 'tokenizer'}: {why}; {_AGAIN}") from error
        return rules

    def check_content(self) -> None:
        """What opening does not look at and an export or a clip would refuse later: the scheduler and the tokenizer.

        Raises:
            BundleError: the scheduler is none of ours, or the tokenizer is broken or not the text encoder's.
        """
        try:
            scheduler_from_config(self.config("scheduler"))
        except BundleError as error:
            raise BundleError(f"{self.path}/scheduler: {error}") from error
        vocabulary = int(self.config("text_encoder").get("vocab_size", 0))
        pieces = self.tokenizer.get_vocab()
        if max(pieces.values(), default=0) >= vocabulary:
            raise BundleError(
                f"{self.path / 'tokenizer'} has token {max(pieces.values())}, and the text encoder knows {vocabulary}: they are "
                f"not of one model; {_AGAIN}"
            )
        if len(pieces) * 64 < vocabulary or len(pieces) < 16:
            raise BundleError(
                f"{self.path / 'tokenizer'} has {len(pieces)} tokens, and the text encoder knows {vocabulary}: most of the "
                f"tokenizer is missing; {_AGAIN}"
            )
        if lacking := {"<pad>", "</s>", "<unk>"} - pieces.keys():
            raise BundleError(f"{self.path / 'tokenizer'} has no {min(lacking)} token, so it is not T5's; {_AGAIN}")

    @property
    def trained_size(self) -> Size:
        """What this checkpoint's family is trained at, or what the config says where that is smaller.

        Raises:
            BadInput: the config names a larger size, which is a bound of its positions and no size to render at.
        """
        said, cell = self.model.trained_size, self.geometry.spatial
        most = [side * cell for side in _TRAINED[self.geometry.patch_t > 1]]
        if said.height * said.width > most[0] * most[1]:
            raise BadInput(
                f"{self.path}/transformer/config.json has sample_height {said.height // cell} and sample_width "
                f"{said.width // cell}, so clips of {said.height}x{said.width}: more than such models are trained at; say "
                f"which size clips shall have by default, usually --size {Size(said.frames, *most)}"
            )
        return said

    def hashes(self) -> dict[str, str]:
        """sha256 of every file that an export reads, by relative name."""
        index = self.path / "model_index.json"
        found = {index.name: hash_file(index)}
        for folder in _FOLDERS:
            for file in sorted((self.path / folder).glob("*")):
                if file.suffix in (".json", ".safetensors", ".model"):
                    found[file.relative_to(self.path).as_posix()] = hash_file(file)
        return found

    @property
    def source(self) -> dict[str, Any]:
        """What a bundle's manifest says that it was made from."""
        return {"checkpoint": self.name, "files": self.hashes(), "loras": [lora.record for lora in self.loras]}

    def network(self, folder: str) -> Network:
        """One network by its named class, without weights: those are read from safetensors as they are needed.

        Raises:
            BundleError: the config is not the class's, or the weights do not fit it.
        """
        config, path = self.config(folder), self.path / folder
        stored = open_weights(path)
        mode = fake_mode()
        try:
            with _quiet_loading(), mode:
                module = build_network(folder, config)
        except (ValueError, TypeError, KeyError, ZeroDivisionError, RuntimeError) as error:
            why = " ".join(str(error).split()).rstrip(".")
            raise BundleError(f"{path}/config.json makes no {_CLASSES[folder]}: {why}; {_AGAIN}") from error
        wanted = {name: tuple(value.shape) for name, value in module.state_dict().items()}
        if folder == "text_encoder":  # one embedding under two names; a checkpoint stores either or both
            for name, twin in (_T5_TWINS, _T5_TWINS[::-1]):
                if name in stored and twin in wanted:
                    stored.setdefault(twin, stored[name])
        check_fit(path, stored, wanted)
        weights: dict[str, Weight] = {name: Finite(weight) for name, weight in stored.items()}
        return Network(module.eval(), mode, merged(weights, self.loras) if folder == "transformer" else weights)

    def _check(self) -> None:
        if not (self.path / "model_index.json").is_file():
            raise BundleError(
                f"{self.path} is not a diffusers checkpoint: it has no model_index.json; name the folder that has it"
            )
        for folder in _FOLDERS:
            if not (self.path / folder).is_dir():
                raise BundleError(f"{self.path} has no {folder}/; a CogVideoX checkpoint has {', '.join(_FOLDERS)}")
            self._check_files(self.path / folder)
        for folder, name in _CLASSES.items():
            config = self.config(folder)
            found = config.get("_class_name") or next(iter(config.get("architectures") or []), None)
            if found != name:
                raise BundleError(f"{self.path / folder} holds a {found}; reelquant exports {name}")
            if config.keys() & {"auto_map", "custom_pipeline", "trust_remote_code"}:
                raise BundleError(
                    f"{self.path / folder}/config.json asks for code of its own, which is never run; "
                    "use the checkpoint's plain diffusers version"
                )
        for folder, keys in _NUMBERS.items():
            config = self.config(folder)
            for key in keys:
                if type(config.get(key)) not in (int, float):
                    raise BundleError(f"{self.path / folder}/config.json has no number {key}; download it again")
        if not isinstance(self.config("vae").get("block_out_channels"), list):
            raise BundleError(f"{self.path}/vae/config.json has no list block_out_channels; download it again")
        _ = self.task

    def _check_files(self, folder: Path) -> None:
        files = [file.name for file in folder.iterdir()]
        for file in sorted(folder.iterdir()):
            if file.suffix in (".json", ".safetensors", ".model") and file.is_file():
                check_whole(file)
        if folder.name == "tokenizer" and not {"tokenizer.json", "spiece.model"}.intersection(files):
            raise BundleError(
                f"{folder} has neither tokenizer.json nor spiece.model, one of which holds the vocabulary; {_AGAIN}"
            )
        safe = any(name.endswith(".safetensors") for name in files)
        for name in files:
            if name.endswith(PICKLED) and not safe:
                raise BundleError(f"{folder / name} is a pickle, and loading a pickle can run any code; {_CONVERT}")
            if name.endswith(".py"):
                raise BundleError(f"{folder / name} is code, which is never run; remove it to go on")
        if folder.name in _CLASSES and not safe:
            raise BundleError(f"{folder} has no .safetensors weights, the only ones that are read; {_CONVERT}")


def build_network(folder: str, config: Mapping[str, Any]) -> torch.nn.Module:
    """The module that a component's config describes, with whatever weights the mode that it is called in gives."""
    import diffusers
    import transformers

    if folder == "text_encoder":
        return cast(torch.nn.Module, transformers.T5EncoderModel(transformers.T5Config(**config)))
    module: torch.nn.Module = getattr(diffusers, _CLASSES[folder]).from_config(config)
    return module


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise BundleError(f"cannot read {path}: {error}; download the checkpoint again") from error


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """Hold back the progress bars and reports of both libraries: what matters of them becomes an error."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    logs = (diffusers_logging, transformers_logging)
    before = [(log, log.get_verbosity(), log.is_progress_bar_enabled()) for log in logs]
    for log in logs:
        log.set_verbosity_error()
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log, verbosity, bars in before:
            log.set_verbosity(verbosity)
            if bars:
                log.enable_progress_bar()


def _download(source: str) -> Path:
    """Fetch the checkpoint's json, safetensors and tokenizer files from the hub (its cache serves later calls)."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise MissingExtra("huggingface_hub", "export") from error
    repository, _, revision = source.partition("@")
    patterns = ["*.json", "*.safetensors", "*.model"]
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=patterns))
    except Exception as error:  # network, authentication and hub errors share no base
        why = " ".join(str(error).split()).rstrip(".")
        raise BundleError(
            f"{source} is no folder here, and fetching it from the hub failed: {why}; "
            "check the name, the network and your access"
        ) from error
