"""Sequences to learn from, and prompts to be judged by.

A token is a byte, or a special: BOS 256, SEP 257. In files the specials are written as the control
characters 0x01 and 0x02, which our text never contains.

A record is `QZVM=83f1a;`: four upper-case letters, `=`, five lower-case hex digits, `;`. A question is
`?QZVM=` and its answer the five digits of the record with that key. Keys of one sequence differ in
their last three letters, and digits are uniform, so nothing but the record decides the answer.

Text alone teaches a small model neither far recall nor sinks. So most sequences hold something that
can only be predicted by looking it up far behind; where a head finds no match it learns to rest on
BOS or SEP, and that is what a sink is.
"""

import random

BOS, SEP = 256, 257
CONTROL = {1: BOS, 2: SEP}

KEY_LETTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ"
DIGITS = b"0123456789abcdef"
KEY_LEN, VALUE_LEN = 4, 5

# Weights of the loss. Random bytes seen for the first time cannot be predicted: learning from
# them is noise. Answers are few and are what the model is for.
W_TEXT, W_NOISE, W_COPY, W_ANSWER = 1.0, 0.0, 1.1, 2.0


def encode(text):
    """bytes or str with control characters for specials -> token ids"""
    raw = text.encode() if isinstance(text, str) else text
    return [CONTROL.get(b, b) for b in raw]


def decode(tokens):
    back = {special: control for control, special in CONTROL.items()}
    return bytes(back.get(t, t) for t in tokens if t < 256 or t in back)


class Text:
    """Documents of one split, joined by BOS (0x01)."""

    def __init__(self, path):
        self.raw = open(path, "rb").read()

    def passage(self, rng, n):
        """n bytes from a random place, starting at a word; BOS where a document ends inside."""
        start = rng.randrange(len(self.raw) - n - 64)
        blank = self.raw.find(b" ", start, start + 64)
        start = blank + 1 if blank >= 0 else start
        return encode(self.raw[start:start + n])


class Sequence:
    """Tokens with the loss weight of each."""

    def __init__(self):
        self.tokens, self.weight = [BOS], [0.0]

    def add(self, tokens, weight):
        self.tokens += tokens
        self.weight += [weight] * len(tokens)

    def cut(self, n):
        return self.tokens[:n], self.weight[:n]

    def __len__(self):
        return len(self.tokens)


def draw(rng, alphabet, n):
    return [alphabet[rng.randrange(len(alphabet))] for _ in range(n)]


ALPHABETS = [KEY_LETTERS, DIGITS, b"abcdefghijklmnopqrstuvwxyz", KEY_LETTERS + DIGITS,
             bytes(range(33, 127)), bytes(range(32, 127))]


def boundary(rng):
    """What stands between two parts: mostly SEP, at times a second BOS as packed documents have."""
    return [SEP] if rng.random() < 0.7 else [BOS]


def text_sequence(rng, text, n):
    s = Sequence()
    while len(s) < n:
        s.add(text.passage(rng, rng.randrange(n // 4, n) if rng.random() < 0.6 else n), W_TEXT)
        s.add(boundary(rng), 0.1)
    return s.cut(n)


def dense_sequence(rng, n):
    """One short random string over and over: the fastest teacher of looking back."""
    s = Sequence()
    part = draw(rng, rng.choice(ALPHABETS), rng.randrange(6, n // 4))
    s.add(part, W_NOISE)
    while len(s) < n:
        if rng.random() < 0.2:
            s.add(boundary(rng), 0.0)
        at = rng.randrange(0, len(part) - 4) if rng.random() < 0.3 else 0
        s.add(part[at:at + 2], 0.1)
        s.add(part[at + 2:], W_COPY)
    return s.cut(n)


def repeat_sequence(rng, text, n, p_random=0.7):
    """Passages that come again after a gap; random strings can be predicted only by looking back."""
    s = Sequence()
    while len(s) < n:
        length = rng.randrange(8, max(9, min(n // 3, 160)))
        if rng.random() < p_random:
            part, weight = draw(rng, rng.choice(ALPHABETS), length), W_NOISE
        else:
            part, weight = text.passage(rng, length), W_TEXT
        s.add(part, weight)
        for _ in range(rng.choice((1, 1, 2, 3))):
            gap = rng.randrange(0, n // 3)
            if rng.random() < 0.5 and gap > 4:
                s.add(text.passage(rng, gap), W_TEXT * 0.5)
            if rng.random() < 0.5:
                s.add(boundary(rng), 0.0)
            # the start of the copy is a guess until a few bytes have identified it
            at = rng.randrange(0, length // 2) if rng.random() < 0.3 else 0
            s.add(part[at:at + 3], 0.1)
            s.add(part[at + 3:], W_COPY)
    return s.cut(n)


def make_records(rng, n):
    records = {}
    while len(records) < n:
        key = bytes(draw(rng, KEY_LETTERS, KEY_LEN))
        if all(key[1:] != other[1:] for other in records):
            records[key] = bytes(draw(rng, DIGITS, VALUE_LEN))
    return list(records.items())


def record_sequence(rng, text, n, spread=1.0):
    """Records among filler, then questions about them.

    spread: 0 packs records and questions tightly (induction forms on such), 1 puts the records
    anywhere in the first part of the sequence and far filler before the questions."""
    s = Sequence()
    questions = rng.randrange(n // 32, n // 12 + 1) if spread == 0 else rng.randrange(6, n // 24 + 7)
    questions = min(questions, 40)
    low = 0.1 if spread == 0 else 0.3
    records = make_records(rng, max(2, min(24, int(questions * rng.uniform(low, 1.0)))))
    room = n - 1 - 11 * len(records) - 13 * questions
    # filler before each record, between the two parts, and before each question
    fill = max(0, room)
    middle = int(fill * rng.uniform(0, 0.8) * spread)
    tail = int((fill - middle) * rng.uniform(0, 0.3))
    cuts = sorted(rng.randrange(fill - middle - tail + 1) for _ in records)
    body = text.passage(rng, fill + 1)
    at = 0
    for (key, value), cut in zip(records, cuts):
        s.add(body[at:cut], W_TEXT * 0.5)
        at = cut
        if rng.random() < 0.1:
            s.add(boundary(rng), 0.0)
        s.add(list(key + b"="), W_NOISE)
        s.add(list(value), W_NOISE)
        s.add(list(b";"), 0.2)
    s.add(body[at:fill - tail], W_TEXT * 0.5)
    at = fill - tail
    s.add(boundary(rng) if rng.random() < 0.5 else [], 0.0)
    for i in range(questions):
        key, value = rng.choice(records)
        if tail and rng.random() < 0.3:
            step = rng.randrange(1, 40)
            s.add(body[at:min(at + step, fill)], W_TEXT * 0.5)
            at += step
        s.add(list(b"?" + key), W_NOISE)
        s.add(list(b"="), 0.5)
        s.add(list(value), W_ANSWER)
        s.add(list(b";"), 0.5)
    while len(s) < n:
        s.add(text.passage(rng, 64), W_TEXT)
    return s.cut(n)


def recall_prompt(seed, text, n_tokens, n_records, far=256):
    """One prompt to be judged by: (tokens, [(question, answer)]).

    BOS, then filler from `text` with the records strewn over all but the last `far` tokens and about
    two SEP per thousand tokens; at least `far` tokens of filler follow the last record. The questions
    are not part of the prompt: each is to be asked on its own, as a continuation of it."""
    rng = random.Random(seed)
    records = make_records(rng, n_records)
    n_seps = n_tokens // 500
    fill = n_tokens - 1 - n_seps - 11 * n_records
    body = [t for t in text.passage(rng, fill + 64) if t not in (BOS, SEP)][:fill]
    pieces = [(rng.randrange(fill - far), list(key + b"=" + value + b";")) for key, value in records]
    pieces += [(rng.randrange(fill - far), [SEP]) for _ in range(n_seps)]
    tokens, at = [BOS], 0
    for cut, piece in sorted(pieces):
        tokens += body[at:cut] + piece
        at = cut
    tokens += body[at:]
    return tokens, [(list(b"?" + key + b"="), list(value)) for key, value in records]


def mixture(rng, text, n, shares, spread):
    """One sequence; shares: probabilities of text, repeats, records (they sum to 1)."""
    x = rng.random()
    if x < shares[0]:
        return text_sequence(rng, text, n)
    if x < shares[0] + shares[1]:
        if rng.random() < 0.6 * (1 - spread):
            return dense_sequence(rng, n)
        return repeat_sequence(rng, text, n)
    return record_sequence(rng, text, n, spread if rng.random() < 0.7 else spread * rng.random())
