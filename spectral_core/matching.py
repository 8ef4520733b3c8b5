"""Which dotted names a user means: globs, regular expressions, or lists by peft's rules."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from fnmatch import fnmatchcase

__all__ = ["Patterns", "matches", "near_names"]

Patterns = str | re.Pattern | Iterable[str | re.Pattern]

REGEX_ONLY = re.compile(r"[\\()|^$+{}]|^\.|\.\.")  # never in a module's name or a glob for one
WILDCARD = re.compile(r"[*?\[]")


def matches(name: str, patterns: Patterns) -> bool:
    r"""Whether a dotted module name is meant by `patterns`.

    * A string is a glob on the whole name, "blocks.0.*"; with any of \ ( ) | ^ $ + { } in it, or with a dot in front,
      it is a regular expression that must match the whole name, as in peft: r".*\.(q_proj|v_proj)".
    * A compiled regular expression must match the whole name.
    * In a list, an entry without wildcards also matches the end of a name after a dot, as in peft: ["q_proj"].

    Raises:
        ValueError: something else, or a regular expression that does not compile.

    >>> [matches("blocks.10.attn.q_proj", p) for p in ("blocks.1.*", r"blocks\.1\d\..*", ["q_proj"], "q_proj")]
    [False, True, True, False]
    """
    if isinstance(patterns, (str, re.Pattern)):
        return _matches(name, patterns)
    if not isinstance(patterns, Iterable):
        raise ValueError(f"expected a glob, a regular expression or a list of them, got {patterns!r}")
    return any([_matches(name, entry) or _is_end(name, entry) for entry in patterns])  # a list: every entry is checked


def near_names(patterns: Patterns, names: Iterable[str]) -> list[str]:
    """Up to three of the names, or ends of them, that look like what was asked for."""
    ends = {".".join(parts[at:]) for name in names for parts in [name.split(".")] for at in range(len(parts))}
    asked = [patterns] if isinstance(patterns, (str, re.Pattern)) else list(patterns)
    found: dict[str, None] = {}
    for entry in asked:
        text = entry if isinstance(entry, str) else entry.pattern
        words = [text, *re.findall(r"\w{2,}", text)]
        found.update(dict.fromkeys(near for word in words for near in get_close_matches(word, sorted(ends), n=2)))
    return list(found)[:3]


def _matches(name: str, pattern: str | re.Pattern) -> bool:
    if isinstance(pattern, re.Pattern):
        return pattern.fullmatch(name) is not None
    if not isinstance(pattern, str):
        raise ValueError(f"expected a glob or a regular expression, got {pattern!r}")
    if not REGEX_ONLY.search(pattern):
        return fnmatchcase(name, pattern)
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error as error:
        raise ValueError(f"expected a valid regular expression, got {pattern!r}: {error}") from error


def _is_end(name: str, entry: str | re.Pattern) -> bool:
    return isinstance(entry, str) and not WILDCARD.search(entry) and name.endswith("." + entry)
