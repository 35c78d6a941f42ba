"""XXH3 with the default secret, in numpy: 64 bits of any input, with a seed, and 128 bits of inputs over 16 bytes, without.

Source: https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md. Written for checking, not for speed.
"""

import numpy as np

SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671fcb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6"
    "813a264c3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931"
    "c89f7ec9d9787364eac5ac8334d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f"
    "95160428afd7fbcabb4b407e")
P32 = None, 0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D
P64 = None, 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5
ALL = (1 << 64) - 1


def word(data, at, size=8):
    return int.from_bytes(data[at:at + size], "little")


def swapped(x, size=8):
    return int.from_bytes(x.to_bytes(size, "little"), "big")


def folded(a, b):
    product = a * b
    return product & ALL ^ product >> 64


def turned(x, n):
    return (x << n | x >> 64 - n) & ALL


def avalanche(x):
    x = (x ^ x >> 37) * 0x165667919E3779F9 & ALL
    return x ^ x >> 32


def avalanche_64(x):
    """XXH64's"""
    x = (x ^ x >> 33) * P64[2] & ALL
    x = (x ^ x >> 29) * P64[3] & ALL
    return x ^ x >> 32


def mix(data, at, secret, seed=0):
    return folded(word(data, at) ^ word(SECRET, secret) + seed & ALL, word(data, at + 8) ^ word(SECRET, secret + 8) - seed & ALL)


def short(data, seed):
    n = len(data)
    if n == 0:
        return avalanche_64(seed ^ word(SECRET, 56) ^ word(SECRET, 64))
    if n < 4:
        together = data[0] << 16 | data[n >> 1] << 24 | data[-1] | n << 8
        return avalanche_64(together ^ (word(SECRET, 0, 4) ^ word(SECRET, 4, 4)) + seed & ALL)
    if n < 9:
        seed ^= swapped(seed & 0xFFFFFFFF, 4) << 32
        x = word(data, n - 4, 4) + (word(data, 0, 4) << 32) ^ (word(SECRET, 8) ^ word(SECRET, 16)) - seed & ALL
        x = (x ^ turned(x, 49) ^ turned(x, 24)) * 0x9FB21C651E98DF25 & ALL
        x = (x ^ (x >> 35) + n) * 0x9FB21C651E98DF25 & ALL
        return x ^ x >> 28
    low = word(data, 0) ^ (word(SECRET, 24) ^ word(SECRET, 32)) + seed & ALL
    high = word(data, n - 8) ^ (word(SECRET, 40) ^ word(SECRET, 48)) - seed & ALL
    return avalanche(n + swapped(low) + high + folded(low, high) & ALL)


def lanes(data, secret):
    """The eight sums over an input of more than 240 bytes."""
    acc = np.array([P32[3], P64[1], P64[2], P64[3], P64[4], P32[2], P64[5], P32[1]], "<u8")
    keys = np.stack([np.frombuffer(secret[8 * i:8 * i + 64], "<u8") for i in range(16)])

    def add(stripes, keys):
        mixed = stripes ^ keys
        return ((mixed & np.uint64(0xFFFFFFFF)) * (mixed >> np.uint64(32)) + stripes[:, [1, 0, 3, 2, 5, 4, 7, 6]]).sum(0)

    n_blocks = (len(data) - 1) // 1024
    for i in range(n_blocks):
        acc += add(np.frombuffer(data[1024 * i:1024 * (i + 1)], "<u8").reshape(16, 8), keys)
        acc ^= acc >> np.uint64(47)
        acc ^= np.frombuffer(secret[128:], "<u8")
        acc *= np.uint64(P32[1])
    n_stripes = (len(data) - 1 - 1024 * n_blocks) // 64
    rest = np.frombuffer(data[1024 * n_blocks:1024 * n_blocks + 64 * n_stripes], "<u8").reshape(-1, 8)
    acc += add(rest, keys[:n_stripes])
    return acc + add(np.frombuffer(data[-64:], "<u8").reshape(1, 8), np.frombuffer(secret[121:185], "<u8"))


def merged(acc, secret, start):
    for i in range(4):
        start += folded(int(acc[2 * i]) ^ word(secret, 16 * i), int(acc[2 * i + 1]) ^ word(secret, 16 * i + 8))
    return avalanche(start & ALL)


def seeded(seed):
    out = b""
    for i in range(0, 192, 16):
        out += (word(SECRET, i) + seed & ALL).to_bytes(8, "little") + (word(SECRET, i + 8) - seed & ALL).to_bytes(8, "little")
    return out


def xxh3_64(data, seed=0):
    n = len(data)
    if n <= 16:
        return short(data, seed)
    total = n * P64[1]
    if n <= 128:
        for i in range((n - 1) // 32, -1, -1):
            total += mix(data, 16 * i, 32 * i, seed) + mix(data, n - 16 * (i + 1), 32 * i + 16, seed)
        return avalanche(total & ALL)
    if n <= 240:
        total = avalanche(total + sum(mix(data, 16 * i, 16 * i, seed) for i in range(8)) & ALL)
        total += sum(mix(data, 16 * i, 16 * (i - 8) + 3, seed) for i in range(8, n // 16))
        return avalanche(total + mix(data, n - 16, 136 - 17, seed) & ALL)
    secret = seeded(seed)
    return merged(lanes(data, secret), secret[11:], total)


def xxh3_128(data):
    """-> 16 bytes, the canonical form"""
    n = len(data)
    assert n > 16
    if n > 240:
        acc = lanes(data, SECRET)
        low, high = merged(acc, SECRET[11:], n * P64[1]), merged(acc, SECRET[117:], ~(n * P64[2]) & ALL)
        return high.to_bytes(8, "big") + low.to_bytes(8, "big")
    low, high = n * P64[1] & ALL, 0

    def mix_pair(a, b, secret):
        nonlocal low, high
        low = (low + mix(data, a, secret) & ALL) ^ word(data, b) + word(data, b + 8) & ALL
        high = (high + mix(data, b, secret + 16) & ALL) ^ word(data, a) + word(data, a + 8) & ALL

    if n <= 128:
        for i in range((n - 1) // 32, -1, -1):
            mix_pair(16 * i, n - 16 * (i + 1), 32 * i)
    else:
        for at in range(0, n - 31, 32):
            mix_pair(at, at + 16, at if at < 128 else at - 128 + 3)
            if at == 96:
                low, high = avalanche(low), avalanche(high)
        mix_pair(n - 16, n - 32, 136 - 17 - 16)
    total = low * P64[1] + high * P64[4] + n * P64[2] & ALL
    return (-avalanche(total) & ALL).to_bytes(8, "big") + avalanche(low + high & ALL).to_bytes(8, "big")
