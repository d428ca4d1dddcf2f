"""Merging eight snapshots: pmill against mergekit and an incremental PyTorch average, in one run.

    python tools/bench_snapshots.py --pmill target/release/pmill --work .cache/bench-snapshots [--peers VENV] [--runs 3]
        [--inputs FOLDER]

Two sets, one after the other and removed again: 0.88 GB each in BF16 (three of them in two shards), and 1.07 GB
each in F32. The page cache is warm. For each program: the median wall time of the runs, processor time, peak
resident memory, and how the wall time stands to the limit: bytes in at the measured read rate, plus bytes out at
the measured write rate (the output synced). Needs NumPy; PEERS is a virtual environment with torch, safetensors
and mergekit, and what it lacks is left out. Disk: 11 GB; 9 of them in the folder of --inputs when one is given (in
/dev/shm they are memory, as the page cache is).
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np

AGENTS, WIDTH, INNER = 8, 2048, 5632
SETS = {"BF16": (40_000, 7, 2), "F32": (30_000, 4, 4)}
PIECE = 4 << 20

# The average that loads one model at a time and sums in F32, as fairseq's script does.
TORCH = """
import sys, pathlib, torch
from safetensors.torch import load_file, save_file
total, types = {}, {}
places = sorted(pathlib.Path(sys.argv[1]).glob("agent*"))
for place in places:
    for file in sorted(place.glob("*.safetensors")):
        for name, value in load_file(file).items():
            types[name] = value.dtype
            value = value.float()
            if name in total:
                total[name] += value
            else:
                total[name] = value.clone()
for name in total:
    total[name] = total[name].div_(len(places)).to(types[name])
pathlib.Path(sys.argv[2]).mkdir()
save_file(total, pathlib.Path(sys.argv[2]) / "model.safetensors", metadata={"format": "pt"})
"""


def shapes(vocabulary, layers):
    """Names and shapes of a small Llama."""
    yield "model.embed_tokens.weight", (vocabulary, WIDTH)
    for layer in range(layers):
        at = f"model.layers.{layer}."
        for name in "qkvo":
            yield f"{at}self_attn.{name}_proj.weight", (WIDTH, WIDTH)
        for name, shape in (("gate", (INNER, WIDTH)), ("up", (INNER, WIDTH)), ("down", (WIDTH, INNER))):
            yield f"{at}mlp.{name}_proj.weight", shape
        yield f"{at}input_layernorm.weight", (WIDTH,)
        yield f"{at}post_attention_layernorm.weight", (WIDTH,)
    yield "model.norm.weight", (WIDTH,)


def write(path, tensors, dtype, pool):
    """One safetensors file; the numbers come from a pool that is read round and round."""
    width = pool.itemsize
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in tensors:
        begin, end = end, end + int(np.prod(shape)) * width
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        left = end
        while left:
            part = min(left, pool.nbytes)
            file.write(pool.view(np.uint8)[:part])
            left -= part
    return {name: path.name for name, _ in tensors}, end


def make(folder, kind):
    vocabulary, layers, width = SETS[kind]
    tensors = list(shapes(vocabulary, layers))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_hidden_layers": layers,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "vocab_size": vocabulary,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16" if kind == "BF16" else "float32",
    }
    for agent in range(AGENTS):
        numbers = np.random.default_rng(agent)
        # A prime length, so that no two tensors hold the same rows.
        pool = (numbers.standard_normal(7_999_993) * 0.02).astype(np.float32)
        if kind == "BF16":
            pool = (pool.view(np.uint32) >> 16).astype(np.uint16)
        place = folder / f"agent{agent:02}"
        place.mkdir(parents=True)
        (place / "config.json").write_text(json.dumps(config))
        if agent >= 3:
            write(place / "model.safetensors", tensors, kind, pool)
            continue
        half, names, total = len(tensors) // 2, {}, 0
        for number, part in enumerate((tensors[:half], tensors[half:]), 1):
            more, size = write(place / f"model-{number:05}-of-00002.safetensors", part, kind, pool)
            names, total = names | more, total + size
        index = {"metadata": {"total_size": total}, "weight_map": names}
        (place / "model.safetensors.index.json").write_text(json.dumps(index))


def read_rate(files):
    """Bytes a second from the page cache, by two threads with plain reads; the best of three."""

    def read(part):
        buffer = memoryview(bytearray(256 << 10))
        for path in part:
            with open(path, "rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass

    best = 0
    for _ in range(3):
        threads = [threading.Thread(target=read, args=(files[start::2],)) for start in range(2)]
        began = time.monotonic()
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        best = max(best, sum(path.stat().st_size for path in files) / (time.monotonic() - began))
    return best


def write_rate(path, size):
    """Bytes a second into a file that is synced at the end; the best of three."""
    best, piece = 0, os.urandom(PIECE)
    for _ in range(3):
        began = time.monotonic()
        with open(path, "wb", buffering=0) as file:
            for _ in range(size // PIECE):
                file.write(piece)
            os.fsync(file.fileno())
        best = max(best, size // PIECE * PIECE / (time.monotonic() - began))
        path.unlink()
    return best


def measure(command, output, environment):
    """Wall seconds, processor seconds and peak resident megabytes of a process; None when it fails."""
    shutil.rmtree(output, ignore_errors=True)
    began, peak = time.monotonic(), 0
    with open(output.with_suffix(".log"), "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        status = Path(f"/proc/{process.pid}/status")
        while True:
            done, code, usage = os.wait4(process.pid, os.WNOHANG)
            if done:
                break
            for line in status.read_text().splitlines():
                if line.startswith("VmHWM:"):
                    peak = max(peak, int(line.split()[1]) / 1000)
            time.sleep(0.01)
    wall = time.monotonic() - began
    if code:
        print(f"  failed: {' '.join(map(str, command[:3]))}; see {output.with_suffix('.log')}", file=sys.stderr)
        return None
    return wall, usage.ru_utime + usage.ru_stime, peak


def programs(options, folder, kind):
    """Name → command with OUT for the output."""
    places = sorted(folder.glob("agent*"))
    pmill = [options.pmill, "snapshot", "merge", *places, "-o", "OUT", "--quiet"]
    found = {
        "pmill": pmill,
        "pmill, BLAKE3": [*pmill, "--digest", "blake3"],
        "pmill, no digests": [*pmill, "--digest", "none"],
        "pmill, no digests, not synced": [*pmill, "--digest", "none", "--no-sync"],
    }
    if not options.peers:
        return found
    python = options.peers / "bin" / "python"
    has = lambda name: subprocess.run([python, "-c", f"import {name}"], capture_output=True).returncode == 0  # noqa: E731
    if has("torch"):
        found["PyTorch, incremental"] = [python, "-c", TORCH, folder, "OUT"]
    mergekit = options.peers / "bin" / "mergekit-yaml"
    if mergekit.exists():
        recipe = folder / "mergekit.yaml"
        models = "".join(f"- model: {place}\n  parameters:\n    weight: {1 / AGENTS}\n" for place in places)
        dtype = "bfloat16" if kind == "BF16" else "float32"
        recipe.write_text(f"merge_method: linear\ndtype: {dtype}\nmodels:\n{models}")
        found["mergekit linear"] = [mergekit, recipe, "OUT", "--no-copy-tokenizer", "--lazy-unpickle"]
    return found


def bench(options, kind):
    folder, output = options.inputs / kind, options.work / f"out-{kind}"
    print(f"making the {kind} set", file=sys.stderr)
    make(folder, kind)
    files = sorted(folder.glob("agent*/*.safetensors"))
    bytes_in = sum(path.stat().st_size for path in files)
    bytes_out = bytes_in // AGENTS
    environment = os.environ | {"TRANSFORMERS_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    commands, seen = programs(options, folder, kind), {}
    limits = []
    for run in range(options.runs):
        reads, writes = read_rate(files), write_rate(options.work / "write", bytes_out)
        limits.append((reads, writes))
        for name, command in commands.items():
            print(f"{kind} run {run + 1}: {name}", file=sys.stderr)
            command = [output if part == "OUT" else part for part in command]
            seen.setdefault(name, []).append(measure(command, output, environment))
    shutil.rmtree(folder)
    shutil.rmtree(output, ignore_errors=True)
    reads, writes = (max(column) for column in zip(*limits))
    limit = bytes_in / reads + bytes_out / writes
    rows = {name: runs for name, runs in seen.items() if None not in runs}
    median = {n: [statistics.median(column) for column in zip(*runs)] for n, runs in rows.items()}
    own = median["pmill"][0]
    print(f"\n{kind}: {AGENTS} x {bytes_out / 1e9:.2f} GB; load {os.getloadavg()[0]:.1f}; read {reads / 1e9:.1f} GB/s by two")
    print(f"threads, write and sync {writes / 1e9:.2f} GB/s, so the limit is {limit:.2f} s\n")
    print("| program | wall s (least-most) | x limit | pmill is faster by | processor s | peak RSS MB |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, (wall, processor, peak) in median.items():
        walls = [run[0] for run in rows[name]]
        print(
            f"| {name} | {wall:.2f} ({min(walls):.2f}-{max(walls):.2f}) | {wall / limit:.2f} | {wall / own:.1f} |"
            f" {processor:.2f} | {peak:.0f} |"
        )
    print(flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pmill", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--inputs", type=Path)
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    options = parser.parse_args()
    options.work = options.work.resolve()
    options.work.mkdir(parents=True, exist_ok=True)
    options.inputs = (options.inputs or options.work).resolve()
    for place, least in ((options.work, 4e9), (options.inputs, 13e9 if options.inputs == options.work else 9.5e9)):
        if shutil.disk_usage(place).free < least:
            sys.exit(f"{place}: {least / 1e9:.1f} GB must be free")
    print(f"{platform.platform()}, {os.cpu_count()} processors")
    try:
        for kind in options.sets:
            bench(options, kind)
    finally:
        shutil.rmtree(options.work, ignore_errors=True)
        for kind in SETS:
            shutil.rmtree(options.inputs / kind, ignore_errors=True)


if __name__ == "__main__":
    main()
