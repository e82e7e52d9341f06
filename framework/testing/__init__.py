"""Checks that test whether a plugin, bundled or your own, keeps the framework's guarantees.

On the command line ``python -m framework check my_package.my_plugin:MyPlugin`` prints a table. In a test suite:

.. code-block:: python

    from framework.testing import CHECKS, cases_of

    @pytest.mark.parametrize("check", CHECKS, ids=str)
    @pytest.mark.parametrize("case", cases_of(MyPlugin), ids=str)
    def test_my_plugin(case, check):
        check(case).require()

Cases come from the class's ``examples``; :func:`check_plugin` takes a function that makes the plugin instead. Each
check trains small networks, for about 20 milliseconds a run. A check has one of five results: it holds, it fails, the
plugin refuses with a :class:`framework.UserError`, the check does not apply to this plugin, or it deviates as the
plugin's ``limits`` declare. A declared limit that does not show is a failure.
"""

from framework.testing.battery import CHECKS, check_named, check_plugin
from framework.testing.case import Case, cases_of
from framework.testing.result import Check, Result, Status
from framework.testing.task import TASKS, Task

__all__ = [
    "CHECKS",
    "TASKS",
    "Case",
    "Check",
    "Result",
    "Status",
    "Task",
    "cases_of",
    "check_named",
    "check_plugin",
]
