"""Exports in object stores: found by address, prefix or glob, and fetched once into a file that the readers can read.

One object is one ETag: it is asked for at the beginning, every further piece is asked for under the condition that it
is still the same, and it is what the object is known by afterwards. The store's own words never reach a message, since
they may repeat keys and signatures. Credentials are the library's business: it reads the usual environment variables.
"""

import asyncio
import os
import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, TypeVar

from backfill.adapters.exports.export import Block, Export, Fingerprint
from backfill.adapters.exports.partitions import is_partition
from backfill.core.address import Address, Seen
from backfill.core.errors import BackfillError, ExportError, StoppedEarly, StorageError

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import ObjectStore

PIECE_BYTES = 4 << 20
"""Fetched by one request: so much is held in memory, and so much is asked for again when a connection breaks. The
library allows 30 s for a request, so 140 KB/s are enough."""

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_LOOK_UP_S = 0.1  # so soon a stop is noticed while a store is silent
_RETRY_S = 60
_TRIES_AGAIN = 4

_T = TypeVar("_T")

_STATUS = re.compile(r"status code: (\d{3})")
_NO_CREDENTIALS = re.compile(
    r"token request|/latest/api/token|security-credentials|Missing[A-Z]|Missing Access|credential"
)
_SETTINGS = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN (if any), AWS_REGION, AWS_ENDPOINT_URL",
    "gs": "GOOGLE_SERVICE_ACCOUNT or GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY (or AZURE_STORAGE_SAS_TOKEN)",
}


class _NotThere(Exception):
    """A store has no such object; or no such bucket, which most say in the same words."""


def never() -> bool:
    return False


def look(address: Address) -> Address | None:
    """The address with what the store says of its object; None where there is none.

    Raises ExportError, StoppedEarly.
    """

    async def ask() -> Address | None:
        try:
            return await _head(_store(address), address)
        except _NotThere:
            await _bucket_must_exist(address)
            return None

    return _answered(ask(), never)


def find_objects(address: Address, is_export: Callable[[str], bool]) -> list[Address]:
    """The objects that an address stands for: itself, those under a prefix that ends in "/", or those of a glob.

    `is_export` says by its last name whether an object under a prefix is one; a glob takes whatever it matches. Each
    comes with what the store says of it, in the order of names. Raises ExportError where there is none, StoppedEarly.
    """
    return _answered(_find(address, is_export), never)


async def _find(address: Address, is_export: Callable[[str], bool]) -> list[Address]:
    store = _store(address)
    if address.is_prefix:
        found = sorted(await _under(store, address, address.key.rstrip("/"), is_export), key=str)
        if not found:
            raise ExportError(
                f"{address} holds no *.csv, *.tsv (also .gz, .zst), *.zip or *.parquet object, itself or in folders "
                "named key=value. Check the prefix; other objects can be named one by one, or by a glob."
            )
        return found
    try:
        return [await _head(store, address)]
    except _NotThere:
        await _bucket_must_exist(address)
    except ExportError:
        # Who may list but not read unlisted keys gets this for a name that is none; the listing tells.
        if not address.is_pattern:
            raise
    if not address.is_pattern:
        raise ExportError(
            f"{address} does not exist. Check the key, and the store that the environment names. All exports under a "
            f"prefix are named by a slash at its end: {address}/"
        )
    wanted = address.key.split("/")
    matches = [
        _found(address, meta)
        for meta in await _listed(store, address, deep=_reaches_deep(address, wanted))
        if _matches(meta["path"].split("/"), wanted)
    ]
    if not matches:
        raise ExportError(f"No object matches {address}. Check the pattern, and the store that the environment names.")
    return sorted(matches, key=str)


async def _under(
    store: "ObjectStore", address: Address, folder: str, is_export: Callable[[str], bool]
) -> list[Address]:
    import obstore

    with _telling(address):
        listing = await obstore.list_with_delimiter_async(store, folder or None)
    found = [_found(address, meta) for meta in listing["objects"] if is_export(PurePosixPath(meta["path"]).name)]
    for below in listing["common_prefixes"]:
        if is_partition(PurePosixPath(below)):
            found += await _under(store, address, below, is_export)
    return found


async def _listed(store: "ObjectStore", address: Address, *, deep: bool) -> Sequence["ObjectMeta"]:
    import obstore

    folder = address.literal_folder or None
    with _telling(address):
        if deep:
            return await obstore.list(store, folder, chunk_size=1000).collect_async()
        return (await obstore.list_with_delimiter_async(store, folder))["objects"]


def _reaches_deep(address: Address, wanted: Sequence[str]) -> bool:
    """Whether a glob means more than what lies directly in the folder before its first wildcard."""
    folder = address.literal_folder
    return len(wanted) - (folder.count("/") + 1 if folder else 0) > 1 or wanted[-1] == "**"


def _matches(names: Sequence[str], wanted: Sequence[str]) -> bool:
    """As globs of files: a star does not reach across a slash, two stars do, and neither means hidden names."""
    if not wanted:
        return not names
    is_hidden = bool(names) and names[0].startswith(".")
    if wanted[0] == "**":
        return _matches(names, wanted[1:]) or (bool(names) and not is_hidden and _matches(names[1:], wanted))
    return (
        bool(names)
        and (not is_hidden or wanted[0].startswith("."))
        and fnmatchcase(names[0], wanted[0])
        and _matches(names[1:], wanted[1:])
    )


def fetch(address: Address, target: Path, stopped: Callable[[], bool]) -> Seen:
    """Fetch an object into the new file `target`, 0600, and say what it was.

    Memory stays flat. Raises ExportError, also where the object changed meanwhile; StorageError where it does not fit
    on the disk; StoppedEarly where the store does not answer, and soon after `stopped()` is true.
    """
    with _writing(address, target), open(os.open(target, _NEW, 0o600), "wb") as file:  # noqa: PTH123  # wants a mode
        return _answered(_fetch(address, file), stopped)


async def _fetch(address: Address, file: IO[bytes]) -> Seen:
    import obstore

    store = _store(address)
    try:
        seen = (await _head(store, address)).seen
    except _NotThere:
        raise ExportError(f"{address} is not there any more. Nothing of it was sent. Run again without it.") from None
    assert seen is not None
    for start in range(0, seen.size, PIECE_BYTES):
        end = min(start + PIECE_BYTES, seen.size)
        with _telling(address):
            got = await obstore.get_async(store, address.key, options={"range": (start, end), "if_match": seen.etag})
            # Compared as well: not every server heeds the condition.
            if (got.meta["size"], got.meta["e_tag"]) != (seen.size, seen.etag):
                raise _changed(address)
            data = memoryview(await got.buffer_async())
        if len(data) != end - start:
            raise _unreachable(address, "sent less than it announced")
        file.write(data)
    return seen


class Fetched:
    """An export read from its fetched copy. What is said of it, and what it is known by, are those of the object."""

    def __init__(self, open_copy: Callable[[Path], Export], copy: Path, address: Address, seen: Seen) -> None:
        self._copy, self._seen = copy, seen
        self.path = address
        with self._named():
            self._export = open_copy(copy)
        self.header = self._export.header
        self.beginning = self._export.beginning

    def blocks(self, columns: Sequence[str]) -> Iterator[Block]:
        """As `Export.blocks`."""
        with self._named():
            yield from self._export.blocks(columns)

    def fingerprint(self) -> Fingerprint:
        with self._named():
            self._export.fingerprint()  # raises if somebody wrote to the copy
        return Fingerprint(self.path, self._seen.size, 0, self._seen.identity)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """The readers know the copy only, whose name says nothing to anyone."""
        try:
            yield
        except ExportError as error:
            raise ExportError(error.message.replace(str(self._copy), str(self.path))) from error


# ------------------------------------------------------------------------------------------------ the store's answers


def _store(address: Address) -> "ObjectStore":
    from obstore.exceptions import BaseError
    from obstore.store import from_url

    try:
        return from_url(
            address.store,
            # No client_options: they would silently replace those of the environment (AWS_ALLOW_HTTP, proxies, CAs).
            retry_config={"max_retries": _TRIES_AGAIN, "retry_timeout": timedelta(seconds=_RETRY_S)},
        )
    except (BaseError, ValueError) as error:
        told = _told(error, address)
        # Nothing was asked yet: whatever it is, waiting does not mend it.
        raise (_malformed(address) if isinstance(told, StoppedEarly) else told) from None


async def _head(store: "ObjectStore", address: Address) -> Address:
    import obstore

    with _telling(address):
        return _found(address, await obstore.head_async(store, address.key))


def _found(address: Address, meta: "ObjectMeta") -> Address:
    etag = meta["e_tag"]
    place = replace(address, key=meta["path"])
    if not etag:
        raise ExportError(
            f"{place}: the store gives no ETag, so nobody could tell whether the object is still the same. Copy it "
            "to a local disk and name the copy."
        )
    return replace(place, seen=Seen(meta["size"], etag))


async def _bucket_must_exist(address: Address) -> None:
    """Most stores say "not found" of a key and of a bucket alike; a listing tells them apart, where it is allowed."""
    import obstore
    from obstore.exceptions import BaseError

    try:
        await obstore.list_with_delimiter_async(_store(address), address.key)
    except (BaseError, OSError) as error:
        status = _status(error)
        if status == 404 or isinstance(error, FileNotFoundError):
            raise ExportError(
                f"{address.store} does not exist. Check its name, and the store that the environment names "
                f"({_SETTINGS[address.scheme]})."
            ) from None


def _answered(question: Awaitable[_T], stopped: Callable[[], bool]) -> _T:
    """Wait for a store, and look up now and then whether to stop: it may be silent for a minute."""

    async def wait() -> _T:
        task = asyncio.ensure_future(question)
        while not task.done():
            await asyncio.wait([task], timeout=_LOOK_UP_S)
            if stopped() and not task.done():
                task.cancel()
                await asyncio.wait([task])
                raise StoppedEarly("Stopped by a signal while an export was fetched. Run the same command again.")
        return task.result()

    return asyncio.run(wait())


@contextmanager
def _telling(address: Address) -> Iterator[None]:
    from obstore.exceptions import BaseError

    try:
        yield
    except (BaseError, OSError) as error:
        # Without its cause: what the store says may repeat a key or a signature.
        raise _told(error, address) from None
    except Exception as error:
        # The library panics over an endpoint without a host, by an exception of a module that cannot be imported.
        if type(error).__name__ == "RustPanic":
            raise _malformed(address) from None
        raise


def _told(error: Exception, address: Address) -> BackfillError | _NotThere:
    from obstore import exceptions

    # Without what the user chose: a bucket may be called "credentials".
    text = str(error).replace(address.key, "").replace(address.bucket, "")
    status = _status(error)
    settings = _SETTINGS[address.scheme]
    if isinstance(error, exceptions.PreconditionError):
        return _changed(address)
    if isinstance(error, FileNotFoundError):
        return _NotThere()
    if isinstance(error, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError | PermissionError):
        return ExportError(
            f"{address} may not be read with these credentials (HTTP {status or 403}). Check {settings}, and what they "
            "are allowed: reading objects, and listing the bucket."
        )
    if _NO_CREDENTIALS.search(text):
        return ExportError(
            f"{address} cannot be read: there are no credentials for {address.scheme}:// in the environment, or they "
            f"cannot be used. Set {settings}."
        )
    if "builder error" in text:
        return ExportError(
            f"{address} cannot be read: the store's address in the environment is no https URL. Mend it; or, where "
            "plain http is meant, set AWS_ALLOW_HTTP=true."
        )
    if status == 404:
        return ExportError(f"{address.store} does not exist. Check its name, and the store that the environment names.")
    if "edirect" in text or status in (301, 307, 308):
        return ExportError(
            f"{address.store} lies in another region or store. Set AWS_REGION (or AWS_ENDPOINT_URL) to it."
        )
    if status is not None and 400 <= status < 500 and status not in (408, 429):
        return ExportError(
            f"{address} cannot be read: the store refuses it (HTTP {status}). Check the address and {settings}."
        )
    if isinstance(error, exceptions.InvalidPathError | exceptions.UnknownConfigurationKeyError | ValueError):
        return _malformed(address)
    return _unreachable(address, "did not answer" if status is None else f"answered HTTP {status}")


def _status(error: Exception) -> int | None:
    found = _STATUS.search(str(error))
    return int(found[1]) if found else None


def _changed(address: Address) -> ExportError:
    return ExportError(f"{address} changed while it was fetched. Wait until it is complete, then run again.")


def _malformed(address: Address) -> ExportError:
    return ExportError(
        f"{address} cannot be read: its name, or a setting of the store, is malformed. Check "
        f"{_SETTINGS[address.scheme]}."
    )


def _unreachable(address: Address, what: str) -> StoppedEarly:
    return StoppedEarly(
        f"{address} could not be read: its store {what}, {_TRIES_AGAIN + 1} times. Nothing of it was sent. Run the "
        "same command again later; if it stays so, check the network and the store that the environment names."
    )


@contextmanager
def _writing(address: Address, target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{address} cannot be fetched to {target.parent} ({error.strerror or error}). Free some space there, then "
            "run the same command again."
        ) from error
