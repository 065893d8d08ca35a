"""What an unquoted YAML scalar means: the YAML 1.2 core schema, and a list of what readers disagree on.

PyYAML reads YAML 1.1, editors and most other tools read 1.2. Whatever the two take for different things
(`no`, `010`, `1_000`, `12:30`) is not guessed at: the loader asks for an unambiguous spelling.
"""

from __future__ import annotations

import re

Scalar = str | int | float | bool | None

_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"[-+]?(0|[1-9][0-9]{0,39})")
_HEX = re.compile(r"0x[0-9a-fA-F]{1,32}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INF = re.compile(r"[-+]?\.(inf|Inf|INF)")
_NAN = re.compile(r"\.(nan|NaN|NAN)")

_YES = re.compile(r"(?i:y|yes|on)")
_NO = re.compile(r"(?i:n|no|off)")
_OCTAL = re.compile(r"[-+]?0[0-9_]+|0o[0-7]+")
_BINARY = re.compile(r"[-+]?0b_*[01][01_]*")
_GROUPED = re.compile(r"[-+]?[0-9][0-9_]*_[0-9_]*(\.[0-9_]*)?|[-+]?0x[0-9a-fA-F]*_[0-9a-fA-F_]*")
_BASE_60 = re.compile(r"[-+]?[0-9]+(:[0-5]?[0-9])+(\.[0-9]*)?")


def resolve(text: str) -> Scalar:
    """The value of an unquoted scalar under the YAML 1.2 core schema; what is nothing else is text."""
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if _INT.fullmatch(text):
        return int(text)
    if _HEX.fullmatch(text):
        return int(text, 16)
    if _FLOAT.fullmatch(text):
        return float(text)
    if _INF.fullmatch(text):
        return float("-inf" if text[0] == "-" else "inf")
    if _NAN.fullmatch(text):
        return float("nan")
    return text


def ambiguity(text: str) -> tuple[str, str] | None:
    """Why readers disagree on an unquoted scalar, and what else may be meant; None if they agree."""
    if _YES.fullmatch(text):
        return "YAML 1.1 reads it as true, YAML 1.2 as text", "true"
    if _NO.fullmatch(text):
        return "YAML 1.1 reads it as false, YAML 1.2 as text", "false"
    if _OCTAL.fullmatch(text):
        digits = text.lstrip("+-").replace("_", "").removeprefix("0o").lstrip("0") or "0"
        return "some YAML readers take it for an octal number", digits
    if _BINARY.fullmatch(text):
        return "some YAML readers take it for a binary number", str(int(text.replace("_", ""), 2))
    if _GROUPED.fullmatch(text):
        return "YAML 1.1 reads it as a number, YAML 1.2 as text", text.replace("_", "")
    if _BASE_60.fullmatch(text):
        return "YAML 1.1 reads it as a number to base 60, YAML 1.2 as text", f'"{text}"'
    return None
