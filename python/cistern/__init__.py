"""Client of the Cistern KV cache daemon.

    import cistern
    with cistern.connect() as c:
        model = c.model("my-model", layers=4, heads=2, dim=64, dtype="float16", rope_theta=10000.0)
        model.store(token_ids, kv)            # kv: [layers, 2, tokens, heads, dim]
        kv, n = model.load(token_ids)         # later, or in another process

store and load copy through a shared memory of the package's own. An engine that keeps its paged cache in shared
memory anyway (Model.memory) calls Memory.put and Memory.get, and nothing is copied here at all. `Statistics` reads
what the daemon does. `cistern.huggingface` and `cistern.vllm` are on top.

The package is ctypes over libcistern: $CISTERN_LIBRARY names it, else it is looked for beside the package and where the
system keeps libraries.
"""

from .client import Client, Memory, Model, Request, connect, control
from .library import Error
from .statistics import Statistics

__all__ = ["Client", "Error", "Memory", "Model", "Request", "Statistics", "connect", "control"]
__version__ = "0.1.0"
