"""Compares compiled and lowered programs by their content alone.

XLA's text carries much that comes from the source code and not from the program: file names,
stack frames, the names of Python functions and arguments, running numbers. `canonical_hlo` and
`canonical_stablehlo` take these out and renumber what is left, so that two programs are the same
program exactly when their texts are equal; `first_difference` says where they part.
"""

from __future__ import annotations

import collections
import importlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax

_STRING = r'"(?:[^"\\]|\\.)*"'
_BRACED = r'\{(?:[^{}"]|STRING|\{(?:[^{}"]|STRING|\{[^{}]*\})*\})*\}'.replace("STRING", _STRING)

# HLO.
_TABLES = frozenset({"FileNames", "FunctionNames", "FileLocations", "StackFrames"})
_SOURCE_ATTR = re.compile(rf"{_STRING}|(?P<attr>,? (?:metadata|origin|original_value)={_BRACED})")
_COMMENT = re.compile(rf"{_STRING}|(?P<comment>/\*.*?\*/)")
_HEADER = re.compile(
    r"^(?P<entry>ENTRY )?%(?P<name>[\w.\-]+) \((?P<arguments>.*)\) -> (?P<result>.*) \{$"
)
_ARGUMENT_NAME = re.compile(r"(?<![\w.\-])[A-Za-z_][\w.\-]*: ")
# In an instruction, `key=%x` and `key={%x, %y}` refer to computations; only control edges do not.
_CALLED = re.compile(
    rf"{_STRING}|(?P<key>[\w\-]+)=(?P<called>%[\w.\-]+|\{{%[^{{}}]*\}})|%(?P<operand>[\w.\-]+)"
)
_NAME = re.compile(r"%([\w.\-]+)")
_BACKEND_CONFIG = re.compile(r"backend_config=(?=\{)")
# Keys of a backend_config that only repeat the name of a Python function or of an instruction.
_CONFIG_NAMES = frozenset({"name", "kernel_name"})
# A hash of the module that XLA's GPU compiler leaves in it: says nothing that the lines do not.
_FINGERPRINT = re.compile(r'fingerprint_before_lhs="[^"]*"(?:,\s*)?')
_ELIDED_CONSTANT = "constant({...})"

# StableHLO.
_SYMBOL = rf"@(?:{_STRING}|[\w.$\-]+)"
_FUNCTION = re.compile(rf"func\.func (?:public |private )?(?P<name>{_SYMBOL})")
_SYMBOL_USE = re.compile(rf"(?P<external>custom_call )?(?P<name>{_SYMBOL})")
_PYTHON_NAME_ATTR = re.compile(rf"jax\.(?:result_info|arg_info) = {_STRING}(?:, )?")
_LOCATION = re.compile(
    r" loc\((?:[^()\"]|STRING|\((?:[^()\"]|STRING|\([^()]*\))*\))*\)".replace("STRING", _STRING)
)

_OPCODE = re.compile(r"\b(?:stablehlo|chlo|func|sdy|mhlo)\.[a-z]\w*|(?<=\s)[a-z][a-z0-9\-]*(?=\()")


def hlo_text(compiled: jax.stages.Compiled) -> str:
    """Returns the optimized HLO of `compiled` with every constant in full.

    `Compiled.as_text` shortens large constants to `{...}`, so that programs that differ in one of
    them look alike.
    """
    texts = []
    for module in compiled.runtime_executable().hlo_modules():
        options = importlib.import_module(type(module).__module__).HloPrintOptions()
        options.print_large_constants = True
        texts.append(module.to_string(options))
    return "\n".join(texts)


def canonical_hlo(compiled_or_text: jax.stages.Compiled | str) -> list[str]:
    """Returns the lines of an optimized HLO module without what its source code put there.

    Module name, metadata, stack frame tables, comments and parameter names are dropped.
    Computations are renumbered over the module and instructions within their computation, both
    in order of first appearance. What stays: instructions and their order, types and layouts,
    constants, attributes, backend configs, and the module's own attributes (aliasing by donation,
    entry layout, scheduling).

    Args:
        compiled_or_text: a compiled function, or the text that `hlo_text` gives for it.

    Raises:
        ValueError: the text holds shortened constants and cannot decide whether programs agree.
    """
    text = compiled_or_text if isinstance(compiled_or_text, str) else hlo_text(compiled_or_text)
    if _ELIDED_CONSTANT in text:
        raise ValueError(
            f"the HLO text holds shortened constants ({_ELIDED_CONSTANT!r}); "
            "pass the compiled function or hlo_text(compiled) instead of compiled.as_text()"
        )
    computations: dict[str, str] = {}
    instructions: dict[str, str] = {}
    lines = []
    for line in _without_tables(text.splitlines()):
        line = _SOURCE_ATTR.sub(_keep_strings("attr"), line)
        line = _COMMENT.sub(_keep_strings("comment"), line)
        if line.startswith("HloModule "):
            line = _FINGERPRINT.sub("", re.sub(r"^HloModule [^\s,]+", "HloModule", line))
        elif header := _HEADER.match(line):
            instructions = {}
            name = _number(computations, header["name"], "%computation_")
            arguments = _ARGUMENT_NAME.sub("", header["arguments"])
            line = f"{header['entry'] or ''}{name} ({arguments}) -> {header['result']} {{"
        else:
            line = _renumber_instruction(line, computations, instructions)
            line = _without_config_names(line)
        lines.append(line.rstrip())
    return lines


def canonical_stablehlo(lowered: jax.stages.Lowered | str) -> str:
    """Returns the StableHLO text of a lowered function without what its source code put there.

    Locations, the module's name and the names of arguments and results are dropped; functions
    are renumbered in order of first appearance (`main` stays). Values keep MLIR's own names,
    which follow from the program.
    """
    text = lowered if isinstance(lowered, str) else lowered.as_text()
    defined = {match["name"] for match in _FUNCTION.finditer(text)} - {"@main"}
    functions: dict[str, str] = {}

    def renamed(match: re.Match[str]) -> str:
        if match["external"] or match["name"] not in defined:
            return match[0]
        return _number(functions, match["name"], "@function_")

    lines = []
    for line in text.splitlines():
        if line.startswith("#loc") or not line.strip():
            continue
        line = _LOCATION.sub("", line)
        line = re.sub(rf"^module {_SYMBOL}", "module", line)
        line = _PYTHON_NAME_ATTR.sub("", line)
        line = re.sub(r" \{\}(?=[,)])", "", line)  # an argument or result without any attribute
        lines.append(_SYMBOL_USE.sub(renamed, line).rstrip())
    return "\n".join(lines)


def first_difference(
    a: Sequence[str] | str, b: Sequence[str] | str, *, context: int = 3
) -> str | None:
    """Returns a message about the first line in which two canonical texts differ, or None.

    Args:
        a: lines, or a text, from `canonical_hlo` or `canonical_stablehlo`.
        b: what to compare it with.
        context: how many lines to show before and after the differing one.
    """
    a, b = (text.splitlines() if isinstance(text, str) else list(text) for text in (a, b))
    if a == b:
        return None
    at = next(
        (i for i, (left, right) in enumerate(zip(a, b, strict=False)) if left != right),
        min(len(a), len(b)),
    )
    shown = [f"first difference at line {at + 1}; a has {len(a)} lines, b has {len(b)}"]
    shown += [f"    {line}" for line in a[max(0, at - context) : at]]
    for label, lines in (("a", a), ("b", b)):
        here = lines[at : at + 1 + context] or ["<end of the text>"]
        shown += [f"{label} > {here[0]}", *(f"{label}   {line}" for line in here[1:])]
    counts_a, counts_b = _opcode_counts(a), _opcode_counts(b)
    changed = [
        f"{opcode} {counts_a[opcode]} -> {counts_b[opcode]}"
        for opcode in sorted(counts_a | counts_b)
        if counts_a[opcode] != counts_b[opcode]
    ]
    shown.append("op counts: " + (", ".join(changed) if changed else "the same in both"))
    return "\n".join(shown)


def _without_tables(lines: Iterable[str]) -> Iterator[str]:
    """Yields the lines outside the source tables (each runs to a blank line), no blank ones."""
    in_table = False
    for line in lines:
        if line.strip() in _TABLES:
            in_table = True
        elif not line.strip():
            in_table = False
        elif not in_table:
            yield line


def _keep_strings(group: str) -> Any:
    """Returns a replacement that deletes `group` and leaves string literals alone."""
    return lambda match: "" if match[group] else match[0]


def _number(names: dict[str, str], name: str, prefix: str) -> str:
    return names.setdefault(name, f"{prefix}{len(names)}")


def _renumber_instruction(
    line: str, computations: dict[str, str], instructions: dict[str, str]
) -> str:
    def renamed(match: re.Match[str]) -> str:
        if match["operand"]:
            return _number(instructions, match["operand"], "%")
        if match["called"]:
            if match["key"].startswith("control-"):
                names, prefix = instructions, "%"
            else:
                names, prefix = computations, "%computation_"
            called = _NAME.sub(lambda name: _number(names, name[1], prefix), match["called"])
            return f"{match['key']}={called}"
        return match[0]

    return _CALLED.sub(renamed, line)


def _without_config_names(line: str) -> str:
    match = _BACKEND_CONFIG.search(line)
    if match is None:
        return line
    try:
        config, end = json.JSONDecoder().raw_decode(line, match.end())
    except ValueError:
        return line
    text = json.dumps(_drop_names(config), sort_keys=True, separators=(",", ":"))
    return line[: match.end()] + text + line[end:]


def _drop_names(config: Any) -> Any:
    if isinstance(config, dict):
        return {k: _drop_names(v) for k, v in config.items() if k not in _CONFIG_NAMES}
    if isinstance(config, list):
        return [_drop_names(item) for item in config]
    return config


def _opcode_counts(lines: Iterable[str]) -> collections.Counter[str]:
    found = (_OPCODE.search(line) for line in lines)
    return collections.Counter(match[0] for match in found if match)
