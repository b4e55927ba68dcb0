"""What code reads and assigns to is the same for one function in each version of Python, whose instructions differ."""

import pytest

from frostleaf.transforms.jit.code import Use, escapes, names_read, names_renewed, uses


class Base:
    def start(self, x): ...


class Kept(Base):
    def sliced(self):
        self.rows = self.rows[1:]

    def written_slice(self, row):
        self.rows[0:2] = row

    def with_a_list(self, rows):
        self.total = self.total + sum([row[0] for row in rows])

    def with_two_variables(self, rows):
        self.total = self.total + len({key: value + 1 for key, value in rows})

    def with_a_list_in_a_list(self, rows):
        self.total = self.total + sum([sum([each[0] for each in row]) for row in rows])

    def with_lists_of_one_variable(self, rows):
        self.total = self.total + sum([max([row[0] for row in row], [row[1] for row in row]) for row in rows])

    def with_two_loops(self, rows):
        self.total = self.total + sum([row for row in rows for row in row if row])

    def with_a_list_first(self, rows):
        lengths = [len(row) + 1 for row in rows[: self.size]]
        self.lengths = lengths

    def computed_in_a_list(self, rows):
        self.total = [row + 1 for row in self.total]

    def with_another(self, x):
        self.total = (self.total or 0) + x

    def with_one_that_may_be_missing(self, x):
        self.total = (self.total and self.total - 1) + x

    def starred(self, x):
        self.seen = (*self.seen, x)

    def positive(self, x):
        self.total = self.total + +x

    def inherited(self, x):
        self.count = self.count + 1
        return super().start(x)


RENEWED = {
    "sliced": {},
    "written_slice": {"written": "rows"},
    "with_a_list": {"computed": "total", "counted": "total"},
    "with_two_variables": {"computed": "total", "counted": "total"},
    "with_a_list_in_a_list": {"computed": "total", "counted": "total"},
    "with_lists_of_one_variable": {"computed": "total", "counted": "total"},
    "with_two_loops": {"computed": "total", "counted": "total"},
    "with_a_list_first": {},
    "computed_in_a_list": {},
    "with_another": {"computed": "total", "counted": "total"},
    "with_one_that_may_be_missing": {"computed": "total", "counted": "total"},
    "starred": {},
    "positive": {"computed": "total", "counted": "total"},
    "inherited": {"computed": "count", "counted": "count"},
}


@pytest.mark.parametrize("name", RENEWED)
def test_what_is_given_a_next_value(name):
    assert names_renewed(vars(Kept)[name].__code__) == {*RENEWED[name].items()}


class Using(Base):
    def inherited(self, x):
        return super().start(x)

    def inherited_of_a_class(self, x):
        return super(Using, self).start(x)  # noqa: UP008

    def in_a_generator(self, xs):
        return any(self.start(x) for x in xs)

    def in_a_list(self, xs):
        return [self.start(x) for x in xs]

    def in_a_function(self, xs):
        return lambda x: self.start(x)

    def given_away(self, xs):
        return print(xs, self)

    def given_away_in_a_list(self, xs):
        return [print(x, self) for x in xs]


ESCAPING = {"inherited_of_a_class", "given_away", "given_away_in_a_list"}


@pytest.mark.parametrize("name", [name for name, each in vars(Using).items() if callable(each)])
def test_what_is_only_read_of_does_not_escape(name):
    code = vars(Using)[name].__code__
    assert escapes(code, "self") == (name in ESCAPING)
    assert ("attribute", "start") in names_read(code) or name.startswith("given")


def asking(first, second):
    return isinstance(first, second)


def asking_an_attribute(first, second):
    return isinstance(second.kind, first)


def counting_in_a_list(first, second):
    return sum([each[0] for each in first])


def test_what_a_function_is_given_first_is_told_from_the_rest():
    given = {fn: {use for use in uses(fn.__code__) if use.given_to} for fn in (asking, asking_an_attribute, counting_in_a_list)}
    assert given[asking] == {Use("first", False, (), "isinstance")}
    assert given[asking_an_attribute] == {Use("second", False, ("kind",), "isinstance"), Use("kind", True, (), "isinstance")}
    assert given[counting_in_a_list] == set()


def test_names_beyond_the_first_256_are_read_of_as_the_others():
    names = [f"a{number}" for number in range(300)]
    scope = {}
    exec("def many(self):\n" + "\n".join(f"    self.{name} = self.{name} + 1" for name in names), scope)
    code = scope["many"].__code__
    assert {name for how, name in names_renewed(code) if how == "counted"} == {*names}
    assert not escapes(code, "self")
