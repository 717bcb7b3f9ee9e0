"""Verdicts: who was the cause, whether to start again, and who hangs."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runformer.launch.failure import Failure, root_cause
from runformer.launch.hang import RankStamp, find_hang
from runformer.launch.judge import Judge, NodeState, Verdict
from runformer.observe.pulse import PHASES


def failure(rank: int = 0, *, time: float = 0, echo: bool = False, code: int = 1, node: int = 0) -> Failure:
    return Failure(rank, node, "host", "exit", code, time, echo=echo)


def states(*nodes: NodeState) -> dict[int, NodeState]:
    return dict(enumerate(nodes))


def state(*failures: Failure, **fields) -> NodeState:
    return NodeState("host", "10.0.0.1", 0, list(failures), **fields)


def judged(judge: Judge, nodes: dict[int, NodeState], silence: dict[int, float] | None = None) -> Verdict | None:
    """The verdict after the time that it takes."""
    quiet = dict.fromkeys(nodes, 0.0) | (silence or {})
    judge.verdict(0, nodes, quiet, now=100)
    return judge.verdict(0, nodes, quiet, now=102)


failures = st.builds(failure, rank=st.integers(0, 9), time=st.floats(0, 9), echo=st.booleans())


@given(st.lists(failures, min_size=1, max_size=6))
def test_the_cause_is_the_first_that_is_no_echo(found: list[Failure]) -> None:
    cause = root_cause(found)
    real = [item for item in found if not item.echo]
    assert cause.echo == (not real)
    assert cause.time == min(item.time for item in (real or found))


def test_a_cause_is_waited_for_a_moment() -> None:
    judge, nodes = Judge(0, 0), states(state(failure(echo=True)), state())
    silence = {0: 0.0, 1: 0.0}
    assert judge.verdict(0, nodes, silence, now=10) is None
    assert judge.verdict(0, nodes, silence, now=11) is None
    nodes[1].failures.append(failure(7, time=5, code=3, node=1))
    verdict = judge.verdict(0, nodes, silence, now=11.2)
    assert verdict is not None
    assert (verdict.cause.rank, verdict.exit_code, verdict.others) == (7, 3, (0,))


def test_echoes_and_a_silent_machine_mean_that_it_is_lost() -> None:
    nodes = states(state(failure(echo=True)), state())
    verdict = judged(Judge(0, 0), nodes, {1: 1.2})
    assert verdict is not None
    assert (verdict.cause.kind, verdict.cause.node_rank) == ("lost", 1)
    assert judged(Judge(0, 0), states(state(), state()), {1: 5.0}) is None, "silence alone is borne longer"
    lost = judged(Judge(0, 0), states(state(), state()), {1: 10.0})
    assert lost is not None
    assert lost.cause.kind == "lost"


def test_echoes_alone_point_at_a_rank_that_left_early() -> None:
    stamps = [RankStamp(0, 0, 0, "", 1), RankStamp(1, 0, 0, "", 1, ended=True)]
    verdict = judged(Judge(0, 0), states(state(failure(0, echo=True), stamps=stamps)))
    assert verdict is not None
    assert verdict.cause.rank == 1
    assert "ended with exit code 0 while other ranks" in verdict.cause.message


@pytest.mark.parametrize(
    ("steps", "code", "outcome"),
    [
        ((0, 5), 1, "restart"),
        ((5, 5), 1, "failed"),
        (None, 1, "failed"),
        ((0, 5), 78, "failed"),
        ((0, 5), 93, "failed"),
    ],
)
def test_starting_again_needs_progress_and_hope(steps, code: int, outcome: str) -> None:
    verdict = judged(Judge(2, 0), states(state(failure(code=code), steps=steps)))
    assert verdict is not None
    assert (verdict.outcome, verdict.exit_code) == (outcome, code)


def test_restarts_are_counted() -> None:
    judge = Judge(2, 0)
    outcomes = [judged(judge, states(state(failure(), steps=(0, 1)))).outcome for _ in range(4)]
    assert outcomes == ["restart", "restart", "failed", "failed"]


@pytest.mark.parametrize(
    ("nodes", "outcome", "code"),
    [
        ([state(finished=True), state(finished=True)], "succeeded", 0),
        ([state(left=True), state(finished=True)], "preempted", 75),
        ([state(stopped=15), state()], "stopped", 143),
    ],
)
def test_good_and_asked_for_ends(nodes: list[NodeState], outcome: str, code: int) -> None:
    verdict = judged(Judge(3, 0), states(*nodes))
    assert verdict is not None
    assert (verdict.outcome, verdict.exit_code) == (outcome, code)
    assert judged(Judge(3, 0), states(state(finished=True), state())) is None, "one still works"


def test_states_and_verdicts_go_through_json() -> None:
    original = state(failure(3), steps=(1, 2), stamps=[RankStamp(0, 0, 1, "data", 0.5)])
    assert NodeState.from_json(json.loads(json.dumps(original.to_json()))) == original
    verdict = Verdict(1, "failed", 3, failure(3), (4, 5))
    assert Verdict.from_json(json.loads(json.dumps(verdict.to_json()))) == verdict


def stamps(*places: tuple[int, str], age: float = 20) -> list[RankStamp]:
    return [RankStamp(rank, 0, step, phase, age) for rank, (step, phase) in enumerate(places)]


def hang(found: list[RankStamp], timeout: float = 10) -> Failure | None:
    return find_hang(found, timeout, {0: "host"})


def test_the_rank_that_lags_is_named_with_what_it_never_entered() -> None:
    found = hang(stamps((5, "backward"), (5, "forward"), (5, "backward")))
    assert found is not None
    assert (found.rank, found.exit_code, found.place) == (1, 124, "step 5, forward")
    assert "ranks 0, 2 wait in step 5, backward (the sum of gradients over all ranks, which it never" in found.message
    silent = hang(stamps((0, "join"), (0, "")))
    assert silent is not None
    assert silent.rank == 1
    assert "before it said anything" in silent.message


def test_all_in_one_collective_is_a_hang_without_a_name() -> None:
    found = hang(stamps((5, "loss"), (5, "loss")))
    assert found is not None
    assert found.rank is None
    assert "one of them never entered the sum of losses over all ranks" in found.message


def test_a_rank_that_has_left_is_the_cause() -> None:
    found = hang([*stamps((5, "loss")), RankStamp(1, 0, 4, "loss", 30, ended=True)])
    assert found is not None
    assert found.rank == 1


@pytest.mark.parametrize(
    "found",
    [
        stamps((5, "backward"), (5, "forward"), age=9),
        stamps((0, "load"), (0, "load")),
        stamps((0, ""), (0, "")),
        stamps((5, "forward")),
        [*stamps((5, "backward")), RankStamp(1, 0, 5, "forward", 1)],
    ],
)
def test_what_is_no_hang(found: list[RankStamp]) -> None:
    assert hang(found) is None
    assert hang(stamps((5, "loss"), (5, "loss")), timeout=0) is None


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(PHASES)), min_size=2, max_size=6))
def test_whoever_is_named_is_behind_somebody(places: list[tuple[int, str]]) -> None:
    found = hang(stamps(*places))
    if found is not None and found.rank is not None:
        order = [(step, PHASES.index(phase)) for step, phase in places]
        assert order[found.rank] == min(order) < max(order)
