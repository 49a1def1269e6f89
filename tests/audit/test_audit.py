"""The quick part of the audit: planted faults are caught where they must be, in words that name them."""

from __future__ import annotations

import pytest

from tests.audit.running import run_fault, run_test
from tests.audit.sound import SOUND
from tests.audit.table import FAULTS

QUICK = [f for f in FAULTS if f.quick]


def test_the_table_is_large_and_every_fault_has_a_name_of_its_own() -> None:
    assert len(FAULTS) >= 60
    assert len({f.name for f in FAULTS}) == len(FAULTS)
    assert {f.kind for f in FAULTS} == {"data", "flags", "code"}
    assert sum(f.quick for f in FAULTS) >= 15


@pytest.mark.parametrize("fault", [f for f in QUICK if f.where != "test"], ids=lambda f: f.name)
def test_a_fault_is_caught(fault, assets, tmp_path) -> None:
    outcome = run_fault(fault, assets, tmp_path)
    assert outcome.found(fault.where, fault.words), outcome.summary()


@pytest.mark.parametrize("fault", [f for f in SOUND if f.quick], ids=lambda f: f.name)
def test_a_sound_run_is_silent(fault, assets, tmp_path) -> None:
    outcome = run_fault(fault, assets, tmp_path)
    assert outcome.found("silent", ""), outcome.summary()


@pytest.mark.slow
@pytest.mark.parametrize("fault", [f for f in QUICK if f.where == "test"], ids=lambda f: f.name)
def test_a_fault_that_only_tests_can_catch_is_caught(fault) -> None:
    failed, said = run_test(fault)
    assert failed, said[-3000:]


def test_a_fault_that_is_not_planted_is_not_found(assets, tmp_path) -> None:
    """The table is no rubber stamp: the words are not said of a sound run."""
    outcome = run_fault(next(f for f in SOUND if f.name == "packed"), assets, tmp_path)
    for fault in FAULTS:
        if fault.where != "test":
            assert not outcome.found(fault.where, fault.words), fault.name
