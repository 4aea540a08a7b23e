"""The recipe as a parameter of flows, and the form that Prefect's UI makes of it.

Prefect describes the parameters of each flow as a JSON schema when the flow is defined. For a recipe that is 0.14 s of
processor time, seven times over whenever a command runs flows, and only a deployment's form needs it: so flows tell
Prefect no more than that there is one, and a form is made where flows are registered.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Annotated, Any

from prefect.flows import Flow
from prefect.utilities.callables import generate_parameter_schema, parameter_docstrings
from pydantic import PlainValidator, WithJsonSchema

from flows.recipe import Recipe

if TYPE_CHECKING:
    RecipeParameter = Recipe
else:  # of any type, since pydantic would look through a Recipe's settings all the same
    RecipeParameter = Annotated[Any, PlainValidator(Recipe.model_validate), WithJsonSchema({"type": "object"})]


def form(flow: Flow[Any, Any]) -> dict[str, Any]:
    """The JSON schema of a flow's parameters, its recipe with every setting."""
    signature = inspect.signature(flow.fn, eval_str=True)
    whole = [each.replace(annotation=_whole(each.annotation)) for each in signature.parameters.values()]
    docstrings = parameter_docstrings(inspect.getdoc(flow.fn))
    return generate_parameter_schema(signature.replace(parameters=whole), docstrings).model_dump(exclude_unset=True)


def _whole(annotation: Any) -> Any:
    return Recipe if annotation == RecipeParameter else annotation
