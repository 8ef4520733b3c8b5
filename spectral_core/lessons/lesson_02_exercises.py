"""Lesson 2, the Jacobian of attention: the checks of its exercises, as data."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import jacrev, vmap

from spectral_core.jacobian import AttentionJacobian
from spectral_core.lessons.heads import random_head
from spectral_core.lessons.registry import Case, Exercise

__all__ = ["ENTRIES"]


def _rows(n: int, count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, n, dtype=torch.float64, generator=generator).softmax(-1)


def softmax_jacobian(p: Tensor) -> Tensor:
    """(…, n) -> (…, n, n): diag(p) − p pᵀ."""
    return torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)


SOFTMAX = Exercise(
    "02.softmax", "the softmax Jacobian",
    (
        Case("it is what autodiff gives, row by row", "reference", lambda: (_rows(4, 3, seed=0),),
             lambda p: vmap(jacrev(lambda z: z.softmax(-1)))(p.log()), "Λ = diag(p) − p pᵀ for each row p"),
        Case("adding a constant to the logits has no effect: every row of Λ sums to 0", "property",
             lambda: (_rows(5, 2, seed=1),), torch.zeros_like, "subtract p pᵀ: it is what makes the rows sum to 0",
             observe=lambda fn, p: fn(p).sum(-1)),
        Case("uniform over 4 tokens: 1/4 − 1/16 on the diagonal, −1/16 beside it", "reference",
             lambda: (torch.full((4,), 0.25).double(),), lambda p: torch.eye(4).double() / 4 - 1 / 16,
             "Λ = diag(p) − p pᵀ, also for a single p without a batch"),
        Case("a one-hot p gives Λ = 0: a saturated softmax does not move", "edge",
             lambda: (torch.eye(3).double(),), lambda p: torch.zeros(3, 3, 3).double(),
             "diag(p) and p pᵀ are equal when p is one-hot"),
    ),
    (
        ("you have diag(p) alone: the centring − p pᵀ is missing", torch.diag_embed),
        ("you have only the diagonal, p(1 − p), as for a sigmoid: softmax couples the tokens of a row",
         lambda p: torch.diag_embed(p * (1 - p))),
        ("the sign is wrong: diag(p) − p pᵀ, not its negative", lambda p: -softmax_jacobian(p)),
        ("you subtract p from every row or column: it is the outer product p pᵀ",
         lambda p: torch.diag_embed(p) - p.unsqueeze(-1)),
        ("you mixed the rows of P: take the outer product of each row with itself, p[..., :, None] * p[..., None, :]",
         lambda p: torch.diag_embed(p) - p.mT @ p),
    ),
    softmax_jacobian,
)  # fmt: skip


def _head_parts(seed: int) -> tuple[Tensor, Tensor, Tensor, float]:
    """x, p, v, scale of a random head with n = 5, D = 4, d_k = 3, d_v = 2."""
    x, w_q, w_k, w_v = random_head(5, 4, 3, 2, seed=seed)
    scale = 3**-0.5
    return x, (scale * x @ w_q @ w_k.mT @ x.mT).softmax(-1), x @ w_v, scale


def slopes(x: Tensor, p: Tensor, v: Tensor, scale: float) -> Tensor:
    """N_i = s Vᵀ Λ_i X for every token, (n, d_v, D)."""
    return scale * v.mT @ softmax_jacobian(p) @ x


def _query_slopes(x: Tensor, p: Tensor, v: Tensor, scale: float) -> Tensor:
    """∂a_i/∂q_i of the head of `_head_parts(seed=2)` by autodiff, (n, d_v, d_k)."""
    _, w_q, w_k, _ = random_head(5, 4, 3, 2, seed=2)
    return vmap(jacrev(lambda q: (scale * x @ w_k @ q).softmax(-1) @ v))(x @ w_q)


SLOPES = Exercise(
    "02.slopes", "the slopes N_i",
    (
        Case("N_i = s Vᵀ Λ_i X, shape (n, d_v, D)", "reference", lambda: _head_parts(seed=1), slopes,
             "for token i: scale · v.mT @ Λ_i @ x, with Λ_i from row i of P"),
        Case("N_i W_K is what autodiff gives for ∂a_i/∂q_i", "property", lambda: _head_parts(seed=2), _query_slopes,
             "the logits of row i are s X W_K q_i, so their derivative brings a factor s",
             observe=lambda fn, *parts: fn(*parts) @ random_head(5, 4, 3, 2, seed=2)[2]),
        Case("twice the scale, twice the slopes (difference 0)", "property", lambda: _head_parts(seed=3),
             lambda x, p, v, s: torch.zeros(5, 2, 4).double(), "the logit scale is a factor of N_i",
             observe=lambda fn, x, p, v, s: fn(x, p, v, 2 * s) - 2 * fn(x, p, v, s)),
        Case("if all tokens carry the same value, attention cannot change anything: N_i = 0", "edge",
             lambda: (*_head_parts(seed=4)[:2], torch.ones(5, 2).double(), 0.5),
             lambda x, p, v, s: torch.zeros(5, 2, 4).double(), "Λ_i must be centred: diag(p_i) − p_i p_iᵀ"),
    ),
    (
        ("the logit scale s = 1/√d_k is missing", lambda x, p, v, s: slopes(x, p, v, 1.0)),
        ("the centring is missing: Λ_i = diag(p_i) − p_i p_iᵀ, or v_j − a_i in place of v_j",
         lambda x, p, v, s: s * v.mT @ torch.diag_embed(p) @ x),
        ("wrong axis: Λ_i comes from row i of P (the weights of token i), not from column i",
         lambda x, p, v, s: slopes(x, p.mT, v, s)),
        ("each N_i is transposed: (d_v, D), value channels first", lambda x, p, v, s: slopes(x, p, v, s).mT),
        ("you summed over the tokens i: keep one N_i a token, shape (n, d_v, D)",
         lambda x, p, v, s: slopes(x, p, v, s).sum(0)),
    ),
    slopes,
)  # fmt: skip


def _gram_parts(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x, q, px, slopes, w_k of a random head with n = 4, D = 5, d_k = 3, d_v = 2."""
    x, w_q, w_k, w_v = random_head(4, 5, 3, 2, seed=seed)
    p = AttentionJacobian(x, w_q, w_k, w_v).attention()
    return x, x @ w_q, p @ x, slopes(x, p, x @ w_v, 3**-0.5), w_k


def gram(x: Tensor, q: Tensor, px: Tensor, n_i: Tensor, w_k: Tensor) -> Tensor:
    """J Jᵀ, (n·d_v, n·d_v), from three products of rows and three of blocks."""
    n, d_v = n_i.shape[:2]
    eye = torch.eye(d_v, dtype=x.dtype).expand(n, d_v, d_v)
    pairs = ((x, n_i @ w_k), (q, n_i), (px, eye))
    return sum((_kron(rows @ rows.mT, d_v) * _block_products(blocks) for rows, blocks in pairs), x.new_zeros(()))


def _kron(small: Tensor, d_v: int) -> Tensor:
    return torch.kron(small.contiguous(), torch.ones(d_v, d_v, dtype=small.dtype))


def _block_products(blocks: Tensor) -> Tensor:
    flat = blocks.reshape(-1, blocks.shape[-1])
    return flat @ flat.mT


def _outer(x: Tensor, q: Tensor, px: Tensor, n_i: Tensor, w_k: Tensor) -> Tensor:
    """As `gram` with the identity of the V block on the tokens, not on the channels."""
    right = torch.kron((px @ px.mT).contiguous(), torch.eye(n_i.shape[1], dtype=x.dtype))
    wrong = torch.eye(len(x), dtype=x.dtype).kron(torch.ones(n_i.shape[1], n_i.shape[1], dtype=x.dtype))
    return gram(x, q, px, n_i, w_k) - right + wrong * _kron(px @ px.mT, n_i.shape[1])


def _autodiff_gram(x: Tensor, q: Tensor, px: Tensor, n_i: Tensor, w_k: Tensor) -> Tensor:
    """J Jᵀ of the head of `_gram_parts(seed=0)` by `jacrev`."""
    _, *weights = random_head(4, 5, 3, 2, seed=0)
    blocks = jacrev(lambda a, b, c: (3**-0.5 * x @ a @ b.mT @ x.mT).softmax(-1) @ x @ c, argnums=(0, 1, 2))(*weights)
    j = torch.cat([block.reshape(8, -1) for block in blocks], 1)
    return j @ j.mT


GRAM = Exercise(
    "02.gram", "the Gram form",
    (
        Case("J Jᵀ with J from autodiff, 4 tokens of 2 value channels", "reference", lambda: _gram_parts(seed=0),
             _autodiff_gram, "block (i, j) has three terms, for Q, K and V; rows are ordered (token, channel)"),
        Case("without attention's slopes only the V block is left: (PX)(PX)ᵀ ⊗ I", "edge",
             lambda: (*_gram_parts(seed=1)[:3], torch.zeros(4, 2, 5).double(), _gram_parts(seed=1)[4]),
             lambda x, q, px, n_i, w_k: torch.kron((px @ px.mT).contiguous(), torch.eye(2).double()),
             "the V term is (PX)_i·(PX)_j times the identity over value channels"),
        Case("with W_K = 0 and PX = 0 only the K block is left: (q_i·q_j) N_i N_jᵀ", "property",
             lambda: (*_gram_parts(seed=2)[:2], torch.zeros(4, 5).double(), _gram_parts(seed=2)[3],
                      torch.zeros(5, 3).double()),
             gram, "the K term takes the queries q_i·q_j and the slopes without W_K"),
        Case("its eigenvalues are the squared singular values of J", "property", lambda: _gram_parts(seed=3),
             lambda *parts: AttentionJacobian(*random_head(4, 5, 3, 2, seed=3)).singular_values().square().flip(0),
             "all three terms are needed, each with its own inner products of rows",
             observe=lambda fn, *parts: torch.linalg.eigvalsh(fn(*parts))),
    ),
    (
        ("the Q term needs N_i W_K, not N_i alone",
         lambda x, q, px, n_i, w_k: gram(x, q, px, n_i, torch.eye(x.shape[1], dtype=x.dtype))),
        ("the K term goes with the queries q_i·q_j, not with x_i·x_j",
         lambda x, q, px, n_i, w_k: gram(x, x, px, n_i, w_k)),
        ("the V term takes rows of PX, what attention has mixed, not of X",
         lambda x, q, px, n_i, w_k: gram(x, q, x, n_i, w_k)),
        ("the V term is missing", lambda x, q, px, n_i, w_k: gram(x, q, 0 * px, n_i, w_k)),
        ("the identity of the V term is over value channels, (PX)(PX)ᵀ ⊗ I, for every pair of tokens", _outer),
        ("the rows are ordered (channel, token); the order here is (token, channel)",
         lambda x, q, px, n_i, w_k: gram(x, q, px, n_i, w_k).reshape(4, 2, 4, 2).permute(1, 0, 3, 2).reshape(8, 8)),
    ),
    gram,
)  # fmt: skip


def expected_rank(n: int, dim: int, d_k: int, d_v: int) -> int:
    """min(rows, columns − d_k²)."""
    return min(n * d_v, dim * (2 * d_k + d_v) - d_k**2)


def _measured_rank(n: int, dim: int, d_k: int, d_v: int) -> int:
    return int(AttentionJacobian(*random_head(n, dim, d_k, d_v)).condition_number().rank)


RANK = Exercise(
    "02.rank", "the rank of J",
    (
        Case("20 tokens, D = 4, d_k = d_v = 3: 27", "reference", lambda: (20, 4, 3, 3), lambda *sizes: 27,
             "columns D(2 d_k + d_v), less one direction for each entry of the gauge matrix M (d_k × d_k)"),
        Case("few tokens: the rows set the rank, 64 for n = 4, D = 32, d = 16", "edge", lambda: (4, 32, 16, 16),
             lambda *sizes: 64, "the rank is at most n d_v, the number of rows"),
        Case("as measured on a random head with 24 tokens, D = 4, d = 2", "property", lambda: (24, 4, 2, 2),
             _measured_rank, "columns D(2 d_k + d_v) less d_k²"),
        Case("as measured with values wider than keys, d_k = 2, d_v = 4", "property", lambda: (30, 5, 2, 4),
             _measured_rank, "the gauge matrix is d_k × d_k, whatever d_v is"),
    ),
    (
        ("the gauge directions are missing: subtract d_k²",
         lambda n, dim, d_k, d_v: min(n * d_v, dim * (2 * d_k + d_v))),
        ("the gauge matrix M has d_k² entries, not d_k",
         lambda n, dim, d_k, d_v: min(n * d_v, dim * (2 * d_k + d_v) - d_k)),
        ("the gauge matrix sits between W_Q and W_K: d_k², not d_v²",
         lambda n, dim, d_k, d_v: min(n * d_v, dim * (2 * d_k + d_v) - d_v**2)),
        ("the rank is at most the number of rows, n d_v", lambda n, dim, d_k, d_v: dim * (2 * d_k + d_v) - d_k**2),
        ("J has n d_v rows: one a value channel of every token",
         lambda n, dim, d_k, d_v: min(n, dim * (2 * d_k + d_v) - d_k**2)),
    ),
    expected_rank,
)  # fmt: skip

ENTRIES = (SOFTMAX, SLOPES, GRAM, RANK)
