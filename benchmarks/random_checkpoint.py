"""Stream a random-weight checkpoint of a public variant, in its official layout, dtype and shards.

    python -m benchmarks.random_checkpoint --like cogvideox-5b OUT [--layers N] [--only transformer]

Memory holds one tensor at a time. Weights are drawn so that activations neither vanish nor explode: matrices with
variance 1 / fan-in (Glorot-like, LeCun 1998), norms near one, biases and modulations small.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from benchmarks.variants import VARIANTS, Variant
from reelquant.export.checkpoint import build_network
from reelquant.export.network import fake_mode

_DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
_SHARD = 5_000_000_000  # bytes; the published checkpoints' shards are about as large
_NETWORKS = {
    "transformer": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}
Shapes = Mapping[str, tuple[int, ...]]


def write_checkpoint(
    out: Path,
    variant: Variant,
    seed: int = 0,
    only: tuple[str, ...] = tuple(_NETWORKS),
    shard: int = _SHARD,
    sparse: bool = False,
) -> None:
    """Write ``variant`` to the new folder ``out``; ``only`` names the networks that get weights.

    With ``sparse``, weights are zeros that take no disk, for what looks at names and shapes alone.
    """
    configs = {"transformer": variant.transformer, "vae": variant.vae, "text_encoder": variant.text_encoder}
    for folder, config in configs.items():
        _write_json(out / folder / "config.json", config)
        if folder in only:
            _write_weights(
                out / folder, _NETWORKS[folder], _shapes(folder, config), variant.dtype, None if sparse else seed, shard
            )
    _write_json(out / "scheduler" / "scheduler_config.json", variant.scheduler)
    _write_tokenizer(out / "tokenizer", variant.text_encoder["vocab_size"])
    parts = {
        "scheduler": ["diffusers", variant.scheduler["_class_name"]],
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "T5Tokenizer"],
        "transformer": ["diffusers", "CogVideoXTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLCogVideoX"],
    }
    _write_json(out / "model_index.json", {"_class_name": variant.pipeline, "_diffusers_version": "0.32.0", **parts})


def draw(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float32]:
    """Seeded values for one weight, by what it is."""
    values: NDArray[np.float32] = rng.standard_normal(shape, dtype=np.float32)
    if len(shape) == 1:
        # Group and layer norms scale by about one; biases shift a little.
        near_one = name.endswith("weight")
        return values * np.float32(0.02) + np.float32(near_one)
    fan_in = math.prod(shape[1:])
    gain = 1.0
    if "norm" in name and "linear" in name:  # AdaLN: shift, scale and gate of each block
        gain = 0.3
    if name.endswith(("shared.weight", "embed_tokens.weight", "pos_embedding")):
        fan_in, gain = 1, 1.0 if "embedding" not in name else 0.1
    if "relative_attention_bias" in name:
        fan_in = 1
    if name.endswith((".q.weight", "SelfAttention.k.weight")):  # T5 does not scale its scores by the head's size
        gain = 0.3
    return values * np.float32(gain / math.sqrt(fan_in))


def _shapes(folder: str, config: Mapping[str, Any]) -> Shapes:
    with fake_mode():
        module = build_network(folder, config)
    shapes = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    shapes.pop("encoder.embed_tokens.weight", None)  # stored once, as shared.weight
    return shapes


def _write_weights(folder: Path, stem: str, shapes: Shapes, dtype: str, seed: int | None, limit: int) -> None:
    shards = list(_split(shapes, _DTYPES[dtype].itemsize, limit))
    places: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        many = len(shards) > 1
        file = f"{stem}-{number:05}-of-{len(shards):05}.safetensors" if many else f"{stem}.safetensors"
        places.update(dict.fromkeys(names, file))
        _write_shard(folder / file, {name: shapes[name] for name in names}, dtype, seed)
        print(f"{folder / file}: {len(names)} tensors", file=sys.stderr)
    if len(shards) > 1:
        total = sum(math.prod(shape) for shape in shapes.values()) * _DTYPES[dtype].itemsize
        _write_json(
            folder / f"{stem}.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": places}
        )


def _split(shapes: Shapes, itemsize: int, limit: int) -> Iterator[list[str]]:
    names: list[str] = []
    used = 0
    for name, shape in shapes.items():
        size = math.prod(shape) * itemsize
        if names and used + size > limit:
            yield names
            names, used = [], 0
        names.append(name)
        used += size
    yield names


def _write_shard(path: Path, shapes: Shapes, dtype: str, seed: int | None) -> None:
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + math.prod(shape) * _DTYPES[dtype].itemsize
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        if seed is None:
            file.truncate(8 + len(text) + end)
            return
        for name, shape in shapes.items():
            rng = np.random.default_rng([seed, *name.encode()])
            file.write(draw(name, shape, rng).astype(_DTYPES[dtype]).tobytes())


_ENGLISH = 500  # pieces
_SENTINELS = 100  # T5's <extra_id_…>, which transformers adds


def _write_tokenizer(folder: Path, vocabulary: int) -> None:
    """A real sentencepiece model, as the published checkpoints have it: a few hundred pieces of English, and as many that no
    prompt has as the text encoder's table has rows for.
    """
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    folder.mkdir(parents=True, exist_ok=True)
    text = (Path(__file__).parents[1] / "calib_data" / "general" / "prompts.txt").read_text("utf-8")
    with tempfile.TemporaryDirectory() as scratch:
        corpus = Path(scratch) / "corpus.txt"
        corpus.write_text(text.lower(), "utf-8")
        sentencepiece.SentencePieceTrainer.train(
            input=str(corpus),
            model_prefix=str(Path(scratch) / "spiece"),
            vocab_size=min(_ENGLISH, vocabulary - _SENTINELS),
            hard_vocab_limit=False,
            model_type="unigram",
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            minloglevel=2,
        )
        model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
        model.ParseFromString((Path(scratch) / "spiece.model").read_bytes())
    # Ordinary pieces: of user-defined symbols transformers makes added tokens, and tens of thousands of these take a minute.
    for number in range(vocabulary - _SENTINELS - len(model.pieces)):
        model.pieces.add(piece=f"<unused_{number}>", score=-100.0 - number)
    model.trainer_spec.vocab_size = len(model.pieces)
    (folder / "spiece.model").write_bytes(model.SerializeToString())
    _write_json(folder / "tokenizer_config.json", {"tokenizer_class": "T5Tokenizer", "extra_ids": _SENTINELS})


def _write_json(path: Path, fields: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="a folder that does not exist yet")
    parser.add_argument("--like", choices=VARIANTS, required=True)
    parser.add_argument("--layers", type=int, help="transformer blocks (default: the variant's)")
    parser.add_argument("--only", action="append", choices=_NETWORKS, help="write weights of this network alone")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.out.exists():
        parser.error(f"{arguments.out} exists")
    variant = VARIANTS[arguments.like]
    if arguments.layers:
        variant = variant.layers(arguments.layers)
    write_checkpoint(arguments.out, variant, arguments.seed, tuple(arguments.only or _NETWORKS))


if __name__ == "__main__":
    main()
