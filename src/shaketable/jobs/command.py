"""The command line that makes a report again."""

import shlex

from .settings import Settings


def command_of(verb: str, config: Settings) -> str:
    """A verb with its positional model, or models, and every option that is not the default, but for where the output goes.

    Checked by tests/end_to_end/test_pseudolabel.py.
    """
    parts = ["shaketable", verb]
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if name == "model":
            parts[2:2] = map(str, value) if isinstance(value, tuple) else [str(value)]
        elif name != "out" and value != field.default:
            flag = f"--{name.replace('_', '-')}"
            if isinstance(value, bool):
                parts.append(flag if value else f"--no-{flag[2:]}")
            elif name == "eps" and isinstance(value, tuple):  # several radii are one text
                parts += [flag, ",".join(map(str, value))]
            else:
                parts += [flag, *(map(str, value) if isinstance(value, tuple) else [str(value)])]
    return shlex.join(parts)
