"""Writes the contents of one store path of the benchmark's corpus to $out.

    generate.py small|medium|large INDEX BYTES     a tree of files of about BYTES
    generate.py list                               a file that names every path in $deps

The contents depend on the arguments alone: not on the machine's files, not on Python's version (its random module may
change, so what is random here comes from SHAKE). They compress about 3:1, like a mix of programs and text: words and
machine instructions with a few frequent and many rare ones, repeated lines, tables of addresses, zeros, and a part that
doesn't compress at all.
"""

import functools
import hashlib
import os
import sys

out = os.environ["out"]


class Source:
    """Random bytes and numbers from a seed."""

    def __init__(self, seed):
        self.seed = seed
        self.turn = 0

    def bytes(self, count):
        self.turn += 1
        return hashlib.shake_256(f"{self.seed}/{self.turn}".encode()).digest(count)

    def numbers(self, count):
        """Numbers from 0 to 65535."""
        return memoryview(self.bytes(2 * count)).cast("H")

    def fraction(self):
        return int.from_bytes(self.bytes(6), "little") / 2**48

    def size(self, low, high):
        """Between low and high, every order of magnitude alike."""
        return int(low * (high / low) ** self.fraction())


def by_frequency(items):
    """65,536 places, shared out so that the n-th item is about 1/n as frequent as the first."""
    weights = [1 / (rank + 3) for rank in range(len(items))]
    scale = 65536 / sum(weights)
    table = []
    for item, weight in zip(items, weights):
        table.extend([item] * max(1, round(weight * scale)))
    table.extend([items[0]] * 65536)
    return table[:65536]


@functools.cache
def words():
    source = Source("words")
    syllables = "re in con de pro ex se ter al ing er tion ment ness able path hash store key sig list map get set read".split()
    joints = [" "] * 10 + ["_", ".", ", ", "(", ") ", " = ", "\n    ", ";\n", "\n"]
    found = []
    for n in range(6000):
        letters = source.bytes(6)
        word = "".join(syllables[letter % len(syllables)] for letter in letters[: 1 + letters[5] % 3])
        if letters[4] < 60:
            word += str(letters[3])
        found.append((word + joints[letters[0] % len(joints)]).encode())
    lines = [b"".join(found[number % 3000] for number in source.numbers(8)) + b"\n" for _ in range(4000)]
    # lines come again, as licences, imports and signatures do
    items = []
    for n, word in enumerate(found):
        items.append(word)
        if n % 3 == 0:
            items.append(lines[n // 3])
    return by_frequency(items)


@functools.cache
def instructions():
    source = Source("instructions")
    items = []
    for _ in range(7000):
        raw = source.bytes(10)
        length = 2 + raw[0] % 5
        # operands are mostly small: many zero bytes, as in real code
        items.append(bytes([raw[1], raw[2] & 0xC7]) + bytes(b if raw[9] % 3 == 0 else b & 7 for b in raw[3 : 3 + length]))
    return by_frequency(items)


def text(source, count):
    return b"".join(map(words().__getitem__, source.numbers(count // 5 + 1)))[:count]


def code(source, count):
    return b"".join(map(instructions().__getitem__, source.numbers(count // 5 + 1)))[:count]


def addresses(source, count):
    at = int.from_bytes(source.bytes(3), "little") * 16
    rows = []
    for step in source.bytes(count // 16 + 1):
        at += 8 * (1 + step % 8)
        rows.append(at.to_bytes(8, "little") + (step % 3).to_bytes(8, "little"))
    return b"".join(rows)[:count]


def program(source, count):
    parts = []
    while count > 0:
        part = min(count, 64 << 10)
        count -= part
        kind = source.bytes(1)[0]
        if kind < 140:
            parts.append(code(source, part))
        elif kind < 175:
            parts.append(text(source, part))
        elif kind < 200:
            parts.append(addresses(source, part))
        elif kind < 210:
            parts.append(bytes(part))
        else:
            parts.append(source.bytes(part))
    return b"".join(parts)


def write(path, contents, executable=False):
    path = os.path.join(out, path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(contents)
    os.chmod(path, 0o755 if executable else 0o644)


def tree(kind, index, total):
    source = Source(f"{kind}/{index}")
    # smallest and largest file, and how much of it is programs
    low, high, programs = {
        "small": (400, 6000, 0.1),
        "medium": (2_000, 600_000, 0.5),
        "large": (500, 20_000_000, 0.6),
    }[kind]
    write("bin/tool", f"#!/bin/sh\n# {kind} {index}\nexec cat \"$0\"\n".encode(), executable=True)
    os.symlink("bin/tool", os.path.join(out, "run"))
    number = 0
    while total > 0:
        size = min(total, source.size(low, high))
        total -= size
        if source.fraction() < programs:
            place, contents = ["lib", "bin", "libexec"][number % 3], program
        else:
            place, contents = ["share/doc", "include", "share/man/man1", "etc", "lib/py"][number % 5], text
        write(f"{place}/{number // 200:02}/{number:04}", contents(source, size), executable=place == "bin")
        number += 1
    deps = os.environ.get("deps", "")
    if deps:
        write("nix-support/propagated-build-inputs", deps.encode() + b"\n")
    if os.environ.get("self"):
        write("bin/self", f"#!/bin/sh\nexec {out}/bin/tool \"$@\"\n".encode(), executable=True)


if sys.argv[1] == "list":
    with open(os.environ["depsPath"]) as file:
        paths = file.read().split()
    with open(out, "w") as file:
        file.write("".join(f"{path}\n" for path in paths))
else:
    os.mkdir(out)
    tree(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
