"""The `publish` section: what the model card says besides what was measured."""

from peftkit.recipe.sections.section import Section


class PublishSection(Section):
    """Facts a run cannot know by itself."""

    license: str = "other"
    """License of the adapter, as a hub identifier such as `apache-2.0`."""
    tags: tuple[str, ...] = ()
    """Extra tags of the model card."""
    language: tuple[str, ...] = ()
    """Languages of the data, as ISO codes."""
