#!/usr/bin/env python3
"""Write what others read: cistern-mini.safetensors, config.json, heldout/recall*.jsonl, reference.json.

    ./export.py weights CKPT       the model of a checkpoint, f16
    ./export.py checkpoint CKPT STEP TOKENS
                                   the way back: a checkpoint to train on from, without optimizer state
    ./export.py prompts TEXTDIR    recall prompts over the test and calib documents
    ./export.py reference          logits of the exported weights, for checking another engine
"""

import json
import os
import struct
import sys

import torch

import data
import net

HERE = os.path.dirname(os.path.abspath(__file__))
WEIGHTS = os.path.join(HERE, "cistern-mini.safetensors")


def at(*parts):
    return os.path.join(HERE, *parts)


def write_safetensors(path, tensors):
    """8 bytes of header length, a JSON header padded with blanks to a multiple of 8, the data."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, tensor in tensors.items():
        size = tensor.numel() * 2
        header[name] = {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": [offset, offset + size]}
        offset += size
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(head)) + head)
        for tensor in tensors.values():
            f.write(tensor.contiguous().numpy().astype("<f2").tobytes())


def read_safetensors(path):
    with open(path, "rb") as f:
        (n,) = struct.unpack("<Q", f.read(8))
        header = json.loads(f.read(n))
        body = f.read()
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            lo, hi = entry["data_offsets"]
            raw = torch.frombuffer(bytearray(body[lo:hi]), dtype=torch.float16)
            tensors[name] = raw.reshape(entry["shape"]).float()
    return tensors


def load_exported():
    """The model as an engine sees it: f16 weights, f32 arithmetic."""
    with open(at("config.json")) as f:
        model = net.Mini(json.load(f))
    model.load_state_dict(read_safetensors(WEIGHTS))
    return model.eval()


def weights(ckpt):
    state = torch.load(ckpt, map_location="cpu")["model"]
    write_safetensors(WEIGHTS, {name: t.to(torch.float16) for name, t in state.items()})
    with open(at("config.json"), "w") as f:
        json.dump(dict(net.CONFIG, torch_dtype="float16"), f, indent=2)
        f.write("\n")


def checkpoint(ckpt, step, seen):
    state = {"model": read_safetensors(WEIGHTS), "optimizers": [], "step": int(step), "seen": int(seen)}
    torch.save(state, ckpt)


# Seeds of the two sets are far apart, so that no prompt of one can be a prompt of the other.
PROMPT_SETS = {"recall": ("test", 200, 1_000_000), "recall-calib": ("calib", 40, 2_000_000)}


def prompts(textdir):
    for name, (split, count, seed) in PROMPT_SETS.items():
        text = data.Text(os.path.join(textdir, split + ".txt"))
        with open(at("heldout", name + ".jsonl"), "w") as f:
            for i in range(count):
                n_tokens = 1024 + (2000 - 1024) * i // (count - 1)
                tokens, questions = data.recall_prompt(seed + i, text, n_tokens, n_records=10)
                json.dump({"id": i, "n_tokens": len(tokens), "prompt": data.decode(tokens).decode(),
                           "questions": [{"q": bytes(q).decode(), "a": bytes(a).decode()} for q, a in questions]}, f)
                f.write("\n")


@torch.no_grad()
def reference():
    """Top 8 logits at a few positions of a short and of a long prompt."""
    model = load_exported()
    with open(at("heldout", "recall.jsonl")) as f:
        recall = [json.loads(line) for line in f]
    long = recall[100]
    question = long["questions"][0]
    short = data.encode("\x01This is ZYCI=3fefc; and that is QMRT=09b7d;\x02so what was ?ZYCI=3f")
    out = []
    for name, tokens, source in (
            ("short", short, {"tokens": short}),
            ("long", data.encode(long["prompt"]) + data.encode(question["q"]),
             {"file": "heldout/recall.jsonl", "id": 100, "tokens_are": "prompt followed by questions[0].q",
              "n_tokens": long["n_tokens"] + len(question["q"])})):
        logits = model(torch.tensor([tokens]))[0]
        n = len(tokens)
        positions = sorted({0, 1, n // 4, n // 2, 3 * n // 4, n - 2, n - 1})
        rows = []
        for p in positions:
            top = logits[p].topk(8)
            rows.append({"position": p, "ids": top.indices.tolist(), "logits": [round(v, 5) for v in top.values.tolist()]})
        out.append({"name": name, **source, "logits_after": rows})
    with open(at("reference.json"), "w") as f:
        json.dump({"arithmetic": "f32 on the f16 weights", "prompts": out}, f, indent=1)
        f.write("\n")


if __name__ == "__main__":
    torch.set_num_threads(2)
    {"weights": weights, "checkpoint": checkpoint, "prompts": prompts, "reference": reference}[sys.argv[1]](*sys.argv[2:])
