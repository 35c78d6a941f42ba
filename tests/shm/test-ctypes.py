#!/usr/bin/env python3
"""The shared library as a Python program finds it: keys equal the pinned ones, nothing but cistern_* is exported, and
a struct of the header can be filled in from ctypes. Usage: test-ctypes.py LIBCISTERN.SO"""

import ctypes
import errno
import sys

library = ctypes.CDLL(sys.argv[1])
library.cistern_key_chain.restype = ctypes.c_size_t
library.cistern_error.restype = ctypes.c_char_p

Key = ctypes.c_uint8 * 32


class Options(ctypes.Structure):
    _fields_ = [
        ("socket_path", ctypes.c_char_p),
        ("name_space", ctypes.c_char_p),
        ("n_entries", ctypes.c_uint32),
        ("arena_bytes", ctypes.c_uint64),
        ("spin_us", ctypes.c_uint32),
    ]


def expect(what, got, wanted):
    if got != wanted:
        sys.exit(f"{what}: {got!r}, wanted {wanted!r}")


# The same answers as in tests/shm/test-key.c and docs/protocol.md.
root, tenant, keys = Key(), Key(), (Key * 2)()
library.cistern_key_root(None, ctypes.c_size_t(0), ctypes.byref(root))
library.cistern_key_root(b"tenant", ctypes.c_size_t(6), ctypes.byref(tenant))
expect("root", bytes(root).hex(), "e5d9b08477be9b86c0c78a451b1a870f7f1a40d837ebade475e1523d2bfb726e")
expect("root of a salt", bytes(tenant).hex(), "098fd3554eaf8995e635c7cda3a09dc92a4d2fe54206215acfb9877bc1525d70")
tokens = (ctypes.c_uint32 * 259)(*range(256), 0, 1, 2)
n = library.cistern_key_chain(ctypes.byref(root), tokens, ctypes.c_size_t(259), ctypes.c_uint32(256), keys)
expect("number of keys", n, 2)
expect("first key", bytes(keys[0]).hex(), "c545b0b71882f8d6a772f291136f2112bd035d7de0dfa98f2958bcedf2a30038")
expect("second key", bytes(keys[1]).hex(), "64de82fcdbd68e4bfd03bc0b0a57b6d3d8453ba4826b1349d7d5a97855fe60c7")

connection = ctypes.c_void_p()
options = Options(socket_path=b"/nonexistent/socket")
expect("connect", library.cistern_connect(ctypes.byref(options), ctypes.byref(connection)), -errno.ENOENT)
expect("sentence", b"/nonexistent/socket" in library.cistern_error(None), True)

for name in ("ring_producer_init", "message_send", "client_dial"):
    expect(f"export of {name}", hasattr(library, name), False)
