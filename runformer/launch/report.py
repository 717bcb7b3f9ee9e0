"""Explains what happened to a launch from what it wrote down; nothing needs to run any more."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from runformer.errors import LaunchError
from runformer.launch.events import read_events
from runformer.launch.failure import signal_name
from runformer.launch.judge import Verdict
from runformer.launch.summary import summarise

_PATTERN = "events*.jsonl"

Event = Mapping[str, Any]


def report_lines(log_dir: Path) -> list[str]:
    """What happened, in the order of time, and the cause of it.

    Raises:
        LaunchError: nothing was written down there.
    """
    paths = sorted(log_dir.glob(_PATTERN))
    if not paths:
        raise LaunchError(f"{log_dir}: there is no events.jsonl", hint="give the LOG_DIR of a launch")
    events = sorted((event for path in paths for event in read_events(path)), key=lambda event: event["time"])
    if not events:
        raise LaunchError(f"{log_dir}: its events.jsonl tells nothing")
    first = events[0]["time"]
    lines = [f"{event['time'] - first:9.2f} s  {text}" for event in events if (text := _describe(event))]
    began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(first))
    return [f"launch of {began}", *lines, *_conclusion(log_dir, events)]


def _describe(event: Event) -> str:
    node = f"NODE_RANK {event['node_rank']}"
    match event["event"]:
        case "start":
            workers = f"{event['local_world_size']} of {event['world_size']} workers"
            return f"{node} ({event['host']}): {workers}: {event['command']}"
        case "cluster":
            return f"{node}: all machines are here: attempt {event['attempt'] + 1} begins"
        case "worker_start":
            return f"rank {event['rank']} started as process {event['pid']}, log {event['log']}"
        case "worker_end":
            return f"rank {event['rank']} {_end(event)}"
        case "failure":
            rank = "a machine" if event["rank"] is None else f"rank {event['rank']}"
            echo = " (an echo of another failure)" if event["echo"] else ""
            return f"{rank} failed{echo}: {event['message'].splitlines()[0] if event['message'] else event['kind']}"
        case "signal":
            return f"{node}: the launcher got {signal_name(event['signal'])}"
        case "verdict":
            return f"{node}: verdict on attempt {event['attempt'] + 1}: {event['outcome']}"
        case "end":
            return f"{node}: the launcher ended with exit code {event['exit_code']} ({event['outcome']})"
        case _:
            return ""


def _end(event: Event) -> str:
    if event["stopped"]:
        return f"was stopped by {signal_name(event['signal'])}"
    if event["signal"]:
        return f"was ended by {signal_name(event['signal'])}"
    return f"exited with code {event['exit_code']}"


def _conclusion(log_dir: Path, events: Sequence[Event]) -> Iterator[str]:
    verdicts = [event for event in events if event["event"] == "verdict"]
    if not verdicts:
        yield "no verdict was written: the launcher itself was killed, or the job never began"
        return
    last = verdicts[-1]
    exit_code = next((event["exit_code"] for event in events if event["event"] == "end"), 1)
    fields = {name: last[name] for name in ("attempt", "outcome", "cause", "others")}
    seconds = last["time"] - events[0]["time"]
    yield ""
    yield from summarise(Verdict.from_json(fields | {"exit_code": exit_code}), log_dir=log_dir, seconds=seconds)
