"""Plain KVTC in numpy: the codec of "KV Cache Transform Coding for Compact Storage in LLM Inference" (arXiv 2511.01815)
as the reference that Cistern is measured against. tools/bench-rate/codecs/kvtc.c is the same in C; check_kvtc.py holds
one against the other.

From the paper:
- keys with their rotation undone, and values, each concatenated over layers (a token is one row), mean subtracted;
- principal components of calibration data, computed once; coefficients in order of falling variance;
- bits by dynamic programming over runs of components: groups of 1, 16, 64, 256 or 1024, each left out, or coded with
  integers of 2 or 4 bits or 8-bit floats, so that the squared error on calibration coefficients is least under a budget
  of bits a token; an active group spends 32 bits more for a 16-bit scale and a 16-bit shift of every token;
- DEFLATE over what comes out;
- the first 4 tokens and the last 128 stay as they are (the caller's business here).
The paper's full text was not at hand: this is its abstract, the review of it at themoonlight.io (calibration, sinks,
window) and two public re-implementations that agree on group sizes, types and side information: github.com/Hmbown/ZMLX
(src/zmlx/kvtc/calibration) and github.com/sgl-project/sglang pull request 21768.

Chosen here, where the paper leaves it open or its text does not say:
- scale and shift are f16: integers count from the group's least value in steps of (max - min) / (2^bits - 1); 8-bit
  floats are e4m3 around the middle of the range, whose half is scaled to 448, the format's largest value;
- keys and values have budgets of their own, source bits over the nominal ratio, both the same ratio; DEFLATE comes on
  top, so that the measured ratio is higher than the nominal one;
- the layout in front of DEFLATE: side information and the codes of each type are streams of their own, for each layer
  group and chunk; codes lie component after component, packed; halves are split into low and high bytes. Of five layouts
  tried on cistern-mini's KV it took the fewest bytes at 8x and 16x: 1% less than token after token, 3 to 6% less than
  all in one stream. Each stream is the shorter of zlib's level 9 and Huffman coding alone, plus 4 bytes for its length;
- the allocation is decided on at most 1024 calibration tokens, spread evenly; a plan's zero groups cost nothing.
"""

import zlib

import numpy as np

SIZES = (1, 16, 64, 256, 1024)
NONE, INT2, INT4, FP8 = range(4)
BITS = (0, 2, 4, 8)
SIDE_BITS = 32
E4M3_MAX = np.float32(448)


def unrotate(x, inv_freq, positions):
    """Half-split rotary positions undone; x: [tokens, ..., dim]"""
    half = x.shape[-1] // 2
    angle = (positions[:, None] * inv_freq[None, :]).reshape((len(x),) + (1,) * (x.ndim - 2) + (half,))
    a, b = x[..., :half].astype("f8"), x[..., half:].astype("f8")
    return np.concatenate([a * np.cos(angle) + b * np.sin(angle), b * np.cos(angle) - a * np.sin(angle)], axis=-1)


def rotate(x, inv_freq, positions):
    return unrotate(x, inv_freq, -positions)


def calibrate(x):
    """x: [tokens, features] -> mean, variances (falling), basis (rows)"""
    mean = x.mean(axis=0)
    variance, vectors = np.linalg.eigh(np.cov(x.T, bias=True))
    return mean, variance[::-1], vectors[:, ::-1].T


def round_e4m3(v):
    magnitude = np.minimum(np.abs(v), E4M3_MAX)
    _, exponent = np.frexp(np.maximum(magnitude, np.float32(2) ** -6))
    ulp = np.ldexp(np.float32(1), exponent - 4)  # frexp's mantissa is below 1: three bits follow the leading one
    return np.copysign(np.rint(magnitude / ulp) * ulp, v)


def e4m3_bytes(v):
    magnitude = np.abs(v)
    mantissa, exponent = np.frexp(magnitude)
    normal = ((exponent - 1 + 7) * 8 + (mantissa * 16 - 8)).astype("i4")
    code = np.where(magnitude < np.float32(2) ** -6, np.rint(magnitude * 512).astype("i4"), normal)
    return (code | np.where(np.signbit(v), 128, 0)).astype("u1")


def quantise(group, kind):
    """group: [components, tokens] f32 -> codes' values, shift, scale (f16), all f32 arithmetic"""
    least, most = group.min(axis=0), group.max(axis=0)
    shift = (least + most) * np.float32(0.5) if kind == FP8 else least
    steps = 2 * E4M3_MAX if kind == FP8 else np.float32(2 ** BITS[kind] - 1)
    shift, scale = shift.astype("f2"), ((most - least) / steps).astype("f2")
    divisor = np.where(scale > 0, scale.astype("f4"), np.float32(np.inf))
    v = (group - shift.astype("f4")) / divisor
    codes = round_e4m3(v) if kind == FP8 else np.clip(np.rint(v), 0, steps)
    return codes.astype("f4"), shift, scale


def dequantise(codes, shift, scale):
    return codes * scale.astype("f4") + shift.astype("f4")


def group_error(group, kind):
    back = dequantise(*quantise(group, kind)) if kind else np.float32(0)
    return float(((group - back).astype("f8") ** 2).sum())


def allocate(c, budgets):
    """c: [components, tokens] f32; -> for each budget (bits a token) a list of (size, kind), and its squared error"""
    n, most = len(c), max(budgets)
    best = np.full((n + 1, most + 1), np.inf)
    best[0] = 0
    choice = np.zeros((n + 1, most + 1), "i4")
    for end in range(1, n + 1):
        for s, size in enumerate(SIZES):
            if size > end:
                break
            for kind in range(4):
                cost = size * BITS[kind] + SIDE_BITS if kind else 0
                if cost > most:
                    continue
                error = best[end - size, :most + 1 - cost] + group_error(c[end - size:end], kind)
                better = error < best[end, cost:]
                best[end, cost:][better] = error[better]
                choice[end, cost:][better] = s * 4 + kind
    plans = []
    for budget in budgets:
        groups, end, bits = [], n, budget
        while end:
            s, kind = divmod(int(choice[end, bits]), 4)
            if kind or groups:
                groups.append((SIZES[s], kind))
            bits -= SIZES[s] * BITS[kind] + SIDE_BITS if kind else 0
            end -= SIZES[s]
        plans.append((groups[::-1], best[n, budget]))
    return plans


def pack(codes, bits):
    """[tokens] integers, least significant bit first, to whole bytes"""
    return np.packbits(((codes[:, None] >> np.arange(bits)) & 1).astype("u1").ravel(), bitorder="little").tobytes()


def split(halves):
    pairs = np.frombuffer(halves.tobytes(), "u1").reshape(-1, 2)
    return pairs[:, 0].tobytes() + pairs[:, 1].tobytes()


def code(c, plan):
    """c: [components, tokens] f32 -> streams (side information, then one for each kind) and the restored c"""
    streams, restored, at = [b"", b"", b"", b""], np.zeros_like(c), 0
    for size, kind in plan:
        if kind:
            codes, shift, scale = quantise(c[at:at + size], kind)
            streams[0] += split(shift) + split(scale)
            for row in e4m3_bytes(codes) if kind == FP8 else codes.astype("u1"):
                streams[kind] += pack(row, BITS[kind])
            restored[at:at + size] = dequantise(codes, shift, scale)
        at += size
    return streams, restored


def decode(streams, plan, n_components, n_tokens):
    """The way back from bytes alone."""
    c, at, ends = np.zeros((n_components, n_tokens), "f4"), 0, [0, 0, 0, 0]

    def take(stream, n_bytes):
        ends[stream] += n_bytes
        return np.frombuffer(streams[stream][ends[stream] - n_bytes:ends[stream]], "u1")

    def halves():
        return np.stack([take(0, n_tokens), take(0, n_tokens)], axis=1).copy().view("<f2").ravel()

    for size, kind in plan:
        if kind:
            shift, scale = halves(), halves()
            for i in range(at, at + size):
                bits = np.unpackbits(take(kind, (n_tokens * BITS[kind] + 7) // 8), bitorder="little")
                codes = bits[:n_tokens * BITS[kind]].reshape(n_tokens, -1) @ (1 << np.arange(BITS[kind]))
                c[i] = dequantise(e4m3_values(codes) if kind == FP8 else codes.astype("f4"), shift, scale)
        at += size
    assert ends == [len(s) for s in streams]
    return c


def e4m3_values(codes):
    exponent, mantissa = codes >> 3 & 15, codes & 7
    magnitude = np.where(exponent, np.ldexp(8.0 + mantissa, exponent - 10), np.ldexp(1.0 * mantissa, -9))
    return np.where(codes & 128, -magnitude, magnitude).astype("f4")


def deflated_bytes(body):
    if not body:
        return 0

    def size(level, strategy):
        z = zlib.compressobj(level, zlib.DEFLATED, -15, 9, strategy)
        return len(z.compress(body) + z.flush())

    return min(len(body), size(9, zlib.Z_DEFAULT_STRATEGY), size(1, zlib.Z_HUFFMAN_ONLY)) + 4
