"""How rows to judge by are held out of the training rows."""

from typing import Annotated

from pydantic import Field

from peftkit.recipe.sections.section import Expected, Section


class SplitSection(Section):
    """Rows held out of the training sources."""

    fraction: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Share that is held out: of the different rows; by group, of the groups."""
    by: Annotated[
        str,
        Field(pattern=r"^(random|stratified|(group|time):\S(.*\S)?)$", examples=["group:author"]),
        Expected("`random`, `stratified`, `group:<column>` or `time:<column>`"),
    ] = "random"
    """`random`, `stratified` by label, whole `group:<column>`, or the latest `time:<column>`."""

    @property
    def kind(self) -> str:
        """What decides: `random`, `stratified`, `group` or `time`."""
        return self.by.partition(":")[0]

    @property
    def column(self) -> str:
        """The column that decides, empty where none does."""
        return self.by.partition(":")[2]
