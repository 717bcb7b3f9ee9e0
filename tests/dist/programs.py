"""Programs for workers, written into a test's folder."""

from __future__ import annotations

from pathlib import Path

RING = """
import os, signal, sys, time
import torch, torch.distributed as dist

fault, who = sys.argv[1], int(sys.argv[2])
rank = int(os.environ["RANK"])

def hurt():
    if fault == "raise":
        raise ValueError("the planted fault")
    if fault == "exit":
        sys.exit(3)
    if fault == "leave":
        os._exit(0)
    if fault == "sigterm-ignored":
        raise ValueError("the planted fault")
    os.kill(os.getpid(), getattr(signal, fault))

if fault == "sigterm-ignored" and rank != who:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)
dist.init_process_group("gloo")
for step in range(100_000):
    dist.all_reduce(torch.ones(1))
    time.sleep(0.005)
    if step == 10 and rank == who:
        print(f"rank {rank} has come to its fault", flush=True)
        hurt()
"""
"""Ranks that wait for each other over and over; one of them has a fault."""

SLEEPER = """
import signal, subprocess, sys, time
if "deaf" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen(["sleep", "600"], start_new_session=True)
print("asleep", flush=True)
time.sleep(600)
"""
"""A rank that sleeps, with a child in a session of its own."""

WORDS = """
import json, os, sys
names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "RANK_ID", "RANK_SIZE", "DEVICE_ID",
         "PYTHONPATH", "LOG_MF_PATH", "GLOO_SOCKET_IFNAME", "OMP_NUM_THREADS")
print(json.dumps({"argv": sys.argv[1:], "env": {name: os.environ.get(name) for name in names},
                  "cores": sorted(os.sched_getaffinity(0)), "torch": "torch" in sys.modules}), flush=True)
"""
"""A rank that says what it was given."""


def write(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text)
    return name
