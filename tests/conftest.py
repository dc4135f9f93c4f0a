"""What every test here has."""

from tests.helpers import folder  # noqa: F401, a folder of its own
