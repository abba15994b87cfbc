"""Why an engine failed, as what it wrote tells: what was raised, and what that means.

Read from vLLM 0.32's source and from real starts on CPUs. Ray Serve and Triton's Python backend
load models by the same libraries, which say the same there.
"""

from __future__ import annotations

import re

_PREFIX = re.compile(
    r"^(?:\([^()]* pid=\d+\) )?"
    r"(?:(?:DEBUG|INFO|WARNING|ERROR|CRITICAL) \d\d-\d\d [\d:]+ \[[^]]*\] ?)?"
)
"""Which process writes; level, time and place."""
_RAISED = re.compile(r"^(?:[A-Za-z_][\w.]*\.)?([A-Z]\w*(?:Error|Exception|Exit)|Exception): *(.+)$")
_USAGE = re.compile(r"^[\w. -]+: error: (.+)$")
_INVALID = re.compile(r"^\d+ validation errors? for ")
_CHAINED = re.compile(r"exception was the direct cause|handling of the above exception")
_ELSEWHERE = re.compile(
    r"root cause|Engine core initialization failed|died unexpectedly|EngineDeadError|EngineCore "
    r"encountered an issue|cancelled",
    re.IGNORECASE,
)
"""Errors that only report another one."""
_NO_MEMORY = re.compile(
    r"out of memory|OutOfMemory|OUT_OF_MEMORY|Free memory on device|not enough GPU memory"
    r"|Cannot allocate memory|can't allocate memory|bad_alloc|MemoryError"
    r"|Available memory on node .* less than|killed by signal 9",
)
_FINAL = re.compile(
    r"^unrecognized arguments|^(argument|Argument) -|^the following arguments are required"  # usage
    r"|^ambiguous option|^(the )?Conflicting |^not allowed with argument"
    r"|architectures \[.*\] are not supported|does not recognize this architecture"
    r"|trust_remote_code=True"  # code that nobody has allowed
    r"|greater than the derived max_model_len|[Uu]nknown quantization (method|scheme|strategy)"
    r"|Cannot find any model weights with|does not appear to have a file named|No such file"
    r"|is not a valid JSON file|HeaderTooLarge|InvalidHeader|MetadataIncompleteBuffer"  # files
    r"|No module named|ImportError:|ModuleNotFoundError:|SyntaxError:"  # a model's own code
)
"""Causes that another try cannot change: what argparse refuses, models and quantizations that the
engine does not know, files that are missing or no model's, code that cannot be imported. What may
depend on the GPU or on what else runs there is not among them."""
MOST_CAUSE = 300
"""Letters of a cause."""


def cause(text: str) -> str:
    """The error that made a start fail, in one line; "" if the log has none.

    That is the first one that was raised and does not speak of another. Of a chain of exceptions
    it is the last, which knows most of what the others were about.
    """
    lines = [_PREFIX.sub("", line).strip() for line in text.replace("\r", "\n").splitlines()]
    found, chained = "", False
    for at, line in enumerate(lines):
        chained = chained or bool(found and _CHAINED.search(line))
        message = _message(lines, at)
        if not message or _ELSEWHERE.search(line):
            continue
        if found and not chained:
            break
        found, chained = message, False
    if not found and re.search(r"Failed core proc\(s\): \{.*: -9\b", text):
        return "its engine process was killed by signal 9"
    return _shortened(found)


def no_memory(why: str) -> bool:
    """Whether a cause says that memory was short because others hold it."""
    return bool(_NO_MEMORY.search(why))


def final(why: str) -> bool:
    """Whether a cause stays until a setting or a file is changed."""
    return bool(_FINAL.search(why))


def _message(lines: list[str], at: int) -> str:
    """What the line says was raised: its message, or that of the first field that is invalid."""
    if usage := _USAGE.match(lines[at]):
        return usage[1]
    raised = _RAISED.match(lines[at])
    if raised is None:
        return ""
    kind, said = raised.groups()
    if _INVALID.match(said):
        for line in lines[at + 1 : at + 4]:
            if " [type=" in line:
                return line.split(" [type=")[0].removeprefix("Value error, ")
    if said.endswith(":"):
        said = " ".join([said, *lines[at + 1 : at + 4]])
    return said if kind in ("Exception", "RuntimeError", "ValueError") else f"{kind}: {said}"


def _shortened(said: str) -> str:
    """Cut after a sentence if one ends in time, else anywhere."""
    if len(said) <= MOST_CAUSE:
        return said
    whole = re.search(rf"^.{{40,{MOST_CAUSE - 1}}}[.](?= )", said)
    return whole[0] if whole else f"{said[: MOST_CAUSE - 2].rstrip()} …"
