"""A Supabase project for each file of tests, and empty for each test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest

from servers.postgres import Cluster, Place
from servers.supabase import Cloud
from uploads import emptied


@pytest.fixture(scope="module")
def project(
    cluster: Cluster, serve_cloud: Callable[[Place], AbstractContextManager[Cloud]]
) -> Iterator[Cloud]:
    with cluster.database() as place, serve_cloud(place) as running:
        yield running


@pytest.fixture
def cloud(project: Cloud) -> Cloud:
    emptied(project)
    return project
