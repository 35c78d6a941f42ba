"""libcistern by ctypes: its structs and functions as <cistern.h> declares them, and nothing more."""

import ctypes
import errno
import os
import pathlib
from ctypes import POINTER, Structure, c_char_p, c_float, c_int, c_int32, c_size_t, c_uint8, c_uint32, c_uint64
from ctypes import c_void_p

F16, BF16, F32 = 1, 2, 3
ROPE_NONE, ROPE_HALF, ROPE_INTERLEAVED = 0, 1, 2
LAYERWISE = 1  # of a request
MORE = 1  # of a completion
QUERIES, SUMS = 1, 2  # kinds of an observation
MEMORY_MEMFD, MEMORY_CUDA_IPC, MEMORY_CUDA_VMM = 0, 2, 3
PRESETS = {None: 0, "archival": 1, "balanced": 2, "compact": 3}


class Error(OSError):
    """A call that failed: errno, and libcistern's sentence about it."""


class Key(Structure):
    _fields_ = [("bytes", c_uint8 * 32)]


class Options(Structure):
    _fields_ = [("socket_path", c_char_p), ("name_space", c_char_p), ("n_entries", c_uint32),
                ("arena_bytes", c_uint64), ("spin_us", c_uint32)]


class Plane(Structure):
    _fields_ = [("n_heads", c_uint32), ("dim", c_uint32), ("dtype", c_uint32), ("rope_kind", c_uint32),
                ("rope_offset", c_uint32), ("rope_dim", c_uint32), ("rope_scale", c_float),
                ("inv_freq", POINTER(c_float))]


class Model(Structure):
    _fields_ = [("name", c_char_p), ("n_layers", c_uint32), ("n_planes", c_uint32), ("planes", POINTER(Plane)),
                ("tp_rank", c_uint32), ("tp_size", c_uint32)]


class Layout(Structure):
    _fields_ = [("base", c_uint64), ("block_stride", c_uint64), ("token_stride", c_uint64), ("head_stride", c_uint64)]


class DevicePart(Structure):
    _fields_ = [("handle", c_uint8 * 64), ("address", c_uint64), ("allocation_bytes", c_uint64),
                ("offset_bytes", c_uint64), ("size_bytes", c_uint64), ("fd", c_int), ("reserved", c_uint32)]


class Memory(Structure):
    _fields_ = [("model_id", c_uint32), ("fd", c_int), ("size_bytes", c_uint64), ("block_tokens", c_uint32),
                ("n_blocks", c_uint32), ("layouts", POINTER(Layout)), ("kind", c_uint32), ("n_parts", c_uint32),
                ("parts", POINTER(DevicePart)), ("uuid", c_uint8 * 16)]


class Run(Structure):
    _fields_ = [("memory_id", c_uint32), ("n_tokens", c_uint32), ("position", c_uint64), ("keys", POINTER(Key)),
                ("n_chunks", c_uint32), ("n_blocks", c_uint32), ("blocks", POINTER(c_uint32)),
                ("block_offset", c_uint32), ("flags", c_uint32), ("preset", c_uint32), ("ready_event", c_uint32),
                ("released_event", c_uint32), ("first_event", c_uint32), ("n_events", c_uint32)]


class Observation(Structure):
    _fields_ = [("kind", c_uint32), ("n_queries", c_uint32), ("n_heads", c_uint32), ("first_layer", c_uint32),
                ("n_layers", c_uint32), ("scale", c_float), ("positions", POINTER(c_uint32)), ("values", c_void_p),
                ("sums", POINTER(c_float))]


class Completion(Structure):
    _fields_ = [("user_data", c_uint64), ("status", c_int32), ("flags", c_uint32), ("n_chunks", c_uint32),
                ("n_layers", c_uint32), ("bytes", c_uint64)]


def _find():
    if os.environ.get("CISTERN_LIBRARY"):
        return os.environ["CISTERN_LIBRARY"]
    beside = pathlib.Path(__file__).parent / "libcistern.so.0"
    return str(beside) if beside.exists() else "libcistern.so.0"


def _load():
    try:
        lib = ctypes.CDLL(_find())
    except OSError as e:
        raise ImportError(f"libcistern cannot be loaded ({e}): install it, or name it in $CISTERN_LIBRARY") from e
    keyed = [c_void_p, c_uint32, POINTER(Key), c_uint32, c_uint64]
    for name, result, arguments in [
        ("connect", c_int, [POINTER(Options), POINTER(c_void_p)]),
        ("close", None, [c_void_p]),
        ("error", c_char_p, [c_void_p]),
        ("chunk_tokens", c_uint32, [c_void_p]),
        ("register_model", c_int, [c_void_p, POINTER(Model), POINTER(c_uint32)]),
        ("register_memory", c_int, [c_void_p, POINTER(Memory), POINTER(c_uint32)]),
        ("unregister_memory", c_int, [c_void_p, c_uint32]),
        ("register_events", c_int, [c_void_p, c_void_p, c_uint32, POINTER(c_uint32)]),
        ("unregister_events", c_int, [c_void_p, c_uint32]),
        ("key_root", None, [c_char_p, c_size_t, POINTER(Key)]),
        ("key_chain", c_size_t, [POINTER(Key), POINTER(c_uint32), c_size_t, c_uint32, POINTER(Key)]),
        ("nop", c_int, [c_void_p, c_uint64]),
        ("lookup", c_int, keyed),
        ("prefetch", c_int, keyed),
        ("pin", c_int, keyed),
        ("unpin", c_int, keyed),
        ("remove", c_int, keyed),
        ("put", c_int, [c_void_p, POINTER(Run), POINTER(Key), c_uint64]),
        ("observe", c_int, [c_void_p, POINTER(Run), POINTER(Observation), c_uint64]),
        ("get", c_int, [c_void_p, POINTER(Run), c_uint64]),
        ("observe", c_int, [c_void_p, POINTER(Run), POINTER(Observation), c_uint64]),
        ("sync", c_int, [c_void_p, c_uint64]),
        ("submit", c_int, [c_void_p]),
        ("wait", c_int, [c_void_p, POINTER(Completion), c_uint32, c_int]),
        ("fd", c_int, [c_void_p]),
        ("control", c_int, [c_char_p, c_char_p, POINTER(c_void_p), c_int]),
        ("statistics", c_int, [c_char_p, POINTER(c_int), POINTER(c_int), c_int]),
    ]:
        function = getattr(lib, "cistern_" + name)
        function.restype, function.argtypes = result, arguments
    return lib


lib = _load()
libc = ctypes.CDLL(None)
libc.free.argtypes, libc.free.restype = [c_void_p], None


def check(status, handle=None):
    """Raises an Error for a negative status; returns it otherwise."""
    if status >= 0:
        return status
    text = lib.cistern_error(handle).decode("utf-8", "replace")
    raise Error(-status, text if text and text != "no error" else errno.errorcode.get(-status, "error"))


def path_bytes(path):
    return None if path is None else os.fsencode(path)


