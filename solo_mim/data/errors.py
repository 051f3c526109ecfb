"""The one error of this folder."""

from collections.abc import Collection, Iterable
from pathlib import Path

from solo_mim.errors import ConfigError, nearest


class DataError(ConfigError):
    """Data, or a setting of it, that cannot be used.

    Attributes:
        key: the configuration key to look at, e.g. ``augmentations[0].grayscale.prob``.
        remedy: what to do about it, one sentence.
        path: the file or folder concerned, if any.
    """

    def __init__(
        self, problem: str, *, key: str = "", remedy: str = "", path: str | Path | None = None
    ) -> None:
        self.key = key
        self.remedy = remedy
        self.path = None if path is None else Path(path)
        what = f"{key}: {problem}" if key else problem
        where = f" ({path})" if path is not None else ""
        super().__init__(f"{what}{where}. {remedy}" if remedy else what + where)


def impossible(value: object, key: str, remedy: str) -> DataError:
    """Of a key that is missing (None) or has a value that it cannot have."""
    what = "is missing" if value is None else f"cannot be {value!r}"
    return DataError(f"the value {what}", key=key, remedy=remedy)


def refuse_unknown_value(value: object, known: Collection[str], key: str, what: str) -> None:
    """Raises DataError, naming the nearest, of a value that is none of those known."""
    if value not in known:
        raise DataError(f"unknown {what} {value!r}{nearest(str(value), known)}", key=key)


def refuse_unknown_keys(given: Iterable[str], known: Collection[str], where: str) -> None:
    """Raises DataError for the first key of the section ``where`` that nothing would read."""
    for key in given:
        if key not in known:
            raise DataError(f"unknown key{nearest(key, known)}", key=f"{where}.{key}")
