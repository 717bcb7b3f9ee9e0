"""What launchers say in the environment."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runformer.config.launched import Launched, launched
from runformer.errors import ConfigError

TORCH = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "n0",
    "MASTER_PORT": "5",
}
SLURM = {
    "SLURM_PROCID": "5",
    "SLURM_NTASKS": "6",
    "SLURM_STEP_NUM_TASKS": "6",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "2(x3)",
    "SLURM_STEP_NODELIST": "gpu[007-009],login",
    "SLURM_JOB_ID": "1234",
    "SLURM_STEP_ID": "0",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        (TORCH, Launched(3, 4, 1, 2, "n0", 5, "WORLD_SIZE")),
        (TORCH | SLURM, Launched(3, 4, 1, 2, "n0", 5, "WORLD_SIZE")),
        ({"RANK": "0", "WORLD_SIZE": "1"}, Launched(0, 1, 0, 1, "127.0.0.1", 8118, "WORLD_SIZE")),
        ({"RANK_ID": "1", "RANK_SIZE": "2", "DEVICE_ID": "7"}, Launched(1, 2, 7, 2, "127.0.0.1", 8118, "RANK_SIZE")),
        (SLURM, Launched(5, 6, 1, 2, "gpu007", 10000 + 1234 * 31 % 20000, "SLURM_STEP_NUM_TASKS")),
        (SLURM | {"MASTER_ADDR": "a", "MASTER_PORT": "9"}, Launched(5, 6, 1, 2, "a", 9, "SLURM_STEP_NUM_TASKS")),
        (OPEN_MPI, Launched(1, 2, 1, 2, "127.0.0.1", 8118, "OMPI_COMM_WORLD_SIZE")),
        ({"PMI_RANK": "0", "PMI_SIZE": "3"}, Launched(0, 3, 0, 3, "127.0.0.1", 8118, "PMI_SIZE")),
    ],
)
def test_each_launcher_is_understood(environment: dict[str, str], expected: Launched | None) -> None:
    assert launched(environment) == expected


def test_inside_an_allocation_but_not_in_a_step_a_process_is_alone() -> None:
    assert launched({name: value for name, value in SLURM.items() if "STEP" not in name}) is None


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (TORCH | {"RANK": "4"}, "RANK is 4, but WORLD_SIZE is 4: ranks count from 0"),
        (TORCH | {"RANK": "one"}, "RANK is 'one' in the environment, which is not a whole number from 0"),
        (TORCH | {"WORLD_SIZE": "0"}, "WORLD_SIZE is '0' in the environment"),
        (TORCH | {"MASTER_PORT": "-1"}, "MASTER_PORT is '-1' in the environment"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is set in the environment, and RANK is not"),
        (
            OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1"},
            "OMPI_COMM_WORLD_SIZE says that there are other machines, and MASTER_ADDR does not say where rank 0 is",
        ),
    ],
)
def test_what_contradicts_itself_is_refused(environment: dict[str, str], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected.replace("(", r"\(")):
        launched(environment)


def test_a_plan_needs_the_number_only() -> None:
    place = launched({"WORLD_SIZE": "8"}, planning=True)
    assert place is not None
    assert (place.rank, place.world_size) == (0, 8)


names = st.from_regex(r"[a-z][a-z0-9-]{0,8}", fullmatch=True)
numbers = st.integers(0, 999)


@given(prefix=names, first=numbers, width=st.integers(1, 4), rest=st.lists(names, max_size=3), bracket=st.booleans())
def test_the_first_host_of_any_list(prefix: str, first: int, width: int, rest: list[str], bracket: bool) -> None:
    number = f"{first:0{width}}"
    head = f"{prefix}[{number}-{first + 2},{first + 9}]" if bracket else prefix
    place = launched(SLURM | {"SLURM_STEP_NODELIST": ",".join([head, *rest])})
    assert place is not None
    assert place.master_addr == (prefix + number if bracket else prefix)


@given(st.dictionaries(st.sampled_from(sorted(TORCH | SLURM | OPEN_MPI)), st.text(max_size=8), max_size=8))
def test_no_environment_does_worse_than_a_message(environment: dict[str, str]) -> None:
    try:
        place = launched(environment)
    except ConfigError:
        return
    assert place is None or 0 <= place.rank < place.world_size
