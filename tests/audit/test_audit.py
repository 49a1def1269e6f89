"""The quick part of the audit: planted faults are caught where they must be, in words that name them."""

from __future__ import annotations

import pytest

from tests.audit.running import run_fault, run_test
from tests.audit.table import FAULTS

RUNS = [pytest.param(f, id=f.name, marks=() if f.quick else pytest.mark.slow) for f in FAULTS if f.where != "test"]


def test_the_table_is_large_and_every_fault_has_a_name_of_its_own() -> None:
    assert len(FAULTS) >= 60
    assert len({f.name for f in FAULTS}) == len(FAULTS)
    assert {f.kind for f in FAULTS} == {"data", "flags", "code"}
    assert sum(f.quick for f in FAULTS) >= 15


@pytest.mark.parametrize("fault", [p for p in RUNS if p.values[0].quick])
def test_a_fault_is_caught(fault, assets, tmp_path) -> None:
    outcome = run_fault(fault, assets, tmp_path)
    assert outcome.found(fault.where, fault.words), outcome.summary()


@pytest.mark.slow
@pytest.mark.parametrize("fault", [f for f in FAULTS if f.where == "test" and f.quick], ids=lambda f: f.name)
def test_a_fault_that_only_tests_can_catch_is_caught(fault) -> None:
    failed, said = run_test(fault)
    assert failed, said[-3000:]
