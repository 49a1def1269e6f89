"""A pytest plugin that plants one fault of the audit into a whole test run; see `tests.audit.running.run_test`."""

from __future__ import annotations

import os

import pytest

from tests.audit.running import PLANTED


def pytest_configure(config: pytest.Config) -> None:
    from tests.audit.table import FAULTS

    fault = next(f for f in FAULTS if f.name == os.environ[PLANTED])
    patch = pytest.MonkeyPatch()
    fault.plant(patch)
    config.add_cleanup(patch.undo)
