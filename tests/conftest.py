"""What every test here has."""

from tests.helpers import folder  # noqa: F401, a folder of its own


def pytest_collection_modifyitems(items):
    """The longest test comes first: at the end one of two cores would wait for it."""
    items.sort(key=lambda item: "test_tour" not in item.nodeid)
