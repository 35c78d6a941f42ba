"""Turn Debian documentation packages into four disjoint sets of plain text.

The split is by document and is fixed here, before anything is trained:

    train   what the model learns English from
    tune    what train.py's log is measured on, so that choices made while training touch no other set
    calib   what the codec's transforms may be calibrated on
    test    what demo, benches and eval.py report on

    ./corpus.py UNPACKED OUT [HELDOUT]

UNPACKED holds one folder per package (`dpkg -x PKG.deb UNPACKED/PKG`). OUT receives
one SPLIT.txt each; HELDOUT receives excerpts of calib and test, small enough to be kept with the
source.

Text is reduced to printable ASCII and newline, so a byte is a token and the control
characters 0x01 and 0x02 are free to stand for BOS and SEP in files (see data.py).
"""

import glob
import gzip
import html
import os
import re
import sys
import unicodedata

LINUX = "linux-doc-6.1/usr/share/doc/linux-doc-6.1/Documentation/"
SPLITS = {
    "train": [
        "anarchism/usr/share/doc/anarchism/html/*.html",
        "apache2-doc/usr/share/doc/apache2-doc/manual/en/**/*.html",
        "aptitude-doc-en/usr/share/doc/aptitude/html/en/*.html",
        "bash-doc/usr/share/doc/bash/bashref.html",
        "debian-edu-doc-en/usr/share/doc/debian-edu-doc-en/debian-edu-bookworm-manual.html",
        "exim4-doc-html/usr/share/doc/exim4-doc-html/**/*.html",
        "freedombox-doc-en/usr/share/doc/freedombox/**/*.html",
        "git-doc/usr/share/doc/git/html/*.txt",
        "harden-doc/usr/share/doc/harden-doc/html/en-US/*.html",
        "installation-guide-amd64/usr/share/doc/installation-guide-amd64/en/*.html",
        "jargon-text/usr/share/doc/jargon-text/jargon.txt.gz",
        "live-manual-html/**/en/*.html",
    ] + [LINUX + d + "/**/*.rst*" for d in (
        "admin-guide", "process", "filesystems", "mm", "networking", "core-api",
        "scheduler", "RCU", "security", "locking", "trace", "virt")],
    "tune": [
        "maint-guide/usr/share/doc/maint-guide/html/*.en.html",
        "debmake-doc/usr/share/doc/debmake-doc/html/*.html",
    ],
    "calib": [
        "developers-reference/usr/share/developers-reference/*.html",
        "debian-policy/usr/share/doc/debian-policy/*.html/*.html",
    ],
    "test": [
        "debian-handbook/usr/share/doc/debian-handbook/html/en-US/*.html",
        "debian-reference-en/usr/share/debian-reference/*.en.html",
    ],
}
HELDOUT_BYTES = 240_000
EXCERPT_BYTES = 6_000  # one excerpt per place, spread evenly over the split's documents

PUNCTUATION = str.maketrans({
    "\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2013": "-", "\u2014": "--",
    "\u2026": "...", "\u00a0": " ", "\u2022": "*", "\u2192": "->",
})


def strip_markup(page):
    page = re.sub(r"(?is)<(script|style|head|nav)\b.*?</\1>", " ", page)
    page = re.sub(r"(?i)<(br|/p|/div|/h\d|/li|/tr|/dt|/dd|/pre|/title)\b[^>]*>", "\n", page)
    return html.unescape(re.sub(r"(?s)<[^>]*>", "", page))


def tidy(text):
    """ASCII, no trailing blanks, at most one empty line in a row, no lines without a word."""
    text = text.translate(PUNCTUATION)
    text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    text = re.sub(r"[^\n\x20-\x7e]", " ", text)
    lines = [re.sub(r" {2,}", " ", line.rstrip()) for line in text.split("\n")]
    lines = [line for line in lines if not line or re.search(r"[A-Za-z]{3}", line)]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


def read(path):
    raw = gzip.open(path).read() if path.endswith(".gz") else open(path, "rb").read()
    text = raw.decode("utf-8", "ignore")
    return tidy(strip_markup(text) if ".htm" in path else text)


def collect(root, patterns):
    seen = set()
    for pattern in patterns:
        for path in sorted(glob.glob(os.path.join(root, pattern), recursive=True)):
            text = read(path) if os.path.isfile(path) else ""
            if len(text) > 1500 and text not in seen:  # tables of contents are not prose
                seen.add(text)
                yield path, text


def excerpts(documents):
    """About HELDOUT_BYTES, whole paragraphs, spread evenly over the documents."""
    text = "\n".join(documents)
    n = HELDOUT_BYTES // EXCERPT_BYTES
    out = []
    for i in range(n):
        start = text.index("\n\n", len(text) * i // n) + 2
        stop = text.index("\n", start + EXCERPT_BYTES - 200)
        out.append(text[start:stop].strip())
    return "\n\n".join(out) + "\n"


def main(root, out, heldout=None):
    os.makedirs(out, exist_ok=True)
    for split, patterns in SPLITS.items():
        found = list(collect(root, patterns))
        documents = [text for _, text in found]
        with open(os.path.join(out, split + ".txt"), "w") as f:
            # 0x01 is BOS: data.py never lets a training text run across two documents unmarked
            f.write("\x01".join(documents))
        packages = sorted({os.path.relpath(path, root).split(os.sep)[0] for path, _ in found})
        print(f"{split}: {len(found)} documents, {sum(map(len, documents))} bytes, {' '.join(packages)}")
        if heldout and split in ("calib", "test"):
            with open(os.path.join(heldout, split + ".txt"), "w") as f:
                f.write(excerpts(documents))


if __name__ == "__main__":
    main(*sys.argv[1:])
