"""llama.py's own source, compiled with a call of `see` around every expression.

The module itself is not changed. What `see` returns replaces the value, so that watching and changing it are one
mechanism. Attention runs as it is written out, and matrices that are stored in less than float32 are widened when they
are used, some rows at a time.
"""

import ast
import inspect
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from inspect import isfunction
from types import CodeType, ModuleType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from llucid import fast
from llucid.arrays import Quantized

AT_ONCE = 2**21
"""Numbers of a matrix that are widened in one go: 8 MB, which allocators reuse. Fresh memory for a whole matrix takes
several times as long as its product with 64 vectors."""

Span = tuple[int, int, int, int]
"""Line (from 1), column (of characters, from 0), last line, column after the last character."""
Kind = Literal["variable", "parameter", "result", "expression", "use"]


class Site(NamedTuple):
    """A place in the source through which values pass."""

    function: str
    kind: Kind
    """`use`: a variable or parameter that is read."""
    text: str
    """The variable's or parameter's name, or the expression as it is written, on one line."""
    spans: tuple[Span, ...]
    """Where it stands: the expression, or a variable's name and then its expression if that is its own."""


class Instrumented(NamedTuple):
    """A module's source, its places, and the code with `see` and `enter` in it."""

    module: ModuleType
    file: str
    text: str
    sites: tuple[Site, ...]
    code: CodeType

    def run(self, see: Callable[[int, Any], Any], enter: Callable[[Callable[..., Any]], Any]) -> dict[str, Any]:
        """The module's namespace, in which every value passes through `see(site, value)`.

        `enter` decorates each function. What fast.py has of products, and of attention, is by its definition.
        """
        namespace: dict[str, Any] = {"__name__": "llucid.look.instrumented", "__see__": see, "__enter__": enter}
        namespace |= {"__module__": self.module, "__operand__": operand}
        exec(self.code, namespace)
        defined = {fast.linear: linear, fast.linear_each: linear_each, fast.attention_fast: attention}
        namespace |= {
            name: defined[value] for name, value in namespace.items() if isfunction(value) and value in defined
        }
        return namespace


@lru_cache
def instrument(name: str) -> Instrumented:
    """A module's source with a call of `see` around every expression of its functions; its classes are the module's."""
    module = import_module(name)
    text = inspect.getsource(module)
    watching = _Watching(text)
    tree = ast.fix_missing_locations(watching.visit(ast.parse(text)))
    file = module.__file__ or name
    return Instrumented(module, file, text, tuple(watching.sites), compile(tree, file, "exec"))


class _Watching(ast.NodeTransformer):
    def __init__(self, text: str) -> None:
        self.lines = text.splitlines()
        self.sites: list[Site] = []
        self.function = ""
        self.locals: set[str] = set()

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        if self.function:
            return node
        own = ast.Attribute(ast.Name("__module__", ast.Load()), node.name, ast.Load())
        return ast.Assign([ast.Name(node.name, ast.Store())], own, lineno=0)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        if any(isinstance(decorator, ast.Name) and decorator.id == "overload" for decorator in node.decorator_list):
            return node
        parameters = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        stored = (name.id for name in ast.walk(node) if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store))
        self.function, self.locals = node.name, {*(parameter.arg for parameter in parameters), *stored}
        seen = [self.rebound(parameter, parameter.arg, "parameter") for parameter in parameters]
        docstring = 1 if ast.get_docstring(node) is not None else 0
        body: list[ast.stmt] = [*node.body[:docstring], *seen]
        for statement in node.body[docstring:]:
            made: Any = self.visit(statement)
            body.extend(made if isinstance(made, list) else [made])
        node.body = body
        node.decorator_list.append(ast.Name("__enter__", ast.Load()))
        self.function = ""
        return node

    def visit_Assign(self, node: ast.Assign) -> Any:
        target, value = node.targets[0], node.value
        if isinstance(target, ast.Name):
            node.value = self.see(self.inside(value), "variable", target.id, target, value)
            return node
        if not isinstance(target, ast.Tuple | ast.List):
            node.value = self.expression(value)
            return self.in_place(node, target)
        names = [name for name in target.elts if isinstance(name, ast.Name)]
        if isinstance(value, ast.Tuple) and len(value.elts) == len(names):
            places = [(name, element) for name, element in zip(names, value.elts, strict=True)]
            value.elts = [self.inside(element) for element in value.elts]
        else:
            places = [(name,) for name in names]
            node.value = self.expression(value)
        return [node, *(self.rebound(place[0], place[0].id, "variable", *place[1:]) for place in places)]

    def visit_AugAssign(self, node: ast.AugAssign) -> Any:
        node.value = self.expression(node.value)
        return self.in_place(node, node.target)

    def visit_Expr(self, node: ast.Expr) -> Any:
        value, node.value = node.value, self.expression(node.value)
        return self.in_place(node, value)

    def in_place(self, node: ast.stmt, changed: ast.AST) -> list[ast.stmt]:
        """A statement that may change the tensor of a variable, which is another value then."""
        while isinstance(changed, ast.Subscript | ast.Attribute | ast.Call):
            changed = changed.func if isinstance(changed, ast.Call) else changed.value
        if isinstance(changed, ast.Name) and changed.id in self.locals:
            return [node, self.rebound(changed, changed.id, "variable")]
        return [node]

    def visit_Return(self, node: ast.Return) -> ast.AST:
        if isinstance(node.value, ast.Tuple) or node.value is None:
            node.value = node.value and self.expression(node.value)
        else:
            node.value = self.see(self.inside(node.value), "result", self.text(node.value), node.value)
        return node

    def generic_visit(self, node: ast.AST) -> ast.AST:
        if not isinstance(node, ast.expr):
            return super().generic_visit(node)
        return self.expression(node) if self.function else node

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return self.generic_visit(node)

    def expression(self, node: ast.expr) -> ast.expr:
        """The expression and its parts, each inside a call of `see`."""
        inside = self.inside(node)
        if isinstance(node, ast.Name):
            used = node.id in self.locals and isinstance(node.ctx, ast.Load)
            return self.see(inside, "use", node.id, node) if used else inside
        if isinstance(node, ast.Call | ast.BinOp | ast.UnaryOp | ast.Subscript | ast.Attribute | ast.Compare):
            return self.see(inside, "expression", self.text(node), node) if self.is_local(node) else inside
        return inside

    def inside(self, node: ast.expr) -> ast.expr:
        """The expression with its parts inside calls of `see`: a copy, so that `node` keeps its place in the source."""
        copy = type(node)(**dict(ast.iter_fields(node)))
        ast.copy_location(copy, node)
        if isinstance(copy, ast.Call):
            if isinstance(copy.func, ast.Attribute):
                receiver = self.expression(copy.func.value)
                copy.func = ast.copy_location(ast.Attribute(receiver, copy.func.attr, ast.Load()), copy.func)
            given = in_float32 if isinstance(copy.func, ast.Attribute) else lambda argument: argument
            copy.args = [given(self.expression(argument)) for argument in copy.args]
            copy.keywords = [ast.keyword(word.arg, given(self.expression(word.value))) for word in copy.keywords]
            return copy
        if isinstance(copy, ast.Name | ast.NamedExpr | ast.Lambda):
            return copy
        made: Any = super().generic_visit(copy)
        if isinstance(made, ast.BinOp):
            made.left, made.right = in_float32(made.left), in_float32(made.right)
        return made

    def is_local(self, node: ast.AST) -> bool:
        """Whether anything of the function is in the expression, so that it may be a value."""
        return any(isinstance(part, ast.Name) and part.id in self.locals for part in ast.walk(node))

    def rebound(self, node: ast.expr | ast.arg, name: str, kind: Kind, *more: ast.expr) -> ast.stmt:
        return ast.Assign(
            [ast.Name(name, ast.Store())], self.see(ast.Name(name, ast.Load()), kind, name, node, *more), lineno=0
        )

    def see(self, value: ast.expr, kind: Kind, text: str, *nodes: ast.expr | ast.arg) -> ast.expr:
        self.sites.append(Site(self.function, kind, text, tuple(map(self.span, nodes))))
        return ast.Call(ast.Name("__see__", ast.Load()), [ast.Constant(len(self.sites) - 1), value], [])

    def span(self, node: ast.expr | ast.arg) -> Span:
        """In characters; ast counts the bytes of UTF-8."""
        end_line, end = node.end_lineno or node.lineno, node.end_col_offset or 0
        if isinstance(node, ast.arg):
            end_line, end = node.lineno, node.col_offset + len(node.arg.encode())
        line, last = (self.lines[number - 1].encode() for number in (node.lineno, end_line))
        return node.lineno, len(line[: node.col_offset].decode()), end_line, len(last[:end].decode())

    def text(self, node: ast.expr) -> str:
        """The source of an expression on one line."""
        line, start, last, end = self.span(node)
        lines = self.lines[line - 1 : last]
        lines[-1] = lines[-1][:end]
        lines[0] = lines[0][start:]
        return " ".join(part.strip() for part in lines)


def in_float32(operand: ast.expr) -> ast.expr:
    """An operand of PyTorch's own, which has no products of two types: a matrix may be stored in less than float32."""
    if isinstance(operand, ast.Starred):
        return operand
    return ast.Call(ast.Name("__operand__", ast.Load()), [operand], [])


# --------------------------------------------------------------------------------------------- what is slow and exact


def operand(value: Any) -> Any:
    """An array in less than float32 widened, anything else as it is."""
    if isinstance(value, Tensor | Quantized) and value.dtype in (torch.bfloat16, torch.float16):
        return widened(value)
    return value


def widened(leaf: Tensor | Quantized) -> Tensor:
    """An array in float32 (or float64, if it is that)."""
    leaf = leaf.dense() if isinstance(leaf, Quantized) else leaf
    return leaf.to(torch.promote_types(leaf.dtype, torch.float32))


def rows(w: Tensor | Quantized, start: int, end: int) -> Tensor:
    """Some rows of a matrix, widened."""
    if isinstance(w, Quantized):
        return widened(w.rows_of(torch.arange(start, min(end, w.rows), device=w.device)))
    return widened(w[start:end])


def linear(x: Tensor, w: Tensor | Quantized, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + b; W is widened some rows at a time if it is narrower than x."""
    if w.dtype == x.dtype and not isinstance(w, Quantized):
        return fast.linear(x, w, bias)
    step = max(1, AT_ONCE // w.shape[1])
    y = torch.cat([fast.linear(x, rows(w, start, start + step)) for start in range(0, w.shape[0], step)], -1)
    return y if bias is None else y + bias


def linear_each(x: Tensor, *pairs: tuple[Tensor | Quantized, Tensor | None]) -> tuple[Tensor, ...]:
    """`linear` for each matrix and its bias."""
    return tuple(linear(x, w, bias) for w, bias in pairs)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, written_out: Callable[..., Tensor]) -> Tensor:
    """By its definition."""
    return written_out(q, k, v, mask)
