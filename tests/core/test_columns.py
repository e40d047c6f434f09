"""Which column becomes which part of an interaction."""

from datetime import UTC, datetime

import polars as pl
import pytest

from backfill.core.columns import ColumnMap, date_text, resolve
from backfill.core.config import Columns, Csv, FromColumn, Template
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
    with pytest.raises(ConfigurationError, match=r"has a brace without its partner\. Write \{column\}"):
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


def test_advice_on_the_csv_comes_before_a_near_name() -> None:
    """Where the first lines show why the column is missing; a first record of data is not listed."""
    lines = ("timestamp;customer_key;url", "2024-03-01;C1;api://x")
    with pytest.raises(ConfigurationError, match=r'csv\.delimiter = ";"'):
        resolve(Columns(), ("timestamp;customer_key;url",), export="a", key_required=True, beginning=lines, csv=Csv())
    header = ("2024-03-01", "Meyer", "api://x")
    with pytest.raises(ConfigurationError, match=r"csv\.header") as caught:
        resolve(Columns(), header, export="a", key_required=True, beginning=(",".join(header),), csv=Csv())
    assert "Meyer" not in caught.value.message


def test_columns_of_the_identity_are_carried_beside_all_else() -> None:
    """As text, whether they are a property, a part of the interaction, or nothing that is sent."""
    columns = Columns(properties=["channel"])
    found = resolve(columns, HEADER, export="june.csv", key_required=True, identity=["url", "channel", "amount"])
    assert set(found.used) == set(HEADER)
    frame = pl.DataFrame([["t", "c", "u", "web", ""]], schema=list(HEADER), orient="row")
    selected = found.select(frame).row(0, named=True)
    assert selected["property:channel"] == "web"
    assert "property:amount" not in selected
    told = [selected[f"identity:{name}"] for name in ("url", "channel", "amount")]
    assert told == ["u", "web", None]


def test_a_missing_column_of_the_identity_is_named() -> None:
    """With the key that names it and the nearest."""
    with pytest.raises(ConfigurationError, match=r"'chanel', which rows.identity names. Did you mean 'channel'"):
        resolve(Columns(), HEADER, export="june.csv", key_required=True, identity=["chanel"])


@pytest.mark.parametrize(
    ("dtype", "counts", "texts"),
    [
        (
            pl.Date(),
            [-719_163, -719_162, 2_932_896, 2**31 - 1],
            ["-719163 days since 1970-01-01", "0001-01-01", "9999-12-31", "2147483647 days since 1970-01-01"],
        ),
        (pl.Datetime("us"), [2**63 - 1, 1], ["9223372036854775807 us since 1970-01-01", "1970-01-01T00:00:00.000001"]),
        (pl.Datetime("ms", "Asia/Tokyo"), [-(2**62), 0], [f"-{2**62} ms since 1970-01-01", "1970-01-01T00:00:00Z"]),
        (pl.Datetime("ns", "UTC"), [2**63 - 1], ["2262-04-11T23:47:16.854775807Z"]),
    ],
    ids=str,
)  # fmt: skip
def test_dates_of_no_calendar_are_told_as_counts(dtype: pl.DataType, counts: list[int], texts: list[str]) -> None:
    """To the last digit, instead of a panic of polars; null stays null."""
    physical = pl.Int32 if dtype == pl.Date else pl.Int64
    frame = pl.DataFrame({"a": pl.Series([*counts, None], dtype=physical).cast(dtype)})
    assert frame.select(date_text(pl.col("a"), dtype)).to_series().to_list() == [*texts, None]  # type: ignore[arg-type]


def test_a_float_key_keeps_its_type_and_other_floats_are_text() -> None:
    """Whether a whole number may become a key is a rule's matter; a property is as polars writes it."""
    frame = pl.DataFrame(
        {"timestamp": ["t"], "customer_key": [17850.0], "url": ["u"], "channel": ["c"], "amount": [1.5]}
    )
    parts = resolved(Columns()).select(frame)
    assert parts["customer_key"].dtype == pl.Float64
    assert parts["property:amount"].to_list() == ["1.5"]
    by_template = resolved(Columns(customer_key=Template(template="{customer_key}"))).select(frame)
    assert by_template["customer_key"].to_list() == ["17850.0"]
