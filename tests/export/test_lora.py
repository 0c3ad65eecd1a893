"""LoRA files: every form of names, what each adds to a weight, and what is refused before any work."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from reelquant.export.checkpoint import Checkpoint
from reelquant.export.lora import Lora
from reelquant.export.weights import Stored, open_weights
from reelquant.runtime.errors import BadInput, BundleError
from tests.command_line import refused
from tests.conftest import CHECKPOINTS
from tests.lora_files import FORMS, Pairs, added, random_pairs, write_lora

T2V = str(CHECKPOINTS / "t2v")
# A linear of every kind that the transformer has, and the patch embedding, a convolution.
MODULES = (
    "transformer_blocks.0.attn1.to_q",
    "transformer_blocks.0.attn1.to_out.0",
    "transformer_blocks.5.ff.net.0.proj",
    "transformer_blocks.5.ff.net.2",
    "transformer_blocks.2.norm1.linear",
    "norm_out.linear",
    "proj_out",
    "time_embedding.linear_1",
    "patch_embed.text_proj",
    "patch_embed.proj",
)
RANK = 3
Q = MODULES[0]


@pytest.fixture(scope="module")
def stored() -> dict[str, Stored]:
    return open_weights(CHECKPOINTS / "t2v" / "transformer")


@pytest.fixture(scope="module")
def pairs(stored: dict[str, Stored]) -> Pairs:
    return random_pairs({name: weight.shape for name, weight in stored.items()}, MODULES, RANK)


def merged(*loras: str) -> Any:
    """The weights of the demo's transformer with LoRA in them."""
    return Checkpoint.open(T2V, loras).network("transformer").weights


def check(weights: Any, stored: dict[str, Stored], sums: dict[str, Any]) -> None:
    """Every weight is as stored, plus what ``sums`` say."""
    for name, weight in stored.items():
        wanted = weight.read() + sums.get(name.removesuffix(".weight"), np.float32(0))
        assert weights[name].shape == wanted.shape
        np.testing.assert_allclose(weights[name].read(), wanted, rtol=0, atol=2e-6)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read(form: str, stored: dict[str, Stored], pairs: Pairs, tmp_path: Path) -> None:
    file = write_lora(tmp_path / "some.safetensors", pairs, form)
    check(merged(f"{file}:0.7"), stored, {module: added(pair, 0.7) for module, pair in pairs.items()})


@pytest.mark.parametrize("form", ["dotted kohya", "kohya"])
def test_alpha_beside_the_factors(form: str, stored: dict[str, Stored], pairs: Pairs, tmp_path: Path) -> None:
    file = write_lora(tmp_path / "some.safetensors", pairs, form, alpha=2.0)
    check(merged(str(file)), stored, {module: added(pair, 2 / RANK) for module, pair in pairs.items()})


@pytest.mark.parametrize(
    ("config", "share", "of_q"),
    [
        ({"r": RANK, "lora_alpha": 6}, 2.0, 2.0),
        ({"r": RANK, "lora_alpha": 6, "use_rslora": True}, 6 / RANK**0.5, 6 / RANK**0.5),
        ({"r": RANK, "lora_alpha": 6, "alpha_pattern": {Q: 1.5}}, 2.0, 0.5),
        ({"r": RANK, "lora_alpha": 6, "alpha_pattern": {f"^{Q}": 1.5}}, 2.0, 0.5),
        ({"r": RANK}, 8 / RANK, 8 / RANK),
        ({"r": RANK, "lora_alpha": 6, "alpha_pattern": {r".*\.0\..*to_q": 1.5}}, 2.0, 0.5),
        ({"r": RANK, "lora_alpha": 6, "alpha_pattern": {"attn1.to_q": 1.5, "^to_q": 9, "ttn1.to_q": 9}}, 2.0, 0.5),
    ],
)
def test_alpha_in_the_metadata(
    config: dict[str, Any], share: float, of_q: float, stored: dict[str, Stored], pairs: Pairs, tmp_path: Path
) -> None:
    file = write_lora(tmp_path / "some.safetensors", pairs, config=config)
    sums = {module: added(pair, of_q if module == Q else share) for module, pair in pairs.items()}
    check(merged(str(file)), stored, sums)
    plain = {"lora_adapter_metadata": json.dumps(config)}  # as a network alone saves it
    save_file({key.removeprefix("transformer."): value for key, value in load_file(file).items()}, file, plain)
    check(merged(str(file)), stored, sums)


def test_processors_before_peft(stored: dict[str, Stored], tmp_path: Path) -> None:
    """Names of diffusers before 0.22: of the attention's processor, and to_out without its number."""
    block, tensors, sums = "transformer_blocks.1.attn1", {}, {}
    shapes = {name: weight.shape for name, weight in stored.items()}
    for short, module in (("to_q", f"{block}.to_q"), ("to_out", f"{block}.to_out.0")):
        pair = random_pairs(shapes, [module], RANK)[module]
        sums[module] = added(pair, 1.0)
        for kind, factor in zip(("down", "up"), pair, strict=True):
            tensors[f"transformer.{block}.processor.{short}_lora.{kind}.weight"] = torch.from_numpy(factor)
    save_file(tensors, tmp_path / "old.safetensors")
    check(merged(str(tmp_path / "old.safetensors")), stored, sums)


def test_several_add_up(stored: dict[str, Stored], pairs: Pairs, tmp_path: Path) -> None:
    one = write_lora(tmp_path / "one.safetensors", {Q: pairs[Q]})
    shapes = {name: weight.shape for name, weight in stored.items()}
    other = random_pairs(shapes, MODULES[:3], 5, seed=1)
    two = write_lora(tmp_path / "two.safetensors", other, "kohya", alpha=5.0)
    sums = {module: added(pair, -0.5) for module, pair in other.items()}
    sums[Q] = sums[Q] + added(pairs[Q], 2.0)
    check(merged(f"{one}:2", f"{two}:-0.5"), stored, sums)


def test_half_precision_is_read_as_it_is(stored: dict[str, Stored], pairs: Pairs, tmp_path: Path) -> None:
    file = write_lora(tmp_path / "some.safetensors", pairs)
    save_file({key: value.bfloat16() for key, value in load_file(file).items()}, file)
    rounded = {
        module: tuple(torch.from_numpy(each).bfloat16().float().numpy() for each in pair)
        for module, pair in pairs.items()
    }
    check(merged(str(file)), stored, {module: added(pair, 1.0) for module, pair in rounded.items()})


def test_a_colon_may_be_of_the_path(pairs: Pairs, stored: dict[str, Stored], tmp_path: Path, monkeypatch: Any) -> None:
    shapes = {name: weight.shape for name, weight in stored.items()}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "C:").mkdir()
    file = write_lora(tmp_path / "C:" / "a.safetensors", pairs)
    shutil.copy(file, tmp_path / "b:2")
    shutil.copy(file, tmp_path / "c:d")
    for text, name, scale in (
        ("C:/a.safetensors", "a.safetensors", 1.0),
        ("C:/a.safetensors:0.5", "a.safetensors", 0.5),
        ("C:/a.safetensors:-1e-1", "a.safetensors", -0.1),
        ("b:2", "b:2", 1.0),
        ("b:2:3", "b:2", 3.0),
        ("c:d", "c:d", 1.0),
    ):
        lora = Lora.open(text, shapes)
        assert (lora.path.name, lora.scale) == (name, scale)
        assert lora.factors[f"{Q}.weight"].scale == scale
    assert lora.record == {"file": "c:d", "sha256": lora.record["sha256"], "scale": 1.0}


def changed(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], str]:
    """A LoRA file in which ``change`` has changed tensors."""

    def make(file: Path) -> str:
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file)
        return str(file)

    return make


def metadata(text: str) -> Callable[[Path], str]:
    def make(file: Path) -> str:
        save_file(load_file(file), file, {"lora_adapter_metadata": text})
        return str(file)

    return make


def written(data: bytes, name: str = "other.safetensors") -> Callable[[Path], str]:
    def make(file: Path) -> str:
        file.with_name(name).write_bytes(data)
        return str(file.with_name(name))

    return make


A, B = f"transformer.{Q}.lora_A.weight", f"transformer.{Q}.lora_B.weight"
ONE = torch.ones(1)
REFUSED: dict[str, tuple[Callable[[Path], str], str]] = {
    "missing": (lambda file: f"{file}x", "there is no such file; write FILE.safetensors or FILE.safetensors:SCALE"),
    "a folder": (lambda file: str(file.parent), "is a folder; name the .safetensors file in it"),
    "no number": (lambda file: f"{file}:big", "the scale 'big' is not a number; write FILE or FILE:SCALE"),
    "no scale": (lambda file: f"{file}:", "the scale '' is not a number"),
    "not finite": (lambda file: f"{file}:nan", "the scale nan is not finite; 1 is usual"),
    "infinite": (lambda file: f"{file}:-inf", "the scale -inf is not finite"),
    "a pickle": (written(b"\x80\x02}.", "some.bin"), "is a pickle, and loading a pickle can run any code"),
    "no safetensors": (written(b"what is this?"), "give a .safetensors file, or download it again"),
    "a pointer": (written(b"version https://git-lfs.github.com/spec/v1\n"), "is a Git LFS pointer"),
    "empty": (written(b""), "it is empty; download it again"),
    "no tensors": (changed(dict.clear), "has no tensors; it is no LoRA"),
    "another model": (
        changed(
            lambda t: t.update(
                {f"transformer.single_blocks.{i}.attn.to_q.lora_A.weight": torch.ones(1) for i in range(9)}
            )
        ),
        "9 of 29 keys match no linear of this checkpoint's transformer: transformer.single_blocks.0.attn.to_q.lora_A.weight, ",
    ),
    "no LoRA": (
        changed(lambda t: t.update({f"{Q}.weight": ONE})),
        f"1 of 21 keys match no linear of this checkpoint's .*: {Q}.weight; ",
    ),
    "a norm": (
        changed(lambda t: t.update({"norm_final.lora_A.weight": ONE})),
        "match no linear .*: norm_final.lora_A.weight;",
    ),
    "DoRA": (
        changed(lambda t: t.update({f"{Q}.dora_scale": ONE})),
        "dora_scale: DoRA, which is not supported; plain LoRA is",
    ),
    "PEFT's DoRA": (changed(lambda t: t.update({f"{Q}.lora_magnitude_vector": ONE})), "DoRA, which is not supported"),
    "LoHa": (changed(lambda t: t.update({f"{Q}.hada_w1_a": ONE})), "hada_w1_a: LoHa, which is not supported"),
    "LoKr": (changed(lambda t: t.update({f"{Q}.lokr_w1": ONE})), "lokr_w1: LoKr, which is not supported"),
    "Tucker": (changed(lambda t: t.update({f"{Q}.lora_mid.weight": ONE})), "LoCon's"),
    "a bias": (changed(lambda t: t.update({f"{Q}.lora_B.bias": ONE})), "LoRA of biases, which is not supported"),
    "a difference": (changed(lambda t: t.update({f"{Q}.diff": ONE})), "whole differences of weights, which is not"),
    "a text encoder": (changed(lambda t: t.update({"text_encoder.x.lora_A.weight": ONE})), "a LoRA of a text encoder"),
    "kohya's text encoder": (
        changed(lambda t: t.update({"lora_te_x.lora_down.weight": ONE})),
        "a LoRA of a text encoder",
    ),
    "twice": (
        changed(lambda t: t.update({f"{Q}.lora_A.weight": t[A].clone()})),
        "which are of the same weight; keep one of them",
    ),
    "no B": (changed(lambda t: t.pop(B)), "lora_A.weight without its up .B. factor"),
    "no A": (changed(lambda t: t.pop(A)), "lora_B.weight without its down .A. factor"),
    "alpha alone": (changed(lambda t: (t.pop(A), t.pop(B), t.update({f"{Q}.alpha": ONE}))), "alpha without its down"),
    "another width": (
        changed(lambda t: t.update({A: torch.ones(RANK, 300)})),
        rf"lora_A.weight is \[3, 300\], and \[3, 256\] is expected, since {Q}.weight is \[256, 256\]; it is a LoRA of another",
    ),
    "another rank": (
        changed(lambda t: t.update({B: torch.ones(256, 4)})),
        r"is \[256, 4\], and \[256, 3\] is expected",
    ),
    "no rank": (changed(lambda t: t.update({A: torch.ones(0, 256), B: torch.ones(256, 0)})), r"is \[0, 256\], and"),
    "a flat filter": (
        changed(lambda t: t.update({"transformer.patch_embed.proj.lora_A.weight": torch.ones(RANK, 64)})),
        r"is \[3, 64\], and \[3, 16, 2, 2\] is expected",
    ),
    "alpha is many": (changed(lambda t: t.update({f"{Q}.alpha": torch.ones(2)})), "alpha is not one finite number"),
    "alpha is infinite": (changed(lambda t: t.update({f"{Q}.alpha": ONE * float("inf")})), "is not one finite number"),
    "no JSON": (metadata("{"), "cannot read its lora_adapter_metadata"),
    "no numbers": (metadata('{"lora_alpha": "high"}'), "cannot read its lora_adapter_metadata"),
    "no pattern": (metadata('{"alpha_pattern": {"(": 3}}'), "cannot read its lora_adapter_metadata"),
    "infinite alpha": (metadata('{"lora_alpha": Infinity}'), "cannot read its lora_adapter_metadata: an alpha is not"),
    "DoRA by metadata": (metadata('{"transformer.use_dora": true}'), "says use_dora: DoRA, which is not supported"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused(kind: str, pairs: Pairs, tmp_path: Path) -> None:
    make, words = REFUSED[kind]
    with pytest.raises(BadInput, match=words):
        Checkpoint.open(T2V, [make(write_lora(tmp_path / "some.safetensors", pairs))])


def test_a_list_of_keys_is_shortened(pairs: Pairs, tmp_path: Path) -> None:
    file = write_lora(tmp_path / "some.safetensors", pairs)
    save_file({f"blocks.{i}.lora_A.weight": torch.ones(1) for i in range(200)}, file)
    with pytest.raises(BadInput, match="200 of 200 keys match no linear") as caught:
        Checkpoint.open(T2V, [str(file)])
    assert "and 194 more" in str(caught.value) and len(str(caught.value)) < 700


@pytest.mark.parametrize("command", ["export", "trace", "export --plan"])
def test_the_commands_refuse_before_any_work(
    command: str, pairs: Pairs, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = write_lora(tmp_path / "some.safetensors", pairs)
    save_file({"blocks.0.lora_A.weight": ONE}, file)
    name, *options = command.split()
    said = refused(capfd, tmp_path, name, T2V, tmp_path / "out", "--lora", file, *options)
    assert "1 of 1 keys match no linear of this checkpoint's transformer: blocks.0.lora_A.weight" in said
    assert not (tmp_path / "out").exists()


def test_a_factor_that_is_not_finite_ends_the_merge(pairs: Pairs, tmp_path: Path) -> None:
    file = write_lora(tmp_path / "some.safetensors", pairs)
    changed(lambda tensors: tensors[A].fill_(float("nan")))(file)
    with pytest.raises(BundleError, match="lora_A.weight has 768 of 768 values that are NaN or infinite"):
        merged(str(file))[f"{Q}.weight"].read()
