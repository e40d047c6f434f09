"""The address of an object in an object store: `s3://bucket/key`, `gs://bucket/key`, `az://container/key`.

A value only: never asks a store, and never holds a credential; an address that carries one is refused unrepeated.
"""

import re
from dataclasses import dataclass, field
from typing import NamedTuple

_SCHEME = re.compile(r"(s3|gs|az)://", re.IGNORECASE)
_BUCKET = re.compile(r"[A-Za-z0-9$][A-Za-z0-9._-]*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SIGNED = re.compile(r"\?[^/]*=")
_MAGIC = re.compile(r"[*?\[]")
_CONTENT_HASH = re.compile(r"[0-9a-f]{32}(?:-[0-9]+)?")

_ETAG = "etag:"


class Seen(NamedTuple):
    """What a store said of an object. `etag` as it came, in its quotes or without."""

    size: int
    etag: str

    @property
    def identity(self) -> str:
        """Stands where a file has its sha256. Without quotes: some stores add them in one answer and not in another."""
        return _ETAG + self.etag.strip('"')


@dataclass(frozen=True, slots=True)
class Address:
    """Where an object lies. Equal addresses name the same object, whatever was `seen` there."""

    scheme: str
    bucket: str
    key: str
    seen: Seen | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return f"{self.store}/{self.key}"

    @property
    def store(self) -> str:
        """The address of the bucket or container."""
        return f"{self.scheme}://{self.bucket}"

    @property
    def is_prefix(self) -> bool:
        """Whether it stands for what lies under it."""
        return not self.key or self.key.endswith("/")

    @property
    def is_pattern(self) -> bool:
        """Whether it may be a glob; it may also be the name of one object."""
        return _MAGIC.search(self.key) is not None

    @property
    def literal_folder(self) -> str:
        """The folder above the first segment with a wildcard."""
        before = re.split(_MAGIC, self.key, maxsplit=1)[0]
        return before.rpartition("/")[0]

    @property
    def content_identity(self) -> str | None:
        """What objects of the same content share; None where the store promises nothing of the kind.

        S3 makes ETags of the content (MD5, or of the parts' MD5). Others count versions or take the time: there equal
        ETags under two names prove nothing, and rows passed over for them would be lost.
        """
        if self.seen is None or self.scheme != "s3":
            return None
        is_hash = _CONTENT_HASH.fullmatch(self.seen.etag.strip('"')) is not None
        return self.seen.identity if is_hash else None


def is_address(text: str) -> bool:
    """Whether the text is meant as the address of an object."""
    return _SCHEME.match(text) is not None


def parse_address(text: str) -> Address:
    """Raises: ValueError with a sentence that repeats nothing which may be secret."""
    scheme, _, rest = text.partition("://")
    bucket, _, key = rest.partition("/")
    if not _BUCKET.fullmatch(bucket):
        raise ValueError(
            f"an address reads {scheme.lower()}://BUCKET/KEY, and here no bucket's name follows the slashes. "
            "Credentials are never part of it: they are taken from the environment."
        )
    if _SIGNED.search(key):
        raise ValueError(
            f"an address in {scheme.lower()}://{bucket} ends in a query (?...=...), which is not taken, since it may "
            "hold a signature. Credentials are taken from the environment."
        )
    if _CONTROL.search(key):
        raise ValueError(f"an address in {scheme.lower()}://{bucket} holds a control character. Rename the object.")
    if "//" in f"/{key}" or any(segment in (".", "..") for segment in key.split("/")):
        raise ValueError(
            f"an address in {scheme.lower()}://{bucket} has an empty part, '.' or '..' between its slashes, and such "
            "keys cannot be read. Copy the object to a plainer key."
        )
    return Address(scheme.lower(), bucket, key)
