"""The house rules that a reader can rely on, read off the syntax trees of `sdediff` and its face
`solvers`.

Each rule is a function from a module to the complaints about it. Below the rules stands, for each,
a snippet that it must catch and one that it must let pass: a rule that catches nothing would be
worth nothing.
"""

import ast
import re
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(
    path.relative_to(ROOT)
    for folder in ("solvers", "sdediff")
    for path in (ROOT / folder).rglob("*.py")
)

FAMILIES = {"VE", "VP", "SubVP", "Cosine", "EDM", "RectifiedFlow"}
FILE_LINES, FUNCTION_LINES = 300, 60

# Calls of the global random number generator that are right where they stand: (file, call).
GLOBAL_RNG_ALLOWED: frozenset[tuple[str, str]] = frozenset(  # under fork_rng
    {
        ("sdediff/sources.py", "torch.manual_seed"),
        ("sdediff/trainer.py", "torch.manual_seed"),
        ("sdediff/watching.py", "torch.manual_seed"),
        ("sdediff/networks/choice.py", "torch.manual_seed"),
    }
)


class Module(NamedTuple):
    path: Path
    source: str
    tree: ast.Module

    @property
    def in_solvers(self):
        return self.path.parts[:2] == ("sdediff", "solvers")

    @classmethod
    def read(cls, path, source=None):
        source = (ROOT / path).read_text(encoding="utf-8") if source is None else source
        return cls(Path(path), source, ast.parse(source, str(path)))


def nodes(module, *kinds):
    return [node for node in ast.walk(module.tree) if isinstance(node, kinds)]


def dotted(node):
    """`torch.nn.functional` from its tree, "" for anything but names and dots."""
    match node:
        case ast.Name(name):
            return name
        case ast.Attribute(value, name):
            return f"{prefix}.{name}" if (prefix := dotted(value)) else ""
    return ""


def names_of(node):
    """What an import statement binds: name in the file -> full name."""
    if isinstance(node, ast.ImportFrom):
        prefix = "." * node.level + (node.module or "")
        return {alias.asname or alias.name: f"{prefix}.{alias.name}" for alias in node.names}
    pairs = [
        (alias.asname, alias.name) if alias.asname else (top(alias.name), top(alias.name))
        for alias in node.names
    ]
    return dict(pairs)


def top(name):
    return name.partition(".")[0]


def linear_sdes(trees):
    """Names of all classes in `trees` that derive from LinearSDE, directly or not."""
    classes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    bases = {cls.name: {dotted(base).rpartition(".")[2] for base in cls.bases} for cls in classes}
    found = {"LinearSDE"}
    while grown := {name for name, parents in bases.items() if parents & found} - found:
        found |= grown
    return found - {"LinearSDE"}


MODULES = [Module.read(path) for path in FILES]
CONCRETE_SDES = FAMILIES | linear_sdes(each.tree for each in MODULES)


# -- the rules -------------------------------------------------------------------------------------


def solvers_import_no_sdediff(module):
    for node in nodes(module, ast.Import, ast.ImportFrom) if module.in_solvers else []:
        for name in names_of(node).values():
            if top(name) == "sdediff" and not f"{name}.".startswith("sdediff.solvers."):
                yield node.lineno, f"sdediff/solvers/ imports {name}"


def the_name_solvers_is_left_to_users(module):
    """A file or folder of that name beside a user's script would be found in its place."""
    for node in (
        nodes(module, ast.Import, ast.ImportFrom) if module.path.parts[0] == "sdediff" else []
    ):
        if any(top(name) == "solvers" for name in names_of(node).values()):
            yield node.lineno, "sdediff/ imports the public face `solvers`: import sdediff.solvers"


LAYERS = (
    ("solvers",),
    ("sde",),
    ("protocols",),
    ("predict", "model", "operator", "constraints", "latent", "guidance", "exact", "reverse"),
    (
        "sampling",
        "encoding",
        "simulation",
        "likelihood",
        "objectives",
        "discrete",
        "degradation",
        "mcmc",
        "metrics",
    ),
    ("posterior",),
    (
        "comparison",
        "training",
        "training_data",
        "trainer",
        "checkpoint",
        "testing",
        "tuning",
        "interop",
        "cli",
    ),
)
RANKS = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def imports_go_up(module):
    """The picture of docs/architecture.md: none of these packages imports one of a layer below its
    own.
    """
    if module.path.parts[0] != "sdediff":
        return
    here = RANKS.get(module.path.parts[1].removesuffix(".py"))
    for node in nodes(module, ast.Import, ast.ImportFrom) if here is not None else []:
        for name in names_of(node).values():
            there = RANKS.get(name.split(".")[1]) if name.startswith("sdediff.") else None
            if there is not None and there > here:
                yield node.lineno, f"{module.path} imports {name}, of a layer below its own"


def solvers_name_no_sde(module):
    """No identifier has a family's name as one of its parts; `cosine` and `edm` in small letters
    are ordinary words.
    """
    parts = CONCRETE_SDES | {name.lower() for name in FAMILIES - {"Cosine", "EDM"}}
    for node in ast.walk(module.tree) if module.in_solvers else []:
        fields = ("id", "attr", "arg", "name", "asname")
        names = [value for field in fields if isinstance(value := getattr(node, field, None), str)]
        for name in names:
            if parts & {name, *re.split(r"[_.]", name)}:
                yield getattr(node, "lineno", 0), f"sdediff/solvers/ names an SDE: {name}"


def no_branch_on_a_concrete_sde(module):
    """Neither isinstance, issubclass, `type(x) is ...` nor a class pattern: a user's SDE must fare
    like ours.
    """
    for node in nodes(module, ast.Call, ast.Compare, ast.MatchClass):
        match node:
            case ast.Call(ast.Name("isinstance" | "issubclass"), [_, kinds]):
                compared = [kinds]
            case ast.Compare(left, _, comparators) if any(map(is_type_of, [left, *comparators])):
                compared = [left, *comparators]
            case ast.MatchClass(kind):
                compared = [kind]
            case _:
                continue
        names = {
            dotted(part).rpartition(".")[2]
            for expression in compared
            for part in ast.walk(expression)
        }
        for name in sorted(names & CONCRETE_SDES):
            yield node.lineno, f"branches on the class {name}"


def is_type_of(node):
    match node:
        case ast.Call(ast.Name("type"), [_]) | ast.Attribute(attr="__class__"):
            return True
    return False


def no_assert(module):
    for node in nodes(module, ast.Assert):
        yield node.lineno, "assert: raise ValueError or TypeError instead, and say how to mend it"


def short(module):
    """Docstrings and blank lines do not count, so that nobody shortens lines to fit."""
    lines = module.source.splitlines()
    counted = [bool(line.strip()) for line in lines]
    for node in nodes(module, ast.Expr):
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            counted[node.lineno - 1 : node.end_lineno] = [False] * (
                node.end_lineno - node.lineno + 1
            )
    if (length := sum(counted)) > FILE_LINES:
        yield 1, f"file of {length} lines, {FILE_LINES} are allowed"
    for node in nodes(module, ast.FunctionDef, ast.AsyncFunctionDef):
        if (length := sum(counted[node.lineno - 1 : node.end_lineno])) > FUNCTION_LINES:
            yield node.lineno, f"{node.name}: {length} lines, {FUNCTION_LINES} are allowed"


TORCH_RANDOM = set(
    "rand randn randint randperm rand_like randn_like randint_like normal bernoulli multinomial "
    "poisson".split()
)
TENSOR_RANDOM = set(
    "normal_ uniform_ random_ bernoulli bernoulli_ multinomial exponential_ geometric_ cauchy_ "
    "log_normal_".split()
)
TORCH_SEEDING = {
    "manual_seed",
    "seed",
    "set_rng_state",
    "manual_seed_all",
    "seed_all",
    "set_rng_state_all",
}
NUMPY_GENERATORS = set(
    "default_rng Generator RandomState BitGenerator SeedSequence "
    "PCG64 PCG64DXSM Philox SFC64".split()
)


def no_global_rng(module):
    """Random numbers come from a generator that was handed in, so that a seed alone says what they
    are.
    """
    known = {}
    for node in nodes(module, ast.Import, ast.ImportFrom):
        known |= names_of(node)
        if any(top(full) == "random" for full in names_of(node).values()):
            yield node.lineno, "imports the global generator `random`"
    for node in nodes(module, ast.Call):
        first, dot, rest = dotted(node.func).partition(".")
        call = known.get(first, first) + dot + rest
        if (module.path.as_posix(), call) not in GLOBAL_RNG_ALLOWED and uses_global_rng(call, node):
            yield node.lineno, f"{ast.unparse(node.func)} draws from or seeds a global generator"


def uses_global_rng(call, node):
    package, _, name = call.rpartition(".")
    generator = [word.value for word in node.keywords if word.arg == "generator"]
    own = bool(generator) and not (
        isinstance(generator[0], ast.Constant) and generator[0].value is None
    )
    if (
        package in {"torch", "torch.random", "torch.cuda", "torch.cuda.random", "torch.mps"}
        and name in TORCH_SEEDING
    ):
        return True
    if package == "torch" and name in TORCH_RANDOM:
        return not own
    if package == "numpy.random":
        return name not in NUMPY_GENERATORS
    return not own and isinstance(node.func, ast.Attribute) and node.func.attr in TENSOR_RANDOM


def no_catch_all(module):
    """A public function has no **kwargs, where a typo would go unnoticed.

    **condition goes to the network by name, and **extras are the names of an answer's further
    outputs. ``**options: Unpack[Record]`` has its names in the record.
    """
    yield from catch_alls(module.tree)


def catch_alls(scope):
    for node in ast.iter_child_nodes(scope):
        public = not getattr(node, "name", "").startswith("_") or node.name.endswith("__")
        if isinstance(node, ast.ClassDef) and public:
            yield from catch_alls(node)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and public:
            rest = node.args.kwarg
            named = rest is None or rest.arg in ("condition", "extras")
            if not named and ast.unparse(rest.annotation or rest)[:7] != "Unpack[":
                yield node.lineno, f"{node.name} takes **{rest.arg}: name the parameters"
        elif isinstance(node, ast.If | ast.Try | ast.With):
            yield from catch_alls(node)


BY_PLACE = {"atan2", "arctan2", "exp2", "hypot", "logaddexp", "sigmoid", "sinh", "cosh"}
ONE_GRID = {"grid.py", "tuned.py", "learned.py"}
"""What has one grid for all rows, and a network's weights."""


def rounded_alike(module):
    """torch rounds an entry of these functions by its place in the tensor, on processors whose
    vectors have no remainder of their own: a sample would depend on its batch.
    """
    if module.path.parts[1] not in {"solvers", "sde"} or module.path.name in ONE_GRID:
        return
    for node in nodes(module, ast.Call):
        package, _, name = dotted(node.func).rpartition(".")
        if package == "torch" and name in BY_PLACE:
            yield node.lineno, f"torch.{name} rounds an entry by its place in the tensor"


def no_import_between_tests(module):
    """What two test modules need lies in tests/tables, so that each can be read and moved alone."""
    for node in nodes(module, ast.Import, ast.ImportFrom):
        plain = isinstance(node, ast.Import)
        for name in names_of(node).values() if plain else [node.module or ""]:
            if any(part == "conftest" or part[:5] == "test_" for part in name.split(".")):
                yield node.lineno, f"imports from {name}: what tests share lies in tests/tables"


RULES = {
    rule.__name__: rule
    for rule in (
        solvers_import_no_sdediff,
        the_name_solvers_is_left_to_users,
        imports_go_up,
        solvers_name_no_sde,
        no_branch_on_a_concrete_sde,
        no_assert,
        short,
        no_global_rng,
        rounded_alike,
        no_catch_all,
    )
}


@pytest.mark.thin(2)
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_rule_holds(rule):
    assert MODULES
    complaints = [f"{each.path}:{line}: {text}" for each in MODULES for line, text in rule(each)]
    assert not complaints, "\n".join(complaints)


# -- each rule catches what it is for, and lets pass what it should --------------------------------

CAUGHT = {
    "solvers_import_no_sdediff": [
        "import sdediff",
        "import torch, sdediff.sde as s",
        "from sdediff.sde import SDE",
        "def f():\n    from sdediff import x",
    ],
    "the_name_solvers_is_left_to_users": [
        "import solvers",
        "from solvers import RK45",
        "def f():\n    from solvers.grid import x",
    ],
    "imports_go_up": [
        "from sdediff.sde import SDE",
        "from sdediff import training",
        "import sdediff.model as m",
    ],
    "solvers_name_no_sde": [
        "VP = 1",
        "x.SubVP",
        "def vp_step(): ...",
        "def f(edm, ve): ...",
        "from a import b as VE",
        "f(vp=1)",
    ],
    "no_branch_on_a_concrete_sde": [
        "isinstance(sde, VP)",
        "isinstance(sde, (LinearSDE, sd.VE))",
        "isinstance(sde, VP | int)",
        "issubclass(type(sde), EDM)",
        "type(sde) is Cosine",
        "sde.__class__ == sd.SubVP",
        "match sde:\n    case RectifiedFlow(): ...",
    ],
    "no_assert": ["assert x", "def f():\n    assert x, 'why'"],
    "short": ["x = 1\n" * (FILE_LINES + 1), "def f():\n" + "    x = 1\n" * FUNCTION_LINES],
    "no_global_rng": [
        "import torch\ntorch.randn(3)",
        "import torch as t\nt.randint(0, 3, (2,), generator=None)",
        "from torch import randn_like\nrandn_like(x)",
        "import torch\ntorch.manual_seed(0)",
        "import torch\ntorch.cuda.manual_seed_all(0)",
        "x.normal_()",
        "f(x).uniform_(0, 1)",
        "import numpy as np\nnp.random.rand(3)",
        "import numpy.random as r\nr.seed(0)",
        "from numpy.random import normal\nnormal()",
        "import random",
        "from random import shuffle",
    ],
    "rounded_alike": ["torch.hypot(alpha, sigma)", "y = torch.sigmoid(x).sqrt()"],
    "no_catch_all": [
        "def f(**kwargs): ...",
        "class A:\n    def f(self, x, **options): ...",
        "class A:\n    def __init__(self, **kw): ...",
        "def f(**options: Any): ...",
    ],
}

PASSED = {
    "solvers_import_no_sdediff": [
        "import torch",
        "from .sdediff import x",
        "from sdediff.solvers import grid",
    ],
    "the_name_solvers_is_left_to_users": ["from sdediff import solvers", "import solversuite"],
    "imports_go_up": [
        "from sdediff.solvers.grid import x",
        "from sdediff.masks import check_mask",
        "import torch",
    ],
    "solvers_name_no_sde": ["def cosine(): ...", "'VP'", "velocity = save = edm_grid = 1"],
    "no_branch_on_a_concrete_sde": [
        "isinstance(x, LinearSDE)",
        "isinstance(sde, torch.Tensor)",
        "type(x) is int",
        "VP() == x",
    ],
    "no_assert": ["raise ValueError('x')"],
    "short": [
        "x = 1\n\n" * FILE_LINES,
        'def f():\n    """' + "words\n" * 90 + '"""\n' + "    x = 1\n" * (FUNCTION_LINES - 1),
    ],
    "no_global_rng": [
        "import torch\ntorch.randn(3, generator=g)",
        "import torch\nx.normal_(generator=g)",
        "import torch\ng = torch.Generator().manual_seed(0)",
        "import numpy as np\nnp.random.default_rng(0).normal()",
        "import torch\ntorch.zeros(3)",
        "from .random import normal",
    ],
    "rounded_alike": ["(a**2 + b**2).sqrt()", "torch.exp(x)", "np.hypot(a, b)"],
    "no_catch_all": [
        "def f(x, **condition): ...",
        "def f(x, **options: Unpack[Options]): ...",
        "class A:\n    def __init__(self, value, **extras): ...",
        "def _f(**kwargs): ...",
        "class _A:\n    def f(self, **k): ...",
        "def f():\n    def g(**k): ...",
    ],
}


def snippets(table):
    return [
        pytest.param(RULES[name], code, id=f"{name}-{i}")
        for name, codes in table.items()
        for i, code in enumerate(codes)
    ]


@pytest.mark.parametrize(("rule", "code"), snippets(CAUGHT))
def test_rule_catches(rule, code):
    assert list(rule(Module.read("sdediff/solvers/snippet.py", code)))


@pytest.mark.parametrize(("rule", "code"), snippets(PASSED))
def test_rule_lets_pass(rule, code):
    assert not list(rule(Module.read("sdediff/solvers/snippet.py", code)))


def test_every_rule_has_snippets():
    assert RULES.keys() == CAUGHT.keys() == PASSED.keys()


def test_a_users_family_is_found_by_its_bases():
    trees = [
        ast.parse("class A(sd.LinearSDE): ...\nclass B(A): ...\nclass C(SDE): ..."),
        ast.parse("class D(B, C): ..."),
    ]
    assert linear_sdes(trees) == {"A", "B", "D"}


@pytest.mark.thin(0)
def test_no_test_module_imports_from_another():
    files = sorted(path.relative_to(ROOT) for path in (ROOT / "tests").rglob("*.py"))
    assert len(files) > 50
    complaints = [
        f"{path}:{line}: {text}"
        for path in files
        for line, text in no_import_between_tests(Module.read(path))
    ]
    assert not complaints, "\n".join(complaints)


@pytest.mark.parametrize(
    ("code", "caught"),
    [
        ("from test_cli import POINTS", True),
        ("def f():\n    from tests.cli.test_cli import POINTS", True),
        ("import test_cli", True),
        ("from conftest import SDES", True),
        ("from .test_cli import POINTS", True),
        ("from all_sdes import SDES", False),
        ("from sdediff import testing", False),
        ("from json import test_name", False),
    ],
)
def test_the_rule_of_tests_catches_what_it_is_for(code, caught):
    assert bool(list(no_import_between_tests(Module.read("tests/snippet.py", code)))) == caught
