#!/usr/bin/env python3
"""Looks in kernels' machine code for what ptxas before 13.4 may do wrong on Hopper.

    machine_code.py CUOBJDUMP OBJECT...

- Copies to shared memory, of those with a cache policy, that take their memory descriptor from a
  uniform register that nothing writes, an odd one: they trap.
- Registers of a wgmma's left operand or sums that are used while it is under way (a fault mended in
  CUDA 13.3, by its release notes).

Prints what it finds, and exits with 1 if it finds anything.
"""

import re
import subprocess
import sys

ODD_DESCRIPTOR = re.compile(r"(?<!g)desc\[UR\d*[13579]\]")
PRODUCT = re.compile(r"[HIQ]GMMA\.64x(\d+)x\d+\S* R(\d+), (?:R(\d+)|gdesc)")
WAIT = re.compile(r"WARPGROUP\.DEPBAR\.LE gsb0, 0x(\d+)")
BRANCH = re.compile(r"BRA 0x([0-9a-f]+)")


def kernels(listing):
    """(name, [(address, instruction)]) of each kernel."""
    name, code = None, []
    for line in listing.splitlines():
        if found := re.match(r"\s+Function : (\S+)", line):
            if name:
                yield name, code
            name, code = found[1], []
        elif found := re.match(r"\s+/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;", line):
            code.append((int(found[1], 16), found[2]))
    if name:
        yield name, code


def in_order(code):
    """The instructions as they may follow one another around wgmma: its outermost loop twice."""
    products = [i for i, (_, text) in enumerate(code) if PRODUCT.search(text)]
    if not products:
        return []
    place = {address: i for i, (address, _) in enumerate(code)}
    for end, (_, text) in reversed(list(enumerate(code))):
        branch = BRANCH.search(text)
        begin = place.get(int(branch[1], 16)) if branch else None
        if begin is not None and begin <= products[0] and products[-1] <= end:
            return code[begin : end + 1] * 2 + code[end + 1 :]
    return code


def written(text):
    """The registers that an instruction writes."""
    operation, _, arguments = re.sub(r"^@!?U?P\w+\s+", "", text).partition(" ")
    arguments = [argument.strip() for argument in arguments.split(",")]
    first = re.match(r"R(\d+)", arguments[operation.startswith("SHFL")] if arguments[0] else "")
    if not first:
        return set()
    wide = {".128": 4, ".M88.4": 4, ".64": 2, ".WIDE": 2}
    count = max([n for suffix, n in wide.items() if suffix in operation], default=1)
    return set(range(int(first[1]), int(first[1]) + count))


def used_in_flight(code):
    """Instructions that use registers of products under way: groups of (sums, left operand)."""
    groups, group, found = [], [], []
    for address, text in in_order(code):
        if product := PRODUCT.search(text):
            sums = range(int(product[2]), int(product[2]) + int(product[1]) // 2)
            left = range(int(product[3]), int(product[3]) + 4) if product[3] else range(0)
            group.append((set(sums), set(left)))
            if "gsb0" in text:
                groups.append(group)
                group = []
        elif wait := WAIT.search(text):
            groups = groups[max(0, len(groups) - int(wait[1])) :]
        else:
            used = {int(n) for n in re.findall(r"(?<!\w)R(\d+)", text)} | written(text)
            for sums, left in sum(groups, group):
                if used & sums or written(text) & left:
                    found.append(f"{address:#x}: {text}, while a product is under way")
                    break
    return found


def main():
    count, faults = 0, []
    for path in sys.argv[2:]:
        run = subprocess.run([sys.argv[1], "-sass", path], check=True, capture_output=True, text=True)
        for name, code in kernels(run.stdout):
            count += 1
            faults += [
                f"{name}\n  {fault}"
                for fault in used_in_flight(code)
                + [f"{a:#x}: {text}" for a, text in code if ODD_DESCRIPTOR.search(text)]
            ]
    print(*faults, f"{count} kernels, {len(faults)} faults of the assembler", sep="\n")
    sys.exit(bool(faults) or count == 0)


main()
