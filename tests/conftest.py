"""What the tests here share with test_smoke.py."""

from test_smoke import folder  # noqa: F401, every test's own
