"""Which label id a row of data means. Knows label names; never images or models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from maasdam.errors import InvalidInput


class LabelIds:
    """The labels of a model, looked up by id or by name. Without names, ids are taken as they are."""

    def __init__(self, labels: Mapping[int, str] | None) -> None:
        self._labels = dict(labels or {})
        self._exact: dict[str, list[int]] = {}
        self._folded: dict[str, list[int]] = {}
        for i, name in self._labels.items():
            self._exact.setdefault(name, []).append(i)
            self._folded.setdefault(_folded(name), []).append(i)

    def of_row(self, row: Mapping[str, Any], where: str) -> int | None:
        """The id of a row with "label_id" or "label" or both; None where it has neither.

        Raises InvalidInput: no such label, a name that several labels have, or an id and a name that say different things.
        """
        text = row.get("label")
        named = None if text in (None, "") else str(text)
        given = row.get("label_id")
        if given in (None, ""):
            return None if named is None else self._of_name(named, where)
        label_id = self._of_number(given, where)
        if named is not None and self._labels.get(label_id) != named:
            others = self._exact.get(named, [])
            if others and label_id not in others:
                raise InvalidInput(
                    f"{where} has label_id {label_id} and label '{named}', and the model calls {label_id} "
                    f"'{self._labels.get(label_id)}' and '{named}' {others[0]}; the data are numbered for another model"
                )
        return label_id

    def of_folders(self, names: Sequence[str]) -> dict[str, int]:
        """Ids of class folders: by label name, else by number. Raises InvalidInput."""
        return {name: self._of_name(name, f"folder '{name}'") for name in names}

    def _of_number(self, given: Any, where: str) -> int:
        try:
            label_id = int(given)
            if isinstance(given, bool) or (isinstance(given, float) and given != label_id):
                raise ValueError("not whole")
        except (TypeError, ValueError, OverflowError) as error:
            raise InvalidInput(f"{where} has label_id '{given}'; it takes a whole number") from error
        if label_id < 0 or (self._labels and label_id not in self._labels):
            raise InvalidInput(f"{where} has label_id {label_id}; the model's ids are {_range(self._labels)}")
        return label_id

    def _of_name(self, name: str, where: str) -> int:
        ids = self._exact.get(name) or self._folded.get(_folded(name)) or []
        if len(ids) == 1:
            return ids[0]
        if ids:
            raise InvalidInput(f"{where}: labels {ids} of the model are all called '{name}'; say which with label_id")
        if name.isdigit():
            return self._of_number(name, where)
        some = ", ".join(f"'{n}'" for n in list(self._labels.values())[:5])
        raise InvalidInput(f"{where} has label '{name}', which the model has not; it has {len(self._labels)} labels: {some}, …")


def _folded(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").split())


def _range(labels: Mapping[int, str]) -> str:
    return f"{min(labels)} to {max(labels)}" if labels else "0 up"
