"""Numbers that bound the work, each with the reason for its value."""

MAX_INTERACTIONS = 100
"""Interactions in one request: the API refuses 101 (API reference, `interactions/offline`)."""

SLOTS = 4096
"""Fixed shares of all customers. Eight times the most lanes, so that lanes of whole slots come out even."""

ROWS_PER_LANE = 2_000
"""Twenty full requests: the short last request of a lane then costs about 2% more calls."""

MAX_LANES = 512
"""More lanes than connections that any tenant allows; more would only shorten last requests."""

BUCKET_ROWS = 150_000
"""Rows arranged at once: some 50 MB in memory, and little enough to sort in a fraction of a second."""

RUN_ROWS = 300_000
"""Rows in one spooled run: every piece is read out of all runs, so few large ones, as long as memory allows."""

CSV_BLOCK_BYTES = 8 << 20
"""Bytes parsed at once: large enough for polars to be fast, small enough to be forgotten."""

MAX_RECORD_BYTES = 64 << 20
"""One CSV record longer than this is taken for an unclosed quote."""

MAX_KEY_CHARS = 1_000
"""A customer key longer than this is a mistake in the mapping, not a key."""

MAX_REPLY_BYTES = 1 << 20
"""A reply body beyond this is not read on: no acknowledgement of 100 interactions is that long."""

BUCKET_BYTES = 64 << 20
"""Text arranged at once, where interactions are so large that BUCKET_ROWS of them would not stay small."""

MAX_PAGE_BYTES = 256 << 20
"""A Parquet page that unpacks to more is refused: it is unpacked as a whole. Writers make pages of 1 to 100 MB."""

MAX_PAGE_VALUES = 10_000_000
"""Values in one page of a repeated Parquet column: a few bytes can stand for any number of equal ones."""
