#!/usr/bin/env python3
"""Judge the exported weights: held-out bits per byte, far recall, copying, and where the sinks are.

    ./eval.py [--prompts N]

Uses nothing but the files committed beside it; f32 arithmetic, greedy decoding, no compression. The
figures in README.md are what this prints.
"""

import argparse
import json
import math
import random

import torch
import torch.nn.functional as F

import data
import export


@torch.no_grad()
def bits_per_byte(model, path, window=1024):
    """Windows that do not overlap, each after its own BOS; every byte of a full window is predicted once."""
    raw = list(open(path, "rb").read())
    raw = raw[:len(raw) // window * window]
    windows = torch.tensor(raw).view(-1, window)
    windows = torch.cat([torch.full((len(windows), 1), data.BOS), windows], 1)
    nll = 0.0
    for x in windows.split(8):
        logits = model(x[:, :-1])
        nll += F.cross_entropy(logits.flatten(0, 1), x[:, 1:].flatten(), reduction="sum").item()
    return nll / len(raw) / math.log(2)


@torch.no_grad()
def recall(model, path, n_prompts):
    """Greedy decoding of every question's answer, each asked on its own after the prompt."""
    exact = asked = 0
    by_distance = {}
    with open(path) as f:
        lines = [json.loads(line) for line in f]
    for line in lines[::max(1, len(lines) // n_prompts)]:
        prompt = data.encode(line["prompt"])
        caches = [[] for _ in model.model.layers]
        model(torch.tensor([prompt]), caches)
        questions = line["questions"]
        # the questions are all of one length: ask them as one batch over copies of the prompt's cache
        asks = [[t.repeat(len(questions), 1, 1, 1) for t in cache] for cache in caches]
        feed = torch.tensor([data.encode(q["q"]) for q in questions])
        answer = []
        for _ in range(data.VALUE_LEN):
            feed = model(feed, asks)[:, -1:].argmax(-1)
            answer.append(feed)
        answer = torch.cat(answer, 1).tolist()
        for q, got in zip(questions, answer):
            right = got == data.encode(q["a"])
            distance = len(prompt) - line["prompt"].index(q["q"][1:] + q["a"])
            bucket = min(distance // 512, 3)
            n_right, n = by_distance.get(bucket, (0, 0))
            by_distance[bucket] = (n_right + right, n + 1)
            exact, asked = exact + right, asked + 1
    return exact, asked, by_distance


@torch.no_grad()
def copying(model, path, n_sequences=24, gap=512):
    """A passage of held-out English, a gap, the passage again: accuracy of the second time's bytes
    (after its first 8) beside the first time's; then the same with random printable bytes."""
    rng = random.Random(3)
    text = data.Text(path)
    printable = bytes(range(33, 127))
    result = {}
    for kind in ("english", "random"):
        first = second = 0.0
        for _ in range(n_sequences):
            part = text.passage(rng, 128) if kind == "english" else data.draw(rng, printable, 128)
            tokens = [data.BOS] + part + [data.SEP] + text.passage(rng, gap) + [data.SEP] + part
            right = model(torch.tensor([tokens[:-1]]))[0].argmax(-1) == torch.tensor(tokens[1:])
            first += right[8:128].float().mean().item()
            second += right[-120:].float().mean().item()
        result[kind] = (first / n_sequences, second / n_sequences)
    return result


@torch.no_grad()
def sinks(model, path, n_sequences=16, length=1024):
    """Attention a special position gets, as a multiple of the uniform share, averaged over queries.

    Sequences of held-out English with a SEP at 1/4 and a second BOS at 1/2. A query at position t may
    see t + 1 keys, so its uniform share is 1 / (t + 1); a position's figure is the mean over the
    queries at least 64 tokens after it of weight * (t + 1), and the mean weight stands beside it.
    """
    rng = random.Random(5)
    text = data.Text(path)
    places = {"BOS": 0, "SEP": length // 4, "2nd BOS": length // 2, "plain": length // 2 - 77}
    n_layers, n_heads = model.config["num_hidden_layers"], model.config["num_attention_heads"]
    total = {name: torch.zeros(n_layers, n_heads, 2) for name in places}
    for _ in range(n_sequences):
        tokens = text.passage(rng, length)
        tokens = [t if t < 256 else 10 for t in tokens]
        tokens[0], tokens[places["SEP"]], tokens[places["2nd BOS"]] = data.BOS, data.SEP, data.BOS
        found = {name: [[] for _ in range(n_layers)] for name in places}

        def probe_of(layer):
            def probe(first, weight):
                for name, place in places.items():
                    lo = max(first, place + 64)
                    if lo < first + weight.shape[2]:
                        w = weight[0, :, lo - first:, place]  # [head, query]
                        share = torch.arange(lo + 1, lo + 1 + w.shape[1])
                        found[name][layer].append(torch.stack([w * share, w], -1))
            return probe

        model(torch.tensor([tokens]), probes=[probe_of(i) for i in range(n_layers)])
        for name in places:
            for layer in range(n_layers):
                total[name][layer] += torch.cat(found[name][layer], 1).mean(1)
    return {name: t / n_sequences for name, t in total.items()}


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--prompts", type=int, default=200)
    a.add_argument("--threads", type=int, default=2)
    a = a.parse_args()
    torch.set_num_threads(a.threads)
    model = export.load_exported()
    test = export.at("heldout", "test.txt")
    print(f"held-out English: {bits_per_byte(model, test):.3f} bits per byte")
    for kind, (first, second) in copying(model, test).items():
        print(f"copying {kind}: {second:.3f} of the bytes of a repeated passage, {first:.3f} the first time")
    exact, asked, by_distance = recall(model, export.at("heldout", "recall.jsonl"), a.prompts)
    print(f"far recall: {exact} of {asked} answers exact = {exact / asked:.3f}")
    for bucket, (n_right, n) in sorted(by_distance.items()):
        print(f"  record {max(256, bucket * 512)} tokens back or more: {n_right} of {n} = {n_right / n:.3f}")
    print("attention received, times the uniform share (mean weight):")
    for name, table in sinks(model, test).items():
        for layer, heads in enumerate(table.tolist()):
            print(f"  {name:8} layer {layer}: " + "  ".join(f"{x:6.1f} ({w:.3f})" for x, w in heads))


if __name__ == "__main__":
    main()
