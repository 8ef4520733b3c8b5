"""How query, key and value weights lie in a stored parameter, and how to take them out and put them back."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

__all__ = ["Layout"]

ROLES = "qkv"


@dataclass(frozen=True)
class Layout:
    """Which rows of one parameter hold which role, and in what orientation.

    The outputs of a stored weight are `groups` equal groups; each group holds one section for each letter of `roles`,
    in that order. Everything in use is a case of this:

    * separate, an `nn.Linear` of its own: `Layout("q")`
    * sectioned q|k|v (timm, ViT, packed `nn.MultiheadAttention`): `Layout("qkv")`
    * sectioned with grouped queries (Phi-3): `Layout("qkv", sizes=(q_rows, kv_rows, kv_rows))`
    * interleaved per head (GPT-NeoX, BLOOM): `Layout("qkv", groups=heads)`
    * per key-value group (Falcon): `Layout("qkv", sizes=(g * d, d, d), groups=kv_heads)`, g query heads in a group
    * column blocks, a weight stored (in, out) (GPT-2's Conv1D): `Layout("qkv", transposed=True)`
    * beside something else (an MLP, a gate): "-" stands for it, `Layout("-qkv", sizes=(mlp, d, d, d))`

    A parameter has shape (out, in), or (in, out) if `transposed`; or (heads, d, in), (heads, in, d) if `transposed`; or
    that of a 2-D convolution, (out, in, …), whose matrix is (out, in · …).

    Args:
        roles: letters among "q", "k", "v", each once, and "-".
        sizes: rows of each section within one group; None for equal ones.
        groups: how often the sections are repeated.
        transposed: outputs are the last dimension instead of the first.
        heads, kv_heads: heads of the queries, and of keys and values (None: the same); needed for scope "head" only.
            `find_projections` looks them up in the attention module when they are not given.

    Raises:
        ValueError: settings that contradict each other; in use, a parameter that they do not fit.

    >>> stored = torch.arange(6.0)[:, None]                       # two heads of width 1: q k v q k v
    >>> Layout("qkv", groups=2).take(stored, "k").flatten()
    tensor([1., 4.])
    >>> Layout("qkv").take(stored, "k").flatten()                 # the same weight, read as q q k k v v
    tensor([2., 3.])
    """

    roles: str
    sizes: tuple[int, ...] | None = None
    groups: int = 1
    transposed: bool = False
    heads: int | None = None
    kv_heads: int | None = None

    def __post_init__(self) -> None:
        roles = [role for role in self.roles if role != "-"] if isinstance(self.roles, str) else []
        if not roles or set(roles) - set(ROLES) or len(set(roles)) < len(roles):
            raise ValueError(f'roles: expected letters among "q", "k", "v", each once, and "-", got {self.roles!r}')
        for name in ("groups", "heads", "kv_heads"):
            value = getattr(self, name)
            if not (value is None and name != "groups") and not _is_count(value):
                raise ValueError(f"{name}: expected a positive integer, got {value!r}")
        if self.sizes is not None:
            object.__setattr__(self, "sizes", tuple(self.sizes))
            if len(self.sizes) != len(self.roles) or not all(map(_is_count, self.sizes)):
                raise ValueError(
                    f"sizes: expected {len(self.roles)} positive integers, one for each of {self.roles!r}, got "
                    f"{self.sizes}"
                )

    @property
    def kind(self) -> str:
        """In words: "separate", "q|k|v", "q|k|v in 4 groups", "q|k|v in columns", …"""
        name = "separate" if len(self.roles) == 1 else "|".join(self.roles)
        if self.sizes is not None and len(set(self.sizes)) > 1:
            name += f" of {'|'.join(map(str, self.sizes))}"
        return name + (f" in {self.groups} groups" if self.groups > 1 else "") + " in columns" * self.transposed

    def heads_of(self, role: str) -> int | None:
        """Number of heads of a role, if known."""
        return self.heads if role == "q" or self.kv_heads is None else self.kv_heads

    def with_heads(self, heads: int | None, kv_heads: int | None) -> Layout:
        """The same layout with the counts that it does not have yet."""
        return replace(self, heads=self.heads or heads, kv_heads=self.kv_heads or kv_heads)

    def is_whole(self, stored: Tensor) -> bool:
        """Whether the parameter is the (out, in) matrix of a single role, as it is."""
        return len(self.roles) == 1 and not self.transposed and stored.ndim == 2

    def section_sizes(self, shape: torch.Size, name: str = "weight") -> tuple[int, ...]:
        """Rows of each section in one group, for a parameter of this shape.

        Raises:
            ValueError: the shape does not fit the layout.
        """
        if len(shape) < 2 or (self.transposed and len(shape) > 3):
            raise ValueError(f"{name}: expected a matrix for the layout {self.kind!r}, got shape {tuple(shape)}")
        rows = shape[-1] if self.transposed else shape[0]
        if len(shape) == 3:
            rows = shape[0] * shape[2 if self.transposed else 1]
        parts = len(self.roles)
        sizes = self.sizes or (rows // self.groups // parts,) * parts
        if sum(sizes) * self.groups != rows or not all(sizes):
            wanted = f"{sum(self.sizes) * self.groups}" if self.sizes else f"a multiple of {self.groups * parts}"
            raise ValueError(
                f"{name}: expected {wanted} outputs for the layout {self.kind!r}, got {rows} in shape {tuple(shape)}"
            )
        for role, size in zip(self.roles, sizes, strict=True):
            heads = self.heads_of(role)
            if role != "-" and heads is not None and (size * self.groups) % heads:
                raise ValueError(
                    f"{name}: expected the {size * self.groups} rows of {role} to be a multiple of {heads} heads"
                )
        return sizes

    def matrix(self, stored: Tensor) -> Tensor:
        """The whole parameter as one (out, in) matrix, a view where there is one."""
        if stored.ndim > 3:
            return stored.flatten(1)
        rows = stored.mT if self.transposed else stored
        return rows.reshape(-1, rows.shape[-1]) if rows.ndim == 3 else rows

    def unmatrix(self, rows: Tensor, stored: Tensor) -> Tensor:
        """An (out, in) matrix in the shape of `stored`: the inverse of `matrix`."""
        if not self.transposed:
            return rows.reshape(stored.shape)
        return rows.mT if stored.ndim == 2 else rows.reshape(stored.mT.shape).mT

    def take(self, stored: Tensor, role: str) -> Tensor:
        """The (out, in) matrix of one role, heads one after the other; a view where there is one."""
        if self.is_whole(stored):
            return stored
        return self._sections(stored)[self.roles.index(role)].flatten(0, 1)

    def put(self, stored: Tensor, values: dict[str, Tensor]) -> Tensor:
        """A copy of `stored` in which the given roles have the given (out, in) matrices."""
        if self.is_whole(stored):
            (value,) = values.values()
            return value
        sections = list(self._sections(stored))
        for role, value in values.items():
            at = self.roles.index(role)
            sections[at] = value.reshape(sections[at].shape)
        return self.unmatrix(torch.cat(sections, 1).flatten(0, 1), stored)

    def _sections(self, stored: Tensor) -> tuple[Tensor, ...]:
        """One (groups, rows, in) tensor for each letter of `roles`."""
        sizes = self.section_sizes(stored.shape)
        return self.matrix(stored).unflatten(0, (self.groups, sum(sizes))).split(sizes, 1)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
