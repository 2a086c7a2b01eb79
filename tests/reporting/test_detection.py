from hypothesis import given, settings
from hypothesis import strategies as st

from phalanx.reporting import Detection, detection

ids = st.lists(st.integers(0, 5), unique=True)
rounds = st.lists(
    st.fixed_dictionaries(
        {
            "step": st.integers(0, 9),
            "byzantine": ids,
            "suspects": ids,
            "outliers": ids,
            "missing": st.dictionaries(st.integers(0, 5).map(str), st.just("late")),
        }
    ),
    max_size=5,
)


def test_counts_by_hand():
    entries = [
        {"step": 0, "byzantine": [1, 4], "suspects": [1, 2], "missing": {}},
        {"step": 1, "byzantine": [1, 4], "suspects": [1, 4], "missing": {"4": "silent"}},
        {"step": 2, "byzantine": [], "suspects": [], "missing": {"3": "dead"}},
    ]
    found = detection(entries)
    assert found == Detection(lies=3, caught=2, false_alarms=1, unheard=1, proven=2, framed=1)
    assert found.precision == 2 / 3
    assert found.recall == 2 / 3


def test_without_liars_there_is_no_score():
    found = detection([{"step": 0, "byzantine": [], "suspects": [3], "missing": {}}])
    assert (found.precision, found.recall, found.false_alarms) == (None, None, 1)
    assert detection([]) == Detection()


def test_only_silent_liars_leave_nothing_to_catch():
    found = detection([{"step": 0, "byzantine": [3], "suspects": [], "missing": {"3": "silent"}}])
    assert (found.unheard, found.precision, found.recall) == (1, None, None)


@settings(deadline=None, derandomize=True)
@given(rounds)
def test_scores_against_a_slow_count(entries):
    lies = caught = alarms = proven = framed = 0
    for entry in entries:
        for worker in range(6):
            lied = worker in entry["byzantine"] and str(worker) not in entry["missing"]
            named = worker in entry["suspects"]
            suspected = named or worker in entry["outliers"]
            lies += lied
            caught += lied and suspected
            proven += lied and named
            alarms += suspected and worker not in entry["byzantine"]
            framed += named and worker not in entry["byzantine"]
    found = detection(entries)
    assert (found.lies, found.caught, found.false_alarms) == (lies, caught, alarms)
    assert (found.proven, found.framed) == (proven, framed)
    assert found.verb == ("named" if (proven, framed) == (caught, alarms) else "suspected")
    assert found.proof is None if lies == 0 else found.proof <= found.recall
    assert found.recall is None if lies == 0 else 0 <= found.recall <= 1
