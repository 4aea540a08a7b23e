"""Ids and hashes of many at once are those of each."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.records import Provenance, content_hash, rows_hash, sample_id, sample_ids

text = st.text(st.characters(), max_size=5)  # lone surrogates too


@given(
    st.lists(text, max_size=3),
    st.builds(Provenance, text, text, text, st.floats(0, 2), st.floats(0, 1)),
    st.integers(0, 3),
)
def test_sample_ids_are_those_of_sample_id(problems: list[str], provenance: Provenance, replicas: int) -> None:
    one_by_one = [[sample_id(problem, provenance, replica) for replica in range(replicas)] for problem in problems]
    assert list(sample_ids(problems, provenance, replicas)) == one_by_one


@pytest.mark.parametrize("count", [0, 1, 3])
def test_rows_that_come_one_by_one_hash_like_their_list(count: int) -> None:
    rows = [{"text": f"ä{n}\ud800", "n": n} for n in range(count)]
    assert rows_hash("rows", iter(rows), digits=12) == content_hash("rows", rows, digits=12)
