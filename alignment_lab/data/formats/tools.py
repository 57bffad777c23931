"""Tools and calls of them, in OpenAI's shape whatever shape a row has them in.

A tool is {"type": "function", "function": {"name", "description", "parameters"}}; a call {"type": "function",
"function": {"name", "arguments"}}, its arguments a mapping, as chat templates take them.
"""

from __future__ import annotations

from typing import Any

from ..reasons import BadRow, Reason
from ..rows import Row
from .values import describe_type, is_given, is_json, parse_json

TOOL_COLUMNS = ("tools", "functions")
ARGUMENT_KEYS = ("arguments", "parameters", "args")


def read_tools(row: Row) -> list[dict[str, Any]]:
    """The functions that a row says may be called; empty where it has none."""
    for column in TOOL_COLUMNS:
        if is_given(value := row.get(column)):
            break
    else:
        return []
    tools = parse_json(value)
    tools = list(map(parse_json, tools)) if isinstance(tools, list) else [tools]
    if not all(isinstance(tool, dict) and is_json(tool) for tool in tools):
        raise BadRow(Reason.bad_tools, f"`{column}` is no list of functions")
    tools = [_wrap_function(tool) for tool in tools if tool]
    if any(not isinstance(tool.get("function"), dict | None) for tool in tools):
        raise BadRow(Reason.bad_tools, f"`{column}` has a tool whose `function` is no mapping")
    return tools


def read_calls(value: Any, column: str) -> list[dict[str, Any]]:
    """The calls of one message, a list or a single one, also as JSON; those that are null are left out."""
    calls = parse_json(value)
    calls = calls if isinstance(calls, list) else [calls]
    return [_read_call(call, column) for call in calls if call is not None]


def parse_calls(content: str, column: str) -> list[dict[str, Any]] | None:
    """The calls that ShareGPT's `function_call` turn holds as JSON; None where its text is no call."""
    calls = written_calls(content)
    return None if calls is None else [_read_call(call, column) for call in calls]


def written_calls(content: Any) -> list[dict[str, Any]] | None:
    """The calls of a text as they are written there; None where it holds none."""
    value: Any = parse_json(content) if isinstance(content, str) else None
    calls: list[Any] = value if isinstance(value, list) else [value]
    if not calls or not all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in calls):
        return None
    return calls


def _read_call(call: Any, column: str) -> dict[str, Any]:
    call = parse_json(call)
    function = call.get("function") if isinstance(call, dict) else None
    function = call if function is None else parse_json(function)
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise BadRow(Reason.bad_tools, f"`{column}` has a call of a tool without the tool's name")
    arguments = parse_json(function[key]) if (key := _arguments_key(function)) else {}
    if not isinstance(arguments, dict) or not is_json(arguments):
        raise BadRow(
            Reason.bad_tools,
            f"`{column}` has a call whose arguments are no mapping but {describe_type(arguments)}",
        )
    identity = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
    named = {"name": function["name"], "arguments": arguments}
    return {**identity, "type": "function", "function": named}


def unused_call_keys(value: Any, path: str) -> set[str]:
    """The keys of one message's calls that `read_calls` ignores, as `PATH[].function.mood`."""
    calls = parse_json(value)
    path, calls = (f"{path}[]", calls) if isinstance(calls, list) else (path, [calls])
    unused: set[str] = set()
    for call in filter(lambda call: isinstance(call, dict), map(parse_json, calls)):
        identity = {"type", "id"} if isinstance(call.get("id"), str) else {"type"}
        function = parse_json(call.get("function"))
        inner, place = (function, f"{path}.function") if isinstance(function, dict) else (call, path)
        if inner is not call:
            unused.update(f"{path}.{key}" for key in _given(call) - identity - {"function"})
        used = {"name", _arguments_key(inner), *(identity if inner is call else ())}
        unused.update(f"{place}.{key}" for key in _given(inner) - used)
    return unused


def _given(mapping: dict[Any, Any]) -> set[Any]:
    return {key for key, value in mapping.items() if is_given(value)}


def _arguments_key(function: dict[Any, Any]) -> str | None:
    return next((key for key in ARGUMENT_KEYS if is_given(function.get(key))), None)


def _wrap_function(tool: dict[str, Any]) -> dict[str, Any]:
    is_bare = "function" not in tool and isinstance(tool.get("name"), str)
    return {"type": "function", "function": tool} if is_bare else tool
