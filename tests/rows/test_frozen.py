"""What a maker makes is what the class makes."""

from __future__ import annotations

import copy
import pickle
from dataclasses import FrozenInstanceError, dataclass, field

import pytest

from agentlightning._frozen import maker
from agentlightning.dialects.model_call import Choice, ModelCall
from agentlightning.rows.training import Segment


@dataclass(frozen=True, slots=True)
class Named:
    name: str
    marks: list[int] = field(default_factory=list, compare=False)
    length: int = field(init=False)
    least: int = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "length", max(len(self.name), self.least))


def test_a_made_value_is_one_of_the_class_and_cannot_be_changed() -> None:
    made = maker(Named)("ab", least=3)
    assert type(made) is Named
    assert made == Named("ab", least=3)
    assert repr(made) == "Named(name='ab', marks=[], length=3, least=3)"
    assert hash(made) == hash(Named("ab", least=3))
    with pytest.raises(FrozenInstanceError):
        made.name = "c"  # type: ignore[misc]
    assert copy.copy(made) == made == pickle.loads(pickle.dumps(made))


def test_defaults_are_the_classes_and_each_value_has_lists_of_its_own() -> None:
    first, second = (maker(Named)("x") for _ in range(2))
    assert first.marks == []
    assert first.marks is not second.marks


def test_arguments_are_refused_as_by_the_class() -> None:
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'name'"):
        maker(Named)()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="unexpected keyword argument 'length'"):
        maker(Named)("x", length=1)  # type: ignore[call-arg]


@pytest.mark.parametrize("cls", [ModelCall, Choice])
def test_values_of_defaults_alone_are_equal(cls: type[ModelCall | Choice]) -> None:
    assert maker(cls)() == cls()


def test_a_class_without_post_init_and_with_required_fields() -> None:
    values = (0, 1, True, None, None)
    assert maker(Segment)(*values) == Segment(*values)  # type: ignore[arg-type]
