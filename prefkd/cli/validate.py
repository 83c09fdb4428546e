"""`prefkd validate`."""

from prefkd import catalog
from prefkd.catalog import load_recipe
from prefkd.cli.arguments import Config, Overrides, RecipeName
from prefkd.cli.output import say
from prefkd.config import load_config


def validate(recipe: RecipeName, overrides: Overrides = (), /, *, config: Config = None) -> None:
    """Check a config, and report all mistakes at once, before any model is loaded.

    For example:
        prefkd validate tis_dpo_distill --config demo/tis_dpo_distill
        prefkd validate tis_dpo_distill --config ./mine.yaml optimizer.lr=1e-5 training.batch_size=8

    Args:
        recipe: Name of a recipe, or the path of your own. Without --config, a config that names its recipe.
        overrides: Settings that override the config; ~key removes one.
        config: Name of a config, or the path of your own.
    """
    recipe_path, config_path = catalog.find_run(recipe, config)
    load_config(load_recipe(recipe_path).Config, config_path, overrides)
    say(f"{config or recipe} is fine for {recipe if config else recipe_path.stem}")
