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
expect("root", bytes(root).hex(), "0f871a1b458ac7c0869bbe7784b0d9e56e72fb2b3d52e175e4adeb37d8401a7f")
expect("root of a salt", bytes(tenant).hex(), "c99da0a3cdc735e69589af4e55d38f09705d52c17b87b9cf5a210642e52f4d2a")
tokens = (ctypes.c_uint32 * 259)(*range(256), 0, 1, 2)
n = library.cistern_key_chain(ctypes.byref(root), tokens, ctypes.c_size_t(259), ctypes.c_uint32(256), keys)
expect("number of keys", n, 2)
expect("first key", bytes(keys[0]).hex(), "133f0c0dabdcfc3e0ce374f28997b036c48f688c0e48580c9ce7cfa7037ef772")
expect("second key", bytes(keys[1]).hex(), "aefa2bb648c654ec399b3e838298b57055da823adb90a4b514f31240e2510cb5")

connection = ctypes.c_void_p()
options = Options(socket_path=b"/nonexistent/socket")
expect("connect", library.cistern_connect(ctypes.byref(options), ctypes.byref(connection)), -errno.ENOENT)
expect("sentence", b"/nonexistent/socket" in library.cistern_error(None), True)

for name in ("ring_producer_init", "message_send", "client_dial"):
    expect(f"export of {name}", hasattr(library, name), False)
