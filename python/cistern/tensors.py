"""Arrays of others as numpy sees them, and DLPack for what numpy cannot say (bfloat16).

numpy has no bfloat16: such memory shows as uint16 with the same bits. torch gets it as bfloat16 through DLPack
(torch.from_dlpack(memory)); the layout of DLManagedTensor is that of DLPack 0.8, dlpack.h.
"""

import ctypes

import numpy as np

from . import library

# name: libcistern's number, numpy's type (of the same size), DLPack's (code, bits)
DTYPES = {
    "float16": (library.F16, np.dtype(np.float16), (2, 16)),
    "bfloat16": (library.BF16, np.dtype(np.uint16), (4, 16)),
    "float32": (library.F32, np.dtype(np.float32), (2, 32)),
}


def dtype_name(dtype):
    """"float16" of numpy's, torch's or a string's float16."""
    name = str(dtype).rsplit(".", 1)[-1]
    if name not in DTYPES:
        name = np.dtype(dtype).name
    if name not in DTYPES:
        raise TypeError(f"{dtype} is none of " + ", ".join(DTYPES))
    return name


def host_array(x, dtype):
    """x as a numpy array of a dtype's bits, without a copy where that can be: a numpy array, or anything on the CPU with
    DLPack; what is elsewhere (torch on a GPU) is copied here first."""
    want = DTYPES[dtype][1]
    if isinstance(x, np.ndarray):
        array = x
    elif hasattr(x, "detach"):  # torch
        x = x.detach().cpu()
        if str(x.dtype) == "torch.bfloat16":
            import torch
            x = x.contiguous().view(torch.int16)
        array = x.numpy()
        if array.dtype == np.int16:
            array = array.view(np.uint16)
    elif hasattr(x, "__dlpack__"):
        array = np.from_dlpack(x)
    else:
        array = np.asarray(x)
    if array.dtype != want:
        raise TypeError(f"an array of {array.dtype}, where the model has {dtype}"
                        + (" (as uint16 in numpy)" if dtype == "bfloat16" else ""))
    return array


class _DLTensor(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
                ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8),
                ("lanes", ctypes.c_uint16), ("shape", ctypes.POINTER(ctypes.c_int64)),
                ("strides", ctypes.POINTER(ctypes.c_int64)), ("byte_offset", ctypes.c_uint64)]


class _DLManagedTensor(ctypes.Structure):
    pass


_Deleter = ctypes.CFUNCTYPE(None, ctypes.POINTER(_DLManagedTensor))
_DLManagedTensor._fields_ = [("dl_tensor", _DLTensor), ("manager_ctx", ctypes.c_void_p), ("deleter", _Deleter)]

CPU = 1
_alive = {}  # address of a handed-out DLManagedTensor: what it lives on


@_Deleter
def _delete(managed):
    _alive.pop(ctypes.addressof(managed.contents), None)


_capsule_new = ctypes.pythonapi.PyCapsule_New
_capsule_new.restype, _capsule_new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
_capsule_is = ctypes.pythonapi.PyCapsule_IsValid
_capsule_is.restype, _capsule_is.argtypes = ctypes.c_int, [ctypes.c_void_p, ctypes.c_char_p]
_capsule_get = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_get.restype, _capsule_get.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_char_p]
_CapsuleDestructor = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@_CapsuleDestructor
def _forget(capsule):
    """A capsule that nobody took (a taken one is renamed) frees its tensor itself."""
    if _capsule_is(capsule, b"dltensor"):
        _alive.pop(_capsule_get(capsule, b"dltensor"), None)


def dlpack(array, dtype):
    """A capsule of a numpy array whose elements are of dtype. The array lives as long as whoever takes it."""
    code, bits = DTYPES[dtype][2]
    shape = (ctypes.c_int64 * array.ndim)(*array.shape)
    strides = (ctypes.c_int64 * array.ndim)(*(s // array.itemsize for s in array.strides))
    managed = _DLManagedTensor(
        _DLTensor(array.ctypes.data, CPU, 0, array.ndim, code, bits, 1, shape, strides, 0), None, _delete)
    address = ctypes.addressof(managed)
    _alive[address] = (managed, array, shape, strides)
    return _capsule_new(address, b"dltensor", ctypes.cast(_forget, ctypes.c_void_p))
