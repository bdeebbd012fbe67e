# mypy: ignore-errors
"""The fused backend's GPU kernels, launched by `fused.py` and derived in README.md.

A *line* is a row or a column of the grid, with `length` positions. Each program handles one tile of one line
and is the same for rows and columns. Every kernel is launched for the rows first, then with RESUME for the
columns: it then continues from the rows' result and skips each position itself, which the rows have counted.

A tensor is passed as (pointer, strides). The strides are those of the batch, of the head, from line to line
and along a line; head_dim is dense. Scores and log-sum-exps are in base 2, like the hardware's exponential.
"""

import triton
import triton.language as tl


@triton.jit
def attend(
    query, key, value, partial, out, lse, heads, lines, length, scale,
    HEAD_DIM: tl.constexpr, DIM: tl.constexpr, TILE: tl.constexpr, STEP: tl.constexpr,
    PRECISION: tl.constexpr, RESUME: tl.constexpr,
):  # fmt: skip
    """Compute the output and log-sum-exp of a tile of queries against the keys of its line."""
    start, line = _locate_tile(heads, lines, length, TILE)
    query, key, value = _along(query, line), _along(key, line), _along(value, line)
    partial, out, lse = _along(partial, line), _along(out, line), _along(lse, line)
    queries = start + tl.arange(0, TILE)
    q = _load_vectors(query, queries, length, HEAD_DIM, DIM)
    if RESUME:
        peak = _load_scalars(lse, queries, length)
        total = tl.full([TILE], 1.0, tl.float32)
        attended = _load_vectors(partial, queries, length, HEAD_DIM, DIM)
    else:
        peak = tl.full([TILE], float("-inf"), tl.float32)
        total = tl.zeros([TILE], tl.float32)
        attended = tl.zeros([TILE, DIM], tl.float32)

    for first in range(0, length, STEP):
        keys = first + tl.arange(0, STEP)
        k = _load_vectors(key, keys, length, HEAD_DIM, DIM)
        v = _load_vectors(value, keys, length, HEAD_DIM, DIM)
        scores = _scores(q, k, queries, keys, length, scale, PRECISION, RESUME)
        risen = tl.maximum(peak, tl.max(scores, 1))
        weights = tl.exp2(scores - risen[:, None])
        decay = tl.exp2(peak - risen)
        total = total * decay + tl.sum(weights, 1)
        attended = tl.dot(weights.to(v.dtype), v, attended * decay[:, None], input_precision=PRECISION)
        peak = risen

    _store_vectors(out, queries, length, attended / total[:, None], HEAD_DIM, DIM)
    _store_scalars(lse, queries, length, peak + tl.log2(total))


@triton.jit
def differentiate_query(
    query, key, value, grad, out, partial, grad_query, lse, delta, heads, lines, length, scale,
    HEAD_DIM: tl.constexpr, DIM: tl.constexpr, TILE: tl.constexpr, STEP: tl.constexpr,
    PRECISION: tl.constexpr, RESUME: tl.constexpr,
):  # fmt: skip
    """Compute a tile of the queries' gradient. The row launch also stores delta = grad . out for later."""
    start, line = _locate_tile(heads, lines, length, TILE)
    query, key, value = _along(query, line), _along(key, line), _along(value, line)
    grad, out, partial = _along(grad, line), _along(out, line), _along(partial, line)
    grad_query, lse, delta = _along(grad_query, line), _along(lse, line), _along(delta, line)
    queries = start + tl.arange(0, TILE)
    q = _load_vectors(query, queries, length, HEAD_DIM, DIM)
    g = _load_vectors(grad, queries, length, HEAD_DIM, DIM)
    peak = _load_scalars(lse, queries, length)
    if RESUME:
        d = _load_scalars(delta, queries, length)
    else:
        o = _load_vectors(out, queries, length, HEAD_DIM, DIM)
        d = tl.sum(g.to(tl.float32) * o.to(tl.float32), 1)
        _store_scalars(delta, queries, length, d)

    dq = tl.zeros([TILE, DIM], tl.float32)
    for first in range(0, length, STEP):
        keys = first + tl.arange(0, STEP)
        k = _load_vectors(key, keys, length, HEAD_DIM, DIM)
        v = _load_vectors(value, keys, length, HEAD_DIM, DIM)
        weights = tl.exp2(_scores(q, k, queries, keys, length, scale, PRECISION, RESUME) - peak[:, None])
        ds = weights * (tl.dot(g, tl.trans(v), input_precision=PRECISION) - d[:, None])
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)

    dq *= scale
    if RESUME:
        dq += _load_vectors(partial, queries, length, HEAD_DIM, DIM)
    _store_vectors(grad_query, queries, length, dq, HEAD_DIM, DIM)


@triton.jit
def differentiate_key_value(
    query, key, value, grad, partial_key, partial_value, grad_key, grad_value, lse, delta,
    heads, lines, length, scale,
    HEAD_DIM: tl.constexpr, DIM: tl.constexpr, TILE: tl.constexpr, STEP: tl.constexpr,
    PRECISION: tl.constexpr, RESUME: tl.constexpr,
):  # fmt: skip
    """Compute a tile of the keys' and values' gradients, from the queries in the keys' line."""
    start, line = _locate_tile(heads, lines, length, TILE)
    query, key, value, grad = _along(query, line), _along(key, line), _along(value, line), _along(grad, line)
    partial_key, partial_value = _along(partial_key, line), _along(partial_value, line)
    grad_key, grad_value = _along(grad_key, line), _along(grad_value, line)
    lse, delta = _along(lse, line), _along(delta, line)
    keys = start + tl.arange(0, TILE)
    k = _load_vectors(key, keys, length, HEAD_DIM, DIM)
    v = _load_vectors(value, keys, length, HEAD_DIM, DIM)

    dk = tl.zeros([TILE, DIM], tl.float32)
    dv = tl.zeros([TILE, DIM], tl.float32)
    for first in range(0, length, STEP):
        queries = first + tl.arange(0, STEP)
        q = _load_vectors(query, queries, length, HEAD_DIM, DIM)
        g = _load_vectors(grad, queries, length, HEAD_DIM, DIM)
        peak = _load_scalars(lse, queries, length)
        d = _load_scalars(delta, queries, length)
        weights = tl.exp2(_scores(k, q, keys, queries, length, scale, PRECISION, RESUME) - peak[None, :])
        dv = tl.dot(weights.to(g.dtype), g, dv, input_precision=PRECISION)
        ds = weights * (tl.dot(v, tl.trans(g), input_precision=PRECISION) - d[None, :])
        dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)

    dk *= scale
    if RESUME:
        dk += _load_vectors(partial_key, keys, length, HEAD_DIM, DIM)
        dv += _load_vectors(partial_value, keys, length, HEAD_DIM, DIM)
    _store_vectors(grad_key, keys, length, dk, HEAD_DIM, DIM)
    _store_vectors(grad_value, keys, length, dv, HEAD_DIM, DIM)


@triton.jit
def _locate_tile(heads, lines, length, TILE: tl.constexpr):
    """Return the first position of this program's tile, and its line as (batch, head, line)."""
    program = tl.program_id(0)
    tiles = tl.cdiv(length, TILE)  # tiles of a line are adjacent, because they read the same keys
    start = program % tiles * TILE
    program = (program // tiles).to(tl.int64)  # offsets in large images exceed 32 bits
    return start, (program // lines // heads, program // lines % heads, program % lines)


@triton.jit
def _along(tensor, line):
    """Return the pointer to the first position of a line, and the stride to the next position."""
    pointer, strides = tensor
    return pointer + line[0] * strides[0] + line[1] * strides[1] + line[2] * strides[2], strides[3]


@triton.jit
def _scores(left, right, rows, columns, length, scale, PRECISION: tl.constexpr, SKIP_SELF: tl.constexpr):
    """Return left @ right.T in base 2, -inf past the end of the line and, with SKIP_SELF, at row = column."""
    scores = tl.dot(left, tl.trans(right), input_precision=PRECISION) * (scale * 1.4426950408889634)
    scores += tl.where(columns < length, 0.0, float("-inf"))[None, :]
    if SKIP_SELF:
        scores = tl.where(rows[:, None] == columns[None, :], float("-inf"), scores)
    return scores


@triton.jit
def _load_vectors(along, positions, length, HEAD_DIM: tl.constexpr, DIM: tl.constexpr):
    """Load (positions, DIM), with zeros past the end of the line and of the head."""
    dims = tl.arange(0, DIM)[None, :]
    pointers = along[0] + positions.to(tl.int64)[:, None] * along[1] + dims
    return tl.load(pointers, mask=(positions < length)[:, None] & (dims < HEAD_DIM), other=0.0)


@triton.jit
def _store_vectors(along, positions, length, vectors, HEAD_DIM: tl.constexpr, DIM: tl.constexpr):
    dims = tl.arange(0, DIM)[None, :]
    pointers = along[0] + positions.to(tl.int64)[:, None] * along[1] + dims
    tl.store(pointers, vectors, mask=(positions < length)[:, None] & (dims < HEAD_DIM))


@triton.jit
def _load_scalars(along, positions, length):
    return tl.load(along[0] + positions.to(tl.int64) * along[1], mask=positions < length, other=0.0)


@triton.jit
def _store_scalars(along, positions, length, scalars):
    tl.store(along[0] + positions.to(tl.int64) * along[1], scalars, mask=positions < length)
