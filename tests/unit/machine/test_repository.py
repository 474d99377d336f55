"""Which page a repository's commits are on."""

from __future__ import annotations

import pytest

from pytest_llem.machine.environment import repository_page


@pytest.mark.parametrize(
    ("remote", "page"),
    [
        ("https://x:secret@github.com/o/r.git", "https://github.com/o/r"),
        ("git@github.com:o/r.git", "https://github.com/o/r"),
        ("ssh://git@gitlab.com:22/g/s/r.git", "https://gitlab.com/g/s/r"),
        ("/srv/r.git", None),
        ("../r", None),
        ("host:r", None),
    ],
)
def test_the_page_of_a_repository_has_no_credentials(remote: str, page: str | None) -> None:
    """A token in the remote's address would be published with every history."""
    assert repository_page(remote) == page
