"""Recipe: what a whole bundle is computed in. Its rules, name pattern → numerics, are the transformer's; the last match wins."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from reelquant.quant.methods.method import PLAIN, Method, check_strength
from reelquant.quant.numerics import HIGH, NUMERICS, High, Numerics
from reelquant.quant.sections import ALWAYS, STORAGE, TEXT_ENCODER, VAE_DECODER, Section, parse_sections
from reelquant.runtime.bundle.support import Support
from reelquant.runtime.errors import BadInput

_FOLDER = Path(__file__).with_name("recipes")
_FLAGS = ("rotate", "bf16_attention")  # what a recipe is or is not
_BLOCK = re.compile(r"transformer_blocks\.(\d+)\.")


@dataclass(frozen=True)
class Rule:
    """Linears and attentions whose name matches the glob ``match`` get ``NUMERICS[numerics]``.

    ``{last}`` in it stands for the number of the last transformer block. ``strength`` is that of their balancing, instead
    of the recipe's; ``why`` is for people.
    """

    match: str
    numerics: str
    strength: float | None = None
    why: str = ""


@dataclass(frozen=True)
class Recipe:
    """Rules in the order of their file. A node that none matches stays high, as does a component without a section.

    ``rotate`` says that attentions' values are rotated before calibration (:mod:`reelquant.quant.passes.rotate`), and
    ``bf16_attention`` that attentions are computed in bf16 where the CPU has units for it (:mod:`reelquant.quant.passes.mark_bf16`).
    """

    name: str
    description: str
    rules: tuple[Rule, ...]
    method: Method = PLAIN
    rotate: bool = False
    bf16_attention: bool = False
    sections: Mapping[str, Section] = field(default_factory=dict)

    @classmethod
    def load(cls, name_or_path: str | Path) -> Recipe:
        """Read a recipe that comes with reelquant by its name (``"int8"``), or any ``.toml`` file by its path.

        Raises:
            BadInput: there is none such, or the file breaks a rule of this format.
        """
        path = Path(name_or_path)
        if path.suffix != ".toml":
            path = _FOLDER / f"{name_or_path}.toml"
            if str(name_or_path) not in built_in_recipes():
                raise BadInput(
                    f"unknown recipe {str(name_or_path)!r}; one of {', '.join(built_in_recipes())}, "
                    "or the path of a .toml file"
                )
        try:
            return cls.parse(path.read_text(encoding="utf-8"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"cannot read the recipe {path}: {error}") from error

    @classmethod
    def parse(cls, text: str, where: str = "recipe") -> Recipe:
        """Read a recipe from TOML text; ``where`` is what errors call it.

        ``extends = "fp8"`` puts that recipe's rules before its own, if it has any, and takes the rest of it but for what it says
        itself.

        Raises:
            BadInput: not TOML, a key missing, unknown or of the wrong type, unknown numerics, or INT8 beside FP8 or FP4.
        """
        try:
            table = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise BadInput(f"{where} is not valid TOML: {error}") from error
        inherited: tuple[Rule, ...] = ()
        method, sections, flags = PLAIN, dict[str, Section](), dict.fromkeys(_FLAGS, False)
        if isinstance(table.get("extends"), str):
            parent = cls.load(table.pop("extends"))
            inherited, method, sections = parent.rules, parent.method, dict(parent.sections)
            flags = {flag: getattr(parent, flag) for flag in _FLAGS}
            table.setdefault("rules", [])
        if "method" in table:
            method = Method.parse(table.pop("method"), where)
        for flag in _FLAGS:
            flags[flag] = table.pop(flag, flags[flag])
            if not isinstance(flags[flag], bool):
                raise BadInput(f"{where}: {flag} must be true or false")
        sections |= parse_sections(table, where)
        _check_keys(table, {"name": str, "description": str, "rules": list}, where)
        own = tuple(_rule(entry, f"{where}, rule {i}") for i, entry in enumerate(table["rules"], 1))
        rules = (*inherited, *own)
        if not rules:
            raise BadInput(f"{where}: rules is empty; write at least one {{ match = …, numerics = … }}")
        recipe = cls(table["name"], table["description"], rules, method, sections=sections, **flags)
        if "int8" in recipe.formats and recipe.formats - {"int8", "int4"}:
            others = " and ".join(sorted(recipe.formats - {"int8", "int4"}))
            raise BadInput(f"{where} names int8 beside {others}, which no engine holds together; choose one")
        return recipe

    def resolve(self, node_name: str) -> Numerics | High:
        """The numerics of one node: those of the last rule that matches its name, else ``HIGH``."""
        rule = self.rule_of(node_name)
        return NUMERICS[rule.numerics] if rule else HIGH

    def named(self, node_name: str) -> str:
        """The name of those numerics, "high" where no rule matches."""
        rule = self.rule_of(node_name)
        return rule.numerics if rule else "high"

    def rule_of(self, node_name: str) -> Rule | None:
        """The last rule that matches the name."""
        return next((rule for rule in reversed(self.rules) if fnmatchcase(node_name, rule.match)), None)

    def method_of(self, node_name: str) -> Method:
        """The recipe's method, with the strength of the node's rule where that has one."""
        rule = self.rule_of(node_name)
        return self.method if rule is None or rule.strength is None else replace(self.method, strength=rule.strength)

    @property
    def numerics(self) -> dict[str, Numerics]:
        """What its rules name, but "high"."""
        named = {rule.numerics: NUMERICS[rule.numerics] for rule in self.rules}
        return {name: each for name, each in named.items() if not isinstance(each, High)}

    @property
    def formats(self) -> set[str]:
        """The names of the formats of its numerics: of ``int8``, ``fp8`` and ``fp4`` never the first with another."""
        return {numerics.format.name for numerics in self.numerics.values()}

    def support(self, base: str) -> dict[str, Support]:
        """Where each of its numerics computes in a graph whose other parts are in ``base``."""
        return {name: numerics.support(base) for name, numerics in self.numerics.items()}

    @property
    def judged(self) -> bool:
        """Whether a CPU computes it, so that the gate can judge what comes of it."""
        return all(numerics.limits is not None for numerics in self.numerics.values())

    def check_base(self, base: str) -> None:
        """Raises:
        BadInput: its numerics do not stand beside ``base``.
        """
        decoder = self.section(VAE_DECODER)
        if decoder.numerics != "high" and decoder.when == ALWAYS and base != "fp32":
            raise BadInput(
                f"recipe {self.name!r} puts the VAE's decoder in {decoder.numerics}, beside fp32 alone; use --base fp32, or "
                f'say when = "faster" of {VAE_DECODER}'
            )
        for name, numerics in self.numerics.items():
            if base not in numerics.bases:
                raise BadInput(
                    f"TensorRT alone computes in {name.upper()}, beside 16 bit; use --engine tensorrt-rtx --gpu sm120, or "
                    f"--base {numerics.bases[0]}"
                )

    def section(self, component: str) -> Section:
        """What it says of a component beside the transformer."""
        return self.sections.get(component, Section())

    @property
    def text_storage(self) -> str:
        """What the text encoder's weights are stored in."""
        return STORAGE[self.section(TEXT_ENCODER).numerics]

    def for_blocks(self, nodes: Collection[str]) -> Recipe:
        """This recipe for a graph with these node names: ``{last}`` replaced by the number of its last block."""
        numbers = [int(found[1]) for found in map(_BLOCK.match, nodes) if found]
        last = str(max(numbers, default=0))
        return replace(
            self, rules=tuple(replace(rule, match=rule.match.replace("{last}", last)) for rule in self.rules)
        )

    def check(self, nodes: Collection[str], linears: Collection[str], attentions: Collection[str] = ()) -> None:
        """See that every rule has something to say about a graph with these names.

        Raises:
            BadInput: a pattern matches nothing, or quantizes and matches neither linear nor attention: most likely a
                misspelling, which would otherwise leave a layer in a precision nobody asked for.
        """
        products = [*linears, *attentions]
        for rule in self.rules:
            high = isinstance(NUMERICS[rule.numerics], High)
            if not any(fnmatchcase(name, rule.match) for name in ([*nodes, *attentions] if high else products)):
                some = ", ".join(sorted(linears)[:3]) or "none"
                raise BadInput(
                    f"recipe {self.name!r}: pattern {rule.match!r} matches no {'node' if high else 'linear'} of this "
                    f"graph; its linears are {some}{', …' if len(linears) > 3 else ''}; correct or remove the rule"
                )

    @property
    def digest(self) -> str:
        """sha256 of the rules in order, the method and the sections: what the recipe does, not how it is described."""
        rules = [[rule.match, rule.numerics, rule.strength] for rule in self.rules]
        sections = {name: asdict(section) for name, section in sorted(self.sections.items())}
        does = [rules, asdict(self.method), *(getattr(self, flag) for flag in _FLAGS), sections]
        return hashlib.sha256(json.dumps(does, ensure_ascii=False).encode()).hexdigest()

    def to_toml(self) -> str:
        """As :meth:`parse` reads it."""
        method = {key: value for key, value in asdict(self.method).items() if value is not None}
        lines = [f"name = {json.dumps(self.name)}", f"description = {json.dumps(self.description)}"]
        lines.append(f"method = {_table(method)}")
        lines += [f"{flag} = true" for flag in _FLAGS if getattr(self, flag)]
        lines += [f"{name} = {_table(section.as_toml())}" for name, section in self.sections.items()]
        lines += ["", "rules = ["]
        for rule in self.rules:
            lines.append(
                f"    {_table({key: value for key, value in asdict(rule).items() if value not in (None, '')})},"
            )
        return "\n".join([*lines, "]", ""])


def built_in_recipes() -> list[str]:
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def _table(entries: Mapping[str, Any]) -> str:
    """TOML's inline table; its texts, numbers and truths are written as JSON's."""
    return "{ " + ", ".join(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in entries.items()) + " }"


def _rule(entry: Any, where: str) -> Rule:
    strength, why = (entry.pop("strength", None), entry.pop("why", "")) if isinstance(entry, dict) else (None, "")
    if strength is not None:
        check_strength(strength, where)
    if not isinstance(why, str):
        raise BadInput(f"{where}: why must be a text")
    _check_keys(entry, {"match": str, "numerics": str}, where)
    if entry["numerics"] not in NUMERICS:
        raise BadInput(f"{where}: unknown numerics {entry['numerics']!r}; one of {', '.join(NUMERICS)}")
    return Rule(entry["match"], entry["numerics"], strength, why)


def _check_keys(table: Any, keys: dict[str, type], where: str) -> None:
    """Refuse a table that has not exactly ``keys``, each a non-empty text or a list as they say."""
    if not isinstance(table, dict):
        raise BadInput(f"{where} is not a table with the keys {', '.join(keys)}")
    for key in table:
        if key not in keys:
            raise BadInput(f"{where}: unknown key {key!r}; the keys are {', '.join(keys)}")
    for key, kind in keys.items():
        if key not in table:
            raise BadInput(f"{where}: {key} is missing; the keys are {', '.join(keys)}")
        if not isinstance(table[key], kind) or table[key] == "":
            raise BadInput(f"{where}: {key} must be {'a list' if kind is list else 'a non-empty text'}")
