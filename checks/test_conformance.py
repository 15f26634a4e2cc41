"""The suite on the backends of the package under test: what ``pytest --pyargs checks`` collects."""

from checks.plugin import contract_test

__all__ = ["test_conformance"]

test_conformance = contract_test()
