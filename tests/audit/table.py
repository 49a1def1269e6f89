"""The table of faults: what is planted, where it must be caught, and in which words."""

from __future__ import annotations

from tests.audit.code_table import CODE
from tests.audit.data_table import DATA
from tests.audit.flag_table import FLAGS

FAULTS = [*CODE, *FLAGS, *DATA]
