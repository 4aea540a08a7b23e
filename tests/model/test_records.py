"""Ids of many samples at once are the ids of each."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from model.records import Provenance, sample_id, sample_ids

text = st.text(st.characters(), max_size=5)  # lone surrogates too


@given(
    st.lists(text, max_size=3),
    st.builds(Provenance, text, text, text, st.floats(0, 2), st.floats(0, 1)),
    st.integers(0, 3),
)
def test_sample_ids_are_those_of_sample_id(problems: list[str], provenance: Provenance, replicas: int) -> None:
    one_by_one = [[sample_id(problem, provenance, replica) for replica in range(replicas)] for problem in problems]
    assert list(sample_ids(problems, provenance, replicas)) == one_by_one
