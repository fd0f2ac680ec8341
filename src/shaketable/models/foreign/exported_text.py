"""The small languages that an exported program is written in, each with the grammar that is let through.

torch gives a program's texts to `eval`, `exec` or `importlib` in more places than one would think: size expressions go
to SymPy's `sympify`, guards to `exec`, node and parameter names into generated Python source, container types to
`import_module`. So every text is parsed here by a grammar in which nothing but its purpose can be said, and what is
handed on is printed from the parsed tree, not copied from the file. A text outside the grammar raises `RefusedError`.
"""

import ast
import json
import keyword
import re
from typing import Any

from .pickle_calls import RefusedError

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,500}", re.ASCII)
_PATH = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", re.ASCII)
_SYMBOL = re.compile(r"[a-z]{1,4}[0-9]{1,4}", re.ASCII)
_PLAIN = re.compile(r"[\w .,:>+()\[\]/=-]{0,500}", re.ASCII)
_RESERVED = {"self", "torch", "fx_pytree", "pytree", "math", "operator"}

_FUNCTIONS = {"Integer", "Rational", "Add", "Mul", "Max", "Min", "Mod", "Abs", "floor", "ceiling", "And", "Or", "Not"}
_FUNCTIONS |= {"PythonMod", "FloorDiv", "CleanDiv", "CeilDiv", "ModularIndexing", "Where", "Identity", "Eq", "Ne"}
_FUNCTIONS |= {"Equality", "Unequality", "StrictLessThan", "LessThan", "StrictGreaterThan", "GreaterThan"}
_FUNCTIONS |= {f"{name}ToInt" for name in ("Trunc", "Round", "Floor", "Ceil")}
_FUNCTIONS |= {"TruncToFloat", "ToFloat", "IntTrueDiv", "FloatTrueDiv"}
_ASSUMPTIONS = {"positive", "negative", "nonnegative", "nonzero", "integer", "real", "finite", "even", "precision"}
_GUARD_NODES = (ast.BoolOp, ast.And, ast.Or, ast.Compare, ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE)
_GUARD_NODES += (ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.FloorDiv, ast.Mod, ast.UnaryOp, ast.USub, ast.Not, ast.Load)
_GUARD_FUNCTIONS = {"max", "min", "Max", "Min", "Mod", "PythonMod", "FloorDiv", "CeilDiv"}


def identifier(text: str, *, argument: bool = False) -> str:
    """A name of a node, which torch writes into Python source; `argument`: of an operator's argument, which may be ""."""
    if argument and (text == "" or _IDENTIFIER.fullmatch(text)):
        return text
    if not _IDENTIFIER.fullmatch(text) or keyword.iskeyword(text) or text in _RESERVED or text.startswith("__"):
        raise RefusedError(f"a node named {text[:80]!r}, which is no plain name")
    return text


def path(text: str) -> str:
    """A dotted name of a weight or a key."""
    if not _PATH.fullmatch(text) or "__" in text.split("."):
        raise RefusedError(f"a weight or key named {text[:80]!r}, which is no plain dotted name")
    return text


def symbol(text: str) -> str:
    """A size symbol, such as s77. torch counts up to its number, so that is kept small."""
    if not _SYMBOL.fullmatch(text):
        raise RefusedError(f"a size symbol named {text[:80]!r}")
    return text


def plain(text: str) -> str:
    """A text argument of an operator, such as a padding mode or an einsum equation."""
    if not _PLAIN.fullmatch(text):
        raise RefusedError(f"a text argument {text[:80]!r}")
    return text


def expression(text: str) -> str:
    """A size expression as SymPy prints it: calls of its own arithmetic on symbols and numbers, and nothing else."""
    tree = _parsed(text, "a size expression")
    _check_expression(tree.body, text)
    return ast.unparse(tree)


def guard(text: str) -> str:
    """A condition on the input's sizes, such as `L['x'].size()[0] % 7 != 3`."""
    tree = _parsed(text, "a guard")
    _check_guard(tree.body, text)
    return ast.unparse(tree)


def treespec(text: str) -> str:
    """The nesting of the program's inputs or outputs: tuples, lists and dictionaries, which torch need not import."""
    try:
        version, root = json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise RefusedError("a tree of inputs or outputs that cannot be read") from error
    if type(version) is not int:
        raise RefusedError("a tree of inputs or outputs without its version")
    return json.dumps([version, _check_tree(root, 0)])


def _parsed(text: str, what: str) -> ast.Expression:
    if len(text) > 4000 or not text.isascii():
        raise RefusedError(f"{what} of {len(text)} characters: {text[:80]!r}")
    try:
        return ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise RefusedError(f"{what} that is none: {text[:80]!r}") from error


def _check_expression(node: ast.expr, text: str) -> None:
    match node:
        case ast.Constant(bool() | float()):
            return
        case ast.Constant(int(number)) if abs(number) < 2**63:
            return
        case ast.Name("true" | "false" | "oo"):
            return
        case ast.UnaryOp(ast.USub(), ast.Constant(int() | float())):
            return
        case ast.Call(ast.Name("Symbol"), [ast.Constant(str(name))], keywords) if _assumed(keywords):
            symbol(name)
            return
        case ast.Call(ast.Name("Float"), [ast.Constant(str(number))], keywords) if _assumed(keywords):
            if re.fullmatch(r"-?[0-9.]{1,40}(e[+-]?[0-9]{1,3})?", number):
                return
        case ast.Call(ast.Name("Pow"), [base, ast.Call(ast.Name("Integer"), [power], [])], []):
            # a power of a symbol alone: powers of powers of numbers fill the memory
            if isinstance(base, ast.Call) and _called(base) == "Symbol" and _small(power):
                _check_expression(base, text)
                return
        case ast.Call(ast.Name(function), arguments, []) if function in _FUNCTIONS:
            for argument in arguments:
                _check_expression(argument, text)
            return
    raise RefusedError(f"a size expression that is more than arithmetic: {text[:80]!r}")


def _check_guard(node: ast.AST, text: str) -> None:
    match node:
        case ast.Constant(int(number)) if abs(number) < 2**63:
            return
        case ast.Subscript(
            ast.Call(ast.Attribute(ast.Subscript(ast.Name("L"), ast.Constant(str(name))), "size" | "stride"), [], []),
            ast.Constant(int(index)),
        ) if 0 <= index < 16:
            identifier(name)
            return
        case ast.Call(ast.Name(function), arguments, []) if function in _GUARD_FUNCTIONS:
            for argument in arguments:
                _check_guard(argument, text)
            return
    if not isinstance(node, _GUARD_NODES):
        raise RefusedError(f"a guard that is more than a comparison of sizes: {text[:80]!r}")
    for child in ast.iter_child_nodes(node):
        _check_guard(child, text)


def _assumed(keywords: list[ast.keyword]) -> bool:
    return all(k.arg in _ASSUMPTIONS and isinstance(k.value, ast.Constant) and _flag(k.value.value) for k in keywords)


def _flag(value: object) -> bool:
    return isinstance(value, bool) or (isinstance(value, int) and 0 <= value <= 1000)


def _called(node: ast.Call) -> str | None:
    return node.func.id if isinstance(node.func, ast.Name) else None


def _small(node: ast.expr) -> bool:
    inner = node.operand if isinstance(node, ast.UnaryOp) else node
    return isinstance(inner, ast.Constant) and type(inner.value) is int and inner.value <= 8


def _check_tree(node: Any, depth: int) -> dict[str, Any]:
    if depth > 8 or not isinstance(node, dict) or not isinstance(node.get("children_spec"), list):
        raise RefusedError("a tree of inputs or outputs that cannot be read")
    kind, context = node.get("type"), node.get("context")
    children = [_check_tree(child, depth + 1) for child in node["children_spec"]]
    if kind is None and not children:
        context = None
    elif kind in ("builtins.tuple", "builtins.list"):
        context = "null"
    elif kind in ("builtins.dict", "collections.OrderedDict"):
        try:
            keys = json.loads(str(context))
        except (ValueError, TypeError, RecursionError) as error:
            raise RefusedError("a dictionary of outputs whose keys cannot be read") from error
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise RefusedError("a dictionary of outputs whose keys are no names")
        context = json.dumps([identifier(key) for key in keys])
    else:
        raise RefusedError(f"a container of type {str(kind)[:80]!r}")
    return {"type": kind, "context": context, "children_spec": children}
