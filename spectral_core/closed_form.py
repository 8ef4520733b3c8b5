"""Theorem 3.3 of arXiv 2603.07162 with the logit scale kept, as matrices, as Gram matrix and as products.

A = Σ_h P_h Y W_V W_O with P = softmax(s X W_Q W_Kᵀ Yᵀ); Y = X in self-attention, W_O = I for one head. Write
u_j = W_Uᵀ y_j with W_U = W_V W_O, a_i = Σ_j p_ij u_j, and N_i = s Σ_j p_ij (u_j − a_i) y_jᵀ, M_i = N_i W_K. Then

    ∂a_i/∂W_Q: x_i ⊗ M_i      ∂a_i/∂W_K: N_i ⊗ q_i      ∂a_i/∂W_V: (P Y)_i ⊗ W_Oᵀ
    ∂a_i/∂x_j = p_ij W_Uᵀ + s p_ij (u_j − a_i)(W_K q_i)ᵀ + δ_ij M_i W_Qᵀ

and block (i, j) of J Jᵀ over the weights is (x_i·x_j) M_i M_jᵀ + (q_i·q_j) N_i N_jᵀ + ((PY)_i·(PY)_j) W_Oᵀ W_O.

The weights p_ij (u_j − a_i) of a row sum to zero over j. In every formula the one at the row's largest p_ij is
set to minus the sum of the others: saturated attention then keeps full relative precision, instead of rounding
noise in place of a derivative that is nearly zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spectral_core._head import Head

CHUNK = 2**21  # entries of a temporary block: 16 MiB in float64


def balance(weights: Tensor, top: Tensor) -> Tensor:
    """Set entry `top` of the last axis to minus the sum of the others, in place."""
    weights.scatter_(-1, top, 0.0)
    return weights.scatter_(-1, top, -weights.sum(-1, keepdim=True))


def value_weights(head: Head) -> Tensor:
    """s p_ij (u_j − a_i), (…, H, n, c, m)."""
    weights = head.p.unsqueeze(-2) * (head.u.mT.unsqueeze(-3) - head.a.unsqueeze(-1))
    top = head.top.unsqueeze(-2).expand(*weights.shape[:-1], 1)
    return head.scale * balance(weights, top)


def slopes(head: Head, role: str) -> Tensor:
    """M_i for "q", (…, H, n, c, d_k); N_i for "k", (…, H, n, c, E)."""
    weights = value_weights(head)
    # one product for all tokens and channels of a head
    return (weights.flatten(-3, -2) @ (head.k if role == "q" else head.y)).unflatten(-2, weights.shape[-3:-1])


def dense(head: Head, roles: str) -> Tensor:
    """J, (…, n·c, columns): rows (token, channel); columns role by role, head by head, each row-major."""
    lead, (n, c) = head.p.shape[:-3], head.rows

    def flatten(block: Tensor) -> Tensor:  # (…, n, c, columns of one role)
        return block.expand(*lead, *block.shape[-block.ndim + len(lead) :]).reshape(*lead, n * c, -1)

    blocks = []
    for role in roles:
        if role == "q":
            block = torch.einsum("...hia,...hicb->...ichab", head.x, slopes(head, "q"))
        elif role == "k":
            block = torch.einsum("...hica,...hib->...ichab", slopes(head, "k"), head.q)
        elif role == "v":
            block = torch.einsum("...hia,...hbc->...ichab", head.py, _mix(head))
        else:
            block = input_block(head, slice(None))
        blocks.append(flatten(block))
    return torch.cat(blocks, -1)


def input_block(head: Head, tokens: slice) -> Tensor:
    """∂A/∂x for the input `tokens`, (…, n, c, tokens, D); in cross-attention with respect to the queries' tokens."""
    m_i = torch.einsum("...hica,...hda->...icd", slopes(head, "q"), head.w_q)
    own = torch.eye(head.rows[0], dtype=head.p.dtype, device=head.p.device)[:, tokens]
    block = torch.einsum("...icd,ij->...icjd", m_i, own)
    if head.is_self:
        keys = torch.einsum("...hdb,...hib->...hid", head.w_k, head.q)
        block = block + torch.einsum("...hij,...hdc->...icjd", head.p[..., tokens], head.w_u)
        block = block + torch.einsum("...hicj,...hid->...icjd", value_weights(head)[..., tokens], keys)
    return block


def gram(
    head: Head, roles: str, *, mirror: bool = True, unit: Tensor | None = None, dtype: torch.dtype = torch.float64
) -> Tensor:
    """J Jᵀ / unit², (…, n·c, n·c), without forming J; only its upper triangle is filled when `mirror` is off.

    Built in blocks of tokens, so that the peak is the result itself and a few MiB.
    """
    lead, (n, c) = head.p.shape[:-3], head.rows
    out = torch.zeros(*lead, n, c, n, c, dtype=dtype, device=head.p.device)
    # dividing before squaring keeps extreme scales inside the range of dtype
    inverse = head.p.new_ones(()) if unit is None else unit.reciprocal()
    # (scalars, rows): block (i, j) gains scalars_ij · rows_i rows_jᵀ
    terms: list[tuple[Tensor, Tensor]] = []
    if "q" in roles:  # all heads read the same x: they are one wide product
        rows = _stretch(inverse, 3) * slopes(head, "q").movedim(-4, -2).flatten(-2)
        terms.append(_level(head.x.squeeze(-3), rows, dtype))
    if "k" in roles:
        rows = _stretch(inverse, 4) * slopes(head, "k")
        terms += [_level(head.q[..., h, :, :], rows[..., h, :, :, :], dtype) for h in range(rows.shape[-4])]
    py = (_stretch(inverse, 3) * head.py).to(dtype)
    pairs, mix = py @ py.mT, None if head.w_o is None else head.w_o.to(dtype)
    per_token = max(1, out.numel() // n)
    step = max(1, min(n, CHUNK // per_token))
    for i in range(0, n, step):
        own, rest = slice(i, i + step), slice(i, n)
        block = out[..., own, :, rest, :]
        for scalars, rows in terms:
            product = rows[..., own, :, :].flatten(-3, -2) @ rows[..., rest, :, :].flatten(-3, -2).mT
            product = product.reshape(*product.shape[:-2], *block.shape[-4:])
            block.addcmul_(product, scalars[..., own, rest].unsqueeze(-2).unsqueeze(-1))
        if "v" in roles and mix is None:
            # W_O = I touches equal channels only: the diagonal of (c, c')
            block.diagonal(dim1=-3, dim2=-1).add_(pairs[..., 0, own, rest].unsqueeze(-1))
        elif "v" in roles:
            block += torch.einsum("...hij,...hbc,...hbd->...icjd", pairs[..., own, rest], mix, mix)
        if mirror:
            out[..., i + step :, :, own, :] = block[..., step:, :].movedim((-4, -3), (-2, -1))
    out = out.flatten(-4, -3).flatten(-2)
    if "x" in roles:
        out += _input_gram(head, inverse)
    return out


def _level(tokens: Tensor, rows: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Inner products of the tokens, and the rows, scaled so that neither leaves the range of dtype."""
    size = tokens.abs().amax((-2, -1), keepdim=True)
    size = torch.where(size > 0, size, torch.ones_like(size))
    tokens = tokens / size
    return (tokens @ tokens.mT).to(dtype), (rows * size.unsqueeze(-1)).to(dtype)


def _input_gram(head: Head, inverse: Tensor) -> Tensor:
    n, c = head.rows
    width = head.w_q.shape[-2]
    step = max(1, min(n, CHUNK // (n * c * width)))
    total = head.p.new_zeros(*head.p.shape[:-3], n * c, n * c)
    for j in range(0, n, step):
        block = input_block(head, slice(j, j + step)).flatten(-4, -3).flatten(-2) * _stretch(inverse, 2)
        total += block @ block.mT
    return total


def norms(head: Head, roles: str) -> dict[str, Tensor]:
    """Frobenius norm of each role's block of J, (…)."""
    found = {}
    for role in roles:
        if role == "q":  # heads share x, but their columns are apart
            blocks = head.x.norm(dim=-1) * slopes(head, "q").norm(dim=(-2, -1))
        elif role == "k":
            blocks = head.q.norm(dim=-1) * slopes(head, "k").norm(dim=(-2, -1))
        elif role == "v":
            blocks = head.py.norm(dim=-1) * _mix(head).norm(dim=(-2, -1)).unsqueeze(-1)
        else:
            blocks = input_block(head, slice(None)).norm(dim=(-3, -1))
        found[role] = blocks.norm(dim=(-2, -1)).expand(head.p.shape[:-3])
    return found


def apply(head: Head, changes: dict[str, Tensor]) -> Tensor:
    """J times a change of each role: the directional derivative of A, (…, z, n, c).

    `changes` maps roles to (…, z, H, rows, columns) as in `Head.widths`, "x" to (…, z, 1, n, D); z counts vectors.
    Costs about two attention forwards a vector and memory z·H·n·m.
    """
    top = head.top.unsqueeze(-4)
    logits: Tensor | None = None
    out: Tensor | None = None
    if "q" in changes:
        logits = _add(logits, _query_logits(head, torch.einsum("...hia,...zhab->...zhib", head.x, changes["q"])))
    if "k" in changes:
        logits = _add(logits, _key_logits(head, torch.einsum("...hja,...zhab->...zhjb", head.y, changes["k"])))
    if "x" in changes:
        moved = changes["x"][..., 0, :, :]
        logits = _add(logits, _query_logits(head, torch.einsum("...zid,...hdb->...zhib", moved, head.w_q)))
        if head.is_self:
            logits = _add(logits, _key_logits(head, torch.einsum("...zjd,...hdb->...zhjb", moved, head.w_k)))
            out = torch.einsum("...hij,...zjd,...hdc->...zic", head.p, moved, head.w_u)
    if logits is not None:
        # adding a constant to a row of logits changes nothing: take out the entry at the largest p
        logits = logits - logits.gather(-1, top.expand(*logits.shape[:-1], 1))
        weighted = head.scale * head.p.unsqueeze(-4) * logits
        soft = torch.einsum("...zhij,...hjc->...zic", weighted, head.u)
        out = _add(out, soft - torch.einsum("...zhi,...hic->...zic", weighted.sum(-1), head.a))
    if "v" in changes:
        moved = torch.einsum("...hia,...zhab->...zhib", head.py, changes["v"])
        out = _add(out, moved.sum(-3) if head.w_o is None else torch.einsum("...zhib,...hbc->...zic", moved, head.w_o))
    assert out is not None
    return out


def apply_transpose(head: Head, g: Tensor, roles: str) -> dict[str, Tensor]:
    """Jᵀ times g (…, z, n, c): the gradient of Σ g·A for each role, shaped as `apply` takes it."""
    found: dict[str, Tensor] = {}
    weights: Tensor | None = None
    if set(roles) & set("qkx"):
        weights = torch.einsum("...zic,...hjc->...zhij", g, head.u)
        weights = weights - torch.einsum("...zic,...hic->...zhi", g, head.a).unsqueeze(-1)
        weights = head.scale * (head.p.unsqueeze(-4) * weights)
        weights = balance(weights, head.top.unsqueeze(-4).expand(*weights.shape[:-1], 1))
        keys = torch.einsum("...zhij,...hjb->...zhib", weights, head.k)
    for role in roles:
        if role == "q":
            found[role] = torch.einsum("...hia,...zhib->...zhab", head.x, keys)
        elif role == "k":
            assert weights is not None
            queries = torch.einsum("...zhij,...hib->...zhjb", weights, head.q)
            found[role] = torch.einsum("...hja,...zhjb->...zhab", head.y, queries)
        elif role == "v":
            back = g.unsqueeze(-3) if head.w_o is None else torch.einsum("...zic,...hbc->...zhib", g, head.w_o)
            found[role] = torch.einsum("...hia,...zhib->...zhab", head.py, back)
        else:
            moved = torch.einsum("...zhib,...hdb->...zid", keys, head.w_q)
            if head.is_self:
                assert weights is not None
                queries = torch.einsum("...zhij,...hib->...zhjb", weights, head.q)
                moved = moved + torch.einsum("...zhjb,...hdb->...zjd", queries, head.w_k)
                moved = moved + torch.einsum("...hij,...zic,...hdc->...zjd", head.p, g, head.w_u)
            found[role] = moved.unsqueeze(-3)
    return found


def pack(parts: dict[str, Tensor]) -> Tensor:
    """Role by role (…, z, H, rows, columns) -> one column a vector, (…, columns, z)."""
    return torch.cat([part.flatten(-3) for part in parts.values()], -1).mT


def unpack(head: Head, columns: Tensor, roles: str) -> dict[str, Tensor]:
    """The inverse of `pack`."""
    widths = {role: head.widths[role] for role in roles}
    sizes = [h * a * b for h, a, b in widths.values()]
    parts = columns.mT.split(sizes, -1)
    return {role: part.unflatten(-1, width) for (role, width), part in zip(widths.items(), parts, strict=True)}


def _stretch(values: Tensor, trailing: int) -> Tensor:
    return values.reshape(*values.shape, *(1,) * trailing)


def _mix(head: Head) -> Tensor:
    if head.w_o is not None:
        return head.w_o
    return torch.eye(head.d_v, dtype=head.p.dtype, device=head.p.device).unsqueeze(0)


def _query_logits(head: Head, queries: Tensor) -> Tensor:
    return torch.einsum("...zhib,...hjb->...zhij", queries, head.k)


def _key_logits(head: Head, keys: Tensor) -> Tensor:
    return torch.einsum("...hib,...zhjb->...zhij", head.q, keys)


def _add(total: Tensor | None, term: Tensor) -> Tensor:
    return term if total is None else total + term
