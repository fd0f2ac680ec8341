"""One frozen config and one ``run(config) -> Report`` for each verb."""
