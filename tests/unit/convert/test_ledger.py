import pytest

from regimen.convert.ledger import Ledger, meaning_of
from regimen.errors import ConvertError


def test_a_balanced_ledger_closes_with_its_counts_in_reading_order():
    ledger = Ledger()
    ledger.count(("a", 1), "failed:timed_out", 3)
    ledger.count(("a", 2), "trained", 5)
    ledger.count(("a", 3), "trained", 6)
    ledger.count_many("quarantined", 2)
    ledger.use("pairs", 4)
    ledger.note("rows_without_token_ids", 0)
    totals = ledger.close(5, 14)
    assert list(totals.rows.items()) == [("trained", 2), ("quarantined", 2), ("failed:timed_out", 1)]
    assert totals.tokens == {"trained": 11, "failed:timed_out": 3}
    assert totals.uses == {"pairs": 4}
    assert totals.notes == {}


@pytest.mark.parametrize("num_rows, num_tokens", [(2, 5), (1, 6)])
def test_rows_or_tokens_that_do_not_balance_raise(num_rows, num_tokens):
    ledger = Ledger()
    ledger.count(("a", 1), "trained", 5)
    with pytest.raises(ConvertError, match="does not balance"):
        ledger.close(num_rows, num_tokens)


def test_a_row_has_one_bucket():
    ledger = Ledger()
    ledger.count(("a", 1), "trained")
    with pytest.raises(ConvertError, match="counted as 'trained' and again as 'capped'"):
        ledger.count(("a", 1), "capped")
    assert ledger.bucket_of(("a", 1)) == "trained"
    assert ledger.bucket_of(("a", 2)) is None


def test_ledgers_of_groups_add_up_without_their_keys():
    total, first, second = Ledger(), Ledger(), Ledger()
    first.count(("a", 1), "trained", 3)
    first.use("pairs", 2)
    second.count(("a", 2), "trained", 4)
    second.count_many("quarantined", 1)
    second.note("rows_with_images")
    total.add(first)
    total.add(second)
    assert total.bucket_of(("a", 1)) is None
    totals = total.close(3, 7)
    assert (totals.rows, totals.tokens) == ({"trained": 2, "quarantined": 1}, {"trained": 7})
    assert (totals.uses, totals.notes) == ({"pairs": 2}, {"rows_with_images": 1})


def test_every_bucket_has_a_meaning():
    assert meaning_of("failed:timed_out") == "ended as timed_out: no reward of the model's"
    with pytest.raises(ConvertError, match="no meaning"):
        Ledger().count(("a", 1), "elsewhere")
