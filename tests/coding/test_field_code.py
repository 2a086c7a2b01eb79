"""The cyclic code over a prime field, against slow arithmetic on Python's integers."""

import itertools
import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from phalanx.coding import DracoCyclic
from phalanx.coding.field_code import forged
from phalanx.coding.fixed_point import HEADER
from phalanx.coding.prime_field import LARGEST, PRIME, halves, product, project, reduced
from phalanx.coding.reed_solomon import encoding_weights, locate, reader, shortest_recurrence
from phalanx.errors import DecodeError

SHAPES = [(7, 2), (9, 2), (15, 3), (21, 5), (45, 5)]
DIM = 30


def field(workers, s, **options):
    return DracoCyclic(workers, s, arithmetic="field", **options)


def rows(number, seed=0, dim=DIM, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(number, dim, generator=generator, dtype=torch.float64).to(dtype)


def named(decoded):
    return decoded.suspects.nonzero().flatten().tolist()


def solved(matrix, right):
    """One solution of linear equations modulo p, by elimination on Python's integers."""
    size = len(matrix[0])
    table = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    pivots = []
    for column in range(size):
        free = [r for r in range(len(pivots), len(table)) if table[r][column] % PRIME]
        if not free:
            continue
        here = len(pivots)
        table[here], table[free[0]] = table[free[0]], table[here]
        inverse = pow(table[here][column], -1, PRIME)
        table[here] = [value * inverse % PRIME for value in table[here]]
        for r, row in enumerate(table):
            if r != here and row[column] % PRIME:
                factor = row[column]
                table[r] = [(a - factor * b) % PRIME for a, b in zip(row, table[here], strict=True)]
        pivots.append(column)
    assert all(row[-1] % PRIME == 0 for row in table[len(pivots) :])
    answer = [0] * size
    for row, column in zip(table, pivots, strict=False):
        answer[column] = row[-1]
    return answer


def reference_weights(length, s):
    """The code's definition: each column passes all checks and is read as 1 by the last one."""
    weights = [[0] * length for _ in range(length)]
    for k in range(length):
        holders = sorted((k - step) % length for step in range(2 * s + 1))
        checks = [[pow(i + 1, c, PRIME) for i in holders] for c in range(2 * s + 1)]
        for i, value in zip(holders, solved(checks, [0] * (2 * s) + [1]), strict=True):
            weights[i][k] = value
    return weights


def reference_decode(messages, s, missing):
    """Mean numerator and Byzantine workers, from trying all sets of them."""
    length = len(messages)
    most = (2 * s - len(missing)) // 2
    present = [i for i in range(length) if i not in missing]
    for count in range(most + 1):
        for bad in itertools.combinations(present, count):
            out = [*missing, *bad]
            kept = [i for i in range(length) if i not in out]
            # Combinations of checks that vanish on those left out must vanish on the others' words.
            powers = [[pow(i + 1, c, PRIME) for i in range(length)] for c in range(2 * s)]
            words = []
            for size in range(2 * s - len(out)):
                values = []
                for i in kept:
                    value = pow(i + 1, size, PRIME)
                    for worker in out:
                        value = value * (i - worker) % PRIME
                    values.append(value)
                words.append(values)
            columns = range(len(messages[0]))
            if all(
                sum(v * messages[i][j] for v, i in zip(word, kept, strict=True)) % PRIME == 0
                for word in words
                for j in columns
            ):
                mixture = solved(
                    [[powers[c][i] for c in range(2 * s)] for i in out],
                    [-pow(i + 1, 2 * s, PRIME) for i in out],
                )
                read = [
                    (
                        pow(i + 1, 2 * s, PRIME)
                        + sum(m * p[i] for m, p in zip(mixture, powers, strict=True))
                    )
                    % PRIME
                    for i in range(length)
                ]
                sums = [sum(read[i] * messages[i][j] for i in kept) % PRIME for j in columns]
                return [x - PRIME if x > LARGEST else x for x in sums], list(bad)
    return None


def test_arithmetic_is_that_of_integers():
    source = random.Random(0)
    for terms in (1, 3, 256, 300):
        extremes = [LARGEST, -LARGEST, LARGEST - 1, 0, 1]
        coefficients = [
            [
                source.choice([0, 1, LARGEST, PRIME - 1, source.randrange(PRIME)])
                for _ in range(terms)
            ]
            for _ in range(2)
        ]
        values = [
            [source.choice([*extremes, source.randint(-LARGEST, LARGEST)]) for _ in range(5)]
            for _ in range(terms)
        ]
        found = reduced(product(halves(torch.tensor(coefficients)), torch.tensor(values).double()))
        for row, column in itertools.product(range(2), range(5)):
            exact = sum(c * v[column] for c, v in zip(coefficients[row], values, strict=True))
            assert int(found[row, column]) == (exact + LARGEST) % PRIME - LARGEST


def test_remainders_of_extremes():
    whole = [2**49 - 1, 1 - 2**49, PRIME * 2**17 + LARGEST, PRIME * 2**17 + LARGEST + 1]
    whole += [sign * (PRIME * 12345 + LARGEST + add) for sign in (1, -1) for add in (0, 1)]
    found = reduced(torch.tensor(whole, dtype=torch.float64))
    assert found.tolist() == [(x + LARGEST) % PRIME - LARGEST for x in whole]


def test_weights_are_those_of_the_definition(subtests):
    for length, s in [(3, 1), (5, 1), (8, 2), (7, 3), (15, 3)]:
        with subtests.test(length=length, s=s):
            assert encoding_weights(length, 2 * s).tolist() == reference_weights(length, s)
            read = reader(length, list(range(2 * s)))
            total = [
                sum(int(a) * int(b) for a, b in zip(read, w, strict=True)) % PRIME
                for w in encoding_weights(length, 2 * s).T
            ]
            assert total == [1] * length


def test_messages_are_those_of_integers(subtests):
    for workers, s in [(7, 2), (9, 2), (8, 2), (15, 3)]:
        with subtests.test(workers=workers, s=s):
            code, gradients = field(workers, s, fraction_bits=10), rows(workers)
            weights = reference_weights(workers, s)
            numbers = [[round(float(g) * 2**10) for g in row] for row in gradients]
            expected = [
                [
                    (sum(w * q[j] for w, q in zip(row, numbers, strict=True)) + LARGEST) % PRIME
                    - LARGEST
                    for j in range(DIM)
                ]
                for row in weights
            ]
            assert code.encode_all([gradients])[:, :DIM].tolist() == expected


def test_decoding_is_that_of_integers(subtests):
    source = random.Random(1)
    for workers, s in [(5, 1), (7, 2), (9, 2)]:
        code = field(workers, s)
        messages = code.encode_all([rows(workers, dim=3)])
        for trial in range(12):
            with subtests.test(workers=workers, s=s, trial=trial):
                number = source.randint(0, 2 * s)
                order = source.sample(range(workers), workers)
                missing, bad = order[:number], order[number : number + (2 * s - number) // 2]
                sent = messages.clone()
                sent[missing] = torch.iinfo(torch.int32).min
                for worker in bad:
                    sent[worker, source.randrange(3)] += source.choice([-1, 1])
                arrived = torch.ones(workers, dtype=torch.bool)
                arrived[missing] = False
                decoded = code.decode(sent, arrived)
                sums, found = reference_decode(sent.tolist(), s, missing)
                assert named(decoded) == found == sorted(bad)
                unit = 2.0**-code._field.bits
                mean = torch.tensor(sums[:3]).double() * (unit / workers)
                assert decoded.gradient.equal(mean.float())


def lies(source, messages, bad):
    """What Byzantine workers send: now and then a single unit in a single coordinate."""
    sent = messages.clone()
    kind = source.choice(["one unit", "random", "alike", "another's", "negated", "one wrapped"])
    shared = torch.randint(-LARGEST, LARGEST + 1, sent[0].shape, dtype=torch.int32)
    for worker in bad:
        where = source.randrange(sent.shape[1])
        if kind == "one unit":
            value = int(sent[worker, where])
            sent[worker, where] = value + 1 if value < LARGEST else value - 1
        elif kind == "random":
            sent[worker] = torch.randint(-LARGEST, LARGEST + 1, sent[0].shape, dtype=torch.int32)
        elif kind == "alike":
            sent[worker] = shared
        elif kind == "another's":
            sent[worker] = messages[(worker + 1) % len(messages)]
        elif kind == "negated":
            sent[worker] *= -1
        else:  # the same number modulo p, in another form, is malformed
            value = int(sent[worker, where])
            sent[worker, where] = value - PRIME if value > 0 else value + PRIME
    return sent


def test_trials_within_the_bound_are_exact_to_the_bit(subtests):
    """128 trials of every shape: random and adjacent sets, with and without missing messages."""
    for workers, s in SHAPES:
        codes = [field(workers, s), field(workers, s, group_length=workers)]
        sent = [code.encode_all([rows(workers)]) for code in codes]
        clean = [code.decode(one).gradient for code, one in zip(codes, sent, strict=True)]
        with subtests.test(workers=workers, s=s):
            for trial in range(128):
                source = random.Random(trial)
                which = trial % 2
                code, messages = codes[which], sent[which]
                missing, bad = [], []
                for group in code.groups:
                    number = source.choice([0, 0, source.randint(0, 2 * s)])
                    count = source.choice([(2 * s - number) // 2, source.randint(0, s)])
                    count = min(count, (2 * s - number) // 2)
                    if source.random() < 0.5:
                        start = source.randrange(len(group))
                        order = [group[(start + i) % len(group)] for i in range(len(group))]
                    else:
                        order = source.sample(list(group), len(group))
                    bad += order[:count]
                    missing += order[count : count + number]
                given = lies(source, messages, bad)
                arrived = torch.ones(workers, dtype=torch.bool)
                arrived[missing] = False
                given[missing] = 12345
                decoded = code.decode(given, arrived)
                assert named(decoded) == sorted(bad)
                assert decoded.gradient.equal(clean[which])


@given(
    length=st.integers(3, 40),
    s=st.integers(1, 6),
    missing=st.integers(0, 12),
    seed=st.integers(0, 2**32),
)
def test_the_locator_finds_all_within_the_bound(length, s, missing, seed):
    source = random.Random(seed)
    s = min(s, (length - 1) // 2)
    missing = min(missing, 2 * s)
    bad_count = source.randint(0, (2 * s - missing) // 2)
    weights = encoding_weights(length, 2 * s).tolist()
    secrets = [source.randrange(PRIME) for _ in range(length)]
    word = [sum(w * q for w, q in zip(row, secrets, strict=True)) % PRIME for row in weights]
    order = source.sample(range(length), length)
    erased, bad = order[:missing], order[missing : missing + bad_count]
    for worker in bad:
        word[worker] = (word[worker] + source.choice([1, -1, source.randrange(1, PRIME)])) % PRIME
    for worker in erased:
        word[worker] = source.randrange(PRIME)
    assert locate(torch.tensor(word), 2 * s, erased) == sorted(bad)


@given(st.lists(st.integers(1, PRIME - 1), min_size=1, max_size=5, unique=True))
def test_the_shortest_recurrence_is_found(roots):
    terms = [sum(pow(x, c, PRIME) for x in roots) % PRIME for c in range(2 * len(roots))]
    found = shortest_recurrence(terms)
    assert len(found) == len(roots) + 1
    for x in roots:
        assert sum(c * pow(x, len(roots) - i, PRIME) for i, c in enumerate(found)) % PRIME == 0


def test_too_many_are_an_error_or_frame_nobody(subtests):
    """s + 1 Byzantine workers that do not collude; whatever is named is named rightly."""
    for workers, s in SHAPES:
        with subtests.test(workers=workers, s=s):
            code = field(workers, s, group_length=workers)
            messages = code.encode_all([rows(workers)])
            for trial in range(40):
                source = random.Random(trial)
                count = source.randint(s + 1, min(2 * s, workers - 1))
                bad = source.sample(range(workers), count)
                given = messages.clone()
                for worker in bad:
                    given[worker] = torch.randint(-LARGEST, LARGEST, given[0].shape).int()
                with pytest.raises(DecodeError, match="too many of the others") as caught:
                    code.decode(given)
                assert caught.value.bound == s


def test_who_is_framed_by_collusion_is_as_far_off_as_the_codes_distance():
    """s + 1 workers that add part of a codeword can frame s others, and no fewer can."""
    code = field(9, 2)
    messages = code.encode_all([rows(9)])
    one, nothing = (
        code.encode_all([value * torch.ones(9, DIM) * (torch.arange(9) == 4)[:, None]]).long()
        for value in (1.0, 0.0)
    )
    word = (one - nothing + LARGEST) % PRIME - LARGEST  # a message tells how large zeros are, too
    holders = word[:, 0].nonzero().flatten().tolist()
    assert len(holders) == 5
    for count, framed in [(2, False), (3, True)]:
        given = messages.long()
        given[holders[:count]] += word[holders[:count]]
        given = (given + LARGEST) % PRIME - LARGEST
        decoded = code.decode(given.int())
        assert named(decoded) == (holders[count:] if framed else holders[:count])


def test_more_missing_than_checks_is_an_error():
    code = field(9, 2)
    messages = code.encode_all([rows(9)])
    for number in range(5, 10):
        arrived = torch.arange(9) >= number
        assert not code.can_decode(arrived)
        with pytest.raises(DecodeError, match=f"{number} messages are missing or malformed;"):
            code.decode(messages, arrived)


def test_what_is_no_number_of_the_field_marks_its_sender():
    code = field(15, 3)
    messages = code.encode_all([rows(15)])
    clean = code.decode(messages).gradient
    for value in (2**31 - 1, LARGEST + 1, -LARGEST - 1, -(2**31)):
        given = messages.clone()
        given[[1, 2, 3, 7, 8, 9], -1] = value  # as many as may be missing
        decoded = code.decode(given)
        assert named(decoded) == [1, 2, 3, 7, 8, 9]
        assert decoded.gradient.equal(clean)


def test_gradients_that_are_not_finite_are_an_error_and_frame_nobody(subtests):
    for workers, s in [(3, 1), (15, 3)]:
        for value, where in itertools.product([math.nan, math.inf], [0, slice(None)]):
            with subtests.test(workers=workers, value=value, where=where):
                code, gradients = field(workers, s), rows(workers)
                gradients[where] = value
                alone = torch.stack(
                    [code.encode(i, gradients[held]) for i, held in enumerate(code.assignment)]
                )
                together = code.encode_all(gradients.split(1))
                assert together.equal(alone)
                with pytest.raises(DecodeError, match="missing or malformed"):
                    code.decode(together)


def test_all_ways_to_encode_give_the_same_bits(subtests):
    for code in (field(7, 2), field(8, 2), field(45, 5), field(30, 3), field(5, 0)):
        for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            with subtests.test(code=code, dtype=dtype):
                gradients = rows(code.num_workers, dtype=dtype)
                together = code.encode_all([gradients])
                assert together.dtype == torch.int32
                assert together.shape == (code.num_workers, code.width(DIM))
                for size in (1, 4):
                    assert code.encode_all(gradients.split(size)).equal(together)
                for worker, held in enumerate(code.assignment):
                    assert code.encode(worker, gradients[held]).equal(together[worker])


def test_the_mean_is_off_by_no_more_than_the_error(subtests):
    for code, scale in itertools.product(
        (field(7, 2), field(15, 3), field(45, 5)), (1e-6, 1e-3, 1.0, 60.0, 1e3, 1e12)
    ):
        with subtests.test(code=code, scale=scale):
            gradients = rows(code.num_workers, dtype=torch.float64) * scale
            state = code.init(DIM, dtype=torch.float64)
            for _ in range(4):
                sent = code.informed(code.broadcast(state)).encode_all([gradients])
                decoded, state = code.update(sent, None, state)
                off = (decoded.gradient - gradients.mean(0)).norm()
                assert off <= decoded.error * gradients.norm(dim=1).square().mean().sqrt()
            assert decoded.saturated == 0
            assert 0 < decoded.error < 1e-5  # the point has moved to where it belongs


def test_saturation_is_counted_and_the_next_round_fits():
    code = field(15, 3)
    gradients = rows(15)
    gradients[3, :4] = 1e3
    gradients[4, 0] = -1e9
    state = code.init(DIM)
    decoded, state = code.update(code.encode_all([gradients]), None, state)
    assert decoded.saturated == 5
    assert decoded.error == math.inf
    for _ in range(2):
        sent = code.informed(code.broadcast(state)).encode_all([gradients])
        decoded, state = code.update(sent, None, state)
    assert decoded.saturated == 0
    assert (decoded.gradient.double() - gradients.double().mean(0)).abs().max() <= 1e9 * 2**-21
    bits = []
    for _ in range(3):  # the point moves back by one place a round
        sent = code.informed(code.broadcast(state)).encode_all([1e6 * rows(15)])
        bits.append(int(state[0]))
        decoded, state = code.update(sent, None, state)
    assert bits == [bits[0], bits[0] + 1, bits[0] + 2]


def test_a_fixed_binary_point_stays():
    code = field(15, 3, fraction_bits=12)
    state = code.init(DIM)
    for _ in range(2):
        coded = code.informed(code.broadcast(state))
        assert coded is code
        _, state = code.update(coded.encode_all([rows(15)]), None, state)
    assert int(state[0]) == 12


def test_nothing_to_learn_decodes_to_nothing():
    code = field(15, 3)
    decoded = code.decode(code.encode_all([torch.zeros(15, DIM)]))
    assert not decoded.gradient.any()
    assert (decoded.error, decoded.saturated) == (0.0, 0)
    assert code.decode(code.encode_all([torch.zeros(15, 0)])).gradient.shape == (0,)


def test_projections_show_every_message_that_is_not_zero():
    for width in (1, 255, 256, 257, 70_000):
        table = torch.zeros(4, width, dtype=torch.int32)
        table[0, 0], table[1, -1], table[2] = 1, -LARGEST, LARGEST
        found = project(table, 2, torch.Generator().manual_seed(0))
        assert found[:3].all()
        assert not found[3].any()
        assert not found[0].equal(found[1])


def test_projections_are_linear():
    table = torch.randint(-1000, 1000, (2, 1000), dtype=torch.int32)
    both = torch.cat([table, table.sum(0, keepdim=True).int()])
    found = project(both, 2, torch.Generator().manual_seed(3))
    assert (found[0] + found[1] - found[2]).remainder(PRIME).tolist() == [0, 0]


def test_attacks_forge_numbers_of_the_field():
    floats = torch.tensor([0.4, -100.0, 1e6 * LARGEST, LARGEST + 1.0, -1e300, math.nan, math.inf])
    sent = forged(floats.double())
    assert sent.dtype == torch.int32
    assert sent[:2].tolist() == [0, -100]
    assert sent[:5].abs().max() <= LARGEST
    assert (sent[5:] < -LARGEST).all()


def test_bad_arguments_are_refused(subtests):
    for options, rule in [
        ({"band": "published"}, "goes without band and tolerance, got band='published'"),
        ({"tolerance": 1e-6}, "goes without band and tolerance"),
        ({"fraction_bits": 121}, "fraction_bits must be from -120 to 120, got 121"),
    ]:
        with subtests.test(options=options), pytest.raises(ValueError, match=rule):
            field(15, 3, **options)
    with pytest.raises(ValueError, match="fraction_bits needs arithmetic='field', got 3"):
        DracoCyclic(fraction_bits=3)
    with pytest.raises((ValueError, TypeCheckError), match="arithmetic"):
        DracoCyclic(arithmetic="exact")
    with pytest.raises(ValueError, match=f"must be int32, at least {HEADER} wide"):
        field(15, 3).decode(torch.zeros(15, 50))
    with pytest.raises(ValueError, match=f"must be int32, at least {HEADER} wide"):
        field(15, 3).decode(torch.zeros(15, 3, dtype=torch.int32))
