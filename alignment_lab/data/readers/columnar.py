"""Parquet and Arrow: columns to rows of what JSON has, by the names of their classes, nothing decoded.

Times and decimals become text, and binary data becomes text where it is UTF-8. `datasets` is not needed: its
features lie in the file's metadata.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..rows import RawRow
from .places import DAMAGED, DataFile, Skip, Span

if TYPE_CHECKING:
    import pyarrow as pa

BATCH = 1000  # rows that are decoded at a time
Convert = Callable[[Any], Any]


def read_parquet(file: DataFile, span: Span | None, skip: Skip) -> Iterator[RawRow]:
    """The rows of all row groups, or of those from `span.start` to `span.end`."""
    import pyarrow.parquet as parquet

    with _told(file), parquet.ParquetFile(str(file.path)) as table:
        span = span or Span(file)
        end = table.num_row_groups if span.end is None else span.end
        first = span.line
        for group in range(span.start, end):
            rows = table.metadata.row_group(group).num_rows
            if not skip.all_of(rows):
                batches = table.iter_batches(BATCH, row_groups=[group])
                yield from _rows(file, batches, table.schema_arrow, first, skip)
            first += rows


def split_parquet(file: DataFile, count: int) -> list[Span]:
    """Stretches of row groups, about `count` of them."""
    import pyarrow.parquet as parquet

    with _told(file), parquet.ParquetFile(str(file.path)) as table:
        sizes = [table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)]
    spans: list[Span] = []
    start, first, rows = 0, 1, 0
    for group, size in enumerate(sizes, start=1):
        rows += size
        if rows * count >= sum(sizes) or group == len(sizes):
            spans.append(Span(file, start, group, first))
            start, first, rows = group, first + rows, 0
    return spans


def read_arrow(file: DataFile, span: Span | None, skip: Skip) -> Iterator[RawRow]:
    """The rows of an Arrow stream or file."""
    import pyarrow as pa

    # read and not mapped: pages of a map would count as this process's memory
    with _told(file), pa.OSFile(str(file.path)) as source:
        is_file = source.read(6) == b"ARROW1"
        source.seek(0)
        if is_file:
            reader = pa.ipc.open_file(source)
            batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
        else:
            reader = batches = pa.ipc.open_stream(source)
        yield from _rows(file, batches, reader.schema, 1, skip)


def features_of(schema: pa.Schema) -> dict[str, Any]:
    """The features that `datasets` wrote into a schema's metadata."""
    try:
        info = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        return dict(info["info"]["features"])
    except (ValueError, KeyError, TypeError):
        return {}


def plain_rows(batch: pa.RecordBatch | pa.Table, features: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of a batch."""
    columns = [
        _plain_column(batch.column(number), features.get(name))
        for number, name in enumerate(batch.schema.names)
    ]
    return [dict(zip(batch.schema.names, values, strict=True)) for values in zip(*columns, strict=True)]


class _told:
    """Errors of pyarrow, which has many, as one sentence about the file."""

    def __init__(self, file: DataFile) -> None:
        self.file = file

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        import pyarrow as pa

        if isinstance(error, pa.ArrowException | OSError):
            reason = " ".join(str(error).split())[:200]
            raise self.file.error(f"cannot be read ({reason}); {DAMAGED}") from error


def _rows(
    file: DataFile, batches: Iterable[pa.RecordBatch], schema: pa.Schema, first: int, skip: Skip
) -> Iterator[RawRow]:
    names = schema.names
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise file.error(f"has the column {twice[0]!r} twice; rename one of them.")
    features = file.features | features_of(schema)
    for batch in batches:
        for large in range(0, batch.num_rows, BATCH):
            part = batch.slice(large, BATCH)
            if not skip.all_of(part.num_rows):
                passed, skip.left = skip.left, 0
                for number, row in enumerate(plain_rows(part.slice(passed), features), start=first + passed):
                    yield RawRow(row, file.name, number, unit="row")
            first += part.num_rows


# ---- values


def _plain_column(column: Any, feature: Any) -> list[Any]:
    """A column's values, each as JSON has it."""
    import pyarrow as pa

    convert = _converter(column.type, feature)
    target = _text_for_times(column.type)
    if target != column.type:
        column = column.cast(target)
    if isinstance(column.type, pa.BaseExtensionType):
        column = column.cast(column.type.storage_type)
    values: list[Any] = column.to_pylist(maps_as_pydicts="lossy")
    return values if convert is None else [convert(value) for value in values]


def _text_for_times(kind: Any) -> Any:
    """The type with text in place of times and decimals, which JSON does not have."""
    import pyarrow as pa

    types = pa.types
    if types.is_temporal(kind) or types.is_decimal(kind):
        return pa.string()
    if types.is_struct(kind):
        return pa.struct([field.with_type(_text_for_times(field.type)) for field in kind])
    if types.is_list(kind) or types.is_fixed_size_list(kind):
        return pa.list_(_text_for_times(kind.value_type)) if _has_times(kind.value_type) else kind
    if types.is_large_list(kind):
        return pa.large_list(_text_for_times(kind.value_type)) if _has_times(kind.value_type) else kind
    if types.is_map(kind):
        return pa.map_(_text_for_times(kind.key_type), _text_for_times(kind.item_type))
    return kind


def _has_times(kind: Any) -> bool:
    return bool(_text_for_times(kind) != kind)


def _converter(kind: Any, feature: Any) -> Convert | None:
    """What makes a value of an Arrow type, and of a feature of `datasets`, a plain one; None: nothing."""
    import pyarrow as pa

    types = pa.types
    name = feature.get("_type") if isinstance(feature, Mapping) else None
    if name == "ClassLabel" and types.is_integer(kind):
        return _by_name(feature.get("names") or [])
    if name == "Json":
        return _loaded
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind):
        return _as_text
    if types.is_struct(kind):
        return _struct_converter(kind, feature)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        inner = (
            feature.get("feature") if name else feature[0] if isinstance(feature, list) and feature else None
        )
        return _for_items(_converter(kind.value_type, inner))
    return None


def _struct_converter(kind: Any, feature: Any) -> Convert | None:
    """Of a mapping. An old Sequence of mappings is stored as a mapping of lists."""
    features = feature if isinstance(feature, Mapping) else {}
    inner = features.get("feature")
    if features.get("_type") == "Sequence" and isinstance(inner, Mapping):
        features = {name: {"feature": value, "_type": "Sequence"} for name, value in inner.items()}
    found = {field.name: _converter(field.type, features.get(field.name)) for field in kind}
    converters = {name: convert for name, convert in found.items() if convert}
    if not converters:
        return None

    def convert(value: Any) -> Any:
        if value is None:
            return None
        changed = {name: each(value[name]) for name, each in converters.items()}
        return {**value, **changed}

    return convert


def _for_items(convert: Convert | None) -> Convert | None:
    if convert is None:
        return None
    return lambda values: None if values is None else [convert(value) for value in values]


def _by_name(names: list[str]) -> Convert:
    """The name of a class; null for -1, by which `datasets` says that there is none."""
    return lambda value: names[value] if value is not None and 0 <= value < len(names) else None


def _loaded(value: Any) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _as_text(value: bytes | None) -> str | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return f"<{len(value or b'')} bytes>"
