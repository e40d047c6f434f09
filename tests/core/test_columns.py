"""Which column becomes which part of an interaction."""

from datetime import UTC, datetime

import polars as pl
import pytest

from backfill.core.columns import ColumnMap, resolve
from backfill.core.config import Columns, FromColumn, Template
from backfill.core.errors import ConfigurationError

HEADER = ("timestamp", "customer_key", "url", "channel", "amount")


def resolved(columns: Columns, header: tuple[str, ...] = HEADER, key_required: bool = True) -> ColumnMap:
    return resolve(columns, header, export="june.csv", key_required=key_required)


def test_properties_default_to_every_unnamed_column_sorted_by_name() -> None:
    """Columns that no other key names are properties, whatever their order in the export."""
    assert resolved(Columns()).properties == (("amount", "amount"), ("channel", "channel"))
    shuffled = ("channel", "url", "amount", "customer_key", "timestamp")
    assert resolved(Columns(), shuffled).properties == resolved(Columns()).properties


def test_columns_of_a_template_are_no_default_properties() -> None:
    """A column that went into the address is not sent again as a property."""
    columns = Columns(url=Template(template="api://shop/{channel}"))
    assert [name for _, name in resolved(columns).properties] == ["amount", "url"]


def test_a_dict_renames_properties() -> None:
    """The dict maps the column to the property's name; the order is that of the names."""
    columns = Columns(properties={"channel": "z", "amount": "a"})
    assert resolved(columns).properties == (("amount", "a"), ("channel", "z"))


@pytest.mark.parametrize(
    ("columns", "key", "column", "hint"),
    [
        (
            Columns(customer_key=FromColumn(column="custmer_key")),
            "columns.customer_key",
            "custmer_key",
            "'customer_key'",
        ),
        (Columns(timestamp=FromColumn(column="TimeStamp")), "columns.timestamp", "TimeStamp", "'timestamp'"),
        (Columns(url=Template(template="api://{chanel}")), "columns.url", "chanel", "'channel'"),
        (Columns(tid=FromColumn(column="qqqq")), "columns.tid", "qqqq", "It has: 'timestamp', "),
        (Columns(properties=["amuont"]), "columns.properties", "amuont", "'amount'"),
    ],
)
def test_a_missing_column_is_named_with_its_key_and_the_nearest(
    columns: Columns, key: str, column: str, hint: str
) -> None:
    """The message says which export, which key, which column, and what was probably meant."""
    with pytest.raises(ConfigurationError) as caught:
        resolved(columns)
    assert all(part in caught.value.message for part in ("june.csv", key, repr(column), hint))


def test_a_default_key_column_may_be_missing_only_where_no_key_is_required() -> None:
    """Without a key column every row would be invalid; where keys are optional there are just none."""
    header = ("timestamp", "url")
    with pytest.raises(ConfigurationError, match="customer_key"):
        resolved(Columns(), header)
    assert resolved(Columns(), header, key_required=False).customer_key is None
    with pytest.raises(ConfigurationError, match="account"):
        resolved(Columns(customer_key=FromColumn(column="account")), header, key_required=False)


@pytest.mark.parametrize("template", ["{channel", "channel}", "a{}b", "{{channel}"])
def test_a_lone_brace_in_a_template_is_refused(template: str) -> None:
    """It is a slip of the pen, not text."""
    with pytest.raises(ConfigurationError, match="brace"):
        resolved(Columns(url=Template(template=template)))


def test_select_gives_fixed_names_and_null_for_no_value() -> None:
    """Empty text, an empty part of a template, and the name of a missing key are no values."""
    frame = pl.DataFrame(
        {
            "timestamp": ["t1", "t2"],
            "customer_key": ["k", ""],
            "url": ["u", None],
            "channel": ["web", ""],
            "amount": ["1", ""],
        }
    )
    columns = Columns(url=Template(template="{{x}}://{channel}/{amount}"), properties=["amount"])
    assert resolved(columns).select(frame).rows(named=True) == [
        {
            "timestamp": "t1",
            "customer_key": "k",
            "customer_key_name": "customerkey",
            "url": "{x}://web/1",
            "tid": None,
            "property:amount": "1",
        },
        {
            "timestamp": "t2",
            "customer_key": None,
            "customer_key_name": None,
            "url": None,
            "tid": None,
            "property:amount": None,
        },
    ]


def test_a_key_name_from_a_column_stands_even_without_a_key() -> None:
    """So that the rule about names without keys can see it."""
    frame = pl.DataFrame(
        {"timestamp": ["t"], "customer_key": [""], "url": ["u"], "channel": ["email"], "amount": ["1"]}
    )
    columns = Columns(customer_key_name=FromColumn(column="channel"))
    assert resolved(columns).select(frame)["customer_key_name"].to_list() == ["email"]


def test_typed_columns_become_text_except_the_timestamp() -> None:
    """A Datetime stays one where it is the timestamp, and is ISO 8601 where it is a property."""
    moment = datetime(2024, 3, 1, 12, 0, 0, 250_000)  # noqa: DTZ001  # typed exports have these
    frame = pl.DataFrame(
        {
            "timestamp": [moment],
            "customer_key": [17850],
            "url": ["u"],
            "channel": [moment.replace(tzinfo=UTC)],
            "amount": [1.5],
        }
    )
    row = resolved(Columns()).select(frame).row(0, named=True)
    assert row["timestamp"] == moment
    assert row["customer_key"] == "17850"
    assert (row["property:amount"], row["property:channel"]) == ("1.5", "2024-03-01T12:00:00.250Z")


def test_used_names_every_column_once() -> None:
    """A reader of a columnar export may leave out the rest."""
    columns = Columns(url=Template(template="{channel}{channel}{url}"), properties=["channel", "amount"])
    assert sorted(resolved(columns).used) == ["amount", "channel", "customer_key", "timestamp", "url"]
