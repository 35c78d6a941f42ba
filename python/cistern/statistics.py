"""The daemon's statistics page (docs/statistics.md): read without the daemon noticing."""

import mmap
import os
import select
import struct
import time
from ctypes import byref, c_int

from .library import Error, check, lib, path_bytes

_COUNTER, _GAUGE, _HISTOGRAM, _TEXT = 1, 2, 3, 4
_REAL = 3


def _text(raw):
    return raw.split(b"\0", 1)[0].decode("utf-8", "replace")


class Histogram:
    """Durations, as counts of logarithmic buckets. first_ns and steps are the page's."""

    def __init__(self, words, first_ns, steps):
        self.sum_ns, self.buckets = words[0], words[1:]
        self._first_ns, self._steps = first_ns, steps

    @property
    def count(self):
        return sum(self.buckets)

    def end_ns(self, i):
        """Where bucket i ends."""
        if i == 0:
            return self._first_ns
        doubling, step = divmod(i - 1, self._steps)
        return self._first_ns * 2 ** doubling * (1 + (step + 1) / self._steps)

    def quantile_ns(self, q):
        """The end of the bucket in which the q-th part of all durations is reached; 0 when there are none."""
        wanted, n = q * self.count, 0
        for i, count in enumerate(self.buckets):
            n += count
            if n and n >= wanted:
                return self.end_ns(min(i, len(self.buckets) - 2))
        return 0


class Statistics:
    """A hold on the page of a daemon. read() returns {"daemon": {...}, "caches": [{...}, ...]}, whose names are the
    page's own. alive says whether the daemon still runs; the last state can be read all the same."""

    def __init__(self, socket=None, timeout_ms=5000):
        page, alive = c_int(-1), c_int(-1)
        check(lib.cistern_statistics(path_bytes(socket), byref(page), byref(alive), timeout_ms))
        self._alive = alive.value
        try:
            self._page = mmap.mmap(page.value, 0, prot=mmap.PROT_READ)
        finally:
            os.close(page.value)
        magic, version = struct.unpack_from("<II", self._page)
        if (magic, version) != (0x54535343, 1):
            raise Error(71, f"a statistics page of version {version}, which this package does not know")
        (n_groups,) = struct.unpack_from("<I", self._page, 16)
        self._first_ns, self._steps = struct.unpack_from("<II", self._page, 24)
        self._groups = [self._group(64 + 48 * i) for i in range(n_groups)]
        self._sequence = 64 + 48 * n_groups + (-(64 + 48 * n_groups) % 64)

    def _group(self, at):
        name, size, _, records, fields, n, _ = struct.unpack_from("<16sIIQQII", self._page, at)
        described = []
        for i in range(n):
            raw = struct.unpack_from("<40s48s32s120sIIII", self._page, fields + 256 * i)
            described.append((_text(raw[0]), raw[4], raw[5], raw[6], raw[7]))
        return _text(name), size, records, described

    @property
    def alive(self):
        return self._alive >= 0 and not select.select([self._alive], [], [], 0)[0]

    def close(self):
        if self._alive >= 0:
            os.close(self._alive)
            self._page.close()
        self._alive = -1

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _copy(self):
        """One try at a copy of all records; None when the daemon wrote meanwhile. Loads are not reordered with loads on
        the machines that Cistern runs on, so the interpreter's own are enough."""
        before = struct.unpack_from("<Q", self._page, self._sequence)[0]
        if before & 1:
            return None
        counts = struct.unpack_from(f"<{len(self._groups)}Q", self._page, self._sequence + 16)
        copies = [self._page[records:records + size * n]
                  for (_, size, records, _), n in zip(self._groups, counts)]
        after = struct.unpack_from("<Q", self._page, self._sequence)[0]
        return copies if after == before else None

    def read(self):
        deadline = time.monotonic() + 0.1
        while (copies := self._copy()) is None:
            if time.monotonic() > deadline:
                raise Error(11, "the page cannot be read: its daemon was killed while it wrote")
            time.sleep(0)
        result = {}
        for (name, size, _, fields), copy in zip(self._groups, copies):
            result[name] = [self._record(copy, at, fields) for at in range(0, len(copy), size)]
        return {"daemon": result["daemon"][0], "caches": result["cache"]}

    def _record(self, copy, at, fields):
        record = {}
        for name, offset, length, kind, unit in fields:
            if kind in (_COUNTER, _GAUGE):
                (record[name],) = struct.unpack_from("<d" if unit == _REAL else "<Q", copy, at + offset)
            elif kind == _TEXT:
                record[name] = _text(copy[at + offset:at + offset + length])
            elif kind == _HISTOGRAM:
                words = struct.unpack_from(f"<{length // 8}Q", copy, at + offset)
                record[name] = Histogram(words, self._first_ns, self._steps)
        return record
