"""From the words of a command line to the dataclass that they fill, by tyro; its boxes of errors become one line."""

import contextlib
import io
import re
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from llucid.errors import LlucidError

OPTIONS = ConstructorRegistry()


@OPTIONS.primitive_rule
def optional(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """An option that may be left out is shown in the help as INT or {int8,int4}, not as {None}|INT."""
    kinds = [kind for kind in get_args(info.type) if kind is not type(None)]
    if get_origin(info.type) not in (Union, UnionType) or len(kinds) != 1:
        return None
    literal = (True, False) if kinds[0] is bool else get_args(kinds[0]) if get_origin(kinds[0]) is Literal else ()
    choices = {str(choice): choice for choice in literal}
    if not choices and kinds[0] not in (int, float, str):
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=f"{{{','.join(choices)}}}" if choices else kinds[0].__name__.upper(),
        instance_from_str=lambda given: choices[given[0]] if choices else kinds[0](given[0]),
        is_instance=lambda value: value is None or (value in choices.values() if choices else type(value) is kinds[0]),
        str_from_instance=lambda value: ["unset" if value is None else str(value)],
        choices=tuple(choices) or None,
    )


def parse(arguments: list[str], command: Any) -> Any:
    """One of the classes that are joined in `command`, made of the arguments, its fields from their options.

    Raises LlucidError, in one line, for arguments that make none."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                tyro.conf.OmitSubcommandPrefixes[command],
                prog="llucid",
                description="llucid: a Llama you can see through. Each command has its own --help; --version tells "
                "which llucid this is.",
                args=arguments,
                config=(tyro.conf.FlagCreatePairsOff,),
                registry=OPTIONS,
            )
    except SystemExit as end:
        if end.code in (0, None):
            raise
        names = [named.__metadata__[0].name for named in get_args(command)]
        raise LlucidError(unboxed(said.getvalue(), arguments[0], names)) from None


def unboxed(said: str, command: str, commands: list[str]) -> str:
    """What tyro says of wrong arguments, in a box, as one line."""
    if command not in commands and not command.startswith("-"):
        return f"{command}: there is no such command; expected one of: {', '.join(commands)}"
    box = re.sub(r"\x1b\[[0-9;]*m", "", said)
    # It is drawn in ASCII where standard output is in another encoding than UTF-8.
    for drawn, line in ((r"\A.*\n -+ *$", ""), (r"^  -+ *$", "  ───"), (r"^ (.*?) *$", r"│\1 │")):
        box = re.sub(drawn, line, box, flags=re.MULTILINE)
    lines = [line.strip("│ ") for line in box.splitlines()[1:]]
    message = " ".join(line for line in lines if line).split("───")[0].strip()
    message = re.sub(r"^Error parsing [A-Z]\w*: | \(applied to .*", "", message)
    message = re.sub(r"^Error parsing (\S+): .*int.*: ('.*')", r"\1 \2: expected a whole number", message)
    message = re.sub(r"^Error parsing (\S+): .*float.*: ('.*')", r"\1 \2: expected a number", message)
    message = re.sub(r"^Missing value for argument '(\S+)'.*", r"\1: needs a value", message)
    # A line may end before a full stop, too.
    choice = r"^invalid choice ('.*') for argument '(\S+)' ?\. Expected one of \((.*)\) ?\."
    message = re.sub(choice, r"\2 \1: expected one of \3", message)
    message = message.replace(" or misplaced", "")
    several = r"\1: not expected here; a text of several words stands in quotation marks"
    message = re.sub(r"^Unrecognized options: ([^-].*)", several, message)
    if message.startswith("Missing from"):
        message = f"missing: {', '.join(re.findall(r'^│ {5}(--[a-z.-]+|[A-Z]+)', box, re.MULTILINE))}"
    elif (meant := re.search(r"Perhaps you meant: +│\s+│ +(--[a-z.-]+)", box)) and meant[1] not in message:
        message += f"; perhaps {meant[1]}"
    return f"{message}; see: llucid {command + ' ' if command in commands else ''}--help"
