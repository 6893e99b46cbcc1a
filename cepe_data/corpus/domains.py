"""Domains: their names, how a file or a record says which it belongs to, and weights of them."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from cepe_data.errors import ArgumentError

DOMAINS = ("arxiv", "book", "c4-rp", "cc", "github", "stackexchange", "wiki")
# What RedPajama's folders are called, and SlimPajama's values of meta.redpajama_set_name, which mirrors use as folders.
KNOWN_NAMES = {
    "c4": "c4-rp",
    "common_crawl": "cc",
    "wikipedia": "wiki",
    "RedPajamaArXiv": "arxiv",
    "RedPajamaBook": "book",
    "RedPajamaC4": "c4-rp",
    "RedPajamaCommonCrawl": "cc",
    "RedPajamaGithub": "github",
    "RedPajamaStackExchange": "stackexchange",
    "RedPajamaWikipedia": "wiki",
    **{domain: domain for domain in DOMAINS},
}
MAX_RECORD_DOMAINS = 256  # the number of a document's domain is one byte
MAX_SHOWN_CHARACTERS = 60


def domain_of(path: str, names: Mapping[str, str]) -> str | None:
    """The domain of a relative path: that of the first of its folders whose name is known; None if none is.

    >>> domain_of("train/RedPajamaArXiv/chunk_1.jsonl.zst", KNOWN_NAMES)
    'arxiv'
    """
    folders = PurePosixPath(path).parts[:-1]
    return next((names[folder] for folder in folders if folder in names), None)


class DomainError(ValueError):
    """A record does not say its domain; the message is the reason for which it is skipped."""


@dataclass(frozen=True)
class RecordDomains:
    """How the records of a corpus say their domain: in the value of `key`, such as `meta.redpajama_set_name`, which
    KNOWN_NAMES or `domain_map` give a domain. An object on the way to it may be a string of JSON."""

    key: str
    domain_map: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def names(self) -> list[str]:
        """All domains there can be, sorted. A document's number in a token file is the place in this list."""
        return sorted({*KNOWN_NAMES.values(), *self.domain_map.values()})

    @cached_property
    def _numbers(self) -> dict[str, int]:
        known = {**KNOWN_NAMES, **self.domain_map}
        return {value: self.names.index(domain) for value, domain in known.items()}

    def number_of_record(self, record: Mapping[str, Any]) -> int:
        """The number of the domain of a record. Raises DomainError if it names none."""
        try:
            value = find_value(record, self.key)
        except KeyError:
            value = None
        except ValueError:
            raise DomainError(f"a string on the way to {self.key!r} is not JSON") from None
        if not isinstance(value, str):
            raise DomainError(f"no domain in {self.key!r}")
        if value not in self._numbers:
            # repr, since a lone surrogate can be neither printed nor written to the meta file
            raise DomainError(f"unknown domain {value[:MAX_SHOWN_CHARACTERS]!r} in {self.key!r}")
        return self._numbers[value]

    @classmethod
    def recorded(cls, made_with: Mapping[str, Any]) -> RecordDomains | None:
        """What `made_with` was of; None where it says no key."""
        key = made_with.get("domain_key")
        return cls(key, made_with.get("domain_map", {})) if key else None

    @property
    def made_with(self) -> dict[str, Any]:
        """For provenance: what determines the domains of documents."""
        return {"domain_key": self.key, **({"domain_map": dict(self.domain_map)} if self.domain_map else {})}


def has_other_domains(made_with: Mapping[str, Any], domain: str | None, record_domains: RecordDomains | None) -> bool:
    """Whether a token file with this provenance takes the domains of its documents from elsewhere than the list: all
    are of `domain`, or, where that is None, each record says its own as in `record_domains`."""
    return RecordDomains.recorded(made_with) != (record_domains if domain is None else None)


@dataclass(frozen=True)
class RecordKeys:
    """Where records have their text, and, where they say it, their domain. `a.b` is b in the object a."""

    text: str
    domains: RecordDomains | None = None

    def of(self, domain: str | None) -> RecordKeys:
        """The keys for a file of this domain, which is None where every record says its own."""
        return self if domain is None else RecordKeys(self.text)

    @property
    def no_text(self) -> str:
        """The reason for which a record without the key of the text is skipped."""
        return f"no key {self.text!r}"


def parse_json(line: bytes | str) -> tuple[Any, bool]:
    """The value of a JSON text, and whether it may have lone surrogates: their escapes, and NaN, are read as by the
    standard library.

    Raises:
        ValueError: if it is not JSON in UTF-8, or too deep.
    """
    import orjson

    try:
        return orjson.loads(line), False
    except orjson.JSONDecodeError:
        try:
            return json.loads(line if isinstance(line, str) else line.decode("utf-8")), True
        except RecursionError as error:
            raise ValueError(str(error)) from None


def find_value(record: Mapping[str, Any] | str, key: str) -> Any:
    """The value of `key` in a record: of that very name, or else of `a.b`, which is b in the object a. The record and
    any object in it may be a string of JSON.

    Raises:
        KeyError: if it is not there.
        ValueError: if a string on the way is not JSON.

    >>> find_value({"meta": '{"set": "RedPajamaBook"}'}, "meta.set")
    'RedPajamaBook'
    """
    if isinstance(record, str):
        record, _ = parse_json(record)
    if not isinstance(record, dict):
        raise KeyError(key)
    if key in record:
        return record[key]
    first, _, rest = key.partition(".")
    if not rest:
        raise KeyError(key)
    return find_value(record[first], rest)


def count_by_domain(numbers: np.ndarray, lengths: np.ndarray, num_domains: int) -> tuple[np.ndarray, np.ndarray]:
    """Documents and tokens by domain, int64 [num_domains] each, of documents with the numbers of their domains, uint8
    [n], and lengths, int64 [n]."""
    documents = np.bincount(numbers, minlength=num_domains)
    tokens = np.bincount(numbers, lengths, minlength=num_domains).astype(np.int64)  # exact below 2⁵³
    return documents, tokens


def parse_assignments(text: str, flag: str) -> dict[str, str]:
    """`a=x,b=y` → {"a": "x", "b": "y"}.

    Raises:
        ArgumentError: naming `flag`, for anything else.
    """
    assignments: dict[str, str] = {}
    for item in text.split(","):
        name, equals, value = (part.strip() for part in item.partition("="))
        if not (name and equals and value) or name in assignments:
            raise ArgumentError(f"{flag} {text}: {item!r} is not NAME=VALUE, or its name stands there twice")
        assignments[name] = value
    return assignments


def parse_domain_map(text: str) -> dict[str, str]:
    """The value of `--domain_map`. Raises ArgumentError for anything else than NAME=DOMAIN,…"""
    domain_map = parse_assignments(text, "--domain_map") if text else {}
    for name, domain in domain_map.items():
        if domain != PurePosixPath(domain).name or domain.startswith(".") or {",", "="} & {*domain}:
            raise ArgumentError(f"--domain_map {name}={domain}: a domain is a plain name, without `/`, `,` and `=`")
    return domain_map


def parse_weights(text: str, flag: str = "--domains") -> dict[str, float]:
    """`arxiv=0.5,book=0.5` → weights that add up to 1; domains of weight 0 are left out.

    Raises:
        ArgumentError: naming `flag`, for anything else; for another sum, with the normalised line.
    """
    weights = {}
    for domain, value in parse_assignments(text, flag).items():
        try:
            weights[domain] = float(value)
        except ValueError:
            weights[domain] = math.nan
        if not 0 <= weights[domain] <= 1e300:  # the sum of more may be too large
            raise ArgumentError(f"{flag} {text}: {value!r} is not a weight; a number of at least 0 is expected")
    total = math.fsum(weights.values())
    if total == 0:
        raise ArgumentError(f"{flag} {text}: every weight is 0")
    if abs(total - 1) > 1e-9:
        raise ArgumentError(
            f"{flag} {text}: the weights add up to {total:g}, not 1. Normalised:\n  "
            f"{flag} {shlex.quote(format_weights(weights))}"
        )
    return {domain: weight for domain, weight in weights.items() if weight > 0}


def format_weights(weights: Mapping[str, float]) -> str:
    """The value of `--domains` for these weights, normalised, digits enough to add up to 1."""
    total = math.fsum(weights.values())
    return ",".join(f"{domain}={weight / total:.12g}" for domain, weight in weights.items())


def largest_remainder(weights: Mapping[str, float], total: int) -> dict[str, int]:
    """Counts per domain that add up to `total`: the floor of each share, then one more for the largest remainders
    (Hamilton's method), ties by the order of the domains."""
    exact = {domain: Fraction(weight) for domain, weight in weights.items()}
    shares = {domain: weight * total / sum(exact.values()) for domain, weight in exact.items()}
    counts = {domain: math.floor(share) for domain, share in shares.items()}
    by_remainder = sorted(shares, key=lambda domain: counts[domain] - shares[domain])
    for domain in by_remainder[: total - sum(counts.values())]:
        counts[domain] += 1
    return counts
